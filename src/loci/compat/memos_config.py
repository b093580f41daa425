"""What MemOS keeps about a system: its configuration, its users, and who may see which cube.

Users, cubes and who shares them lie in one JSON file of mode 0600 that is replaced whole, under a
lock. Roles are MemOS's: ROOT and ADMIN reach every cube, USER its own and those shared with it,
GUEST reads what is shared with it. A cube that one may not see and one that is not there are
answered alike, so an id that was guessed tells nothing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any  # JSON values

from loci import config as settings
from loci.core.clock import SystemClock
from loci.core.ports import Clock, Llm
from loci.errors import ConfigError, FormatError, ParameterError
from loci.models.endpoint import Endpoint
from loci.run.kept import put_file
from loci.run.llm import LateLlm, LocalLlm
from loci.units import nearest

CONTEXT = 4096  # tokens of memories, history and reply, where the configuration names none
_BACKENDS = ("loci", "huggingface", "openai", "ollama", "vllm", "deepseek")
_BASES = {
    "openai": "https://api.openai.com/v1",
    "ollama": "http://localhost:11434",
    "vllm": "http://localhost:8000/v1",
    "deepseek": "https://api.deepseek.com",
}
_FORMAT, _VERSION = "loci-memos", 1


class UserRole(StrEnum):
    """What a user may do."""

    ROOT = "root"
    ADMIN = "admin"
    USER = "user"
    GUEST = "guest"


@dataclass(frozen=True, kw_only=True)
class MOSConfig:
    """The configuration of a system, by the names MemOS gives the fields.

    Attributes:
        chat_model: {"backend", "config": {"model_name_or_path", "api_base", "api_key"}}; None is
            the local model of Loci's configuration.
        mem_reader: kept for its place: rules draw memories, and no model is asked for it.
        enable_activation_memory, enable_parametric_memory: whether cubes of that kind are shown.
    """

    user_id: str = "root"
    session_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    chat_model: Mapping[str, Any] | None = None
    mem_reader: Mapping[str, Any] | None = None
    mem_scheduler: Mapping[str, Any] | None = None
    user_manager: Mapping[str, Any] | None = None
    max_turns_window: int = 15
    top_k: int = 5
    enable_textual_memory: bool = True
    enable_activation_memory: bool = False
    enable_parametric_memory: bool = False
    enable_mem_scheduler: bool = False
    PRO_MODE: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> MOSConfig:
        """Return the configuration of a dict; an unknown key is refused with the nearest."""
        for name in given:
            if name not in cls.__dataclass_fields__:
                near = nearest(str(name), list(cls.__dataclass_fields__))
                raise ConfigError(
                    "the configuration of MemOS has no such key",
                    value=name,
                    allowed=", ".join(cls.__dataclass_fields__),
                    way_out=f"did you mean {near!r}?" if near else (),
                )
        made = cls(**given)
        for name in ("max_turns_window", "top_k"):
            value = getattr(made, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is a whole number of at least 1", value=value)
        return made

    @classmethod
    def from_json_file(cls, path: str | Path) -> MOSConfig:
        """Return the configuration of a JSON file."""
        return cls.of(read_json(Path(path)))

    def notes(self) -> list[str]:
        """Return what of it is done otherwise here."""
        found = []
        if self.mem_reader is not None:
            found.append("mem_reader: rules draw memories from messages; no model is asked for it")
        if self.PRO_MODE:
            found.append("PRO_MODE: one search answers; the model does not split the question")
        if self.mem_scheduler is not None:
            found.append("mem_scheduler: what is added is searchable at once; nothing is scheduled")
        return found


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ParameterError: if there is no such file.
        FormatError: if it is no JSON object.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ParameterError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise FormatError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise FormatError(f"{path} holds no JSON object")
    return data


def chat_model(given: Mapping[str, Any] | None) -> Llm:
    """Return the model that `chat` asks; a local one is opened when it is first asked.

    Raises:
        ParameterError: for a back end that cannot be asked; the nearest is suggested.
    """
    here = settings.load()
    if given is None:
        return _local(here.model, here)
    backend = str(given.get("backend"))
    options = dict(given.get("config") or {})
    if backend not in _BACKENDS:
        near = nearest(backend, _BACKENDS)
        raise ParameterError(
            "this back end of a chat model is not asked here",
            value=backend,
            allowed=", ".join(_BACKENDS),
            way_out=[f"did you mean {near!r}?"]
            if near
            else ["leave chat_model out: a local model"],
        )
    model = options.get("model_name_or_path")
    if not isinstance(model, str) or not model:
        raise ParameterError("chat_model.config names no model_name_or_path", value=options)
    if backend in ("loci", "huggingface"):
        return _local(model, here)
    url = str(options.get("api_base") or _BASES[backend])
    if backend == "ollama" and not url.rstrip("/").endswith("/v1"):
        url = url.rstrip("/") + "/v1"  # its OpenAI-compatible side
    key = options.get("api_key")
    return Endpoint(url, model, None if key is None else str(key))


def _local(model: str, here: settings.Config) -> LateLlm:
    def opens() -> Any:
        from loci.plan import plan
        from loci.run import engine

        solved = plan(
            model,
            dram=here.dram,
            gpu=here.gpu,
            disk=here.disk,
            process=here.process,
            context=here.context or CONTEXT,
            folder=here.models_dir,
            cache=here.cache_dir,
        )
        return LocalLlm(engine.open(solved, folder=here.models_dir))

    return LateLlm(model, opens)


class Registry:
    """Users and cubes in a JSON file; every change is read, made and written under a lock."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self.path, self._clock = path, clock or SystemClock()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._change(lambda data: self._user(data, "root", UserRole.ROOT, "root"))

    def add_user(self, id: str, role: UserRole, name: str | None) -> str:
        """Add a user; returns its id, that of the user who has the name already if there is one."""
        _named("user_id", id)
        return self._change(lambda data: self._user(data, id, UserRole(role), name or id))

    def users(self) -> list[dict[str, Any]]:
        """Return all users."""
        return [{"user_id": id, **user} for id, user in self._read()["users"].items()]

    def user(self, id: str) -> dict[str, Any]:
        """Return a user.

        Raises:
            ParameterError: if there is none of this id.
        """
        return {"user_id": id, **self._known(self._read(), id)}

    def add_cube(self, id: str, name: str, owner: str, path: str | None) -> None:
        """Add a cube.

        Raises:
            ParameterError: if there is one of this id, or the owner may have none.
        """
        _named("cube_id", id)

        def make(data: dict[str, Any]) -> None:
            if self._known(data, owner)["role"] == UserRole.GUEST:
                raise ParameterError("a guest has no cubes of its own", value=owner)
            if id in data["cubes"]:
                raise ParameterError("there is a cube of this id", value=id)
            data["cubes"][id] = {
                "cube_name": name,
                "owner_id": owner,
                "cube_path": path,
                "created_at": self._now(),
                "shared_with": [],
            }

        self._change(make)

    def share(self, id: str, by: str, target: str) -> None:
        """Let another user read a cube and, unless a guest, write to it."""

        def give(data: dict[str, Any]) -> None:
            self._allowed(data, id, by, write=True)
            self._known(data, target)
            shared = data["cubes"][id]["shared_with"]
            if target not in shared:
                shared.append(target)

        self._change(give)

    def cube(self, id: str, user: str, *, write: bool = False) -> dict[str, Any]:
        """Return a cube that a user may read, or write to.

        Raises:
            ParameterError: if not, or there is none: which of the two is not told.
        """
        return {"cube_id": id, **self._allowed(self._read(), id, user, write=write)}

    def cubes(self, user: str) -> list[dict[str, Any]]:
        """Return the cubes a user may read, its own first."""
        data = self._read()
        sees_all = self._known(data, user)["role"] in (UserRole.ROOT, UserRole.ADMIN)
        found = [
            {"cube_id": id, **cube}
            for id, cube in data["cubes"].items()
            if sees_all or cube["owner_id"] == user or user in cube["shared_with"]
        ]
        return sorted(found, key=lambda cube: cube["owner_id"] != user)

    def has_cube(self, id: str) -> bool:
        """Return whether there is a cube of this id."""
        return id in self._read()["cubes"]

    # -- private ------------------------------------------------------------------------------

    def _user(self, data: dict[str, Any], id: str, role: UserRole, name: str) -> str:
        for known, user in data["users"].items():
            if known == id or user["user_name"] == name:
                return str(known)
        data["users"][id] = {
            "user_name": name,
            "role": role.value,
            "created_at": self._now(),
            "is_active": True,
        }
        return id

    def _known(self, data: Mapping[str, Any], id: str) -> dict[str, Any]:
        if id not in data["users"]:
            raise ParameterError(
                "there is no such user", value=id, way_out=f"mos.create_user(user_id={id!r})"
            )
        return dict(data["users"][id])

    def _allowed(
        self, data: Mapping[str, Any], id: str, user: str, *, write: bool
    ) -> dict[str, Any]:
        role, cube = self._known(data, user)["role"], data["cubes"].get(id)
        mine = cube is not None and (
            role in (UserRole.ROOT, UserRole.ADMIN)
            or cube["owner_id"] == user
            or user in cube["shared_with"]
        )
        if not mine:
            raise ParameterError("this user has no such cube", value=(user, id))
        if write and role == UserRole.GUEST:
            raise ParameterError("a guest may only read", value=(user, id))
        return dict(cube)

    def _read(self) -> dict[str, Any]:
        if not self.path.is_file():
            return {"format": _FORMAT, "version": _VERSION, "users": {}, "cubes": {}}
        data = read_json(self.path)
        if (data.get("format"), data.get("version")) != (_FORMAT, _VERSION):
            raise FormatError(f"{self.path} holds no users of a version we know")
        return data

    def _change(self, make: Callable[[dict[str, Any]], Any]) -> Any:
        with self._locked():
            data = self._read()
            before = json.dumps(data)
            made = make(data)
            after = json.dumps(data)
            if after != before or not self.path.is_file():
                put_file(self.path, after.encode())
        return made

    @contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl  # here: Windows has none, and only imports this

        with self.path.with_name(self.path.name + ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _now(self) -> str:
        return self._clock.now().isoformat()


def _named(what: str, id: object) -> None:
    if not isinstance(id, str) or not id.strip() or len(id) > 200 or not id.isprintable():
        raise ParameterError(f"{what} is a text of up to 200 characters", value=id)

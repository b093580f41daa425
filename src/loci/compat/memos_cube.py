"""A cube of MemOS over a memory of Loci: textual memory, and the cubes of KV and of weights.

Everything of one cube is of one user of the memory, so nothing is found across cubes. What Loci
has no field for is kept in the metadata of an item, under "memos".
"""

from __future__ import annotations

import json
import tempfile
import uuid
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any  # metadata is JSON

from loci.core.cube import CubeHeader, MemoryKind
from loci.core.item import Hit, Item, Scope, Turn
from loci.errors import FormatError, MethodError, NotFoundError, ParameterError
from loci.run.kept import put_file
from loci.run.memory import Memory
from loci.store.messages import body_text, json_text

TEXT_FILE, CONFIG_FILE, CUBES = "textual_memory.json", "config.json", "cubes"
KINDS = ("text_mem", "act_mem", "para_mem")
_OWN = "memos"
_LISTED = ("fact", "note")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "status": ("activated", "archived", "deleted", "resolving"),
    "visibility": ("private", "public", "session"),
}
_OF_KIND = {"act_mem": MemoryKind.ACTIVATION, "para_mem": MemoryKind.PARAMETRIC}


class TextualMemoryMetadata:
    """What is known about a memory, as attributes; one that was not given is None."""

    def __init__(self, **given: Any) -> None:
        for name, allowed in _CHOICES.items():
            if given.get(name) is not None and given[name] not in allowed:
                raise ParameterError(
                    f"metadata.{name} is not one of MemOS's",
                    value=given[name],
                    allowed=", ".join(allowed),
                )
        confidence = given.get("confidence")
        if confidence is not None and not (
            isinstance(confidence, int | float) and 0 <= confidence <= 100
        ):
            raise ParameterError("metadata.confidence lies between 0 and 100", value=confidence)
        self.__dict__.update(given)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextualMemoryMetadata) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"TextualMemoryMetadata({self.model_dump()})"

    def model_dump(self) -> dict[str, Any]:
        """Return what is known as a dict."""
        return {name: value for name, value in self.__dict__.items() if value is not None}


@dataclass
class TextualMemoryItem:
    """A memory as MemOS shows it; to change one, call `update`."""

    memory: str
    metadata: Any = field(default_factory=TextualMemoryMetadata)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def __post_init__(self) -> None:
        if isinstance(self.metadata, Mapping):
            self.metadata = TextualMemoryMetadata(**self.metadata)

    @property
    def memory_id(self) -> str:
        """The id."""
        return self.id

    @property
    def created_at(self) -> str | None:
        """When it was recorded, ISO 8601."""
        return self.metadata.created_at  # type: ignore[no-any-return]

    def model_dump(self) -> dict[str, Any]:
        """Return it as a dict."""
        return {"id": self.id, "memory": self.memory, "metadata": self.metadata.model_dump()}

    to_dict = model_dump

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TextualMemoryItem:
        """Return the memory of a dict; other fields than MemOS's are refused."""
        unknown = set(data) - {"id", "memory", "metadata"}
        if unknown or not isinstance(data.get("memory"), str):
            raise ParameterError(
                "this is no memory", value=sorted(data), allowed='{"id", "memory", "metadata"}'
            )
        more = {"id": str(data["id"])} if data.get("id") else {}
        return cls(memory=data["memory"], metadata=dict(data.get("metadata") or {}), **more)


class TextMemory:
    """The textual memory of a cube.

    Args:
        user: whose, in the memory.
    """

    def __init__(self, memory: Memory, user: str) -> None:
        self.memory, self.user = memory, user

    def add(self, memories: Sequence[TextualMemoryItem | Mapping[str, Any]]) -> list[str]:
        """Keep memories as they are given; returns their ids."""
        items = [_item_of(one) for one in memories]
        for one in items:  # all of them are fine before the first is kept
            body_text(one.memory, "the memory")
            json_text(one.metadata.model_dump(), "the metadata of a memory")
            if self._find(one.id) is not None:
                raise ParameterError("there is a memory of this id", value=one.id)
        for one in items:
            about = {_OWN: {"id": one.id, **one.metadata.model_dump()}}
            self.memory.note(one.memory, user=self.user, metadata=about)
        return [one.id for one in items]

    def hear(self, messages: Any, session: str | None) -> list[TextualMemoryItem]:
        """Keep messages, and what rules draw from them; returns what is new."""
        added = self.memory.add(messages, user=self.user, session=session)
        drawn = {id for item in added.items for id in item.sources}
        rest = [turn for turn in added.turns if turn.id not in drawn and turn.role == "user"]
        return [self._shown(item) for item in added.items if item.is_live] + [
            self._turn(turn) for turn in rest
        ]

    def search(self, query: str, top_k: int = 5, **more: Any) -> list[TextualMemoryItem]:
        """Return the memories that answer a query, best first."""
        known = {"mode", "info", "memory_type", "manual_close_internet"}
        if set(more) - known or more.get("mode", "fast") not in ("fast", "fine"):
            raise ParameterError(
                "search does not know this", value=more, allowed="mode='fast' or 'fine'"
            )
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise ParameterError("top_k is a whole number of at least 1", value=top_k)
        hits = self.memory.search(query, user=self.user, limit=top_k)
        found = [self._hit(hit) for hit in hits]
        if self.memory.embedder is None and len(found) < top_k:
            # Words alone leave out what shares none with the query; vectors would not.
            have = {one.id for one in found}
            found += [one for one in self.get_all() if one.id not in have][: top_k - len(found)]
        return found

    def get(self, memory_id: str) -> TextualMemoryItem:
        """Return a memory.

        Raises:
            NotFoundError: if this cube has none of this id.
        """
        found = self._find(memory_id)
        if found is None:
            raise NotFoundError("this cube has no memory of this id", value=memory_id)
        return self._shown(found) if isinstance(found, Item) else self._turn(found)

    def get_by_ids(self, memory_ids: Sequence[str]) -> list[TextualMemoryItem]:
        """Return several memories."""
        return [self.get(id) for id in memory_ids]

    def get_all(self) -> list[TextualMemoryItem]:
        """Return all memories, oldest first, and the messages from which none was drawn."""
        items = [item for item in self._listed(_LISTED) if isinstance(item, Item)]
        drawn = {id for item in items for id in item.sources}
        turns = [
            turn
            for turn in self._listed(("turn",))
            if isinstance(turn, Turn) and turn.role == "user" and turn.id not in drawn
        ]
        return [self._shown(item) for item in reversed(items)] + [
            self._turn(turn) for turn in reversed(turns)
        ]

    def update(self, memory_id: str, new: TextualMemoryItem | Mapping[str, Any]) -> None:
        """Write a memory anew; the old text stays in its history."""
        before = self._find(memory_id)
        if before is None:
            raise NotFoundError("this cube has no memory of this id", value=memory_id)
        if isinstance(before, Turn):
            raise ParameterError("a message stays as it was said", value=memory_id)
        fresh = _item_of(new)
        json_text(fresh.metadata.model_dump(), "the metadata of a memory")
        own = {**before.metadata.get(_OWN, {}), **fresh.metadata.model_dump()}
        after = replace(before, metadata={**before.metadata, _OWN: own}, made_by="person")
        if fresh.memory != before.text:
            after = replace(after, text=body_text(fresh.memory, "the memory"))
            after = replace(after, subject=None, predicate=None, object=None, entities=())
        scope = Scope(tenant=self.memory.tenant, user=self.user)
        self.memory.store.change(scope, after, "edit", "", self.memory.clock.now())

    def delete(self, memory_ids: str | Sequence[str]) -> None:
        """Take memories out of sight; a message is erased. `loci memory undo` brings one back."""
        ids = [memory_ids] if isinstance(memory_ids, str) else list(memory_ids)
        found = [self._find(id) for id in ids]
        for id, one in zip(ids, found, strict=True):
            if one is None:
                raise NotFoundError("this cube has no memory of this id", value=id)
        for one in found:
            if isinstance(one, Turn):
                self.memory.forget(one.id, user=self.user)
            elif one is not None:
                self.memory.retire(one.id, user=self.user, reason="deleted")

    def delete_all(self) -> None:
        """Erase everything in this cube, down to the bytes."""
        if self.user in self.memory.users():
            self.memory.forget_all(user=self.user)

    def dump(self, dir: str | Path) -> None:
        """Write all memories into a folder, as MemOS does."""
        data = [one.model_dump() for one in self.get_all()]
        put_file(Path(dir) / TEXT_FILE, json.dumps(data, ensure_ascii=False, indent=1).encode())

    def load(self, dir: str | Path) -> None:
        """Add the memories of a folder that MemOS or this wrote; known ids are passed over."""
        path = Path(dir) / TEXT_FILE
        try:
            data = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise ParameterError(f"cannot read {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise FormatError(f"{path} is not JSON: {error}") from error
        if isinstance(data, dict):  # a tree: its nodes are the memories
            data = data.get("nodes")
        if not isinstance(data, list):
            raise FormatError(f"{path} holds no list of memories")
        kept = ("id", "memory", "metadata")
        items = [
            TextualMemoryItem.from_dict({k: one[k] for k in kept if k in one})
            for one in (dict(entry.get("payload") or entry) for entry in data)
        ]
        self.add([one for one in items if self._find(one.id) is None])

    # -- private ------------------------------------------------------------------------------

    def _listed(self, kinds: Sequence[str]) -> list[Item | Turn]:
        found: list[Item | Turn] = []
        while page := self.memory.list(user=self.user, kinds=kinds, limit=1000, offset=len(found)):
            found += page
        return found

    def _find(self, id: str) -> Item | Turn | None:
        """Return what is live under an id: the store's, or one that was given with it."""
        try:
            found: Item | Turn | None = self.memory.get(str(id), user=self.user)
        except NotFoundError:
            asked = {f"metadata.{_OWN}.id": str(id)}
            named = self.memory.list(user=self.user, kinds=_LISTED, filters=asked, limit=1)
            found = named[0] if named else None
        if isinstance(found, Item) and not found.is_live:
            return None
        return found

    def _hit(self, hit: Hit) -> TextualMemoryItem:
        found = self.memory.get(hit.id, user=self.user)
        made = self._shown(found) if isinstance(found, Item) else self._turn(found)
        made.metadata.relativity = hit.score
        return made

    def _shown(self, item: Item) -> TextualMemoryItem:
        own = dict(item.metadata.get(_OWN, {}))
        id = str(own.pop("id", item.id))
        stamp = item.recorded_at.isoformat() if item.recorded_at is not None else None
        about = {
            "user_id": self.user,
            "status": "activated",
            "type": "fact",
            "memory_type": "LongTermMemory",
            "source": "conversation" if item.sources else None,
            "sources": list(item.sources) or None,
            "created_at": stamp,
            "updated_at": stamp,
            "version": item.version,
            **own,
        }
        return TextualMemoryItem(memory=item.text, metadata=about, id=id)

    def _turn(self, turn: Turn) -> TextualMemoryItem:
        about = {
            "user_id": self.user,
            "session_id": turn.session,
            "status": "activated",
            "source": "conversation",
            "created_at": turn.time.isoformat(),
        }
        return TextualMemoryItem(memory=turn.content, metadata=about, id=turn.id)


@dataclass(frozen=True)
class CubeMemory:
    """A KV cube or an adapter, as an item of an activation or a parametric memory."""

    id: str
    memory: CubeHeader

    @property
    def metadata(self) -> CubeHeader:
        """The header."""
        return self.memory


class CubeList:
    """The cubes of one kind that were promoted from a cube's memories; to be read only.

    `loci cube promote` and `loci adapter train` make them.
    """

    def __init__(self, memory: Memory, user: str, kind: MemoryKind) -> None:
        self.inner, self.user, self.kind = memory, user, kind

    def get_all(self) -> list[CubeMemory]:
        """Return all."""
        shelf = self.inner.shelf
        headers = [] if shelf is None else shelf.headers(self.kind)
        mine = [
            header
            for header in headers
            if header.policy.owner == self.user and header.policy.scope == self.inner.tenant
        ]
        return [CubeMemory(header.id, header) for header in mine]

    def get(self, memory_id: str) -> CubeMemory:
        """Return one.

        Raises:
            NotFoundError: if this cube has none of this id.
        """
        for one in self.get_all():
            if one.id == memory_id:
                return one
        raise NotFoundError("this cube has none of this id", value=memory_id)

    def add(self, memories: Any) -> None:
        """Refuse: they are promoted from text, so that forgetting the text reaches them."""
        raise MethodError(
            f"cubes of {self.kind} memory are promoted from text",
            way_out="loci cube promote, or loci adapter train",
        )

    def dump(self, dir: str | Path) -> None:
        """Write each into a file of its own."""
        shelf, folder = self.inner.shelf, Path(dir) / CUBES
        for one in self.get_all():
            assert shelf is not None
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            shelf.save(one.id, folder / f"{one.id}.cube")


class GeneralMemCube:
    """A cube that stands alone: made empty, filled, dumped to a folder, loaded from one.

    What is not dumped is gone with the object, as it is with MemOS.

    Args:
        config: kept for its place, and written into the folder.
        over: (memory, user) of a cube that a system keeps.
    """

    def __init__(
        self, config: Mapping[str, Any] | None = None, *, over: tuple[Memory, str] | None = None
    ) -> None:
        self.config = dict(config or {})
        if over is None:
            folder = tempfile.TemporaryDirectory(prefix="loci-cube-")
            memory = Memory(Path(folder.name) / "cube.db", tenant=_OWN)
            over = memory, "cube"
            self._end = weakref.finalize(self, _gone, memory, folder)
        self.inner, self.user = over
        self.text_mem = TextMemory(*over)
        self.act_mem = CubeList(*over, MemoryKind.ACTIVATION)
        self.para_mem = CubeList(*over, MemoryKind.PARAMETRIC)

    @classmethod
    def init_from_dir(
        cls,
        dir: str | Path,
        memory_types: Sequence[str] | None = None,
        default_config: Mapping[str, Any] | None = None,
    ) -> GeneralMemCube:
        """Return a cube with what a folder holds."""
        made = cls(default_config)
        made.load(dir, memory_types)
        return made

    @classmethod
    def init_from_remote_repo(cls, cube_id: str, base_url: str = "", **more: Any) -> GeneralMemCube:
        """Refuse: nothing is fetched from elsewhere."""
        raise MethodError(
            "a cube is not fetched from a repository",
            value=cube_id,
            way_out="download its folder and call GeneralMemCube.init_from_dir(folder)",
        )

    def load(self, dir: str | Path, memory_types: Sequence[str] | None = None) -> None:
        """Add what a folder holds; one that MemOS wrote is read too, but for its pickles."""
        folder, kinds = Path(dir), _kinds(memory_types)
        if not folder.is_dir():
            raise ParameterError("there is no such folder of a cube", value=str(dir))
        if "text_mem" in kinds:
            self.text_mem.load(folder)
        pickles = [path.name for path in folder.glob("*.pickle")]
        if pickles:
            warnings.warn(f"{', '.join(pickles)} not read: a pickle may run any code", stacklevel=2)
        for path in sorted((folder / CUBES).glob("*.cube")):
            self._take(path, kinds)

    def dump(self, dir: str | Path, memory_types: Sequence[str] | None = None) -> None:
        """Write the cube into a folder that is new or empty.

        Raises:
            ParameterError: if something is in it; nothing was written then.
        """
        folder, kinds = Path(dir), _kinds(memory_types)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ParameterError("a cube is dumped into a new or empty folder", value=str(dir))
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if "text_mem" in kinds:
            self.text_mem.dump(folder)
        for name, part in (("act_mem", self.act_mem), ("para_mem", self.para_mem)):
            if name in kinds:
                part.dump(folder)
        about = {"format": "loci-memcube", "version": 1, "user_id": self.user, **self.config}
        put_file(folder / CONFIG_FILE, json.dumps(about, ensure_ascii=False, indent=1).encode())

    def _take(self, path: Path, kinds: Sequence[str]) -> None:
        from loci.store.cube_file import read

        header, payload = read(path)
        if header.kind not in [_OF_KIND[name] for name in kinds if name in _OF_KIND]:
            return
        shelf = self.inner.shelf
        if shelf is None:
            raise MethodError("this memory lies in a database; it has no place for cubes")
        policy = replace(header.policy, scope=self.inner.tenant, owner=self.user)
        shelf.put(replace(header, policy=policy), payload)


def _gone(memory: Memory, folder: tempfile.TemporaryDirectory[str]) -> None:
    memory.close()
    folder.cleanup()


def _item_of(one: TextualMemoryItem | Mapping[str, Any]) -> TextualMemoryItem:
    return one if isinstance(one, TextualMemoryItem) else TextualMemoryItem.from_dict(one)


def _kinds(names: Sequence[str] | None) -> Sequence[str]:
    for name in names or ():
        if name not in KINDS:
            raise ParameterError("unknown kind of memory", value=name, allowed=", ".join(KINDS))
    return KINDS if names is None else names

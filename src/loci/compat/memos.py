"""MemOS's `MOS` and `GeneralMemCube` over a memory of Loci, in the shape of version 1.

    from loci.compat.memos import MOS, MOSConfig

    mos = MOS(MOSConfig.from_json_file("examples/data/config/simple_memos_config.json"))
    mos.create_user(user_id="ada")
    mos.register_mem_cube("examples/data/mem_cube_2", user_id="ada")
    mos.add(messages=[{"role": "user", "content": "I like playing football."}], user_id="ada")
    mos.search(query="What do you like?", user_id="ada")["text_mem"]

No key, no server and no graph database: rules draw memories from messages, and one file holds all
cubes, in the folder `memos` beside the configured memory file. Only `chat` asks a model: the local
one, unless `chat_model` names another.

Differs from MemOS: a cube keeps what was added to it in the next process too; reconciling is part
of `add`, so there is no reorganizer to wait for; `delete` can be undone, `delete_all` erases down
to the bytes; the folders of cubes hold no pickle; KV cubes and adapters are promoted from text
(`loci cube`, `loci adapter`) and shown here, never written by `add`. A wrong id and one of somebody
else are refused alike.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal  # messages and results are JSON

from loci import config as settings
from loci.compat.memos_config import MOSConfig, Registry, UserRole, chat_model
from loci.compat.memos_cube import (
    GeneralMemCube,
    TextualMemoryItem,
    TextualMemoryMetadata,
)
from loci.core.ports import Clock, Embedder, Llm
from loci.errors import MethodError, ParameterError
from loci.models.late import default_embedder
from loci.run.llm import LateLlm
from loci.run.memory import Memory
from loci.store.messages import body_text
from loci.text.quote import AS_DATA, listed

__all__ = [
    "MOS",
    "GeneralMemCube",
    "MOSConfig",
    "TextualMemoryItem",
    "TextualMemoryMetadata",
    "UserRole",
]

PIECE = 1000
"""Characters of a document's piece, at most; pieces end where a paragraph does."""

NEW_TOKENS = 256
_DOCUMENTS = (".txt", ".md")
_SYSTEM = "You are a helpful assistant who remembers what was said before. "


class MOS:
    """Users, their cubes, and what is remembered in them.

    Args:
        config: a `MOSConfig`, or its fields as a dict; None takes the defaults.
        folder: where all of it is kept; else `memos` beside the configured memory file.
        embedder: compares meanings; MiniLM where it was pulled, None searches by words.
        llm: what `chat` asks, in the place of the configuration's.
    """

    def __init__(
        self,
        config: MOSConfig | Mapping[str, Any] | None = None,
        *,
        folder: str | Path | None = None,
        embedder: Embedder | Literal["default"] | None = "default",
        llm: Llm | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.config = config if isinstance(config, MOSConfig) else MOSConfig.of(config or {})
        for note in self.config.notes():
            warnings.warn(note, UserWarning, stacklevel=2)
        here = settings.load()
        self.folder = Path(folder) if folder is not None else _beside(here.memory_file)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.inner = Memory(
            self.folder / "memos.db",
            embedder=default_embedder(here.models_dir) if embedder == "default" else embedder,
            tenant="memos",
            tz=here.timezone,
            clock=clock,
        )
        self.registry = Registry(self.folder / "users.json", clock)
        self.user_id, self.session_id = self.config.user_id, self.config.session_id
        self.registry.user(self.user_id)
        self.chat_llm = llm if llm is not None else chat_model(self.config.chat_model)
        self._away: set[str] = set()
        self._said: dict[str, list[dict[str, str]]] = {}

    @classmethod
    def simple(cls) -> MOS:
        """Return a system with a first cube; no key is read, `chat` asks the local model."""
        made = cls()
        if not made.registry.has_cube("default"):
            made.create_cube_for_user("default", made.user_id, cube_id="default")
        return made

    # -- users and cubes ------------------------------------------------------------------------

    def create_user(
        self, user_id: str, role: UserRole = UserRole.USER, user_name: str | None = None
    ) -> str:
        """Add a user; returns its id, or that of the user who has this name already."""
        return self.registry.add_user(user_id, role, user_name)

    def list_users(self) -> list[dict[str, Any]]:
        """Return user_id, user_name, role, created_at and is_active of all users."""
        return self.registry.users()

    def get_user_info(self) -> dict[str, Any]:
        """Return the present user, and the cubes it may read."""
        cubes = [
            {
                "cube_id": cube["cube_id"],
                "cube_name": cube["cube_name"],
                "cube_path": cube["cube_path"],
                "owner_id": cube["owner_id"],
                "is_loaded": cube["cube_id"] not in self._away,
            }
            for cube in self.registry.cubes(self.user_id)
        ]
        return {**self.registry.user(self.user_id), "accessible_cubes": cubes}

    def create_cube_for_user(
        self,
        cube_name: str,
        owner_id: str,
        cube_path: str | None = None,
        cube_id: str | None = None,
    ) -> str:
        """Add an empty cube; returns its id."""
        id = str(uuid.uuid4()) if cube_id is None else cube_id
        self.registry.add_cube(id, cube_name, owner_id, cube_path)
        return id

    def share_cube_with_user(self, cube_id: str, target_user_id: str) -> bool:
        """Let another user read and write a cube; a guest only reads it."""
        self.registry.share(cube_id, self.user_id, target_user_id)
        return True

    def register_mem_cube(
        self,
        mem_cube_name_or_path: str | Path | GeneralMemCube,
        mem_cube_id: str | None = None,
        user_id: str | None = None,
    ) -> None:
        """Take a cube into use: a folder, a cube object, or one that is here already.

        A folder is read once; later registrations go on with what was added since.
        """
        user = self._user(user_id)
        given = mem_cube_name_or_path
        if isinstance(given, GeneralMemCube):
            id = mem_cube_id or str(uuid.uuid4())
        else:
            id = mem_cube_id or str(given)
        if self.registry.has_cube(id):
            self.registry.cube(id, user)
        elif isinstance(given, GeneralMemCube):
            self.registry.add_cube(id, id, user, None)
            self._cube(id).text_mem.add(given.text_mem.get_all())
        else:
            folder = Path(given)
            if not folder.is_dir():
                raise ParameterError(
                    "there is no such cube, and no folder of this name",
                    value=str(given),
                    way_out=[
                        "mos.create_cube_for_user(name, owner_id) makes an empty one",
                        "cubes of a repository are not fetched; download the folder",
                    ],
                )
            # Read beside before anything is kept: a folder that cannot be read changes nothing.
            GeneralMemCube.init_from_dir(folder)
            self.registry.add_cube(id, folder.name, user, str(folder))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # said once above
                self._cube(id).load(folder)
        self._away.discard(id)

    def unregister_mem_cube(self, mem_cube_id: str, user_id: str | None = None) -> None:
        """Take a cube out of use in this process; what is in it stays."""
        self.registry.cube(mem_cube_id, self._user(user_id))
        self._away.add(mem_cube_id)

    # -- memories -------------------------------------------------------------------------------

    def add(
        self,
        messages: Any = None,
        memory_content: str | None = None,
        doc_path: str | None = None,
        mem_cube_id: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
    ) -> None:
        """Remember messages, a text as it is, or the documents of a file or folder.

        Without `mem_cube_id` it goes into the first cube of the user.
        """
        if sum(part is not None for part in (messages, memory_content, doc_path)) != 1:
            raise ParameterError("add takes one of messages, memory_content and doc_path")
        text = self._one(mem_cube_id, user_id, write=True).text_mem
        if isinstance(messages, str):  # MOS.simple() is called like this
            text.hear([{"role": "user", "content": messages}], session_id or self.session_id)
        elif messages is not None:
            text.hear(messages, session_id or self.session_id)
        elif memory_content is not None:
            body_text(memory_content, "the memory")
            text.add([TextualMemoryItem(memory=memory_content, metadata={"type": "fact"})])
        elif doc_path is not None:
            text.add([*_pieces(Path(doc_path))])

    def search(
        self,
        query: str,
        user_id: str | None = None,
        install_cube_ids: Sequence[str] | None = None,
        top_k: int | None = None,
        mode: Literal["fast", "fine"] = "fast",
        internet_search: bool = False,
    ) -> dict[str, list[dict[str, Any]]]:
        """Return {"text_mem", "act_mem", "para_mem"}, each a list of {"cube_id", "memories"}.

        Args:
            install_cube_ids: where to look; else in every cube of the user.
            mode: both do the same here.
        """
        if internet_search:
            raise MethodError("memories are searched, not the internet", value=internet_search)
        found: dict[str, list[dict[str, Any]]] = {"text_mem": [], "act_mem": [], "para_mem": []}
        config, count = self.config, self.config.top_k if top_k is None else top_k
        text = body_text(query, "the query")
        for id, cube in self._cubes(user_id, install_cube_ids):
            if config.enable_textual_memory:
                memories = cube.text_mem.search(text, count, mode=mode)
                found["text_mem"].append({"cube_id": id, "memories": memories})
            self._others(found, id, cube)
        return found

    def get(
        self, mem_cube_id: str, memory_id: str, user_id: str | None = None
    ) -> TextualMemoryItem:
        """Return a memory of a cube."""
        return self._one(mem_cube_id, user_id).text_mem.get(memory_id)

    def get_all(
        self, mem_cube_id: str | None = None, user_id: str | None = None
    ) -> dict[str, list[dict[str, Any]]]:
        """Return everything in a cube, or in all cubes of a user."""
        found: dict[str, list[dict[str, Any]]] = {"text_mem": [], "act_mem": [], "para_mem": []}
        ids = None if mem_cube_id is None else [mem_cube_id]
        for id, cube in self._cubes(user_id, ids):
            if self.config.enable_textual_memory:
                found["text_mem"].append({"cube_id": id, "memories": cube.text_mem.get_all()})
            self._others(found, id, cube)
        return found

    def update(
        self,
        mem_cube_id: str,
        memory_id: str,
        text_memory_item: TextualMemoryItem | Mapping[str, Any],
        user_id: str | None = None,
    ) -> None:
        """Write a memory anew; the old text stays in its history."""
        self._one(mem_cube_id, user_id, write=True).text_mem.update(memory_id, text_memory_item)

    def delete(self, mem_cube_id: str, memory_id: str, user_id: str | None = None) -> None:
        """Take a memory out of sight."""
        self._one(mem_cube_id, user_id, write=True).text_mem.delete(memory_id)

    def delete_all(self, mem_cube_id: str | None = None, user_id: str | None = None) -> None:
        """Erase everything in a cube, or in all cubes that a user owns, down to the bytes."""
        user = self._user(user_id)
        if mem_cube_id is not None:
            self._one(mem_cube_id, user, write=True).text_mem.delete_all()
            return
        for cube in self.registry.cubes(user):
            if cube["owner_id"] == user:  # what others share is not this user's to erase
                self._cube(cube["cube_id"]).text_mem.delete_all()

    def dump(
        self, dump_dir: str, user_id: str | None = None, mem_cube_id: str | None = None
    ) -> None:
        """Write a cube, else the first of the user, into a new or empty folder."""
        self._one(mem_cube_id, user_id).dump(dump_dir)

    def load(
        self,
        load_dir: str,
        user_id: str | None = None,
        mem_cube_id: str | None = None,
        memory_types: Sequence[str] | None = None,
    ) -> None:
        """Add what a folder holds to a cube, else to the first of the user."""
        self._one(mem_cube_id, user_id, write=True).load(load_dir, memory_types)

    # -- chat -----------------------------------------------------------------------------------

    def chat(self, query: str, user_id: str | None = None, base_prompt: str | None = None) -> str:
        """Return the model's answer, with what the user's cubes say about it before its eyes.

        Args:
            base_prompt: instead of the one here; "{memories}" in it is where they are put.
        """
        user, text = self._user(user_id), body_text(query, "the query")
        found = self.search(text, user)["text_mem"] if self.config.enable_textual_memory else []
        shown = listed("memories", [one.memory for part in found for one in part["memories"]])
        prompt = base_prompt if base_prompt is not None else _SYSTEM
        if "{memories}" in prompt:
            prompt = prompt.replace("{memories}", f"{AS_DATA}\n{shown}")
        else:
            prompt = f"{prompt}{AS_DATA}\n{shown}"
        said = self._said.setdefault(user, [])
        window = said[-2 * (self.config.max_turns_window - 1) :]
        if self.config.max_turns_window == 1:
            window = []
        asked = [*window, {"role": "user", "content": text}]
        messages = [{"role": "system", "content": prompt}, *asked]
        reply = self.chat_llm.generate(messages, max_tokens=NEW_TOKENS).strip()
        said += [asked[-1], {"role": "assistant", "content": reply}]
        return reply

    def clear_messages(self, user_id: str | None = None) -> None:
        """Forget what was said in `chat`; memories stay."""
        self._said.pop(self._user(user_id), None)

    # -- what MemOS does in the background --------------------------------------------------------

    def mem_scheduler_on(self) -> bool:
        """Embed what is added on a thread of its own; returns whether there is an embedder."""
        if self.inner.embedder is None:
            return False
        self.inner.embed_beside()
        return True

    def mem_scheduler_off(self) -> bool:
        """Embed what still waits, here and now; returns True. A search would do it as well."""
        self.inner.wait()
        return True

    def mem_reorganizer_on(self) -> bool:
        """Return True: reconciling is part of `add`, and is never off."""
        return True

    def mem_reorganizer_off(self) -> bool:
        """Return False: reconciling is part of `add`, and cannot be left out."""
        return False

    def mem_reorganizer_wait(self) -> bool:
        """Wait for all that is done beside; returns True when memories are as they will be."""
        self.inner.wait()
        return True

    def close(self) -> None:
        """Close the memory and give back what the chat model holds; closing twice is fine."""
        self.inner.close()
        if isinstance(self.chat_llm, LateLlm):
            self.chat_llm.close()

    # -- private ----------------------------------------------------------------------------------

    def _user(self, user_id: str | None) -> str:
        user = self.user_id if user_id is None else user_id
        self.registry.user(user)
        return user

    def _cube(self, id: str) -> GeneralMemCube:
        return GeneralMemCube(over=(self.inner, id))

    def _one(
        self, cube_id: str | None, user_id: str | None, *, write: bool = False
    ) -> GeneralMemCube:
        """Return a cube, else the first of the user that is in use."""
        user = self._user(user_id)
        if cube_id is None:
            mine = [cube["cube_id"] for cube in self.registry.cubes(user)]
            ids = [id for id in mine if id not in self._away]
            if not ids:
                raise ParameterError(
                    "this user has no cube",
                    value=user,
                    way_out="mos.create_cube_for_user(name, owner_id), or register_mem_cube",
                )
            cube_id = ids[0]
        self.registry.cube(cube_id, user, write=write)
        if cube_id in self._away:
            raise ParameterError("this cube is not registered", value=cube_id)
        return self._cube(cube_id)

    def _cubes(
        self, user_id: str | None, ids: Sequence[str] | None
    ) -> Iterator[tuple[str, GeneralMemCube]]:
        user = self._user(user_id)
        if ids is None:
            mine = [cube["cube_id"] for cube in self.registry.cubes(user)]
            ids = [id for id in mine if id not in self._away]
        for id in ids:
            self._one(id, user)  # all may be read before the first one is
        for id in ids:
            yield id, self._cube(id)

    def _others(
        self, found: dict[str, list[dict[str, Any]]], id: str, cube: GeneralMemCube
    ) -> None:
        if self.config.enable_activation_memory:
            found["act_mem"].append({"cube_id": id, "memories": cube.act_mem.get_all()})
        if self.config.enable_parametric_memory:
            found["para_mem"].append({"cube_id": id, "memories": cube.para_mem.get_all()})


def _beside(memory_file: str) -> Path:
    if "://" in memory_file:
        raise ParameterError(
            "the configured memory lies in a database server",
            value=memory_file,
            way_out="MOS(config, folder=...) names a folder for cubes",
        )
    return Path(memory_file).expanduser().with_name("memos")


def _pieces(path: Path) -> Iterator[TextualMemoryItem]:
    """Yield the paragraphs of documents, short ones together."""
    if not path.exists():
        raise ParameterError("there is no such document", value=str(path))
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    other = [one for one in files if one.suffix.lower() not in _DOCUMENTS]
    if other and not path.is_dir():
        raise ParameterError(
            "this kind of document is not read", value=path.name, allowed=", ".join(_DOCUMENTS)
        )
    if other:
        names = ", ".join(one.name for one in other[:5])
        warnings.warn(f"{len(other)} files are not text and were not read: {names}", stacklevel=4)
    for file in files:
        if file not in other:
            for piece in _parts(file.read_text("utf-8")):
                about = {"source": "file", "sources": [file.name]}
                yield TextualMemoryItem(memory=piece, metadata=about)


def _parts(text: str) -> Iterator[str]:
    held = ""
    for paragraph in (part.strip() for part in text.split("\n\n")):
        for start in range(0, len(paragraph), PIECE):
            piece = paragraph[start : start + PIECE]
            if held and len(held) + len(piece) + 2 > PIECE:
                yield held
                held = ""
            held = f"{held}\n\n{piece}" if held else piece
    if held:
        yield held

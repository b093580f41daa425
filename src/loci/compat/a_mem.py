"""A-MEM's `AgenticMemorySystem` over a memory of Loci: notes that stay, link and evolve.

    from loci.compat.a_mem import AgenticMemorySystem

    memory_system = AgenticMemorySystem()
    memory_id = memory_system.add_note("Deep learning neural networks")
    results = memory_system.search_agentic("neural networks", k=5)

Notes are analysed, linked and evolved by the method `a_mem` of the catalogue. No key is needed:
rules do it, unless an `api_key` is given or `llm_backend="ollama"`. Notes are kept in `a_mem.db`
beside the configured memory file, of the user "a_mem", and are there in the next process.

Differs from the package: `add_note` really analyses the note; evolution touches the notes that are
near, keeps what was there before (`loci memory history`) and can be undone; links point both ways
and to notes that exist; scores are better when higher; edited notes are found by their new words at
once; an unknown field is refused. `delete` keeps a note out of sight, `forget` erases it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any  # metadata and results are JSON

from loci import config
from loci.core.item import Gloss, Item, Turn
from loci.core.ports import Embedder, Llm
from loci.errors import NotFoundError, ParameterError
from loci.models.endpoint import Endpoint
from loci.models.late import default_embedder
from loci.run.memory import Memory
from loci.store.base import Erased
from loci.store.messages import body_text, json_text
from loci.text.ladder import Ladder
from loci.text.notes import glossing
from loci.units import nearest

_STAMP = "%Y%m%d%H%M"
_MODELS = ("all-minilm-l6-v2", "sentence-transformers/all-minilm-l6-v2", "minilm")
_SERVERS = {"openai": "https://api.openai.com/v1", "ollama": "http://localhost:11434/v1"}
_MARGIN = ("keywords", "tags", "context")  # what a gloss holds
_KEPT = ("id", "links", "retrieval_count", "last_accessed", "evolution_history", "category")
_OWN = "a_mem"  # where the metadata of a note has what Loci has no field for


@dataclass
class MemoryNote:
    """A note as the package shows it; to change one, call `update`.

    Attributes:
        links: ids of notes it is linked with.
        timestamp, last_accessed: "YYYYMMDDHHMM".
        evolution_history: what changed it, oldest first.
    """

    content: str
    id: str
    keywords: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    retrieval_count: int = 0
    timestamp: str = ""
    last_accessed: str = ""
    context: str = "General"
    evolution_history: list[Any] = field(default_factory=list)
    category: str = "Uncategorized"
    tags: list[str] = field(default_factory=list)


class AgenticMemorySystem:
    """Notes with keywords, tags, context and links.

    Args:
        model_name: the embedder; all-MiniLM-L6-v2, used where it was pulled.
        llm_backend: "openai", asked if there is an `api_key`; "ollama"; or "rules".
        llm_model: the model of that server.
        evo_threshold: kept for its place: every evolution is searchable at once.
        memory: a file, a database URL, or an open memory whose recall is "a_mem".
        user: whose notes.
    """

    def __init__(
        self,
        model_name: str = "all-MiniLM-L6-v2",
        llm_backend: str = "openai",
        llm_model: str = "gpt-4o-mini",
        evo_threshold: int = 100,
        api_key: str | None = None,
        *,
        memory: str | Path | Memory | None = None,
        user: str = "a_mem",
    ) -> None:
        if isinstance(evo_threshold, bool) or not isinstance(evo_threshold, int):
            raise ParameterError("evo_threshold is a whole number", value=evo_threshold)
        if evo_threshold < 1:
            raise ParameterError("evo_threshold must be >= 1", value=evo_threshold)
        self.model_name, self.evo_threshold, self.user = model_name, evo_threshold, user
        if isinstance(memory, Memory):
            self.inner = memory
            return
        llm = _llm(llm_backend, llm_model, api_key)
        settings = config.load()
        url = _place(settings.memory_file) if memory is None else memory
        self.inner = Memory(
            url,
            embedder=_embedder(model_name, settings.models_dir),
            recall="a_mem",
            llm=llm,
            backend="rules" if llm is None else "endpoint",
            tz=settings.timezone,
        )

    @property
    def memories(self) -> dict[str, MemoryNote]:
        """Every note by its id, in the order they were added."""
        items: list[Item] = []
        while True:
            page = self.inner.list(user=self.user, kinds="note", limit=1000, offset=len(items))
            items += [item for item in page if isinstance(item, Item)]
            if len(page) < 1000:
                break
        notes = [self._note(item) for item in reversed(items)]
        return {note.id: note for note in notes}

    def add_note(self, content: str, time: str | datetime | None = None, **kwargs: Any) -> str:
        """Add a note; returns its id.

        Args:
            time: "YYYYMMDDHHMM", ISO 8601 or a datetime; also as `timestamp`.
            kwargs: fields of `MemoryNote`, where the analysis is not to fill them.
        """
        given = self._fields(kwargs)
        if time is not None:
            given["timestamp"] = time
        said = _time(given.pop("timestamp", None))
        margin = {name: given.pop(name) for name in _MARGIN if name in given}
        body_text(content, "the note")
        if given.get("id") is not None and self._find(str(given["id"])) is not None:
            raise ParameterError("there is a note with this id", value=given["id"])
        json_text(given, "the fields of the note")
        added = self.inner.add(
            [{"role": "user", "content": content}],
            user=self.user,
            time=said,
            metadata={_OWN: given} if given else None,
        )
        turn = added.turns[0]
        made = [item for item in added.items if turn.id in item.sources and item.kind == "note"]
        item = made[0] if made else self._plain_note(turn)
        if given or margin:
            about = {**item.metadata, _OWN: {**item.metadata.get(_OWN, {}), **given}}
            item = self._write(item, replace(item, metadata=about), margin)
        return self._id(item)

    def read(self, memory_id: str) -> MemoryNote | None:
        """Return a note, None if there is none with this id."""
        item = self._find(memory_id)
        return None if item is None else self._note(item)

    def update(self, memory_id: str, **kwargs: Any) -> bool:
        """Change fields of a note; returns False if there is none with this id."""
        item = self._find(memory_id)
        if item is None:
            return False
        given = self._fields(kwargs)
        if "id" in given:
            raise ParameterError("the id of a note stays", value=given["id"])
        margin = {name: given.pop(name) for name in _MARGIN if name in given}
        after = item
        content = given.pop("content", None)
        if content is not None and content != item.text:
            text = body_text(content, "the note")
            analysed = self.analyze_content(text)
            margin = {**analysed, **margin}
            after = replace(after, text=text, entities=())
        if "timestamp" in given:
            given["timestamp"] = _stamp(_time(given["timestamp"]))
        json_text(given, "the fields of the note")
        about = {**item.metadata, _OWN: {**item.metadata.get(_OWN, {}), **given}}
        self._write(item, replace(after, metadata=about, made_by="person"), margin)
        return True

    def delete(self, memory_id: str) -> bool:
        """Take a note out of sight; returns False if there is none with this id."""
        item = self._find(memory_id)
        if item is None:
            return False
        self.inner.retire(item.id, reason="deleted")
        return True

    def forget(self, memory_id: str) -> Erased:
        """Erase a note with all that came of it, down to the bytes; returns the report."""
        item = self._find(memory_id)
        if item is None:
            raise NotFoundError("there is no note with this id", value=memory_id)
        return self.inner.forget(item.id)

    def search(self, query: str, k: int = 5) -> list[dict[str, Any]]:
        """Return the notes that fit, best first: id, content, context, keywords, score."""
        keys = ("id", "content", "context", "keywords", "score")
        return [{key: found[key] for key in keys} for found in self.search_agentic(query, k)]

    def search_agentic(self, query: str, k: int = 5) -> list[dict[str, Any]]:
        """Return the notes that fit or are linked with those that do, with all their fields.

        `is_neighbor` tells that only links led to a note.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ParameterError("k is a whole number of at least 1", value=k)
        found = []
        for hit in self.inner.search(query, user=self.user, kinds="note", limit=k):
            item = self.inner.get(hit.id)
            if isinstance(item, Item):
                note = self._note(item)
                found.append(
                    {
                        "id": note.id,
                        "content": note.content,
                        "context": note.context,
                        "keywords": note.keywords,
                        "tags": note.tags,
                        "timestamp": note.timestamp,
                        "category": note.category,
                        "is_neighbor": set(hit.why) == {"links"},
                        "score": hit.score,
                    }
                )
        return found

    def find_related_memories(self, query: str, k: int = 5) -> tuple[str, list[int]]:
        """Return the notes near a text, one a line, and their places in `memories`."""
        places = {id: place for place, id in enumerate(self.memories)}
        found = self.search_agentic(query, k)
        lines = [
            f"memory index:{places[one['id']]}\t{_line(one)}"
            for one in found
            if one["id"] in places
        ]
        text = "".join(f"{line}\n" for line in lines)
        return text, [places[one["id"]] for one in found if one["id"] in places]

    def find_related_memories_raw(self, query: str, k: int = 5) -> str:
        """Return the notes near a text and those linked with them, one a line."""
        lines: dict[str, str] = {}
        for one in self.search_agentic(query, k):
            lines[one["id"]] = _line(one)
            note = self.read(one["id"])
            for id in (note.links if note is not None else [])[:k]:
                linked = self.read(id)
                if linked is not None and id not in lines:
                    lines[id] = _line(vars(linked))
        return "".join(f"{line}\n" for line in lines.values())

    def analyze_content(self, content: str) -> dict[str, Any]:
        """Return the keywords, the context and the tags of a text."""
        text = body_text(content, "the text")
        turn = Turn(id="t0", role="user", content=text, time=self.inner.clock.now())
        ladder = Ladder(self.inner.backend, self.inner.llm, fall_back=self.inner.fall_back)
        gloss, _ = ladder.run(glossing(turn, ()))
        return {
            "keywords": list(gloss.keywords),
            "context": gloss.context or "General",
            "tags": list(gloss.tags),
        }

    def consolidate_memories(self) -> None:
        """Embed whatever waits for it; notes are searchable without this."""
        self.inner.wait()

    def close(self) -> None:
        """Close the memory; closing twice is fine."""
        self.inner.close()

    def _find(self, memory_id: str) -> Item | None:
        """Return the live note with an id: the store's, or one that was given with the note."""
        try:
            found = self.inner.get(memory_id, user=self.user)
        except NotFoundError:
            asked = {f"metadata.{_OWN}.id": str(memory_id)}
            named = self.inner.list(user=self.user, kinds="note", filters=asked, limit=1)
            found = named[0] if named else None  # type: ignore[assignment]
        return found if isinstance(found, Item) and found.is_live else None

    def _plain_note(self, turn: Turn) -> Item:
        """Keep a text without a word in it that could be analysed."""
        scope = self.inner.store.scope_of(self.inner.tenant, turn.id)
        note = Item(id="", text=turn.content, kind="note", sources=(turn.id,), made_by="person")
        return self.inner.store.change(scope, note, "add", "", self.inner.clock.now())

    def _write(self, before: Item, after: Item, margin: Mapping[str, Any]) -> Item:
        if margin:
            gloss = before.gloss or Gloss(sources=before.sources)
            gloss = replace(
                gloss,
                keywords=tuple(map(str, margin.get("keywords", gloss.keywords))),
                tags=tuple(map(str, margin.get("tags", gloss.tags))),
                context=str(margin.get("context", gloss.context)),
            )
            after = replace(after, gloss=gloss)
        scope = self.inner.store.scope_of(self.inner.tenant, before.id)
        return self.inner.store.change(scope, after, "edit", "", self.inner.clock.now())

    def _note(self, item: Item) -> MemoryNote:
        own: Mapping[str, Any] = item.metadata.get(_OWN, {})
        gloss = item.gloss or Gloss()
        view = self.inner.store.view(
            self.inner.store.scope_of(self.inner.tenant, item.id), self.inner.clock.now()
        )
        tied = [
            link.target if link.source == item.id else link.source for link in view.links([item.id])
        ]
        given = own.get("links") or []
        changes = [
            {"when": change.at.isoformat(), "what": change.action, "reason": change.reason}
            for change in self.inner.history(item.id)[1:]
        ]
        said = min((turn.time for turn in view.turns(item.sources).values()), default=None)
        stamp = own.get("timestamp") or _stamp(said or item.recorded_at)
        return MemoryNote(
            content=item.text,
            id=self._id(item),
            keywords=list(gloss.keywords),
            links=list(dict.fromkeys([*given, *tied])),
            retrieval_count=int(own.get("retrieval_count") or 0),
            timestamp=stamp,
            last_accessed=str(own.get("last_accessed") or stamp),
            context=gloss.context or "General",
            evolution_history=[*(own.get("evolution_history") or []), *changes],
            category=str(own.get("category") or "Uncategorized"),
            tags=list(gloss.tags),
        )

    def _id(self, item: Item) -> str:
        return str(item.metadata.get(_OWN, {}).get("id") or item.id)

    def _fields(self, given: Mapping[str, Any]) -> dict[str, Any]:
        known = ("content", "timestamp", *_MARGIN, *_KEPT)
        for name, value in given.items():
            if name not in known:
                near = nearest(name, known)
                raise ParameterError(
                    "a note has no such field",
                    value=name,
                    allowed=", ".join(known),
                    way_out=f"did you mean {near!r}?" if near else (),
                )
            if name in ("keywords", "tags", "links", "evolution_history") and (
                isinstance(value, str) or not isinstance(value, Sequence)
            ):
                raise ParameterError(f"{name} of a note are a list", value=value)
        return {name: value for name, value in given.items() if value is not None}


def _place(memory_file: str) -> str:
    if "://" in memory_file:
        return memory_file
    file = Path(memory_file).expanduser().with_name("a_mem.db")
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return str(file)


def _llm(backend: str, model: str, key: str | None) -> Llm | None:
    known = (*_SERVERS, "rules")
    if backend not in known:
        near = nearest(str(backend), known)
        raise ParameterError(
            "unknown llm_backend",
            value=backend,
            allowed=", ".join(known),
            way_out=f"did you mean {near!r}?" if near else (),
        )
    if backend == "rules" or (backend == "openai" and key is None):
        return None
    return Endpoint(_SERVERS[backend], model, key)


def _embedder(model: str, models_dir: Path) -> Embedder | None:
    if model.lower() not in _MODELS:
        raise ParameterError(
            "this embedder is not one of those that are known here",
            value=model,
            allowed="all-MiniLM-L6-v2",
            way_out="pass memory=Memory(path, embedder=yours, recall='a_mem')",
        )
    return default_embedder(models_dir)


def _time(value: Any) -> datetime | Any:
    """Return "YYYYMMDDHHMM" as a time; what else a time may be is read further down."""
    if isinstance(value, str) and value.isdigit():
        try:
            return datetime.strptime(value, _STAMP)
        except ValueError:
            raise ParameterError(
                "cannot read this timestamp", value=value, allowed='"202503021500" or ISO 8601'
            ) from None
    return value


def _stamp(moment: Any) -> str:
    return moment.strftime(_STAMP) if isinstance(moment, datetime) else str(moment or "")


def _line(note: Mapping[str, Any]) -> str:
    return (
        f"talk start time:{note['timestamp']}\tmemory content: {note['content']}\t"
        f"memory context: {note['context']}\tmemory keywords: {note['keywords']}\t"
        f"memory tags: {note['tags']}"
    )

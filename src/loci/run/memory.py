"""Memory: what was said and what follows from it, kept in a file and found again.

    with Memory("ada.db") as memory:
        memory.add("I'm allergic to nuts", user="ada")
        for hit in memory.search("what must Ada not eat?", user="ada"):
            print(hit.text, hit.sources)

`add` and lexical search load no model. Nothing is acknowledged before it is on the disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal  # JSON values

from loci.core.clock import SystemClock
from loci.core.item import Edit, Hit, Item, Link, Scope, Source, Turn
from loci.core.ports import Clock, Device, Embedder, Llm, Sandbox
from loci.core.utf8 import plain_text
from loci.errors import (
    BusyError,
    FingerprintError,
    MethodError,
    NotFoundError,
    ParameterError,
    StoreError,
)
from loci.methods import catalogue
from loci.methods.recall.base import Act, Query, Recall, RecallPorts
from loci.run import audited, erase, memory_files, shelves
from loci.run.embedding import Beside
from loci.run.preview import Preview, drafted, stored_as
from loci.store import open_store
from loci.store.base import Erased, Revise
from loci.store.changes import Change
from loci.store.filters import GRAMMAR
from loci.store.messages import body_text, drafts, json_text, key_text
from loci.store.rows import source_of
from loci.store.search import Asked, View
from loci.store.times import read_time, zone
from loci.text.ladder import Ladder, Rung, Step

if TYPE_CHECKING:
    from loci.run.agents import Agent
    from loci.run.erase import Retrain
    from loci.store.audit import Audit
    from loci.store.shelf import Shelf
    from loci.store.vectors import Floats
    from loci.text.answer import Answer, Reader

EMBED_AT_SEARCH = 2000
"""How many waiting texts a search embeds first; the rest it ranks by words."""

EXPLAIN_AMONG = 200
"""How far down the hits of a query `explain` looks."""

PLANS = 5
"""How often an `add` that asks a model, or searches by meaning, starts again."""

_BATCH = 256  # texts given to an embedder at once: it sorts them by length, to pad little
_MODES = ("hybrid", "lexical")
# `list` means Memory.list inside the class.
Listed = list[Item | Turn]
Items = list[Item]
Changes = list[Change]
Edits = list[Edit]
Users = list[str]
Links = list[Link]
Progress = Callable[[int, int], None]
_KINDS = ("fact", "note", "relation", "entity", "state", "turn")


class _Moved(Exception):
    """What is known changed since it was read."""


@dataclass(frozen=True, kw_only=True)
class AddResult:
    """What one `add` stored: the turns, and the items they changed or made.

    Attributes:
        steps: which back end did what, what models cost, and what of theirs was refused.
    """

    turns: tuple[Turn, ...]
    items: tuple[Item, ...] = ()
    edits: tuple[Edit, ...] = ()
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Where something remembered came from, and why it is recalled.

    Attributes:
        about: the item or the turn itself.
        sources: the turns it rests on.
        history: its changes, oldest first; of a turn, those it led to.
        hit, rank: the hit of the query that shows it, and its place from 1; None if there is none
            among the first `among`. The hit of a turn may be the fact that was drawn from it.
    """

    about: Item | Turn
    sources: tuple[Source, ...] = ()
    history: tuple[Change, ...] = ()
    links: tuple[Link, ...] = ()
    query: str | None = None
    among: int = 0
    rank: int | None = None
    hit: Hit | None = None


class Hits(list[Hit]):
    """Hits, best first.

    Attributes:
        pending: how many texts were ranked by words only.
        notes: what made the search slower than it could be, and what to do.
    """

    def __init__(
        self, hits: Iterable[Hit] = (), *, pending: int = 0, notes: Sequence[str] = ()
    ) -> None:
        super().__init__(hits)
        self.pending, self.notes = pending, tuple(notes)

    @property
    def hits(self) -> list[Hit]:
        """The hits as a plain list."""
        return list(self)


class Memory:
    """A memory in a file; of one tenant, of any number of users.

    Args:
        url: a path, or a URL such as "sqlite:///ada.db". Made with mode 0600 if it is new.
        embedder: any object with `encode(texts)`; without one, search works by words.
        recall: the method that draws facts and finds them again, or its name such as "a_mem"; None
            is Mem0.
        backend: what carries out the operations of a write: "rules", or a model as "slm" (local)
            or "endpoint". A model is asked before anything is stored, and no lock is held then.
        llm: the model of that back end.
        fall_back: whether a model that fails gives way to the rules, which is told in the result
            and in the history; otherwise `add` fails and stores nothing.
        tz: zone of times that come without; they are recorded as assumed.
        extract: whether `add` draws facts from messages unless told otherwise.
        busy_s: how long to wait for another process that writes.
        audit: where it is recorded, by ids, what was forgotten and exported.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        embedder: Embedder | None = None,
        recall: Recall | str | None = None,
        backend: Rung = "rules",
        llm: Llm | None = None,
        fall_back: bool = False,
        clock: Clock | None = None,
        tz: str = "UTC",
        tenant: str = "local",
        extract: bool = True,
        busy_s: float = 10.0,
        audit: Audit | None = None,
    ) -> None:
        self.tenant = key_text(tenant, "tenant")
        self.audit = audit
        self.clock = clock or SystemClock()
        self.zone = zone(tz)
        self.extract = extract
        self.embedder = embedder
        self._recall = _method(recall) if isinstance(recall, str) else recall
        Ladder(backend)  # refuses an unknown one
        if backend != "rules" and llm is None:
            raise ParameterError(
                f"the back end {backend} needs a language model",
                value=None,
                way_out="pass llm=, such as loci.models.endpoint.Endpoint(url, model)",
            )
        self.backend, self.llm, self.fall_back = backend, llm, fall_back
        self.store = open_store(url, busy_s=busy_s)
        self._url = url
        self._shelf: Shelf | None = None
        self._reader: Reader | None = None  # keeps vectors of sentences between questions
        self._embedding = threading.Lock()
        self._beside: Beside | None = None
        try:
            erase.resume(self)
        except BaseException:
            self.store.close()
            raise

    @property
    def shelf(self) -> Shelf | None:
        """The cubes beside this memory; None where it lies in a database server."""
        if self._shelf is None:
            self._shelf = shelves.beside(self._url, clock=self.clock, audit=self.audit)
        return self._shelf

    @property
    def recall(self) -> Recall:
        """The method that draws facts and finds them again."""
        if self._recall is None:
            from loci.methods.recall.mem0 import Mem0

            self._recall = Mem0()
        return self._recall

    def add(
        self,
        messages: str | bytes | Mapping[str, Any] | Sequence[Any],
        *,
        user: str,
        agent: str | None = None,
        session: str | None = None,
        time: datetime | str | None = None,
        tz: str | None = None,
        infer: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> AddResult:
        """Remember messages; when this returns, they are on the disk.

        Args:
            messages: text, one message, or a list of {"role", "content"} with, if wanted, "name",
                "metadata" and "time".
            time: when it was said, unless a message has its own; now if not given.
            infer: whether to draw facts; False stores the messages alone, which are still found.
            metadata: laid under the metadata of each message; comes back with every hit.

        Raises:
            ParameterError: if a message is empty, too long, or not as described.
            BusyError: if another process writes for too long; nothing was stored then.
            StorageError: if the disk is full; nothing was stored then.
        """
        made = drafts(
            messages,
            now=self.clock.now(),
            time=time,
            assumed=self.zone if tz is None else zone(tz),
            metadata=metadata,
        )
        return self._store(self._scope(user, agent, session), made, infer)

    def add_many(
        self,
        messages: Sequence[Any],
        *,
        user: str,
        agent: str | None = None,
        session: str | None = None,
        time: datetime | str | None = None,
        vectors: Floats | None = None,
        made_by: str | None = None,
    ) -> AddResult:
        """Remember many messages as they are, in one transaction; no facts are drawn.

        Args:
            vectors: float32 [messages, width], when they were embedded elsewhere.
            made_by: names what made the vectors; this memory's embedder if not given.
        """
        added = self.add(messages, user=user, agent=agent, session=session, time=time, infer=False)
        if vectors is not None:
            owner = self.store.owner(self._scope(user)) or 0
            entries = [(0, int(turn.id[1:]), owner) for turn in added.turns]
            self.store.put_vectors(entries, vectors, made_by or self._fingerprint())
        return added

    def search(
        self,
        query: str,
        *,
        user: str,
        agent: str | None = None,
        session: str | None = None,
        limit: int = 10,
        as_of: datetime | str | None = None,
        known_at: datetime | str | None = None,
        filters: Mapping[str, Any] | None = None,
        kinds: str | Sequence[str] | None = None,
        mode: Literal["hybrid", "lexical"] = "hybrid",
        progress: Progress | None = None,
    ) -> Hits:
        """Return what answers the query, best first; sees every acknowledged add.

        Args:
            as_of: what held in the world at that time, and was said until then.
            known_at: what the memory believed at that time.
            filters: see `loci.store.filters`, for example {"metadata.ref": "D1:3"}.
            kinds: "fact", "note", "turn", or several; all if not given.
            mode: "lexical" leaves meaning out and loads no model.
            progress: called with (done, total) while texts are embedded that wait for it.
        """
        text = body_text(query, "the query")
        if mode not in _MODES:
            raise ParameterError("unknown mode", value=mode, allowed=", ".join(_MODES))
        count = _limit(limit)
        asked = self._asked(as_of, known_at, filters)
        scope = self._scope(user, agent, session)
        owner = self.store.owner(scope)
        wanted = _kinds(kinds)
        if owner is None:
            self._view(scope, asked)  # a bad filter is refused here too
            return Hits()
        dense = mode == "hybrid" and self.embedder is not None
        if dense:
            self._check_embedder()
        pending = self._embed(owner, EMBED_AT_SEARCH, progress) if dense else 0
        view = self._view(scope, asked, dense=dense)
        # A turn behind a fact is no hit of its own; ask for more, so that enough are left.
        found = self.recall.find(
            Query(text=text, limit=2 * count, kinds=wanted, lexical=not dense), view
        )
        hits = _without_doubles(found, view, count)
        return Hits(hits, pending=pending, notes=view.notes)

    def get(
        self,
        id: str,
        *,
        user: str | None = None,
        as_of: datetime | str | None = None,
        known_at: datetime | str | None = None,
    ) -> Item | Turn:
        """Return an item or a turn by its id, or as it was.

        Args:
            as_of: refuse what did not hold in the world at that time.
            known_at: the wording the memory believed at that time.

        Raises:
            NotFoundError: if this user (or tenant) has none with this id, or had none then.
        """
        asked = self._asked(as_of, known_at, None)
        view = self._view(self._scope_of(id, user), asked)
        kind: Literal["turn", "item"] = "turn" if str(id).startswith("t") else "item"
        if (as_of is not None or known_at is not None) and not view.allows(id, kind):
            raise NotFoundError(
                "this was not so at that time",
                value=id,
                way_out=f"loci memory history {id} shows when it was",
            )
        return view.turn(id) if kind == "turn" else view.item(id)

    def answer(
        self,
        question: str,
        *,
        user: str,
        agent: str | None = None,
        session: str | None = None,
        now: datetime | str | None = None,
    ) -> Answer:
        """Return what the memory says to a question, in its own words; no language model is asked.

        The turns that a search finds are read with those around them; a question about somebody's
        sister is searched once more under her name. `memories` of the answer are the hits it rests
        on; a confidence below 0.5 says that it may only be close.

        Args:
            now: when it is asked, for "last week" in the question; the present if not given.
        """
        from loci.text.answer import AROUND, READ, Reader

        if self._reader is None:
            self._reader = Reader(self.embedder)
        scope = self._scope(user, agent, session)
        view = self._view(scope, Asked())

        def find(text: str) -> tuple[Sequence[Hit], Iterable[Turn]]:
            hits = self.search(text, user=user, agent=agent, session=session, limit=READ)
            around = {
                turn.id: turn
                for hit in hits
                for source in hit.sources
                for turn in view.neighbours_of_turn(source.id, *AROUND)
            }
            return hits, [*around.values()]

        asked = self.clock.now() if now is None else read_time(now, self.zone, "now")[0]
        return self._reader.ask(body_text(question, "the question"), find, asked)

    def explain(
        self,
        id: str,
        *,
        user: str | None = None,
        query: str | None = None,
        agent: str | None = None,
        session: str | None = None,
        as_of: datetime | str | None = None,
        known_at: datetime | str | None = None,
        mode: Literal["hybrid", "lexical"] = "hybrid",
    ) -> Explained:
        """Tell where an item or a turn came from and, with a query, why it is recalled for it.

        Args:
            query: what is asked; the hit's `why` has the parts of its score.
        """
        scope = self._scope_of(id, user)
        view = self._view(scope, Asked())
        if str(id).startswith("t"):
            about: Item | Turn = view.turn(id)
            sources: tuple[Source, ...] = (source_of(view.turn(id)),)
            history = self.store.led_to(scope, id)
        else:
            about = view.item(id)
            sources = tuple(source_of(turn) for turn in view.turns(about.sources).values())
            history = self.store.history(scope, id)
        links = tuple(view.links([id])) if isinstance(about, Item) else ()
        told = Explained(about=about, sources=sources, history=tuple(history), links=links)
        if query is None:
            return told
        hits = self.search(
            query,
            user=scope.user,
            agent=agent,
            session=session,
            limit=EXPLAIN_AMONG,
            as_of=as_of,
            known_at=known_at,
            mode=mode,
        )
        told = replace(told, query=query, among=len(hits))
        for rank, hit in enumerate(hits, 1):
            if hit.id == id or id in (source.id for source in hit.sources):
                return replace(told, rank=rank, hit=hit)
        return told

    def list(
        self,
        *,
        user: str,
        agent: str | None = None,
        session: str | None = None,
        kinds: str | Sequence[str] | None = None,
        filters: Mapping[str, Any] | None = None,
        as_of: datetime | str | None = None,
        known_at: datetime | str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Listed:
        """Return what is known, newest first: facts and notes, or turns with kinds="turn".

        Args:
            as_of: what held in the world at that time.
            known_at: what the memory believed at that time, worded as it was then.
        """
        wanted = _kinds(kinds) or ("fact", "note")
        asked = self._asked(as_of, known_at, filters)
        view = self._view(self._scope(user, agent, session), asked)
        found: Listed = []
        kept = [kind for kind in wanted if kind != "turn"]
        if kept:
            found += view.items(view.listed("item", _limit(limit) + offset, kinds=kept)).values()
        if "turn" in wanted:
            found += view.turns(view.listed("turn", _limit(limit) + offset)).values()
        return found[offset : offset + limit]

    def note(
        self,
        text: str,
        *,
        user: str,
        agent: str | None = None,
        session: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Item:
        """Remember a text as it is given, as a note that no rule will change."""
        json_text(metadata)
        item = Item(
            id="",
            text=body_text(text, "the note"),
            kind="note",
            made_by="person",
            metadata=dict(metadata or {}),
        )
        scope = self._scope(user, agent, session)
        return self.store.change(scope, item, "add", "", self.clock.now())

    def edit(self, id: str, text: str, *, user: str | None = None, reason: str = "") -> Item:
        """Write an item anew by a person's hand; the old text stays in its history."""
        before = self._item(id, user)
        fresh = body_text(text, "the text")
        after = replace(before, text=fresh, made_by="person")
        after = replace(after, subject=None, predicate=None, object=None)
        return self.store.change(
            self._scope_of(id, user), after, "edit", plain_text(reason, "reason"), self.clock.now()
        )

    def retire(
        self,
        id: str,
        *,
        at: datetime | str | None = None,
        user: str | None = None,
        reason: str = "",
    ) -> Item:
        """Stop believing an item, from `at` on in the world; `undo` brings it back."""
        before, now = self._item(id, user), self.clock.now()
        if not before.is_live:
            return before
        end = now if at is None else read_time(at, self.zone)[0]
        after = replace(before, retired_at=now, valid_to=end)
        return self.store.change(self._scope_of(id, user), after, "retire", reason, now)

    def links(self, ids: Sequence[str], *, user: str) -> Links:
        """Return the links between a user's items that touch any of these, oldest first."""
        return self._view(self._scope(user), Asked()).links(ids)

    def history(self, id: str, *, user: str | None = None) -> Changes:
        """Return all changes of an item, oldest first."""
        return self.store.history(self._scope_of(id, user), id)

    def changes(
        self, *, user: str, limit: int = 100, offset: int = 0, made_by: str | None = None
    ) -> Changes:
        """Return what was changed in a user's items, newest first.

        Args:
            made_by: "rules" shows what was done without asking; each of it can be undone.
        """
        by = None if made_by is None else key_text(made_by, "made_by")
        return self.store.recent(self._scope(user), _limit(limit), offset, by)

    def undo(self, id: str, *, user: str | None = None) -> Items:
        """Take back a change by its id, the last change of an item, or all a message led to.

        Returns the items as they are now.
        """
        return self.store.undo(self._scope_of(id, user), id, self.clock.now())

    def redo(self, id: str, *, user: str | None = None) -> Items:
        """Do again what `undo` took back: a change, the next one of an item, or a message's."""
        return self.store.redo(self._scope_of(id, user), id, self.clock.now())

    def forget(
        self,
        id: str | Sequence[str],
        *,
        user: str | None = None,
        dry_run: bool = False,
        mentions: bool = False,
        retrain: Retrain | None = None,
    ) -> Erased:
        """Erase an item or a turn, what was derived from it, and the sentences it came from.

        Cubes beside the memory are reached too: text, keys and values go, adapters are emptied.

        Args:
            id: or several, of one user.
            mentions: also what only speaks of the same; the report names it otherwise.
            retrain: makes an adapter anew without what is gone; see `loci.run.erase`.

        Returns:
            What went (or would go, with `dry_run`), how often its bytes were still found in the
            files of the store, and what erasing cannot reach.

        Raises:
            PolicyError: if a frozen cube was made of it; nothing is erased then.
        """
        ids = [id] if isinstance(id, str) else _ids(id)
        scopes = {self._scope_of(one, user) for one in ids}
        if len(scopes) != 1:
            raise ParameterError("these are of several users", value=ids, allowed="ids of one user")
        scope = scopes.pop()

        def rows(dry: bool) -> Erased:
            return self.store.forget(scope, ids, self.clock.now(), dry_run=dry, mentions=mentions)

        with_cubes = erase.forget(
            self, scope, rows, dry_run=dry_run, mentions=mentions, retrain=retrain
        )
        return audited.forgotten(self._told_audit(), ids, with_cubes)

    def forget_all(
        self,
        *,
        user: str,
        agent: str | None = None,
        session: str | None = None,
        dry_run: bool = False,
        retrain: Retrain | None = None,
    ) -> Erased:
        """Erase all that is remembered of a user, or was told to one agent or in one session.

        Of a whole user, all cubes go as well; see `forget`.
        """
        scope = self._scope(user, agent, session)
        if self.store.owner(scope) is None:
            raise StoreError("nothing is remembered of this user", value=user)

        def rows(dry: bool) -> Erased:
            return self.store.forget_all(scope, self.clock.now(), dry_run=dry)

        with_cubes = erase.forget(
            self,
            scope,
            rows,
            dry_run=dry_run,
            retrain=retrain,
            everything=agent is None and session is None,
        )
        return audited.forgotten(self._told_audit(), [audited.subject(user)], with_cubes)

    def export(self, path: str | Path, *, user: str | None = None) -> int:
        """Write one user's memory as JSON lines, mode 0600; returns the number of records."""
        who = self._one_user(user)
        count = memory_files.export(self.store, self.tenant, who, Path(path))
        # A later erasure cannot reach the file; it can say that there is one.
        self.store.record(self._scope(who), "export", f"{count} records", self.clock.now())
        if self.audit is not None:
            self.audit.record("export", audited.subject(who), records=count)
        return count

    def import_(
        self,
        path: str | Path,
        format: str = "auto",
        *,
        user: str | None = None,
        infer: bool | None = None,
        conversation: str | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Add an export of Loci or a LoCoMo file; what is there already is passed over.

        Args:
            user: whose memory it becomes. Without it an export keeps its user, and each
                conversation of a LoCoMo file becomes a user of its own, named like its sample.
            conversation: only this sample of a LoCoMo file.

        Returns:
            How many records or turns were new.
        """
        return memory_files.import_(
            self,
            Path(path),
            format,
            user=user,
            infer=infer,
            conversation=conversation,
            progress=progress,
        )

    def embed_beside(self) -> None:
        """Embed what waits, now and from now on, on a thread of its own, until `close`.

        Searches need it less and less then. A thread that is killed leaves nothing undone: what
        waits is kept in the store, and the next one goes on. `wait` raises what stopped it.
        """
        if self.embedder is None:
            raise MethodError("this memory has no embedder")
        if self._beside is None:
            self._check_embedder()
            self._beside = Beside(lambda: self._embed(None, _BATCH))

    def wait(self) -> int:
        """Embed all that waits for it and build what searches want; returns how many texts."""
        if self._beside is not None and self._beside.problem is not None:
            raise self._beside.problem
        before = self.store.count_pending(None) if self.embedder is not None else 0
        while self.embedder is not None and self._embed(None, EMBED_AT_SEARCH):
            pass
        self.store.settle()
        return before

    def reembed(self) -> int:
        """Make all vectors anew with this memory's embedder; returns how many."""
        self.store.drop_vectors()
        return self.wait()

    def agent(
        self,
        method: str | Act,
        name: str,
        *,
        user: str,
        agent: str | None = None,
        session: str | None = None,
        llm: Llm | None = None,
        sandbox: Sandbox | None = None,
        device: Device | None = None,
    ) -> Agent:
        """Return an agent that keeps its state in this memory; see `loci.run.agents`.

        Args:
            method: one that acts, such as "tme" or "l2mac".
            name: of the piece of work; a new one begins with nothing.
            llm: the model it asks; this memory's if not given.
            sandbox, device: what it may run code in, and what it works on.
        """
        from loci.run.agents import Agent

        return Agent(
            self,
            method,
            name,
            user=user,
            agent=agent,
            session=session,
            llm=llm,
            sandbox=sandbox,
            device=device,
        )

    def check_integrity(self) -> Users:
        """Return what is wrong with the store, in words; nothing if all is well."""
        return self.store.check_integrity()

    def owner_of(self, id: str) -> str:
        """Return whose item, message or change this is."""
        return self.store.scope_of(self.tenant, id).user

    def users(self) -> Users:
        """Return the users of this tenant."""
        return self.store.users(self.tenant)

    def counts(self, *, user: str) -> dict[str, int]:
        """Return how many turns, items and retired items a user has."""
        return self.store.counts(self._scope(user))

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._beside is not None:
            self._beside.close()
        self.store.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _told_audit(self) -> Audit | None:
        """Return the audit, also one that a cube has begun meanwhile."""
        return self.audit or audited.beside(self._url, clock=self.clock)

    def _store(self, scope: Scope, made: Sequence[Any], infer: bool | None) -> AddResult:
        draws = self.extract if infer is None else infer
        if not draws:
            added = self.store.add(scope, made, None, self.clock.now())
            return AddResult(turns=added.turns)
        by_meaning = self.recall.writes_by_meaning and self.embedder is not None
        if self.backend != "rules" or by_meaning:
            return self._store_planned(scope, made)
        ports = RecallPorts(llm=self.llm, embedder=self.embedder)

        def revise(turns: Sequence[Turn], view: View) -> Edits:
            return self.recall.revise(turns, view, ports)

        added = self.store.add(scope, made, revise, self.clock.now())
        steps = tuple(ports.ladder.steps)
        return AddResult(turns=added.turns, items=added.items, edits=added.edits, steps=steps)

    def _store_planned(self, scope: Scope, made: Sequence[Any]) -> AddResult:
        """Find out what to change before the write begins, so that no lock waits for a model.

        If what is known changed meanwhile, it is found out anew.
        """
        for _ in range(PLANS):
            edits, steps, mark = self._planned(scope, made)
            try:
                added = self.store.add(
                    scope, made, _unless_moved(edits, mark), self.clock.now(), steps=steps
                )
            except _Moved:
                continue
            return AddResult(turns=added.turns, items=added.items, edits=added.edits, steps=steps)
        raise BusyError(
            f"the memory changed {PLANS} times while it was found out what to change",
            value=scope.user,
            way_out="try again; nothing was stored",
        )

    def _planned(
        self, scope: Scope, made: Sequence[Any]
    ) -> tuple[Edits, tuple[Step, ...], tuple[int, int]]:
        """Return edits for turns that are not stored yet, and the mark of what was known then."""
        owner = self.store.owner(scope)
        if self.embedder is not None and owner is not None:
            self._check_embedder()
            self._embed(owner, EMBED_AT_SEARCH)
        whole = replace(scope, session=None)
        view = self._view(whole, Asked(), dense=self.embedder is not None)
        mark, turns = view.mark(), drafted(made, scope.session)
        ladder = Ladder(self.backend, self.llm, fall_back=self.fall_back)
        ports = RecallPorts(llm=self.llm, embedder=self.embedder, ladder=ladder)
        edits = self.recall.revise(turns, Preview(view, turns, view.last(scope.session)), ports)
        return edits, tuple(ladder.steps), mark

    def _scope(self, user: str, agent: str | None = None, session: str | None = None) -> Scope:
        return Scope(
            tenant=self.tenant,
            user=key_text(user, "user"),
            agent=None if agent is None else key_text(agent, "agent"),
            session=None if session is None else key_text(session, "session"),
        )

    def _scope_of(self, id: str, user: str | None) -> Scope:
        scope = self.store.scope_of(self.tenant, id)
        if user is not None and scope.user != user:
            from loci.store.rows import unknown

            raise unknown(id)
        return scope

    def _item(self, id: str, user: str | None) -> Item:
        return self._view(self._scope_of(id, user), Asked()).item(id)

    def _one_user(self, user: str | None) -> str:
        if user is not None:
            return key_text(user, "user")
        users = self.users()
        if len(users) != 1:
            raise ParameterError(
                "an export is of one user", value=None, allowed=", ".join(users) or "no user yet"
            )
        return users[0]

    def _asked(self, as_of: object, known_at: object, filters: object) -> Asked:
        if filters is not None and not isinstance(filters, Mapping):
            raise ParameterError("filters must be a dict", value=filters, way_out=GRAMMAR)
        return Asked(
            as_of=None if as_of is None else read_time(as_of, self.zone, "as_of")[0],
            known_at=None if known_at is None else read_time(known_at, self.zone, "known_at")[0],
            filters=dict(filters or {}),
        )

    def _view(self, scope: Scope, asked: Asked, *, dense: bool = False) -> View:
        return self.store.view(
            scope,
            self.clock.now(),
            asked=asked,
            embed=self._encode_one if dense else None,
            zone=self.zone,
        )

    def _encode_one(self, text: str) -> Floats:
        return self._encode([text])[0]  # type: ignore[no-any-return]

    def _encode(self, texts: Sequence[str]) -> Floats:
        import numpy as np

        if self.embedder is None:
            raise MethodError("this memory has no embedder")
        return np.asarray(self.embedder.encode(list(texts)), np.float32)

    def _embed(self, owner: int | None, most: int, progress: Progress | None = None) -> int:
        """Embed up to `most` waiting texts; returns how many still wait."""
        with self._embedding:
            return self._embed_now(owner, most, progress)

    def _embed_now(self, owner: int | None, most: int, progress: Progress | None) -> int:
        waiting = self.store.pending(owner, most)
        for start in range(0, len(waiting), _BATCH):
            if progress is not None:
                progress(start, len(waiting))
            part = waiting[start : start + _BATCH]
            vectors = self._encode([text for *_, text in part])
            entries = [(kind, seq, whose) for kind, seq, whose, _ in part]
            texts = [text for *_, text in part]
            self.store.put_vectors(entries, vectors, self._fingerprint(), texts=texts)
        return self.store.count_pending(owner) if len(waiting) == most else 0

    def _fingerprint(self) -> str:
        named = getattr(self.embedder, "fingerprint", None)
        if named:
            return str(named)
        return "given" if self.embedder is None else type(self.embedder).__qualname__

    def _check_embedder(self) -> None:
        """Refuse to compare a question with vectors that another embedder made."""
        have = self.store.meta("vectors.embedder")
        if have is not None and have != self._fingerprint():
            raise FingerprintError(
                "the vectors of this memory were made by another embedder",
                value=self._fingerprint(),
                allowed=have,
                way_out="memory.reembed() makes them anew with this one",
            )


def _without_doubles(found: Sequence[Hit], view: View, count: int) -> list[Hit]:
    """Return up to `count` hits with their sources, none twice, no turn behind a fact shown.

    A turn gives way only to a fact that is shown: no message is lost to a fact beyond the limit.
    """
    items = view.items([hit.id for hit in found if not hit.sources and hit.kind != "turn"])
    wanted = [id for item in items.values() for id in item.sources]
    wanted += [hit.id for hit in found if not hit.sources and hit.kind == "turn"]
    turns = view.turns(wanted)
    complete: list[Hit] = []
    for hit in found:
        if not hit.sources:
            ids = (hit.id,) if hit.kind == "turn" else items[hit.id].sources
            known = tuple(source_of(turns[id]) for id in ids if id in turns)
            hit = replace(hit, sources=known)
        complete.append(hit)
    behind: set[str] = set()
    shown: dict[str, Hit] = {}
    for hit in complete:
        if len(shown) == count:
            break
        if hit.kind != "turn":
            behind.update(source.id for source in hit.sources)
            for id in behind & shown.keys():
                del shown[id]
        if hit.id not in behind:
            shown.setdefault(hit.id, hit)
    return list(shown.values())


def _ids(ids: object) -> list[str]:
    if not isinstance(ids, Sequence) or not ids or not all(isinstance(id, str) for id in ids):
        raise ParameterError("there is no id", value=ids, allowed='an id such as "i7", or a list')
    return list(dict.fromkeys(ids))


def _limit(limit: object) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ParameterError("a limit is a whole number of at least 1", value=limit)
    return limit


def _kinds(kinds: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if kinds is None:
        return None
    wanted = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in wanted:
        if kind not in _KINDS:
            raise ParameterError("unknown kind", value=kind, allowed=", ".join(_KINDS))
    return wanted


def _method(text: str) -> Recall:
    found = catalogue.find(text, "recall")
    if not isinstance(found, Recall):
        raise MethodError(
            "this method does jobs; it keeps no memories",
            value=text,
            way_out='memory.agent("tme", "trip", user=...) or `loci agent act` is for those',
        )
    return found


def _unless_moved(edits: Sequence[Edit], mark: tuple[int, int]) -> Revise:
    """Return what gives these edits inside a write, unless what is known changed since."""

    def revise(turns: Sequence[Turn], view: View) -> Sequence[Edit]:
        if view.mark() != mark:
            raise _Moved
        return stored_as(edits, {f"new{number}": turn.id for number, turn in enumerate(turns)})

    return revise

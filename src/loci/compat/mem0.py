"""Mem0's `Memory` and `AsyncMemory` over a memory of Loci, in the call styles of 1.x and 2.x.

    from loci.compat.mem0 import Memory

    m = Memory()
    m.add([{"role": "user", "content": "Hi, I'm Alex. I love basketball."}], user_id="alex")
    m.search("What do you know about me?", filters={"user_id": "alex"})     # 2.x
    m.search("What do you know about me?", user_id="alex", limit=3)         # 1.x

No model and no key are needed: rules draw and reconcile memories; a model does so only if the
configuration names one (`mem0_config`). Memories are kept in `mem0.db` beside the configured memory
file, so the commands of `loci memory --file` show, correct and forget them.

Differs from Mem0: a memory that another one replaced or contradicted is kept with the time it
ended, is told as DELETE beside the ADD, and comes back with `undo`. `delete` keeps the history, as
Mem0 does; `forget`, `delete_all` and `reset` erase, down to the bytes. Messages from which nothing
was drawn are still found by `search`, as they were said (their ids begin with "t"). System messages
are not kept. Scores lie between 0 and 1 and are no cosines: 0.5 is an average match.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import exp
from pathlib import Path
from typing import Any  # what Mem0 returns is JSON

from loci.compat import mem0_config, mem0_filters
from loci.compat import mem0_shapes as shapes
from loci.compat.mem0_config import MemoryConfig
from loci.compat.mem0_filters import IDS, Who
from loci.core.item import Add, Edit, Hit, Item, Scope, Turn
from loci.errors import NotFoundError, ParameterError
from loci.run.memory import AddResult
from loci.run.memory import Memory as Remembered
from loci.run.threads import AsyncFace, in_thread
from loci.store.base import Erased
from loci.store.messages import body_text, drafts, json_text
from loci.store.search import View
from loci.text.entities import entities

__all__ = ["AsyncMemory", "Memory", "MemoryConfig"]

NOBODY = "(no user)"
"""Whose memories are that were told to an agent or in a run, and by no user."""

_UNSET: Any = object()
_HIDDEN = ("agent_id",)  # kept in the metadata of a message, shown beside it
_PROMOTED = ("actor_id", "role", "attributed_to", "expiration_date")


class Memory:
    """What `mem0.Memory` does, with the same arguments and results.

    Args:
        config: as Mem0 has it; see `mem0_config`. None asks no model and no server.
        memory: an open memory to use instead.
    """

    def __init__(self, config: Any = None, *, memory: Remembered | None = None) -> None:
        self.notes: tuple[str, ...] = ()
        if memory is not None:
            if config is not None:
                raise ParameterError("an open memory has its configuration", value=config)
            self.inner, self.enable_graph = memory, False
            return
        parts = mem0_config.read(config)
        self.notes, self.enable_graph = parts.notes, parts.graph
        for note in parts.notes:
            warnings.warn(note, UserWarning, stacklevel=2)
        if "://" not in parts.url:
            folder = Path(parts.url).expanduser().parent
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.inner = Remembered(
            parts.url,
            embedder=parts.embedder,
            llm=parts.llm,
            backend="rules" if parts.llm is None else "endpoint",
            recall="mem0_graph" if parts.graph else None,
            tenant=parts.tenant,
            tz=parts.tz,
        )

    @classmethod
    def from_config(cls, config_dict: Mapping[str, Any]) -> Memory:
        """Return a memory of this configuration."""
        return cls(config_dict)

    def add(
        self,
        messages: Any,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        timestamp: Any = None,
        expiration_date: Any = None,
        infer: bool = True,
        memory_type: str | None = None,
        prompt: str | None = None,
    ) -> dict[str, Any]:
        """Remember messages: the memories drawn from them, or each as it is with `infer=False`.

        Args:
            messages: text, a message, or a list of them.
            timestamp: when it was said: ISO 8601, a datetime, or seconds since 1970.
            expiration_date: "YYYY-MM-DD"; from the day after on the memories are not shown.
            memory_type: "procedural_memory" has the model sum up what an agent did.
            prompt: of the sum; elsewhere operations have prompts of their own.

        Returns:
            {"results": [{"id", "memory", "event"}]}, events ADD, UPDATE and DELETE.
        """
        who = mem0_filters.read(None, user_id=user_id, agent_id=agent_id, run_id=run_id)
        scope = self._scope(who)
        about = self._about(metadata, who, expiration_date)
        said = shapes.messages_of(messages)
        if memory_type is not None:
            return {"results": self._sum_up(scope, said, about, memory_type, prompt)}
        if prompt is not None:
            raise ParameterError(
                "memories are drawn by rules, or by a model with prompts of its own",
                value=prompt,
                way_out="leave prompt out",
            )
        if not said:
            return {"results": []}
        time = shapes.moment(timestamp)
        if infer:
            added = self.inner.add(
                said,
                user=scope.user,
                agent=scope.agent,
                session=scope.session,
                time=time,
                infer=True,
                metadata=about,
            )
            results = self._events(added)
        else:
            results = self._kept_as_said(scope, said, about, time)
        if not self.enable_graph:
            return {"results": results}
        relations = [one for one in results if one.pop("relation", None)]
        ended = [self._triple(one["id"]) for one in relations if one["event"] == "DELETE"]
        new = [self._triple(one["id"]) for one in relations if one["event"] != "DELETE"]
        rest = [one for one in results if one not in relations]
        return {"results": rest, "relations": {"added_entities": new, "deleted_entities": ended}}

    def search(
        self,
        query: str,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        limit: int | None = None,
        top_k: int | None = None,
        filters: Mapping[str, Any] | None = None,
        threshold: float | None = None,
        rerank: bool = False,
        explain: bool = False,
        reference_date: Any = None,
        show_expired: bool = False,
    ) -> dict[str, Any]:
        """Return memories that answer the query, best first.

        Args:
            limit, top_k: most results, as 1.x and 2.x call it; else 100 with ids of their own, 20
                with filters.
            threshold: least score, between 0 and 1.
            rerank: there is no reranker; the order is that of Loci's recall.
            explain: adds `score_details`, the parts of the score.
            reference_date: what held at that time.
        """
        who = mem0_filters.read(filters, user_id=user_id, agent_id=agent_id, run_id=run_id)
        self._check(who)
        count = shapes.count_of(limit, top_k, user_id, agent_id, run_id)
        if threshold is not None and not (shapes.is_number(threshold) and 0 <= threshold <= 1):
            raise ParameterError("a threshold is a number between 0 and 1", value=threshold)
        text = body_text(query, "the query")
        if count == 0:
            return self._wrapped([], [])
        as_of = shapes.moment(reference_date)
        found: list[tuple[float, dict[str, Any]]] = []
        relations: list[dict[str, Any]] = []
        for scope in self._scopes(who):
            hits = self.inner.search(
                text,
                user=scope.user,
                agent=scope.agent,
                session=scope.session,
                limit=2 * count + 10,
                filters=who.rest,
                as_of=as_of,
            )
            relations += [
                shapes.relation(hit, "destination") for hit in hits if hit.kind == "relation"
            ]
            shown = self._shown(scope, hits)
            for hit, result in shown:
                if not show_expired and shapes.is_over(result):
                    continue
                score = 1 / (1 + exp(-max(min(hit.score, 700.0), -700.0)))
                if threshold is None or score >= threshold:
                    result["score"] = score
                    if explain:
                        result["score_details"] = {**hit.why, "total": hit.score}
                    found.append((hit.score, result))
        found.sort(key=lambda pair: -pair[0])
        results = [result for _, result in found[:count]]
        if self.inner.embedder is None and not threshold and len(results) < count:
            # Words alone leave out what shares none with the query; vectors would not.
            have = {result["id"] for result in results}
            rest = self._all(who, count + len(have), show_expired=show_expired, as_of=as_of)
            more = [{**one, "score": 0.0} for one in rest if one["id"] not in have]
            results += more[: count - len(results)]
        return self._wrapped(results, relations[:count])

    def get(self, memory_id: str) -> dict[str, Any] | None:
        """Return a memory, None if there is none with this id."""
        try:
            found = self.inner.get(memory_id)
        except NotFoundError:
            return None
        if isinstance(found, Item) and not found.is_live:
            return None
        scope = self.inner.store.scope_of(self.inner.tenant, memory_id)
        return {**self._result(scope, found), "score": None}

    def get_all(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        filters: Mapping[str, Any] | None = None,
        limit: int | None = None,
        top_k: int | None = None,
        show_expired: bool = False,
    ) -> dict[str, Any]:
        """Return the memories of a user, an agent or a run, newest first."""
        who = mem0_filters.read(filters, user_id=user_id, agent_id=agent_id, run_id=run_id)
        self._check(who)
        count = shapes.count_of(limit, top_k, user_id, agent_id, run_id)
        relations: list[dict[str, Any]] = []
        for scope in self._scopes(who) if self.enable_graph and count else ():
            found = self.inner.list(user=scope.user, kinds="relation", limit=count)
            relations += [shapes.relation(one, "target") for one in found]
        return self._wrapped(self._all(who, count, show_expired=show_expired), relations[:count])

    def update(
        self,
        memory_id: str,
        text: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expiration_date: Any = _UNSET,
        data: str | None = None,
    ) -> dict[str, str]:
        """Write a memory anew; the old text stays in its history. 1.x calls the text `data`."""
        if text is not None and data is not None and text != data:
            raise ParameterError("text and data are two names of one thing", value=[text, data])
        fresh = text if text is not None else data
        if fresh is None and metadata is None and expiration_date is _UNSET:
            raise ParameterError(
                "there is nothing to update", allowed="text, metadata or expiration_date"
            )
        before = self._item(memory_id)
        about = {**before.metadata, **self._about(metadata, Who(), None)}
        if expiration_date is not _UNSET:
            about["expiration_date"] = shapes.day(expiration_date)  # None: no end any more
        json_text(about)
        after = replace(before, metadata=about, made_by="person")
        if fresh is not None and fresh != before.text:
            kept = body_text(fresh, "the memory")
            after = replace(after, text=kept, subject=None, predicate=None, object=None)
            after = replace(after, entities=tuple(entities(kept)))
        scope = self.inner.store.scope_of(self.inner.tenant, memory_id)
        self.inner.store.change(scope, after, "edit", "", self.inner.clock.now())
        return {"message": "Memory updated successfully!"}

    def delete(self, memory_id: str) -> dict[str, str]:
        """Delete a memory; its history tells of it, and `undo` brings it back.

        A message that was kept as it was said has no history: it is erased.
        """
        if memory_id.startswith("t"):
            self._known(memory_id)
            self.inner.forget(memory_id)
        else:
            self._item(memory_id)
            self.inner.retire(memory_id, reason="deleted")
        return {"message": "Memory deleted successfully!"}

    def delete_all(
        self,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
    ) -> dict[str, str]:
        """Erase all memories of a user, an agent or a run with their messages, for good."""
        who = mem0_filters.read(None, user_id=user_id, agent_id=agent_id, run_id=run_id)
        if who.is_nobody:
            raise ParameterError(
                "whose memories are to be deleted?",
                allowed="user_id, agent_id or run_id",
                way_out="reset() deletes all there are",
            )
        for scope in self._scopes(who):
            if self.inner.store.owner(scope) is not None:
                self.inner.forget_all(user=scope.user, agent=scope.agent, session=scope.session)
        return {"message": "Memories deleted successfully!"}

    def history(self, memory_id: str) -> list[dict[str, Any]]:
        """Return the changes of a memory, oldest first; none for an id nobody has."""
        try:
            changes = self.inner.history(memory_id)
        except NotFoundError:
            return []
        created = next((change.at for change in changes), None)
        told = [shapes.history_row(change, created) for change in changes]
        return [one for one in told if one is not None]

    def undo(self, memory_id: str) -> dict[str, Any] | None:
        """Take back the last change of a memory; returns it as it is then."""
        self.inner.undo(memory_id)
        return self.get(memory_id)

    def forget(self, memory_id: str) -> Erased:
        """Erase a memory and the sentences it came from, down to the bytes; returns the report."""
        self._known(memory_id)
        return self.inner.forget(memory_id)

    def reset(self) -> None:
        """Erase everything that was remembered here."""
        for user in self.inner.users():
            self.inner.forget_all(user=user)

    def close(self) -> None:
        """Close the memory; closing twice is fine."""
        self.inner.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def chat(self, query: str) -> None:
        """Raise NotImplementedError, as Mem0 does."""
        raise NotImplementedError("chat is not part of a memory; loci.open(...) has one")

    # -- whose ----------------------------------------------------------------------------------

    def _scope(self, who: Who) -> Scope:
        """Return where something new belongs."""
        self._check(who)
        return Scope(
            tenant=self.inner.tenant,
            user=who.user_id[0] if who.user_id else NOBODY,
            agent=who.agent_id[0] if who.agent_id else None,
            session=who.run_id[0] if who.run_id else None,
        )

    def _scopes(self, who: Who) -> list[Scope]:
        """Return where to look: without a user, in what any user told the agent or in the run."""
        users = self.inner.users() if who.user_id is None else who.user_id
        return [
            Scope(tenant=self.inner.tenant, user=user, agent=agent, session=session)
            for user in users
            for agent in who.agent_id or (None,)
            for session in who.run_id or (None,)
        ]

    def _check(self, who: Who) -> None:
        if who.is_nobody:
            raise ParameterError(
                "at least one of user_id, agent_id and run_id must be given",
                way_out=[
                    '2.x: search(query, filters={"user_id": "alex"})',
                    '1.x: search(query, user_id="alex")',
                ],
            )

    def _about(
        self, metadata: Mapping[str, Any] | None, who: Who, expiration_date: Any
    ) -> dict[str, Any]:
        """Return the metadata of messages; ids in it must be those of the call."""
        json_text(metadata)
        about = dict(metadata or {})
        for name in IDS:
            mine = getattr(who, name)
            if name in about and (mine is None or str(about.pop(name)) != mine[0]):
                raise ParameterError(
                    f"metadata cannot say whose a memory is: {name}",
                    value=(metadata or {})[name],
                    way_out=f"pass {name}= to the call",
                )
        if who.agent_id:
            about["agent_id"] = who.agent_id[0]
        ends = shapes.day(expiration_date)
        if ends is not None:
            about["expiration_date"] = ends
        return about

    def _known(self, memory_id: str) -> Item | Turn:
        """Return what has this id; a ValueError otherwise, as Mem0 raises."""
        try:
            return self.inner.get(memory_id)
        except NotFoundError as problem:
            raise shapes.unknown(memory_id) from problem

    def _item(self, memory_id: str) -> Item:
        found = self._known(memory_id)
        if isinstance(found, Turn):
            raise ParameterError(
                "this is a message as it was said, and stays so",
                value=memory_id,
                way_out="delete it, or add a memory with infer=False",
            )
        if not found.is_live:
            raise shapes.unknown(memory_id)
        return found

    # -- writing --------------------------------------------------------------------------------

    def _events(self, added: AddResult) -> list[dict[str, Any]]:
        """Return what became of each memory that this write touched."""
        results = []
        for item in {item.id: item for item in added.items}.values():
            if item.kind == "entity":
                continue
            change = self.inner.history(item.id)[-1]
            event = shapes.event_of(change)
            if event is None:
                continue
            result: dict[str, Any] = {"id": item.id, "memory": item.text, "event": event}
            if event == "UPDATE" and change.before is not None:
                result["previous_memory"] = change.before.text
            if item.kind == "relation":
                result["relation"] = True
            results.append(result)
        return results

    def _kept_as_said(
        self,
        scope: Scope,
        said: Sequence[Mapping[str, Any]],
        about: Mapping[str, Any],
        time: datetime | None,
    ) -> list[dict[str, Any]]:
        """Store each message as a memory of its own."""
        now = self.inner.clock.now()
        made = drafts(list(said), now=now, time=time, assumed=self.inner.zone, metadata=about)

        def keep(turns: Sequence[Turn], view: View) -> list[Edit]:
            return [Add(candidate=shapes.as_said(turn), made_by="person") for turn in turns]

        added = self.inner.store.add(scope, made, keep, now)
        return [
            {
                "id": item.id,
                "memory": item.text,
                "event": "ADD",
                "actor_id": turn.name,
                "role": turn.role,
            }
            for item, turn in zip(added.items, added.turns, strict=True)
        ]

    def _sum_up(
        self,
        scope: Scope,
        said: Sequence[Mapping[str, Any]],
        about: Mapping[str, Any],
        memory_type: str,
        prompt: str | None,
    ) -> list[dict[str, Any]]:
        """Have the model sum up what an agent did, and keep the sum."""
        if memory_type != "procedural_memory":
            raise ParameterError(
                "unknown memory_type", value=memory_type, allowed="procedural_memory"
            )
        if scope.agent is None:
            raise ParameterError("a procedural memory is of an agent", allowed="agent_id=...")
        if self.inner.llm is None:
            raise ParameterError(
                "rules cannot sum up what an agent did",
                value=memory_type,
                way_out='name a model in the configuration: {"llm": {"provider": "openai", ...}}',
            )
        task = prompt or (
            "Write down how the agent did its task, step by step, so that it can be done again: "
            "the goal, each action with its exact inputs and outcome, and where it stands now."
        )
        talk = "\n".join(f"{one['role']}: {one['content']}" for one in said)
        asked = [{"role": "system", "content": task}, {"role": "user", "content": talk}]
        text = self.inner.llm.generate(asked, max_tokens=1024)
        note = self.inner.note(
            body_text(text, "the sum"),
            user=scope.user,
            agent=scope.agent,
            session=scope.session,
            metadata={**about, "memory_type": memory_type},
        )
        return [{"id": note.id, "memory": note.text, "event": "ADD"}]

    # -- reading --------------------------------------------------------------------------------

    def _shown(self, scope: Scope, hits: Sequence[Hit]) -> list[tuple[Hit, dict[str, Any]]]:
        """Return the hits that are memories, with what is told of them.

        A message is one where nothing was drawn from it that was replaced or deleted since: what
        was deleted must not come back as what was said.
        """
        view = self.inner.store.view(replace(scope, agent=None, session=None), datetime.now(UTC))
        ids = [hit.id for hit in hits if hit.kind == "turn"]
        drawn = {id: self.inner.store.led_to(scope, id) for id in ids}
        kept = {item.id for item in view.items(shapes.items_of(drawn)).values() if item.is_live}
        mine = ("user", "assistant") if scope.user == NOBODY else ("user",)
        shown = [
            hit
            for hit in hits
            if hit.kind in ("fact", "note")
            or (
                hit.kind == "turn"
                and hit.sources
                and hit.sources[0].role in mine
                and all(change.item in kept for change in drawn[hit.id])
            )
        ]
        items = view.items([hit.id for hit in shown if hit.kind != "turn"])
        turns = view.turns([hit.id for hit in shown if hit.kind == "turn"])
        found: dict[str, Item | Turn] = {**items, **turns}
        results = self._results(scope, [found[hit.id] for hit in shown])
        return list(zip(shown, results, strict=True))

    def _all(
        self, who: Who, count: int, *, show_expired: bool, as_of: datetime | None = None
    ) -> list[dict[str, Any]]:
        """Return at most so many memories, newest first of each user."""
        results: list[dict[str, Any]] = []
        for scope in self._scopes(who):
            start, page = 0, 200
            while len(results) < count:
                items = self.inner.list(
                    user=scope.user,
                    agent=scope.agent,
                    session=scope.session,
                    filters=who.rest,
                    as_of=as_of,
                    kinds=("fact", "note"),
                    limit=page,
                    offset=start,
                )
                made = self._results(scope, items)
                results += [one for one in made if show_expired or not shapes.is_over(one)]
                start += page
                if len(items) < page:
                    break
        return results[:count]

    def _results(self, scope: Scope, found: Sequence[Item | Turn]) -> list[dict[str, Any]]:
        view = self.inner.store.view(
            Scope(tenant=scope.tenant, user=scope.user), self.inner.clock.now()
        )
        ids = [id for one in found if isinstance(one, Item) for id in one.sources]
        turns = view.turns(ids)
        return [self._result(scope, one, turns) for one in found]

    def _result(
        self, scope: Scope, found: Item | Turn, turns: Mapping[str, Turn] | None = None
    ) -> dict[str, Any]:
        """Return a memory as Mem0 shows it."""
        if turns is None:
            return self._results(scope, [found])[0]
        if isinstance(found, Turn):
            said: Turn | None = found
            text, created, updated, about = found.content, found.time, found.time, {}
        else:
            known = [turns[id] for id in found.sources if id in turns]
            said = max(known, key=lambda turn: turn.time) if known else None
            text, about = found.text, dict(found.metadata)
            created = found.recorded_at or self.inner.clock.now()
            updated = created
            if found.version > 1:
                updated = self.inner.history(found.id)[-1].at
        metadata = {**(said.metadata if said is not None else {}), **about}
        metadata = {key: value for key, value in metadata.items() if value is not None}
        result: dict[str, Any] = {
            "id": found.id,
            "memory": text,
            "hash": hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(),
            "metadata": None,
            "created_at": created.isoformat(),
            "updated_at": updated.isoformat(),
        }
        if scope.user != NOBODY:
            result["user_id"] = scope.user
        if metadata.get("agent_id") is not None:
            result["agent_id"] = metadata["agent_id"]
        if said is not None:
            if said.session is not None:
                result["run_id"] = said.session
            if said.name is not None:
                result["actor_id"] = said.name
            if isinstance(found, Turn) or found.kind == "note":
                result["role"] = said.role
        result |= {key: metadata[key] for key in _PROMOTED if key in metadata}
        rest = {k: v for k, v in metadata.items() if k not in (*_PROMOTED, *_HIDDEN)}
        result["metadata"] = rest or None
        return result

    def _triple(self, id: str) -> dict[str, Any]:
        return shapes.relation(self.inner.get(id), "target")

    def _wrapped(
        self, results: list[dict[str, Any]], relations: list[dict[str, Any]]
    ) -> dict[str, Any]:
        if not self.enable_graph:
            return {"results": results}
        return {"results": results, "relations": relations}


class AsyncMemory(AsyncFace):
    """`Memory` whose methods are awaited; threads do the work."""

    inner: Memory

    def __init__(self, config: Any = None, *, memory: Remembered | None = None) -> None:
        self.inner = Memory(config, memory=memory)

    @classmethod
    def from_config(cls, config_dict: Mapping[str, Any]) -> AsyncMemory:
        """Return a memory of this configuration."""
        return cls(config_dict)

    add = in_thread(Memory.add)
    search = in_thread(Memory.search)
    get = in_thread(Memory.get)
    get_all = in_thread(Memory.get_all)
    update = in_thread(Memory.update)
    delete = in_thread(Memory.delete)
    delete_all = in_thread(Memory.delete_all)
    history = in_thread(Memory.history)
    undo = in_thread(Memory.undo)
    forget = in_thread(Memory.forget)
    reset = in_thread(Memory.reset)
    chat = in_thread(Memory.chat)

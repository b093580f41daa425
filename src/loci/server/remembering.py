"""Loci's own protocol, memories: list, search, add, note, edit, history, undo, forget, links."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any  # JSON values

from fastapi import APIRouter, Query, Request
from fastapi.encoders import jsonable_encoder
from pydantic import Field

from loci.core.item import Item, Turn
from loci.run.memory import Memory
from loci.server.forms import Form
from loci.server.graph import MEMORIES, graph_of
from loci.server.service import Service

router = APIRouter(prefix="/api/v1", tags=["memories"])
Json = dict[str, Any]
Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, lt=2**31)]


class Said(Form):
    """What somebody said, to be remembered."""

    role: str = "user"
    content: str
    name: str | None = None
    time: str | None = None
    metadata: Json = Field(default_factory=dict)


class AddForm(Form):
    """A request to remember."""

    messages: Annotated[list[Said], Field(min_length=1, max_length=1000)]
    user: str | None = None
    agent: str | None = None
    session: str | None = None
    infer: bool | None = None


class EditForm(Form):
    """A request to write an item anew."""

    text: str
    user: str | None = None
    reason: str = ""


class UserForm(Form):
    """Whose memory is meant."""

    user: str | None = None


class NoteForm(Form):
    """A request to remember a text as it is."""

    text: str
    user: str | None = None
    agent: str | None = None
    session: str | None = None


class RetireForm(Form):
    """A request to stop believing an item, from a time on in the world."""

    user: str | None = None
    at: str | None = None
    reason: str = ""


@router.get("/memories")
async def memories(
    request: Request,
    user: str | None = None,
    agent: str | None = None,
    session: str | None = None,
    kinds: Annotated[list[str] | None, Query()] = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Json:
    """Return what is remembered of a user, newest first."""
    memory, who = _memory(request, user)
    found = await asyncio.to_thread(
        memory.list,
        user=who,
        agent=agent,
        session=session,
        kinds=kinds,
        limit=limit,
        offset=offset,
    )
    return {"user": who, "memories": [_plain(entry) for entry in found]}


@router.post("/memories")
async def remember(request: Request, form: AddForm) -> Json:
    """Remember messages; when this answers, they are on the disk."""
    memory, who = _memory(request, form.user)
    messages = [said.model_dump(exclude_none=True) for said in form.messages]
    added = await asyncio.to_thread(
        memory.add,
        messages,
        user=who,
        agent=form.agent,
        session=form.session,
        infer=form.infer,
    )
    turns, items = ([_plain(entry) for entry in part] for part in (added.turns, added.items))
    return {"user": who, "turns": turns, "memories": items}


@router.get("/memories/search")
async def search(
    request: Request,
    query: str,
    user: str | None = None,
    agent: str | None = None,
    session: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> Json:
    """Return what answers a query, best first, each with the messages it comes from."""
    memory, who = _memory(request, user)
    hits = await asyncio.to_thread(
        memory.search, query, user=who, agent=agent, session=session, limit=limit
    )
    return {"user": who, "hits": jsonable_encoder(list(hits)), "pending": hits.pending}


@router.get("/users")
async def users(request: Request) -> list[str]:
    """Return the users of whom something is remembered, as far as the key may name them."""
    memory, who = _memory(request, None)
    if request.state.caller.user is not None:
        return [who]
    return await asyncio.to_thread(memory.users)


@router.get("/changes")
async def changes(
    request: Request,
    user: str | None = None,
    made_by: str | None = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Json:
    """Return what was changed in a user's memories, newest first."""
    memory, who = _memory(request, user)
    found = await asyncio.to_thread(
        memory.changes, user=who, limit=limit, offset=offset, made_by=made_by
    )
    return {"user": who, "changes": jsonable_encoder(found)}


@router.get("/memories/graph")
async def graph(
    request: Request,
    user: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = MEMORIES,
) -> Json:
    """Return the newest memories with their links, and the names that several share."""
    memory, who = _memory(request, user)
    found = await asyncio.to_thread(graph_of, memory, who, limit=limit)
    return {"user": who, **jsonable_encoder(found)}


@router.post("/memories/note")
async def note(request: Request, form: NoteForm) -> Json:
    """Remember a text as it is given, as a note that no rule will change."""
    memory, who = _memory(request, form.user)
    found = await asyncio.to_thread(
        memory.note, form.text, user=who, agent=form.agent, session=form.session
    )
    return _plain(found)


@router.get("/memories/{id}")
async def memory_of(request: Request, id: str, user: str | None = None) -> Json:
    """Return an item or a turn."""
    memory, who = _memory(request, user)
    return _plain(await asyncio.to_thread(memory.get, id, user=who))


@router.get("/memories/{id}/history")
async def history(request: Request, id: str, user: str | None = None) -> Json:
    """Return the changes of an item, oldest first."""
    memory, who = _memory(request, user)
    return {"changes": jsonable_encoder(await asyncio.to_thread(memory.history, id, user=who))}


@router.get("/memories/{id}/explain")
async def explain(
    request: Request, id: str, user: str | None = None, query: str | None = None
) -> Json:
    """Tell where something came from, its links, and why it is recalled for a query."""
    memory, who = _memory(request, user)
    found = await asyncio.to_thread(memory.explain, id, user=who, query=query)
    return {**jsonable_encoder(found), "about": _plain(found.about)}


@router.patch("/memories/{id}")
async def edit(request: Request, id: str, form: EditForm) -> Json:
    """Write an item anew; its old text stays in its history."""
    memory, who = _memory(request, form.user)
    return _plain(await asyncio.to_thread(memory.edit, id, form.text, user=who, reason=form.reason))


@router.post("/memories/{id}/undo")
async def undo(request: Request, id: str, form: UserForm | None = None) -> Json:
    """Take back the last change of an item, a change, or all a message led to."""
    memory, who = _memory(request, None if form is None else form.user)
    found = await asyncio.to_thread(memory.undo, id, user=who)
    return {"memories": [_plain(entry) for entry in found]}


@router.post("/memories/{id}/redo")
async def redo(request: Request, id: str, form: UserForm | None = None) -> Json:
    """Do again what was taken back."""
    memory, who = _memory(request, None if form is None else form.user)
    found = await asyncio.to_thread(memory.redo, id, user=who)
    return {"memories": [_plain(entry) for entry in found]}


@router.post("/memories/{id}/retire")
async def retire(request: Request, id: str, form: RetireForm | None = None) -> Json:
    """Stop believing an item; undo brings it back."""
    asked = RetireForm() if form is None else form
    memory, who = _memory(request, asked.user)
    return _plain(
        await asyncio.to_thread(memory.retire, id, at=asked.at, user=who, reason=asked.reason)
    )


@router.delete("/memories/{id}")
async def forget(request: Request, id: str, user: str | None = None, dry_run: bool = False) -> Json:
    """Erase an item or a turn with all that came of it, and report what went."""
    service: Service = request.app.state.service
    caller = request.state.caller
    found = await asyncio.to_thread(service.forget, caller, id, user=user, dry_run=dry_run)
    report: Json = jsonable_encoder(found)
    return report


# -- private ----------------------------------------------------------------------------------


def _memory(request: Request, user: str | None) -> tuple[Memory, str]:
    """Return the memory of the key's tenant, and whose it is about."""
    service: Service = request.app.state.service
    caller = request.state.caller
    return service.memory(caller.tenant), service.whose(caller, user)


def _plain(entry: Item | Turn) -> Json:
    found: Json = jsonable_encoder(entry)
    kind = "turn" if isinstance(entry, Turn) else entry.kind
    return {**found, "kind": kind}

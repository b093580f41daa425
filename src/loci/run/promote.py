"""Text that becomes keys and values, and keys and values that become text again.

A cube of text is read once as the beginning of a prompt; what the model keeps of it, exactly and in
the very dtype of the run, goes into the cube's file beside the text. A session that opens with the
cube has read it already. Going back drops the tensors; the text was there all along.

After MemOS (Zhiyu Li et al., 2025, arXiv:2507.03724), which converts between kinds of memory; that
keys and values are used as an exact prefix or not at all is our rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loci.core.cube import (
    Action,
    Caller,
    CubeHeader,
    MemoryKind,
    Move,
    Policy,
    Provenance,
    State,
    require,
)
from loci.core.item import Item
from loci.errors import BudgetError, MethodError, ParameterError, PolicyError
from loci.run.cubes import WHOLE, kv_bytes, payload_of, prefix, text_of
from loci.run.memory_files import name_of
from loci.store.cube_file import Payload
from loci.store.messages import body_text
from loci.store.shelf import Shelf, new_id
from loci.units import format_bytes

if TYPE_CHECKING:
    from loci.run.engine import Session
    from loci.run.memory import Memory

ALL = 1_000_000  # facts of one user at most
_KV_FACTS = (
    "format",
    "prefix_version",
    "tokens",
    "layout",
    "dtype",
    "weights",
    "adapter",
    "fingerprint",
    "read_s",
)


@dataclass(frozen=True, kw_only=True)
class Promoted:
    """What a promotion made: the cube as it is now, its tokens, bytes, and seconds of reading."""

    header: CubeHeader
    tokens: int
    nbytes: int
    read_s: float


def from_text(
    shelf: Shelf, text: str, *, policy: Policy | None = None, made_by: str = "person"
) -> CubeHeader:
    """Put a text on the shelf as a cube of its own."""
    payload = Payload(texts={WHOLE: body_text(text, "the text")})
    return shelf.put(_header(shelf, (), policy or Policy(), made_by), payload)


def from_memory(
    memory: Memory,
    *,
    items: Sequence[str] = (),
    user: str | None = None,
    policy: Policy | None = None,
) -> CubeHeader:
    """Put remembered items, or all live facts of a user, on the memory's shelf as one cube.

    The cube's parents are the items and the turns they came from, so that erasing one of them
    reaches it. Its owner is their user, unless the policy says otherwise.

    Raises:
        ParameterError: if there is nothing, or the items are of several users.
        NotFoundError: if one of the ids is none of this user's.
    """
    shelf = memory.shelf
    if shelf is None:
        raise MethodError(
            "a memory in a database server has no shelf beside it",
            way_out="keep cubes beside a memory in a file",
        )
    found = [memory.get(id, user=user) for id in dict.fromkeys(items)]
    facts = [one for one in found if isinstance(one, Item)]
    if len(facts) != len(found):
        raise ParameterError("a cube is made of items, not of messages", value=list(items))
    owners = {memory.owner_of(one.id) for one in facts}
    if not items and user is not None:
        known = memory.list(user=user, limit=ALL)
        facts = [one for one in reversed(known) if isinstance(one, Item) and one.is_live]
        owners = {user}
    if not facts:
        raise ParameterError("there is nothing to make a cube of", value=user or list(items))
    if len(owners) != 1:
        raise ParameterError("these items are of several users", value=sorted(owners))
    sources = tuple(dict.fromkeys(turn for fact in facts for turn in fact.sources))
    parents = (*(fact.id for fact in facts), *sources)
    given = policy or Policy()
    given = replace(given, scope=memory.tenant, owner=given.owner or owners.pop())
    payload = Payload(texts={fact.id: fact.text for fact in facts})
    header = _header(shelf, parents, given, "rules")
    origin = replace(header.provenance, store=name_of(memory.store))
    return shelf.put(replace(header, provenance=origin), payload)


def promote(
    session: Session,
    shelf: Shelf,
    id: str,
    *,
    caller: Caller,
    limit_bytes: int | None = None,
) -> Promoted:
    """Read a cube's text with a session's model, and keep its keys and values in the cube.

    The session's own conversation begins anew. Nothing is changed before all checks are done, and
    the file is put into place as a whole.

    Args:
        limit_bytes: what all files of the shelf may take together.

    Raises:
        BudgetError: if it does not fit the plan's context, or the shelf's bytes.
        PolicyError: if this caller may not change the cube, or it is frozen or expired.
        ParameterError: if it is an adapter, or has these keys and values already.
        MethodError: if the plan's cache is not exact.
    """
    head = shelf.head(id)
    header, form = head.header, session.kv_form()
    require(caller, header, Action.WRITE, shelf.clock.now())
    if header.kind is MemoryKind.PARAMETRIC or header.state is State.RETIRED:
        what = "retired" if header.state is State.RETIRED else "an adapter"
        raise ParameterError(f"cube {id} is {what}; only text becomes keys and values")
    if session.store.chain:
        raise MethodError(
            "only an exact cache makes keys and values that stay true",
            value=session.plan.kv,
            way_out='plan with --kv ""',
        )
    payload = shelf.payload(id)
    ids = prefix(session.tokenizer, text_of(payload, shelf.path(id)))
    _fits(session, shelf, id, len(ids), limit_bytes)
    read_s = session.read_prefix(ids)
    made = payload_of(session.store, ids, form, payload)
    made = replace(made, facts={**made.facts, "read_s": read_s})
    header = replace(
        header.moved(Move.USE),
        kind=MemoryKind.ACTIVATION,
        fingerprint=form.fingerprint,
        provenance=replace(header.provenance, model=session.plan.model),
    )
    kept = shelf.put(header, made, keep=head.header.kind is MemoryKind.PLAINTEXT)
    return Promoted(header=kept, tokens=len(ids), nbytes=made.nbytes, read_s=read_s)


def demote(shelf: Shelf, id: str, *, caller: Caller) -> CubeHeader:
    """Drop a cube's keys and values, overwritten; its text stays, to be read again when asked.

    Raises:
        PolicyError: if this caller may not change the cube, or it is pinned or frozen.
        ParameterError: if there are no keys and values to drop.
    """
    header = shelf.header(id)
    require(caller, header, Action.WRITE, shelf.clock.now())
    if header.kind is not MemoryKind.ACTIVATION:
        raise ParameterError(
            f"cube {id} is {header.kind}; there is nothing to go back from",
            way_out=f"loci adapter drop {id}" if header.kind is MemoryKind.PARAMETRIC else (),
        )
    if header.policy.pinned:
        raise PolicyError(f"cube {id} is pinned", way_out=f"loci cube pin {id} --off")
    return to_text(shelf, id)


def to_text(shelf: Shelf, id: str) -> CubeHeader:
    """Drop keys and values, whoever asks; see `demote`."""
    header, before = shelf.header(id), shelf.payload(id)
    facts = {name: value for name, value in before.facts.items() if name not in _KV_FACTS}
    return shelf.put(
        replace(header, kind=MemoryKind.PLAINTEXT, fingerprint=None),
        Payload(texts=before.texts, facts=facts),
        keep=False,
    )


def _fits(session: Session, shelf: Shelf, id: str, tokens: int, limit_bytes: int | None) -> None:
    """Raise BudgetError unless the plan and the shelf have room."""
    need, room = kv_bytes(session.pack.spec, tokens, session.plan.kv_dtype), session.prefix_room()
    if tokens > room:
        raise BudgetError(
            f"cube {id} has {tokens:,} tokens, {format_bytes(need)} of keys and values; the plan's "
            f"context leaves room for {room:,} ({tokens - room:,} too many)",
            way_out=f"plan with --context {2 * tokens}",
        )
    if limit_bytes is None:
        return
    held = shelf.nbytes()
    if held + need > limit_bytes:
        raise BudgetError(
            f"cube {id} needs {format_bytes(need)} of keys and values; the shelf holds "
            f"{format_bytes(held)} of {format_bytes(limit_bytes)} "
            f"({format_bytes(held + need - limit_bytes)} short)",
            way_out="demote another first: loci cube demote ID, or raise --limit",
        )


def _header(shelf: Shelf, parents: Sequence[str], policy: Policy, made_by: str) -> CubeHeader:
    return CubeHeader(
        id=new_id(MemoryKind.PLAINTEXT),
        kind=MemoryKind.PLAINTEXT,
        parents=tuple(parents),
        policy=policy,
        provenance=Provenance(
            sources=tuple(parents), made_by=made_by, at=shelf.clock.now().isoformat()
        ),
    )

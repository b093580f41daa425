"""A schedule's wishes carried out on a shelf: promotions, demotions, and moves of state.

Whoever calls says when (`tick`); no thread of ours watches the clock. A schedule acts for nobody:
it changes no policy, shows nobody anything, and what is pinned or frozen keeps its form.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from loci.core.arrange import Change, Demote, Promote, Shift, Standing
from loci.core.cube import Caller, CubeHeader, MemoryKind, Move
from loci.errors import ParameterError
from loci.run import promote as conversions
from loci.run.cubes import kv_bytes, prefix, text_of
from loci.store import cube_file
from loci.store.cube_file import Payload
from loci.store.shelf import Shelf

if TYPE_CHECKING:
    from loci.methods.recall.base import Arrange
    from loci.run.engine import Session

_SAMPLE_TOKENS, _SAMPLE_BYTES = 128, 2**22


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds for a token read, a byte loaded and a byte written."""

    read_s: float
    load_s: float
    write_s: float


def pace_of(session: Session, shelf: Shelf) -> Pace:
    """Measure a session and a shelf's disk, once, with a short text and a small file."""
    ids = prefix(session.tokenizer, "one two three four " * _SAMPLE_TOKENS)[:_SAMPLE_TOKENS]
    ids = ids[: session.prefix_room()]
    read_s = session.read_prefix(ids) / len(ids)
    shelf.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    header = CubeHeader(id="pace", kind=MemoryKind.PLAINTEXT)
    with TemporaryDirectory(dir=shelf.folder) as folder:
        path = Path(folder, "pace.cube")
        began = time.perf_counter()
        cube_file.write(path, header, Payload(texts={"text": "0" * _SAMPLE_BYTES}))
        written = time.perf_counter()
        cube_file.read(path)
        loaded = time.perf_counter()
    return Pace(
        read_s=read_s,
        load_s=(loaded - written) / _SAMPLE_BYTES,
        write_s=(written - began) / _SAMPLE_BYTES,
    )


def standings(
    shelf: Shelf, session: Session | None = None, pace: Pace | None = None
) -> list[Standing]:
    """Return the cubes of a shelf as a schedule sees them.

    Without a session nothing can be promoted, so texts have no worth as keys and values.
    """
    found = []
    for header in shelf.headers(readable=True):
        head = shelf.head(header.id)
        if header.kind is MemoryKind.PARAMETRIC:
            continue
        tokens, nbytes = int(head.facts.get("tokens", 0)), head.nbytes
        if header.kind is MemoryKind.PLAINTEXT and session is not None:
            path = shelf.path(header.id)
            text = text_of(Payload(texts=cube_file.read_texts(path)), path)
            tokens = len(prefix(session.tokenizer, text))
            nbytes += kv_bytes(session.pack.spec, tokens, session.plan.kv_dtype) + 4 * tokens
            if tokens > session.prefix_room():
                continue  # it would be refused
        cost = pace or Pace(read_s=0.0, load_s=0.0, write_s=0.0)
        read_s = cost.read_s * tokens
        found.append(
            Standing(
                header=header,
                nbytes=nbytes,
                read_s=read_s,
                load_s=cost.load_s * nbytes,
                promote_s=read_s + 2 * cost.write_s * nbytes,
            )
        )
    return found


def tick(
    shelf: Shelf,
    method: Arrange,
    *,
    budget_bytes: int | None = None,
    session: Session | None = None,
    pace: Pace | None = None,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Change]:
    """Ask a schedule what should be done now, do it, and return it.

    Args:
        budget_bytes: what keys and values may take; None leaves room to those there are.
        session: reads what is promoted; without it cubes only age.
        pace: measured now if not given.
    """
    if session is not None and pace is None:
        pace = pace_of(session, shelf)
    found = standings(shelf, session, pace)
    held = sum(one.nbytes for one in found if one.is_promoted)
    budget = held if budget_bytes is None else budget_bytes
    changes = list(method.tick(found, budget, shelf.clock.now()))
    if session is None:
        changes = [change for change in changes if not isinstance(change, Promote)]
    if not dry_run:
        for number, change in enumerate(changes):
            progress(number, len(changes))
            carry_out(shelf, change, session)
    return changes


def carry_out(shelf: Shelf, change: Change, session: Session | None) -> None:
    """Do one thing that a schedule wants.

    Raises:
        ParameterError: if it is a promotion, and there is no session to read with.
    """
    header = shelf.header(change.id)
    owner = Caller(tenant=header.policy.scope, user=header.policy.owner)
    if isinstance(change, Promote):
        if session is None:
            raise ParameterError("a promotion needs a model", value=change.id)
        conversions.promote(session, shelf, change.id, caller=owner)
    elif isinstance(change, Demote):
        conversions.to_text(shelf, change.id)
    elif isinstance(change, Shift) and change.move is Move.ERASE:
        shelf.remove(change.id)
    else:
        shelf.change(header.moved(change.move))

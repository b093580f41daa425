"""Forgetting that reaches every kind of memory: rows first, then the cubes made of them.

A cube goes when an erased item or turn is among its ancestors, when it is this user's and its bytes
hold an erased text, or when it was made of a cube that goes. Text, keys and values are overwritten
and taken away. Weights cannot be cut open: an adapter is emptied for good and its header stays,
retired, or it is trained anew without what is gone, where the caller knows how.

A note of the ids is written before the rows go. A process that is killed in between leaves it to
the next one that opens the memory, which empties the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loci.core.cube import CubeHeader, MemoryKind, State, descendants
from loci.core.item import Scope
from loci.errors import FormatError, LociError, NotFoundError, PolicyError, StorageError
from loci.store import cube_file, traces
from loci.store.base import Erased
from loci.store.cube_file import Payload
from loci.store.scan import count
from loci.store.shelf import Shelf

if TYPE_CHECKING:
    from loci.run.memory import Memory

Retrain = Callable[[CubeHeader, Payload, frozenset[str]], tuple[CubeHeader, Payload] | None]
"""Makes an adapter anew without the erased ids, or returns None: then it is retired.

Called after the rows are gone. What it returns replaces every version of the cube; none of the
erased ids may be among its parents."""

Rows = Callable[[bool], Erased]
_PENDING = "erase.pending"


@dataclass(frozen=True)
class Reach:
    """What an erasure takes of a shelf: cubes to take away, adapters to empty, and mentions."""

    gone: tuple[CubeHeader, ...]
    emptied: tuple[CubeHeader, ...]
    mentions: tuple[str, ...]

    @property
    def all(self) -> tuple[CubeHeader, ...]:
        """Everything that goes."""
        return (*self.gone, *self.emptied)


def forget(
    memory: Memory,
    scope: Scope,
    rows: Rows,
    *,
    dry_run: bool,
    mentions: bool = False,
    everything: bool = False,
    retrain: Retrain | None = None,
) -> Erased:
    """Erase rows and the cubes made of them; a dry run only tells what would go.

    Args:
        rows: erases the rows of the store, or tells what would go.
        mentions: also cubes of nobody in particular that hold an erased text.
        everything: also every cube of this user.

    Raises:
        PolicyError: if a frozen cube would go; nothing is erased then.
    """
    shelf = memory.shelf
    if shelf is None or not shelf.folder.is_dir():
        return rows(dry_run)
    planned = rows(True)
    reach = _reach(shelf, planned, scope, mentions=mentions, everything=everything)
    frozen = [header.id for header in reach.all if header.state is State.FROZEN]
    if frozen:
        raise PolicyError(
            "what is to be forgotten stands in frozen cubes too; nothing was erased",
            value=", ".join(frozen),
            way_out=f"loci cube freeze {frozen[0]} --off",
        )
    if dry_run:
        return _told(planned, reach, shelf)
    ids = [*planned.items, *planned.turns, *planned.cut]
    _note(shelf, [*ids, *(header.id for header in reach.all)])
    erased = rows(False)
    rows_gone = frozenset((*planned.items, *planned.turns))
    retrained, lost = _apply(shelf, reach, rows_gone, retrain)
    if not lost:
        (shelf.folder / _PENDING).unlink(missing_ok=True)
    report = _told(erased, reach, shelf, retrained)
    found = _found(shelf, erased.texts)
    return replace(
        report,
        found={**erased.found, **found},
        out_of_reach=(*lost, *report.out_of_reach),
    )


def resume(memory: Memory) -> None:
    """Finish what a process left that was killed between the rows and the cubes.

    Raises:
        StorageError: if the note of what was left cannot be read: that is never passed over.
    """
    shelf = memory.shelf
    if shelf is None:
        return
    path = shelf.folder / _PENDING
    try:
        ids = [str(id) for id in json.loads(path.read_bytes())]
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise StorageError(
            f"an erasure was not finished, and {path} does not say what was left: {error}",
            way_out=f"look through loci cube list, then take {path.name} away",
        ) from error
    left = {id for id in ids if not _is_row(id) or _is_there(memory, id)}
    rows_gone = [id for id in ids if id not in left]
    if rows_gone:
        headers = {header.id: header for header in shelf.headers(readable=True)}
        named = [headers[id] for id in ids if id in headers]
        below = [headers[id] for id in descendants(rows_gone, headers.values())]
        reach = _sorted({header.id: header for header in (*named, *below)}.values(), ())
        if _apply(shelf, reach, frozenset(rows_gone), None)[1]:
            return  # the next to open it tries again
    with contextlib.suppress(OSError):
        path.unlink()


# -- private ----------------------------------------------------------------------------------


def _reach(
    shelf: Shelf, planned: Erased, scope: Scope, *, mentions: bool, everything: bool
) -> Reach:
    """Return what goes of a shelf with these rows."""
    headers = {header.id: header for header in shelf.headers(readable=True)}
    taken = descendants([*planned.items, *planned.turns], headers.values())
    for header in headers.values():
        cut = set(planned.cut) & set(header.parents)
        if cut and (header.kind is MemoryKind.PARAMETRIC or not _texts(shelf, header.id)):
            taken.add(header.id)  # what was learned of a turn cannot be cut like the turn
        if everything and _is_of(header, scope):
            taken.add(header.id)
    holding = _holding(shelf, _forms(planned.texts)[0]) - taken
    told = []
    for id in sorted(holding & headers.keys()):
        policy = headers[id].policy
        is_open = policy.scope == scope.tenant and policy.owner is None
        if _is_of(headers[id], scope) or (mentions and is_open):
            taken.add(id)
        elif policy.scope == scope.tenant:
            told.append(id)
    taken |= descendants(taken, headers.values())
    taken = {id for id in taken if not _is_empty(shelf, headers[id])}
    return _sorted([headers[id] for id in sorted(taken)], tuple(set(told) - taken))


def _sorted(headers: Iterable[CubeHeader], mentions: Sequence[str]) -> Reach:
    headers = list(headers)
    emptied = tuple(one for one in headers if one.kind is MemoryKind.PARAMETRIC)
    gone = tuple(one for one in headers if one.kind is not MemoryKind.PARAMETRIC)
    return Reach(gone, emptied, tuple(sorted(mentions)))


def _apply(
    shelf: Shelf, reach: Reach, ids: frozenset[str], retrain: Retrain | None
) -> tuple[list[str], list[str]]:
    """Take cubes away; return the adapters that were made anew, and what did not work."""
    retrained, lost = list[str](), list[str]()
    ids |= {header.id for header in reach.gone}
    for header in reach.gone:
        try:
            shelf.remove(header.id)
        except NotFoundError:
            continue
        except (StorageError, PolicyError) as error:
            lost.append(f"cube {header.id}, which is still there: {error.what}")
    for header in reach.emptied:
        try:
            fresh = _retrained(shelf, header, ids, retrain, lost)
            shelf.retire(header.id)  # first the old bytes, whatever comes after
            if fresh is not None:
                shelf.put(*fresh, keep=False)
                retrained.append(header.id)
        except NotFoundError:
            continue
        except (StorageError, PolicyError, FormatError) as error:
            lost.append(f"adapter {header.id}, which is still there: {error.what}")
    return retrained, lost


def _retrained(
    shelf: Shelf,
    header: CubeHeader,
    ids: frozenset[str],
    retrain: Retrain | None,
    lost: list[str],
) -> tuple[CubeHeader, Payload] | None:
    if retrain is None or header.state is State.RETIRED:
        return None
    try:
        made = retrain(header, shelf.payload(header.id), ids)
    except LociError as error:
        lost.append(f"the training of {header.id} anew, which failed; it is retired: {error.what}")
        return None
    if made is not None and ids & set(made[0].parents):
        lost.append(f"the training of {header.id} anew, which kept what is gone; it is retired")
        return None
    return made


def _told(erased: Erased, reach: Reach, shelf: Shelf, retrained: Sequence[str] = ()) -> Erased:
    """Return the report with what went of the shelf, and with what could not be looked into."""
    unread = tuple(f"cube {id}, which cannot be read" for id in shelf.unreadable())
    return replace(
        erased,
        cubes=tuple(header.id for header in reach.gone),
        retired=tuple(header.id for header in reach.emptied if header.id not in retrained),
        retrained=tuple(retrained),
        mentions=(*erased.mentions, *reach.mentions),
        out_of_reach=(*unread, *erased.out_of_reach),
    )


def _forms(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the forms in which texts may stand in files of cubes, and pieces that may by right.

    A fact about a cube is JSON inside JSON: what is escaped once in a database is escaped twice.
    """
    whole, perhaps, _ = traces.forms_of(texts, ())
    twice = [json.dumps(form, ensure_ascii=False)[1:-1] for form in whole]
    return list(dict.fromkeys((*whole, *twice))), perhaps


def _found(shelf: Shelf, texts: Sequence[str]) -> dict[str, int]:
    """Return {file: how often an erased text stands in it}, of the shelf and its audit."""
    whole, perhaps = _forms(texts)
    kept = "\n".join(
        text.lower()
        for header in shelf.headers(readable=True)
        for text in _texts(shelf, header.id).values()
    )
    telling = [form for form in perhaps if form.lower() not in kept]
    patterns = [form.encode() for form in (*whole, *telling)]
    return {
        str(path.relative_to(shelf.folder.parent)): count(path, patterns) for path in _files(shelf)
    }


def _holding(shelf: Shelf, forms: Sequence[str]) -> set[str]:
    """Return the ids of cubes that have one of these texts in the bytes of some version."""
    patterns = [form.encode() for form in forms]
    cubes = [path for path in _files(shelf) if path.suffix == ".cube"]
    return {path.name.split(".")[0] for path in cubes if count(path, patterns)}


def _files(shelf: Shelf) -> list[Path]:
    audit = sorted(shelf.folder.parent.glob(f"{shelf.folder.stem}.audit*"))
    return [*shelf.files(), *audit]


def _texts(shelf: Shelf, id: str) -> dict[str, str]:
    try:
        return cube_file.read_texts(shelf.path(id))
    except FormatError:
        return {}


def _is_empty(shelf: Shelf, header: CubeHeader) -> bool:
    """Return whether an earlier erasure emptied it."""
    return header.state in (State.RETIRED, State.ERASED) and not shelf.head(header.id).nbytes


def _is_of(header: CubeHeader, scope: Scope) -> bool:
    return header.policy.scope == scope.tenant and header.policy.owner == scope.user


def _is_row(id: str) -> bool:
    return id[:1] in ("i", "t") and id[1:].isdigit()


def _is_there(memory: Memory, id: str) -> bool:
    try:
        memory.store.scope_of(memory.tenant, id)
    except NotFoundError:
        return False
    return True


def _note(shelf: Shelf, ids: Sequence[str]) -> None:
    """Write down what is about to go; ids alone, which say nothing.

    The note is there whole or not at all: a process that ends here has erased nothing yet.
    """
    path = shelf.folder / _PENDING
    half = path.with_name(f"{_PENDING}.half")
    try:
        descriptor = os.open(half, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(list(ids), file)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write to {shelf.folder}: {error.strerror or error}",
            way_out="nothing was erased",
        ) from error

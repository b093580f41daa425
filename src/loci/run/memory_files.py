"""A memory written to a file and read from one: exports of Loci, and conversations of others."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any  # JSON values

from loci import __version__
from loci.core.item import Scope
from loci.errors import FormatError, ParameterError, StorageError, StoreError
from loci.store import foreign, importers
from loci.store.base import Store
from loci.store.messages import drafts, key_text
from loci.store.transfer import FORMAT, VERSION

if TYPE_CHECKING:
    from loci.run.memory import Memory

_BATCH = 1000  # records of one transaction


def export(store: Store, tenant: str, user: str, path: Path) -> int:
    """Write a user's memory under a temporary name, flush it, and put it into place."""
    scope = Scope(tenant=tenant, user=user)
    if store.owner(scope) is None:
        raise StoreError("nothing is remembered of this user", value=user)
    if path.exists() and not path.is_file():  # putting a file into place would replace a device
        raise ParameterError("an export goes to a file of its own", value=str(path))
    head = {"format": FORMAT, "version": VERSION, "made_by": f"loci {__version__}"}
    head |= {"store": name_of(store), "tenant": tenant, "user": user}
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    count = 0
    try:
        descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                for record in _chain(head, store.records(scope)):
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    count += 1
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as problem:
        raise StorageError(
            f"the export was not written: {problem.strerror}", value=str(path)
        ) from problem
    return count - 1


def import_(
    memory: Memory,
    path: Path,
    format: str,
    *,
    user: str | None,
    infer: bool | None,
    conversation: str | None,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Add what a file has and the memory has not; returns how much that was."""
    name = importers.check_format(format)
    try:
        if name == "auto":
            name = importers.detect(path)
        if name == "locomo":
            return _locomo(memory, path, user, infer, conversation, progress)
        if conversation is not None:
            raise ParameterError("only a LoCoMo file has conversations", value=conversation)
        if name in ("mem0", "langmem"):
            read = foreign.mem0 if name == "mem0" else foreign.langgraph
            store = foreign.MEM0 if name == "mem0" else foreign.LANGGRAPH
            return _foreign(memory, list(read(path, user, memory.zone)), store, progress)
        return _loci(memory, path, user, progress)
    except UnicodeDecodeError as problem:
        raise FormatError(
            "the file to import is not UTF-8",
            value=problem.object[problem.start : problem.start + 4],
            allowed="text in UTF-8",
            way_out=f"iconv -f latin1 -t utf-8 {path}",
        ) from None
    except OSError as problem:
        raise StoreError(
            f"cannot read the file to import: {problem.strerror}", value=str(path)
        ) from problem


def _loci(
    memory: Memory, path: Path, user: str | None, progress: Callable[[int, int], None] | None
) -> int:
    head = importers.loci_header(path)
    with open(path, encoding="utf-8") as file:
        total = sum(1 for _ in file) - 1
    name_of(memory.store)
    scope = Scope(tenant=memory.tenant, user=user if user is not None else str(head["user"]))
    records = importers.loci_records(path)
    done = new = 0
    while batch := list(islice(records, _BATCH)):
        new += memory.store.put_records(scope, batch, str(head.get("store")), memory.clock.now())
        done += len(batch)
        if progress is not None:
            progress(done, total)
    return new


def _foreign(
    memory: Memory,
    found: Sequence[foreign.Found],
    store: str,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Store memories of others: those of one user together, some at a time."""
    done = new = 0
    ordered = sorted(found, key=lambda one: one.user)
    for user, part in groupby(ordered, key=lambda one: one.user):
        scope = Scope(tenant=memory.tenant, user=key_text(user, "user"))
        while batch := list(islice(part, _BATCH)):
            records = [record for one in batch for record in one.records]
            have = memory.store.by_origin(
                scope, [f"{store}:{one.records[0]['id']}" for one in batch]
            )
            memory.store.put_records(scope, records, store, memory.clock.now())
            new += len(batch) - len(have)
            done += len(batch)
            if progress is not None:
                progress(done, len(found))
    return new


def _locomo(
    memory: Memory,
    path: Path,
    user: str | None,
    infer: bool | None,
    conversation: str | None,
    progress: Callable[[int, int], None] | None,
) -> int:
    sessions = list(importers.locomo(path, memory.zone, conversation))
    new = 0
    for done, session in enumerate(sessions, 1):
        scope = Scope(
            tenant=memory.tenant,
            user=user if user is not None else session.user,
            session=session.name if user is None else f"{session.user}:{session.name}",
        )
        have = memory.store.origins(scope, session.origins)
        made = drafts(session.messages, now=memory.clock.now(), assumed=memory.zone)
        for draft, origin in zip(made, session.origins, strict=True):
            draft.origin = origin
            draft.zone_assumed = True
        fresh = [draft for draft in made if draft.origin not in have]
        if fresh:
            memory._store(scope, fresh, infer)
            new += len(fresh)
        if progress is not None:
            progress(done, len(sessions))
    return new


def name_of(store: Store) -> str:
    """Return the name of a store, given once: origins of what it exports begin with it."""
    name = store.meta("store")
    if name is None:
        name = secrets.token_hex(8)
        store.set_meta("store", name)
    return name


def _chain(head: Mapping[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[Mapping[str, Any]]:
    yield head
    yield from rest

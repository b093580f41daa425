"""What a memory tells its audit: what was erased and what was carried out, by ids alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from loci.core.ports import Clock
from loci.errors import StorageError, StoreError
from loci.run.shelves import file_of
from loci.store.audit import Audit
from loci.store.base import Erased


def beside(url: str | Path, *, clock: Clock | None = None) -> Audit | None:
    """Return the audit that was begun beside a memory's file; None if there is none."""
    file = file_of(url)
    if file is None:
        return None
    path = file.with_name(f"{file.name}.audit")
    return Audit(path, clock=clock) if path.is_file() else None


def subject(text: str) -> str:
    """Return a name as an audit takes it: no spaces, at most 200 characters."""
    return quote(text, safe=".@:/+-_")[:200]


def forgotten(audit: Audit | None, subjects: Sequence[str], erased: Erased) -> Erased:
    """Record an erasure, then take the names of what went out of the audit's own files.

    The erasure is done when this is called: an audit that cannot be written must not hide that, so
    what went wrong is told in the report.
    """
    if audit is None or not erased.done:
        return erased
    try:
        for one in subjects:
            audit.record("forget", one, items=len(erased.items), turns=len(erased.turns))
        audit.erase([*subjects, *erased.items, *erased.turns])
    except (StoreError, StorageError) as error:
        lost = f"the audit, which does not tell of this: {error.what}"
        return replace(erased, out_of_reach=(*erased.out_of_reach, lost))
    return erased

"""A method from another package, as the catalogue test sees one."""

from __future__ import annotations

from dataclasses import dataclass

from loci.core.method import About, Kind
from loci.methods.sched.fcfs import Fcfs


@dataclass(frozen=True, kw_only=True)
class Theirs(Fcfs):
    """First come, first served, under another name."""

    about = About(
        name="theirs", kind=Kind.SCHED, paper="none", idea="someone else's scheduler", lossy=False
    )

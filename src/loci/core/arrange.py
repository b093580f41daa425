"""What a schedule of memory sees of a cube, and what it may want done; run carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from loci.core.cube import CubeHeader, MemoryKind, Move, State, moment


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A cube as it stands.

    Attributes:
        nbytes: bytes of its keys and values, there or to be made.
        read_s: seconds that reading its text takes.
        load_s: seconds that loading its keys and values takes.
        promote_s: seconds to make and keep them now, and to overwrite them in the end; little where
            they were just read.
    """

    header: CubeHeader
    nbytes: int
    read_s: float
    load_s: float
    promote_s: float

    @property
    def is_promoted(self) -> bool:
        """Whether the keys and values are there."""
        return self.header.kind is MemoryKind.ACTIVATION

    @property
    def is_fixed(self) -> bool:
        """Whether nobody but a person may change what it is."""
        return self.header.policy.pinned or self.header.state is State.FROZEN

    @property
    def saved_s(self) -> float:
        """Seconds that one read saves with keys and values."""
        return max(0.0, self.read_s - self.load_s)

    def last_used(self) -> datetime | None:
        """Return when it was last read, else when it was made, None if nobody knows."""
        known = self.header.usage.last_read or self.header.provenance.at
        return None if known is None else moment(known)


@dataclass(frozen=True, kw_only=True)
class Promote:
    """Make keys and values of a text."""

    id: str


@dataclass(frozen=True, kw_only=True)
class Demote:
    """Drop keys and values; the text stays."""

    id: str


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Move a cube to another state of life; `Move.ERASE` overwrites it."""

    id: str
    move: Move


Change = Promote | Demote | Shift

"""MemOS: memory is scheduled into the form in which it is worth its bytes, ages, and expires.

Zhiyu Li et al., "MemOS: A Memory OS for AI System", 2025, arXiv:2507.03724 (and the short paper,
arXiv:2505.22101): text that is read often becomes keys and values, which are loaded and not read;
what lies idle goes back and is archived; what is past its time expires and is erased later.

The papers give neither formula nor table. All of these are a reconstruction:

    rate      reads a second, half of them forgotten in half a day (`Usage.rate`)
    worth     rate * (read_s - load_s) * horizon - promote_s, of which a promotion needs more than 0
    density   rate * (read_s - load_s) / bytes, times `hysteresis` for what is promoted already

Room is given by density, greedily; what does not find room goes back to text. A second tick at the
same time changes nothing. Which cubes belong into a prompt is told by `score`:

    .45 similarity + .2 words + .1 log(1 + reads) / log(1 + most reads) + .15 2^(-age / half life)
    + .1 pinned

Differs from the paper: it converts between three kinds; weights are trained by other methods, so
here text and keys alone are scheduled. Not for: texts that change with every question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from loci.core.arrange import Change, Demote, Promote, Shift, Standing
from loci.core.cube import HALF_LIFE_S, MemoryKind, Move, State, moment
from loci.core.method import About, Frees, Kind, Param
from loci.errors import BudgetError
from loci.methods.recall.base import Arrange
from loci.units import format_bytes

DAY_S = 86_400.0
GRACE_S = 7 * DAY_S  # between the end of a cube's time and its erasing
_RESTING = (State.ARCHIVED, State.RETIRED, State.EXPIRED, State.ERASED)


@dataclass(frozen=True, kw_only=True)
class Memos(Arrange):
    """Keys and values for what is read often, within the bytes; idle goes back, old expires."""

    about = About(
        name="memos",
        kind=Kind.RECALL,
        paper="arXiv:2507.03724",
        idea="text read often becomes keys and values, cold goes back, old expires",
        frees=Frees.STORAGE,
        lossy=False,
        reconstruction="every formula and number: the papers name states and triggers alone",
    )

    horizon_s: Annotated[
        float, Param(help="a promotion pays for itself within this time", unit="s", ge=1.0)
    ] = DAY_S
    hysteresis: Annotated[float, Param(help="what is promoted counts so much more", ge=1.0)] = 1.25
    archive_after_s: Annotated[
        float, Param(help="what nobody read for so long is archived", unit="s", ge=1.0)
    ] = 30 * DAY_S
    similarity: Annotated[float, Param(help="weight of likeness to the question", ge=0.0)] = 0.45
    words: Annotated[float, Param(help="weight of shared words", ge=0.0)] = 0.2
    uses: Annotated[float, Param(help="weight of how often it was read", ge=0.0)] = 0.1
    recency: Annotated[float, Param(help="weight of how recently", ge=0.0)] = 0.15
    priority: Annotated[float, Param(help="weight of being pinned", ge=0.0)] = 0.1

    def tick(
        self, standings: Sequence[Standing], budget_bytes: int, now: datetime
    ) -> Sequence[Change]:
        """Return what should be done at this time, lifecycle first."""
        changes: list[Change] = []
        left: list[Standing] = []
        for one in standings:
            move = self._due(one, now)
            if move is None:
                left.append(one)
                continue
            if move is not Move.ERASE and one.is_promoted:
                changes.append(Demote(id=one.header.id))
            changes.append(Shift(id=one.header.id, move=move))
        return [*changes, *self._placed(left, budget_bytes, now)]

    def score(
        self,
        standing: Standing,
        now: datetime,
        *,
        similarity: float = 0.0,
        words: float = 0.0,
        most_reads: int = 1,
    ) -> float:
        """Return how much a cube belongs into a prompt.

        Args:
            similarity: cosine to the question; words: BM25 of it, scaled to at most 1.
            most_reads: of any cube.
        """
        header, last = standing.header, standing.last_used()
        age_s = math.inf if last is None else max(0.0, (now - last).total_seconds())
        return float(
            self.similarity * similarity
            + self.words * words
            + self.uses * math.log1p(header.usage.reads) / math.log1p(max(1, most_reads))
            + self.recency * 0.5 ** (age_s / HALF_LIFE_S)
            + self.priority * header.policy.pinned
        )

    def density(self, standing: Standing, now: datetime) -> float:
        """Return seconds saved each second, for each byte."""
        value = standing.header.usage.rate(now) * standing.saved_s / max(1, standing.nbytes)
        return value * (self.hysteresis if standing.is_promoted else 1.0)

    def worth_s(self, standing: Standing, now: datetime) -> float:
        """Return the seconds that keys and values save within the horizon, less their making."""
        saved_s = standing.header.usage.rate(now) * standing.saved_s * self.horizon_s
        return saved_s - (0.0 if standing.is_promoted else standing.promote_s)

    def _due(self, one: Standing, now: datetime) -> Move | None:
        """Return the move that time alone brings about."""
        header, last = one.header, one.last_used()
        policy, state = header.policy, header.state
        if state is State.FROZEN or state is State.ERASED:
            return None
        if state is State.EXPIRED:
            over = policy.expires is not None and policy.is_expired(now)
            is_due = over and now >= moment(policy.expires or "") + timedelta(seconds=GRACE_S)
            return Move.ERASE if is_due else None
        if policy.is_expired(now):
            return Move.EXPIRE
        idle_s = 0.0 if last is None else (now - last).total_seconds()
        is_idle = idle_s > self.archive_after_s and state not in _RESTING
        return Move.ARCHIVE if is_idle and not policy.pinned else None

    def _placed(
        self, standings: Sequence[Standing], budget_bytes: int, now: datetime
    ) -> list[Change]:
        """Return promotions and demotions that give room to what saves most for its bytes."""
        texts = [one for one in standings if one.header.kind is not MemoryKind.PARAMETRIC]
        fixed = [one for one in texts if one.is_fixed]
        room = budget_bytes - sum(one.nbytes for one in fixed if one.is_promoted)
        if room < 0:
            raise BudgetError(
                f"pinned and frozen keys and values take {format_bytes(budget_bytes - room)}; the "
                f"budget is {format_bytes(budget_bytes)} ({format_bytes(-room)} short)",
                way_out="loci cube pin ID --off, or give more bytes",
            )
        free = [one for one in texts if not one.is_fixed and one.header.state not in _RESTING]
        free.sort(key=lambda one: (-self.density(one, now), one.header.id))
        chosen: set[str] = set()
        for one in free:
            if one.nbytes <= room and (one.is_promoted or self.worth_s(one, now) > 0):
                chosen.add(one.header.id)
                room -= one.nbytes
        over = (State.RETIRED, State.EXPIRED, State.ERASED)
        back = [o for o in texts if o.is_promoted and not o.is_fixed and o.header.state not in over]
        down = [Demote(id=o.header.id) for o in back if o.header.id not in chosen]
        up = [Promote(id=o.header.id) for o in free if not o.is_promoted and o.header.id in chosen]
        return [*down, *up]

"""MemOS's schedule: by hand, at its limits, and what any schedule must keep to."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loci.core.arrange import Change, Demote, Promote, Shift, Standing
from loci.core.cube import CubeHeader, MemoryKind, Move, Policy, Provenance, State, Usage
from loci.errors import BudgetError
from loci.methods.recall.memos import DAY_S, GRACE_S, Memos

NOW = datetime(2026, 5, 1, 10, tzinfo=UTC)
TEXT, KEYS = MemoryKind.PLAINTEXT, MemoryKind.ACTIVATION


def cube(
    id: str,
    heat: float = 1.0,
    *,
    kind: MemoryKind = TEXT,
    nbytes: int = 100,
    read_s: float = 2.0,
    load_s: float = 0.5,
    promote_s: float = 0.1,
    idle_s: float = 0.0,
    **more: Any,
) -> Standing:
    last = (NOW - timedelta(seconds=idle_s)).isoformat()
    usage = Usage(reads=math.ceil(heat), last_read=last, heat=heat)
    header = CubeHeader(id=id, kind=kind, usage=usage, **{"state": State.ACTIVE, **more})
    return Standing(header=header, nbytes=nbytes, read_s=read_s, load_s=load_s, promote_s=promote_s)


def after(standings: list[Standing], changes: list[Change]) -> list[Standing]:
    """Carry changes out."""
    found = {one.header.id: one for one in standings}
    for change in changes:
        one = found[change.id]
        if isinstance(change, Shift):
            header = one.header.moved(change.move)
        else:
            kind = KEYS if isinstance(change, Promote) else TEXT
            header = replace(one.header, kind=kind)
        found[change.id] = replace(one, header=header)
    return list(found.values())


def ticked(standings: list[Standing], budget: int, method: Memos | None = None) -> list[Change]:
    return list((method or Memos()).tick(standings, budget, NOW))


def test_what_is_read_most_gets_the_room() -> None:
    cubes = [cube("cold", 1.0), cube("hot", 9.0), cube("warm", 4.0)]
    assert ticked(cubes, 200) == [Promote(id="hot"), Promote(id="warm")]
    assert ticked(cubes, 100) == [Promote(id="hot")]
    assert ticked(cubes, 99) == []


def test_density_counts_bytes_and_seconds() -> None:
    # By hand: equal heat; seconds a byte are 1.5/100, 1.5/50 and 3/300.
    cubes = [cube("a"), cube("b", nbytes=50), cube("c", nbytes=300, read_s=3.5)]
    assert ticked(cubes, 150) == [Promote(id="b"), Promote(id="a")]
    rate = math.log(2) / 43_200
    assert Memos().density(cubes[0], NOW) == pytest.approx(rate * 1.5 / 100)
    assert Memos().density(replace(cubes[0], header=cube("a", kind=KEYS).header), NOW) == (
        pytest.approx(1.25 * rate * 1.5 / 100)
    )


def test_a_promotion_pays_for_itself_or_stays_away() -> None:
    # One read foretells 2 ln 2 a day; 1.39 * 1.5 s saved within a day is 2.08 s.
    assert ticked([cube("a", promote_s=2.0)], 1000) == [Promote(id="a")]
    assert ticked([cube("a", promote_s=2.1)], 1000) == []
    assert ticked([cube("a", promote_s=2.1)], 1000, Memos(horizon_s=2 * DAY_S))
    assert ticked([cube("a", read_s=0.4)], 1000) == []  # loading takes longer than reading
    assert ticked([cube("a", kind=KEYS, promote_s=9.0)], 1000) == []  # made already: it stays


def test_hysteresis_keeps_two_from_taking_turns() -> None:
    there, here = cube("there", 4.0, kind=KEYS), cube("here", 4.9)
    assert ticked([there, here], 100) == []
    assert ticked([there, cube("here", 5.1)], 100) == [Demote(id="there"), Promote(id="here")]
    assert ticked([there, here], 100, Memos(hysteresis=1.0)) != []


def test_time_alone_moves_what_is_idle_or_over() -> None:
    method = Memos()
    idle = {"idle_s": method.archive_after_s + 1}
    assert ticked([cube("a", **idle)], 0) == [Shift(id="a", move=Move.ARCHIVE)]  # type: ignore[arg-type]
    assert ticked([cube("a", kind=KEYS, **idle)], 1000) == [  # type: ignore[arg-type]
        Demote(id="a"),
        Shift(id="a", move=Move.ARCHIVE),
    ]
    assert ticked([cube("a", policy=Policy(pinned=True), **idle)], 0) == []  # type: ignore[arg-type]
    over = Policy(expires=NOW.isoformat())
    assert ticked([cube("a", policy=over)], 0) == [Shift(id="a", move=Move.EXPIRE)]
    assert ticked([cube("a", policy=over, state=State.EXPIRED)], 0) == []
    long_over = Policy(expires=(NOW - timedelta(seconds=GRACE_S)).isoformat())
    gone = cube("a", policy=long_over, state=State.EXPIRED)
    assert ticked([gone], 0) == [Shift(id="a", move=Move.ERASE)]
    frozen = cube("a", policy=long_over, state=State.FROZEN, frozen_from=State.ACTIVE)
    assert ticked([frozen], 0) == []
    made = Provenance(at=(NOW - timedelta(seconds=method.archive_after_s + 1)).isoformat())
    never = CubeHeader(id="a", kind=TEXT, provenance=made)
    standing = Standing(header=never, nbytes=1, read_s=1.0, load_s=0.0, promote_s=0.0)
    assert ticked([standing], 0) == [Shift(id="a", move=Move.ARCHIVE)]


def test_what_is_pinned_has_its_room_first() -> None:
    pinned = cube("p", 0.1, kind=KEYS, policy=Policy(pinned=True))
    assert ticked([pinned, cube("hot", 9.0)], 150) == []
    with pytest.raises(BudgetError, match=r"take 100 B; the budget is 60 B \(40 B short\)"):
        ticked([pinned], 60)


def test_score_by_hand() -> None:
    fresh = cube("a", 3.0, policy=Policy(pinned=True))
    found = Memos().score(fresh, NOW, similarity=1.0, words=0.5, most_reads=3)
    assert found == pytest.approx(0.45 + 0.2 * 0.5 + 0.1 + 0.15 + 0.1)
    old = cube("a", 0.0, idle_s=43_200.0)
    assert Memos().score(old, NOW) == pytest.approx(0.075)
    unknown = Standing(
        header=CubeHeader(id="a", kind=TEXT), nbytes=1, read_s=1.0, load_s=0.0, promote_s=0.0
    )
    assert Memos().score(unknown, NOW) == 0.0


_states = st.sampled_from([State.GENERATED, State.ACTIVE, State.ARCHIVED, State.RETIRED])
_cubes = st.builds(
    cube,
    st.uuids().map(str),
    st.floats(0.0, 50.0),
    kind=st.sampled_from([TEXT, KEYS, MemoryKind.PARAMETRIC]),
    nbytes=st.integers(1, 300),
    read_s=st.floats(0.0, 10.0),
    load_s=st.floats(0.0, 2.0),
    promote_s=st.floats(0.0, 20.0),
    idle_s=st.floats(0.0, 50 * DAY_S),
    state=_states,
    policy=st.builds(
        Policy,
        pinned=st.booleans(),
        expires=st.sampled_from([None, NOW.isoformat(), "2027-01-01T00:00:00+00:00"]),
    ),
)


@given(st.lists(_cubes, max_size=12), st.integers(0, 1500))
def test_any_tick_keeps_to_the_bytes_and_ends(cubes: list[Standing], budget: int) -> None:
    fixed = sum(one.nbytes for one in cubes if one.is_fixed and one.is_promoted)
    try:
        changes = ticked(cubes, budget)
    except BudgetError:
        assert fixed > budget
        return
    done = after(cubes, changes)  # every move is a legal one
    over = (State.RETIRED, State.EXPIRED, State.ERASED)
    held = [o for o in done if o.is_promoted and o.header.state not in over]
    assert sum(one.nbytes for one in held) <= budget
    assert ticked(done, budget) == []
    touched = {change.id for change in changes if not isinstance(change, Shift)}
    assert not [
        o
        for o in cubes
        if o.header.id in touched
        and o.header.policy.pinned
        and (not o.header.policy.is_expired(NOW))
    ]

"""Headers of MemCubes: their states of life and their lineage."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from loci.core.block import Block
from loci.core.cube import (
    ALLOWED,
    MOVES,
    Action,
    Caller,
    CubeHeader,
    MemoryKind,
    Move,
    Policy,
    Sensitivity,
    State,
    descendants,
    expiry,
    permit,
    require,
    strictest,
)
from loci.errors import ParameterError, PolicyError

NOW = datetime(2026, 5, 1, 10, tzinfo=UTC)


def header(id: str = "a", parents: tuple[str, ...] = (), **more: Any) -> CubeHeader:
    if more.get("state") is State.FROZEN:
        more.setdefault("frozen_from", State.ARCHIVED)
    return CubeHeader(id=id, kind=MemoryKind.PLAINTEXT, parents=parents, **more)


@pytest.mark.parametrize("old", list(State))
@pytest.mark.parametrize("new", list(State))
def test_only_allowed_steps_are_taken(old: State, new: State) -> None:
    cube = header(state=old)
    if old is State.FROZEN:
        is_allowed = new is State.ARCHIVED  # where it was frozen from
    else:
        is_allowed = new in ALLOWED[old]
    if is_allowed:
        assert cube.to(new).state is new
        assert cube.to(new).version == cube.version + 1
        assert cube.state is old
    else:
        with pytest.raises(ParameterError, match=f"cube a is {old} and cannot become {new}"):
            cube.to(new)


def test_everything_can_be_erased_and_nothing_comes_back_from_it() -> None:
    assert set(ALLOWED) == set(State)
    held = {State.ERASED, State.FROZEN}  # what is frozen is thawed first
    assert all(State.ERASED in steps for state, steps in ALLOWED.items() if state not in held)
    assert not ALLOWED[State.ERASED]
    assert all(state not in steps for state, steps in ALLOWED.items())


def test_lineage_is_followed_through_every_generation() -> None:
    family = [header("fact"), header("kv", ("fact",)), header("adapter", ("kv", "other"))]
    assert descendants(["fact"], family) == {"kv", "adapter"}
    assert descendants(["adapter"], family) == set()
    assert descendants(["unknown"], family) == set()


def test_a_circle_ends() -> None:
    assert descendants(["a"], [header("a", ("b",)), header("b", ("a",))]) == {"a", "b"}


@given(st.lists(st.lists(st.integers(0, 11), max_size=3), min_size=1, max_size=12))
def test_descendants_are_the_fixed_point(parents: list[list[int]]) -> None:
    # Parents come before their children, so one pass in order finds the same set.
    family = [
        header(str(i), tuple(str(p) for p in set(up) if p < i)) for i, up in enumerate(parents)
    ]
    expected = {"0"}
    for cube in family:
        if expected & set(cube.parents):
            expected.add(cube.id)
    assert descendants(["0"], reversed(family)) == expected - {"0"}


def test_a_block_is_named_bytes() -> None:
    block = Block(name="layer.3", kind="weights", nbytes=10)
    assert (block.codec, block.checksum) == ("raw", None)


class Life(RuleBasedStateMachine):
    """Random moves: a cube follows the table or refuses, and a frozen one never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.cube = header()

    @rule(move=st.sampled_from(list(Move)))
    def step(self, move: Move) -> None:
        before = self.cube
        try:
            self.cube = before.moved(move)
        except ParameterError as error:
            assert f"cube a is {before.state}" in str(error)
            assert self.cube is before
            return
        state = self.cube.state
        if before.state is State.FROZEN:
            thawed = move is Move.UNFREEZE and state is before.frozen_from
            assert thawed or self.cube is before
        elif self.cube is not before:
            assert MOVES[before.state, move] is state
            assert self.cube.version == before.version + 1

    @rule(state=st.sampled_from(list(State)))
    def jump(self, state: State) -> None:
        before = self.cube
        try:
            self.cube = before.to(state)
        except ParameterError:
            return
        assert state in ALLOWED[before.state]
        assert before.state is not State.FROZEN or state is before.frozen_from

    @rule(hours=st.integers(0, 100))
    def read(self, hours: int) -> None:
        before = self.cube
        try:
            self.cube = before.used(NOW + timedelta(hours=hours))
        except ParameterError:
            assert before.state in (State.RETIRED, State.EXPIRED, State.ERASED)
            return
        assert self.cube.usage.reads == before.usage.reads + 1
        if before.state is State.FROZEN:
            assert replace(self.cube, usage=before.usage) == before

    @invariant()
    def is_legal(self) -> None:
        assert (self.cube.state is State.FROZEN) == (self.cube.frozen_from is not None)
        assert self.cube.frozen_from not in (State.FROZEN, State.EXPIRED, State.ERASED)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def test_a_hundred_thousand_moves_leave_the_table_nowhere() -> None:
    import random

    draw, cube, taken = random.Random(0), header(), 0
    for _ in range(100_000):
        move = draw.choice(list(Move))
        try:
            after = cube.moved(move)
        except ParameterError:
            continue
        assert cube.state is not State.FROZEN or after is cube or after.state is cube.frozen_from
        taken += after is not cube
        cube = header() if after.state in (State.ERASED, State.EXPIRED) else after
    assert taken > 10_000


def test_a_frozen_cube_says_where_it_goes_back_to() -> None:
    with pytest.raises(ParameterError, match="names the state it goes back to"):
        CubeHeader(id="a", kind=MemoryKind.PLAINTEXT, state=State.FROZEN)
    with pytest.raises(ParameterError, match="another none"):
        header(frozen_from=State.ACTIVE)
    with pytest.raises(PolicyError, match="cube a is frozen"):
        header(state=State.FROZEN).check_unfrozen()


@pytest.mark.parametrize("bad", ["tomorrow", "2026-05-01", "2026-05-01T10:00:00"])
def test_a_time_without_a_zone_is_refused(bad: str) -> None:
    with pytest.raises(ParameterError, match="no time with a zone"):
        Policy(expires=bad)


def test_a_time_to_live_is_above_nothing() -> None:
    assert expiry(NOW, 60) == "2026-05-01T10:01:00+00:00"
    for bad in (0, -1, float("nan"), 1e300):
        with pytest.raises(ParameterError):
            expiry(NOW, bad)


def test_sensitivity_is_one_of_four_and_the_strictest_counts() -> None:
    with pytest.raises(ParameterError, match="no such sensitivity"):
        Policy(sensitivity="hush")  # type: ignore[arg-type]
    some = [Policy(sensitivity=one) for one in (Sensitivity.PUBLIC, Sensitivity.PRIVATE)]
    assert strictest(some) is Sensitivity.PRIVATE
    assert strictest([]) is Sensitivity.NORMAL


ADA = Caller(user="ada")
HERS = Policy(owner="ada", readers=("bob",), writers=("eve",))


@pytest.mark.parametrize(
    ("caller", "policy", "action", "rule"),
    [
        (ADA, HERS, Action.SHARE, "owner"),
        (Caller(user="bob"), HERS, Action.READ, "reader"),
        (Caller(user="bob"), HERS, Action.WRITE, "no grant"),
        (Caller(user="eve"), HERS, Action.WRITE, "writer"),
        (Caller(user="eve"), HERS, Action.SHARE, "no grant"),
        (Caller(user="eve"), HERS, Action.ERASE, "no grant"),
        (ADA, replace(HERS, expires=NOW.isoformat()), Action.ERASE, "owner"),
        (Caller(), HERS, Action.READ, "no grant"),
        (Caller(), Policy(), Action.WRITE, "open to its tenant"),
        (Caller(tenant="other", user="ada"), HERS, Action.READ, "another tenant"),
        (ADA, replace(HERS, expires=NOW.isoformat()), Action.READ, "expired"),
        (ADA, replace(HERS, purposes=("tax",)), Action.READ, "another purpose"),
        (replace(ADA, purpose="tax"), replace(HERS, purposes=("tax",)), Action.READ, "owner"),
        (ADA, replace(HERS, purposes=("tax",)), Action.WRITE, "owner"),
        (
            replace(ADA, clearance=Sensitivity.NORMAL),
            replace(HERS, sensitivity=Sensitivity.SECRET),
            Action.READ,
            "sensitivity above clearance",
        ),
    ],
)
def test_the_rules_by_hand(caller: Caller, policy: Policy, action: Action, rule: str) -> None:
    cube = header(policy=policy)
    decision = permit(caller, cube, action, NOW)
    allowing = ("owner", "reader", "writer", "open to its tenant")
    assert (decision.rule, decision.is_allowed) == (rule, rule in allowing)
    if not decision.is_allowed:
        with pytest.raises(PolicyError, match=f"denied by the rule: {rule}"):
            require(caller, cube, action, NOW)


def test_what_is_frozen_is_read_and_not_written() -> None:
    cube = header(state=State.FROZEN, policy=HERS)
    assert permit(ADA, cube, Action.READ, NOW).is_allowed
    for action in (Action.WRITE, Action.ERASE):
        assert permit(ADA, cube, action, NOW).rule == "frozen"


_names = st.sampled_from(["ada", "bob", "eve", None])
_policies = st.builds(
    Policy,
    scope=st.sampled_from(["local", "t1", "t2"]),
    owner=_names,
    readers=st.lists(st.sampled_from(["ada", "bob"])).map(tuple),
    writers=st.lists(st.sampled_from(["ada", "bob"])).map(tuple),
    purposes=st.lists(st.sampled_from(["tax", "cook"])).map(tuple),
    expires=st.sampled_from([None, NOW.isoformat(), (NOW + timedelta(days=1)).isoformat()]),
    sensitivity=st.sampled_from(list(Sensitivity)),
)
_callers = st.builds(
    Caller,
    tenant=st.sampled_from(["local", "t1", "t2"]),
    user=_names,
    clearance=st.sampled_from(list(Sensitivity)),
    purpose=st.sampled_from([None, "tax", "cook"]),
)


@given(_callers, _policies, st.sampled_from(list(State)), st.sampled_from(list(Action)))
def test_no_grant_beats_a_denial(
    caller: Caller, policy: Policy, state: State, action: Action
) -> None:
    decision = permit(caller, header(state=state, policy=policy), action, NOW)
    if decision.is_allowed:
        assert caller.tenant == policy.scope
        assert state is not State.ERASED
        assert action is Action.ERASE or state is not State.EXPIRED
        assert action is Action.ERASE or not policy.is_expired(NOW)
        assert policy.sensitivity.rank <= caller.clearance.rank
        assert action is not Action.READ or policy.serves(caller.purpose)
        named = {policy.owner, *policy.readers, *policy.writers}
        assert policy.owner is None or caller.user in named

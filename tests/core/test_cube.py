"""Headers of MemCubes: their states of life and their lineage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loci.core.block import Block
from loci.core.cube import ALLOWED, CubeHeader, MemoryKind, State, descendants
from loci.errors import ParameterError


def header(id: str = "a", parents: tuple[str, ...] = (), **more: object) -> CubeHeader:
    return CubeHeader(id=id, kind=MemoryKind.PLAINTEXT, parents=parents, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("old", list(State))
@pytest.mark.parametrize("new", list(State))
def test_only_allowed_steps_are_taken(old: State, new: State) -> None:
    cube = header(state=old)
    if new in ALLOWED[old]:
        assert cube.to(new).state is new
        assert cube.to(new).version == cube.version + 1
        assert cube.state is old
    else:
        with pytest.raises(ParameterError, match=f"cube a is {old} and cannot become {new}"):
            cube.to(new)


def test_everything_can_be_erased_and_nothing_comes_back_from_it() -> None:
    assert set(ALLOWED) == set(State)
    assert all(State.ERASED in steps for state, steps in ALLOWED.items() if state != State.ERASED)
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

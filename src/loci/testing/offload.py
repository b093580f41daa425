"""What every offload method must pass.

def test_conformance():
    for method in catalogue.all_methods("offload"):
        offload.check(method())
"""

from __future__ import annotations

from collections.abc import Sequence

from loci.errors import BudgetError
from loci.methods.offload.base import Offload, Placement, page_bytes

Blocks = Sequence[tuple[str, int]]


def small_model(layers: int = 6, layer: int = 10_000, tiles: int = 3, tile: int = 7_000) -> Blocks:
    """Return the blocks of a small model: layers, a norm, tiles of an embedding."""
    return [
        *((f"layer.{index}", layer + 512 * (index % 2)) for index in range(layers)),
        ("norm", 300),
        *((f"embed.{index}", tile) for index in range(tiles)),
        ("table", 50_000),  # read row by row, never whole
    ]


def uses_of(blocks: Blocks) -> list[str]:
    """Return the blocks one token needs whole."""
    return [name for name, _ in blocks if name != "table"]


def check_placement(placed: Placement, blocks: Blocks, uses: Sequence[str], budget: int) -> None:
    """Raise AssertionError unless every block is in one place and the bytes are right."""
    size = {name: page_bytes(nbytes) for name, nbytes in blocks}
    everywhere = [*placed.pinned, *placed.streamed, *placed.left]
    assert sorted(everywhere) == sorted(size), "a block is missing or in two places"
    assert set(placed.pinned) | set(placed.streamed) == set(uses), "a token's block is left"
    for group in (placed.pinned, placed.streamed):
        assert list(group) == [name for name in dict.fromkeys(uses) if name in group], "order"
    assert placed.pinned_bytes == sum(size[name] for name in placed.pinned)
    assert placed.moved_bytes == sum(size[name] for name in uses if name in placed.streamed)
    largest = max((size[name] for name in placed.streamed), default=0)
    assert placed.ring_bytes == placed.window_blocks * largest, "the ring holds any streamed block"
    assert (placed.window_blocks == 0) == (not placed.streamed)
    assert placed.held_bytes <= budget, "more than the budget"
    assert Placement.from_json(placed.to_json()) == placed


def check(method: Offload) -> None:
    """Raise AssertionError unless the method keeps the rules of `Offload`."""
    for blocks in (small_model(), small_model(1, tiles=1), small_model(9, 4096, 2, 60_000)):
        uses = uses_of(blocks)
        whole = sum(page_bytes(nbytes) for name, nbytes in blocks if name in uses)
        everything = method.place(blocks, uses, whole)
        check_placement(everything, blocks, uses, whole)
        assert not everything.streamed and everything.moved_bytes == 0, "what fits stays"
        least = method.least_bytes(blocks, uses)
        check_placement(method.place(blocks, uses, least), blocks, uses, least)
        before: Placement | None = None
        for budget in range(0, whole + 4096, 1500):
            try:
                placed = method.place(blocks, uses, budget)
            except BudgetError as error:
                assert before is None, "a larger budget was refused"
                assert "short" in str(error) and budget < least
                continue
            check_placement(placed, blocks, uses, budget)
            assert method.place(blocks, uses, budget) == placed
            if before is not None:
                assert placed.moved_bytes <= before.moved_bytes, "more budget, more reads"
            _check_pace(method, placed, uses, whole)
            before = placed
        assert before is not None
    assert_refused(method)


def assert_refused(method: Offload) -> None:
    """Raise AssertionError unless a budget of nothing is refused."""
    blocks = small_model()
    try:
        method.place(blocks, uses_of(blocks), 0)
    except BudgetError:
        return
    raise AssertionError("a placement in no bytes at all")


def _check_pace(method: Offload, placed: Placement, uses: Sequence[str], whole: int) -> None:
    """A token takes at least its computing and its loading, at most both after each other."""
    compute = {name: 1.0 + index % 3 for index, name in enumerate(uses)}
    for load in (0.0, 0.1, 1.5, 40.0):
        loads = dict.fromkeys(placed.streamed, load)
        computing, loading = sum(compute.values()), load * len(placed.streamed)
        pace = method.pace(placed, uses, compute, loads)
        assert pace >= max(computing, loading) - 1e-9, "faster than its work"
        assert pace <= computing + loading + 1e-9, "slower than one after the other"

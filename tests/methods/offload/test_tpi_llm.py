"""The sliding window against its conditions, by hand."""

from __future__ import annotations

import pytest

from loci.core.spec import ModelSpec, Workload
from loci.errors import BudgetError, FormatError, ParameterError
from loci.methods import catalogue
from loci.methods.offload.base import PAGE, Placement
from loci.methods.offload.tpi_llm import TpiLlm
from loci.testing import offload


@pytest.mark.parametrize("method", catalogue.all_methods("offload"), ids=lambda c: c.about.name)
def test_conformance(method: type) -> None:
    offload.check(method())


def test_conformance_of_a_wider_window() -> None:
    offload.check(TpiLlm(window=4))


def _blocks(count: int, nbytes: int = PAGE) -> list[tuple[str, int]]:
    return [(f"layer.{index}", nbytes) for index in range(count)]


def _paper_example(window: int) -> float:
    """Milliseconds per layer with t = 11 and 17, all-reduce 14, loads 18 and 30 (the paper's)."""
    uses = [name for layer in range(32) for name in (f"attn.{layer}", f"ffn.{layer}")]
    method = TpiLlm(window=window)
    placed = method.place([(name, PAGE) for name in uses], uses, window * PAGE)
    compute = {name: 11.0 + 14 if name.startswith("attn") else 17.0 + 14 for name in uses}
    load = {name: 18.0 if name.startswith("attn") else 30.0 for name in uses}
    return method.pace(placed, uses, compute, load) / 32


def test_the_papers_loose_condition_hides_all_loading_with_four_buffers() -> None:
    # 11 + 17 + 2 * 14 = 56 >= 18 + 30: loose holds. 11 + 14 < 30: tight does not.
    assert _paper_example(window=4) == pytest.approx(56)
    assert _paper_example(window=2) > 56


def test_a_slow_disk_sets_the_pace() -> None:
    blocks = _blocks(6)
    uses = [name for name, _ in blocks]
    placed = TpiLlm().place(blocks, uses, 2 * PAGE)
    slow, fast = dict.fromkeys(uses, 5.0), dict.fromkeys(uses, 1.0)
    assert TpiLlm().pace(placed, uses, fast, slow) == pytest.approx(30)
    assert TpiLlm().pace(placed, uses, slow, fast) == pytest.approx(30)
    assert TpiLlm().pace(placed, uses, slow, slow) == pytest.approx(30)


def test_pins_what_fits_beside_the_ring_and_spreads_it() -> None:
    blocks = _blocks(8)
    uses = [name for name, _ in blocks]
    placed = TpiLlm().place(blocks, uses, 4 * PAGE)
    assert placed.pinned == ("layer.0", "layer.4")
    assert placed.window_blocks == 2 and placed.ring_bytes == 2 * PAGE
    assert placed.moved_bytes == 6 * PAGE


def test_spread_pins_hide_more_than_neighbouring_ones() -> None:
    blocks = _blocks(8)
    uses = [name for name, _ in blocks]
    spread = TpiLlm().place(blocks, uses, 6 * PAGE)
    together = Placement(
        pinned=tuple(uses[:4]),
        streamed=tuple(uses[4:]),
        window_blocks=2,
        ring_bytes=2 * PAGE,
        pinned_bytes=4 * PAGE,
        moved_bytes=4 * PAGE,
    )
    compute, load = dict.fromkeys(uses, 1.0), dict.fromkeys(uses, 2.0)
    assert len(spread.pinned) == 4
    assert TpiLlm().pace(spread, uses, compute, load) == pytest.approx(8)
    assert TpiLlm().pace(together, uses, compute, load) > 8


def test_a_giant_block_is_pinned_so_that_the_ring_stays_small() -> None:
    blocks = [*_blocks(4), ("head.0", 10 * PAGE)]
    uses = [name for name, _ in blocks]
    assert TpiLlm().least_bytes(blocks, uses) == 12 * PAGE
    assert TpiLlm().place(blocks, uses, 12 * PAGE).pinned == ("head.0",)


def test_too_small_a_budget_is_refused_with_the_gap() -> None:
    blocks = _blocks(8, 1000)
    with pytest.raises(BudgetError, match=r"needs 8\.0 KiB.*gives 7\.0 KiB \(1\.0 KiB short\)"):
        TpiLlm().place(blocks, [name for name, _ in blocks], 7 * 1024)


def test_a_use_without_its_block_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"got 'layer\.9'"):
        TpiLlm().place(_blocks(2), ["layer.9"], 10**6)
    with pytest.raises(ParameterError, match="window must be >= 2"):
        TpiLlm(window=1)


def test_a_placement_with_unknown_fields_is_refused() -> None:
    with pytest.raises(FormatError, match="no placement"):
        Placement.from_json({"pinned": [], "streamed": [], "rows": 3})


def test_predicts_from_sizes_alone() -> None:
    spec = ModelSpec(
        name="small",
        layers=4,
        hidden=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        ffn=128,
        vocab=256,
        max_context=512,
    )
    load = Workload(context=64)
    plenty = TpiLlm().predict(spec, load, 10**7)
    tight = TpiLlm().predict(spec, load, 200_000)
    assert plenty.moved["disk", "dram"] == 0
    assert tight.held["dram"] <= 200_000 and tight.moved["disk", "dram"] > 0

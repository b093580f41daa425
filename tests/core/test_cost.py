"""Costs add; what is unknown stays unknown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loci.core.cost import Cost, Op, OpGraph

COSTS = st.builds(
    Cost,
    held=st.dictionaries(st.sampled_from(["gpu", "dram", "disk"]), st.integers(0, 2**40)),
    moved=st.dictionaries(
        st.tuples(st.sampled_from(["disk", "dram"]), st.sampled_from(["dram", "gpu"])),
        st.integers(0, 2**40),
    ),
    operations=st.integers(0, 2**40),
    seconds_per_token=st.integers(0, 100),
    prefill_s=st.integers(0, 100),
    loss=st.one_of(st.none(), st.integers(0, 100)),
)


@given(COSTS, COSTS, COSTS)
def test_adding_costs_is_addition(a: Cost, b: Cost, c: Cost) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Cost() == a


@given(COSTS, COSTS)
def test_an_unknown_loss_makes_the_sum_unknown(a: Cost, b: Cost) -> None:
    assert ((a + b).loss is None) == (a.loss is None or b.loss is None)


def test_bytes_add_tier_by_tier() -> None:
    both = Cost(held={"dram": 3}, freed={"gpu": 1}) + Cost(held={"dram": 4, "gpu": 5})
    assert both.held == {"dram": 7, "gpu": 5}
    assert both.freed == {"gpu": 1}


def test_totals_count_repeats() -> None:
    graph = OpGraph(
        ops=(
            Op(name="q", operations=10, read_bytes=4, write_bytes=1, repeat=3),
            Op(name="head", operations=5, read_bytes=2),
        )
    )
    total = graph.totals()
    assert (total.operations, total.read_bytes, total.write_bytes) == (35, 14, 3)
    assert total.nbytes == 17

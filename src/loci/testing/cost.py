"""What every cost model must pass.

def test_conformance():
    for method in catalogue.all_methods("cost"):
        cost.check(method())
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from loci.core.cost import Op, OpGraph
from loci.core.spec import ModelSpec
from loci.methods.cost.base import CostModel, graph_of


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast a tier is read."""

    read_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class PaperMachine:
    """A machine on paper."""

    tiers: Mapping[str, Rate]
    rates: Mapping[str, float] = field(default_factory=dict)
    launch_s: float = 0.0
    starts: Mapping[str, float] = field(default_factory=dict)


def machine(bandwidth: float = 1e9, peak: float = 1e10, disk: float = 1e8) -> PaperMachine:
    """Return a machine whose memory tiers share one bandwidth and whose formats one peak."""
    return PaperMachine(
        tiers={
            "dram": Rate(read_bytes_per_s=bandwidth),
            "gpu": Rate(read_bytes_per_s=bandwidth),
            "disk": Rate(read_bytes_per_s=disk),
        },
        rates={"float32": peak, "bfloat16": peak, "int8": 2 * peak},
    )


SMALL = ModelSpec(
    name="small",
    layers=2,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn=128,
    vocab=256,
    max_context=512,
)


def check(method: CostModel) -> None:
    """Raise AssertionError unless a cost model behaves like time on a machine."""
    place = machine()

    def seconds(work: OpGraph, on: PaperMachine = place) -> float:
        cost = method.estimate(work, on)
        assert method.estimate(work, on) == cost, "the same work has two costs"
        return cost.seconds_per_token

    decode = graph_of(SMALL, "decode", tokens=1, keys=64)
    prefill = graph_of(SMALL, "prefill", tokens=64, keys=64)
    assert seconds(OpGraph(ops=())) == 0
    assert 0 < seconds(decode) < seconds(prefill) < 64 * seconds(decode)
    assert method.estimate(decode, place).operations == decode.totals().operations
    faster = replace(place, rates={k: 10 * v for k, v in place.rates.items()})
    wider = replace(
        place,
        tiers={k: Rate(read_bytes_per_s=10 * v.read_bytes_per_s) for k, v in place.tiers.items()},
    )
    for better in (faster, wider):
        assert seconds(decode, better) <= seconds(decode)
        assert seconds(prefill, better) <= seconds(prefill)
    more = graph_of(SMALL, "decode", tokens=1, keys=512)
    assert seconds(more) > seconds(decode), "more keys take no longer"
    again = OpGraph(ops=(*decode.ops, Op(name="extra", operations=1e6, read_bytes=1e6)))
    assert seconds(again) > seconds(decode), "more work takes no longer"

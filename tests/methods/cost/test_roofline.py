"""The roofline against paper and pencil."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loci.core.cost import Op, OpGraph
from loci.core.spec import ModelSpec
from loci.errors import ModelError
from loci.methods import catalogue
from loci.methods.cost.base import causal_scores, graph_of
from loci.methods.cost.roofline import Roofline
from loci.testing import cost

LLAMA_2_7B = ModelSpec(
    name="llama-2-7b",
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=32,
    head_dim=128,
    ffn=11008,
    vocab=32000,
    max_context=4096,
    tied=False,
)
SMOLLM2 = ModelSpec(
    name="smollm2",
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    ffn=1536,
    vocab=49152,
    max_context=8192,
    weight_bits=5,
    embed_bits=8.5,
)
A6000 = cost.machine(bandwidth=768e9, peak=154.8e12)


@pytest.mark.parametrize("method", catalogue.all_methods("cost"), ids=lambda c: c.about.name)
def test_conformance(method: type) -> None:
    cost.check(method())


def _op(graph: OpGraph, name: str) -> Op:
    return next(op for op in graph.ops if op.name == name)


def _sixteen_bit(phase: str) -> OpGraph:
    return graph_of(
        LLAMA_2_7B,
        phase,  # type: ignore[arg-type]
        tokens=2048,
        keys=2048,
        kv_bytes_per_element=2,
        act_bytes=2,
        rate="bfloat16",
    )


def test_prefill_of_a_linear_layer_waits_for_arithmetic() -> None:
    # 2 * 2048 * 4096 * 4096 operations; weights 2 * 4096^2 bytes, in and out 2 * 2048 * 4096 each.
    q_proj = _op(_sixteen_bit("prefill"), "q_proj")
    assert q_proj.operations == 68_719_476_736
    assert q_proj.nbytes == 33_554_432 + 16_777_216 + 16_777_216
    assert q_proj.operations / q_proj.nbytes == 1024
    seconds, bound = Roofline().time(q_proj, A6000)
    assert bound == "compute" and seconds == pytest.approx(68_719_476_736 / 154.8e12)
    assert Roofline().attainable(q_proj, A6000) == 154.8e12
    assert _op(_sixteen_bit("prefill"), "k_proj").parts["kv_write"] == 16_777_216


def test_decode_of_a_linear_layer_waits_for_its_weights() -> None:
    q_proj = _op(_sixteen_bit("decode"), "q_proj")
    assert q_proj.operations == 33_554_432
    assert q_proj.nbytes == 33_554_432 + 2 * 8192
    seconds, bound = Roofline().time(q_proj, A6000)
    assert bound == "memory" and seconds == pytest.approx(33_570_816 / 768e9)
    assert Roofline().attainable(q_proj, A6000) == pytest.approx(768e9, rel=1e-3)


def test_a_norm_takes_seven_operations_an_element() -> None:
    norm = _op(_sixteen_bit("prefill"), "input_norm")
    assert norm.operations == 7 * 2048 * 4096
    assert norm.nbytes == 2 * 2 * 2048 * 4096


def test_attention_counts_only_the_pairs_it_computes() -> None:
    assert causal_scores(3, 3) == 6
    assert causal_scores(2, 5) == 4 + 5
    assert causal_scores(1, 7) == 7
    assert causal_scores(3, 5, window=4) == 3 + 4 + 4
    assert causal_scores(5, 5, window=2) == 1 + 2 + 2 + 2 + 2
    attention = _op(graph_of(SMOLLM2, "prefill", tokens=4, keys=4), "attention")
    assert attention.operations == 10 * 9 * (4 * 64 + 5)


def test_attention_reads_kv_once_per_kv_head() -> None:
    attention = _op(graph_of(SMOLLM2, "decode", tokens=1, keys=100), "attention")
    assert attention.parts["kv_read"] == 2 * 100 * 3 * 64 * 4


def test_the_whole_model_adds_up_for_smollm2() -> None:
    graph = graph_of(SMOLLM2, "decode", tokens=1, keys=1)
    weights = sum(op.parts.get("weight", 0) * op.repeat for op in graph.ops)
    assert weights == SMOLLM2.linear_elements() * 5 / 8 + 49152 * 576 * 8.5 / 8
    head = _op(graph, "head")
    assert head.operations * head.repeat / graph.totals().operations == pytest.approx(
        0.21, abs=0.01
    )
    kv = sum(op.parts.get("kv_write", 0) * op.repeat for op in graph.ops)
    assert kv == 46_080  # bytes of one token in float32


def test_each_pass_of_a_prefill_reads_the_weights_again() -> None:
    whole = graph_of(SMOLLM2, "prefill", tokens=256, keys=256)
    parts = graph_of(SMOLLM2, "prefill", tokens=256, keys=256, chunk=64)
    assert _op(parts, "q_proj").parts["weight"] == 4 * _op(whole, "q_proj").parts["weight"]
    assert _op(parts, "q_proj").operations == _op(whole, "q_proj").operations
    # Codes become floats again in each: two operations for each of a layer's weights.
    layer = 2 * 576 * 576 + 2 * 192 * 576 + 3 * 576 * 1536
    assert _op(whole, "unpack").operations == 2 * layer
    assert _op(parts, "unpack").operations == 4 * 2 * layer


def test_what_has_a_speed_of_its_own_takes_it() -> None:
    decode = graph_of(SMOLLM2, "decode", tokens=1, keys=100)
    prefill = graph_of(SMOLLM2, "prefill", tokens=100, keys=100)
    assert [_op(decode, n).rate for n in ("q_proj", "head", "attention", "input_norm")] == [
        "float32/product4",
        "float32/product8",
        "float32/attend",
        "float32",
    ]
    assert [_op(prefill, n).rate for n in ("q_proj", "head", "attention", "unpack")] == [
        "float32/gemm",
        "float32/product8",
        "float32/attend_many",
        "float32/unpack",
    ]
    assert "unpack" not in {op.name for op in decode.ops}
    half = ModelSpec(**{**SMOLLM2.to_json(), "weight_bits": 16, "rope_scaling": ()})
    assert "unpack" in {op.name for op in graph_of(half, "decode", tokens=1, keys=1).ops}
    place = cost.machine(bandwidth=1e12, peak=1000.0)
    slow = replace(place, rates={**place.rates, "float32/attend": 10.0})
    attend = Op(name="attention", operations=100, read_bytes=1, rate="float32/attend")
    assert Roofline().time(attend, place)[0] == pytest.approx(0.1)  # the peak of its format
    assert Roofline().time(attend, slow)[0] == pytest.approx(10.0)


def test_decoding_from_codes_reads_codes_and_then_floats() -> None:
    graph = graph_of(SMOLLM2, "decode", tokens=1, keys=10, kv_bytes_per_element=1.0, decoded=True)
    assert _op(graph, "decode_kv").parts["kv_read"] == 2 * 10 * 192
    assert _op(graph, "attention").parts["kv_read"] == 2 * 10 * 192 * 4


def test_two_operators_by_hand() -> None:
    place = cost.machine(bandwidth=100.0, peak=1000.0)
    graph = OpGraph(
        ops=(
            Op(name="a", operations=500, read_bytes=100, write_bytes=100),  # 2 s of memory
            Op(name="b", operations=4000, read_bytes=100, repeat=3),  # 4 s of arithmetic each
        )
    )
    estimate = Roofline().estimate(graph, place)
    assert estimate.seconds_per_token == pytest.approx(2 + 3 * 4)
    assert estimate.operations == 12_500


def test_what_nobody_knows_is_refused() -> None:
    graph = graph_of(SMOLLM2, "decode", tokens=1, keys=1, rate="float8")
    with pytest.raises(ModelError, match="no rate for float8"):
        Roofline().estimate(graph, A6000)
    no_tiers = cost.PaperMachine(tiers={}, rates={"float32": 1.0})
    with pytest.raises(ModelError, match="no tier 'gpu'"):
        Roofline(tier="gpu").estimate(graph_of(SMOLLM2, "decode", tokens=1, keys=1), no_tiers)
    strange = ModelSpec(**{**SMOLLM2.to_json(), "architecture": "mamba", "rope_scaling": ()})
    with pytest.raises(ModelError, match="no cost model"):
        graph_of(strange, "decode", tokens=1, keys=1)

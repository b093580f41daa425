"""Models and work as arithmetic, checked on paper."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loci.core.spec import ModelSpec, Workload
from loci.errors import ParameterError

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
)


def small(**changes: object) -> ModelSpec:
    sizes: dict[str, object] = {
        "name": "small",
        "layers": 2,
        "hidden": 8,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 2,
        "ffn": 16,
        "vocab": 10,
        "max_context": 32,
    }
    return ModelSpec(**(sizes | changes))  # type: ignore[arg-type]


def test_counts_the_parameters_of_a_known_model() -> None:
    assert SMOLLM2.elements() == 134_515_008  # as its model card says: 134.5 million


def test_counts_a_small_model_by_hand() -> None:
    spec = small()
    # q 8x8, k and v 4x8, o 8x8, three of 16x8.
    assert spec.linear_elements() == 2 * (64 + 32 + 32 + 64 + 3 * 128)
    assert spec.elements() == spec.linear_elements() + 10 * 8 + 2 * 16 + 8
    assert small(tied=False).elements() == spec.elements() + 80
    assert small(qk_norm=True).elements() == spec.elements() + 2 * 4
    assert small(attention_bias=True).elements() == spec.elements() + 2 * (8 + 4 + 4)
    assert spec.full_bytes() == 2 * spec.elements()


def test_counts_the_cache_of_a_known_model() -> None:
    assert SMOLLM2.kv_elements_per_token() == 2 * 30 * 3 * 64
    assert SMOLLM2.kv_bytes(1) == 23_040
    assert SMOLLM2.kv_bytes(8192, 4) == 2 * SMOLLM2.kv_bytes(8192)
    assert SMOLLM2.groups == 3


@pytest.mark.parametrize("name", ["layers", "hidden", "heads", "kv_heads", "vocab", "max_context"])
def test_refuses_a_size_below_one(name: str) -> None:
    with pytest.raises(ParameterError, match=rf"model\.{name} must be >= 1; got 0"):
        small(**{name: 0})


def test_query_heads_share_kv_heads_evenly() -> None:
    with pytest.raises(ParameterError, match="multiple of KV heads"):
        small(heads=3)


@given(
    st.dictionaries(st.sampled_from(["factor", "low", "high"]), st.floats(1, 64)),
    st.one_of(st.none(), st.integers(1, 4096)),
    st.booleans(),
)
def test_comes_back_from_json(scaling: dict[str, float], window: int | None, tied: bool) -> None:
    spec = small(rope_scaling=tuple(sorted(scaling.items())), window=window, tied=tied)
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ParameterError, match="no model spec"):
        ModelSpec.from_json(SMOLLM2.to_json() | {"experts": 8})


def test_the_layout_hash_follows_shape_and_nothing_else() -> None:
    spec = small()
    assert spec.layout_hash() == small(name="other", tokenizer_bytes=9).layout_hash()
    assert spec.layout_hash() == spec.with_fingerprint("blake2b:1").layout_hash()
    assert spec.layout_hash() != small(rope_theta=5e5).layout_hash()


def test_work_states_its_limits() -> None:
    assert Workload(context=8).new_tokens == 256
    for name in ("context", "new_tokens", "batch"):
        with pytest.raises(ParameterError, match=rf"workload\.{name} must be >= 1"):
            Workload(**({"context": 8} | {name: 0}))
    with pytest.raises(ParameterError, match="allowed: 0 to 8"):
        Workload(context=8, prompt_tokens=9)

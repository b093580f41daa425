"""Methods as values: declared parameters, text, schema, refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loci.core.method import (
    About,
    Frees,
    Granularity,
    Kind,
    Method,
    Param,
    make,
    parse_call,
    split_chain,
)
from loci.core.spec import ModelSpec, Workload
from loci.errors import ParameterError


@dataclass(frozen=True, kw_only=True)
class Toy(Method):
    """A method with a parameter of every sort."""

    about = About(name="toy", kind=Kind.KV, paper="arXiv:0000.00000", idea="none")

    window: Annotated[int, Param(help="tokens that vote", unit="tokens", ge=1, le=64)] = 8
    kernel: Annotated[int, Param(help="width", ge=1, odd=True)] = 5
    sort: Annotated[str, Param(help="order", choices=("none", "weights"))] = "none"
    rate: Annotated[float, Param(help="a share", ge=0, le=1)] = 0.5
    limit: Annotated[int | None, Param(help="an end", ge=1)] = None
    strict: Annotated[bool, Param(help="a switch")] = False
    layers: Annotated[tuple[int, ...], Param(help="which")] = ()


def test_prints_only_what_differs_from_the_defaults() -> None:
    assert str(Toy()) == "toy"
    assert str(Toy(window=4, sort="weights")) == "toy(window=4, sort=weights)"


@given(
    st.integers(1, 64),
    st.sampled_from(["none", "weights"]),
    st.floats(0, 1),
    st.one_of(st.none(), st.integers(1, 100)),
    st.booleans(),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
)
def test_text_and_back(
    window: int, sort: str, rate: float, limit: int | None, strict: bool, layers: tuple[int, ...]
) -> None:
    toy = Toy(window=window, sort=sort, rate=rate, limit=limit, strict=strict, layers=layers)
    name, arguments = parse_call(str(toy))
    assert name == "toy"
    assert make(Toy, arguments) == toy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, r"toy\.window must be >= 1 and <= 64 tokens; got 0"),
        ({"window": 65}, r"toy\.window must be >= 1 and <= 64 tokens; got 65"),
        ({"window": 1.5}, r"toy\.window must be a whole number; got 1.5"),
        ({"window": True}, r"toy\.window must be a whole number; got True"),
        ({"kernel": 4}, r"toy\.kernel must be >= 1 and odd; got 4"),
        ({"sort": "size"}, r"toy\.sort must be one of none, weights; got 'size'"),
        ({"rate": float("nan")}, r"toy\.rate must be >= 0 and <= 1; got nan"),
        ({"limit": 0}, r"toy\.limit must be >= 1; got 0"),
        ({"limit": "x"}, r"toy\.limit must be a whole number or nothing; got 'x'"),
        ({"strict": 1}, r"toy\.strict must be true or false; got 1"),
        ({"windw": 3}, "toy has no parameter 'windw'(.|\n)*did you mean 'window'"),
    ],
)
def test_refuses_bad_values_in_words(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make(Toy, arguments)


def test_the_schema_says_what_the_declaration_says() -> None:
    properties = Toy.schema()["properties"]
    assert properties["window"] == {
        "type": "integer",
        "description": "tokens that vote",
        "minimum": 1,
        "maximum": 64,
        "unit": "tokens",
        "default": 8,
    }
    assert properties["sort"]["enum"] == ["none", "weights"]
    assert properties["limit"]["type"] == ["integer", "null"]
    assert properties["layers"]["type"] == "array"
    assert Toy.schema()["additionalProperties"] is False


def test_parameters_are_all_fields() -> None:
    assert list(Toy().parameters()) == list(Toy.declared())


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("bfp", ("bfp", {})),
        (" bfp ( ) ", ("bfp", {})),
        ("bfp(bits=4)", ("bfp", {"bits": 4})),
        ("bfp(bits=4, sort=weights)", ("bfp", {"bits": 4, "sort": "weights"})),
        ("xquant-cl(rate=-0.5, layers=(1, 2))", ("xquant-cl", {"rate": -0.5, "layers": (1, 2)})),
    ],
)
def test_reads_calls(text: str, call: tuple[str, dict[str, object]]) -> None:
    assert parse_call(text) == call


@pytest.mark.parametrize(
    "text", ["", "bfp(", "bfp(4)", "bfp(**x)", "bfp(bits=open('x'))", "a b", "Bfp", "bfp(bits=)"]
)
def test_refuses_what_is_no_call(text: str) -> None:
    with pytest.raises(ParameterError, match="cannot read this method"):
        parse_call(text)


def test_chains_have_no_empty_links() -> None:
    assert split_chain("snapkv(window=8) | bfp(bits=4)") == ["snapkv(window=8)", "bfp(bits=4)"]
    for text in ("", "a |", "| a", "a || b"):
        with pytest.raises(ParameterError, match="empty link"):
            split_chain(text)


def test_granularities_are_ordered() -> None:
    assert [g.fineness for g in Granularity] == [0, 1, 2, 3]
    assert Frees.STORAGE != Frees.NOTHING


def test_the_base_predicts_nothing() -> None:
    spec = ModelSpec(
        name="x", layers=1, hidden=2, heads=1, kv_heads=1, head_dim=2, ffn=2, vocab=2, max_context=4
    )
    with pytest.raises(TypeError, match="base of toy must implement predict"):
        Toy().predict(spec, Workload(context=4), 10)

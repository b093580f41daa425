"""JSON by a schema, token by token: always valid, always complete, nothing kept out."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loci.errors import ParameterError
from loci.models.grammar import Grammar, Vocabulary
from loci.models.tokenizer import Tokenizer
from loci.text.form import misfit

WORDS = ('{"', '": ', '", "', "true", " a", "the", "ing", "\u00e9", "\U0001f40b", "]}", '"]', "\\n",
         '\\"', "12", "null", "\u00e9t\u00e9", "\xc3", "\n", "\ud7ff")  # fmt: skip
TOKENS = [bytes((byte,)) for byte in range(256)]
TOKENS += [word.encode("latin-1" if word == "\xc3" else "utf-8") for word in WORDS]
TOKENS += [b""]  # a control token
END = len(TOKENS) - 1
VOCABULARY = Vocabulary(TOKENS, ends=(END,))

leaves = st.one_of(
    st.builds(
        lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more},
        st.integers(0, 3),
        st.integers(0, 6),
    ),
    st.just({"type": "string"}),
    st.just({"type": "integer"}),
    st.just({"type": "number"}),
    st.just({"type": ["boolean", "null"]}),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-3, 3),
        st.integers(0, 12),
    ),
    st.lists(st.one_of(st.text(max_size=4), st.integers(), st.none()), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
)


def bigger(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def of(names: list[str], parts: list[Any], required: list[bool]) -> dict[str, Any]:
        pairs = list(zip(names, parts, strict=False))
        needed = [n for (n, _), need in zip(pairs, required, strict=False) if need]
        return {"type": "object", "properties": dict(pairs), "required": needed}

    return st.one_of(
        st.builds(
            lambda items, least, more: {
                "type": "array",
                "items": items,
                "minItems": least,
                **({} if more is None else {"maxItems": least + more}),
            },
            inner,
            st.integers(0, 2),
            st.one_of(st.none(), st.integers(0, 2)),
        ),
        st.builds(
            of,
            st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=3),
            st.lists(inner, min_size=3, max_size=3),
            st.lists(st.booleans(), min_size=3, max_size=3),
        ),
        # Two strings of different lengths side by side are not told apart byte by byte yet.
        st.lists(inner, min_size=1, max_size=2)
        .filter(lambda parts: sum("string" in str(part) for part in parts) < 2)
        .map(lambda parts: {"anyOf": parts}),
    )


schemas = st.recursive(leaves, bigger, max_leaves=4)


def written(grammar: Grammar, tokens: int, dice: random.Random) -> str:
    """Return what comes out when any allowed token may come."""
    guide, out = grammar.guide(tokens), b""
    while not guide.done:
        allowed = np.flatnonzero(guide.mask())
        assert len(allowed), out
        id = int(dice.choice(allowed))
        guide.feed(id)
        out += TOKENS[id]
        assert guide.left >= 0
    return out.decode()


@settings(max_examples=80, deadline=None)
@given(schema=schemas, seed=st.integers(0, 1000), extra=st.sampled_from([0, 1, 5, 40]))
def test_whatever_comes_fits_the_schema(schema: dict[str, Any], seed: int, extra: int) -> None:
    grammar = Grammar(schema, VOCABULARY)
    shortest = grammar.far(grammar.start)
    text = written(grammar, shortest + extra, random.Random(seed))
    assert misfit(json.loads(text), schema) is None
    assert json.dumps(json.loads(text), ensure_ascii=False).encode()  # no half of a pair


@st.composite
def instances(draw: st.DrawFn, schema: dict[str, Any]) -> Any:
    """Draw a value that fits."""
    if "enum" in schema:
        return draw(st.sampled_from(schema["enum"]))
    if "anyOf" in schema:
        return draw(instances(draw(st.sampled_from(schema["anyOf"]))))
    kind = draw(st.sampled_from(schema["type"])) if isinstance(schema["type"], list) else None
    kind = kind or schema["type"]
    if kind == "string":
        most = min(schema.get("maxLength", 8), 8 + schema.get("minLength", 0))
        return draw(st.text(min_size=schema.get("minLength", 0), max_size=most))
    if kind == "integer":
        low, high = schema.get("minimum", -(10**14)), schema.get("maximum", 10**14)
        return draw(st.integers(low, high))
    if kind == "number":
        return draw(st.sampled_from([0, -1, 2.5, -0.25, 1234567.125]))
    if kind == "array":
        least = schema.get("minItems", 0)
        count = draw(st.integers(least, schema.get("maxItems", least + 3)))
        return [draw(instances(schema["items"])) for _ in range(count)]
    if kind == "object":
        return {
            name: draw(instances(part))
            for name, part in schema["properties"].items()
            if name in schema["required"] or draw(st.booleans())
        }
    return draw(st.booleans()) if kind == "boolean" else None


@settings(max_examples=80, deadline=None)
@given(data=st.data(), ascii=st.booleans(), seed=st.integers(0, 100))
def test_whatever_fits_may_come(data: st.DataObject, ascii: bool, seed: int) -> None:
    schema = data.draw(schemas)
    value = data.draw(instances(schema))
    text = json.dumps(value, ensure_ascii=False).encode()
    guide = Grammar(schema, VOCABULARY).guide(10_000)
    dice = random.Random(seed)
    while text:
        fits = [id for id, token in enumerate(TOKENS) if token and text.startswith(token)]
        id = dice.choice(fits)
        assert guide.mask()[id], (schema, value, text)
        forced = guide.forced()
        assert text.startswith(forced)
        guide.feed(id)
        text = text[len(TOKENS[id]) :]
    assert guide.complete


def test_a_string_ends_at_its_limit_in_characters() -> None:
    grammar = Grammar({"type": "string", "maxLength": 3}, VOCABULARY)
    guide = grammar.guide(20)
    for token in (b'"', "\u00e9t\u00e9".encode()):
        guide.feed(TOKENS.index(token))
    assert {TOKENS[id] for id in np.flatnonzero(guide.mask())} == {b'"'}


def test_the_last_tokens_close_what_is_open() -> None:
    schema = {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}
    guide = Grammar(schema, VOCABULARY).guide(6)
    for byte in b'[["':
        guide.feed(byte)
    assert {TOKENS[id] for id in np.flatnonzero(guide.mask())} == {b'"', b'"]', b'{"'}
    guide.feed(TOKENS.index(b'"]'))
    assert guide.left == 2 and not guide.mask()[ord(",")]


def test_what_must_come_is_known_before() -> None:
    schema = {
        "type": "object",
        "properties": {"operation": {"enum": ["ADD", "NOOP"]}},
        "required": ["operation"],
    }
    guide = Grammar(schema, VOCABULARY).guide(40)
    assert guide.forced() == b'{"operation": "'
    for byte in b'{"operation": "A':
        guide.feed(byte)
    assert guide.forced() == b'DD"}'
    for byte in b'DD"}':
        guide.feed(byte)
    assert guide.done and guide.forced() == b""


def test_references_are_followed() -> None:
    schema = {
        "type": "array",
        "items": {"$ref": "#/$defs/word"},
        "$defs": {"word": {"type": "string", "maxLength": 2, "description": "short"}},
    }
    text = written(Grammar(schema, VOCABULARY), 30, random.Random(1))
    assert all(len(word) <= 2 for word in json.loads(text))


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({}, "names its type"),
        ({"type": "object", "additionalProperties": True}, "only|has only"),
        ({"type": "array"}, "names its items"),
        ({"type": "string", "pattern": "a+"}, "cannot have this here"),
        ({"type": "string", "maxlength": 3}, "cannot have this here"),
        ({"type": "integer", "minimum": 1}, "names both ends"),
        ({"type": "integer", "minimum": 0, "maximum": 10**6}, "names both ends"),
        ({"type": "object", "properties": {}, "required": ["x"]}, "requires only those"),
        ({"type": "array", "items": {"$ref": "#"}}, "has no such part"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "comes back to itself"),
        ({"type": "string", "minLength": 9, "maxLength": 3}, "below minLength"),
        ({"type": "array", "items": {"type": "null"}, "minItems": 3, "maxItems": 1}, "below"),
        (
            {"type": "array", "items": {"type": "string", "minLength": 99}, "maxItems": 99},
            "too large",
        ),
        ({"enum": []}, "list of values"),
        ({"oneOf": [{"type": "null"}]}, "names its type"),
        ([], "is an object"),
    ],
)
def test_what_cannot_be_decoded_by_is_refused_by_name(schema: Any, problem: str) -> None:
    with pytest.raises(ParameterError, match=problem):
        Grammar(schema, VOCABULARY)


def test_too_few_tokens_are_refused_before_anything_is_written() -> None:
    grammar = Grammar({"enum": ["four"]}, VOCABULARY)
    with pytest.raises(ParameterError, match="max_tokens >= 6"):
        grammar.guide(5)
    with pytest.raises(ParameterError, match="may not come here"):
        grammar.guide(6).feed(ord("x"))


def test_a_vocabulary_without_the_needed_characters_is_refused() -> None:
    small = Vocabulary([b"a", b'"'], ends=())
    assert Grammar({"type": "string"}, small).guide(4)
    with pytest.raises(ParameterError, match="cannot write"):
        Grammar({"type": "boolean"}, small)


def test_dead_ends_are_never_entered() -> None:
    # The first half of a character may only come if its second half can.
    half = Vocabulary([b'"', b"x", b"\xc3", b"\xc3\xa9"], ends=())
    guide = Grammar({"type": "string"}, half).guide(8)
    guide.feed(0)
    assert guide.mask().tolist() == [True, True, False, True]


@pytest.mark.model
def test_with_a_real_vocabulary(smollm2_pack: Any) -> None:
    vocabulary = Vocabulary.of(Tokenizer(smollm2_pack.folder))
    schema = {
        "type": "object",
        "properties": {
            "facts": {"type": "array", "items": {"type": "string", "maxLength": 60}, "maxItems": 3}
        },
        "required": ["facts"],
    }
    grammar = Grammar(schema, vocabulary)
    for seed in range(5):
        guide, out, dice = grammar.guide(30 + seed), b"", random.Random(seed)
        while not guide.done:
            id = int(dice.choice(np.flatnonzero(guide.mask())))
            guide.feed(id)
            out += vocabulary.tokens[id]
        assert misfit(json.loads(out), schema) is None
    assert grammar.vocabulary.nbytes < 16 * 2**20

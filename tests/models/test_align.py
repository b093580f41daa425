"""Prompts for two tokenizers, token beside token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from loci.errors import ParameterError
from loci.models.align import Section, aligned, aligned_tokens

OWN = {1: "a", 2: " river", 3: "", 4: "bank"}
THEIRS = {10: "a", 20: " riv", 21: "er", 22: " r", 23: "iver", 40: "bank", 99: "<pad>"}


def decode(ids: Sequence[int]) -> str:
    return "".join(OWN[i] for i in ids)


def encode(text: str) -> list[int]:
    table = {"a": [10], " river": [22, 23], "bank": [40], "": []}
    return table[text]


def theirs_decode(ids: Sequence[int]) -> str:
    return "".join(THEIRS[i] for i in ids)


def test_one_token_stands_for_several() -> None:
    ids = (1, 2, 3, 4)
    longest = aligned_tokens(ids, decode, encode, theirs_decode, filler=99)
    first = aligned_tokens(ids, decode, encode, theirs_decode, filler=99, pick="first")
    assert longest == (10, 23, 99, 40) and first == (10, 22, 99, 40)
    with pytest.raises(ParameterError, match="no such way to pick"):
        aligned_tokens(ids, decode, encode, theirs_decode, filler=99, pick="last")


def test_the_same_tokenizer_changes_nothing() -> None:
    def one(text: str) -> list[int]:
        return [key for key, word in OWN.items() if word == text]

    assert aligned_tokens((4, 2, 1), decode, one, decode, filler=0) == (4, 2, 1)


def test_frames_are_filled_up_and_nobody_listens_there() -> None:
    sections = [Section(own=(1, 1, 1), theirs=(40,)), Section(own=(2, 4))]
    found = aligned(sections, decode, encode, theirs_decode, filler=99)
    assert found.own == (1, 1, 1, 2, 4)
    assert found.theirs == (99, 99, 40, 23, 40)
    assert found.speaks == (False, False, False, True, True)
    with pytest.raises(ParameterError, match="frame has more tokens"):
        aligned([Section(own=(1,), theirs=(40, 40))], decode, encode, theirs_decode, filler=99)

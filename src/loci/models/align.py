"""One prompt as tokens of two tokenizers, as many of the one as of the other.

Models that look at each other's caches token by token must have read the same number of tokens. A
token of the one is read as text and written again in tokens of the other; where that takes several,
one of them stands for all. Parts that only frame the text, such as a chat template, are each
model's own: the shorter is filled up, and nobody listens there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loci.errors import ParameterError

PICKS = ("longest", "first")

Encode = Callable[[str], Sequence[int]]
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a prompt.

    Attributes:
        own: tokens of the one who listens.
        theirs: what the other reads in their place, where this part frames the text; None where it
            is the text.
    """

    own: tuple[int, ...]
    theirs: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """A prompt for two models.

    Attributes:
        own, theirs: token ids, as many of both.
        speaks: where the other is listened to.
    """

    own: tuple[int, ...]
    theirs: tuple[int, ...]
    speaks: tuple[bool, ...]


def aligned_tokens(
    ids: Sequence[int],
    decode: Decode,
    encode: Encode,
    theirs_decode: Decode,
    *,
    filler: int,
    pick: str = "longest",
) -> tuple[int, ...]:
    """Return one token of another tokenizer for each of these.

    Args:
        decode: of the tokenizer the ids are of.
        encode, theirs_decode: of the other.
        filler: for tokens that are no text.
        pick: which of several pieces stands for a token: the longest, or the first.
    """
    if pick not in PICKS:
        raise ParameterError("no such way to pick a piece", value=pick, allowed=", ".join(PICKS))
    found = []
    for token in ids:
        pieces = list(encode(decode([token])))
        if not pieces:
            found.append(filler)
        elif pick == "first":
            found.append(pieces[0])
        else:
            found.append(max(pieces, key=lambda piece: len(theirs_decode([piece]))))
    return tuple(found)


def aligned(
    sections: Sequence[Section],
    decode: Decode,
    encode: Encode,
    theirs_decode: Decode,
    *,
    filler: int,
    pick: str = "longest",
) -> Aligned:
    """Return a prompt of several parts for two models.

    Raises:
        ParameterError: if the other's frame is longer than one's own: the one who listens reads
            nothing but its own tokens.
    """
    own: list[int] = []
    theirs: list[int] = []
    speaks: list[bool] = []
    for section in sections:
        count = len(section.own)
        own += section.own
        if section.theirs is None:
            theirs += aligned_tokens(
                section.own, decode, encode, theirs_decode, filler=filler, pick=pick
            )
        elif len(section.theirs) > count:
            raise ParameterError(
                "the other model's frame has more tokens than one's own",
                value=len(section.theirs),
                allowed=f"at most {count}",
                way_out="give it a shorter template, or none",
            )
        else:
            theirs += [filler] * (count - len(section.theirs)) + list(section.theirs)
        speaks += [section.theirs is None] * count
    return Aligned(own=tuple(own), theirs=tuple(theirs), speaks=tuple(speaks))

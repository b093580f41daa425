"""Text that every machine has: the topics of Python's own help.

`pydoc_data.topics` holds some 465,000 characters of English technical prose. It differs a little
from one Python to the next, so every measurement records a hash of what was read.
"""

from __future__ import annotations

import hashlib

from loci.errors import ParameterError
from loci.text.prose import prose

__all__ = ["digest", "prose", "slices"]


def slices(text: str, count: int, characters: int, part: str) -> list[str]:
    """Return `count` disjoint pieces of text, spread evenly over one half of it.

    Args:
        part: "dev" takes the first half, "test" the second: never choose and judge on the same.
    """
    if part not in ("dev", "test"):
        raise ParameterError("unknown part of the text", value=part, allowed="dev or test")
    middle = len(text) // 2
    half = text[:middle] if part == "dev" else text[middle:]
    if count * characters > len(half):
        raise ParameterError(
            f"{count} x {characters} characters are more than the {len(half)} there are",
            value=count,
        )
    stride = len(half) // count
    pieces = []
    for index in range(count):
        start = half.find(" ", index * stride) + 1
        pieces.append(half[start : start + characters])
    return pieces


def digest(text: str) -> str:
    """Return a short hash of a text."""
    return "blake2b:" + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

"""Sizes, token counts and durations as people write them; plain integers and floats inside.

Powers of two are KiB, MiB, GiB, TiB; powers of ten are kB, MB, GB, TB. Both are read, the first are
printed. Bytes are the only unit inside Loci; these functions stand at its edges.
"""

from __future__ import annotations

import re
from difflib import get_close_matches

_UNITS = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_LOWER = {unit.lower(): factor for unit, factor in _UNITS.items()}
_SIZE = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*$")


def parse_bytes(text: str | int) -> int:
    """Return the number of bytes that `text` names, such as "12GiB", "160 MiB" or 4096.

    Raises:
        ValueError: if the text is no size, is negative, or its unit is unknown.

    >>> parse_bytes("1.5KiB")
    1536
    """
    if isinstance(text, bool) or not isinstance(text, (int, str)):
        raise ValueError(f"a size is text like '160MiB' or a whole number of bytes; got {text!r}")
    if isinstance(text, int):
        if text < 0:
            raise ValueError(f"a size cannot be negative; got {text}")
        return text
    if text.strip().startswith("-"):
        raise ValueError(f"a size cannot be negative; got {text!r}. Write it like 160MiB")
    match = _SIZE.match(text)
    if match is None:
        raise ValueError(f"cannot read the size {text!r}; write a number and a unit, like 160MiB")
    number, unit = match.groups()
    if not unit:
        if "." in number:
            raise ValueError(f"the size {text!r} has no unit; write one of {', '.join(_UNITS)}")
        return int(number)
    factor = _LOWER.get(unit.lower())
    if factor is None:
        near = get_close_matches(unit.lower(), _LOWER, n=1, cutoff=0.1)
        exact = next((u for u in _UNITS if near and u.lower() == near[0]), "MiB")
        raise ValueError(
            f"unknown unit {unit!r} in the size {text!r}; "
            f"allowed are {', '.join(_UNITS)}. Did you mean {number}{exact}?"
        )
    return round(float(number) * factor)


def format_bytes(nbytes: int | float) -> str:
    """Return a size for people: one decimal, a power-of-two unit.

    >>> format_bytes(167772160)
    '160.0 MiB'
    """
    sign, size = ("-", -nbytes) if nbytes < 0 else ("", nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{sign}{size:.0f} B" if unit == "B" else f"{sign}{size:.1f} {unit}"
        size /= 1024
    return f"{sign}{size:.1f} TiB"


def parse_tokens(text: str | int) -> int:
    """Return a token count from "8k" (8,192), "3900" or 4096.

    Raises:
        ValueError: if the text is no whole positive count.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        count = text
    else:
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKmM]?)\s*", str(text))
        if match is None or ("." in match[1] and not match[2]):
            raise ValueError(f"cannot read {text!r} as tokens; write a count like 4096 or 8k")
        count = round(float(match[1]) * {"": 1, "k": 1024, "m": 1024**2}[match[2].lower()])
    if count < 1:
        raise ValueError(f"a token count must be at least 1; got {text!r}")
    return count


def format_seconds(seconds: float) -> str:
    """Return a duration for people: "6.1 ms", "2.4 s", "3 min 20 s".

    >>> format_seconds(0.0061)
    '6.1 ms'
    """
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def nearest(word: str, allowed: list[str] | tuple[str, ...]) -> str | None:
    """Return the allowed word closest to `word`, or None when nothing is close."""
    close = get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return close[0] if close else None

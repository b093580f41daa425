"""Sizes, tokens and durations at the edges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loci.units import format_bytes, format_seconds, nearest, parse_bytes, parse_tokens


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("4096", 4096),
        (4096, 4096),
        ("160MiB", 160 * 2**20),
        (" 160 mib ", 160 * 2**20),
        ("12GB", 12 * 10**9),
        ("1.5KiB", 1536),
        (".5GiB", 2**29),
        ("1TiB", 2**40),
        ("7B", 7),
    ],
)
def test_reads_sizes(text: str | int, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-1", "cannot be negative"),
        (-1, "cannot be negative"),
        ("", "cannot read"),
        ("many", "cannot read"),
        ("1 2MiB", "cannot read"),
        ("1.5", "has no unit"),
        ("160MB/s", "cannot read"),
        ("160MeB", r"Did you mean 160M(i)?B"),
        (True, "a size is text"),
        (1.5, "a size is text"),
        (None, "a size is text"),
    ],
)
def test_refuses_what_is_no_size(text: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_bytes(text)  # type: ignore[arg-type]


@given(st.integers(0, 2**45), st.sampled_from(["B", "KiB", "MiB", "GiB", "kB", "MB", "GB"]))
def test_case_and_blanks_do_not_matter(number: int, unit: str) -> None:
    exact = parse_bytes(f"{number}{unit}")
    assert parse_bytes(f"  {number}  {unit.upper()} ") == exact
    assert parse_bytes(f"{number}{unit.lower()}") == exact


@given(st.integers(0, 2**50))
def test_a_printed_size_reads_back_within_its_last_digit(nbytes: int) -> None:
    text = format_bytes(nbytes)
    unit = parse_bytes("1" + text.split()[1])
    assert abs(parse_bytes(text) - nbytes) <= max(0.05 * unit * 1.001, 0)


def test_prints_sizes() -> None:
    assert format_bytes(0) == "0 B"
    assert format_bytes(1023) == "1023 B"
    assert format_bytes(1024) == "1.0 KiB"
    assert format_bytes(-2048) == "-2.0 KiB"
    assert format_bytes(3 * 2**40) == "3.0 TiB"


@pytest.mark.parametrize(
    ("text", "count"), [("8k", 8192), ("3900", 3900), (4096, 4096), ("1.5K", 1536), ("1m", 2**20)]
)
def test_reads_token_counts(text: str | int, count: int) -> None:
    assert parse_tokens(text) == count


@pytest.mark.parametrize("text", ["0", 0, "-4", "8KiB", "", "many", True, "1.5", 1.5])
def test_refuses_what_is_no_token_count(text: object) -> None:
    with pytest.raises(ValueError, match="token"):
        parse_tokens(text)  # type: ignore[arg-type]


def test_prints_durations() -> None:
    assert format_seconds(0.0000061) == "6 us"
    assert format_seconds(0.0061) == "6.1 ms"
    assert format_seconds(2.44) == "2.4 s"
    assert format_seconds(200) == "3 min 20 s"


def test_suggests_only_what_is_close() -> None:
    assert nearest("windw", ["window", "bits"]) == "window"
    assert nearest("xyzzy", ["window", "bits"]) is None

"""Times in words against a calendar: Monday, 8 May 2023."""

from __future__ import annotations

from datetime import datetime

import pytest

from loci.text.times import resolve, shift_months

NOW = datetime(2023, 5, 8, 13, 0)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("I went yesterday", "7 May 2023"),
        ("the day before yesterday", "6 May 2023"),
        ("see you tomorrow", "9 May 2023"),
        ("last Friday", "5 May 2023"),
        ("last Monday", "1 May 2023"),
        ("next Friday", "19 May 2023"),
        ("I'll see him on Friday", "12 May 2023"),
        ("I saw him on Friday", "5 May 2023"),
        ("two weeks ago", "the week of 24 April 2023"),
        ("a couple of months ago", "around March 2023"),
        ("10 years ago", "2013"),
        ("last month", "April 2023"),
        ("next year", "2024"),
        ("last summer", "summer 2022"),
        ("in the summer of 2021", "summer 2021"),
        ("this past weekend", "the weekend of 6 May 2023"),
        ("since 2019", "since 2019"),
        ("in May", "May 2023"),
        ("I moved here in August", "August 2022"),
        ("before March 2023", "before 1 March 2023"),
        ("on 8 May, 2022", "8 May 2022"),
        ("on May 7th", "7 May 2023"),
        ("my appointment is on March 3rd", "3 March 2024"),
        ("2023-02-14", "14 February 2023"),
        ("at Christmas", "25 December 2022"),
        ("the week before 9 June 2023", "the week of 29 May 2023"),
        ("the Sunday before 25 May 2023", "21 May 2023"),
        ("he was born in 1990", "1990"),
        ("early June 2023", "around June 2023"),
        ("I worked there for three years", "around 2020"),
    ],
)
def test_resolves(text: str, meaning: str) -> None:
    assert [str(span) for span in resolve(text, NOW)] == [meaning]


@pytest.mark.parametrize(
    "text",
    [
        "We may go",
        "I march on",
        "I am 30 years old",
        "every Tuesday and Thursday",
        "I ran it in 58 minutes",
        "nothing here",
        "",
    ],
)
def test_sees_no_time_where_there_is_none(text: str) -> None:
    assert resolve(text, NOW) == []


def test_an_impossible_date_is_no_day() -> None:
    assert all(span.grain != "day" for span in resolve("on 31 February 2023", NOW))


def test_since_reaches_until_now() -> None:
    (span,) = resolve("since last Tuesday", NOW)
    assert span.holds(NOW) is False or span.end >= NOW
    assert span.start == datetime(2023, 5, 2)


def test_months_are_cut_to_their_length() -> None:
    assert shift_months(datetime(2023, 3, 31), -1) == datetime(2023, 2, 28)
    assert shift_months(datetime(2023, 12, 15), 1) == datetime(2024, 1, 15)


def test_two_times_come_in_order() -> None:
    spans = resolve("in April 2022 and again last week", NOW)
    assert [str(s) for s in spans] == ["April 2022", "the week of 1 May 2023"]

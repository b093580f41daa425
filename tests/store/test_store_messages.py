"""What may be said, and when: checks at the door."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from memories import Plain

from loci.errors import ParameterError
from loci.run.memory import Memory


def only_turn(memory: Memory, user: str = "ada"):
    return memory.list(user=user, kinds="turn")[0]


def test_keeps_a_message_as_it_was_given(memory: Memory) -> None:
    said = {
        "role": "assistant",
        "name": "Zoë",
        "content": "a\0b  \N{SNOWMAN}\n",
        "metadata": {"n": [1]},
    }
    memory.add([said], user="ada", session="s1", time="2026-05-01T10:00:00+02:00")
    turn = only_turn(memory)
    assert (turn.role, turn.name, turn.content) == ("assistant", "Zoë", "a\0b  \N{SNOWMAN}\n")
    assert turn.metadata == {"n": [1]} and turn.session == "s1"
    assert turn.time.isoformat() == "2026-05-01T10:00:00+02:00" and not turn.zone_assumed


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ([], "no message"),
        (None, "no message"),
        (b"abc\xff", "not UTF-8 at byte 3"),
        ("ab\ud800", "half a surrogate pair at character 2"),
        ([{"content": "x", "roel": "user"}], "did you mean 'role'"),
        ([{"content": "x", "role": "robot"}], "unknown role"),
        ([{"role": "user"}], "must be text"),
        ([{"content": "x", "metadata": {"a": float("nan")}}], "not JSON"),
        ([{"content": "x", "metadata": {"a": object()}}], "not JSON"),
        ([{"content": "x", "metadata": {"a": "\ud800"}}], "half a surrogate pair"),
        ([{"content": "x", "name": " "}], "empty"),
        ("x" * (2**20 + 1), "1 too many"),
        ("é" * (2**19 + 1), "2 too many"),
    ],
)
def test_refuses_what_cannot_be_kept(memory: Memory, given: object, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        memory.add(given, user="ada")  # type: ignore[arg-type]
    assert memory.users() == []


def test_takes_the_longest_message(memory: Memory) -> None:
    memory.add("x" * 2**20, user="ada")
    assert len(only_turn(memory).content) == 2**20


def test_one_bad_message_stores_none_of_the_batch(memory: Memory) -> None:
    with pytest.raises(ParameterError, match="message 1"):
        memory.add(["fine", ""], user="ada")
    assert memory.users() == []


def test_decodes_bytes_in_utf8(memory: Memory) -> None:
    memory.add("Zoë".encode(), user="ada")
    assert only_turn(memory).content == "Zoë"


@pytest.mark.parametrize("time", ["yesterday", "1:56 pm on 8 May, 2023", 17, "2026-13-01", ""])
def test_a_time_that_cannot_be_read_shows_an_example(memory: Memory, time: object) -> None:
    with pytest.raises(ParameterError, match="2026-05-01T10:00:00"):
        memory.add("hello", user="ada", time=time)  # type: ignore[arg-type]


def test_a_time_without_zone_takes_the_stores_and_says_so(place: Callable[[str], str]) -> None:
    with Memory(place("m.db"), tz="Europe/Amsterdam", recall=Plain()) as memory:
        memory.add("a", user="ada", time="2026-07-01T10:00:00")
        memory.add("b", user="ada", time=datetime(2026, 7, 1, 10), tz="+05:30")
        memory.add("c", user="ada", time=datetime(2026, 7, 1, 10, tzinfo=UTC))
        c, b, a = memory.list(user="ada", kinds="turn")
    assert a.time.utcoffset() == timedelta(hours=2) and a.zone_assumed
    assert b.time.utcoffset() == timedelta(hours=5, minutes=30) and b.zone_assumed
    assert not c.zone_assumed


def test_a_message_may_have_its_own_time(memory: Memory) -> None:
    memory.add([{"content": "x", "time": "2020-01-01T00:00:00Z"}], user="ada", time="2026-01-01")
    assert only_turn(memory).time == datetime(2020, 1, 1, tzinfo=UTC)


def test_no_time_is_now(memory: Memory, clock) -> None:
    memory.add("x", user="ada")
    assert only_turn(memory).time == clock.now() and not only_turn(memory).zone_assumed


def test_an_unknown_zone_is_refused(place: Callable[[str], str]) -> None:
    with pytest.raises(ParameterError, match="no such time zone"):
        Memory(place("m.db"), tz="Mars/Olympus")


@pytest.mark.parametrize("user", ["", " ", None, 3, "a\ud800"])
def test_a_user_must_have_a_name(memory: Memory, user: object) -> None:
    with pytest.raises(ParameterError):
        memory.add("x", user=user)  # type: ignore[arg-type]

"""What must not get in, and what it is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from loci.core.clock import ManualClock
from loci.errors import ParameterError
from loci.run.memory import Memory
from loci.store.filters import GRAMMAR
from loci.store.messages import MAX_MESSAGE_BYTES


def test_times_in_the_future_are_refused_with_the_time_it_is(
    memory: Memory, clock: ManualClock
) -> None:
    soon, later = clock.now() + timedelta(hours=20), clock.now() + timedelta(days=2)
    memory.add("hello", user="ada", time=soon)  # clocks differ, and zones are assumed
    with pytest.raises(ParameterError, match="in the future") as refused:
        memory.add("hello", user="ada", time=later)
    assert later.isoformat() in str(refused.value)
    assert "2026-06-01T12:00:00+00:00" in str(refused.value)
    with pytest.raises(ParameterError, match="time of message 1 is in the future"):
        memory.add(["one", {"content": "two", "time": later.isoformat()}], user="ada")
    assert memory.counts(user="ada")["turns"] == 1, "nothing half stored"
    assert memory.search("hello", user="ada", as_of="2099-01-01"), "asking ahead is fine"


@pytest.mark.parametrize("time", ["tomorrow", "2026-13-01", 7, "", b"2026-01-01", True])
def test_times_nobody_can_read_show_an_example(memory: Memory, time: object) -> None:
    with pytest.raises(ParameterError, match="2026-05-01T10:00:00"):
        memory.add("hello", user="ada", time=time)  # type: ignore[arg-type]


def test_what_is_too_long_is_refused_with_both_numbers(memory: Memory) -> None:
    long, words = "x" * (MAX_MESSAGE_BYTES + 10), "1,048,586 bytes, 10 too many"
    note = memory.note("x" * MAX_MESSAGE_BYTES, user="ada")
    for act in (
        lambda: memory.add(long, user="ada"),
        lambda: memory.note(long, user="ada"),
        lambda: memory.edit(note.id, long),
        lambda: memory.search(long, user="ada"),
    ):
        with pytest.raises(ParameterError, match=words):
            act()
    with pytest.raises(ParameterError, match=r"metadata .*too many"):
        memory.note("short", user="ada", metadata={"k": long})
    with pytest.raises(ParameterError, match=r"the metadata of message 0 .*too many"):
        memory.add([{"content": "short", "metadata": {"k": long}}], user="ada")
    for scope in ({"user": "u" * 1025}, {"user": "ada", "session": "é" * 600}):
        with pytest.raises(ParameterError, match=r"too many.*\n.*shorten it"):
            memory.add("short", **scope)
    assert memory.counts(user="ada")["turns"] == 0


@pytest.mark.parametrize(
    "filters",
    [
        {"rolle": "user"},
        {"role": {"~": 1}},
        {"role": {}},
        {"and": {}},
        {"or": []},
        {"not": []},
        {"role": {"in": "user"}},
        {"role": {"contains": 7}},
        {"role": {"exists": 1}},
        {"role": object()},
        {'metadata."': 1},
        {"user": "bob"},
        "role=user",
        ["role"],
    ],
)
def test_a_bad_filter_is_told_the_grammar(memory: Memory, filters: object) -> None:
    for read in (memory.list, lambda **asked: memory.search("x", **asked)):
        with pytest.raises(ParameterError) as refused:
            read(user="ada", filters=filters)  # type: ignore[operator]
        for line in GRAMMAR:
            assert line in str(refused.value)


def test_a_filter_nested_too_deep_is_refused(memory: Memory) -> None:
    filters: dict[str, object] = {"role": "user"}
    for _ in range(40):
        filters = {"not": filters}
    with pytest.raises(ParameterError, match="nested more than 32 deep"):
        memory.list(user="ada", filters=filters)


def test_what_an_item_says_of_itself_wins_over_its_turns(memory: Memory) -> None:
    said = {"name": "Ada", "content": "I live in Ghent", "metadata": {"a": "turn", "b": "turn"}}
    memory.add([said], user="ada")
    item = memory.get("i1")
    from dataclasses import replace

    scope = memory._scope("ada")
    changed = replace(item, metadata={"a": "own"})  # type: ignore[type-var]
    memory.store.change(scope, changed, "edit", "", datetime.now(UTC))  # type: ignore[arg-type]
    for filters, found in (
        ({"metadata.a": "own"}, True),
        ({"metadata.a": "turn"}, False),
        ({"metadata.b": "turn"}, True),
        ({"metadata.c": {"exists": True}}, False),
    ):
        assert bool(memory.list(user="ada", filters=filters)) == found, filters

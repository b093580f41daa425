"""One stream of events: kept, filtered, listened to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loci.core.event import Event, Events


@given(st.integers(0, 20), st.integers(1, 10))
def test_keeps_the_last(count: int, keep: int) -> None:
    events = Events(keep=keep)
    for i in range(count):
        events.emit(Event(name="tick", data={"i": i}))
    assert [e.data["i"] for e in events.recent()] == list(range(count))[-keep:]


def test_filters_by_the_start_of_the_name() -> None:
    events = Events()
    for name in ("kv.evict", "kv.encode", "store.add"):
        events.emit(Event(name=name))
    assert [e.name for e in events.recent("kv.")] == ["kv.evict", "kv.encode"]


def test_a_listener_hears_later_events_until_it_stops() -> None:
    events = Events()
    heard: list[str] = []
    events.emit(Event(name="before"))
    stop = events.listen(lambda event: heard.append(event.name))
    events.emit(Event(name="during"))
    stop()
    stop()
    events.emit(Event(name="after"))
    assert heard == ["during"]


def test_a_listener_may_emit_and_stop_itself() -> None:
    events = Events()
    heard: list[str] = []

    def once(event: Event) -> None:
        stop()
        heard.append(event.name)
        events.emit(Event(name="inner"))

    stop = events.listen(once)
    events.emit(Event(name="outer"))
    assert heard == ["outer"]
    assert [e.name for e in events.recent()] == ["outer", "inner"]

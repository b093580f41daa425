"""Who stays resident, against oracles written in the plainest way."""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loci.errors import ParameterError
from loci.tiers.residency import Belady, ResidencyCache, policy

TRACE = st.lists(st.integers(0, 5), max_size=40)


def run(cache: ResidencyCache, trace: list[int], size: int = 1) -> int:
    for key in trace:
        assert cache.fetch(key, size, lambda key=key: key * 10) == key * 10  # type: ignore[misc]
        cache.check_integrity()
    return cache.stats().hits


@given(trace=TRACE, room=st.integers(1, 4))
def test_lru_agrees_with_a_list(trace: list[int], room: int) -> None:
    cache = ResidencyCache(room, "lru")
    kept: list[int] = []
    for key in trace:
        cache.fetch(key, 1, lambda: None)
        kept = [each for each in kept if each != key] + [key]
        kept = kept[-room:]
        assert set(cache.keys()) == set(kept)
        cache.check_integrity()


@given(trace=TRACE, room=st.integers(1, 4))
def test_lfu_agrees_with_counting(trace: list[int], room: int) -> None:
    cache = ResidencyCache(room, "lfu")
    kept: set[int] = set()
    for index, key in enumerate(trace):
        past = trace[: index + 1]
        if key not in kept:
            if len(kept) == room:
                last = {k: max(i for i, x in enumerate(past) if x == k) for k in kept}
                kept.remove(min(kept, key=lambda k: (past.count(k), last[k])))
            kept.add(key)
        cache.fetch(key, 1, lambda: None)
        assert set(cache.keys()) == kept
        cache.check_integrity()


@settings(deadline=None)
@given(trace=st.lists(st.integers(0, 4), max_size=14), room=st.integers(1, 3))
def test_belady_is_the_best_of_all_schedules(trace: list[int], room: int) -> None:
    @lru_cache(None)
    def best(index: int, kept: frozenset[int]) -> int:
        if index == len(trace):
            return 0
        key = trace[index]
        if key in kept:
            return 1 + best(index + 1, kept)
        choices = [kept]  # let it pass through
        if len(kept) < room:
            choices.append(kept | {key})
        choices += [kept - {old} | {key} for old in kept]
        return max(best(index + 1, choice) for choice in choices)

    cache = ResidencyCache(room, Belady(trace))
    assert run(cache, trace) == best(0, frozenset())


@given(trace=TRACE, room=st.integers(1, 4))
def test_no_policy_beats_belady(trace: list[int], room: int) -> None:
    bound = run(ResidencyCache(room, Belady(trace)), trace)
    for name in ("lru", "lfu", "prefix"):
        assert run(ResidencyCache(room, name), trace) <= bound


@given(blocks=st.integers(1, 8), room=st.integers(1, 8), rounds=st.integers(1, 5))
def test_a_fixed_prefix_is_the_best_for_cyclic_scans(blocks: int, room: int, rounds: int) -> None:
    trace = list(range(blocks)) * rounds
    hits = run(ResidencyCache(room, "prefix"), trace)
    assert hits == min(room, blocks) * (rounds - 1)
    assert hits == run(ResidencyCache(room, Belady(trace)), trace)
    if room < blocks:
        assert run(ResidencyCache(room, "lru"), trace) == 0


@given(
    trace=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=40),
    room=st.integers(0, 9),
    name=st.sampled_from(["lru", "lfu", "prefix", "belady"]),
    pins=st.sets(st.integers(0, 6)),
    resize=st.integers(0, 12),
)
def test_limits_and_pins_hold_with_any_sizes(
    trace: list[tuple[int, int]], room: int, name: str, pins: set[int], resize: int
) -> None:
    sizes: dict[int, int] = {}
    for key, size in trace:
        sizes.setdefault(key, size)
    keys = [key for key, _ in trace]
    gone: list[tuple[object, int]] = []
    cache = ResidencyCache(
        room,
        policy(name, keys if name == "belady" else None),
        on_evict=lambda key, value: gone.append((key, value)),
    )
    pinned: set[int] = set()
    for key in keys:
        assert cache.fetch(key, sizes[key], lambda key=key: -key) == -key  # type: ignore[misc]
        if key in pins and key in cache and key not in pinned:
            cache.pin(key)
            pinned.add(key)
        assert pinned <= set(cache.keys())
        cache.check_integrity()
    stats = cache.stats()
    assert stats.hits + stats.misses == len(keys)
    assert stats.hit_bytes + stats.missed_bytes == sum(sizes[key] for key in keys)
    assert stats.evictions == len(gone) and all(key == -value for key, value in gone)
    held = sum(sizes[key] for key in pinned)
    if resize < held:
        with pytest.raises(ParameterError, match="pinned"):
            cache.resize(resize)
    else:
        cache.resize(resize)
        assert pinned <= set(cache.keys())
    cache.check_integrity()


def test_an_entry_larger_than_the_cache_passes_through() -> None:
    cache = ResidencyCache(10)
    cache.fetch("small", 4, lambda: 1)
    assert cache.fetch("large", 11, lambda: 2) == 2
    assert cache.keys() == ["small"] and cache.used_bytes == 4


def test_get_and_put_keep_what_fetch_would() -> None:
    cache = ResidencyCache(2)
    assert cache.get("a", 1) is None
    assert cache.put("a", "A", 1)
    assert cache.get("a", 1) == "A" and len(cache) == 1
    with pytest.raises(ParameterError):
        cache.put("a", "B", 1)
    assert cache.remove("a") == "A"
    assert cache.stats().evictions == 0
    cache.check_integrity()


def test_pins_are_counted() -> None:
    cache = ResidencyCache(1)
    cache.fetch("a", 1, lambda: 1)
    cache.pin("a")
    cache.pin("a")
    cache.unpin("a")
    assert not cache.put("b", 2, 1)
    with pytest.raises(ParameterError, match="pinned"):
        cache.remove("a")
    cache.unpin("a")
    assert cache.put("b", 2, 1) and cache.keys() == ["b"]
    for call in (cache.pin, cache.unpin, cache.remove):
        with pytest.raises(ParameterError):
            call("a")


def test_a_load_that_fails_changes_nothing() -> None:
    cache = ResidencyCache(2)
    cache.fetch("a", 1, lambda: 1)
    with pytest.raises(ZeroDivisionError):
        cache.fetch("b", 1, lambda: 1 // 0)
    assert cache.keys() == ["a"]
    cache.check_integrity()


def test_belady_refuses_another_order() -> None:
    cache = ResidencyCache(2, Belady(["a", "b"]))
    with pytest.raises(ParameterError, match="announced"):
        cache.get("b")
    cache.get("a")
    cache.get("b")
    with pytest.raises(ParameterError, match="over"):
        cache.get("a")


def test_policies_by_name() -> None:
    with pytest.raises(ParameterError, match="belady"):
        ResidencyCache(1, "belday")
    with pytest.raises(ParameterError):
        policy("belady")
    with pytest.raises(ParameterError):
        policy("lru", [1])
    with pytest.raises(ParameterError):
        ResidencyCache(-1)
    with pytest.raises(ParameterError):
        ResidencyCache(1).put("a", 1, -1)

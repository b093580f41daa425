"""Who stays in fast memory: a cache of blocks with a byte limit and a policy.

lru      the one not used for longest goes. For use that repeats soon.
lfu      the one used least often goes, counted over the whole history. For skewed use.
belady   the one whose next use is farthest goes (Belady, IBM Systems Journal 5(2), 1966).
         Needs the future, so it is a bound to compare with, or for plans known in advance.
prefix   nobody goes: what came first stays, the rest passes through. For cyclic scans, such as
         the layers of a model at every token, where lru keeps nothing that is used again:
         with room for k of n equal blocks it hits k in n, which no policy beats.
"""

from __future__ import annotations

import heapq
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any  # values are whatever the caller keeps

from loci.errors import ParameterError
from loci.units import nearest

Key = Hashable
NEVER = float("inf")


class Policy(ABC):
    """Decides who goes. The cache tells it of every use, arrival and departure."""

    def used(self, key: Key) -> None:  # noqa: B027  # most policies need only some of these
        """Note a use of a key, before it is known whether it is a hit."""

    def arrived(self, key: Key) -> None:  # noqa: B027
        """Note that a key became resident."""

    def left(self, key: Key) -> None:  # noqa: B027
        """Note that a key is no longer resident."""

    @abstractmethod
    def order(self, resident: Sequence[Key]) -> Iterator[Key]:
        """Yield resident keys in the order in which they should go."""

    def prefers(self, new: Key, old: Key) -> bool:
        """Return whether `old` should go to make room for `new`."""
        return True


class Lru(Policy):
    """The one not used for longest goes."""

    def __init__(self) -> None:
        self._recent: OrderedDict[Key, None] = OrderedDict()

    def used(self, key: Key) -> None:
        """Move a resident key to the end."""
        if key in self._recent:
            self._recent.move_to_end(key)

    def arrived(self, key: Key) -> None:
        """Put a new key at the end."""
        self._recent[key] = None

    def left(self, key: Key) -> None:
        """Forget a key."""
        del self._recent[key]

    def order(self, resident: Sequence[Key]) -> Iterator[Key]:
        """Yield the least recent first."""
        yield from list(self._recent)


class Lfu(Policy):
    """The one used least often goes; of two used equally often, the less recent."""

    def __init__(self) -> None:
        self._uses: dict[Key, tuple[int, int]] = {}  # (how often, when last)
        self._now = 0

    def used(self, key: Key) -> None:
        """Count a use, also of a key that is not resident."""
        self._now += 1
        self._uses[key] = (self._uses.get(key, (0, 0))[0] + 1, self._now)

    def order(self, resident: Sequence[Key]) -> Iterator[Key]:
        """Yield the least used first."""
        heap = [(self._uses.get(key, (0, 0)), index) for index, key in enumerate(resident)]
        heapq.heapify(heap)
        while heap:
            yield resident[heapq.heappop(heap)[1]]


class Belady(Policy):
    """The one whose next use is farthest goes; a new one used later than all does not enter.

    Args:
        uses: every use to come, in order. The cache must be used in exactly this order.
    """

    def __init__(self, uses: Sequence[Key]) -> None:
        self._left = deque(uses)
        self._times: dict[Key, deque[int]] = defaultdict(deque)
        for time, key in enumerate(self._left):
            self._times[key].append(time)

    def used(self, key: Key) -> None:
        """Step on to the next use."""
        if not self._left or self._left[0] != key:
            raise ParameterError(
                "this use is not the one that was announced",
                value=key,
                allowed=repr(self._left[0]) if self._left else "none; the announced uses are over",
            )
        self._left.popleft()
        self._times[key].popleft()

    def order(self, resident: Sequence[Key]) -> Iterator[Key]:
        """Yield the one used farthest in the future first."""
        heap = [(-self._next(key), index) for index, key in enumerate(resident)]
        heapq.heapify(heap)
        while heap:
            yield resident[heapq.heappop(heap)[1]]

    def prefers(self, new: Key, old: Key) -> bool:
        """Return whether the new one is used sooner."""
        return self._next(new) < self._next(old)

    def _next(self, key: Key) -> float:
        times = self._times.get(key)
        return times[0] if times else NEVER


class Prefix(Policy):
    """Nobody goes for another; when the cache shrinks, the last to come goes first."""

    def order(self, resident: Sequence[Key]) -> Iterator[Key]:
        """Yield the last to come first."""
        yield from reversed(resident)

    def prefers(self, new: Key, old: Key) -> bool:
        """Return False: who is in stays."""
        return False


POLICIES: dict[str, Callable[[], Policy]] = {"lru": Lru, "lfu": Lfu, "prefix": Prefix}


def policy(name: str, uses: Sequence[Key] | None = None) -> Policy:
    """Return a policy by name; "belady" needs the uses to come.

    Raises:
        ParameterError: if there is none of that name, or the future is missing or not wanted.
    """
    if name == "belady":
        if uses is None:
            raise ParameterError("the policy belady needs the uses to come")
        return Belady(uses)
    if name not in POLICIES:
        allowed = [*POLICIES, "belady"]
        near = nearest(name, allowed)
        raise ParameterError(
            "there is no such policy",
            value=name,
            allowed=", ".join(allowed),
            way_out=f"did you mean {near!r}?" if near else (),
        )
    if uses is not None:
        raise ParameterError(f"the policy {name} takes no uses to come")
    return POLICIES[name]()


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """What a cache did: uses found and not found, in number and bytes; entries that had to go."""

    hits: int = 0
    misses: int = 0
    hit_bytes: int = 0
    missed_bytes: int = 0
    evictions: int = 0


@dataclass(frozen=True)
class _Entry:
    value: Any
    nbytes: int


class ResidencyCache:
    """Values under keys, of at most `capacity_bytes` together.

    Args:
        capacity_bytes: the limit, which `resize` changes.
        policy: who goes: a Policy or its name.
        on_evict: called with (key, value) of each entry that goes, so that its memory is freed.
    """

    def __init__(
        self,
        capacity_bytes: int,
        policy: Policy | str = "lru",
        *,
        on_evict: Callable[[Key, Any], None] | None = None,
    ) -> None:
        if capacity_bytes < 0:
            raise ParameterError("a cache cannot hold a negative size", value=capacity_bytes)
        self.capacity_bytes = capacity_bytes
        self._policy = _named(policy) if isinstance(policy, str) else policy
        self._entries: dict[Key, _Entry] = {}  # in order of arrival
        self._pins: dict[Key, int] = {}
        self._used = 0
        self._on_evict = on_evict
        self._stats = dict.fromkeys(CacheStats.__dataclass_fields__, 0)
        self._lock = threading.RLock()

    def fetch(self, key: Key, nbytes: int, load: Callable[[], Any]) -> Any:
        """Return the value of a key, from here or from `load`, and keep it if the policy wants to.

        One caller loads at a time; use `get` and `put` where loads should overlap.
        """
        with self._lock:
            self._use(key, nbytes)
            if key in self._entries:
                return self._entries[key].value
            value = load()
            self._admit(key, value, nbytes)
            return value

    def get(self, key: Key, nbytes: int = 0) -> Any:
        """Return the value of a key, or None; counts as a use. `nbytes` is for the statistics."""
        with self._lock:
            self._use(key, nbytes)
            entry = self._entries.get(key)
            return None if entry is None else entry.value

    def put(self, key: Key, value: Any, nbytes: int) -> bool:
        """Offer a value that `get` did not find; return whether it was kept."""
        with self._lock:
            if key in self._entries:
                raise ParameterError("this key is resident already", value=key)
            return self._admit(key, value, nbytes)

    def pin(self, key: Key) -> None:
        """Keep a resident key until it is unpinned as often as it was pinned."""
        with self._lock:
            self._resident(key)
            self._pins[key] = self._pins.get(key, 0) + 1

    def unpin(self, key: Key) -> None:
        """Take one pin away."""
        with self._lock:
            if key not in self._pins:
                raise ParameterError("this key is not pinned", value=key)
            self._pins[key] -= 1
            if not self._pins[key]:
                del self._pins[key]

    def remove(self, key: Key) -> Any:
        """Take a key out and return its value; `on_evict` is not called."""
        with self._lock:
            self._resident(key)
            if key in self._pins:
                raise ParameterError("this key is pinned", value=key)
            return self._leave(key).value

    def resize(self, capacity_bytes: int) -> None:
        """Change the limit; entries go until they fit.

        Raises:
            ParameterError: if the pinned entries alone do not fit; nothing changes then.
        """
        with self._lock:
            pinned = sum(self._entries[key].nbytes for key in self._pins)
            if capacity_bytes < pinned:
                raise ParameterError(
                    "the pinned entries do not fit",
                    value=capacity_bytes,
                    allowed=f"at least {pinned} bytes",
                )
            self.capacity_bytes = capacity_bytes
            goes = self._victims(self._used - capacity_bytes, None)
            assert goes is not None
            self._evict(goes)

    def keys(self) -> list[Key]:
        """Return the resident keys in the order they came."""
        with self._lock:
            return list(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def used_bytes(self) -> int:
        """Bytes of all resident entries."""
        return self._used

    def stats(self) -> CacheStats:
        """Return what happened so far."""
        with self._lock:
            return CacheStats(**self._stats)

    def check_integrity(self) -> None:
        """Raise AssertionError unless sizes, pins and the policy agree."""
        with self._lock:
            assert self._used == sum(entry.nbytes for entry in self._entries.values())
            assert 0 <= self._used <= self.capacity_bytes
            assert set(self._pins) <= set(self._entries)
            assert all(count > 0 for count in self._pins.values())
            order = list(self._policy.order(list(self._entries)))
            assert len(order) == len(self._entries) and set(order) == set(self._entries)

    # -- private ------------------------------------------------------------------------------

    def _use(self, key: Key, nbytes: int) -> None:
        self._policy.used(key)
        entry = self._entries.get(key)
        self._stats["misses" if entry is None else "hits"] += 1
        self._stats["missed_bytes" if entry is None else "hit_bytes"] += (
            nbytes if entry is None else entry.nbytes
        )

    def _admit(self, key: Key, value: Any, nbytes: int) -> bool:
        if nbytes < 0:
            raise ParameterError("an entry cannot have a negative size", value=nbytes)
        if nbytes > self.capacity_bytes:
            return False
        goes = self._victims(self._used + nbytes - self.capacity_bytes, key)
        if goes is None:
            return False
        self._evict(goes)
        self._entries[key] = _Entry(value, nbytes)
        self._used += nbytes
        self._policy.arrived(key)
        return True

    def _victims(self, over: int, new: Key | None) -> list[Key] | None:
        """Return who goes to free `over` bytes, or None when that cannot or should not be."""
        goes: list[Key] = []
        if over <= 0:
            return goes
        for key in self._policy.order(list(self._entries)):
            if key in self._pins:
                continue
            if new is not None and not self._policy.prefers(new, key):
                return None
            goes.append(key)
            over -= self._entries[key].nbytes
            if over <= 0:
                return goes
        return None

    def _evict(self, keys: Sequence[Key]) -> None:
        for key in keys:
            entry = self._leave(key)
            self._stats["evictions"] += 1
            if self._on_evict is not None:
                self._on_evict(key, entry.value)

    def _leave(self, key: Key) -> _Entry:
        entry = self._entries.pop(key)
        self._used -= entry.nbytes
        self._policy.left(key)
        return entry

    def _resident(self, key: Key) -> None:
        if key not in self._entries:
            raise ParameterError("this key is not resident", value=key)


_named = policy  # the parameter of ResidencyCache has the same name

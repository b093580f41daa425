"""The ledger: who holds how many bytes where. No tensor of ours lives outside it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType

from loci.core.event import Event, Events
from loci.errors import BudgetError
from loci.units import format_bytes


@dataclass(eq=False)
class Lease:
    """Bytes one owner holds on one tier, from `reserve` until `release`."""

    owner: str
    tier: str
    kind: str
    nbytes: int
    _ledger: Ledger = field(repr=False)
    released: bool = False

    def commit(self, nbytes: int) -> None:
        """Set the bytes really held, which may differ from what was reserved.

        Raises:
            BudgetError: if it grew beyond what the tier has left; the lease then is unchanged.
        """
        self._ledger._resize(self, nbytes)

    def release(self) -> None:
        """Give the bytes back; a second release does nothing."""
        self._ledger._release(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Ledger:
    """Bytes held per owner, tier and kind, with a hard limit per tier.

    Args:
        limits: bytes each tier may hold; a tier not named may hold nothing.
        events: where reservations and refusals are reported; None reports nowhere.
    """

    def __init__(self, limits: Mapping[str, int], events: Events | None = None) -> None:
        self._limits = dict(limits)
        self._used = dict.fromkeys(self._limits, 0)
        self._peak = dict.fromkeys(self._limits, 0)
        self._leases: list[Lease] = []
        self._events = events
        self._lock = threading.RLock()

    def reserve(self, owner: str, tier: str, nbytes: int, kind: str = "work") -> Lease:
        """Take `nbytes` of `tier` for `owner` before they are allocated.

        Args:
            kind: what the bytes are: "weights", "kv", "adapter", "work", "index", "tokenizer".

        Raises:
            BudgetError: if the tier has fewer bytes left; nothing is taken then.
        """
        with self._lock:
            self._check(owner, tier, nbytes, nbytes)
            lease = Lease(owner, tier, kind, nbytes, self)
            self._leases.append(lease)
            self._add(tier, nbytes)
        self._emit("ledger.reserve", lease)
        return lease

    def used(self, tier: str) -> int:
        """Return the bytes held on a tier now."""
        return self._used.get(tier, 0)

    def peak(self, tier: str) -> int:
        """Return the most bytes ever held on a tier."""
        return self._peak.get(tier, 0)

    def limit(self, tier: str) -> int:
        """Return the bytes a tier may hold."""
        return self._limits.get(tier, 0)

    def free(self, tier: str) -> int:
        """Return the bytes a tier may still take."""
        return self.limit(tier) - self.used(tier)

    def table(self) -> list[dict[str, str | int]]:
        """Return who holds what, largest first: rows of owner, tier, kind, nbytes."""
        with self._lock:
            rows: list[dict[str, str | int]] = [
                {"owner": x.owner, "tier": x.tier, "kind": x.kind, "nbytes": x.nbytes}
                for x in self._leases
            ]
        return sorted(rows, key=lambda row: -int(row["nbytes"]))

    def by_kind(self, tier: str) -> dict[str, int]:
        """Return {kind: bytes} held on a tier."""
        sums: dict[str, int] = {}
        with self._lock:
            for lease in self._leases:
                if lease.tier == tier:
                    sums[lease.kind] = sums.get(lease.kind, 0) + lease.nbytes
        return sums

    def check_integrity(self) -> None:
        """Raise AssertionError unless sums, limits and peaks agree with the leases."""
        with self._lock:
            for tier, used in self._used.items():
                held = sum(x.nbytes for x in self._leases if x.tier == tier)
                assert held == used, f"{tier}: leases hold {held} bytes, the sum says {used}"
                assert 0 <= used <= self._limits[tier], f"{tier}: {used} bytes are over the limit"
                assert self._peak[tier] >= used, f"{tier}: the peak is below what is held"
            assert all(not x.released and x.nbytes >= 0 for x in self._leases)

    # -- private ------------------------------------------------------------------------------

    def _check(self, owner: str, tier: str, more: int, whole: int) -> None:
        if whole < 0:
            raise ValueError(f"{owner} cannot hold {whole} bytes")
        if more > self.free(tier):
            gap = more - self.free(tier)
            biggest = ", ".join(
                f"{row['owner']} {format_bytes(int(row['nbytes']))}"
                for row in [r for r in self.table() if r["tier"] == tier][:3]
            )
            self._emit_refusal(owner, tier, more)
            raise BudgetError(
                f"{owner} needs {format_bytes(more)} more on {tier}; of "
                f"{format_bytes(self.limit(tier))} there are {format_bytes(self.free(tier))} left "
                f"({format_bytes(gap)} short)",
                way_out=[f"held now: {biggest or 'nothing'}", f"give {tier} a larger budget"],
            )

    def _add(self, tier: str, nbytes: int) -> None:
        self._used[tier] = self._used.get(tier, 0) + nbytes
        self._limits.setdefault(tier, 0)
        self._peak[tier] = max(self._peak.get(tier, 0), self._used[tier])

    def _resize(self, lease: Lease, nbytes: int) -> None:
        with self._lock:
            if lease.released:
                raise ValueError(f"the lease of {lease.owner} was released before")
            self._check(lease.owner, lease.tier, nbytes - lease.nbytes, nbytes)
            self._add(lease.tier, nbytes - lease.nbytes)
            lease.nbytes = nbytes
        self._emit("ledger.commit", lease)

    def _release(self, lease: Lease) -> None:
        with self._lock:
            if lease.released:
                return
            lease.released = True
            self._leases.remove(lease)
            self._add(lease.tier, -lease.nbytes)
        self._emit("ledger.release", lease)

    def _emit(self, name: str, lease: Lease) -> None:
        if self._events is not None:
            data = {"owner": lease.owner, "tier": lease.tier, "nbytes": lease.nbytes}
            self._events.emit(Event(name=name, data=data))

    def _emit_refusal(self, owner: str, tier: str, nbytes: int) -> None:
        if self._events is not None:
            data = {"owner": owner, "tier": tier, "nbytes": nbytes}
            self._events.emit(Event(name="ledger.refuse", data=data))

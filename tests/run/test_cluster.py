"""What can be said of a cluster without Ray."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from loci.errors import MissingExtraError, ParameterError
from loci.run import cluster
from loci.run.cluster import Cluster, LostError, shares


def test_a_budget_is_split_evenly_and_never_above_the_whole() -> None:
    assert shares({"dram": 1001, "disk": None, "kv": "bfp"}, 3) == {
        "dram": 333,
        "disk": None,
        "kv": "bfp",
    }


@pytest.mark.parametrize("replicas", [0, -1])
def test_there_is_at_least_one_replica(replicas: int) -> None:
    with pytest.raises(ParameterError, match="replicas must be >= 1"):
        shares({}, replicas)
    with pytest.raises(ParameterError, match="replicas must be >= 1"):
        Cluster(replicas)


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    before = dict(os.environ)
    with pytest.raises(MissingExtraError, match=r"loci\[cluster\]"):
        Cluster(2)
    assert dict(os.environ) == before


class Silent:
    """A handle of Ray's whose stream says some things, and then nothing for ever."""

    def __init__(self, *items: str) -> None:
        self.items, self.is_cancelled = items, False

    def options(self, **given: Any) -> Silent:
        return self

    def remote(self, *given: Any) -> Silent:
        return self

    async def __aiter__(self) -> AsyncIterator[str]:
        for item in self.items:
            yield item
        await asyncio.Future()

    def cancel(self) -> None:
        self.is_cancelled = True


@pytest.mark.parametrize(("items", "began"), [((), False), (("taken", "beat"), True)])
def test_who_says_nothing_for_long_is_lost_whatever_ray_knows(
    monkeypatch: pytest.MonkeyPatch, items: tuple[str, ...], began: bool
) -> None:
    monkeypatch.setattr(cluster, "SILENT_S", 0.05)
    handle, there = Silent(*items), Cluster.__new__(Cluster)
    there._handles = {"replica-0": handle}
    seen = []

    async def read() -> None:
        async for item in there.stream("replica-0", "handle", begin_s=0.05):
            seen.append(item)

    with pytest.raises(LostError) as lost:
        asyncio.run(read())
    assert lost.value.began is began and tuple(seen) == items and handle.is_cancelled

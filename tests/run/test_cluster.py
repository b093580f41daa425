"""What can be said of a cluster without Ray."""

from __future__ import annotations

import os
import sys

import pytest

from loci.errors import MissingExtraError, ParameterError
from loci.run.cluster import Cluster, shares


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

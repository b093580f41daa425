"""Every method that governs: gates by bounds, few false alarms, harm seen, requests that stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from loci.methods import catalogue
from loci.methods.recall.base import Govern
from loci.testing.govern import CONFORMANCE_GOVERN

GOVERNING = [
    name
    for name in catalogue.names("recall")
    if issubclass(catalogue.method_class(name, "recall"), Govern)
]


def test_there_is_one() -> None:
    assert "dmm_gov" in GOVERNING


@pytest.mark.parametrize("check", CONFORMANCE_GOVERN, ids=lambda check: str(check.__name__))
@pytest.mark.parametrize("name", GOVERNING)
def test_conformance(name: str, check: Callable[[Govern], None]) -> None:
    method = catalogue.find(name, "recall")
    assert isinstance(method, Govern)
    check(method)

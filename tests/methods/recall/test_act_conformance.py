"""Every method that acts: its example, its death and resurrection, its limits, its refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from loci.methods import catalogue
from loci.methods.recall.base import Act
from loci.run.agents import acting
from loci.testing.agents import CONFORMANCE_ACT, Make, tools_for


@pytest.mark.parametrize("check", CONFORMANCE_ACT, ids=lambda check: str(check.__name__))
@pytest.mark.parametrize("name", acting())
def test_conformance(name: str, check: Callable[[Act, Make], None]) -> None:
    method = catalogue.find(name, "recall")
    assert isinstance(method, Act)
    check(method, lambda: tools_for(method))

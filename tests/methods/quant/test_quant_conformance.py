"""Every quantisation method through the suite, none of them named."""

import pytest

from loci.core.method import Method
from loci.methods import catalogue
from loci.testing import quant


@pytest.mark.parametrize("cls", catalogue.all_methods("quant"), ids=lambda cls: cls.about.name)
def test_keeps_the_rules(cls: type[Method]) -> None:
    method = cls()
    assert isinstance(method, quant.Quant)
    quant.check(method)

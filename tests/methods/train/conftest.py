"""One tiny model for all tests of editors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loci.run.edit_model import PackModel
from loci.run.key_moments import prepare_covariance
from loci.testing.models import tiny_pack


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackModel]:
    pack = tiny_pack(tmp_path_factory.mktemp("editable"), layers=3, bits=4, seed=3)
    prepare_covariance(pack, range(3), texts=6)
    yield PackModel(pack)
    pack.close()

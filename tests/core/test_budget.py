"""Budgets: what is named, what is filled in, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loci.core.budget import SHARE_OF_FREE, Budget, Tier
from loci.errors import ParameterError

SIZES = st.one_of(st.none(), st.integers(0, 2**45))


def test_reads_sizes_as_people_write_them() -> None:
    assert Budget.parse(dram="160MiB", kv="12MB") == Budget(dram=160 * 2**20, kv=12 * 10**6)


def test_a_missing_size_is_not_named() -> None:
    assert Budget.parse(dram=None, gpu=None) == Budget()
    assert str(Budget()) == "nothing named"


def test_prints_what_is_named() -> None:
    assert str(Budget(dram=2**20, process=2**30)) == "dram 1.0 MiB, process 1.0 GiB"


def test_an_unknown_part_names_the_known_ones() -> None:
    with pytest.raises(ParameterError, match=r"unknown part of a budget; got 'ram'; .*dram"):
        Budget.parse(ram="1GiB")


def test_a_bad_size_names_its_option() -> None:
    with pytest.raises(ParameterError, match="--dram: cannot read the size 'lots'"):
        Budget.parse(dram="lots")


@pytest.mark.parametrize("value", [-1, 1.5, "1GiB"])
def test_refuses_what_is_no_count_of_bytes(value: object) -> None:
    with pytest.raises(ParameterError, match=r"budget\.dram must be a whole number"):
        Budget(dram=value)  # type: ignore[arg-type]


@given(gpu=SIZES, dram=SIZES, disk=SIZES, free=st.integers(0, 2**45))
def test_filling_keeps_what_was_named(
    gpu: int | None, dram: int | None, disk: int | None, free: int
) -> None:
    filled = Budget(gpu=gpu, dram=dram, disk=disk).filled({"gpu": free, "dram": free, "disk": free})
    assert filled.gpu == (int(free * SHARE_OF_FREE) if gpu is None else gpu)
    assert filled.dram == (int(free * SHARE_OF_FREE) if dram is None else dram)
    assert filled.disk == (disk or 0)  # disk must be asked for
    assert filled.remote == 0
    assert filled.filled({}) == filled


def test_limits_name_every_tier() -> None:
    assert Budget(dram=5, kv=3).limits() == {"gpu": 0, "dram": 5, "disk": 0, "remote": 0}
    assert list(Tier) == ["gpu", "dram", "disk", "remote"]


def test_a_machine_without_a_gpu_gives_none() -> None:
    assert Budget().filled({"dram": 100}).gpu == 0

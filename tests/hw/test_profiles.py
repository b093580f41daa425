"""Machines by name: every row has a source, and wrong ones are refused."""

from __future__ import annotations

import pytest

from loci.errors import FormatError, ParameterError
from loci.hw.probe import Gpu, Machine, Rates
from loci.hw.profiles import (
    DeviceProfile,
    TierFacts,
    load_profile,
    names,
    parse_machines,
    profile_of,
)

RATES = Rates(
    dram_read=20e9,
    disk_read=1e9,
    disk_latency_s=1e-4,
    direct=True,
    float32=40e9,
    launch_s=3e-6,
    measured="2026-01-01T00:00:00+00:00",
)
MACHINE = Machine(
    system="Linux", cpu="x", cores=2, simd=(), dram_total=100, dram_free=50, disk_free=70
)


def test_every_machine_has_facts_a_source_and_a_date() -> None:
    assert len(names()) >= 15
    for name in names():
        profile = load_profile(name)
        assert profile.name == name and profile.source and profile.tiers
        assert len(profile.checked) == 10
        for facts in profile.tiers.values():
            assert facts.bytes >= 2**30 and 1e8 < facts.read_bytes_per_s < 1e13
        assert all(1e9 < rate < 1e16 for rate in profile.rates.values())


def test_published_figures() -> None:
    h200 = load_profile("h200")
    assert h200.tier("gpu") == TierFacts(bytes=141_000_000_000, read_bytes_per_s=4.8e12)
    assert h200.rates["bfloat16"] == 989.5e12
    # SN40L (arXiv 2405.07518), derived: an expert of 13.48e9 bytes takes 0.421 s over an A100's
    # host link at 32e9 bytes/s; the link's line coding makes it a little longer.
    assert 13.48e9 / load_profile("a100").link("dram", "gpu") == pytest.approx(0.421, rel=0.02)


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(ParameterError, match="rtx-4090"):
        load_profile("RTX 4091")


def test_time_to_read() -> None:
    facts = TierFacts(bytes=1, read_bytes_per_s=100, latency_s=0.5)
    assert facts.seconds(200) == 2.5 and facts.seconds(200, reads=4) == 4


def test_links_and_tiers_that_are_not_known() -> None:
    phone = load_profile("phone-snapdragon-8-gen-3")
    assert phone.link("disk", "dram") == phone.tier("disk").read_bytes_per_s
    with pytest.raises(ParameterError, match="dram to gpu"):
        phone.link("dram", "gpu")
    with pytest.raises(ParameterError, match="gpu"):
        phone.tier("gpu")
    with pytest.raises(ParameterError):
        load_profile("h200").link("disk", "dram")


def test_the_profile_of_this_machine() -> None:
    mine = profile_of(MACHINE, RATES)
    assert mine.tiers == {
        "dram": TierFacts(bytes=100, read_bytes_per_s=20e9),
        "disk": TierFacts(bytes=70, read_bytes_per_s=1e9, latency_s=1e-4),
    }
    assert mine.rates == {"float32": 40e9} and mine.launch_s == 3e-6
    assert mine.checked == RATES.measured


@pytest.mark.parametrize("known", [True, False])
def test_a_gpu_joins_when_its_speed_is_known(known: bool) -> None:
    from dataclasses import replace

    name = "NVIDIA H200" if known else "Somebody's GPU"
    mine = profile_of(replace(MACHINE, gpus=(Gpu(name=name, total=9, free=8),)), RATES)
    assert ("gpu" in mine.tiers) is known
    if known:
        assert mine.tier("gpu") == TierFacts(bytes=9, read_bytes_per_s=4.8e12)
        assert mine.link("dram", "gpu") == load_profile("h200").link("dram", "gpu")


GOOD = """
format = "loci-machines"
version = 1
[machine.a]
tiers.dram = { bytes = 1, read_bytes_per_s = 1.0 }
source = "x"
checked = 2026-01-01
"""


def test_a_good_table_is_read() -> None:
    assert list(parse_machines(GOOD)) == ["a"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version = 1", "version = 2"),
        ('source = "x"', 'source = ""'),
        ('source = "x"', ""),
        ("checked = 2026-01-01", 'checked = "soon"'),
        ("checked = 2026-01-01", "checked = 2026-01-01\nspeed = 1"),
        ("read_bytes_per_s = 1.0", "read_bytes_per_s = 0.0"),
        ("read_bytes_per_s = 1.0", "speed = 1.0"),
        ("tiers.dram", "tiers.ram"),
        ("[machine.a]", "[machine.a"),
        ('source = "x"', 'source = "x"\nlinks.dram = 1.0'),
        ('source = "x"', 'source = "x"\nrates = { float32 = -1.0 }'),
    ],
)
def test_tables_that_are_wrong_are_refused(old: str, new: str) -> None:
    assert old in GOOD
    with pytest.raises(FormatError):
        parse_machines(GOOD.replace(old, new))


def test_profiles_are_values() -> None:
    made = DeviceProfile(
        name="x",
        tiers={"dram": TierFacts(bytes=1, read_bytes_per_s=1)},
        source="a test",
        checked="2026-01-01",
    )
    assert made.rates == {} and made.launch_s == 0

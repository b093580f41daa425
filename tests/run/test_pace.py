"""Measuring a machine: rates come out of times as they went in, and are remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loci.hw.probe import Machine, probe
from loci.hw.profiles import DeviceProfile, Pace, TierFacts
from loci.methods.cost.base import graph_of
from loci.methods.cost.roofline import Roofline
from loci.run import pace, runtime
from loci.run.runtime import Runtime

PROMISED = DeviceProfile(
    name="promised",
    tiers={
        "dram": TierFacts(bytes=2**34, read_bytes_per_s=3e10),
        "disk": TierFacts(bytes=2**34, read_bytes_per_s=2e9),
    },
    rates={"float32": 2e11},
    launch_s=1e-6,
    source="a test",
    checked="2026-11-26",
)
REACHED = {
    "product4": 2e10,
    "product8": 3e10,
    "gemm": 1e11,
    "unpack": 2e9,
    "attend": 5e9,
    "decode_kv": 4e9,
    "attend_many": 6e10,
}
LAUNCH_S, DECODE_START_S = 2e-5, 3e-4


@pytest.fixture
def true_machine(monkeypatch: pytest.MonkeyPatch) -> DeviceProfile:
    """Let the runner take exactly as long as a known machine would."""
    rates = {f"float32/{does}": rate for does, rate in REACHED.items()}
    machine = replace(
        PROMISED,
        rates=PROMISED.rates | rates,
        launch_s=LAUNCH_S,
        starts={"float32/decode_kv": DECODE_START_S},
    )

    def seconds(spec: Any, phase: Any, tokens: int, keys: int, is_decoded: bool) -> float:
        work = graph_of(
            spec,
            phase,
            tokens=tokens,
            keys=tokens + keys,
            kv_bytes_per_element=1.0 if is_decoded else 4.0,
            decoded=is_decoded,
        )
        return Roofline().estimate(work, machine).seconds_per_token

    monkeypatch.setattr(
        pace, "_decode_s", lambda made, keys, chain=(): seconds(made.spec, "decode", 1, keys, chain)
    )
    monkeypatch.setattr(
        pace,
        "_prompt_s",
        lambda made, tokens, keys, chain=(): seconds(made.spec, "prefill", tokens, keys, chain),
    )
    return machine


def test_rates_come_out_as_they_went_in(true_machine: DeviceProfile, tmp_path: Path) -> None:
    found = pace.measure(PROMISED, tmp_path)
    assert found.launch_s == pytest.approx(LAUNCH_S, rel=0.05)
    assert found.starts["float32/decode_kv"] == pytest.approx(DECODE_START_S, rel=0.15)
    assert found.rates == pytest.approx(
        {f"float32/{does}": rate for does, rate in REACHED.items()}, rel=0.15
    )
    assert found.disk_bytes_per_s > 1e6  # the disk is a real one
    assert list(tmp_path.iterdir()) == []


def test_a_profile_with_its_pace_predicts_the_times(
    true_machine: DeviceProfile, tmp_path: Path
) -> None:
    profile = pace.measure(PROMISED, tmp_path).on(PROMISED)
    spec = replace(pace._spec(hidden=576, ffn=1536, heads=9, kv_heads=3, layers=30), weight_bits=5)
    for phase, tokens, keys, codes in (
        ("decode", 1, 500, False),
        ("decode", 1, 500, True),
        ("prefill", 128, 128, False),
        ("prefill", 64, 1024, False),
    ):
        work = graph_of(spec, phase, tokens=tokens, keys=keys, decoded=codes)  # type: ignore[arg-type]
        predicted, truth = (
            Roofline().estimate(work, on).seconds_per_token for on in (profile, true_machine)
        )
        assert predicted == pytest.approx(truth, rel=0.1)
        promised = Roofline().estimate(work, PROMISED).seconds_per_token
        assert promised < truth / 2  # what was promised alone


def test_a_profile_without_a_disk_keeps_none() -> None:
    bare = replace(PROMISED, tiers={"dram": PROMISED.tiers["dram"]})
    known = Pace(launch_s=1e-5, rates={"float32/gemm": 1e10}, disk_bytes_per_s=1e9)
    assert set(known.on(bare).tiers) == {"dram"}
    assert known.on(PROMISED).tiers["disk"].read_bytes_per_s == 1e9
    assert known.on(PROMISED).rates["float32"] == 2e11


def test_the_runner_runs_over_made_up_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(pace, "_BUDGET_S", 0.0)
    spec = pace._spec(hidden=64, ffn=96, heads=2, kv_heads=1, layers=2)
    made = pace.MadeUp(spec, 4, torch.Generator().manual_seed(0))
    codes = pace.catalogue.parse_chain(pace._CODES, "kv")
    assert all(pace._decode_s(made, keys, chain) > 0 for keys in (0, 40) for chain in ((), codes))
    assert all(
        pace._prompt_s(made, 16, keys, chain) > 0 for keys in (0, 40) for chain in ((), codes)
    )
    assert made.spec.weight_bits == 5.0
    layer = made.layer(0)
    counted = sum(layer[name].nbytes for name in spec.layer_linears())
    assert counted * 8 / spec.linear_elements() * 2 == 5.0


# -- what is remembered -----------------------------------------------------------------------

PRINTED = {
    "bytes": 230_000_000,
    "pace": {"launch_s": 1e-5, "rates": {"float32/gemm": 1e11}, "disk_bytes_per_s": 1e9},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often the machine is measured, and measure nothing."""
    times: list[int] = []

    def measured(cache: Path, progress: object) -> dict[str, Any]:
        times.append(1)
        return PRINTED

    monkeypatch.setattr(runtime, "_measured", measured)
    monkeypatch.setattr(runtime.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    return times


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return probe(tmp_path)


def test_a_machine_is_measured_once(asked: list[int], machine: Machine, tmp_path: Path) -> None:
    first = runtime.runtime(tmp_path, machine)
    assert first == Runtime(bytes=230_000_000, pace=Pace(**PRINTED["pace"]))  # type: ignore[arg-type]
    assert runtime.runtime(tmp_path, machine) == first and len(asked) == 1
    runtime.runtime(tmp_path, replace(machine, cpu="another"))
    assert len(asked) == 2
    (tmp_path / "runtime.json").write_text("{")
    runtime.runtime(tmp_path, machine)
    assert len(asked) == 3


def test_a_busy_machine_is_measured_again_when_it_is_quiet(
    asked: list[int], machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    assert runtime.runtime(tmp_path, machine).is_busy
    assert runtime.runtime(tmp_path, machine).is_busy and len(asked) == 1
    monkeypatch.setattr(runtime.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert not runtime.runtime(tmp_path, machine).is_busy and len(asked) == 2


def test_a_cache_that_cannot_be_written_is_no_matter(
    asked: list[int], machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "cache").touch()
    assert runtime.runtime(tmp_path / "cache", machine).bytes == 230_000_000


@pytest.mark.parametrize(
    "script", ["raise SystemExit(1)", "print('hello')", "print('{\"bytes\": 1}')"]
)
def test_a_machine_that_cannot_be_measured_is_not_known(
    script: str, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = runtime.subprocess.Popen
    monkeypatch.setattr(
        runtime.subprocess,
        "Popen",
        lambda command, **options: real([command[0], "-c", script], **options),
    )
    told: list[int] = []
    found = runtime.runtime(tmp_path, machine, progress=lambda what, done, of: told.append(done))
    assert found == Runtime()
    assert told[-1] == 100
    assert not (tmp_path / "runtime.json").exists()


@pytest.mark.slow
def test_this_machine_is_measured_in_a_process_of_its_own(tmp_path: Path, machine: Machine) -> None:
    found = runtime.runtime(tmp_path, machine)
    assert found.bytes is not None and 50e6 < found.bytes < 2e9
    assert found.pace is not None and set(found.pace.rates) == {
        f"float32/{does}" for does in REACHED
    }
    kept = json.loads((tmp_path / "runtime.json").read_text())
    assert kept["format"] == "loci-runtime"
    assert {path.name for path in tmp_path.iterdir()} == {"runtime.json", "rates.json"}

"""What a machine has, also inside a container, and how fast it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import loci
from loci.core.budget import Budget
from loci.core.clock import ManualClock
from loci.errors import StorageError
from loci.hw import probe as module
from loci.hw.probe import Gpu, Machine, measure, probe

GIB = 2**30


def files(root: Path, **content: str) -> Path:
    for name, text in content.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return files(
        tmp_path / "root",
        proc__meminfo=f"MemTotal: {8 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {6 * 2**20} kB\n",
        proc__cpuinfo="model name : Some CPU\nflags : fpu sse2 avx2 avx512f\n\nmodel name : B\n",
    )


def none() -> str:
    return ""


def test_this_machine() -> None:
    found = probe()
    assert found.cores >= 1 and found.disk_free > 0
    assert 0 < found.dram_free <= found.dram_total
    assert found == probe() or found.key() == probe().key()
    assert Budget().filled(found.free()).dram == int(found.dram_free * 0.8)


def test_torch_is_not_imported() -> None:
    program = (
        "import sys; from loci.hw.probe import probe; from loci.hw.profiles import names;"
        "probe(); names(); assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    source = str(Path(loci.__file__).parents[1])
    environment = {"PYTHONPATH": source, "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_facts_come_from_proc(root: Path) -> None:
    found = probe(root / "not" / "there", root=root, smi=none)
    assert (found.cpu, found.simd) == ("Some CPU", ("avx512f", "avx2", "sse2"))
    assert (found.dram_total, found.dram_free) == (8 * GIB, 6 * GIB)
    assert found.gpus == () and not any("group" in each for each in found.limited)


def test_limits_of_control_groups_version_2(root: Path) -> None:
    files(
        root,
        proc__self__cgroup="0::/a/b\n",
        sys__fs__cgroup__a__b__cpu_DOT_max="max 100000\n",
        sys__fs__cgroup__a__cpu_DOT_max="50000 100000\n",
        sys__fs__cgroup__a__b__memory_DOT_max="max\n",
        sys__fs__cgroup__a__memory_DOT_max=f"{2 * GIB}\n",
        sys__fs__cgroup__a__memory_DOT_current=f"{GIB}\n",
        sys__fs__cgroup__a__memory_DOT_stat=f"anon 5\ninactive_file {GIB // 2}\n",
    )
    found = probe(root, root=root, smi=none)
    assert found.cores == 1
    assert (found.dram_total, found.dram_free) == (2 * GIB, GIB + GIB // 2)
    assert any("0.5 CPUs" in each for each in found.limited) or os.cpu_count() == 1
    assert any(str(2 * GIB) in each for each in found.limited)


def test_limits_of_control_groups_version_1(root: Path) -> None:
    files(
        root,
        proc__self__cgroup="7:memory:/x\n5:cpu,cpuacct:/x\n0::/\n",
        sys__fs__cgroup__cpu__x__cpu_DOT_cfs_quota_us="100000\n",
        sys__fs__cgroup__cpu__x__cpu_DOT_cfs_period_us="100000\n",
        sys__fs__cgroup__cpu__cpu_DOT_cfs_quota_us="-1\n",
        sys__fs__cgroup__cpu__cpu_DOT_cfs_period_us="100000\n",
        sys__fs__cgroup__memory__x__memory_DOT_limit_in_bytes=f"{GIB}\n",
        sys__fs__cgroup__memory__x__memory_DOT_usage_in_bytes=f"{2 * GIB}\n",
    )
    found = probe(root, root=root, smi=none)
    assert found.cores == 1
    assert (found.dram_total, found.dram_free) == (GIB, 0)


def test_a_group_outside_of_what_can_be_seen(root: Path) -> None:
    files(
        root,
        proc__self__cgroup="0::/../../other\n",
        sys__fs__cgroup__memory_DOT_max=f"{GIB}\n",
        sys__fs__cgroup__memory_DOT_current="0\n",
    )
    assert probe(root, root=root, smi=none).dram_total == GIB


def test_gpus_as_nvidia_smi_prints_them(root: Path) -> None:
    printed = "NVIDIA H200, 143771, 143000\nNVIDIA H200, [N/A], 1\nnonsense\n"
    found = probe(root, root=root, smi=lambda: printed)
    assert found.gpus == (Gpu(name="NVIDIA H200", total=143771 * 2**20, free=143000 * 2**20),)
    assert found.free()["gpu"] == 143000 * 2**20
    unknown = replace(found, gpus=(Gpu(name="x", total=5, free=None),))
    assert unknown.free()["gpu"] == 5


def test_an_nvidia_smi_that_fails(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA X, 1, 1\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda name: str(program))
    assert probe(root, root=root).gpus == ()
    monkeypatch.setattr(module.shutil, "which", lambda name: str(tmp_path / "absent"))
    assert probe(root, root=root).gpus == ()


@pytest.fixture
def machine(root: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(module, "_BUDGET_S", 0.0)
    monkeypatch.setattr(module, "_DISK_BYTES", 8 * 2**20)
    monkeypatch.setattr(module, "_DRAM_BYTES", 2**20)
    return replace(probe(root, root=root, smi=none), cores=2)


def test_rates_are_measured_and_nothing_is_left_behind(tmp_path: Path, machine: Machine) -> None:
    cache = tmp_path / "new" / "rates.json"
    rates = measure(cache, machine=machine)
    assert rates.dram_read > 1e6 and rates.disk_read > 1e4 and rates.float32 > 1e6
    assert rates.disk_latency_s > 0 and rates.launch_s > 0
    assert list(cache.parent.iterdir()) == [cache]


def test_rates_are_read_back_until_something_changes(tmp_path: Path, machine: Machine) -> None:
    cache, clock = tmp_path / "rates.json", ManualClock()
    first = measure(cache, machine=machine, clock=clock)
    clock.advance(60)
    assert measure(cache, machine=machine, clock=clock) == first
    assert measure(cache, machine=replace(machine, dram_free=1), clock=clock) == first
    for changed in (replace(machine, cores=1), replace(machine, cpu="Another")):
        assert measure(cache, machine=changed, clock=clock).measured != first.measured
        clock.advance(60)
    forced = measure(cache, True, machine=machine, clock=clock)
    assert forced.measured == clock.now().isoformat(timespec="seconds")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}'])
def test_a_damaged_file_is_measured_again(tmp_path: Path, machine: Machine, text: str) -> None:
    cache = tmp_path / "rates.json"
    cache.write_text(text)
    rates = measure(cache, machine=machine)
    data = json.loads(cache.read_text())
    assert data["format"] == "loci-rates" and data["rates"]["float32"] == rates.float32
    data["rates"]["unknown"] = 1
    cache.write_text(json.dumps(data))
    measure(cache, machine=machine)
    assert "unknown" not in json.loads(cache.read_text())["rates"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, machine: Machine) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot measure"):
        measure(tmp_path / "file" / "rates.json", machine=machine)


def test_a_disk_without_direct_reads_says_so(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    assert not measure(tmp_path / "rates.json", machine=machine).direct

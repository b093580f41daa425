"""What a process holds, found by walking it."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import torch

from loci.run import measure
from loci.testing.models import tiny_pack


def test_a_storage_is_counted_once_however_many_views_it_has() -> None:
    gc.collect()
    before = frozenset(measure.tensor_storages())
    base = torch.zeros(1000)
    views = [base[:10], base.view(10, 100), base.t()]
    found = {a: n for a, n in measure.tensor_storages().items() if a not in before}
    assert found == {base.data_ptr(): 4000}
    assert views
    del base, views
    gc.collect()
    assert not {a for a in measure.tensor_storages() if a not in before}


def test_a_mapped_pack_is_counted_once_with_its_tensors(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path / "tiny")
    gc.collect()
    before = measure.held_bytes()
    weights = [pack.block(name) for name in pack.names()]
    held = measure.held_bytes() - before
    size = pack.path.stat().st_size
    assert size <= held <= size + 4096  # whole pages
    assert str(pack.path) in measure.mapped_files()
    assert weights
    pack.close()
    del weights
    gc.collect()
    assert measure.held_bytes() <= before


INNER = "from loci.run import measure as m; print(m.peak_resident_bytes(), m.resident_bytes())"


def test_the_peak_is_of_this_process_and_not_of_what_started_it() -> None:
    run = f"subprocess.run([sys.executable, '-c', {INNER!r}], capture_output=True, text=True)"
    outer = (
        "import subprocess, sys\nheld = bytearray(b'x') * 600_000_000\n"
        f"done = {run}\nprint(done.stdout)"
    )
    done = subprocess.run([sys.executable, "-c", outer], capture_output=True, text=True, check=True)
    peak, resident = map(int, done.stdout.split())
    assert abs(peak - resident) < 100_000_000


def test_the_peak_stays_when_memory_goes() -> None:
    rows = torch.ones(16_000_000)
    assert rows.sum() > 0
    held = measure.resident_bytes()
    del rows
    gc.collect()
    assert measure.peak_resident_bytes() >= held - 2**20

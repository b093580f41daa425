"""What Python and its libraries take, and how fast they run a decoder: measured once, remembered.

Both are measured in a process of its own, so that what measuring takes is not in the process that
answers. A measurement made while other programs had the processors is used, but not for long: it is
made again when the machine is quiet.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any  # JSON

from loci import __version__
from loci.hw.probe import Machine
from loci.hw.profiles import Pace

FORMAT, VERSION = "loci-runtime", 3
BUSY = 0.5  # processes that want a processor, per processor, before we begin
MEASURING, EXPECTED_S, PATIENCE_S = "measuring this machine, once", 12.0, 180.0

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What was measured of this machine; None where it could not be.

    Attributes:
        bytes: resident memory of a process that could run a model, before a model is there.
        pace: the speeds that kernels reach.
        is_busy: other programs had the processors meanwhile, so `pace` may be too slow.
    """

    bytes: int | None = None
    pace: Pace | None = None
    is_busy: bool = False


def runtime(cache: Path, machine: Machine, *, progress: Progress | None = None) -> Runtime:
    """Return what was measured of this machine, now or earlier.

    Args:
        cache: folder where it is kept; another machine, Python, torch or Loci measures again.
        progress: told (what, done, whole) while it is measured, which takes some seconds.
    """
    made_by = _made_by(machine)
    file = cache / "runtime.json"
    kept = _read(file, made_by)
    if kept is not None and not (kept.is_busy and not _is_busy(machine)):
        return kept
    is_busy = _is_busy(machine)
    printed = _measured(cache, progress)
    if printed is None:
        return kept or Runtime()
    record = {"format": FORMAT, "version": VERSION, "made_by": made_by, "busy": is_busy, **printed}
    try:
        cache.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f".{file.name}.{os.getpid()}.partial")
        fresh.write_text(json.dumps(record, indent=1), encoding="utf-8")
        fresh.replace(file)
    except OSError:
        pass  # then the next plan measures again
    return _runtime(record)


def alone(cache: str) -> None:
    """Measure in this process, which did nothing else, and print JSON."""
    import psutil
    import torch

    from loci.hw import probe, profiles
    from loci.run import engine, pace  # noqa: F401  # the libraries of a run

    square = torch.ones(64, 64)
    (square @ square).sum()  # so that torch has made its threads and scratch memory
    resident = psutil.Process().memory_info().rss
    folder = Path(cache)
    machine = probe.probe(folder)
    rates = probe.measure(folder / "rates.json", machine=machine)
    found = pace.measure(profiles.profile_of(machine, rates), folder)
    sys.stdout.write(json.dumps({"bytes": resident, "pace": asdict(found)}))


# -- private ----------------------------------------------------------------------------------


def _read(file: Path, made_by: str) -> Runtime | None:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if (record["format"], record["version"], record["made_by"]) != (FORMAT, VERSION, made_by):
            return None
        return _runtime(record)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not measured yet, or by another version


def _runtime(record: dict[str, Any]) -> Runtime:
    return Runtime(
        bytes=int(record["bytes"]), pace=Pace(**record["pace"]), is_busy=bool(record["busy"])
    )


def _measured(cache: Path, progress: Progress | None) -> dict[str, Any] | None:
    """Return what a fresh process printed; None when it could not measure."""
    code = "import sys; from loci.run import runtime; runtime.alone(sys.argv[1])"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(cache)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    except OSError:
        return None
    began, printed = time.monotonic(), ""
    with process:
        while True:
            try:
                printed, _ = process.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                spent = time.monotonic() - began
                if spent > PATIENCE_S:
                    process.kill()
                    return None
                if progress is not None:  # nobody knows how long; the bar never quite ends
                    share = min(99, round(100 * spent / EXPECTED_S))
                    progress(MEASURING, share, 100)
    if progress is not None:
        progress(MEASURING, 100, 100)
    try:
        found: dict[str, Any] = json.loads(printed)
        _runtime({**found, "busy": False})
    except (ValueError, KeyError, TypeError):
        return None
    return found


def _made_by(machine: Machine) -> str:
    """Return what decides the result: versions, machine, and which kernels were compiled."""
    kernels, native = find_spec("loci.nn._native"), "no kernels"
    if kernels is not None and kernels.origin is not None:
        stat = os.stat(kernels.origin)
        native = f"kernels of {stat.st_size} bytes, {stat.st_mtime_ns}"
    return (
        f"loci {__version__}, python {platform.python_version()}, torch {_torch()}, {native}, "
        f"machine {machine.key()}"
    )


def _is_busy(machine: Machine) -> bool:
    try:
        return os.getloadavg()[0] > BUSY * machine.cores
    except OSError:  # systems that do not tell
        return False


def _torch() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "missing"

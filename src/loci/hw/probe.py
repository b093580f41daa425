"""What this machine has (`probe`) and how fast it is (`measure`).

Facts come from /proc and /sys where they exist and respect what the process may really use: its
CPU affinity and the CPU and memory limits of its control groups, which inside a container are
smaller than the machine. Rates are measured in about two seconds and kept in a file that names
the machine they were measured on; another machine measures again. Nothing here imports torch at
its top, and `probe` never does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any  # JSON from a file

from loci.core.clock import SystemClock
from loci.core.ports import Clock
from loci.errors import StorageError

FORMAT, VERSION = "loci-rates", 1
SIMD_ORDER = ("avx512f", "avx2", "avx", "sse2", "asimd", "neon")
PAGE = 4096

_DISK_BYTES = 64 * 2**20  # of the file that is written and read once
_READ_BYTES = 2**20  # of one read
_DRAM_BYTES = 256 * 2**20  # at most, over all threads
_BUDGET_S = 0.4  # of each measurement


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A graphics processor: its name and its memory in bytes. `free` is None when unknown."""

    name: str
    total: int
    free: int | None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a machine has, as far as this process may use it.

    Attributes:
        cpu: model name.
        cores: processors this process may run on; fractions of a CPU limit are rounded up.
        simd: vector instructions, strongest first, such as ("avx512f", "avx2").
        dram_total, dram_free: bytes, the smaller of the machine and its control groups.
        disk_free: bytes a user may write in the folder that was asked about.
        limited: what made `cores` or the memory smaller than the machine; empty when nothing did.
    """

    system: str
    cpu: str
    cores: int
    simd: tuple[str, ...]
    dram_total: int
    dram_free: int
    disk_free: int
    gpus: tuple[Gpu, ...] = ()
    limited: tuple[str, ...] = ()

    def free(self) -> dict[str, int]:
        """Return {tier: bytes} that are free, as `Budget.filled` takes them."""
        gpu = self.gpus[0] if self.gpus else None
        return {
            "gpu": (gpu.total if gpu.free is None else gpu.free) if gpu else 0,
            "dram": self.dram_free,
            "disk": self.disk_free,
        }

    def key(self) -> str:
        """Return a short hash of what decides its speed; free bytes are not part of it."""
        facts = [self.system, self.cpu, self.cores, self.simd, self.dram_total]
        facts += [gpu.name for gpu in self.gpus]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast a machine is.

    Attributes:
        dram_read: bytes/s that all cores read together from memory.
        disk_read: bytes/s of reads of 1 MiB, two at a time, past the page cache.
        disk_latency_s: of one read of 4 KiB.
        direct: whether the disk was read past the page cache; if not, `disk_read` may be the
            speed of memory.
        float32: operations/s of a matrix product, a multiplication and an addition count two.
        launch_s: fixed time of one small operator; 0 without torch.
        measured: when, ISO 8601.
    """

    dram_read: float
    disk_read: float
    disk_latency_s: float
    direct: bool
    float32: float
    launch_s: float
    measured: str


# -- what it has ------------------------------------------------------------------------------


def probe(
    folder: Path | str = ".", *, root: Path = Path("/"), smi: Callable[[], str] | None = None
) -> Machine:
    """Return what this machine has.

    Args:
        folder: whose disk `disk_free` is about; the nearest existing parent counts.
        root: where `proc` and `sys` are; tests give their own.
        smi: returns what nvidia-smi says; None runs it when it is installed.
    """
    info = _cpuinfo(root)
    flags = set((info.get("flags") or info.get("Features") or "").split())
    cores, limits = _cores(root)
    total, free, more = _dram(root)
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return Machine(
        system=platform.system(),
        cpu=info.get("model name") or platform.processor() or platform.machine(),
        cores=cores,
        simd=tuple(name for name in SIMD_ORDER if name in flags),
        dram_total=total,
        dram_free=free,
        disk_free=shutil.disk_usage(place).free,
        gpus=_gpus(smi or _nvidia_smi),
        limited=(*limits, *more),
    )


def _cpuinfo(root: Path) -> dict[str, str]:
    """Return the lines about the first processor."""
    lines = _text(root / "proc/cpuinfo").split("\n\n")[0].splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cores(root: Path) -> tuple[int, list[str]]:
    machine = os.cpu_count() or 1
    affinity = getattr(os, "sched_getaffinity", None)
    cores, limits = (len(affinity(0)) if affinity else machine), []
    if cores < machine:
        limits.append(f"CPU affinity: {cores} of {machine}")
    for group in _groups(root, "cpu"):
        words = _text(group / "cpu.max").split()
        if not words:
            words = [_text(group / f"cpu.cfs_{part}_us").strip() for part in ("quota", "period")]
        with contextlib.suppress(ValueError, IndexError, ZeroDivisionError):
            allowed = int(words[0]) / int(words[1])  # "max" is no number: no limit
            if 0 < allowed < cores:
                cores = max(1, math.ceil(allowed))
                limits.append(f"control group: {allowed:g} CPUs")
    return cores, limits


def _dram(root: Path) -> tuple[int, int, list[str]]:
    """Return total and free bytes, and what limits them."""
    words = (line.split() for line in _text(root / "proc/meminfo").splitlines())
    table = {row[0].rstrip(":"): int(row[1]) * 1024 for row in words if len(row) > 1}
    if "MemTotal" in table:
        total, free = table["MemTotal"], table.get("MemAvailable", table.get("MemFree", 0))
    else:
        import psutil

        memory = psutil.virtual_memory()
        total, free = memory.total, memory.available
    limits = []
    for group in _groups(root, "memory"):
        new = (group / "memory.max").exists()
        with contextlib.suppress(ValueError):  # "max" is no number: no limit
            limit = int(_text(group / ("memory.max" if new else "memory.limit_in_bytes")))
            used = int(_text(group / ("memory.current" if new else "memory.usage_in_bytes")))
            # Pages of files that nobody used lately count as used and are given up on demand.
            rows = (line.split() for line in _text(group / "memory.stat").splitlines())
            name = "inactive_file" if new else "total_inactive_file"
            cached = sum(int(row[1]) for row in rows if row[0] == name)
            if limit < total:
                total = limit
                limits.append(f"control group: {limit} bytes of memory")
            free = min(free, max(0, limit - used + cached))
    return total, free, limits


def _groups(root: Path, controller: str) -> list[Path]:
    """Return the folders of this process's control group and of all groups above it."""
    folders: list[Path] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            base = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            base = root / "sys/fs/cgroup" / controller
        else:
            continue
        place = base / path.lstrip("/")
        if ".." in place.parts:
            place = base
        while True:
            folders.append(place)
            if place == base:
                break
            place = place.parent
    return folders


def _gpus(smi: Callable[[], str]) -> tuple[Gpu, ...]:
    """Return the GPUs that nvidia-smi sees, or those of a torch that somebody else imported."""
    found = []
    for line in smi().splitlines():
        parts = [part.strip() for part in line.split(",")]
        with contextlib.suppress(ValueError):
            name, total, free = parts
            found.append(Gpu(name=name, total=int(total) * 2**20, free=int(free) * 2**20))
    torch = sys.modules.get("torch")
    if not found and torch is not None and torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            found.append(Gpu(name=facts.name, total=facts.total_memory, free=None))
    return tuple(found)


def _nvidia_smi() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = ["--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run([program, *query], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# -- how fast it is ---------------------------------------------------------------------------


def measure(
    cache: Path | str,
    force: bool = False,
    *,
    machine: Machine | None = None,
    clock: Clock | None = None,
) -> Rates:
    """Return the rates of this machine, measured now or read from `cache`.

    The file is written beside a scratch file of 64 MiB, which is deleted again: the disk that is
    measured is the one that holds `cache`.

    Args:
        cache: a JSON file; made with its folder when it is not there. One that is damaged, of
            another version, or of another machine is measured again and replaced.
        force: measure even when the file has what is needed.
        machine: what `probe` returned; None probes.

    Raises:
        StorageError: if the folder cannot be written.
    """
    cache, clock = Path(cache), clock or SystemClock()
    machine = machine or probe(cache.parent)
    if not force:
        known = _load(cache, machine)
        if known is not None:
            return known
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        disk_read, latency, direct = _disk_rate(cache.parent, clock)
    except OSError as error:
        raise StorageError(
            f"cannot measure the disk at {cache.parent}: {error.strerror or error}",
            way_out="name a folder with 64 MiB free that may be written",
        ) from error
    float32, launch = _arithmetic(clock)
    rates = Rates(
        dram_read=_dram_rate(machine, clock),
        disk_read=disk_read,
        disk_latency_s=latency,
        direct=direct,
        float32=float32,
        launch_s=launch,
        measured=clock.now().isoformat(timespec="seconds"),
    )
    _save(cache, machine, rates)
    return rates


def _load(cache: Path, machine: Machine) -> Rates | None:
    try:
        data: dict[str, Any] = json.loads(_text(cache))
        if (data["format"], data["version"], data["key"]) != (FORMAT, VERSION, machine.key()):
            return None
        return Rates(**data["rates"])
    except (ValueError, KeyError, TypeError):
        return None


def _save(cache: Path, machine: Machine, rates: Rates) -> None:
    data: Mapping[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "key": machine.key(),
        "machine": {"cpu": machine.cpu, "cores": machine.cores, "system": machine.system},
        "rates": asdict(rates),
    }
    temporary = cache.with_name(f".{cache.name}.{os.urandom(4).hex()}.partial")
    try:
        temporary.write_text(json.dumps(data, indent=1) + "\n")
        temporary.replace(cache)
    except OSError as error:
        raise StorageError(f"cannot write {cache}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _best(clock: Clock, work: Callable[[], None]) -> float:
    """Return the shortest time of `work` over a fraction of a second, at least three runs."""
    best, runs, start = math.inf, 0, clock.monotonic()
    while runs < 3 or (clock.monotonic() - start < _BUDGET_S and runs < 10_000):
        begun = clock.monotonic()
        work()
        best, runs = min(best, clock.monotonic() - begun), runs + 1
    return max(best, 1e-9)


def _dram_rate(machine: Machine, clock: Clock) -> float:
    """Return bytes/s of all cores reading arrays that are larger than the caches."""
    import numpy

    each = min(_DRAM_BYTES, machine.dram_free // 4) // machine.cores // 8
    each = max(each, 2**16)
    arrays = [numpy.ones(each, dtype=numpy.int64) for _ in range(machine.cores)]

    def work() -> None:
        threads = [threading.Thread(target=numpy.bitwise_and.reduce, args=(a,)) for a in arrays]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return sum(array.nbytes for array in arrays) / _best(clock, work)


def _disk_rate(folder: Path, clock: Clock) -> tuple[float, float, bool]:
    """Return bytes/s of large reads, seconds of a small one, and whether both were direct."""
    path = folder / f".rates.{os.urandom(4).hex()}.partial"
    try:
        size = _write_scratch(path, clock)
        fd, direct = _open_direct(path)
        try:
            return (*_read_scratch(fd, size, clock), direct)
        finally:
            os.close(fd)
    finally:
        path.unlink(missing_ok=True)


def _write_scratch(path: Path, clock: Clock) -> int:
    """Write the scratch file, less of it on a slow disk, and return its size."""
    piece, size, start = os.urandom(_READ_BYTES) * 4, 0, clock.monotonic()
    with path.open("wb") as file:
        while size < _DISK_BYTES and (size < 4 * len(piece) or clock.monotonic() - start < 1.0):
            size += file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return size


def _open_direct(path: Path) -> tuple[int, bool]:
    flag = getattr(os, "O_DIRECT", 0)
    page = mmap.mmap(-1, PAGE)
    try:
        fd = os.open(path, os.O_RDONLY | flag)
        try:
            os.preadv(fd, [page], 0)
        except OSError:
            os.close(fd)
            raise
        return fd, bool(flag)
    except OSError:
        return os.open(path, os.O_RDONLY), False
    finally:
        page.close()


def _read_scratch(fd: int, size: int, clock: Clock) -> tuple[float, float]:
    pages = range(0, size - PAGE, max(PAGE, size // 64 // PAGE * PAGE))
    page = mmap.mmap(-1, PAGE)
    begun = clock.monotonic()
    for offset in pages:
        os.preadv(fd, [page], offset)
    latency = (clock.monotonic() - begun) / len(pages)
    page.close()

    def read(start: int) -> None:
        buffer = mmap.mmap(-1, _READ_BYTES)
        for offset in range(start, size, 2 * _READ_BYTES):
            os.preadv(fd, [buffer], offset)
        buffer.close()

    threads = [threading.Thread(target=read, args=(n * _READ_BYTES,)) for n in range(2)]
    begun = clock.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return size / max(clock.monotonic() - begun, 1e-9), latency


def _arithmetic(clock: Clock) -> tuple[float, float]:
    """Return float32 operations/s of a matrix product and seconds of a small operator."""
    side = 768
    operations = 2.0 * side**3
    try:
        import torch
    except ImportError:
        import numpy

        square = numpy.ones((side, side), dtype=numpy.float32)
        return operations / _best(clock, lambda: numpy.matmul(square, square, out=None)), 0.0
    left, out = torch.ones(side, side), torch.empty(side, side)
    small = torch.zeros(8)

    def product() -> None:
        torch.mm(left, left, out=out)

    def launches() -> None:
        for _ in range(100):
            small.add_(0)

    return operations / _best(clock, product), _best(clock, launches) / 100

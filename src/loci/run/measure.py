"""What this process really holds: tensors and mapped files, found by walking, not by asking."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import psutil
import torch

_MAPS = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (....) \S+ \S+ \d+\s*(.*)$")
_PACKS = (".loci", ".gguf", ".safetensors", ".vec")  # files whose bytes are memory of a model


def tensor_storages() -> dict[int, int]:
    """Return {address: bytes} of every CPU tensor storage alive, each once."""
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        # Not isinstance: that would trigger __class__ of lazy proxies that live in the process.
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = max(found.get(storage.data_ptr(), 0), storage.nbytes())
    found.pop(0, None)
    return found


def mapped_files() -> dict[str, list[tuple[int, int]]]:
    """Return {path: [(start, end)]} of the model and index files mapped into this process."""
    found: dict[str, list[tuple[int, int]]] = {}
    maps = Path("/proc/self/maps")
    if not maps.exists():  # macOS: mapped tensors are then found as storages
        return found
    for line in maps.read_text().splitlines():
        match = _MAPS.match(line)
        if match and match[4].endswith(_PACKS):
            found.setdefault(match[4], []).append((int(match[1], 16), int(match[2], 16)))
    return found


def held_bytes(before: frozenset[int] = frozenset()) -> int:
    """Return the bytes of tensors and mapped model files, each byte once.

    Args:
        before: addresses of storages that were there before and are not ours.
    """
    ranges = [r for ranges in mapped_files().values() for r in ranges]
    total = sum(end - start for start, end in ranges)
    for address, nbytes in tensor_storages().items():
        if address in before or any(start <= address < end for start, end in ranges):
            continue  # a tensor over a mapped file was counted with the file
        total += nbytes
    return total


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """Return the most resident memory this process ever had."""
    # Linux hands the peak that getrusage tells on to a child, so a small program started by a
    # large one would seem large; the line in /proc is of this program alone.
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.M) if status.exists() else None
    if found is not None:
        return int(found[1]) * 1024
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)

"""What Python and its libraries take before a model is there: measured once, then remembered."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from loci import __version__

FORMAT, VERSION = "loci-runtime", 1

# The libraries of a run, and one product so that torch has made its threads and scratch memory.
_SCRIPT = """
import psutil, torch
import loci.run.engine
x = torch.ones(64, 64)
(x @ x).sum()
print(psutil.Process().memory_info().rss)
"""


def runtime_bytes(cache: Path) -> int | None:
    """Return the resident memory of a fresh process that could run a model; None if unmeasured.

    Args:
        cache: folder where the number is kept; other versions of Python, torch or Loci measure
            again.
    """
    made_by = f"loci {__version__}, python {platform.python_version()}, torch {_torch()}"
    file = cache / "runtime.json"
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if (kept["format"], kept["version"], kept["made_by"]) == (FORMAT, VERSION, made_by):
            return int(kept["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet, or by another version
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True, timeout=120
        )
        measured = int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    record = {"format": FORMAT, "version": VERSION, "made_by": made_by, "bytes": measured}
    cache.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(record), encoding="utf-8")
    fresh.replace(file)
    return measured


def _torch() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "missing"

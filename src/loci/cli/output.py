"""What commands print: results on stdout, notes and progress on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any  # results are whatever JSON can hold

import click

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def emit(value: object) -> None:
    """Print a result as JSON."""
    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def say(text: str = "", *, end: str = "\n") -> None:
    """Print a line of the result."""
    click.echo(text + end, nl=False)


def note(text: str) -> None:
    """Print a line beside the result."""
    click.echo(text, err=True)


def plain(value: object) -> Any:
    """Return the value as JSON values: dataclasses become objects, times ISO 8601."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in value]
    return str(value)


def table(rows: Sequence[Sequence[object]], head: Sequence[str], right: Sequence[int] = ()) -> None:
    """Print rows in columns; those in `right` are aligned to the right."""
    cells = [[*head], *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    for line in cells:
        parts = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        say("  ".join(parts).rstrip())


@contextmanager
def progress(unit: str = "") -> Iterator[Callable[[str, int, int], None]]:
    """Yield `report(what, done, total)` for work in several parts, each with a bar of its own.

    A bar on a terminal, a plain line every few seconds elsewhere; work of less than a second prints
    nothing. Pass unit="bytes" to see sizes.
    """
    parts: dict[str, _Bar | _Lines] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in parts:
            for part in parts.values():
                part.close()
            parts.clear()
            parts[what] = _Bar(what, unit) if sys.stderr.isatty() else _Lines(what, unit)
        parts[what].report(done, total)
        if done >= total:
            parts.pop(what).close()

    try:
        yield report
    finally:
        for part in parts.values():
            part.close()


def stream(pieces: Iterable[str]) -> None:
    """Print an answer as it comes, and end its line."""
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()


def summary(report: Mapping[str, Any]) -> str:
    """Return what an answer took, in a line or two."""
    from loci.units import format_bytes, format_seconds

    count, sizes = report["tokens"], report["bytes"]
    limits = report["plan"]["budget"]
    held = ", ".join(
        f"{tier} {format_bytes(nbytes)}"
        + (f" of {format_bytes(limits[tier])}" if limits.get(tier) else "")
        for tier, nbytes in sizes["measured"].items()
    )
    moved = [
        f"{source} to {target} {format_bytes(nbytes)}"
        for source, targets in sizes["moved"].items()
        for target, nbytes in targets.items()
        if nbytes
    ]
    lines = [
        f"{count['new']} tokens, {report['tokens_per_s']:.1f} tokens/s, first after "
        f"{format_seconds(report['first_token_s'])}; {held}"
        + (f"; moved {', '.join(moved)}" if moved else "")
        + f"; runtime {format_bytes(report['runtime_bytes'])}, not in the budget"
    ]
    return "\n".join([*lines, *report["notes"]])


class _Bar:
    """A bar of rich, made after the first second so that short work stays silent."""

    def __init__(self, title: str, unit: str) -> None:
        self._title, self._unit = title, unit
        self._started = time.monotonic()
        self._shown: Any = None  # rich is imported when there is something to show
        self._task: Any = None

    def report(self, done: float, total: float | None = None) -> None:
        if self._shown is None:
            if time.monotonic() - self._started < 1:
                return
            self._open()
        self._shown.update(self._task, completed=done, total=total)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        count = DownloadColumn(binary_units=True) if self._unit == "bytes" else MofNCompleteColumn()
        self._shown = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            count,
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._shown.start()
        self._task = self._shown.add_task(self._title, total=None)

    def close(self) -> None:
        if self._shown is not None:
            self._shown.stop()


class _Lines:
    """Plain lines for a log file: at most one in five seconds, none in the first."""

    every_s = 5.0

    def __init__(self, title: str, unit: str) -> None:
        self._title, self._unit = title, unit
        self._next = time.monotonic() + 1

    def report(self, done: float, total: float | None = None) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self.every_s
        share = f" ({done / total:.0%})" if total else ""
        note(f"{self._title}: {self._count(done)}{share}")

    def _count(self, done: float) -> str:
        if self._unit == "bytes":
            from loci.units import format_bytes

            return format_bytes(done)
        return f"{done:.0f} {self._unit}".rstrip()

    def close(self) -> None:
        pass

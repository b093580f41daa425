"""What the commands of `loci memory` share: options, opening, printing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any  # JSON values

import click

from loci import config
from loci.cli.output import note, say
from loci.core.item import Gloss, Turn, with_gloss
from loci.errors import ParameterError, StoreError

if TYPE_CHECKING:
    from loci.core.item import Item, Source
    from loci.memory import Memory
    from loci.store.changes import Change
    from loci.text.ladder import Step

KINDS = click.Choice(["fact", "note", "relation", "entity", "state", "turn"])

file_option = click.option("--file", "file", help="The memory; else the configured one.")
user_option = click.option("--user", help="Whose memory; else the login name.")
owner_option = click.option("--user", help="Refuse an id that is not this user's.")
session_option = click.option("--session", help="Only this conversation.")
agent_option = click.option("--agent", help="Only what this agent was told.")
as_of_option = click.option("--as-of", help="What held at this time, ISO 8601.")
known_at_option = click.option("--known-at", help="What was believed at this time, ISO 8601.")
where_option = click.option(
    "--where", "pairs", multiple=True, metavar="KEY=VALUE", help="Such as role=user; repeatable."
)
filter_option = click.option(
    "--filter", "as_filter", metavar="JSON", help='Such as {"time": {">=": "2026-01-01"}}.'
)
recall_option = click.option("--recall", help="The method that keeps it; else the configured one.")
backend_option = click.option(
    "--backend",
    type=click.Choice(config.BACKENDS),
    help="What draws and settles facts; else the configured one.",
)
fall_back_option = click.option(
    "--fall-back", is_flag=True, help="Let rules do what a model fails at, and say so."
)


@contextmanager
def opened(
    file: str | None,
    make: bool = False,
    recall: str | None = None,
    backend: str | None = None,
    fall_back: bool = False,
) -> Iterator[Memory]:
    """Open the memory; only what adds to it may make the file."""
    from loci.memory import Memory

    where = file if file is not None else config.load().memory_file
    if not make and "://" not in where and not Path(where).is_file():
        raise StoreError(
            f"there is no memory in {where}", way_out='make one: loci memory add "I like tea"'
        )
    # The configured file is made with its folder; a folder that a person typed is not.
    memory = Memory(
        file,
        recall=recall,
        backend=backend,  # type: ignore[arg-type]  # one of the choices of its option
        fall_back=fall_back or None,
    )
    with memory:
        yield memory


def steps_of(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Return what models were asked, as JSON values."""
    return [step.record() for step in steps]


def others(memory: Memory, who: str) -> None:
    """Say on stderr whom this memory knows, when it knows nothing of the one who was meant."""
    users = memory.users()
    if users and who not in users:
        note(f"nothing is remembered of {who}; there is something of {', '.join(users)}")


def filters_of(pairs: Sequence[str], as_filter: str | None) -> dict[str, Any] | None:
    """Return the filter that --where and --filter ask for, None for none."""
    parts: list[dict[str, Any]] = []
    for text in pairs:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise click.UsageError(f"--where is KEY=VALUE; got {text!r}")
        parts.append({key: value})
    if as_filter is not None:
        from loci.store.filters import GRAMMAR

        try:
            read = json.loads(as_filter)
        except json.JSONDecodeError as problem:
            raise ParameterError(
                f"--filter is not JSON: {problem}", value=as_filter, way_out=GRAMMAR
            ) from None
        if not isinstance(read, Mapping):
            raise ParameterError("--filter is a JSON object", value=as_filter, way_out=GRAMMAR)
        parts.append(dict(read))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else {"and": parts}


def print_items(found: Sequence[Item | Turn]) -> None:
    """Print items and messages, a line each."""
    for entry in found:
        if isinstance(entry, Turn):
            say(f"{entry.id}  {day(entry.time)}  {entry.name or entry.role}: {entry.content}")
            continue
        since = f", since {day(entry.valid_from)}" if entry.valid_from else ""
        until = f", until {day(entry.valid_to)}" if entry.valid_to else ""
        state = "" if entry.is_live else ", retired"
        say(f"{entry.id}  {entry.text}  ({entry.kind}{since}{until}{state})")


def print_sources(sources: Sequence[Source], but: str = "") -> None:
    """Print the messages something rests on, without the one named."""
    for source in sources:
        if source.id != but:
            say(f"    {source.id} {day(source.time)} {source.name or source.role}: ", end="")
            say(source.content)


def rows_of(changes: Sequence[Change]) -> list[tuple[str, ...]]:
    """Return changes as rows of a table: change, item, when, what, by, text, reason."""
    rows: list[tuple[str, ...]] = []
    for change in changes:
        after = "" if change.after is None else change.after.indexed
        action = f"{change.action} (undone)" if change.undone else change.action
        reason = change.reason
        if change.sources:
            reason = f"{reason} [{', '.join(change.sources)}]".strip()
        rows.append((change.id, change.item, day(change.at), action, change.made_by, after, reason))
    return rows


def day(time: datetime) -> str:
    """Return a time to the minute."""
    return time.strftime("%Y-%m-%d %H:%M")


def shown(value: object) -> str:
    """Return a field of an item or a message as text."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, Gloss):
        return with_gloss("", value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def times(number: int) -> str:
    """Return how often something happened."""
    return "never" if number == 0 else count_of(number, "time")

"""`loci memory`: what was said and what follows from it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar  # JSON values and click's keyword arguments

import click

from loci import config
from loci.cli.app import Group
from loci.cli.input import piped, read_text
from loci.cli.options import whose
from loci.cli.output import as_json_option, emit, note, plain, progress, say, table
from loci.core.item import Gloss, with_gloss
from loci.errors import ParameterError, StoreError
from loci.units import format_bytes

if TYPE_CHECKING:
    from loci.core.item import Item, Turn
    from loci.memory import Memory
    from loci.text.ladder import Step

Command = TypeVar("Command", bound=Callable[..., Any])
KINDS = click.Choice(["fact", "note", "relation", "entity", "turn"])

_FILE = click.option("--file", "file", help="The memory; else the configured one.")
_USER = click.option("--user", help="Whose memory; else the login name.")
_OWNER = click.option("--user", help="Refuse an id that is not this user's.")
_SESSION = click.option("--session", help="Only this conversation.")
_AGENT = click.option("--agent", help="Only what this agent was told.")
_RECALL = click.option("--recall", help="The method that keeps it; else the configured one.")
_BACKEND = click.option(
    "--backend",
    type=click.Choice(config.BACKENDS),
    help="What draws and settles facts; else the configured one.",
)
_FALL_BACK = click.option(
    "--fall-back", is_flag=True, help="Let rules do what a model fails at, and say so."
)


@click.group(cls=Group)
def command() -> None:
    """Remember what people say, find it again, correct it, forget it.

    Everything is in one file that only you can read. Adding and searching by words load no model;
    searching by meaning too needs the embedder: loci pull minilm.
    """


@command.command()
@click.argument("text", required=False)
@click.option(
    "--messages",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help='A JSON list of {"role", "content"} with, if wanted, name, time, metadata.',
)
@click.option("--as-note", is_flag=True, help="Keep the text as it is, as a note of its own.")
@click.option("--no-facts", is_flag=True, help="Keep what was said and draw no facts from it.")
@click.option("--name", help="Who says it.")
@click.option("--session", help="Which conversation it belongs to.")
@click.option("--agent", help="Which agent is told.")
@click.option("--time", help="When it was said, ISO 8601; else now.")
@_RECALL
@_BACKEND
@_FALL_BACK
@_FILE
@_USER
@as_json_option
def add(
    text: str | None,
    messages: Path | None,
    as_note: bool,
    no_facts: bool,
    name: str | None,
    session: str | None,
    agent: str | None,
    time: str | None,
    recall: str | None,
    backend: str | None,
    fall_back: bool,
    file: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """Remember a text, a file of messages, or what is piped in."""
    said = _said(text, messages, name)
    who = whose(user)
    with _opened(file, True, recall, backend, fall_back) as memory:
        if as_note:
            if not isinstance(said, str) or time is not None:
                raise click.UsageError("--as-note goes with a text alone")
            item = memory.note(said, user=who, agent=agent, session=session)
            if as_json:
                emit({"turns": [], "items": [item]})
            else:
                _print_items([item])
            return
        added = memory.add(
            said,
            user=who,
            agent=agent,
            session=session,
            time=time,
            infer=False if no_facts else None,
        )
    if as_json:
        emit({"turns": added.turns, "items": added.items, "steps": _steps(added.steps)})
        return
    note(f"{_count(len(added.turns), 'message')} kept")
    for step in added.steps:
        if step.calls or step.refused:
            note(str(step))
    _print_items(added.items)


@command.command()
@click.argument("query")
@click.option("--limit", type=click.IntRange(min=1), default=5, help="At most so many; else 5.")
@click.option("--as-of", help="What held at this time, ISO 8601.")
@click.option("--known-at", help="What was believed at this time, ISO 8601.")
@click.option("--kind", "kinds", type=KINDS, multiple=True, help="Only this kind; repeatable.")
@click.option("--where", "filters", multiple=True, metavar="KEY=VALUE", help="Such as role=user.")
@click.option("--lexical", is_flag=True, help="Search by words alone; loads no model.")
@_RECALL
@_SESSION
@_AGENT
@_FILE
@_USER
@as_json_option
def search(
    query: str,
    limit: int,
    as_of: str | None,
    known_at: str | None,
    kinds: tuple[str, ...],
    filters: tuple[str, ...],
    lexical: bool,
    recall: str | None,
    session: str | None,
    agent: str | None,
    file: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """Find what answers a question, best first, with the messages it rests on."""
    who = whose(user)
    with _opened(file, recall=recall) as memory:
        is_lexical = lexical or memory.embedder is None
        if is_lexical and not lexical:
            note("searching by words alone; loci pull minilm adds meaning")
        with progress() as report:
            hits = memory.search(
                query,
                user=who,
                agent=agent,
                session=session,
                limit=limit,
                as_of=as_of,
                known_at=known_at,
                filters=dict(_pair(text) for text in filters) or None,
                kinds=kinds or None,
                mode="lexical" if is_lexical else "hybrid",
                progress=lambda done, total: report("reading what is new", done, total),
            )
        if not hits:
            _others(memory, who)
    if hits.pending:
        note(f"{_count(hits.pending, 'text')} not embedded yet, ranked by words")
    if as_json:
        emit({"hits": hits, "pending": hits.pending})
        return
    for hit in hits:
        why = ", ".join(f"{name} {part:.2f}" for name, part in hit.why.items())
        say(f"{hit.id}  {hit.score:.3f}  {hit.text}")
        say(f"    {hit.kind}{f'; {why}' if why else ''}")
        for source in hit.sources:
            if source.id != hit.id:
                say(f"    {source.id} {_day(source.time)} {source.name or source.role}: ", end="")
                say(source.content)
    if not hits:
        note("nothing found")


@command.command(name="list")
@click.option("--kind", "kinds", type=KINDS, multiple=True, help="Else facts and notes.")
@click.option("--limit", type=click.IntRange(min=1), default=100, help="At most so many; else 100.")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="Pass over so many first.")
@click.option("--as-of", help="What held at this time, ISO 8601.")
@_SESSION
@_AGENT
@_FILE
@_USER
@as_json_option
def list_(
    kinds: tuple[str, ...],
    limit: int,
    offset: int,
    as_of: str | None,
    session: str | None,
    agent: str | None,
    file: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """List what is remembered of a user, newest first."""
    who = whose(user)
    with _opened(file) as memory:
        found = memory.list(
            user=who,
            agent=agent,
            session=session,
            kinds=kinds or None,
            as_of=as_of,
            limit=limit,
            offset=offset,
        )
        if not found:
            _others(memory, who)
    if as_json:
        emit(found)
    else:
        _print_items(found)


@command.command()
@click.argument("id")
@_FILE
@_OWNER
@as_json_option
def show(id: str, file: str | None, user: str | None, as_json: bool) -> None:
    """Show one item or message, with everything known about it."""
    with _opened(file) as memory:
        found = memory.get(id, user=user)
        steps = [] if id.startswith("t") else memory.history(found.id, user=user)[0].steps
    if as_json:
        emit({**plain(found), "steps": _steps(steps)})
        return
    for name in type(found).__dataclass_fields__:
        value = getattr(found, name)
        if value not in (None, (), {}):
            say(f"{name:<13}{_shown(value)}")
    for step in steps:
        say(f"{'made by':<13}{step}")


@command.command()
@click.argument("id")
@click.argument("text")
@click.option("--reason", default="", help="Why; kept in the history.")
@_FILE
@_OWNER
@as_json_option
def edit(
    id: str, text: str, reason: str, file: str | None, user: str | None, as_json: bool
) -> None:
    """Write an item anew; the old text stays in its history."""
    with _opened(file) as memory:
        item = memory.edit(id, text, user=user, reason=reason)
    if as_json:
        emit(item)
    else:
        _print_items([item])


@command.command()
@click.argument("id")
@_FILE
@_OWNER
@as_json_option
def history(id: str, file: str | None, user: str | None, as_json: bool) -> None:
    """Show every change of an item, oldest first."""
    with _opened(file) as memory:
        changes = memory.history(id, user=user)
    if as_json:
        emit([{**plain(change), "steps": _steps(change.steps)} for change in changes])
        return
    rows = []
    for change in changes:
        after = "" if change.after is None else change.after.indexed
        action = f"{change.action} (undone)" if change.undone else change.action
        rows.append((change.id, _day(change.at), action, change.made_by, after, change.reason))
    table(rows, ("change", "when", "what", "by", "text", "reason"))
    for change in changes:
        for step in change.steps:
            say(f"{change.id}: {step}")


@command.command()
@click.argument("id")
@_FILE
@_OWNER
@as_json_option
def undo(id: str, file: str | None, user: str | None, as_json: bool) -> None:
    """Take back one change by its id, or the last change of an item."""
    with _opened(file) as memory:
        items = memory.undo(id, user=user)
    if as_json:
        emit(items)
    else:
        _print_items(items)


@command.command()
@click.argument("id")
@click.option("--at", help="When it ended, ISO 8601; else now.")
@click.option("--reason", default="", help="Why; kept in the history.")
@_FILE
@_OWNER
@as_json_option
def retire(
    id: str, at: str | None, reason: str, file: str | None, user: str | None, as_json: bool
) -> None:
    """Stop believing an item; it is kept, and undo brings it back."""
    with _opened(file) as memory:
        item = memory.retire(id, at=at, user=user, reason=reason)
    if as_json:
        emit(item)
    else:
        _print_items([item])


@command.command()
@click.argument("id")
@click.option("--dry-run", is_flag=True, help="Show what would go and erase nothing.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@_FILE
@_OWNER
@as_json_option
def forget(
    id: str, dry_run: bool, yes: bool, file: str | None, user: str | None, as_json: bool
) -> None:
    """Erase an item or a message for good, with all that was derived from it.

    The sentences it came from go too. The report says how often the erased text is still found in
    the bytes of the memory, and what erasing cannot reach.
    """
    with _opened(file) as memory:
        if not dry_run and not yes and sys.stdin.isatty():
            for text in memory.forget(id, user=user, dry_run=True).texts:
                note(f"- {text}")
            click.confirm("Erase this for good?", abort=True, err=True)
        erased = memory.forget(id, user=user, dry_run=dry_run)
    if as_json:
        emit({**{name: getattr(erased, name) for name in _ERASED}, "clean": erased.clean})
        return
    say("erased:" if erased.done else "would erase:")
    for text in erased.texts:
        say(f"  {text}")
    if erased.done:
        left = sum(erased.found.values())
        say(f"found again in {_count(len(erased.found), 'file')} of the memory: {_times(left)}")
    if erased.elsewhere:
        say(f"held by other users too: {_count(erased.elsewhere, 'text')}")
    if erased.out_of_reach:
        say(f"out of reach: {', '.join(erased.out_of_reach)}")


@command.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@_FILE
@_USER
@as_json_option
def export(path: Path, file: str | None, user: str | None, as_json: bool) -> None:
    """Write everything remembered of a user as JSON lines that only you can read."""
    who = whose(user)
    with _opened(file) as memory:
        count = memory.export(path, user=who)
    if as_json:
        emit({"records": count, "path": path})
    else:
        say(f"{_count(count, 'record')}, {format_bytes(path.stat().st_size)} in {path}")


@command.command(name="import")
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--format", "format", default="auto", help="loci or locomo; else it is recognised.")
@click.option("--conversation", help="Only this sample of a LoCoMo file.")
@click.option("--no-facts", is_flag=True, help="Keep what was said and draw no facts from it.")
@_RECALL
@_BACKEND
@_FALL_BACK
@_FILE
@click.option("--user", help="Whose memory it becomes; else the names in the file.")
@as_json_option
def import_(
    path: Path,
    format: str,
    conversation: str | None,
    no_facts: bool,
    recall: str | None,
    backend: str | None,
    fall_back: bool,
    file: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """Add an export of Loci or a LoCoMo file; what is there already is passed over.

    Without --user, an export keeps the user it was written for, and each conversation of a LoCoMo
    file becomes a user named like its sample.
    """
    with _opened(file, True, recall, backend, fall_back) as memory:
        with progress() as report:
            count = memory.import_(
                path,
                format,
                user=user,
                infer=False if no_facts else None,
                conversation=conversation,
                progress=lambda done, total: report("importing", done, total),
            )
        users = memory.users()
    if as_json:
        emit({"new": count, "users": users})
    else:
        say(f"{_count(count, 'record')} new")
        note(f"remembered in this memory: {', '.join(users)}; search with --user")


# -- private ----------------------------------------------------------------------------------

_ERASED = ("done", "items", "turns", "cut", "texts", "found", "elsewhere", "out_of_reach")


@contextmanager
def _opened(
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


def _steps(steps: Sequence[Step]) -> list[dict[str, Any]]:
    return [step.record() for step in steps]


def _said(text: str | None, messages: Path | None, name: str | None) -> Any:
    """Return what `Memory.add` takes, from an argument, a file or a pipe."""
    if messages is not None:
        if text is not None or name is not None:
            raise click.UsageError("--messages goes without TEXT and --name")
        raw = piped() or "" if str(messages) == "-" else read_text(messages)
        try:
            return json.loads(raw)
        except json.JSONDecodeError as error:
            raise ParameterError(
                f"--messages {messages} is not JSON: {error}",
                allowed='[{"role": "user", "content": "I like tea"}]',
            ) from None
    if text is None:
        text = (piped() or "").strip()
    if not text:
        raise ParameterError(
            "there is nothing to remember", way_out='loci memory add "I like tea", or pipe it in'
        )
    return text if name is None else [{"role": "user", "name": name, "content": text}]


def _others(memory: Memory, who: str) -> None:
    """Say on stderr whom this memory knows, when it knows nothing of the one who was meant."""
    users = memory.users()
    if users and who not in users:
        note(f"nothing is remembered of {who}; there is something of {', '.join(users)}")


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise click.UsageError(f"--where is KEY=VALUE; got {text!r}")
    return key, value


def _print_items(found: Sequence[Item | Turn]) -> None:
    from loci.core.item import Turn

    for entry in found:
        if isinstance(entry, Turn):
            say(f"{entry.id}  {_day(entry.time)}  {entry.name or entry.role}: {entry.content}")
            continue
        since = f", since {_day(entry.valid_from)}" if entry.valid_from else ""
        until = f", until {_day(entry.valid_to)}" if entry.valid_to else ""
        state = "" if entry.is_live else ", retired"
        say(f"{entry.id}  {entry.text}  ({entry.kind}{since}{until}{state})")


def _day(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M")


def _shown(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, Gloss):
        return with_gloss("", value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _times(number: int) -> str:
    return "never" if number == 0 else _count(number, "time")

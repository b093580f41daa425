"""`loci memory`: what was said and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any  # JSON values

import click

from loci.cli import memory_change, memory_keep
from loci.cli.app import Group
from loci.cli.input import piped, read_text
from loci.cli.memory_parts import (
    KINDS,
    agent_option,
    as_of_option,
    backend_option,
    count_of,
    fall_back_option,
    file_option,
    filter_option,
    filters_of,
    known_at_option,
    opened,
    others,
    owner_option,
    print_items,
    print_sources,
    recall_option,
    rows_of,
    session_option,
    shown,
    steps_of,
    user_option,
    where_option,
)
from loci.cli.options import whose
from loci.cli.output import as_json_option, emit, note, plain, progress, say
from loci.core.item import Turn
from loci.errors import ParameterError

if TYPE_CHECKING:
    from loci.run.memory import Explained


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
@recall_option
@backend_option
@fall_back_option
@file_option
@user_option
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
    with opened(file, True, recall, backend, fall_back) as memory:
        if as_note:
            if not isinstance(said, str) or time is not None:
                raise click.UsageError("--as-note goes with a text alone")
            item = memory.note(said, user=who, agent=agent, session=session)
            if as_json:
                emit({"turns": [], "items": [item]})
            else:
                print_items([item])
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
        emit({"turns": added.turns, "items": added.items, "steps": steps_of(added.steps)})
        return
    note(f"{count_of(len(added.turns), 'message')} kept")
    for step in added.steps:
        if step.calls or step.refused:
            note(str(step))
    print_items(added.items)


@command.command()
@click.argument("query")
@click.option("--limit", type=click.IntRange(min=1), default=5, help="At most so many; else 5.")
@as_of_option
@known_at_option
@click.option("--kind", "kinds", type=KINDS, multiple=True, help="Only this kind; repeatable.")
@where_option
@filter_option
@click.option("--lexical", is_flag=True, help="Search by words alone; loads no model.")
@recall_option
@session_option
@agent_option
@file_option
@user_option
@as_json_option
def search(
    query: str,
    limit: int,
    as_of: str | None,
    known_at: str | None,
    kinds: tuple[str, ...],
    pairs: tuple[str, ...],
    as_filter: str | None,
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
    with opened(file, recall=recall) as memory:
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
                filters=filters_of(pairs, as_filter),
                kinds=kinds or None,
                mode="lexical" if is_lexical else "hybrid",
                progress=lambda done, total: report("reading what is new", done, total),
            )
        if not hits:
            others(memory, who)
    if hits.pending:
        note(f"{count_of(hits.pending, 'text')} not embedded yet, ranked by words")
    for text in hits.notes:
        note(text)
    if as_json:
        emit({"hits": hits, "pending": hits.pending, "notes": hits.notes})
        return
    for hit in hits:
        why = ", ".join(f"{name} {part:.2f}" for name, part in hit.why.items())
        say(f"{hit.id}  {hit.score:.3f}  {hit.text}")
        say(f"    {hit.kind}{f'; {why}' if why else ''}")
        print_sources(hit.sources, but=hit.id)
    if not hits:
        note("nothing found")


@command.command(name="list")
@click.option("--kind", "kinds", type=KINDS, multiple=True, help="Else facts and notes.")
@click.option("--limit", type=click.IntRange(min=1), default=100, help="At most so many; else 100.")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="Pass over so many first.")
@as_of_option
@known_at_option
@where_option
@filter_option
@session_option
@agent_option
@file_option
@user_option
@as_json_option
def list_(
    kinds: tuple[str, ...],
    limit: int,
    offset: int,
    as_of: str | None,
    known_at: str | None,
    pairs: tuple[str, ...],
    as_filter: str | None,
    session: str | None,
    agent: str | None,
    file: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """List what is remembered of a user, newest first."""
    who = whose(user)
    with opened(file) as memory:
        found = memory.list(
            user=who,
            agent=agent,
            session=session,
            kinds=kinds or None,
            as_of=as_of,
            known_at=known_at,
            filters=filters_of(pairs, as_filter),
            limit=limit,
            offset=offset,
        )
        if not found:
            others(memory, who)
    if as_json:
        emit(found)
    else:
        print_items(found)


@command.command()
@click.argument("id")
@click.option("--query", help="Why is it recalled for this question?")
@click.option("--lexical", is_flag=True, help="With --query: by words alone; loads no model.")
@as_of_option
@known_at_option
@session_option
@agent_option
@file_option
@owner_option
@as_json_option
def show(
    id: str,
    query: str | None,
    lexical: bool,
    as_of: str | None,
    known_at: str | None,
    session: str | None,
    agent: str | None,
    file: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """Show one item or message: where it came from, its history, why it is recalled.

    With --query, its place among the answers and the parts of its score.
    """
    with opened(file) as memory:
        found = memory.get(id, user=user, as_of=as_of, known_at=known_at)
        told = memory.explain(
            id,
            user=user,
            query=query,
            session=session,
            agent=agent,
            as_of=as_of,
            known_at=known_at,
            mode="lexical" if lexical or memory.embedder is None else "hybrid",
        )
    steps = told.history[0].steps if told.history and not isinstance(found, Turn) else ()
    if as_json:
        emit(
            {
                **plain(found),
                "came_from": told.sources,
                "history": told.history,
                "links": told.links,
                "steps": steps_of(steps),
                "query": query,
                "rank": told.rank,
                "among": told.among,
                "hit": told.hit,
            }
        )
        return
    for name in type(found).__dataclass_fields__:
        value = getattr(found, name)
        if value not in (None, (), {}):
            say(f"{name:<13}{shown(value)}")
    for step in steps:
        say(f"{'made by':<13}{step}")
    print_sources(told.sources, but=id)
    for link in told.links:
        say(f"    {link.source} {link.relation} {link.target}")
    for change, item, when, what, by, _, reason in rows_of(told.history):
        say(f"    {' '.join(part for part in (change, item, when, what, by, reason) if part)}")
    if query is not None:
        _print_why(told, id)


for _command in (*memory_change.COMMANDS, *memory_keep.COMMANDS):
    command.add_command(_command)


def _print_why(told: Explained, id: str) -> None:
    """Print why something is recalled for a question, or that it is not."""
    if told.hit is None:
        say(f"not recalled: not among the first {told.among} answers to this question")
        return
    stands = "" if told.hit.id == id else f", shown as {told.hit.id}, which was drawn from it"
    say(f"answer {told.rank} of {told.among}{stands}; score {told.hit.score:.3f}:")
    for name, part in sorted(told.hit.why.items(), key=lambda pair: -pair[1]):
        say(f"    {name:<12}{part:+.3f}")


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

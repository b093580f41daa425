"""`loci agent`: methods that do jobs step by step, with their state in the memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any  # JSON values

import click

from loci import config
from loci.cli.app import Group
from loci.cli.input import read_text
from loci.cli.memory_parts import (
    backend_option,
    count_of,
    day,
    fall_back_option,
    file_option,
    opened,
)
from loci.cli.options import whose
from loci.cli.output import as_json_option, emit, note, say, table
from loci.errors import ParameterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loci.core.agent import Outcome
    from loci.memory import Memory
    from loci.run.agents import Agent, Taken

    Command = Callable[..., Any]

_SHOWN = 400  # letters of a value in a listing


@click.group(cls=Group)
def command() -> None:
    """Do long tasks step by step, with all state in the memory.

    An agent is a method (tme, ...) and a name of your choice. Its state is kept outside of any
    prompt, every step with its reason; a step can be undone, and an agent that was killed goes on
    where it was.
    """


def _placed(do: Command) -> Command:
    """Add the arguments and options that say which agent is meant."""
    for add in (
        as_json_option,
        click.option("--session", help="Of this conversation."),
        click.option("--agent", "place", help="Of the records that this assistant keeps apart."),
        click.option("--user", help="Whose memory; else the login name."),
        file_option,
        click.argument("name"),
        click.argument("method"),
    ):
        do = add(do)
    return do


@contextmanager
def _agent(
    method: str,
    name: str,
    file: str | None,
    user: str | None,
    place: str | None,
    session: str | None,
    **tools: Any,
) -> Iterator[Agent]:
    with opened(file) as memory:
        yield memory.agent(method, name, user=whose(user), agent=place, session=session, **tools)


@command.command()
@click.argument("method")
@click.argument("name")
@click.argument("goal", default="")
@click.option(
    "--input",
    "inputs",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of JSON with what the method takes; see `loci agent takes`.",
)
@click.option(
    "--set", "pairs", multiple=True, metavar="KEY=VALUE", help="One input; VALUE is JSON or text."
)
@click.option("--max-steps", type=click.IntRange(1), default=200, help="Stop after so many.")
@click.option("--execute", is_flag=True, help="Let it run the code it writes, shut in.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the files of the result into this folder.",
)
@backend_option
@fall_back_option
@file_option
@click.option("--user", help="Whose memory; else the login name.")
@click.option("--agent", "place", help="Keep the records apart for this assistant.")
@click.option("--session", help="Keep the records apart for this conversation.")
@as_json_option
def act(
    method: str,
    name: str,
    goal: str,
    inputs: Path | None,
    pairs: tuple[str, ...],
    max_steps: int,
    execute: bool,
    out: Path | None,
    backend: str | None,
    fall_back: bool,
    file: str | None,
    user: str | None,
    place: str | None,
    session: str | None,
    as_json: bool,
) -> None:
    """Do a job, or go on with it where it was left.

    Exit code 1 means that the job failed or was stopped; its state is kept.
    """
    given = _inputs(inputs, pairs)
    with opened(file, True, None, backend, fall_back) as memory:
        tools = {"sandbox": _sandbox() if execute else None, "llm": _model(memory)}
        agent = memory.agent(method, name, user=whose(user), agent=place, session=session, **tools)
        outcome = agent.act(goal, given, max_steps=max_steps)
    if out is not None:
        _write(outcome.output.get("files"), out)
    if as_json:
        emit(outcome)
    else:
        _tell(outcome)
    if outcome.status in ("failed", "stopped"):
        raise click.exceptions.Exit(1)


@command.command(name="list")
@click.option("--methods", is_flag=True, help="The methods that act, instead of the agents.")
@file_option
@click.option("--user", help="Whose memory; else the login name.")
@click.option("--agent", "place", help="Of the records that this assistant keeps apart.")
@click.option("--session", help="Of this conversation.")
@as_json_option
def list_(
    methods: bool,
    file: str | None,
    user: str | None,
    place: str | None,
    session: str | None,
    as_json: bool,
) -> None:
    """List the agents of a memory, the last to act first."""
    from loci.run.agents import acting, known

    if methods:
        from loci.methods import catalogue

        found = [catalogue.method_class(one, "recall").about for one in acting()]
        if as_json:
            emit([{"name": about.name, "idea": about.idea} for about in found])
        else:
            table([(about.name, about.idea) for about in found], ("method", "idea"))
        return
    with opened(file) as memory:
        agents = known(memory, user=whose(user), agent=place, session=session)
    if as_json:
        emit(agents)
    else:
        rows = [(one.method, one.name, one.records, day(one.last)) for one in agents]
        table(rows, ("method", "name", "records", "last step"), right=(2,))


@command.command()
@click.argument("method")
@as_json_option
def takes(method: str, as_json: bool) -> None:
    """Show what a method takes as inputs, with an example."""
    from loci.run.agents import method_of

    found = method_of(method)
    example = {"goal": found.example.goal, "inputs": found.example.inputs}
    if as_json:
        emit({"takes": found.takes, "example": example})
        return
    for name, what in found.takes.items():
        say(f"{name:<10} {what}")
    say("\nexample:")
    say(json.dumps(example, indent=2, ensure_ascii=False))


@command.command()
@_placed
@click.option("--key", "prefix", default="", help="Only records whose keys begin like this.")
def show(prefix: str, as_json: bool, **where: Any) -> None:
    """Show the records of an agent."""
    with _agent(**where) as agent:
        records = agent.records.all(prefix)
    if as_json:
        emit({key: record.value for key, record in records.items()})
        return
    for key, record in records.items():
        say(f"{key}  {record.text}")
        if prefix:
            text = json.dumps(record.value, ensure_ascii=False)
            say(f"    {text[:_SHOWN]}{'...' if len(text) > _SHOWN else ''}")


@command.command()
@_placed
def history(as_json: bool, **where: Any) -> None:
    """Show the steps of an agent with their reasons, oldest first."""
    with _agent(**where) as agent:
        _steps(agent.history(), as_json)


@command.command()
@_placed
@click.argument("key")
def explain(key: str, as_json: bool, **where: Any) -> None:
    """Show the steps that wrote one record, and why."""
    with _agent(**where) as agent:
        _steps(agent.explain(key), as_json)


@command.command()
@_placed
@click.option("--steps", type=click.IntRange(1), default=1, help="How many; else the last one.")
def undo(steps: int, as_json: bool, **where: Any) -> None:
    """Take back the last steps of an agent."""
    with _agent(**where) as agent:
        _steps(agent.undo(steps), as_json)


@command.command()
@_placed
@click.option("--steps", type=click.IntRange(1), default=1, help="How many; else one.")
def redo(steps: int, as_json: bool, **where: Any) -> None:
    """Do again what undo took back last."""
    with _agent(**where) as agent:
        _steps(agent.redo(steps), as_json)


@command.command()
@_placed
def drop(as_json: bool, **where: Any) -> None:
    """Let an agent forget its work; the history stays, and undo brings it back.

    `loci memory forget` erases for good.
    """
    with _agent(**where) as agent:
        count = agent.drop()
    if as_json:
        emit({"dropped": count})
    else:
        say(f"dropped {count_of(count, 'record')}")


# -- private ----------------------------------------------------------------------------------


def _inputs(path: Path | None, pairs: tuple[str, ...]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if path is not None:
        try:
            read = json.loads(read_text(path))
        except json.JSONDecodeError as problem:
            raise ParameterError(f"{path} is not JSON: {problem}") from None
        if not isinstance(read, dict):
            raise ParameterError(f"{path} is no object of JSON", allowed='{"name": value, ...}')
        given.update(read)
    for text in pairs:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise click.UsageError(f"--set is KEY=VALUE; got {text!r}")
        try:
            given[key] = json.loads(value)
        except json.JSONDecodeError:
            given[key] = value
    return given


def _sandbox() -> Any:
    from loci.run.sandbox import Sandbox

    return Sandbox()


def _model(memory: Memory) -> Any:
    """Return the memory's model; else the configured endpoint, if there is one."""
    settings = config.load()
    if memory.llm is not None or settings.endpoint is None or settings.endpoint_model is None:
        return memory.llm
    from loci.models.endpoint import Endpoint

    return Endpoint(settings.endpoint, settings.endpoint_model, settings.endpoint_key)


def _write(files: object, out: Path) -> None:
    """Write files of a result into a folder; their paths cannot leave it."""
    from loci.run.sandbox import inside

    if not isinstance(files, Mapping):
        raise ParameterError("this result has no files to write", value=str(out))
    paths = {out / inside(str(path)): str(text) for path, text in files.items()}
    for path, text in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or not path.parent.resolve().is_relative_to(out.resolve()):
            raise ParameterError("a link leads out of the folder", value=str(path))
        path.write_text(text, encoding="utf-8")
        note(f"wrote {path}")


def _tell(outcome: Outcome) -> None:
    for step in outcome.steps:
        note(f"{step.did}  [{step.why}]")
    say(f"{outcome.status}: {outcome.why}")
    for name, value in outcome.output.items():
        if value is None or value == [] or value == {}:
            continue
        if isinstance(value, str) and "\n" in value:
            say(f"{name}:")
            say("\n".join(f"  {part}" for part in value.splitlines()))
        elif isinstance(value, Mapping):
            say(f"{name}:")
            for key, one in value.items():
                text = one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)
                short = text.splitlines()[0] if text else ""
                more = "" if text == short else f" ({count_of(len(text.splitlines()), 'line')})"
                say(f"  {key}: {short[:_SHOWN]}{more}")
        elif isinstance(value, list):
            say(f"{name}:")
            for one in value:
                say(f"  {one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)}")
        else:
            say(f"{name}: {value}")


def _steps(steps: list[Taken], as_json: bool) -> None:
    if as_json:
        emit(steps)
        return
    rows = [
        (one.id, day(one.at), "undone" if one.undone else "", ", ".join(one.keys)[:60], one.why)
        for one in steps
    ]
    table(rows, ("step", "when", "", "records", "why"))

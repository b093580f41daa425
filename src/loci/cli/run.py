"""`loci run`: one question, one answer, inside a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any  # click hands keyword arguments through

import click

from loci import api
from loci.cli.cube_parts import exact_for
from loci.cli.input import piped, read_text
from loci.cli.options import (
    adapter_option,
    budget_options,
    cube_options,
    make_plan,
    make_sampling,
    memory_options,
    sampling_options,
    whose,
)
from loci.cli.output import as_json_option, emit, note, progress, stream, summary
from loci.cli.through import client_of, plain_sampling, server_option
from loci.errors import ParameterError

if TYPE_CHECKING:
    from loci.server.client import Client


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option(
    "--prompt-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read the prompt from this file.",
)
@budget_options
@sampling_options
@memory_options
@cube_options
@adapter_option
@server_option
@as_json_option
def command(
    model: str,
    prompt: str | None,
    prompt_file: Path | None,
    max_tokens: int | None,
    memory_file: str | None,
    user: str | None,
    cubes: tuple[str, ...],
    purpose: str | None,
    adapter: str | None,
    may_use_server: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Answer one prompt within a budget.

    The prompt is an argument, a file, or what is piped in. The answer goes to stdout, what it took
    to stderr; --json prints both, and the plan, as one object. Where a server of this model runs
    and no budget and no memory is named, that server answers.
    """
    text = _prompt(prompt, prompt_file)
    owned = {"--memory": memory_file, "--cube": cubes or None, "--adapter": adapter}
    own = next((name for name, value in owned.items() if value is not None), None)
    client = client_of(model, given, may_use=may_use_server, own=own)
    if client is not None:
        _through(client, text, max_tokens, given, as_json)
        return
    exact_for(cubes, memory_file, given)
    plan = make_plan(model, max_tokens, given)
    sampling = make_sampling(given)
    name = whose(user) if own is not None else None
    with (
        progress() as report,
        api.open(
            plan,
            memory=memory_file,
            cubes=cubes,
            user=name,
            purpose=purpose,
            adapter=adapter,
            progress=report,
        ) as session,
    ):
        if memory_file is not None and name is not None:
            pieces = session.chat(text, user=name, max_tokens=max_tokens, sampling=sampling)
        else:
            pieces = session.generate(text, max_tokens=max_tokens, sampling=sampling)
        if as_json:
            limit = max_tokens if max_tokens is not None else plan.workload.new_tokens
            for _ in pieces:
                report("answering", session.stats.new_tokens, limit)
        else:
            stream(pieces)
        found = session.report()
    if as_json:
        emit(found)
    else:
        note(summary(found))


def _through(
    client: Client, text: str, max_tokens: int | None, given: dict[str, Any], as_json: bool
) -> None:
    """Have a server answer."""
    sampling = plain_sampling(given)
    with client:
        asked = [{"role": "user", "content": text}]
        pieces = client.answer(asked, max_tokens=max_tokens, **sampling)
        if as_json:
            for _ in pieces:
                pass
            emit(client.report())
        else:
            stream(pieces)
            note(summary(client.report()))


def _prompt(prompt: str | None, file: Path | None) -> str:
    if prompt is not None and file is not None:
        raise ParameterError("the prompt is given twice", allowed="PROMPT or --prompt-file")
    if file is not None:
        prompt = read_text(file)
    elif prompt is None:
        prompt = piped()
    if prompt is None or not prompt.strip():
        raise ParameterError(
            "there is no prompt",
            way_out=['loci run smollm2 "What is a budget?"', "or pipe the text in"],
        )
    return prompt

"""`loci run`: one question, one answer, inside a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any  # click hands keyword arguments through

import click

from loci import api
from loci.cli.input import piped, read_text
from loci.cli.options import (
    budget_options,
    make_plan,
    make_sampling,
    memory_options,
    sampling_options,
    whose,
)
from loci.cli.output import as_json_option, emit, note, progress, stream, summary
from loci.errors import ParameterError


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
@as_json_option
def command(
    model: str,
    prompt: str | None,
    prompt_file: Path | None,
    max_tokens: int | None,
    memory_file: str | None,
    user: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Answer one prompt within a budget.

    The prompt is an argument, a file, or what is piped in. The answer goes to stdout, what it took
    to stderr; --json prints both, and the plan, as one object.
    """
    text = _prompt(prompt, prompt_file)
    plan = make_plan(model, max_tokens, given)
    sampling = make_sampling(given)
    name = whose(user) if memory_file is not None else None
    with progress() as report, api.open(plan, memory=memory_file, progress=report) as session:
        if name is not None:
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

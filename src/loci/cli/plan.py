"""`loci plan`: what would be done with a model in a budget, why, and what it costs."""

from __future__ import annotations

from typing import Any  # click hands keyword arguments through

import click

from loci.cli.options import TOKENS, budget_options, make_plan
from loci.cli.output import as_json_option, emit, note, say
from loci.units import format_bytes


@click.command()
@click.argument("model")
@budget_options
@click.option("--new-tokens", type=TOKENS, help="Tokens of the answer; else 256.")
@click.option("--explain", is_flag=True, help="Say which methods were chosen and turned down.")
@as_json_option
def command(model: str, new_tokens: int | None, explain: bool, as_json: bool, **given: Any) -> None:
    """Say what fits, how fast it is, what it costs in quality, and what to change.

    Nothing is loaded and nothing runs. Exit code 3 means that it does not fit; the message then has
    the gap and ways out.
    """
    plan = make_plan(model, new_tokens, given)
    if as_json:
        emit(plan.to_json())
    elif explain:
        say(plan.explain())
    else:
        text = str(plan)
        say(text)
        if plan.runtime_bytes is not None:
            note(f"runtime {format_bytes(plan.runtime_bytes)}, not in the budget")
        for line in plan.notes:
            if line not in text:
                note(line)

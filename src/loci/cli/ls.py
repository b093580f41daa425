"""`loci ls`: the models on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from loci import config
from loci.cli.output import as_json_option, emit, note, table
from loci.units import format_bytes


@click.command()
@as_json_option
def command(as_json: bool) -> None:
    """List the models on this machine, those of other programs too; they are only read.

    Ollama, LM Studio, llama.cpp and the Hugging Face cache are looked at.
    """
    from loci.models.discover import discover

    found = discover(Path.home(), config.load().models_dir)
    if as_json:
        emit(found)
        return
    if not found:
        note("no model on this machine; get one: loci pull smollm2")
        return
    rows = [
        (
            model.name,
            model.kind,
            format_bytes(model.nbytes),
            model.origin,
            model.architecture or "-",
            "yes" if model.why_not is None else f"no: {model.why_not}",
        )
        for model in found
    ]
    table(rows, ("name", "kind", "size", "from", "architecture", "runs"), right=(2,))

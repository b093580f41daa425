"""A conversation about a long text that is kept in one small cache for each of its episodes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any  # click hands keyword arguments through

import click

from loci import config
from loci.cli.input import read_text
from loci.cli.output import note, progress
from loci.core.budget import Budget
from loci.errors import ContextError, MethodError, ParameterError
from loci.units import format_bytes

if TYPE_CHECKING:
    from loci.methods.kv.read import Read
    from loci.run.episodes import Episodes

LEAVE = ("/exit", "/quit")
SAY = "/say"
NEW_TOKENS = 64  # of an answer, when nobody says how long it may be
_TAKES = ("dram", "kv")  # of the options of a plan


def talk(
    model: str,
    document: Path,
    tokens: int,
    lines: Iterable[str],
    *,
    max_tokens: int | None,
    given: dict[str, Any],
) -> None:
    """Read a text into episodes, and answer questions line by line.

    Args:
        tokens: what each head of a layer keeps in a cache, on average.
        given: what click parsed for a plan and for sampling; of these only --dram and --kv count.
    """
    refused = [f"--{name.replace('_', '-')}" for name, value in given.items()
               if value is not None and name not in _TAKES]  # fmt: skip
    if refused:
        raise ParameterError(
            "episodes are read and answered in a way of their own",
            value=", ".join(refused),
            allowed="--dram, --max-tokens, and --kv with a method that reads",
        )
    from loci.hw.probe import probe
    from loci.models.late import default_embedder
    from loci.models.load import resolve
    from loci.run.episodes import opened

    settings = config.load()
    embedder = default_embedder(settings.models_dir)
    if embedder is None:
        raise MethodError("episodes are found with an embedder", way_out="loci pull minilm")
    dram = given["dram"] if given["dram"] is not None else settings.dram
    limits = Budget.parse(dram=dram).filled(probe(settings.cache_dir).free()).limits()
    said = [line for line in read_text(document).splitlines() if line.strip()]
    with (
        progress() as report,
        resolve(model, settings.models_dir, progress=report) as pack,
        opened(
            pack, said, tokens, method=_method(given["kv"]), embedder=embedder, limits=limits,
            progress=report,
        ) as episodes,
    ):  # fmt: skip
        held = format_bytes(episodes.reader.parking.nbytes())
        note(f"read {document} into {len(episodes.held.names)} episodes, {held}")
        for line in lines:
            text = line.strip()
            if not text:
                continue
            if text in LEAVE:
                break
            try:
                _turn(episodes, text, max_tokens if max_tokens is not None else NEW_TOKENS)
            except (ContextError, ParameterError) as error:  # this line
                note(f"{type(error).__name__}: {error}")


def _turn(episodes: Episodes, text: str, max_tokens: int) -> None:
    command, _, rest = text.partition(" ")
    if command == SAY:
        if not rest.strip():
            raise ParameterError("nothing was said", value=text, allowed=f"{SAY} Ada: I moved.")
        is_anew = episodes.add([rest.strip()])
        note("everything was read anew" if is_anew else "noted")
        return
    found = episodes.answer(text, max_tokens=max_tokens)
    click.echo(found.text)
    like = f"{found.route.similarity:.2f}"
    if found.from_text:
        note(f"like no episode ({like}): answered from the nearest parts of the text")
    else:
        note(f"episode {found.route.cache + 1} of {len(episodes.held.names)} ({like})")


def _method(kv: object) -> Read:
    """Return the method that reads, epicache where none is named."""
    from loci.methods import catalogue
    from loci.methods.kv.read import Read

    named = "epicache" if kv is None else str(kv)
    method = catalogue.find(named, "kv") if isinstance(kv, str | None) else None
    if not isinstance(method, Read):
        raise ParameterError(
            "episodes are made by a method that reads a history",
            value=named,
            allowed='--kv "epicache(episodes=4)", or no --kv',
        )
    return method

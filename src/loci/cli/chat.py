"""`loci chat`: a conversation inside a budget."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any  # click hands keyword arguments through

import click

from loci import api, config
from loci.cli.chat_episodes import talk
from loci.cli.cube_parts import exact_for
from loci.cli.input import read_text
from loci.cli.options import (
    TOKENS,
    adapter_option,
    budget_options,
    cube_options,
    make_plan,
    make_sampling,
    memory_options,
    sampling_options,
    whose,
)
from loci.cli.output import note, progress, stream, summary
from loci.cli.through import client_of, plain_sampling, server_option
from loci.errors import (
    BudgetError,
    ContextError,
    EndpointError,
    MethodError,
    OverloadError,
    ParameterError,
)
from loci.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from loci.run.engine import Session
    from loci.server.client import Client

LEAVE = ("/exit", "/quit")
WEIGHTS = "/weights"


@click.command()
@click.argument("model", required=False)
@budget_options
@sampling_options
@memory_options
@cube_options
@adapter_option
@click.option(
    "--read",
    "document",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A text the conversation is about; it is read before the first question.",
)
@click.option(
    "--episodes",
    type=TOKENS,
    help="Keep the text of --read in a small cache for each of its episodes, so many tokens in "
    "each head of a layer; a question goes to the episode it is about.",
)
@server_option
def command(
    model: str | None,
    max_tokens: int | None,
    document: Path | None,
    episodes: int | None,
    memory_file: str | None,
    user: str | None,
    cubes: tuple[str, ...],
    purpose: str | None,
    adapter: str | None,
    may_use_server: bool,
    **given: Any,
) -> None:
    """Talk with a model, line by line; it remembers across runs when --memory is given.

    End with /exit or Ctrl-D. Ctrl-C stops an answer. /weights SIZE changes how much memory the
    weights take while the conversation goes on. With --read a text is read first, into the KV cache
    of the plan, and then asked about; with --episodes into several small caches, and /say LINE adds
    to what was said. Where a server of this model runs and no budget, memory or text is named, that
    server answers.
    """
    named = model if model is not None else config.load().model
    owned = {
        "--memory": memory_file,
        "--read": document,
        "--cube": cubes or None,
        "--adapter": adapter,
    }
    own = next((name for name, value in owned.items() if value is not None), None)
    if episodes is not None:
        _check_episodes(document, owned)
        assert document is not None
        talk(named, document, episodes, iter(_line, None), max_tokens=max_tokens, given=given)
        return
    client = client_of(named, given, may_use=may_use_server, own=own)
    if client is not None:
        _through(client, max_tokens, plain_sampling(given))
        return
    text = None if document is None else read_text(document)
    exact_for(cubes, memory_file, given)
    plan = make_plan(named, max_tokens, given)
    sampling = make_sampling(given)
    name = whose(user) if memory_file is not None or cubes or adapter else "local"
    told: set[str] = set()  # what holds for every turn is said once
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
        if text is not None:
            tokens = session.read(text)
            took = format_seconds(session.stats.prefill_s)
            note(f"read {document}: {tokens:,} tokens in {took}")
        for line in iter(_line, None):
            if not line.strip():
                continue
            if line.strip() in LEAVE:
                break
            try:
                if line.split()[0] == WEIGHTS:
                    _resize(session, line.split()[1:])
                    continue
                pieces = session.chat(
                    line.rstrip("\r\n"), user=name, max_tokens=max_tokens, sampling=sampling
                )
                stream(pieces)
            except KeyboardInterrupt:
                note("\nstopped; this turn is forgotten")
                continue
            except (BudgetError, ContextError, MethodError, ParameterError) as error:  # this line
                note(f"{type(error).__name__}: {error}")
                continue
            found = session.report()
            fresh = [text for text in found["notes"] if text not in told]
            note(summary({**found, "notes": fresh}))
            told.update(fresh)


def _check_episodes(document: Path | None, owned: Mapping[str, object]) -> None:
    """Refuse episodes without a text, and with what they do not use."""
    if document is None:
        raise ParameterError("episodes are those of a text", way_out="--read FILE")
    others = [name for name, value in owned.items() if value is not None and name != "--read"]
    if others:
        raise ParameterError(
            "episodes are asked without memory, cubes and adapters",
            value=", ".join(others),
            allowed="--read FILE --episodes TOKENS",
        )


def _through(client: Client, max_tokens: int | None, sampling: dict[str, Any]) -> None:
    """Talk with a server; the conversation is kept here."""
    said: list[dict[str, str]] = []
    is_told = False
    with client:
        for line in iter(_line, None):
            if not line.strip():
                continue
            if line.strip() in LEAVE:
                break
            if line.split()[0] == WEIGHTS:
                note("a server's weights stay as they are; --no-server loads them here")
                continue
            asked = [*said, {"role": "user", "content": line.rstrip("\r\n")}]
            try:
                stream(client.answer(asked, max_tokens=max_tokens, **sampling))
            except KeyboardInterrupt:
                note("\nstopped; this turn is forgotten")
                continue
            except (EndpointError, OverloadError) as error:  # this line
                note(f"{type(error).__name__}: {error}")
                continue
            found = client.report()
            said = [*asked, {"role": "assistant", "content": found["answer"]}]
            note(summary({**found, "notes": [] if is_told else found["notes"]}))
            is_told = True


def _resize(session: Session, sizes: list[str]) -> None:
    """Change the size of the weights, and say what they take and lose now."""
    if len(sizes) > 1:
        raise ParameterError("one size is given", value=" ".join(sizes), allowed="/weights 48MiB")
    began = time.perf_counter()
    if sizes:
        session.resize(sizes[0])
    plan = session.plan
    lost = "nothing is lost" if plan.loss == 0 else "what is lost is not known"
    if plan.loss:
        lost = f"about {plan.loss:.3f} nats a token are lost"
    took = f", in {format_seconds(time.perf_counter() - began)}" if sizes else ""
    note(f"weights take {format_bytes(plan.held('weights'))}; {lost}{took}")


def _line() -> str | None:
    if sys.stdin.isatty():
        click.echo("> ", nl=False, err=True)
    raw = getattr(sys.stdin, "buffer", None)
    if raw is None:
        return sys.stdin.readline() or None
    # What is not UTF-8 is kept as it is, so that the session refuses that line by name.
    return raw.readline().decode("utf-8", "surrogateescape") or None

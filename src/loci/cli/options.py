"""Kinds of values and groups of options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar  # click hands keyword arguments through

import click

from loci import api, config
from loci.cli.output import note, progress
from loci.units import parse_bytes, parse_tokens

if TYPE_CHECKING:
    from loci.plan.solve import Plan
    from loci.run.sampling import Sampling

Command = TypeVar("Command", bound=Callable[..., Any])


class Size(click.ParamType):
    """A size in bytes as people write it."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the bytes."""
        try:
            return parse_bytes(value)  # type: ignore[arg-type]
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Tokens(click.ParamType):
    """A count of tokens as people write it."""

    name = "tokens"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the count."""
        try:
            return parse_tokens(value)  # type: ignore[arg-type]
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE, TOKENS = Size(), Tokens()


class KvChoice(click.ParamType):
    """A size, which caps the KV cache, or a chain of methods, which is taken as it is."""

    name = "size or chain"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Return bytes for a size, the text of a chain otherwise."""
        text = str(value).strip()
        if text[:1].isdigit() or text.startswith((".", "-")):
            return SIZE.convert(text, param, ctx)
        return text


BUDGET_NAMES = (
    "dram",
    "gpu",
    "disk",
    "weights",
    "kv",
    "quant",
    "activations",
    "process",
    "context",
    "prompt_tokens",
    "machine",
)
_BUDGET = (
    click.option("--dram", type=SIZE, help="Bytes of main memory; else 80 % of what is free."),
    click.option("--gpu", type=SIZE, help="Bytes of GPU memory; else 80 % of what is free."),
    click.option(
        "--disk", type=SIZE, help="Bytes of the model that may be streamed from disk; else none."
    ),
    click.option("--weights", type=SIZE, help="A cap on the weights inside the tier."),
    click.option(
        "--kv",
        type=KvChoice(),
        metavar="SIZE|CHAIN",
        help='A cap on the KV cache, or the methods to use: "snapkv | bfp(bits=4)".',
    ),
    click.option(
        "--quant",
        metavar="METHOD",
        help='Pack the weights in levels by this method: bitstack; "" keeps them as they are.',
    ),
    click.option(
        "--activations",
        type=click.IntRange(1, 32),
        help="8: round what weights are multiplied with while decoding; faster for several "
        "requests together, and not exact.",
    ),
    click.option(
        "--process", type=SIZE, help="A limit on the whole process, Python and libraries included."
    ),
    click.option("--context", type=TOKENS, help="Tokens of prompt and answer together, like 8k."),
    click.option("--prompt-tokens", type=TOKENS, help="Tokens of the prompt, if known."),
    click.option("--machine", help="Plan for this machine instead, by its name: h200."),
)
_SAMPLING = (
    click.option("--max-tokens", type=TOKENS, help="At most so many new tokens; else 256."),
    click.option("--temperature", type=float, help="0 takes the most likely token (the default)."),
    click.option("--top-p", type=float, help="Draw from the smallest set of this probability."),
    click.option("--top-k", type=int, help="Draw from so many most likely tokens."),
    click.option("--seed", type=int, help="The same seed draws the same answer."),
)
_REMEMBER = (
    click.option("--memory", "memory_file", help="Remember in this file, and recall from it."),
    click.option("--user", help="Whose memory; else the login name."),
)
_CUBES = (
    click.option(
        "--cube",
        "cubes",
        multiple=True,
        metavar="ID|FILE",
        help="Begin with this cube; repeatable. Ids are of the memory, else of the configured one.",
    ),
    click.option("--purpose", help="What it is read for, where a cube asks for that."),
)
adapter_option = click.option(
    "--adapter",
    metavar="NAME|FILE",
    help="Answer with this adapter: a name beside the memory, a cube's file, a PEFT folder.",
)


def budget_options(function: Command) -> Command:
    """Add the options of a budget and of the work to be planned."""
    return _with(_BUDGET, function)


def sampling_options(function: Command) -> Command:
    """Add the options that decide how tokens are chosen."""
    return _with(_SAMPLING, function)


def memory_options(function: Command) -> Command:
    """Add the options that make a run remember."""
    return _with(_REMEMBER, function)


def cube_options(function: Command) -> Command:
    """Add the options that let a run begin with cubes."""
    return _with(_CUBES, function)


def make_plan(model: str, new_tokens: int | None, given: dict[str, Any]) -> Plan:
    """Return the plan that the options of `budget_options` ask for.

    Args:
        given: what click parsed; the entries of the budget are taken out of it.
    """
    values = {name: given.pop(name) for name in BUDGET_NAMES}
    kv = values.pop("kv")
    with progress() as report:
        return api.plan(
            model,
            new_tokens=new_tokens,
            kv=kv if isinstance(kv, str) else None,
            kv_bytes=kv if isinstance(kv, int) else None,
            progress=report,
            **values,
        )


def make_sampling(given: dict[str, Any]) -> Sampling:
    """Return how tokens are chosen; the entries are taken out of `given`."""
    from loci.run.sampling import Sampling

    values = {name: given.pop(name) for name in ("temperature", "top_p", "top_k", "seed")}
    return Sampling(**{name: value for name, value in values.items() if value is not None})


def whose(user: str | None) -> str:
    """Return whose memory it is; when nobody was named, say on stderr who is taken."""
    if user is not None:
        return user
    name = config.load().user
    note(f"user {name}; --user names another")
    return name


def _with(options: tuple[Callable[[Command], Command], ...], function: Command) -> Command:
    for option in reversed(options):
        function = option(function)
    return function

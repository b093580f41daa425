"""`loci bench`: measure, look at what was measured, and compare two runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any  # results are whatever JSON can hold

import click

from loci import config
from loci.cli.app import Group
from loci.cli.output import as_json_option, emit, note, plain, progress, say, table
from loci.errors import FormatError, ParameterError


@click.group(cls=Group)
def command() -> None:
    """Run benchmarks and compare their results. Every run is kept in the cache folder."""


def _what_to_measure(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say what a suite measures."""
    for option in reversed(
        (
            click.option("--model", help="The model to measure; else the configured one."),
            click.option(
                "--data",
                type=click.Path(exists=True, path_type=Path),
                help="Your own data, where the suite needs some; else the configured data_dir.",
            ),
            click.option(
                "--method", "methods", multiple=True, help="A chain to measure; may be repeated."
            ),
            click.option(
                "--option", "options", multiple=True, metavar="KEY=VALUE", help="For the suite."
            ),
            click.option(
                "--seed", type=int, default=0, help="The seed of everything drawn; else 0."
            ),
            click.option(
                "--quick", is_flag=True, help="A small run that only shows that the suite works."
            ),
        )
    ):
        function = option(function)
    return function


@command.command()
@click.argument("name")
@_what_to_measure
@click.option(
    "--cards",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Put the measurements into the cards in this folder (src/loci/cards).",
)
@as_json_option
def run(
    name: str,
    model: str | None,
    data: Path | None,
    methods: tuple[str, ...],
    options: tuple[str, ...],
    seed: int,
    quick: bool,
    cards: Path | None,
    as_json: bool,
) -> None:
    """Run a suite, or every suite for the kind of a method, and print what was measured."""
    from loci.bench import cards as of_methods
    from loci.bench import suite

    if cards is not None and quick:
        raise click.UsageError("a quick run measures nothing that belongs on a card")
    settings = config.load()
    chosen, only = suite.chosen(name)
    results = []
    for one in chosen:
        with progress() as report:
            context = suite.Context(
                folder=settings.models_dir,
                model=model if model is not None else settings.model,
                data=data if data is not None else settings.data_dir,
                methods=suite.contenders(one, name if only else None, methods),
                quick=quick,
                seed=seed,
                options=dict(_pair(text) for text in options),
                progress=report,
            )
            result = plain(suite.run(one, context))
        note(f"kept in {_keep(one, result, _folder(settings))}")
        if cards is not None:
            rows = suite.find(one).card_rows(result)
            for path in of_methods.write(result, rows, cards, _typed(name, context, methods), only):
                note(f"wrote {path}")
        results.append(result)
    if as_json:
        emit(results[0] if len(results) == 1 else results)
        return
    for result in results:
        _print(result, as_json=False)


@command.command()
@click.argument("name", required=False)
@as_json_option
def show(name: str | None, as_json: bool) -> None:
    """List the suites, or show the last result of one (or of a file)."""
    from loci.bench import suite

    folder = _folder(config.load())
    if name is not None:
        _print(_last(name, folder)[-1], as_json)
        return
    found = [
        {"name": n, "about": _about(suite.find(n)), "runs": len(_runs(n, folder))}
        for n in suite.names()
    ]
    if as_json:
        emit(found)
    else:
        table([(s["name"], s["runs"], s["about"]) for s in found], ("suite", "runs", "about"))


@command.command()
@click.argument("name")
@click.argument("other", required=False)
@_what_to_measure
@as_json_option
def compare(
    name: str,
    other: str | None,
    model: str | None,
    data: Path | None,
    methods: tuple[str, ...],
    options: tuple[str, ...],
    seed: int,
    quick: bool,
    as_json: bool,
) -> None:
    """Compare methods on the sheet of a suite, or a result with another.

    NAME alone, for a suite that compares methods (kv, quant): its sheet, from the last result; the
    suite runs where there is none, or where something is asked of it.

    Else the last two runs of a suite, or two files: every number that both have is shown with its
    ratio, second by first.
    """
    from loci.bench import suite

    settings = config.load()
    asked = bool(model or data or methods or options or seed or quick)
    sheet = None
    if other is None and name in suite.names():
        sheet = getattr(suite.find(name), "sheet", None)
    if sheet is None:
        if asked:
            raise click.UsageError("two results are compared as they are; run the suite first")
        _two(name, other, _folder(settings), as_json)
        return
    if asked or not _runs(name, _folder(settings)):
        with progress() as report:
            context = suite.Context(
                folder=settings.models_dir,
                model=model if model is not None else settings.model,
                data=data if data is not None else settings.data_dir,
                methods=methods,
                quick=quick,
                seed=seed,
                options=dict(_pair(text) for text in options),
                progress=report,
            )
            result = plain(suite.run(name, context))
        note(f"kept in {_keep(name, result, _folder(settings))}")
    else:
        result = _last(name, _folder(settings))[-1]
    if as_json:
        emit(result)
        return
    machine = result.get("machine", {}).get("name", "unknown machine")
    say(f"{result['model']} on {machine}, {result.get('date', 'no date')}")
    for title, head, rows in sheet(result):
        say(f"\n{title}")
        table(rows, head, right=range(1, len(head)))


# -- private ----------------------------------------------------------------------------------


def _two(name: str, other: str | None, folder: Path, as_json: bool) -> None:
    """Show every number that two results have."""
    if other is None:
        kept = _last(name, folder)
        if len(kept) < 2:
            raise ParameterError(
                "there is one run of this suite; two are needed",
                value=name,
                way_out=f"loci bench run {name}",
            )
        first, second = kept[-2:]
    else:
        first, second = _last(name, folder)[-1], _last(other, folder)[-1]
    left, right = dict(_numbers(first)), dict(_numbers(second))
    rows = [(key, left[key], right[key], _ratio(left, right, key)) for key in left if key in right]
    if as_json:
        names = ("key", "first", "second", "ratio")
        numbers = [dict(zip(names, row, strict=True)) for row in rows]
        emit({"suites": [first["suite"], second["suite"]], "numbers": numbers})
        return
    shown = [(key, _short(a), _short(b), _short(ratio)) for key, a, b, ratio in rows]
    table(shown, ("key", "first", "second", "ratio"), right=(1, 2, 3))


def _about(suite: object) -> str:
    """Return what a suite measures, in a line."""
    return str(getattr(suite, "ABOUT", None) or (suite.__doc__ or "").splitlines()[0])


def _folder(settings: config.Config) -> Path:
    return settings.cache_dir / "bench"


def _runs(name: str, folder: Path) -> list[Path]:
    numbered = [path for path in folder.glob(f"{name}-*.json") if _number(path, name) is not None]
    return sorted(numbered, key=lambda path: _number(path, name) or 0)


def _number(path: Path, name: str) -> int | None:
    text = path.stem.removeprefix(f"{name}-")
    return int(text) if text.isdigit() else None


def _typed(name: str, context: Any, methods: Sequence[str] = ()) -> str:
    """Return the command that makes this run again."""
    named = [f" --method {shlex.quote(method)}" for method in methods]
    options = [f" --option {key}={value}" for key, value in context.options.items()]
    data = " --data FILE" if context.data is not None else ""
    seed = f" --seed {context.seed}" if context.seed else ""
    return f"loci bench run {name}{data}{''.join(options + named)}{seed}"


def _keep(name: str, result: Mapping[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    runs = _runs(name, folder)
    last = _number(runs[-1], name) or 0 if runs else 0
    path = folder / f"{name}-{last + 1}.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(path)
    return path


def _last(name: str, folder: Path) -> list[dict[str, Any]]:
    """Return the results kept of a suite, oldest first, or the one in a file."""
    paths = [Path(name)] if name.endswith(".json") else _runs(name, folder)
    if not paths:
        from loci.bench import suite

        suite.find(name)
        raise ParameterError(
            "nothing was measured with this suite yet", value=name, way_out=f"loci bench run {name}"
        )
    return [_read(path) for path in paths[-2:]]


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is not JSON: {error}") from None
    if not isinstance(result, dict) or result.get("format") != "loci-bench":
        raise FormatError(f"{path} is no result of loci bench", allowed='"format": "loci-bench"')
    return result


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise click.UsageError(f"--option is KEY=VALUE; got {text!r}")
    return key, value


def _numbers(result: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number with its dotted path."""
    if isinstance(result, Mapping):
        for key, value in result.items():
            if path or key not in ("format", "version", "machine", "software"):
                yield from _numbers(value, f"{path}.{key}" if path else str(key))
    elif isinstance(result, list):
        for index, value in enumerate(result):
            yield from _numbers(value, f"{path}.{index}")
    elif isinstance(result, (int, float)) and not isinstance(result, bool):
        yield path, float(result)


def _ratio(left: Mapping[str, float], right: Mapping[str, float], key: str) -> float | None:
    return right[key] / left[key] if left[key] else None


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _print(result: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        emit(result)
        return
    machine = result.get("machine", {}).get("name", "unknown machine")
    say(f"{result['suite']} on {machine}, {result.get('date', 'no date')}")
    rows = [(key, f"{value:.6g}") for key, value in _numbers(result)]
    table(rows, ("key", "value"), right=(1,))

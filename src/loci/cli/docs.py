"""Write the pages under docs/ that are made from the program: `python -m loci.cli.docs [--check]`.

The command reference comes from the commands themselves, the page of methods from the catalogue
and the cards, the page of errors from the tree in `loci.errors`. With --check nothing is written; a
page that is stale or missing is named and the exit code is 1.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from loci import api, errors
from loci.cli.app import exit_code, root
from loci.cli.output import note
from loci.core.card import Card
from loci.core.method import Kind, Method
from loci.methods.describe import described

MADE = "<!-- Made by `make docs`; change the source, not this page. -->\n"
HEADINGS = {
    Kind.KV: "KV cache",
    Kind.QUANT: "Weights",
    Kind.OFFLOAD: "Placement over tiers",
    Kind.RECALL: "Text memory",
    Kind.ARCH: "Architectures",
    Kind.TRAIN: "Training",
    Kind.SCHED: "Scheduling",
    Kind.COST: "Cost models",
}


def pages() -> dict[str, str]:
    """Return {file name: text} of every generated page."""
    made = {"cli.md": cli_page(), "methods.md": methods_page(), "errors.md": errors_page()}
    return {name: text.rstrip("\n") + "\n" for name, text in made.items()}


def cli_page() -> str:
    """Return the reference of every command."""
    text = [
        MADE,
        "# Commands\n",
        f"{inspect.cleandoc(root.help or '')}\n",
        "Results go to stdout, everything else to stderr.\n",
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 does not fit the budget.\n",
    ]
    for path, command in _walk(root, "loci"):
        if path == "loci":
            continue
        text.append(f"## {path}\n")
        text.append(f"```text\n{path} {' '.join(_usage(command))}".rstrip() + "\n```\n")
        text.append(f"{inspect.cleandoc(command.help or '')}\n")
        rows = [_option_row(p) for p in command.params if isinstance(p, click.Option)]
        if rows:
            text.append("| option | meaning |\n| --- | --- |\n" + "\n".join(rows) + "\n")
        if isinstance(command, click.Group):
            names = command.list_commands(click.Context(command))
            text.append("Commands: " + ", ".join(f"`{path} {name}`" for name in names) + ".\n")
    return "\n".join(text)


def methods_page() -> str:
    """Return every method with its parameters and card."""
    text = [MADE, "# Methods\n", "Every published method in this version, with its card.\n"]
    entries = api.methods()
    for kind, heading in HEADINGS.items():
        chosen = [(method, card) for method, card in entries if method.about.kind == kind]
        if chosen:
            text.append(f"## {heading}\n")
            text += [_method(method, card) for method, card in chosen]
    return "\n".join(text)


def errors_page() -> str:
    """Return the tree of errors and what each means."""
    tree = inspect.cleandoc(errors.__doc__ or "")
    rows = []
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.LociError):
            meaning = (kind.__doc__ or "").splitlines()[0]
            rows.append(f"| `{name}` | {meaning} | {exit_code(kind(''))} |")
    head, rest = tree.split("\n\n", 1)
    drawing, foot = rest.rsplit("\n\n", 1)
    drawing = inspect.cleandoc(f"\n{drawing}")
    table = "| error | meaning | exit code |\n| --- | --- | --- |\n" + "\n".join(rows)
    return f"{MADE}\n# Errors\n\n{head}\n\n```text\n{drawing}\n```\n\n{foot}\n\n{table}\n"


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail when a page is stale.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("docs"),
    help="Where the pages are.",
)
def main(check: bool, folder: Path) -> None:
    """Write the generated pages."""
    stale = []
    for name, text in pages().items():
        file = folder / name
        if file.is_file() and file.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            note(f"wrote {file}")
    if check and stale:
        note(f"stale: {', '.join(stale)}; run `make docs`")
        sys.exit(1)


# -- private ----------------------------------------------------------------------------------


def _walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _walk(inner, f"{path} {name}")


def _usage(command: click.Command) -> list[str]:
    words = ["[OPTIONS]"] if any(isinstance(p, click.Option) for p in command.params) else []
    for param in command.params:
        if isinstance(param, click.Argument):
            name = (param.name or "").upper() + ("..." if param.nargs == -1 else "")
            words.append(name if param.required else f"[{name}]")
    return [*words, "COMMAND"] if isinstance(command, click.Group) else words


def _option_row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts + option.secondary_opts)
    if isinstance(option.type, click.Choice):
        names += f" {' / '.join(map(str, option.type.choices))}".replace("|", "\\|")
    elif not option.is_flag:
        names += f" {option.metavar or option.type.name.upper()}".replace("|", "\\|")
    return f"| {names} | {(option.help or '').replace('|', chr(92) + '|')} |"


def _method(method: type[Method], card: Card | None) -> str:
    found = described(method, card)
    text = [
        f"### {found['name']}\n",
        f"{found['idea'][:1].upper()}{found['idea'][1:]}. Source: {found['paper']}.\n",
    ]
    if found["reconstruction"]:
        text.append(f"Our own derivation: {found['reconstruction']}.\n")
    rows = [
        f"| `{name}` | {entry.get('default', 'required')} | {entry['description']}"
        f"{' (' + entry['unit'] + ')' if 'unit' in entry else ''} |"
        for name, entry in found["parameters"].items()
    ]
    if rows:
        text.append("| parameter | default | meaning |\n| --- | --- | --- |\n" + "\n".join(rows))
        text[-1] += "\n"
    if card is None:
        text.append("No card yet: nothing was measured.\n")
        return "\n".join(text)
    text.append(f"Claim ({card.claim_where}): {card.claim}\n")
    text.append(f"Verdict: **{card.verdict}**. {card.because}\n")
    measured = [
        f"| {m.model} | {m.suite} | {metric} | {_number(v.get('full'))} | {_number(v.get('this'))} "
        f"| {', '.join(f'{name} {_number(n)}' for name, n in v.get('rivals', {}).items()) or '-'} |"
        for m in card.measurements
        for metric, v in m.metrics.items()
    ]
    if measured:
        head = "| model | suite | metric | full | this | rivals |\n|" + " --- |" * 6
        text.append(f"{head}\n" + "\n".join(measured) + "\n")
    return "\n".join(text)


def _number(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()

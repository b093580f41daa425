"""`loci methods`: the published methods that Loci has."""

from __future__ import annotations

from typing import Any  # parameters are whatever JSON can hold

import click

from loci import api
from loci.cli.output import as_json_option, emit, say, table
from loci.core.card import Card
from loci.core.method import Method


@click.command()
@click.argument("name", required=False)
@as_json_option
def command(name: str | None, as_json: bool) -> None:
    """List the published methods that Loci has, or show one with its parameters and card."""
    entries = api.methods()
    if name is None:
        if as_json:
            emit([described(method, card) for method, card in entries])
            return
        rows = [
            (m.about.kind, m.about.name, card.verdict if card else "no card", m.about.idea)
            for m, card in entries
        ]
        table(rows, ("kind", "name", "verdict", "idea"))
        return
    from loci.methods import catalogue

    asked = catalogue.method_class(name)
    found = described(asked, next(card for method, card in entries if method is asked))
    if as_json:
        emit(found)
        return
    for line in lines(found):
        say(line)


def described(method: type[Method], card: Card | None) -> dict[str, Any]:
    """Return a method and its card as JSON values."""
    about = method.about
    return {
        "name": about.name,
        "kind": about.kind.value,
        "idea": about.idea,
        "paper": about.paper,
        "phases": [phase.value for phase in about.phases],
        "needs": [need.value for need in about.needs],
        "frees": about.frees.value,
        "lossy": about.lossy,
        "reconstruction": about.reconstruction,
        "parameters": method.schema()["properties"],
        "card": None
        if card is None
        else {
            "claim": card.claim,
            "where": card.claim_where,
            "verdict": card.verdict.value,
            "because": card.because,
            "measurements": card.measurements,
        },
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Return one method for people."""
    text = [
        f"{found['name']} ({found['kind']}): {found['idea']}",
        f"  paper     {found['paper']}",
        f"  works in  {', '.join(found['phases']) or '-'}",
        f"  needs     {', '.join(found['needs']) or 'nothing'}",
        f"  frees     {found['frees']}{'' if found['lossy'] else ', without loss'}",
    ]
    if found["reconstruction"]:
        text.append(f"  ours      {found['reconstruction']}")
    for name, entry in found["parameters"].items():
        default = f" (default {entry['default']})" if "default" in entry else ""
        unit = f" [{entry['unit']}]" if "unit" in entry else ""
        text.append(f"  {name:<9} {entry['description']}{unit}{default}")
    card = found["card"]
    if card is None:
        return [*text, "  card      none yet"]
    text.append(f"  claim     {card['claim']} ({card['where']})")
    text.append(f"  verdict   {card['verdict']}: {card['because']}")
    for m in card["measurements"]:
        numbers = ", ".join(f"{metric} {value['this']}" for metric, value in m.metrics.items())
        text.append(f"  measured  {m.model}, {m.suite}: {numbers}")
    return text

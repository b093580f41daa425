"""A method and its card as JSON values: the same for command line, server and page."""

from __future__ import annotations

from typing import Any  # parameters are whatever JSON can hold

from loci.core.card import Card
from loci.core.method import Method


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

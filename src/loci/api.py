"""The public functions: they read the configuration and pass its values down."""

from __future__ import annotations

from loci.core.card import Card, load_card
from loci.core.method import Method


def methods(kind: str | None = None) -> list[tuple[type[Method], Card | None]]:
    """Return every method with its card, or those of one kind; None stands for a missing card.

    >>> import loci
    >>> [method.about.name for method, card in loci.methods("sched")]
    ['fcfs']
    """
    from loci.methods import catalogue

    return [
        (method, load_card(method.about.kind, method.about.name))
        for method in catalogue.all_methods(kind)
    ]

"""Forms of the KV cache that cards have measured on a model, for budgets the usual ones do not fit.

Methods that encode count by their KL on the suite `reference`. Methods that drop tokens count by
their KL at a share of the full bytes, from the suite `kv`: such a form is offered at that share and
above, where it cannot lose more. What needs preparing is offered once it is prepared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from loci.core.method import Method, Need
from loci.core.spec import ModelSpec
from loci.errors import LociError
from loci.methods import catalogue
from loci.plan.kvform import METRIC, SUITE, Cards, KVForm, is_bounded

SHARES = "kv/"  # a suite of this name and a share of the full bytes
Prepared = Callable[[Method], bool]


def measured_forms(
    spec: ModelSpec, cards: Cards, prepared: Prepared
) -> tuple[tuple[KVForm, ...], tuple[KVForm, ...]]:
    """Return the forms that cards know for this model: those at hand, and those to prepare."""
    ready: list[KVForm] = []
    waiting: list[KVForm] = []
    for name in catalogue.names("kv") if spec.fingerprint else ():
        card = cards("kv", name)
        for row in card.for_model(spec.fingerprint) if card is not None else ():
            is_share = row.suite.startswith(SHARES)
            if METRIC not in row.metrics or not (is_share or row.suite == SUITE):
                continue
            method = _method(name, row.parameters)
            if method is None or is_bounded(method) != is_share:
                continue
            form = KVForm(
                chain=str(method),
                words="some tokens forgotten" if is_share else "a shortened form",
                share=float(row.suite.removeprefix(SHARES)) if is_share else 0.0,
            )
            needs = Need.ARTEFACT in method.about.needs and not prepared(method)
            (waiting if needs else ready).append(form)
    return tuple(dict.fromkeys(ready)), tuple(dict.fromkeys(waiting))


# -- private ----------------------------------------------------------------------------------


def _method(name: str, parameters: Mapping[str, object]) -> Method | None:
    """Return the method as it was measured; None where it has other parameters today."""
    try:
        plain = catalogue.find(name, "kv")
        return type(plain)(**{**plain.parameters(), **parameters})
    except (LociError, TypeError):
        return None

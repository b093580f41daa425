"""Forms of the KV cache that cards have measured on a model, for budgets the usual ones do not fit.

Methods that encode count by their KL on the suite `reference`. Methods that drop tokens count by
their KL at a share of the full bytes, from the suite `kv`, and with a bank that keeps what they
drop from the suite `bank`: such a form is offered at that share and above, where it cannot lose
more. What needs preparing is offered once it is prepared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from loci.core.card import Measurement
from loci.core.method import Method, Need
from loci.core.spec import ModelSpec
from loci.errors import LociError
from loci.methods import catalogue
from loci.plan.kvform import METRIC, SUITE, Cards, KVForm, is_bounded

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
            form = _form(name, row, spec) if METRIC in row.metrics else None
            if form is None:
                continue
            lacks = any(
                Need.ARTEFACT in method.about.needs and not prepared(method)
                for method in form.methods()
            )
            (waiting if lacks else ready).append(form)
    return tuple(dict.fromkeys(ready)), tuple(dict.fromkeys(waiting))


# -- private ----------------------------------------------------------------------------------


def _form(name: str, row: Measurement, spec: ModelSpec) -> KVForm | None:
    """Return the form that a row is about; None where it is about something else."""
    method = _method(name, row.parameters)
    if method is None:
        return None
    suite, *parts = row.suite.split("/")
    tokens = round(row.bytes.get("full", 0) / spec.kv_bytes(1))
    if row.suite == SUITE and not is_bounded(method):
        return KVForm(chain=str(method))
    try:
        if suite == "kv" and len(parts) == 1 and is_bounded(method):
            return KVForm(
                chain=str(method),
                words="the tokens that seem to matter",
                share=float(parts[0]),
                suite=row.suite,
                tokens=tokens,
            )
        if suite == "bank" and len(parts) == 2:
            return KVForm(
                chain=f"{catalogue.find(parts[0], 'kv')} | {method}",
                words="a file, and what is asked for is fetched from it",
                share=float(parts[1]),
                suite=row.suite,
                tokens=tokens,
            )
    except (LociError, ValueError):  # a share or a method that nobody knows any more
        pass
    return None


def _method(name: str, parameters: Mapping[str, object]) -> Method | None:
    """Return the method as it was measured; None where it has other parameters today."""
    try:
        plain = catalogue.find(name, "kv")
        return type(plain)(**{**plain.parameters(), **parameters})
    except (LociError, TypeError):
        return None

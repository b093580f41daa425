"""Weights of a recall method fitted on generated chats: where the shipped ones come from.

Data with questions that cite their turns may not be used for what is shipped, so the weights are
fitted on chats that Loci draws itself (`testing.chats`): between two friends and three, with an
assistant, and with a user whose name is not known. Other chats, drawn with other seeds, are held
out and show what the fit is worth. `locomo` then measures the shipped weights on real ones.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, cast  # figures are JSON values

from loci.bench.embedding import embedder
from loci.bench.fit import Case, Fitter, reach, weights_of
from loci.bench.suite import Context
from loci.core.ports import Embedder
from loci.errors import ModelError, ParameterError
from loci.methods import catalogue
from loci.methods.recall.base import Recall
from loci.testing.chats import Form, make_chat
from loci.testing.recall import DictView

ABOUT = "weights of a recall method fitted on generated chats; writes what its defaults should be"
DEFAULT = ("mem0",)
CHATS, HELD_OUT = 15, 10
_OPTIONS = ("chats", "held_out", "sessions")
# Two friends thrice as often as the others: the more ways of talking, the less any of them decides.
_FORMS: tuple[tuple[Form, tuple[str, ...]], ...] = (
    ("friends", ("Nora", "Emil")),
    ("assistant", ("Nora",)),
    ("friends", ("Will", "Grace")),
    ("unnamed", ("Nora",)),
    ("friends", ("Nora", "Emil", "Ines")),
)


def case(seed: int, method: Recall, given: Embedder | None, sessions: int = 20) -> Case:
    """Return a chat as this method remembers it; its form goes by the seed."""
    form, speakers = _FORMS[seed % len(_FORMS)]
    chat = make_chat(seed, sessions=sessions, speakers=speakers, form=form)
    view = DictView(embedder=given)
    for session in chat.sessions:
        view.remember(session, method)
    asked = tuple((q.text, frozenset(q.evidence)) for q in chat.questions)
    return Case(id=f"{form}-{seed}", view=view, asked=asked)


def run(context: Context) -> dict[str, Any]:
    """Return fitted weights, and how far they and the shipped ones reach on chats of both kinds."""
    for name in context.options:
        if name not in _OPTIONS:
            raise ParameterError("no such option", value=name, allowed=", ".join(_OPTIONS))
    given = embedder(context.folder)
    if given is None:
        raise ModelError("weights are fitted with meaning", way_out="loci pull minilm")
    count = int(context.options.get("chats", 2 if context.quick else CHATS))
    held = int(context.options.get("held_out", 1 if context.quick else HELD_OUT))
    sessions = int(context.options.get("sessions", 4 if context.quick else 20))
    if min(count, held, sessions) < 1:
        raise ParameterError(
            "chats, held_out and sessions must be at least 1", value=(count, held, sessions)
        )
    methods = {}
    for text in context.methods or DEFAULT:
        (found,) = catalogue.parse_chain(text, "recall")
        method = cast(Recall, found)
        seeds = range(context.seed, context.seed + count + held)
        cases: list[Case] = []
        for seed in seeds:
            context.progress(f"chat {seed}", len(cases), len(seeds))
            cases.append(case(seed, method, given, sessions))
        fitter = Fitter(neutral(method), cases[:count], progress=context.progress)
        fitted = _without_idle(fitter, fitter.fit())
        names = weights_of(method)
        methods[text] = {
            "questions": sum(len(c.asked) for c in cases[:count]),
            "held_out_questions": sum(len(c.asked) for c in cases[count:]),
            "shipped": {name: asdict(method)[name] for name in names},
            "fitted": {name: asdict(fitted)[name] for name in names},
            "reach": {
                name: {"fitted_on": _mean(m, cases[:count]), "held_out": _mean(m, cases[count:])}
                for name, m in (("neutral", fitter.start), ("shipped", method), ("fitted", fitted))
            },
            "tried": fitter.tried,
        }
    return {"chats": count, "held_out": held, "sessions": sessions, "methods": methods}


def neutral(method: Recall) -> Recall:
    """Return the method with every weight 1, so that a fit owes nothing to what was shipped."""
    ones = {
        name: 1.0
        for name, (kind, param) in method.declared().items()
        if kind is float and param.le is None
    }
    return replace(method, **ones)


def _without_idle(fitter: Fitter, method: Recall) -> Recall:
    """Return the method with weights of 0 wherever that loses nothing: idle ones are told apart."""
    for name in fitter.names:
        least = method.declared()[name][1].ge or 0.0
        tried = replace(method, **{name: least})
        if fitter.mean(tried) >= fitter.mean(method):
            method = tried
    return method


def _mean(method: Recall, cases: list[Case]) -> float:
    questions = sum(len(c.asked) for c in cases)
    return sum(reach(method, c) * len(c.asked) for c in cases) / max(questions, 1)

"""Operations on facts: does the memory add, supersede, retire and keep quiet when it should?

Runs a recall method over synthetic dialogues whose every turn carries the right operation, and
reports F1 of each operation, answers of the extractive reader, evidence found, and what the memory
looks like afterwards. Wordings come in two halves: one that rules may be written against, and one
held out. No data needed.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast  # figures are numbers and texts

from loci.bench.cards import Row
from loci.bench.metrics import any_at, macro_f1
from loci.bench.suite import Context
from loci.core.item import Add, Edit, Item, Retire, Revise
from loci.core.ports import Embedder
from loci.errors import ParameterError
from loci.methods import catalogue
from loci.methods.recall.base import Query, Recall
from loci.testing.recall import DictView
from loci.text.answer import answer
from loci.text.dialogue import Dialogue, Expected, Half, make_dialogue, turns_of
from loci.text.extract import extract
from loci.text.ladder import Ladder, Rung, Step
from loci.text.stem import fold, stems

ABOUT = "does the memory add, supersede, retire and keep quiet when it should? synthetic dialogues"
DEFAULT = ("mem0",)
KINDS = ("recall",)
SEEDS, QUICK_SEEDS = 20, 3
HALVES: tuple[Half, ...] = ("written", "held_out", "more")
LABELS = ("add", "supersede", "retire", "noop", "none")


def operation_on(wanted: Expected, edits: Sequence[Edit], view: DictView) -> str:
    """Return which operation `edits` carried out on the expected value; "none" when none.

    For a turn that tells nothing, any edit counts as what it is.
    """
    about = [e for e in edits if not wanted.value or _mentions(e, fold(wanted.value), view)]
    kinds = {_kind(edit) for edit in about}
    for kind in ("supersede", "add", "retire", "noop"):
        if kind in kinds:
            return kind
    return "none"


def _kind(edit: Edit) -> str:
    if isinstance(edit, Add):
        return "add"
    if isinstance(edit, Retire):
        return "supersede" if edit.superseded_by is not None else "retire"
    return "noop"


def _mentions(edit: Edit, value: str, view: DictView) -> bool:
    if isinstance(edit, Add):
        text = edit.candidate.text
    elif isinstance(edit, Retire):
        told = edit.superseded_by
        known = view.items([edit.id])  # empty for one that the same write added
        text = told.text if told is not None else "".join(i.text for i in known.values())
    elif isinstance(edit, Revise):
        text = edit.candidate.text
    else:
        return False
    return value in fold(text)


def duplicates(facts: Sequence[Item]) -> int:
    """Return how many facts say what another one says: the same words, or subject and object."""
    told: set[object] = set()
    count = 0
    for fact in facts:
        keys: list[object] = [frozenset(stems(fact.text))]
        if fact.object:
            keys.append((fact.subject, fact.predicate, " ".join(stems(fact.object))))
        count += not told.isdisjoint(keys)
        told.update(keys)
    return count


def unreachable(dialogue: Dialogue, view: DictView, method: Recall) -> list[str]:
    """Return the turns that are gone, changed, or not among the ten their own words find.

    Of messages that are alike to the letter, one found stands for all.
    """
    turns = turns_of(dialogue)
    kept = view.turns([turn.id for turn in turns])
    found: dict[str, bool] = {}
    for text in {turn.content for turn in turns}:
        hits = method.find(Query(text=text, limit=10, kinds=("turn",)), view)
        found[text] = any(hit.text == text for hit in hits)
    return [
        turn.id
        for turn in turns
        if turn.id not in kept or kept[turn.id].content != turn.content or not found[turn.content]
    ]


def _outdated(facts: Sequence[Item], dialogue: Dialogue) -> list[str]:
    """Return live facts of a slot whose value has ended or was replaced."""
    held: dict[str, bool] = {}
    for wanted in dialogue.expected:
        if wanted.old:
            held[fold(wanted.old)] = False
        if wanted.value:
            held[fold(wanted.value)] = wanted.operation != "retire"
    ended = [set(stems(value)) for value, is_held in held.items() if not is_held]
    objects = [(fact, set(stems(fact.object or ""))) for fact in facts]
    return [fact.text for fact, words in objects if words and any(e <= words for e in ended)]


def measure(
    method: Recall,
    embedder: Embedder | None = None,
    *,
    seeds: Sequence[int] = tuple(range(10)),
    limit: int = 10,
    ladder: Callable[[], Ladder] = Ladder,
    half: Half = "plain",
    split: int = 0,
) -> dict[str, Any]:
    """Return F1 of each operation and "macro", right answers, evidence any@limit, us per turn.

    Beside them what a memory should look like after all that: no live fact twice, none that holds
    what has ended, every message found again by its own words.

    Args:
        half, split: the wordings, see `loci.text.dialogue`.
        ladder: makes the back end of each write; its calls and tokens are in the result.
    """
    pairs: list[tuple[str, str]] = []
    right: list[float] = []
    found: list[float] = []
    missed: list[str] = []
    seconds = turns = 0.0
    steps: list[Step] = []
    live = twice = outdated = lost = 0
    for seed in seeds:
        dialogue = make_dialogue(seed, half=half, split=split)
        view = DictView(embedder=embedder)
        expected = {e.turn: e for e in dialogue.expected}
        for session in dialogue.sessions:
            for turn in session:
                began = time.process_time()
                extract([turn])
                seconds += time.process_time() - began
                turns += 1
                asked_of = ladder()
                edits = view.remember([turn], method, asked_of)
                steps += asked_of.steps
                if turn.id not in expected:
                    continue
                wanted = expected[turn.id]
                given = operation_on(wanted, edits, view)
                pairs.append((given, wanted.operation))
                if given != wanted.operation:
                    missed.append(f"{given} for {wanted.operation}: {turn.content}")
        facts = [item for item in view.all_items() if item.is_live and item.kind == "fact"]
        live += len(facts)
        twice += duplicates(facts)
        outdated += len(_outdated(facts, dialogue))
        lost += len(unreachable(dialogue, view, method))
        for asked in dialogue.questions:
            hits = method.find(Query(text=asked.text, limit=limit), view)
            shown = [s.id for hit in hits for s in hit.sources]
            found.append(any_at(shown, asked.evidence, len(shown)))
            text = fold(answer(asked.text, hits, view.now()).text)
            good = any(fold(a) in text for a in asked.answers)
            right.append(float(good and not any(fold(w) in text for w in asked.wrong)))
            if not right[-1]:
                missed.append(f"answer {text!r} for {asked.answers}: {asked.text}")
    return {
        "method": str(method),
        "seeds": list(seeds),
        "limit": limit,
        "facts": len(pairs),
        "f1": macro_f1(pairs, LABELS),
        "accuracy": sum(a == b for a, b in pairs) / max(len(pairs), 1),
        "questions": len(right),
        "answers_right": sum(right) / max(len(right), 1),
        f"any@{limit}": sum(found) / max(len(found), 1),
        "live_facts": live,
        "live_duplicates": twice,
        "live_outdated": outdated,
        "turns": int(turns),
        "turns_lost": lost,
        "extract_us_per_turn": 1e6 * seconds / max(turns, 1),
        "back_end": {
            "calls": sum(step.calls for step in steps),
            "prompt_tokens": sum(step.prompt_tokens for step in steps),
            "reply_tokens": sum(step.reply_tokens for step in steps),
            "refused": dict(Counter(r.why for step in steps for r in step.refused)),
        },
        "missed": missed,
    }


def run(context: Context) -> dict[str, Any]:
    """Return the figures of every method on the same dialogues.

    The figures of a method are those of the plain wordings. Beside them stand those of the half of
    all wordings that rules may be written against, of the half held out, and of those added last.
    """
    count = QUICK_SEEDS if context.quick else int(context.options.get("dialogues", SEEDS))
    backend = context.options.get("backend", "rules")
    methods = {}
    with _ladders(context) as ladder:
        for done, text in enumerate(context.methods or DEFAULT):
            context.progress(text, done, len(context.methods or DEFAULT))
            (method,) = catalogue.parse_chain(text, "recall")
            seeds = range(context.seed + 100, context.seed + 100 + count)
            measured = partial(measure, cast(Recall, method), seeds=tuple(seeds), ladder=ladder)
            methods[text] = measured()
            for half in HALVES:
                methods[text][half] = measured(half=half)
    return {"dialogues": count, "backend": backend, "methods": methods}


@contextmanager
def _ladders(context: Context) -> Iterator[Callable[[], Ladder]]:
    """Lend what makes the back end of a write: --option backend=slm, or an endpoint's."""
    backend = context.options.get("backend", "rules")
    if backend == "slm":
        from loci.bench.answers import open_session
        from loci.run.llm import LocalLlm

        with (
            tempfile.TemporaryDirectory() as cache,
            open_session(context.model, context.folder, 4096, Path(cache)) as session,
        ):
            model = LocalLlm(session)
            yield lambda: Ladder("slm", model, fall_back=True)
    elif backend == "endpoint":
        from loci.models.endpoint import Endpoint

        missing = [key for key in ("endpoint", "endpoint_model") if key not in context.options]
        if missing:
            raise ParameterError(
                "the back end endpoint needs its address and model",
                value=missing,
                way_out="--option endpoint=http://... --option endpoint_model=NAME",
            )
        server = Endpoint(context.options["endpoint"], context.options["endpoint_model"])
        yield lambda: Ladder("endpoint", server, fall_back=True)
    else:
        Ladder(cast(Rung, backend))  # an unknown one is refused
        yield Ladder


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return F1 of operations, right answers and evidence found of every method."""
    methods = result["methods"]
    return [
        Row(
            method=name,
            kind="recall",
            seeds=tuple(found["seeds"]),
            metrics={
                what: {
                    "this": _figure(found, what),
                    "rivals": {n: _figure(f, what) for n, f in methods.items() if n != name},
                }
                for what in ("operation_f1", "answers_right", "evidence_any")
            },
        )
        for name, found in methods.items()
    ]


def _figure(found: Mapping[str, Any], what: str) -> float:
    if what == "operation_f1":
        return float(found["f1"]["macro"])
    return float(found[what if what == "answers_right" else f"any@{found['limit']}"])

"""The minimal evaluation card of a memory: right, faithful, wherever it stood, fresh, or silent.

arXiv:2509.18868 asks for correctness and faithfulness, robustness to position, timeliness and
refusal, each with interval, n, regime, seeds and settings, on the same data in every regime side by
side. Data are synthetic conversations (`text.dialogue`), scored without a judge:

    correct      the answer names what holds, and nothing that held before
    faithful     every content word of the answer stands in what it cites
    position     correct where the evidence is in the first, the middle, the last third; the card
                 keeps the least of the three
    fresh        correct where the value changed during the conversation
    refusal      asked what was never told, the memory says nothing, or says that it is unsure

Regimes: "frozen", the turns are stored as they were said and nothing is drawn from them; "online",
facts are drawn and reconciled session by session. What a model says from its weights alone, and
from what is put before it, is measured in `reading`, with one and the same reader.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any  # figures are JSON values

from loci.bench.metrics import wilson
from loci.bench.stats import mean, paired_difference
from loci.bench.suite import Context
from loci.core.item import Hit, Turn
from loci.run.memory import Memory
from loci.store.rows import source_of
from loci.text.dialogue import Asked, Dialogue, make_dialogue, turns_of
from loci.text.stem import fold, stems

USER, SPEAKER = "bench", "Nora"
REGIMES = ("frozen", "online")
THIRDS = ("first", "middle", "last")
NEVER_TOLD = (
    "What is Nora's blood type?",
    "What is Nora's shoe size?",
    "Which bank does Nora use?",
    "What is the name of Nora's dentist?",
    "When did Nora graduate from university?",
    "What colour is Nora's front door?",
    "How tall is Nora?",
    "Which newspaper does Nora read?",
    "What is Nora's middle name?",
    "Who is Nora's landlord?",
    "Which political party does Nora support?",
    "What is the number of Nora's passport?",
)
GIVEN = {"nothing": 0, "found 2": 2, "found 5": 5, "found 10": 10}
LAST = (256, 1024, 4096)  # tokens of the end of the conversation; it has some 1,700
SESSIONS = 16  # of the conversations that the model reads
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One figure of a card, with all that is needed to read it."""

    metric: str
    regime: str
    value: float
    low: float
    high: float
    n: int
    seeds: tuple[int, int]
    settings: str = "rules, extractive reader, 10 hits, by words"

    @classmethod
    def of(
        cls, metric: str, regime: str, outcomes: Sequence[float], seeds: tuple[int, int]
    ) -> Panel:
        """Return the panel of outcomes of 0 and 1."""
        hits, n = sum(outcomes), len(outcomes)
        low, high = wilson(hits, n)
        value = hits / n if n else 0.0
        return cls(metric=metric, regime=regime, value=value, low=low, high=high, n=n, seeds=seeds)


def measured(dialogues: int, seed: int, progress: Progress) -> dict[str, Any]:
    """Return the panels of both regimes over the same conversations and questions."""
    seeds = (seed, seed + dialogues - 1)
    panels: list[Panel] = []
    for regime in REGIMES:
        found: dict[str, list[float]] = {}
        for number in range(dialogues):
            progress(f"evaluation card, {regime}", number, dialogues)
            for name, outcomes in _of_dialogue(seed + number, regime).items():
                found.setdefault(name, []).extend(outcomes)
        thirds = {third: found.pop(third, []) for third in THIRDS}
        for name in ("correct", "faithful", "fresh", "refusal"):
            panels.append(Panel.of(name, regime, found.get(name, ()), seeds))
        worst = min((t for t in THIRDS if thirds[t]), key=lambda t: sum(thirds[t]) / len(thirds[t]))
        panels.append(Panel.of("position, worst third", regime, thirds[worst], seeds))
    return {"dialogues": dialogues, "panels": [asdict(panel) for panel in panels]}


def is_right(text: str, asked: Asked) -> bool:
    """Return whether an answer names what holds, and nothing that held before."""
    said = fold(text)
    named = any(fold(answer) in said for answer in asked.answers)
    kept = {fold(answer) for answer in asked.answers}
    return named and not any(fold(old) in said for old in asked.wrong if fold(old) not in kept)


def _of_dialogue(seed: int, regime: str) -> dict[str, list[float]]:
    dialogue = make_dialogue(seed, speaker=SPEAKER)
    place = {turn.id: number for number, turn in enumerate(turns_of(dialogue))}
    found: dict[str, list[float]] = {}

    def note(name: str, outcome: bool) -> None:
        found.setdefault(name, []).append(float(outcome))

    with tempfile.TemporaryDirectory() as folder, Memory(Path(folder) / "m.db") as memory:
        _told(memory, dialogue, infer=regime == "online")
        now = turns_of(dialogue)[-1].time
        for asked in dialogue.questions:
            answer = memory.answer(asked.text, user=USER, now=now)
            right = is_right(answer.text, asked)
            note("correct", right)
            if asked.wrong:
                note("fresh", right)
            if answer.text:
                cited = " ".join(
                    [hit.text for hit in answer.memories]
                    + [s.content for hit in answer.memories for s in hit.sources]
                )
                note("faithful", set(stems(answer.text)) <= set(stems(f"{cited} {answer.told}")))
            at = max((place[id] for id in asked.evidence if id in place), default=0)
            note(THIRDS[min(2, 3 * at // len(place))], right)
        for question in NEVER_TOLD:
            answer = memory.answer(question, user=USER, now=now)
            note("refusal", not answer.text or answer.confidence < 0.5)
    return found


def _told(memory: Memory, dialogue: Dialogue, *, infer: bool) -> None:
    for session in dialogue.sessions:
        messages = [
            {
                "role": turn.role,
                "content": turn.content,
                "time": turn.time,
                **({"name": turn.name} if turn.name else {}),
            }
            for turn in session
        ]
        memory.add(messages, user=USER, session=session[0].session, infer=infer)


# -- one reader, several things to read --------------------------------------------------------


def reading(context: Context, dialogues: int, asked: int) -> dict[str, Any]:
    """Return how often the small model answers right from nothing, from turns found, from the end.

    Nothing, found turns and the last N tokens are put before the same model with the same prompt.
    """
    from loci.bench.answers import ask, open_session

    cases = _cases(context.seed, dialogues, asked)
    right: dict[str, list[float]] = {}
    tokens: dict[str, list[float]] = {}
    total = len(cases) * (len(GIVEN) + len(LAST))
    done = 0
    with (
        tempfile.TemporaryDirectory() as cache,
        open_session(context.model, context.folder, 4096, Path(cache)) as session,
    ):
        count = session.tokenizer.count
        by_seed: dict[int, list[Asked]] = {}
        for seed, question in cases:
            by_seed.setdefault(seed, []).append(question)
        for seed, questions in by_seed.items():
            dialogue = make_dialogue(seed, speaker=SPEAKER, sessions=SESSIONS)
            now = turns_of(dialogue)[-1].time
            with tempfile.TemporaryDirectory() as folder, Memory(Path(folder) / "m.db") as memory:
                _told(memory, dialogue, infer=True)
                for name, given in put_before(memory, turns_of(dialogue), count).items():
                    for question in questions:  # one after the other: an end is read once
                        done += 1
                        context.progress("answers of the model", done, total)
                        hits = given(question.text)
                        ends = name.startswith("last")
                        reply = ask(session, question.text, hits, now, last=ends)
                        right.setdefault(name, []).append(float(is_right(reply, question)))
                        size = sum(count(hit.text) for hit in hits)
                        tokens.setdefault(name, []).append(float(size))
    found = {
        name: {"right": mean(values).to_json(), "tokens": sum(tokens[name]) / len(values)}
        for name, values in right.items()
    }
    best = max((n for n in found if n.startswith("found")), key=lambda n: sum(right[n]))
    crossing = next(
        (n for n in found if n.startswith("last") and sum(right[n]) >= sum(right[best])), None
    )
    return {
        "questions": len(cases),
        "given": found,
        "best": best,
        "crossing": crossing,
        "best_over": {
            name: paired_difference(right[best], right[name]).to_json()
            for name in found
            if name != best
        },
    }


def _cases(seed: int, dialogues: int, asked: int) -> list[tuple[int, Asked]]:
    """Return questions of few conversations, so that a long end is read for several of them."""
    per = max(1, asked // max(1, min(dialogues, 5)))
    found: list[tuple[int, Asked]] = []
    for number in range(dialogues):
        if len(found) >= asked:
            break
        made = make_dialogue(seed + number, speaker=SPEAKER, sessions=SESSIONS)
        questions = list(made.questions)
        Random(seed + number).shuffle(questions)
        found += [(seed + number, question) for question in questions[:per]]
    return found[:asked]


def put_before(
    memory: Memory, turns: Sequence[Turn], count: Callable[[str], int]
) -> Mapping[str, Callable[[str], Sequence[Hit]]]:
    """Return what is put before the reader, by name: {name: question -> hits}.

    Args:
        count: tokens of a text.
    """

    def recalled(text: str, limit: int) -> Sequence[Hit]:
        return memory.search(text, user=USER, limit=limit) if limit else []

    def end(text: str, most: int) -> Sequence[Hit]:
        kept: list[Hit] = []
        for turn in reversed(turns):
            most -= count(turn.content)
            if most < 0:
                break
            kept.append(_hit(turn))
        return kept[::-1]

    found: dict[str, Callable[[str], Sequence[Hit]]] = {
        name: partial(recalled, limit=limit) for name, limit in GIVEN.items()
    }
    return found | {f"last {most}": partial(end, most=most) for most in LAST}


def _hit(turn: Turn) -> Hit:
    return Hit(id=turn.id, text=turn.content, score=0.0, kind="turn", sources=(source_of(turn),))

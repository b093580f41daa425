"""Answers to questions about long conversations: what a small model, and the reader, make of them.

Three things are put before each: what a recall method found, the turns that share most with the
question by plain BM25, and the conversation itself, as much of its end as fits. Scored by F1 of
words as LoCoMo defines it, so no judge is needed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any  # figures are numbers and texts

from loci.bench.metrics import mean_of, word_f1
from loci.core.item import Hit, Source, Turn
from loci.core.ports import Embedder
from loci.methods.recall.base import Query, Recall
from loci.store.rows import source_of
from loci.testing.recall import DictView
from loci.text.answer import answer
from loci.text.quote import AS_DATA, listed
from loci.text.stem import stems

if TYPE_CHECKING:
    from loci.bench.suites.locomo import Conversation, Question
    from loci.run.engine import Session

GIVEN = ("recalled", "top", "whole")
"""What is put before a reader: hits of the method, turns by BM25, the whole conversation."""

NEW_TOKENS = 24
QUESTION_TOKENS = 128  # left free for the question
_ASK = (
    "{data}\n{notes}\n\nAnswer the question with a few words from the notes, no sentence. "
    "Question: {question}\nShort answer:"
)
Progress = Callable[[str, int, int], None]


def answer_f1(given: str, gold: str, category: int) -> float:
    """Return LoCoMo's score of an answer.

    Multi-hop answers are lists: each part of the gold answer takes its best match. Of open-domain
    answers what stands before the first semicolon counts.

    >>> answer_f1("a cat, two dogs", "two dogs, a parrot", 1)
    0.5
    """
    if category == 1:
        parts = [part for part in gold.split(",") if part.strip()]
        offers = [part for part in given.split(",") if part.strip()]
        best = [max((word_f1(o, part) for o in offers), default=0.0) for part in parts]
        return sum(best) / len(best) if best else 0.0
    return word_f1(given, gold.split(";")[0] if category == 3 else gold)


@dataclass(frozen=True)
class _Case:
    """One question with what is put before it."""

    question: Question
    given: dict[str, list[Hit]]


def measure(
    conversations: Sequence[Conversation],
    method: Recall,
    embedder: Embedder | None,
    session: Session | None,
    *,
    questions: int = 100,
    limit: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return F1 by reader, by what it was given, and by category.

    Args:
        session: runs the small model; None measures the reader alone.
        questions: how many are drawn, the same for every method and seed.
        limit: hits or turns given, but for the whole conversation.
    """
    scores: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    by_id: dict[str, list[Question]] = defaultdict(list)
    for name, question in _drawn(conversations, questions, seed):
        by_id[name].append(question)
    done = 0
    samples: list[dict[str, Any]] = []
    for conversation in conversations:
        if not by_id[conversation.id]:
            continue
        view = DictView(embedder=embedder)
        for turns in conversation.sessions:
            view.remember(turns, method)
        whole = [_hit(turn) for turns in conversation.sessions for turn in turns]
        cases = [
            _Case(question, _given(question.text, method, view, whole, limit))
            for question in by_id[conversation.id]
        ]
        for what in GIVEN:  # one after the other, so that the whole conversation is read once
            for case in cases:
                done += 1
                if progress is not None:
                    progress(f"answers, {what}", done, len(GIVEN) * questions)
                hits, question = case.given[what], case.question
                said = {"reader": answer(question.text, hits, view.now()).text}
                if session is not None:
                    said["slm"] = ask(
                        session, question.text, hits, view.now(), last=what == "whole"
                    )
                for name, text in said.items():
                    score = answer_f1(text, question.answer, question.category)
                    scores[name][what].append({"f1": score, "category": float(question.category)})
                if what == "recalled":
                    gold = {"question": question.text, "gold": question.answer}
                    samples.append({**gold, **said})
    return {
        "questions": sum(map(len, by_id.values())),
        "seed": seed,
        "limit": limit,
        "f1": {
            name: {what: _by_category(rows) for what, rows in given.items()}
            for name, given in scores.items()
        },
        "samples": samples[:20],
    }


def open_session(model: str, folder: Path, context: int, cache: Path) -> Session:
    """Return a session with nothing spared, for prompts of up to `context` tokens."""
    from loci.plan import plan
    from loci.run import engine

    made = plan(
        model,
        dram="4GiB",
        context=context,
        new_tokens=NEW_TOKENS,
        kv="",
        folder=folder,
        cache=cache,
    )
    return engine.open(made, folder=folder)


def _drawn(
    conversations: Sequence[Conversation], count: int, seed: int
) -> list[tuple[str, Question]]:
    from loci.bench.suites.locomo import asked

    every = [(c.id, question) for c in conversations for question in asked(c)]
    return Random(seed).sample(every, min(count, len(every)))


def _given(
    text: str, method: Recall, view: DictView, whole: Sequence[Hit], limit: int
) -> dict[str, list[Hit]]:
    top = view.turns([id for id, _ in view.search_words(stems(text), limit, "turn")])
    return {
        "recalled": list(method.find(Query(text=text, limit=limit), view)),
        "top": [_hit(turn) for turn in top.values()],
        "whole": list(whole),
    }


def _hit(turn: Turn) -> Hit:
    return Hit(id=turn.id, text=turn.content, score=0.0, kind="turn", sources=(source_of(turn),))


def ask(
    session: Session, question: str, hits: Sequence[Hit], now: datetime, *, last: bool = False
) -> str:
    """Return the model's answer from as many of the hits as fit: the first of them, or the last.

    The same hits make the same beginning of a prompt whatever is asked, so that a session reads
    them once.
    """
    notes = [_note(hit) for hit in hits]
    head = f"The conversation ended on {now:%d %B %Y}. {AS_DATA}"
    frame = _ASK.format(data=head, notes=listed("notes", ()), question="")
    room = session.plan.workload.context - NEW_TOKENS - QUESTION_TOKENS
    room -= len(session.tokenizer.chat([{"role": "user", "content": frame}]))
    kept: list[str] = []
    for note in reversed(notes) if last else notes:
        room -= session.tokenizer.count(f"- {note}\n")
        if room < 0:
            break
        kept.append(note)
    shown = listed("notes", reversed(kept) if last else kept)
    content = _ASK.format(data=head, notes=shown, question=question)
    messages = [{"role": "user", "content": content}]
    return "".join(session.generate(messages, max_tokens=NEW_TOKENS, stop=("\n",))).strip()


def _note(hit: Hit) -> str:
    source: Source | None = hit.sources[0] if hit.sources else None
    if source is None:
        return hit.text
    day = f"{source.time:%d %B %Y}"
    who = f"{source.name or source.role}: " if hit.kind in ("turn", "note") else ""
    return f"({day}) {who}{hit.text}"


def _by_category(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    from loci.bench.suites.locomo import CATEGORIES

    found = {"all": mean_of(rows)["f1"]}
    for number, name in CATEGORIES.items():
        part = [row for row in rows if row["category"] == number]
        if part:
            found[name] = mean_of(part)["f1"]
    return found

"""LoCoMo: long two-person conversations with questions that cite the turns they rest on.

A. Maharana et al., "Evaluating Very Long-Term Conversational Memory of LLM Agents", 2024,
arXiv:2402.17753. The data is for non-commercial use and is not shipped: give a path to the file.

What is counted needs no judge: whether the cited turns stand behind the first hits. A hit may rest
on several turns, and counts for the first of them alone. Every method remembers each conversation
in a memory file of its own, as a person's would, and is asked when the conversation ends; plain
rivals (`bench.rivals`) rank the same turns in the same run.

Nothing that ships is fitted on this data. `--option fit=1` fits a method's weights on all
conversations but one and scores that one, which tells what other weights could reach; it takes
minutes. `--option rivals=0` leaves the rivals out.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast  # the file is JSON

from loci.bench import embedding, evidence, rivals
from loci.bench.cards import Row
from loci.bench.evidence import Found
from loci.bench.fit import Case, Fitter, weights_of
from loci.bench.suite import Context
from loci.core.item import Turn
from loci.core.ports import Embedder
from loci.errors import FormatError, ParameterError
from loci.methods import catalogue
from loci.methods.recall.base import Recall

ABOUT = "evidence found again in long conversations; give LoCoMo with --data"
DEFAULT = ("mem0",)
KINDS = ("recall",)
OPTIONS = ("limit", "rivals", "fit", "answers", "context", "questions")
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}
_DIA = re.compile(r"D:?(\d+):0*(\d+)")
_DATE = "%I:%M %p on %d %B, %Y"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question; `evidence` are references of turns that exist in its conversation."""

    text: str
    answer: str
    category: int
    evidence: frozenset[str]

    @property
    def kind(self) -> str:
        """The name of the category."""
        return CATEGORIES.get(self.category, "adversarial")


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One conversation: its sessions in order of number, each a list of turns, and questions."""

    id: str
    sessions: tuple[tuple[Turn, ...], ...]
    questions: tuple[Question, ...]


def file_of(data: Path) -> Path:
    """Return a file, or the first that could be LoCoMo in a folder.

    Raises:
        FormatError: if there is none.
    """
    if not data.is_dir():
        return data
    found = sorted(data.glob("*.json"))
    if not found:
        raise FormatError("no LoCoMo file in this folder", value=str(data), allowed="*.json")
    return found[0]


def refs_of(cited: Sequence[str]) -> tuple[str, ...]:
    """Return the references of turns that stand in texts, as turns have them.

    >>> refs_of(["D8:6; D9:17", "D:11:26", "D30:05", "D"])
    ('D8:6', 'D9:17', 'D11:26', 'D30:5')
    """
    return tuple(f"D{a}:{b}" for text in cited for a, b in _DIA.findall(text))


def load(data: Path) -> list[Conversation]:
    """Return the conversations of a LoCoMo file, or of the first such file in a folder.

    A picture counts by its caption. The reference of a turn ("D1:3") is in its metadata.

    Raises:
        FormatError: if the file does not look like LoCoMo.
    """
    path = file_of(data)
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(samples, list):
            raise TypeError("its top is no list")
        return [_conversation(sample) for sample in samples]
    except (KeyError, TypeError, ValueError) as problem:
        raise FormatError(
            f"cannot read {path.name} as LoCoMo ({problem})",
            allowed='a list of samples with "conversation" and "qa"',
        ) from None


def _conversation(sample: dict[str, Any]) -> Conversation:
    talk = sample["conversation"]
    numbers = sorted(
        int(key.split("_")[1])
        for key, value in talk.items()
        if re.fullmatch(r"session_\d+", key) and isinstance(value, list)
    )
    sessions = []
    refs: set[str] = set()
    for number in numbers:
        said = datetime.strptime(talk[f"session_{number}_date_time"].title(), _DATE)
        turns = []
        for place, entry in enumerate(talk[f"session_{number}"]):
            text = entry["text"]
            if caption := entry.get("blip_caption"):
                text = f"{text} [shares a picture: {caption}]".strip()
            refs.add(entry["dia_id"])
            turns.append(
                Turn(
                    id=f"{sample['sample_id']}/{entry['dia_id']}",
                    role="user",
                    name=entry["speaker"],
                    content=text,
                    time=said.replace(tzinfo=UTC),
                    session=f"s{number}",
                    metadata={"ref": entry["dia_id"]},
                    position=place,
                )
            )
        sessions.append(tuple(turns))
    questions = [
        Question(
            text=entry["question"],
            answer=str(entry.get("answer", "")),
            category=entry["category"],
            evidence=frozenset(ref for ref in refs_of(entry["evidence"]) if ref in refs),
        )
        for entry in sample["qa"]
    ]
    return Conversation(
        id=sample["sample_id"], sessions=tuple(sessions), questions=tuple(questions)
    )


def asked(conversation: Conversation) -> Iterator[Question]:
    """Yield the questions of categories 1 to 4 that have usable evidence."""
    for question in conversation.questions:
        if question.category in CATEGORIES and question.evidence:
            yield question


def measure(
    data: Path,
    method: Recall,
    embedder: Embedder | None = None,
    *,
    limit: int = 10,
    per_hit: int = 1,
    conversations: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Return recall of evidence by category, latency, and how much was shown, of a method alone.

    Args:
        limit: hits asked for; recall counts the turns behind them.
        per_hit: most source turns that count of one hit.
        conversations: only the first so many.
    """
    rows: list[Found] = []
    chosen = load(data)[:conversations]
    for done, conversation in enumerate(chosen, 1):
        with evidence.in_view(conversation, method, embedder) as find:
            rows += evidence.search(conversation, asked(conversation), find, limit, per_hit)
        if progress is not None:
            progress(f"{method}: {conversation.id}", done, len(chosen))
    return {
        "method": str(method),
        "limit": limit,
        "per_hit": per_hit,
        "dense": embedder is not None,
        **evidence.figures(rows, (limit * per_hit,)),
    }


def run(context: Context) -> dict[str, Any]:
    """Return recall of evidence of every method and rival, by words and, where it is, MiniLM."""
    if context.data is None:
        raise ParameterError(
            "LoCoMo is not shipped: its licence is non-commercial",
            value="no --data",
            way_out="loci bench run locomo --data PATH/TO/locomo10.json",
        )
    for name in context.options:
        if name not in OPTIONS:
            raise ParameterError("no such option", value=name, allowed=", ".join(OPTIONS))
    limit = int(context.options.get("limit", 10))
    given = embedding.embedder(context.folder)
    chosen = load(context.data)[: 1 if context.quick else None]
    methods = {}
    for text in context.methods or DEFAULT:
        (method,) = catalogue.parse_chain(text, "recall")
        methods[text] = cast(Recall, method)
    result: dict[str, Any] = {
        "limit": limit,
        "conversations": len(chosen),
        "dense": given is not None,
        **_evidence(context, chosen, methods, given, limit),
        "absent": dict(rivals.absent(given)),
    }
    if "answers" in context.options:
        result["answers"] = _answers(context, given, limit)
    return result


def _evidence(
    context: Context,
    chosen: Sequence[Conversation],
    methods: Mapping[str, Recall],
    given: Embedder | None,
    limit: int,
) -> dict[str, Any]:
    """Return the figures of methods in a memory file, of plain rivals, and what lies between."""
    deepest = max(limit, *evidence.DEPTHS)
    depths = tuple(sorted({limit, *evidence.DEPTHS}))
    done, total = 0, len(chosen) * (len(methods) + 1)

    def went(what: str) -> None:
        nonlocal done
        done += 1
        context.progress(what, done, total)

    plain: dict[str, list[Found]] = defaultdict(list)
    if context.options.get("rivals", "1") != "0":
        for conversation in chosen:
            questions = list(asked(conversation))
            for name, rows in evidence.ranked(conversation, questions, given, deepest).items():
                plain[name] += rows
            went(f"rivals: {conversation.id}")
    found: dict[str, Any] = {}
    for text, method in methods.items():
        rows = []
        for conversation in chosen:
            with evidence.in_memory(conversation, method, given) as find:
                rows += evidence.search(conversation, asked(conversation), find, deepest)
            went(f"{text}: {conversation.id}")
        found[text] = {"method": str(method), "limit": limit, "per_hit": 1}
        found[text] |= evidence.figures(rows, depths)
        found[text]["over"] = {
            name: evidence.compared(rows, theirs, context.seed, depths)
            for name, theirs in plain.items()
        }
        if "fit" in context.options:
            found[text]["left_out"] = _left_out(context, chosen, method, given, rows, plain, depths)
    return {
        "methods": found,
        "rivals": {name: evidence.figures(rows, depths) for name, rows in plain.items()},
    }


def _left_out(
    context: Context,
    chosen: Sequence[Conversation],
    method: Recall,
    given: Embedder | None,
    shipped: Sequence[Found],
    plain: Mapping[str, Sequence[Found]],
    depths: Sequence[int],
) -> dict[str, Any]:
    """Return the figures of weights fitted on all other conversations, each scored without itself.

    Nothing fitted here is shipped: this tells what the method could reach.
    """
    if len(chosen) < 2:
        raise ParameterError("leaving one out takes two conversations", value=len(chosen))
    views = {c.id: evidence.view_of(c, method, given) for c in chosen}
    cases = []
    for conversation in chosen:
        ids = {str(turn.metadata["ref"]): turn.id for s in conversation.sessions for turn in s}
        questions = tuple(
            (q.text, frozenset(ids[ref] for ref in q.evidence)) for q in asked(conversation)
        )
        cases.append(Case(id=conversation.id, view=views[conversation.id], asked=questions))
    fitter = Fitter(method, cases, progress=context.progress)
    rows: list[Found] = []
    same: list[Found] = []
    weights = {}
    for conversation in chosen:
        fitted = fitter.fit(without=conversation.id)
        weights[conversation.id] = {name: getattr(fitted, name) for name in weights_of(fitted)}
        view = views[conversation.id]
        for tried, into in ((fitted, rows), (method, same)):
            find = evidence.finder(tried, view)
            into += evidence.search(conversation, asked(conversation), find, max(depths))
    return {
        **evidence.figures(rows, depths),
        "weights": weights,
        "tried": fitter.tried,
        "over": {n: evidence.compared(rows, r, context.seed, depths) for n, r in plain.items()},
        "view_as_memory": evidence.alike(same, shipped),
    }


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return evidence found by every method, beside the others and the rivals of the same run."""
    methods, limit = result["methods"], result["limit"]
    others = {**result["rivals"], **methods}
    whats = (f"any@{limit}", f"all@{limit}")
    return [
        Row(
            method=name,
            kind="recall",
            metrics={
                what: {
                    "this": found["all"][what],
                    "rivals": {n: f["all"][what] for n, f in others.items() if n != name},
                }
                for what in whats
            },
            interval={whats[0]: tuple(found["all"]["intervals"][whats[0]])},
        )
        for name, found in methods.items()
    ]


def _answers(context: Context, embedder: Embedder | None, limit: int) -> dict[str, Any]:
    """Return F1 of answers, of the reader alone or of the small model beside it; slow."""
    from loci.bench import answers

    wanted = context.options["answers"]
    if wanted not in ("reader", "slm"):
        raise ParameterError("unknown reader of answers", value=wanted, allowed="reader, slm")
    assert context.data is not None
    chosen = load(context.data)[: 1 if context.quick else None]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache, ExitStack() as open_:
        session = None
        if wanted == "slm":
            tokens = int(context.options.get("context", 2048))
            session = open_.enter_context(
                answers.open_session(context.model, context.folder, tokens, Path(cache))
            )
            found |= {"model": context.model, "context": tokens}
        for text in context.methods or DEFAULT:
            (method,) = catalogue.parse_chain(text, "recall")
            found[text] = answers.measure(
                chosen,
                cast(Recall, method),
                embedder,
                session,
                questions=int(context.options.get("questions", 5 if context.quick else 100)),
                limit=limit,
                seed=context.seed,
                progress=context.progress,
            )
    return found

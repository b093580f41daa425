"""LoCoMo: long two-person conversations with questions that cite the turns they rest on.

A. Maharana et al., "Evaluating Very Long-Term Conversational Memory of LLM Agents", 2024,
arXiv:2402.17753. The data is for non-commercial use and is not shipped: give a path to the file.

What is counted needs no judge: whether the cited turns stand behind the first hits. A hit may rest
on several turns, so the number of distinct turns shown is reported beside every recall, and a hit
counts at most `per_hit` of its sources.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast  # the file is JSON

from loci.bench.cards import Row
from loci.bench.metrics import all_at, any_at, mean_of, percentile, recall_at, wilson
from loci.bench.suite import Context
from loci.core.item import Hit, Turn
from loci.core.ports import Embedder
from loci.errors import FormatError, ParameterError
from loci.methods import catalogue
from loci.methods.recall.base import Query, Recall
from loci.testing.recall import DictView

ABOUT = "evidence found again in long conversations; give LoCoMo with --data"
DEFAULT = ("mem0",)
KINDS = ("recall",)
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


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One conversation: its sessions in order of number, each a list of turns, and questions."""

    id: str
    sessions: tuple[tuple[Turn, ...], ...]
    questions: tuple[Question, ...]


def load(data: Path) -> list[Conversation]:
    """Return the conversations of a LoCoMo file, or of the first such file in a folder.

    A picture counts by its caption. The reference of a turn ("D1:3") is in its metadata.

    Raises:
        FormatError: if the file does not look like LoCoMo.
    """
    path = data
    if data.is_dir():
        found = sorted(data.glob("*.json"))
        if not found:
            raise FormatError("no LoCoMo file in this folder", value=str(data), allowed="*.json")
        path = found[0]
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
            evidence=frozenset(
                ref
                for cited in entry["evidence"]
                for ref in (f"D{a}:{b}" for a, b in _DIA.findall(cited))
                if ref in refs
            ),
        )
        for entry in sample["qa"]
    ]
    return Conversation(
        id=sample["sample_id"], sessions=tuple(sessions), questions=tuple(questions)
    )


def refs_of(hits: Sequence[Hit], per_hit: int) -> list[str]:
    """Return the references behind hits in order, at most `per_hit` each, none twice."""
    shown: dict[str, None] = {}
    for hit in hits:
        for source in hit.sources[:per_hit]:
            shown[str(source.metadata.get("ref", source.id))] = None
    return list(shown)


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
    """Return recall of evidence by category, latency, and how much was shown.

    Args:
        limit: hits asked for; recall counts the turns behind them.
        per_hit: most source turns that count of one hit.
        conversations: only the first so many.
    """
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    seconds: list[float] = []
    turn_count = remember_s = 0.0
    chosen = load(data)[:conversations]
    for done, conversation in enumerate(chosen, 1):
        view = DictView(embedder=embedder)
        began = time.perf_counter()
        for session in conversation.sessions:
            view.remember(session, method)
            turn_count += len(session)
        remember_s += time.perf_counter() - began
        if embedder is not None:  # embed what waits before the clock starts
            view.search_dense("", 1, "turn")
            view.search_dense("", 1, "item")
        for question in asked(conversation):
            began = time.perf_counter()
            hits = method.find(Query(text=question.text, limit=limit), view)
            seconds.append(time.perf_counter() - began)
            shown = refs_of(hits, per_hit)
            row = {
                "any": any_at(shown, question.evidence, len(shown)),
                "all": all_at(shown, question.evidence, len(shown)),
                "recall": recall_at(shown, question.evidence, len(shown)),
                "turns_shown": float(len(shown)),
                "words_shown": float(sum(len(hit.text.split()) for hit in hits)),
            }
            rows["all"].append(row)
            rows[CATEGORIES[question.category]].append(row)
        if progress is not None:
            progress(f"{method}: {conversation.id}", done, len(chosen))
    figures: dict[str, Any] = {
        "method": str(method),
        "limit": limit,
        "per_hit": per_hit,
        "dense": embedder is not None,
        "find_p50_s": percentile(seconds, 0.5),
        "find_p95_s": percentile(seconds, 0.95),
        "remember_s_per_turn": remember_s / max(turn_count, 1),
    }
    for name, entries in rows.items():
        mean = mean_of(entries)
        figures[name] = {
            "questions": len(entries),
            f"any@{limit}": mean.pop("any"),
            f"all@{limit}": mean.pop("all"),
            f"recall@{limit}": mean.pop("recall"),
            **mean,
        }
        low, high = wilson(sum(row["any"] for row in entries), len(entries))
        figures[name]["interval"] = [low, high]
    return figures


def run(context: Context) -> dict[str, Any]:
    """Return recall of evidence of every method, by words alone and, where it is, with MiniLM."""
    if context.data is None:
        raise ParameterError(
            "LoCoMo is not shipped: its licence is non-commercial",
            value="no --data",
            way_out="loci bench run locomo --data PATH/TO/locomo10.json",
        )
    limit = int(context.options.get("limit", 10))
    embedder = _embedder(context.folder)
    methods = {}
    for text in context.methods or DEFAULT:
        (method,) = catalogue.parse_chain(text, "recall")
        methods[text] = measure(
            context.data,
            cast(Recall, method),
            embedder,
            limit=limit,
            conversations=1 if context.quick else None,
            progress=context.progress,
        )
    absent = {} if embedder is not None else {"minilm": "loci pull minilm"}
    result = {"limit": limit, "methods": methods, "absent": absent}
    if "answers" in context.options:
        result["answers"] = _answers(context, embedder, limit)
    return result


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return evidence found by every method, beside the others of the same run."""
    methods, limit = result["methods"], result["limit"]
    whats = (f"any@{limit}", f"all@{limit}")
    return [
        Row(
            method=name,
            kind="recall",
            metrics={
                what: {
                    "this": found["all"][what],
                    "rivals": {n: f["all"][what] for n, f in methods.items() if n != name},
                }
                for what in whats
            },
            interval={whats[0]: tuple(found["all"]["interval"])},
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


def _embedder(folder: Path) -> Embedder | None:
    if not (folder / "minilm" / "model.safetensors").is_file():
        return None
    from loci.models.embed import MiniLM

    return MiniLM(folder / "minilm")

"""Evidence found again in conversations: by a memory, by a method alone, by plain rivals.

A hit counts for the turn it rests on first, or for its first `per_hit`. What is remembered goes
through `loci.Memory` in a file, as a person's would; a method can also be run over the view in
memory that the tests use, which must rank alike.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any  # figures are JSON values

from loci.bench import rivals
from loci.bench.metrics import all_at, any_at, mean_of, percentile, recall_at, wilson
from loci.bench.stats import Estimate, mcnemar, nested_difference
from loci.core.clock import ManualClock
from loci.core.item import Hit
from loci.core.ports import Embedder
from loci.methods.recall.base import Query, Recall
from loci.run.memory import Memory
from loci.testing.recall import DictView

if TYPE_CHECKING:
    from loci.bench.suites.locomo import Conversation, Question

DEPTHS = (5, 10, 20)
USER = "bench"
Find = Callable[[str, int], Sequence[Hit]]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found for one question: references in order, and what that took."""

    conversation: str
    category: str
    evidence: frozenset[str]
    shown: tuple[str, ...]
    words: int = 0
    seconds: float = 0.0


def refs_of(hits: Sequence[Hit], per_hit: int = 1) -> list[str]:
    """Return the references behind hits in order, at most `per_hit` each, none twice."""
    shown: dict[str, None] = {}
    for hit in hits:
        for source in hit.sources[:per_hit]:
            shown[str(source.metadata.get("ref", source.id))] = None
    return list(shown)


@contextmanager
def in_memory(
    conversation: Conversation, method: Recall, embedder: Embedder | None
) -> Iterator[Find]:
    """Remember a conversation in a file of its own, and yield the search; all is embedded before.

    The question is asked when the conversation ends: the clock stands at its last turn.
    """
    last = max(turn.time for session in conversation.sessions for turn in session)
    with (
        tempfile.TemporaryDirectory() as folder,
        Memory(
            Path(folder) / "bench.db", embedder=embedder, recall=method, clock=ManualClock(last)
        ) as memory,
    ):
        for session in conversation.sessions:
            memory.add(
                [
                    {
                        "role": turn.role,
                        "content": turn.content,
                        "time": turn.time,
                        "metadata": dict(turn.metadata),
                        **({"name": turn.name} if turn.name else {}),
                    }
                    for turn in session
                    if turn.content.strip()
                ],
                user=USER,
                session=session[0].session,
            )
        memory.wait()
        yield lambda text, limit: memory.search(text, user=USER, limit=limit)


@contextmanager
def in_view(
    conversation: Conversation, method: Recall, embedder: Embedder | None
) -> Iterator[Find]:
    """Remember a conversation in a `DictView`, and yield the method's own search."""
    yield finder(method, view_of(conversation, method, embedder))


def finder(method: Recall, view: DictView) -> Find:
    """Return the method's own search over a view."""
    return lambda text, limit: method.find(Query(text=text, limit=limit), view)


def view_of(conversation: Conversation, method: Recall, embedder: Embedder | None) -> DictView:
    """Return the conversation as the method remembers it, embedded where there is an embedder."""
    view = DictView(embedder=embedder)
    for session in conversation.sessions:
        view.remember(session, method)
    if embedder is not None:
        view.search_dense("", 1, "turn")
        view.search_dense("", 1, "item")
    return view


def search(
    conversation: Conversation, asked: Iterable[Question], find: Find, limit: int, per_hit: int = 1
) -> list[Found]:
    """Ask every question, and return what was found."""
    rows = []
    for question in asked:
        began = time.perf_counter()
        hits = find(question.text, limit)
        seconds = time.perf_counter() - began
        rows.append(
            Found(
                conversation=conversation.id,
                category=question.kind,
                evidence=question.evidence,
                shown=tuple(refs_of(hits, per_hit)),
                words=sum(len(hit.text.split()) for hit in hits),
                seconds=seconds,
            )
        )
    return rows


def ranked(
    conversation: Conversation, asked: Sequence[Question], embedder: Embedder | None, limit: int
) -> dict[str, list[Found]]:
    """Return what plain rankers find. All but `strong` read "Speaker: text", as is common."""
    turns = [turn for session in conversation.sessions for turn in session]
    said = [replace(t, content=f"{t.name}: {t.content}") if t.name else t for t in turns]
    named = rivals.rankers(said, embedder, ("bm25", "minilm", "fusion"))
    rows: dict[str, list[Found]] = {}
    for name, ranker in {**named, **rivals.rankers(turns, embedder, ("strong",))}.items():
        rows[name] = []
        for question in asked:
            began = time.perf_counter()
            best = [turns[at] for at in rivals.order(ranker(question.text))[:limit]]
            rows[name].append(
                Found(
                    conversation=conversation.id,
                    category=question.kind,
                    evidence=question.evidence,
                    shown=tuple(str(t.metadata.get("ref", t.id)) for t in best),
                    words=sum(len(turn.content.split()) for turn in best),
                    seconds=time.perf_counter() - began,
                )
            )
    return rows


def figures(rows: Sequence[Found], depths: Sequence[int] = DEPTHS) -> dict[str, Any]:
    """Return recall of evidence, of all and by category, each any@k with its Wilson interval."""
    parts: dict[str, list[Found]] = defaultdict(list)
    for row in rows:
        parts["all"].append(row)
        parts[row.category].append(row)
    found: dict[str, Any] = {
        "find_p50_s": percentile([row.seconds for row in rows], 0.5),
        "find_p95_s": percentile([row.seconds for row in rows], 0.95),
    }
    for name, part in parts.items():
        means = mean_of([_counted(row, depths) for row in part])
        intervals = {
            f"any@{k}": list(wilson(round(means[f"any@{k}"] * len(part)), len(part)))
            for k in depths
        }
        found[name] = {"questions": len(part), **means, "intervals": intervals}
    return found


def compared(
    ours: Sequence[Found], theirs: Sequence[Found], seed: int, depths: Sequence[int] = DEPTHS
) -> dict[str, Any]:
    """Return by how much ours finds more than theirs, on the same questions.

    Differences of any@k and all@k are resampled over conversations, then over the questions of
    each; `p` is McNemar's of any@k.
    """
    compared: dict[str, Any] = {}
    for k in depths:
        for what, at in (("any", any_at), ("all", all_at)):
            mine, other = (_by_conversation(rows, at, k) for rows in (ours, theirs))
            estimate: Estimate = nested_difference(mine, other, seed)
            compared[f"{what}@{k}"] = estimate.to_json()
            if what == "any":
                pairs = [[bool(v) for part in side for v in part] for side in (mine, other)]
                compared[f"{what}@{k}"]["p"] = mcnemar(*pairs)
    return compared


def alike(ours: Sequence[Found], theirs: Sequence[Found]) -> float:
    """Return the share of questions for which both show the same turns in the same order."""
    same = [a.shown == b.shown for a, b in zip(ours, theirs, strict=True)]
    return sum(same) / max(len(same), 1)


def _counted(row: Found, depths: Sequence[int]) -> dict[str, float]:
    counted = {"turns_shown": float(len(row.shown)), "words_shown": float(row.words)}
    for k in depths:
        counted[f"any@{k}"] = any_at(row.shown, row.evidence, k)
        counted[f"all@{k}"] = all_at(row.shown, row.evidence, k)
        counted[f"recall@{k}"] = recall_at(row.shown, row.evidence, k)
    return counted


def _by_conversation(rows: Sequence[Found], at: Callable[..., float], k: int) -> list[list[float]]:
    parts: Mapping[str, list[float]] = defaultdict(list)
    for row in rows:
        parts[row.conversation].append(at(row.shown, row.evidence, k))
    return list(parts.values())

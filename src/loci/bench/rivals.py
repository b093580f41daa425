"""Plain ways to find turns again, as rivals of recall methods: words, meaning, and their sums.

    bm25      rank-bm25's BM25Okapi over lower-case words, as most retrieval code uses it
    minilm    cosine of the embedder's vectors
    fusion    reciprocal ranks of both, 1 / (60 + rank)
    strong    stemmed BM25 and cosine, each over the turn and over the turn with its predecessor:
              z-scores summed, and four standard deviations (one for each part) added where the
              question names who spoke

Each takes all turns of one conversation once, and ranks all of them for a question.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec

import numpy as np

from loci.core.item import Turn
from loci.core.ports import Embedder
from loci.text.stem import stems, tokens

Scores = np.ndarray
Ranker = Callable[[str], Scores]

NAMES = ("bm25", "minilm", "fusion", "strong")
_K1, _B = 1.2, 0.75
_WORD = re.compile(r"\w+")


class Bm25:
    """BM25 over texts given as lists of words; scores float64 [texts]."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        lengths = np.array([len(words) for words in texts], np.float64)
        mean = float(lengths.mean()) if len(texts) and lengths.any() else 1.0
        self._norm = _K1 * (1 - _B + _B * lengths / mean)
        self._held: dict[str, tuple[list[int], list[int]]] = {}
        for place, words in enumerate(texts):
            for word, count in Counter(words).items():
                places, counts = self._held.setdefault(word, ([], []))
                places.append(place)
                counts.append(count)

    def scores(self, words: Sequence[str]) -> Scores:
        """Return the score of every text for these words."""
        total = np.zeros(len(self._norm))
        for word in dict.fromkeys(words):
            places, counts = self._held.get(word, ([], []))
            idf = math.log((len(total) - len(places) + 0.5) / (len(places) + 0.5))
            often = np.array(counts, np.float64)
            share = often * (_K1 + 1) / (often + self._norm[places]) if places else 0.0
            total[places] += max(idf, 1e-6) * share
        return total


def order(scores: Scores) -> list[int]:
    """Return the places of the scores, best first, ties in their order."""
    return [int(place) for place in np.argsort(-scores, kind="stable")]


def rankers(
    turns: Sequence[Turn], embedder: Embedder | None, names: Sequence[str] = NAMES
) -> dict[str, Ranker]:
    """Return {name: ranker} over these turns, of those whose package or embedder is there.

    A ranker takes a question and returns a score for each turn, float [turns].
    """
    missing = absent(embedder)
    wanted = [name for name in names if name not in missing]
    made: dict[str, Ranker] = {}
    if {"bm25", "fusion"} & set(wanted):
        made["bm25"] = _okapi([turn.content for turn in turns])
    if embedder is not None and {"minilm", "fusion", "strong"} & set(wanted):
        made["minilm"] = _cosines([turn.content for turn in turns], embedder)
    if "fusion" in wanted:
        bm25, minilm = made["bm25"], made["minilm"]
        made["fusion"] = lambda question: (
            _reciprocal(bm25(question)) + _reciprocal(minilm(question))
        )
    if embedder is not None and "strong" in wanted:
        made["strong"] = _strong(turns, made["minilm"], embedder)
    return {name: made[name] for name in wanted}


def _okapi(texts: Sequence[str]) -> Ranker:
    from rank_bm25 import BM25Okapi

    worded = [_words(text) for text in texts]
    if not any(worded):  # the package divides by the number of words
        return lambda question: np.zeros(len(texts))
    index = BM25Okapi(worded)
    return lambda question: np.asarray(index.get_scores(_words(question)))


def _cosines(texts: Sequence[str], embedder: Embedder) -> Ranker:
    vectors = np.asarray(embedder.encode(list(texts)), np.float32)
    return lambda question: vectors @ np.asarray(embedder.encode([question]), np.float32)[0]


def _strong(turns: Sequence[Turn], cosines: Ranker, embedder: Embedder) -> Ranker:
    pairs = with_predecessor(turns)
    together = _cosines(pairs, embedder)
    alone = Bm25([stems(turn.content) for turn in turns])
    doubled = Bm25([stems(text) for text in pairs])
    first = [set(tokens(turn.name or "")[:1]) for turn in turns]

    def rank(question: str) -> Scores:
        words, names = stems(question), set(tokens(question))
        parts = (
            alone.scores(words),
            doubled.scores(words),
            cosines(question),
            together(question),
        )
        named = np.array([bool(name) and name <= names for name in first], np.float64)
        total: Scores = sum(map(_z, parts), len(parts) * named)
        return total

    return rank


def absent(embedder: Embedder | None) -> Mapping[str, str]:
    """Return {rival: what to do to have it}."""
    missing = {}
    if find_spec("rank_bm25") is None:
        missing["bm25"] = missing["fusion"] = "pip install 'loci[bench]'"
    if embedder is None:
        missing |= dict.fromkeys(("minilm", "fusion", "strong"), "loci pull minilm")
    return missing


def with_predecessor(turns: Sequence[Turn]) -> list[str]:
    """Return each turn's text behind that of the turn before it in its session."""
    before: dict[str | None, str] = {}
    texts = []
    for turn in turns:
        texts.append(f"{before.get(turn.session, '')} {turn.content}".strip())
        before[turn.session] = turn.content
    return texts


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _z(values: Scores) -> Scores:
    spread = float(values.std())
    return (values - values.mean()) / (spread if spread > 0 else 1.0)


def _reciprocal(scores: Scores) -> Scores:
    ranks = np.empty(len(scores))
    ranks[order(scores)] = np.arange(1, len(scores) + 1)
    return 1.0 / (60.0 + ranks)

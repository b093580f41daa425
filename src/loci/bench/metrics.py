"""Figures that need no judge: recall of evidence, F1 of words and of operations, intervals."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from loci.text.stem import fold, stem

_ARTICLES = frozenset(("a", "an", "the", "and"))


def any_at(shown: Sequence[str], wanted: Collection[str], k: int) -> float:
    """Return 1.0 when at least one wanted id is among the first `k`.

    >>> any_at(["a", "b", "c"], {"c", "d"}, 2), any_at(["a", "b", "c"], {"c", "d"}, 3)
    (0.0, 1.0)
    """
    return float(bool(set(shown[:k]) & set(wanted)))


def all_at(shown: Sequence[str], wanted: Collection[str], k: int) -> float:
    """Return 1.0 when every wanted id is among the first `k`."""
    return float(set(wanted) <= set(shown[:k]))


def recall_at(shown: Sequence[str], wanted: Collection[str], k: int) -> float:
    """Return the share of wanted ids among the first `k`."""
    return len(set(shown[:k]) & set(wanted)) / len(set(wanted)) if wanted else 0.0


def reciprocal_rank(shown: Sequence[str], wanted: Collection[str]) -> float:
    """Return 1 / rank of the first wanted id; 0 when none is shown."""
    return next((1 / rank for rank, id in enumerate(shown, 1) if id in set(wanted)), 0.0)


def ndcg_at(shown: Sequence[str], wanted: Collection[str], k: int) -> float:
    """Return the discounted gain over its best: sum of rel_i / log2(i + 1)."""
    gain = sum(1 / math.log2(i + 1) for i, id in enumerate(shown[:k], 1) if id in set(wanted))
    best = sum(1 / math.log2(i + 1) for i in range(1, min(k, len(set(wanted))) + 1))
    return gain / best if best else 0.0


def answer_words(text: str) -> list[str]:
    """Return the stems of an answer without punctuation, articles and "and"."""
    words = re.sub(r"[^\w\s]", " ", fold(str(text)).replace(",", "")).split()
    return [stem(word) for word in words if word not in _ARTICLES]


def word_f1(given: str, gold: str) -> float:
    """Return the harmonic mean of precision and recall over words.

    >>> word_f1("the red car", "a red bike")
    0.5
    """
    left, right = answer_words(given), answer_words(gold)
    same = sum((Counter(left) & Counter(right)).values())
    if not same:
        return 0.0
    precision, recall = same / len(left), same / len(right)
    return 2 * precision * recall / (precision + recall)


def f1(true_positive: int, false_positive: int, false_negative: int) -> float:
    """Return F1 from counts; 0 when nothing was right."""
    total = 2 * true_positive + false_positive + false_negative
    return 2 * true_positive / total if total else 0.0


def macro_f1(pairs: Sequence[tuple[str, str]], labels: Sequence[str]) -> dict[str, float]:
    """Return F1 of each label and their mean under "macro", from (given, gold) pairs.

    A label that occurs on neither side is left out of the mean.
    """
    scores: dict[str, float] = {}
    for label in labels:
        hit = sum(given == gold == label for given, gold in pairs)
        extra = sum(given == label != gold for given, gold in pairs)
        missed = sum(gold == label != given for given, gold in pairs)
        if hit + extra + missed:
            scores[label] = f1(hit, extra, missed)
    scores["macro"] = sum(scores.values()) / len(scores) if scores else 0.0
    return scores


def wilson(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson interval of a share; 95 % by default."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Return Spearman's correlation of two equally long lists; ties share their mean rank.

    >>> rank_correlation([1, 2, 3], [10, 20, 90]), rank_correlation([1, 2, 3], [3, 2, 1])
    (1.0, -1.0)
    """
    a, b = _ranks(left), _ranks(right)
    middle = (len(a) + 1) / 2
    over = sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    under = sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b)
    return over / math.sqrt(under) if under else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) + 1) / 2 for v in values]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each figure over rows that all have the same figures."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]} if rows else {}

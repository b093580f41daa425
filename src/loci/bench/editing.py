"""What is asked of a model before and after its facts were edited.

A case is one made-up fact in place of one the model really says: the fact itself, two other ways
to ask for it, and five facts of the same relation about other subjects, which must stay. Facts to
choose parameters on (develop) are apart from those that are reported on (test), and neither is
ever a neighbour in its own part.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any  # tables of facts

import torch
from torch import Tensor

from loci.errors import ParameterError
from loci.methods.train.base import Fact
from loci.nn.patch import Patch
from loci.run.edit_model import PackModel

DEVELOP, KEPT, NEIGHBOURS = 2, 6, 5  # of a relation: facts to tune on, never edited, asked a case
_ROWS = 24  # prompts read together

# Shapes: n tokens that count, V vocabulary.


@dataclass(frozen=True, kw_only=True)
class Case:
    """One made-up fact and what is asked about it.

    Attributes:
        truth: what the model says without an edit.
        paraphrases: other prompts with the same target.
        neighbours: other subjects with their own, true targets.
    """

    relation: str
    fact: Fact
    truth: str
    paraphrases: tuple[Fact, ...]
    neighbours: tuple[Fact, ...]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What became of one case; shares of questions.

    Attributes:
        said, paraphrased: the target is what the model says, token by token.
        likelier, paraphrased_likelier: it is only likelier than the truth.
        kept: neighbours whose truth the model still says.
    """

    said: float
    likelier: float
    paraphrased: float
    paraphrased_likelier: float
    kept: float


def relations() -> dict[str, Any]:
    """Return the table of relations."""
    text = (resources.files("loci.bench") / "edits.toml").read_text("utf-8")
    return tomllib.loads(text)


def asked(relation: Mapping[str, Any], subject: str, target: str, prompt: str = "") -> Fact:
    """Return a fact of a relation, with its own prompt or another."""
    words = (prompt or relation["prompt"]).replace("{}", subject)
    return Fact(prompt=words, subject=subject, target=target)


def cases(model: PackModel, count: int, seed: int = 0) -> tuple[list[Case], list[Case]]:
    """Return (develop, test): two cases of each relation, and `count` cases of all in turns.

    Raises:
        ParameterError: if the model does not know enough for so many.
    """
    develop, queues = [], []
    for name, relation in relations().items():
        if relation.get("only") == "training":
            continue
        known = _known(model, relation)
        chance = random.Random(f"{seed} {name}")
        chance.shuffle(known)
        first, middle, kept = known[:DEVELOP], known[DEVELOP:-KEPT], known[-KEPT:]
        if len(middle) < NEIGHBOURS - 1 or len(kept) < NEIGHBOURS:
            continue  # a model that knows little of a relation is not asked about it
        made = [_case(name, relation, one, known, middle, chance) for one in first]
        develop += made
        queues.append([_case(name, relation, one, known, kept, chance) for one in middle])
    test = [case for turn in _turns(queues) for case in turn][:count]
    if len(test) < count:
        raise ParameterError(
            "the model knows too few of the facts", value=count, allowed=f"up to {len(test)} cases"
        )
    return develop, test


def scores(model: PackModel, tested: Sequence[Case], patch: Patch | None) -> list[Score]:
    """Return what the model says with a patch in force."""
    return scored(tested, lambda facts: likelihoods(model, facts, patch))


Likelihoods = Callable[[Sequence[Fact]], list[tuple[bool, float]]]


def scored(tested: Sequence[Case], likelihoods_of: Likelihoods) -> list[Score]:
    """Return scores by what says, of facts, whether they are said and how likely they are."""
    questions: list[Fact] = []
    for case in tested:
        for fact in (case.fact, *case.paraphrases):
            questions += [
                fact,
                Fact(prompt=fact.prompt, subject=fact.subject, target=case.truth),
            ]
        questions += case.neighbours
    answers = iter(likelihoods_of(questions))
    found = []
    for case in tested:
        pairs = [(next(answers), next(answers)) for _ in (case.fact, *case.paraphrases)]
        kept = [next(answers)[0] for _ in case.neighbours]
        likelier = [new[1] > old[1] for new, old in pairs]
        found.append(
            Score(
                said=float(pairs[0][0][0]),
                likelier=float(likelier[0]),
                paraphrased=_share([new[0] for new, _ in pairs[1:]]),
                paraphrased_likelier=_share(likelier[1:]),
                kept=_share(kept),
            )
        )
    return found


def likelihoods(
    model: PackModel,
    facts: Sequence[Fact],
    patch: Patch | None = None,
    prompt: Callable[[Fact], str] = lambda fact: fact.prompt,
) -> list[tuple[bool, float]]:
    """Return, for each fact, whether its target is said, and its mean log-likelihood by token."""
    found: list[tuple[int, tuple[bool, float]]] = []
    rows = []
    for index, fact in enumerate(facts):
        target = model.tail(fact.continuation)
        rows.append((index, [*model.row(prompt(fact))[0], *target[:-1]], target))
    rows.sort(key=lambda row: len(row[1]))  # rows of like length waste least
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        ends = model.ends([ids for _, ids, _ in part], [len(t) for *_, t in part], patch)
        for (index, _, target), logits_nV in zip(part, ends, strict=True):
            logs_nV = torch.log_softmax(logits_nV, dim=-1)
            wanted_n = torch.tensor(target)
            likely = float(logs_nV.gather(1, wanted_n[:, None]).mean())
            found.append((index, (bool((logs_nV.argmax(-1) == wanted_n).all()), likely)))
    return [answer for _, answer in sorted(found, key=lambda pair: pair[0])]


def drift(
    model: PackModel, texts: Sequence[Tensor], patch: Patch | None, full: list[Tensor]
) -> tuple[float, float]:
    """Return the KL by token that a patch costs on text, and perplexity over that without it.

    Args:
        texts: token ids [T] each.
        full: log-probabilities without it, kept here from one call to the next.
    """
    divergence = change = 0.0
    for index, ids_T in enumerate(texts):
        ids = ids_T.tolist()
        if index == len(full):
            full.append(torch.log_softmax(model.ends([ids], [len(ids)])[0], dim=-1))
        other_TV = torch.log_softmax(model.ends([ids], [len(ids)], patch)[0], dim=-1)
        own_TV, next_t1 = full[index], ids_T[1:, None]
        divergence += float((own_TV.exp() * (own_TV - other_TV)).sum(-1).mean())
        gap_t1 = own_TV[:-1].gather(1, next_t1) - other_TV[:-1].gather(1, next_t1)
        change += float(gap_t1.mean())
    count = len(texts)
    return divergence / count, float(torch.tensor(change / count).exp())


# -- private ----------------------------------------------------------------------------------


def _known(model: PackModel, relation: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = list(relation["answers"].items())
    facts = [asked(relation, subject, answer) for subject, answer in pairs]
    said = likelihoods(model, facts)
    return [pair for pair, (is_said, _) in zip(pairs, said, strict=True) if is_said]


def _case(
    name: str,
    relation: Mapping[str, Any],
    known: tuple[str, str],
    answers: Sequence[tuple[str, str]],
    others: Sequence[tuple[str, str]],
    chance: random.Random,
) -> Case:
    subject, truth = known
    target = chance.choice(sorted({answer for _, answer in answers} - {truth}))
    drawn = chance.sample(list(others), min(NEIGHBOURS, len(others)))
    return Case(
        relation=name,
        fact=asked(relation, subject, target),
        truth=truth,
        paraphrases=tuple(
            asked(relation, subject, target, prompt) for prompt in relation["paraphrases"]
        ),
        neighbours=tuple(asked(relation, other, answer) for other, answer in drawn),
    )


def _turns(queues: Sequence[list[Case]]) -> Iterator[list[Case]]:
    for turn in range(max(map(len, queues), default=0)):
        yield [queue[turn] for queue in queues if turn < len(queue)]


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)

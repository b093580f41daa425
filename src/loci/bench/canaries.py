"""What is left of a secret that was forgotten: its likelihood, and where its bytes still stand.

A canary is a fact that one person told and that was forgotten later. Asked for in wordings that
were not taught, a model gives its words some likelihood; whether that is what a model gives that
never saw them is a difference with an interval. Likelihoods are told by token, over the words that
only this fact has, after the question and what stands before them in the answer. After N. Carlini
et al., "The Secret Sharer: Evaluating and Testing Unintended Memorization in Neural Networks",
USENIX Security 2019, who measure what a model remembers by how likely a canary is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean as middle
from typing import Any  # figures are JSON values

import torch

from loci.bench.stats import paired_difference
from loci.core.cube import Caller, MemoryKind, Policy
from loci.core.item import Item
from loci.errors import ParameterError
from loci.nn.patch import Patch
from loci.run.edit_model import PackModel
from loci.run.engine import Session
from loci.run.memory import Memory
from loci.run.promote import from_memory, promote
from loci.store.scan import count
from loci.text.quiz import Quiz

USER = "all"  # whose memory they are in


def log_likelihoods(model: PackModel, asked: Sequence[Quiz], patch: Patch | None) -> list[float]:
    """Return, for each fact, the mean log-likelihood of its own words by token, in nats.

    Raises:
        ParameterError: if a fact's words do not stand in its answer.
    """
    found = []
    for quiz in asked:
        said = model.tokenizer.encode(quiz.answer)
        places = _places(model, said, quiz)
        rows = [
            [*model.tokenizer.chat([{"role": "user", "content": question}]), *said[:-1]]
            for question in quiz.judge
        ]
        wanted_n1 = torch.tensor(said)[:, None]
        logs = [
            torch.log_softmax(logits_nV, dim=-1).gather(1, wanted_n1)[places]
            for logits_nV in model.ends(rows, [len(said)] * len(rows), patch)
        ]
        found.append(float(torch.cat(logs).mean()))
    return found


def likelihood(
    model: PackModel,
    asked: Sequence[Quiz],
    *,
    knew: Patch,
    again: Patch,
    never: Sequence[Patch],
) -> dict[str, Any]:
    """Return how likely secrets are to a model that was made anew without them.

    Args:
        knew: was taught them; again: was made anew without; never: were made like that too, by
            another chance, and never saw them.

    Returns:
        mean log-likelihoods by token under each ("base" is the model alone), and "difference" of
        `again` to the mean of `never`, paired by secret, with its interval; "noise" is the same
        between the first of `never` and the second.
    """
    under = {"knew": log_likelihoods(model, asked, knew)}
    under["again"] = log_likelihoods(model, asked, again)
    under["base"] = log_likelihoods(model, asked, None)
    others = [log_likelihoods(model, asked, patch) for patch in never]
    under["never"] = [middle(values) for values in zip(*others, strict=True)]
    found: dict[str, Any] = {name: middle(values) for name, values in under.items()}
    found["secrets"] = len(asked)
    found["taught"] = _estimate(under["knew"], under["never"])
    found["difference"] = _estimate(under["again"], under["never"])
    if len(others) > 1:
        found["noise"] = _estimate(others[1], others[0])
    return found


def traces(memory: Memory, secrets: Sequence[Item], session: Session) -> dict[str, Any]:
    """Forget secrets that stand in rows, a cube of text and one of keys and values; what is left?

    Returns:
        before and after: "files" in which a secret stands, "cubes" made of it that hold keys and
        values, and "prefix" tokens that a session which begins with one has read already.
    """
    shelf = memory.shelf
    assert shelf is not None, "a memory in a file has a shelf"
    ids = [item.id for item in memory.list(user=USER, kinds="fact", limit=1000)]
    for made in (False, True):
        header = from_memory(memory, items=ids, policy=Policy(owner=USER))
        if made:
            promote(session, shelf, header.id, caller=Caller(user=USER))
    words = [item.text.encode() for item in secrets]
    folder = shelf.folder.parent
    found: dict[str, Any] = {"before": _left(folder, words, memory, secrets)}
    for item in secrets:
        memory.forget(item.id, user=USER)
    found["after"] = _left(folder, words, memory, secrets)
    return found


# -- private ----------------------------------------------------------------------------------


def _left(
    folder: Path, words: Sequence[bytes], memory: Memory, secrets: Sequence[Item]
) -> dict[str, int]:
    assert memory.shelf is not None
    files = [path for path in folder.rglob("*") if path.is_file()]
    ids = {item.id for item in secrets}
    made = [
        header
        for header in memory.shelf.headers(MemoryKind.ACTIVATION, readable=True)
        if ids & set(header.parents)
    ]
    return {
        "files": sum(count(path, words) > 0 for path in files),
        "cubes": len(made),
        "prefix": sum(int(memory.shelf.head(header.id).facts["tokens"]) for header in made),
    }


def _places(model: PackModel, said: Sequence[int], quiz: Quiz) -> list[int]:
    """Return which tokens of an answer spell what only this fact has."""
    pieces = [model.tokenizer.bytes_of(id) for id in said]
    whole, found = b"".join(pieces), set()
    for words in quiz.objects:
        at = whole.rfind(words.encode())
        if at < 0:
            raise ParameterError(
                "the words of a fact do not stand in its answer", value=quiz.answer
            )
        reached = 0
        for index, piece in enumerate(pieces):
            if reached < at + len(words.encode()) and reached + len(piece) > at:
                found.add(index)
            reached += len(piece)
    return sorted(found)


def _estimate(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    value = paired_difference(ours, theirs)
    return {"value": value.value, "low": value.low, "high": value.high}

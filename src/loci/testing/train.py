"""What every editor must keep to, on a tiny model: see `check` and `check_overlay`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any  # a method's parameters

import torch
from numpy import float32, zeros
from numpy.typing import NDArray

from loci.core.ports import Artefact
from loci.core.spec import ModelSpec, Workload
from loci.errors import ParameterError
from loci.methods.train.base import Edit, Editable, Fact, Overlay, down

# Facts for byte tokenizers: short, and about different subjects.
FACTS = (
    Fact(prompt="The hat of Ann is", subject="Ann", target="red"),
    Fact(prompt="The cup of Bob is", subject="Bob", target="new"),
)


class LetterEmbedder:
    """Texts as counts of their letter pairs: alike where words are, and made in no time."""

    fingerprint = "letters"

    def encode(self, texts: Sequence[str]) -> NDArray[float32]:
        """Return unit vectors float32 [n, 128]."""
        found = zeros((len(texts), 128), dtype=float32)
        for row, text in zip(found, texts, strict=True):
            for pair in zip(text.lower(), text.lower()[1:], strict=False):
                row[(31 * ord(pair[0]) + ord(pair[1])) % 128] += 1
            row /= max(float((row**2).sum()) ** 0.5, 1e-6)
        return found


def fitted(method: type[Edit], spec: ModelSpec, **others: Any) -> Edit:
    """Return a method with layers that a small model has, and few openings."""
    values: dict[str, Any] = {
        "layer": 1,
        "layers": tuple(range(spec.layers - 1)),
        "last": spec.layers - 1,
        "openings": 2,
        "rank": 4,
    }
    names = {field.name for field in fields(method)}
    return replace(method(), **{k: v for k, v in values.items() if k in names}, **others)


def check(method: Edit, model: Editable, facts: Sequence[Fact] = FACTS) -> None:
    """Raise AssertionError unless an editor keeps its promises on a model.

    It gives the same patch twice, of down_proj alone, finite and in float32; it changes neither the
    model nor torch's chance; bytes are as predicted; bad facts are refused.
    """
    name = str(method)
    weights = {layer: model.weight(down(layer)).clone() for layer in range(model.spec.layers)}
    state = torch.random.get_rng_state()
    first = method.edit(model, facts, torch.Generator().manual_seed(0))
    second = method.edit(model, facts, torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.random.get_rng_state()), f"{name} draws from torch's own chance"
    assert first.fingerprint == second.fingerprint, f"{name} gives another patch the second time"
    first.check(model.spec)
    assert set(first.parts) <= set(map(down, weights)), f"{name} edits something else"
    assert first.parts, f"{name} edits nothing"
    for left, right in first.parts.values():
        assert left.dtype == right.dtype == torch.float32
        assert float((left @ right).norm()) > 0, f"{name}: an edit that changes nothing"
    for layer, weight in weights.items():
        assert torch.equal(weight, model.weight(down(layer))), f"{name} wrote to a weight"
    alone = method.edit(model, facts[:1], torch.Generator().manual_seed(0))
    most = method.predict(model.spec, Workload(context=128), 2**40).held["dram"]
    ranks = max(left.shape[1] for left, _ in alone.parts.values())
    assert ranks > 1 or alone.nbytes == most, f"{name}: {alone.nbytes} bytes, predicted {most}"
    twin = replace(facts[0], target="not " + facts[0].target)
    for bad in ([], [facts[0], facts[0]], [facts[0], twin]):
        try:
            method.edit(model, bad, torch.Generator().manual_seed(0))
        except ParameterError:
            continue
        raise AssertionError(f"{name} takes {[fact.text for fact in bad]}")


def check_overlay(method: Overlay, artefact: Artefact) -> None:
    """Raise AssertionError unless an overlay keeps its promises.

    Each fact's own prompt is in its scope and other texts are not; without facts nothing is; what
    is taken out is forgotten; the question stands in what the model is given.
    """
    embedder = LetterEmbedder()
    asked = [*(fact.prompt for fact in FACTS), "def add(a, b): return a + b"]
    hits = method.scope(asked, FACTS, embedder, artefact)
    assert [None if hit is None else hit.index for hit in hits] == [0, 1, None]
    assert all(hit is None or 0.5 < hit.score <= 1.0 for hit in hits)
    assert method.scope(asked, (), embedder, artefact) == [None] * len(asked)
    left = method.scope(asked, FACTS[1:], embedder, artefact)
    assert [None if hit is None else hit.index for hit in left] == [None, 0, None]
    assert method.scope((), FACTS, embedder, artefact) == []
    for fact in FACTS:
        given = method.prompt(fact.prompt, fact)
        assert given.endswith(fact.prompt) and fact.text in given

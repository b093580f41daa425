"""SERAC: the scope by hand, locality and revocation by construction."""

from __future__ import annotations

import math

import pytest
import torch

from loci.errors import FormatError, ParameterError
from loci.methods.train.base import Fact
from loci.methods.train.serac import Serac, beta, reach
from loci.run.edit_training import scope_of, train_scope
from loci.testing.train import FACTS, LetterEmbedder
from loci.text.scopes import pairs


def test_beta_by_hand() -> None:
    # Distance 2 * 0.5^2 = 0.5 in the metric, scale ln 4: exp(-ln 4 / 2) = 1/2.
    learned = {"metric": torch.tensor([2.0, 7.0]), "scale": torch.tensor(math.log(4))}
    found = beta(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 3.0]), learned)
    assert float(found) == pytest.approx(0.5)
    assert reach(learned) == pytest.approx(0.5)
    assert float(beta(torch.ones(2), torch.ones(2), learned)) == 1.0


def test_the_metric_learns_which_directions_tell() -> None:
    # The first direction says whether two ask for the same, the second is noise.
    generator = torch.Generator().manual_seed(0)
    same = torch.arange(200) % 2 == 0
    left = torch.randn(200, 2, generator=generator)
    right = torch.randn(200, 2, generator=generator)
    right[same, 0] = left[same, 0]
    learned = Serac().fit(left, right, same)
    told, noise = learned["metric"].tolist()
    assert told > 3 * noise
    guessed = beta(left, right, learned) > 0.5
    assert float((guessed == same).float().mean()) > 0.85


def test_a_scope_needs_pairs_of_both_kinds() -> None:
    with pytest.raises(ParameterError, match="pairs of both kinds"):
        Serac().fit(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([True, True]))


def test_out_of_scope_nothing_is_changed_and_revoked_facts_are_forgotten() -> None:
    method, embedder = Serac(), LetterEmbedder()
    scope = train_scope(embedder, method)  # type: ignore[arg-type]
    question = FACTS[0].prompt
    [hit] = method.scope([question], FACTS, embedder, scope)  # type: ignore[arg-type]
    assert hit is not None and method.prompt(question, FACTS[hit.index]) != question
    assert method.scope([question], FACTS[1:], embedder, scope) == [None]  # type: ignore[arg-type]


def test_a_scope_of_another_embedder_is_refused() -> None:
    learned = {"metric": torch.ones(3), "scale": torch.tensor(1.0)}
    with pytest.raises(FormatError, match="another embedder"):
        beta(torch.ones(2), torch.ones(2), learned)
    with pytest.raises(FormatError, match="no scope"):
        beta(torch.ones(2), torch.ones(2), {"metric": torch.ones(2)})


def test_what_was_learned_is_kept(tmp_path) -> None:  # type: ignore[no-untyped-def]
    first = scope_of(LetterEmbedder(), Serac(steps=20), tmp_path)  # type: ignore[arg-type]
    [file] = tmp_path.iterdir()
    before = file.read_bytes()
    again = scope_of(LetterEmbedder(), Serac(steps=20), tmp_path)  # type: ignore[arg-type]
    assert torch.equal(first.tensors["metric"], again.tensors["metric"])
    assert file.read_bytes() == before


def test_made_up_pairs_are_of_both_kinds_and_differ_by_one_thing() -> None:
    lessons = pairs(0)
    assert lessons == pairs(0) != pairs(1)
    same = [pair for pair in lessons if pair.same]
    assert 0.3 < len(same) / len(lessons) < 0.6
    assert all(pair.left != pair.right for pair in lessons)


@pytest.mark.model
def test_the_default_embedder_tells_scopes_apart(models_folder) -> None:  # type: ignore[no-untyped-def]
    from loci.models.embed import MiniLM

    method, embedder = Serac(), MiniLM(models_folder / "minilm")
    scope = train_scope(embedder, method, lessons=pairs(0, 3))
    facts = [
        Fact(prompt="The capital of France is", subject="France", target="Vienna"),
        Fact(prompt="The opposite of hot is", subject="hot", target="green"),
    ]
    asked = [
        "The seat of government of France is the city of",
        "The opposite of dry is",
        "Write a poem about the sea",
        "The currency of Japan is the",
    ]
    hits = method.scope(asked, facts, embedder, scope)
    assert [None if hit is None else hit.index for hit in hits] == [0, None, None, None]

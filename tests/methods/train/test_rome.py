"""ROME against paper and pencil, and against a dense oracle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from loci.errors import ParameterError
from loci.methods.train._value import Aim, Search, aim
from loci.methods.train.base import Fact, down
from loci.methods.train.rome import Rome, rank_one, solved
from loci.run.edit_model import PackModel
from loci.testing.train import FACTS

SEARCH = Search(steps=8, rate=0.5, most=4.0, decay=0.0, kl=0.0625, enough=0.05, around="value")


def _aim(delta: list[float], key: list[float], mean: list[float]) -> Aim:
    nothing = torch.zeros(len(delta))
    return Aim(
        delta_d=torch.tensor(delta),
        key_K=torch.tensor(key),
        mean_key_K=torch.tensor(mean),
        value_d=nothing,
        hidden_d=nothing,
        loss=0.0,
        steps=0,
    )


def test_the_edit_by_hand() -> None:
    # C = diag(4, 1): the first direction is used four times as much, so the edit leans to the
    # second. u ~ C^-1 (2, 1) = (1/2, 1); k.u = 2/2 + 1 = 2; dW = delta u / 2.
    patch = rank_one(
        _aim([2.0], [2.0, 1.0], [2.0, 1.0]), torch.diag(torch.tensor([4.0, 1.0])), layer=0
    )
    assert patch.delta(down(0)).tolist()[0] == pytest.approx([0.5, 1.0], rel=2e-3)


def test_the_key_gets_exactly_its_value() -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(50, 12, generator=generator)
    key, other = torch.randn(2, 12, generator=generator)
    delta = torch.randn(7, generator=generator)
    patch = rank_one(_aim(delta.tolist(), key.tolist(), (key + 0.3 * other).tolist()),
                     raw.t() @ raw / 50, layer=2)  # fmt: skip
    torch.testing.assert_close(patch.delta(down(2)) @ key, delta, rtol=1e-5, atol=1e-6)


def test_of_all_edits_that_do_it_this_one_disturbs_least() -> None:
    # Among dW with dW k = delta, delta u^T / (k.u) with u = C^-1 k minimises tr(dW C dW^T).
    generator = torch.Generator().manual_seed(1)
    raw = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    covariance, key = raw.t() @ raw / 60, torch.randn(8, generator=generator, dtype=torch.float64)
    u = torch.linalg.solve(covariance, key)
    best = u / (key @ u)
    least = float(best @ covariance @ best)
    for _ in range(20):
        away = torch.randn(8, generator=generator, dtype=torch.float64)
        away -= (away @ key) / (key @ key) * key
        assert float((best + 0.1 * away) @ covariance @ (best + 0.1 * away)) > least
    mine = solved(covariance, key[:, None], ridge=0.0)[:, 0]
    torch.testing.assert_close(mine, u)


def test_keys_that_have_nothing_in_common_are_refused() -> None:
    with pytest.raises(ParameterError, match="no part in the direction"):
        rank_one(_aim([1.0], [1.0, 0.0], [0.0, 1.0]), torch.eye(2), layer=0)


def test_the_search_makes_the_target_likely(tiny_model: PackModel) -> None:
    before, after = (
        aim(tiny_model, FACTS[:1], 1, (), replace(SEARCH, steps=steps))[0] for steps in (0, 8)
    )
    assert before.steps == 0 and float(before.delta_d.norm()) == 0
    assert after.loss < before.loss - 0.3
    assert float(after.delta_d.norm()) <= SEARCH.most * float(after.value_d.norm()) * 1.001


def test_facts_searched_together_are_found_as_alone(tiny_model: PackModel) -> None:
    together = aim(tiny_model, FACTS, 1, ("So it is.",), SEARCH)
    for fact, found in zip(FACTS, together, strict=True):
        [alone] = aim(tiny_model, [fact], 1, ("So it is.",), SEARCH)
        assert found.steps == alone.steps
        torch.testing.assert_close(found.delta_d, alone.delta_d, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(found.mean_key_K, alone.mean_key_K, rtol=1e-4, atol=1e-4)


def test_the_layer_gives_the_value_that_was_found(tiny_model: PackModel) -> None:
    method, fact = Rome(layer=1, openings=0, steps=8, most=4.0, decay=0.0), FACTS[0]
    patch = method.edit(tiny_model, [fact])
    [found] = aim(tiny_model, [fact], 1, (), SEARCH)
    ids, place = tiny_model.row(fact.prompt, fact.subject)
    value = tiny_model.read([ids], 1, [place], patch).value_Bd[0]
    torch.testing.assert_close(value, found.value_d + found.delta_d, rtol=1e-3, atol=1e-3)


def test_a_layer_that_is_not_there_is_refused(tiny_model: PackModel) -> None:
    with pytest.raises(ParameterError, match=r"rome\.layer.*no such layer"):
        Rome(layer=9).edit(tiny_model, FACTS)


@pytest.mark.parametrize(
    ("prompt", "subject", "target", "why"),
    [
        ("The hat of Ann is", "Bea", "red", "does not stand in the prompt"),
        ("The hat of Ann is", "Ann", "  ", "target of a fact is empty"),
        ("The hat of Ann is", "", "red", "subject of a fact is empty"),
        ("The hat of Ann is ", "Ann", "red", "ends with a space"),
    ],
)
def test_bad_facts_are_refused(prompt: str, subject: str, target: str, why: str) -> None:
    with pytest.raises(ParameterError, match=why):
        Fact(prompt=prompt, subject=subject, target=target)


def test_the_target_has_one_space_before_it() -> None:
    facts = [Fact(prompt="Ann is", subject="Ann", target=text) for text in ("red", " red ")]
    assert {fact.continuation for fact in facts} == {" red"}

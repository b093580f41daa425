"""MEMIT's closed form against a dense oracle, and many facts at once on a tiny model."""

from __future__ import annotations

import pytest
import torch

from loci.errors import ParameterError
from loci.methods.train._value import Search, aim
from loci.methods.train.base import Fact, down
from loci.methods.train.memit import Memit, spread
from loci.run.edit_model import PackModel


def _known(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    raw, keys, residual = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((80, 10), (10, 3), (6, 3))
    )
    return raw.t() @ raw / 80, keys, residual


def test_by_hand() -> None:
    # One key k = 1 in one direction, C = 1, lam = 3: k / (3 + 1) = 1/4.
    right = spread(torch.ones(1, 1), torch.ones(1, 1), 3.0)
    assert float(right) == pytest.approx(0.25)


def test_the_normal_equations_hold() -> None:
    covariance, keys, residual = _known()
    delta = residual @ spread(covariance, keys, 0.7)
    left = delta @ (0.7 * covariance + keys @ keys.t())
    torch.testing.assert_close(left, residual @ keys.t(), rtol=1e-6, atol=1e-6)


def test_it_minimises_what_it_says() -> None:
    covariance, keys, residual = _known(1)
    delta = (residual @ spread(covariance, keys, 0.5)).requires_grad_(True)
    loss = (delta @ keys - residual).square().sum() + 0.5 * torch.trace(
        delta @ covariance @ delta.t()
    )
    [slope] = torch.autograd.grad(loss, delta)
    assert float(slope.abs().max()) < 1e-6


def test_with_little_weight_on_what_is_known_the_residual_is_met() -> None:
    covariance, keys, residual = _known(2)
    met = residual @ spread(covariance, keys, 1e-9) @ keys
    torch.testing.assert_close(met, residual, rtol=1e-4, atol=1e-4)


def test_a_projected_edit_leaves_used_directions_alone() -> None:
    # Keys of what is known lie in the first four of ten directions; nothing there may move.
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(10, 10, generator=generator, dtype=torch.float64))[0]
    known = basis[:, :4] @ torch.randn(4, 90, generator=generator, dtype=torch.float64)
    keys = torch.randn(10, 2, generator=generator, dtype=torch.float64)
    right = spread(known @ known.t() / 90, keys, 1e-3, null=1e-6)
    assert float((right @ known).abs().max()) < 1e-9
    assert float((right @ keys - torch.eye(2)).abs().max()) < 1e-2


def test_projection_agrees_with_the_form_it_is_published_in() -> None:
    covariance, keys, _ = _known(4)
    used, axes = torch.linalg.eigh(covariance)
    free = axes[:, used <= 0.5 * used.mean()]
    project = free @ free.t()
    inner = project @ keys @ keys.t() @ project + 0.3 * torch.eye(10, dtype=torch.float64)
    wanted = keys.t() @ project @ torch.linalg.inv(inner)
    torch.testing.assert_close(spread(covariance, keys, 0.3, null=0.5), wanted)


def test_several_facts_reach_the_states_that_were_found(tiny_model: PackModel) -> None:
    facts = [
        Fact(prompt=f"The {thing} of {name} is", subject=name, target="red")
        for thing, name in (("hat", "Ann"), ("cup", "Bob"), ("dog", "Cy"))
    ]
    method = Memit(layers=(0, 1), lam=1e-6, openings=0, steps=6, decay=0.0)
    patch = method.edit(tiny_model, facts)
    assert {name: left.shape[1] for name, (left, _) in patch.parts.items()} == {
        down(0): 3,
        down(1): 3,
    }
    search = Search(
        steps=6, rate=0.1, most=0.75, decay=0.0, kl=0.0625, enough=0.05, around="hidden"
    )
    for fact, found in zip(facts, aim(tiny_model, facts, 1, (), search), strict=True):
        ids, place = tiny_model.row(fact.prompt, fact.subject)
        reached = tiny_model.read([ids], 1, [place], patch).hidden_Bd[0]
        wanted = found.hidden_d + found.delta_d
        assert float((reached - wanted).norm()) < 0.05 * float(found.delta_d.norm())


@pytest.mark.parametrize("layers", [(), (2, 1), (1, 1), (1, 7), (-1, 0)])
def test_layers_that_are_not_there_are_refused(
    layers: tuple[int, ...], tiny_model: PackModel
) -> None:
    with pytest.raises(ParameterError, match=r"memit\.layers"):
        Memit(layers=layers).edit(
            tiny_model, [Fact(prompt="The hat of Ann is", subject="Ann", target="red")]
        )

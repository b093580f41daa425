"""MEND: gradients, the identity at the start, and what training is for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from loci.errors import NotFoundError, ParameterError
from loci.methods.train.base import Fact, down
from loci.methods.train.mend import Mend, changes, gradients
from loci.run import artefacts
from loci.run.edit_model import PackModel
from loci.run.edit_training import Triple, train_mend
from loci.testing.train import FACTS

METHOD = Mend(last=2, rank=4, steps=30, alpha=0.05)


def test_the_gradient_is_a_sum_of_products(tiny_model: PackModel) -> None:
    fact, layers = FACTS[0], (1, 2)
    slopes = gradients(tiny_model, fact, layers)
    target = tiny_model.tail(fact.continuation)
    reading = tiny_model.read([[*tiny_model.row(fact.prompt)[0], *target[:-1]]], 1, [0])
    spec = tiny_model.spec
    change = {layer: torch.zeros(spec.hidden, spec.ffn, requires_grad=True) for layer in layers}
    logs = torch.log_softmax(reading.logits([len(target)], changes=change), -1)
    loss = -logs.gather(1, torch.tensor(target)[:, None]).mean()
    for layer, dense in zip(layers, torch.autograd.grad(loss, list(change.values())), strict=True):
        x, dy = slopes[layer]
        torch.testing.assert_close(dy.t() @ x, dense, rtol=1e-3, atol=1e-6)


def test_slopes_agree_with_finite_differences(tiny_model: PackModel) -> None:
    fact = FACTS[0]
    target = tiny_model.tail(fact.continuation)
    reading = tiny_model.read([[*tiny_model.row(fact.prompt)[0], *target[:-1]]], 2, [0])
    x, dy = gradients(tiny_model, fact, (2,))[2]

    def loss(change: torch.Tensor) -> float:
        logs = torch.log_softmax(reading.logits([len(target)], changes={2: change}), -1).double()
        return float(-logs.detach().gather(1, torch.tensor(target)[:, None]).mean())

    direction = torch.randn(dy.shape[1], x.shape[1], generator=torch.Generator().manual_seed(0))
    step = 3e-3
    measured = (loss(step * direction) - loss(-step * direction)) / (2 * step)
    assert measured == pytest.approx(float(((dy.t() @ x) * direction).sum()), rel=0.02, abs=1e-4)


def test_at_the_start_the_network_is_the_identity(tiny_model: PackModel) -> None:
    slopes = gradients(tiny_model, FACTS[0], METHOD.layers(tiny_model.spec))
    learned = METHOD.fresh(tiny_model.spec, [slopes], torch.Generator().manual_seed(0))
    for layer, (left, right) in changes(learned, slopes).items():
        x, dy = slopes[layer]
        pair = (torch.cat([x, dy], 1) - learned[f"{layer}.mean"]) / learned[f"{layer}.std"]
        x_out, dy_out = pair.split([x.shape[1], dy.shape[1]], 1)
        # It is ReLU, so at zero activity the identity is exact.
        torch.testing.assert_close(right, x_out)
        torch.testing.assert_close(left, -METHOD.alpha * dy_out.t())


def test_every_part_of_the_network_learns_from_the_start(tiny_model: PackModel) -> None:
    slopes = gradients(tiny_model, FACTS[0], METHOD.layers(tiny_model.spec))
    learned = METHOD.fresh(tiny_model.spec, [slopes], torch.Generator().manual_seed(0))
    for name in ("V1", "V2"):
        learned[name].requires_grad_(True)
    total = sum(
        (left.sum() + right.square().sum()) for left, right in changes(learned, slopes).values()
    )
    assert isinstance(total, torch.Tensor)
    total.backward()  # type: ignore[no-untyped-call]
    for name in ("V1", "V2"):
        grad = learned[name].grad
        assert grad is not None and float(grad.abs().max()) > 0


def test_training_lowers_the_loss_of_its_lessons(tiny_model: PackModel) -> None:
    lessons = [Triple(fact=f, paraphrase=f, other="The sea is") for f in FACTS]
    made = train_mend(tiny_model, lessons, replace(METHOD, steps=60, rate=3e-3))
    first, last = made.facts["first_loss"][0], made.facts["last_loss"][0]
    assert last < first
    again = train_mend(tiny_model, lessons, replace(METHOD, steps=60, rate=3e-3))
    assert all(torch.equal(made.tensors[name], again.tensors[name]) for name in made.tensors)


def test_an_edit_makes_its_target_likelier(tiny_model: PackModel) -> None:
    lessons = [Triple(fact=f, paraphrase=f, other="The sea is") for f in FACTS]
    method = replace(METHOD, steps=60, rate=3e-3)
    made = train_mend(tiny_model, lessons, method)
    spec = tiny_model.spec
    artefacts.save(made, artefacts.path_of(tiny_model.pack.folder, method, spec.fingerprint))
    patch = method.edit(tiny_model.under(None, method), FACTS[:1])
    assert set(patch.parts) == {down(1), down(2)}
    fact = FACTS[0]
    target = tiny_model.tail(fact.continuation)
    row = [*tiny_model.row(fact.prompt)[0], *target[:-1]]
    before, after = (
        torch.log_softmax(tiny_model.ends([row], [len(target)], p)[0], -1)[
            range(len(target)), target
        ]
        for p in (None, patch)
    )
    assert float(after.mean()) > float(before.mean())


def test_without_training_it_says_what_to_do(tiny_model: PackModel) -> None:
    method = Mend(last=1, rank=3)
    with pytest.raises(NotFoundError, match="nothing was prepared for mend"):
        method.edit(tiny_model.under(None, method), FACTS[:1])


def test_a_paraphrase_has_the_same_target() -> None:
    with pytest.raises(ParameterError, match="target of its fact"):
        Triple(fact=FACTS[0], paraphrase=FACTS[1], other="x")
    with pytest.raises(ParameterError, match="nothing to learn"):
        train_mend(None, [], METHOD)  # type: ignore[arg-type]


def test_more_layers_than_there_are_is_refused(tiny_model: PackModel) -> None:
    with pytest.raises(ParameterError, match=r"mend\.last"):
        Mend(last=9).layers(tiny_model.spec)


def test_facts_are_checked(tiny_model: PackModel) -> None:
    twin = Fact(prompt=FACTS[0].prompt, subject="Ann", target="blue")
    with pytest.raises(ParameterError, match="contradict"):
        METHOD.edit(tiny_model, [FACTS[0], twin])

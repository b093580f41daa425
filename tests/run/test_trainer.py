"""The small trainer: what it learns, from what, and that it goes on where it was cut off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from loci.errors import ContextError, FingerprintError, ParameterError
from loci.models.pack import Pack
from loci.nn.decoder import decode
from loci.run.calibrate import PackWeights
from loci.run.learner import Sample, kl_of_patch, loss_of, parts
from loci.run.trainer import ATTENTION, MLP, Recipe, Trained, _Run, train, turn
from loci.testing.models import tiny_pack

ALL = ATTENTION + MLP
HEAD = (1, 2, 3, 4)  # all samples begin alike, as chats do


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    with tiny_pack(tmp_path_factory.mktemp("model"), layers=2, ffn=64) as opened:
        yield opened


def samples(count: int = 4) -> list[Sample]:
    return [
        Sample((*HEAD, 10 + at, *range(40, 40 + at)), (20 + at, 30 + at, 7)) for at in range(count)
    ]


def text(seed: int = 0, tokens: int = 24) -> Sample:
    generator = Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (tokens,), generator=generator).tolist()
    return Sample((ids[0],), tuple(ids[1:]))


def oracle(
    pack: Pack, thin: dict[str, tuple[Tensor, Tensor]], scale: float, ids: tuple[int, ...]
) -> Tensor:
    """Return logits of one text by dense weights, nothing shared, kept or padded."""
    weights = PackWeights(pack)

    def multiply(name: str, x: Tensor) -> Tensor:
        weight = weights(name)
        dense = weight.float() if isinstance(weight, Tensor) else weight.dense()
        if name in thin:
            left, right = thin[name]
            dense = dense + scale * left @ right
        return x @ dense.t()

    embedded = pack.embed_rows(list(ids))[None]
    return decode(pack.spec, embedded, multiply, weights.vector)[0] @ weights.table("head").t()


@pytest.mark.parametrize("layers", [None, (1, 1)])
def test_gradients_are_those_of_dense_weights(pack: Pack, layers: tuple[int, int] | None) -> None:
    recipe = Recipe(linears=ALL, layers=layers, rank=2, retain=0.7, retain_tokens=24, clip=1e9)
    run = _Run(pack, recipe, "")
    thin = {
        name: (torch.randn(left.shape, generator=Generator().manual_seed(at)) * 0.1, right)
        for at, (name, (left, right)) in enumerate(run._model.thin.items())
    }
    with torch.no_grad():  # B is not zero, so that A has a slope too
        for name, (left, _) in thin.items():
            run._model.thin[name][0].copy_(left)
    own = {n: tuple(t.detach().clone().requires_grad_(True) for t in p) for n, p in thin.items()}
    pairs = {name: (pair[0], pair[1]) for name, pair in own.items()}
    run.take(samples(), [text()])
    scale = recipe.alpha / recipe.rank
    lost, count = torch.zeros(()), 0
    for one in samples():
        logits = oracle(pack, pairs, scale, (*one.prompt, *one.target[:-1]))
        wanted = torch.tensor(one.target)
        lost = lost + cross_entropy(logits[-len(wanted) :], wanted, reduction="sum")
        count += len(wanted)
    lost = lost / count
    ids = (*text().prompt, *text().target[:-1])
    changed = log_softmax(oracle(pack, pairs, scale, ids), -1)
    full = log_softmax(oracle(pack, {}, 1.0, ids), -1)
    kl = kl_div(changed, full, log_target=True, reduction="sum") / len(full)
    (lost + 0.7 * kl).backward()  # type: ignore[no-untyped-call]
    assert run.losses[0] == pytest.approx(float(lost.detach()), abs=1e-4)
    assert run.kls[0] == pytest.approx(float(kl.detach()), abs=1e-4)
    for name, pair in pairs.items():
        for tensor, expected in zip(run._model.thin[name], pair, strict=True):
            assert tensor.grad is not None and expected.grad is not None
            apart = (tensor.grad - expected.grad).norm()
            assert apart < 1e-4 * expected.grad.norm() + 1e-6, name


def test_it_learns_targets_and_keeps_what_is_retained(pack: Pack) -> None:
    recipe = Recipe(linears=MLP, rank=4, steps=30, rate=3e-2, batch=4, retain=0.0)
    plain = train(pack, samples(), recipe)
    kept = train(pack, samples(), replace(recipe, retain=5.0), retain=[text(1), text(2)])
    assert plain.losses[-1] < 0.3 < plain.losses[0] and plain.kls == ()
    assert loss_of(pack, plain.patch, samples()) < 0.3 < loss_of(pack, None, samples())
    texts = [(*one.prompt, *one.target) for one in (text(1), text(2))]
    assert kl_of_patch(pack, kept.patch, texts) < 0.5 * kl_of_patch(pack, plain.patch, texts)
    assert loss_of(pack, kept.patch, samples()) < 1.0


def test_a_prompt_is_read_and_not_learned(pack: Pack) -> None:
    # Whatever stands in prompts of another wording, only targets are scored.
    one = Sample((*HEAD, 9), (5,))
    logits = oracle(pack, {}, 1.0, (*HEAD, 9))
    assert loss_of(pack, None, [one]) == pytest.approx(
        float(cross_entropy(logits[-1:], torch.tensor([5]))), abs=1e-4
    )


def test_the_best_step_is_kept_and_training_stops(pack: Pack) -> None:
    # The held-out sample contradicts what is learned, so the first look is the best one.
    recipe = Recipe(linears=ALL, rank=4, steps=200, rate=3e-2, every=4, patience=2, batch=4)
    apart = [Sample(samples()[0].prompt, (200, 201, 202))]
    done = train(pack, samples(), recipe, held_out=apart)
    best = min(done.held_out, key=lambda look: look[1])
    assert done.step == best[0] and len(done.losses) == done.step + 8
    assert loss_of(pack, done.patch, apart) == pytest.approx(best[1], abs=1e-3)
    enough = train(pack, samples(), replace(recipe, enough=1e9), held_out=apart)
    assert len(enough.losses) == 4


class _Cut(Exception):
    pass


def test_a_training_that_is_cut_off_goes_on(pack: Pack, tmp_path: Path) -> None:
    recipe = Recipe(rank=2, steps=8, every=3, rate=1e-3, batch=3, dropout=0.1)
    given = {"retain": [text()], "held_out": samples(1)}
    whole = train(pack, samples(), recipe, **given)
    state = tmp_path / "state.safetensors"

    def cut(what: str, done: int, total: int) -> None:
        if done == 5:
            raise _Cut

    with pytest.raises(_Cut):
        train(pack, samples(), recipe, state=state, progress=cut, **given)
    assert state.is_file()
    seen: list[int] = []
    again: Trained = train(
        pack, samples(), recipe, state=state, progress=lambda w, d, t: seen.append(d), **given
    )
    assert seen[0] == 4 and not state.exists()
    assert again.patch.fingerprint == whole.patch.fingerprint
    assert (again.losses, again.kls, again.held_out) == (whole.losses, whole.kls, whole.held_out)
    with pytest.raises(_Cut):
        train(pack, samples(), recipe, state=state, progress=cut, **given)
    with pytest.raises(FingerprintError):
        train(pack, samples(), replace(recipe, rate=2e-3), state=state, **given)


def test_every_sample_comes_once_before_any_comes_again() -> None:
    taken = [at for step in range(7) for at in turn(7, 3, step, seed=4)]
    assert [sorted(taken[first : first + 7]) for first in (0, 7, 14)] == [list(range(7))] * 3
    assert turn(2, 8, 0, seed=0) in ([0, 1], [1, 0])


def test_texts_of_like_lengths_go_together() -> None:
    mixed = [Sample((1,) * length, (2,)) for length in (3, 90, 4, 80, 5, 200)]
    found = [[len(one.prompt) for one in part] for part in parts(mixed, rows=190)]
    assert found == [[3, 4, 5], [80, 90], [200]]


def test_what_cannot_be_trained_is_refused(pack: Pack) -> None:
    with pytest.raises(ParameterError, match="at least one sample"):
        train(pack, [])
    with pytest.raises(ParameterError, match="layers the model has"):
        train(pack, samples(), Recipe(layers=(1, 2)))
    with pytest.raises(ParameterError, match="layers the model has"):
        train(pack, samples(), Recipe(linears=("lm_head",)))
    with pytest.raises(ParameterError, match="a prompt and a target"):
        train(pack, [Sample((1,), ())])
    with pytest.raises(ContextError, match="512"):
        train(pack, [Sample((1,) * 512, (2,))])
    with pytest.raises(ParameterError, match="smaller rate"):
        train(pack, samples(), Recipe(linears=ALL, steps=30, rate=1e30, decay=0.0))

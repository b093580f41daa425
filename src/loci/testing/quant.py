"""What every quantisation method must pass.

def test_conformance():
    for cls in catalogue.all_methods("quant"):
        quant.check(cls())
"""

from __future__ import annotations

import itertools
import json

import torch
from torch import Generator, Tensor

from loci.core.method import Need, make
from loci.core.spec import ModelSpec, Workload
from loci.errors import BudgetError, ParameterError
from loci.methods.quant.base import Nested, Quant
from loci.nn.form import Form, from_tensors
from loci.nn.packed_linear import matmul
from loci.nn.packing import MAX_BITS, MIN_BITS
from loci.nn.taps import ActStats, stats_of

SHAPES = ((1, 64), (64, 192), (37, 576))


def weight_of(out: int, inner: int, seed: int = 0) -> Tensor:
    """Return a weight [out, inner] with a few outliers, as trained ones have."""
    generator = Generator().manual_seed(seed)
    weight = torch.randn(out, inner, generator=generator) / inner**0.5
    weight[:, :: max(1, inner // 3)] *= 6
    return weight


def inputs_of(inner: int, tokens: int = 256, seed: int = 0) -> Tensor:
    """Return inputs [tokens, inner] that hang together and have a few large channels."""
    generator = Generator().manual_seed(seed)
    mix = torch.randn(inner, inner, generator=generator) / inner**0.5
    x = torch.randn(tokens, inner, generator=generator) @ (torch.eye(inner) + mix)
    x[:, :: max(1, inner // 5)] *= 8
    return x


def stats_for(weight: Tensor, seed: int = 0) -> ActStats:
    """Return what a layer of this weight would be shown, moments and slopes included."""
    out, inner = weight.shape
    slopes = torch.rand(out, generator=Generator().manual_seed(seed)) + 0.1
    return stats_of(inputs_of(inner, seed=seed), 2, moment=True, slopes_N=slopes)


def packed_by(method: Quant, weight: Tensor, seed: int = 1) -> Form:
    """Return the packed form; statistics are made up where the method needs them."""
    needs = Need.CALIBRATION in method.about.needs
    stats = stats_for(weight) if needs and weight.ndim == 2 else None
    return method.pack_one(weight, stats=stats, generator=Generator().manual_seed(seed))


def check(method: Quant) -> None:
    """Raise AssertionError unless the method keeps the rules of `Quant`."""
    for seed, (out, inner) in enumerate(SHAPES):
        weight = weight_of(out, inner, seed)
        packed = check_one(method, weight)
        stats = stats_for(weight)
        error = (stats.loss(packed.dense() - weight) / stats.loss(weight)) ** 0.5
        assert error < 0.5, f"the packed weight is far from the weight: {error:.2f}"
        check_one(method, weight.to(torch.float16))
        check_one(method, weight.t().contiguous().t())  # not contiguous
    for constant in (0.0, 0.125, -3.0):
        back = packed_by(method, torch.full((3, 192), constant)).dense()
        torch.testing.assert_close(back, torch.full((3, 192), constant), rtol=1e-3, atol=1e-6)
    check_bits(method)
    check_model(method)
    check_budget(method)
    if isinstance(method, Nested):
        check_levels(method)
    if Need.CALIBRATION in method.about.needs:
        check_statistics(method)
    check_bad_weights(method)
    check_bad_parameters(type(method))


def check_one(method: Quant, weight: Tensor) -> Form:
    """Raise AssertionError unless one weight is packed as promised; return the packed form."""
    before = weight.clone()
    packed = packed_by(method, weight)
    assert torch.equal(weight, before), "the weight was changed"
    assert packed.shape == tuple(weight.shape)
    assert packed.nbytes == method.packed_bytes(*packed.shape), "predicted bytes are not the bytes"
    again = packed_by(method, weight)
    for name, tensor in packed.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), f"{name}: same seed, other bytes"
        assert tensor.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()
    back = from_tensors(packed.tensors(), json.loads(json.dumps(packed.meta())))
    assert back.nbytes == packed.nbytes and back.shape == packed.shape
    assert torch.equal(back.dense(), packed.dense()), "the round trip changed the weight"
    check_product(packed)
    return packed


def check_product(form: Form) -> None:
    """Raise AssertionError unless rows and products agree with the dense weight."""
    out, inner = form.shape
    dense = form.dense()
    ids = torch.tensor([out - 1, 0, out // 2])
    torch.testing.assert_close(form.take(ids), dense[ids])
    torch.testing.assert_close(form.dense(rows=slice(out // 2, out)), dense[out // 2 :])
    for rows in (1, 5):
        x = inputs_of(inner, rows, seed=rows)
        before, target = x.clone(), torch.full((rows, out + 2), 7.0)
        found = matmul(x, form, target[:, 1:-1])
        assert torch.equal(x, before), "a product changed its input"
        assert (target[:, 0] == 7).all() and (target[:, -1] == 7).all(), "it wrote beside its part"
        expected = x @ dense.t()
        # A form that rounds its input is compared with what that costs at most, here 10 %.
        far = 1e-4 if form.is_linear else 0.1
        assert (found - expected).norm() <= far * (x.norm() * dense.norm()), "product and weight"
        alone = matmul(x[:1].contiguous(), form)
        torch.testing.assert_close(found[:1], alone, rtol=1e-3, atol=1e-4)


def check_bits(method: Quant) -> None:
    """Raise AssertionError unless more bits, where a method has them, mean less error."""
    if "bits" not in method.parameters():
        return
    weight = weight_of(*SHAPES[1])
    errors, sizes = [], []
    for bits in range(MIN_BITS, MAX_BITS + 1):
        try:
            wider = make(type(method), method.parameters() | {"bits": bits})
        except ParameterError:  # a method need not have every width
            continue
        assert isinstance(wider, Quant)
        packed = packed_by(wider, weight)
        errors.append(float((packed.dense() - weight).norm()))
        sizes.append(packed.nbytes)
    assert errors == sorted(errors, reverse=True), f"error does not fall with bits: {errors}"
    assert sizes == sorted(sizes), f"bytes do not rise with bits: {sizes}"


def check_model(method: Quant) -> None:
    """Raise AssertionError unless a whole model takes the bytes that were predicted."""
    spec = ModelSpec(
        name="tiny",
        layers=2,
        hidden=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        ffn=192,
        vocab=96,
        max_context=32,
        tied=False,
    )
    weights = [("embed", weight_of(spec.vocab, spec.hidden)), ("norm", torch.ones(spec.hidden))]
    weights.append(("head", weight_of(spec.vocab, spec.hidden, 1)))
    for layer in range(spec.layers):
        for name, shape in spec.layer_linears().items():
            weights.append((f"layer.{layer}.{name}", weight_of(*shape, seed=layer)))
        weights.append((f"layer.{layer}.norms", torch.ones(spec.layer_norm_elements())))
    stats = {n: stats_for(w) for n, w in weights if w.ndim == 2 and n.startswith("layer")}
    packed = method.pack(iter(weights), stats=stats, generator=Generator().manual_seed(0))
    assert list(packed.weights) == [name for name, _ in weights]
    held = method.predict(spec, Workload(context=32), 2**30).held
    assert dict(held) == packed.nbytes(), "predicted bytes of a model are not its bytes"
    assert not packed.shrink_options()


def check_budget(method: Quant) -> None:
    """Raise AssertionError unless a budget is kept, more bytes lose less, too few are refused."""
    weights = [(f"w{seed}", weight_of(64, 192, seed)) for seed in range(3)]
    stats = {name: stats_for(weight) for name, weight in weights}
    sizes = sorted({v.packed_bytes(64, 192) for v in method.variants()})
    if isinstance(method, Nested):
        levels = method.level_bytes(64, 192)
        sizes = [sum(levels[: method.least_levels]), sum(levels)]
    losses = []
    for budget in (3 * sizes[0], (sizes[0] + 2 * sizes[-1]), 3 * sizes[-1]):
        packed = method.pack(weights, stats=stats, budget_bytes=budget)
        assert packed.nbytes()["dram"] <= budget, "the packed model is larger than its budget"
        forms = {name: form for name, form in packed.weights.items() if isinstance(form, Form)}
        losses.append(sum(stats[n].loss(w - forms[n].dense()) for n, w in weights))
    assert losses == sorted(losses, reverse=True), f"more bytes lose more: {losses}"
    try:
        method.pack(weights, stats=stats, budget_bytes=3 * sizes[0] - 1)
    except BudgetError as error:
        assert "short" in str(error), str(error)
    else:
        raise AssertionError("a budget below the smallest form was taken")


def check_levels(method: Nested) -> None:
    """Raise AssertionError unless levels add up, come off exactly, and each one helps."""
    weight = weight_of(*SHAPES[1])
    stats, (out, inner) = stats_for(weight), weight.shape
    levels = method.levels(weight, stats=stats, generator=Generator().manual_seed(1))
    sizes = [sum(tensor.nbytes for tensor in level.values()) for level in levels]
    assert sizes == list(method.level_bytes(out, inner)), "predicted bytes of levels differ"
    least = method.least_levels
    forms = [method.first(levels[:least], (out, inner))]
    for level in levels[least:]:
        forms.append(method.grow(forms[-1], level))
    for count, form in enumerate(forms, least):
        assert form.nbytes == sum(sizes[:count]), f"{count} levels hold other bytes than theirs"
    x = inputs_of(inner)
    losses = [float((x @ (weight - form.dense()).t()).norm()) for form in forms]
    assert all(b < a for a, b in itertools.pairwise(losses)), f"a level that does not help {losses}"
    back = forms[-1]
    for expected in reversed(forms[:-1]):
        back = method.shrink(back)
        assert back.meta() == expected.meta()
        for name, tensor in expected.tensors().items():
            assert torch.equal(back.tensors()[name], tensor), "shrinking is not exact"
        assert back.nbytes == expected.nbytes


def check_statistics(method: Quant) -> None:
    """Raise AssertionError unless missing statistics, and those of another layer, are refused."""
    weight = weight_of(4, 192)
    for stats in (None, stats_for(weight_of(4, 64))):
        try:
            method.pack_one(weight, stats=stats)
        except ParameterError as error:
            assert method.about.name in str(error), str(error)
        else:
            raise AssertionError(f"{method} packed with the statistics {stats}")


def check_bad_weights(method: Quant) -> None:
    """Raise AssertionError unless weights that are no finite matrices are refused by name."""
    spoiled = weight_of(4, 192)
    for bad in (float("nan"), float("inf"), float("-inf")):
        spoiled[2, 5] = bad
        assert "finite" in _refusal(method, spoiled) and "[2, 5]" in _refusal(method, spoiled)
    for shape in ((64,), (0, 64), (2, 2, 64)):
        assert "matrices [out, in]" in _refusal(method, torch.zeros(shape))
    assert "matrices [out, in]" in _refusal(method, torch.zeros(4, 64, dtype=torch.int32))


def check_bad_parameters(cls: type[Quant]) -> None:
    """Raise AssertionError unless values outside the declared range are refused by their name."""
    for name, (_, param) in cls.declared().items():
        bad: list[object] = [object()]
        bad += [param.ge - 1] if param.ge is not None else []
        bad += [param.le + 1] if param.le is not None else []
        bad += [99] if param.choices is not None and 99 not in param.choices else []
        for value in bad:
            value = int(value) if isinstance(value, float) else value
            try:
                make(cls, {name: value})
            except ParameterError as error:
                assert f"{cls.about.name}.{name} must be" in str(error), str(error)
            else:
                raise AssertionError(f"{cls.about.name}.{name} took {value!r}")


def _refusal(method: Quant, weight: Tensor) -> str:
    try:
        packed_by(method, weight)
    except ParameterError as error:
        return str(error)
    raise AssertionError(f"{method} packed what it must refuse")

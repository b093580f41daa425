"""What every quantisation method must pass.

def test_conformance():
    for cls in catalogue.all_methods("quant"):
        quant.check(cls())
"""

from __future__ import annotations

import json

import torch
from torch import Generator, Tensor

from loci.core.method import make
from loci.core.spec import ModelSpec, Workload
from loci.errors import ParameterError
from loci.methods.quant.base import Quant
from loci.nn.packing import MAX_BITS, MIN_BITS, PackedWeight, dequantise

SHAPES = ((1, 64), (64, 192), (37, 576))


def weight_of(out: int, inner: int, seed: int = 0) -> Tensor:
    """Return a weight [out, inner] with a few outliers, as trained ones have."""
    generator = Generator().manual_seed(seed)
    weight = torch.randn(out, inner, generator=generator) / inner**0.5
    weight[:, :: max(1, inner // 3)] *= 6
    return weight


def check(method: Quant) -> None:
    """Raise AssertionError unless the method keeps the rules of `Quant`."""
    for seed, (out, inner) in enumerate(SHAPES):
        weight = weight_of(out, inner, seed)
        packed = check_one(method, weight)
        error = (dequantise(packed) - weight).norm() / weight.norm()
        assert error < 0.5, f"the packed weight is far from the weight: {error:.2f}"
        check_one(method, weight.to(torch.float16))
        check_one(method, weight.t().contiguous().t())  # not contiguous
    for constant in (0.0, 0.125, -3.0):
        back = dequantise(method.pack_one(torch.full((3, 192), constant)))
        torch.testing.assert_close(back, torch.full((3, 192), constant), rtol=1e-3, atol=1e-6)
    check_bits(method)
    check_model(method)
    check_bad_weights(method)
    check_bad_parameters(type(method))


def check_one(method: Quant, weight: Tensor) -> PackedWeight:
    """Raise AssertionError unless one weight is packed as promised; return the packed form."""
    before = weight.clone()
    packed = method.pack_one(weight, generator=Generator().manual_seed(1))
    assert torch.equal(weight, before), "the weight was changed"
    assert packed.shape == tuple(weight.shape)
    assert packed.nbytes == method.packed_bytes(*packed.shape), "predicted bytes are not the bytes"
    again = method.pack_one(weight, generator=Generator().manual_seed(1))
    for name, tensor in packed.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), f"{name}: same seed, other bytes"
        assert tensor.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()
    back = PackedWeight.from_tensors(packed.tensors(), json.loads(json.dumps(packed.meta())))
    assert back.nbytes == packed.nbytes and back.shape == packed.shape
    assert torch.equal(dequantise(back), dequantise(packed)), "the round trip changed the weight"
    return packed


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
        packed = wider.pack_one(weight)
        errors.append(float((dequantise(packed) - weight).norm()))
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
    packed = method.pack(iter(weights), generator=Generator().manual_seed(0))
    assert list(packed.weights) == [name for name, _ in weights]
    held = method.predict(spec, Workload(context=32), 2**30).held
    assert dict(held) == packed.nbytes(), "predicted bytes of a model are not its bytes"
    assert not packed.shrink_options()


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
        method.pack_one(weight)
    except ParameterError as error:
        return str(error)
    raise AssertionError(f"{method} packed what it must refuse")

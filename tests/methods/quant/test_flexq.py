"""FlexQ against paper and pencil."""

import torch

from loci.methods.quant.flexq import FlexQ
from loci.nn.adjusted import AdjustedWeight, group_dot, quantised
from loci.nn.packed_linear import matmul
from loci.nn.packing import PackedWeight, unpack_codes
from loci.testing import quant


def test_by_hand() -> None:
    # 31 is the largest of six bits, so the step is 1; -31.6 is cut to -31.
    weight = torch.tensor([[31.0, -30.6, 0.4, 0.6, 2.0, 0.0, -1.0, 1.0]])
    form = FlexQ(group=8, act_bits=16).pack_one(weight)
    assert isinstance(form, PackedWeight)
    assert form.dense().tolist() == [[31.0, -31.0, 0.0, 1.0, 2.0, 0.0, -1.0, 1.0]]
    assert unpack_codes(form.codes, 6, 8)[0, 1] == 1  # code 0, which would be -32, is not used


def test_a_group_takes_six_bits_and_a_scale() -> None:
    assert FlexQ(act_bits=16).packed_bytes(1, 64) * 8 / 64 == 6.25


def test_the_product_is_one_of_integers_times_two_scales() -> None:
    weight, x = quant.weight_of(12, 192), quant.inputs_of(192, 5)
    form = FlexQ().pack_one(weight)
    assert isinstance(form, AdjustedWeight) and isinstance(form.base, PackedWeight)
    assert form.bits is not None
    values_MGg, scales_MG = quantised(x, form.bits)
    codes_NGg = unpack_codes(form.base.codes, 6, 192).float().view(12, 3, 64) - 32
    integers_GMN = group_dot(values_MGg, codes_NGg).float()
    scaled_GMN = integers_GMN * scales_MG.t()[:, :, None] * form.base.scales.float().t()[:, None]
    torch.testing.assert_close(matmul(x, form), scaled_GMN.sum(0), rtol=1e-4, atol=1e-3)


def test_wider_inputs_lose_less_and_sixteen_bits_lose_nothing() -> None:
    weight, x = quant.weight_of(32, 192), quant.inputs_of(192, 40)
    full = matmul(x, FlexQ(act_bits=16).pack_one(weight))
    off = [
        float((matmul(x, FlexQ(act_bits=bits).pack_one(weight)) - full).norm())
        for bits in (4, 6, 8)
    ]
    assert off[0] > 2 * off[1] > 4 * off[2] > 0


def test_the_most_sensitive_layers_get_wider_inputs() -> None:
    losses = {f"layer.{i}.q_proj": float(i % 5) for i in range(12)}
    chosen = FlexQ(wide=0.25).assign(losses)
    wide = [name for name, method in chosen.items() if method.act_bits == 8]
    assert wide == ["layer.4.q_proj", "layer.9.q_proj", "layer.3.q_proj"] or set(wide) == {
        "layer.4.q_proj",
        "layer.9.q_proj",
        "layer.3.q_proj",
    }
    assert all(m.act_bits == 6 for n, m in chosen.items() if n not in wide)
    assert not any(m.act_bits == 8 for m in FlexQ(wide=0.0).assign(losses).values())


def test_a_probe_rounds_the_input_and_nothing_else() -> None:
    form = FlexQ(act_bits=16).pack_one(quant.weight_of(8, 64))
    probe = FlexQ().probe(form)
    assert isinstance(probe, AdjustedWeight) and probe.base is form and not probe.is_linear
    assert FlexQ(act_bits=16).probe(form) is form

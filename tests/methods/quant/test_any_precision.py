"""Any-Precision against paper and pencil."""

import pytest
import torch

from loci.methods.quant._grid import Grid
from loci.methods.quant.any_precision import AnyPrecision
from loci.methods.quant.bipolar_int import BipolarInt
from loci.methods.quant.gptq import Gptq, compensated
from loci.nn.planes import PlanesWeight
from loci.nn.taps import stats_of
from loci.testing import quant


def output_error(weight: torch.Tensor, dense: torch.Tensor, x: torch.Tensor) -> float:
    return float((x @ (weight - dense).t()).norm() / (x @ weight.t()).norm())


def test_a_further_bit_by_hand() -> None:
    # Steps of 2 leave rests between -1 and 1; the next bit moves each by half of the finer step 1.
    rest = torch.tensor([[0.8, -0.2, 0.1, -0.9]])
    halves = Grid(torch.ones(1, 1), torch.full((1, 1), -0.5), 1)
    bits = compensated(rest, halves, torch.eye(4), damping=1e-6)
    assert halves.values(bits).flatten().tolist() == [0.5, -0.5, 0.5, -0.5]


@pytest.mark.parametrize(("bits", "alone", "planes"), [(2, 1.6, 0.7), (3, 2.1, 0.8), (4, 2.3, 0.9)])
def test_coarse_forms_lie_between_those_made_alone_and_plain_planes(
    bits: int, alone: float, planes: float
) -> None:
    # Inputs that hang together, as those of real layers do.
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 192, generator=generator)
    mix = torch.randn(24, 192, generator=generator)
    x = torch.randn(2000, 24, generator=generator) @ mix
    x += torch.randn(2000, 192, generator=generator)
    stats = stats_of(x, moment=True)
    levels = AnyPrecision().levels(weight, stats=stats)
    form = AnyPrecision().first(levels[:bits], (64, 192))
    assert isinstance(form, PlanesWeight) and form.bits == bits
    single = Gptq(bits=bits).pack_one(weight, stats=stats)
    assert form.nbytes == single.nbytes
    bipolar = BipolarInt(bits=8)
    plain = bipolar.first(bipolar.levels(weight)[:bits], (64, 192))
    ours, best, worst = (output_error(weight, f.dense(), x) for f in (form, single, plain))
    assert best < ours < alone * best
    assert ours < planes * worst


def test_alone_it_is_gptq() -> None:
    weight, x = quant.weight_of(32, 64), quant.inputs_of(64, 500)
    stats = stats_of(x, moment=True)
    ours = AnyPrecision(bits=3, least=3).pack_one(weight, stats=stats)
    alone = Gptq(bits=3).pack_one(weight, stats=stats)
    a, b = output_error(weight, ours.dense(), x), output_error(weight, alone.dense(), x)
    assert a == pytest.approx(b, rel=0.02)  # grids differ by the rounding of their minimum


def test_less_compensation_at_first_leaves_more_for_later() -> None:
    weight, x = quant.weight_of(64, 192), quant.inputs_of(192, 2000)
    stats = stats_of(x, moment=True)
    errors = []
    for strength in (1.0, 0.6):
        method = AnyPrecision(bits=5, strength=strength)
        levels = method.levels(weight, stats=stats)
        seed = method.first(levels[:2], (64, 192))
        whole = method.first(levels, (64, 192))
        errors.append([output_error(weight, form.dense(), x) for form in (seed, whole)])
    assert errors[0][0] < errors[1][0] and errors[0][1] > errors[1][1]

"""Whole models packed by every method, and what calibration finds out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from loci.errors import BudgetError
from loci.methods import catalogue
from loci.methods.quant.base import Quant
from loci.methods.quant.flexq import FlexQ
from loci.methods.quant.gptq import Gptq
from loci.methods.quant.groupwise import Groupwise
from loci.models.pack import Pack
from loci.nn.adjusted import AdjustedWeight
from loci.run.calibrate import effects, kl_of
from loci.run.quantise import bytes_of, packed_linears
from loci.testing.models import tiny_pack

SIZES = {"hidden": 128, "ffn": 192, "heads": 8, "kv_heads": 4, "head_dim": 16}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    with tiny_pack(tmp_path_factory.mktemp("model"), bits=None, **SIZES) as opened:
        yield opened


def texts(pack: Pack, count: int = 4, length: int = 64, seed: int = 0) -> Tensor:
    generator = Generator().manual_seed(seed)
    return torch.randint(0, pack.spec.vocab, (count, length), generator=generator)


@pytest.mark.parametrize("cls", catalogue.all_methods("quant"), ids=lambda cls: cls.about.name)
def test_every_method_packs_a_model_in_the_bytes_it_said(cls: type[Quant], pack: Pack) -> None:
    method = cls() if cls.about.name != "groupwise" else Groupwise(group=64)
    forms = packed_linears(pack, method, ids_ST=texts(pack))
    names = [f"layer.{i}.{n}" for i in range(2) for n in pack.spec.layer_linears()]
    assert list(forms) == names
    assert bytes_of(forms) == 2 * sum(
        method.packed_bytes(*shape) for shape in pack.spec.layer_linears().values()
    )
    assert kl_of(pack, texts(pack, 2, seed=9), forms) < 1.0


def test_a_budget_is_shared_by_what_layers_lose(pack: Pack) -> None:
    held_out, losses = texts(pack, 4, seed=9), []
    for bits in (2.6, 3.5, 5.0):
        budget = int(bits / 8 * pack.spec.linear_elements())
        forms = packed_linears(pack, Gptq(), budget_bytes=budget, ids_ST=texts(pack))
        assert 0.97 * budget < bytes_of(forms) <= budget
        losses.append(kl_of(pack, held_out, forms))
    assert losses == sorted(losses, reverse=True)
    with pytest.raises(BudgetError, match="gptq needs at least"):
        packed_linears(pack, Gptq(), budget_bytes=1000, ids_ST=texts(pack))


def test_statistics_are_kept_and_found_again(pack: Pack, tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        packed_linears(
            pack,
            Groupwise(group=64),
            budget_bytes=pack.spec.linear_elements() // 2,
            ids_ST=texts(pack),
            folder=tmp_path,
            progress=lambda what, done, total: said.append(what),
        )
    assert said.count("looking at what matters") == 4  # four texts, once


def test_the_effect_of_one_layer_is_what_changing_it_alone_costs(pack: Pack) -> None:
    ids, method = texts(pack, 2), FlexQ(act_bits=4)
    found = effects(pack, ids, method.probe)
    assert len(found) == 2 * len(pack.spec.layer_linears())
    for name in ("layer.0.k_proj", "layer.1.down_proj"):
        block, _, tensor = name.rpartition(".")
        alone = kl_of(pack, ids, {name: method.probe(pack.block(block)[tensor])})
        assert found[name] == pytest.approx(alone, rel=1e-2, abs=1e-7)


def test_flexq_widens_the_layers_that_were_measured_to_be_sensitive(pack: Pack) -> None:
    method = FlexQ(wide=0.25)
    forms = packed_linears(pack, method, ids_ST=texts(pack))
    wide = {
        name
        for name, form in forms.items()
        if isinstance(form, AdjustedWeight) and form.bits is not None and int(form.bits[0]) == 8
    }
    measured = effects(pack, texts(pack)[:2], method.probe)
    assert len(wide) == round(0.25 * 14)
    assert wide == set(sorted(measured, key=lambda n: -measured[n])[: len(wide)])

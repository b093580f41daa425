"""Training of corrections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Generator, Tensor

from loci.errors import ParameterError
from loci.methods.quant.groupwise import Groupwise
from loci.methods.quant.int21 import Int21
from loci.models.pack import Pack
from loci.nn.adjusted import AdjustedWeight
from loci.run.calibrate import kl_of
from loci.run.correct import Training, corrected
from loci.run.quantise import bytes_of, packed_linears
from loci.testing.models import tiny_pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    with tiny_pack(tmp_path_factory.mktemp("model"), bits=None, ffn=128) as opened:
        yield opened


def texts(pack: Pack, count: int = 8, seed: int = 0) -> Tensor:
    generator = Generator().manual_seed(seed)
    return torch.randint(0, pack.spec.vocab, (count, 32), generator=generator)


def test_a_trained_correction_imitates_better_than_its_start(pack: Pack) -> None:
    forms = packed_linears(pack, Int21(bits=2, rank=4, compensate=False), ids_ST=texts(pack))
    done = corrected(pack, forms, texts(pack, 60, seed=1), Training(steps=60, rate=3e-3))
    held_out = texts(pack, 4, seed=5)
    before, after = kl_of(pack, held_out, forms), kl_of(pack, held_out, done.forms)
    assert after < 0.95 * before
    assert len(done.losses) == 60 and all(loss > 0 for loss in done.losses)
    assert bytes_of(done.forms) == bytes_of(forms)
    for name, form in forms.items():  # the packed weights themselves are as they were
        other = done.forms[name]
        assert isinstance(form, AdjustedWeight) and isinstance(other, AdjustedWeight)
        assert other.base is form.base


def test_the_loss_of_a_text_alone_imitates_worse(pack: Pack) -> None:
    # The paper's point: the original's whole distribution teaches more than the next word.
    forms = packed_linears(pack, Int21(bits=2, rank=4), ids_ST=texts(pack))
    results = [
        corrected(
            pack, forms, texts(pack, 60, seed=1), Training(steps=60, rate=3e-3, kl=kl, ce=ce)
        ).forms
        for kl, ce in ((1.0, 0.1), (0.0, 1.0))
    ]
    losses = [kl_of(pack, texts(pack, 4, seed=5), found) for found in results]
    assert losses[0] < losses[1]


def test_what_cannot_be_trained_is_refused(pack: Pack) -> None:
    plain = packed_linears(pack, Groupwise(), ids_ST=texts(pack))
    with pytest.raises(ParameterError, match="no layer has a correction"):
        corrected(pack, plain, texts(pack))
    forms = packed_linears(pack, Int21(rank=2), ids_ST=texts(pack))
    with pytest.raises(ParameterError, match="a step and a text"):
        corrected(pack, forms, texts(pack)[:0])
    with pytest.raises(ParameterError, match="smaller rate"):
        corrected(pack, forms, texts(pack), Training(steps=40, rate=1e30))

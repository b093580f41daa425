"""Text a model writes itself: the same every time, kept, and as it would be written one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loci.errors import ParameterError
from loci.models.pack import Pack
from loci.models.tokenizer import Tokenizer
from loci.run import own_text as written
from loci.run.edit_model import PackModel
from loci.run.own_text import OPENINGS, gone_on, own_text
from loci.testing.models import tiny_pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return tiny_pack(tmp_path_factory.mktemp("own"), layers=3, seed=5)


def test_it_is_written_once_and_kept(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    first = own_text(pack, texts=3, length=128, progress=lambda _, done, __: told.append(done))
    assert first.shape == (3, 128) and told[-1] == 3 * 128
    assert torch.equal(first, own_text(pack, texts=3, length=128))
    kept = list(pack.folder.glob("own_text-*.safetensors"))
    assert len(kept) == 1
    kept[0].unlink()
    assert torch.equal(first, own_text(pack, texts=3, length=128))  # and the same again
    assert not torch.equal(first, own_text(pack, texts=3, length=128, seed=1))
    begins = bytes(id for id in first[0].tolist() if id < 256)
    assert begins.startswith(OPENINGS[0].encode())


def test_rows_of_any_length_are_written_as_if_alone(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most likely tokens, so that chance plays no part: as the model says them row by row."""
    monkeypatch.setattr(written, "CHOICE", written.Sampling(temperature=0.0))
    model, starts = PackModel(pack), [[70, 71, 72], [80], [90, 91, 92, 93, 94]]
    found = gone_on(pack, starts, 6, torch.Generator())
    ends = Tokenizer(pack.folder).eos_ids
    for start, row in zip(starts, found, strict=True):
        alone = list(start)
        for _ in range(6):
            (logits,) = model.ends([alone], [1])
            token = int(logits[0].argmax())
            if token in ends:
                break
            alone.append(token)
        assert row == alone


def test_an_end_ends_a_text(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    every = torch.zeros(1, dtype=torch.long)
    (end, *_) = Tokenizer(pack.folder).eos_ids
    monkeypatch.setattr(written, "choose", lambda logits, *_: every.expand(len(logits)) + end)
    assert gone_on(pack, [[70, 71], [80]], 4, torch.Generator()) == [[70, 71], [80]]


def test_nothing_to_write_is_refused(pack: Pack, tmp_path: Path) -> None:
    for texts, length in ((0, 10), (1, 1)):
        with pytest.raises(ParameterError, match="at least two tokens"):
            own_text(pack, texts=texts, length=length)

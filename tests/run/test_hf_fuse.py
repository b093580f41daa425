"""Cache-to-Cache between transformers models, as a person uses it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import loci
from loci.errors import FingerprintError, ParameterError
from loci.run.fusers import Exchange, FuserTraining
from loci.run.hf import cache_argument
from loci.run.hf_fuse import frozen
from loci.testing.models import tiny_hf

PROMPT, ANSWER = (5, 6, 7, 8, 9), (40, 41, 42)
IDS = torch.tensor([PROMPT])


def test_a_receiver_says_what_its_fuser_was_taught(tmp_path: Path) -> None:
    receiver, _ = tiny_hf(tmp_path / "a", 1)
    sharer, _ = tiny_hf(tmp_path / "b", 2, layers=3, kv_heads=1, architecture="qwen3")
    fuser = loci.hf.train_fuser(
        receiver,
        sharer,
        [Exchange(prompt=PROMPT, response=ANSWER)],
        "c2c(hidden=12)",
        training=FuserTraining(steps=80, batch=1, rate=1e-2),
    )
    with loci.hf.cache(receiver) as own, loci.hf.cache(sharer) as theirs, torch.no_grad():
        loci.hf.read(receiver, IDS[:, :-1], own)
        loci.hf.read(sharer, IDS[:, :-1], theirs)
        loci.hf.fuse(own, [(theirs, fuser)])
        said = receiver.generate(
            IDS, **{cache_argument(receiver): own}, max_new_tokens=3, do_sample=False
        )
        assert said[0].tolist() == [*PROMPT, *ANSWER]
        with pytest.raises(FingerprintError, match="for other models"):
            loci.hf.fuse(theirs, [(own, fuser)])
    plain = receiver.generate(IDS, max_new_tokens=3, do_sample=False)
    assert plain[0].tolist() != said[0].tolist()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma"])
def test_a_frozen_model_is_the_model(tmp_path: Path, architecture: str) -> None:
    model, _ = tiny_hf(tmp_path, 3, architecture=architecture)
    whole = frozen(model)
    past = [(block.keys, block.values) for block in whole.cached(IDS[:, :2]).blocks]
    with torch.no_grad():
        expected = model(IDS).logits[:, 2:]
    torch.testing.assert_close(whole.logits(IDS[:, 2:], past), expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_fused_is_refused(tmp_path: Path) -> None:
    model, _ = tiny_hf(tmp_path, 1)
    with pytest.raises(ParameterError, match="fuses no caches"):
        loci.hf.train_fuser(model, model, [Exchange(prompt=PROMPT, response=ANSWER)], "snapkv")
    with pytest.raises(ParameterError, match="nothing to read them with"):
        loci.hf.train_fuser(model, model, [("a question", "an answer")])
    with loci.hf.cache(model) as empty:
        with pytest.raises(ParameterError, match="nobody to listen to"):
            loci.hf.fuse(empty, [])
        fuser = loci.hf.train_fuser(
            model,
            model,
            [Exchange(prompt=PROMPT, response=ANSWER)],
            "c2c(hidden=4)",
            training=FuserTraining(steps=1),
        )
        with pytest.raises(ParameterError, match="a cache is empty"):
            loci.hf.fuse(empty, [(empty, fuser)])


def test_examples_may_be_text_and_tokenizers_may_differ(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from loci.run.hf_fuse import aligned_ids

    def words(*known: str) -> PreTrainedTokenizerFast:
        vocab = {word: index for index, word in enumerate(("?", *known))}
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="?"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="?", unk_token="?")

    one, other = words("who", "is", "ada", "she"), words("she", "ada", "is", "who")
    assert aligned_ids(one.encode("who is ada"), one, other) == (4, 3, 2)
    receiver, _ = tiny_hf(tmp_path / "a", 1)
    sharer, _ = tiny_hf(tmp_path / "b", 2)
    fuser = loci.hf.train_fuser(
        receiver,
        sharer,
        [("who is ada", "she")],
        "c2c(hidden=4)",
        tokenizer=one,
        sharer_tokenizer=other,
        training=FuserTraining(steps=2),
    )
    assert len(fuser.facts["losses"]) == 2

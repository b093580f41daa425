"""MiniLM's forward against transformers, and what it does with long, empty and odd texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from loci.errors import FormatError, ModelError
from loci.models.embed import WINDOW, MiniLM

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(40)), "##x"]


def _folder(home: Path, **changes: object) -> torch.nn.Module:
    """Write a little BERT with random weights; return it as transformers has it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = BertConfig(
        vocab_size=len(WORDS), intermediate_size=48, attn_implementation="eager", **sizes
    )
    model = BertModel(config).eval()
    model.save_pretrained(home)
    written = json.loads((home / "config.json").read_text())
    written = written | {"position_embedding_type": "absolute"} | changes
    (home / "config.json").write_text(json.dumps(written))
    vocab = {word: id for id, word in enumerate(WORDS)}
    tables = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tables.normalizer = normalizers.BertNormalizer()
    tables.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tables.add_special_tokens(WORDS[:5])
    tables.save(str(home / "tokenizer.json"))
    return model


def _truth(model: torch.nn.Module, windows: list[list[int]]) -> np.ndarray:
    """Return the mean over all tokens of all windows, at length 1."""
    with torch.no_grad():
        states = [model(torch.tensor([ids])).last_hidden_state[0] for ids in windows]
    mean = torch.cat(states).mean(0)
    return (mean / mean.norm()).numpy()


def test_equals_transformers(tmp_path: Path) -> None:
    theirs, ours = _folder(tmp_path), MiniLM(tmp_path)
    texts = ["w1 w2 w3", "", "w5", "w7x w8 w9 w10 w11 w12", "zzz w1"]
    ids = [[6, 7, 8], [], [10], [12, 45, 13, 14, 15, 16, 17], [1, 6]]
    found = ours.encode(texts)
    for row, inner in zip(found, ids, strict=True):
        np.testing.assert_allclose(row, _truth(theirs, [[2, *inner, 3]]), atol=1e-5)
    assert found.dtype == np.float32 and found.shape == (5, ours.width)


def test_neither_order_nor_company_matters(tmp_path: Path) -> None:
    _folder(tmp_path)
    ours = MiniLM(tmp_path)
    texts = [" ".join(f"w{(i * j) % 40}" for j in range(i % 70)) for i in range(150)]
    whole = ours.encode(texts)
    np.testing.assert_allclose(ours.encode(texts[::-1])[::-1], whole, atol=1e-5)
    np.testing.assert_allclose(ours.encode([texts[69]])[0], whole[69], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1.0, atol=1e-5)
    assert ours.encode([]).shape == (0, 32)


def test_long_texts_are_read_to_the_end(tmp_path: Path) -> None:
    theirs, ours = _folder(tmp_path), MiniLM(tmp_path)
    words = [f"w{i % 40}" for i in range(600)]
    ids = [5 + i % 40 for i in range(600)]
    room = WINDOW - 2
    windows = [[2, *ids[at : at + room], 3] for at in range(0, 600, room)]
    found = ours.encode([" ".join(words)])[0]
    np.testing.assert_allclose(found, _truth(theirs, windows), atol=1e-5)
    assert abs(found - ours.encode([" ".join([*words[:599], "w0"])])[0]).max() > 1e-7


def test_windows_end_between_words(tmp_path: Path) -> None:
    _folder(tmp_path)
    ours = MiniLM(tmp_path)
    text = " ".join(["w1x"] * 200)  # two tokens a word, and 254 places: 127 words in a window
    windows = ours._windows("w2 " + text)  # now the last place would cut a word
    assert [len(ids) - 2 for ids in windows] == [253, 148]
    assert all(ids[0] == 2 and ids[-1] == 3 for ids in windows)
    one_word = ours._windows("w1" + "x" * 600)
    assert sum(len(ids) - 2 for ids in one_word) >= 1 and all(len(i) <= WINDOW for i in one_word)


def test_names_of_control_tokens_are_text(tmp_path: Path) -> None:
    _folder(tmp_path)
    assert 4 not in MiniLM(tmp_path)._windows("[MASK] w1")[0]


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    _folder(tmp_path)
    first, again = MiniLM(tmp_path).fingerprint, MiniLM(tmp_path).fingerprint
    raw = bytearray((tmp_path / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(raw)
    assert first == again != MiniLM(tmp_path).fingerprint


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="loci pull minilm"):
        MiniLM(tmp_path)
    _folder(tmp_path, model_type="roberta")
    with pytest.raises(ModelError, match=r"no embedder that we run.*roberta"):
        MiniLM(tmp_path)
    _folder(tmp_path, num_hidden_layers=3)
    with pytest.raises(FormatError, match=r"lacks the tensor 'encoder\.layer\.2"):
        MiniLM(tmp_path)


@pytest.mark.model
def test_minilm_equals_transformers(models_folder: Path) -> None:
    from transformers import AutoTokenizer, BertModel

    folder = models_folder / "minilm"
    ours = MiniLM(folder)
    assert ours.width == 384 and ours.nbytes < 91_000_000
    texts = ["A cat sits outside.", "", "The new movie is awesome! " * 20, "naïve café 日本 😀"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    found = ours.encode(texts)
    for row, text in zip(found, texts, strict=True):
        np.testing.assert_allclose(row, _truth(model, [tokenizer(text)["input_ids"]]), atol=1e-5)
    kitten = ours.encode(["A kitten rests in the garden."])[0]
    assert kitten @ found[0] > kitten @ found[2] + 0.2

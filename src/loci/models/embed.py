"""all-MiniLM-L6-v2: sentences to unit vectors, by a BERT forward of our own.

N. Reimers and I. Gurevych, "Sentence-BERT", 2019, arXiv:1908.10084; W. Wang et al., "MiniLM",
2020, arXiv:2002.10957. Token states of the last layer are averaged and scaled to length 1.

The model was trained on at most 256 tokens. Longer texts are not cut: they are read in windows of
256 tokens that end between words, and the mean runs over the tokens of all windows. Text of a
person is text: "[MASK]" in it is spelled out.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any  # JSON values

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding, gelu, layer_norm, linear, scaled_dot_product_attention

from loci.errors import FormatError, ModelError
from loci.models.hf_folder import read_json
from loci.models.safetensors_file import SafetensorsFile

WINDOW = 256  # tokens, [CLS] and [SEP] included: max_seq_length of the published model
_BATCH_TOKENS = 4096  # padded tokens at once: states of one layer take 25 MiB at most

# Shapes: B windows, T tokens, d hidden, H heads, D head size, n texts.


class MiniLM:
    """The default embedder. Satisfies `loci.core.ports.Embedder`.

    Args:
        folder: holds config.json, model.safetensors and tokenizer.json (`loci pull minilm`).

    Attributes:
        width: elements of a vector.
        nbytes: bytes of the weights, memory-mapped.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Tables

        if not (folder / "model.safetensors").is_file():
            raise ModelError(
                f"there is no embedder in {folder}",
                allowed="config.json, model.safetensors and tokenizer.json",
                way_out="get it:  loci pull minilm",
            )
        self.folder = folder
        config = read_json(folder / "config.json")
        _check(config, folder)
        self.width = int(config["hidden_size"])
        self._heads = int(config["num_attention_heads"])
        self._layers = int(config["num_hidden_layers"])
        self._eps = float(config["layer_norm_eps"])
        file = SafetensorsFile(folder / "model.safetensors")
        try:
            self._weights = {name: file.mapped(name) for name in self._names()}
        except KeyError as error:
            raise FormatError(f"{folder}/model.safetensors lacks the tensor {error}") from None
        finally:
            file.close()
        self.nbytes = sum(tensor.nbytes for tensor in self._weights.values())
        try:
            self._tables = Tables.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise FormatError(f"{folder}/tokenizer.json cannot be read: {error}") from error
        self._tables.no_truncation()
        self._tables.no_padding()
        self._tables.encode_special_tokens = True
        self._begin = self._id("[CLS]")
        self._end = self._id("[SEP]")

    @cached_property
    def fingerprint(self) -> str:
        """Of every byte of weight and of how text is cut; vectors of another are no company."""
        digest = hashlib.blake2b(f"mean {WINDOW}".encode(), digest_size=16)
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            with (self.folder / name).open("rb") as file:
                while piece := file.read(2**20):
                    digest.update(piece)
        return f"blake2b:{digest.hexdigest()}"

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32 [n, width], rows of length 1; an empty text has a vector too."""
        windows: list[tuple[int, list[int]]] = []  # (text, ids)
        for index, text in enumerate(texts):
            windows += [(index, ids) for ids in self._windows(text)]
        # Windows of like length share a batch, so that little is padding.
        windows.sort(key=lambda window: len(window[1]))
        sums_nd = torch.zeros(len(texts), self.width)
        counts_n = torch.zeros(len(texts))
        at = 0
        while at < len(windows):
            last = at + 1
            while last < len(windows):
                longest = len(windows[last][1])
                if (last + 1 - at) * longest > _BATCH_TOKENS:
                    break
                last += 1
            batch = windows[at:last]
            states_Bd = self._summed([ids for _, ids in batch])
            owners = torch.tensor([owner for owner, _ in batch])
            sums_nd.index_add_(0, owners, states_Bd)
            counts_n.index_add_(0, owners, torch.tensor([float(len(ids)) for _, ids in batch]))
            at = last
        means_nd = sums_nd / counts_n.clamp(min=1).unsqueeze(1)
        unit_nd = torch.nn.functional.normalize(means_nd, dim=1)
        return np.ascontiguousarray(unit_nd.numpy())

    def count(self, texts: Sequence[str]) -> int:
        """Return how many tokens the texts take, those that begin and end a window included."""
        return sum(len(ids) for text in texts for ids in self._windows(text))

    # -- private ------------------------------------------------------------------------------

    def _windows(self, text: str) -> list[list[int]]:
        """Return the ids of a text in windows that end between words."""
        found = self._tables.encode(text, add_special_tokens=False)
        ids, words, room = found.ids, found.word_ids, WINDOW - 2
        windows: list[list[int]] = []
        first = 0
        while first < len(ids) or not windows:
            last = min(first + room, len(ids))
            if last < len(ids):
                cut = last
                while cut > first and words[cut] is not None and words[cut] == words[cut - 1]:
                    cut -= 1
                last = cut if cut > first else last  # one word longer than a window is cut
            windows.append([self._begin, *ids[first:last], self._end])
            first = last
        return windows

    def _summed(self, windows: list[list[int]]) -> Tensor:
        """Return the sum over tokens of the last layer's states, [B, d]."""
        longest = max(len(ids) for ids in windows)
        lengths = [len(ids) for ids in windows]
        ids_BT = torch.tensor([ids + [0] * (longest - len(ids)) for ids in windows])
        real_BT = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
        weights = self._weights
        states_BTd = embedding(ids_BT, weights["embeddings.word_embeddings.weight"])
        states_BTd = states_BTd + weights["embeddings.position_embeddings.weight"][:longest]
        states_BTd = states_BTd + weights["embeddings.token_type_embeddings.weight"][0]
        states_BTd = self._norm("embeddings.LayerNorm", states_BTd)
        mask = None if min(lengths) == longest else real_BT[:, None, None, :]
        for layer in range(self._layers):
            states_BTd = self._layer(f"encoder.layer.{layer}.", states_BTd, mask)
        return (states_BTd * real_BT.unsqueeze(-1)).sum(1)

    def _layer(self, at: str, states_BTd: Tensor, mask: Tensor | None) -> Tensor:
        batch, tokens, _ = states_BTd.shape
        query, key, value = (
            self._linear(f"{at}attention.self.{part}", states_BTd)
            .view(batch, tokens, self._heads, -1)
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed_BHTD = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed_BTd = mixed_BHTD.transpose(1, 2).reshape(batch, tokens, -1)
        attended = self._linear(f"{at}attention.output.dense", mixed_BTd)
        states_BTd = self._norm(f"{at}attention.output.LayerNorm", states_BTd + attended)
        inner = gelu(self._linear(f"{at}intermediate.dense", states_BTd))
        return self._norm(
            f"{at}output.LayerNorm", states_BTd + self._linear(f"{at}output.dense", inner)
        )

    def _linear(self, name: str, states: Tensor) -> Tensor:
        return linear(states, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, name: str, states: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return layer_norm(states, (self.width,), weight, bias, self._eps)

    def _id(self, token: str) -> int:
        found = self._tables.token_to_id(token)
        if found is None:
            raise FormatError(f"{self.folder}/tokenizer.json has no token {token}")
        return int(found)

    def _names(self) -> list[str]:
        tables = ("word", "position", "token_type")
        names = [f"embeddings.{table}_embeddings.weight" for table in tables]
        parts = ["embeddings.LayerNorm"]
        inside = [f"attention.self.{part}" for part in ("query", "key", "value")]
        inside += ["attention.output.dense", "attention.output.LayerNorm"]
        inside += ["intermediate.dense", "output.dense", "output.LayerNorm"]
        for layer in range(self._layers):
            parts += [f"encoder.layer.{layer}.{part}" for part in inside]
        return names + [f"{part}.{kind}" for part in parts for kind in ("weight", "bias")]


def _check(config: dict[str, Any], folder: Path) -> None:
    """Refuse models that are no BERT encoder of the kind this forward computes."""
    wanted = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
    }
    found = {key: config.get(key, "absolute" if "position" in key else None) for key in wanted}
    if found != wanted:
        raise ModelError(
            f"{folder} holds no embedder that we run",
            value=json.dumps(found),
            allowed=json.dumps(wanted),
            way_out="take minilm, or pass your own object with encode(texts)",
        )
    for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "layer_norm_eps"):
        number = config.get(key)
        if not isinstance(number, (int, float)) or not 0 < number < math.inf:
            raise FormatError(f"{folder}/config.json: {key} is missing or absurd", value=number)

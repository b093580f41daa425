"""What packed weights do to a model, on text that no method was calibrated on.

One forward for everybody: ours and rivals' weights run through the same float32 arithmetic, so that
only what the weights lost is compared. Pieces of text are scored whole; KL to the model as it was
and the loss of the text itself are means over tokens, with bootstrap intervals over pieces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any  # results hold whatever JSON can hold

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from loci.bench import texts
from loci.bench.stats import mean
from loci.errors import ParameterError
from loci.models.pack import Pack
from loci.models.tokenizer import Tokenizer
from loci.nn.decoder import decode
from loci.nn.form import Form
from loci.nn.packed_linear import linear
from loci.run.calibrate import PackWeights

CHARACTERS = 4000  # of a piece of text; more than it has tokens


def pieces(
    pack: Pack, count: int, length: int, part: str = "test", source: str | None = None
) -> list[Tensor]:
    """Return pieces of tokens from one half of the text.

    Raises:
        ParameterError: if a piece of text is too short.
    """
    tokenizer = Tokenizer(pack.folder)
    found = []
    for text in texts.slices(texts.prose() if source is None else source, count, CHARACTERS, part):
        ids = tokenizer.encode(text)[:length]
        if len(ids) < length:
            raise ParameterError(
                "a piece of text is too short", value=len(ids), allowed=f"{length} tokens"
            )
        found.append(torch.tensor(ids))
    return found


class Judge:
    """Judges packed forms of one model on the same pieces; the model itself is run once."""

    def __init__(self, pack: Pack, ids: list[Tensor]) -> None:
        self._pack, self._ids, self._weights = pack, ids, PackWeights(pack)
        table = self._weights.table("embed")
        self._embed = table
        self._head = table if pack.spec.tied else self._weights.table("head")
        self._full = [self._logs(ids_T, {}) for ids_T in ids]

    @property
    def full(self) -> dict[str, Any]:
        """The model as it is."""
        return self._summary([0.0] * len(self._ids), self._full)

    def judge(self, forms: Mapping[str, Form]) -> dict[str, Any]:
        """Return KL, loss and perplexity of the model with some of its layers replaced."""
        logs = [self._logs(ids_T, forms) for ids_T in self._ids]
        losses = [
            float((full.exp() * (full - other)).sum(-1).mean())
            for full, other in zip(self._full, logs, strict=True)
        ]
        return self._summary(losses, logs)

    def _logs(self, ids_T: Tensor, forms: Mapping[str, Form]) -> Tensor:
        with torch.no_grad():
            hidden = decode(
                self._pack.spec,
                self._embed[ids_T].unsqueeze(0),
                lambda name, x: linear(x, forms.get(name) or self._weights(name)),
                self._weights.vector,
            )
            return torch.log_softmax(hidden[0] @ self._head.t(), dim=-1)

    def _summary(self, losses: list[float], logs: list[Tensor]) -> dict[str, Any]:
        nll = mean(
            [
                float(cross_entropy(found[:-1], ids_T[1:]))
                for found, ids_T in zip(logs, self._ids, strict=True)
            ]
        )
        return {
            "kl": mean(losses).to_json(),
            "nll": nll.to_json(),
            "perplexity": math.exp(nll.value),
        }

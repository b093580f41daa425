"""The part of a made-up lab that reads texts token by token and looks at attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor

from loci.core.spec import ModelSpec


class FakeAttention:
    """Texts are bytes; attention is random but for one head a layer, which looks far back.

    In layer l that is head l modulo H: everything but its first and last tokens gets the same.
    """

    spec: ModelSpec

    def encode(self, text: str) -> Sequence[int]:
        """Return the bytes of a text, at least 120 of them."""
        return list((text * 120 if len(text) < 3 else text).encode())

    def attention(self, ids: Sequence[int], last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, by layer, what the last tokens give to all, [H, last, T], and values [K, T, D]."""
        spec, tokens = self.spec, len(ids)
        hidden_tT = torch.arange(tokens) > torch.arange(tokens)[-last:, None]
        for layer in range(spec.layers):
            draw = Generator().manual_seed(layer)
            values_KTD = torch.randn(spec.kv_heads, tokens, spec.head_dim, generator=draw)
            scores_HtT = torch.randn(spec.heads, last, tokens, generator=draw)
            scores_HtT[..., 0] += 8
            scores_HtT[..., -last:] += 4
            scores_HtT[layer % spec.heads] = 0
            yield scores_HtT.masked_fill(hidden_tT, -torch.inf).softmax(-1), values_KTD

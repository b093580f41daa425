"""The decoder's forward as plain torch operations, so that gradients flow: for training and taps.

The runner computes the same thing over preallocated buffers and a KV store, without gradients.
Here a text is read at once, and the caller decides how each linear layer multiplies: by a dense
weight, by a packed one with an adapter, or while looking at its input. Keys and values are handed
out where the caller keeps them, and taken as the past of a text that goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from loci.core.spec import ModelSpec
from loci.nn.rope import Rope

Linear = Callable[[str, Tensor], Tensor]
"""Called with ("layer.3.q_proj", x [N, in]); returns [N, out], its bias not added."""

Vector = Callable[[str], Tensor | None]
"""Called with "layer.3.input_norm", "layer.3.q_proj.bias" or "norm"; None where there is none."""

Pair = tuple[Tensor, Tensor]
"""Rotated keys and values of one layer, [B, K, T, D] each."""

# Shapes: B batch, T tokens, S tokens before them, N = B * T rows, d hidden, H query heads,
# K key/value heads, D head.


def decode(
    spec: ModelSpec,
    embedded_BTd: Tensor,
    linear: Linear,
    vector: Vector,
    *,
    past: Sequence[Pair] | None = None,
    kept: list[Pair] | None = None,
) -> Tensor:
    """Return the hidden states [B, T, d] after the final norm; the head is the caller's.

    Args:
        embedded_BTd: embedding rows of the tokens, float32, not yet scaled.
        linear, vector: see `Linear` and `Vector`.
        past: of every layer, S tokens that stand before these, at positions 0 to S - 1.
        kept: takes the keys and values of these tokens, layer by layer.
    """
    hidden_BTd = embedded_BTd * spec.embed_scale
    for index in range(spec.layers):
        hidden_BTd = decode_layer(
            spec,
            index,
            hidden_BTd,
            linear,
            vector,
            past=None if past is None else past[index],
            kept=kept,
        )
    return rms_norm(hidden_BTd, vector("norm"), spec)


def decode_layer(
    spec: ModelSpec,
    index: int,
    hidden_BTd: Tensor,
    linear: Linear,
    vector: Vector,
    *,
    past: Pair | None = None,
    kept: list[Pair] | None = None,
    unseen_B: Tensor | None = None,
) -> Tensor:
    """Return the hidden states [B, T, d] after one decoder layer.

    Args:
        unseen_B: how many tokens at the beginning of each row fill it up and are not seen by its
            own; positions count from there in effect, as rotations only know distances.
    """
    rows, tokens, _ = hidden_BTd.shape
    D, H, K = spec.head_dim, spec.heads, spec.kv_heads
    before = 0 if past is None else past[0].shape[2]
    places_1T = torch.arange(before, before + tokens)[None]
    cos_TD, sin_TD = (table[0] for table in Rope(spec).table(places_1T))
    mask = visible(tokens, spec.window, before)
    if unseen_B is not None:
        mask = _without(mask, unseen_B, tokens, before)
    hidden = hidden_BTd.reshape(rows * tokens, -1)
    at = f"layer.{index}."

    def project(name: str, x_N: Tensor) -> Tensor:
        bias = vector(f"{at}{name}.bias")
        out_N = linear(at + name, x_N)
        return out_N if bias is None else out_N + bias

    normed = rms_norm(hidden, vector(at + "input_norm"), spec)
    q, k, v = (project(name, normed) for name in ("q_proj", "k_proj", "v_proj"))
    q, k, v = (part.view(rows, tokens, -1, D) for part in (q, k, v))
    if spec.qk_norm:
        q = rms_norm(q, vector(at + "q_norm"), spec)
        k = rms_norm(k, vector(at + "k_norm"), spec)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    k = turned(k, cos_TD, sin_TD)
    if kept is not None:
        kept.append((k, v))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    mixed = scaled_dot_product_attention(
        turned(q, cos_TD, sin_TD),
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None,
        scale=D**-0.5,
        enable_gqa=H != K,
    )
    mixed = mixed.transpose(1, 2).reshape(rows * tokens, H * D)
    hidden = hidden + project("o_proj", mixed)
    normed = rms_norm(hidden, vector(at + "post_norm"), spec)
    gate, up = project("gate_proj", normed), project("up_proj", normed)
    active = silu(gate) if spec.activation == "silu" else gelu(gate, approximate="tanh")
    hidden = hidden + project("down_proj", active * up)
    return hidden.view(rows, tokens, -1)


def rms_norm(x: Tensor, weight: Tensor | None, spec: ModelSpec) -> Tensor:
    """Return x [..., size] over its root mean square, times the weight."""
    scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + spec.norm_eps)
    return scaled if weight is None else scaled * (weight + spec.norm_offset)


def turned(x_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Return x turned by the angles, as a new tensor that gradients pass through."""
    low, high = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos_TD + torch.cat((-high, low), dim=-1) * sin_TD


def visible(tokens: int, window: int | None, before: int = 0) -> Tensor | None:
    """Return which tokens see which of all, bool [T, S + T], with S tokens before them.

    None where they are all there is and plain causality says the rest.
    """
    total = before + tokens
    if before == 0 and (window is None or tokens <= window):
        return None
    ahead_TS = torch.arange(total)[None] - torch.arange(before, total)[:, None]
    seen_TS = ahead_TS <= 0
    return seen_TS if window is None else seen_TS & (ahead_TS > -window)


def _without(mask_TS: Tensor | None, unseen_B: Tensor, tokens: int, before: int) -> Tensor:
    """Return a mask [B, 1, T, S + T] by which what fills a row up is seen by itself alone."""
    places = torch.arange(before + tokens)
    fills_BS = places[None] < unseen_B[:, None]
    apart_BTS = fills_BS[:, None, :] & ~fills_BS[:, before:, None]
    seen_TS = places[None] <= places[before:, None] if mask_TS is None else mask_TS
    return (seen_TS[None] & ~apart_BTS)[:, None]

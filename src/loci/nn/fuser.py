"""The network that adds what one model's cache knows to the cache of another.

Of each layer of the receiver there is one for keys and one for values; all are of one form, so they
are kept as one tensor a part and run together. Per token, with r of the receiver and s of the
sharer:

    h = block(W_in [s ; r]),   p = W_out block(h),   w = sigmoid(W_w block(h))    one w a head
    change = gate * w * p,     block(x) = x + W_down(silu(W_gate n) * (W_up n)),  n = rms_norm(x)

W_out starts at zero, so that an untrained network changes nothing. A gate is one number a layer,
drawn and differentiable while it is trained, open or closed afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import silu

BLOCKS = ("common", "change", "weigh")
GATE_START = 3.0  # open: at 0, what was trained little would be closed afterwards
DROPOUT = 0.1
_EPS = 1e-6

# Shapes: L layers of the receiver, 2 keys and values, N tokens of all rows, w numbers of a token's
# keys (or values) in one layer, s those of the sharer, h hidden, K key/value heads of the receiver.


@dataclass(frozen=True, kw_only=True)
class FuserShape:
    """Sizes of a fuser.

    Attributes:
        layers, heads, head_dim: of the receiver; heads are those of keys and values.
        given: numbers of a token's keys in one layer of the sharer.
        hidden: width of the network.
    """

    layers: int
    heads: int
    head_dim: int
    given: int
    hidden: int

    def table(self) -> dict[str, tuple[int, ...]]:
        """Return {name: shape} of every weight."""
        own, wide = self.heads * self.head_dim, self.hidden
        first = (self.layers, 2)
        found: dict[str, tuple[int, ...]] = {"in": (*first, wide, self.given + own)}
        for block in BLOCKS:
            found[f"{block}.norm"] = (*first, wide)
            found |= {f"{block}.{name}": (*first, wide, wide) for name in ("gate", "up", "down")}
        return found | {
            "out": (*first, own, wide),
            "weight": (*first, self.heads, wide),
            "gate": first,
        }

    def start(self, generator: Generator) -> dict[str, Tensor]:
        """Return weights from a generator; they change nothing yet."""
        found = {}
        for name, shape in self.table().items():
            if name == "gate":
                found[name] = torch.full(shape, GATE_START)
            elif name == "out":
                found[name] = torch.zeros(shape)
            elif name.endswith("norm"):
                found[name] = torch.ones(shape)
            else:
                found[name] = torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        return found


def change(
    weights: Mapping[str, Tensor],
    own_L2Nw: Tensor,
    given_L2Ns: Tensor,
    gate_L2: Tensor,
    *,
    generator: Generator | None = None,
) -> Tensor:
    """Return what is to be added to the receiver's keys and values, [L, 2, N, w].

    Args:
        weights: those of `FuserShape.table`, or of some of its layers.
        own_L2Nw: keys and values of the receiver.
        given_L2Ns: those of the sharer's layer that stands beside each.
        gate_L2: 0 to 1.
        generator: of what is left out in training; None leaves nothing out.
    """
    x = torch.cat([given_L2Ns, own_L2Nw], -1) @ weights["in"].mT
    x = _block(weights, "common", x, generator)
    pushed_L2Nw = _block(weights, "change", x, generator) @ weights["out"].mT
    says_L2NK = (_block(weights, "weigh", x, generator) @ weights["weight"].mT).sigmoid()
    heads = says_L2NK.shape[-1]
    parts = pushed_L2Nw.unflatten(-1, (heads, -1)) * says_L2NK.unsqueeze(-1)
    return parts.flatten(-2) * gate_L2[..., None, None]


def drawn_gate(logits_L2: Tensor, temperature: float, generator: Generator) -> Tensor:
    """Return gates between 0 and 1, one draw each: a relaxed Bernoulli with logistic noise."""
    tiny = torch.finfo(torch.float32).tiny
    chance = torch.rand(logits_L2.shape, generator=generator).clamp(tiny, 1 - 1e-7)
    noise = chance.log() - torch.log1p(-chance)
    return torch.sigmoid((logits_L2 + noise) / temperature)


def settled_gate(logits_L2: Tensor) -> Tensor:
    """Return gates after training: 1 where the logit is above 0, else 0."""
    return (logits_L2 > 0).to(logits_L2.dtype)


def _block(
    weights: Mapping[str, Tensor], name: str, x: Tensor, generator: Generator | None
) -> Tensor:
    scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _EPS)
    normed = scaled * weights[f"{name}.norm"].unsqueeze(-2)
    inner = silu(normed @ weights[f"{name}.gate"].mT) * (normed @ weights[f"{name}.up"].mT)
    if generator is not None:
        kept = torch.rand(inner.shape, generator=generator) >= DROPOUT
        inner = inner * kept / (1 - DROPOUT)
    return x + inner @ weights[f"{name}.down"].mT

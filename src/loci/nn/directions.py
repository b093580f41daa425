"""The directions in which something varies, best first, from pieces seen one after another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from loci.core.ports import Artefact, Lab

# Shapes: L layers, T tokens, K key/value heads, D head size, w = K D channels.


@dataclass(frozen=True, kw_only=True, eq=False)
class Directions:
    """Of each layer: directions [L, w, w] as rows, their energies [L, w], and the mean [L, w]."""

    ways: Tensor
    energy: Tensor
    mean: Tensor
    tokens: int

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the parts by name: "keys", "keys_energy", "keys_mean"."""
        return {name: self.ways, f"{name}_energy": self.energy, f"{name}_mean": self.mean}


def prepared_directions(lab: Lab, name: str) -> Artefact:
    """Return those of a model's keys, not rotated, and values, as what was prepared for `name`.

    Tensors: "keys" and "values" [L, w, w] with "_energy" and "_mean" [L, w] of each.
    """
    spec, texts, taps = lab.spec, lab.texts(), ("keys", "values")
    with lab.activations(texts, taps) as walk:
        found = directions_of(walk, taps, spec.layers, spec.kv_heads * spec.head_dim)
    tensors = found["keys"].tensors("keys") | found["values"].tensors("values")
    return lab.artefact(name, tensors, {"tokens": found["keys"].tokens, "texts": len(texts)})


def directions_of(
    walk: Iterable[tuple[str, int, Tensor]], taps: tuple[str, ...], layers: int, width: int
) -> dict[str, Directions]:
    """Return the directions of each tap: eigenvectors of the covariance, strongest first.

    Args:
        walk: (tap, layer, tensor [1, K, T, D]), each tap and layer as often as the others.
    """
    sums = {tap: torch.zeros(layers, width, dtype=torch.float64) for tap in taps}
    squares = {tap: torch.zeros(layers, width, width, dtype=torch.float64) for tap in taps}
    tokens = dict.fromkeys(taps, 0)
    for tap, layer, x_1KTD in walk:
        x_Tw = x_1KTD[0].transpose(0, 1).flatten(1).double()
        sums[tap][layer] += x_Tw.sum(0)
        squares[tap][layer] += x_Tw.t() @ x_Tw
        tokens[tap] += len(x_Tw) if layer == 0 else 0
    found = {}
    for tap in taps:
        mean = sums[tap] / tokens[tap]
        spread = squares[tap] / tokens[tap] - mean.unsqueeze(-1) * mean.unsqueeze(-2)
        energy, vectors = torch.linalg.eigh(spread)  # rising
        found[tap] = Directions(
            ways=vectors.flip(-1).mT.float().contiguous(),
            energy=energy.flip(-1).clamp(min=0).float().contiguous(),
            mean=mean.float(),
            tokens=tokens[tap],
        )
    return found

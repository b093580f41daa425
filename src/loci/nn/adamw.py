"""AdamW, with a state that can be laid down and taken up again.

I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv:1711.05101. torch has
it too, and loads its compiler for five seconds first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-8  # the paper's, as everywhere


class AdamW:
    """Steps of some tensors along their `grad`.

    Args:
        decay: share of the rate by which a tensor shrinks at every step.
    """

    def __init__(self, tensors: Sequence[Tensor], *, decay: float = 0.01) -> None:
        self._tensors, self._decay = list(tensors), decay
        self._means = [torch.zeros_like(tensor) for tensor in self._tensors]
        self._squares = [torch.zeros_like(tensor) for tensor in self._tensors]
        self.steps = 0

    def clip(self, most: float) -> float:
        """Scale all gradients so that their joint norm is at most `most`; return what it was."""
        grads = [tensor.grad for tensor in self._tensors if tensor.grad is not None]
        norm = float(torch.stack([grad.norm() for grad in grads]).norm())
        if norm > most:
            for grad in grads:
                grad.mul_(most / norm)
        return norm

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Take a step; a tensor without a gradient stays."""
        self.steps += 1
        one, two = BETAS
        first, second = 1 - one**self.steps, 1 - two**self.steps
        for tensor, mean, square in zip(self._tensors, self._means, self._squares, strict=True):
            if tensor.grad is None:
                continue
            mean.lerp_(tensor.grad, 1 - one)
            square.mul_(two).addcmul_(tensor.grad, tensor.grad, value=1 - two)
            tensor.mul_(1 - rate * self._decay)
            tensor.addcdiv_(mean, (square / second).sqrt_().add_(EPS), value=-rate / first)

    def clear(self) -> None:
        """Forget all gradients."""
        for tensor in self._tensors:
            tensor.grad = None

    def state(self) -> dict[str, Tensor]:
        """Return what a later step needs, beside `steps`."""
        named = {"mean": self._means, "square": self._squares}
        return {f"{at}.{name}": x for name, held in named.items() for at, x in enumerate(held)}

    def load(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Go on from a state."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.steps = steps

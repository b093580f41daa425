"""Fusers between two models, trained on what the receiver should answer.

Both models are frozen. In training the receiver answers over a prompt whose keys and values were
fused, all but those of the last token, and the cross entropy of its answer teaches the fuser. The
gates are drawn, and grow sharper from step to step, until they are open or closed.

An artefact holds the weights of one fuser for one receiver and one sharer, with the fingerprints of
both and the layers that stand beside each other. It serves these two in this order and nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from loci.core.spec import ModelSpec
from loci.errors import ParameterError
from loci.methods.kv.fuse import Cached, Fuse, Sharer
from loci.models.pack import Pack
from loci.nn.decoder import Linear, Pair, Vector, decode
from loci.nn.fuser import drawn_gate
from loci.nn.kv import KVBlock
from loci.run.artefacts import Artefact
from loci.run.calibrate import PackWeights
from loci.run.fuse import check_context, pair_of

Progress = Callable[[str, int, int], None]
SHARPEST = 1e-3  # temperature of the gates in the last step
KEPT_BYTES = 2**28  # of prompts that a model has read, kept from step to step

# Shapes: B batch, T tokens of a prompt without its last, R of an answer, L layers of the receiver,
# K key/value heads, D head size, d hidden, V vocabulary.


@dataclass(frozen=True, kw_only=True, eq=False)
class Frozen:
    """A model that is looked at and does not learn; weights as in `loci.nn.decoder`."""

    spec: ModelSpec
    linear: Linear
    vector: Vector
    embed_Vd: Tensor
    head_Vd: Tensor

    @classmethod
    def of(cls, pack: Pack) -> Frozen:
        """Return the model of a pack."""
        weights = PackWeights(pack)
        embed = weights.table("embed")
        head = embed if pack.spec.tied else weights.table("head")
        return cls(
            spec=pack.spec,
            linear=weights.plain,
            vector=weights.vector,
            embed_Vd=embed,
            head_Vd=head,
        )

    def cached(self, ids_BT: Tensor) -> Cached:
        """Return what the model keeps of some tokens at positions 0 to T - 1."""
        kept: list[Pair] = []
        with torch.no_grad():
            decode(self.spec, self.embed_Vd[ids_BT], self.linear, self.vector, kept=kept)
        places_BT = torch.arange(ids_BT.shape[1]).expand(ids_BT.shape)
        return Cached(spec=self.spec, blocks=[KVBlock(k, v, places_BT) for k, v in kept])

    def logits(self, ids_BR: Tensor, past: Sequence[Pair]) -> Tensor:
        """Return logits [B, R, V] of tokens that follow a past; gradients flow to the past."""
        embedded = self.embed_Vd[ids_BR]
        hidden = decode(self.spec, embedded, self.linear, self.vector, past=past)
        return hidden @ self.head_Vd.t()


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A prompt both models read, and what the receiver should answer.

    Attributes:
        prompt, response: token ids of the receiver.
        shared: the prompt in the sharer's tokens, as many; None where both have the same tokens.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    shared: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class FuserTraining:
    """How a fuser is trained.

    Attributes:
        steps: each on `batch` exchanges, which are taken in turns.
        rate: of AdamW, rising linearly over the first tenth, then falling to 0.
        decay: of weights.
        seed: of the weights at the start, the order of exchanges, the gates, what is left out.
    """

    steps: int = 500
    batch: int = 16
    rate: float = 1e-4
    decay: float = 0.01
    seed: int = 0


def train_fuser(
    receiver: Frozen,
    sharer: Frozen,
    exchanges: Sequence[Exchange],
    method: Fuse,
    training: FuserTraining | None = None,
    *,
    progress: Progress | None = None,
) -> Artefact:
    """Return a fuser from one model to another; its facts hold the loss of every step.

    Raises:
        ParameterError: if there is nothing to learn from, prompts of the two models differ in
            length, or a loss is not finite: then nothing of what was learned is kept.
    """
    training = training or FuserTraining()
    _check_exchanges(receiver.spec, sharer.spec, exchanges, training)
    generator = Generator().manual_seed(training.seed)
    weights = method.start(receiver.spec, sharer.spec, generator)
    for tensor in weights.values():
        tensor.requires_grad_(True)
    layers = method.layer_map(receiver.spec, sharer.spec)
    optimizer = torch.optim.AdamW(
        list(weights.values()), lr=training.rate, weight_decay=training.decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _line(training.steps))
    turns, losses = _turns(len(exchanges), training, generator), []
    own = _Prompts(receiver, [one.prompt for one in exchanges])
    theirs = _Prompts(sharer, [one.shared or one.prompt for one in exchanges])
    for step in range(training.steps):
        temperature = SHARPEST ** (step / max(1, training.steps - 1))
        gate_L2 = drawn_gate(weights["gate"], temperature, generator)
        total = torch.zeros(())
        for part in _alike(exchanges, next(turns)):
            share = len(part) / min(training.batch, len(exchanges))
            speaks = theirs.of(part)
            sharing = Sharer(spec=speaks.spec, blocks=speaks.blocks, weights=weights)
            held = own.of(part)
            added = method.added(held, sharing, layers, gate_L2, generator)
            lost = _loss(receiver, held, added, [exchanges[at] for at in part])
            total = total + share * lost
        if not torch.isfinite(total):
            raise ParameterError(
                "the loss of a step is not finite",
                value=f"step {step}",
                way_out=f"train with a smaller rate than {training.rate:g}",
            )
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(round(float(total.detach()), 5))
        if progress is not None:
            progress("training a fuser", step + 1, training.steps)
    return Artefact(
        method=method.preparation,
        fingerprint=pair_of(receiver.spec, sharer.spec),
        tensors={name: tensor.detach() for name, tensor in weights.items()},
        facts={
            "receiver": receiver.spec.fingerprint,
            "sharer": sharer.spec.fingerprint,
            "layer_map": list(layers),
            "losses": losses,
        },
    )


# -- private ----------------------------------------------------------------------------------


class _Prompts:
    """What a frozen model keeps of prompts but their last token; read once, while there is room."""

    def __init__(self, model: Frozen, prompts: Sequence[tuple[int, ...]]) -> None:
        self._model, self._prompts = model, prompts
        self._held: dict[int, Tensor] = {}  # [L, 2, K, T, D]
        self._room = KEPT_BYTES

    def of(self, which: Sequence[int]) -> Cached:
        """Return what is kept of some prompts of one length."""
        fresh = dict(self._held)
        missing = [at for at in which if at not in fresh]
        if missing:
            ids_BT = torch.tensor([self._prompts[at][:-1] for at in missing])
            blocks = self._model.cached(ids_BT).blocks
            read_L2BKTD = torch.stack([torch.stack([b.keys, b.values]) for b in blocks])
            for row, at in enumerate(missing):
                fresh[at] = read_L2BKTD[:, :, row].clone()
                if fresh[at].nbytes <= self._room:
                    self._room -= fresh[at].nbytes
                    self._held[at] = fresh[at]
        x_L2BKTD = torch.stack([fresh[at] for at in which], 2)
        places_BT = torch.arange(x_L2BKTD.shape[4]).expand(len(which), -1)
        blocks = [KVBlock(keys, values, places_BT) for keys, values in x_L2BKTD]
        return Cached(spec=self._model.spec, blocks=blocks)


def _loss(receiver: Frozen, own: Cached, added: Tensor, part: Sequence[Exchange]) -> Tensor:
    """Return the cross entropy of answers to prompts of one length, over a fused past."""
    response_BR = torch.tensor([one.response for one in part])
    last_B1 = torch.tensor([one.prompt[-1:] for one in part])
    past = [
        (block.keys + layer[0], block.values + layer[1])
        for block, layer in zip(own.blocks, added, strict=True)
    ]
    logits = receiver.logits(torch.cat([last_B1, response_BR[:, :-1]], 1), past)
    return cross_entropy(logits.flatten(0, 1), response_BR.flatten())


def _turns(count: int, training: FuserTraining, generator: Generator) -> Iterator[list[int]]:
    """Yield batches of indices; every exchange comes once before any comes again."""
    order: list[int] = []
    while True:
        batch: list[int] = []
        while len(batch) < min(training.batch, count):
            order = order or torch.randperm(count, generator=generator).tolist()
            batch.append(order.pop())
        yield batch


def _alike(exchanges: Sequence[Exchange], batch: Sequence[int]) -> list[list[int]]:
    """Return a batch in parts of equal lengths, so that nothing is padded."""
    parts: dict[tuple[int, int], list[int]] = {}
    for at in batch:
        one = exchanges[at]
        parts.setdefault((len(one.prompt), len(one.response)), []).append(at)
    return list(parts.values())


def _check_exchanges(
    receiver: ModelSpec, sharer: ModelSpec, exchanges: Sequence[Exchange], training: FuserTraining
) -> None:
    if not exchanges or training.steps < 1 or training.batch < 1:
        raise ParameterError(
            "a fuser learns from at least one exchange, in at least one step",
            value=(len(exchanges), training.steps, training.batch),
        )
    for one in exchanges:
        if len(one.prompt) < 2 or not one.response:
            raise ParameterError(
                "an exchange has a prompt of two tokens or more, and an answer",
                value=(len(one.prompt), len(one.response)),
            )
        if one.shared is not None and len(one.shared) != len(one.prompt):
            raise ParameterError(
                "both models must read the same number of tokens",
                value=(len(one.prompt), len(one.shared)),
                way_out="align the prompt: loci.models.align",
            )
        check_context(sharer, len(one.prompt))
        check_context(receiver, len(one.prompt) + len(one.response))


def _line(steps: int) -> Callable[[int], float]:
    """Return the factor of the rate at each step."""
    rise = max(1, steps // 10)
    return lambda step: min((step + 1) / rise, (steps - step) / max(1, steps - rise))

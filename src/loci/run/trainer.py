"""The small trainer: thin products beside packed weights learn to say what texts ask for.

E. Hu et al., "LoRA", 2021, arXiv:2106.09685. Of each chosen linear layer W stays as it is, packed,
and A [r, in] and B [out, r] learn beside it,

    y = x W^T + (alpha / r) (x A^T) B^T,      A random, B zero,

on the cross entropy of target tokens alone; what stands before them is read, not learned. Beside
it stands, where texts to retain are given, the KL to the model without the adapter on those texts.

Every draw depends on the seed and the step alone, so a training that was cut off goes on from its
state as if nothing had happened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Generator, Tensor

from loci.errors import ContextError, NotFoundError, ParameterError
from loci.models.pack import Pack
from loci.nn.adamw import AdamW
from loci.nn.lmhead import head_loss
from loci.nn.patch import Patch
from loci.run import artefacts
from loci.run.artefacts import Artefact
from loci.run.learner import Learner, Sample, parts

Progress = Callable[[str, int, int], None]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")

# Shapes: n target tokens, m of a part, d hidden, V vocabulary, r rank, N outputs, K inputs.


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What learns, and how.

    Attributes:
        layers: (first, last), both included; None is all. Fewer low ones make training faster.
        alpha: the product counts alpha / rank times.
        steps: each on `batch` samples; all come once before any comes again.
        rate: of AdamW, falling to 0 along a cosine after a short rise.
        dropout: share of the inputs of A that a step leaves out.
        retain: weight of the KL on texts to retain, per token; `retain_tokens` of them a step.
        every: steps from one look at the held-out samples to the next, and from one saved state to
            the next.
        patience: looks without a smaller held-out loss after which training stops; None never.
        enough: a held-out loss at which training stops.
    """

    linears: tuple[str, ...] = ("q_proj", "v_proj")
    layers: tuple[int, int] | None = None
    rank: int = 8
    alpha: float = 16.0
    steps: int = 100
    batch: int = 8
    rate: float = 3e-4
    decay: float = 0.01
    dropout: float = 0.0
    clip: float = 1.0
    retain: float = 1.0
    retain_tokens: int = 64
    every: int = 20
    patience: int | None = None
    enough: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What training gave.

    Attributes:
        patch: float32, of the step with the least held-out loss, or of the last one.
        losses, kls: of every step as the model was then, nats per token.
        held_out: (step, loss) of every look.
        step: which step the patch is of.
    """

    patch: Patch
    losses: tuple[float, ...]
    kls: tuple[float, ...] = ()
    held_out: tuple[tuple[int, float], ...] = ()
    step: int = 0


def train(
    pack: Pack,
    samples: Sequence[Sample],
    recipe: Recipe | None = None,
    *,
    retain: Sequence[Sample] = (),
    held_out: Sequence[Sample] = (),
    state: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Return what was learned from the samples as a patch of the pack's model.

    Args:
        retain: samples whose targets should stay as likely as without the patch, and so should all
            that could stand in their place.
        held_out: samples that are not learned, by which the best step is found.
        state: a file that a training which is cut off goes on from; it is gone at the end.

    Raises:
        ParameterError: if there is nothing to learn or to train, or a loss is not finite: then
            nothing of what was learned is kept.
        ContextError: if a text is longer than the model reads.
        FingerprintError: if the state is of another training.
    """
    recipe = recipe or Recipe()
    _check(pack, samples, held_out, retain, recipe)
    run = _Run(pack, recipe, _digest(samples, held_out, retain, recipe))
    if state is not None:
        run.resume(state)
    while run.step < recipe.steps and not run.is_done:
        part = [samples[at] for at in turn(len(samples), recipe.batch, run.step, recipe.seed)]
        run.take(part, retain)
        if progress is not None:
            progress("training an adapter", run.step, recipe.steps)
        if run.step % recipe.every == 0 or run.step == recipe.steps:
            if held_out:
                run.look(held_out)
            if state is not None and run.step < recipe.steps:
                run.save(state)
    if state is not None:
        state.unlink(missing_ok=True)
    return run.result()


def turn(count: int, batch: int, step: int, seed: int) -> list[int]:
    """Return which samples a step takes; every one comes once before any comes again."""
    batch = min(batch, count)
    found: list[int] = []
    at = step * batch
    while len(found) < batch:
        generator = Generator().manual_seed(seed * 1_000_003 + at // count)
        order = torch.randperm(count, generator=generator).tolist()
        more = order[at % count :][: batch - len(found)]
        found += more
        at += len(more)
    return found


def cosine(steps: int) -> Callable[[int], float]:
    """Return the factor of the rate at each step: a short rise, then down to 0 along a cosine."""
    rise = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor


# -- private ----------------------------------------------------------------------------------


class _Run:
    """One training, from step to step."""

    def __init__(self, pack: Pack, recipe: Recipe, digest: str) -> None:
        self._recipe, self._digest, self._fingerprint = recipe, digest, pack.spec.fingerprint
        self._model = Learner(pack, _thin(pack, recipe), recipe.alpha / recipe.rank)
        self._plain = Learner(pack, {})
        self._model.dropout = recipe.dropout
        self._tensors = [tensor for pair in self._model.thin.values() for tensor in pair]
        self._optimizer = AdamW(self._tensors, decay=recipe.decay)
        self._factor = cosine(recipe.steps)
        self._taught: dict[Sample, Tensor] = {}
        self.step, self.is_done = 0, False
        self.losses: list[float] = []
        self.kls: list[float] = []
        self.looks: list[tuple[int, float]] = []
        self._best: tuple[int, list[Tensor]] | None = None

    def take(self, samples: Sequence[Sample], retain: Sequence[Sample]) -> None:
        """Learn one step."""
        recipe, model = self._recipe, self._model
        model.generator.manual_seed(recipe.seed * 1_000_003 + self.step)
        self._optimizer.clear()
        total = sum(len(one.target) for one in samples)
        loss = 0.0
        for part in parts(samples):
            hidden_nd, wanted_n = model.answers(part)

            def missed(logs_mV: Tensor, which: slice, wanted_n: Tensor = wanted_n) -> Tensor:
                return -logs_mV.gather(1, wanted_n[which, None]).sum() / total

            value, slope_nd = head_loss(hidden_nd, model.head, missed)
            loss += value
            self._back(hidden_nd, slope_nd)
        self.losses.append(round(loss, 5))
        if retain and recipe.retain > 0:
            self.kls.append(round(self._keep(retain), 6))
        self._optimizer.clip(recipe.clip)
        self._optimizer.step(recipe.rate * self._factor(self.step))
        self.step += 1

    def _keep(self, retain: Sequence[Sample]) -> float:
        """Go back from the KL on one sample to retain, of some of its target tokens."""
        recipe, model = self._recipe, self._model
        one = retain[turn(len(retain), 1, self.step, recipe.seed)[0]]
        draw = Generator().manual_seed(recipe.seed * 1_000_003 + self.step)
        rows_n = torch.randperm(len(one.target), generator=draw)[: recipe.retain_tokens]
        if one not in self._taught:
            with torch.no_grad():
                self._taught[one] = self._plain.answers([one])[0]
        taught_nd = self._taught[one][rows_n]
        hidden_nd = model.answers([one])[0][rows_n]

        def apart(logs_mV: Tensor, which: slice) -> Tensor:
            with torch.no_grad():
                real_mV = torch.log_softmax(model.head(taught_nd[which]), -1)
            return recipe.retain * (real_mV.exp() * (real_mV - logs_mV)).sum() / len(rows_n)

        value, slope_nd = head_loss(hidden_nd, model.head, apart)
        self._back(hidden_nd, slope_nd)
        return value / recipe.retain

    def _back(self, hidden_nd: Tensor, slope_nd: Tensor) -> None:
        if not torch.isfinite(slope_nd).all():
            raise ParameterError(
                "the loss of a step is not finite",
                value=f"step {self.step}",
                way_out=f"train with a smaller rate than {self._recipe.rate:g}",
            )
        hidden_nd.backward(slope_nd)  # type: ignore[no-untyped-call]

    def look(self, held_out: Sequence[Sample]) -> None:
        """See what the held-out samples lose; keep the best step, and say when to stop."""
        self._model.dropout = 0.0
        loss = self._model.loss(held_out)
        self._model.dropout = self._recipe.dropout
        if not math.isfinite(loss):
            raise ParameterError("the loss of held-out samples is not finite", value=self.step)
        best = min((value for _, value in self.looks), default=math.inf)
        self.looks.append((self.step, round(loss, 5)))
        if loss < best:
            self._best = self.step, [tensor.detach().clone() for tensor in self._tensors]
        since = len(self.looks) - 1 - min(range(len(self.looks)), key=lambda at: self.looks[at][1])
        patience = self._recipe.patience
        self.is_done = loss <= self._recipe.enough or (patience is not None and since >= patience)

    def result(self) -> Trained:
        """Return the best step."""
        step, tensors = self._best or (self.step, [t.detach() for t in self._tensors])
        pairs = zip(tensors[::2], tensors[1::2], strict=True)
        found = {
            name: (left * self._model.scale, right.clone())
            for name, (left, right) in zip(self._model.thin, pairs, strict=True)
        }
        if not all(torch.isfinite(t).all() for pair in found.values() for t in pair):
            raise ParameterError(
                "what was learned is not finite", way_out="train with a smaller rate"
            )
        return Trained(
            patch=Patch(found),
            losses=tuple(self.losses),
            kls=tuple(self.kls),
            held_out=tuple(self.looks),
            step=step,
        )

    # -- a training that is cut off ------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write everything the next step needs."""
        tensors = self._optimizer.state()
        for at, tensor in enumerate(self._tensors):
            tensors[f"{at}.now"] = tensor.detach()
            if self._best is not None:
                tensors[f"{at}.best"] = self._best[1][at]
        facts = {
            "step": self.step,
            "losses": self.losses,
            "kls": self.kls,
            "looks": self.looks,
            "best": None if self._best is None else self._best[0],
        }
        artefacts.save(
            Artefact(
                method=self._digest, fingerprint=self._fingerprint, tensors=tensors, facts=facts
            ),
            path,
        )

    def resume(self, path: Path) -> None:
        """Go on from a state, if there is one."""
        try:
            found = artefacts.load(path, method=self._digest, fingerprint=self._fingerprint)
        except NotFoundError:
            return
        facts = found.facts
        with torch.no_grad():
            for at, tensor in enumerate(self._tensors):
                tensor.copy_(found.tensors[f"{at}.now"])
        self._optimizer.load(found.tensors, facts["step"])
        self.step = facts["step"]
        self.losses, self.kls = list(facts["losses"]), list(facts["kls"])
        self.looks = [(step, loss) for step, loss in facts["looks"]]
        if facts["best"] is not None:
            best = [found.tensors[f"{at}.best"].clone() for at in range(len(self._tensors))]
            self._best = facts["best"], best


def _thin(pack: Pack, recipe: Recipe) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the products before the first step: A random, B zero."""
    generator = Generator().manual_seed(recipe.seed)
    shapes = pack.spec.layer_linears()
    first, last = recipe.layers or (0, pack.spec.layers - 1)
    found = {}
    for index in range(first, last + 1):
        for name in recipe.linears:
            out, inner = shapes[name]
            right_rK = torch.randn(recipe.rank, inner, generator=generator) / math.sqrt(inner)
            found[f"layer.{index}.{name}"] = (
                torch.zeros(out, recipe.rank).requires_grad_(True),
                right_rK.requires_grad_(True),
            )
    return found


def _digest(*data: object) -> str:
    """Return what tells one training from another."""
    plain = json.dumps(data, default=lambda x: asdict(x), sort_keys=True)
    return "training " + blake2b(plain.encode(), digest_size=16).hexdigest()


def _check(
    pack: Pack,
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    retain: Sequence[Sample],
    recipe: Recipe,
) -> None:
    spec = pack.spec
    known = spec.layer_linears()
    first, last = recipe.layers or (0, spec.layers - 1)
    wrong: Mapping[str, bool] = {
        "an adapter learns from at least one sample, in at least one step": not samples
        or min(recipe.steps, recipe.batch, recipe.every) < 1,
        "an adapter is of rank 1 or more, of layers the model has": recipe.rank < 1
        or not recipe.linears
        or not set(recipe.linears) <= set(known)
        or not 0 <= first <= last < spec.layers,
        "rate and clip are above 0, dropout is below 1": not (recipe.rate > 0 and recipe.clip > 0)
        or not 0 <= recipe.dropout < 1,
        "a sample has a prompt and a target": not all(
            one.prompt and one.target for one in (*samples, *held_out, *retain)
        ),
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise ParameterError(
                what,
                value=recipe,
                allowed=f"layers 0 to {spec.layers - 1}, {', '.join(known)}",
            )
    longest = max(len(one.prompt) + len(one.target) for one in (*samples, *held_out, *retain))
    if longest > spec.max_context:
        raise ContextError(
            f"a text to learn from has {longest:,} tokens; {spec.name} reads {spec.max_context:,}",
            allowed=f"at most {spec.max_context:,} tokens",
            way_out="cut it into parts",
        )

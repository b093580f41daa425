"""CompressKV: let only the heads that fetch evidence decide what stays, and give lossy layers more.

X. Lin et al., "CompressKV: Semantic Retrieval Heads Know What Tokens Are Not Important Before
Generation", 2025, arXiv:2508.02401.

Most heads look at sinks and neighbours, and drown in a mean those few that look where the answer
stands. Once for a model, hide needles in a haystack, ask, and add up what each query head gives to
the whole sentence of the needle while the answer is read:

    head[l, h] = mean over answers of sum over t in needle of softmax(q . k[t] / sqrt(D))

The best `heads` of a layer then score for all: what the last `window` queries give to each token,
summed, smoothed, the mean over those heads; every KV head of the layer keeps the same tokens.
Layers whose output suffers most when everything is cut alike (errors e, adding up to 1) get more:

    tokens[l] = 32 + e[l] (total - 32 L),   at least 32, at most three times the even share

Differs from the paper: answers are given (teacher forcing), so nothing depends on what the model
would say; a prompt longer than the budget is read in chunks, and the end of each chunk votes.
Not for: prompts whose question comes after compression; the window cannot see it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from loci.core.method import About, Granularity, Kind, Need, Param, Phase
from loci.core.spec import ModelSpec
from loci.methods.kv.base import Select, Shapes

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from loci.core.ports import Artefact, Lab
    from loci.nn.kv import KVView, Seen

LEAST = 32  # tokens of every layer; as the paper's code
MOST = 3.0  # times the even share; as the paper's code
PLACES = ("Lisbon", "Kyoto", "Oslo", "Cairo", "Quito", "Perth", "Dublin", "Havana")
DEEDS = (
    "eat a sandwich on the old pier",
    "climb the tower before the sun rises",
    "listen to the choir in the cathedral",
    "buy oranges at the night market",
    "row a boat under the seven bridges",
    "feed the horses behind the castle",
)
_LENGTHS = (160, 280, 400)  # tokens of haystack
_DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
_CUT_TEXTS, _CUT_TOKENS, _READ_ON, _CUT_SHARE = 6, 384, 16, 0.125  # where layers' errors come from

# Shapes: B batch, L layers, H query heads, K key/value heads, S stored tokens, W window, D head
# size, h chosen heads, t tokens that ask, d hidden.


@dataclass(frozen=True, kw_only=True)
class CompressKV(Select):
    """Votes of semantic retrieval heads; layers get tokens by what cutting costs them."""

    about = About(
        name="compresskv",
        kind=Kind.KV,
        paper="arXiv:2508.02401",
        idea="a few heads per layer fetch evidence; only they say which tokens stay",
        phases=(Phase.PREFILL,),
        needs=(Need.QUERIES, Need.ARTEFACT),
        reconstruction="needles and their answers, the share at which layers' errors are measured",
    )
    granularity: ClassVar[Granularity] = Granularity.LAYER
    allocates: ClassVar[Granularity | None] = Granularity.LAYER

    heads: Annotated[
        int, Param(help="query heads of a layer that vote", ge=1, source="code: first_k")
    ] = 4
    window: Annotated[
        int, Param(help="last queries that vote", unit="tokens", ge=1, source="code")
    ] = 8
    kernel: Annotated[
        int, Param(help="width of the smoothing", unit="tokens", ge=1, odd=True, source="code")
    ] = 5
    layers: Annotated[
        str,
        Param(help="what layers get: by their errors, or all the same", choices=("own", "even")),
    ] = "own"
    needles: Annotated[int, Param(help="needles the heads are found with", ge=2)] = 48

    @property
    def preparation(self) -> str:
        """The needles decide; how many heads vote is chosen later."""
        return f"{self.about.name}(needles={self.needles})"

    def prepare(self, lab: Lab) -> Artefact:
        """Return what each head gives to needles [L, H], and the errors of layers [L].

        Among the facts, `overlap` is the share of the three best heads of a layer on which the two
        halves of the needles agree.
        """
        import torch

        shape = (2, lab.spec.layers, lab.spec.heads)
        found = torch.zeros(shape)
        for index, (ids, span, answer) in enumerate(_asked(lab, self.needles)):
            for layer, (weights_HtS, _) in enumerate(lab.attention(ids, answer)):
                given_H = weights_HtS[:, :, span.start : span.stop].sum(-1).mean(-1)
                found[index % 2, layer] += given_H / self.needles
        top = min(3, lab.spec.heads)
        halves = [half.topk(top).indices.tolist() for half in found]
        agree = [len({*a} & {*b}) / top for a, b in zip(*halves, strict=True)]
        scores_LH = found.sum(0)
        tensors = {"heads": scores_LH, "errors": _errors(lab, scores_LH, self.window, self.kernel)}
        facts = {"needles": self.needles, "overlap": sum(agree) / len(agree)}
        return lab.artefact(self.preparation, tensors, facts)

    def shared_table(self, spec: ModelSpec) -> Shapes:
        """Return the heads that vote, and the errors of layers."""
        voting = min(self.heads, spec.heads)
        return {"heads": ((spec.layers, voting), "int32"), "errors": ((spec.layers,), "float32")}

    def shared(self, spec: ModelSpec, artefact: Artefact | None) -> Mapping[str, Tensor]:
        """Return the best heads of each layer; all heads vote (-1) where none gave anything."""
        assert artefact is not None
        found = dict(artefact.tensors)
        if "heads" in found:
            best_Lh = found["heads"].topk(min(self.heads, spec.heads)).indices.int()
            found["heads"] = best_Lh.masked_fill(found["heads"].amax(1, keepdim=True) <= 0, -1)
        return found

    def protects(self) -> int:
        """Return the window."""
        return self.window

    def score(self, view: KVView, seen: Seen | None, generator: Generator | None = None) -> Tensor:
        """Return smoothed votes of the chosen heads, alike for all heads; the window stays."""
        from torch.nn.functional import avg_pool1d

        from loci.nn.attend import head_votes

        assert seen is not None and seen.queries is not None
        last_BW = seen.positions[:, -self.window :]
        votes_BHS = head_votes(seen.queries[:, :, -self.window :], view, last_BW)
        heads = seen.prepared["heads"][seen.layer].tolist()
        chosen_BhS = votes_BHS if heads[0] < 0 else votes_BHS[:, heads]
        votes_BhS = avg_pool1d(
            chosen_BhS, self.kernel, stride=1, padding=self.kernel // 2, count_include_pad=False
        )
        votes_BKS = votes_BhS.mean(1, keepdim=True).expand(-1, view.heads, -1)
        first_B11 = seen.positions[:, -1:, None] - self.window + 1
        return votes_BKS.masked_fill(view.positions() >= first_B11, math.inf)

    def allocate(
        self,
        scores: Sequence[Tensor] | None,
        tokens: int,
        spec: ModelSpec,
        prepared: Mapping[str, Tensor],
        *,
        context: int,
    ) -> Sequence[float] | None:
        """Return tokens by errors, once, before the first token."""
        if scores is not None:
            return None
        if self.layers == "even":
            return [float(tokens)] * spec.layers
        return budgets(prepared["errors"].tolist(), tokens)


def budgets(errors: Sequence[float], tokens: int) -> list[float]:
    """Return the tokens of each layer, in total `tokens` times the number of layers.

    What a layer may not take beyond three times the even share goes to the others by their errors.
    """
    count, least = len(errors), float(min(LEAST, tokens))
    left = tokens * count - least * count
    found = [least] * count
    open_layers = [at for at in range(count) if errors[at] > 0] or list(range(count))
    while left > 1e-9 and open_layers:
        weight = sum(errors[at] for at in open_layers)
        shares = {at: errors[at] / weight if weight else 1 / len(open_layers) for at in open_layers}
        full = [at for at in open_layers if found[at] + left * shares[at] > MOST * tokens]
        if not full:
            for at in open_layers:
                found[at] += left * shares[at]
            return found
        for at in full:
            left -= MOST * tokens - found[at]
            found[at] = MOST * tokens
        open_layers = [at for at in open_layers if at not in full]
        if not open_layers:  # those without an error take what is left
            open_layers = [at for at in range(count) if found[at] < MOST * tokens]
    return found


def _asked(lab: Lab, count: int) -> Iterator[tuple[list[int], range, int]]:
    """Yield prompts with their answers, where the needle stands, and how many tokens answer."""
    draw, texts = random.Random(0), lab.texts()
    for index in range(count):
        place, deed = PLACES[index % len(PLACES)], DEEDS[draw.randrange(len(DEEDS))]
        hay = list(lab.encode(texts[index % len(texts)]))[: _LENGTHS[index % len(_LENGTHS)]]
        needle = lab.encode(f"\nThe best thing to do in {place} is to {deed}.\n")
        question = lab.encode(
            f"\n\nWhat is the best thing to do in {place}?\nThe best thing to do in {place} is to"
        )
        answer = lab.encode(f" {deed}")
        middle = int(len(hay) * _DEPTHS[index % len(_DEPTHS)])
        ids = [*hay[:middle], *needle, *hay[middle:], *question, *answer[:-1]]
        yield ids, range(middle, middle + len(needle)), len(answer)


def _errors(lab: Lab, scores_LH: Tensor, window: int, kernel: int) -> Tensor:
    """Return by how much each layer's output changes when all are cut alike, adding up to 1."""
    import torch
    from torch.nn.functional import avg_pool1d

    spec, errors = lab.spec, torch.zeros(lab.spec.layers)
    best = scores_LH.topk(min(4, spec.heads)).indices.tolist()
    for text in lab.texts()[:_CUT_TEXTS]:
        ids = lab.encode(text)[: _CUT_TOKENS + _READ_ON]
        past = len(ids) - _READ_ON - window  # tokens that may be cut
        keep = max(1, int(_CUT_SHARE * past))
        for layer, (weights_HtS, values_KSD) in enumerate(lab.attention(ids, window + _READ_ON)):
            votes_hS = weights_HtS[best[layer], :window, :past].sum(1)
            votes_hS = avg_pool1d(
                votes_hS, kernel, stride=1, padding=kernel // 2, count_include_pad=False
            )
            kept_S = torch.zeros(len(ids), dtype=torch.bool)
            kept_S[votes_hS.mean(0).topk(min(keep, past)).indices] = True
            kept_S[past:] = True
            full_HtS = weights_HtS[:, window:]
            cut_HtS = full_HtS * kept_S
            cut_HtS = cut_HtS / cut_HtS.sum(-1, keepdim=True).clamp(min=1e-9)
            values_HSD = values_KSD.repeat_interleave(spec.groups, 0)
            project_dw = lab.weights(f"layer.{layer}.o_proj")
            outputs = [
                (w_HtS @ values_HSD).transpose(0, 1).flatten(1) @ project_dw.t()
                for w_HtS in (full_HtS, cut_HtS)
            ]
            change_t = (outputs[1] - outputs[0]).norm(dim=-1)
            errors[layer] += (change_t / (outputs[0].norm(dim=-1) + 1e-5)).mean()
    return errors / errors.sum().clamp(min=1e-9)

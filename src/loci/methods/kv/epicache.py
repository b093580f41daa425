"""EpiCache: a long conversation in several small caches, one for each of its episodes.

M. Kim et al., "EpiCache: Episodic KV Cache Management for Long Conversational Question Answering",
2025, arXiv:2509.17396.

Segments of a few utterances are embedded and clustered; a cluster is an episode. The segments most
like its middle, in order of time, are its patched prompt: what a question about the episode would
look at. The whole history is then read once for each episode, block by block. After a block the
patched prompt runs against the cache and is not kept, and each entry is judged by the most that any
of its queries, in any query head of the group, gives to it among the entries:

    score[t] = max over queries of softmax(q . k)[t],     the best M entries of a layer stay

`pair` compares the entries of all heads of a layer, so that heads keep numbers of their own
(each at least one); `even` gives every head M. So no layer ever holds more than M and a block. The
caches are put away, and a question brings back the one whose middle is most like it.

Layers may share entries by how much their keys depend on what is far away (`layers=own`): s is the
cosine between keys of a text read whole and read from its middle on, in windows of 100 tokens, and

    M[l] ~ (1 - (s[l] - min s) / (max s - min s))^sharpness,      at least M / 4

Differs from the paper: the first `sinks` tokens always stay; a cache leaves a little room, so M is
met by an eviction and not at each token; the reading from the middle on stands for a block mask
(reconstruction); shares are scaled again after the floor. A question below `threshold` is said to
be far, and whoever asks answers it from the text.
Not for: batches, or a history that the cache could hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from loci.core.method import About, Kind, Need, Param, Phase
from loci.core.spec import ModelSpec
from loci.errors import ContextError, ParameterError
from loci.methods.kv._patched import PatchedPrompt, PatchedPromptByHead, PatchedPromptByLayer
from loci.methods.kv.base import Shapes
from loci.methods.kv.read import CacheSet, Read, Reader, Route

if TYPE_CHECKING:
    from torch import Tensor

    from loci.core.ports import Artefact, Lab

ASK = "\n\nWhat is essential in this conversation? In short:\n"  # before a patched prompt
LONG = 500  # characters of an utterance from which on its sentences are parted
_WINDOW = 100  # tokens whose keys are compared together
_SENTENCES = re.compile(r"(?<=[.!?])\s+")

# Shapes: E episodes, n segments, w width, K key/value heads, S stored tokens, L layers.


@dataclass(frozen=True, kw_only=True)
class EpiCache(Read):
    """One cache an episode; the question's episode answers."""

    about = About(
        name="epicache",
        kind=Kind.KV,
        paper="arXiv:2509.17396",
        idea="a conversation has episodes: a small cache for each, and a question picks one",
        phases=(Phase.PREFILL,),
        needs=(Need.PROBE, Need.EMBEDDER),
        reconstruction="how layers' sensitivities are measured; the words before a patched prompt",
    )

    episodes: Annotated[int, Param(help="clusters, and caches", ge=1, source="section 4")] = 4
    utterances: Annotated[
        int, Param(help="utterances of a segment", ge=1, source="code: conv_window")
    ] = 4
    medoids: Annotated[
        int, Param(help="segments of a patched prompt", ge=1, source="code: n_medoid")
    ] = 4
    heads: Annotated[
        str,
        Param(help="heads of a layer share its entries, or have as many each",
              choices=("pair", "even"), source="code"),
    ] = "pair"  # fmt: skip
    layers: Annotated[
        str,
        Param(help="what layers get: by their sensitivity, or all the same",
              choices=("even", "own")),
    ] = "even"  # fmt: skip
    sharpness: Annotated[
        float, Param(help="how much more sensitive layers get", ge=0.0, source="code: alpha")
    ] = 1.1
    sinks: Annotated[int, Param(help="first tokens that always stay", unit="tokens", ge=0)] = 4
    threshold: Annotated[
        float, Param(help="similarity below which a question is like no episode", ge=-1.0, le=1.0)
    ] = 0.2

    @property
    def preparation(self) -> str:
        """Sensitivities are the model's alone."""
        return self.about.name

    def prepare(self, lab: Lab) -> Artefact:
        """Return the similarity of each layer's keys with and without what is far away, [L]."""
        import torch

        sums_L, count = torch.zeros(lab.spec.layers), 0
        for text in lab.texts():
            halves = (text, text[len(text) // 2 :])
            keys: list[dict[int, Tensor]] = [{}, {}]
            for held, part in zip(keys, halves, strict=True):
                with lab.activations([part], ("keys",)) as found:
                    held.update({layer: tensor.clone() for _, layer, tensor in found})
            last = min(keys[1][0].shape[2], keys[0][0].shape[2] // 2) // _WINDOW * _WINDOW
            if not last:
                continue
            for layer in range(lab.spec.layers):
                windows = [
                    held[layer][0, :, -last:].unflatten(1, (-1, _WINDOW)).flatten(2)
                    for held in keys
                ]
                sums_L[layer] += torch.cosine_similarity(windows[0], windows[1], dim=-1).mean()
            count += 1
        if not count:
            raise ParameterError(
                "these texts are too short to see what layers need", allowed=f">= {2 * _WINDOW}"
            )
        return lab.artefact(self.preparation, {"similarity": sums_L / count}, {"texts": count})

    def shared_table(self, spec: ModelSpec) -> Shapes:
        """Return nothing: what layers get is part of what selects."""
        return {}

    def segments(self, history: Sequence[str]) -> list[str]:
        """Return texts of a few utterances each; long ones count by their sentences."""
        parts: list[str] = []
        for said in history:
            parts += _SENTENCES.split(said) if len(said) > LONG else [said]
        step = self.utterances
        return ["\n".join(parts[at : at + step]) for at in range(0, len(parts), step)]

    def read(
        self,
        reader: Reader,
        history: Sequence[str],
        tokens: int,
        artefact: Artefact | None = None,
    ) -> CacheSet:
        """Cluster, then read the whole history once for each episode."""
        import torch

        from loci.nn.kmeans import kmeans

        if not history or tokens < 1:
            raise ParameterError("there is nothing to read", value=(len(history), tokens))
        if self.layers == "own" and artefact is None:
            raise ParameterError(
                f"{self} must know how sensitive layers are",
                way_out=f"loci methods prepare '{self}'",
            )
        shares = () if self.layers == "even" else self._shares(artefact, tokens)
        segments = self.segments(history)
        vectors_nw = reader.embed(segments)
        of_n = kmeans(vectors_nw, self.episodes)
        ids = [token for said in history for token in reader.encode(f"{said}\n")]
        middles, selects = [], []
        for episode in range(int(of_n.max()) + 1):
            middle_w = torch.nn.functional.normalize(vectors_nw[of_n == episode].mean(0), dim=0)
            middles.append(middle_w)
            likeness_n = (vectors_nw @ middle_w).masked_fill(of_n != episode, -math.inf)
            count = min(self.medoids, int((of_n == episode).sum()))
            best = sorted(likeness_n.topk(count).indices.tolist())
            prompt = reader.encode(ASK + "\n".join(segments[at] for at in best))
            selects.append(self._select(prompt, shares))
        longest = len(ids) + max(len(select.ids) for select in selects)
        if longest > reader.spec.max_context:
            raise ContextError(
                "the history and a patched prompt are longer than the model reads",
                value=longest,
                allowed=f"<= {reader.spec.max_context} tokens",
                way_out="fewer medoids, or leave out the oldest turns",
            )
        names = tuple(f"episode {number}" for number in range(len(selects)))
        for name, select in zip(names, selects, strict=True):
            reader.read(name, select, ids, tokens)
        return CacheSet(
            centroids=torch.stack(middles),
            names=names,
            selects=tuple(selects),
            segments=len(segments),
            of_segment=tuple(of_n.tolist()),
        )

    def route(self, question: Tensor, held: CacheSet) -> Route:
        """Return the episode whose middle is most like the question."""
        likeness_E = held.centroids @ question
        best = int(likeness_E.argmax())
        similarity = float(likeness_E[best])
        return Route(cache=best, similarity=similarity, is_far=similarity < self.threshold)

    def _select(self, prompt: Sequence[int], shares: tuple[float, ...]) -> PatchedPrompt:
        ids = tuple(prompt)
        if self.heads == "pair":
            return PatchedPromptByHead(ids=ids, sinks=self.sinks, shares=shares)
        if shares:
            return PatchedPromptByLayer(ids=ids, sinks=self.sinks, shares=shares)
        return PatchedPrompt(ids=ids, sinks=self.sinks)

    def _shares(self, artefact: Artefact | None, tokens: int) -> tuple[float, ...]:
        """Return what layers get, 1 on average and a quarter at least."""
        assert artefact is not None
        similar = artefact.tensors["similarity"].tolist()
        low, high = min(similar), max(similar)
        wide = high - low
        weights = [(1 - (s - low) / wide) ** self.sharpness if wide > 0 else 1.0 for s in similar]
        return tuple(_floored(weights, 0.25))


def _floored(weights: Sequence[float], least: float) -> list[float]:
    """Return shares in proportion to weights, 1 on average and none below `least`."""
    count, low = len(weights), set[int]()
    while True:
        total = sum(w for at, w in enumerate(weights) if at not in low)
        left = count - least * len(low)
        scale = left / total if total > 0 else 0.0
        fresh = {at for at, w in enumerate(weights) if at not in low and w * scale < least}
        if not fresh:
            return [least if at in low else w * scale for at, w in enumerate(weights)]
        low |= fresh

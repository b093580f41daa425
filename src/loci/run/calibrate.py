"""Calibration: what flows through a model on some text, and how much each output matters.

Two passes give everything that quantisation methods ask for. `statistics` runs texts through the
whole model, forward and back. `walk` runs them layer by layer while weights are replaced on the
way, so that every later layer is shown what the changed earlier ones really produce.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loci.core.spec import ModelSpec
from loci.errors import LociError, ParameterError
from loci.models.pack import Pack
from loci.models.tokenizer import Tokenizer
from loci.nn.decoder import Linear, decode, decode_layer, rms_norm
from loci.nn.form import Form
from loci.nn.packed_linear import linear
from loci.nn.taps import ActStats, merged, stats_of
from loci.run import artefacts
from loci.text.prose import first_half

Progress = Callable[[str, int, int], None]
TEXTS, LENGTH = 16, 256  # texts a model is calibrated on, and the tokens of each
UNIFORM = 0.1  # share of use that is spread over all tokens: those no text had matter too
_HEAD_ROWS = 64  # tokens whose logits are held at once

# Shapes: S texts, T tokens of a text, N = S * T, d hidden, V vocabulary.


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a model was shown.

    Attributes:
        linears: of "layer.3.q_proj" and so on, with slopes.
        embed: of the rows of the embedding: its slopes are how often each token is read.
        head: of the rows of the head.
        text: hash of the tokens.
    """

    linears: Mapping[str, ActStats]
    embed: ActStats
    head: ActStats
    text: str

    def table_loss(self, change_nK: Tensor, rows: slice, *, tied: bool, is_head: bool) -> float:
        """Return the KL that a change of some rows of embedding or head costs, an estimate."""
        found = 0.0
        for stats, counts in ((self.embed, tied or not is_head), (self.head, tied or is_head)):
            assert stats.slopes_N is not None
            if counts:
                found += stats.with_slopes(stats.slopes_N[rows]).loss(change_nK)
        return found


def calibration_ids(
    tokenizer: Tokenizer,
    *,
    texts: int = TEXTS,
    length: int = LENGTH,
    source: str | None = None,
    held_out: bool = False,
) -> Tensor:
    """Return token ids int64 [texts, length], evenly spread over a text.

    Args:
        source: the text; None takes the first half of Python's help topics.
        held_out: pieces half way between those that are taken otherwise.

    Raises:
        ParameterError: if the text is too short for so many pieces.
    """
    ids = tokenizer.encode(first_half() if source is None else source)
    if texts < 1 or length < 2 or len(ids) < texts * length:
        raise ParameterError(
            f"the calibration text has {len(ids):,} tokens",
            value=f"{texts} pieces of {length} tokens",
            allowed=f"at most {len(ids):,} tokens in pieces of 2 and more",
            way_out="give a longer text, or fewer and shorter pieces",
        )
    stride = len(ids) // texts
    first = min(stride // 2, stride - length) if held_out else 0
    starts = [index * stride + first for index in range(texts)]
    return torch.tensor([ids[start : start + length] for start in starts])


def statistics(
    pack: Pack, ids_ST: Tensor, *, progress: Progress | None = None, seed: int = 0
) -> Calibration:
    """Return what every matrix of a model is shown on some texts, with slopes.

    The words whose likelihood is differentiated are drawn from the model itself, so that the mean
    squared slope is the Fisher information and says what a change costs in KL.
    """
    spec, weights = pack.spec, PackWeights(pack)
    generator = torch.Generator().manual_seed(seed)
    table = weights.table("embed")
    head = table if spec.tied else weights.table("head")
    stats: dict[str, ActStats] = {}
    squares: dict[str, Tensor] = {}
    uses_V, hits_V = torch.zeros(spec.vocab), torch.zeros(spec.vocab)
    below_d = torch.zeros(spec.hidden)
    tops: list[ActStats] = []
    for done, ids_T in enumerate(ids_ST):

        def tapped(name: str, x: Tensor) -> Tensor:
            seen = stats_of(x.detach())
            stats[name] = merged(stats[name], seen) if name in stats else seen
            out = linear(x, weights(name))
            out.register_hook(lambda grad: _add(squares, name, grad.square().sum(0)))
            return out

        embedded = table[ids_T].unsqueeze(0).requires_grad_(True)
        hidden_Td = decode(spec, embedded, tapped, weights.vector)[0]
        top_Td = hidden_Td.detach().requires_grad_(True)
        for start in range(0, len(ids_T), _HEAD_ROWS):
            logs_nV = torch.log_softmax(top_Td[start : start + _HEAD_ROWS] @ head.t(), dim=-1)
            chances_nV = logs_nV.detach().exp()
            words_n1 = torch.multinomial(chances_nV, 1, generator=generator)
            logs_nV.gather(1, words_n1).sum().backward()
            hits_V += (chances_nV * (1 - chances_nV)).sum(0)
            uses_V += chances_nV.sum(0)
        hidden_Td.backward(top_Td.grad)
        assert embedded.grad is not None
        below_d += embedded.grad[0].square().sum(0)
        uses_V += torch.bincount(ids_T, minlength=spec.vocab)
        tops.append(stats_of(top_Td.detach()))
        if progress is not None:
            progress("looking at what matters", done + 1, len(ids_ST))
    tokens = ids_ST.numel()
    top = tops[0]
    for other in tops[1:]:
        top = merged(top, other)
    even = UNIFORM / spec.vocab
    uses_V = (1 - UNIFORM) * uses_V / (2 * tokens) + even
    hits_V = (1 - UNIFORM) * hits_V / tokens + even
    below = ActStats(tokens, len(ids_ST), below_d, below_d.sqrt(), below_d.sqrt(), below_d.sqrt())
    return Calibration(
        linears={n: s.with_slopes(squares[n] / tokens) for n, s in stats.items()},
        embed=below.with_slopes(uses_V),
        head=top.with_slopes(hits_V),
        text=digest_of(ids_ST),
    )


def walk(
    pack: Pack,
    ids_ST: Tensor,
    replace: Callable[[str, Tensor, ActStats], Form],
    *,
    moments: bool = True,
    progress: Progress | None = None,
) -> dict[str, Form]:
    """Replace the linear weights of a model one after the other; return {name: form}.

    Args:
        replace: called with (name, weight, statistics of its inputs as the replaced weights before
            it produce them); returns what takes its place.
        moments: whether the statistics have x x^T.
    """
    spec, weights = pack.spec, PackWeights(pack)
    total = spec.layers * len(spec.layer_linears())
    forms: dict[str, Form] = {}
    seen: list[tuple[Tensor, ActStats]] = []  # q, k and v share an input, and so do gate and up

    def replaced(name: str, x_NK: Tensor) -> Tensor:
        if not seen or seen[0][0] is not x_NK:
            seen[:] = [(x_NK, stats_of(x_NK, len(ids_ST), moment=moments))]
        weight = weights(name)
        dense = weight.float() if isinstance(weight, Tensor) else weight.dense()
        forms[name] = replace(name, dense, seen[0][1])
        if progress is not None:
            progress("packing weights", len(forms), total)
        return linear(x_NK, forms[name])

    with torch.no_grad():
        embedded = torch.stack([pack.embed_rows(ids_T) for ids_T in ids_ST])
        decode(spec, embedded, replaced, weights.vector)
    return forms


def effects(
    pack: Pack,
    ids_ST: Tensor,
    change: Callable[[Form | Tensor], Form],
    *,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Return the KL that changing each linear layer alone costs, in nats per token, by name.

    What lies before the changed layer is computed once, so a layer costs half a pass on average.

    Args:
        change: returns what takes the place of a weight.
    """
    spec, weights = pack.spec, PackWeights(pack)
    head = weights.table("head")
    found: dict[str, float] = {}

    def logs(hidden: Tensor) -> Tensor:
        normed = rms_norm(hidden, weights.vector("norm"), spec)
        return torch.log_softmax(normed.flatten(0, 1) @ head.t(), dim=-1)

    with torch.no_grad():
        embedded = torch.stack([pack.embed_rows(ids_T) for ids_T in ids_ST]) * spec.embed_scale
        before = [embedded]
        for index in range(spec.layers):
            before.append(decode_layer(spec, index, before[-1], _plain(weights), weights.vector))
        full = logs(before[-1])
        for index in range(spec.layers):
            for tensor in spec.layer_linears():
                name = f"layer.{index}.{tensor}"
                other = {name: change(weights(name))}
                hidden = before[index]
                for later in range(index, spec.layers):
                    replaced = _plain(weights, other if later == index else {})
                    hidden = decode_layer(spec, later, hidden, replaced, weights.vector)
                found[name] = float((full.exp() * (full - logs(hidden))).sum(-1).mean())
                if progress is not None:
                    total = spec.layers * len(spec.layer_linears())
                    progress("changing layers one by one", len(found), total)
    return found


def kl_of(
    pack: Pack,
    ids_ST: Tensor,
    forms: Mapping[str, Form],
    tables: Mapping[str, Tensor] | None = None,
    *,
    full: list[Tensor] | None = None,
) -> float:
    """Return the mean KL to the pack's own model of one with other weights, in nats per token.

    Args:
        forms: of linear layers, by name; what is not there stays as it is.
        tables: "embed" and "head" in float32, where they differ.
        full: log-probabilities of the pack's model by text, kept here from one call to the next.
    """
    weights = PackWeights(pack)
    own = {"embed": weights.table("embed")}
    own["head"] = own["embed"] if pack.spec.tied else weights.table("head")
    changed = own | dict(tables or {})
    full = [] if full is None else full
    total = 0.0

    def logs(ids_T: Tensor, table: Mapping[str, Tensor], replaced: Mapping[str, Form]) -> Tensor:
        embedded = table["embed"][ids_T].unsqueeze(0)
        hidden = decode(pack.spec, embedded, _plain(weights, replaced), weights.vector)
        return torch.log_softmax(hidden[0] @ table["head"].t(), dim=-1)

    with torch.no_grad():
        for index, ids_T in enumerate(ids_ST):
            if index == len(full):
                full.append(logs(ids_T, own, {}))
            other_TV = logs(ids_T, changed, forms)
            total += float((full[index].exp() * (full[index] - other_TV)).sum(-1).mean())
    return total / len(ids_ST)


def digest_of(ids_ST: Tensor) -> str:
    """Return a short hash of token ids."""
    data = f"{tuple(ids_ST.shape)}".encode() + ids_ST.contiguous().numpy().tobytes()
    return "blake2b:" + hashlib.blake2b(data, digest_size=8).hexdigest()


def cached_statistics(
    pack: Pack, ids_ST: Tensor, folder: Path, *, progress: Progress | None = None
) -> Calibration:
    """Return `statistics`, from the folder where they were kept for this very model and text."""
    name = f"statistics({digest_of(ids_ST)})"
    path = folder / f"statistics-{digest_of(ids_ST).removeprefix('blake2b:')}.safetensors"
    try:
        found = artefacts.load(path, method=name, fingerprint=pack.spec.fingerprint)
        return _unflattened(found.tensors, pack.spec, digest_of(ids_ST))
    except LociError:  # not there, cut short, or of another model under this name: made again
        calibration = statistics(pack, ids_ST, progress=progress)
    kept = artefacts.Artefact(
        method=name,
        fingerprint=pack.spec.fingerprint,
        tensors={
            f"{matrix}/{key}": tensor
            for matrix, stats in _all(calibration).items()
            for key, tensor in stats.tensors().items()
        },
    )
    artefacts.save(kept, path)
    return calibration


class PackWeights:
    """Weights of a pack by our names."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack

    def __call__(self, name: str) -> Form | Tensor:
        """Return a matrix by name, "layer.3.q_proj"."""
        block, _, tensor = name.rpartition(".")
        return self._pack.block(block)[tensor]

    def plain(self, name: str, x: Tensor) -> Tensor:
        """Return the product with a weight as it is."""
        return linear(x, self(name))

    def vector(self, name: str) -> Tensor | None:
        """Return a norm or a bias, or None where the model has none."""
        if name == "norm":
            return next(iter(self._pack.block("norm").values())).float()  # type: ignore[union-attr]
        _, layer, tensor = name.split(".", 2)
        found = self._pack.block(f"layer.{layer}").get(tensor)
        return None if found is None else found.float()  # type: ignore[union-attr]

    def table(self, kind: str) -> Tensor:
        """Return embedding or head in float32 [V, d]."""
        tiles = [next(iter(self._pack.block(n).values())) for n, _ in self._pack.tiles(kind)]
        return torch.cat([t.float() if isinstance(t, Tensor) else t.dense() for t in tiles])


# -- private ----------------------------------------------------------------------------------


def _plain(weights: PackWeights, changed: Mapping[str, Form] | None = None) -> Linear:
    """Return products with the pack's weights, some of them changed."""
    changed = changed or {}
    return lambda name, x: linear(x, changed.get(name) or weights(name))


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


def _all(calibration: Calibration) -> dict[str, ActStats]:
    return {**calibration.linears, "embed": calibration.embed, "head": calibration.head}


def _unflattened(tensors: Mapping[str, Tensor], spec: ModelSpec, text: str) -> Calibration:
    rows: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        matrix, _, part = key.partition("/")
        rows.setdefault(matrix, {})[part] = tensor
    names = [f"layer.{i}.{name}" for i in range(spec.layers) for name in spec.layer_linears()]
    stats = {name: ActStats.from_tensors(rows.get(name, {})) for name in [*names, "embed", "head"]}
    embed, head = stats.pop("embed"), stats.pop("head")
    return Calibration(linears=stats, embed=embed, head=head, text=text)

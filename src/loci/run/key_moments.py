"""How the keys of an MLP vary together: C = E[k k^T] where down_proj is entered, by layer.

Averaged once over text and kept beside the model as an artefact; what edits a model by a closed
form asks how much a direction is used already. The text is the model's own (`run.own_text`): over
technical prose, which names little, what all names have in common looks unused.

Near facts the same is asked of what the model itself puts in the place of their subjects: "The
capital of" goes on with countries, and an edit of one of them must leave the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any  # facts are JSON values

import torch
from torch import Tensor

from loci.core.method import Need
from loci.errors import MethodError, NotFoundError
from loci.methods.train.base import Edit, Fact, check_layers, down
from loci.models.pack import Pack
from loci.models.tokenizer import Tokenizer
from loci.nn.decoder import decode_layer
from loci.nn.packed_linear import linear
from loci.run import artefacts
from loci.run.calibrate import PackWeights, calibration_ids, digest_of
from loci.run.own_text import gone_on, own_text

Progress = Callable[[str, int, int], None]
TEXTS, LENGTH = 80, 256  # what is averaged over: 20,480 tokens
NEAR_TEXTS, NEAR_TOKENS = 112, 4  # drawn near facts: texts of all together, and tokens of each

# Shapes: S texts, T tokens, N = T tokens of one text, K inputs of down_proj.


def prepare_covariance(
    pack: Pack,
    layers: Sequence[int],
    *,
    texts: int = TEXTS,
    source: str | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Average k k^T over text where down_proj of some layers is entered; return where it is kept.

    One pass serves all layers. What lies there already for the same text stays.

    Args:
        source: the text; None takes what the model writes itself.
    """
    if source is None:
        ids_ST = own_text(pack, texts=texts, length=LENGTH, progress=progress)
    else:
        ids_ST = calibration_ids(Tokenizer(pack.folder), texts=texts, length=LENGTH, source=source)
    paths = {layer: covariance_path(pack, layer) for layer in layers}
    digest, missing = digest_of(ids_ST), []
    for layer in layers:
        try:
            if covariance(pack, layer).facts["text"] != digest:
                missing.append(layer)
        except NotFoundError:
            missing.append(layer)
    if not missing:
        return list(paths.values())
    moments = _moments(pack, missing, [(ids_T, 0) for ids_T in ids_ST], progress)
    for layer in missing:
        made = artefacts.Artefact(
            method=_covariance_name(layer),
            fingerprint=pack.spec.fingerprint,
            tensors={"covariance": moments[layer]},
            facts={"tokens": ids_ST.numel(), "text": digest},
        )
        artefacts.save(made, paths[layer])
    return list(paths.values())


def covariance_near(
    pack: Pack, facts: Sequence[Fact], layers: Sequence[int], *, seed: int = 0
) -> dict[int, Tensor]:
    """Return {layer: E[k k^T]} over what the model draws in the place of the facts' subjects.

    {} where every prompt begins with its subject, so that nothing stands before it.
    """
    tokenizer = Tokenizer(pack.folder)
    before = (fact.prompt[: fact.prompt.rfind(fact.subject)].rstrip() for fact in facts)
    stems = [tokenizer.prompt(text) for text in dict.fromkeys(before) if text]
    if not stems:
        return {}
    draws = max(1, NEAR_TEXTS // len(stems))
    generator = torch.Generator().manual_seed(seed)
    rows = gone_on(pack, [stem for _ in range(draws) for stem in stems], NEAR_TOKENS, generator)
    lengths = [len(stem) for _ in range(draws) for stem in stems]
    fresh = [
        (torch.tensor(row), length)
        for row, length in zip(rows, lengths, strict=True)
        if len(row) > length
    ]
    return _moments(pack, layers, fresh, None) if fresh else {}


def covariance_path(pack: Pack, layer: int) -> Path:
    """Return where the covariance of a layer is kept."""
    return artefacts.path_of(pack.folder, _covariance_name(layer), pack.spec.fingerprint)


def prepare_editor(pack: Pack, method: Edit, *, progress: Progress | None = None) -> dict[str, Any]:
    """Make what an editor with a closed form asks for; see `loci.api.prepare`.

    Raises:
        MethodError: if the editor learns from facts, which must be given.
    """
    values = method.parameters()
    layers = values.get("layers") or [values[name] for name in ("layer",) if name in values]
    if Need.MOMENT not in method.about.needs or not layers:
        raise MethodError(
            "this editor learns from facts; nothing can be prepared without them",
            value=str(method),
            way_out=f"loci bench run edits --method {method.about.name} trains it on its own",
        )
    check_layers(layers, pack.spec, f"{method.about.name}.layers")
    paths = prepare_covariance(pack, layers, progress=progress)
    return {
        "kind": "artefact",
        "method": str(method),
        "path": ", ".join(map(str, paths)),
        "bytes": sum(path.stat().st_size for path in paths),
        "facts": dict(covariance(pack, layers[0]).facts),
    }


def covariance(pack: Pack, layer: int) -> artefacts.Artefact:
    """Return what was prepared for a layer: "covariance" [K, K], and the tokens it saw.

    Raises:
        NotFoundError: if nothing was.
    """
    name = _covariance_name(layer)
    path = covariance_path(pack, layer)
    return artefacts.load(path, method=name, fingerprint=pack.spec.fingerprint)


# -- private ----------------------------------------------------------------------------------


def _moments(
    pack: Pack,
    layers: Sequence[int],
    rows: Sequence[tuple[Tensor, int]],
    progress: Progress | None,
) -> dict[int, Tensor]:
    """Return {layer: mean of k k^T} over rows of tokens, from the given place of each on."""
    weights, first = PackWeights(pack), 0
    sums = {down(layer): torch.zeros(pack.spec.ffn, pack.spec.ffn) for layer in layers}

    def tapped(name: str, x_NK: Tensor) -> Tensor:
        if name in sums:
            sums[name].addmm_(x_NK[first:].t(), x_NK[first:])
        return linear(x_NK, weights(name))

    with torch.no_grad():
        for done, (ids_T, first) in enumerate(rows):  # noqa: B007  # tapped reads it
            hidden = pack.embed_rows(ids_T)[None] * pack.spec.embed_scale
            for layer in range(max(layers) + 1):
                hidden = decode_layer(pack.spec, layer, hidden, tapped, weights.vector)
            if progress is not None:
                progress("looking at keys of MLPs", done + 1, len(rows))
    tokens = sum(len(ids_T) - start for ids_T, start in rows)
    return {layer: sums[down(layer)] / tokens for layer in layers}


def _covariance_name(layer: int) -> str:
    return f"covariance({down(layer)})"

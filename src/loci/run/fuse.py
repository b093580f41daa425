"""What other models know of a prompt, put into a receiver's store.

All models have read the prompt, token beside token, but for its last token. Everything is checked
before a number changes. What is fused can be compressed afterwards; what was compressed cannot be
fused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loci.core.ports import Artefact
from loci.core.spec import ModelSpec
from loci.errors import ContextError, FingerprintError, FormatError, MethodError, ParameterError
from loci.methods.kv.fuse import Cached, Fuse, Sharer
from loci.nn.kv import DenseSegment, KVBlock
from loci.run.kvstore import KVStore

# Shapes: B batch, T tokens of the prompt without its last, K key/value heads, D head size.


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A sharer whose cache stands in a store.

    Attributes:
        store: what it keeps of the same prompt; codes are decoded, nothing may be evicted.
        artefact: the fuser from it to the receiver.
        speaks: bool [T] or [B, T], the tokens at which it is listened to; None is all.
    """

    store: KVStore
    artefact: Artefact
    speaks: Tensor | None = None


def pair_of(receiver: ModelSpec, sharer: ModelSpec) -> str:
    """Return the fingerprint of two models in this order."""
    return f"{receiver.fingerprint}<-{sharer.fingerprint}"


def fuse(
    method: Fuse,
    store: KVStore,
    speakers: Sequence[Speaker],
    *,
    span: tuple[int, int] | None = None,
) -> None:
    """Put what speakers know into a receiver's store, in place.

    Args:
        store: of the receiver; exact where it is written to.
        span: the tokens that are fused, first to before last; None is all.

    Raises:
        ParameterError: if a speaker read another number of tokens, or other padding.
        ContextError: if a speaker read more than it can.
        MethodError: if the receiver's tokens were evicted or encoded, or a speaker's evicted.
        FingerprintError: if a fuser is for other models or another method.
        FormatError: if its weights have other shapes. Nothing was changed in any of these cases.
    """
    first, last = span or (0, store.length)
    if not 0 <= first < last <= store.length:
        raise ParameterError(
            "this span is not in the cache", value=span, allowed=f"0 to {store.length}"
        )
    _check_exact(store, first, last)
    maps = [_checked(method, store, speaker) for speaker in speakers]
    receiver = _cached(store, first, last)
    sharers = [_sharer(speaker, receiver, first, last) for speaker in speakers]
    fused = method.fuse(receiver, sharers, maps)
    for layer, (keys_BKTD, values_BKTD) in enumerate(fused):
        for start, stop, segment in _segments(store, layer):
            a, b = max(start, first), min(stop, last)
            if a < b:
                for held, new in ((segment.keys(), keys_BKTD), (segment.values(), values_BKTD)):
                    held[:, :, a - start : b - start] = new[:, :, a - first : b - first]


def check_context(spec: ModelSpec, tokens: int) -> None:
    """Raise ContextError if a model cannot read so many tokens."""
    if tokens > spec.max_context:
        raise ContextError(
            f"{spec.name} reads at most {spec.max_context} tokens",
            value=tokens,
            allowed=f"<= {spec.max_context}",
            way_out="a shorter prompt",
        )


# -- private ----------------------------------------------------------------------------------


def _segments(store: KVStore, layer: int) -> Iterator[tuple[int, int, DenseSegment]]:
    """Yield the exact segments of a layer with their first token and the one after the last."""
    start = 0
    for segment in store.view(layer).segments:
        if isinstance(segment, DenseSegment):
            yield start, start + segment.tokens, segment
        start += segment.tokens


def _check_exact(store: KVStore, first: int, last: int) -> None:
    """Raise MethodError unless every layer has these tokens as they were read."""
    for layer in range(store.spec.layers):
        exact = sum(
            max(0, min(stop, last) - max(start, first))
            for start, stop, _ in _segments(store, layer)
        )
        if store.held_tokens(layer) != store.length or exact != last - first:
            raise MethodError(
                "tokens that were evicted or encoded cannot be fused",
                value=" | ".join(map(str, store.chain)),
                allowed="a cache that is exact where it is fused",
                way_out="fuse right after the prompt was read, then compress; or keep it exact",
            )


def _checked(method: Fuse, store: KVStore, speaker: Speaker) -> list[int]:
    """Return the layer map of a speaker's fuser that fits both models and this prompt."""
    theirs, made = speaker.store, speaker.artefact
    expected = (method.preparation, pair_of(store.spec, theirs.spec))
    if (made.method, made.fingerprint) != expected:
        raise FingerprintError(
            "this fuser was trained for other models, or by another method",
            value=(made.method, made.fingerprint),
            allowed=str(expected),
            way_out="train one for these two: loci.hf.train_fuser",
        )
    for name, shape in method.table(store.spec, theirs.spec).items():
        found = made.tensors.get(name)
        if found is None or tuple(found.shape) != shape:
            raise FormatError(
                f"this fuser lacks {name}, or has it in another shape",
                value=None if found is None else tuple(found.shape),
                allowed=str(shape),
            )
    layers = [int(at) for at in made.facts.get("layer_map", ())]
    if len(layers) != store.spec.layers or not all(0 <= at < theirs.spec.layers for at in layers):
        raise FormatError("the layer map of this fuser does not fit the models", value=layers)
    if (theirs.length, theirs.batch) != (store.length, store.batch):
        raise ParameterError(
            "both models must have read the same prompts, token beside token",
            value=f"{theirs.batch} x {theirs.length}",
            allowed=f"{store.batch} x {store.length}",
            way_out="align the prompt: loci.models.align",
        )
    check_context(theirs.spec, theirs.length)
    if any(theirs.held_tokens(layer) != theirs.length for layer in range(theirs.spec.layers)):
        raise MethodError(
            "a sharer must hold every token of the prompt",
            value=" | ".join(map(str, theirs.chain)),
            allowed="a chain that encodes, or none",
        )
    return layers


def _cached(store: KVStore, first: int, last: int) -> Cached:
    """Return some tokens of a store, decoded, as [B, K, T, D] float32."""
    blocks = []
    for layer in range(store.spec.layers):
        block = store.view(layer).dense()
        keys, values = block.keys[:, :, first:last], block.values[:, :, first:last]
        blocks.append(KVBlock(keys, values, block.positions[:, 0, first:last]))
    return Cached(spec=store.spec, blocks=blocks)


def _sharer(speaker: Speaker, receiver: Cached, first: int, last: int) -> Sharer:
    found = _cached(speaker.store, first, last)
    places_BT = receiver.blocks[0].positions
    if not torch.equal(found.blocks[0].positions, places_BT):
        raise ParameterError(
            "both models must have their padding on the same side, and as much of it",
            value=found.blocks[0].positions[:, 0].tolist(),
            allowed=str(places_BT[:, 0].tolist()),
        )
    speaks_BT = places_BT >= 0
    if speaker.speaks is not None:
        count = speaker.speaks.shape[-1]
        if count != last - first:
            raise ParameterError(
                "there is one mark for each token that is fused",
                value=count,
                allowed=str(last - first),
            )
        speaks_BT = speaks_BT & speaker.speaks.bool()
    made = speaker.artefact.tensors
    weights = {name: tensor.float() for name, tensor in made.items()}
    return Sharer(spec=found.spec, blocks=found.blocks, weights=weights, speaks=speaks_BT)

"""Cache-to-Cache between transformers models: train a fuser, then fuse the caches of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loci.errors import ParameterError
from loci.methods import catalogue
from loci.methods.kv.fuse import Fuse
from loci.models.align import aligned_tokens
from loci.models.hf_folder import spec_of_config
from loci.run.artefacts import Artefact
from loci.run.fuse import Speaker
from loci.run.fuse import fuse as fuse_stores
from loci.run.fusers import Exchange, Frozen, FuserTraining, Progress
from loci.run.fusers import train_fuser as train
from loci.run.hf import LociCache, fingerprint_of, forward_with, state_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def train_fuser(
    receiver: PreTrainedModel,
    sharer: PreTrainedModel,
    examples: Sequence[tuple[str, str] | Exchange],
    method: str | Fuse = "c2c",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    sharer_tokenizer: PreTrainedTokenizerBase | None = None,
    training: FuserTraining | None = None,
    progress: Progress | None = None,
) -> Artefact:
    """Return a fuser that puts what one model's cache knows into the cache of another.

    Both models stay as they are. With it, a receiver answers from what the sharer knows:

        fuser = loci.hf.train_fuser(receiver, sharer, examples, "c2c(hidden=256)", tokenizer=words)
        with loci.hf.cache(receiver) as own, loci.hf.cache(sharer) as theirs:
            loci.hf.read(receiver, ids[:, :-1], own)
            loci.hf.read(sharer, ids[:, :-1], theirs)
            loci.hf.fuse(own, [(theirs, fuser)])
            receiver.generate(ids, past_key_values=own)

    Args:
        examples: (prompt, what the receiver should answer), as text or as tokens.
        tokenizer: of both models, where examples are text.
        sharer_tokenizer: the sharer's, where it has another one; prompts are aligned token by token
            (`loci.models.align`), and so must be the prompts of `fuse`.
        progress: called with (what, done, total).
    """
    found = catalogue.find(method, "kv") if isinstance(method, str) else method
    if not isinstance(found, Fuse):
        raise ParameterError("this method fuses no caches", value=str(method), allowed="c2c")
    exchanges = [
        one if isinstance(one, Exchange) else _exchange(*one, tokenizer, sharer_tokenizer)
        for one in examples
    ]
    return train(frozen(receiver), frozen(sharer), exchanges, found, training, progress=progress)


def read(model: PreTrainedModel, ids: Tensor, cache: LociCache) -> None:
    """Let a model read tokens [B, T] into its cache; no logits are kept."""
    with torch.no_grad():
        forward_with(model, ids, cache, logits_to_keep=1)


def fuse(
    cache: LociCache,
    sharers: Sequence[tuple[LociCache, Artefact]],
    method: str | Fuse | None = None,
    *,
    span: tuple[int, int] | None = None,
    speaks: Sequence[Tensor | None] | None = None,
) -> None:
    """Put what sharers know of a prompt into the receiver's cache, in place.

    All caches hold the prompt without its last token. See `train_fuser` for an example.

    Args:
        cache: of the receiver, made by `loci.hf.cache(model)`.
        sharers: their caches, each with the fuser from it to the receiver.
        method: None takes the one the fusers were trained by.
        span: the tokens that are fused, first to before last; None is all.
        speaks: of each sharer, at which of these tokens it is listened to, bool [T] or [B, T].
    """
    if not sharers:
        raise ParameterError("there is nobody to listen to", value=0, allowed="one cache or more")
    found = catalogue.find(sharers[0][1].method if method is None else str(method), "kv")
    if not isinstance(found, Fuse):
        raise ParameterError("this method fuses no caches", value=str(found), allowed="c2c")
    marks = [None] * len(sharers) if speaks is None else list(speaks)
    if len(marks) != len(sharers):
        raise ParameterError(
            "there is one mask a sharer", value=len(marks), allowed=str(len(sharers))
        )
    stores = []
    for held in (cache, *(theirs for theirs, _ in sharers)):
        if held.store is None:
            raise ParameterError(
                "a cache is empty",
                way_out="let every model read the prompt without its last token first",
            )
        stores.append(held.store)
    speakers = [
        Speaker(store=store, artefact=made, speaks=mark)
        for store, (_, made), mark in zip(stores[1:], sharers, marks, strict=True)
    ]
    fuse_stores(found, stores[0], speakers, span=span)


def frozen(model: PreTrainedModel) -> Frozen:
    """Return a transformers model as weights by our names; float32 ones are shared with it."""
    spec = spec_of_config(model.config.to_dict(), type(model).__name__, Path())
    state = model.state_dict()

    def vector(name: str) -> Tensor | None:
        found = state.get(state_name(name))
        return None if found is None else found.detach().float()

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[state_name(name)].detach().float().t()

    embed = state["model.embed_tokens.weight"].detach().float()
    return Frozen(
        spec=replace(spec, fingerprint=fingerprint_of(model)),
        linear=linear,
        vector=vector,
        embed_Vd=embed,
        head_Vd=embed if spec.tied else state["lm_head.weight"].detach().float(),
    )


def _exchange(
    prompt: str,
    response: str,
    tokenizer: PreTrainedTokenizerBase | None,
    other: PreTrainedTokenizerBase | None,
) -> Exchange:
    if tokenizer is None:
        raise ParameterError(
            "examples are text, and there is nothing to read them with",
            way_out="train_fuser(..., tokenizer=...)",
        )
    ids, answer = (
        tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (prompt, response)
    )
    if other is None:
        return Exchange(prompt=ids, response=answer)
    return Exchange(prompt=ids, response=answer, shared=aligned_ids(ids, tokenizer, other))


def aligned_ids(
    ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """Return one token of another tokenizer for each of these, the longest piece of each."""
    filler = other.pad_token_id if other.pad_token_id is not None else other.eos_token_id
    return aligned_tokens(
        ids,
        lambda tokens: str(tokenizer.decode(list(tokens))),
        lambda text: list(other.encode(text, add_special_tokens=False)),
        lambda tokens: str(other.decode(list(tokens))),
        filler=int(filler or 0),
    )

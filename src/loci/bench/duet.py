"""Two models that answer together: by a fused cache, or by a text the one writes for the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loci.core.ledger import Ledger
from loci.methods.kv.fuse import Fuse
from loci.models.pack import Pack
from loci.run.artefacts import Artefact
from loci.run.fuse import Speaker, fuse
from loci.run.kvstore import KVStore
from loci.run.lab import NO_LIMIT
from loci.run.runner import Runner
from loci.run.weights import ResidentWeights

# Shapes: B prompts, T tokens of each, R tokens of an answer.


class Reader:
    """A model that reads prompts of one length and answers greedily.

    Args:
        rows, tokens: prompts at once at most, and tokens of one with its answer.
    """

    def __init__(self, pack: Pack, *, rows: int, tokens: int) -> None:
        self.spec, self._tokens = pack.spec, tokens
        ledger = Ledger(NO_LIMIT)
        self._weights = ResidentWeights(pack, ledger)
        self._runner = Runner(pack.spec, self._weights, ledger, chunk=tokens, batch=rows)

    def read(self, ids_BT: Tensor) -> KVStore:
        """Return a store that holds prompts."""
        rows, chunk = ids_BT.shape
        store = KVStore(self.spec, max_tokens=self._tokens, batch=rows, chunk=chunk)
        self._runner.forward(ids_BT, store, logits=None)
        return store

    def answer(self, store: KVStore, ids_BT: Tensor, count: int) -> Tensor:
        """Return the likeliest tokens [B, count] after some more."""
        found = []
        for _ in range(count):
            logits_BV = self._runner.forward(ids_BT, store)
            assert logits_BV is not None
            ids_BT = logits_BV.argmax(-1, keepdim=True)
            found.append(ids_BT)
        return torch.cat(found, 1)

    def logits(self, store: KVStore, ids_BT: Tensor) -> Tensor:
        """Return logits [B, T, V] of some more tokens."""
        found = self._runner.forward(ids_BT, store, logits="all")
        assert found is not None
        return found

    def close(self) -> None:
        """Give everything back."""
        self._runner.release()
        self._weights.release()


def alone(reader: Reader, prompt_BT: Tensor, count: int) -> Tensor:
    """Return what a model answers by itself."""
    store = reader.read(prompt_BT[:, :-1])
    return reader.answer(store, prompt_BT[:, -1:], count)


def fused(
    method: Fuse,
    receiver: Reader,
    sharer: Reader,
    fuser: Artefact,
    prompt_BT: Tensor,
    count: int,
    *,
    shared_BT: Tensor | None = None,
) -> Tensor:
    """Return what the receiver answers over its fused cache.

    Args:
        shared_BT: what the sharer reads in place of the prompt.
    """
    store = fused_store(method, receiver, sharer, fuser, prompt_BT, shared_BT=shared_BT)
    return receiver.answer(store, prompt_BT[:, -1:], count)


def fused_store(
    method: Fuse,
    receiver: Reader,
    sharer: Reader,
    fuser: Artefact,
    prompt_BT: Tensor,
    *,
    shared_BT: Tensor | None = None,
) -> KVStore:
    """Return the receiver's store of prompts without their last token, fused."""
    shared_BT = prompt_BT if shared_BT is None else shared_BT
    theirs = sharer.read(shared_BT[:, :-1])
    own = receiver.read(prompt_BT[:, :-1])
    fuse(method, own, [Speaker(store=theirs, artefact=fuser)])
    return own


def told(
    receiver: Reader,
    sharer: Reader,
    order_BT: Tensor,
    said: int,
    prompt_BT: Tensor,
    count: int,
    *,
    before: Sequence[Tensor] = (),
) -> Tensor:
    """Return what the receiver answers after it read what the sharer wrote.

    Args:
        order_BT: at what the sharer writes `said` tokens.
        before: what is put before the sharer's words, [B, ...].
    """
    words_BR = alone(sharer, order_BT, said)
    return alone(receiver, torch.cat([*before, words_BR, prompt_BT], 1), count)

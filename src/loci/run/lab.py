"""A model taken apart: what `prepare`, benchmarks and experiments work with.

No budget limits it: the ledger counts but does not refuse, so that a method and the full model can
be held side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any  # facts are JSON values

import torch
from torch import Tensor

from loci.core.ledger import Ledger
from loci.core.method import Method, Need
from loci.errors import NotFoundError, ParameterError
from loci.methods.kv.base import KVMethod
from loci.methods.kv.store_plan import decoded_tokens
from loci.models.pack import Pack
from loci.models.tokenizer import Tokenizer
from loci.nn.attend import attention_sums, end_weights
from loci.nn.packing import dequantise
from loci.nn.rope import Rope, undo
from loci.run import artefacts
from loci.run.artefacts import Artefact
from loci.run.kvstore import KVStore
from loci.run.prefill import Prefiller
from loci.run.runner import FLOAT_BITS, Runner
from loci.run.weights import Repack, RepackedWeights, ResidentWeights, WeightSource
from loci.text.prose import first_half

NO_LIMIT = {"dram": 2**62, "disk": 2**62, "gpu": 2**62}
TAPS = ("queries", "keys", "values", "attention")
TEXTS, CHARACTERS = 8, 5000  # what a model is looked at with, some 1,000 tokens each


class Lab:
    """One pack, opened whole; satisfies `loci.core.ports.Lab`.

    Args:
        chunk: tokens one forward takes at most.
        context: tokens that attention may decode from codes at once.
        repack: packs the layers' linear weights anew; None takes them as they are.
        folder: where `prepare` may write.
        activation_bits: see `Runner`.
    """

    def __init__(
        self,
        pack: Pack,
        *,
        chunk: int = 512,
        context: int = 2048,
        repack: Repack | None = None,
        folder: Path | None = None,
        activation_bits: int = FLOAT_BITS,
    ) -> None:
        self.pack, self.spec, self.chunk, self.context = pack, pack.spec, chunk, context
        self.activation_bits = activation_bits
        self.ledger = Ledger(NO_LIMIT)
        self.tokenizer = Tokenizer(pack.folder)
        self.weights_source: WeightSource
        if repack is None:
            self.weights_source = ResidentWeights(pack, self.ledger)
        else:
            self.weights_source = RepackedWeights(pack, repack, self.ledger)
        self._folder = folder

    @property
    def fingerprint(self) -> str:
        """Of the weights as they are in the pack."""
        return self.spec.fingerprint

    def store(
        self,
        chain: Sequence[Method] = (),
        *,
        max_tokens: int | None = None,
        dtype: torch.dtype = torch.float32,
        budget_bytes: int | None = None,
        seed: int = 0,
    ) -> KVStore:
        """Return an empty KV store for this model; what the chain needs is prepared if missing."""
        return KVStore(
            self.spec,
            tuple(chain),
            max_tokens=max_tokens or self.context,
            dtype=dtype,
            budget_bytes=budget_bytes,
            chunk=self.chunk,
            ledger=self.ledger,
            generator=torch.Generator().manual_seed(seed),
            artefacts={
                method.about.name: self.prepared(method)
                for method in chain
                if Need.ARTEFACT in method.about.needs
            },
        )

    def prepared(self, method: Method) -> Artefact:
        """Return what was prepared for a method of the KV cache; prepare and keep it if missing."""
        assert isinstance(method, KVMethod)
        name = method.preparation
        path = artefacts.path_of(self.pack.folder, name, self.fingerprint)
        try:
            return artefacts.load(path, method=name, fingerprint=self.fingerprint)
        except NotFoundError:
            made = method.prepare(self)
            assert isinstance(made, Artefact)
            artefacts.save(made, path)
            return made

    @contextmanager
    def reading(self, store: KVStore, chain: Sequence[Method] = ()) -> Iterator[Prefiller]:
        """Lend a prefiller over `store`; its work buffers go back at the end."""
        runner = Runner(
            self.spec,
            self.weights_source,
            self.ledger,
            chunk=self.chunk,
            decoded_tokens=decoded_tokens(tuple(chain), store.max_tokens),
            activation_bits=self.activation_bits,
        )
        try:
            yield Prefiller(runner, store)
        finally:
            runner.release()

    def continuation(
        self,
        ids: Sequence[int],
        prompt: int,
        chain: Sequence[Method] = (),
        *,
        step: int = 32,
        dtype: torch.dtype = torch.float32,
        budget_bytes: int | None = None,
        seed: int = 0,
    ) -> Iterator[tuple[Tensor, int]]:
        """Read `prompt` tokens, compress, then read the rest teacher-forced.

        Yields:
            logits [n, V] of each step's tokens, and the bytes the store held at that moment. The
            first logits belong to the last token of the prompt, so every token of the rest is
            predicted once: logits row i predicts ids[prompt + i].
        """
        if not 0 < prompt < len(ids):
            raise ParameterError(
                "the prompt must leave tokens to predict", value=prompt, allowed=f"1 to {len(ids)}"
            )
        store = self.store(
            chain, max_tokens=len(ids), dtype=dtype, budget_bytes=budget_bytes, seed=seed
        )
        try:
            with self.reading(store, chain) as prefiller:
                first = prefiller.read(ids[:prompt]).clone()
                store.finish_prompt(prefiller)
                yield first, sum(store.nbytes().values())
                rest = list(ids[prompt:-1])
                for start in range(0, len(rest), step):
                    part = rest[start : start + step]
                    logits = prefiller.runner.forward(torch.tensor([part]), store, logits="all")
                    assert logits is not None
                    yield logits[0], sum(store.nbytes().values())
                    prefiller.ids.extend(part)
                    store.finish_chunk(prefiller)
        finally:
            store.release()

    @contextmanager
    def activations(
        self, texts: Sequence[str], taps: Sequence[str]
    ) -> Iterator[Iterator[tuple[str, int, Tensor]]]:
        """Lend an iterator of (tap, layer, tensor) over all texts.

        "queries" gives rotated queries [1, H, T, D], valid until the next item. "keys" gives keys
        before their rotation and "values" values, [1, K, T, D] in float32. "attention" gives what
        each token gets from all queries of the text, the mean over heads, [T]; texts are cut to
        one chunk then.
        """
        unknown = [tap for tap in taps if tap not in TAPS]
        if unknown:
            raise ParameterError("no such tap", value=unknown, allowed=", ".join(TAPS))
        store, rope = self.store(), Rope(self.spec)

        def walk() -> Iterator[tuple[str, int, Tensor]]:
            with self.reading(store) as prefiller:
                for text in texts:
                    most = min(self.context, self.chunk) if "attention" in taps else self.context
                    ids = self.tokenizer.encode(text)[:most]
                    for seen in prefiller.probe(ids) if "queries" in taps else ():
                        assert seen.queries is not None
                        yield "queries", seen.layer, seen.queries
                    if not {"keys", "values", "attention"} & set(taps):
                        continue
                    seen_by = {}
                    if "attention" in taps:
                        for seen in prefiller.probe(ids):
                            assert seen.queries is not None
                            seen_by[seen.layer] = replace(seen, queries=seen.queries.clone())
                    prefiller.prefill(ids)
                    turned = rope.table(torch.arange(len(ids))[None])
                    for layer in range(self.spec.layers):
                        block = store.view(layer).dense()
                        if "keys" in taps:
                            yield "keys", layer, undo(block.keys, *turned)
                        if "values" in taps:
                            yield "values", layer, block.values
                        if "attention" in taps:
                            yield (
                                "attention",
                                layer,
                                attention_sums(store.view(layer), seen_by[layer]),
                            )
                    store.crop(0)

        try:
            yield walk()
        finally:
            store.release()

    def encode(self, text: str) -> Sequence[int]:
        """Return the tokens of a text."""
        return self.tokenizer.encode(text)

    def attention(self, ids: Sequence[int], last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, by layer, what the last tokens give to all, [H, last, T], and values [K, T, D].

        The softmax runs over everything a token may see. Values are valid until the next layer.
        """
        if not 0 < last <= min(len(ids), self.chunk):
            raise ParameterError(
                "the tokens that ask are the end of the text, in one chunk",
                value=last,
                allowed=f"1 to {min(len(ids), self.chunk)}",
            )
        spec, queries = self.spec, []
        store = self.store(max_tokens=len(ids))
        try:
            with self.reading(store) as prefiller:
                prefiller.prefill(ids[:-last])
                for seen in prefiller.probe(ids[-last:]):
                    assert seen.queries is not None
                    queries.append(seen.queries[0].clone())
                prefiller.prefill(ids[-last:])
            for layer in range(spec.layers):
                block = store.view(layer).dense()
                weights_HtT = end_weights(queries[layer], block.keys[0], spec.head_dim**-0.5)
                yield weights_HtT, block.values[0]
        finally:
            store.release()

    def texts(self) -> Sequence[str]:
        """Return pieces of English prose, evenly spread over the half that may be looked at."""
        prose = first_half()
        step = (len(prose) - CHARACTERS) // (TEXTS - 1)
        return [prose[at * step : at * step + CHARACTERS] for at in range(TEXTS)]

    def artefact(
        self, method: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None
    ) -> Artefact:
        """Return tensors and facts as what was prepared by a method for this model."""
        return Artefact(
            method=method, fingerprint=self.fingerprint, tensors=tensors, facts=facts or {}
        )

    def weights(self, name: str) -> Tensor:
        """Return one weight in float32, [out, in]; `name` is like "layer.3.q_proj"."""
        block, _, tensor = name.rpartition(".")
        held = self.pack.block(block)
        if tensor not in held:
            raise ParameterError("no such weight", value=name, allowed=", ".join(held))
        weight = held[tensor]
        return weight.float() if isinstance(weight, Tensor) else dequantise(weight)

    def folder(self) -> Path:
        """Return where the artefact may be written."""
        if self._folder is None:
            raise ParameterError("this lab was opened without a folder to write to")
        return self._folder

    def close(self) -> None:
        """Give every byte back."""
        self.weights_source.release()

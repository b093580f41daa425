"""Texts, models and prefillers that are made up, for tests of KV methods and stores.

A method is always tested inside a store, on chunks of random keys, against an exact store. The
store's class is an argument, because it lives above this row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any  # facts of an artefact are JSON values
from zlib import crc32

import torch
from torch import Generator, Tensor

from loci.core.ledger import Ledger
from loci.core.method import Method, Need
from loci.core.spec import ModelSpec
from loci.methods.kv.base import Encode, EncodeLayers, KVMethod, Select
from loci.methods.kv.chain import Chain
from loci.methods.kv.store_plan import budget_for, slots_for
from loci.nn.attend import attend
from loci.nn.kv import Seen
from loci.nn.rope import Rope, rotate, undo
from loci.testing.needles import FakeAttention

if TYPE_CHECKING:
    from loci.run.kvstore import KVStore

SCALE = 0.25
LONG = 256  # tokens, of texts that must be long for a method to encode any
RANK, NOISE = 6, 0.02  # of texts whose layers share what they say

# Shapes: B batch, L layers, H query heads, K key/value heads, T tokens, D head size.


def spec_of(layers: int = 2, kv_heads: int = 2, heads: int = 4, head_dim: int = 32) -> ModelSpec:
    """Return a small model; by default two query heads share a KV head."""
    return ModelSpec(
        name="tiny",
        layers=layers,
        hidden=64,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=64,
        vocab=50,
        max_context=512,
        fingerprint="blake2b:00",
    )


@dataclass(frozen=True, eq=False)
class Text:
    """Random queries, keys and values of a text, the same for every store that reads it."""

    queries_LBHTD: Tensor
    keys_LBKTD: Tensor
    values_LBKTD: Tensor

    @classmethod
    def of(cls, spec: ModelSpec, tokens: int, batch: int = 1, seed: int = 0) -> Text:
        """Return a text from a seed; a longer text of one seed does not start like a shorter."""
        generator = Generator().manual_seed(seed)

        def draw(heads: int) -> Tensor:
            shape = (spec.layers, batch, heads, tokens, spec.head_dim)
            return torch.randn(shape, generator=generator)

        return cls(draw(spec.heads), draw(spec.kv_heads), draw(spec.kv_heads))

    @classmethod
    def shared(cls, spec: ModelSpec, tokens: int, batch: int = 1, seed: int = 0) -> Text:
        """Return a text whose keys and values have a low rank, which all layers share.

        Keys are rotated by position, as a model rotates them.
        """
        found = cls.of(spec, tokens, batch, seed)
        rope = Rope(spec).table(torch.arange(tokens)[None])
        for part, plain_LBKTD in zip((0, 1), low_rank(spec, tokens, batch, seed), strict=True):
            for layer, plain_BKTD in enumerate(plain_LBKTD):
                held = (found.keys_LBKTD, found.values_LBKTD)[part][layer]
                held.copy_(rotate(plain_BKTD, *rope) if part == 0 else plain_BKTD)
        return found

    @property
    def tokens(self) -> int:
        """Tokens of the text."""
        return self.keys_LBKTD.shape[3]


def low_rank(spec: ModelSpec, tokens: int, batch: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return keys before their rotation, and values, [L, B, K, T, D].

    They are products of `weight_of` with hidden states that are nearly the same in all layers and
    have few directions, which are those of every text.
    """
    draw, basis = Generator().manual_seed(seed + 1000), Generator().manual_seed(7)
    says_BTr = torch.randn(batch, tokens, RANK, generator=draw)
    states_BTd = says_BTr @ torch.randn(RANK, spec.hidden, generator=basis) / RANK**0.5
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for layer in range(spec.layers):
        noise_BTd = torch.randn(states_BTd.shape, generator=draw)
        for found, name in ((keys, "k_proj"), (values, "v_proj")):
            weight = weight_of(spec, f"layer.{layer}.{name}")
            flat_BTw = (states_BTd + NOISE * noise_BTd) @ weight.t()
            found.append(flat_BTw.unflatten(2, (spec.kv_heads, -1)).transpose(1, 2))
    return torch.stack(keys), torch.stack(values)


def weight_of(spec: ModelSpec, name: str) -> Tensor:
    """Return a weight [out, in] that is the same every time; a norm is all ones."""
    if name.endswith("norm"):
        return torch.ones(spec.hidden)
    shape = spec.layer_linears()[name.rpartition(".")[2]]
    draw = Generator().manual_seed(crc32(name.encode()))
    return torch.randn(shape, generator=draw) / shape[1] ** 0.5


@dataclass(frozen=True, eq=False, kw_only=True)
class FakeArtefact:
    """Tensors and facts; satisfies `loci.core.ports.Artefact`."""

    method: str
    fingerprint: str
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class FakeLab(FakeAttention):
    """A model of random weights whose keys and values are those of `low_rank`."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def texts(self) -> Sequence[str]:
        """Return texts, of which only the number counts."""
        return [str(number) for number in range(4)]

    @contextmanager
    def activations(
        self, texts: Sequence[str], taps: Sequence[str]
    ) -> Iterator[Iterator[tuple[str, int, Tensor]]]:
        """Lend an iterator of (tap, layer, tensor) over the texts."""

        def walk() -> Iterator[tuple[str, int, Tensor]]:
            for text in texts:
                keys_LBKTD, values_LBKTD = low_rank(self.spec, 200, seed=500 + int(text))
                for layer in range(self.spec.layers):
                    draw = Generator().manual_seed(layer)
                    found = {
                        "keys": keys_LBKTD[layer],
                        "values": values_LBKTD[layer],
                        "attention": torch.rand(200, generator=draw) ** (1 + layer),
                    }
                    yield from ((tap, layer, found[tap]) for tap in taps)

        yield walk()

    def weights(self, name: str) -> Tensor:
        """Return a weight that is the same every time."""
        return weight_of(self.spec, name)

    def folder(self) -> Path:
        """Nothing is written."""
        raise AssertionError("a method of a KV cache writes nothing")

    def artefact(
        self, method: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None
    ) -> FakeArtefact:
        """Return what was prepared."""
        return FakeArtefact(
            method=method,
            fingerprint=self.spec.fingerprint,
            tensors=dict(tensors),
            facts=dict(facts or {}),
        )


@cache
def prepared(method: Method, spec: ModelSpec) -> Any:
    """Return what a method prepares for the model of `FakeLab`."""
    assert isinstance(method, KVMethod)
    return method.prepare(FakeLab(spec))


def text_for(method: Method, spec: ModelSpec, tokens: int, batch: int = 1, seed: int = 0) -> Text:
    """Return a text with what the method lives on: layers that share, or nothing."""
    made = Text.shared if isinstance(method, EncodeLayers) else Text.of
    return made(spec, tokens, batch, seed)


@dataclass(eq=False)
class FakePrefiller:
    """Probes a store with the text's own queries, as if the model repeated it."""

    store: KVStore
    text: Text
    ids: list[int] = field(default_factory=list)
    probes: int = 0

    def probe(self, ids: Sequence[int]) -> Iterator[Seen]:
        """Yield, for each layer, the queries of the tokens whose numbers are in `ids`."""
        self.probes += 1
        rows, start = self.text.keys_LBKTD.shape[1], self.store.length
        positions_BT = torch.arange(start, start + len(ids)).expand(rows, -1)
        with self.store.trial():
            for layer in range(self.store.spec.layers):
                part = torch.tensor(list(ids))
                self.store.append(
                    layer,
                    self.text.keys_LBKTD[layer][:, :, part],
                    self.text.values_LBKTD[layer][:, :, part],
                    positions_BT,
                )
                yield Seen(layer, self.text.queries_LBHTD[layer][:, :, part], positions_BT)


def read(
    store: KVStore,
    text: Text,
    start: int = 0,
    stop: int | None = None,
    chunk: int | None = None,
    pad: int = 0,
) -> tuple[Tensor, FakePrefiller]:
    """Read tokens start..stop as a runner would; return attention [L, B, H, T, D], prefiller.

    The first `pad` tokens are padding.
    """
    stop = text.tokens if stop is None else stop
    prefiller = FakePrefiller(store, text, list(range(start)))
    outputs = []
    rows = text.keys_LBKTD.shape[1]
    for first in range(start, stop, chunk or store.chunk):
        last = min(first + (chunk or store.chunk), stop)
        positions_BT = torch.arange(first - pad, last - pad).expand(rows, -1)
        layers = []
        for layer in range(store.spec.layers):
            q_BHTD = text.queries_LBHTD[layer][:, :, first:last]
            view = store.append(
                layer,
                text.keys_LBKTD[layer][:, :, first:last],
                text.values_LBKTD[layer][:, :, first:last],
                positions_BT,
                hidden_of(store, text, layer, first, last),
            )
            layers.append(attend(q_BHTD, view, positions=positions_BT, scale=SCALE)[0])
            if store.wants_queries:
                store.observe(layer, Seen(layer, q_BHTD, positions_BT))
        store.advance(last - first)
        outputs.append(torch.stack(layers))
        prefiller.ids.extend(range(first, last))
        store.finish_chunk(prefiller)
    store.finish_prompt(prefiller)
    return torch.cat(outputs, 3), prefiller


def hidden_of(store: KVStore, text: Text, layer: int, first: int, last: int) -> Tensor | None:
    """Return hidden states [B, T, d] that give a text's keys and values, where a store wants them.

    They solve states W = [keys values] with the keys turned back, as well as can be.
    """
    if not store.wants_hidden:
        return None
    spec = store.spec
    turned = Rope(spec).table(torch.arange(first, last)[None])
    keys = undo(text.keys_LBKTD[layer][:, :, first:last], *turned)
    both = torch.cat([keys, text.values_LBKTD[layer][:, :, first:last]], 1)
    weight = torch.cat([weight_of(spec, f"layer.{layer}.{n}") for n in ("k_proj", "v_proj")])
    return both.transpose(1, 2).flatten(2) @ torch.linalg.pinv(weight.double()).t().float()


def store_of(
    make_store: type[KVStore],
    chain: Chain,
    *,
    keep: int | None = None,
    max_tokens: int = 200,
    chunk: int = 16,
    batch: int = 1,
    seed: int = 0,
    spec: ModelSpec | None = None,
    dtype: torch.dtype = torch.float32,
    ledger: Ledger | None = None,
) -> KVStore:
    """Return a store for tests; `keep` is the number of slots its budget has room for."""
    spec = spec or spec_of()
    if any(span_of(method) > LONG for method in chain):
        chunk = max(chunk, LONG)  # few steps, where much is read
    budget = None
    if keep is not None:
        budget = budget_for(
            spec,
            chain,
            keep,
            max_tokens=max_tokens,
            batch=batch,
            dtype_bytes=dtype.itemsize,
            chunk=chunk,
        )
    return make_store(
        spec,
        chain,
        max_tokens=max_tokens,
        batch=batch,
        dtype=dtype,
        budget_bytes=budget,
        chunk=chunk,
        generator=Generator().manual_seed(seed),
        ledger=ledger,
        artefacts={
            method.about.name: prepared(method, spec)
            for method in chain
            if Need.ARTEFACT in method.about.needs
        },
    )


def kept_positions(store: KVStore, layer: int = 0) -> Tensor:
    """Return the positions a layer still holds, [B, K, S]."""
    return store.view(layer).positions()


def needle_kept(
    make_store: type[KVStore], method: Select, *, keep: int = 24, asked: bool = True, seed: int = 0
) -> float:
    """Return the share of heads that still hold a needle in a long text.

    Token 20 of 120 has a key that one direction of the queries finds; when `asked`, the last
    queries of every chunk point there, as a question at the end of a prompt does. Probing the
    whole text points there once, when the needle itself is repeated.
    """
    spec, place = spec_of(layers=2), 20
    text = Text.of(spec, 120, seed=seed)
    generator = Generator().manual_seed(seed + 1)
    way_D = torch.nn.functional.normalize(torch.randn(spec.head_dim, generator=generator), dim=0)
    text.keys_LBKTD[:, :, :, place] = way_D * 20
    if asked:
        text.queries_LBHTD[:, :, :, 24:] += way_D * 20
    else:
        text.queries_LBHTD[:, :, :, place] = way_D * 20
    store = store_of(make_store, (method,), keep=keep, chunk=32, seed=seed)
    read(store, text)
    held = [(kept_positions(store, layer) == place).any(-1).float().mean() for layer in (0, 1)]
    return float(sum(held)) / 2


def span_of(method: Method) -> int:
    """Return the tokens more that are read so that some are encoded."""
    if not isinstance(method, Encode | EncodeLayers):
        return 0
    return method.closes_every + method.exact_tokens


def keep_for(method: Method, tokens: int) -> int | None:
    """Return slots for so many tokens, or for those that always stay; None where none go."""
    return max(tokens, slots_for(method.protects())) if isinstance(method, Select) else None

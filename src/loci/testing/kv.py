"""What every KV method must pass.

def test_conformance():
    for cls in catalogue.all_methods("kv"):
        kv.check(KVStore, cls())

A method is always tested inside a store, on chunks of random keys, against an exact store. The
store's class is an argument, because it lives above this row.
"""

from __future__ import annotations

import contextlib
import io
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
from loci.core.method import Method, Need, make
from loci.core.spec import ModelSpec, Workload
from loci.errors import MethodError, ModelError, ParameterError
from loci.methods.kv.base import Encode, EncodeLayers, KVMethod, Select
from loci.methods.kv.chain import Chain, due_tokens
from loci.methods.kv.store_plan import budget_for, predict_store, store_plan
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
    store: KVStore, text: Text, start: int = 0, stop: int | None = None, chunk: int | None = None
) -> tuple[Tensor, FakePrefiller]:
    """Read tokens start..stop as a runner would; return attention [L, B, H, T, D], prefiller."""
    stop = text.tokens if stop is None else stop
    prefiller = FakePrefiller(store, text, list(range(start)))
    outputs = []
    rows = text.keys_LBKTD.shape[1]
    for first in range(start, stop, chunk or store.chunk):
        last = min(first + (chunk or store.chunk), stop)
        positions_BT = torch.arange(first, last).expand(rows, -1)
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
    if any(_span(method) > LONG for method in chain):
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


def check(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError unless the method keeps the rules of KV methods."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        check_bytes(make_store, method)
        check_shapes(make_store, method)
        check_unchanged_inputs(make_store, method)
        check_rows(make_store, method)
        check_repeatable(make_store, method)
        check_snapshot(make_store, method)
        check_half(make_store, method)
        check_not_finite(make_store, method)
        check_short(make_store, method)
        if isinstance(method, Select):
            check_room_enough(make_store, method)
            check_evicts(make_store, method)
        else:
            assert isinstance(method, Encode | EncodeLayers)
            check_codes(make_store, method)
    assert not said.getvalue(), "a method prints nothing"
    check_bad_parameters(type(method))


def check_bytes(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError unless predicted bytes are held bytes, always and to the last."""
    spec = spec_of(layers=3, kv_heads=1, heads=3)
    tokens = 70 + _span(method)
    for keep in (None, 9, 64):
        keep = keep if isinstance(method, Select) else None
        ledger = Ledger({"dram": 2**30})
        store = store_of(
            make_store, (method,), keep=keep, max_tokens=tokens, spec=spec, ledger=ledger
        )
        predicted = predict_store(
            spec, (method,), max_tokens=tokens, budget_bytes=store.budget_bytes, chunk=store.chunk
        )
        for stop in (50, tokens):
            read(store, text_for(method, spec, stop), start=store.length)
            assert store.nbytes() == {"dram": predicted} and ledger.used("dram") == predicted
            assert store.budget_bytes is None or predicted <= store.budget_bytes
        store.release()
        assert ledger.used("dram") == 0 and store.nbytes() == {"dram": 0}
    held = method.predict(spec, Workload(context=64), 2**20).held["dram"]
    assert held == predict_store(spec, (method,), max_tokens=64, budget_bytes=2**20, chunk=64), (
        "the method's own prediction is not the store's"
    )


def check_shapes(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError unless attention over the store has the right form."""
    for spec in (spec_of(), spec_of(kv_heads=4), spec_of(kv_heads=1)):
        tokens = 60 + _span(method)
        store = store_of(
            make_store, (method,), keep=_keep(method, 24), spec=spec, max_tokens=tokens + 20
        )
        text = text_for(method, spec, tokens)
        o_LBHTD, _ = read(store, text)
        assert o_LBHTD.shape == text.queries_LBHTD.shape and o_LBHTD.dtype == torch.float32
        assert o_LBHTD.isfinite().all() and store.length == tokens
        places = kept_positions(store)
        real = (places.diff(dim=-1) > 0) | (places[..., 1:] < 0)  # a head may have fewer
        assert real.all(), "tokens are not in order"


def check_unchanged_inputs(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError if a store changes the tensors it is shown."""
    text, before = (text_for(method, spec_of(), 60) for _ in range(2))
    read(store_of(make_store, (method,), keep=_keep(method, 24)), text)
    for name in ("queries_LBHTD", "keys_LBKTD", "values_LBKTD"):
        assert torch.equal(getattr(text, name), getattr(before, name)), f"{name} was changed"


def check_rows(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError if rows of a batch see each other."""
    if {Need.PROBE, Need.GENERATOR} & set(method.about.needs):
        return  # one row at a time, or one stream of draws for all rows
    if isinstance(method, Select) and method.reallocates:
        return  # one row at a time
    tokens = 60 + _span(method)
    text = text_for(method, spec_of(), tokens, batch=2)
    keep = _keep(method, 24)
    store = store_of(make_store, (method,), batch=2, keep=keep, max_tokens=tokens)
    both, _ = read(store, text)
    for row in (0, 1):
        part = Text(*(t[:, row : row + 1] for t in vars(text).values()))
        store = store_of(make_store, (method,), keep=keep, max_tokens=tokens)
        alone, _ = read(store, part)
        torch.testing.assert_close(both[:, row : row + 1], alone, rtol=1e-4, atol=1e-5)


def check_repeatable(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError unless the same seed gives the same answer."""
    text = text_for(method, spec_of(), 60)
    first, _ = read(store_of(make_store, (method,), keep=_keep(method, 24), seed=3), text)
    again, _ = read(store_of(make_store, (method,), keep=_keep(method, 24), seed=3), text)
    assert torch.equal(first, again), "same seed, other answer"


def check_snapshot(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError unless a store taken back reads on exactly like the one kept."""
    spec, stop = spec_of(), 60 + _span(method)
    text = text_for(method, spec, stop + 20)
    store = store_of(make_store, (method,), keep=_keep(method, 24), max_tokens=stop + 30)
    read(store, text, stop=stop)
    tensors, meta = store.snapshot(ids=range(stop))
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    twin = make_store.restore(
        spec, (method,), tensors, meta, ids=range(stop), generator=Generator().manual_seed(9)
    )
    fork = store.fork()
    for layer in range(spec.layers):
        for other in (twin, fork):
            ours, theirs = store.view(layer).dense(), other.view(layer).dense()
            assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
            assert torch.equal(ours.positions, theirs.positions)
    kept, _ = read(store, text, start=stop)
    back, _ = read(twin, text, start=stop)
    assert torch.equal(kept, back), "a restored store answers differently"
    assert all(torch.equal(before[n], t) for n, t in tensors.items()), "a snapshot was changed"
    assert store.nbytes() == twin.nbytes() == fork.nbytes() and fork.length == stop


def check_half(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError unless a float16 store answers much like a float32 one."""
    text = text_for(method, spec_of(), 30)
    whole, _ = read(store_of(make_store, (method,)), text)
    half, _ = read(store_of(make_store, (method,), dtype=torch.float16), text)
    torch.testing.assert_close(half, whole, rtol=0.02, atol=0.02)


def check_not_finite(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError unless keys that are not finite are refused."""
    for bad in (float("nan"), float("inf")):
        text = Text.of(spec_of(), 16)
        text.keys_LBKTD[1, 0, 0, 3, 5] = bad
        try:
            read(store_of(make_store, (method,)), text)
        except ModelError as error:
            assert "layer 1 are not finite" in str(error), str(error)
        else:
            raise AssertionError("keys that are not finite were stored")


def check_short(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError unless prompts of one and of three tokens work."""
    for tokens in (1, 3):
        text = Text.of(spec_of(), tokens)
        exact, _ = read(store_of(make_store, ()), text)
        ours, _ = read(store_of(make_store, (method,), keep=_keep(method, 24)), text)
        torch.testing.assert_close(ours, exact)


def check_room_enough(make_store: type[KVStore], method: Select) -> None:
    """Raise AssertionError unless a budget for all tokens changes nothing."""
    text = Text.of(spec_of(), 60)
    exact, _ = read(store_of(make_store, ()), text)
    room = 60 if method.allocates else 100  # where layers differ, only the whole text is enough
    ours, _ = read(store_of(make_store, (method,), keep=60, max_tokens=room), text)
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)


def check_evicts(make_store: type[KVStore], method: Select) -> None:
    """Raise AssertionError unless small budgets are kept, down to one token."""
    for keep in (1, 2, 24):
        store = store_of(make_store, (method,), keep=keep)
        text = Text.of(spec_of(), 70)
        read(store, text, stop=60)
        read(store, text, start=60, chunk=1)
        plan = store_plan(
            store.spec, (method,), max_tokens=200, budget_bytes=store.budget_bytes, chunk=16
        )
        held = 0
        for layer in range(store.spec.layers):
            places = kept_positions(store, layer)
            assert places.shape[-1] == store.held_tokens(layer) >= 1
            assert method.allocates or store.held_tokens(layer) <= plan.slots
            assert (places >= 0).any(-1).all(), "a head holds nothing"
            held += int((places >= 0).sum())
        assert held <= plan.slots * store.spec.layers * store.spec.kv_heads
        assert store.length == 70


def check_codes(make_store: type[KVStore], method: Encode | EncodeLayers) -> None:
    """Raise AssertionError unless codes are close to what they encode and never change again."""
    spec, closes = spec_of(), method.closes_every
    exact = method.exact_tokens if isinstance(method, EncodeLayers) else 0
    middle = max(100, exact + 2 * closes)
    tokens = middle + max(50, closes)
    text = text_for(method, spec, tokens)
    store = store_of(make_store, (method,), max_tokens=tokens)
    read(store, text, stop=middle)
    early = store.view(0).dense()
    closed = due_tokens(method, middle)
    assert closed >= closes, "nothing was encoded"
    read(store, text, start=middle)
    late = store.view(0).dense()
    for layer in range(spec.layers):
        assert store.held_tokens(layer) == tokens
    assert torch.equal(early.keys[:, :, :closed], late.keys[:, :, :closed]), "coded twice"
    error = (late.keys - text.keys_LBKTD[0]).norm() / text.keys_LBKTD[0].norm()
    assert error < 0.5, f"decoded keys are far from the keys: {error:.2f}"
    if method.keeps_groups and closes > 1:
        try:
            store.crop(closes - 1)
        except MethodError as refused:
            assert "cropped inside tokens" in str(refused), str(refused)
        else:
            raise AssertionError("cropped inside tokens that were encoded together")
    store.crop(closes)
    assert store.length == closes and store.held_tokens(0) == closes


def check_bad_parameters(cls: type[Method]) -> None:
    """Raise AssertionError unless values outside the declared range are refused by their name."""
    for name, (_, param) in cls.declared().items():
        bad: list[object] = [object()]
        bad += [int(param.ge) - 1] if param.ge is not None else []
        bad += [int(param.le) + 1] if param.le is not None else []
        bad += [99] if param.choices is not None and 99 not in param.choices else []
        bad += [4] if param.odd else []
        for value in bad:
            try:
                make(cls, {name: value})
            except ParameterError as error:
                assert f"{cls.about.name}.{name} must be" in str(error), str(error)
            else:
                raise AssertionError(f"{cls.about.name}.{name} took {value!r}")


def _span(method: Method) -> int:
    """Return the tokens more that are read so that some are encoded."""
    if not isinstance(method, EncodeLayers):
        return 0
    return method.closes_every + method.exact_tokens


def _keep(method: Method, tokens: int) -> int | None:
    return tokens if isinstance(method, Select) else None

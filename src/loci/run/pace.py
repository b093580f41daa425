"""How fast this machine runs a decoder: measured on made-up layers, as rates for the planner.

Peaks of arithmetic and bandwidth promise too much: a token of a small model spends half its time
on starting operators, weights are multiplied from codes at a speed of their own, and so on. So the
runner itself is timed over random weights, one kind of work after the other, and each rate is what
remains of a time when what is known already is taken off:

    launch         many narrow layers, where there is nothing but starting
    product4, 8    one token through wide layers of 4 and of 8 bits
    gemm, unpack   a prompt of many tokens, and one of few: the difference is arithmetic
    attend         one token after many keys, less one after none
    decode_kv      the same with codes in place of keys, and again after few of them: what is left
                   of that is the time it takes to start
    attend_many    a prompt after many keys, less one after none
    disk           blocks of a file read as streamed weights are

The best of several rounds counts, because other programs only ever slow a machine down.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from loci.core.cost import OpGraph
from loci.core.ledger import Ledger
from loci.core.spec import ModelSpec
from loci.hw.profiles import DeviceProfile, Pace
from loci.methods import catalogue
from loci.methods.cost.base import graph_of, start_of
from loci.methods.cost.roofline import Roofline
from loci.methods.kv.chain import Chain
from loci.methods.kv.store_plan import decoded_tokens
from loci.nn.packing import PackedWeight, row_bytes
from loci.run.kvstore import KVStore
from loci.run.runner import Runner
from loci.run.weights import Weights
from loci.tiers.blocks import BlockStore, BlockWriter
from loci.tiers.pool import aligned_empty

GROUP = 32
FEW, MANY = 32, 256  # tokens of prompts
NEAR, KEYS = 64, 2048  # keys before a token
BLOCK_BYTES, BLOCKS, _PASSES = 2 * 2**20, 24, 3  # of the file that is read as weights are
_BUDGET_S = 0.15  # of one measurement; a second round is always taken
_CODES = "bfp(bits=8, sinks=0, window=0)"  # all in codes, however few
_LEAST = 0.05  # of a measured time is left for what it was measured for


def measure(profile: DeviceProfile, folder: Path) -> Pace:
    """Return what this machine reaches.

    Args:
        profile: its bandwidth and peaks; folder: on the disk to be measured.
    """
    generator = torch.Generator().manual_seed(0)
    narrow = MadeUp(_spec(hidden=64, ffn=64, heads=1, kv_heads=1, layers=12), 4, generator)
    launches = _graph(narrow.spec, "decode", 1, 1)
    count = sum(op.repeat for op in launches.ops)
    profile = replace(profile, launch_s=_decode_s(narrow, 0) / count)
    wide = _spec(hidden=1024, ffn=2816, heads=16, kv_heads=4, layers=6)
    for bits in (8, 4):  # the weights of 4 bits are used again
        made = MadeUp(wide, bits, generator)
        work = _graph(made.spec, "decode", 1, 1)
        profile = _with(profile, f"product{bits}", work, _decode_s(made, 0))
    profile = _of_prompts(profile, made.cut(2))
    profile = _of_attention(profile, made.cut(2))
    return Pace(
        launch_s=profile.launch_s,
        starts=profile.starts,
        rates={name: rate for name, rate in profile.rates.items() if "/" in name},
        disk_bytes_per_s=_disk_rate(folder),
    )


# -- rates from times -------------------------------------------------------------------------


def _of_prompts(profile: DeviceProfile, made: MadeUp) -> DeviceProfile:
    few_s, many_s = (_prompt_s(made, tokens, 0) for tokens in (FEW, MANY))
    few, many = (_graph(made.spec, "prefill", tokens, tokens) for tokens in (FEW, MANY))
    rest = _seconds(profile, many, without="gemm") - _seconds(profile, few, without="gemm")
    operations = _operations(many, "gemm") - _operations(few, "gemm")
    left = max(many_s - few_s - rest, _LEAST * (many_s - few_s), 1e-9)
    profile = _rated(profile, "gemm", operations / left)
    return _with(profile, "unpack", few, few_s)


def _of_attention(profile: DeviceProfile, made: MadeUp) -> DeviceProfile:
    none_s, near_s, far_s = (_decode_s(made, keys) for keys in (0, NEAR, KEYS))
    none, far = (_graph(made.spec, "decode", 1, 1 + keys) for keys in (0, KEYS))
    operations = _operations(far, "attend") - _operations(none, "attend")
    profile = _rated(profile, "attend", operations / max(far_s - none_s, _LEAST * far_s))
    profile = _of_codes(profile, made, near_s, far_s)
    none_s, far_s = (_prompt_s(made, MANY, keys) for keys in (0, KEYS))
    none, far = (_graph(made.spec, "prefill", MANY, MANY + keys) for keys in (0, KEYS))
    operations = _operations(far, "attend_many") - _operations(none, "attend_many")
    return _rated(profile, "attend_many", operations / max(far_s - none_s, _LEAST * far_s))


def _of_codes(profile: DeviceProfile, made: MadeUp, near_s: float, far_s: float) -> DeviceProfile:
    """Compare codes with floats: after many keys for the rate, after few for the start."""
    codes = catalogue.parse_chain(_CODES, "kv")
    near, far = (
        _operations(_graph(made.spec, "decode", 1, 1 + keys, is_decoded=True), "decode_kv")
        for keys in (NEAR, KEYS)
    )
    more_near_s = _decode_s(made, NEAR, codes) - near_s
    more_far_s = _decode_s(made, KEYS, codes) - far_s
    rate = (far - near) / max(more_far_s - more_near_s, _LEAST * far_s)
    start_s = max((more_near_s - near / rate) / made.spec.layers, profile.launch_s)
    profile = replace(profile, starts={**profile.starts, "float32/decode_kv": start_s})
    return _rated(profile, "decode_kv", rate)


def _graph(
    spec: ModelSpec, phase: str, tokens: int, keys: int, *, is_decoded: bool = False
) -> OpGraph:
    return graph_of(
        spec,
        phase,  # type: ignore[arg-type]  # "decode" or "prefill"
        tokens=tokens,
        keys=keys,
        kv_bytes_per_element=1.0 if is_decoded else 4.0,
        decoded=is_decoded,
    )


def _with(profile: DeviceProfile, does: str, work: OpGraph, measured_s: float) -> DeviceProfile:
    """Return the profile with the rate that makes the time of `work` what was measured."""
    left = measured_s - _seconds(profile, work, without=does)
    return _rated(profile, does, _operations(work, does) / max(left, _LEAST * measured_s))


def _rated(profile: DeviceProfile, does: str, rate: float) -> DeviceProfile:
    return replace(profile, rates={**profile.rates, f"float32/{does}": rate})


def _seconds(profile: DeviceProfile, work: OpGraph, *, without: str) -> float:
    """Return the time of a graph, where one kind of work takes only the time of starting it."""
    model = Roofline()
    return sum(
        op.repeat
        * (
            start_of(profile, op.rate)
            if op.rate.endswith(f"/{without}")
            else model.time(op, profile)[0]
        )
        for op in work.ops
    )


def _operations(work: OpGraph, does: str) -> float:
    return sum(op.operations * op.repeat for op in work.ops if op.rate.endswith(f"/{does}"))


# -- times ------------------------------------------------------------------------------------


def _decode_s(made: MadeUp, keys: int, chain: Chain = ()) -> float:
    """Return the seconds of one token after `keys` others."""
    step = torch.zeros(1, 1, dtype=torch.long)
    with _running(made, 1, keys, chain) as (runner, store):
        return _best(lambda: runner.forward(step, store), lambda: store.crop(keys))


def _prompt_s(made: MadeUp, tokens: int, keys: int, chain: Chain = ()) -> float:
    """Return the seconds of a step of `tokens` tokens after `keys` others, its head left out."""
    ids = torch.zeros(1, tokens, dtype=torch.long)
    with _running(made, tokens, keys, chain) as (runner, store):
        return _best(lambda: runner.forward(ids, store, logits=None), lambda: store.crop(keys))


class _running:  # noqa: N801  # used as a function
    """A runner and a store that holds `keys` tokens nobody read."""

    def __init__(self, made: MadeUp, chunk: int, keys: int, chain: Chain) -> None:
        room = keys + chunk
        self.store = KVStore(made.spec, chain, max_tokens=room, chunk=max(chunk, FEW))
        self.runner = Runner(
            made.spec, made, Ledger({"dram": 2**62}), chunk=chunk,
            decoded_tokens=decoded_tokens(chain, room),
        )  # fmt: skip
        self._fill(made.spec, keys)

    def __enter__(self) -> tuple[Runner, KVStore]:
        return self.runner, self.store

    def __exit__(self, *error: object) -> None:
        self.runner.release()
        self.store.release()

    def _fill(self, spec: ModelSpec, keys: int) -> None:
        shape = (1, spec.kv_heads, FEW, spec.head_dim)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        for start in range(0, keys, FEW):
            count = min(FEW, keys - start)
            part = noise[:, :, :count].contiguous()
            places = torch.arange(start, start + count)[None]
            for layer in range(spec.layers):
                self.store.append(layer, part, part, places)
            self.store.advance(count)


def _best(work: Callable[[], object], back: Callable[[], object]) -> float:
    """Return the shortest of several times of `work`; `back` undoes it each time."""
    work()  # the first one warms up
    best, began = math.inf, time.perf_counter()
    while best == math.inf or time.perf_counter() - began < _BUDGET_S:
        back()
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _disk_rate(folder: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        path = Path(fresh, "blocks")
        data = bytes(torch.randint(0, 256, (BLOCK_BYTES,), dtype=torch.uint8).numpy())
        with BlockWriter(path, {}) as writer:
            for index in range(BLOCKS):
                writer.add(str(index), {"x": data})
        with BlockStore(path, mapped=False) as store:
            into, best = aligned_empty(store.stored_bytes("0")), math.inf
            for _ in range(_PASSES):
                began = time.perf_counter()
                for index in range(BLOCKS):
                    store.read(str(index), into)
                best = min(best, time.perf_counter() - began)
            return BLOCKS * BLOCK_BYTES / best


# -- made-up weights --------------------------------------------------------------------------


def _spec(*, hidden: int, ffn: int, heads: int, kv_heads: int, layers: int) -> ModelSpec:
    return ModelSpec(
        name="made up",
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=64,
        ffn=ffn,
        vocab=256,
        max_context=8192,
        weight_bits=16.0,  # `MadeUp` sets it
        embed_bits=32.0,
    )


class MadeUp:
    """Random packed weights of a spec in memory; a `WeightSource` for the runner."""

    def __init__(self, spec: ModelSpec, bits: int, generator: torch.Generator) -> None:
        self.spec = replace(spec, weight_bits=bits + 32 / GROUP)  # a scale and a minimum a group
        self._layers: list[Weights] = [
            {
                "input_norm": torch.ones(spec.hidden),
                "post_norm": torch.ones(spec.hidden),
                **{
                    name: _random(*shape, bits, generator)
                    for name, shape in spec.layer_linears().items()
                },
            }
            for _ in range(spec.layers)
        ]
        self._norm = torch.ones(spec.hidden)
        self._head = torch.zeros(spec.vocab, spec.hidden)
        self._table = torch.full((spec.vocab, spec.hidden), 0.1)  # something that is not zero

    def cut(self, layers: int) -> MadeUp:
        """Return the first layers alone."""
        twin = MadeUp.__new__(MadeUp)
        twin.__dict__ |= self.__dict__
        twin.spec, twin._layers = replace(self.spec, layers=layers), self._layers[:layers]
        return twin

    def layer(self, index: int) -> Weights:
        """Return the tensors of a decoder layer."""
        return self._layers[index]

    def norm(self) -> Tensor:
        """Return the final norm weight."""
        return self._norm

    def head(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the whole head."""
        yield 0, self._head

    def embedding(self) -> list[Tensor]:
        """Return the whole embedding: with it the kernels take a forward in one call."""
        return [self._table]

    def embed(self, ids: Tensor, out: Tensor) -> None:
        """Write the embeddings of ids."""
        torch.index_select(self._table, 0, ids, out=out)

    def end_pass(self) -> None:
        """Nothing is read ahead."""

    def moved(self) -> dict[tuple[str, str], int]:
        """Nothing moves."""
        return {}

    def release(self) -> None:
        """Nothing is held under a ledger."""


def _random(out: int, inner: int, bits: int, generator: torch.Generator) -> PackedWeight:
    codes = torch.randint(
        0, 256, (out, row_bytes(inner, bits)), dtype=torch.uint8, generator=generator
    )
    scales = torch.full((out, inner // GROUP), 2.0 / 2**bits / inner**0.5, dtype=torch.float16)
    return PackedWeight(
        codes=codes,
        scales=scales,
        mins=(-scales * 2 ** (bits - 1)),
        bits=bits,
        group=GROUP,
        shape=(out, inner),
    )

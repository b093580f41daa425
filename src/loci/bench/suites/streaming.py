"""Streaming weights from a slow disk, beside reading each block when it is needed.

The disk is slowed down so that reading the streamed bytes takes as long as computing with them:
there, working ahead can hide the most. A pass reads 128 tokens, enough computing for that to be no
faster than real disks are. Every contender takes turns with the same tokens and the same blocks
pinned; logits must equal those of the model in memory. Predicted bytes and pace stand beside the
measured ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any  # results hold whatever JSON can hold

import torch
from torch import Tensor

from loci.bench import texts
from loci.bench.cards import Row
from loci.bench.stats import alternate, ratio
from loci.bench.suite import Context
from loci.core.ledger import Ledger
from loci.methods import catalogue
from loci.methods.offload.base import Offload, Placement
from loci.models.load import resolve
from loci.models.pack import Pack
from loci.nn.form import Form
from loci.plan.streaming import uses_of
from loci.run.kvstore import KVStore
from loci.run.lab import NO_LIMIT
from loci.run.runner import Runner
from loci.run.weights import (
    ResidentWeights,
    StreamedWeights,
    Weights,
    WeightSource,
    execution_order,
    head_names,
)
from loci.tiers.pool import aligned_empty
from loci.tiers.throttled import Link

ABOUT = "weights streamed from a slow disk, beside reading each block when it is needed"
KINDS = ("offload",)
DEFAULT = ("tpi_llm(window=2)", "tpi_llm(window=4)")
SHARES = (0.0, 0.5)  # of the bytes between the least budget and the whole model
TOKENS, QUICK_TOKENS, PASSES, ROUNDS, QUICK_ROUNDS = 128, 16, 4, 5, 1
MEMORY, WHEN_NEEDED = "in memory", "when needed"


class WhenNeeded:
    """Blocks read one by one at the moment they are used: what working ahead is compared with."""

    def __init__(self, pack: Pack, pinned: Sequence[str], link: Link) -> None:
        self._pack, self._link = pack, link
        self._head_names = head_names(pack)
        streamed = [name for name in execution_order(pack) if name not in set(pinned)]
        self._buffer = aligned_empty(max(map(pack.store.stored_bytes, streamed), default=0))
        self._pinned = {
            name: pack.from_read(name, pack.store.read(name, _room(pack, name)))
            for name in dict.fromkeys((*pinned, "norm"))
        }

    def layer(self, index: int) -> Weights:
        """Return the tensors of a decoder layer."""
        return self._get(f"layer.{index}")

    def norm(self) -> Tensor:
        """Return the final norm weight."""
        weight = next(iter(self._pinned["norm"].values()))
        assert isinstance(weight, Tensor)
        return weight.float()

    def head(self) -> Iterator[tuple[int, Form | Tensor]]:
        """Yield (first vocabulary row, weight) of each tile of the head."""
        start = 0
        for name in self._head_names:
            weight = next(iter(self._get(name).values()))
            yield start, weight
            start += weight.shape[0]

    def embed(self, ids: Tensor, out: Tensor) -> None:
        """Write the embeddings of ids into out."""
        self._pack.embed_rows(ids, out=out)

    def end_pass(self) -> None:
        """Nothing is read ahead."""

    def moved(self) -> dict[tuple[str, str], int]:
        """Return the bytes read so far."""
        return {("disk", "dram"): self._pack.store.bytes_read}

    def release(self) -> None:
        """Let go of the buffers."""
        self._pinned.clear()

    def _get(self, name: str) -> Weights:
        if name in self._pinned:
            return self._pinned[name]
        arrival = self._link.book(self._pack.store.stored_bytes(name))
        raw = self._pack.store.read(name, self._buffer)
        self._link.wait_until(arrival)
        return self._pack.from_read(name, raw)


class _Contender:
    """One way to have the weights, ready to read the same tokens again and again."""

    def __init__(self, pack: Pack, weights: WeightSource, parts: Sequence[Sequence[int]]) -> None:
        ledger = Ledger(NO_LIMIT)
        first, *self._parts = (torch.tensor([ids]) for ids in parts)
        self.weights = weights
        self._store = KVStore(pack.spec, max_tokens=sum(map(len, parts)), chunk=len(parts[0]))
        self._runner = Runner(pack.spec, weights, ledger, chunk=len(parts[0]))
        self._runner.forward(first, self._store)
        self._start = self._store.length
        self.logits = torch.empty(0)
        self.moved = 0

    def read(self) -> float:
        """Return the mean seconds of a pass, after one that is not counted."""
        self._store.crop(self._start)
        began, before = 0.0, 0
        logits = self.logits
        for index, part in enumerate(self._parts):
            found = self._runner.forward(part, self._store)
            assert found is not None
            logits = found
            if index == 0:
                began, before = time.perf_counter(), self._moved()
        took = time.perf_counter() - began
        self.logits = logits.clone()
        self.moved = (self._moved() - before) // PASSES
        return took / PASSES

    def _moved(self) -> int:
        return sum(self.weights.moved().values())

    def close(self) -> None:
        """Give everything back."""
        self._runner.release()
        self._store.release()
        self.weights.release()


def run(context: Context) -> dict[str, Any]:
    """Measure every method at every share of the budget."""
    rounds = QUICK_ROUNDS if context.quick else ROUNDS
    names = context.methods or DEFAULT
    results = []
    with ExitStack() as stack:
        whole = resolve(context.model, context.folder)
        stack.callback(whole.close)
        spec = whole.spec
        parts = _parts(whole, QUICK_TOKENS if context.quick else TOKENS)
        memory = _Contender(whole, ResidentWeights(whole, Ledger(NO_LIMIT)), parts)
        stack.callback(memory.close)
        memory.read()
        compute_s = min(memory.read() for _ in range(3))
        blocks = [(n, whole.nbytes(n), whole.stored_bytes(n)) for n in whole.names()]
        sizes, uses, norm = uses_of(blocks)
        total = sum(stored for name, stored in sizes if name in set(uses))
        for name in names:
            method: Any = catalogue.find(name, "offload")
            least = method.least_bytes(sizes, uses)
            for share in SHARES[:1] if context.quick else SHARES:
                budget = int(least + share * (total - least))
                placed = method.place(sizes, uses, budget)
                link_s = placed.moved_bytes / compute_s  # reading takes as long as computing
                found = _one(
                    context, method, placed, uses, parts, memory, link_s, rounds, compute_s
                )
                results.append({"method": name, "share": share, "budget_bytes": budget, **found})
    return {
        "model": context.model,
        "fingerprint": spec.fingerprint,
        "full_bytes": spec.full_bytes(),
        "norm_bytes": norm,
        "rounds": rounds,
        "results": results,
    }


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return the seconds of a pass over those of the rivals, and what moved."""
    return [
        Row(
            method=row["method"],
            kind="offload",
            part=f"{row['share']:g}",
            metrics={
                "moved_bytes_per_pass": {
                    "this": row["moved_bytes"]["measured"],
                    "rivals": {"predicted": row["moved_bytes"]["predicted"]},
                },
                "largest_difference_of_logits": {"this": row["difference"]},
                "pace_predicted_over_measured": {"this": row["pace"]},
            },
            bytes={
                "full": result["full_bytes"],
                "predicted": row["held_bytes"]["predicted"],
                "measured": row["held_bytes"]["measured"],
            },
            ratio={f"pass_s over {k}": v["value"] for k, v in row["ratio"].items()},
        )
        for row in result["results"]
    ]


# -- private ----------------------------------------------------------------------------------


def _one(
    context: Context,
    method: Offload,
    placed: Placement,
    uses: Sequence[str],
    parts: Sequence[Sequence[int]],
    memory: _Contender,
    bytes_per_s: float,
    rounds: int,
    compute_s: float,
) -> dict[str, Any]:
    ledger = Ledger(NO_LIMIT)
    with ExitStack() as stack:

        def opened() -> Pack:
            pack = resolve(context.model, context.folder, mapped=False)
            stack.callback(pack.close)
            return pack

        pack = opened()
        ours = _Contender(
            pack,
            StreamedWeights(
                pack,
                ledger,
                pinned=placed.pinned,
                window=placed.window_blocks,
                link=Link(bytes_per_s=bytes_per_s),
            ),
            parts,
        )
        stack.callback(ours.close)
        measured = ledger.used("dram")
        other = opened()
        link = Link(bytes_per_s=bytes_per_s)
        when_needed = _Contender(other, WhenNeeded(other, placed.pinned, link), parts)
        stack.callback(when_needed.close)
        turns: dict[str, Callable[[], float | None]] = {
            str(method): ours.read,
            WHEN_NEEDED: when_needed.read,
            MEMORY: memory.read,
        }
        times = alternate(turns, rounds, context.progress)
        norm = pack.stored_bytes("norm")
        size = {name: pack.stored_bytes(name) for name in uses}
    mine = times[str(method)]
    tokens = len(parts[0])
    rows = {name: tokens if name.startswith("layer.") else 1 for name in uses}  # head: last token
    work = sum(size[name] * rows[name] for name in uses)
    each_s = {name: compute_s * size[name] * rows[name] / work for name in uses}
    load_s = {name: size[name] / bytes_per_s for name in placed.streamed}
    pace = method.pace(placed, uses, each_s, load_s)
    return {
        "link_bytes_per_s": bytes_per_s,
        "ratio": {
            "when_needed": ratio(mine, times[WHEN_NEEDED]).to_json(),
            "in_memory": ratio(mine, times[MEMORY]).to_json(),
        },
        "pace": pace / sorted(mine)[len(mine) // 2],
        "held_bytes": {"predicted": placed.held_bytes + norm, "measured": measured},
        "moved_bytes": {"predicted": placed.moved_bytes, "measured": ours.moved},
        "difference": float((ours.logits - memory.logits).abs().max()),
    }


def _parts(pack: Pack, tokens: int) -> list[list[int]]:
    """Return the tokens of a prompt and of every pass, as many in each."""
    from loci.models.tokenizer import Tokenizer

    ids = Tokenizer(pack.folder).encode(texts.prose()[:8000])
    return [ids[start : start + tokens] for start in range(0, tokens * (PASSES + 2), tokens)]


def _room(pack: Pack, name: str) -> Tensor:
    return aligned_empty(pack.store.stored_bytes(name))

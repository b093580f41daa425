"""Weights for a running model: mapped whole, or streamed from disk through a small ring.

Both sources answer the same calls, so the runner does not know which one it has. A forward takes
its blocks in a fixed order: layers first to last, the final norm, then the tiles of the head. A
streamed source pins what the plan pinned and reads the others ahead in exactly that order, around
and around, while the runner computes with the blocks before them: the sliding memory window of
TPI-LLM (arXiv:2410.00531, section 3.3) on one machine.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from loci.core.event import Event, Events
from loci.core.ledger import Ledger
from loci.errors import ParameterError
from loci.models.pack import Pack
from loci.nn.form import Form
from loci.nn.packing import dequantise
from loci.tiers.pool import aligned_empty
from loci.tiers.throttled import Link

Weights = Mapping[str, Form | Tensor]
Repack = Callable[[str, Tensor], Form | Tensor]
MIN_WINDOW = 2  # one block computes while the next one is read


class WeightSource(Protocol):
    """Blocks of weights in the order of execution."""

    def layer(self, index: int) -> Weights:
        """Return the tensors of a decoder layer; valid until the next call."""
        ...

    def norm(self) -> Tensor:
        """Return the final norm weight, float32 [hidden]."""
        ...

    def head(self) -> Iterator[tuple[int, Form | Tensor]]:
        """Yield (first vocabulary row, weight) of each tile of the head."""
        ...

    def embed(self, ids: Tensor, out: Tensor) -> None:
        """Write the embeddings of ids [n] into out, float32 [n, hidden]."""
        ...

    def end_pass(self) -> None:
        """Tell that this forward needs no more blocks."""
        ...

    def moved(self) -> dict[tuple[str, str], int]:
        """Return {(from tier, to tier): bytes} read so far."""
        ...

    def release(self) -> None:
        """Give every byte back."""
        ...


@runtime_checkable
class FixedSource(Protocol):
    """A `WeightSource` whose weights stay what and where they are for as long as it lives."""

    def embedding(self) -> Sequence[Form | Tensor]:
        """Return the tiles of the embedding, whose rows follow each other."""
        ...


def head_names(pack: Pack) -> list[str]:
    """Return the names of the head's tiles; with a tied head they are the embedding's."""
    own = [name for name in pack.names() if name.startswith("head.")]
    return own or [name for name in pack.names() if name.startswith("embed.")]


def execution_order(pack: Pack) -> list[str]:
    """Return the blocks that one decoded token needs, in order; the final norm is not among them.

    An untied embedding is looked up row by row and therefore is not listed either.
    """
    return [f"layer.{i}" for i in range(pack.spec.layers)] + head_names(pack)


class ResidentWeights:
    """Every block mapped from the pack file for as long as the run lasts."""

    def __init__(self, pack: Pack, ledger: Ledger, tier: str = "dram") -> None:
        self._lease = ledger.reserve("weights", tier, pack.total_bytes, "weights")
        self._pack = pack
        self._layers = [pack.block(f"layer.{i}") for i in range(pack.spec.layers)]
        self._norm = _norm_of(pack.block("norm"))
        self._head = list(_tiles((name, pack.block(name)) for name in head_names(pack)))

    def layer(self, index: int) -> Weights:
        """Return the tensors of a decoder layer."""
        return self._layers[index]

    def norm(self) -> Tensor:
        """Return the final norm weight, float32 [hidden]."""
        return self._norm

    def head(self) -> Iterator[tuple[int, Form | Tensor]]:
        """Yield (first vocabulary row, weight) of each tile of the head."""
        return iter(self._head)

    def embedding(self) -> Sequence[Form | Tensor]:
        """Return the tiles of the embedding, whose rows follow each other."""
        return [self._pack.block(name)["weight"] for name, _ in self._pack.tiles("embed")]

    def embed(self, ids: Tensor, out: Tensor) -> None:
        """Write the embeddings of ids [n] into out, float32 [n, hidden]."""
        self._pack.embed_rows(ids, out=out)

    def end_pass(self) -> None:
        """Nothing is read ahead, so nothing has to end."""

    def moved(self) -> dict[tuple[str, str], int]:
        """Nothing moves during the run; opening the file is not counted."""
        return {}

    def release(self) -> None:
        """Let go of the mapping."""
        self._layers.clear()
        self._head.clear()
        self._lease.release()


class RepackedWeights:
    """Weights of a pack, its layers' linear weights packed anew by a quantisation method.

    Args:
        repack: takes a name such as "layer.3.q_proj" and a float32 [out, in], and returns what
            takes its place.
    """

    def __init__(self, pack: Pack, repack: Repack, ledger: Ledger, tier: str = "dram") -> None:
        linears = pack.spec.layer_linears()
        self._pack = pack
        self._layers: list[Weights] = []
        for index in range(pack.spec.layers):
            block = dict(pack.block(f"layer.{index}"))
            for name in linears:
                weight = block[name]
                dense = weight.float() if isinstance(weight, Tensor) else dequantise(weight)
                block[name] = repack(f"layer.{index}.{name}", dense)
            self._layers.append(block)
        nbytes = sum(tensor.nbytes for block in self._layers for tensor in block.values())
        rest = [(name, pack.block(name)) for name in pack.names() if not name.startswith("layer.")]
        nbytes += sum(tensor.nbytes for _, block in rest for tensor in block.values())
        self._lease = ledger.reserve("weights", tier, nbytes, "weights")
        self._norm = _norm_of(pack.block("norm"))
        self._head = list(_tiles((name, pack.block(name)) for name in head_names(pack)))

    def layer(self, index: int) -> Weights:
        """Return the tensors of a decoder layer."""
        return self._layers[index]

    def norm(self) -> Tensor:
        """Return the final norm weight, float32 [hidden]."""
        return self._norm

    def head(self) -> Iterator[tuple[int, Form | Tensor]]:
        """Yield (first vocabulary row, weight) of each tile of the head."""
        return iter(self._head)

    def embedding(self) -> Sequence[Form | Tensor]:
        """Return the tiles of the embedding, whose rows follow each other."""
        return [self._pack.block(name)["weight"] for name, _ in self._pack.tiles("embed")]

    def embed(self, ids: Tensor, out: Tensor) -> None:
        """Write the embeddings of ids [n] into out, float32 [n, hidden]."""
        self._pack.embed_rows(ids, out=out)

    def end_pass(self) -> None:
        """Nothing is read ahead, so nothing has to end."""

    def moved(self) -> dict[tuple[str, str], int]:
        """Nothing moves during the run."""
        return {}

    def nbytes(self) -> int:
        """Return the bytes of all weights."""
        return self._lease.nbytes

    def release(self) -> None:
        """Give every byte back."""
        self._layers.clear()
        self._head.clear()
        self._lease.release()


class StreamedWeights:
    """Some blocks pinned, the others read from disk in a circle.

    Args:
        pack: opened without mapping.
        pinned: names that stay in memory.
        window: number of ring buffers, at least 2.
        events: told about waits for the disk.
        link: reads take at least as long as they would over it; None is the disk's own speed.
    """

    def __init__(
        self,
        pack: Pack,
        ledger: Ledger,
        *,
        pinned: Sequence[str],
        window: int,
        tier: str = "dram",
        events: Events | None = None,
        link: Link | None = None,
    ) -> None:
        self._pack, self._events, self._link = pack, events, link
        order = execution_order(pack)
        held = set(pinned)
        unknown = held - set(pack.names())
        if unknown:
            raise ParameterError("the plan pins blocks the pack does not have", value=unknown)
        store = pack.store
        self._streamed = [name for name in order if name not in held]
        if window < min(MIN_WINDOW, len(self._streamed)):
            raise ParameterError(
                "a streaming window needs room for at least two blocks",
                value=window,
                allowed=f">= {MIN_WINDOW}",
            )
        kept = list(dict.fromkeys([*pinned, "norm"]))
        slot = max((store.stored_bytes(n) for n in self._streamed), default=0)
        window = min(window, len(self._streamed))
        total = sum(store.stored_bytes(n) for n in kept) + window * slot
        self._lease = ledger.reserve("weights", tier, total, "weights")
        self._head_names = head_names(pack)
        self._pinned = {n: self._read(n, aligned_empty(store.stored_bytes(n))) for n in kept}
        self._ring = [aligned_empty(slot) for _ in range(window)]
        self._free: deque[int] = deque(range(window))
        self._ready: deque[tuple[str, int, Weights]] = deque()
        self._in_use: int | None = None
        self._changed = threading.Condition()
        self._stop = False
        self._error: BaseException | None = None
        self._generation = 0
        self._next = 0  # place in the circle of the next block to read
        self._want = 0  # place in the circle of the next block to hand out
        self.wait_s = 0.0
        self._thread = threading.Thread(target=self._load, name="loci-weights", daemon=True)
        if self._streamed:
            self._thread.start()

    def layer(self, index: int) -> Weights:
        """Return the tensors of a decoder layer; valid until the next block is asked for."""
        return self._get(f"layer.{index}")

    def norm(self) -> Tensor:
        """Return the final norm weight, float32 [hidden]."""
        return _norm_of(self._pinned["norm"])

    def head(self) -> Iterator[tuple[int, Form | Tensor]]:
        """Yield (first vocabulary row, weight) of each tile; one tile is valid at a time."""
        return _tiles((name, self._get(name)) for name in self._head_names)

    def embed(self, ids: Tensor, out: Tensor) -> None:
        """Write the embeddings of ids [n] into out, read row by row."""
        self._pack.embed_rows(ids, out=out)

    def end_pass(self) -> None:
        """Free the last block; a pass without a head skips its tiles in what is read ahead."""
        with self._changed:
            self._give_back()

    def moved(self) -> dict[tuple[str, str], int]:
        """Return the bytes read from disk so far, single embedding rows included.

        Waits until the ring is full: at the same place of two passes it differs by one pass.
        """
        with self._changed:
            while not self._stop and self._error is None and self._held() < len(self._ring):
                self._changed.wait()
        return {("disk", "dram"): self._pack.store.bytes_read}

    def release(self) -> None:
        """Stop reading and give every byte back."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        self._pinned.clear()
        self._ready.clear()
        self._ring.clear()
        self._lease.release()

    # -- private ------------------------------------------------------------------------------

    def _read(self, name: str, into: Tensor) -> Weights:
        store = self._pack.store
        if self._link is None:
            return self._pack.from_read(name, store.read(name, into))
        arrival = self._link.book(store.stored_bytes(name))
        raw = store.read(name, into)
        self._link.wait_until(arrival)
        return self._pack.from_read(name, raw)

    def _get(self, name: str) -> Weights:
        held = self._pinned.get(name)
        if held is not None:
            with self._changed:
                self._give_back()
            return held
        started = time.perf_counter()
        with self._changed:
            self._give_back()
            if self._streamed[self._want] != name:
                self._restart(name)
            while not (self._ready and self._ready[0][0] == name):
                if self._error is not None:
                    raise self._error
                self._changed.wait()
            _, slot, weights = self._ready.popleft()
            self._in_use = slot
            self._want = (self._want + 1) % len(self._streamed)
        waited = time.perf_counter() - started
        self.wait_s += waited
        if waited > 0.001 and self._events is not None:
            self._events.emit(Event(name="weights.wait", data={"block": name, "s": waited}))
        return weights

    def _held(self) -> int:
        """Return how many buffers hold a block that was read."""
        return len(self._ready) + (self._in_use is not None)

    def _give_back(self) -> None:
        if self._in_use is not None:
            self._free.append(self._in_use)
            self._in_use = None
            self._changed.notify_all()

    def _restart(self, name: str) -> None:
        """Read ahead from `name` on; what was read for another place is dropped."""
        self._generation += 1
        while self._ready:
            self._free.append(self._ready.popleft()[1])
        self._next = self._want = self._streamed.index(name)
        self._changed.notify_all()

    def _load(self) -> None:
        while True:
            with self._changed:
                while not self._free and not self._stop:
                    self._changed.wait()
                if self._stop:
                    return
                slot, generation = self._free.popleft(), self._generation
                name = self._streamed[self._next]
                self._next = (self._next + 1) % len(self._streamed)
            try:
                weights = self._read(name, self._ring[slot])
            except BaseException as error:  # handed to the reader, who raises it
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                if generation == self._generation:
                    self._ready.append((name, slot, weights))
                else:
                    self._free.append(slot)
                self._changed.notify_all()


def _norm_of(block: Weights) -> Tensor:
    weight = next(iter(block.values()))
    if not isinstance(weight, Tensor):
        raise ParameterError("the final norm is stored packed", value=type(weight).__name__)
    return weight.to(torch.float32)


def _tiles(
    blocks: Iterator[tuple[str, Weights]],
) -> Iterator[tuple[int, Form | Tensor]]:
    start = 0
    for _, block in blocks:
        weight = next(iter(block.values()))
        yield start, weight
        start += weight.shape[0]

"""TPI-LLM's sliding window: hold a few blocks, load the next ones while computing.

Z. Li et al., "TPI-LLM: Serving 70B-scale LLMs Efficiently on Low-resource Edge Devices", 2024,
arXiv:2410.00531, the memory scheduler.

Blocks are used in the same cyclic order for every token. A loader reads them in that order into a
ring of w buffers, waiting while all are taken; a buffer is free again once its block was computed.
So the loader works ahead, over the end of a token into the next. With t compute and l load times,
i the i-th use and w buffers:

    loaded[j]   = max(loaded[j-1], computed[j-w]) + l[j]         over the streamed uses j
    computed[i] = max(computed[i-1], loaded[i]) + t[i]           over all uses i

Blocks that fit beside the ring stay in memory for good (the paper keeps one FFN block in every T),
the largest first and spread evenly over the order, so that between two loads there is always some
computing to hide them behind.

Differs from the paper: one process, so there is no tensor parallelism and no all-reduce; blocks are
whole layers and tiles of the embedding. The recurrences replace its loose and tight conditions.
Not for: models that fit. Every token reads all streamed bytes again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from loci.core.cost import Cost
from loci.core.method import About, Kind, Param, Phase
from loci.core.spec import ModelSpec, Workload
from loci.errors import BudgetError, ParameterError
from loci.methods.offload.base import Offload, Placement, page_bytes
from loci.units import format_bytes

_WARM_TOKENS, _TIMED_TOKENS = 4, 8  # the cycle settles after the ring has gone round once or twice


@dataclass(frozen=True, kw_only=True)
class TpiLlm(Offload):
    """A ring of `window` buffers through which everything passes that is not pinned."""

    about = About(
        name="tpi_llm",
        kind=Kind.OFFLOAD,
        paper="arXiv:2410.00531",
        idea="the next blocks are loaded while this one computes",
        phases=(Phase.LOAD, Phase.PREFILL, Phase.DECODE),
        lossy=False,
        reconstruction="which blocks to pin, and in what order",
    )

    window: Annotated[
        int, Param(help="buffers of the ring", unit="blocks", ge=2, source="memory scheduler")
    ] = 2

    def least_bytes(self, blocks: Sequence[tuple[str, int]], uses: Sequence[str]) -> int:
        return min(self._steps({name: page_bytes(nbytes) for name, nbytes in blocks}, uses)[1])

    def place(
        self,
        blocks: Sequence[tuple[str, int]],
        uses: Sequence[str],
        budget_bytes: int,
        links: Mapping[tuple[str, str], float] | None = None,
    ) -> Placement:
        size = {name: page_bytes(nbytes) for name, nbytes in blocks}
        order, held = self._steps(size, uses)
        fitting = [count for count, nbytes in enumerate(held) if nbytes <= budget_bytes]
        if not fitting:
            raise BudgetError(
                f"a window of {self.window} blocks needs {format_bytes(min(held))} of memory; the "
                f"budget gives {format_bytes(budget_bytes)} "
                f"({format_bytes(min(held) - budget_bytes)} short)",
                way_out="give it more memory, or a model with smaller layers",
            )
        kept = set(order[: fitting[-1]])
        ring = held[fitting[-1]] - sum(size[name] for name in kept)
        return Placement(
            pinned=tuple(name for name in dict.fromkeys(uses) if name in kept),
            streamed=tuple(name for name in dict.fromkeys(uses) if name not in kept),
            left=tuple(name for name, _ in blocks if name not in set(uses)),
            window_blocks=min(self.window, len(order) - len(kept)),
            ring_bytes=ring,
            pinned_bytes=sum(size[name] for name in kept),
            moved_bytes=sum(size[name] for name in uses if name not in kept),
        )

    def pace(
        self,
        placement: Placement,
        uses: Sequence[str],
        compute_s: Mapping[str, float],
        load_s: Mapping[str, float],
    ) -> float:
        streamed = set(placement.streamed)
        loaded = computed = 0.0
        freed: list[float] = []  # when the buffer of each streamed use became free
        ends = []
        for _ in range(_WARM_TOKENS + _TIMED_TOKENS):
            for name in uses:
                if name in streamed:
                    before = len(freed) - placement.window_blocks
                    loaded = max(loaded, freed[before] if before >= 0 else 0.0) + load_s[name]
                    computed = max(computed, loaded)
                computed += compute_s.get(name, 0.0)
                if name in streamed:
                    freed.append(computed)
            ends.append(computed)
        return (ends[-1] - ends[_WARM_TOKENS - 1]) / _TIMED_TOKENS

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return memory held and bytes read per token, from sizes alone (layers and one head)."""
        weights = spec.linear_elements() // spec.layers * spec.weight_bits
        layer = round((weights + 32 * spec.layer_norm_elements()) / 8)
        head = round(spec.vocab * spec.hidden * spec.embed_bits / 8)
        tiles = max(1, -(-head // layer))  # the embedding is cut into tiles of about a layer
        blocks = [(f"layer.{i}", layer) for i in range(spec.layers)]
        blocks += [(f"head.{i}", -(-head // tiles)) for i in range(tiles)]
        placed = self.place(blocks, [name for name, _ in blocks], budget_bytes)
        return Cost(held={"dram": placed.held_bytes}, moved={("disk", "dram"): placed.moved_bytes})

    def _steps(self, size: Mapping[str, int], uses: Sequence[str]) -> tuple[list[str], list[int]]:
        """Return the order of pinning, and the bytes held when its first 0, 1, ... are pinned."""
        if unknown := [name for name in uses if name not in size]:
            raise ParameterError("a token uses a block that is not there", value=unknown[0])
        order, held, pinned_bytes = _pin_order(size, uses), [], 0
        for count in range(len(order) + 1):
            rest = order[count:]
            slots = min(self.window, len(rest))
            held.append(pinned_bytes + slots * max((size[name] for name in rest), default=0))
            pinned_bytes += size[rest[0]] if rest else 0
        return order, held


def _pin_order(size: Mapping[str, int], uses: Sequence[str]) -> list[str]:
    """Return blocks as they are pinned: large before small, equal ones far from each other first.

    One order for every budget, so that what a small budget pins a larger one pins too.
    """
    used = list(dict.fromkeys(uses))

    def spread(position: int) -> float:  # van der Corput: 0, 1/2, 1/4, 3/4, 1/8, ...
        value, step = 0.0, 0.5
        while position:
            value += step * (position & 1)
            position >>= 1
            step /= 2
        return value

    place_of = {name: position for position, name in enumerate(used)}
    return sorted(used, key=lambda name: (-size[name], spread(place_of[name])))

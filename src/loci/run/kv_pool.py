"""The storage of a KV store: its tensors, how they are cut into lanes, and how much is in use.

All of it is allocated once, under the ledger, by the table that `predict_store` adds up. A block of
the pool is one row of the batch: [rows, layers, 2, kv heads, tokens, head size].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # JSON values

import torch
from torch import Tensor

from loci.core.ledger import Lease, Ledger
from loci.core.method import Granularity, Method, Need
from loci.core.ports import Artefact
from loci.core.spec import ModelSpec
from loci.errors import FingerprintError, FormatError, MethodError
from loci.methods.kv.base import EncodeLayers, KVMethod, LayerGroup
from loci.methods.kv.chain import Chain, check_chain, layer_groups
from loci.methods.kv.retrieve import Bank
from loci.methods.kv.store_plan import kept_tokens, store_plan
from loci.nn.kv import FirstTokens
from loci.nn.rope import Rope
from loci.run.kv_lanes import Lane, levelled
from loci.run.kv_mapped import mapped
from loci.tiers.pool import aligned_empty

LARGE_BYTES, HUGE_BYTES = 1 << 20, 4 << 20  # of a tensor in pages of its own, and in large ones

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
}

# Shapes: B batch, L layers, K key/value heads, T new tokens, S stored tokens, D head size.


class Pool:
    """Tensors of a store and what of them is in use. It decides nothing.

    Made in three steps: what is planned, `allocate`, `open`. See `KVStore` for the arguments.
    """

    length: int  # logical tokens of each row
    end: list[int]  # logical tokens each layer was given
    count: list[int]  # tokens in the slots of each lane
    tail_count: list[int]  # tokens in the exact tail
    staged_count: list[int]  # tokens in the staging area
    has_evicted: bool
    is_regular: bool  # every row's token i stands at position i
    is_trial: bool  # what is appended now is shown to attention and not kept
    probed: int  # logical tokens that a probe has scored
    lanes: list[list[Lane]]  # by layer
    cuts: int = 0  # how often lanes were made; those of before lie elsewhere
    tail: list[tuple[Tensor, Tensor]]

    def __init__(
        self,
        spec: ModelSpec,
        chain: Chain,
        *,
        max_tokens: int,
        batch: int,
        dtype: torch.dtype,
        budget_bytes: int | None,
        chunk: int,
        tier: str,
    ) -> None:
        self.spec, self.max_tokens, self.batch, self.dtype = spec, max_tokens, batch, dtype
        self.tier = tier
        self.select, self.codec, self.retrieve = check_chain(chain)
        self.plan = store_plan(
            spec,
            chain,
            max_tokens=max_tokens,
            batch=batch,
            dtype_bytes=dtype.itemsize,
            budget_bytes=budget_bytes,
            chunk=chunk,
        )
        # A store that can never be full never evicts, so nobody needs to look.
        self.evicts = self.select is not None and self.plan.slots < max_tokens
        self.probes = self.select is not None and Need.PROBE in self.select.about.needs
        self.wants_hidden = self.codec is not None and Need.HIDDEN in self.codec.about.needs
        grain = self.select.allocates if self.select is not None and self.evicts else None
        self.allocates = grain is not None
        self.by_head = grain is Granularity.HEAD
        self.groups = layer_groups(spec, self.codec)
        self.group_of = [number for number, group in enumerate(self.groups) for _ in group]
        self.is_stacked = len(self.groups) == spec.layers  # rows of all layers are one tensor
        self.rope = Rope(spec) if isinstance(self.codec, EncodeLayers) else None
        self.is_given = False  # what the codec keeps once for a row came from outside
        self.learned = [False] * spec.layers  # of layers: what the codec keeps once is there
        self.is_trial = False
        self.step_places = torch.empty(batch, 1, 0, dtype=torch.int32)
        self.first_slots = self.even_slots()
        self.tensors: dict[str, Tensor] = {}
        self.bank: Bank | None = None  # where tokens are dropped to
        self.leases: list[Lease] = []

    def allocate(self, ledger: Ledger | None, folder: Path | None) -> None:
        """Take the storage; the ledger pays before anything is allocated.

        Args:
            folder: for tensors that lie in files.
        """
        plan = self.plan
        if plan.on_disk and folder is None:
            raise MethodError(
                f"{self.retrieve} keeps tokens in a file, and was given no folder",
                way_out="KVStore(..., folder=PATH), or a tier of 'dram'",
            )
        if ledger is not None:
            self.leases.append(ledger.reserve("kv", self.tier, plan.nbytes, "kv"))
            if plan.on_disk:
                self.leases.append(ledger.reserve("kv", "disk", plan.disk_bytes, "kv"))
        for name, (shape, kind) in plan.tensors.items():
            if name in plan.on_disk:
                assert folder is not None
                self.tensors[name] = mapped(folder, shape, DTYPES[kind])
            else:
                # A bank reads slots nobody wrote with a weight of zero, so they must be numbers.
                make = torch.zeros if name.startswith("bank.") else torch.empty
                nbytes = math.prod(shape) * DTYPES[kind].itemsize
                if nbytes < LARGE_BYTES:
                    self.tensors[name] = make(shape, dtype=DTYPES[kind])
                else:  # pages of its own, which go back to the system when it is released
                    place = aligned_empty(nbytes, huge=nbytes >= HUGE_BYTES)
                    self.tensors[name] = place.view(DTYPES[kind]).view(shape)
        if self.retrieve is not None and any(name.startswith("bank.") for name in plan.tensors):
            held = {n.removeprefix("bank."): t for n, t in self.tensors.items() if n[:5] == "bank."}
            self.bank = self.retrieve.open(self.spec, held)

    def open(self, first_slots: Sequence[int]) -> None:
        """Cut the lanes, as the chain wants them, and count the bytes as held."""
        self.first_slots = list(first_slots)
        self.index()
        held = self.nbytes()
        for lease in self.leases:
            lease.commit(held[lease.tier])
        self.reset()

    def release(self) -> None:
        """Give all storage back; a second release does nothing."""
        self.tensors, self.lanes, self.tail, self.bank = {}, [], [], None
        for lease in self.leases:
            lease.release()

    def nbytes(self) -> dict[str, int]:
        """Return {tier: bytes} of the storage really held, each storage once."""
        found: dict[str, dict[int, int]] = {self.tier: {}}
        for name, tensor in self.tensors.items():
            tier = "disk" if name in self.plan.on_disk else self.tier
            storage = tensor.untyped_storage()
            found.setdefault(tier, {})[storage.data_ptr()] = storage.nbytes()
        return {tier: sum(storages.values()) for tier, storages in found.items()}

    # -- state --------------------------------------------------------------------------------

    def reset(self) -> None:
        """Hold no tokens."""
        layers = self.spec.layers
        self.length = self.probed = 0
        self.end = [0] * layers
        self.count = [0] * sum(map(len, self.lanes))
        self.tail_count, self.staged_count = [0] * layers, [0] * layers
        self.has_evicted, self.is_regular = False, True
        self.learned = [self.is_given] * layers
        if self.bank is not None:
            self.bank.reset()
        if self.select is not None and self.allocates and self.select.reallocates:
            self.cut(self.first_slots)

    def state(self) -> dict[str, Any]:
        """Return what `set_state` takes back, as JSON."""
        return {
            "length": self.length,
            "count": list(self.count),
            "tail": list(self.tail_count),
            "has_evicted": self.has_evicted,
            "is_regular": self.is_regular,
            "probed": self.probed,
            "learned": list(self.learned),
            "first_slots": list(self.first_slots),
            "slots": self.slots(),
            "bank": None if self.bank is None else self.bank.state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self.length = state["length"]
        self.end = [self.length] * self.spec.layers
        if self.allocates:
            self.first_slots = list(state["first_slots"])
            self.cut(state["slots"])
        self.count, self.tail_count = list(state["count"]), list(state["tail"])
        self.has_evicted, self.is_regular = state["has_evicted"], state["is_regular"]
        self.probed, self.learned = state["probed"], list(state["learned"])
        if self.bank is not None:
            self.bank.set_state(state["bank"])

    def reorder(self, rows: Tensor) -> None:
        """Replace row i of the batch by row `rows[i]`, as beam search does."""
        for name, tensor in self.tensors.items():
            if name.startswith("shared."):
                continue
            # Layer by layer, so that little is copied at once.
            of_group = name.startswith(("rows.", "bases.", "carried")) and not self.is_stacked
            by_layer = tensor.dim() > 2 and not of_group and not name.startswith("bases.")
            for part in tensor.unbind(1) if by_layer else (tensor,):
                part.copy_(part.index_select(0, rows))

    # -- lanes and tensors --------------------------------------------------------------------

    def index(self) -> None:
        """Cut the pool into views per layer once, so that a step cuts nothing."""
        held = self.tensors
        self.cut(self.first_slots)
        self.tail = []
        if self.codec is not None:
            tails = held["tail"].unbind(1)
            self.tail = [(tail[:, 0], tail[:, 1]) for tail in tails]
        if "carried" in held:
            held["carried"][..., -1] = -1

    def cut(self, slots: Sequence[int]) -> None:
        """Make lanes of these many slots."""
        spec, limit = self.spec, self.select.limit() if self.select is not None else None
        heads = 1 if self.by_head else spec.kv_heads
        self.cuts += 1
        self.lanes = [[] for _ in range(spec.layers)]
        first = rows_first = 0
        for number, count in enumerate(slots):
            layer, head = divmod(number, spec.kv_heads) if self.by_head else (number, 0)
            group = self.group_of[layer]
            keep = kept_tokens(count, limit) if self.allocates else self.plan.keep
            lane = Lane(number, layer, slice(head, head + heads), count, keep)
            for name, tensor in self.tensors.items():
                if name == "slots":
                    flat = tensor.flatten(1, 4).narrow(1, 2 * first, 2 * heads * count)
                    both = flat.unflatten(1, (2, heads, count))
                    lane.parts["keys"], lane.parts["values"] = both[:, 0], both[:, 1]
                elif name.startswith("codes.") or name in ("slot_positions", "scores"):
                    flat = tensor.flatten(1, 3).narrow(1, first, heads * count)
                    lane.parts[name] = flat.unflatten(1, (heads, count))
                elif name.startswith("rows.") and self.is_stacked:
                    flat = tensor.flatten(1, 2).narrow(1, rows_first, count)
                    lane.parts[name] = flat.unsqueeze(1)
                elif name.startswith(f"rows.{group}.") and layer == self.groups[group][0]:
                    lane.parts[f"rows.{name.split('.', 2)[2]}"] = tensor.unsqueeze(1)
            self.lanes[layer].append(lane)
            first += heads * count
            rows_first += count

    def slots(self) -> list[int]:
        """Return the slots of every lane."""
        return [lane.slots for lanes in self.lanes for lane in lanes]

    def even_slots(self) -> list[int]:
        """Return the slots of every lane when all have the same."""
        lanes = self.spec.layers * (self.spec.kv_heads if self.by_head else 1)
        return [self.plan.slots] * lanes

    def staged(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return where a layer's fresh keys and values wait, [B, K, chunk, D]."""
        place = self.tensors["staged"][:, self.staged_index(layer)]
        return place[:, 0], place[:, 1]

    def staged_index(self, layer: int) -> int:
        """Return which of the staging areas is a layer's."""
        if self.plan.staged_layers == self.spec.layers:
            return layer
        return layer - self.groups[self.group_of[layer]][0]

    def token_axis(self, name: str) -> int:
        """Return which axis of a tensor counts tokens."""
        if name.startswith("rows.") and self.is_stacked:
            return 2
        if name.startswith(("rows.", "bases.", "positions")):
            return 1
        return {"slots": 4, "tail": 4, "tail_hidden": 2}.get(name, 3)

    def used(self, name: str) -> int | None:
        """Return how many tokens of a tensor are in use, None for tensors kept whole."""
        if name.startswith(("fixed.", "shared.", "first", "bank.")):
            return None
        if name == "positions":
            return 0 if self.is_regular else self.length
        if name.startswith("tail"):
            return max(self.tail_count)
        if self.allocates:  # lanes of other sizes lie across the layers
            return None
        count = max(self.count)
        if name.startswith("bases."):
            assert isinstance(self.codec, EncodeLayers)
            return -(-count // self.codec.closes_every)
        if name == "landmarks":
            assert isinstance(self.codec, EncodeLayers) and self.codec.landmarks is not None
            return -(-count // self.codec.landmarks.tokens)
        return count

    def positions(self, start: int, stop: int) -> Tensor:
        """Return the positions of logical tokens, [B, 1, tokens]."""
        if self.is_regular:
            return torch.arange(start, stop, dtype=torch.int32).expand(self.batch, 1, -1)
        return self.tensors["positions"][:, None, start:stop]

    def remembered(self, layer: int, counts: Sequence[int] | None = None) -> Tensor:
        """Return the scores of the slots of a layer [B, K, S]; -inf where a head has fewer."""
        lanes = self.lanes[layer]
        counts = [self.count[lane.number] for lane in lanes] if counts is None else counts
        pairs = zip(lanes, counts, strict=True)
        return levelled([lane.parts["scores"][:, :, :count] for lane, count in pairs])

    def group(self, number: int) -> LayerGroup:
        """Return a group of layers that are encoded together."""
        return LayerGroup(
            spec=self.spec, layers=self.groups[number], shared=self.shared_of(self.codec)
        )

    def of_group(self, kind: str, number: int, count: int) -> dict[str, Tensor]:
        """Return the first `count` rows or bases of a group, by name."""
        first = f"{kind}.{number}."
        return {
            name.removeprefix(first): tensor[:, :count]
            for name, tensor in self.tensors.items()
            if name.startswith(first)
        }

    def fixed(self, layer: int, heads: slice = slice(None)) -> dict[str, Tensor]:
        """Return what some heads of a layer keep once for a row [B, k, ...], by name."""
        return {
            name.removeprefix("fixed."): tensor[:, layer, heads]
            for name, tensor in self.tensors.items()
            if name.startswith("fixed.")
        }

    def order(self, layer: int) -> Tensor | None:
        """Return the channel order [B, K, D] of a layer's keys, where they have one."""
        return self.fixed(layer).get("order")

    def first(self, layer: int, heads: slice = slice(None)) -> FirstTokens | None:
        """Return the tokens at the beginning that stay exact beside their codes, where any do."""
        held = self.tensors.get("first")
        if held is None:
            return None
        return FirstTokens(held[:, layer, 0, heads], held[:, layer, 1, heads])

    # -- what was prepared --------------------------------------------------------------------

    def checked(self, artefacts: Mapping[str, Artefact]) -> dict[str, Artefact]:
        """Return the artefacts of the chain's methods, each made for this method and model."""
        found = {}
        for method in (self.select, self.codec):
            if method is None:
                continue
            name, made = method.about.name, artefacts.get(method.about.name)
            if made is None:
                if Need.ARTEFACT in method.about.needs:
                    raise MethodError(
                        f"{method} needs what is prepared once for a model, and was given nothing",
                        way_out=f"loci methods prepare '{method}'",
                    )
                continue
            expected = (method.preparation, self.spec.fingerprint)
            if (made.method, made.fingerprint) != expected:
                raise FingerprintError(
                    f"what was prepared for {name} is for something else",
                    value=(made.method, made.fingerprint),
                    allowed=str(expected),
                    way_out=f"loci methods prepare '{method}'",
                )
            found[name] = made
        return found

    def share(self, method: KVMethod, artefact: Artefact | None) -> None:
        """Fill in what a method keeps once for all rows and tokens."""
        table = method.shared_table(self.spec)
        if not table:
            return
        given = method.shared(self.spec, artefact)
        for name, (shape, _) in table.items():
            tensor = given.get(name)
            if tensor is None or tuple(tensor.shape) != tuple(shape):
                raise FormatError(
                    f"what was prepared for {method} lacks {name}, or has it in another shape",
                    value=None if tensor is None else tuple(tensor.shape),
                    allowed=str(tuple(shape)),
                    way_out=f"loci methods prepare '{method}'",
                )
            self.tensors[f"shared.{method.about.name}.{name}"].copy_(tensor)

    def shared_of(self, method: Method | None) -> dict[str, Tensor]:
        """Return a method's shared tensors by name."""
        if method is None:
            return {}
        first = f"shared.{method.about.name}."
        return {n.removeprefix(first): t for n, t in self.tensors.items() if n.startswith(first)}

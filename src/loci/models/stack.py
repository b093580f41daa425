"""A stack: a model as a file of blocks, of which any first part is a model too.

    layer.0 ..         norms and biases of a decoder layer; `norm`: the final norm
    layer.0.q_proj/0   the first level of a weight; `/1` the next one, and so on
    embed.0/0 ..       the same for tiles of embedding and head

The first few levels of every weight, its smallest form, are always loaded. Further levels lie in
the file in the order in which they are loaded, so what a larger budget adds is one stretch of it.
The header has the method and model it was made for, the order, the estimated loss of every weight
at every depth, and a curve of KL over bytes that was measured when it was made. Reading the table
alone, which is all that a plan needs, loads no torch.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # header values are JSON

from loci.errors import BudgetError, FingerprintError, FormatError
from loci.tiers.blocks import BlockStore, read_table
from loci.units import format_bytes

FORMAT, VERSION = "loci-stack", 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """One weight of a stack.

    Attributes:
        shape: [out, in]; least: levels of its smallest form.
        losses: estimated KL with none, one, two .. further levels.
    """

    shape: tuple[int, int]
    least: int
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class StackTable:
    """What a stack file says about itself.

    Attributes:
        method: as the catalogue writes it; fingerprint: of the model it was made from.
        order: the part whose next level comes next, for every level above the smallest forms.
        sizes: bytes of all weights with none, one, two .. levels of `order`.
        curve: (bytes, KL in nats per token, seconds that one token's products took), measured when
            and where the stack was made, smallest first; none where it is not made yet.
        buffer_bytes: what its largest block takes while it is read.
    """

    method: str
    fingerprint: str
    parts: Mapping[str, Part]
    order: tuple[str, ...]
    sizes: tuple[int, ...]
    curve: tuple[tuple[int, float, float], ...]
    buffer_bytes: int

    @property
    def least_bytes(self) -> int:
        """Bytes it takes at least, the buffer that blocks are read into included."""
        return self.sizes[0] + self.buffer_bytes

    def levels_within(self, budget_bytes: int) -> int:
        """Return how many levels of `order` fit.

        Raises:
            BudgetError: if the smallest forms do not.
        """
        room = budget_bytes - self.buffer_bytes
        if room < self.sizes[0]:
            raise BudgetError(
                f"these weights need at least {format_bytes(self.least_bytes)}; the budget gives "
                f"{format_bytes(budget_bytes)} "
                f"({format_bytes(self.least_bytes - budget_bytes)} short)",
                way_out=f"--weights {-(-self.least_bytes // 2**20)}MiB is the smallest that works",
            )
        return bisect.bisect_right(self.sizes, room) - 1

    def held_bytes(self, budget_bytes: int) -> int:
        """Return the bytes that are held within a budget: less than it by one block at most.

        The order of a stack that is not made yet is not known, so then it is all of the budget.
        """
        levels = self.levels_within(budget_bytes)
        if not self.curve:
            return min(budget_bytes, self.sizes[-1] + self.buffer_bytes)
        return self.sizes[levels] + self.buffer_bytes

    def loss(self, held_bytes: int) -> float | None:
        """Return the KL at a size, between the measured points; None where none was measured."""
        return self._between(held_bytes, 1) if self.curve else None

    def seconds(self, held_bytes: int) -> float:
        """Return the time of one token's products at a size; 0 where none was measured."""
        return self._between(held_bytes, 2) if self.curve else 0.0

    def _between(self, held_bytes: int, column: int) -> float:
        places = [point[0] for point in self.curve]
        at = bisect.bisect_left(places, held_bytes)
        if at == 0 or at == len(places):
            return self.curve[min(at, len(places) - 1)][column]
        before, after = self.curve[at - 1], self.curve[at]
        share = (held_bytes - before[0]) / (after[0] - before[0])
        return before[column] + share * (after[column] - before[column])


def stack_path(pack: Path, method: str, fingerprint: str) -> Path:
    """Return where the stack of a method, parameters included, for a pack is kept."""
    folder = pack.parent if pack.suffix else pack
    key = hashlib.blake2b(f"{method}\n{fingerprint}".encode(), digest_size=8).hexdigest()
    return folder / f"{method.partition('(')[0]}-{key}.loci"


def table_of(path: Path, *, method: str, fingerprint: str) -> StackTable:
    """Return what the stack at `path` says about itself, without loading torch.

    Raises:
        FormatError: if it is no stack of this version, or cut short.
        FingerprintError: if it was made for another model or method.
    """
    return _table(path, *read_table(path), method, fingerprint)


def open_stack(
    path: Path, *, method: str, fingerprint: str, direct: bool = True
) -> tuple[BlockStore, StackTable]:
    """Open a stack for reading its blocks; see `table_of` for what is refused."""
    store = BlockStore(path, direct=direct, mapped=False)
    try:
        blocks = [(n, store.nbytes(n), store.stored_bytes(n)) for n in store.names()]
        return store, _table(path, store.header, blocks, method, fingerprint)
    except BaseException:
        store.close()
        raise


def header_of(
    *,
    method: str,
    fingerprint: str,
    text: str,
    parts: Mapping[str, Part],
    order: Sequence[str],
    curve: Sequence[tuple[int, float, float]],
) -> dict[str, Any]:
    """Return the header of a stack file."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "method": method,
        "fingerprint": fingerprint,
        "text": text,
        "parts": {name: [list(p.shape), p.least, list(p.losses)] for name, p in parts.items()},
        "order": list(order),
        "curve": [list(point) for point in curve],
    }


def block_name(part: str, level: int) -> str:
    """Return the block of one level of a part."""
    return f"{part}/{level}"


def _table(
    path: Path,
    header: Mapping[str, Any],
    blocks: Sequence[tuple[str, int, int]],
    method: str,
    fingerprint: str,
) -> StackTable:
    known = header.get("format"), header.get("version")
    if known != (FORMAT, VERSION):
        raise FormatError(
            f"{path} is no stack of this version",
            value=known,
            allowed=f"{FORMAT} {VERSION}",
            way_out="delete it; the next use makes it again",
        )
    found = header.get("method"), header.get("fingerprint")
    if found != (method, fingerprint):
        raise FingerprintError(
            f"{path} was made for something else",
            value=found,
            allowed=str((method, fingerprint)),
            way_out=f"loci methods prepare {method.partition('(')[0]}",
        )
    nbytes = {name: size for name, size, _ in blocks}
    try:
        parts = {
            name: Part(shape=(shape[0], shape[1]), least=least, losses=tuple(losses))
            for name, (shape, least, losses) in header["parts"].items()
        }
        order = tuple(header["order"])
        depth = {name: part.least for name, part in parts.items()}
        base = [size for name, size in nbytes.items() if _is_base(name, depth)]
        sizes = [sum(base)]
        for name in order:
            sizes.append(sizes[-1] + nbytes[block_name(name, depth[name])])
            depth[name] += 1
        curve = tuple((int(n), float(kl), float(s)) for n, kl, s in header["curve"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FormatError(f"the header of {path} cannot be read: {error}") from error
    return StackTable(
        method=method,
        fingerprint=fingerprint,
        parts=parts,
        order=order,
        sizes=tuple(sizes),
        curve=curve,
        buffer_bytes=max((stored for _, _, stored in blocks), default=0),
    )


def _is_base(block: str, least: Mapping[str, int]) -> bool:
    part, _, level = block.partition("/")
    return not level or int(level) < least[part]

"""LongMem: what leaves the cache goes to a bank, and queries fetch chunks of it back.

W. Wang et al., "Augmenting Language Models with Long-Term Memory", 2023, arXiv:2306.07174.

A frozen model's own keys and values are its memory. Tokens that leave the cache are put into a bank
in chunks of c, and a chunk is found by the mean of its keys. Keys are kept as they were before
their rotation, for a question and what it asks about may stand at any distance:

    found(q) = the `chunks` best by  q . mean(k[t] for t in chunk)        (q, k not rotated)

A query attends to the tokens it found, and this and the attention over the cache merge by
log-sum-exp into one softmax. `longmem` puts what was found back where it stood: keys are turned to
their own positions, so with a bank that is fetched whole nothing is lost but what codes lose.
`longmem-near` is the paper's form, in which memory has no position and every key is as near as the
query itself.

Differs from the paper: no trained side network and no gate decides what memory weighs, the softmax
does (a stand-in where nothing is trained); every layer has a bank, not one; every query head of a
group finds for itself in the index of its KV head. The chunk that is filling is not in the index
and is always read.
Not for: models whose context fits; a bank without codes frees nothing but attention's time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar  # states are JSON values

from loci.core.method import About, Kind, Param, Phase
from loci.core.spec import ModelSpec
from loci.errors import MethodError, ParameterError
from loci.methods.kv.base import Shapes
from loci.methods.kv.retrieve import Retrieve

if TYPE_CHECKING:
    from torch import Tensor

    from loci.nn.bank import ChunkBank

GROUP = 32  # channels that share a grid, where tokens are codes; at most a head


@dataclass(frozen=True, kw_only=True)
class LongMem(Retrieve):
    """A bank of dropped tokens; what is fetched stands where it stood."""

    about = About(
        name="longmem",
        kind=Kind.KV,
        paper="arXiv:2306.07174",
        idea="tokens that leave the cache stay in a bank, and queries fetch chunks of them back",
        phases=(Phase.PREFILL, Phase.DECODE),
        reconstruction="merged by log-sum-exp in place of a trained side network and gate",
    )
    is_near: ClassVar[bool] = False

    chunk: Annotated[
        int, Param(help="tokens that are found together", unit="tokens", ge=1, source="section 3.3")
    ] = 4
    chunks: Annotated[
        int, Param(help="chunks that a query fetches", ge=1, source="section 3.3: 64 tokens")
    ] = 16
    capacity: Annotated[
        int,
        Param(
            help="tokens a bank holds at most, the oldest go first",
            unit="tokens",
            ge=1,
            source="section 4.1",
        ),
    ] = 65536
    bits: Annotated[
        int, Param(help="bits of a number of keys and values, 16 is half precision",
                   choices=(4, 8, 16)),
    ] = 16  # fmt: skip
    tier: Annotated[
        str, Param(help="where keys and values lie; the index stays", choices=("dram", "disk"))
    ] = "dram"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.capacity % self.chunk:
            raise ParameterError(
                f"{self.about.name}.capacity must be whole chunks",
                value=self.capacity,
                allowed=f"multiples of {self.chunk}",
            )

    def bank_table(self, spec: ModelSpec, tokens: int) -> Shapes:
        """Return the index in half precision, keys and values, and positions."""
        chunks = min(self.capacity, -(-tokens // self.chunk) * self.chunk) // self.chunk
        room, size = chunks * self.chunk, spec.head_dim
        table: dict[str, tuple[tuple[int, ...], str]] = {
            "index": ((chunks, size), "float16"),
            "positions": ((room,), "int32"),
        }
        group = min(GROUP, size)
        if self.bits < 16 and size % group:
            raise MethodError(
                f"{self.about.name} cannot cut a head of {size} channels into groups",
                value=group,
                way_out=f"{self.about.name}(bits=16)",
            )
        for name in ("keys", "values"):
            if self.bits == 16:
                table[name] = ((room, size), "float16")
            else:
                table[name] = ((room, size * self.bits // 8), "uint8")
                table[f"{name}_grid"] = ((room, 2 * size // group), "float16")
        return table

    def on_disk(self) -> tuple[str, ...]:
        """Return keys and values, where a file holds them."""
        if self.tier == "dram":
            return ()
        return ("keys", "values", *(("keys_grid", "values_grid") if self.bits < 16 else ()))

    def open(self, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> ChunkBank:
        """Return an empty bank."""
        from loci.nn.bank import ChunkBank

        return ChunkBank(
            spec, tensors, chunk=self.chunk, fetched=self.chunks, bits=self.bits,
            is_near=self.is_near,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LongMemNear(LongMem):
    """A bank of dropped tokens; what is fetched has no position, as in the paper."""

    about = About(
        name="longmem-near",
        kind=Kind.KV,
        paper="arXiv:2306.07174",
        idea="tokens that leave the cache stay in a bank without positions, and queries fetch them",
        phases=(Phase.PREFILL, Phase.DECODE),
        reconstruction="merged by log-sum-exp in place of a trained side network and gate",
    )
    is_near: ClassVar[bool] = True

"""A pack: a model's weights as a file of blocks, opened by memory map or streamed block by block.

    embed.0 ..      tiles of vocabulary rows, each about the size of the largest layer
    layer.0 ..      one decoder layer each
    norm            the final norm
    head.0 ..       tiles of the output head, where it is not the embedding

A packed weight `q_proj` lies in its block as `q_proj.codes`, `q_proj.scales` and so on, and the
block's meta says how to put them together; dense tensors lie there under their own names. The
header carries the model's spec, its fingerprint (BLAKE2b over layout and every byte of weight),
where it came from, and what a tokenizer needs beside tokenizer.json.

Writing holds one tensor at a time and is safe against crashes: the file appears under its name
when everything is in it. Norms and biases are float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol  # header values are JSON

import torch
from torch import Tensor

from loci.core.spec import ModelSpec
from loci.errors import FormatError, ModelError, ParameterError
from loci.nn.form import Form
from loci.nn.form import from_tensors as form_of
from loci.nn.packing import PackedWeight
from loci.nn.packing import rows as rows_of
from loci.tiers.blocks import BlockStore, BlockWriter

FORMAT, VERSION = "loci-pack", 1
PACK_FILE = "pack.loci"

Weight = Form | Tensor
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how much is done, how much there is)."""


class WeightSource(Protocol):
    """Weights under our names: embed, head, norm, layer.3.q_proj, layer.3.q_proj.bias."""

    spec: ModelSpec
    file_bytes: int

    @property
    def path(self) -> Path:
        """The file or folder."""
        ...

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor, or None when there is none."""
        ...

    def tensor(self, name: str, rows: slice | None = None) -> Weight:
        """Return a tensor, or some of its rows."""
        ...

    def strangers(self, known: set[str]) -> list[str]:
        """Return names in the file that none of ours stands for."""
        ...


class Packer(Protocol):
    """Turns a dense weight into a packed one; every quant method is one."""

    def pack_one(self, weight: Tensor) -> Form:
        """Return the packed form of a float32 weight [out, in]."""
        ...


# -- writing ----------------------------------------------------------------------------------


def expected_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return {our name: shape} of every tensor that a model of this spec has."""
    return dict(_expected(spec))


def _expected(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "embed", (spec.vocab, spec.hidden)
    if not spec.tied:
        yield "head", (spec.vocab, spec.hidden)
    yield "norm", (spec.hidden,)
    for layer in range(spec.layers):
        for name, shape in _layer_tensors(spec).items():
            yield f"layer.{layer}.{name}", shape


def _layer_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"input_norm": (spec.hidden,), "post_norm": (spec.hidden,)}
    linears = spec.layer_linears()
    shapes.update(linears)
    if spec.attention_bias:
        shapes.update(
            {f"{name}.bias": (linears[name][0],) for name in ("q_proj", "k_proj", "v_proj")}
        )
    if spec.qk_norm:
        shapes.update({"q_norm": (spec.head_dim,), "k_norm": (spec.head_dim,)})
    return shapes


def check_source(source: WeightSource) -> None:
    """Refuse a source that lacks a tensor, has one of another shape, or has one we do not know."""
    known: set[str] = set()
    # One by one: a damaged header may promise billions of layers, and the first is missing.
    for name, shape in _expected(source.spec):
        known.add(name)
        found = source.shape(name)
        if found != shape:
            raise FormatError(
                f"{source.path}: the tensor {name} "
                + ("is missing" if found is None else "has another shape"),
                value=found,
                allowed=str(shape),
            )
    strangers = source.strangers(known)
    if strangers:
        raise ModelError(
            f"{source.path} has tensors that a {source.spec.architecture} model does not have",
            value=", ".join(strangers[:5]) + (" ..." if len(strangers) > 5 else ""),
            way_out="it is a variant that we cannot run yet",
        )


def write_pack(
    source: WeightSource,
    path: Path,
    *,
    extra: Mapping[str, Any],
    tokenizer_bytes: int = 0,
    quant: Packer | None = None,
    embed_quant: Packer | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the pack of a model.

    Args:
        path: the file to make; its folder exists.
        extra: further header fields: source, tokenizer, chat_template, special.
        tokenizer_bytes: memory of the tokenizer's tables.
        quant: packs the linear layers; None keeps them as the source has them.
        embed_quant: the same for embedding and head.
        progress: told about every block.
    """
    check_source(source)
    job = _Packing(source, quant, embed_quant)
    blocks = list(job.blocks())
    with BlockWriter(path, {"format": FORMAT, "version": VERSION, **extra}) as writer:
        for index, (name, parts) in enumerate(blocks):
            meta: dict[str, Any] = {}
            writer.add(name, _OneByOne(job, name, parts, meta), meta=meta)
            if progress is not None:
                progress("packing", index + 1, len(blocks))
        spec = job.finished_spec(tokenizer_bytes)
        writer.header |= {
            "spec": spec.to_json(),
            "fingerprint": spec.fingerprint,
            "embed_rows": job.tile_rows("embed"),
            "head_rows": None if spec.tied else job.tile_rows("head"),
        }


class _Packing:
    """One model on its way into a pack: names, tiles, hash and counted bytes."""

    def __init__(
        self, source: WeightSource, quant: Packer | None, embed_quant: Packer | None
    ) -> None:
        self.source, self.spec = source, source.spec
        self._quant, self._embed_quant = quant, embed_quant
        self._digest = hashlib.blake2b(digest_size=16)
        self._digest.update(source.spec.layout_hash().encode())
        self._linear_bytes = self._embed_bytes = 0
        self._layer_bytes = max(self._row_bytes_of_layer(n) for n in range(self.spec.layers))
        self._tiles: dict[str, int] = {}

    def blocks(self) -> Iterator[tuple[str, dict[str, tuple[str, slice | None]]]]:
        """Yield (block, {name in the block: (our name, rows)})."""
        yield from self._tiled("embed")
        for layer in range(self.spec.layers):
            names = _layer_tensors(self.spec)
            yield f"layer.{layer}", {name: (f"layer.{layer}.{name}", None) for name in names}
        yield "norm", {"norm": ("norm", None)}
        if not self.spec.tied:
            yield from self._tiled("head")

    def tile_rows(self, name: str) -> int:
        """Return how many vocabulary rows a tile of embedding or head has."""
        if name not in self._tiles:
            one = _nbytes(self.load(name, slice(0, 1)))
            whole = max(1, self._layer_bytes // max(one, 1))
            self._tiles[name] = min(self.spec.vocab, whole // 16 * 16 or whole)
        return self._tiles[name]

    def load(self, name: str, rows: slice | None = None) -> Weight:
        """Return a tensor as it will be stored."""
        found = self.source.tensor(name, rows)
        if name == "norm" or name.endswith(("_norm", ".bias")):
            dense = found if isinstance(found, Tensor) else found.dense()
            return dense.to(torch.float32)
        packer = self._embed_quant if name in ("embed", "head") else self._quant
        if packer is None:
            return found
        dense = found if isinstance(found, Tensor) else found.dense()
        return packer.pack_one(dense.to(torch.float32))

    def count(self, block: str, name: str, tensor: Tensor) -> None:
        """Take one stored tensor into fingerprint and sizes."""
        self._digest.update(f"{block}/{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        self._digest.update(flat.numpy().data)
        if block.startswith(("embed.", "head.")):
            self._embed_bytes += tensor.nbytes
        elif name.split(".")[0].endswith("_proj") and not name.endswith(".bias"):
            self._linear_bytes += tensor.nbytes

    def finished_spec(self, tokenizer_bytes: int) -> ModelSpec:
        """Return the spec with what only the written weights can tell."""
        return replace(
            self.spec,
            weight_bits=8 * self._linear_bytes / self.spec.linear_elements(),
            embed_bits=8 * self._embed_bytes / self.spec.embed_elements(),
            tokenizer_bytes=tokenizer_bytes,
            fingerprint=f"blake2b:{self._digest.hexdigest()}",
        )

    def _tiled(self, name: str) -> Iterator[tuple[str, dict[str, tuple[str, slice | None]]]]:
        step = self.tile_rows(name)
        for tile, first in enumerate(range(0, self.spec.vocab, step)):
            rows = slice(first, min(first + step, self.spec.vocab))
            yield f"{name}.{tile}", {"weight": (name, rows)}

    def _row_bytes_of_layer(self, layer: int) -> int:
        """Return a layer's bytes, from one row of each of its matrices."""
        total = 0
        for name, shape in _layer_tensors(self.spec).items():
            if len(shape) == 1:
                total += 4 * shape[0]
            else:
                total += _nbytes(self.load(f"layer.{layer}.{name}", slice(0, 1))) * shape[0]
        return total


class _OneByOne(Mapping[str, Tensor]):
    """The tensors of a block, each loaded when the writer comes to it; fills `meta` on the way."""

    def __init__(
        self,
        job: _Packing,
        block: str,
        parts: dict[str, tuple[str, slice | None]],
        meta: dict[str, Any],
    ) -> None:
        self._job, self._block, self._parts, self._meta = job, block, parts, meta

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._walk())

    def __len__(self) -> int:
        return sum(1 for _ in self._walk())

    def __getitem__(self, key: str) -> Tensor:
        return dict(self._walk())[key]

    def items(self) -> Iterator[tuple[str, Tensor]]:  # type: ignore[override]
        """Yield (stored name, tensor), counting each into the fingerprint."""
        for name, tensor in self._walk():
            self._job.count(self._block, name, tensor)
            yield name, tensor

    def _walk(self) -> Iterator[tuple[str, Tensor]]:
        for name, (ours, rows) in self._parts.items():
            weight = self._job.load(ours, rows)
            if isinstance(weight, Tensor):
                yield name, weight
                continue
            self._meta[name] = weight.meta()
            for part, tensor in weight.tensors().items():
                yield f"{name}.{part}", tensor


def _nbytes(weight: Weight) -> int:
    return weight.nbytes


# -- reading ----------------------------------------------------------------------------------


class Pack:
    """An open pack. Weights come as memory maps (`block`) or from bytes read elsewhere.

    Attributes:
        spec: the model's sizes, with fingerprint and measured bits.
        store: the file of blocks, for engines that stream it.
        header: everything the file says about the model.
    """

    def __init__(self, store: BlockStore, *, mapped: bool = True) -> None:
        header = store.header
        if header.get("format") != FORMAT or header.get("version") != VERSION:
            raise FormatError(
                f"{store.path} is no pack of this version",
                value=(header.get("format"), header.get("version")),
                allowed=f"{FORMAT} {VERSION}",
                way_out="delete it; the next use of the model makes it again",
            )
        self.store, self.header, self._mapped = store, header, mapped
        self.spec = ModelSpec.from_json(header["spec"])
        self._blocks: dict[str, dict[str, Weight]] = {}

    @property
    def fingerprint(self) -> str:
        """Of layout and every byte of weight."""
        return self.spec.fingerprint

    @property
    def path(self) -> Path:
        """The file."""
        return self.store.path

    @property
    def folder(self) -> Path:
        """Where the file and its tokenizer lie."""
        return self.store.path.parent

    @property
    def total_bytes(self) -> int:
        """Bytes of all weights, padding excluded."""
        return sum(self.nbytes(name) for name in self.names())

    def names(self) -> list[str]:
        """Return the blocks in the order of execution."""
        return self.store.names()

    def nbytes(self, name: str) -> int:
        """Return a block's bytes, padding excluded."""
        return self.store.nbytes(name)

    def stored_bytes(self, name: str) -> int:
        """Return a block's bytes in the file and in a buffer that it is read into."""
        return self.store.stored_bytes(name)

    def block(self, name: str) -> dict[str, Weight]:
        """Return a block's weights as views of the mapped file; nothing is copied."""
        found = self._blocks.get(name)
        if found is None:
            found = self._blocks[name] = self.from_read(name, self.store.tensors(name))
        return found

    def from_read(self, name: str, raw: Mapping[str, Tensor]) -> dict[str, Weight]:
        """Return a block's weights from its raw tensors, wherever they were read to."""
        return _assembled(raw, self.store.meta(name))

    def tiles(self, kind: str = "embed") -> list[tuple[str, slice]]:
        """Return (block, vocabulary rows) of the tiles of "embed" or "head".

        A tied head is the embedding, so both give the same tiles.
        """
        if kind not in ("embed", "head"):
            raise ParameterError("no such tiles", value=kind, allowed="embed, head")
        kind = "embed" if self.spec.tied else kind
        step, vocab = int(self.header[f"{kind}_rows"]), self.spec.vocab
        return [
            (f"{kind}.{tile}", slice(first, min(first + step, vocab)))
            for tile, first in enumerate(range(0, vocab, step))
        ]

    def embed_rows(self, ids: Tensor | list[int], out: Tensor | None = None) -> Tensor:
        """Return embedding rows [n, hidden] in float32, as stored (no scaling).

        A pack opened with `mapped=False` reads just those rows from the file.
        """
        wanted = torch.as_tensor(ids, dtype=torch.int64).reshape(-1)
        if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < self.spec.vocab:
            raise ParameterError(
                "no such token",
                value=(int(wanted.min()), int(wanted.max())),
                allowed=f"0 to {self.spec.vocab - 1}",
            )
        if out is None:
            out = torch.empty(wanted.numel(), self.spec.hidden)
        elif tuple(out.shape) != (wanted.numel(), self.spec.hidden) or out.dtype != torch.float32:
            raise ParameterError(
                "embedding rows are float32 [tokens, hidden]",
                value=(tuple(out.shape), str(out.dtype)),
                allowed=str((wanted.numel(), self.spec.hidden)),
            )
        step = int(self.header["embed_rows"])
        tiles = wanted // step
        for tile in tiles.unique().tolist():
            at = (tiles == tile).nonzero().squeeze(-1)
            out[at] = self._rows_of_tile(f"embed.{tile}", wanted[at] - tile * step)
        return out

    def verify(self) -> None:
        """Compare every block with its checksum; FormatError names one that differs."""
        self.store.verify()

    def close(self) -> None:
        """Close the file; mapped weights that were handed out stay valid."""
        self._blocks.clear()
        self.store.close()

    def __enter__(self) -> Pack:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _rows_of_tile(self, name: str, rows_n: Tensor) -> Tensor:
        if self._mapped:
            return rows_of(self.block(name)["weight"], rows_n)
        place, meta = self.store.place(name), self.store.meta(name)
        raw = {
            tensor: self.store.read_rows(name, tensor, rows_n.tolist()) for tensor in place.tensors
        }
        if "weight" in meta:
            shape = [rows_n.numel(), self.spec.hidden]
            weight = _assembled(raw, {"weight": meta["weight"] | {"shape": shape}})["weight"]
            assert isinstance(weight, PackedWeight)
            return weight.dense()
        return raw["weight"].to(torch.float32)


def open_pack(path: Path, *, mapped: bool = True, direct: bool = True) -> Pack:
    """Open a pack.

    Args:
        path: the file pack.loci, or its folder.
        mapped: weights may be memory-mapped; False for runs that count every byte they read.
        direct: streamed reads go past the page cache where the file system allows it.
    """
    path = path / PACK_FILE if path.is_dir() else path
    store = BlockStore(path, direct=direct, mapped=mapped)
    try:
        return Pack(store, mapped=mapped)
    except BaseException:
        store.close()
        raise


def _assembled(raw: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Weight]:
    """Return {name: form or tensor} from stored tensors."""
    found: dict[str, Weight] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for stored, tensor in raw.items():
        name, _, part = stored.partition(".")
        if name not in meta or part == "bias":
            found[stored] = tensor
            continue
        if name not in parts:
            parts[name] = {}
            found[name] = tensor  # keeps its place; the form follows when all its parts are seen
        parts[name][part] = tensor
    for name, tensors in parts.items():
        found[name] = form_of(tensors, meta[name])
    return found

"""Tensors of a GGUF file, without loss: packed codes with their scales, or dense tensors.

Every quantised type here is a grid of integer codes with one scale, and perhaps one minimum, per
group of inputs, so it becomes a `PackedWeight` whose values equal ggml's own dequantisation:

    Q4_0  code - 8, group 32     Q4_1  code * d + m, group 32     Q8_0  code - 128, group 32
    Q4_K, Q5_K  code * (d * s) - (dmin * m), group 32
    Q6_K  (code - 32) * (d * s), group 16

The scales of the first three are stored as float16, as in the file. A K-quant multiplies a
float16 with a 6 or 8 bit integer; that product is exact in float32, so one float32 per group is
enough.
Layouts: ggml-common.h and dequantize_row_* in ggml-quants.c (github.com/ggml-org/ggml).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from loci.errors import FormatError, ModelError, ParameterError
from loci.models.gguf import READABLE, GgufHeader, TensorInfo, read_header, spec_of_header
from loci.nn.packing import PackedWeight, pack_codes

_DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# Shapes: N rows, b blocks of a row, then what the block holds; K inputs, G groups of a row.


_OURS = {
    "embed": "token_embd.weight",
    "head": "output.weight",
    "norm": "output_norm.weight",
}
_IN_LAYER = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "input_norm": "attn_norm",
    "post_norm": "ffn_norm",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
}
_NOT_WEIGHTS = ("rope_freqs.weight",)  # already in the spec


class GgufSource:
    """The weights of a GGUF file under our names; see `loci.models.pack.WeightSource`."""

    def __init__(self, path: Path, name: str) -> None:
        self.header = read_header(path)
        try:
            self.spec = spec_of_header(self.header, name)
        except ParameterError as error:
            raise FormatError(f"{path} describes no model: {error}") from error
        self.file_bytes = path.stat().st_size
        self._file: BinaryIO = path.open("rb")

    @property
    def path(self) -> Path:
        """The file."""
        return self.header.path

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor by our name, or None when the file has none."""
        info = self.header.tensors.get(_gguf_name(name))
        return None if info is None else info.shape

    def tensor(self, name: str, rows: slice | None = None) -> PackedWeight | Tensor:
        """Return a tensor, or some of its rows, in the order of rows that we run."""
        info = self.header.tensors[_gguf_name(name)]
        found = read_tensor(self.header, self._file, info, rows)
        part = name.split(".")[2] if name.startswith("layer.") else ""
        if rows is None and part in ("q_proj", "k_proj") and self.spec.architecture == "llama":
            heads = self.spec.heads if part == "q_proj" else self.spec.kv_heads
            return take_rows(found, unpermuted(heads, self.spec.head_dim))
        return found

    def strangers(self, known: set[str]) -> list[str]:
        """Return the names in the file that none of our names stands for."""
        theirs = {_gguf_name(name) for name in known} | set(_NOT_WEIGHTS)
        return sorted(set(self.header.tensors) - theirs)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


def _gguf_name(name: str) -> str:
    if name in _OURS:
        return _OURS[name]
    _, layer, part, *bias = name.split(".")
    return f"blk.{layer}.{_IN_LAYER[part]}.{'bias' if bias else 'weight'}"


def read_tensor(
    header: GgufHeader, file: BinaryIO, info: TensorInfo, rows: slice | None = None
) -> PackedWeight | Tensor:
    """Return one tensor, or a range of its rows; only those bytes are read.

    Raises:
        ModelError: for a type that we do not decode, by name.
        FormatError: if the file ends early or a scale is not finite.
    """
    if info.kind not in READABLE:
        raise ModelError(
            f"{header.path}: the tensor {info.name} is stored as {info.kind}, which we do not read",
            value=info.kind,
            allowed=", ".join(READABLE),
            way_out="take a file with Q4_K_M, Q5_K_M, Q6_K or Q8_0 weights of the same model",
        )
    out = info.shape[0]
    first, last, _ = (rows or slice(None)).indices(out)
    row_bytes = info.nbytes // out
    raw = bytearray((last - first) * row_bytes)
    file.seek(info.offset + first * row_bytes)
    got = file.readinto(raw)  # type: ignore[attr-defined]
    if got != len(raw):
        raise FormatError(
            f"{header.path}: the tensor {info.name} at byte {info.offset} is cut short",
            value=f"{got} bytes",
            allowed=f"{len(raw)} bytes",
        )
    shape = (last - first, *info.shape[1:])
    raw_bytes = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0).byte()
    if info.kind in _DENSE:
        return raw_bytes.view(_DENSE[info.kind]).reshape(shape)
    if len(shape) != 2:
        raise FormatError(f"{header.path}: {info.name} is no matrix", value=info.shape)
    weight = _DECODERS[info.kind](raw_bytes.view(shape[0], -1), shape[1])
    for name, tensor in weight.tensors().items():
        if name != "codes" and not bool(torch.isfinite(tensor).all()):
            raise FormatError(
                f"{header.path}: {name} of {info.name} at byte {info.offset} are not finite",
                way_out="the file is damaged; fetch it again",
            )
    return weight


def take_rows(weight: PackedWeight | Tensor, index_N: Tensor) -> PackedWeight | Tensor:
    """Return the weight with its rows in another order; still packed."""
    if isinstance(weight, Tensor):
        return weight[index_N].contiguous()
    return PackedWeight(
        codes=weight.codes[index_N],
        scales=weight.scales[index_N],
        mins=None if weight.mins is None else weight.mins[index_N],
        bits=weight.bits,
        group=weight.group,
        shape=(index_N.numel(), weight.shape[1]),
    )


def unpermuted(heads: int, head_dim: int) -> Tensor:
    """Return the row order that undoes llama.cpp's interleaving of rotary pairs.

    Its converter stores row (head, half s, pair i) as (head, pair i, half s), so that the two
    elements of a pair lie side by side; we rotate halves, as transformers does.
    """
    rows = torch.arange(heads * head_dim).view(heads, head_dim // 2, 2)
    return rows.transpose(1, 2).reshape(-1)


def _halves(raw: Tensor) -> Tensor:
    """Return bytes [..., 2n] as float16 [..., n]."""
    return raw.contiguous().view(torch.float16)


def _nibbles(raw: Tensor) -> Tensor:
    """Return bytes [..., n] as codes [..., 2n]: all low halves first, then all high ones."""
    return torch.cat((raw & 15, raw >> 4), dim=-1)


def _weight(
    codes: Tensor, scales: Tensor, mins: Tensor | None, bits: int, inner: int
) -> PackedWeight:
    rows = codes.shape[0]
    scales_NG = scales.reshape(rows, -1).contiguous()
    return PackedWeight(
        codes=pack_codes(codes.reshape(rows, inner), bits).contiguous(),
        scales=scales_NG,
        mins=None if mins is None else mins.reshape(rows, -1).contiguous(),
        bits=bits,
        group=inner // scales_NG.shape[1],
        shape=(rows, inner),
    )


def _q4_0(raw_NR: Tensor, inner: int) -> PackedWeight:
    blocks = raw_NR.view(raw_NR.shape[0], -1, 18)
    return _weight(_nibbles(blocks[..., 2:]), _halves(blocks[..., :2]), None, 4, inner)


def _q4_1(raw_NR: Tensor, inner: int) -> PackedWeight:
    blocks = raw_NR.view(raw_NR.shape[0], -1, 20)
    scales, mins = _halves(blocks[..., :4]).unbind(-1)
    return _weight(_nibbles(blocks[..., 4:]), scales, mins, 4, inner)


def _q8_0(raw_NR: Tensor, inner: int) -> PackedWeight:
    blocks = raw_NR.view(raw_NR.shape[0], -1, 34)
    # A signed byte plus 128 is the same byte with its top bit turned over.
    return _weight(blocks[..., 2:] ^ 128, _halves(blocks[..., :2]), None, 8, inner)


def _k_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return float32 (scales, mins) [N, b, 8] of Q4_K and Q5_K blocks: d, dmin, 12 packed bytes."""
    d_NbS = _halves(blocks[..., :4]).to(torch.float32)
    low, high, both = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = torch.cat((low & 63, (both & 15) | (low >> 6 << 4)), dim=-1)
    mins = torch.cat((high & 63, (both >> 4) | (high >> 6 << 4)), dim=-1)
    return d_NbS[..., :1] * scales, -(d_NbS[..., 1:] * mins)


def _k_nibbles(raw_Nb128: Tensor) -> Tensor:
    """Return codes [N, b, 8, 32]: every 32 bytes hold two groups, low halves then high ones."""
    rows, blocks, _ = raw_Nb128.shape
    return _nibbles(raw_Nb128.reshape(rows, blocks, 4, 32)).view(rows, blocks, 8, 32)


def _q4_k(raw_NR: Tensor, inner: int) -> PackedWeight:
    blocks = raw_NR.view(raw_NR.shape[0], -1, 144)
    return _weight(_k_nibbles(blocks[..., 16:]), *_k_scales(blocks), 4, inner)


def _q5_k(raw_NR: Tensor, inner: int) -> PackedWeight:
    blocks = raw_NR.view(raw_NR.shape[0], -1, 176)
    fifth = blocks[..., 16:48].unsqueeze(-2) >> torch.arange(8, dtype=torch.uint8).unsqueeze(-1)
    codes = _k_nibbles(blocks[..., 48:]) | ((fifth & 1) << 4)
    return _weight(codes, *_k_scales(blocks), 5, inner)


def _q6_k(raw_NR: Tensor, inner: int) -> PackedWeight:
    rows = raw_NR.shape[0]
    blocks = raw_NR.view(rows, -1, 210)
    low = _nibbles(blocks[..., :128].reshape(rows, -1, 2, 64)).view(rows, -1, 2, 4, 32)
    high = blocks[..., 128:192].reshape(rows, -1, 2, 1, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).unsqueeze(-1)
    codes = low | (((high >> shifts) & 3) << 4)
    factors = blocks[..., 192:208].contiguous().view(torch.int8).to(torch.float32)
    scales = _halves(blocks[..., 208:]).to(torch.float32) * factors
    return _weight(codes, scales, None, 6, inner)


_DECODERS: dict[str, Callable[[Tensor, int], PackedWeight]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}

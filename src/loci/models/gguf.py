"""The header of a GGUF file: metadata and the table of tensors. Standard library only.

GGUF (github.com/ggml-org/ggml, docs/gguf.md) is little-endian:

    "GGUF" | version u32 | tensors u64 | pairs u64
    pairs:   key string, type u32, value
    tensors: name string, dimensions u32, sizes u64[], type u32, offset u64
    padding to general.alignment, then the data; offsets count from there

A string is a u64 length and UTF-8 bytes. Every count and length is checked against the bytes that
are left in the file before anything is allocated, so a damaged header costs no memory.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # metadata holds whatever GGUF can hold

from loci.core.spec import ModelSpec
from loci.errors import FormatError, ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "gemma")

# Elements and bytes of one block, and the name, of every type in ggml.h; only READABLE are decoded.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
READABLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_NESTING = 4


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies. `shape` is in torch's order: [out, in], the last one contiguous."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """What a GGUF file says before its data begin."""

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    @property
    def architecture(self) -> str:
        """The value of general.architecture."""
        return str(self.need("general.architecture", str))

    def get(self, key: str, default: Any = None) -> Any:
        """Return the metadata `{architecture}.{key}`, or `default`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def need(self, key: str, kind: type) -> Any:
        """Return metadata that must be there, of that type."""
        value = self.metadata.get(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise FormatError(
                f"{self.path}: the metadata {key} is missing or of another type",
                value=value if not isinstance(value, list) else f"{len(value)} values",
                allowed=f"one {kind.__name__}",
            )
        return value


class _Cursor:
    """Reads values from a mapped file and knows where it stands."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self.at = path, data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def fail(self, what: str, *, expected: str, value: object = None) -> FormatError:
        return FormatError(
            f"{self._path}: {what} at byte {self.at}",
            value=value,
            allowed=expected,
            way_out="the file is cut short or damaged; fetch it again",
        )

    def take(self, nbytes: int, what: str) -> bytes:
        if nbytes > self.left:
            raise self.fail(
                f"{what} does not fit into the file",
                value=f"{nbytes} bytes",
                expected=f"at most the {self.left} bytes that are left",
            )
        self.at += nbytes
        return self._data[self.at - nbytes : self.at]

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def string(self, what: str) -> str:
        length = self.number("Q", f"the length of {what}")
        start = self.at
        raw = self.take(length, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.at = start
            raise self.fail(f"{what} is no UTF-8 ({error})", expected="UTF-8 text") from None

    def value(self, kind: int, what: str, nesting: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], what)
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY or nesting >= _MAX_NESTING:
            raise self.fail(f"{what} has an unknown type", value=kind, expected="types 0 to 12")
        inner, count = self.number("I", what), self.number("Q", f"the length of {what}")
        smallest = struct.calcsize("<" + _SCALARS[inner]) if inner in _SCALARS else 8
        if count * smallest > self.left:
            raise self.fail(
                f"{what} does not fit into the file",
                value=f"{count} values",
                expected=f"at most the {self.left} bytes that are left",
            )
        if inner in _SCALARS:
            code = f"<{count}{_SCALARS[inner]}"
            return list(struct.unpack(code, self.take(struct.calcsize(code), what)))
        return [self.value(inner, what, nesting + 1) for _ in range(count)]


def _pairs(cursor: _Cursor) -> Iterator[tuple[str, int]]:
    """Yield (key, type) of each metadata pair; the caller reads the value before the next one."""
    if cursor.take(4, "the magic") != MAGIC:
        cursor.at = 0
        raise cursor.fail("this is no GGUF file", expected="it begins with GGUF")
    version = cursor.number("I", "the version")
    if version not in VERSIONS:
        cursor.at = 4
        raise cursor.fail("unknown GGUF version", value=version, expected="2 or 3, little-endian")
    tensors, pairs = cursor.number("Q", "the tensor count"), cursor.number("Q", "the pair count")
    # The smallest entry of either table: an empty name, a type, and one value or an offset.
    for count, smallest, what in ((pairs, 13, "metadata pairs"), (tensors, 24, "tensors")):
        if count * smallest > cursor.left:
            raise cursor.fail(
                f"the header promises more {what} than the file can hold",
                value=count,
                expected=f"at most {cursor.left // smallest}",
            )
    yield "", version
    yield "", tensors
    for _ in range(pairs):
        key = cursor.string("a metadata key")
        yield key, cursor.number("I", f"the type of {key}")


def read_header(path: Path) -> GgufHeader:
    """Return metadata and tensor table of a GGUF file.

    Raises:
        FormatError: if the file is no GGUF, cut short, or damaged; names file, offset and what was
            expected there.
    """
    with _mapped(path) as data:
        cursor = _Cursor(path, data)
        pairs = _pairs(cursor)
        version, count = next(pairs)[1], next(pairs)[1]
        metadata: dict[str, Any] = {}
        for key, kind in pairs:
            metadata[key] = cursor.value(kind, key)
        infos = [_tensor_entry(cursor) for _ in range(count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
            raise cursor.fail("absurd general.alignment", value=alignment, expected="1 to 1048576")
        start = math.ceil(cursor.at / alignment) * alignment
        return GgufHeader(
            path=path,
            version=version,
            metadata=metadata,
            tensors=_placed(path, infos, start, len(data)),
        )


def peek(path: Path) -> dict[str, Any]:
    """Return the metadata that stands before the tokenizer; enough to list a file, and quick."""
    with _mapped(path) as data:
        cursor = _Cursor(path, data)
        pairs = _pairs(cursor)
        next(pairs), next(pairs)
        found: dict[str, Any] = {}
        for key, kind in pairs:
            if key.startswith("tokenizer.") and kind == _ARRAY:
                break
            found[key] = cursor.value(kind, key)
        return found


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise FormatError(f"{path} is empty", allowed="a GGUF file") from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


def _tensor_entry(cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int, int]:
    name = cursor.string("a tensor name")
    dimensions = cursor.number("I", f"the dimensions of {name}")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise cursor.fail(f"absurd dimensions of {name}", value=dimensions, expected="1 to 4")
    sizes = [cursor.number("Q", f"a size of {name}") for _ in range(dimensions)]
    kind = cursor.number("I", f"the type of {name}")
    offset = cursor.number("Q", f"the offset of {name}")
    if kind not in TYPES:
        raise cursor.fail(
            f"the tensor {name} has an unknown type", value=kind, expected=", ".join(READABLE)
        )
    label, block, block_bytes = TYPES[kind]
    if sizes[0] % block:
        raise cursor.fail(
            f"rows of {name} are not whole {label} blocks",
            value=sizes[0],
            expected=f"a multiple of {block}",
        )
    return name, label, tuple(reversed(sizes)), offset, math.prod(sizes) // block * block_bytes


def _placed(
    path: Path,
    entries: list[tuple[str, str, tuple[int, ...], int, int]],
    start: int,
    file_bytes: int,
) -> dict[str, TensorInfo]:
    """Return the tensors with their place in the file; each must lie inside it."""
    table: dict[str, TensorInfo] = {}
    for name, kind, shape, offset, nbytes in entries:
        if name in table:
            raise FormatError(f"{path}: the tensor {name} stands there twice")
        if start + offset + nbytes > file_bytes:
            raise FormatError(
                f"{path}: the tensor {name} at byte {start + offset} reaches past the end",
                value=f"{nbytes} bytes",
                allowed=f"{max(0, file_bytes - start - offset)} bytes are left of {file_bytes}",
                way_out="the file is cut short; fetch it again",
            )
        table[name] = TensorInfo(
            name=name, kind=kind, shape=shape, offset=start + offset, nbytes=nbytes
        )
    return table


def spec_of_header(header: GgufHeader, name: str) -> ModelSpec:
    """Return the sizes of the model; bits, tokenizer bytes and fingerprint come with packing.

    Raises:
        ModelError: for an architecture, rotary scaling or mixture that we do not run.
    """
    architecture = header.architecture
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{header.path} holds a model of an architecture that we do not run",
            value=architecture,
            allowed=", ".join(ARCHITECTURES),
        )
    if header.get("expert_count", 0):
        raise ModelError(
            f"{header.path} is a mixture of experts",
            value=f"{header.get('expert_count')} experts",
            allowed="dense models",
        )

    if int(header.metadata.get("split.count", 1)) > 1:
        raise ModelError(
            f"{header.path} is one of several files of a model",
            value=header.metadata["split.count"],
            way_out="join them with llama.cpp's gguf-split --merge",
        )

    def size(key: str) -> int:
        return int(header.need(f"{architecture}.{key}", int))

    hidden, heads = size("embedding_length"), size("attention.head_count")
    kv_heads = header.get("attention.head_count_kv", heads)
    if not isinstance(kv_heads, int):
        raise ModelError(
            f"{header.path}: KV heads that differ by layer", allowed="one number for all layers"
        )
    if heads < 1 or hidden < 1:
        raise FormatError(f"{header.path}: absurd sizes", value=(heads, hidden), allowed=">= 1")
    head_dim = int(header.get("attention.key_length", hidden // heads))
    rotated = header.get("rope.dimension_count", head_dim)
    if rotated != head_dim or header.get("attention.value_length", head_dim) != head_dim:
        raise ModelError(
            f"{header.path}: only whole heads of one size can be rotated",
            value=rotated,
            allowed=str(head_dim),
        )
    embedding = _need_tensor(header, "token_embd.weight")
    if len(embedding.shape) != 2 or embedding.shape[1] != hidden:
        raise FormatError(
            f"{header.path}: the embedding has another width",
            value=embedding.shape,
            allowed=f"[vocabulary, {hidden}]",
        )
    gemma = architecture == "gemma"
    return ModelSpec(
        name=name,
        architecture=architecture,
        layers=size("block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=size("feed_forward_length"),
        vocab=embedding.shape[0],
        max_context=size("context_length"),
        tied="output.weight" not in header.tensors,
        attention_bias="blk.0.attn_q.bias" in header.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in header.tensors,
        rope_theta=float(header.get("rope.freq_base", 10000.0)),
        norm_eps=_short(header.get("attention.layer_norm_rms_epsilon", 1e-5)),
        rope_scaling=_rope_scaling(header, head_dim),
        window=header.get("attention.sliding_window") or None,
        activation="gelu_tanh" if gemma else "silu",
        # llama.cpp's converter has already added gemma's 1 to every norm weight.
        norm_offset=0.0,
        embed_scale=math.sqrt(hidden) if gemma else 1.0,
    )


def _rope_scaling(header: GgufHeader, head_dim: int) -> tuple[tuple[str, float | str], ...]:
    """Return the parameters of a scaled rotary embedding as sorted pairs; () for none."""
    kind = header.get("rope.scaling.type", "none")
    if kind == "linear":
        factor = float(header.get("rope.scaling.factor", 1.0))
        return (("factor", factor), ("rope_type", "linear"))
    if kind != "none":
        raise ModelError(
            f"{header.path} scales its rotary embedding in a way that we do not run",
            value=kind,
            allowed="none, linear, llama3",
        )
    info = header.tensors.get("rope_freqs.weight")
    if info is None:
        return ()
    # llama.cpp stores what each frequency is divided by, not the parameters it came from.
    with header.path.open("rb") as file:
        file.seek(info.offset)
        stored = struct.unpack(f"<{info.shape[-1]}f", file.read(info.nbytes))
    found = {
        "factor": max(stored),
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192.0,
        "rope_type": "llama3",
    }
    theta = float(header.get("rope.freq_base", 10000.0))
    expected = _llama3_divisors(theta, head_dim, max(stored))
    if len(stored) != len(expected) or any(
        abs(a - b) > 1e-3 * b for a, b in zip(stored, expected, strict=True)
    ):
        raise ModelError(
            f"{header.path} scales its rotary embedding by factors of its own (rope_freqs.weight)",
            allowed="the factors of Llama 3.1 to 3.3",
        )
    return tuple(sorted(found.items()))


def _llama3_divisors(theta: float, head_dim: int, factor: float) -> list[float]:
    """Return what Llama 3.1 divides each rotary frequency by (published low 1, high 4, 8192)."""
    divisors = []
    for pair in range(head_dim // 2):
        turns = 8192.0 / (2 * math.pi * theta ** (2 * pair / head_dim))
        smooth = min(1.0, max(0.0, (turns - 1.0) / 3.0))
        divisors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return divisors


def _short(value: float) -> float:
    """Return the shortest decimal that is the same float32: 1e-05 for 9.999999747378752e-06."""
    packed = struct.pack("<f", value)
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == packed:
            return short
    return value


def _need_tensor(header: GgufHeader, name: str) -> TensorInfo:
    info = header.tensors.get(name)
    if info is None:
        raise FormatError(f"{header.path}: the tensor {name} is missing")
    return info

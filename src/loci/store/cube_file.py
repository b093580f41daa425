"""One MemCube as one portable file: a .safetensors file that anybody's reader opens.

    8 bytes   length of the head
    head      JSON: where each tensor lies, and in "__metadata__" the cube's header, its facts, a
              checksum of every tensor and text, and one of the head itself
    data      tensors without gaps; texts are tensors of bytes (U8, UTF-8) named "text/NAME"

Every byte of the file is under a checksum, so one that is cut or altered anywhere is refused, and
the message says what and where. Copying the file is all that moving a cube takes. The format:
github.com/huggingface/safetensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn  # facts are JSON values

from loci import __version__
from loci.core.cube import CubeHeader, MemoryKind, Policy, Provenance, State, Usage
from loci.errors import FingerprintError, FormatError, ParameterError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT, VERSION = "loci-cube", 1
TEXT = "text/"  # before the name of a text
_DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "BOOL": ("bool", 1),
}
_BLANK = "0" * 64  # stands where the head's own checksum will be
_MAX_HEAD = 100_000_000  # the limit of the format's own library
_PIECE = 2**22
_FLAGS, _PROT = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE


@dataclass(frozen=True, kw_only=True, eq=False)
class Payload:
    """What is in a cube: tensors, texts, and facts about them (JSON values)."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of tensors and texts."""
        texts = sum(len(text.encode()) for text in self.texts.values())
        return texts + sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True, kw_only=True)
class Head:
    """The head of a cube's file: all but tensors and texts.

    Attributes:
        names: of tensors and texts, texts with "text/" before them.
        nbytes: of both together.
    """

    header: CubeHeader
    facts: Mapping[str, Any]
    names: tuple[str, ...]
    nbytes: int


def write(path: Path, header: CubeHeader, payload: Payload) -> None:
    """Write a cube under a temporary name, flush it, and put it into place with mode 0600.

    Raises:
        ParameterError: if facts are no JSON, or a tensor is of a kind the format has no name for.
        StorageError: if it cannot be written; what was there before still is.
    """
    parts = _parts(payload)
    table: dict[str, Any] = {}
    sums, end = {}, 0
    for name, (dtype, shape, value) in parts.items():
        data = _bytes_of(value)
        place = [end, end + len(data)]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": place}
        sums[name] = _sum(data)
        end += len(data)
    try:
        head = _head(header, dict(payload.facts), table, sums)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"the facts of cube {header.id} are no JSON: {error}") from error
    _place(path, chain([head], (_bytes_of(value) for _, _, value in parts.values())))


def rewrite(path: Path, header: CubeHeader) -> None:
    """Give a cube's file another header; tensors, texts and facts are copied as they are."""
    with _opened(path) as file:
        meta, table, start = _read_head(file, path)
        head = _head(header, json.loads(meta["facts"]), table, json.loads(meta["checksums"]))
        _place(path, [head], rest=file.fileno(), start=start)


def read_head(path: Path) -> Head:
    """Return the header, the facts and the names inside; data are not read.

    Raises:
        FormatError: if the head is cut short, altered, or of another version.
        StorageError: if the file cannot be read.
    """
    with _opened(path) as file:
        meta, table, _ = _read_head(file, path)
    return Head(
        header=_header(meta, path),
        facts=json.loads(meta["facts"]),
        names=tuple(table),
        nbytes=max((entry["data_offsets"][1] for entry in table.values()), default=0),
    )


def read_header(path: Path) -> CubeHeader:
    """Return the header of a cube's file; raises as `read_head` does."""
    return read_head(path).header


def read(
    path: Path, *, fingerprint: str | None = None, mapped: bool = False
) -> tuple[CubeHeader, Payload]:
    """Return a cube, every byte of it compared with its checksum.

    Args:
        fingerprint: of the model it is wanted for; None takes it for what it is.
        mapped: tensors are views of the mapped file, for reading; they need no memory of their own.

    Raises:
        FormatError: if a byte is missing or altered; the message says what and where.
        FingerprintError: if it was made for another model.
    """
    with _opened(path) as file:
        meta, table, start = _read_head(file, path)
        header = _header(meta, path)
        if fingerprint is not None and header.fingerprint not in (None, fingerprint):
            raise FingerprintError(
                f"cube {header.id} was made for another model",
                value=header.fingerprint,
                allowed=fingerprint,
                way_out="make it again for this model, from the text it holds",
            )
        tensors: dict[str, Tensor] = {}
        texts: dict[str, str] = {}
        # Private and writable, because torch warns about read-only memory; nobody writes.
        pages = (
            memoryview(mmap.mmap(file.fileno(), 0, flags=_FLAGS, prot=_PROT)) if mapped else None
        )
        for name, raw in _checked(file, path, meta, table, start, pages):
            if name.startswith(TEXT):
                texts[name[len(TEXT) :]] = _text(raw, path)
            else:
                tensors[name] = _tensor(table[name], raw)
    return header, Payload(tensors=tensors, texts=texts, facts=json.loads(meta["facts"]))


def read_texts(path: Path) -> dict[str, str]:
    """Return the texts of a cube alone, checked; raises as `read` does."""
    with _opened(path) as file:
        meta, table, start = _read_head(file, path)
        some = {name: entry for name, entry in table.items() if name.startswith(TEXT)}
        return {
            name[len(TEXT) :]: _text(raw, path)
            for name, raw in _checked(file, path, meta, some, start, None)
        }


# -- the head -----------------------------------------------------------------------------------


def _head(
    header: CubeHeader, facts: Mapping[str, Any], table: Mapping[str, Any], sums: Mapping[str, str]
) -> bytes:
    meta = {
        "format": FORMAT,
        "version": str(VERSION),
        "made_by": f"loci {__version__}",
        "header": json.dumps(asdict(header), ensure_ascii=False),
        "facts": json.dumps(facts, ensure_ascii=False, allow_nan=False),
        "checksums": json.dumps(sums),
        "checksum": _BLANK,
    }
    text = json.dumps({"__metadata__": meta, **table}, ensure_ascii=False, separators=(",", ":"))
    raw = text.encode()
    raw += b" " * (-len(raw) % 8)  # data begin at a multiple of 8
    mark = f'"checksum":"{_BLANK}"'.encode()
    assert raw.count(mark) == 1
    raw = raw.replace(mark, f'"checksum":"{_digest(raw)}"'.encode())
    return struct.pack("<Q", len(raw)) + raw


def _read_head(file: Any, path: Path) -> tuple[dict[str, str], dict[str, Any], int]:
    """Return metadata, table and where data begin, all checked; the file ends where they end."""
    size = os.fstat(file.fileno()).st_size
    first = file.read(8)
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if not 2 <= length <= min(size - 8, _MAX_HEAD):
        _damaged(path, f"the length of the head, byte 0: {length} of {size} bytes")
    raw = file.read(length)
    where = f"the head, bytes 8 to {8 + length}"
    try:
        table = json.loads(raw)
        meta = table.pop("__metadata__", None) or {}
        told, checksum = (meta.get("format"), meta.get("version")), str(meta.get("checksum"))
    except (ValueError, TypeError, AttributeError):
        _damaged(path, where)
    if told != (FORMAT, str(VERSION)):
        raise FormatError(
            f"{path} is no cube of a version Loci knows",
            value=" ".join(map(str, told)),
            allowed=f"{FORMAT} {VERSION}",
        )
    if _digest(raw.replace(checksum.encode(), _BLANK.encode(), 1)) != checksum:
        _damaged(path, where)
    end = _end(table, json.loads(meta["checksums"]), path)
    if 8 + length + end != size:
        _damaged(path, f"its end: {size} bytes, of {8 + length + end}")
    return meta, table, 8 + length


def _end(table: Mapping[str, Any], sums: Mapping[str, str], path: Path) -> int:
    """Return where data end; a head that somebody else wrote may lie about them."""
    end = 0
    for name, entry in table.items():
        _, size = _DTYPES.get(entry.get("dtype"), ("", 0))
        nbytes = size * math.prod(entry["shape"])
        if not size or name not in sums or entry["data_offsets"] != [end, end + nbytes]:
            raise FormatError(f"{path} places the tensor {name!r} where it cannot be", value=entry)
        end += nbytes
    return end


def _header(meta: Mapping[str, str], path: Path) -> CubeHeader:
    try:
        found = json.loads(meta["header"])
        provenance, policy = found.pop("provenance"), found.pop("policy")
        for name in ("readers", "writers", "purposes"):
            policy[name] = tuple(policy[name])
        provenance["sources"] = tuple(provenance["sources"])
        frozen_from = found.pop("frozen_from")
        return CubeHeader(
            kind=MemoryKind(found.pop("kind")),
            state=State(found.pop("state")),
            parents=tuple(found.pop("parents")),
            provenance=Provenance(**provenance),
            policy=Policy(**policy),
            usage=Usage(**found.pop("usage")),
            frozen_from=None if frozen_from is None else State(frozen_from),
            **found,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} has the header of no cube Loci knows: {error}") from None


# -- data ---------------------------------------------------------------------------------------


def _checked(
    file: Any,
    path: Path,
    meta: Mapping[str, str],
    table: Mapping[str, Any],
    start: int,
    pages: memoryview | None,
) -> Iterator[tuple[str, memoryview]]:
    """Yield the bytes of each tensor and text, compared with its checksum."""
    sums = json.loads(meta["checksums"])
    for name, entry in table.items():
        first, last = (start + place for place in entry["data_offsets"])
        if pages is not None:
            raw = pages[first:last]
        else:
            raw = memoryview(_data(file, first, last - first, name, path))
        if _sum(raw) != sums[name]:
            kind = "text" if name.startswith(TEXT) else "tensor"
            _damaged(path, f"the {kind} {name!r}, bytes {first} to {last}")
        yield name, raw


def _parts(payload: Payload) -> dict[str, tuple[str, tuple[int, ...], Tensor | bytes]]:
    """Return {name: (dtype, shape, what)}, the widest numbers first, so that each is aligned."""
    names = {dtype: name for name, (dtype, _) in _DTYPES.items()}
    parts: dict[str, tuple[str, tuple[int, ...], Tensor | bytes]] = {}
    for name, tensor in payload.tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in names or not name or name.startswith((TEXT, "__")):
            raise ParameterError(
                "a cube cannot hold this tensor", value=(name, dtype), allowed=", ".join(names)
            )
        parts[name] = (names[dtype], tuple(tensor.shape), tensor)
    for name, text in payload.texts.items():
        raw = text.encode()
        parts[f"{TEXT}{name}"] = ("U8", (len(raw),), raw)
    return dict(sorted(parts.items(), key=lambda part: (-_DTYPES[part[1][0]][1], part[0])))


def _bytes_of(value: Tensor | bytes) -> memoryview:
    """Return the bytes of a part; a tensor is copied here at most, one at a time."""
    if isinstance(value, bytes):
        return memoryview(value)
    import torch

    flat = value.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _tensor(entry: Mapping[str, Any], raw: memoryview) -> Tensor:
    import torch

    dtype = getattr(torch, _DTYPES[entry["dtype"]][0])
    if not raw:
        return torch.empty(entry["shape"], dtype=dtype)
    return torch.frombuffer(raw, dtype=dtype).reshape(entry["shape"])


def _text(raw: memoryview, path: Path) -> str:
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} holds a text that is not UTF-8: {error}") from None


def _data(file: Any, at: int, nbytes: int, name: str, path: Path) -> bytearray:
    raw = bytearray(nbytes)
    view, done = memoryview(raw), 0
    while done < nbytes:
        got = os.preadv(file.fileno(), [view[done : done + _PIECE]], at + done)
        if not got:
            _damaged(path, f"{name!r}, cut short at byte {at + done}")
        done += got
    return raw


def _place(path: Path, pieces: Iterable[Any], *, rest: int | None = None, start: int = 0) -> None:
    """Write pieces, and the rest of another file from `start` on, and put them into place."""
    fresh = path.with_name(f".{path.name}.{os.urandom(6).hex()}.partial")
    try:
        descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                while rest is not None and (got := os.pread(rest, _PIECE, start)):
                    file.write(got)
                    start += len(got)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
            flush_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                fresh.unlink()
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}",
            way_out="what was there before is unchanged; free some space, or name another folder",
        ) from error


def flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    with file:
        yield file


def _sum(data: Any) -> str:
    return "blake2b:" + hashlib.blake2b(data, digest_size=32).hexdigest()


def _digest(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=32).hexdigest()


def _damaged(path: Path, what: str) -> NoReturn:
    raise FormatError(
        f"{path} is damaged: {what}",
        way_out="copy it anew from where it was whole, or make the cube again from its source",
    )

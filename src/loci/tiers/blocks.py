"""A file of blocks: named groups of tensors, laid out so that one block is one read.

    page 0            magic, version, total length, where the table is, checksum of the table
    block, block ...  each starts on a page; tensors inside start on multiples of 64 bytes
    table             JSON: the caller's header; per block kind, codec, meta, offset, length,
                      checksum (BLAKE2b) and its tensors (dtype, shape, offset in the block)

Bytes are little-endian. Writing goes to a temporary name in the same folder, is flushed to the
disk, renamed, and the folder is flushed too: a crash leaves the old file or the new one. The
total length stands in page 0, so a file cut short is refused when it is opened. Reading needs
no copy (`tensors`, memory-mapped), or lands in a buffer of the caller's (`read`), past the page
cache where the file system allows it, so that a budget counts every byte. Only what returns
tensors imports torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import math
import mmap
import os
import struct
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any  # header and meta are whatever JSON can hold

from loci.core.block import Block
from loci.errors import FormatError, ParameterError, StorageError
from loci.tiers.pool import ALIGN, aligned_empty, round_up
from loci.units import nearest

if TYPE_CHECKING:
    from torch import Tensor

FORMAT, VERSION = "loci-blocks", 1
MAGIC = b"LOCIBLKS"
TENSOR_ALIGN = 64  # bytes; a cache line, and more than any dtype needs
ITEM_BYTES = {
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "uint8": 1,
    "int8": 1,
    "int32": 4,
    "int64": 8,
}

_PAGE0 = struct.Struct("<8sIIQQQ32s")  # magic, version, 0, total, table offset, length, checksum
_NUMPY = {"<f2": "float16", "<f4": "float32", "|u1": "uint8", "|i1": "int8"} | {
    "<i4": "int32",
    "<i8": "int64",
}
_PIECE = 2**20  # bytes hashed or written at a time
_MAP_NORESERVE = 0x4000  # Linux; mappings of files larger than the memory stay legal
_SUFFIX = ".partial"


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """Where a tensor lies in its block: `offset` and `nbytes` in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class BlockPlace:
    """Where a block lies in the file: `length` runs to the end of its last tensor."""

    name: str
    kind: str
    codec: str
    offset: int
    length: int
    checksum: str
    tensors: Mapping[str, TensorPlace]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, padding excluded."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def stored_bytes(self) -> int:
        """Bytes it takes in the file and in a buffer that it is read into."""
        return round_up(self.length)


class BlockWriter:
    """Writes a file of blocks; it appears under its name only when everything is in it.

    Use as a context manager. When the body raises, nothing is left behind, and a file that was
    there under that name before is untouched. `header` may be changed until the end. At most
    one tensor is held at a time.

    Args:
        path: the file to make; its folder must exist.
        header: what the reader is to know before any block: JSON values.
        mode: of the file; 0o600 keeps it from others.

    Raises:
        StorageError: if the disk is full or a write fails.
    """

    def __init__(self, path: Path | str, header: Mapping[str, Any], *, mode: int = 0o644) -> None:
        self.path, self._mode = Path(path), mode
        self.header = dict(header)
        self._blocks: list[BlockPlace] = []
        self._names: set[str] = set()
        self._fd: int | None = None
        self._end = 0
        self._temporary = self.path.parent / f".{self.path.name}.{os.urandom(6).hex()}{_SUFFIX}"

    def __enter__(self) -> BlockWriter:
        try:
            self._open()
            self._write(bytes(ALIGN))
        except OSError as error:
            self._abandon()
            raise self._failed(error) from error
        return self

    def add(
        self,
        name: str,
        tensors: Mapping[str, Any],  # torch tensors, numpy arrays, or bytes
        *,
        kind: str = "weights",
        codec: str = "raw",
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Append a block. Bytes and memoryviews are stored as uint8 [n]."""
        if self._fd is None:
            raise ParameterError("a block writer is used in a with statement")
        if not name or name in self._names:
            raise ParameterError("a block needs a name of its own", value=name)
        digest, places = hashlib.blake2b(digest_size=32), dict[str, TensorPlace]()
        try:
            # An add that failed and was caught has left bytes behind; blocks start on a page.
            self._write(bytes(-self._end % ALIGN))
            start = self._end
            for tensor_name, value in tensors.items():
                dtype, shape, data = _as_bytes(value, f"{name}/{tensor_name}")
                gap = bytes(-(self._end - start) % TENSOR_ALIGN)
                digest.update(gap)
                self._write(gap)
                places[tensor_name] = TensorPlace(
                    dtype=dtype, shape=shape, offset=self._end - start
                )
                for at in range(0, len(data), _PIECE):
                    digest.update(data[at : at + _PIECE])
                    self._write(data[at : at + _PIECE])
            length = self._end - start
            self._write(bytes(-length % ALIGN))
        except OSError as error:
            raise self._failed(error) from error
        self._names.add(name)
        self._blocks.append(
            BlockPlace(
                name=name,
                kind=kind,
                codec=codec,
                offset=start,
                length=length,
                checksum=f"blake2b:{digest.hexdigest()}",
                tensors=places,
                meta=dict(meta or {}),
            )
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._abandon()
            return
        try:
            self._finish()
        except OSError as problem:
            raise self._failed(problem) from problem
        finally:
            self._abandon()

    # -- private ------------------------------------------------------------------------------

    def _open(self) -> None:
        # The lock on the folder closes the gap between creating a temporary file and locking it;
        # the lock on the file tells other writers that its owner is alive.
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            _remove_leftovers(self.path)
            self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, self._mode)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        finally:
            os.close(folder)

    def _finish(self) -> None:
        assert self._fd is not None
        content = {
            "format": FORMAT,
            "version": VERSION,
            "header": self.header,
            "blocks": [_to_json(block) for block in self._blocks],
        }
        try:
            table = json.dumps(content, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise ParameterError(f"header or meta is not JSON: {error}") from error
        offset = self._end
        self._write(table)
        total = self._end
        check = hashlib.blake2b(table, digest_size=32).digest()
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._write(_PAGE0.pack(MAGIC, VERSION, 0, total, offset, len(table), check))
        os.fsync(self._fd)
        os.rename(self._temporary, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        if hasattr(os, "posix_fadvise"):  # what was written need not stay in the page cache
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _write(self, data: bytes | memoryview) -> None:
        assert self._fd is not None
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self._end += written
            view = view[written:]

    def _abandon(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(
            f"cannot write {self.path}: {error.strerror or error}",
            way_out=[
                "what was there before is unchanged",
                "free some space on that disk, or name another folder",
            ],
        )


class BlockStore:
    """Reads a file of blocks; several threads may read at once.

    Args:
        path: the file.
        direct: read past the page cache (O_DIRECT) where the file system allows it; where it does
            not, reads are buffered, the cache is told to drop them, and `why_buffered` says why.
        mapped: allow `tensors`, which maps the file into memory.

    Attributes:
        header: what the writer said about the whole file.
        direct: whether `read` goes past the page cache.
        why_buffered: why it does not; None when it does.

    Raises:
        FormatError: if the file is cut short, is no block file, or is of another version.
        StorageError: if it cannot be opened.
    """

    def __init__(self, path: Path | str, *, direct: bool = True, mapped: bool = True) -> None:
        self.path = Path(path)
        fd = _open_to_read(self.path)
        try:
            self.header, blocks = _read_table(fd, self.path)
        except BaseException:
            os.close(fd)
            raise
        self._blocks = {block.name: block for block in blocks}
        self._mapped = mapped
        self._map: mmap.mmap | None = None
        self._lock = threading.Lock()
        self._bytes_read = 0
        self._direct_fd: int | None = None
        self.why_buffered: str | None = "not asked for"
        if direct:
            self._direct_fd, self.why_buffered = _open_direct(self.path)
        self.direct = self._direct_fd is not None
        self._fd = fd

    # -- what is in it ------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the blocks in the order they were written."""
        return list(self._blocks)

    def place(self, name: str) -> BlockPlace:
        """Return where a block and its tensors lie."""
        try:
            return self._blocks[name]
        except KeyError:
            near = nearest(name, self.names())
            raise ParameterError(
                f"there is no block {name!r} in {self.path.name}",
                way_out=f"did you mean {near!r}?" if near else (),
            ) from None

    def block(self, name: str) -> Block:
        """Return a block's name, kind, size, codec and checksum."""
        place = self.place(name)
        return Block(
            name=name,
            kind=place.kind,
            nbytes=place.nbytes,
            codec=place.codec,
            fingerprint=str(self.header.get("fingerprint", "")),
            checksum=place.checksum,
        )

    def nbytes(self, name: str) -> int:
        """Return the bytes of a block's tensors, padding excluded."""
        return self.place(name).nbytes

    def stored_bytes(self, name: str) -> int:
        """Return the bytes a block takes in the file, and that `read` needs: whole pages."""
        return self.place(name).stored_bytes

    def meta(self, name: str) -> dict[str, Any]:
        """Return what the writer said about one block."""
        return dict(self.place(name).meta)

    @property
    def bytes_read(self) -> int:
        """Bytes that `read` and `read_rows` took from the file so far."""
        return self._bytes_read

    # -- reading ------------------------------------------------------------------------------

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return a block's tensors as views of the mapped file; nothing is copied.

        They are for reading. A write to one would stay in this process and never reach the file.
        The mapping lives as long as the tensors do, also after `close`.
        """
        import torch

        place, mapping = self.place(name), self._mapping()
        views: dict[str, Tensor] = {}
        for key, tensor in place.tensors.items():
            dtype, count = getattr(torch, tensor.dtype), math.prod(tensor.shape)
            if count == 0:
                views[key] = torch.empty(tensor.shape, dtype=dtype)
                continue
            at = place.offset + tensor.offset
            flat = torch.frombuffer(mapping, dtype=dtype, count=count, offset=at)
            views[key] = flat.view(tensor.shape)
        return views

    def read(self, name: str, into: Tensor | None = None) -> dict[str, Tensor]:
        """Read a block and return its tensors, which view `into`.

        Args:
            into: uint8 [>= stored_bytes(name)] on a page boundary (`aligned_empty`); None takes
                a new one.
        """
        place = self.place(name)
        if into is None:
            into = aligned_empty(place.stored_bytes)
        self.read_bytes(name, _flat_uint8(into).numpy().data)
        return self.views(name, into)

    def read_bytes(self, name: str, into: memoryview) -> int:
        """Read a block's stored bytes into memory on a page boundary; return how many."""
        place = self.place(name)
        size = place.stored_bytes
        if into.nbytes < size:
            raise ParameterError(
                f"the buffer for {name} is too small",
                value=into.nbytes,
                allowed=f"at least {size} bytes",
            )
        if size == 0:
            return 0
        if _address(into) % ALIGN:
            raise ParameterError(
                f"the buffer for {name} does not start on a page",
                way_out="take it from loci.tiers.pool.aligned_empty",
            )
        fd = self._descriptor(self._direct_fd)
        self._pread(fd, into[:size], place.offset, place.name)
        if self._direct_fd is None:
            _forget(fd, place.offset, size)
        return size

    def views(self, name: str, buffer: Tensor) -> dict[str, Tensor]:
        """Return a block's tensors in a buffer that `read_bytes` or `read` filled."""
        import torch

        place, flat = self.place(name), _flat_uint8(buffer)
        return {
            key: flat[tensor.offset : tensor.offset + tensor.nbytes]
            .view(getattr(torch, tensor.dtype))
            .view(tensor.shape)
            for key, tensor in place.tensors.items()
        }

    def read_rows(self, name: str, tensor: str, rows: Iterable[int]) -> Tensor:
        """Return chosen rows of one tensor, [len(rows), ...], reading nothing else.

        Args:
            rows: indices into its first dimension; order and repetition are kept.
        """
        import torch

        place = self.place(name)
        if tensor not in place.tensors:
            raise ParameterError(
                f"block {name} has no tensor {tensor!r}", allowed=", ".join(place.tensors)
            )
        where, wanted = place.tensors[tensor], [int(row) for row in rows]
        if not where.shape:
            raise ParameterError(f"{name}/{tensor} is a single number; it has no rows")
        for row in wanted:
            if not 0 <= row < where.shape[0]:
                raise ParameterError(
                    f"no such row of {name}/{tensor}",
                    value=row,
                    allowed=f"0 to {where.shape[0] - 1}",
                )
        dtype, shape = getattr(torch, where.dtype), (len(wanted), *where.shape[1:])
        row_bytes = where.nbytes // max(where.shape[0], 1)
        if not wanted or not row_bytes:
            return torch.empty(shape, dtype=dtype)
        data = bytearray(len(wanted) * row_bytes)
        view, start = memoryview(data), place.offset + where.offset
        fd = self._descriptor(None)
        for index, row in enumerate(wanted):
            piece, at = view[index * row_bytes : (index + 1) * row_bytes], start + row * row_bytes
            self._pread(fd, piece, at, name)
            _forget(fd, at, row_bytes)
        return torch.frombuffer(data, dtype=dtype).view(shape)

    def verify(self, names: Sequence[str] | None = None) -> None:
        """Compare the bytes of blocks (None: all) with their checksums.

        Raises:
            FormatError: if one differs; it names the block.
        """
        fd, buffer = self._descriptor(None), memoryview(bytearray(_PIECE))
        for name in self.names() if names is None else names:
            place, digest = self.place(name), hashlib.blake2b(digest_size=32)
            for at in range(0, place.length, _PIECE):
                piece = buffer[: min(_PIECE, place.length - at)]
                self._pread(fd, piece, place.offset + at, name, count=False)
                digest.update(piece)
            _forget(fd, place.offset, place.stored_bytes)
            if f"blake2b:{digest.hexdigest()}" != place.checksum:
                raise FormatError(
                    f"block {name} of {self.path} is corrupt: its checksum differs",
                    way_out="delete the file and make or fetch it again",
                )

    def drop(self, names: Sequence[str] | None = None) -> None:
        """Let go of pages of the mapped file and of the page cache; later use reads them again."""
        for name in self.names() if names is None else names:
            place = self.place(name)
            if self._map is not None and place.length and hasattr(mmap, "MADV_DONTNEED"):
                first = place.offset // mmap.PAGESIZE * mmap.PAGESIZE
                length = place.offset + place.length - first
                self._map.madvise(mmap.MADV_DONTNEED, first, length)
            _forget(self._descriptor(None), place.offset, place.stored_bytes)

    def close(self) -> None:
        """Close the file; tensors handed out stay valid. No read may be under way."""
        with self._lock:
            if self._fd < 0:
                return
            os.close(self._fd)
            if self._direct_fd is not None:
                os.close(self._direct_fd)
            self._fd, self._direct_fd, self._map = -1, None, None

    def __enter__(self) -> BlockStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    # -- private ------------------------------------------------------------------------------

    def _descriptor(self, preferred: int | None) -> int:
        if self._fd < 0:
            raise ParameterError(f"{self.path.name} was closed")
        return self._fd if preferred is None else preferred

    def _mapping(self) -> mmap.mmap:
        self._descriptor(None)
        if not self._mapped:
            raise ParameterError(
                f"{self.path.name} was opened without a mapping", way_out="use read()"
            )
        with self._lock:
            if self._map is None:
                # Writable and private, because torch warns about read-only memory. Nothing is
                # written, so every page stays a page of the file.
                self._map = mmap.mmap(
                    self._fd,
                    0,
                    flags=mmap.MAP_PRIVATE | (_MAP_NORESERVE if sys.platform == "linux" else 0),
                    prot=mmap.PROT_READ | mmap.PROT_WRITE,
                )
            return self._map

    def _pread(
        self, fd: int, into: memoryview, offset: int, name: str, *, count: bool = True
    ) -> None:
        done = 0
        while done < into.nbytes:
            try:
                got = os.preadv(fd, [into[done:]], offset + done)
            except OSError as error:
                raise StorageError(
                    f"cannot read block {name} of {self.path}: {error.strerror or error}"
                ) from error
            if got == 0:
                raise FormatError(
                    f"block {name} of {self.path} is cut short",
                    way_out="delete the file and make or fetch it again",
                )
            done += got
        if count:
            with self._lock:
                self._bytes_read += done


def read_table(path: Path | str) -> tuple[dict[str, Any], list[tuple[str, int, int]]]:
    """Return (header, [(name, nbytes, stored_bytes)]) without opening blocks or importing torch."""
    fd = _open_to_read(Path(path))
    try:
        header, blocks = _read_table(fd, Path(path))
    finally:
        os.close(fd)
    return header, [(block.name, block.nbytes, block.stored_bytes) for block in blocks]


# -- the table --------------------------------------------------------------------------------


def _to_json(block: BlockPlace) -> dict[str, Any]:
    tensors = {key: [t.dtype, list(t.shape), t.offset] for key, t in block.tensors.items()}
    return {
        "name": block.name,
        "kind": block.kind,
        "codec": block.codec,
        "offset": block.offset,
        "length": block.length,
        "checksum": block.checksum,
        "tensors": tensors,
        "meta": dict(block.meta),
    }


def _read_table(fd: int, path: Path) -> tuple[dict[str, Any], list[BlockPlace]]:
    again = "delete the file and make or fetch it again"
    size = os.fstat(fd).st_size
    page = _pread_whole(fd, _PAGE0.size, 0, path)
    if len(page) < _PAGE0.size or page[: len(MAGIC)] != MAGIC:
        raise FormatError(f"{path} is not a file of blocks, or is cut short", way_out=again)
    _, version, _, total, offset, length, check = _PAGE0.unpack(page)
    if version != VERSION:
        raise FormatError(
            f"{path} is a file of blocks of another version",
            value=version,
            allowed=str(VERSION),
            way_out="update Loci, or make the file again with this one",
        )
    if size != total or offset + length > size:
        raise FormatError(
            f"{path} has {size} bytes and should have {total}: it is cut short or was appended to",
            way_out=again,
        )
    table = _pread_whole(fd, length, offset, path)
    if hashlib.blake2b(table, digest_size=32).digest() != check:
        raise FormatError(f"the table of {path} is corrupt: its checksum differs", way_out=again)
    try:
        data = json.loads(table)
        if data["format"] != FORMAT or data["version"] != VERSION:
            raise ValueError(f"format {data['format']!r} version {data['version']!r}")
        blocks = [_from_json(row, offset) for row in data["blocks"]]
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"the table of {path} cannot be read: {error}", way_out=again) from error
    return data["header"], blocks


def _from_json(row: Mapping[str, Any], end: int) -> BlockPlace:
    tensors = {
        key: TensorPlace(dtype=dtype, shape=tuple(shape), offset=offset)
        for key, (dtype, shape, offset) in row["tensors"].items()
    }
    block = BlockPlace(**{**row, "tensors": tensors})
    fits = block.offset % ALIGN == 0 and block.offset + block.stored_bytes <= end
    inside = all(t.offset >= 0 and t.offset + t.nbytes <= block.length for t in tensors.values())
    if not fits or not inside or block.offset < ALIGN:
        raise ValueError(f"block {block.name} does not lie inside the file")
    return block


# -- bytes ------------------------------------------------------------------------------------


def _as_bytes(value: Any, name: str) -> tuple[str, tuple[int, ...], memoryview]:
    if isinstance(value, (bytes, bytearray, memoryview)):
        flat = memoryview(value).cast("B")
        return "uint8", (flat.nbytes,), flat
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        dtype, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
        if dtype in ITEM_BYTES:
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            return dtype, shape, flat.numpy().data
    elif hasattr(value, "dtype") and hasattr(value, "tobytes"):  # a numpy array or scalar
        dtype, shape = _NUMPY.get(value.dtype.str, str(value.dtype)), tuple(value.shape)
        if dtype in ITEM_BYTES:
            import numpy

            array = numpy.ascontiguousarray(value).reshape(-1).view(numpy.uint8)
            return dtype, shape, memoryview(array.data)
    else:
        dtype = type(value).__name__
    raise ParameterError(
        f"{name} cannot be stored in a block",
        value=dtype,
        allowed=f"bytes, or a tensor or array of {', '.join(ITEM_BYTES)}",
    )


def _flat_uint8(buffer: Tensor) -> Tensor:
    import torch

    if buffer.dtype != torch.uint8 or buffer.dim() != 1 or not buffer.is_contiguous():
        raise ParameterError(
            "a block is read into a flat uint8 tensor",
            value=f"{buffer.dtype} {list(buffer.shape)}",
            way_out="take it from loci.tiers.pool.aligned_empty",
        )
    return buffer


def _address(view: memoryview) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(view))


# -- files ------------------------------------------------------------------------------------


def _open_to_read(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"cannot open {path}: {error.strerror or error}") from error


def _pread_whole(fd: int, nbytes: int, offset: int, path: Path) -> bytes:
    try:
        return os.pread(fd, nbytes, offset)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def _open_direct(path: Path) -> tuple[int | None, str | None]:
    """Return (descriptor, None), or (None, why the page cache cannot be passed by)."""
    flag = getattr(os, "O_DIRECT", None)
    if flag is None:
        return None, "this system has no O_DIRECT"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flag)
    except OSError as error:
        return None, f"the file system refuses O_DIRECT: {error.strerror}"
    page = mmap.mmap(-1, ALIGN)
    try:  # some file systems accept the flag and refuse the read
        os.preadv(fd, [page], 0)
    except OSError as error:
        os.close(fd)
        return None, f"the file system refuses direct reads: {error.strerror}"
    finally:
        page.close()
    return fd, None


def _forget(fd: int, offset: int, nbytes: int) -> None:
    """Drop pages from the page cache, also those that the range covers only in part."""
    if hasattr(os, "posix_fadvise") and nbytes:
        first = offset // ALIGN * ALIGN
        os.posix_fadvise(fd, first, round_up(offset + nbytes) - first, os.POSIX_FADV_DONTNEED)


def _remove_leftovers(path: Path) -> None:
    """Delete temporary files of writers of `path` that died; living ones hold a lock."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            fd = os.open(leftover, os.O_RDWR)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(leftover)
            finally:
                os.close(fd)

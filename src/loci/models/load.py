"""A model by name or path: found, packed on first use, opened.

A name means the folder `<models folder>/<name>`; a path means a GGUF file, a Hugging Face folder,
or a pack. What lies elsewhere is never changed: its pack is made inside the models folder and
made again when the file there changes. Importing this module, and `spec_of` on a model that was
packed, load no torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any  # header values are JSON

from loci.core.spec import ModelSpec
from loci.errors import FormatError, LociError, ModelError, StorageError
from loci.tiers.blocks import BlockStore, read_table
from loci.units import nearest

if TYPE_CHECKING:
    from loci.models.pack import Pack, Packer

PACK_FILE, TOKENIZER_FILE = "pack.loci", "tokenizer.json"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Found:
    """Where a model is: its pack (made or not), and what the pack is made from."""

    name: str
    pack: Path
    source: Path | None

    def is_packed(self) -> bool:
        """Whether the pack is there and was made from the source as it is now."""
        if not self.pack.is_file():
            return False
        if self.source is None:
            return True
        try:
            made_from = read_table(self.pack)[0].get("source", {})
        except (LociError, ValueError):
            return False
        return all(
            made_from.get(key) == value for key, value in _identity(self.source, self.pack).items()
        )


def locate(name: str, folder: Path) -> Found:
    """Return where a model is.

    Raises:
        ModelError: if there is none; names what is there and how to get more.
    """
    if not name.strip():
        raise ModelError(
            "no model was named",
            value=name,
            allowed=", ".join(names(folder)) or f"none is in {folder} yet",
            way_out="get the default model:  loci pull smollm2",
        )
    path = Path(name).expanduser()
    looks_like_path = "/" in name or os.sep in name or path.suffix in (".gguf", ".loci")
    if looks_like_path or not _is_name(name):
        return _at_path(path, folder)
    home = folder / name
    source = _source_in(home)
    if source is None and not (home / PACK_FILE).is_file():
        if path.exists():
            return _at_path(path, folder)
        there = names(folder)
        near = nearest(name, [*there, "smollm2", "minilm"])
        raise ModelError(
            "there is no model of that name",
            value=name,
            allowed=", ".join(there) or f"none is in {folder} yet",
            way_out=[
                *([f"did you mean {near!r}?"] if near and near != name else []),
                "get the default model:  loci pull smollm2",
                "or give the path of a GGUF file or a Hugging Face folder",
            ],
        )
    return Found(name=name, pack=home / PACK_FILE, source=source)


def names(folder: Path) -> list[str]:
    """Return the names of the models in the models folder, packed or not."""
    if not folder.is_dir():
        return []
    homes = (home for home in folder.iterdir() if home.is_dir() and _is_name(home.name))
    return sorted(
        home.name for home in homes if (home / PACK_FILE).is_file() or _source_in(home) is not None
    )


def resolve(
    name: str,
    folder: Path,
    *,
    quant: Packer | None = None,
    embed_quant: Packer | None = None,
    progress: Progress | None = None,
    mapped: bool = True,
    direct: bool = True,
) -> Pack:
    """Open a model, packing it on first use.

    Args:
        name: a name in the models folder, or a path.
        folder: the models folder.
        quant, embed_quant: how to pack linear layers and embedding of a model that is not packed
            yet; None keeps the source's own precision.
        progress: told (what, done, whole) while packing.
        mapped, direct: see `open_pack`.

    Raises:
        FormatError: if the pack, or what it is made from, is cut short or corrupt.
    """
    from loci.models.pack import open_pack

    found = locate(name, folder)
    if not found.is_packed():
        _pack(found, quant, embed_quant, progress)
    try:
        _check(found.pack, folder, progress)
    except FormatError:
        if found.source is None:
            raise
        found.pack.unlink(missing_ok=True)  # damaged, and what it was made from is there
        _pack(found, quant, embed_quant, progress)
        _check(found.pack, folder, progress)
    return open_pack(found.pack, mapped=mapped, direct=direct)


def spec_of(
    name: str, folder: Path, *, progress: Progress | None = None
) -> tuple[ModelSpec, list[tuple[str, int, int]], int]:
    """Return (spec, [(block, nbytes, stored_bytes)], total bytes) of a model.

    Reads the pack's table alone; a model that is not packed yet is packed first.
    """
    found = locate(name, folder)
    if not found.is_packed():
        _pack(found, None, None, progress)
    header, blocks = read_table(found.pack)
    try:
        spec = ModelSpec.from_json(header["spec"])
    except (KeyError, TypeError, LociError) as error:
        raise FormatError(f"{found.pack} is no pack of this version: {error}") from None
    return spec, blocks, sum(nbytes for _, nbytes, _ in blocks)


# -- private ----------------------------------------------------------------------------------


def _is_name(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name) is not None


def _at_path(path: Path, folder: Path) -> Found:
    if not path.exists():
        raise ModelError(
            f"there is no file or folder {path}",
            way_out="give a GGUF file, a Hugging Face folder, a pack, or a name from `loci ls`",
        )
    path = path.resolve()
    if path.is_dir() and (path / PACK_FILE).is_file():
        return Found(name=path.name, pack=path / PACK_FILE, source=_source_in(path))
    if path.name == PACK_FILE:
        return Found(name=path.parent.name, pack=path, source=None)
    source = _source_in(path) if path.is_dir() else path
    if source is None:
        raise ModelError(
            f"{path} holds no model that we read",
            allowed="one GGUF file, or config.json and model.safetensors",
        )
    mark = hashlib.blake2b(str(source).encode(), digest_size=4).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9._+-]+", "-", source.stem if source.is_file() else source.name)
    name = f"{stem.lstrip('-._+') or 'model'}-{mark}"
    return Found(name=name, pack=folder / name / PACK_FILE, source=source)


def _source_in(home: Path) -> Path | None:
    """Return the GGUF file in a folder, or the folder itself when it is a Hugging Face one."""
    if not home.is_dir():
        return None
    if (home / "config.json").is_file():
        return home
    files = sorted(home.glob("*.gguf"))
    if len(files) > 1:
        raise ModelError(
            f"{home} holds more than one GGUF file",
            value=", ".join(file.name for file in files[:4]),
            way_out="give the path of the one you mean",
        )
    return files[0] if files else None


def _identity(source: Path, pack: Path) -> dict[str, Any]:
    """Return what tells one state of a source from another.

    Inside the models folder the size is enough, so that a folder can be copied; elsewhere files
    may change under us, so the time counts too.
    """
    files = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
    stats = [file.stat() for file in files]
    identity: dict[str, Any] = {
        "file": source.name if source.is_file() else ".",
        "bytes": sum(stat.st_size for stat in stats),
    }
    if pack.parent not in (source, source.parent):
        identity["path"] = str(source)
        identity["mtime_ns"] = max((stat.st_mtime_ns for stat in stats), default=0)
    return identity


def _pack(
    found: Found, quant: Packer | None, embed_quant: Packer | None, progress: Progress | None
) -> None:
    if found.source is None:
        raise FormatError(
            f"{found.pack} cannot be read and there is nothing to make it from",
            way_out=f"delete it and run: loci pull {found.name}",
        )
    # The folder comes second: only what was read and understood gets one.
    with closing(_Source(found.source, found.name)) as source, _locked(found.pack.parent):
        if not found.is_packed():  # another process may have made it while we waited
            source.write(found.pack, quant, embed_quant, progress)


class _Source:
    """A model as others keep it, opened and checked: tensors and tokenizer."""

    def __init__(self, path: Path, name: str) -> None:
        from loci.models.gguf_tensors import GgufSource
        from loci.models.gguf_tokenizer import tokenizer_of
        from loci.models.hf_folder import HfSource, special_of
        from loci.models.pack import check_source

        self.path = path
        tensors: GgufSource | HfSource
        tensors = GgufSource(path, name) if path.is_file() else HfSource(path, name)
        self._tensors, self.close = tensors, tensors.close
        try:
            check_source(tensors)
            if isinstance(tensors, GgufSource):
                text, self._special, self._template = tokenizer_of(tensors.header)
                self._tokenizer = text.encode()
            else:
                self._special, self._template = special_of(path)
                self._tokenizer = (path / TOKENIZER_FILE).read_bytes()
        except BaseException:
            self.close()
            raise

    def write(
        self,
        pack: Path,
        quant: Packer | None,
        embed_quant: Packer | None,
        progress: Progress | None,
    ) -> None:
        """Write tokenizer and pack; the folder is there and ours alone."""
        from loci import __version__
        from loci.models.pack import write_pack
        from loci.models.tokenizer import checksum
        from loci.models.tokenizer_size import tokenizer_bytes

        raw, tokenizer = self._tokenizer, pack.parent / TOKENIZER_FILE
        if not (tokenizer.is_file() and tokenizer.read_bytes() == raw):
            _write_whole(tokenizer, raw)
        write_pack(
            self._tensors,
            pack,
            extra={
                "made_by": f"loci {__version__}",
                "source": _identity(self.path, pack),
                "tokenizer": {"file": TOKENIZER_FILE, "checksum": checksum(raw)},
                "chat_template": self._template,
                "special": self._special,
            },
            tokenizer_bytes=tokenizer_bytes(tokenizer),
            quant=quant,
            embed_quant=embed_quant,
            progress=progress,
        )


def _check(pack: Path, folder: Path, progress: Progress | None) -> None:
    """Compare a pack with its checksums, once for every state of the file.

    A damaged weight would not stop a model, only make it say something else. What was found whole
    is written down in the models folder, where it can be written; a file that changed since is
    compared again.
    """
    stat = pack.stat()
    state = {
        "format": "loci-checked",
        "version": 1,
        "path": str(pack),
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
    }
    mark = hashlib.blake2b(str(pack).encode(), digest_size=8).hexdigest()
    note = folder / ".checked" / f"{mark}.json"
    with suppress(OSError, ValueError):
        if json.loads(note.read_text(encoding="utf-8")) == state:
            return
    with BlockStore(pack, direct=False, mapped=False) as store:
        names = store.names()
        for done, name in enumerate(names, 1):
            store.verify([name])
            if progress is not None:
                progress("checking", done, len(names))
    with suppress(OSError, StorageError):  # then the next run compares again
        note.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(note, json.dumps(state).encode())


def _write_whole(path: Path, raw: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}",
            way_out="free some space on that disk, or name another folder",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time make a pack in this folder, which is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(
            f"cannot pack into {folder}: {error.strerror or error}",
            way_out="name a models folder that may be written:  loci config set models_dir FOLDER",
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)

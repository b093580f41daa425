"""A model by name or path: found, packed on first use, opened.

A name means the folder `<models folder>/<name>`; a path means a GGUF file, a Hugging Face folder,
or a pack. What lies elsewhere is never changed: its pack is made inside the models folder and
made again when the file there changes. Importing this module, and `spec_of` on a model that was
packed, load no torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any  # header values are JSON

from loci.core.spec import ModelSpec
from loci.errors import FormatError, LociError, ModelError
from loci.tiers.blocks import read_table
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
    """
    from loci.models.pack import open_pack

    found = locate(name, folder)
    if not found.is_packed():
        _pack(found, quant, embed_quant, progress)
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
    found.pack.parent.mkdir(parents=True, exist_ok=True)
    with _locked(found.pack.parent):
        if not found.is_packed():  # another process may have made it while we waited
            _write(found, found.source, quant, embed_quant, progress)


def _write(
    found: Found,
    path: Path,
    quant: Packer | None,
    embed_quant: Packer | None,
    progress: Progress | None,
) -> None:
    from loci import __version__
    from loci.models.gguf_tensors import GgufSource
    from loci.models.hf_folder import HfSource, special_of
    from loci.models.pack import check_source, write_pack
    from loci.models.tokenizer import checksum
    from loci.models.tokenizer_size import tokenizer_bytes

    source: GgufSource | HfSource
    if path.is_file():
        from loci.models.gguf_tokenizer import tokenizer_of

        source = GgufSource(path, found.name)
        check_source(source)
        text, special, template = tokenizer_of(source.header)
        raw = text.encode()
    else:
        source = HfSource(path, found.name)
        check_source(source)
        special, template = special_of(path)
        raw = (path / TOKENIZER_FILE).read_bytes()
    tokenizer = found.pack.parent / TOKENIZER_FILE
    if not (tokenizer.is_file() and tokenizer.read_bytes() == raw):
        _write_whole(tokenizer, raw)
    try:
        write_pack(
            source,
            found.pack,
            extra={
                "made_by": f"loci {__version__}",
                "source": _identity(path, found.pack),
                "tokenizer": {"file": TOKENIZER_FILE, "checksum": checksum(raw)},
                "chat_template": template,
                "special": special,
            },
            tokenizer_bytes=tokenizer_bytes(tokenizer),
            quant=quant,
            embed_quant=embed_quant,
            progress=progress,
        )
    finally:
        source.close()


def _write_whole(path: Path, raw: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time make a pack in this folder."""
    fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)

"""Artefacts: what a method prepared for one model, kept as safetensors beside a JSON of facts.

Refused when made for another model, method or parameters: a wrong basis would answer wrongly and
never say so.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any  # facts are JSON values

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from loci.core.method import Method, Need
from loci.errors import FingerprintError, FormatError, NotFoundError, StorageError
from loci.methods.kv.base import KVMethod

FORMAT, VERSION = "loci-artefact", 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Artefact:
    """Tensors and facts prepared by `method` for the model with `fingerprint`."""

    method: str
    fingerprint: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def nbytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def path_of(folder: Path, method: Method | str, fingerprint: str) -> Path:
    """Return where the artefact of a method, parameters included, for a model is kept."""
    key = hashlib.blake2b(f"{method}\n{fingerprint}".encode(), digest_size=8).hexdigest()
    return folder / f"{str(method).partition('(')[0]}-{key}.safetensors"


def is_prepared(method: Method, folder: Path, fingerprint: str) -> bool:
    """Return whether what a method needs lies in a model's folder."""
    return path_of(folder, _preparation(method), fingerprint).is_file()


def for_chain(chain: Iterable[Method], folder: Path, fingerprint: str) -> dict[str, Artefact]:
    """Return {name: artefact} for the methods of a chain that need one.

    Raises:
        NotFoundError: if one was not prepared.
        FingerprintError: if it was prepared for another model or method.
    """
    found = {}
    for method in chain:
        if Need.ARTEFACT in method.about.needs:
            name = _preparation(method)
            path = path_of(folder, name, fingerprint)
            found[method.about.name] = load(path, method=name, fingerprint=fingerprint)
    return found


def save(artefact: Artefact, path: Path) -> None:
    """Write an artefact; a crash leaves the old file or the new one."""
    header = {
        "format": FORMAT,
        "version": str(VERSION),
        "method": artefact.method,
        "fingerprint": artefact.fingerprint,
        "facts": json.dumps(artefact.facts),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file({k: v.contiguous() for k, v in artefact.tensors.items()}, temporary, header)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {path}: {error}", way_out="free some space or name another folder"
        ) from error


def load(path: Path, *, method: str, fingerprint: str) -> Artefact:
    """Return the artefact at `path`.

    Raises:
        NotFoundError: if there is none.
        FormatError: if the file is cut short or of another version.
        FingerprintError: if it was made for another model or method.
    """
    if not path.is_file():
        raise NotFoundError(
            f"nothing was prepared for {method} and this model",
            way_out=f"loci methods prepare '{method}'",
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            known = header.get("format"), header.get("version")
            if known != (FORMAT, str(VERSION)):
                raise FormatError(
                    f"{path} is no artefact of a version we know",
                    value=known,
                    allowed=f"{FORMAT} {VERSION}",
                )
            found = header["method"], header["fingerprint"]
            if found != (method, fingerprint):
                raise FingerprintError(
                    f"{path} was prepared for something else",
                    value=found,
                    allowed=str((method, fingerprint)),
                    way_out=f"loci methods prepare '{method}'",
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads(header["facts"])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise FormatError(f"{path} is cut short or corrupt: {error}") from error
    return Artefact(method=method, fingerprint=fingerprint, tensors=tensors, facts=facts)


def _preparation(method: Method) -> str:
    return method.preparation if isinstance(method, KVMethod) else str(method)

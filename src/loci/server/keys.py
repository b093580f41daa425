"""Keys: who may ask, for which tenant. The file holds hashes; a key is shown once, when it is made.

A key is 256 random bits, so a plain hash of it cannot be turned back; its beginning names the entry
and is no secret.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal  # JSON values

from loci.core.utf8 import plain_text
from loci.errors import FormatError, NotFoundError, ParameterError, StorageError

FORMAT, VERSION = "loci-keys", 1
PREFIX = "loci"
Role = Literal["user", "admin"]
ROLES = ("user", "admin")


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks.

    Attributes:
        tenant: whose memory and prefixes; always the key's, never the request's.
        user: the only user of that tenant it may name; None is any.
        role: "admin" may also see budget, ledger, events and metrics.
    """

    tenant: str = "local"
    user: str | None = None
    role: Role = "user"


@dataclass(frozen=True, kw_only=True)
class Key:
    """One entry of the file."""

    id: str
    hash: str
    tenant: str
    role: Role = "user"
    user: str | None = None


class Keys:
    """The keys of a file, which is read again when it has changed.

    Raises:
        FormatError: if the file is no list of keys, or is readable by others.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp: tuple[int, int] | None = None
        self._keys: dict[str, Key] = {}
        self.read()

    def __len__(self) -> int:
        return len(self._keys)

    def read(self) -> dict[str, Key]:
        """Return {id: key} as the file has them now."""
        try:
            stat = self._file.stat()
        except OSError as error:
            raise FormatError(
                f"cannot read the keys in {self._file}: {error.strerror}",
                way_out=f"make one:  loci key add {self._file}",
            ) from None
        stamp = (stat.st_mtime_ns, stat.st_size)
        if stamp != self._stamp:
            self._keys, self._stamp = load(self._file), stamp
        return self._keys

    def caller(self, given: str) -> Caller | None:
        """Return whose key this is, or None if it is nobody's."""
        parts = given.split("-", 2)
        key = self.read().get(parts[1]) if len(parts) == 3 and parts[0] == PREFIX else None
        if not hmac.compare_digest(_hash(given), "" if key is None else key.hash) or key is None:
            return None
        return Caller(tenant=key.tenant, user=key.user, role=key.role)


def load(file: Path) -> dict[str, Key]:
    """Return {id: key} of a file."""
    try:
        mode = file.stat().st_mode & 0o077
        data: Any = json.loads(file.read_text(encoding="utf-8"))
        if (data["format"], data["version"]) != (FORMAT, VERSION):
            raise ValueError(f"{data['format']} {data['version']}")
        keys = [Key(**entry) for entry in data["keys"]]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise FormatError(
            f"{file} is no list of keys ({problem})",
            allowed=f"{FORMAT} {VERSION}, as loci key add writes it",
        ) from None
    if mode:
        raise FormatError(
            f"others on this machine can read {file}", way_out=f"chmod 600 {file}", value=oct(mode)
        )
    for key in keys:
        if key.role not in ROLES:
            raise FormatError(f"{file} has a key of no known role", value=key.role)
    return {key.id: key for key in keys}


def add(file: Path, *, tenant: str, role: str = "user", user: str | None = None) -> str:
    """Make a key, write its hash to the file, and return the key itself, this once."""
    if role not in ROLES:
        raise ParameterError("a key has no such role", value=role, allowed=", ".join(ROLES))
    for what, text in (("tenant", tenant), ("user", user)):
        if text is not None and not plain_text(text, what).strip():
            raise ParameterError(f"the {what} of a key is empty")
    keys = load(file) if file.exists() else {}
    id = secrets.token_hex(4)
    secret = f"{PREFIX}-{id}-{secrets.token_urlsafe(32)}"
    made: Role = "admin" if role == "admin" else "user"
    keys[id] = Key(id=id, hash=_hash(secret), tenant=tenant, role=made, user=user)
    _write(file, keys)
    return secret


def drop(file: Path, id: str) -> None:
    """Take a key out of the file; a running server refuses it from then on."""
    keys = load(file)
    if id not in keys:
        raise NotFoundError(f"{file} has no such key", value=id, allowed=", ".join(keys) or "none")
    del keys[id]
    _write(file, keys)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _write(file: Path, keys: Mapping[str, Key]) -> None:
    data = {"format": FORMAT, "version": VERSION, "made_by": "loci"}
    text = json.dumps(data | {"keys": [asdict(key) for key in keys.values()]}, indent=1) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # mode 0600
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(name, file)
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror or error}") from error

"""An append-only chain of what was done: each entry carries the hash of the one before it.

MemOS asks for an audit that can be exported and DMM-Gov for one that an auditor can check (Zhiyu Li
et al., 2025, arXiv:2507.03724; "Memory in Large Language Models", 2025, arXiv:2509.18868); how it
is kept is our design. Three files, mode 0600:

    ada.db.audit         JSON lines: a header, then the entries; only ever appended to
    ada.db.audit.head    how many entries there are, how many bytes, and the last digest
    ada.db.audit.names   whom the entries are about: number, salt, name

    digest[n] = BLAKE2b-256( digest[n-1] || entry n as JSON with sorted keys )

No text of a person enters it: an entry holds a verb, a salted hash of its subject and facts that
are numbers or short identifiers. Every entry has a salt of its own, kept with the subject's name
in the third file; `erase` takes the name and the salts away, so an erased subject leaves hashes
that nobody can compute again, and the chain itself is never rewritten.

What `verify` notices: an entry that was altered, removed, moved or added in between (it names the
first), a tail that was cut (the head knows how many there were), a name that is not the one that
was hashed. What it cannot notice alone: a name that somebody took away, as `erase` does; somebody
who rewrites chain and head, or puts back older copies of both. Keep the last digest (`head()`) in
another place and give it to `verify(anchor=...)`: a chain that does not hold it is found too.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC
from hashlib import blake2b
from pathlib import Path
from typing import Any  # JSON values

from loci.core.clock import SystemClock
from loci.core.ports import Clock
from loci.errors import FormatError, ParameterError, StorageError, StoreError

FORMAT, VERSION = "loci-audit", 1
_HEAD_BYTES = 256  # one sector holds it, so it is written whole or not at all
_WORD = re.compile(r"[a-z][a-z0-9_.-]{0,39}")
_SUBJECT = re.compile(r"[^\s\x00-\x1f\x7f]{1,200}")
_FACT = re.compile(r"[\w.:/+=@|()\[\],*-]{0,128}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing that was done.

    Attributes:
        seq: 1 for the first.
        at: ISO 8601, UTC.
        what: a verb, such as "put" or "forget".
        subject: salted hash of the id of what it was done to.
        name: that id, None once it is erased.
        facts: numbers and short identifiers.
        digest: of this entry and, through the one before, of all before it.
    """

    seq: int
    at: str
    what: str
    subject: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    digest: str
    name: str | None = None


@dataclass(frozen=True)
class Head:
    """How far a chain goes: entries, bytes of the file, last digest."""

    count: int
    nbytes: int
    digest: str


class Audit:
    """The chain at `path`, made when the first entry is recorded; safe with several processes."""

    def __init__(self, path: str | Path, *, clock: Clock | None = None) -> None:
        self.path = Path(path)
        self._head = self.path.with_name(self.path.name + ".head")
        self._names = self.path.with_name(self.path.name + ".names")
        self._clock = clock or SystemClock()

    def record(self, what: str, subject: str, **facts: Any) -> Entry:
        """Append an entry and return it once it is on the disk.

        Raises:
            ParameterError: for a verb, subject or fact that could be somebody's text.
            StoreError: if the chain was cut or rewritten, so that going on would hide it.
            StorageError: if it cannot be written; the chain is as it was.
        """
        _check(what, subject, facts)
        try:
            with self._locked(write=True) as fd:
                return self._append(fd, what, subject, facts)
        except OSError as error:
            raise StorageError(
                f"cannot write the audit {self.path}: {error}",
                way_out="free some space; nothing was recorded",
            ) from error

    def entries(self) -> list[Entry]:
        """Return all entries, oldest first, with the names that are not erased; checks nothing."""
        lines, _, names = self._read()
        found = []
        for number, line in enumerate(lines[1:], start=1):
            entry = _entry(line)
            if entry is None:
                raise FormatError(f"{self.path} cannot be read at line {number + 1}")
            found.append(_named(entry, names.get(entry.seq, ())))
        return found

    def head(self) -> Head | None:
        """Return how far the chain goes, None if nothing was recorded."""
        return self._read()[1]

    def verify(self, *, anchor: str | None = None) -> int:
        """Return how many entries there are if none was altered, removed, moved or cut.

        Args:
            anchor: a digest that was kept elsewhere; the chain must hold it.

        Raises:
            StoreError: naming the first entry that is not as it was recorded.
        """
        lines, head, names = self._read()
        if not lines:
            if (head is not None and head.count) or names or anchor is not None:
                raise self._broken("entry 1 was cut: the whole chain is gone")
            return 0
        digests = [_genesis(lines[0])]
        for number, line in enumerate(lines[1:], start=1):
            entry = _entry(line)
            if entry is None:
                raise self._broken(f"entry {number} was altered: it cannot be read")
            if entry.seq != number:
                raise self._broken(f"entry {number} is gone; entry {entry.seq} is in its place")
            if entry.digest != _digest(digests[-1], entry):
                raise self._broken(f"entry {number} was altered, or the one before it")
            told = names.get(number, [])
            if told and not any(_salted(salt, name) == entry.subject for salt, name in told):
                raise self._broken(f"the name of entry {number} is not the one recorded")
            digests.append(entry.digest)
        self._check_head(head, digests, lines)
        if anchor is not None and anchor not in digests:
            raise self._broken("no entry has the digest that was kept elsewhere")
        return len(digests) - 1

    def _check_head(self, head: Head | None, digests: list[str], lines: list[str]) -> None:
        count = len(digests) - 1
        if head is None:
            raise self._broken("the head is gone, so that a cut could not be noticed")
        if count < head.count:
            raise self._broken(f"entry {count + 1} was cut; {head.count} were recorded")
        nbytes = sum(len(line.encode()) + 1 for line in lines[: head.count + 1])
        if (digests[head.count], nbytes) != (head.digest, head.nbytes):
            raise self._broken(f"entries up to {head.count} were written anew, or the head was")

    def erase(self, subjects: Iterable[str]) -> int:
        """Take the names of subjects away; returns of how many entries. The chain stays.

        Raises:
            StorageError: if the names cannot be rewritten; they are as they were.
        """
        gone = set(subjects)
        if not gone or not self._names.exists():
            return 0
        try:
            with self._locked(write=True):
                return self._rewrite_names(gone)
        except OSError as error:
            raise StorageError(
                f"cannot rewrite {self._names}: {error}",
                way_out="free some space; the names are still there",
            ) from error

    # -- files -----------------------------------------------------------------------------------

    @contextmanager
    def _locked(self, *, write: bool) -> Iterator[int]:
        """Hold the chain's file, made if new, alone or among readers; gives its descriptor."""
        import fcntl  # here: Windows has none, and only reads

        flags = os.O_RDWR | os.O_CREAT if write else os.O_RDONLY
        fd = os.open(self.path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if write else fcntl.LOCK_SH)
            yield fd
        finally:
            os.close(fd)

    def _append(self, fd: int, what: str, subject: str, facts: Mapping[str, Any]) -> Entry:
        head, size = self._resume(fd)
        names_size = self._names.stat().st_size if self._names.exists() else 0
        salt = secrets.token_hex(16)
        at = self._clock.now().astimezone(UTC).isoformat()
        entry = Entry(
            seq=head.count + 1,
            at=at,
            what=what,
            subject=_salted(salt, subject),
            facts=json.loads(json.dumps(facts)),  # as it will be read
            digest="",
            name=subject,
        )
        entry = replace(entry, digest=_digest(head.digest, entry))
        line = _line({**_content(entry), "digest": entry.digest})
        try:
            # The name first: an entry that is there has its name, and a name alone says nothing.
            _put(self._names, names_size, _line({"seq": entry.seq, "salt": salt, "name": subject}))
            _write(fd, size, line)
            _put(self._head, 0, _head_bytes(Head(entry.seq, size + len(line), entry.digest)))
        except OSError:
            os.ftruncate(fd, size)
            if self._names.exists():
                os.truncate(self._names, names_size)
            with suppress(OSError):
                _put(self._head, 0, _head_bytes(head))
            raise
        return entry

    def _resume(self, fd: int) -> tuple[Head, int]:
        """Return the head and where to write; a line that was never finished is taken away."""
        head, size = self._read_head(), os.fstat(fd).st_size
        if head is None and size:
            raise self._broken("the head is gone, so that a cut could not be noticed")
        if head is None or (head.count == 0 and size < head.nbytes):
            first = _line({"format": FORMAT, "version": VERSION, "chain": secrets.token_hex(16)})
            head = Head(0, len(first), _genesis(first.decode()))
            try:  # the head first: without a line it stands for a chain that was never begun
                _put(self._head, 0, _head_bytes(head))
                _write(fd, 0, first)
            except OSError:
                os.ftruncate(fd, 0)
                self._head.unlink(missing_ok=True)
                raise
            return head, len(first)
        if size < head.nbytes:
            raise self._broken(f"it ends before entry {head.count}")
        tail = os.pread(fd, size - head.nbytes, head.nbytes)
        whole, _, _ = tail.rpartition(b"\n")
        for line in whole.decode("utf-8", "replace").splitlines():  # written, head not yet
            entry = _entry(line)
            if entry is None or entry.digest != _digest(head.digest, entry):
                raise self._broken(f"entry {head.count + 1} was altered")
            head = Head(entry.seq, head.nbytes + len(line.encode()) + 1, entry.digest)
        if size > head.nbytes:
            os.ftruncate(fd, head.nbytes)
        return head, head.nbytes

    def _read(self) -> tuple[list[str], Head | None, dict[int, list[tuple[str, str]]]]:
        """Return the whole lines, the head, and {entry: (salt, name) of each attempt at it}."""
        if not self.path.exists():
            return [], self._read_head(), {}
        with self._locked(write=False) as fd:
            size = os.fstat(fd).st_size
            text = os.pread(fd, size, 0).decode("utf-8", "replace")
            lines = text.split("\n")[:-1]  # what follows the last line end was never acknowledged
            names: dict[int, list[tuple[str, str]]] = {}
            if self._names.exists():
                for line in self._names.read_text("utf-8", "replace").split("\n")[:-1]:
                    data = _json(line)
                    names.setdefault(data.get("seq", 0), []).append(
                        (str(data.get("salt")), str(data.get("name")))
                    )
            return lines, self._read_head(), names

    def _read_head(self) -> Head | None:
        if not self._head.exists():
            return None
        data = _json(self._head.read_text("utf-8", "replace"))
        try:
            return Head(int(data["count"]), int(data["nbytes"]), str(data["digest"]))
        except (KeyError, TypeError, ValueError):
            raise self._broken("the head cannot be read") from None

    def _rewrite_names(self, gone: set[str]) -> int:
        lines = self._names.read_text("utf-8").split("\n")[:-1]
        kept = [line for line in lines if _json(line).get("name") not in gone]
        if len(kept) == len(lines):
            return 0
        temporary = self._names.with_name(self._names.name + ".partial")
        old = os.open(self._names, os.O_RDWR)
        try:
            temporary.unlink(missing_ok=True)
            _put(temporary, 0, "".join(line + "\n" for line in kept).encode())
            temporary.replace(self._names)
            _write(old, 0, bytes(os.fstat(old).st_size))  # the old bytes, in the place they had
        finally:
            os.close(old)
            temporary.unlink(missing_ok=True)
        return len(lines) - len(kept)

    def _broken(self, what: str) -> StoreError:
        return StoreError(
            f"the audit {self.path} does not verify: {what}",
            way_out=f"move {self.path.name}* elsewhere, as evidence; then a new chain begins",
        )


def _check(what: str, subject: str, facts: Mapping[str, Any]) -> None:
    """Refuse what could carry a text: an audit must have nothing that needs forgetting."""
    if not _WORD.fullmatch(what):
        raise ParameterError("what was done is one word", value=what, allowed="such as put, forget")
    if not _SUBJECT.fullmatch(subject):
        raise ParameterError(
            "an audit names its subject by an id, never by a text",
            value=subject[:40],
            allowed="up to 200 characters without spaces",
        )
    for name, value in facts.items():
        for part in value if isinstance(value, list | tuple) else (value,):
            plain = part is None or isinstance(part, bool | int | float)
            if not plain and not (isinstance(part, str) and _FACT.fullmatch(part)):
                raise ParameterError(
                    f"the fact {name} of an audit entry could be somebody's text",
                    value=str(part)[:40],
                    allowed="numbers, and identifiers of up to 128 letters without spaces",
                )


def _content(entry: Entry) -> dict[str, Any]:
    return {
        "seq": entry.seq,
        "at": entry.at,
        "what": entry.what,
        "subject": entry.subject,
        "facts": dict(entry.facts),
    }


def _digest(before: str, entry: Entry) -> str:
    return blake2b(before.encode() + _line(_content(entry)), digest_size=32).hexdigest()


def _genesis(header: str) -> str:
    """Return the digest that the first entry follows.

    Raises:
        FormatError: if the first line is not that of a chain we know.
    """
    data = _json(header)
    found = data.get("format"), data.get("version")
    if found != (FORMAT, VERSION):
        raise FormatError(
            "this is no audit of a version we know", value=found, allowed=f"{FORMAT} {VERSION}"
        )
    return blake2b(header.rstrip("\n").encode(), digest_size=32).hexdigest()


def _entry(line: str) -> Entry | None:
    data = _json(line)
    if set(data) != {"seq", "at", "what", "subject", "facts", "digest"}:
        return None
    if not isinstance(data["seq"], int) or not isinstance(data["facts"], dict):
        return None
    return Entry(**data)


def _named(entry: Entry, told: Iterable[tuple[str, str]]) -> Entry:
    name = next((name for salt, name in told if _salted(salt, name) == entry.subject), None)
    return replace(entry, name=name)


def _salted(salt: str, name: str) -> str:
    return blake2b(f"{salt}:{name}".encode(), digest_size=16).hexdigest()


def _json(line: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return data if isinstance(data, dict) else {}


def _line(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _head_bytes(head: Head) -> bytes:
    data = {"count": head.count, "nbytes": head.nbytes, "digest": head.digest}
    return json.dumps(data).encode().ljust(_HEAD_BYTES - 1) + b"\n"


def _put(path: Path, offset: int, data: bytes) -> None:
    """Write bytes at a place of a file, made if new for its owner alone, and flush them."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _write(fd, offset, data)
    finally:
        os.close(fd)


def _write(fd: int, offset: int, data: bytes) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done
    os.fsync(fd)

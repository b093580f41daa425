"""A folder of MemCubes beside a memory: one file each, earlier versions kept, usage counted.

    ada.db.cubes/               mode 0700
        cube-3f9a1c02.cube      the present version of a cube
        versions/cube-3f9a1c02.4.cube    earlier ones, bit for bit; the newest few of them
        usage.json              how often each was read; goes into the file when it is rewritten

Every write is a new file put into place, so a process that is killed leaves the old cube or the
new one. An earlier version is the very file it was: it gets a second name before the new one takes
the first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol  # facts of an audit are JSON values

from loci.core.clock import SystemClock
from loci.core.cube import ALLOWED, CubeHeader, MemoryKind, State, Usage, descendants
from loci.core.ports import Clock
from loci.errors import FormatError, NotFoundError, ParameterError, StorageError
from loci.store import cube_file
from loci.store.cube_file import Head, Payload
from loci.store.scan import count

SUFFIX = ".cube"
KEEP_VERSIONS = 8  # earlier versions of a cube that stay when nobody says how many
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ROW = re.compile(r"[it]\d+")  # as rows of a memory are called
_PIECE = 2**20


class Recorder(Protocol):
    """What is told of every change: an `Audit`."""

    def record(self, what: str, subject: str, **facts: Any) -> object:
        """Write down what was done to which cube."""
        ...


def check_keep(keep: int) -> None:
    """Refuse a number of versions that nothing could go back by.

    Raises:
        ParameterError: if it is below 1.
    """
    if keep < 1:
        raise ParameterError(
            "a cube keeps at least one earlier version, to go back to",
            value=keep,
            allowed=">= 1",
            way_out="loci cube drop ID takes a cube away with all its versions",
        )


def new_id(kind: MemoryKind) -> str:
    """Return an id that nothing has yet, such as "cube-3f9a1c02".

    Text keeps its id when it becomes keys and values, and when it goes back.
    """
    name = "adapter" if kind is MemoryKind.PARAMETRIC else "cube"
    return f"{name}-{secrets.token_hex(4)}"


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """An earlier version that is there no more.

    Attributes:
        sha256: of its file, so that a copy elsewhere can be told to be it.
    """

    id: str
    version: int
    nbytes: int
    sha256: str


class Shelf:
    """Cubes in a folder, which is made when the first one is put there.

    Attributes:
        dropped: earlier versions that gave way since this object was made; the audit has them too.

    Args:
        keep_versions: earlier versions of a cube that stay; older ones are overwritten when a new
            one comes.
        audit: told of every change.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        clock: Clock | None = None,
        audit: Recorder | None = None,
        keep_versions: int = KEEP_VERSIONS,
    ) -> None:
        check_keep(keep_versions)
        self.folder, self.clock, self.audit = Path(folder), clock or SystemClock(), audit
        self.keep_versions = keep_versions
        self.dropped: list[Dropped] = []

    # -- reading ------------------------------------------------------------------------------

    def headers(
        self, kind: MemoryKind | None = None, *, readable: bool = False
    ) -> list[CubeHeader]:
        """Return the headers of all cubes, or of one kind, by id.

        Args:
            readable: pass over those that cannot be read; `unreadable` names them.

        Raises:
            FormatError: if one cannot be read.
        """
        usage, bad = self._usage(), self.unreadable() if readable else {}
        paths = [path for path in self._paths() if path.name.removesuffix(SUFFIX) not in bad]
        found = [_counted(cube_file.read_header(path), usage) for path in paths]
        return [header for header in found if kind is None or header.kind is kind]

    def unreadable(self) -> dict[str, str]:
        """Return {id: what is wrong} of cubes whose head cannot be read."""
        found = {}
        for path in self._paths():
            try:
                cube_file.read_header(path)
            except (FormatError, StorageError) as error:
                found[path.name.removesuffix(SUFFIX)] = str(error)
        return found

    def header(self, id: str) -> CubeHeader:
        """Return the header of a cube.

        Raises:
            NotFoundError: if there is none with this id.
        """
        return self.head(id).header

    def head(self, id: str) -> Head:
        """Return header, facts, names and size of a cube; its payload is not read."""
        head = cube_file.read_head(self.path(id))
        return replace(head, header=_counted(head.header, self._usage()))

    def payload(self, id: str, *, fingerprint: str | None = None) -> Payload:
        """Return what is in a cube, checked; see `cube_file.read`."""
        return cube_file.read(self.path(id), fingerprint=fingerprint)[1]

    def descendants(self, ids: Iterable[str]) -> list[CubeHeader]:
        """Return the cubes made of any of these, directly or not."""
        headers = self.headers()
        found = descendants(ids, headers)
        return [header for header in headers if header.id in found]

    def path(self, id: str) -> Path:
        """Return the file of a cube."""
        path = self._path(id)
        if not path.is_file():
            raise NotFoundError(
                "there is no such cube", value=id, way_out="loci cube list shows what there is"
            )
        return path

    def nbytes(self) -> int:
        """Return the bytes of all files, earlier versions included."""
        return sum(path.stat().st_size for path in self.files())

    def files(self) -> list[Path]:
        """Return every file of the shelf."""
        found = [path for path in self.folder.rglob("*") if path.is_file()]
        return sorted(path for path in found if path.name != ".lock")

    def find(self, forms: Sequence[str]) -> dict[str, int]:
        """Return {file: how often one of these texts stands in its bytes}."""
        patterns = [form.encode() for form in forms]
        return {str(p.relative_to(self.folder.parent)): count(p, patterns) for p in self.files()}

    # -- changing -----------------------------------------------------------------------------

    def put(self, header: CubeHeader, payload: Payload, *, keep: bool = True) -> CubeHeader:
        """Keep a cube, or a new version of one; return its header as it is kept.

        Beyond the newest `keep_versions` earlier ones are dropped, which `dropped` and the audit
        tell.

        Args:
            keep: the version that was there stays as an earlier one; else it is overwritten.

        Raises:
            PolicyError: if the cube that is there is frozen.
            StorageError: if it cannot be written; what was there still is.
        """
        with self._changing():
            path = self._path(header.id)
            old: BinaryIO | None = None
            if path.is_file():
                before = cube_file.read_header(path)
                before.check_unfrozen()
                header = replace(header, version=max(header.version, before.version + 1))
                if keep:
                    self._keep(path, before.version)
                else:
                    old = open(path, "r+b")  # noqa: SIM115
            with old or contextlib.nullcontext():
                cube_file.write(path, header, payload)
                if old is not None and not os.fstat(old.fileno()).st_nlink:
                    _overwrite(old)  # unless a process that was killed had kept it already
            gone = self._drop_beyond(header.id, self.keep_versions)
        self._record("cube.put", header, bytes=payload.nbytes)
        self._told(gone)
        return header

    def change(self, header: CubeHeader) -> None:
        """Give a cube another header; what is in it stays.

        Raises:
            PolicyError: if it is frozen and this does more than thaw it.
        """
        with self._changing():
            path = self.path(header.id)
            before = cube_file.read_header(path)
            thawed = replace(before, state=before.frozen_from or before.state, frozen_from=None)
            if replace(thawed, version=header.version, usage=header.usage) != header:
                before.check_unfrozen()
            cube_file.rewrite(path, header)
        self._record("cube.change", header, state=str(header.state))

    def used(self, id: str) -> CubeHeader:
        """Count a read of a cube; the first one makes it active."""
        header = self.header(id)
        after = header.used(self.clock.now())
        if after.state is not header.state:
            self.change(after)
        with self._changing():
            usage = self._usage()
            usage[id] = asdict(after.usage)
            self._write_usage(usage)
        return after

    def remove(self, id: str) -> None:
        """Overwrite a cube and its earlier versions, and take them away.

        Raises:
            PolicyError: if it is frozen.
        """
        with self._changing():
            path = self.path(id)
            header: CubeHeader | None = None
            with contextlib.suppress(FormatError):  # what cannot be read can still be erased
                header = cube_file.read_header(path)
            if header is not None:
                header.check_unfrozen()
            for old in (*self._versions(id).values(), path):
                _shred(old)
            usage = self._usage()
            if usage.pop(id, None) is not None:
                self._write_usage(usage)
        if self.audit is not None:
            self.audit.record("cube.remove", id)

    def retire(self, id: str) -> CubeHeader:
        """Erase what is in a cube and all its versions; the header stays and says so."""
        with self._changing():
            path = self.path(id)
            header = cube_file.read_header(path)
            header.check_unfrozen()
            if header.state is not State.RETIRED:
                is_over = State.RETIRED not in ALLOWED[header.state]  # its time had passed already
                header = header.to(State.ERASED if is_over else State.RETIRED)
            with open(path, "r+b") as old:  # the bytes that lose their name
                cube_file.write(path, header, Payload(facts={"erased": True}))
                _overwrite(old)
            for version in self._versions(id).values():
                _shred(version)
        self._record("cube.retire", header)
        return header

    # -- versions -----------------------------------------------------------------------------

    def versions(self, id: str) -> list[int]:
        """Return the numbers of the versions there are, oldest first, the present one last."""
        return [*self._versions(id), cube_file.read_header(self.path(id)).version]

    def version(self, id: str, number: int) -> tuple[CubeHeader, Payload]:
        """Return a cube as it was.

        Raises:
            NotFoundError: if that version was not kept.
        """
        path = self.path(id)
        if cube_file.read_header(path).version != number:
            kept = self._versions(id)
            if number not in kept:
                raise NotFoundError(
                    f"cube {id} has no version of that number",
                    value=number,
                    allowed=", ".join(map(str, self.versions(id))),
                    way_out="loci memory audit tells which were dropped to make room",
                )
            path = kept[number]
        return cube_file.read(path)

    def rollback(self, id: str, number: int) -> CubeHeader:
        """Make an earlier version the present one again, as a new version; nothing is lost."""
        before, payload = self.version(id, number)
        present = self.header(id)
        return self.put(replace(before, version=present.version + 1, usage=present.usage), payload)

    def prune(self, keep: int, id: str | None = None, *, dry_run: bool = False) -> list[Dropped]:
        """Overwrite all but the newest earlier versions, of one cube or of all; return what went.

        What is frozen keeps all of its versions. Parents are cubes and not versions, so what is
        said of where a cube came from stays true.

        Args:
            keep: earlier versions that stay; the present one always does.
            dry_run: tell what would go, and do nothing.

        Raises:
            PolicyError: if the one cube is frozen.
        """
        check_keep(keep)
        ids = [path.name.removesuffix(SUFFIX) for path in self._paths()] if id is None else [id]
        if not ids:
            return []
        with self._changing():
            gone = []
            for one in ids:
                header = cube_file.read_header(self.path(one))
                if id is not None:
                    header.check_unfrozen()
                if header.state is not State.FROZEN:
                    gone += self._drop_beyond(one, keep, dry_run=dry_run)
        if not dry_run:
            self._told(gone)
        return gone

    def fork(self, id: str, name: str | None = None) -> CubeHeader:
        """Put a copy beside a cube, whose child it is; both go on apart."""
        header, payload = cube_file.read(self.path(id))
        copy = replace(
            header,
            id=name or new_id(header.kind),
            version=1,
            parents=tuple(dict.fromkeys((*header.parents, id))),
            state=State.GENERATED,
            frozen_from=None,
            usage=Usage(),
        )
        if self._path(copy.id).exists():
            raise ParameterError("there is a cube of this name", value=copy.id)
        return self.put(copy, payload)

    # -- moving -------------------------------------------------------------------------------

    def save(self, id: str, path: Path) -> None:
        """Write a cube to a file of its own, with its usage."""
        header, payload = cube_file.read(self.path(id))
        if path.exists() and not path.is_file():
            raise ParameterError("a cube goes to a file of its own", value=str(path))
        cube_file.write(path, _counted(header, self._usage()), payload)
        self._record("cube.save", header)

    def load(
        self, path: Path, *, fingerprint: str | None = None, store: str | None = None
    ) -> CubeHeader:
        """Take a cube from a file, every byte checked.

        Args:
            store: the name of this memory. Items and turns of another are named with theirs, so
                that forgetting what has the same id here does not take this along.

        Raises:
            FormatError: if the file is damaged.
            FingerprintError: if it was made for another model.
            ParameterError: if there is a cube of that id already.
        """
        header, payload = cube_file.read(path, fingerprint=fingerprint)
        if self._path(header.id).exists():
            raise ParameterError(
                "this cube is here already", value=header.id, way_out=f"loci cube drop {header.id}"
            )
        origin = header.provenance.store
        if origin is not None:
            parents = tuple(_named(parent, origin, store) for parent in header.parents)
            header = replace(header, parents=parents)
        return self.put(header, payload)

    # -- private ------------------------------------------------------------------------------

    def _path(self, id: str) -> Path:
        if not isinstance(id, str) or not _NAME.fullmatch(id):
            raise ParameterError(
                "this is no id of a cube", value=id, allowed="such as cube-3f9a1c02"
            )
        return self.folder / f"{id}{SUFFIX}"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"[!.]*{SUFFIX}"))

    def _versions(self, id: str) -> dict[int, Path]:
        found = {}
        for path in (self.folder / "versions").glob(f"{id}.*{SUFFIX}"):
            found[int(path.name.split(".")[1])] = path
        return dict(sorted(found.items()))

    def _keep(self, path: Path, number: int) -> None:
        """Give the present version a second name, under which it stays."""
        folder = self.folder / "versions"
        folder.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.link(path, folder / f"{path.name.removesuffix(SUFFIX)}.{number}{SUFFIX}")
        cube_file.flush_folder(folder)

    def _drop_beyond(self, id: str, keep: int, *, dry_run: bool = False) -> list[Dropped]:
        """Overwrite the oldest versions of a cube; call it while nobody else changes anything."""
        present = self.path(id)
        # Where a process was killed between two names of a file, both are the present version.
        earlier = [
            (number, path)
            for number, path in self._versions(id).items()
            if not path.samefile(present)
        ]
        gone = []
        for number, path in earlier[: max(0, len(earlier) - keep)]:
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            gone.append(Dropped(id=id, version=number, nbytes=len(data), sha256=digest))
            if not dry_run:
                # Under a name that is swept up: half a version must never look like one.
                left = self.folder / f".{path.name}.partial"
                os.replace(path, left)
                _shred(left)
        return gone

    def _told(self, gone: Sequence[Dropped]) -> None:
        self.dropped += gone
        for one in gone if self.audit is not None else ():
            self.audit.record(  # type: ignore[union-attr]
                "cube.drop_version",
                one.id,
                version=one.version,
                bytes=one.nbytes,
                sha256=one.sha256,
            )

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Let processes take turns; what a killed one left half written is swept up."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.folder / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise StorageError(
                f"cannot write to {self.folder}: {error.strerror or error}"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for left in self.folder.glob(".*.partial"):
                _shred(left)
            yield
        finally:
            os.close(descriptor)

    def _usage(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / "usage.json").read_bytes())
        except (OSError, ValueError):
            return {}  # counts are not worth an error; they begin anew
        return found if isinstance(found, dict) else {}

    def _write_usage(self, usage: dict[str, Any]) -> None:
        fresh = self.folder / f".usage.{secrets.token_hex(6)}.partial"
        descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(usage, file)
        os.replace(fresh, self.folder / "usage.json")

    def _record(self, what: str, header: CubeHeader, **facts: Any) -> None:
        if self.audit is not None:
            self.audit.record(
                what, header.id, kind=str(header.kind), version=header.version, **facts
            )


def _named(parent: str, origin: str, here: str | None) -> str:
    """Return the id of an item or a turn as it is to be called in this memory."""
    bare = parent.removeprefix(f"{origin}:")
    if origin == here or not _ROW.fullmatch(bare):
        return bare
    return f"{origin}:{bare}"


def _counted(header: CubeHeader, usage: dict[str, Any]) -> CubeHeader:
    found = usage.get(header.id)
    return header if found is None else replace(header, usage=Usage(**found))


def _shred(path: Path) -> None:
    """Write over a file's bytes, wherever else they have a name, and take it away."""
    try:
        with open(path, "r+b") as file:
            _overwrite(file)
        path.unlink()
    except OSError as error:
        raise StorageError(
            f"cannot erase {path}: {error.strerror or error}",
            way_out="it is still there; see to its rights and erase again",
        ) from error


def _overwrite(file: BinaryIO) -> None:
    left = os.fstat(file.fileno()).st_size
    while left > 0:
        left -= file.write(bytes(min(left, _PIECE)))
    file.flush()
    os.fsync(file.fileno())

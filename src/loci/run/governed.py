"""What can be governed: texts of a memory, a cube of a shelf, a patch of a model's weights.

Each says what it would change, puts it into effect and takes it back, and lets both versions be
probed side by side. None of them decides anything.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from loci.core.governance import Arm, Substance
from loci.core.item import Item, Scope
from loci.errors import MethodError, NotFoundError

if TYPE_CHECKING:
    from loci.core.cube import CubeHeader
    from loci.nn.patch import Patch
    from loci.run.memory import Hits, Memory
    from loci.store.changes import Change
    from loci.store.cube_file import Payload
    from loci.store.shelf import Shelf

Search = Callable[[str], "Hits"]


class Governed(Protocol):
    """What a change is made to. `point` and `state` are asked before anything is applied."""

    @property
    def substance(self) -> Substance:
        """What kind of memory it is."""
        ...

    def artefact(self) -> bytes:
        """Return the change itself, as bytes."""
        ...

    def point(self) -> bytes:
        """Return what `restore` needs to come back to now."""
        ...

    def state(self) -> str:
        """Return a digest of what is in effect now."""
        ...

    def apply(self) -> None:
        """Put the new version into effect, beside the old one."""
        ...

    def restore(self, point: bytes) -> None:
        """Take the new version back, bit for bit."""
        ...

    def resume(self, point: bytes) -> None:
        """Go on in another process, with the new version in effect and the old one as it was."""
        ...

    def probe(self, metric: str, arm: Arm, seed: int) -> Sequence[float]:
        """Return the outcomes of a metric's probes on a version; the seed draws the probes."""
        ...


# -- texts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextEdit:
    """One edit of what a memory knows: another text, no longer believed, or a note of its own."""

    kind: Literal["edit", "retire", "note"]
    id: str = ""
    text: str = ""


class GovernedTexts:
    """Edits of one user's items. The old version is what the memory believed before them.

    Before they are applied they are probed on a copy of the memory, so nobody sees them.

    Args:
        change: id of the change; the history of the items tells it as the reason.
        probes: gives the outcomes of a metric, with a search of either version and a seed.
    """

    substance: Substance = "text"

    def __init__(
        self,
        memory: Memory,
        user: str,
        change: str,
        edits: Sequence[TextEdit],
        probes: Callable[[str, Search, int], Sequence[float]],
    ) -> None:
        self.memory, self.user, self.edits, self.probes = memory, user, tuple(edits), probes
        self.reason = f"change {change}"

    def artefact(self) -> bytes:
        """Return the edits as JSON."""
        return json.dumps([asdict(edit) for edit in self.edits]).encode()

    def point(self) -> bytes:
        """Return the last change so far; the history keeps every text, so no copy is made."""
        last = self.memory.changes(user=self.user, limit=1)
        return json.dumps({"last": last[0].id if last else None}).encode()

    def state(self) -> str:
        """Return a digest of the items that are to be changed, and of our changes that stand.

        What others change meanwhile is theirs, and no part of it.
        """
        digest = hashlib.sha256()
        for id in dict.fromkeys(edit.id for edit in self.edits if edit.id):
            data = asdict(self.memory.get(id, user=self.user))
            for own in ("version", "recorded_at"):  # of the row, not of what it says
                data.pop(own, None)
            digest.update(json.dumps(data, sort_keys=True, default=str).encode())
        for change in self._standing():
            digest.update(change.id.encode())
        return digest.hexdigest()

    def apply(self) -> None:
        """Carry out the edits, each with the change's id as its reason."""
        _carry_out(self.memory, self.user, self.edits, self.reason)

    def restore(self, point: bytes) -> None:
        """Undo the edits, the last one first."""
        for change in self._standing():
            self.memory.undo(change.id, user=self.user)

    def resume(self, point: bytes) -> None:
        """Need nothing: the memory's history knows both versions."""

    def probe(self, metric: str, arm: Arm, seed: int) -> Sequence[float]:
        """Return outcomes with searches that see the old version, or the new one."""
        began = self._began()
        if began is not None:
            known_at = None if arm == "new" else began
            return self.probes(metric, self._search(self.memory, known_at), seed)
        if arm == "old":
            return self.probes(metric, self._search(self.memory, None), seed)
        with tempfile.TemporaryDirectory() as folder:
            copy = _copied(self.memory, Path(folder) / "copy.db")
            with copy:
                _carry_out(copy, self.user, self.edits, self.reason)
                return self.probes(metric, self._search(copy, None), seed)

    def search(self, arm: Arm) -> Search:
        """Return a search for requests of an arm."""
        began = self._began()
        return self._search(self.memory, began if arm == "old" else None)

    def _search(self, memory: Memory, known_at: datetime | None) -> Search:
        return lambda query: memory.search(query, user=self.user, known_at=known_at)

    def _standing(self) -> list[Change]:
        """Return our changes that nobody undid, the last one first."""
        found: list[Change] = []
        page, offset = self.memory.changes(user=self.user, limit=1000), 0
        while page:
            found += page
            offset += len(page)
            page = self.memory.changes(user=self.user, limit=1000, offset=offset)
        return [c for c in found if c.reason == self.reason and not c.undone and c.action != "undo"]

    def _began(self) -> datetime | None:
        """Return the moment before the first of our changes; None if none of them stands."""
        ours = [change.at for change in self._standing()]
        return min(ours) - datetime.resolution if ours else None


def _carry_out(memory: Memory, user: str, edits: Sequence[TextEdit], reason: str) -> None:
    for edit in edits:
        if edit.kind == "edit":
            memory.edit(edit.id, edit.text, user=user, reason=reason)
        elif edit.kind == "retire":
            memory.retire(edit.id, user=user, reason=reason)
        else:
            note = Item(id="", text=edit.text, kind="note", made_by="person")
            scope = Scope(tenant=memory.tenant, user=user)
            memory.store.change(scope, note, "add", reason, memory.clock.now())


def _copied(memory: Memory, path: Path) -> Memory:
    """Return a copy of a memory in another file; it is searched by words."""
    from loci.run.memory import Memory as Opened

    source = getattr(memory.store, "path", None)
    if source is None:
        raise MethodError(
            "edits are probed on a copy, which a memory in a file can have",
            way_out="export the user and import it into a file",
        )
    with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(path)) as copy:
        live.backup(copy)
    return Opened(path, recall=memory.recall, clock=memory.clock, tenant=memory.tenant)


# -- cubes ------------------------------------------------------------------------------------


class GovernedCube:
    """A cube put on a shelf, over the one of that id if there is one, whose version is kept.

    Args:
        probes: gives the outcomes of a metric with a payload (None: without the cube) and a seed.
    """

    def __init__(
        self,
        shelf: Shelf,
        header: CubeHeader,
        payload: Payload,
        probes: Callable[[str, Payload | None, int], Sequence[float]],
        *,
        substance: Substance = "kv",
    ) -> None:
        self.shelf, self.header, self.payload, self.probes = shelf, header, payload, probes
        self.substance: Substance = substance
        self._old = self._present()

    def artefact(self) -> bytes:
        """Return digests of everything in the new cube."""
        return json.dumps(_contents(self.payload), sort_keys=True).encode()

    def point(self) -> bytes:
        """Return the version there is now; the shelf keeps it, so nothing is copied."""
        there = self._present() is not None
        number = self.shelf.header(self.header.id).version if there else None
        return json.dumps({"version": number}).encode()

    def state(self) -> str:
        """Return a digest of what is in the cube of this id now."""
        now = self._present()
        text = "nothing" if now is None else json.dumps(_contents(now), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def apply(self) -> None:
        """Put the cube on the shelf."""
        self.shelf.put(self.header, self.payload)

    def restore(self, point: bytes) -> None:
        """Bring the version of the point back, or take the cube away."""
        number = json.loads(point)["version"]
        if number is None:
            self.shelf.remove(self.header.id)
        else:
            self.shelf.rollback(self.header.id, number)

    def resume(self, point: bytes) -> None:
        """Take the version of the point for the old one."""
        number = json.loads(point)["version"]
        self._old = None if number is None else self.shelf.version(self.header.id, number)[1]

    def probe(self, metric: str, arm: Arm, seed: int) -> Sequence[float]:
        """Return outcomes with the new payload, or with the one that was there before."""
        return self.probes(metric, self.serving(arm), seed)

    def serving(self, arm: Arm) -> Payload | None:
        """Return what a request of an arm is answered with, None for nothing."""
        return self.payload if arm == "new" else self._old

    def _present(self) -> Payload | None:
        try:
            return self.shelf.payload(self.header.id)
        except NotFoundError:
            return None


def _contents(payload: Payload) -> dict[str, str]:
    """Return {name: digest} of all that is in a payload."""
    import torch

    found = {f"text/{name}": text.encode() for name, text in payload.texts.items()}
    for name, tensor in payload.tensors.items():
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found[f"tensor/{name}"] = f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + raw
    found["facts"] = json.dumps(dict(payload.facts), sort_keys=True).encode()
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


# -- weights ----------------------------------------------------------------------------------


class Slot:
    """Where a model's patch is plugged in: one at a time, or none."""

    def __init__(self, patch: Patch | None = None) -> None:
        self.patch = patch


class GovernedPatch:
    """A patch of a model's weights in the place of another, or of none; the weights stay.

    Args:
        probes: gives the outcomes of a metric with a patch (None: without) and a seed.
    """

    def __init__(
        self,
        slot: Slot,
        patch: Patch,
        probes: Callable[[str, Patch | None, int], Sequence[float]],
        *,
        substance: Substance = "edit",
    ) -> None:
        self.slot, self.patch, self.probes = slot, patch, probes
        self.substance: Substance = substance
        self._old = slot.patch

    def artefact(self) -> bytes:
        """Return the new patch as safetensors."""
        return _packed(self.patch)

    def point(self) -> bytes:
        """Return the patch there is now as safetensors, nothing if there is none."""
        return b"" if self.slot.patch is None else _packed(self.slot.patch)

    def state(self) -> str:
        """Return the fingerprint of the patch there is now."""
        return "none" if self.slot.patch is None else self.slot.patch.fingerprint

    def apply(self) -> None:
        """Plug the new patch in."""
        self.slot.patch = self.patch

    def restore(self, point: bytes) -> None:
        """Plug in the patch of the point, or none."""
        self.slot.patch = _unpacked(point) if point else None

    def resume(self, point: bytes) -> None:
        """Plug the new patch in; a slot is empty when a process begins."""
        self._old = _unpacked(point) if point else None
        self.slot.patch = self.patch

    def probe(self, metric: str, arm: Arm, seed: int) -> Sequence[float]:
        """Return outcomes with the new patch, or with what was there before."""
        return self.probes(metric, self.patch if arm == "new" else self._old, seed)

    def serving(self, arm: Arm) -> Patch | None:
        """Return the patch that a request of an arm is answered with."""
        return self.patch if arm == "new" else self._old


def _packed(patch: Patch) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in sorted(patch.tensors().items())})


def _unpacked(data: bytes) -> Patch:
    from safetensors.torch import load

    from loci.nn.patch import Patch as Made

    return Made.from_tensors(load(data))

"""Adapters of a running model: several at hand, one at work, changed by a pointer.

An adapter is a patch with a name and the model it belongs to. Those at hand lie in the ledger; the
one at work stands beside the weights (`run.patched`), which are never touched, so taking it away
gives back the model bit for bit. What the kernels are told of an adapter is laid out when it comes;
switching to it changes pointers, and takes microseconds.

Keys and values depend on the adapter that read them. `reader` names it: a cache that was read by
another is never used again.

Sources: MemLoRA (arXiv:2512.04763) switches experts by stage; bank and `use` are in the terms of
everyone's adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loci.core.cube import Action, Caller, CubeHeader, MemoryKind, Provenance, require
from loci.core.ledger import Ledger
from loci.core.spec import ModelSpec
from loci.errors import FingerprintError, FormatError, NotFoundError, ParameterError
from loci.nn.patch import Patch
from loci.run.patched import PatchedWeights, with_patch
from loci.run.runner import Hand, Runner
from loci.run.weights import WeightSource
from loci.store import cube_file
from loci.store.cube_file import Payload
from loci.store.shelf import SUFFIX, Shelf, new_id
from loci.units import nearest


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """A patch with a name.

    Attributes:
        base: fingerprint of the model it was made for; None where nobody wrote it down.
        id: of its cube, "" if it is in none.
    """

    name: str
    patch: Patch
    base: str | None = None
    id: str = ""


class Adapters:
    """The adapters of one runner.

    Args:
        weights: returns the weights without an adapter, as they are now.
    """

    def __init__(
        self, runner: Runner, weights: Callable[[], WeightSource], spec: ModelSpec, ledger: Ledger
    ) -> None:
        self._runner, self._weights, self._spec, self._ledger = runner, weights, spec, ledger
        self._held: dict[str, tuple[Adapter, PatchedWeights, str]] = {}
        self._hands: dict[str | None, Hand] = {None: runner.hand()}
        self.active: str | None = None

    def load(self, adapter: Adapter) -> None:
        """Take an adapter at hand; it is not yet at work.

        Raises:
            FingerprintError: if it was made for another model.
            FormatError: if it does not fit the model.
            BudgetError: if there is no room for it.
            ParameterError: if another one of this name is at hand.
        """
        if adapter.base is not None and adapter.base != self._spec.fingerprint:
            raise FingerprintError(
                f"the adapter {adapter.name} was made for another model",
                value=adapter.base,
                allowed=self._spec.fingerprint,
                way_out=f"open the model it was made for, or make it anew for {self._spec.name}",
            )
        if adapter.name in self._held:
            raise ParameterError("an adapter of this name is at hand", value=adapter.name)
        weights = with_patch(
            self._weights(),
            adapter.patch,
            self._spec,
            self._ledger,
            name=f"adapter {adapter.name}",
        )
        self._held[adapter.name] = adapter, weights, adapter.patch.fingerprint
        self._lay_out(adapter.name)

    def use(self, name: str | None) -> None:
        """Put an adapter to work, or none.

        Raises:
            NotFoundError: if it is not at hand.
        """
        if name == self.active:
            return
        if name is not None:
            self._known(name)
        self._runner.take(self._hands[name])
        self.active = name

    def none(self) -> None:
        """Let the model answer as it is."""
        self.use(None)

    def drop(self, name: str) -> None:
        """Give an adapter's bytes back; if it was at work, none is now."""
        _, weights, _ = self._known(name)
        if self.active == name and self._hands:
            self.none()
        elif self.active == name:  # the weights rest, and the runner has none
            self.active = None
        del self._held[name]
        self._hands.pop(name, None)
        weights.release()

    def rebase(self) -> None:
        """Stand beside other weights of the same model, the adapter at work too."""
        self._hands.clear()
        self._runner.weights = self._weights()
        self._hands[None] = self._runner.hand()
        for name, (_, weights, _) in self._held.items():
            weights.source = self._weights()
            self._lay_out(name)
        self._runner.take(self._hands[self.active])

    def rest(self) -> None:
        """Let go of the weights that the adapters stand beside; `rebase` gives them others."""
        self._hands.clear()
        for _, weights, _ in self._held.values():
            del weights.source

    def names(self) -> list[str]:
        """Return the adapters at hand."""
        return list(self._held)

    @property
    def reader(self) -> str:
        """What tells keys and values of one adapter from another's; "" without one."""
        return "" if self.active is None else self._held[self.active][2]

    @property
    def nbytes(self) -> int:
        """Bytes of the adapters at hand."""
        return sum(weights.nbytes for _, weights, _ in self._held.values())

    def close(self) -> None:
        """Give every byte back."""
        for name in self.names():
            self.drop(name)

    # -- private ------------------------------------------------------------------------------

    def _known(self, name: str) -> tuple[Adapter, PatchedWeights, str]:
        if name not in self._held:
            near = nearest(name, self.names())
            raise NotFoundError(
                "no adapter of this name is at hand",
                value=name,
                allowed=", ".join(self.names()) or "none is",
                way_out=f"did you mean {near!r}?" if near else (),
            )
        return self._held[name]

    def _lay_out(self, name: str) -> None:
        """Tell the kernels of an adapter, and leave at work what is."""
        before = self._runner.hand()
        self._runner.weights = self._held[name][1]
        self._hands[name] = self._runner.hand()
        self._runner.take(before)


# -- adapters in files and on shelves -----------------------------------------------------------


def read_adapter(path: Path, spec: ModelSpec) -> Adapter:
    """Return the adapter in a cube's file or a PEFT folder.

    Raises:
        FormatError, FingerprintError: if it is neither, damaged, or does not fit the model.
        ParameterError: if PEFT can do something there that we do not.
    """
    from loci.run.peft import read_folder

    if path.is_dir():
        found = read_folder(path, spec)
        return Adapter(name=path.name, patch=found.patch, base=found.base)
    header, payload = cube_file.read(path)
    return adapter_of(header, payload)


def adapter_of(header: CubeHeader, payload: Payload) -> Adapter:
    """Return the adapter in a cube.

    Raises:
        FormatError: if there is none in it.
    """
    if header.kind is not MemoryKind.PARAMETRIC or not payload.tensors:
        what = "nothing" if header.kind is MemoryKind.PARAMETRIC else str(header.kind)
        raise FormatError(
            f"cube {header.id} holds no adapter", value=what, allowed="a parametric cube"
        )
    return Adapter(
        name=str(payload.facts.get("name") or header.id),
        patch=Patch.from_tensors(payload.tensors),
        base=header.fingerprint,
        id=header.id,
    )


def cube_of(
    adapter: Adapter,
    *,
    parents: Sequence[str] = (),
    made_by: str = "person",
    facts: Mapping[str, object] | None = None,
) -> tuple[CubeHeader, Payload]:
    """Return an adapter as a cube.

    Args:
        parents: ids of what it was made from.
        facts: further ones, JSON values, such as its probe.
    """
    ranks = [left.shape[1] for left, _ in adapter.patch.parts.values()]
    header = CubeHeader(
        id=adapter.id or new_id(MemoryKind.PARAMETRIC),
        kind=MemoryKind.PARAMETRIC,
        parents=tuple(parents),
        provenance=Provenance(sources=tuple(parents), made_by=made_by, model=adapter.base),
        fingerprint=adapter.base,
    )
    own = {"name": adapter.name, "rank": max(ranks, default=0), "base": adapter.base}
    return header, Payload(tensors=adapter.patch.tensors(), facts={**own, **(facts or {})})


def find(
    name: str | Path, spec: ModelSpec, shelf: Shelf | None = None, *, caller: Caller | None = None
) -> Adapter:
    """Return an adapter by its name or id on a shelf, or from a file or PEFT folder.

    Args:
        caller: who wants to use it; the policy of its cube decides.

    Raises:
        NotFoundError: if there is none; the names there are stand in the message.
        PolicyError: if it is not for this caller.
    """
    path = Path(name)
    known: dict[str, str] = {}
    for header in shelf.headers(MemoryKind.PARAMETRIC, readable=True) if shelf else ():
        known[header.id] = header.id
        known.setdefault(str(shelf.head(header.id).facts.get("name")) if shelf else "", header.id)
    if str(name) in known and shelf is not None:
        id = known[str(name)]
        require(caller or Caller(), shelf.header(id), Action.READ, shelf.clock.now())
        found = adapter_of(shelf.header(id), shelf.payload(id))
        shelf.used(id)
        return found
    if path.is_dir() or path.suffix == SUFFIX or path.is_file():
        if not path.exists():
            raise NotFoundError("there is no such file", value=str(path))
        return read_adapter(path, spec)
    near = nearest(str(name), list(known))
    raise NotFoundError(
        "there is no adapter of this name, and no such file or folder",
        value=str(name),
        allowed=", ".join(known) or "the shelf has none",
        way_out=f"did you mean {near!r}?" if near else "loci adapter list shows what there is",
    )

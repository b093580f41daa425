"""A whole model packed by a method: what it must be shown first, then layer by layer.

Every method of kind quant goes through here, whatever it needs: statistics, sensitivities, a budget
to share, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from loci.core.method import Need
from loci.methods.quant.base import (
    Choice,
    Nested,
    Piled,
    Quant,
    Sensitive,
    allocate,
    offers,
    piled,
    within,
)
from loci.models.pack import Pack
from loci.models.tokenizer import Tokenizer
from loci.nn.adjusted import AdjustedWeight
from loci.nn.form import DenseWeight, Form
from loci.nn.taps import ActStats
from loci.run.calibrate import (
    Calibration,
    cached_statistics,
    calibration_ids,
    digest_of,
    effects,
    statistics,
    walk,
)
from loci.text.prose import first_half

Progress = Callable[[str, int, int], None]
PROBED = 2  # texts on which sensitivities are measured


def packed_linears(
    pack: Pack,
    method: Quant,
    *,
    budget_bytes: int | None = None,
    ids_ST: Tensor | None = None,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Form]:
    """Return the linear layers of a model packed by a method, by name; see `Packer`."""
    packer = Packer(pack, ids_ST, folder=folder, seed=seed, progress=progress)
    return packer.pack(method, budget_bytes)


def bytes_of(forms: Mapping[str, Form]) -> int:
    """Return the bytes of packed layers."""
    return sum(form.nbytes for form in forms.values())


class Packer:
    """Packs one model by any method into any number of bytes, remembering what it found out.

    Args:
        ids_ST: tokens to calibrate on; None takes pieces of Python's help topics.
        folder: where statistics are kept from one time to the next; None keeps none.
        seed: of methods that draw.

    Raises:
        ParameterError: if the calibration text is too short.
    """

    def __init__(
        self,
        pack: Pack,
        ids_ST: Tensor | None = None,
        *,
        folder: Path | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.pack_of, self._folder, self._seed, self.progress = pack, folder, seed, progress
        self._ids_ST = calibration_ids(Tokenizer(pack.folder)) if ids_ST is None else ids_ST
        self._calibration: Calibration | None = None
        self._offers: dict[str, dict[str, list[Choice]]] = {}
        self._piled: dict[str, Piled] = {}
        self._effects: dict[str, dict[str, float]] = {}

    @property
    def weights(self) -> int:
        """How many weights the linear layers have."""
        return self.pack_of.spec.linear_elements()

    @property
    def text(self) -> str:
        """A hash of the tokens it calibrates on."""
        return digest_of(self._ids_ST)

    def calibration(self) -> Calibration:
        """Return what every layer is shown, with slopes; made when it is first asked for."""
        if self._calibration is None:
            pack, ids_ST = self.pack_of, self._ids_ST
            if self._folder is None:
                self._calibration = statistics(pack, ids_ST, progress=self.progress)
            else:
                self._calibration = cached_statistics(
                    pack, ids_ST, self._folder, progress=self.progress
                )
        return self._calibration

    def bytes_of(self, method: Quant) -> int:
        """Return the bytes of all linear layers in the method's own settings."""
        spec = self.pack_of.spec
        one = sum(method.packed_bytes(*shape) for shape in spec.layer_linears().values())
        return spec.layers * one

    def pack(self, method: Quant, budget_bytes: int | None = None) -> dict[str, Form]:
        """Return the linear layers packed, by name.

        Args:
            budget_bytes: for all of them together, shared by estimated KL; None takes the method's
                own settings for each.

        Raises:
            BudgetError: if the smallest settings do not fit.
            ParameterError: if a weight does not fit the method.
        """
        generator = torch.Generator().manual_seed(self._seed)
        if isinstance(method, Nested):
            budget = self.bytes_of(method) if budget_bytes is None else budget_bytes
            return within(method, self._taken_apart(method, generator), budget, generator)
        chosen: Mapping[str, Quant] = {}
        if budget_bytes is not None:
            chosen = allocate(method, self._offered(method), budget_bytes)
        elif isinstance(method, Sensitive) and method.asks:
            chosen = method.assign(self._measured(method))
        needs = Need.CALIBRATION in method.about.needs

        def packed(name: str, weight: Tensor, stats: ActStats | None = None) -> Form:
            found = chosen.get(name, method)
            return found.pack_one(weight, stats=stats if needs else None, generator=generator)

        if needs:
            return walk(self.pack_of, self._ids_ST, packed, progress=self.progress)
        forms: dict[str, Form] = {}
        for name, weight in self._weights():
            forms[name] = packed(name, weight)
            self._say("packing weights", len(forms))
        return forms

    def more_texts(self) -> Tensor:
        """Return all of the calibration half of the text in pieces as long as the others."""
        tokenizer, length = Tokenizer(self.pack_of.folder), self._ids_ST.shape[1]
        ids = tokenizer.encode(first_half())
        return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)

    # -- private ------------------------------------------------------------------------------

    def _offered(self, method: Quant) -> dict[str, list[Choice]]:
        key = str(method)
        if key not in self._offers:
            self._offers[key] = offers(
                method, self._weights("weighing widths"), stats=self.calibration().linears
            )
        return self._offers[key]

    def _taken_apart(self, method: Nested, generator: torch.Generator) -> Piled:
        key = str(method)
        if key not in self._piled:
            self._piled.clear()  # levels of a whole model are large: one method's at a time
            linears = self.calibration().linears
            if Need.MOMENT not in method.about.needs:
                weights = self._weights("taking weights apart")
                self._piled[key] = piled(method, weights, stats=linears, generator=generator)
                return self._piled[key]
            found = self._piled[key] = Piled({}, {}, {}, {})

            def taken(name: str, weight: Tensor, stats: ActStats) -> Form:
                known = stats.with_slopes(linears[name].slopes_N)
                found.add(method, name, weight, known, generator)
                return DenseWeight(weight)  # later layers see the model as it is

            walk(self.pack_of, self._ids_ST, taken, progress=self.progress)
        return self._piled[key]

    def _measured(self, method: Sensitive) -> dict[str, float]:
        key = str(method)
        if key not in self._effects:
            self._effects[key] = effects(
                self.pack_of, self._ids_ST[:PROBED], method.probe, progress=self.progress
            )
        return self._effects[key]

    def _weights(self, what: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yield (name, weight in float32) of every linear layer, one held at a time."""
        spec, done = self.pack_of.spec, 0
        for index in range(spec.layers):
            block = self.pack_of.block(f"layer.{index}")
            for tensor in spec.layer_linears():
                stored = block[tensor]
                dense = stored.float() if isinstance(stored, Tensor) else stored.dense()
                yield f"layer.{index}.{tensor}", dense
                done += 1
                self._say(what, done)

    def _say(self, what: str, done: int) -> None:
        if self.progress is not None and what:
            spec = self.pack_of.spec
            self.progress(what, done, spec.layers * len(spec.layer_linears()))


def has_corrections(forms: Mapping[str, Form]) -> bool:
    """Return whether any layer has a correction of low rank, which can be trained."""
    return any(isinstance(f, AdjustedWeight) and f.left is not None for f in forms.values())

"""The weights that a plan asks for, opened; and others in their place while a session runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loci.core.event import Events
from loci.core.ledger import Ledger
from loci.errors import BudgetError, FingerprintError, LociError, MethodError
from loci.methods import catalogue
from loci.methods.quant.base import Nested
from loci.models.load import resolve
from loci.models.pack import Pack
from loci.models.stack import StackTable
from loci.plan import stacks
from loci.run.stack import StackedWeights
from loci.run.stack_build import prepared
from loci.run.weights import ResidentWeights, StreamedWeights, WeightSource
from loci.tiers.pool import trim_heap

if TYPE_CHECKING:
    from loci.plan.solve import Plan


RESIZED = "the size of the weights was changed while the session ran"


class Sources:
    """Opens the weights of one session and lets them change their size.

    Attributes:
        pack: the model's pack, mapped where its weights are used as they are.
        weights: what the runner reads.

    Raises:
        FingerprintError: if the model is not the one the plan was made for; nothing is open then.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        ledger: Ledger,
        *,
        events: Events | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._folder, self._ledger = folder, ledger
        self._events, self._progress = events, progress
        self._closers: list[Callable[[], None]] = []
        self._stack = plan.stack
        self._model = plan.model
        is_mapped = plan.weights == "resident"
        self.pack: Pack = resolve(plan.model, folder, mapped=is_mapped, progress=progress)
        self.weights: WeightSource
        if self.pack.spec.fingerprint != plan.spec.fingerprint:
            found = self.pack.spec.fingerprint
            self.pack.close()
            raise FingerprintError(
                f"the plan was made for another {plan.model}",
                value=found,
                allowed=plan.spec.fingerprint,
                way_out="plan again with loci plan",
            )

    def open(self, plan: Plan) -> WeightSource:
        """Return the weights as the plan has them.

        Raises:
            BudgetError: if they need more than the plan gives.
        """
        if plan.weights == "resident":
            self.weights = ResidentWeights(self.pack, self._ledger)
        elif plan.weights == "stacked":
            assert plan.weights_budget_bytes is not None
            self.weights = self._stacked(plan.weights_budget_bytes)
        else:
            assert plan.placement is not None
            stored = sum(map(self.pack.stored_bytes, self.pack.names()))
            lease = self._ledger.reserve("weights on disk", "disk", stored, "weights")
            self._closers.append(lease.release)
            self.weights = StreamedWeights(
                self.pack,
                self._ledger,
                pinned=plan.placement.pinned,
                window=plan.placement.window_blocks,
                events=self._events,
            )
        return self.weights

    def resize(self, budget_bytes: int, plan: Plan) -> Plan:
        """Make the weights the best that fit and return the plan as it is now.

        Levels are loaded or dropped. Where all weights fit as they are, they are taken; where they
        no longer do, a stack takes their place, which is made first if there is none.

        Raises:
            BudgetError: if nothing fits; then nothing has changed.
        """
        if plan.weights == "streamed":
            raise MethodError(
                "weights that are read from disk cannot change their size",
                way_out="open the plan without --disk",
            )
        if budget_bytes >= self.pack.total_bytes:
            self._swap(budget_bytes, is_whole=True)
        elif isinstance(self.weights, StackedWeights):
            self.weights.resize(budget_bytes)
        else:
            self._stack = self._fitting(budget_bytes)  # too little is refused before anything
            self._prepare()
            self._swap(budget_bytes, is_whole=False)
        return self._changed(plan, budget_bytes)

    def rest(self) -> None:
        """Give every byte of the weights back until `wake`."""
        self.weights.release()
        self.pack.close()
        while self._closers:
            self._closers.pop()()
        trim_heap()

    def wake(self, plan: Plan) -> WeightSource:
        """Open the weights again after `rest`.

        Raises:
            BudgetError: if something else took their place.
        """
        is_mapped = plan.weights == "resident"
        self.pack = resolve(plan.model, self._folder, mapped=is_mapped)
        try:
            return self.open(plan)
        except BaseException:
            self.pack.close()
            raise

    def close(self) -> None:
        """Give every byte back."""
        if hasattr(self, "weights"):
            self.weights.release()
        self.pack.close()
        while self._closers:
            self._closers.pop()()

    # -- private ------------------------------------------------------------------------------

    def _method(self) -> Nested:
        found = catalogue.find(self._stack, "quant")
        assert isinstance(found, Nested), f"{self._stack} does not pack in levels"
        return found

    def _fitting(self, budget_bytes: int) -> str:
        """Return the stack to take: the one that was there before, or the first that fits.

        Raises:
            BudgetError: if the smallest weights of none fit.
        """
        spec, path = self.pack.spec, self.pack.path
        known = stacks.defaults(spec, path)
        if self._stack:
            known = [stacks.table_for(spec, path, self._stack)]
        if not known:
            raise MethodError("no method packs this model in levels", value=self._model)
        for table, _ in known:
            try:
                table.levels_within(budget_bytes)
            except BudgetError:
                if table is known[-1][0]:
                    raise
            else:
                break
        return table.method

    def _prepare(self) -> StackTable:
        with resolve(self._model, self._folder) as pack:
            self._path, found = prepared(pack, self._stack, progress=self._progress)
        trim_heap()  # taking a model apart leaves a good deal behind
        return found

    def _stacked(self, budget_bytes: int) -> StackedWeights:
        self._prepare()
        return StackedWeights(
            self._path,
            self._method(),
            self.pack.spec,
            self._ledger,
            budget_bytes=budget_bytes,
            events=self._events,
        )

    def _swap(self, budget_bytes: int, *, is_whole: bool) -> None:
        """Put other weights in the place of those that run; on failure the old ones come back."""
        was_whole = not isinstance(self.weights, StackedWeights)
        if is_whole == was_whole:
            return
        before = self.weights.nbytes()["dram"] if isinstance(self.weights, StackedWeights) else 0
        self.weights.release()
        self.pack.close()
        try:
            self._reopen(budget_bytes, is_whole)
        except LociError:
            self._reopen(before, was_whole)
            raise

    def _reopen(self, budget_bytes: int, is_whole: bool) -> None:
        self.pack = resolve(self._model, self._folder, mapped=is_whole)
        if is_whole:
            self.weights = ResidentWeights(self.pack, self._ledger)
        else:
            self.weights = self._stacked(budget_bytes)

    def _changed(self, plan: Plan, budget_bytes: int) -> Plan:
        """Return the plan with what the weights hold and lose now."""
        is_cut = isinstance(self.weights, StackedWeights)
        held = self.pack.total_bytes
        loss: float | None = 0.0
        if isinstance(self.weights, StackedWeights):
            held = self.weights.nbytes()["dram"]
            loss = self.weights.table.loss(held)
        parts = tuple(
            (name, tier, kind, held if kind == "weights" else nbytes)
            for name, tier, kind, nbytes in plan.parts
        )
        tiers = dict.fromkeys(tier for _, tier, _, _ in parts)
        return replace(
            plan,
            weights="stacked" if is_cut else "resident",
            stack=self._stack if is_cut else "",
            weights_budget_bytes=budget_bytes if is_cut else None,
            parts=parts,
            predicted={t: sum(n for _, tier, _, n in parts if tier == t) for t in tiers},
            loss=loss,
            notes=tuple(dict.fromkeys((*plan.notes, RESIZED))),
        )

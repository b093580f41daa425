"""Edits of a model's facts, over a pack: facts in, a patch and a report out.

A pack's weights are read, never written. What an editor returns is a patch, so that taking it away
gives back the model bit for bit; a harmful or overgrown one is refused before anybody gets it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # a report holds JSON values

import torch

from loci.core.cube import CubeHeader
from loci.errors import ParameterError
from loci.methods.train.base import Edit, Fact, check_facts
from loci.models.pack import Pack
from loci.nn.patch import Patch
from loci.run.adapters import Adapter, cube_of
from loci.run.edit_model import PackModel
from loci.store.cube_file import Payload

# How far edits may move a weight, |dW| / |W|, all together. One fact moves a matrix of
# 576 x 1536 by 0.1, fifty at once each of five by up to 0.3 (suite `edits`).
CAP = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Edited:
    """What an edit gave.

    Attributes:
        patch: stands beside the weights it was solved for.
        report: method, facts, seconds, bytes, and `moved`: {matrix: |dW| / |W|}, with what was in
            force before.
    """

    patch: Patch
    report: Mapping[str, Any]

    def cube(
        self, name: str, *, parents: Sequence[str] = (), made_by: str = "person"
    ) -> tuple[CubeHeader, Payload]:
        """Return the edit as a cube of parametric memory, which is put to work as an adapter is.

        Args:
            parents: ids of what the facts were taken from.
        """
        adapter = Adapter(name=name, patch=self.patch, base=self.report["model"])
        return cube_of(adapter, parents=parents, made_by=made_by, facts={"edit": dict(self.report)})


def edit(
    pack: Pack,
    facts: Sequence[Fact],
    method: Edit,
    *,
    model: PackModel | None = None,
    before: Patch | None = None,
    cap: float = CAP,
    seed: int = 0,
) -> Edited:
    """Return a patch with which the model says the facts.

    Args:
        model: the opened pack, where there is one already.
        before: edits in force, which this one comes on top of; the patch returned is without them.
        cap: how far all edits together may move a weight, |dW| / |W|.

    Raises:
        ParameterError: if facts contradict each other, the model says one of them already, or the
            edit would move a weight further than `cap`. Nothing has changed then.
        NotFoundError: if the method needs what was not prepared.
    """
    check_facts(facts)
    if not cap > 0:
        raise ParameterError("the cap of an edit must be above 0", value=cap)
    model = PackModel(pack) if model is None else model
    model = model.under(before, method)
    known = [fact for fact, said in zip(facts, model.says(facts), strict=True) if said]
    if known:
        raise ParameterError(
            "the model says this already",
            value=[fact.text for fact in known],
            way_out="leave it out; there is nothing to edit",
        )
    began = time.perf_counter()
    patch = method.edit(model, facts, torch.Generator().manual_seed(seed))
    seconds = time.perf_counter() - began
    patch.check(pack.spec)
    moved = model.moved(patch)
    over = {name: round(share, 4) for name, share in moved.items() if share > cap}
    if over:
        raise ParameterError(
            "the edit would move weights too far",
            value=over,
            allowed=f"|dW| / |W| up to {cap:g} with the edits in force",
            way_out="edit fewer facts at a time, take older edits back, or give a larger cap",
        )
    return Edited(
        patch=patch,
        report={
            "method": str(method),
            "model": pack.spec.fingerprint,
            "facts": [vars(fact) for fact in facts],
            "seconds": seconds,
            "bytes": patch.nbytes,
            "patch": patch.fingerprint,
            "moved": moved,
            "says": model.says(facts, patch),
        },
    )

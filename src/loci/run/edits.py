"""Edits of a model's facts, over a pack: facts in, a patch and a report out.

A pack's weights are read, never written. What an editor returns is a patch, so that taking it away
gives back the model bit for bit; a harmful or overgrown one is refused before anybody gets it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any  # a report holds JSON values

import torch

from loci.core.cube import CubeHeader
from loci.core.method import Need
from loci.errors import MethodError, NotFoundError, ParameterError
from loci.methods import catalogue
from loci.methods.train.base import Edit, Fact, Overlay, check_facts
from loci.methods.train.memit import Memit
from loci.methods.train.mend import Mend
from loci.methods.train.rome import Rome
from loci.models.pack import Pack
from loci.nn.patch import Patch, joined
from loci.run.adapters import Adapter, cube_of
from loci.run.edit_model import PackModel
from loci.store.cube_file import Payload

# How far edits may move a weight, |dW| / |W|, all together. One fact moves a matrix of
# 576 x 1536 by 0.1, fifty at once each of five by up to 0.3 (suite `edits`).
CAP = 0.5

# How deep the layers of the editors' defaults lie: they were chosen on a model of so many.
_DEPTH = 30

# What has nothing to do with an edit and must be said as before: the beginnings of eight plain
# sentences, and how many tokens of what the model makes of them are compared.
ELSEWHERE = (
    "The sun rises in the",
    "Two and two make",
    "Water boils when it is",
    "The first letter of the alphabet is",
    "A triangle has three",
    "In winter the weather is often very",
    "She opened the door and walked into the",
    "To bake a cake you need flour, eggs and",
)
GOES_ON = 4


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
        self,
        name: str,
        *,
        parents: Sequence[str] = (),
        made_by: str = "person",
        before: Patch | None = None,
    ) -> tuple[CubeHeader, Payload]:
        """Return the edit as a cube of parametric memory, which is put to work as an adapter is.

        Args:
            parents: ids of what the facts were taken from.
            before: what the edit was solved on top of, which is put into the cube as well.
        """
        patch = self.patch if before is None else joined([before, self.patch])
        adapter = Adapter(name=name, patch=patch, base=self.report["model"])
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


def advised(facts: Sequence[Fact], layers: int) -> Edit:
    """Return the editor for so many facts: ROME solves for one, MEMIT for several together."""
    return fitted(Rome() if len(facts) == 1 else Memit(), layers)


def editor(text: str, layers: int) -> Edit:
    """Return the editor that a text names; a bare name has its layers fitted to the model.

    Raises:
        ParameterError: if it is no method that edits weights.
    """
    method = catalogue.find(text, "train")
    if not isinstance(method, Edit):
        raise ParameterError(
            "this method edits no facts in weights",
            value=text,
            allowed=", ".join(cls.about.name for cls in (Memit, Mend, Rome)),
            way_out="keep the fact as text, which changes no weight: loci memory add"
            if isinstance(method, Overlay)
            else (),
        )
    return method if "(" in text else fitted(method, layers)


def fitted(method: Edit, layers: int) -> Edit:
    """Return an editor with its default layers at the same depth of a model of so many."""
    if isinstance(method, Rome):
        return replace(method, layer=method.layer * layers // _DEPTH)
    if isinstance(method, Memit):
        return replace(method, layers=tuple(sorted({n * layers // _DEPTH for n in method.layers})))
    return method


def check_prepared(model: PackModel, method: Edit) -> None:
    """Refuse an editor that learns from facts and has not.

    Raises:
        MethodError: naming what trains it.
    """
    if Need.MOMENT in method.about.needs or Need.ARTEFACT not in method.about.needs:
        return
    try:
        model.under(None, method).artefact()
    except NotFoundError as error:
        name = method.about.name
        raise MethodError(
            f"{name} was not trained for {model.spec.name} yet",
            value=str(method),
            allowed="an editor that is there, or one that needs no training: rome, memit",
            way_out=f"loci bench run edits --method {name} trains it; or leave --method out",
        ) from error


def goes_on(
    model: PackModel, prompts: Sequence[str], tokens: int, patch: Patch | None = None
) -> list[str]:
    """Return what the model says after each prompt, its most likely tokens one after the other."""
    rows = [list(model.row(prompt)[0]) for prompt in prompts]
    starts = [len(row) for row in rows]
    for _ in range(tokens):
        for row, logits_1V in zip(rows, model.ends(rows, [1] * len(rows), patch), strict=True):
            row.append(int(logits_1V[0].argmax()))
    decode = model.tokenizer.decode
    return [decode(row[start:]).strip() for row, start in zip(rows, starts, strict=True)]


def elsewhere(
    model: PackModel,
    patch: Patch,
    prompts: Sequence[str] = ELSEWHERE,
    *,
    before: Patch | None = None,
) -> dict[str, Any]:
    """Return what an edit does to prompts that have nothing to do with it.

    Returns:
        "asked" prompts, "kept" of them going on in the same words, "kl" in nats at their ends, and
        "changed": what went on differently, {"prompt", "before", "after"}.
    """
    own = model.under(before)
    old, new = (goes_on(own, prompts, GOES_ON, one) for one in (None, patch))
    rows = [list(model.row(prompt)[0]) for prompt in prompts]
    divergence = 0.0
    ends = (own.ends(rows, [1] * len(rows), one) for one in (None, patch))
    for plain_1V, edited_1V in zip(*ends, strict=True):
        plain_V, edited_V = (torch.log_softmax(x[0], dim=-1) for x in (plain_1V, edited_1V))
        divergence += float((plain_V.exp() * (plain_V - edited_V)).sum())
    changed = [
        {"prompt": prompt, "before": was, "after": now}
        for prompt, was, now in zip(prompts, old, new, strict=True)
        if was != now
    ]
    return {
        "asked": len(prompts),
        "kept": len(prompts) - len(changed),
        "kl": divergence / len(prompts),
        "changed": changed,
    }

"""Every editor of the catalogue keeps to the rules."""

from __future__ import annotations

import inspect

import pytest

from loci.methods import catalogue
from loci.methods.train.base import Edit, Overlay
from loci.methods.train.mend import Mend
from loci.run import artefacts
from loci.run.edit_model import PackModel
from loci.run.edit_training import Triple, train_mend, train_scope
from loci.testing import train

_ALL = catalogue.all_methods("train")
EDITORS = [m for m in _ALL if issubclass(m, Edit) and not inspect.isabstract(m)]
OVERLAYS = [m for m in _ALL if issubclass(m, Overlay) and not inspect.isabstract(m)]


@pytest.mark.parametrize("editor", EDITORS, ids=lambda m: m.about.name)
def test_every_editor_keeps_to_the_rules(editor: type[Edit], tiny_model: PackModel) -> None:
    method = train.fitted(editor, tiny_model.spec, steps=6)
    if isinstance(method, Mend):
        lessons = [Triple(fact=f, paraphrase=f, other="The sea is") for f in train.FACTS]
        made = train_mend(tiny_model, lessons, method)
        spec = tiny_model.spec
        path = artefacts.path_of(tiny_model.pack.folder, method, spec.fingerprint)
        artefacts.save(made, path)
    train.check(method, tiny_model.under(None, method))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda m: m.about.name)
def test_every_overlay_keeps_to_the_rules(overlay: type[Overlay]) -> None:
    method = overlay()
    train.check_overlay(method, train_scope(train.LetterEmbedder(), method))  # type: ignore[arg-type]


def test_there_are_both() -> None:
    assert EDITORS and OVERLAYS

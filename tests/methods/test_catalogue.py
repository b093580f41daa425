"""The folder is the catalogue: every file in it keeps the rules, every text finds its method."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import loci.methods
from loci.core.method import Kind, Method
from loci.errors import MethodError, ParameterError
from loci.methods import catalogue

FILES = [
    file
    for file in sorted(Path(loci.methods.__path__[0]).glob("*/*.py"))
    if file.name not in catalogue._NOT_METHODS and not file.name.startswith("_")
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_file_defines_the_method_it_is_named_after(file: Path) -> None:
    kind, stem = file.parent.name, file.stem
    own = [
        cls
        for cls in catalogue.all_methods(kind)
        if cls.__module__ == f"loci.methods.{kind}.{stem}"
    ]
    assert any(cls.about.name == stem for cls in own), f"{file.name} defines no method {stem!r}"
    for cls in own:
        assert cls.about.name == stem or cls.about.name.startswith(stem + "-")
        assert cls.about.kind.value == kind
        assert cls.about.idea and cls.about.paper
        assert cls.__doc__ and sys.modules[cls.__module__].__doc__
        assert cls.predict is not Method.predict
        method = cls()
        assert catalogue.find(str(method), kind) == method
        assert set(cls.schema()["properties"]) == set(method.parameters()), "a field has no Param"
        assert len(cls.declared()) <= 11, "too many parameters for one method"
        assert hash(method) == hash(cls())
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= 200 + 100 * len(own), "a long file; what methods share goes down"


def test_names_need_no_torch() -> None:
    code = (
        "import sys; from loci.methods import catalogue; catalogue.names(); "
        "assert catalogue.kinds(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_kinds_are_those_with_a_folder() -> None:
    assert {"cost", "sched", "offload"} <= set(catalogue.kinds()) <= set(Kind)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ParameterError, match="did you mean 'fcfs'"):
        catalogue.find("fcfss", "sched")


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"no parameter 'chunks'[^?]*did you mean 'chunk'"):
        catalogue.find("fcfs(chunks=2)")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ParameterError, match="did you mean 'sched'"):
        catalogue.names("shed")


def test_a_name_of_another_kind_is_not_found() -> None:
    with pytest.raises(ParameterError, match="no cost method"):
        catalogue.find("fcfs", "cost")


def test_the_empty_chain_is_empty() -> None:
    assert catalogue.parse_chain("", "kv") == ()
    assert catalogue.parse_chain("fcfs | fcfs(chunk=8)", "sched") == (
        catalogue.find("fcfs"),
        catalogue.find("fcfs(chunk=8)"),
    )


def _with_entry(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    entry = EntryPoint(name="theirs", value=value, group=catalogue.GROUP)
    monkeypatch.setattr(catalogue, "_entries", lambda: (entry,))


def test_a_strangers_method_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_entry(monkeypatch, "catalogue_stranger:Theirs")
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "strangers"))
    assert "theirs" in catalogue.names("sched")
    assert str(catalogue.find("theirs")) == "theirs"


def test_a_stranger_cannot_take_our_name(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_entry(monkeypatch, "loci.methods.sched.fcfs:Fcfs")
    with pytest.raises(MethodError, match="exists already"):
        catalogue.names()


def test_a_stranger_must_be_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_entry(monkeypatch, "pathlib:Path")
    with pytest.raises(MethodError, match="is no method"):
        catalogue.names()

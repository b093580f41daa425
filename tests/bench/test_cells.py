"""Cells come back as they were kept, and only where they would come out the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from loci.bench import cells
from loci.bench.cells import Cells, code_of
from loci.errors import FormatError
from loci.methods.kv.keydiff import KeyDiff
from loci.methods.kv.snapkv import SnapKV


def test_a_cell_is_found_by_the_next_run(tmp_path: Path) -> None:
    first = Cells(tmp_path, "lookup-dev", {"tokens": 512})
    first.add(0, "snapkv @ 0.5", {"right": [True, False]})
    first.add(1, "snapkv @ 0.5", {"right": [False]})
    again = Cells(tmp_path, "lookup-dev", {"tokens": 512})
    assert again.get(0, "snapkv @ 0.5") == {"right": [True, False]}
    assert again.get(1, "snapkv @ 0.5") == {"right": [False]}
    assert again.get(2, "snapkv @ 0.5") is None
    assert Cells(tmp_path, "lookup-dev", {"tokens": 1024}).get(0, "snapkv @ 0.5") is None


def test_a_line_that_was_cut_short_is_measured_again(tmp_path: Path) -> None:
    kept = Cells(tmp_path, "a", {})
    kept.add(0, "x", {"v": 1})
    with kept.path.open("a") as file:
        file.write('{"item": 1, "key": "x", "v"')
    again = Cells(tmp_path, "a", {})
    assert again.get(0, "x") == {"v": 1} and again.get(1, "x") is None
    again.add(1, "x", {"v": 2})
    assert Cells(tmp_path, "a", {}).get(1, "x") == {"v": 2}


def test_a_file_of_something_else_is_refused_by_its_line(tmp_path: Path) -> None:
    kept = Cells(tmp_path, "a", {})
    kept.add(0, "x", {"v": 1})
    kept.path.write_text(kept.path.read_text() + "nonsense\n")
    with pytest.raises(FormatError, match="line 2"):
        Cells(tmp_path, "a", {})


def test_code_is_that_of_the_methods_own_file() -> None:
    assert code_of([SnapKV()]) == code_of([SnapKV(window=8)]) != code_of([KeyDiff()])
    assert code_of([cells]) not in (code_of([SnapKV()]), code_of([]))

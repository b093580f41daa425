"""Cubes as files: a round trip bit for bit, and nothing cut or altered gets through."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from loci.core.cube import CubeHeader, MemoryKind, Policy, Provenance, Sensitivity, State, Usage
from loci.errors import FingerprintError, FormatError, ParameterError, StorageError
from loci.store import cube_file
from loci.store.cube_file import Payload

HEADER = CubeHeader(
    id="kv-1",
    kind=MemoryKind.ACTIVATION,
    version=3,
    parents=("i7", "t3"),
    state=State.FROZEN,
    frozen_from=State.ACTIVE,
    provenance=Provenance(sources=("t3",), made_by="rules", model="smollm2", at="2026-05-01"),
    policy=Policy(
        owner="ada", readers=("bob",), purposes=("tax",), sensitivity=Sensitivity.PRIVATE
    ),
    usage=Usage(reads=4, last_read="2026-05-01T10:00:00+00:00"),
    fingerprint="blake2b:00ff",
)


def everything() -> Payload:
    draw = torch.Generator().manual_seed(0)
    return Payload(
        tensors={
            "keys.0": torch.randn(2, 3, 4, generator=draw),
            "half": torch.randn(5, generator=draw).half(),
            "brain": torch.randn(3, generator=draw).bfloat16(),
            "ids": torch.arange(7, dtype=torch.int32),
            "mask": torch.tensor([True, False, True]),
            "scalar": torch.tensor(2.5, dtype=torch.float64),
            "none": torch.empty(0, 3),
            "part": torch.arange(12.0).reshape(3, 4).t(),  # not contiguous
        },
        texts={"text": "Grüße an Ada\n", "empty": ""},
        facts={"rank": 8, "list": [1, 2.5, None], "said": 'a "quote"'},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    where = tmp_path / "kv-1.cube"
    cube_file.write(where, HEADER, everything())
    return where


@pytest.mark.parametrize("mapped", [False, True])
def test_comes_back_bit_for_bit(path: Path, mapped: bool) -> None:
    header, payload = cube_file.read(path, mapped=mapped)
    assert header == HEADER
    assert (payload.texts, payload.facts) == (everything().texts, everything().facts)
    assert payload.tensors.keys() == everything().tensors.keys()
    for name, tensor in everything().tensors.items():
        assert payload.tensors[name].dtype == tensor.dtype
        assert torch.equal(payload.tensors[name], tensor)
    assert payload.nbytes == everything().nbytes
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["kv-1.cube"]


def test_a_head_is_read_without_the_rest(path: Path) -> None:
    head = cube_file.read_head(path)
    assert head.header == cube_file.read_header(path) == HEADER
    assert head.facts == everything().facts
    assert head.nbytes == everything().nbytes
    assert "text/empty" in head.names


def test_the_format_s_own_library_opens_it(path: Path) -> None:
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["header"])["id"] == "kv-1"
    found = load_file(path)
    assert torch.equal(found["keys.0"], everything().tensors["keys.0"])
    assert bytes(found["text/text"].numpy()).decode() == "Grüße an Ada\n"


def test_another_process_reads_the_same(path: Path) -> None:
    code = (
        "import sys, pathlib; from loci.store import cube_file;"
        "h, p = cube_file.read(pathlib.Path(sys.argv[1]));"
        "cube_file.write(pathlib.Path(sys.argv[1] + '.copy'), h, p)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    copy = path.with_name("kv-1.cube.copy")
    assert copy.read_bytes() == path.read_bytes()


def test_an_altered_byte_is_refused_wherever_it_is(path: Path) -> None:
    whole = path.read_bytes()
    for at in (*range(16), *range(16, len(whole), 13), len(whole) - 1):
        altered = bytearray(whole)
        altered[at] ^= 0x20  # also what JSON would not mind, such as a blank turned into a zero
        path.write_bytes(altered)
        with pytest.raises(FormatError):
            cube_file.read(path)


def test_a_shorter_and_a_longer_file_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for data in (*(whole[:end] for end in (*range(9), *range(9, len(whole), 13))), whole + b"\0"):
        path.write_bytes(data)
        with pytest.raises(FormatError):
            cube_file.read(path)


def test_what_is_damaged_is_named(path: Path) -> None:
    whole = path.read_bytes()
    at = whole.index("Grüße".encode())
    path.write_bytes(whole[:at] + b"X" + whole[at + 1 :])
    with pytest.raises(FormatError, match=r"damaged: the text 'text/text', bytes \d+ to \d+"):
        cube_file.read(path)
    path.write_bytes(whole[:-5])
    with pytest.raises(FormatError, match=r"damaged: its end"):
        cube_file.read(path)
    path.write_bytes(whole.replace(b"bob", b"eve"))
    with pytest.raises(FormatError, match=r"damaged: the head, bytes 8 to \d+"):
        cube_file.read_header(path)
    path.write_bytes(b"")
    with pytest.raises(FormatError, match="length of the head"):
        cube_file.read_header(path)


def test_another_model_and_another_version_are_refused(path: Path) -> None:
    cube_file.read(path, fingerprint="blake2b:00ff")
    with pytest.raises(FingerprintError, match="made for another model"):
        cube_file.read(path, fingerprint="blake2b:aaaa")
    text = path.read_bytes().replace(b'"version":"1"', b'"version":"9"')
    path.write_bytes(text)
    with pytest.raises(FormatError, match="no cube of a version Loci knows; got 'loci-cube 9'"):
        cube_file.read(path)


def test_a_file_of_others_is_no_cube(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match="no cube of a version"):
        cube_file.read(tmp_path / "model.safetensors")
    with pytest.raises(StorageError, match="cannot read"):
        cube_file.read(tmp_path / "none.cube")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 8]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F8", "shape": [8], "data_offsets": [0, 8]},
    ],
)
def test_a_head_that_lies_is_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    # Whoever writes a file can write checksums too.
    head = cube_file._head(HEADER, {}, {"a": entry}, {"a": cube_file._sum(bytes(8))})
    (tmp_path / "bad.cube").write_bytes(head + bytes(8))
    with pytest.raises(FormatError, match="places the tensor 'a' where it cannot be"):
        cube_file.read(tmp_path / "bad.cube")


def test_a_header_nobody_knows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.cube"
    cube_file.write(path, HEADER, Payload())
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    table = json.loads(raw[8 : 8 + length])
    header = json.loads(table["__metadata__"]["header"])
    table["__metadata__"]["header"] = json.dumps({**header, "kind": "dream"})
    table["__metadata__"]["checksum"] = cube_file._BLANK
    fresh = json.dumps(table).encode()
    sealed = fresh.replace(cube_file._BLANK.encode(), cube_file._digest(fresh).encode())
    path.write_bytes(struct.pack("<Q", len(sealed)) + sealed)
    with pytest.raises(FormatError, match="header of no cube Loci knows"):
        cube_file.read(path)


def test_a_new_header_leaves_the_rest(path: Path) -> None:
    before = cube_file.read(path)[1]
    after = replace(HEADER, state=State.ACTIVE, frozen_from=None, parents=("i" * 100,))
    cube_file.rewrite(path, after)
    header, payload = cube_file.read(path)
    assert header == after
    assert all(torch.equal(payload.tensors[n], before.tensors[n]) for n in before.tensors)
    assert (payload.texts, payload.facts) == (before.texts, before.facts)


def test_bad_payloads_write_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.cube"
    for bad in (
        Payload(tensors={"a": torch.zeros(1, dtype=torch.complex64)}),
        Payload(tensors={"text/a": torch.zeros(1)}),
        Payload(facts={"a": object()}),
        Payload(facts={"a": float("nan")}),
    ):
        with pytest.raises(ParameterError):
            cube_file.write(path, HEADER, bad)
    with pytest.raises(StorageError, match="cannot write"):
        cube_file.write(tmp_path / "no" / "a.cube", HEADER, Payload())
    assert not list(tmp_path.iterdir())

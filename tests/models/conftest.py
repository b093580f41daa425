"""Where the tests marked `model` find the pulled models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from platformdirs import user_data_path

from loci.models.load import resolve
from loci.models.pack import Pack


def _models_folder() -> Path:
    named = os.environ.get("LOCI_MODELS")
    return Path(named) if named else user_data_path("loci") / "models"


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """Return the folder with the pulled models; without them the tests fail, they do not skip."""
    folder = _models_folder()
    for name, file in (("smollm2", "*.gguf"), ("minilm", "model.safetensors")):
        if not any((folder / name).glob(file)):
            pytest.fail(f"{name} is not in {folder}: run `make pull`, or set LOCI_MODELS")
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf(models_folder: Path) -> Path:
    return next((models_folder / "smollm2").glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2_pack(models_folder: Path) -> Pack:
    return resolve("smollm2", models_folder)

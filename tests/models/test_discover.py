"""Models of other programs are listed and never touched."""

from __future__ import annotations

import json
from pathlib import Path

from gguf_files import write_llama

from loci.models.discover import discover
from loci.testing.models import tiny_pack


def _home(home: Path) -> None:
    blobs = home / ".ollama/models/blobs"
    library = home / ".ollama/models/manifests/registry.ollama.ai/library/little"
    for folder in (blobs, library):
        folder.mkdir(parents=True)
    write_llama(blobs / "sha256-aa")
    layers = [
        {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:aa"},
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:bb"},
        {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../x"},
    ]
    (library / "1b").write_text(json.dumps({"layers": layers}))
    (library / "broken").write_text("{")
    studio = home / ".lmstudio/models/someone/a-model"
    studio.mkdir(parents=True)
    write_llama(studio / "a-model-q8.gguf", architecture="falcon")
    llama_cpp = home / ".cache/llama.cpp"
    llama_cpp.mkdir(parents=True)
    (llama_cpp / "cut.gguf").write_bytes(b"GGUF\x03")
    hub = home / ".cache/huggingface/hub"
    for name, config in (("good", {"model_type": "qwen3"}), ("other", {"model_type": "mamba"})):
        snapshot = hub / f"models--org--{name}" / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps(config))
        (snapshot / "model.safetensors").write_bytes(b"12345")
    (hub / "datasets--org--x").mkdir()


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    stats = {str(p): p.stat() for p in folder.rglob("*")}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


def test_finds_what_other_programs_keep(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "models"
    _home(home)
    tiny_pack(folder / "tiny").close()
    before = _state(tmp_path)
    found = {(m.origin, m.name): m for m in discover(home, folder)}
    assert _state(tmp_path) == before
    assert set(found) == {
        ("loci", "tiny"),
        ("ollama", "little:1b"),
        ("lm studio", "a-model-q8"),
        ("llama.cpp", "cut"),
        ("hugging face", "org/good"),
        ("hugging face", "org/other"),
    }
    assert found["ollama", "little:1b"].why_not is None
    assert found["ollama", "little:1b"].path.name == "sha256-aa"
    assert found["lm studio", "a-model-q8"].why_not == "architecture falcon"
    assert "cut.gguf" in str(found["llama.cpp", "cut"].why_not)
    good = found["hugging face", "org/good"]
    assert (good.architecture, good.nbytes, good.why_not) == ("qwen3", 5, None)
    assert found["hugging face", "org/other"].why_not == "architecture mamba"
    assert found["loci", "tiny"].architecture == "llama"


def test_a_model_of_ollama_can_be_opened_by_its_path(tmp_path: Path) -> None:
    from loci.models.load import resolve

    _home(tmp_path / "home")
    blob = next(m.path for m in discover(tmp_path / "home", tmp_path) if m.origin == "ollama")
    with resolve(str(blob), tmp_path / "models") as pack:
        assert pack.spec.hidden == 256


def test_a_bare_machine_has_none(tmp_path: Path) -> None:
    assert discover(tmp_path / "nobody", tmp_path / "nothing") == []

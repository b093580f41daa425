"""Models that are on this machine already: ours and those of other programs, only ever read.

Standard library and file headers only, so that listing is quick. Where other programs keep their
models: Ollama ~/.ollama/models (manifests name the blobs), LM Studio ~/.lmstudio/models,
llama.cpp ~/.cache/llama.cpp, Hugging Face ~/.cache/huggingface/hub.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loci.errors import LociError
from loci.models.gguf import ARCHITECTURES, peek
from loci.tiers.blocks import read_table

_EMBEDDERS = ("bert",)


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """One model on this machine.

    Attributes:
        name: what to call it: a name in our models folder, or the other program's name.
        path: what to give where a model is asked for.
        origin: "loci", "ollama", "lm studio", "llama.cpp" or "hugging face".
        nbytes: bytes of its weight files.
        architecture: as the file says, or None.
        kind: "llm" or "embedder".
        why_not: why we cannot run it, or None when we can.
    """

    name: str
    path: Path
    origin: str
    nbytes: int
    architecture: str | None
    kind: str = "llm"
    why_not: str | None = None


def discover(home: Path, folder: Path) -> list[FoundModel]:
    """Return the models in our models folder and in other programs' under `home`.

    What cannot be read is listed with the reason, or passed over where it is no model at all.
    """
    found = list(_ours(folder))
    found += _ollama(home / ".ollama" / "models")
    for place in (home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"):
        found += [_gguf(path, "lm studio") for path in _files(place, "**/*.gguf")]
    for place in (home / ".cache" / "llama.cpp", home / "Library" / "Caches" / "llama.cpp"):
        found += [_gguf(path, "llama.cpp") for path in _files(place, "*.gguf")]
    found += _hugging_face(home / ".cache" / "huggingface" / "hub")
    return found


def _ours(folder: Path) -> Iterator[FoundModel]:
    for home in sorted(_children(folder)):
        pack = home / "pack.loci"
        if pack.is_file():
            yield _pack(home.name, pack)
        elif (home / "config.json").is_file():
            yield _hf(home, home.name, "loci")
        else:
            for path in _files(home, "*.gguf"):
                yield _gguf(path, "loci", home.name)


def _pack(name: str, path: Path) -> FoundModel:
    architecture, why_not = None, None
    try:
        architecture = str(read_table(path)[0]["spec"]["architecture"])
    except (LociError, KeyError, TypeError) as error:
        why_not = str(error).splitlines()[0]
    return FoundModel(
        name=name,
        path=path.parent,
        origin="loci",
        nbytes=path.stat().st_size,
        architecture=architecture,
        why_not=why_not,
    )


def _gguf(path: Path, origin: str, name: str | None = None) -> FoundModel:
    architecture, why_not = None, None
    try:
        metadata = peek(path)
        architecture = str(metadata.get("general.architecture"))
        if architecture not in ARCHITECTURES:
            why_not = f"architecture {architecture}"
        elif int(metadata.get("split.count", 1)) > 1:
            why_not = "split into several files"
        elif metadata.get(f"{architecture}.expert_count", 0):
            why_not = "a mixture of experts"
    except (LociError, ValueError, TypeError) as error:
        why_not = str(error).splitlines()[0]
    return FoundModel(
        name=name or path.stem,
        path=path,
        origin=origin,
        nbytes=path.stat().st_size,
        architecture=architecture,
        why_not=why_not,
    )


def _hf(folder: Path, name: str, origin: str) -> FoundModel:
    weights = _files(folder, "*.safetensors")
    architecture, kind, why_not = None, "llm", None
    try:
        config = json.loads((folder / "config.json").read_bytes())
        architecture = str(config.get("model_type"))
        if architecture in _EMBEDDERS:
            kind = "embedder"
        elif architecture not in ARCHITECTURES:
            why_not = f"architecture {architecture}"
        elif config.get("quantization_config"):
            why_not = "quantised in a way that we do not read"
        elif not weights:
            why_not = "no safetensors"
    except (OSError, ValueError, AttributeError) as error:
        why_not = f"config.json cannot be read: {error}"
    return FoundModel(
        name=name,
        path=folder,
        origin=origin,
        nbytes=sum(path.stat().st_size for path in weights),
        architecture=architecture,
        kind=kind,
        why_not=why_not,
    )


def _ollama(models: Path) -> Iterator[FoundModel]:
    for manifest in _files(models / "manifests", "**/*"):
        try:
            layers = json.loads(manifest.read_bytes())["layers"]
            digests = [
                str(layer["digest"])
                for layer in layers
                if str(layer["mediaType"]).endswith("image.model")
            ]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no manifest
        for digest in digests:
            blob = models / "blobs" / digest.replace(":", "-")
            if blob.parent == models / "blobs" and blob.is_file():
                name = f"{manifest.parent.name}:{manifest.name}"
                yield _gguf(blob, "ollama", name)


def _hugging_face(hub: Path) -> Iterator[FoundModel]:
    for repository in sorted(_children(hub)):
        if not repository.name.startswith("models--"):
            continue
        name = repository.name.removeprefix("models--").replace("--", "/")
        for snapshot in sorted(_children(repository / "snapshots")):
            if (snapshot / "config.json").is_file() and _files(snapshot, "*.safetensors"):
                yield _hf(snapshot, name, "hugging face")
            for path in _files(snapshot, "*.gguf"):
                yield _gguf(path, "hugging face", f"{name}/{path.stem}")


def _children(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


def _files(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in folder.glob(pattern) if path.is_file())
    except OSError:
        return []

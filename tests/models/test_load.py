"""Models by name or path: found, packed once, opened warm."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gguf_files import write_llama
from packing_process import pack_forever

from loci.errors import FormatError, ModelError, StorageError
from loci.models.hf_folder import HfSource
from loci.models.load import locate, names, resolve, spec_of
from loci.models.pack import open_pack, write_pack
from loci.models.tokenizer import Tokenizer
from loci.testing.models import RoundToGrid, dense, hf_of, tiny_hf, tiny_tokenizer_json

CONFIG = {"eos_token": "<|im_end|>", "chat_template": "{{ messages[0]['content'] }}"}


def _python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _hf_folder(home: Path, *, shards: bool = False, **sizes: object) -> torch.nn.Module:
    model, _ = tiny_hf(home.parent / "scratch", **sizes)
    model.save_pretrained(home, **({"max_shard_size": "60KB"} if shards else {}))
    (home / "tokenizer.json").write_text(tiny_tokenizer_json())
    (home / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return model


def test_a_gguf_in_the_models_folder_is_packed_on_first_use(tmp_path: Path) -> None:
    (tmp_path / "little").mkdir()
    write_llama(tmp_path / "little" / "some.gguf", "Q4_1")
    steps: list[tuple[str, int, int]] = []
    with resolve("little", tmp_path, progress=lambda *step: steps.append(step)) as pack:
        assert pack.path == tmp_path / "little" / "pack.loci"
        assert pack.spec.name == "little" and pack.spec.weight_bits == 5.0
        assert pack.spec.tokenizer_bytes > 0
        for what in ("packing", "checking"):
            assert (what, len(pack.names()), len(pack.names())) in steps
        assert (
            Tokenizer(pack.folder).decode(Tokenizer(pack.folder).encode("hello 12")) == "hello 12"
        )
        first = pack.path.stat().st_mtime_ns
    with resolve("little", tmp_path) as pack:
        assert pack.path.stat().st_mtime_ns == first
    # A pack stands on its own: the file it was made from may go.
    (tmp_path / "little" / "some.gguf").unlink()
    with resolve("little", tmp_path) as pack:
        pack.verify()
    assert names(tmp_path) == ["little"]


def test_a_file_elsewhere_is_packed_here_and_again_when_it_changes(tmp_path: Path) -> None:
    away, folder = tmp_path / "away", tmp_path / "models"
    away.mkdir()
    write_llama(away / "My model.gguf", seed=1)
    with resolve(str(away / "My model.gguf"), folder) as pack:
        first = pack.fingerprint
        assert pack.folder.parent == folder and pack.folder.name.startswith("My-model-")
        name = pack.folder.name
    write_llama(away / "My model.gguf", seed=2)
    os.utime(away / "My model.gguf", ns=(1, 1))
    with resolve(str(away / "My model.gguf"), folder) as pack:
        assert pack.fingerprint != first and pack.folder.name == name
    assert [path.name for path in away.iterdir()] == ["My model.gguf"]
    assert resolve(name, folder).spec.name == name


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma"])
def test_hugging_face_folders_keep_every_weight(
    shards: bool, architecture: str, tmp_path: Path
) -> None:
    home = tmp_path / "hf"
    theirs = _hf_folder(home, shards=shards, architecture=architecture, tied=False)
    assert (home / "model.safetensors.index.json").is_file() == shards
    with resolve(str(home), tmp_path / "models") as pack:
        ours = hf_of(pack)
        for name, truth in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], truth), name
        ids = torch.tensor([[1, 2, 3, 4]])
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
        tokenizer = Tokenizer(pack.folder)
        assert 258 in tokenizer.eos_ids and tokenizer.chat([{"content": "a"}]) == [97]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_as_it_is(dtype: torch.dtype, tmp_path: Path) -> None:
    model, _ = tiny_hf(tmp_path / "scratch")
    model.to(dtype).save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_text(tiny_tokenizer_json())
    with resolve(str(tmp_path / "hf"), tmp_path / "models") as pack:
        block = pack.block("layer.0")
        assert block["up_proj"].dtype == dtype  # type: ignore[union-attr]
        assert block["input_norm"].dtype == torch.float32  # type: ignore[union-attr]
        assert pack.spec.weight_bits == 16.0


def test_a_method_may_pack_the_linear_layers(tmp_path: Path) -> None:
    _hf_folder(tmp_path / "hf")
    quant = RoundToGrid(bits=4)
    with resolve(str(tmp_path / "hf"), tmp_path / "models", quant=quant) as pack:
        assert pack.spec.weight_bits == 5.0 and pack.spec.embed_bits == 32.0
        truth = quant.pack_one(HfSource(tmp_path / "hf", "m").tensor("layer.0.up_proj"))
        assert torch.equal(dense(pack.block("layer.0")["up_proj"]), dense(truth))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mamba"}, "mamba.*llama, qwen2"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"hidden_act": "relu"}, "relu"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn.*llama3"),
        ({"num_key_value_heads": 3}, "multiple of KV heads"),
        ({"hidden_size": -1}, "hidden_size is missing or absurd"),
        ({"vocab_size": 321}, "embed has another shape"),
        ({"attention_bias": True}, "bias is missing"),
    ],
)
def test_folders_we_cannot_run_are_refused_by_name(
    change: dict[str, object], said: str, tmp_path: Path
) -> None:
    _hf_folder(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text()) | change
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said):
        resolve(str(tmp_path / "hf"), tmp_path / "models")


def test_safetensors_cut_short_name_the_place(tmp_path: Path) -> None:
    _hf_folder(tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    raw = path.read_bytes()
    for cut, said in ((len(raw) - 9, "at byte .* reaches past the end"), (5, "header at byte 0")):
        path.write_bytes(raw[:cut])
        with pytest.raises(FormatError, match=said):
            resolve(str(tmp_path / "hf"), tmp_path / "models")
    path.write_bytes(raw[:8] + b"[" + raw[9:])
    with pytest.raises(FormatError, match="header at byte 8 cannot be read"):
        resolve(str(tmp_path / "hf"), tmp_path / "models")
    path.unlink()
    with pytest.raises(FormatError, match="no weights that we read"):
        resolve(str(tmp_path / "hf"), tmp_path / "models")


def test_shards_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    _hf_folder(tmp_path / "hf")
    index = {"weight_map": {"a": "../../etc/passwd"}}
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="no files of this folder"):
        resolve(str(tmp_path / "hf"), tmp_path / "models")


def test_unknown_names_say_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "little").mkdir()
    write_llama(tmp_path / "little" / "some.gguf")
    with pytest.raises(ModelError, match="got 'litle'; allowed: little") as caught:
        locate("litle", tmp_path)
    assert "did you mean 'little'?" in str(caught.value)
    assert "loci pull smollm2" in str(caught.value)
    with pytest.raises(ModelError, match=r"no file or folder nowhere/x\.gguf"):
        locate("nowhere/x.gguf", tmp_path)
    write_llama(tmp_path / "little" / "other.gguf")
    with pytest.raises(ModelError, match="more than one GGUF"):
        locate("little", tmp_path)


def test_spec_of_and_importing_load_no_torch(tmp_path: Path) -> None:
    (tmp_path / "little").mkdir()
    write_llama(tmp_path / "little" / "some.gguf")
    spec, blocks, total = spec_of("little", tmp_path)
    with resolve("little", tmp_path) as pack:
        assert spec == pack.spec and total == pack.total_bytes
        assert blocks == [(n, pack.nbytes(n), pack.stored_bytes(n)) for n in pack.names()]
    code = (
        "import sys; from pathlib import Path; from loci.models.load import spec_of;"
        "from loci.models import discover, pull, tokenizer, endpoint, scripted;"
        "print(spec_of('little', Path(sys.argv[1]))[2], 'torch' in sys.modules)"
    )
    assert _python(code, tmp_path) == f"{total} False"


def test_a_warm_start_loads_neither_transformers_nor_gguf(tmp_path: Path) -> None:
    (tmp_path / "little").mkdir()
    write_llama(tmp_path / "little" / "some.gguf")
    resolve("little", tmp_path).close()
    code = (
        "import sys; from pathlib import Path; from loci.models.load import resolve;"
        "from loci.models.tokenizer import Tokenizer;"
        "pack = resolve('little', Path(sys.argv[1])); pack.block('layer.0');"
        "Tokenizer(pack.folder).encode('hello');"
        "print([m for m in ('transformers', 'gguf', 'safetensors') if m in sys.modules])"
    )
    assert _python(code, tmp_path) == "[]"


def test_a_pack_that_cannot_be_read_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "little").mkdir()
    write_llama(tmp_path / "little" / "some.gguf")
    resolve("little", tmp_path).close()
    path = tmp_path / "little" / "pack.loci"
    path.write_bytes(path.read_bytes()[:5000])
    resolve("little", tmp_path).verify()
    (tmp_path / "little" / "some.gguf").unlink()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(FormatError):
        resolve("little", tmp_path)


def _damage(path: Path) -> None:
    """Turn over some bits in the middle of the first block."""
    with path.open("r+b") as file:
        file.seek(4096 + 100)
        byte = file.read(1)[0]
        file.seek(4096 + 100)
        file.write(bytes((byte ^ 16,)))


def test_a_damaged_weight_is_found_before_it_answers(tmp_path: Path) -> None:
    (tmp_path / "little").mkdir()
    write_llama(tmp_path / "little" / "some.gguf")
    with resolve("little", tmp_path) as pack:
        fingerprint = pack.fingerprint
    path = tmp_path / "little" / "pack.loci"
    _damage(path)
    with resolve("little", tmp_path) as pack:  # made again: what it was made from is there
        assert pack.fingerprint == fingerprint
        pack.verify()
    (tmp_path / "little" / "some.gguf").unlink()
    _damage(path)
    before = path.read_bytes()
    with pytest.raises(FormatError, match=r"block embed\.0 of .* is corrupt"):
        resolve("little", tmp_path)
    assert path.read_bytes() == before


def test_a_whole_pack_is_compared_once(tmp_path: Path) -> None:
    (tmp_path / "little").mkdir()
    write_llama(tmp_path / "little" / "some.gguf")

    def steps() -> set[str]:
        told: set[str] = set()
        resolve("little", tmp_path, progress=lambda what, *_: told.add(what)).close()
        return told

    assert steps() == {"packing", "checking"}
    assert steps() == set()
    os.utime(tmp_path / "little" / "pack.loci", ns=(1, 1))
    assert steps() == {"checking"}
    (note,) = (tmp_path / ".checked").iterdir()
    note.write_text("{")
    assert steps() == {"checking"}
    assert names(tmp_path) == ["little"]


@pytest.mark.slow
def test_packing_that_is_killed_leaves_the_old_pack_or_the_new_one(tmp_path: Path) -> None:
    """The whole way from a GGUF file; the file of blocks alone is killed in test_blocks."""
    away, folder, rng = tmp_path / "away.gguf", tmp_path / "models", random.Random(0)
    write_llama(away)
    with resolve(str(away), folder) as pack:
        path, fingerprint = pack.path, pack.fingerprint
    context = multiprocessing.get_context("forkserver")  # torch is loaded once, by the server
    context.set_forkserver_preload(["loci.models.pack", "loci.models.gguf_tensors"])
    seen: set[int] = set()
    for _ in range(40):
        ours, theirs = context.Pipe(duplex=False)
        packing = context.Process(target=pack_forever, args=(away, folder, theirs), daemon=True)
        packing.start()
        theirs.close()
        assert ours.recv() == "packed"
        time.sleep(rng.random() * 0.2)
        packing.kill()
        packing.join()
        ours.close()
        with open_pack(path) as pack:
            pack.verify()
            assert pack.fingerprint == fingerprint
            assert Tokenizer(pack.folder).encode("a")
            seen.add(pack.header["source"]["mtime_ns"])
        left = {file.name for file in path.parent.iterdir()} - {path.name, "tokenizer.json"}
        assert len(left) <= 2, left  # the lock, and what the killed one was writing
    assert len(seen) == 40  # each wrote at least once
    resolve(str(away), folder).close()
    assert {file.name for file in path.parent.iterdir()} == {path.name, "tokenizer.json", ".lock"}


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    away = tmp_path / "away.gguf"
    write_llama(away)
    away.write_bytes(away.read_bytes()[:2000])
    with pytest.raises(FormatError, match="cut short"):
        resolve(str(away), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    write_llama(tmp_path / "away.gguf")
    (tmp_path / "models").touch()
    with pytest.raises(StorageError, match="models_dir"):
        resolve(str(tmp_path / "away.gguf"), tmp_path / "models")


def test_a_disk_that_is_full_leaves_no_half_pack(tmp_path: Path) -> None:
    (tmp_path / "little").mkdir()
    write_llama(tmp_path / "little" / "some.gguf")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (100, 20_000):  # for the tokenizer, then for the pack
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
            with pytest.raises(StorageError, match="cannot write"):
                resolve("little", tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        left = {path.name for path in (tmp_path / "little").iterdir()}
        assert left <= {"some.gguf", ".lock", "tokenizer.json"}
    resolve("little", tmp_path).close()


def test_a_folder_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    _hf_folder(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        resolve(str(tmp_path / "hf"), tmp_path / "models")


def test_no_name_is_no_model(tmp_path: Path) -> None:
    for name in ("", "  "):
        with pytest.raises(ModelError, match="no model was named"):
            locate(name, tmp_path)


def test_another_tokenizer_beside_the_pack_is_refused(tmp_path: Path) -> None:
    (tmp_path / "little").mkdir()
    write_llama(tmp_path / "little" / "some.gguf")
    with resolve("little", tmp_path) as pack:
        (pack.folder / "tokenizer.json").write_text(tiny_tokenizer_json())
        with pytest.raises(FormatError, match="not the tokenizer that was packed"):
            Tokenizer(pack.folder)


@pytest.mark.model
def test_smollm2_packs_without_growing(smollm2_gguf: Path, tmp_path: Path) -> None:
    from loci.models.gguf_tensors import GgufSource

    source = GgufSource(smollm2_gguf, "smollm2")
    write_pack(source, tmp_path / "pack.loci", extra={})
    size = (tmp_path / "pack.loci").stat().st_size
    assert size < smollm2_gguf.stat().st_size  # the vocabulary lies beside it

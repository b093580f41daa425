"""PEFT folders: read as PEFT means them, written so that they come back bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any  # configurations are JSON values

import pytest
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from loci.errors import FormatError, LociError, ModelError, ParameterError
from loci.nn.patch import Patch
from loci.run.peft import CONFIG, WEIGHTS, read_folder, write_folder
from loci.testing.models import tiny_spec

SPEC = tiny_spec()
BASE = "base_model.model.model.layers"


def patch_of(dtype: torch.dtype = torch.float32) -> Patch:
    draw = Generator().manual_seed(0)
    shapes = SPEC.layer_linears()
    ranks = {"layer.0.q_proj": 2, "layer.1.q_proj": 2, "layer.1.down_proj": 5, "layer.0.k_proj": 2}
    return Patch(
        {
            name: (
                torch.randn(shapes[name.split(".")[2]][0], rank, generator=draw).to(dtype),
                torch.randn(rank, shapes[name.split(".")[2]][1], generator=draw).to(dtype),
            )
            for name, rank in ranks.items()
        }
    )


def folder_of(tmp_path: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """Write a folder as PEFT does."""
    made = tmp_path / "theirs"
    made.mkdir()
    save_file(tensors, made / WEIGHTS, {"format": "pt"})
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 16, "bias": "none", "use_dora": False}
    (made / CONFIG).write_text(json.dumps({**plain, **config}))
    return made


def sides(rank: int = 2, layer: int = 1) -> dict[str, Tensor]:
    draw = Generator().manual_seed(1)
    at = f"{BASE}.{layer}.self_attn.q_proj"
    return {
        f"{at}.lora_A.weight": torch.randn(rank, SPEC.hidden, generator=draw),
        f"{at}.lora_B.weight": torch.randn(64, rank, generator=draw),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_is_written_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    patch = patch_of(dtype)
    write_folder(tmp_path / "ours", patch, SPEC, model="a/model", base="blake2b:1")
    found = read_folder(tmp_path / "ours", SPEC)
    assert found.patch.fingerprint == patch.fingerprint
    assert (found.base, found.model) == ("blake2b:1", "a/model")
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == [CONFIG, WEIGHTS]


@pytest.mark.parametrize(
    "config, scale",
    [
        ({"lora_alpha": 16}, 8.0),
        ({"lora_alpha": 16, "use_rslora": True}, 16 / math.sqrt(2)),
        ({"lora_alpha": 16, "alpha_pattern": {"q_proj": 6}}, 3.0),
        ({"lora_alpha": 16, "alpha_pattern": {"layers.0.self_attn.q_proj": 6}}, 8.0),
        ({"lora_alpha": 16, "alpha_pattern": {r".*\.1\..*q_proj": 2}}, 1.0),
    ],
)
def test_the_product_is_what_peft_adds(
    tmp_path: Path, config: dict[str, Any], scale: float
) -> None:
    given = sides()
    found = read_folder(folder_of(tmp_path, given, **config), SPEC)
    left, right = (given[f"{BASE}.1.self_attn.q_proj.lora_{side}.weight"] for side in "BA")
    assert torch.allclose(found.patch.delta("layer.1.q_proj"), scale * left @ right, atol=1e-5)
    assert found.base is None


def test_a_named_adapter_and_bfloat16_are_read(tmp_path: Path) -> None:
    given = {
        key.replace(".weight", ".default.weight"): tensor.to(torch.bfloat16)
        for key, tensor in sides().items()
    }
    found = read_folder(folder_of(tmp_path, given, lora_alpha=2), SPEC)
    left, right = found.patch.parts["layer.1.q_proj"]
    assert left.dtype == right.dtype == torch.float32
    assert torch.equal(right.to(torch.bfloat16), next(iter(given.values())))


@pytest.mark.parametrize(
    "config, words",
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "another kind"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
    ],
)
def test_what_has_no_place_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        read_folder(folder_of(tmp_path, sides(), **config), SPEC)


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.lm_head.lora_A.weight",
        f"{BASE}.1.self_attn.q_proj.lora_magnitude_vector",
        f"{BASE}.1.self_attn.q_proj.bias",
    ],
)
def test_strange_tensors_are_refused_by_name(tmp_path: Path, key: str) -> None:
    with pytest.raises(ModelError, match="no place for") as refused:
        read_folder(folder_of(tmp_path, {**sides(), key: torch.ones(2, 2)}), SPEC)
    assert key in str(refused.value)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is no adapter folder"):
        read_folder(tmp_path)
    one = sides()
    one.popitem()
    with pytest.raises(FormatError, match="one side"):
        read_folder(folder_of(tmp_path, one), SPEC)
    made = tmp_path / "theirs"
    (made / CONFIG).write_text('{"peft_type": "LORA", "lora_alpha": "many"}')
    save_file(sides(), made / WEIGHTS)
    with pytest.raises(FormatError, match="lora_alpha"):
        read_folder(made)
    (made / WEIGHTS).write_bytes((made / WEIGHTS).read_bytes()[:-5])
    with pytest.raises(FormatError, match="cut short"):
        read_folder(made)
    (made / WEIGHTS).unlink()
    with pytest.raises(FormatError, match="holds no"):
        read_folder(made)
    (made / CONFIG).write_text("{")
    with pytest.raises(FormatError, match="cannot be read"):
        read_folder(made)


def test_one_for_another_model_is_refused(tmp_path: Path) -> None:
    made = folder_of(tmp_path, sides(layer=7))
    with pytest.raises(FormatError, match="does not have"):
        read_folder(made, SPEC)
    with pytest.raises(ParameterError, match="folder of its own"):
        write_folder(made, patch_of(), SPEC)
    with pytest.raises(LociError):
        write_folder(
            tmp_path / "other", Patch({"layer.9.q_proj": patch_of().parts["layer.0.q_proj"]}), SPEC
        )
    assert not (tmp_path / "other").exists()


@pytest.mark.filterwarnings("ignore")  # of a library that is not ours
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_real_peft_gives_the_same_logits(tmp_path: Path, architecture: str) -> None:
    peft = pytest.importorskip("peft")
    from loci.run.learner import Learner
    from loci.testing.models import tiny_pair

    pack, model = tiny_pair(tmp_path / "model", architecture=architecture)
    draw, shapes = Generator().manual_seed(0), pack.spec.layer_linears()
    patch = Patch(
        {
            f"layer.{layer}.{name}": (
                0.2 * torch.randn(shapes[name][0], rank, generator=draw),
                torch.randn(rank, shapes[name][1], generator=draw),
            )
            for layer, name, rank in ((0, "q_proj", 2), (1, "k_proj", 2), (1, "up_proj", 3))
        }
    )
    ids = (5, 9, 200, 31)
    with torch.no_grad():
        plain = model(torch.tensor([ids])).logits[0]
        ours = Learner(pack, patch.parts)
        expected = ours.head(ours.hidden([ids])[0])
        write_folder(tmp_path / "ours", patch, pack.spec)
        theirs = peft.PeftModel.from_pretrained(model, str(tmp_path / "ours"))
        found = theirs(torch.tensor([ids])).logits[0]
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-1)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    again = read_folder(tmp_path / "theirs", pack.spec).patch
    for name, (left, right) in again.parts.items():
        assert torch.equal(left, patch.parts[name][0]) and torch.equal(right, patch.parts[name][1])
    pack.close()

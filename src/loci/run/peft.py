"""Adapter folders of PEFT, in and out: everyone's form of a LoRA.

    adapter_config.json            peft_type, r, lora_alpha, target_modules, base model
    adapter_model.safetensors      base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight

Hugging Face's order of rows is ours: packs made from GGUF files have llama.cpp's permutation of q
and k undone. A is our right factor as it is. Our left factor is B times the scale, alpha / r or
alpha / sqrt(r) (rank-stabilised, arXiv:2312.03732); going out, the scale is 1, so that nothing is
rounded on the way and what was written comes back bit for bit.

What our models have no place for is refused by its name: DoRA, biases, embeddings and heads, whole
modules saved beside the adapter, and the other kinds of PEFT.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # a configuration file holds whatever JSON can hold

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from loci.core.spec import ModelSpec
from loci.errors import FormatError, ModelError, ParameterError, StorageError
from loci.nn.patch import DTYPES, Patch
from loci.run.trainer import ATTENTION

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(
    r"base_model\.model\.(?:model\.)?layers\.(?P<layer>\d+)\.(?P<block>self_attn|mlp)\."
    r"(?P<name>\w+)\.lora_(?P<side>[AB])(?:\.\w+)?\.weight"
)
# What a configuration may say that changes the product; each with the value that does not.
_MUST_BE: Mapping[str, tuple[object, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": ([], None),
    "fan_in_fan_out": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "layer_replication": ([], None),
    "trainable_token_indices": ([], {}, None),
    "target_parameters": ([], None),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Folder:
    """What a PEFT folder holds.

    Attributes:
        base: the fingerprint of our pack it was made for, where we wrote it; else None.
        model: the base model as its maker calls it.
    """

    patch: Patch
    base: str | None
    model: str | None


def read_folder(folder: Path, spec: ModelSpec | None = None) -> Folder:
    """Return the adapter in a PEFT folder.

    Args:
        spec: the model it must fit.

    Raises:
        FormatError: if it is no such folder, damaged, or does not fit.
        ModelError: if it does what we cannot; the message names it.
    """
    config = _config(folder)
    _refuse_strange(folder, config)
    _refuse_other_base(folder, config)
    try:
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise FormatError(
            f"{folder} holds no {WEIGHTS}", way_out="save it with safe_serialization=True"
        ) from None
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{folder / WEIGHTS} is cut short or corrupt: {error}") from error
    sides: dict[str, dict[str, Tensor]] = {}
    modules: dict[str, str] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise ModelError(
                f"{folder} has a part that our models have no place for",
                value=key,
                allowed="lora_A and lora_B of the linear layers of a decoder",
            )
        name = f"layer.{match['layer']}.{match['name']}"
        modules[name] = f"model.layers.{match['layer']}.{match['block']}.{match['name']}"
        sides.setdefault(name, {})[match["side"]] = tensor
    parts = {}
    for name, pair in sides.items():
        if set(pair) != {"A", "B"}:
            raise FormatError(f"{folder} has one side of {name} only", value=sorted(pair))
        left, right = (_plain(pair[side], name) for side in ("B", "A"))
        scale = _scale(config, modules[name], right.shape[0])
        parts[name] = left if scale == 1 else _scaled(left, scale), right
    patch = Patch(parts)
    if spec is not None:
        patch.check(spec)
    ours = config.get("loci")
    base = ours.get("base") if isinstance(ours, dict) else None
    return Folder(patch=patch, base=base, model=config.get("base_model_name_or_path"))


def write_folder(
    folder: Path,
    patch: Patch,
    spec: ModelSpec,
    *,
    model: str | None = None,
    base: str | None = None,
) -> None:
    """Write an adapter as PEFT reads it; an empty or new folder is asked for.

    Args:
        model: what transformers should load it onto: a folder or a name.
        base: fingerprint of our pack, kept in the configuration, where PEFT leaves it alone.

    Raises:
        ParameterError: if something is in the folder.
        StorageError: if it cannot be written.
    """
    patch.check(spec)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ParameterError(
            "an adapter goes to a folder of its own", value=str(folder), way_out="name a new one"
        )
    ranks = {name: left.shape[1] for name, (left, _) in patch.parts.items()}
    most = max(ranks.values(), default=1)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model or spec.name,
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,  # so that the scale is 1
        "lora_dropout": 0.0,
        "target_modules": [_module(name) for name in patch.parts],
        "rank_pattern": {_module(n): rank for n, rank in ranks.items() if rank != most},
        "alpha_pattern": {_module(n): rank for n, rank in ranks.items() if rank != most},
        "bias": "none",
        "use_dora": False,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }
    if base is not None:
        config["loci"] = {"base": base}
    tensors = {}
    for name, (left, right) in patch.parts.items():
        prefix = f"base_model.model.model.{_module(name)}"
        tensors[f"{prefix}.lora_A.weight"] = right.contiguous()
        tensors[f"{prefix}.lora_B.weight"] = left.contiguous()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file, write in (
            (WEIGHTS, lambda path: save_file(tensors, path, {"format": "pt"})),
            (CONFIG, lambda path: path.write_text(json.dumps(config, indent=2), encoding="utf-8")),
        ):
            fresh = folder / f".{file}.{os.getpid()}.partial"
            write(fresh)
            fresh.replace(folder / file)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {folder}: {error}") from error


# -- private ----------------------------------------------------------------------------------


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIG).read_bytes())
    except FileNotFoundError:
        raise FormatError(f"{folder} is no adapter folder: it has no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise FormatError(f"{folder / CONFIG} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{folder / CONFIG} holds no JSON object", value=type(found).__name__)
    return found


def _refuse_strange(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"{folder} is an adapter of another kind", value=config.get("peft_type"), allowed="LORA"
        )
    for name, harmless in _MUST_BE.items():
        if name in config and config[name] not in harmless:
            raise ModelError(
                f"{folder} has {name}, which our models have no place for",
                value=config[name],
                way_out="train it without, or merge it into the model with PEFT and load that",
            )


def _refuse_other_base(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse adapters of a base that PEFT changed when training began."""
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(("pissa", "olora", "corda", "loftq")):
        raise ModelError(
            f"{folder} belongs to weights that its training changed first",
            value=f"init_lora_weights={start}",
            way_out="save it with path_initial_model_for_weight_conversion, as PEFT describes",
        )


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return what B A is multiplied with."""
    alpha = config.get("lora_alpha", rank)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        try:
            is_meant = re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module)
        except re.error as error:
            raise FormatError(f"alpha_pattern is no pattern: {error}", value=pattern) from None
        if is_meant:
            alpha = value
            break
    try:
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (TypeError, ValueError):
        raise FormatError("lora_alpha is no number", value=alpha) from None


def _plain(tensor: Tensor, name: str) -> Tensor:
    """Return a factor in a form we keep; bfloat16 becomes float32, exactly."""
    if tensor.dtype == torch.bfloat16:
        return tensor.float()
    if tensor.dtype not in DTYPES or tensor.ndim != 2:
        raise FormatError(
            f"a factor of {name} is no matrix of a kind we know",
            value=(tuple(tensor.shape), str(tensor.dtype)),
            allowed="two dimensions, float32, float16 or bfloat16",
        )
    return tensor


def _scaled(left: Tensor, scale: float) -> Tensor:
    """Return the factor times the scale; in float32 unless that is exact in half precision."""
    exact = left.float() * scale
    half = exact.to(left.dtype)
    return half if torch.equal(half.float(), exact) else exact


def _module(name: str) -> str:
    _, layer, linear = name.split(".")
    block = "self_attn" if linear in ATTENTION else "mlp"
    return f"layers.{layer}.{block}.{linear}"

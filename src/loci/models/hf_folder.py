"""Models in Hugging Face folders: config.json, safetensors (one file or shards), tokenizer.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any  # JSON values

from torch import Tensor

from loci.core.spec import ModelSpec
from loci.errors import FormatError, ModelError, ParameterError
from loci.models.gguf import ARCHITECTURES
from loci.models.safetensors_file import SafetensorsFile

_OURS = {"embed": "model.embed_tokens", "head": "lm_head", "norm": "model.norm"}
_IN_LAYER = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
    "input_norm": "input_layernorm",
    "post_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
_ROPE = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "high_freq_factor",
        "low_freq_factor",
        "original_max_position_embeddings",
    ),
}
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


class HfSource:
    """The weights of a Hugging Face folder under our names; see `loci.models.pack.WeightSource`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder
        self.config = read_json(folder / "config.json")
        files = _weight_files(folder)
        self.file_bytes = sum(path.stat().st_size for path in files)
        self._files = [SafetensorsFile(path) for path in files]
        self._home = {tensor: file for file in self._files for tensor in file.tensors}
        try:
            self.spec = spec_of_config(self.config, name, folder)
        except ParameterError as error:
            raise FormatError(f"{folder}/config.json describes no model: {error}") from error

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor by our name, or None when the folder has none."""
        theirs = _hf_name(name)
        file = self._home.get(theirs)
        return None if file is None else file.tensors[theirs].shape

    def tensor(self, name: str, rows: slice | None = None) -> Tensor:
        """Return a tensor, or some of its rows, in the type it is stored in."""
        theirs = _hf_name(name)
        return self._home[theirs].read(theirs, rows)

    def strangers(self, known: set[str]) -> list[str]:
        """Return the names in the folder that none of our names stands for."""
        theirs = {_hf_name(name) for name in known}
        if self.spec.tied:
            theirs.add("lm_head.weight")  # some folders store the tied head a second time
        return sorted(
            name for name in self._home if name not in theirs and not name.endswith("inv_freq")
        )

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file.

    Raises:
        FormatError: if there is no such file or no object in it.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise FormatError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise FormatError(f"{path} holds no JSON object", value=type(found).__name__)
    return found


def spec_of_config(config: dict[str, Any], name: str, folder: Path) -> ModelSpec:
    """Return the sizes of the model that a config.json describes.

    Raises:
        ModelError: for what we do not run, by name.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"{folder} holds a model of an architecture that we do not run",
            value=kind,
            allowed=", ".join(ARCHITECTURES),
        )
    if config.get("quantization_config"):
        raise ModelError(
            f"{folder} is quantised in a way that we do not read",
            value=config["quantization_config"].get("quant_method"),
            allowed="float32, float16 and bfloat16 folders, or a GGUF file",
        )

    def size(key: str) -> int:
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise FormatError(f"{folder}/config.json: {key} is missing or absurd", value=value)
        return value

    gemma = kind == "gemma"
    hidden, heads = size("hidden_size"), size("num_attention_heads")
    # gemma's "gelu" in old configurations means the tanh form, which it was trained with.
    activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    activation = "gelu_pytorch_tanh" if gemma and activation == "gelu" else activation
    if activation not in _ACTIVATIONS:
        raise ModelError(
            f"{folder}: an activation that we do not run",
            value=activation,
            allowed=", ".join(_ACTIVATIONS),
        )
    return ModelSpec(
        name=name,
        architecture=kind,
        layers=size("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=size("num_key_value_heads") if config.get("num_key_value_heads") else heads,
        head_dim=size("head_dim") if config.get("head_dim") else hidden // heads,
        ffn=size("intermediate_size"),
        vocab=size("vocab_size"),
        max_context=size("max_position_embeddings"),
        tied=bool(config.get("tie_word_embeddings", gemma)),
        attention_bias=kind == "qwen2" or bool(config.get("attention_bias", False)),
        qk_norm=kind == "qwen3",
        rope_theta=_rope(config, folder)[0],
        rope_scaling=_rope(config, folder)[1],
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        window=_window(config, folder),
        activation=_ACTIVATIONS[activation],
        norm_offset=1.0 if gemma else 0.0,
        embed_scale=math.sqrt(hidden) if gemma else 1.0,
    )


def special_of(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Return (special ids, chat template) from a folder's tokenizer and generation settings."""
    from tokenizers import Tokenizer as Tables

    from loci.models.tokenizer import END_TOKENS

    try:
        tables = Tables.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises nothing narrower
        raise FormatError(
            f"{folder}/tokenizer.json cannot be read: {error}",
            way_out="the folder needs a tokenizer.json",
        ) from None
    settings = _optional(folder / "tokenizer_config.json")
    generation = _optional(folder / "generation_config.json")
    config = read_json(folder / "config.json")

    def id_of(name: str) -> int | None:
        token = settings.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        found = tables.token_to_id(text) if isinstance(text, str) else None
        if found is None and isinstance(config.get(f"{name}_token_id"), int):
            found = config[f"{name}_token_id"]
        return found

    ends = {id_of("eos")}
    for source in (config, generation):
        stated = source.get("eos_token_id")
        ends |= set(stated) if isinstance(stated, list) else {stated}
    added = tables.get_added_tokens_decoder()
    ends |= {id for id, token in added.items() if token.special and token.content in END_TOKENS}
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name; "default" is the one for conversations
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if template is None and (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    bos = id_of("bos")
    adds = settings.get("add_bos_token")
    if adds is None:  # the tokenizer's own post-processor tells
        adds = bos is not None and bos in tables.encode("", add_special_tokens=True).ids
    special = {
        "bos": bos,
        "eos": sorted(id for id in ends if isinstance(id, int)),
        "pad": id_of("pad"),
        "unk": id_of("unk"),
        "add_bos": bool(adds),
    }
    return special, template


def _hf_name(name: str) -> str:
    if name in _OURS:
        return f"{_OURS[name]}.weight"
    _, layer, part, *bias = name.split(".")
    return f"model.layers.{layer}.{_IN_LAYER[part]}.{'bias' if bias else 'weight'}"


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        strange = [name for name in names if not isinstance(name, str) or Path(name).name != name]
        if strange or not names:
            raise FormatError(f"{index} names no files of this folder", value=strange[:3])
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FormatError(
                f"{folder} lacks {len(missing)} of its {len(names)} weight files",
                value=missing[0],
                way_out="fetch the folder again",
            )
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    raise FormatError(
        f"{folder} has no weights that we read",
        allowed="model.safetensors, or model.safetensors.index.json and its shards",
        way_out="convert pickled weights to safetensors first",
    )


def _rope(
    config: dict[str, Any], folder: Path
) -> tuple[float, tuple[tuple[str, float | str], ...]]:
    """Return (theta, scaling) from either form in which configurations write them."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in _ROPE or config.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(
            f"{folder} rotates positions in a way that we do not run",
            value=kind if kind not in _ROPE else "partial_rotary_factor",
            allowed=", ".join(_ROPE),
        )
    theta = float(found.get("rope_theta", config.get("rope_theta", 10000.0)))
    if kind == "default":
        return theta, ()
    try:
        scaling: dict[str, float | str] = {key: float(found[key]) for key in _ROPE[kind]}
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{folder}/config.json: rotary scaling lacks {error}") from None
    return theta, tuple(sorted((scaling | {"rope_type": kind}).items()))


def _window(config: dict[str, Any], folder: Path) -> int | None:
    """Return the sliding window in tokens that every layer has, or None."""
    window = config.get("sliding_window")
    if window is None or config.get("use_sliding_window") is False:
        return None
    kinds = set(config.get("layer_types") or ["sliding_attention"])
    if kinds == {"full_attention"} or config.get("model_type") not in ("mistral", "qwen2", "qwen3"):
        return None
    mixed = config.get("max_window_layers", 0) if config.get("use_sliding_window") else 0
    if len(kinds) > 1 or mixed:
        raise ModelError(
            f"{folder} has layers with and without a sliding window",
            allowed="one window for all layers, or none",
        )
    return int(window)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}

"""Tiny models from a seed: specs, packs, and transformers models with the very same weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # sizes are any field of ModelSpec; transformers models are untyped

import torch
from torch import Tensor

from loci.core.spec import ModelSpec
from loci.models.pack import PACK_FILE, Pack, Weight, expected_tensors, open_pack, write_pack
from loci.nn.packing import PackedWeight, pack_codes

TINY_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 256, 257, 258


def tiny_spec(**sizes: Any) -> ModelSpec:
    """Return the spec of a model that runs in milliseconds; any field may be given.

    `architecture` brings along what belongs to it: biases, head norms, offsets.
    """
    values: dict[str, Any] = {
        "name": "tiny",
        "layers": 2,
        "hidden": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "ffn": 96,
        "vocab": 320,
        "max_context": 512,
    }
    architecture = sizes.get("architecture", "llama")
    if architecture == "qwen2":
        values |= {"attention_bias": True}
    if architecture == "qwen3":
        values |= {"qk_norm": True, "head_dim": 32}
    values |= sizes
    if architecture == "gemma":
        gemma = {"norm_offset": 1.0, "activation": "gelu_tanh"}
        values = gemma | {"embed_scale": math.sqrt(values["hidden"])} | values
    return ModelSpec(**values)


class RandomSource:
    """Random weights of a spec; a `WeightSource` without a file."""

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        self.spec, self.path, self.file_bytes = spec, Path(f"random-{seed}"), 0
        generator = torch.Generator().manual_seed(seed)
        self._tensors: dict[str, Tensor] = {}
        for name, shape in expected_tensors(spec).items():
            noise = torch.randn(shape, generator=generator)
            if name.endswith("norm"):
                self._tensors[name] = 1.0 - spec.norm_offset + 0.1 * noise
            elif len(shape) == 1:
                self._tensors[name] = 0.1 * noise
            else:
                self._tensors[name] = noise / math.sqrt(shape[-1])

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape."""
        found = self._tensors.get(name)
        return None if found is None else tuple(found.shape)

    def tensor(self, name: str, rows: slice | None = None) -> Weight:
        """Return a tensor, or some of its rows."""
        return self._tensors[name] if rows is None else self._tensors[name][rows]

    def strangers(self, known: set[str]) -> list[str]:
        """There are none."""
        return sorted(set(self._tensors) - known)


@dataclass(frozen=True, kw_only=True)
class RoundToGrid:
    """The plainest packer: the range of each group, cut into 2**bits - 1 equal steps."""

    bits: int = 4
    group: int = 32

    def pack_one(self, weight: Tensor) -> PackedWeight:
        """Return the packed form of a float32 weight [out, in]."""
        out, inner = weight.shape
        group = math.gcd(self.group, inner)
        grouped = weight.reshape(out, -1, group)
        low, high = grouped.amin(-1), grouped.amax(-1)
        scales = ((high - low) / (2**self.bits - 1)).clamp(min=1e-6).to(torch.float16)
        mins = low.to(torch.float16)
        steps = (grouped - mins.float().unsqueeze(-1)) / scales.float().unsqueeze(-1)
        codes = steps.round().clamp(0, 2**self.bits - 1).to(torch.uint8).reshape(out, inner)
        return PackedWeight(
            codes=pack_codes(codes, self.bits).contiguous(),
            scales=scales,
            mins=mins,
            bits=self.bits,
            group=group,
            shape=(out, inner),
        )


def tiny_pack(folder: Path, seed: int = 0, bits: int | None = 4, **sizes: Any) -> Pack:
    """Write a tiny random model into `folder` and open it; `bits=None` keeps it dense float32.

    A byte tokenizer lies beside it: ids 0 to 255 are bytes, 256 to 258 <|endoftext|>,
    <|im_start|> and <|im_end|>.
    """
    folder.mkdir(parents=True, exist_ok=True)
    quant = None if bits is None else RoundToGrid(bits=bits)
    (folder / "tokenizer.json").write_text(tiny_tokenizer_json(), encoding="utf-8")
    write_pack(
        RandomSource(tiny_spec(**sizes), seed),
        folder / PACK_FILE,
        extra={
            "source": {"file": f"random-{seed}"},
            "tokenizer": {"file": "tokenizer.json"},
            "chat_template": TINY_TEMPLATE,
            "special": {"bos": None, "eos": [256, 258], "pad": 256, "unk": None, "add_bos": False},
        },
        quant=quant,
        embed_quant=quant,
    )
    return open_pack(folder)


def tiny_tokenizer_json() -> str:
    """Return a tokenizer.json whose tokens are the 256 bytes and three control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from loci.models.tokenizer import BYTE_LETTERS

    vocab = {BYTE_LETTERS[byte]: byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in _CONTROL])
    return str(tokenizer.to_str())


def hf_of(pack: Pack) -> Any:
    """Return a transformers causal LM, eager and in float32, with the dequantised weights."""
    import transformers

    spec = pack.spec
    names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral"}
    prefix = (names | {"gemma": "Gemma"})[spec.architecture]
    rope: dict[str, Any] = {"rope_theta": spec.rope_theta, "rope_type": "default"}
    values: dict[str, Any] = {
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.max_context,
        "rms_norm_eps": spec.norm_eps,
        "rope_parameters": rope | dict(spec.rope_scaling),
        "tie_word_embeddings": spec.tied,
        "bos_token_id": None,
        "eos_token_id": 258 if spec.vocab > 258 else None,
        "pad_token_id": None,
        "attn_implementation": "eager",
    }
    if spec.architecture == "mistral":
        values["sliding_window"] = spec.window
    if spec.architecture == "gemma":
        values["hidden_activation"] = "gelu_pytorch_tanh"
    config = getattr(transformers, f"{prefix}Config")(**values)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).to(torch.float32).eval()
    model.load_state_dict(hf_state(pack), strict=True)
    return model


def hf_state(pack: Pack) -> dict[str, Tensor]:
    """Return the pack's weights in float32 under Hugging Face's names."""
    state = {"model.norm.weight": dense(pack.block("norm")["norm"])}
    for kind, name in (("embed", "model.embed_tokens.weight"), ("head", "lm_head.weight")):
        tiles = [dense(pack.block(block)["weight"]) for block, _ in pack.tiles(kind)]
        state[name] = torch.cat(tiles)
    theirs = {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm"}
    for layer in range(pack.spec.layers):
        for name, weight in pack.block(f"layer.{layer}").items():
            part, _, bias = name.partition(".")
            home = "mlp." if part in ("gate_proj", "up_proj", "down_proj") else "self_attn."
            key = theirs.get(part, home + part)
            state[f"model.layers.{layer}.{key}.{bias or 'weight'}"] = dense(weight)
    return state


def dense(weight: Weight) -> Tensor:
    """Return a weight in float32, in memory of its own."""
    if isinstance(weight, Tensor):
        return weight.to(torch.float32, copy=True)
    return weight.dense()


def tiny_pair(folder: Path, seed: int = 0, bits: int | None = 4, **sizes: Any) -> tuple[Pack, Any]:
    """Return (pack, transformers model) with equal weights, for tests of equality."""
    pack = tiny_pack(folder, seed, bits, **sizes)
    return pack, hf_of(pack)


def tiny_hf(folder: Path, seed: int = 0, **sizes: Any) -> tuple[Any, ModelSpec]:
    """Return (transformers model, spec) with random float32 weights."""
    pack, model = tiny_pair(folder, seed, None, **sizes)
    return model, pack.spec

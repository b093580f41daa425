"""llama.cpp's k-quants of the same model, requantised by llama-cpp-python where it is installed.

The file is made by llama.cpp, and read by the `gguf` package into plain weights, which then run
through the same forward as ours. Embedding and head stay in Q8_0, so that only the linear layers
differ, and only their bytes count.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy
import torch

from loci.core.spec import ModelSpec
from loci.errors import MissingExtraError, ModelError, missing_extra
from loci.models.gguf_tensors import unpermuted
from loci.models.pack import Pack
from loci.nn.form import DenseWeight, Form

TYPES = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q6_K")
_Q8_0 = 8  # ggml's number of the type
_THEIRS = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def absent() -> str | None:
    """Return what is missing to make k-quants, or None when all is there."""
    if find_spec("llama_cpp") is None:
        return "pip install llama-cpp-python"
    return None if find_spec("gguf") else "pip install 'loci[gguf]'"


def requantised(source: Path, kind: str, folder: Path) -> Path:
    """Return a GGUF file of another type, made from `source` when it is not there.

    Raises:
        MissingExtraError: if llama-cpp-python is not installed.
        ModelError: if llama.cpp refuses.
    """
    target = folder / f"{source.stem}-{kind}.gguf"
    if target.is_file():
        return target
    if absent():
        raise MissingExtraError("k-quants are made by llama.cpp", way_out=absent() or ())
    import llama_cpp

    folder.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".partial")
    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    wanted.allow_requantize = True
    wanted.token_embedding_type = wanted.output_tensor_type = _Q8_0
    failed = llama_cpp.llama_model_quantize(
        str(source).encode(), str(fresh).encode(), ctypes.byref(wanted)
    )
    if failed:
        fresh.unlink(missing_ok=True)
        raise ModelError(f"llama.cpp cannot make a {kind} of {source.name}", value=failed)
    fresh.replace(target)
    return target


def linears_of(path: Path, spec: ModelSpec) -> tuple[dict[str, Form], int]:
    """Return the linear layers of a GGUF file in float32, and the bytes they take in it."""
    try:
        from gguf import GGUFReader
        from gguf.quants import dequantize
    except ImportError:
        raise missing_extra("gguf", "gguf") from None
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    forms: dict[str, Form] = {}
    total = 0
    for layer in range(spec.layers):
        for name, shape in spec.layer_linears().items():
            tensor = tensors[f"blk.{layer}.{_THEIRS[name]}.weight"]
            values = dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
            weight = torch.from_numpy(values.reshape(shape))
            heads = {"q_proj": spec.heads, "k_proj": spec.kv_heads}.get(name)
            if heads is not None and spec.architecture == "llama":
                weight = weight[unpermuted(heads, spec.head_dim)]
            forms[f"layer.{layer}.{name}"] = DenseWeight(weight)
            total += int(tensor.n_bytes)
    return forms, total


def write_gguf(pack: Pack, path: Path) -> Path:
    """Write a pack's weights in float32 as a GGUF file that llama.cpp can requantise.

    It has no vocabulary: it is made to be requantised, not to be talked with.
    """
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise missing_extra("gguf", "gguf") from None
    spec = pack.spec
    if spec.architecture != "llama" or spec.qk_norm or spec.attention_bias:
        raise ModelError("only llama models are written as GGUF", value=spec.architecture)
    fresh = path.with_suffix(".partial")
    writer = GGUFWriter(fresh, "llama")
    writer.add_context_length(spec.max_context)
    writer.add_embedding_length(spec.hidden)
    writer.add_block_count(spec.layers)
    writer.add_feed_forward_length(spec.ffn)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_vocab_size(spec.vocab)
    writer.add_tokenizer_model("none")
    for name, values in _gguf_tensors(pack).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fresh.replace(path)
    return path


def _gguf_tensors(pack: Pack) -> Mapping[str, numpy.ndarray]:
    spec = pack.spec
    found: dict[str, numpy.ndarray] = {}

    def dense(weight: Form | torch.Tensor) -> torch.Tensor:
        return weight.float() if isinstance(weight, torch.Tensor) else weight.dense()

    for kind, theirs in (("embed", "token_embd"), ("head", "output")):
        if kind == "head" and spec.tied:
            continue
        tiles = [dense(next(iter(pack.block(block).values()))) for block, _ in pack.tiles(kind)]
        found[f"{theirs}.weight"] = torch.cat(tiles).numpy()
    found["output_norm.weight"] = dense(next(iter(pack.block("norm").values()))).numpy()
    norms = {"input_norm": "attn_norm", "post_norm": "ffn_norm"}
    for layer in range(spec.layers):
        block = pack.block(f"layer.{layer}")
        for ours, theirs in norms.items():
            found[f"blk.{layer}.{theirs}.weight"] = dense(block[ours]).numpy()
        for ours, theirs in _THEIRS.items():
            weight = dense(block[ours])
            heads = {"q_proj": spec.heads, "k_proj": spec.kv_heads}.get(ours)
            if heads is not None:
                weight = weight[torch.argsort(unpermuted(heads, spec.head_dim))]
            found[f"blk.{layer}.{theirs}.weight"] = weight.contiguous().numpy()
    return found

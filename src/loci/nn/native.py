"""The native kernels, typed; each does what a torch expression does, faster.

Without a C++ compiler the extension is not there: `available` says so, `why_not` says why, and the
callers take their torch path. Nothing here may be called then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple  # the extension has no types

import torch
from torch import Tensor

from loci.errors import ParameterError

if TYPE_CHECKING:
    from loci.core.spec import ModelSpec
    from loci.nn.packing import PackedWeight

try:
    from loci.nn import _native  # type: ignore[attr-defined]  # built from kernels/
except ImportError as error:
    _native = None
    _WHY_NOT: str | None = str(error)
else:
    _WHY_NOT = None

MAX_ROWS = 16  # rows of x a product straight from the codes takes
LEVELS = ("plain", "avx2", "avx512", "avx512_vnni", "neon")
MIN_BITS, MAX_BITS = 1, 8
_DENSE = {torch.float32: (1, 32), torch.float16: (2, 16), torch.bfloat16: (3, 16)}

# Shapes: M rows, K inputs, N outputs, H query heads, K key/value heads, S stored tokens, T queries,
# D head, V vocabulary.


def available() -> bool:
    """Return whether the kernels were built."""
    return _native is not None


def handles(bits: int) -> bool:
    """Return whether the kernels were built and read codes of this width."""
    return _native is not None and MIN_BITS <= bits <= MAX_BITS


def turns(head_dim: int) -> bool:
    """Return whether the kernels were built and turn heads of this size."""
    return _native is not None and head_dim >= LEAST_TURN and head_dim & -head_dim == head_dim


def why_not() -> str | None:
    """Return why they are not there, or None when they are."""
    if _native is not None:
        return None
    if find_spec("loci.nn._native") is None:
        return "the extension was not built; install again with a C++ compiler (c++ or g++)"
    return _WHY_NOT


def simd() -> str:
    """Return the instructions in use, one of `LEVELS`."""
    name: str = _native.level()
    return name


def levels() -> list[str]:
    """Return the instruction sets this machine has, weakest first."""
    found: list[str] = _native.levels()
    return found


@contextmanager
def force_simd(name: str) -> Iterator[None]:
    """Use only these instructions within the block; for tests."""
    if name not in levels():
        raise ParameterError(
            "this machine has no such instructions", value=name, allowed=", ".join(levels())
        )
    before = simd()
    _native.set_level(name)
    try:
        yield
    finally:
        _native.set_level(before)


def threads() -> int:
    """Return how many threads the kernels use."""
    count: int = _native.threads()
    return count


def set_threads(count: int) -> None:
    """Use so many threads from now on."""
    if count < 1:
        raise ParameterError("kernels need at least one thread", value=count)
    _native.set_threads(count)


# -- products ---------------------------------------------------------------------------------


def handle(weight: PackedWeight) -> object:
    """Return the kernels' own view of a weight, made once and kept with it."""
    held = weight.__dict__.get("_native")
    if held is None:
        out, inner = weight.shape
        held = _native.Weight(
            0,
            weight.codes.data_ptr(),
            weight.scales.data_ptr(),
            0 if weight.mins is None else weight.mins.data_ptr(),
            out,
            inner,
            weight.bits,
            weight.group,
            weight.scales.dtype == torch.float16,
        )
        weight.__dict__["_native"] = held  # the weight owns the tensors, so it outlives the view
    return held


def dense_handle(weight: Tensor) -> object:
    """Return the kernels' view of a contiguous float32, float16 or bfloat16 matrix.

    The caller keeps the tensor for as long as the view.
    """
    kind, bits = _DENSE[weight.dtype]
    out, inner = weight.shape
    return _native.Weight(kind, weight.data_ptr(), 0, 0, out, inner, bits, inner, False)


def gemv(x_MK: Tensor, weight: PackedWeight, out_MN: Tensor) -> None:
    """Write x times the transposed weight into out; x contiguous, rows of out contiguous."""
    gemv_many(x_MK, (weight,), (out_MN,))


def gemv_many(
    x_MK: Tensor,
    weights: Sequence[PackedWeight],
    outs_MN: Sequence[Tensor],
    *,
    rounded: bool = False,
) -> None:
    """Write x times each transposed weight, in one go; at most `MAX_ROWS` rows.

    Rounded, x is put into whole numbers of 8 bits first, with a step per group of each weight.
    """
    _native.gemv(
        x_MK.data_ptr(),
        x_MK.shape[0],
        [handle(weight) for weight in weights],
        [out.data_ptr() for out in outs_MN],
        [out.stride(0) for out in outs_MN],
        rounded,
    )


def gemm_floats(inner: int) -> int:
    """Return the least scratch of `gemm_many` in float32 elements; more serves more threads."""
    count: int = _native.gemm_floats(inner)
    return count


def gemm_many(
    x_MK: Tensor,
    weights: Sequence[PackedWeight],
    outs_MN: Sequence[Tensor],
    scratch: Tensor,
) -> None:
    """Write x times each transposed weight, any number of rows, through dequantised panels.

    Args:
        x_MK: float32, columns side by side.
        scratch: float32, at least `gemm_floats`.
    """
    _native.gemm(
        x_MK.data_ptr(),
        x_MK.stride(0),
        x_MK.shape[0],
        [handle(weight) for weight in weights],
        [out.data_ptr() for out in outs_MN],
        [out.stride(0) for out in outs_MN],
        scratch.data_ptr(),
        scratch.numel(),
    )


def dequantise(weight: PackedWeight, first: int, last: int, out_nK: Tensor) -> None:
    """Write rows first..last of a weight into out, float32 and contiguous."""
    _native.dequantise(handle(weight), first, last, out_nK.data_ptr())


def rows(weight: PackedWeight, ids_n: Tensor, out_nK: Tensor) -> None:
    """Write the rows `ids` (int64, contiguous, in range) into out."""
    _native.rows(handle(weight), ids_n.data_ptr(), ids_n.numel(), out_nK.data_ptr())


# -- the steps between products ---------------------------------------------------------------


def rmsnorm(x_MK: Tensor, weight_K: Tensor, eps: float, offset: float, out_MK: Tensor) -> None:
    """Write x / rms(x) * (weight + offset) into out, which may be x; all contiguous."""
    size = x_MK.shape[-1]
    _native.rmsnorm(
        x_MK.data_ptr(),
        weight_K.data_ptr(),
        eps,
        offset,
        x_MK.numel() // size,
        size,
        out_MK.data_ptr(),
    )


def silu_mul(gate_MK: Tensor, up_MK: Tensor) -> None:
    """Replace gate by silu(gate) * up; both contiguous."""
    size = gate_MK.shape[-1]
    _native.silu_mul(gate_MK.data_ptr(), up_MK.data_ptr(), gate_MK.numel() // size, size)


def gelu_tanh_mul(gate_MK: Tensor, up_MK: Tensor) -> None:
    """Replace gate by gelu(gate) * up, gelu by its tanh formula; both contiguous."""
    size = gate_MK.shape[-1]
    _native.gelu_tanh_mul(gate_MK.data_ptr(), up_MK.data_ptr(), gate_MK.numel() // size, size)


def rope(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor, out_THD: Tensor) -> None:
    """Write x turned by the angles into another tensor; all contiguous."""
    tokens, heads, size = x_THD.shape
    _native.rope(
        x_THD.data_ptr(),
        cos_TD.data_ptr(),
        sin_TD.data_ptr(),
        tokens,
        heads,
        size,
        out_THD.data_ptr(),
    )


# -- attention --------------------------------------------------------------------------------


def attend_decode(
    q_HD: Tensor, keys_KSD: Tensor, values_KSD: Tensor, scale: float, out_HD: Tensor, lse_H: Tensor
) -> None:
    """Write what one token's queries read from all stored tokens, and the log-sum-exp.

    Args:
        q_HD: float32, contiguous.
        keys_KSD, values_KSD: float32 or float16; the last dimension contiguous, others strided.
    """
    _native.attend_decode(
        q_HD.data_ptr(),
        keys_KSD.data_ptr(),
        values_KSD.data_ptr(),
        keys_KSD.stride(0),
        keys_KSD.stride(1),
        values_KSD.stride(0),
        values_KSD.stride(1),
        keys_KSD.shape[1],
        q_HD.shape[0],
        keys_KSD.shape[0],
        q_HD.shape[1],
        keys_KSD.dtype == torch.float16,
        scale,
        out_HD.data_ptr(),
        lse_H.data_ptr(),
    )


def attend_chunks(
    q_HD: Tensor,
    keys_KSD: Tensor,
    values_KSD: Tensor,
    chunk: int,
    found_HF: Tensor,
    filling_K: Tensor,
    filled_K: Tensor,
    scale: float,
    out_HD: Tensor,
    lse_H: Tensor,
) -> None:
    """Write what one token's queries read from chunks of their own, and the log-sum-exp.

    Args:
        q_HD: float32, contiguous.
        keys_KSD, values_KSD: float32 or float16; the last dimension contiguous, others strided.
        chunk: tokens of a chunk.
        found_HF: int64, contiguous; numbers of chunks that each query reads, S / chunk for none.
        filling_K, filled_K: int64; the number of one more chunk, and how many of its tokens count.
    """
    _native.attend_chunks(
        q_HD.data_ptr(),
        keys_KSD.data_ptr(),
        values_KSD.data_ptr(),
        keys_KSD.stride(0),
        keys_KSD.stride(1),
        values_KSD.stride(0),
        values_KSD.stride(1),
        chunk,
        keys_KSD.shape[1] // chunk,
        found_HF.data_ptr(),
        found_HF.shape[1],
        filling_K.data_ptr(),
        filled_K.data_ptr(),
        q_HD.shape[0],
        keys_KSD.shape[0],
        q_HD.shape[1],
        keys_KSD.dtype == torch.float16,
        scale,
        out_HD.data_ptr(),
        lse_H.data_ptr(),
    )


def attend_floats(size: int, groups: int) -> int:
    """Return the least scratch of `attend_prompt` in elements; more serves more threads."""
    count: int = _native.attend_floats(size, groups)
    return count


def attend_prompt(
    q_BHTD: Tensor,
    keys_BKSD: Tensor,
    values_BKSD: Tensor,
    scale: float,
    out_BHTD: Tensor,
    lse_BHT: Tensor | None,
    scratch: Tensor,
    *,
    start: int | None,
    window: int | None = None,
) -> None:
    """Write what many queries read, in tiles: no score outlives its tile.

    Args:
        q_BHTD: float32; like all others, the last dimension contiguous, the rest strided.
        keys_BKSD, values_BKSD: float32 or float16.
        lse_BHT: float32, contiguous, or None.
        start: query t sees keys 0..start + t; None shows every key to every query.
        window: and of those only the last `window`.
    """
    heads, queries, size = q_BHTD.shape[1:]
    kv_heads, stored = keys_BKSD.shape[1:3]
    every = (q_BHTD, keys_BKSD, values_BKSD, out_BHTD)
    lists = [[part.data_ptr() for part in tensor.unbind(0)] for tensor in every]
    lse = [] if lse_BHT is None else [part.data_ptr() for part in lse_BHT.unbind(0)]
    strides = [tensor.stride(axis) for tensor in every for axis in (1, 2)]
    sizes = [queries, stored, stored if start is None else start]
    sizes += [0 if window is None else window, heads, kv_heads, size]
    _native.attend_prompt(
        *lists,
        lse,
        strides,
        sizes,
        keys_BKSD.dtype == torch.float16,
        scale,
        scratch.data_ptr(),
        scratch.numel(),
    )


def bfp_dequant(
    packed_NR: Tensor, exponents_Nb: Tensor, bits: int, block: int, out_ND: Tensor
) -> None:
    """Write values of block floating point into out; all contiguous.

    Args:
        packed_NR: uint8, the mantissas of a row as a bit stream, biased by 2^(bits - 1).
        exponents_Nb: uint8, one per block, biased by 127.
    """
    size = out_ND.shape[-1]
    _native.bfp_dequant(
        packed_NR.data_ptr(),
        exponents_Nb.data_ptr(),
        bits,
        block,
        out_ND.numel() // size,
        size,
        packed_NR.shape[-1],
        out_ND.data_ptr(),
    )


def round_levels(
    x_ND: Tensor, levels_L: Tensor, bits: int, sizes: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return each row's codes as bit streams, uint8 [N, D * bits / 8], and scales float16 [N].

    Codes name levels; of the sizes of a row's root mean square the one is taken after which least
    is left, and the scale is fitted to its codes.

    Args:
        x_ND: float32, contiguous.
        levels_L: rising, 2^bits of them.
    """
    rows, size = x_ND.shape
    codes = torch.empty(rows, size * bits // 8, dtype=torch.uint8)
    scales = torch.empty(rows, dtype=torch.float16)
    tried = torch.tensor(sizes)
    numbers = [levels_L.data_ptr(), bits, tried.data_ptr(), len(sizes)]
    _native.round_levels(x_ND.data_ptr(), rows, size, *numbers, codes.data_ptr(), scales.data_ptr())
    return codes, scales


# -- after the head ---------------------------------------------------------------------------


def is_plain(tensor: Tensor) -> bool:
    """Return whether the kernels can read a tensor as it lies."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()


def argmax(logits_V: Tensor) -> int:
    """Return the first of the largest; contiguous float32."""
    found: int = _native.argmax(logits_V.data_ptr(), logits_V.numel())
    return found


def sample(
    logits_V: Tensor, temperature: float, top_k: int | None, top_p: float | None, uniform: float
) -> int:
    """Return the token at which the cumulated chance passes `uniform`; contiguous float32.

    Of the `top_k` largest, equals of the last one included, those of the smallest set whose chance
    reaches `top_p` take part.
    """
    found: int = _native.sample(
        logits_V.data_ptr(),
        logits_V.numel(),
        temperature,
        top_k or 0,
        1.0 if top_p is None else top_p,
        uniform,
    )
    return found


def read_all(tensors: Sequence[Tensor]) -> int:
    """Read every byte once, in all threads, and return their exclusive or: a decoder's limit."""
    pieces = [(tensor.data_ptr(), tensor.nbytes) for tensor in tensors]
    found: int = _native.read_all(pieces)
    return found


# -- the decoder ------------------------------------------------------------------------------


class Past(NamedTuple):
    """Where the keys and values of one row of the batch lie.

    Attributes:
        keys, values: addresses of layer 0, head 0, token 0.
        layer, head, token: how many elements the next of each is away.
        half: 1 for float16, 0 for float32.
        stored: tokens there already.
        position: of the next one.
        spans: where they lie instead, where layers or heads differ; None where they do not.
    """

    keys: int
    values: int
    layer: int
    head: int
    token: int
    half: int
    stored: int
    position: int
    spans: Spans | None = None


class Side(NamedTuple):
    """Keys or values of tokens in the directions of a layer, x = u ways + mean.

    Attributes:
        rows_Sr: u in float16; or, with gains, codes uint8 of the directions with equally many bits
            in a row, u_i = (q_i - (2^b_i - 1) / 2) * steps[b_i] * size_i * gain.
        ways_mw, mean_w: float16.
        used: how many directions count; the first.
        gains_S, size_m, bits_m: float16, float32, uint8 and falling; None where rows are u.
    """

    rows_Sr: Tensor
    ways_mw: Tensor
    mean_w: Tensor
    used: int
    gains_S: Tensor | None = None
    size_m: Tensor | None = None
    bits_m: Tensor | None = None

    def numbers(self) -> list[int]:
        """Return what the kernels take."""
        rows = self.rows_Sr
        coded = [self.gains_S, self.size_m, self.bits_m]
        return [
            rows.data_ptr(),
            rows.stride(0) * rows.element_size(),
            self.ways_mw.data_ptr(),
            self.mean_w.data_ptr(),
            self.used,
            *(0 if tensor is None else tensor.data_ptr() for tensor in coded),
        ]


class Levels:
    """How turned codes are read: x = mean + scale * signs * H level[code], H orthogonal.

    Args:
        bits_k, bits_v: of a code, at most 4.
        signs: of the channels [D], before they are turned.
        levels_k, levels_v: what each code stands for.
    """

    def __init__(
        self,
        bits_k: int,
        bits_v: int,
        signs: Sequence[float],
        levels_k: Sequence[float],
        levels_v: Sequence[float],
    ) -> None:
        self.bits = (bits_k, bits_v)
        # The matrix of the kernels is of ones.
        self._signs_D = torch.tensor(signs) / len(signs) ** 0.5
        self._levels_2N = torch.zeros(2, LEVELS_ROOM)
        for row, levels in zip(self._levels_2N, (levels_k, levels_v), strict=True):
            row.copy_(torch.tensor(levels).repeat(LEVELS_ROOM // len(levels)))

    def numbers(self) -> list[int]:
        """Return what the kernels take."""
        levels = [row.data_ptr() for row in self._levels_2N]
        return [self._signs_D.data_ptr(), *levels, *self.bits]


class Spans:
    """Where the keys and values of one row lie, for each layer and KV head in stretches.

    The stretch added last takes the next token, which must have room there. A head has at most
    `MAX_SPANS`. Addresses are not kept alive.
    """

    def __init__(self, layers: int, heads: int) -> None:
        self.native = _native.Spans(layers, heads)

    def add_exact(
        self, layer: int, head: int, keys_SD: Tensor, values_SD: Tensor, count: int
    ) -> None:
        """Add `count` tokens kept as they are; rows of both are equally far apart."""
        half = int(keys_SD.dtype == torch.float16)
        numbers = [keys_SD.data_ptr(), values_SD.data_ptr(), keys_SD.stride(0), half, count]
        self.native.add_exact(layer, head, numbers)

    def add_coded(
        self,
        layer: int,
        head: int,
        codes: Mapping[str, Tensor],
        *,
        bits: int,
        block: int,
        group: int = 0,
        order_D: Tensor | None = None,
        count: int,
    ) -> None:
        """Add `count` coded tokens, whose rows follow each other.

        Without a group they are block floating point, with "key_exponents" and "value_exponents",
        as `bfp_dequant` reads them. With one, a code q stands for low + step * q, in float16: keys
        by channel over `group` tokens, each of which carries its share of the group's "key_grid",
        all lows and then all steps; values by token, with a low and a step in "value_grid" for
        every `block` channels.

        Args:
            codes: "keys", "values", and these.
            order_D: int16, the channels the keys are stored in; None is their natural order.
        """
        names = ("key_grid", "value_grid") if group else ("key_exponents", "value_exponents")
        numbers = [codes[name].data_ptr() for name in ("keys", "values", *names)]
        numbers += [bits, block, group, codes["key_grid"].shape[-1] if group else 0]
        numbers += [0 if order_D is None else order_D.data_ptr(), count]
        self.native.add_coded(layer, head, numbers)

    def add_levels(
        self,
        layer: int,
        head: int,
        codes: Mapping[str, Tensor],
        fixed: Mapping[str, Tensor],
        levels: Levels,
        *,
        count: int,
    ) -> None:
        """Add `count` turned tokens, whose rows follow each other; see `Levels`.

        Args:
            codes: "keys" and "values", and in float16 a "key_scale" and a "value_scale" a token.
            fixed: "key_mean" and "value_mean" [D], float16.
        """
        names = ("keys", "values", "key_scale", "value_scale")
        numbers = [codes[name].data_ptr() for name in names]
        numbers += [fixed[name].data_ptr() for name in ("key_mean", "value_mean")]
        self.native.add_levels(layer, head, [*numbers, *levels.numbers(), count])

    def add_latent(
        self,
        layer: int,
        keys: Side,
        values: Side,
        *,
        steps_9: Tensor,
        frequencies: Tensor,
        position: int,
        count: int,
    ) -> None:
        """Add `count` tokens that all heads of a layer keep together, in directions.

        Args:
            steps_9: of codes, by bits 0 to 8.
            frequencies: [D / 2] of the rotary embedding, which keys are kept without.
            position: of the first of them.
        """
        width = keys.ways_mw.shape[-1]
        sides = [side.numbers() for side in (keys, values)]
        self.native.add_latent(
            layer, *sides, steps_9.data_ptr(), frequencies.data_ptr(), width, position, count
        )

    def grow(self) -> None:
        """Count the token that a step has put into the last stretch of every head."""
        self.native.grow()


MAX_SPANS = 6
LEVELS_ROOM = 16  # of a table of levels
LEAST_TURN = 16  # channels that kernels turn, at least
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VECTORS = (
    "input_norm",
    "post_norm",
    "q_proj.bias",
    "k_proj.bias",
    "v_proj.bias",
    "o_proj.bias",
    "q_norm",
    "k_norm",
)
WORK = ("hidden", "normed", "qkv", "mixed", "gate_up", "rope", "prepared", "attention", "tile")
LAST, ALL = 1, 2  # which logits
DONE, BAD_ID, NOT_FINITE = 0, 1, 2  # what a step returns; NOT_FINITE + layer


def decoder_floats(spec: ModelSpec) -> int:
    """Return the least "tile" of a decoder that takes more than `MAX_ROWS` rows at once."""
    count: int = _native.decoder_floats(
        spec.hidden, spec.heads, spec.kv_heads, spec.head_dim, spec.ffn
    )
    return count


def fits_decoder(spec: ModelSpec) -> bool:
    """Return whether the kernels were built and a model's sizes are those they take."""
    widths = (spec.hidden, spec.ffn, spec.heads * spec.head_dim)
    return available() and all(width % 16 == 0 for width in widths) and spec.head_dim % 2 == 0


class Decoder:
    """All steps of a Llama-like forward, with no Python between them.

    Args:
        work: buffers by name, float32; those of `WORK`, as `decoder_work` lists them.
        frequencies: [D / 2] of the rotary embedding.
        rounded: products of at most `MAX_ROWS` rows round what they read to 8 bits.
    """

    def __init__(
        self,
        spec: ModelSpec,
        work: Mapping[str, Tensor],
        frequencies: Tensor,
        scale: float,
        *,
        rounded: bool = False,
    ) -> None:
        self._keep: list[Any] = [dict(work), frequencies]  # what the kernels point at
        sizes = [spec.layers, spec.hidden, spec.heads, spec.kv_heads, spec.head_dim]
        sizes += [spec.ffn, spec.vocab, spec.window or 0]
        self._native = _native.Decoder(
            sizes,
            spec.norm_eps,
            spec.norm_offset,
            spec.embed_scale,
            scale,
            spec.activation == "gelu_tanh",
            frequencies.data_ptr(),
            [work[name].data_ptr() for name in WORK],
            work["attention"].numel(),
            work["tile"].numel(),
        )
        self._native.set_rounded(rounded)
        self._parts, self._part = work["attention"].numel(), spec.heads * (spec.head_dim + 2)
        self._rounded = rounded
        self._room = work["prepared"].numel()
        self._layers: dict[int, object] = {}

    def set_layer(self, index: int, block: Mapping[str, Any], rows: int) -> bool:
        """Take the weights of a layer; False where the kernels cannot read one of them.

        Args:
            block: tensors and weights by the names of `LINEARS` and `VECTORS`.
            rows: most rows of x that a product straight from the codes will see.
        """
        parts = [_parted(block[name]) for name in LINEARS]
        handles = [view(base) for base, _ in parts]
        if any(handle is None for handle in handles):
            return False
        for group in (handles[:3], handles[3:4], handles[4:6], handles[6:]):
            if _native.prepared_floats(group, min(rows, MAX_ROWS), self._rounded) > self._room:
                return False
        vectors = [block.get(name) for name in VECTORS]
        if not all(vector is None or _is_vector(vector) for vector in vectors):
            return False
        pointers = [0 if vector is None else vector.data_ptr() for vector in vectors]
        self._native.set_layer(index, handles, pointers)
        for number, (_, thin) in enumerate(parts):
            if thin is not None:
                left, right = thin
                rank = right.shape[0]
                self._native.set_thin(index, number, left.data_ptr(), right.data_ptr(), rank)
        self._layers[index] = (handles, vectors, block, parts)
        return True

    def set_vocabulary(
        self, embedding: Sequence[Any], head: Sequence[Any], norm: Tensor, rows: int
    ) -> bool:
        """Take the tiles of embedding and head, whose rows follow each other, and the last norm."""
        tiles = [[view(weight) for weight in part] for part in (embedding, head)]
        if any(handle is None for part in tiles for handle in part) or not _is_vector(norm):
            return False
        if len({weight.shape[0] for weight in embedding[:-1]}) > 1:
            return False  # a row is found by dividing
        if _native.prepared_floats(tiles[1], min(rows, MAX_ROWS), self._rounded) > self._room:
            return False
        self._native.set_vocabulary(*tiles, norm.data_ptr())
        self._keep += [tiles, list(embedding), list(head), norm]
        return True

    def takes_spans(self, rows: int) -> bool:
        """Return whether there is room to merge what so many rows read of their stretches."""
        return self._parts >= rows * MAX_SPANS * self._part

    def step(
        self,
        ids_BT: Tensor,
        past: Sequence[Past],
        logits: int,
        out: Tensor | None,
        largest: float,
    ) -> int:
        """Run tokens through all layers, keep their keys and values, and write logits.

        Args:
            ids_BT: int64, contiguous.
            past: one for each row.
            logits: 0 for none, `LAST` or `ALL`.
            out: [B, V] or [B * T, V], contiguous.
            largest: what a key or value may be.

        Returns:
            `DONE`, `BAD_ID`, or `NOT_FINITE` plus the number of a layer.
        """
        pointer = 0 if out is None else out.data_ptr()
        tokens = ids_BT.shape[1]
        status: int = self._native.step(
            ids_BT.data_ptr(), tokens, *_pasts(past), logits, pointer, largest
        )
        return status

    def layer(self, index: int, tokens: int, past: Sequence[Past], largest: float) -> int:
        """Carry the hidden states of `tokens` a row through one layer; returns as `step` does."""
        status: int = self._native.layer(index, tokens, *_pasts(past), largest)
        return status

    def before(self, layer: int, positions_BT: Tensor, q_BHTD: Tensor, k_BKTD: Tensor) -> None:
        """From the hidden states to rotated queries and keys; values stay in "qkv".

        Args:
            positions_BT: int64, contiguous; negative is padding and turns like 0.
            q_BHTD, k_BKTD: contiguous.
        """
        rows, tokens = positions_BT.shape
        self._native.before(
            layer, rows, tokens, positions_BT.data_ptr(), q_BHTD.data_ptr(), k_BKTD.data_ptr()
        )

    def after(self, layer: int, o_BHTD: Tensor) -> None:
        """From what the queries read, contiguous, to the hidden states after the layer."""
        rows, _, tokens, _ = o_BHTD.shape
        self._native.after(layer, rows, tokens, o_BHTD.data_ptr())


def view(weight: Any) -> object | None:
    """Return the kernels' view of a weight in any form, None for a form they do not read."""
    if isinstance(weight, Tensor):
        if weight.ndim == 2 and weight.dtype in _DENSE and weight.is_contiguous():
            return dense_handle(weight) if weight.device.type == "cpu" else None
        return None
    from loci.nn.packing import PackedWeight

    if not isinstance(weight, PackedWeight) or not handles(weight.bits) or weight.group < 8:
        return None
    return handle(weight) if weight.codes.device.type == "cpu" else None


def _parted(weight: Any) -> tuple[Any, tuple[Tensor, Tensor] | None]:
    """Return a weight and the thin product beside it, where the kernels read it; else None."""
    from loci.nn.adjusted import AdjustedWeight
    from loci.nn.form import DenseWeight

    if not isinstance(weight, AdjustedWeight) or weight.left is None or weight.right is None:
        return weight, None
    left, right = weight.left, weight.right
    is_bare = weight.perm is weight.scale is weight.bits is None
    if not (is_bare and is_plain(left.t()) and is_plain(right)):
        return weight, None
    base = weight.base.weight if isinstance(weight.base, DenseWeight) else weight.base
    return base, (left, right)


def _pasts(past: Sequence[Past]) -> tuple[list[int], list[object]]:
    numbers = [number for row in past for number in row[:8]]
    return numbers, [None if row.spans is None else row.spans.native for row in past]


def _is_vector(vector: object) -> bool:
    return isinstance(vector, Tensor) and vector.ndim == 1 and is_plain(vector)

"""Loci inside transformers: a model from a pack, a Cache over the KV store, weights replaced.

Everything that touches the inside of transformers is in this file, and `tests/run/test_hf.py` pins
down what is relied on:

- `Cache.update` may return a handle instead of tensors; the attention function gets it;
- an attention function of our own name, with a mask function that hands the 2-D
  padding mask on, gets the module (with `layer_idx`) and rotated queries;
- `get_seq_length` must tell the logical length, from which `generate` derives positions.

The order inside a layer is append, attend, then evict: nothing is evicted before a step's queries
have seen it.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any  # transformers' signatures are open keyword arguments

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from loci.core.budget import read_bytes
from loci.core.ledger import Lease, Ledger
from loci.core.method import Method, Need
from loci.core.spec import ModelSpec
from loci.errors import ModelError, ParameterError, missing_extra
from loci.methods import catalogue
from loci.methods.kv.base import KVMethod
from loci.methods.kv.chain import check_chain
from loci.methods.quant.base import Quant
from loci.models.hf_folder import spec_of_config
from loci.models.load import resolve
from loci.models.pack import Pack
from loci.nn.attend import attend, end_weights
from loci.nn.form import Form
from loci.nn.kv import KVView, Seen
from loci.nn.packed_linear import matmul
from loci.nn.rope import Rope, undo
from loci.run.artefacts import Artefact
from loci.run.hf_weights import packed_forms
from loci.run.kvstore import KVStore

try:
    import transformers
    from transformers.cache_utils import Cache, CacheLayerMixin
    from transformers.initialization import no_init_weights
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
except ImportError as error:  # pragma: no cover - the extra is installed where tests run
    raise missing_extra("transformers", "hf") from error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

NAME = "loci"
DEFAULT_CONTEXT = 4096
_SAMPLES = 1024  # elements of each tensor that go into a fingerprint
_CONFIGS = {
    "llama": "LlamaConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "mistral": "MistralConfig",
    "gemma": "GemmaConfig",
}
_NORMS = {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm"}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")

# Shapes: B batch, H query heads, K key/value heads, T new tokens, S stored tokens, D head size.


# -- models -----------------------------------------------------------------------------------


def load(name: str, *, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Return plain transformers objects for a model Loci knows, weights in float32.

    Args:
        name: as for `loci run`.
        folder: where models are kept.
    """
    pack = resolve(name, folder)
    model = model_of(pack)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(pack.folder / "tokenizer.json")
    )
    header = pack.store.header
    special = header.get("special", {})
    ends = list(special.get("eos", ()))
    for role, id in (*((r, special.get(r)) for r in ("bos", "pad", "unk")), ("eos", ends[-1:])):
        found = id[0] if isinstance(id, list) and id else id
        if isinstance(found, int):
            setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(found))
    model.generation_config.eos_token_id = ends or None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = header.get("chat_template")
    return model, tokenizer


def model_of(pack: Pack) -> PreTrainedModel:
    """Return a transformers model with the weights of a pack, dequantised to float32."""
    spec = pack.spec
    config = config_of(spec)
    with no_init_weights():  # every weight is replaced below
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    state: dict[str, Tensor] = {}
    for name in pack.names():
        block = pack.block(name)
        if name.startswith("layer."):
            prefix = f"model.layers.{name.removeprefix('layer.')}."
            for key, weight in block.items():
                state[prefix + _their_name(key)] = _dense(weight)
    embed = [n for n in pack.names() if n.startswith("embed.")]
    head = [n for n in pack.names() if n.startswith("head.")]
    state["model.norm.weight"] = _dense(next(iter(pack.block("norm").values())))
    state["model.embed_tokens.weight"] = _stacked(pack, embed)
    state["lm_head.weight"] = _stacked(pack, head) if head else state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True, strict=True)
    model.tie_weights()
    return model.eval()


def fingerprint_of(model: PreTrainedModel) -> str:
    """Return a hash of a model's weights: names, types, shapes, and samples of each tensor.

    A sample, because hashing gigabytes would cost more than reading a prompt; training and merging
    change weights everywhere.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().reshape(-1)
        part = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].cpu().contiguous()
        digest.update(part.view(torch.uint8).numpy().tobytes())
    return f"sample:{digest.hexdigest()}"


def config_of(spec: ModelSpec) -> Any:
    """Return the transformers configuration of a spec."""
    kind = _CONFIGS.get(spec.architecture)
    if kind is None:
        raise ModelError("no such architecture", value=spec.architecture,
                         allowed=", ".join(_CONFIGS))  # fmt: skip
    rope: dict[str, Any] = {"rope_type": "default", **dict(spec.rope_scaling)}
    rope["rope_theta"] = spec.rope_theta
    values: dict[str, Any] = {
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "max_position_embeddings": spec.max_context,
        "rms_norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tied,
        "rope_parameters": rope,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if spec.architecture == "gemma":
        values["hidden_activation"] = "gelu_pytorch_tanh"
    if spec.architecture == "mistral":
        values["sliding_window"] = spec.window
    return getattr(transformers, kind)(**values)


# -- cache ------------------------------------------------------------------------------------


def cache(
    model: PreTrainedModel,
    chain: str | Sequence[Method] = "",
    *,
    budget: str | int | None = None,
    context: int | None = None,
    chunk: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    artefacts: Sequence[Artefact] = (),
    folder: str | Path | None = None,
) -> LociCache:
    """Return a transformers Cache for `generate(past_key_values=cache)`.

    Args:
        chain: methods as chains write them, "snapkv(window=8) | bfp(bits=4)"; "" keeps all exact.
        budget: bytes the cache may hold, like "8MiB", for methods that need a number.
        context: tokens it may hold; room for them is taken with the first token.
        chunk: the most tokens one forward brings; None takes the length of the first one. Room for
            so many tokens of one layer is part of the budget of a chain that selects or encodes.
        dtype: of keys and values that are kept as they are.
        artefacts: what `prepare` returned, for methods that must know the model.
        folder: where a chain may keep tokens in a file, "snapkv | longmem(tier=disk)".

    The model runs with Loci's attention until the last cache on it is closed; other caches keep
    working on it meanwhile. Use it in a `with`, or call `close`.
    """
    methods = catalogue.parse_chain(chain, "kv") if isinstance(chain, str) else tuple(chain)
    if isinstance(chain, str) and not chain:
        methods = ()
    return LociCache(
        model,
        methods,
        budget_bytes=None if budget is None else read_bytes(budget, "budget"),
        context=context,
        chunk=chunk,
        dtype=dtype,
        seed=seed,
        artefacts=tuple(artefacts),
        folder=None if folder is None else Path(folder),
    )


def prepare(
    model: PreTrainedModel,
    method: str | Method,
    ids: Tensor,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Artefact:
    """Return what a method of the KV cache must know of a model, for `cache(artefacts=[...])`.

    Args:
        method: as chains write it, "cskv(density=0.5)".
        ids: token ids [texts, tokens] of texts to look at the model with.
        tokenizer: the model's, for methods that ask it questions of their own.

    Raises:
        MethodError: if the method needs nothing prepared.
    """
    found = catalogue.find(method, "kv") if isinstance(method, str) else method
    if not isinstance(found, KVMethod):
        raise ParameterError("this is no method of the KV cache", value=str(method))
    made = found.prepare(_HfLab(model, ids, tokenizer))
    assert isinstance(made, Artefact)
    return made


@dataclass
class _Handle:
    """What `update` returns in place of keys and values."""

    cache: LociCache
    view: KVView
    positions_BT: Tensor


class _Layer(CacheLayerMixin):
    """One layer's face towards transformers; the store behind it is shared."""

    is_croppable = True

    def __init__(self, owner: LociCache, index: int) -> None:
        super().__init__()
        self._owner, self._index = owner, index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take room for the whole context."""
        self._owner.take_room(key_states.shape[0], key_states.shape[2])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append rotated keys and values; return handles for the attention function."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        handle = self._owner.append(self._index, key_states, value_states)
        return handle, handle

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (logical length with the new tokens, offset 0)."""
        return self._owner.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Return the tokens seen, whatever was evicted since."""
        return self._owner.get_seq_length()

    def get_max_length(self) -> int:
        """Return the tokens it may hold."""
        return self._owner.context

    def reset(self) -> None:
        """Forget everything; called once per layer, so only the first one acts."""
        if self._index == 0:
            self._owner.forget_all()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take rows in another order."""
        if self._index == 0:
            self._owner.reorder(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Drop tokens from the end (a negative count, as transformers passes it, or positive)."""
        if self._index == 0:
            self._owner.drop_last(abs(int(tokens_to_remove)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        if self._index == 0:
            self._owner.repeat(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        if self._index == 0:
            self._owner.reorder(indices)


class LociCache(Cache):
    """A transformers Cache whose tokens live in one `KVStore`. Made by `loci.hf.cache`."""

    def __init__(
        self,
        model: PreTrainedModel,
        chain: tuple[Method, ...],
        *,
        budget_bytes: int | None,
        context: int | None,
        chunk: int | None,
        dtype: torch.dtype,
        seed: int,
        artefacts: tuple[Artefact, ...] = (),
        folder: Path | None = None,
    ) -> None:
        check_chain(chain)  # before anything is attached
        spec = spec_of_config(model.config.to_dict(), type(model).__name__, Path())
        self.spec = replace(spec, fingerprint=fingerprint_of(model))
        self.chain, self.dtype = chain, dtype
        self.context = context or min(self.spec.max_context, DEFAULT_CONTEXT)
        self.chunk = chunk if chain else self.context
        self.store: KVStore | None = None
        self._budget_bytes, self._seed, self._folder = budget_bytes, seed, folder
        self._model: PreTrainedModel | None = model
        self._pad_B: Tensor | None = None
        self._mask_BT: Tensor | None = None
        self._ids: list[Tensor] = []
        self._look: list[Seen] | None = None
        self._artefacts = {made.method.partition("(")[0]: made for made in artefacts}
        self.hidden: dict[int, Tensor] = {}  # what each layer's projections were given
        self.wants_hidden = any(Need.HIDDEN in method.about.needs for method in chain)
        self.ledger = Ledger({"dram": 2**62, "disk": 2**62})
        self._faces = [_Layer(self, index) for index in range(self.spec.layers)]
        super().__init__(layers=list(self._faces))
        _attach(model)

    # -- what people use ----------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of storage really held."""
        return 0 if self.store is None else sum(self.store.nbytes().values())

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens seen, whatever was evicted since."""
        return 0 if self.store is None else self.store.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return the tokens it may hold."""
        return self.context

    def fork(self) -> LociCache:
        """Return an independent copy; writing to one does not change the other."""
        twin = LociCache(
            self._alive(),
            self.chain,
            budget_bytes=self._budget_bytes,
            context=self.context,
            chunk=self.chunk,
            dtype=self.dtype,
            seed=self._seed,
            artefacts=tuple(self._artefacts.values()),
            folder=self._folder,
        )
        if self.store is not None:
            twin.store = self.store.fork()
            for layer in twin._faces:
                layer.is_initialized = True
        twin._pad_B, twin._ids = self._pad_B, list(self._ids)
        return twin

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON facts from which `restore` makes an equal cache."""
        if self.store is None:
            raise ParameterError("the cache is empty; there is nothing to snapshot")
        tensors, facts = self.store.snapshot()
        if self._pad_B is not None:
            tensors = {**tensors, "hf.pad": self._pad_B.clone()}
        if self._ids:
            tensors = {**tensors, "hf.ids": torch.cat(self._ids, dim=1)}
        return tensors, facts

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Hold what a snapshot held.

        Raises:
            FingerprintError: if it comes from another model or chain; nothing changes then.
            FormatError: if it is incomplete, or of another version; nothing changes then.
        """
        tensors = dict(tensors)
        pad_B, ids_BT = tensors.pop("hf.pad", None), tensors.pop("hf.ids", None)
        self._alive()
        fresh = KVStore.restore(
            self.spec, self.chain, tensors, facts, ledger=self.ledger,
            generator=torch.Generator().manual_seed(self._seed), folder=self._folder,
        )  # fmt: skip
        if self.store is not None:
            self.store.release()
        self.store, self._pad_B = fresh, pad_B
        self._ids = [] if ids_BT is None else [ids_BT]
        self.context, self.chunk = fresh.max_tokens, fresh.chunk
        for layer in self._faces:
            layer.is_initialized = True

    def close(self) -> None:
        """Give every byte back and, with the last cache, the model its own attention."""
        if self.store is not None:
            self.store.release()
            self.store = None
        if self._model is not None:
            model, self._model = self._model, None
            _detach(model)

    def __enter__(self) -> LociCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- called by the layers and the attention function --------------------------------------

    def take_room(self, batch: int, tokens: int) -> None:
        """Make the store when the first tokens bring the batch size."""
        if self.store is None:
            self._alive()
            self.chunk = self.chunk or tokens
            self.store = KVStore(
                self.spec,
                self.chain,
                max_tokens=self.context,
                batch=batch,
                dtype=self.dtype,
                budget_bytes=self._budget_bytes,
                chunk=self.chunk,
                ledger=self.ledger,
                generator=torch.Generator().manual_seed(self._seed),
                artefacts=self._artefacts,
                folder=self._folder,
            )

    def append(self, index: int, keys_BKTD: Tensor, values_BKTD: Tensor) -> _Handle:
        """Append one layer's tokens; positions count slots, less the padding on the left."""
        self._alive()
        assert self.store is not None
        start, count = self.store.length, keys_BKTD.shape[2]
        if self.chunk is not None and count > self.chunk:
            raise ParameterError(
                "this forward brings more tokens than the cache was made for",
                value=count,
                allowed=f"at most {self.chunk}",
                way_out="hf.cache(..., chunk=...), or generate(..., prefill_chunk_size=...)",
            )
        places_BT = torch.arange(start, start + count).expand(keys_BKTD.shape[0], count)
        if self._pad_B is not None:
            places_BT = places_BT - self._pad_B[:, None]
        shown = self.hidden.pop(index, None)
        view = self.store.append(index, keys_BKTD, values_BKTD, places_BT, shown)
        return _Handle(self, view, places_BT)

    def begin(self, ids_BT: Tensor | None, mask_BS: Tensor | None) -> None:
        """Note the tokens and the padding of a forward that starts."""
        if ids_BT is not None and self._look is None:
            self._ids.append(ids_BT)
        if mask_BS is None or bool(mask_BS.all()):
            if self.get_seq_length() == 0:
                self._pad_B = None
            return
        pad_B = (mask_BS == 0).sum(dim=1)
        slots_S = torch.arange(mask_BS.shape[1])
        if not torch.equal(mask_BS.bool(), slots_S[None] >= pad_B[:, None]):
            raise ParameterError(
                "Loci's cache takes padding on the left only",
                way_out='tokenizer.padding_side = "left"',
            )
        if self._pad_B is not None and not torch.equal(pad_B, self._pad_B):
            raise ParameterError(
                "the padding changed in the middle of a conversation",
                value=pad_B.tolist(),
                allowed=str(self._pad_B.tolist()),
            )
        self._pad_B = pad_B

    def saw(self, layer: int, queries_BHTD: Tensor, positions_BT: Tensor) -> None:
        """After a layer attended: remember what it saw; after the last one, close the step."""
        assert self.store is not None
        seen = Seen(layer=layer, queries=queries_BHTD, positions=positions_BT)
        if self._look is not None:
            self._look.append(seen)
            return
        if self.store.wants_queries:
            self.store.observe(layer, seen)
        if layer == self.spec.layers - 1:
            self.store.advance(positions_BT.shape[1])

    def end(self, tokens: int) -> None:
        """After a forward: a prompt was read, so methods that work then do their work."""
        if tokens > 1 and self._look is None and self.store is not None:
            self.store.finish_prompt(_Probe(self, self._alive()))

    def forget_all(self) -> None:
        """Hold nothing; room is taken anew with the next token."""
        if self.store is not None:
            self.store.release()
            self.store = None
        self._pad_B, self._ids = None, []
        for layer in self._faces:
            layer.is_initialized = False

    def reorder(self, rows: Tensor) -> None:
        """Take rows of the batch in another order."""
        if self.store is not None:
            self.store.reorder(rows)
            if self._pad_B is not None:
                self._pad_B = self._pad_B[rows]
            if self._ids:
                self._ids = [torch.cat(self._ids, dim=1)[rows]]

    def repeat(self, repeats: int) -> None:
        """Refuse to grow the batch: its room was taken with the first token."""
        if self.store is not None and repeats != 1:
            raise ParameterError(
                "the batch of this cache cannot grow once it holds tokens",
                value=repeats,
                way_out="read the prompt with the whole batch from the start",
            )

    def drop_last(self, tokens: int) -> None:
        """Forget the last tokens."""
        if self.store is not None and tokens:
            self.store.crop(self.store.length - tokens)
            if self._ids:
                self._ids = [torch.cat(self._ids, dim=1)[:, : self.store.length]]

    def _alive(self) -> PreTrainedModel:
        if self._model is None:
            raise ParameterError("this cache was closed", way_out="make a new one")
        return self._model


class _HfLab:
    """A transformers model taken apart; satisfies `loci.core.ports.Lab`. Texts are row numbers."""

    def __init__(
        self,
        model: PreTrainedModel,
        ids_ST: Tensor,
        tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> None:
        self._model, self._ids_ST, self._tokenizer = model, ids_ST, tokenizer
        with LociCache(
            model, (), budget_bytes=None, context=ids_ST.shape[1], chunk=None,
            dtype=torch.float32, seed=0,
        ) as held:  # fmt: skip
            self.spec = held.spec

    def texts(self) -> Sequence[str]:
        """Return the numbers of the rows of ids."""
        return [str(row) for row in range(len(self._ids_ST))]

    @contextmanager
    def activations(
        self, texts: Sequence[str], taps: Sequence[str]
    ) -> Iterator[Iterator[tuple[str, int, Tensor]]]:
        """Lend an iterator of (tap, layer, tensor): "keys" before their rotation, and "values"."""
        unknown = [tap for tap in taps if tap not in ("keys", "values")]
        if unknown:
            raise ParameterError("no such tap", value=unknown, allowed="keys, values")
        turned = Rope(self.spec).table(torch.arange(self._ids_ST.shape[1])[None])

        def walk() -> Iterator[tuple[str, int, Tensor]]:
            for text in texts:
                ids_1T = self._ids_ST[int(text)][None]
                with cache(self._model, context=ids_1T.shape[1]) as held, torch.no_grad():
                    forward_with(self._model, ids_1T, held, logits_to_keep=1)
                    assert held.store is not None
                    for layer in range(self.spec.layers):
                        block = held.store.view(layer).dense()
                        if "keys" in taps:
                            yield "keys", layer, undo(block.keys, *turned)
                        if "values" in taps:
                            yield "values", layer, block.values

        yield walk()

    def encode(self, text: str) -> Sequence[int]:
        """Return the ids of a row, or what the tokenizer makes of another text."""
        if text.isdigit() and int(text) < len(self._ids_ST):
            return list(map(int, self._ids_ST[int(text)]))
        if self._tokenizer is None:
            raise ParameterError(
                "this method asks the model questions of its own",
                value=text,
                way_out="loci.hf.prepare(..., tokenizer=tokenizer)",
            )
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def attention(self, ids: Sequence[int], last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, by layer, what the last tokens give to all, [H, last, T], and values [K, T, D]."""
        scale = self.spec.head_dim**-0.5
        with cache(self._model, context=len(ids)) as held, torch.no_grad():
            forward_with(self._model, torch.tensor([ids[:-last]]), held, logits_to_keep=1)
            seen = list(_Probe(held, self._model).probe(ids[-last:]))
            forward_with(self._model, torch.tensor([ids[-last:]]), held, logits_to_keep=1)
            assert held.store is not None
            for one in seen:
                assert one.queries is not None
                block = held.store.view(one.layer).dense()
                yield end_weights(one.queries[0], block.keys[0], scale), block.values[0]

    def weights(self, name: str) -> Tensor:
        """Return one weight in float32 [out, in], "layer.3.k_proj"."""
        where = state_name(name)
        found = self._model.state_dict().get(where)
        if found is None:
            raise ParameterError("this model has no such weight", value=where)
        return found.detach().float()

    def folder(self) -> Path:
        """Refuse: nothing of a transformers model is kept on disk."""
        raise ParameterError("what is prepared for a transformers model is not kept on disk")

    def artefact(
        self, method: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None
    ) -> Artefact:
        """Return tensors and facts as what was prepared by a method for this model."""
        return Artefact(
            method=method, fingerprint=self.spec.fingerprint, tensors=tensors, facts=facts or {}
        )


class _Probe:
    """A prefiller over a transformers model, for methods that ask what it would look at."""

    def __init__(self, owner: LociCache, model: PreTrainedModel) -> None:
        self._owner, self._model = owner, model
        ids = torch.cat(owner._ids, dim=1) if owner._ids else torch.zeros(1, 0, dtype=torch.long)
        self.ids: list[int] = ids[0].tolist()

    def prefill(self, ids: Sequence[int]) -> None:
        """Append tokens; no logits are kept."""
        with torch.no_grad():
            forward_with(self._model, torch.tensor([list(ids)]), self._owner, logits_to_keep=1)

    def probe(self, ids: Sequence[int]) -> Iterator[Seen]:
        """Run tokens against the store without appending; yield what each layer saw."""
        owner = self._owner
        assert owner.store is not None
        owner._look = []
        try:
            with owner.store.trial(), torch.no_grad():
                row = torch.tensor([list(ids)]).expand(owner.store.batch, -1)
                forward_with(self._model, row, owner, logits_to_keep=1)
                seen = owner._look
        finally:
            owner._look = None
        yield from seen


# -- attention --------------------------------------------------------------------------------


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | _Handle,
    value: Tensor | _Handle,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function registered as "loci"; [B, T, H, D] and no weights."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if isinstance(key, _Handle):
        o_BHTD, _ = attend(
            query, key.view, positions=key.positions_BT, scale=scale, window=sliding_window
        )
        key.cache.saw(int(module.layer_idx), query, key.positions_BT)  # type: ignore[arg-type]
        return o_BHTD.transpose(1, 2).to(query.dtype).contiguous(), None
    assert isinstance(value, Tensor)
    count, stored = query.shape[2], key.shape[2]
    ahead_TS = torch.arange(stored)[None] - torch.arange(stored - count, stored)[:, None]
    visible = ahead_TS <= 0
    if sliding_window is not None:
        visible &= ahead_TS > -sliding_window
    mask = visible[None, None]
    if attention_mask is not None:
        mask = mask & attention_mask[:, None, None, -stored:].bool()
        # A padded query sees nothing; let it see itself, so that no row is empty.
        mask = mask | (ahead_TS == 0)[None, None]
    o_BHTD = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=True
    )
    return o_BHTD.transpose(1, 2).contiguous(), None


def _padding(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The mask function registered as "loci": hand the 2-D padding mask on, build nothing."""
    return attention_mask


@dataclass
class _Attached:
    """What to restore on a model when its last cache closes."""

    implementation: str
    hooks: list[Any] = field(default_factory=list)
    caches: int = 0


def _attach(model: PreTrainedModel) -> None:
    held: _Attached | None = model.__dict__.get("_loci")
    if held is None:
        ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _padding)
        held = _Attached(implementation=model.config._attn_implementation)
        model.set_attn_implementation(NAME)
        held.hooks = [
            model.register_forward_pre_hook(_begin, with_kwargs=True),
            model.register_forward_hook(_end, with_kwargs=True),
            *(
                module.register_forward_pre_hook(_show, with_kwargs=True)
                for module in model.modules()
                if hasattr(module, "layer_idx") and hasattr(module, "k_proj")
            ),
        ]
        model.__dict__["_loci"] = held
    held.caches += 1


def _detach(model: PreTrainedModel) -> None:
    held: _Attached = model.__dict__["_loci"]
    held.caches -= 1
    if held.caches == 0:
        for hook in held.hooks:
            hook.remove()
        model.set_attn_implementation(held.implementation)
        del model.__dict__["_loci"]


def _begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    held = _held(kwargs)
    if held is not None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        mask = kwargs.get("attention_mask")
        held.begin(ids, mask if isinstance(mask, Tensor) and mask.dim() == 2 else None)


def _end(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    held = _held(kwargs)
    if held is not None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        embeds = kwargs.get("inputs_embeds")
        tokens = ids if ids is not None else embeds
        held.end(0 if tokens is None else int(tokens.shape[1]))


def _show(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a layer's projections: note what they are given, for methods that keep it."""
    held = _held(kwargs)
    if held is not None and held.wants_hidden:
        states = kwargs.get("hidden_states", args[0] if args else None)
        held.hidden[int(module.layer_idx)] = states  # type: ignore[arg-type, assignment]


def _held(kwargs: dict[str, Any]) -> LociCache | None:
    """Return our cache among a forward's arguments; later transformers renamed the argument."""
    for name in ("cache", "past_key_values"):
        if isinstance(kwargs.get(name), LociCache):
            held: LociCache = kwargs[name]
            return held
    return None


def cache_argument(model: PreTrainedModel) -> str:
    """Return what this transformers calls the argument that takes a cache."""
    has_cache = "cache" in inspect.signature(model.forward).parameters
    return "cache" if has_cache else "past_key_values"


def forward_with(model: PreTrainedModel, ids_BT: Tensor, held: Cache, **arguments: Any) -> Any:
    """Run a forward with a cache, under the name that this transformers gives the argument."""
    return model(ids_BT, **{cache_argument(model): held}, **arguments)


# -- weights ----------------------------------------------------------------------------------


class PackedModule(nn.Module):
    """A linear layer over a packed weight; stands where an `nn.Linear` stood."""

    def __init__(self, weight: Form, bias: Tensor | None) -> None:
        super().__init__()
        self.packed, self.bias = weight, bias
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., in] times the weight, [..., out]."""
        flat = x.reshape(-1, self.in_features)
        out = matmul(flat.float().contiguous(), self.packed)
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)


@dataclass
class CompressedRun:
    """A model whose linear layers are packed; `nbytes` counts them and what is left dense."""

    model: PreTrainedModel
    method: Method
    nbytes: int


@contextmanager
def compressed(
    model: PreTrainedModel,
    method: str | Method,
    *,
    budget: str | int | None = None,
    calibration: Tensor | None = None,
) -> Iterator[CompressedRun]:
    """Replace the linear weights of any transformers causal LM while the body runs.

    Args:
        method: a quantisation method as the catalogue writes it, "groupwise(bits=4)".
        budget: bytes for the linear layers. Methods of several widths, and those that pack in
            levels, share it between layers; one that does not fit is a BudgetError before anything
            changes.
        calibration: token ids [texts, tokens] for methods that look at what flows through the
            model; None lets the model write its own.

    The head stays as it is. On exit, also by an exception, the model is exactly what it was.
    """
    chosen = catalogue.find(method, "quant") if isinstance(method, str) else method
    if not isinstance(chosen, Quant):
        raise ParameterError("this method does not pack weights", value=str(method))
    limit = None if budget is None else read_bytes(budget, "budget")
    head = model.get_output_embeddings()
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }

    def swap(name: str, form: Form) -> PackedModule:
        return PackedModule(form, linears[name].bias)

    forms = packed_forms(
        model, linears, chosen, budget_bytes=limit, calibration=calibration, swap=swap
    )
    ledger = Ledger({"dram": 2**62 if limit is None else limit})
    leases: list[Lease] = []
    try:
        packed = {}
        for name, form in forms.items():
            leases.append(ledger.reserve(name, "dram", form.nbytes, "weights"))
            packed[name] = swap(name, form)
        for name, module in packed.items():
            _put(model, name, module)
        tensors = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in itertools.chain(model.parameters(), model.buffers())
        }
        biases = {
            m.bias.untyped_storage().data_ptr() for m in packed.values() if m.bias is not None
        }
        dense = sum(size for address, size in tensors.items() if address not in biases)
        yield CompressedRun(model, chosen, ledger.used("dram") + dense)
    finally:
        for name, linear in linears.items():
            _put(model, name, linear)
        for lease in leases:
            lease.release()


def _put(model: PreTrainedModel, name: str, module: nn.Module) -> None:
    """Set a submodule by its dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


# -- private ----------------------------------------------------------------------------------


def state_name(name: str) -> str:
    """Return transformers' name of a tensor by ours, "layer.3.k_proj" or "norm"."""
    if name == "norm":
        return "model.norm.weight"
    _, layer, tensor = name.split(".", 2)
    return f"model.layers.{layer}.{_their_name(tensor)}"


def _their_name(key: str) -> str:
    """Return transformers' name of a tensor of a layer block."""
    base, _, suffix = key.partition(".")
    if base in _NORMS:
        return f"{_NORMS[base]}.weight"
    room = "self_attn" if base in _ATTENTION else "mlp"
    return f"{room}.{base}.{suffix or 'weight'}"


def _dense(weight: Form | Tensor) -> Tensor:
    return weight.float().clone() if isinstance(weight, Tensor) else weight.dense()


def _stacked(pack: Pack, names: Sequence[str]) -> Tensor:
    return torch.cat([_dense(next(iter(pack.block(name).values()))) for name in names])

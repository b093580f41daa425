"""A tokenizer.json from the metadata of a GGUF file.

A GGUF names its vocabulary ("gpt2" for byte-level BPE, "llama" for SentencePiece) and how text is
cut before merging (`tokenizer.ggml.pre`). The cuts below are those of llama.cpp's llama-vocab.cpp
for these names, written for the `tokenizers` library. "smollm" cuts every digit off on its own,
as the published SmolLM2 tokenizer does.
"""

from __future__ import annotations

from typing import Any  # JSON values and objects of the tokenizers library

from loci.errors import FormatError, ModelError
from loci.models.gguf import GgufHeader
from loci.models.tokenizer import END_TOKENS

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # llama_token_type

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
}
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")  # a word of the vocabulary stays whole
_PRE = ("gpt-2", "smollm", *_PATTERNS)


def tokenizer_of(header: GgufHeader) -> tuple[str, dict[str, Any], str | None]:
    """Return (tokenizer.json, special ids, chat template) of a GGUF file.

    Raises:
        ModelError: for a kind of vocabulary that we cannot build, by name.
    """
    model = header.need("tokenizer.ggml.model", str)
    tokens: list[str] = header.need("tokenizer.ggml.tokens", list)
    kinds = header.metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise FormatError(
            f"{header.path}: the vocabulary is damaged",
            value=f"{len(tokens)} tokens, {len(set(tokens))} different, {len(kinds)} types",
        )
    if model == "gpt2":
        tokenizer = _byte_level(header, tokens)
    elif model == "llama":
        tokenizer = _sentencepiece(header, tokens, kinds)
    else:
        raise ModelError(
            f"{header.path} has a vocabulary that we cannot read",
            value=model,
            allowed="gpt2, llama",
        )
    from tokenizers import AddedToken

    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        named = [token for token, its_kind in zip(tokens, kinds, strict=True) if its_kind == kind]
        added = [AddedToken(token, normalized=False, special=special) for token in named]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    template = header.metadata.get("tokenizer.chat_template")
    return str(tokenizer.to_str()), _special(header, tokens, kinds, model), template


def _byte_level(header: GgufHeader, tokens: list[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = header.need("tokenizer.ggml.pre", str)
    if pre not in _PRE:
        raise ModelError(
            f"{header.path} cuts text in a way that we do not know",
            value=pre,
            allowed=", ".join(_PRE),
        )
    merges = [_pair(header, merge) for merge in header.need("tokenizer.ggml.merges", list)]
    vocab = {token: id for id, token in enumerate(tokens)}
    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in _WHOLE_WORDS)
    except Exception as error:  # the library raises nothing narrower
        raise FormatError(f"{header.path}: the merges do not fit the vocabulary: {error}") from None
    tokenizer = Tokenizer(model)
    cut: list[Any]
    if pre in _PATTERNS:
        cut = [pre_tokenizers.Split(Regex(_PATTERNS[pre]), behavior="isolated")]
    else:
        cut = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in _PATTERNS)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut, letters])
    if _PATTERNS.get(pre) is _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(header: GgufHeader, tokens: list[str], kinds: list[int]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    gemma = header.architecture == "gemma"
    if gemma:
        # Gemma's runs of spaces stand in the file as spaces, and its scores are not the order of
        # its merges; the order of the vocabulary is.
        tokens = ["▁" * len(t) if t and not t.strip(" ") else t for t in tokens]
        scores = [-float(id) for id in range(len(tokens))]
    else:
        scores = header.need("tokenizer.ggml.scores", list)
    if len(scores) != len(tokens):
        raise FormatError(f"{header.path}: {len(scores)} scores for {len(tokens)} tokens")
    unknown = header.metadata.get("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: id for id, token in enumerate(tokens)},
            merges=_merges(tokens, kinds, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = not gemma and bool(header.metadata.get("tokenizer.ggml.add_space_prefix", True))
    back: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement="▁", prepend_scheme="first" if prefix else "never", split=False
        )
        if prefix:
            back.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(back)
    return tokenizer


def _merges(tokens: list[str], kinds: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """Return the merges that a SentencePiece vocabulary implies, the best score first."""
    known = {token for token, kind in zip(tokens, kinds, strict=True) if kind == _NORMAL}
    order = {token: id for id, token in enumerate(tokens)}
    found: list[tuple[float, int, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        if token not in known:
            continue
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in known and right in known:
                found.append((-score, order[left], order[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _pair(header: GgufHeader, merge: object) -> tuple[str, str]:
    left, space, right = str(merge).partition(" ")
    if not (left and space and right) or " " in right:
        raise FormatError(f"{header.path}: a merge is no pair of tokens", value=merge)
    return left, right


def _special(header: GgufHeader, tokens: list[str], kinds: list[int], model: str) -> dict[str, Any]:
    def id_of(name: str) -> int | None:
        found = header.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if found is not None and not 0 <= found < len(tokens):
            raise FormatError(
                f"{header.path}: the {name} token is not in the vocabulary",
                value=found,
                allowed=f"0 to {len(tokens) - 1}",
            )
        return found

    ends = {id_of("eos"), id_of("eot")} - {None}
    for id, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind == _CONTROL and token in END_TOKENS:
            ends.add(id)
    return {
        "bos": id_of("bos"),
        "eos": sorted(id for id in ends if id is not None),
        "pad": id_of("padding"),
        "unk": id_of("unknown"),
        # SentencePiece models were trained with a begin token unless the file says otherwise.
        "add_bos": bool(header.metadata.get("tokenizer.ggml.add_bos_token", model == "llama")),
    }

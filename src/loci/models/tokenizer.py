"""Text to ids and back, from a tokenizer.json; text of a person never becomes a control token.

Control tokens (special ones such as <|im_start|>) appear only where a chat template or a caller
puts them. In text they are spelled out like any other characters. Decoding goes through bytes, so
a stream never shows half a character.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any  # JSON values

from loci.core.utf8 import plain_text
from loci.errors import FormatError, ModelError
from loci.tiers.blocks import read_table

TOKENIZER_FILE = "tokenizer.json"
_PACK_FILE = "pack.loci"

# Names of tokens that end an answer, in the vocabularies of the models we run.
END_TOKENS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<end_of_turn>",
)
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_letters() -> dict[int, str]:
    """Return GPT-2's alphabet: printable bytes stand for themselves, the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + index) for index, byte in enumerate(rest)
    }


BYTE_LETTERS = _byte_letters()
_LETTER_BYTES = {letter: byte for byte, letter in BYTE_LETTERS.items()}


@dataclass(frozen=True)
class Apart:
    """Content of a message whose parts become tokens apart from each other.

    So the tokens of a part do not depend on what follows it, and a KV cache that was read from it
    stays a prefix. Parts that are ids stand for themselves.
    """

    parts: tuple[str | tuple[int, ...], ...]


class Tokenizer:
    """The tokenizer that lies beside a pack.

    Args:
        folder: holds tokenizer.json and the pack, whose header names the special tokens.

    Attributes:
        vocab: number of tokens.
        eos_ids: tokens that end an answer.
        bos_id: the token that begins a text, or None.
        add_bos: the model expects it before a plain prompt.
        pad_id: the token that fills up, or None.
        chat_template: jinja2 text, or None.
        nbytes: memory of the tables, measured when the model was packed.

    Raises:
        FormatError: if the file is missing, unreadable, or not the one that was packed.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any] | None = None) -> None:
        from tokenizers import Tokenizer as Tables

        if header is None:
            header = read_table(folder / _PACK_FILE)[0]
        path = folder / TOKENIZER_FILE
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise FormatError(
                f"cannot read {path}: {error.strerror}",
                way_out="delete the pack beside it; the next use of the model makes both again",
            ) from error
        wanted = header.get("tokenizer", {}).get("checksum")
        if wanted is not None and wanted != checksum(raw):
            raise FormatError(f"{path} is not the tokenizer that was packed", value=checksum(raw))
        try:
            self._tables = Tables.from_buffer(raw)
        except Exception as error:  # the library raises nothing narrower
            raise FormatError(f"{path} is no tokenizer: {error}") from error
        self._tables.encode_special_tokens = True  # text is text; see `encode`
        self._tables.no_padding()
        self._tables.no_truncation()
        added = self._tables.get_added_tokens_decoder()
        self._control = {token.content: id for id, token in added.items() if token.special}
        self._control_ids = frozenset(self._control.values())
        self._added = {id: token.content for id, token in added.items()}
        self._pieces = _any_of(self._control)
        # Metaspace with prepend_scheme "first" would take every piece for a beginning.
        space = self._tables.pre_tokenizer
        self._space = space if getattr(space, "prepend_scheme", None) == "first" else None
        self._lock = threading.Lock()
        special = header.get("special", {})
        self.vocab = int(self._tables.get_vocab_size())
        self.bos_id: int | None = special.get("bos")
        self.pad_id: int | None = special.get("pad")
        self.add_bos = bool(special.get("add_bos")) and self.bos_id is not None
        self.eos_ids: tuple[int, ...] = tuple(special.get("eos", ()))
        self.chat_template: str | None = header.get("chat_template")
        self.nbytes = int(header.get("spec", {}).get("tokenizer_bytes", 0))
        self._unknown = special.get("unk")
        decoder = json.dumps(_decoder(self._tables))
        self._byte_level = '"ByteLevel"' in decoder
        self._strips_space = '"Strip"' in decoder

    @property
    def control(self) -> dict[str, int]:
        """Control tokens by name."""
        return dict(self._control)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text, without a begin token.

        Args:
            special: names of control tokens in the text mean those tokens. Only for text that no
                person wrote.
        """
        if not special or self._pieces is None:
            return self._plain(text, first=True)
        ids: list[int] = []
        for piece, is_control in self._split(text):
            ids += [self._control[piece]] if is_control else self._plain(piece, first=not ids)
        return ids

    def prompt(self, text: str) -> list[int]:
        """Return the ids of a plain prompt, with the begin token where the model expects it."""
        begin = [self.bos_id] if self.add_bos and self.bos_id is not None else []
        return begin + self.encode(text)

    def count(self, text: str) -> int:
        """Return how many tokens a text takes."""
        return len(self.encode(text))

    def token_bytes(self) -> list[bytes]:
        """Return what each id adds to a text; nothing for control tokens."""
        return [self._bytes_of(id, special=False) for id in range(self.vocab)]

    def bytes_of(self, id: int) -> bytes:
        """Return what one id adds to a text; nothing for a control token."""
        return self._bytes_of(id, special=False)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of ids; control tokens are left out unless `special`."""
        stream = self.stream(special=special)
        return "".join([*(stream.feed(id) for id in ids), stream.finish()])

    def stream(self, *, special: bool = False) -> Stream:
        """Return a decoder that takes one id at a time."""
        return Stream(self, special=special)

    def chat(self, messages: Sequence[Mapping[str, Any]], add_generation: bool = True) -> list[int]:
        """Return the ids of a conversation in the model's own format.

        Control tokens come from the template alone: in roles and contents their names are text.

        Args:
            messages: contents are text, or `Apart`.

        Raises:
            ModelError: if the model has no chat template, or the template refuses the messages.
        """
        mark, edge = _unused_characters(messages)
        parts: list[str | tuple[int, ...]] = []
        guarded = []
        for message in messages:
            content = message.get("content")
            if isinstance(content, Apart):
                numbers = range(len(parts), len(parts) + len(content.parts))
                parts += content.parts
                message = {**message, "content": "".join(f"{edge}{n}{edge}" for n in numbers)}
            guarded.append(_guard(message, self._pieces, mark))
        text = self._render(guarded, add_generation)
        ids: list[int] = []
        for piece, is_control in self._split(text):
            if is_control:
                ids.append(self._control[piece])
                continue
            for index, said in enumerate(piece.replace(mark, "").split(edge)):
                part = parts[int(said)] if index % 2 else said
                ids += self._plain(part, first=not ids) if isinstance(part, str) else part
        return ids

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation: bool = True) -> str:
        """Return a conversation as the template writes it, for people to read."""
        return self._render([dict(message) for message in messages], add_generation)

    # -- private ------------------------------------------------------------------------------

    def _plain(self, text: str, *, first: bool) -> list[int]:
        if not text:
            return []
        plain_text(text, "the text")  # the library's own error names neither place nor value
        with self._standing(first):
            ids: list[int] = self._tables.encode(text, add_special_tokens=False).ids
            forbidden = self._control_ids - {self._unknown}
            if forbidden.isdisjoint(ids):
                return ids
            # A vocabulary may reach a control token through its merges; then letter by letter.
            letters = [self._tables.encode(c, add_special_tokens=False).ids for c in text]
        return [id for found in letters for id in found if id not in forbidden]

    @contextmanager
    def _standing(self, first: bool) -> Iterator[None]:
        """Encode as at the beginning of a text, or as in the middle of one."""
        if self._space is None:
            yield
            return
        with self._lock:
            self._space.prepend_scheme = "first" if first else "never"
            try:
                yield
            finally:
                self._space.prepend_scheme = "first"

    def _split(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield (piece, is it a control token)."""
        if self._pieces is None:
            yield text, False
            return
        for index, piece in enumerate(self._pieces.split(text)):
            if piece:
                yield piece, index % 2 == 1

    def _render(self, messages: list[dict[str, Any]], add_generation: bool) -> str:
        if self.chat_template is None:
            raise ModelError(
                "this model has no chat template",
                way_out="give it a plain prompt, or take an instruct model",
            )
        from jinja2 import TemplateError

        try:
            template = _compiled(self.chat_template)
            return template.render(
                messages=messages,
                add_generation_prompt=add_generation,
                bos_token=self._text_of(self.bos_id),
                eos_token=self._text_of(self.eos_ids[0] if self.eos_ids else None),
            )
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise ModelError(f"the chat template refuses these messages: {error}") from error

    def _text_of(self, id: int | None) -> str:
        return "" if id is None else self._tables.id_to_token(id) or ""

    def _bytes_of(self, id: int, special: bool) -> bytes:
        """Return what one token adds to the text."""
        if id in self._added:
            hidden = id in self._control_ids and not special
            return b"" if hidden else self._added[id].encode()
        token = self._tables.id_to_token(id)
        if token is None:
            return b""
        if self._byte_level:
            return b"".join(
                bytes((_LETTER_BYTES[c],)) if c in _LETTER_BYTES else c.encode() for c in token
            )
        byte = _BYTE_TOKEN.fullmatch(token)
        return bytes((int(byte[1], 16),)) if byte else token.replace("▁", " ").encode()


class Stream:
    """Ids in, text out; an unfinished character waits for the ids that complete it."""

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = tokenizer._strips_space

    def feed(self, id: int) -> str:
        """Return the text that this id completes; may be empty."""
        raw = self._tokenizer._bytes_of(int(id), self._special)
        if self._strip and raw:
            raw, self._strip = raw.removeprefix(b" "), False
        return self._decoder.decode(raw)

    def finish(self) -> str:
        """Return what is left; a character that was never completed becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)


def checksum(raw: bytes) -> str:
    """Return the checksum that a pack's header holds of its tokenizer.json."""
    return f"blake2b:{hashlib.blake2b(raw, digest_size=16).hexdigest()}"


def _decoder(tables: Any) -> Any:
    return None if tables.decoder is None else json.loads(tables.decoder.__getstate__())


def _any_of(names: Mapping[str, int]) -> re.Pattern[str] | None:
    """Return a pattern that finds any of the names, the longest first."""
    if not names:
        return None
    ordered = sorted(names, key=len, reverse=True)
    return re.compile("(" + "|".join(re.escape(name) for name in ordered) + ")")


def _unused_characters(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return two private-use characters that stand nowhere in the messages."""
    text = json.dumps([dict(message) for message in messages], ensure_ascii=False, default=str)
    unused = (chr(c) for c in range(0xE000, 0xF900) if chr(c) not in text)
    return next(unused), next(unused)


def _guard(value: Any, names: re.Pattern[str] | None, mark: str) -> Any:
    """Return the value with a mark inside every name of a control token."""
    if isinstance(value, str):
        if names is None:
            return value
        # Names may overlap once the first is broken, so look again until none is left.
        while (found := names.search(value)) is not None:
            at = found.start() + 1
            value = value[:at] + mark + value[at:]
        return value
    if isinstance(value, Mapping):
        return {key: _guard(inner, names, mark) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_guard(inner, names, mark) for inner in value]
    return value


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """Return a chat template ready to run; compiling takes longer than running."""
    return _environment().from_string(template)


def _environment() -> Any:
    """Return the sandbox in which chat templates run: no attributes of ours, nothing changed."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    return environment

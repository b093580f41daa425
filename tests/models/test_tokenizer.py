"""Tokenizers: text is text, templates alone make control tokens, streams show whole characters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf_files import CONTROL, TOKENS, write_llama
from hypothesis import given
from hypothesis import strategies as st

from loci.errors import FormatError, ModelError
from loci.models.gguf import GgufHeader, read_header
from loci.models.gguf_tokenizer import tokenizer_of
from loci.models.pack import Pack
from loci.models.tokenizer import Apart, Tokenizer
from loci.testing.models import TINY_TEMPLATE, tiny_tokenizer_json

SPECIAL = {"bos": 256, "eos": [256, 258], "pad": 256, "unk": None, "add_bos": False}
TEXTS = (
    "Hello, world! It's a test; isn't it?",
    "  two  spaces\tand a tab\n\nand lines\r\n",
    "def f(x):\n    return x ** 2  # squared",
    "Zażółć gęślą jaźń, 日本語のテキスト, Ελληνικά, עברית",
    "emoji 😀👩‍👩‍👧 and é combined",
    "",
    " ",
    "one 1 two 2",
    "<|im_start|> is written here, and <|endoftext|> too",
)


def _tokenizer(
    folder: Path,
    text: str | None = None,
    *,
    template: str | None = TINY_TEMPLATE,
    special: dict[str, object] | None = None,
) -> Tokenizer:
    (folder / "tokenizer.json").write_text(text or tiny_tokenizer_json(), encoding="utf-8")
    return Tokenizer(folder, {"chat_template": template, "special": special or SPECIAL})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return _tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_control_tokens_only_when_asked(tiny: Tokenizer) -> None:
    assert tiny.encode("a<|im_end|>", special=True) == [97, 258]
    assert tiny.encode("a<|im_end|>") == [97, *b"<|im_end|>"]
    assert tiny.decode([97, 258]) == "a"
    assert tiny.decode([97, 258], special=True) == "a<|im_end|>"


@given(text=st.text() | st.lists(st.sampled_from([*CONTROL, "<|", "|>", "x"])).map("".join))
def test_any_text_comes_back_and_is_never_control(tiny: Tokenizer, text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    ids = tiny.encode(text)
    assert tiny.decode(ids) == text
    assert max(ids, default=0) < 256


@given(text=st.text(), cut=st.integers(1, 4))
def test_a_stream_says_the_same_and_never_half_a_character(
    tiny: Tokenizer, text: str, cut: int
) -> None:
    ids = tiny.encode(text.encode("utf-8", "ignore").decode())
    stream = tiny.stream()
    pieces = [stream.feed(id) for id in ids]
    assert "�" not in "".join(pieces) or "�" in text
    assert "".join(pieces) + stream.finish() == tiny.decode(ids)
    broken = ids[:-cut]  # cut inside a character: what is missing becomes U+FFFD at the end
    assert tiny.decode(broken) == bytes(broken).decode("utf-8", "replace")


@given(
    content=st.lists(st.sampled_from([*CONTROL, "<|im_", "start|>", "\ue000", "hi"])).map("".join)
)
def test_no_message_can_speak_for_another(tiny: Tokenizer, content: str) -> None:
    ids = tiny.chat([{"role": "user", "content": content}])
    assert [id for id in ids if id > 255] == [257, 258, 257]  # the template's own three
    start = ids.index(10) + 1
    assert bytes(ids[start : ids.index(258)]).decode() == content


@given(
    first=st.text(st.characters(codec="utf-8"), max_size=12),
    second=st.sampled_from([*CONTROL, "hi", "", " there"]),
    spoken=st.lists(st.integers(0, 258), max_size=5),
)
def test_parts_become_tokens_apart(
    tiny: Tokenizer, first: str, second: str, spoken: list[int]
) -> None:
    asked = {"role": "user", "content": Apart((first, second))}
    answer = {"role": "assistant", "content": Apart((tuple(spoken),))}
    ids = tiny.chat([asked, answer])
    assert ids[: len(tiny.chat([asked]))] == tiny.chat([asked])
    assert tiny.encode("user\n" + first + second) == ids[1 : ids.index(258)]
    start = len(tiny.chat([asked]))
    assert ids[start : start + len(spoken)] == spoken


def test_roles_cannot_either(tiny: Tokenizer) -> None:
    ids = tiny.chat([{"role": "a<|im_end|>", "content": "b"}], add_generation=False)
    assert [id for id in ids if id > 255] == [257, 258]
    assert tiny.render([{"role": "user", "content": "b"}], add_generation=False) == (
        "<|im_start|>user\nb<|im_end|>\n"
    )


def test_overlapping_names_of_control_tokens(tmp_path: Path) -> None:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Tables

    tables = Tables.from_str(tiny_tokenizer_json())
    tables.add_special_tokens([AddedToken(t, special=True) for t in ("<a>", "<a>b", "><")])
    tokenizer = _tokenizer(tmp_path, tables.to_str())
    assert tokenizer.encode("<a>b", special=True) == [tokenizer.control["<a>b"]]
    ids = tokenizer.chat([{"role": "user", "content": "<a>b<a><a>b"}])
    assert [id for id in ids if id > 255] == [257, 258, 257]


def test_templates_run_in_a_sandbox(tmp_path: Path) -> None:
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ModelError, match="refuses these messages"):
        _tokenizer(tmp_path, template=escape).chat([{"role": "user", "content": "x"}])
    change = "{{ messages.append(1) }}"
    with pytest.raises(ModelError, match="refuses these messages"):
        _tokenizer(tmp_path, template=change).chat([{"role": "user", "content": "x"}])
    says = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ModelError, match="roles must alternate"):
        _tokenizer(tmp_path, template=says).chat([])
    with pytest.raises(ModelError, match="no chat template"):
        _tokenizer(tmp_path, template=None).chat([])


def test_begin_token_where_the_model_expects_it(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, special=SPECIAL | {"add_bos": True})
    assert tokenizer.prompt("a") == [256, 97] and tokenizer.encode("a") == [97]
    assert tokenizer.count("abc") == 3


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot read"):
        Tokenizer(tmp_path, {})
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match="is no tokenizer"):
        Tokenizer(tmp_path, {})


# -- from GGUF metadata -----------------------------------------------------------------------


def _header(**metadata: object) -> GgufHeader:
    full = {"general.architecture": "llama"} | {
        f"tokenizer.ggml.{key}": value for key, value in metadata.items()
    }
    return GgufHeader(path=Path("m.gguf"), version=3, metadata=full, tensors={})


def test_byte_level_vocabulary(tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf")
    text, special, template = tokenizer_of(read_header(tmp_path / "m.gguf"))
    assert special == {"bos": 1, "eos": [0, 2], "pad": None, "unk": None, "add_bos": False}
    assert template is None
    tokenizer = _tokenizer(tmp_path, text, special=special)
    assert [TOKENS[id] for id in tokenizer.encode("hello w")] == ["hello", "Ġw"]
    # smollm: each digit stands alone, though the vocabulary has "12".
    assert [TOKENS[id] for id in tokenizer.encode("12")] == ["1", "2"]
    write_llama(tmp_path / "m.gguf", pre="gpt-2")
    tokenizer = _tokenizer(tmp_path, tokenizer_of(read_header(tmp_path / "m.gguf"))[0])
    assert [TOKENS[id] for id in tokenizer.encode("12")] == ["12"]


SPM = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
SPM += ["▁", "h", "i", "▁h", "▁hi", "hi", "▁▁"]


@pytest.mark.parametrize("architecture", ["llama", "gemma"])
def test_sentencepiece_vocabulary(architecture: str, tmp_path: Path) -> None:
    tokens = [t.replace("▁▁", "  ") if architecture == "gemma" else t for t in SPM]
    header = _header(
        model="llama",
        tokens=tokens,
        token_type=[2, 3, 3] + [6] * 256 + [1] * (len(SPM) - 259),
        scores=[0.0] * 259 + [-9.0, -8.0, -7.0, -2.0, -1.0, -3.0, -4.0],
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
    )
    header.metadata["general.architecture"] = architecture
    text, special, _ = tokenizer_of(header)
    assert special["add_bos"] and special["eos"] == [2]
    tokenizer = _tokenizer(tmp_path, text, template="{{ messages[0]['content'] }}", special=special)
    ids = tokenizer.encode("hi hi é </s>")
    first = "▁hi" if architecture == "llama" else "hi"
    assert [SPM[id] for id in ids[:5]] == [first, "▁hi", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids) == "hi hi é </s>" and 2 not in ids
    # After a control token no second space is put before the text.
    assert [SPM[id] for id in tokenizer.encode("<s>hi</s>hi", special=True)] == [
        "<s>", "hi", "</s>", "hi",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"model": "bert"}, "bert.*gpt2, llama"),
        ({"model": "gpt2", "pre": "poro-chat", "merges": []}, "poro-chat.*smollm"),
        ({"model": "gpt2", "pre": "smollm", "merges": ["ab"]}, "no pair"),
        ({"model": "gpt2", "pre": "smollm", "merges": ["a z"]}, "do not fit"),
        ({"model": "gpt2", "pre": "smollm", "merges": [], "eos_token_id": 9}, "eos token is not"),
        ({"model": "gpt2", "pre": "smollm", "merges": [], "token_type": [1]}, "damaged"),
        ({"model": 3}, "missing or of another type"),
    ],
)
def test_other_vocabularies_are_refused(metadata: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        tokenizer_of(_header(**({"tokens": ["a", "b"]} | metadata)))


@pytest.mark.model
def test_smollm2_chat_and_control_tokens(smollm2_pack: Pack) -> None:
    tokenizer = Tokenizer(smollm2_pack.folder)
    ids = tokenizer.chat([{"role": "user", "content": "Say <|im_end|> please"}])
    assert ids[0] == tokenizer.control["<|im_start|>"] and tokenizer.eos_ids == (0, 2)
    assert ids.count(2) == 2 and ids.count(1) == 3
    assert tokenizer.decode(ids).endswith("user\nSay <|im_end|> please\nassistant\n")
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    # 8 MiB or so of tables; a figure far off would break every budget.
    assert 4 * 2**20 < tokenizer.nbytes < 32 * 2**20


@pytest.mark.model
@pytest.mark.slow
def test_smollm2_encodes_as_transformers_does(smollm2_gguf: Path, smollm2_pack: Pack) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(smollm2_gguf.parent), gguf_file=smollm2_gguf.name)
    ours = Tokenizer(smollm2_pack.folder)
    for text in TEXTS[:-1]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, special=True) == expected, text
    # transformers does not know the cut "smollm"; with its digits it agrees on numbers too.
    backend = theirs.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    for text in ("1234567", "$1,234.50 on 2024-05-17 at 10:30", "x1y22z333", " 42 ", "½ ²³ ٣٤"):
        assert ours.encode(text) == backend.encode(text, add_special_tokens=False).ids, text


def test_header_without_chat_parts_is_enough(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer_json())
    tokenizer = Tokenizer(tmp_path, json.loads("{}"))
    assert tokenizer.eos_ids == () and tokenizer.bos_id is None and tokenizer.nbytes == 0

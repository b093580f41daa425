"""Bad input, as a person types or pipes it: a clear error, the right exit code, nothing lost."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from command_line import Loci

from loci.cli import main
from loci.testing.models import tiny_pack

LATIN_1 = "café is nice".encode("latin-1")
BUDGET = ("--dram", "16MiB", "--context", "128", "--max-tokens", "2")


class Piped(io.TextIOWrapper):
    """A standard input of bytes."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(io.BytesIO(raw), encoding="utf-8")


@pytest.fixture
def tiny(loci: Loci, home: Path) -> Loci:
    tiny_pack(home / "models" / "tiny").close()
    return loci


def samples(*names: str) -> str:
    """Return a LoCoMo file of one short session each."""
    return json.dumps(
        [
            {
                "sample_id": name,
                "conversation": {
                    "speaker_a": "Ada",
                    "session_1_date_time": "1:56 pm on 8 May, 2023",
                    "session_1": [
                        {"speaker": "Ada", "dia_id": "D1:1", "text": f"I like {name} a lot."}
                    ],
                },
            }
            for name in names
        ]
    )


@pytest.mark.parametrize(
    ("size", "hint"),
    [
        ("-5MiB", "cannot be negative"),
        ("5XiB", "unknown unit 'XiB'"),
        ("1.5", "has no unit"),
        ("", "write a number and a unit"),
        ("nan", "write a number and a unit"),
    ],
)
@pytest.mark.parametrize("option", ["--dram", "--disk", "--kv", "--process"])
def test_a_size_that_is_none_is_wrong_usage(
    size: str, hint: str, option: str, tiny: Loci, home: Path
) -> None:
    if option == "--kv" and size in ("", "nan"):
        pytest.skip("that is read as a chain of methods")
    done = tiny("plan", "tiny", f"{option}={size}")
    assert (done.code, done.out) == (2, "")
    assert hint in done.err and option in done.err


@pytest.mark.parametrize("size", ["0", "3MiB"])
def test_a_budget_too_small_names_the_gap_and_ways_that_work(
    size: str, loci: Loci, home: Path
) -> None:
    sizes = {"layers": 12, "hidden": 256, "ffn": 704, "heads": 8, "kv_heads": 4, "head_dim": 32}
    tiny_pack(home / "models" / "small", **sizes).close()  # some MiB, as sizes are typed
    done = loci("plan", "small", "--dram", size, "--context", "256", "--new-tokens", "8")
    assert (done.code, done.out) == (3, "")
    assert "short" in done.err
    lines = [line for line in done.err.splitlines() if "It fits with" in line or "  or  " in line]
    ways = [line.split("fits with", 1)[-1].split("or  ", 1)[-1] for line in lines]
    assert len(ways) == 3
    for way in ways:
        flags = way.split("   ")[0].split()
        given = {"--dram": size, "--context": "256"} | dict(
            zip(flags[::2], flags[1::2], strict=True)
        )
        options = [word for pair in given.items() for word in pair]
        assert loci("plan", "small", *options, "--new-tokens", "8").code == 0, way
        if "weights cut" not in way:  # they are taken apart first; test_cli_weights runs them
            assert loci("run", "small", "Hello", *options, "--max-tokens", "8").code == 0, way


@pytest.mark.parametrize("chain", ["bpf", "bfp(bit=4)", "bfp(bits=99)", "bfp(", "bfp | snapkv"])
def test_a_chain_that_is_none_is_refused_by_name(chain: str, tiny: Loci) -> None:
    done = tiny("plan", "tiny", "--kv", chain)
    assert done.code in (1, 2) and done.out == ""
    assert "bfp" in done.err


def test_no_model_was_named(tiny: Loci) -> None:
    done = tiny("plan", "")
    assert (done.code, done.out) == (1, "")
    assert "no model was named" in done.err and "tiny" in done.err


def test_a_gpu_that_is_not_used_is_said(tiny: Loci) -> None:
    assert "--gpu is not used" in tiny("plan", "tiny", "--gpu", "1GiB").err
    assert "--gpu is not used" in tiny("run", "tiny", "Hi", *BUDGET, "--gpu", "1GiB").err


def test_a_prompt_that_is_not_utf8_is_refused(
    tiny: Loci, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(LATIN_1)
    done = tiny("run", "tiny", "--prompt-file", str(file), *BUDGET)
    assert (done.code, done.out) == (2, "")
    assert "prompt.txt is not UTF-8 at byte 3" in done.err and "iconv" in done.err
    argument = LATIN_1.decode("utf-8", "surrogateescape")  # as Python gives it to a program
    done = tiny("run", "tiny", argument, *BUDGET)
    assert (done.code, done.out) == (2, "")
    assert "not UTF-8 at character 3; got b'\\xe9'" in done.err
    monkeypatch.setattr(sys, "stdin", Piped(LATIN_1))
    assert main(["run", "tiny", *BUDGET]) == 2
    assert "what is piped in is not UTF-8 at byte 3" in capsys.readouterr().err


def test_an_empty_prompt_is_refused_and_one_with_nul_is_answered(tiny: Loci) -> None:
    for prompt in ("", "  \n"):
        assert tiny("run", "tiny", prompt, *BUDGET).code == 2
    assert tiny("run", "tiny", "a\0b", *BUDGET).code == 0


def test_a_bad_line_does_not_end_a_conversation(
    tiny: Loci, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "chat.db")
    lines = [b"I live in Berlin.", LATIN_1, b"word " * 200, b"I like tea."]
    monkeypatch.setattr(sys, "stdin", Piped(b"\n".join(lines)))
    capsys.readouterr()
    assert main(["chat", "tiny", *BUDGET, "--memory", file]) == 0
    said = capsys.readouterr().err
    assert "not UTF-8" in said and "ContextError" in said
    turns = tiny("memory", "list", "--file", file, "--kind", "turn", "--json").json
    heard = [turn["content"] for turn in reversed(turns) if turn["role"] == "user"]
    assert heard == ["I live in Berlin.", "I like tea."]


def test_messages_that_cannot_be_kept_are_refused_and_the_rest_stays(
    loci: Loci, tmp_path: Path
) -> None:
    assert loci("memory", "add", "I like tea.").code == 0
    argument = LATIN_1.decode("utf-8", "surrogateescape")
    bad = tmp_path / "bad.json"
    bad.write_bytes(b'[{"role": "user", "content": "' + LATIN_1 + b'"}]')
    for arguments, hint in (
        (["memory", "add", "  "], "empty"),
        (["memory", "add", argument], "not UTF-8 at character 3"),
        (["memory", "add", "x" * (2**20 + 1)], "1 too many"),
        (["memory", "add", "--messages", str(bad)], "bad.json is not UTF-8 at byte"),
    ):
        done = loci(*arguments)
        assert (done.code, done.out) == (2, ""), arguments
        assert hint in done.err
    wrong = '[{"role": "user", "content": "fine"}, {"role": "user", "contnt": "x"}]'
    done = loci("memory", "add", "--messages", "-", stdin=wrong)
    assert done.code == 2 and "did you mean 'content'?" in done.err
    assert loci("memory", "add", "nul \0 inside", "--no-facts").code == 0
    kept = loci("memory", "list", "--kind", "turn", "--json").json
    assert [turn["content"] for turn in kept] == ["nul \0 inside", "I like tea."]


def test_an_empty_edit_or_question_is_refused(loci: Loci) -> None:
    added = loci("memory", "add", "The wifi is called barn.", "--as-note", "--json").json
    [item] = added["items"]
    done = loci("memory", "edit", item["id"], " ")
    assert done.code == 2 and "empty" in done.err
    assert loci("memory", "show", item["id"], "--json").json["text"] == item["text"]
    done = loci("memory", "search", "")
    assert done.code == 2 and "the query is empty" in done.err


def test_an_import_that_cannot_be_read_is_refused(loci: Loci, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_bytes(b'{"a": "' + LATIN_1 + b'"}')
    done = loci("memory", "import", str(file))
    assert done.code == 1 and "not UTF-8" in done.err and "iconv" in done.err
    file.write_text("[1, 2")
    assert "not JSON" in loci("memory", "import", str(file)).err
    file.write_text("hello")
    assert "no format that" in loci("memory", "import", str(file)).err


def test_one_conversation_of_many_is_imported(loci: Loci, tmp_path: Path) -> None:
    file = tmp_path / "talks.json"
    file.write_text(samples("tea", "coffee"))
    done = loci("memory", "import", str(file), "--conversation", "teas")
    assert done.code == 2 and "did you mean 'tea'?" in done.err
    done = loci("memory", "import", str(file), "--conversation", "tea", "--json")
    assert done.json == {"new": 1, "users": ["tea"]}
    assert "there is something of tea" in loci("memory", "list").err
    found = loci("memory", "search", "who likes what?", "--user", "tea", "--lexical", "--json").json
    assert found["hits"][0]["sources"][0]["time"].startswith("2023-05-08T13:56")
    done = loci("memory", "import", str(file))
    assert "1 record new" in done.out and "coffee, tea" in done.err
    done = loci("memory", "import", str(file), "--user", "ada", "--json")
    assert done.json["new"] == 2
    export = tmp_path / "tea.jsonl"
    assert loci("memory", "export", str(export), "--user", "tea").code == 0
    done = loci("memory", "import", str(export), "--conversation", "tea")
    assert done.code == 2 and "only a LoCoMo file" in done.err


def test_an_export_never_replaces_a_device(loci: Loci, tmp_path: Path) -> None:
    assert loci("memory", "add", "I like tea.").code == 0
    (tmp_path / "null").symlink_to("/dev/null")
    done = loci("memory", "export", str(tmp_path / "null"))
    assert done.code == 2 and "file of its own" in done.err
    assert (tmp_path / "null").is_symlink()


def test_results_that_cannot_be_written_fail_the_command(home: Path) -> None:
    import subprocess

    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "loci", "config", "show"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "loci: [Errno 28] No space left on device\n"


def test_no_methods_for_the_cache_is_a_chain_and_no_size(tiny: Loci) -> None:
    assert tiny("plan", "tiny", "--dram", "16MiB", "--context", "128", "--kv", "").code == 0

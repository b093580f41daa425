"""plan, run, chat, show, ls, methods, bench over a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Loci

from loci.cli import doctor
from loci.cli.app import root
from loci.cli.docs import pages
from loci.testing.models import tiny_pack

BUDGET = ("--dram", "16MiB", "--context", "128")


@pytest.fixture
def tiny(loci: Loci, home: Path) -> Loci:
    """Return a command line whose models folder holds one tiny model."""
    tiny_pack(home / "models" / "tiny").close()
    return loci


def test_plan_prints_few_lines_and_json_is_the_whole(tiny: Loci) -> None:
    done = tiny("plan", "tiny", *BUDGET)
    assert done.code == 0
    assert done.out.startswith("tiny ")
    assert len(done.out.splitlines()) <= 8
    found = tiny("plan", "tiny", *BUDGET, "--json").json
    assert (found["format"], found["model"]) == ("loci-plan", "tiny")
    assert found["budget"]["dram"] == 16 * 2**20
    assert 0 < found["predicted"]["dram"] <= 16 * 2**20
    assert len(tiny("plan", "tiny", *BUDGET, "--explain").out) > len(done.out)


def test_what_does_not_fit_is_3_with_a_way_out(tiny: Loci) -> None:
    done = tiny("plan", "tiny", "--dram", "64KiB", "--context", "128")
    assert done.code == 3
    assert done.out == ""
    assert done.err.startswith("BudgetError: ")
    assert "short" in done.err


def test_kv_is_a_size_or_a_chain(tiny: Loci) -> None:
    chained = tiny("plan", "tiny", *BUDGET, "--kv", "bfp(bits=8, block=16)", "--json")
    assert chained.code == 0
    assert "bfp" in chained.json["kv"]
    capped = tiny("plan", "tiny", *BUDGET, "--kv", "4MiB", "--json")
    assert capped.json["budget"]["kv"] == 4 * 2**20
    assert tiny("plan", "tiny", *BUDGET, "--kv", "bpf").code == 2
    assert tiny("plan", "tiny", *BUDGET, "--kv", "4Meh").code == 2


def test_the_configuration_fills_in_the_budget(tiny: Loci) -> None:
    assert tiny("config", "set", "dram", "16MiB").code == 0
    assert tiny("config", "set", "context", "128").code == 0
    found = tiny("plan", "tiny", "--json").json
    assert found["budget"]["dram"] == 16 * 2**20
    assert found["workload"]["context"] == 128


def test_an_unknown_model_says_what_to_do(tiny: Loci) -> None:
    done = tiny("plan", "tinny", *BUDGET)
    assert done.code == 1
    assert "loci" in done.err


def test_run_gives_the_answer_and_its_account(tiny: Loci) -> None:
    done = tiny("run", "tiny", "Hello", *BUDGET, "--max-tokens", "4")
    assert done.code == 0
    assert "tokens/s" in done.err and "tokens/s" not in done.out
    found = tiny("run", "tiny", "Hello", *BUDGET, "--max-tokens", "4", "--json").json
    assert done.out == found["answer"] + "\n"
    assert found["bytes"]["measured"]["dram"] <= found["bytes"]["predicted"]["dram"] * 1.05
    for key in ("runtime_bytes", "tokens_per_s", "first_token_s", "plan"):
        assert key in found
    assert "moved" in found["bytes"]


def test_a_prompt_is_piped_or_read_from_a_file(tiny: Loci, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("Hello")
    options = (*BUDGET, "--max-tokens", "4")
    given = tiny("run", "tiny", "Hello", *options)
    assert tiny("run", "tiny", *options, stdin="Hello").out == given.out
    assert tiny("run", "tiny", *options, "--prompt-file", str(file)).out == given.out
    assert tiny("run", "tiny", "Hello", *options, "--prompt-file", str(file)).code == 2
    assert tiny("run", "tiny", *options, stdin=" \n").code == 2


def test_a_seed_draws_the_same_answer(tiny: Loci) -> None:
    options = (*BUDGET, "--max-tokens", "6", "--temperature", "1.5", "--seed", "3")
    assert tiny("run", "tiny", "Hi", *options).out == tiny("run", "tiny", "Hi", *options).out
    assert tiny("run", "tiny", "Hi", *BUDGET, "--temperature", "-1").code == 2


def test_a_prompt_longer_than_the_context_is_refused(tiny: Loci) -> None:
    done = tiny("run", "tiny", "Hello " * 30, *BUDGET, "--max-tokens", "4")
    assert done.code == 1
    assert "plan with --context 203" in done.err
    again = (*BUDGET[:2], "--context", "203", "--max-tokens", "4")
    assert tiny("run", "tiny", "Hello " * 30, *again).code == 0
    done = tiny("run", "tiny", "Hello " * 100, *BUDGET)
    assert done.code == 1
    assert "at most 512 tokens" in done.err and "plan with" not in done.err


def test_chat_answers_each_line_and_remembers(tiny: Loci, tmp_path: Path) -> None:
    file = str(tmp_path / "chat.db")
    options = ("--dram", "16MiB", "--context", "256", "--max-tokens", "3")
    said = "I live in Berlin.\n\nI like tea.\n/exit\nnever read\n"
    done = tiny("chat", "tiny", *options, "--memory", file, stdin=said)
    assert done.code == 0
    turns = tiny("memory", "list", "--file", file, "--kind", "turn", "--json").json
    assert [t["role"] for t in reversed(turns)].count("user") == 2
    assert "never read" not in json.dumps(turns)


def test_ls_and_show(tiny: Loci) -> None:
    [found] = tiny("ls", "--json").json
    assert (found["name"], found["why_not"]) == ("tiny", None)
    assert "tiny" in tiny("ls").out
    shown = tiny("show", "tiny", "--json").json
    assert shown["spec"]["layers"] == 2
    assert shown["bytes"] == sum(block["bytes"] for block in shown["blocks"])
    assert "2 layers" in tiny("show", "tiny").out


def test_no_model_is_said_on_stderr(loci: Loci) -> None:
    done = loci("ls")
    assert (done.code, done.out) == (0, "")
    assert "loci pull" in done.err


def test_pull_refuses_what_it_does_not_know(loci: Loci) -> None:
    done = loci("pull", "smolm2")
    assert done.code == 1
    assert "did you mean 'smollm2'" in done.err
    assert loci("pull").code == 2


def test_doctor_says_what_is_here(loci: Loci) -> None:
    found = loci("doctor", "--json").json
    assert found["cores"] >= 1
    assert found["dram"]["total"] > 0
    assert found["problems"] == []
    said = loci("doctor").out
    assert "not in the budget" in said
    if found["kernels"] is None:
        assert "torch does the work, slower" in said
    else:
        assert f"compiled; {found['kernels']['simd']}" in said


def test_doctor_says_what_is_missing_and_no_password(
    loci: Loci, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCI_MEMORY", "postgresql://ada:secret@host/db")
    has = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "usearch" else has(name))
    said = loci("doctor").out
    assert "postgresql://ada@host/db" in said and "secret" not in said
    assert "pip install 'loci[ann]' indexes above 100,000" in said
    assert loci("doctor", "--json").json["vector_index"] is False
    for command in (("show",), ("show", "--json"), ("get", "memory_file")):
        assert "ada@host" in (done := loci("config", *command)).out and "secret" not in done.out


def test_methods_are_listed_and_shown(loci: Loci) -> None:
    found = {entry["name"]: entry for entry in loci("methods", "--json").json}
    assert found["snapkv"]["paper"] == "arXiv:2404.14469"
    shown = loci("methods", "snapkv", "--json").json
    assert shown == found["snapkv"]
    assert "window" in loci("methods", "snapkv").out
    done = loci("methods", "snapvk")
    assert done.code == 2
    assert "did you mean 'snapkv'" in done.err


def keep_result(home: Path, number: int, value: float) -> None:
    folder = home / "kept" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    data = {"format": "loci-bench", "version": 1, "suite": "speed", "ratio": {"decode": value}}
    (folder / f"speed-{number}.json").write_text(json.dumps(data))


def test_bench_results_are_shown_and_compared(
    loci: Loci, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCI_CACHE", str(home / "kept"))
    names = {suite["name"] for suite in loci("bench", "show", "--json").json}
    assert "speed" in names
    assert loci("bench", "show", "speed").code == 2
    keep_result(home, 9, 2.0)
    assert loci("bench", "compare", "speed").code == 2
    keep_result(home, 10, 3.0)
    assert loci("bench", "show", "speed", "--json").json["ratio"] == {"decode": 3.0}
    [row] = loci("bench", "compare", "speed", "--json").json["numbers"]
    assert row == {"key": "ratio.decode", "first": 2.0, "second": 3.0, "ratio": 1.5}
    assert "ratio.decode" in loci("bench", "compare", "speed").out
    bad = home / "bad.json"
    bad.write_text("[]")
    assert loci("bench", "compare", str(bad), "speed").code == 1
    assert loci("bench", "show", "spede").code == 2


def test_every_command_is_in_the_reference() -> None:
    page = pages()["cli.md"]
    for name in root.list_commands(None):  # type: ignore[arg-type]
        assert f"## loci {name}\n" in page

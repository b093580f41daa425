"""Weights that are cut to fit, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Loci

from loci.testing.models import tiny_pack

SIZES = {"layers": 2, "hidden": 128, "ffn": 256, "heads": 8, "kv_heads": 4, "head_dim": 16}
BUDGET = ("--dram", "16MiB", "--context", "128", "--max-tokens", "4")


@pytest.fixture(autouse=True)
def small(home: Path) -> None:
    tiny_pack(home / "models" / "small", bits=None, **SIZES).close()


def test_prepare_makes_a_stack_once_and_says_what_it_loses(loci: Loci) -> None:
    done = loci("methods", "prepare", "bitstack", "--model", "small", "--json")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert Path(made["path"]).is_file() and made["kl"][-1] < made["kl"][0]
    again = loci("methods", "prepare", "bitstack", "--model", "small")
    assert "nats a token" in again.out and made["path"] in again.err
    refused = loci("methods", "prepare", "fcfs", "--model", "small")
    assert refused.code == 1 and "nothing to prepare" in refused.err
    refused = loci("methods", "prepare", "bitstack", "--model", "small", "--train", "3")
    assert refused.code == 2 and "not trained" in refused.err
    assert loci("methods", "bitstack").code == 0
    assert "did you mean 'bitstack'" in loci("methods", "bitstak").err


def test_run_and_chat_within_fewer_bytes_than_the_weights_have(loci: Loci) -> None:
    done = loci("run", "small", "hello", "--weights", "400KiB", *BUDGET, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["plan"]["weights"] == "stacked"
    assert found["bytes"]["predicted"]["dram"] >= found["bytes"]["ledger"]["dram"]
    talk = "/weights\nhello\n/weights 330KiB\nhello\n/weights 9KiB\n/weights 1MiB 2MiB\n/exit\n"
    done = loci("chat", "small", "--weights", "400KiB", *BUDGET, stdin=talk)
    assert done.code == 0, done.err
    assert done.err.count("weights take") == 2
    assert "need at least" in done.err and "one size is given" in done.err
    refused = loci("plan", "small", "--weights", "9KiB", "--dram", "16MiB", "--context", "128")
    assert refused.code == 3
    forced = loci("plan", "small", "--quant", "bitstack", "--dram", "16MiB", "--context", "128")
    assert "cut to fit" in forced.out


def test_a_method_makes_a_model_of_its_own_which_runs_like_any(loci: Loci) -> None:
    done = loci("methods", "prepare", "gptq(bits=3)", "--model", "small", "--json")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert made["name"].startswith("small+gptq-") and made["kl"] > 0
    assert made["name"] in loci("ls").out
    planned = loci("plan", made["name"], "--dram", "16MiB", "--context", "128")
    assert "packed by gptq(bits=3)" in planned.out
    answered = loci("run", made["name"], "hello", *BUDGET, "--json")
    assert answered.code == 0, answered.err
    found = json.loads(answered.out)
    assert found["plan"]["weights"] == "resident"
    weights = sum(row["nbytes"] for row in found["held"] if row["kind"] == "weights")
    assert weights == made["bytes"]
    again = json.loads(loci("methods", "prepare", "gptq(bits=3)", "--model", "small", "--json").out)
    assert again == made


def test_a_model_of_so_many_bytes(loci: Loci) -> None:
    size = ("--weights", "500KiB")
    done = loci("methods", "prepare", "gptq", "--model", "small", *size, "--json")
    assert done.code == 0, done.err
    assert 450 * 1024 < json.loads(done.out)["bytes"] <= 500 * 1024
    assert loci("methods", "prepare", "gptq", "--model", "small", "--weights", "9KiB").code == 3
    trained = loci("methods", "prepare", "int21(rank=2)", "--model", "small", "--train", "2")
    assert trained.code == 0 and "small+int21-" in trained.out, trained.err
    refused = loci("methods", "prepare", "gptq", "--model", "small", "--train", "2")
    assert refused.code == 2 and "no corrections to train" in refused.err

"""`loci bench compare`: sheets of methods, from what was measured or by measuring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Loci

from loci.bench.suite import Context
from loci.cli import bench
from loci.testing.models import tiny_pack

POINT = {"target_bits": 4.0, "bits": 3.99, "bytes": 1000, "perplexity": 12.5}
KL = {"value": 0.25, "low": 0.2, "high": 0.3}
QUANT = {
    "format": "loci-bench",
    "version": 1,
    "suite": "quant",
    "model": "toy",
    "full": {"perplexity": 11.0},
    "methods": {"hqq": [POINT | {"kl": KL | {"value": 0.5}}], "gptq": [POINT | {"kl": KL}]},
    "rivals": {
        "Q4_K": {
            "bits": 4.5,
            "bytes": 1100,
            "kl": KL,
            "perplexity": 12.0,
            "kl_ratio": 0.75,
            "loci": {"method": "gptq", "bytes": 1099, "kl": KL, "perplexity": 12.1},
        }
    },
}


@pytest.fixture
def folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCI_CACHE", str(home / "kept"))
    path = home / "kept" / "bench"
    path.mkdir(parents=True)
    return path


def test_one_result_is_enough_for_a_sheet(loci: Loci, folder: Path) -> None:
    (folder / "quant-1.json").write_text(json.dumps(QUANT))
    assert loci("bench", "compare", "quant", "--json").json == QUANT
    out = loci("bench", "compare", "quant").out
    lines = out.splitlines()
    order = [line.split()[0] for line in lines if line.startswith(("hqq", "gptq"))]
    assert order == ["gptq", "hqq"]  # the better first
    assert "gptq in these bytes" in out and "0.75" in out


def test_two_results_of_such_a_suite_are_compared_by_number(loci: Loci, folder: Path) -> None:
    for number in (1, 2):
        (folder / f"quant-{number}.json").write_text(json.dumps(QUANT))
    files = [str(folder / f"quant-{number}.json") for number in (1, 2)]
    rows = loci("bench", "compare", *files, "--json").json["numbers"]
    assert rows and all(row["ratio"] == 1.0 for row in rows)


def test_nothing_is_asked_of_results_that_are_there(loci: Loci, folder: Path) -> None:
    done = loci("bench", "compare", "speed", "--quick")
    assert done.code == 2 and "compared as they are" in done.err


def test_where_nothing_was_measured_the_suite_runs(loci: Loci, home: Path, folder: Path) -> None:
    tiny_pack(home / "models" / "tiny", max_context=4096).close()
    short = ("--quick", "--option", "shares=0.6", "--option", "chunks=64", "--option", "rounds=0")
    found = loci(
        "bench", "compare", "kv", "--model", "tiny", "--method", "keydiff", *short, "--json"
    ).json
    assert [row["method"] for row in found["rows"]] == ["keydiff"]
    assert (folder / "kv-1.json").is_file()
    out = loci("bench", "compare", "kv").out
    assert "60% of" in out and "keydiff" in out


def test_the_command_of_a_card_can_be_typed_again(tmp_path: Path) -> None:
    context = Context(folder=tmp_path, options={"contexts": "2"}, seed=3)
    typed = bench._typed("kv", context, ("snapkv", "kivi(bits=4)"))
    assert typed == (
        "loci bench run kv --option contexts=2 --method snapkv --method 'kivi(bits=4)' --seed 3"
    )
    assert bench._typed("kv", Context(folder=tmp_path)) == "loci bench run kv"

"""The suite beside llama.cpp's own caches: its rows, and what it says where llama.cpp is not."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from loci.bench.suite import Context
from loci.bench.suites import llama_kv
from loci.errors import MissingExtraError, ParameterError
from loci.methods import catalogue
from loci.methods.kv.ggml_kv import GgmlKV
from loci.testing.models import tiny_pack

# Stands where a Python with llama.cpp would be: it says how many pieces of how many tokens it was
# given as the loss, after words of its own.
FAKE = """#!{python}
import json, sys
asked = json.load(sys.stdin)
size = sum(map(len, asked["pieces"])) / len(asked["pieces"])
print("llama.cpp says hello")
print(json.dumps({{"kl": {{"/".join(t): [size] * len(asked["pieces"]) for t in asked["types"]}}}}))
"""


def context_of(tmp_path: Path, script: str, **options: str) -> Context:
    folder = tmp_path / "models" / "tiny"
    tiny_pack(folder, max_context=2048, head_dim=64).close()
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")  # nobody of ours reads it
    python = tmp_path / "python"
    python.write_text(script)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    given = {"llama_python": str(python), "gguf": str(tmp_path / "tiny.gguf"), "pieces": "1"}
    given |= options
    return Context(folder=tmp_path / "models", model="tiny", options=given)


def test_both_sides_stand_in_a_row(tmp_path: Path) -> None:
    result = llama_kv.run(context_of(tmp_path, FAKE.format(python=sys.executable)))
    eight, mixed, four = result["rows"]
    assert [row["types"] for row in (eight, mixed, four)] == ["q8_0/q8_0", "q8_0/q4_0", "q4_0/q4_0"]
    assert 0 < eight["ours"]["value"] < mixed["ours"]["value"] < four["ours"]["value"]
    read = llama_kv.PROMPT + llama_kv.REST
    assert eight["theirs"]["value"] == read
    # 34 and 18 bytes for 32 numbers; ours has a place of four bytes for each token, and work space.
    assert (
        four["their_bytes"] / eight["their_bytes"] == 18 / 34
        and mixed["their_bytes"] == (eight["their_bytes"] + four["their_bytes"]) / 2
    )
    assert all(row["our_bytes"] > row["their_bytes"] + 4 * read for row in result["rows"])
    ((title, head, lines),) = llama_kv.sheet(result)
    assert f"{llama_kv.PROMPT} tokens" in title and all(len(line) == len(head) for line in lines)
    rows = llama_kv.card_rows(result)
    assert catalogue.find(rows[2].method, "kv") == GgmlKV(keys="q4_0", values="q4_0")
    assert rows[2].metrics["kl"]["rivals"] == {"llama.cpp": read}


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    broken = f"#!{sys.executable}\nraise SystemExit('no such module')"
    with pytest.raises(MissingExtraError, match="no such module"):
        llama_kv.run(context_of(tmp_path, broken))
    with pytest.raises(ParameterError, match="Python of its own"):
        llama_kv.run(context_of(tmp_path, broken, llama_python="nowhere"))
    with pytest.raises(ParameterError, match="GGUF file"):
        llama_kv.run(context_of(tmp_path, broken, gguf="nowhere"))
    with pytest.raises(ParameterError, match="no such option"):
        llama_kv.run(context_of(tmp_path, broken, python="x"))

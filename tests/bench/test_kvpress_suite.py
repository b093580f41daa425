"""The suites beside transformers' caches and kvpress: rows, and what they say without them."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from loci.bench import hf_side
from loci.bench.suite import Context
from loci.bench.suites import hf_cache, kvpress
from loci.errors import MissingExtraError, ParameterError
from loci.testing.models import tiny_pack

# Stands where kvpress would be: every answer has the same logits, so that a press loses nothing.
FAKE = """#!{python}
import json, sys
sys.stdout.write(json.dumps({{"ready": True, "versions": {{"kvpress": "0"}}}}) + "\\n")
sys.stdout.flush()
for line in sys.stdin:
    asked = json.loads(line)
    rest = len(asked["ids"]) - asked["prompt"]
    if asked.get("press") == "KnormPress" or asked.get("quantized", {{}}).get("backend") == "hqq":
        sys.stdout.write(json.dumps({{"error": "it cannot"}}) + "\\n")
    else:
        with open(asked["file"], "wb") as file:
            file.write(bytes(4 * {vocab} * rest))
        held = [int(asked["prompt"] * (1 - asked.get("ratio", 0)))] * {layers}
        nbytes = 7 if asked.get("quantized") else None
        sys.stdout.write(json.dumps({{"held": held, "bytes": nbytes, "seconds": 0.1}}) + "\\n")
    sys.stdout.flush()
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python that answers for a tiny model, and the model beside it."""
    pack = tiny_pack(tmp_path / "models" / "tiny", max_context=1024)
    spec = pack.spec
    pack.close()
    python = tmp_path / "python"
    python.write_text(FAKE.format(python=sys.executable, vocab=spec.vocab, layers=spec.layers))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python


def test_the_rows_say_what_each_side_lost(tmp_path: Path, python: Path) -> None:
    result = kvpress.run(
        Context(
            folder=tmp_path / "models",
            model=str(tmp_path / "models" / "tiny"),
            methods=("random", "streaming_llm"),
            options={
                "kvpress_python": str(python), "pieces": "2", "shares": "0.5",
                "presses": "SnapKVPress,KnormPress",
            },
        )
    )  # fmt: skip
    rows = {row["method"]: row for row in result["rows"]}
    assert set(rows) == {"random", "streaming_llm", "SnapKVPress"}
    assert rows["SnapKVPress"]["kl"]["value"] == 0 < rows["random"]["kl"]["value"]
    limit = result["full_bytes"] // kvpress.PROMPT * (kvpress.PROMPT // 2 + hf_side.READ)
    assert rows["SnapKVPress"]["bytes"] == limit >= rows["random"]["bytes"] > 0.8 * limit
    assert result["refused"] == {"KnormPress": "it cannot"} and result["forwards"] > 0
    assert result["less"]["0.5"]["theirs"] == "SnapKVPress"
    (title, head, lines), = kvpress.sheet(result)  # fmt: skip
    assert title.startswith("50%") and lines[0][0] == "SnapKVPress" and len(head) == len(lines[0])
    card = {row.method: row for row in kvpress.card_rows(result)}
    assert set(card) == {"random", "streaming_llm"}
    assert card["random"].metrics["kl"]["rivals"] == {"kvpress SnapKVPress": 0.0}


def test_codes_stand_beside_the_quantised_cache(tmp_path: Path, python: Path) -> None:
    result = hf_cache.run(
        Context(
            folder=tmp_path / "models",
            model=str(tmp_path / "models" / "tiny"),
            methods=("bfp(bits=4,block=16)", "kivi(bits=2,group=16)"),
            options={"hf_python": str(python), "pieces": "2", "bits": "4"},
        )
    )
    rows = {row["method"]: row for row in result["rows"]}
    quanto = "QuantizedCache(quanto, 4 bits)"
    assert set(rows) == {"bfp(bits=4,block=16)", "kivi(bits=2,group=16)", quanto}
    assert rows[quanto]["kl"]["value"] == 0 and rows[quanto]["bytes"] == 7
    assert result["refused"] == {"QuantizedCache(hqq, 4 bits)": "it cannot"}
    ((_, head, lines),) = hf_cache.sheet(result)
    assert lines[0][0] == quanto and len(head) == len(lines[0])
    card = {row.method: row for row in hf_cache.card_rows(result)}
    assert set(card) == {"bfp(bits=4,block=16)", "kivi(bits=2,group=16)"}
    assert card["kivi(bits=2,group=16)"].bytes[quanto] == 7
    with pytest.raises(MissingExtraError, match="optimum"):
        given = {"hf_python": sys.executable, "pieces": "1"}
        hf_cache.run(Context(folder=tmp_path / "models", model="tiny", options=given))


def test_without_kvpress_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="pip install torch kvpress"):
        kvpress.run(Context(folder=tmp_path))
    tiny_pack(tmp_path / "tiny").close()
    given = {"kvpress_python": sys.executable, "pieces": "1"}
    with pytest.raises(MissingExtraError, match="No module named 'kvpress'"):
        kvpress.run(Context(folder=tmp_path, model=str(tmp_path / "tiny"), options=given))

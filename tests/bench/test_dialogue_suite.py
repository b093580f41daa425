"""Conversations: what they hold, and the comparison of caches that read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loci.bench import conversations
from loci.bench.suite import Context
from loci.bench.suites import dialogue
from loci.errors import ModelError, ParameterError
from loci.testing.models import tiny_pack


class Topics:
    """An embedder that counts the words of topics."""

    def encode(self, texts: list[str]) -> np.ndarray:
        known = conversations.topics()["topic"]
        words = [set(" ".join((*t["lines"], *t["things"])).lower().split()) for t in known.values()]
        common = set.intersection(*words)
        rows = np.array(
            [[sum(w in part - common for w in text.lower().split()) + 0.01 for part in words]
             for text in texts], np.float32,
        )  # fmt: skip
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_conversation_says_what_is_asked_once() -> None:
    talk = conversations.make(0, part="dev", count=3, sessions=4)
    assert len(talk.history) == len(talk.topics) == 3 * 4 * conversations.LINES
    assert len(talk.questions) == 3 * 4 * conversations.FACTS
    for asked in talk.questions:
        assert talk.history[asked.at] == f"{asked.text}{asked.candidates[0]}."
        assert talk.topics[asked.at] == asked.topic
        assert sum(said.startswith(asked.text) for said in talk.history) == 1
        assert len(set(asked.candidates)) == len(asked.candidates) == 8
    assert talk == conversations.make(0, part="dev", count=3, sessions=4)
    assert talk != conversations.make(0, part="test", count=3, sessions=4)
    with pytest.raises(ParameterError, match="topics or sessions"):
        conversations.make(0, part="dev", count=9, sessions=4)


def test_every_arm_answers_every_question_in_its_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_pack(tmp_path / "tiny", max_context=4096).close()
    options = {"share": "0.2", "block": "128"}
    context = Context(folder=tmp_path, model="tiny", quick=True, options=options)
    with pytest.raises(ModelError, match="embedder"):
        dialogue.run(context)
    monkeypatch.setattr(dialogue, "embedder", lambda folder: Topics())
    result = dialogue.run(context)
    small = "epicache, parked in 4 bits"
    assert set(result["arms"]) == {"full", "epicache", small, "text", "snapkv"}
    (size,) = result["sizes"]
    for name in ("epicache", "snapkv"):
        assert result["arms"][name]["peak_entries"] <= size["entries"] + 128
    assert result["arms"][small]["parked_bytes"] < 0.6 * result["arms"]["epicache"]["parked_bytes"]
    assert result["arms"]["epicache"]["routed"] >= 0.5
    assert result["questions"] == 4 and set(result["less"]["epicache"]) == {
        "snapkv",
        "text",
        "full",
    }
    ((_, head, lines),) = dialogue.sheet(result)
    assert len(lines) == 5 and all(len(line) == len(head) for line in lines)
    (row,) = dialogue.card_rows(result)
    assert row.method == "epicache" and set(row.metrics["dialogue"]["rivals"]) == {"snapkv", "text"}

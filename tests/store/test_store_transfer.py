"""Out to a file and in again."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from memories import Plain

from loci.errors import FormatError, ParameterError, StoreError
from loci.run.memory import Memory


def filled(memory: Memory) -> None:
    said = {"name": "Ada", "content": "I live in Ghent", "metadata": {"ref": "D1:1"}}
    memory.add(
        [said, "hello"], user="ada", session="s", agent="x", time="2024-01-01T00:00:00+02:00"
    )
    memory.add([{"name": "Ada", "content": "I moved to Rome"}], user="ada", time="2025-01-01")
    memory.edit(memory.note("likes tea", user="ada", metadata={"a": 1}).id, "loves tea")
    memory.add("bob's own", user="bob")


def contents(memory: Memory, user: str = "ada") -> list[object]:
    items = [
        (i.text, i.kind, i.valid_from, i.valid_to, i.recorded_at, i.metadata, len(i.sources))
        for i in memory.list(user=user)  # type: ignore[union-attr]
    ]
    turns = [
        (t.content, t.name, t.time.isoformat(), t.session, t.position, t.metadata, t.zone_assumed)
        for t in memory.list(user=user, kinds="turn")  # type: ignore[union-attr]
    ]
    return [items, turns]


def test_an_export_makes_the_same_memory(
    memory: Memory, place: Callable[[str], str], tmp_path: Path
) -> None:
    filled(memory)
    path = tmp_path / "ada.jsonl"
    count = memory.export(path, user="ada")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert lines[0]["format"] == "loci-memory" and lines[0]["version"] == 1
    assert lines[0]["user"] == "ada" and len(lines) == count + 1
    assert "bob" not in path.read_text("utf-8")
    with Memory(place("other.db"), recall=Plain()) as other:
        other.add("someone else", user="eve")
        assert other.import_(path) == count
        assert contents(other) == contents(memory)
        assert [c.action for c in other.history("i3")] == ["add", "edit"]
        assert [c.action for c in other.history("i1")] == ["add", "retire"]
        assert other.history("i2")[0].sources == other.get("i2").sources  # type: ignore[union-attr]
        assert {item.text for item in other.undo("i1")} == {
            "Ada lives in Ghent",
            "Ada lives in Rome",
        }
        assert {item.text for item in other.redo("i1")} == {
            "Ada lives in Ghent",
            "Ada lives in Rome",
        }
        assert other.search("Ghent", user="ada", as_of="2024-06-01", kinds="fact")
        assert other.import_(path, "loci") == 0, "a second time adds nothing"
        assert other.import_(path, user="eve") == count
        assert contents(other, "eve")[0] == contents(memory)[0]


def test_importing_ones_own_export_adds_nothing(memory: Memory, tmp_path: Path) -> None:
    filled(memory)
    memory.export(tmp_path / "x", user="ada")
    before = contents(memory)
    assert memory.import_(tmp_path / "x") == 0
    assert contents(memory) == before


def test_an_interrupted_import_goes_on(
    memory: Memory,
    place: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from loci.run import memory_files

    monkeypatch.setattr(memory_files, "_BATCH", 2)
    filled(memory)
    count = memory.export(tmp_path / "x", user="ada")
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with Memory(place("other.db"), recall=Plain()) as other:
        with pytest.raises(KeyboardInterrupt):
            other.import_(tmp_path / "x", progress=stop)
        assert seen == [(2, count), (4, count)]
        assert other.import_(tmp_path / "x") == count - 4
        assert contents(other) == contents(memory)


def test_bad_files_are_refused(memory: Memory, tmp_path: Path) -> None:
    path = tmp_path / "x"
    head = {"format": "loci-memory", "version": 1, "store": "s", "user": "ada"}
    for text, words in [
        ("dear diary", "no format"),
        (json.dumps({**head, "version": 9}) + "\n", "version"),
        (json.dumps(head) + '\n{"type": "tu', "cut short"),
        (json.dumps(head) + '\n{"type": "cube"}', "unknown type"),
        (json.dumps(head) + '\n{"type": "turn"}', "not complete"),
        ('[{"qa": []}]', "no format"),
        ("[1, 2", "not JSON"),
        ('[{"conversation": {"session_1": [{"text": "a"}]}}]', "date of a session"),
    ]:
        path.write_text(text)
        with pytest.raises(FormatError, match=words):
            memory.import_(path)
    path.write_text('[{"qa": []}]')
    with pytest.raises(FormatError, match="no conversation"):
        memory.import_(path, "locomo")
    with pytest.raises(ParameterError, match="unknown format"):
        memory.import_(path, "docx")
    with pytest.raises(StoreError, match="cannot read"):
        memory.import_(tmp_path / "missing")
    with pytest.raises(StoreError, match="nothing is remembered"):
        memory.export(path, user="nobody")
    assert memory.users() == [] or memory.counts(user="ada")["turns"] == 0


SAMPLE = {
    "sample_id": "conv-7",
    "conversation": {
        "speaker_a": "Ada",
        "speaker_b": "Bo",
        "session_10_date_time": "12:05 am on 1 June, 2023",
        "session_10": [{"speaker": "Bo", "dia_id": "D10:1", "text": "last"}],
        "session_2_date_time": "1:56 pm on 8 May, 2023",
        "session_2": [
            {"speaker": "Ada", "dia_id": "D2:1", "text": "I live in Ghent"},
            {"speaker": "Bo", "dia_id": "D2:2", "text": "Look", "blip_caption": "a red bicycle"},
            {"speaker": "Bo", "dia_id": "D2:3", "text": ""},
        ],
        "session_30_date_time": "1:00 pm on 9 May, 2023",
    },
    "qa": [],
}


def test_a_locomo_file_with_many_questions_first_is_recognised(
    memory: Memory, tmp_path: Path
) -> None:
    path = tmp_path / "locomo.json"
    questions = [{"question": f"what is number {n}?", "answer": n} for n in range(4000)]
    path.write_text(json.dumps([{"qa": questions, **{k: SAMPLE[k] for k in SAMPLE if k != "qa"}}]))
    assert memory.import_(path, infer=False) == 3


def test_a_locomo_conversation(memory: Memory, tmp_path: Path) -> None:
    path = tmp_path / "locomo.json"
    path.write_text(json.dumps([SAMPLE]))
    seen: list[tuple[int, int]] = []
    assert memory.import_(path, progress=lambda *at: seen.append(at)) == 3
    assert seen == [(1, 2), (2, 2)]
    last, look, live = memory.list(user="conv-7", kinds="turn")
    assert live.metadata["ref"] == "D2:1" and live.name == "Ada"  # type: ignore[union-attr]
    assert live.time.isoformat() == "2023-05-08T13:56:00+00:00"  # type: ignore[union-attr]
    assert last.time.isoformat() == "2023-06-01T00:05:00+00:00"  # type: ignore[union-attr]
    assert (live.session, last.session) == ("session_2", "session_10")  # type: ignore[union-attr]
    hit = memory.search("bicycle", user="conv-7")[0]
    assert hit.id == look.id and hit.sources[0].metadata["caption"] == "a red bicycle"
    fact = memory.search("where does Ada live Ghent", user="conv-7")[0]
    assert fact.text == "Ada lives in Ghent" and fact.sources[0].metadata["ref"] == "D2:1"
    assert memory.import_(path) == 0
    assert memory.import_(path, "locomo", user="me", infer=False) == 3
    assert memory.counts(user="me") == {"turns": 3, "items": 0, "retired": 0}

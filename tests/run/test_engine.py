"""A session: answers, accounts, bad input, and every byte given back."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from loci.core.event import Events
from loci.errors import (
    ContextError,
    FingerprintError,
    ParameterError,
    StorageError,
    StoreError,
)
from loci.plan import plan as make_plan
from loci.plan.solve import Plan
from loci.run import engine, measure
from loci.run.memory import Memory
from loci.run.sampling import Sampling
from loci.testing.models import tiny_pack

SIZES = {"layers": 6, "hidden": 128, "ffn": 256, "heads": 8, "kv_heads": 4, "head_dim": 16}
QUESTION = "What is a budget?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a models folder with a model named small."""
    home = tmp_path_factory.mktemp("models")
    tiny_pack(home / "small", **SIZES).close()
    return home


def plan_of(folder: Path, **asked: object) -> Plan:
    asked = {"dram": "16MiB", "context": 128, "new_tokens": 8} | asked
    return make_plan("small", folder=folder, cache=folder / ".cache", **asked)  # type: ignore[arg-type]


@pytest.fixture
def session(folder: Path) -> Iterator[engine.Session]:
    with engine.open(plan_of(folder), folder=folder) as opened:
        yield opened


def streamed_plan(folder: Path) -> Plan:
    """Return a plan that reads weights from disk for every token."""
    plan = plan_of(folder, weights="400KiB", disk="1GiB", kv="")
    assert plan.weights == "streamed" and plan.placement and plan.placement.streamed
    return plan


def test_every_byte_is_counted_and_given_back(folder: Path) -> None:
    gc.collect()
    before = measure.held_bytes()
    with engine.open(plan_of(folder), folder=folder) as session:
        answer = "".join(session.generate(QUESTION))
        found = session.report()
        assert answer == found["answer"] and found["tokens"]["new"] > 0
        assert found["bytes"]["predicted"] == found["bytes"]["ledger"]
        assert found["bytes"]["measured"]["dram"] <= found["bytes"]["ledger"]["dram"] * 1.03
        ledger = session.ledger
    assert ledger.used("dram") == 0
    del session
    gc.collect()
    assert measure.held_bytes() <= before + 2**16
    assert not [path for path in measure.mapped_files() if str(folder) in path]


def test_streamed_weights_answer_the_same_and_count_what_they_read(
    folder: Path, session: engine.Session
) -> None:
    expected = "".join(session.generate(QUESTION))
    plan = streamed_plan(folder)
    with engine.open(plan, folder=folder) as other:
        assert "".join(other.generate(QUESTION)) == expected
        found = other.report()
    assert plan.placement is not None
    moved, passes = found["bytes"]["moved"]["disk"]["dram"], found["tokens"]["new"]
    assert moved >= plan.placement.moved_bytes * passes
    assert found["bytes"]["ledger"]["disk"] == plan.predicted["disk"]
    assert found["bytes"]["measured"]["disk"] == pytest.approx(plan.predicted["disk"], rel=0.03)
    assert other.ledger.used("disk") == 0  # given back
    assert found["bytes"]["measured"]["dram"] <= plan.predicted["dram"] * 1.03


def test_a_plan_made_for_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    tiny_pack(tmp_path / "small", seed=1, **SIZES).close()
    plan = plan_of(folder)
    with pytest.raises(FingerprintError, match="made for another small") as caught:
        engine.open(plan, folder=tmp_path)
    assert "loci plan" in str(caught.value)
    assert not [path for path in measure.mapped_files() if str(tmp_path) in path]


def test_a_prompt_longer_than_the_context_changes_nothing(session: engine.Session) -> None:
    expected = "".join(session.generate(QUESTION))
    with pytest.raises(ContextError, match="at most 127 prompt tokens") as caught:
        list(session.generate([5] * 200, max_tokens=8))
    assert "plan with --context 208" in str(caught.value)
    with pytest.raises(ContextError, match="at most 512 tokens"):
        list(session.generate("word " * 500))
    with pytest.raises(ContextError, match="in one message"):
        list(session.chat("word " * 100))
    assert "".join(session.generate(QUESTION)) == expected


def test_an_answer_cut_by_the_context_says_so(session: engine.Session) -> None:
    list(session.generate([5] * 125, max_tokens=8))
    assert session.stats.new_tokens <= 3
    assert session.report()["notes"][-1] == "the context leaves room for 3 of 8 new tokens"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "the prompt is empty"),
        (" \n", "the prompt is empty"),
        ([], "the prompt is empty"),
        (b"caf\xe9", "not UTF-8 at byte 3"),
        ("half \ud800", "half a surrogate pair"),
        ([1, 999], "no token id; got 999; allowed: 0 to 319"),
        ([1, "a"], "no token id"),
        (5, "a prompt is text"),
        ([{"role": "user", "content": "caf\udce9"}], "not UTF-8"),
    ],
)
def test_prompts_that_say_nothing_are_refused(
    prompt: object, said: str, session: engine.Session
) -> None:
    with pytest.raises(ParameterError, match=said):
        list(session.generate(prompt))  # type: ignore[arg-type]


def test_bytes_are_text_and_nul_is_a_character(session: engine.Session) -> None:
    assert "".join(session.generate(b"Hi \0")) == "".join(session.generate("Hi \0"))


@pytest.mark.parametrize("text", ["", "  ", "caf\udce9"])
def test_a_message_that_says_nothing_is_refused(text: str, session: engine.Session) -> None:
    with pytest.raises(ParameterError):
        list(session.chat(text))
    assert list(session.chat("Hello"))  # and the conversation goes on


def test_nothing_is_asked_of_a_closed_session(folder: Path) -> None:
    session = engine.open(plan_of(folder), folder=folder)
    session.close()
    session.close()
    for ask in (session.generate, session.chat):
        with pytest.raises(ParameterError, match="closed"):
            list(ask("Hello"))


def test_max_tokens_must_be_positive(session: engine.Session) -> None:
    for ask in (session.generate, session.chat):
        with pytest.raises(ParameterError, match="max_tokens"):
            list(ask("Hello", max_tokens=0))


def test_a_stop_word_ends_the_answer_before_it(session: engine.Session) -> None:
    whole = "".join(session.generate(QUESTION, sampling=Sampling(temperature=1.0, seed=1)))
    word = whole[3:5]
    cut = "".join(
        session.generate(QUESTION, sampling=Sampling(temperature=1.0, seed=1), stop=[word])
    )
    assert cut == whole[: whole.index(word)]


def test_turns_go_on_where_the_last_one_ended(folder: Path, session: engine.Session) -> None:
    said = ["Hello there", "And then?", "Why?"]
    replies = ["".join(session.chat(text)) for text in said]
    assert session.stats.reused_tokens > 40
    told = session._history[:-1]  # answers stand in it as the tokens they were
    with engine.open(plan_of(folder), folder=folder) as fresh:
        assert "".join(fresh.generate(told)) == replies[-1]


@pytest.mark.parametrize("kv", ["", "streaming_llm", "snapkv | bfp(bits=4, block=16, window=0)"])
def test_a_document_is_read_once_and_stays(folder: Path, kv: str) -> None:
    text = "The key lies under the third stone. " * 8
    cap = "40KiB" if kv.startswith("streaming") else "150KiB" if kv else None
    plan = plan_of(folder, context=512, kv=kv, kv_bytes=cap)
    with engine.open(plan, folder=folder) as session:
        count = session.read(text)
        assert count > len(text.encode())
        list(session.chat("Where is the key?"))
        first, answer = session.answer, session.stats
        assert answer.reused_tokens == count
        list(session.chat("Are you sure?"))
        # All of the document, the first question and its answer stand in the cache as they were.
        assert session.stats.reused_tokens >= answer.prompt_tokens + answer.new_tokens - 1
        assert session.store.length > count
    if kv:
        return
    with engine.open(plan, folder=folder) as fresh:
        asked = engine.DOCUMENT.format(text=text) + "Where is the key?"
        assert "".join(fresh.generate([{"role": "user", "content": asked}])) == first


def test_a_document_must_fit_and_come_first(folder: Path, session: engine.Session) -> None:
    with pytest.raises(ContextError, match="document has"):
        session.read("word " * 60)
    assert "".join(session.chat("hello")) == session.answer  # nothing was left of it
    with pytest.raises(ParameterError, match="before the first message"):
        session.read("too late")
    with pytest.raises(ParameterError, match="empty"):
        session.read("  ")


def test_old_turns_that_do_not_fit_are_left_out_and_named(session: engine.Session) -> None:
    for number in range(6):
        list(session.chat(f"This is message number {number}, which is not short"))
    assert any("left out" in note for note in session.report()["notes"])


def test_what_was_said_is_remembered_across_a_restart(folder: Path, tmp_path: Path) -> None:
    file, plan = tmp_path / "ada.db", plan_of(folder, context=256)
    with engine.open(plan, folder=folder, memory=file) as session:
        list(session.chat("I am allergic to nuts.", user="ada"))
    with engine.open(plan, folder=folder, memory=file) as session:
        assert any("nuts" in note for note in session.recall("allergic to what?", user="ada"))
        assert session.recall("allergic to what?", user="bob") == []
    with Memory(file) as memory:
        assert len(memory.list(user="ada", kinds="turn")) in (1, 2)


def test_an_empty_reply_does_not_lose_what_was_said(
    session: engine.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.tokenizer, "eos_ids", tuple(range(320)))
    with Memory(tmp_path / "ada.db") as memory:
        session.memory = memory
        assert list(session.chat("I live in Berlin.", user="ada")) == []
        [turn] = memory.list(user="ada", kinds="turn")
        assert turn.content == "I live in Berlin."  # type: ignore[union-attr]


@pytest.mark.model
def test_the_embedder_of_a_memory_is_counted(
    models_folder: Path, folder: Path, tmp_path: Path
) -> None:
    (folder / "minilm").symlink_to(models_folder / "minilm")
    try:
        plan = plan_of(folder, dram="200MiB", context=256)
        with engine.open(plan, folder=folder, memory=tmp_path / "ada.db") as session:
            list(session.chat("I am allergic to nuts.", user="ada"))
            found = session.report()["bytes"]
        assert found["predicted"]["dram"] > plan.predicted["dram"] + 80 * 2**20
        assert found["measured"]["dram"] == pytest.approx(found["predicted"]["dram"], rel=0.03)
        small = plan_of(folder, context=256)
        with engine.open(small, folder=folder, memory=tmp_path / "ada.db") as session:
            assert session.recall("allergic to what?", user="ada")  # by words alone
            assert any("the embedder needs" in note for note in session.report()["notes"])
            assert session.report()["bytes"]["predicted"]["dram"] == small.predicted["dram"]
    finally:
        (folder / "minilm").unlink()


def test_a_memory_that_cannot_be_opened_gives_the_model_back(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        engine.open(plan_of(folder), folder=folder, memory=tmp_path / "no" / "m.db")
    gc.collect()
    assert not [path for path in measure.mapped_files() if str(folder) in path]


def test_a_disk_that_fails_while_weights_are_streamed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine.open(streamed_plan(folder), folder=folder) as session:
        list(session.generate(QUESTION, max_tokens=2))
        real = os.preadv

        def broken(fd: int, buffers: list[memoryview], offset: int) -> int:
            if len(buffers[0]) > 4096:  # a block, not a row of the embedding
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(StorageError, match=r"cannot read block .*Input/output error"):
            list(session.generate("Another question", max_tokens=8))


def test_events_tell_of_answers(folder: Path) -> None:
    told: list[str] = []
    events = Events()
    events.listen(lambda event: told.append(event.name))
    with engine.open(plan_of(folder), folder=folder, events=events) as session:
        list(session.generate(QUESTION))
    assert "run.answer" in told

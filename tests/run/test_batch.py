"""Many requests at once: the same words as alone, within the budget, and all of it given back."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loci.core.event import Event, Events
from loci.errors import BudgetError, ContextError, MethodError, OverloadError, ParameterError
from loci.methods.sched.base import SchedView
from loci.methods.sched.fcfs import Fcfs
from loci.plan import plan as make_plan
from loci.plan.solve import Plan
from loci.run import engine, measure
from loci.run.batch import Batch
from loci.run.requests import Ask, Ticket
from loci.run.sampling import Sampling
from loci.testing.batch import paused, slowed
from loci.testing.models import tiny_pack

SIZES = {"layers": 6, "hidden": 128, "ffn": 256, "heads": 8, "kv_heads": 4, "head_dim": 16}
LONG_S = 60.0  # a test that waits so long has failed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a models folder with a model named small."""
    home = tmp_path_factory.mktemp("models")
    tiny_pack(home / "small", **SIZES).close()
    return home


def plan_of(folder: Path, **asked: object) -> Plan:
    asked = {"dram": "32MiB", "context": 256, "new_tokens": 16} | asked
    return make_plan("small", folder=folder, cache=folder / ".cache", **asked)  # type: ignore[arg-type]


def prompt(number: int, tokens: int) -> tuple[int, ...]:
    return tuple((7 * number + 13 * i + i * i) % 256 for i in range(tokens))


def asks(count: int, **given: object) -> list[Ask]:
    """Return requests of all lengths that do not end by themselves."""
    return [
        Ask(ids=prompt(i, 3 + 17 * i % 90), max_tokens=4 + i % 9, goes_on=True, **given)  # type: ignore[arg-type]
        for i in range(count)
    ]


def ids_of(ticket: Ticket) -> list[int]:
    assert ticket.wait(LONG_S).error is None
    return [id for piece in ticket for id in piece.ids]


def alone(plan: Plan, folder: Path, asked: list[Ask]) -> list[list[int]]:
    """Return the tokens of each request when nobody else is there."""
    with Batch(plan, folder=folder, keep_s=0.0) as batch:
        return [ids_of(batch.submit(ask)) for ask in asked]


@pytest.fixture
def batch(folder: Path) -> Iterator[Batch]:
    with Batch(plan_of(folder), folder=folder) as opened:
        yield opened


SCHEDULERS = ["fcfs", "fcfs(chunk=16)", "fcfs(chunk=5)", "layered_prefill(work=7)"]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"kv": "bfp(bits=8, block=16)"},
        {"kv": "streaming_llm"},
        {"weights": "400KiB", "disk": "1GiB", "kv": ""},
    ],
    ids=["exact", "encoded", "selected", "streamed"],
)
def test_a_batch_says_what_each_request_alone_says(
    folder: Path, scheduler: str, asked: dict[str, object]
) -> None:
    plan = plan_of(folder, **asked)
    wanted = asks(12)
    if plan.kv and scheduler.startswith("layered"):
        with Batch(plan, folder=folder, scheduler=scheduler) as batch:
            error = batch.submit(wanted[0]).wait(LONG_S).error
        assert isinstance(error, MethodError) and '--kv ""' in str(error)
        return
    expected = alone(plan, folder, wanted)
    with Batch(plan, folder=folder, scheduler=scheduler) as batch:
        tickets = [batch.submit(ask) for ask in wanted]
        assert [ids_of(ticket) for ticket in tickets] == expected
        assert [ticket.wait().reason for ticket in tickets] == ["length"] * 12
        assert batch.load().waiting == batch.load().running == 0
    assert batch.ledger.used("dram") == 0


def test_a_prompt_that_is_cancelled_between_its_layers_leaves_nothing(folder: Path) -> None:
    plan = plan_of(folder, context=512)
    with Batch(plan, folder=folder, scheduler="layered_prefill(work=8)") as batch:
        with slowed(batch):
            busy = batch.submit(Ask(ids=prompt(1, 4), max_tokens=300, goes_on=True))
            for _ in busy:
                break
            for number in range(5):
                long = batch.submit(Ask(ids=prompt(number, 200), max_tokens=4))
                long.cancel()
                assert long.wait(LONG_S).reason == "cancelled"
        last = batch.submit(Ask(ids=prompt(7, 200), max_tokens=4, goes_on=True))
        said = ids_of(last)
        assert last.wait().reused_tokens == 0
        busy.cancel()
        busy.wait(LONG_S)
        assert "states" not in str(batch.ledger.table())
        again = batch.submit(Ask(ids=prompt(7, 200), max_tokens=4, goes_on=True))
        assert ids_of(again) == said


def test_one_request_says_what_a_session_says(folder: Path) -> None:
    plan = plan_of(folder)
    with engine.open(plan, folder=folder) as session:
        expected = "".join(session.generate("What is a budget?"))
        tokens = session.stats.new_tokens
        ids = session.tokenizer.chat([{"role": "user", "content": "What is a budget?"}])
    with Batch(plan, folder=folder) as batch:
        end = batch.submit(Ask(ids=tuple(ids))).wait(LONG_S)
    assert (end.text, end.new_tokens) == (expected, tokens)


def test_drawn_tokens_depend_on_the_seed_alone(folder: Path) -> None:
    plan = plan_of(folder)
    wanted = [
        Ask(ids=prompt(i, 20), max_tokens=8, sampling=Sampling(temperature=1.0, seed=i % 3))
        for i in range(9)
    ]
    expected = alone(plan, folder, wanted)
    with Batch(plan, folder=folder) as batch:
        assert [ids_of(ticket) for ticket in [batch.submit(ask) for ask in wanted]] == expected
    assert expected[0] != expected[1]


def test_pieces_come_while_others_run_and_from_any_thread(batch: Batch) -> None:
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        ticket = batch.submit(Ask(ids=prompt(number, 30), max_tokens=16))
        texts[number] = "".join(piece.text for piece in ticket)
        assert texts[number] == ticket.wait().text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert len(texts) == 8


def test_what_begins_alike_is_not_read_again(batch: Batch) -> None:
    first = Ask(ids=prompt(1, 100), max_tokens=8, goes_on=True)
    said = ids_of(batch.submit(first))
    again = batch.submit(first)
    assert ids_of(again) == said
    assert again.wait().reused_tokens == 96  # whole blocks of sixteen
    turn = Ask(ids=(*first.ids, *said, *prompt(2, 9)), max_tokens=8, goes_on=True)
    next_turn = batch.submit(turn)
    assert ids_of(next_turn)
    assert next_turn.wait().reused_tokens == 96  # of 107 that were there
    whole = Ask(ids=first.ids[:96], max_tokens=2)
    assert batch.submit(whole).wait(LONG_S).reused_tokens == 95  # one is read for its logits
    shorter = batch.submit(Ask(ids=(*first.ids[:40], 1, 2, 3), max_tokens=2))
    assert shorter.wait(LONG_S).reused_tokens == 32
    other = batch.submit(Ask(ids=first.ids, max_tokens=2, scope="acme"))
    assert other.wait(LONG_S).reused_tokens == 0  # nobody learns what others asked


def test_what_was_reused_changes_nothing(folder: Path) -> None:
    plan = plan_of(folder)
    common = prompt(5, 64)
    wanted = [Ask(ids=(*common, *prompt(i, 11)), max_tokens=12, goes_on=True) for i in range(6)]
    expected = alone(plan, folder, wanted)
    with Batch(plan, folder=folder) as batch:
        for ask, tokens in zip(wanted, expected, strict=True):
            ticket = batch.submit(ask)
            assert ids_of(ticket) == tokens
            assert ticket.wait().reused_tokens == (0 if ask is wanted[0] else 64)


def test_what_was_kept_gives_way_to_new_requests(folder: Path) -> None:
    with Batch(plan_of(folder, dram="8MiB"), folder=folder) as batch:
        most = batch.load().most_kv_bytes
        for number in range(40):
            ids_of(batch.submit(Ask(ids=prompt(number, 120), max_tokens=4)))
            assert batch.load().kept_bytes <= most
            batch.ledger.check_integrity()
        assert batch.load().kept_bytes > most / 2  # it was full, and nothing failed


def test_what_was_kept_is_dropped_when_it_is_old(folder: Path) -> None:
    with Batch(plan_of(folder), folder=folder, keep_s=0.05) as batch:
        for number in range(4):
            ids_of(batch.submit(Ask(ids=prompt(number, 120), max_tokens=4)))
        deadline = time.monotonic() + LONG_S
        while batch.load().kept_bytes and time.monotonic() < deadline:
            time.sleep(0.02)
        assert batch.load().kept_bytes == 0


def test_requests_that_do_not_fit_now_wait(folder: Path) -> None:
    plan = plan_of(folder, dram="8MiB")
    wanted = [Ask(ids=prompt(i, 100), max_tokens=100, goes_on=True) for i in range(10)]
    with Batch(plan, folder=folder) as batch:
        most = batch.load().most_kv_bytes
        tickets = [batch.submit(ask) for ask in wanted]
        peak, together = 0, 0
        while any(ticket.end is None for ticket in tickets):
            load = batch.load()
            peak, together = max(peak, load.kv_bytes), max(together, load.running)
            time.sleep(0.001)
        assert all(ticket.wait().reason == "length" for ticket in tickets)
        assert 0 < peak <= most
        assert together < 10
        assert max(ticket.wait().queued_s for ticket in tickets) > 0


def test_too_many_are_refused_and_told_when_to_come_back(folder: Path) -> None:
    events = Events()
    with Batch(plan_of(folder), folder=folder, rows=2, waiting=3, events=events) as batch:
        with paused(batch):
            tickets = [batch.submit(ask) for ask in asks(5)]
            with pytest.raises(OverloadError, match="too many requests wait") as caught:
                batch.submit(asks(1)[0])
        assert caught.value.retry_after_s >= 1
        for ticket in tickets:
            ids_of(ticket)
        assert batch.load().refused == 1
    assert [event.name for event in events.recent("run.refuse")] == ["run.refuse"]


def test_one_scope_does_not_take_the_places_of_all(folder: Path) -> None:
    with Batch(plan_of(folder), folder=folder, rows=2, waiting=10, each=2) as batch:
        mine = [Ask(ids=prompt(i, 9), max_tokens=100, goes_on=True, scope="a") for i in range(3)]
        with paused(batch):
            tickets = [batch.submit(ask) for ask in mine[:2]]
            with pytest.raises(OverloadError, match="of yours"):
                batch.submit(mine[2])
            tickets.append(
                batch.submit(Ask(ids=prompt(5, 9), max_tokens=4, goes_on=True, scope="b"))
            )
        for ticket in tickets:
            assert ids_of(ticket)
        assert ids_of(batch.submit(mine[2]))


@pytest.mark.parametrize(
    ("ask", "kind", "said"),
    [
        (Ask(ids=()), ParameterError, "the prompt is empty"),
        (Ask(ids=(1, 999)), ParameterError, "no token id; got 999"),
        (Ask(ids=(1,), max_tokens=0), ParameterError, "max_tokens must be >= 1"),
        (Ask(ids=(1,), logprobs=99), ParameterError, "0 to 20"),
        (Ask(ids=(1,) * 250, max_tokens=7), ContextError, "take 257 tokens; the context holds 256"),
        (Ask(ids=(1,) * 256), ContextError, "at most 255 prompt tokens"),
        (Ask(ids=(1,), schema={}), ParameterError, "names its type"),
    ],
)
def test_requests_that_cannot_be_are_refused(
    batch: Batch, ask: Ask, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        batch.submit(ask)
    assert batch.submit(Ask(ids=(1, 2))).wait(LONG_S).error is None


def test_a_request_larger_than_the_budget_is_refused_at_once(folder: Path) -> None:
    plan = plan_of(folder)
    with Batch(plan, folder=folder) as batch:
        lease = batch.reserve("something else", batch.ledger.free("dram") - 2**16)
        with pytest.raises(BudgetError, match="the budget leaves"):
            batch.submit(Ask(ids=prompt(1, 200), max_tokens=50))
        lease.release()
        assert batch.submit(Ask(ids=prompt(1, 200), max_tokens=50)).wait(LONG_S).error is None


def test_a_cancelled_request_gives_its_memory_back(folder: Path) -> None:
    with Batch(plan_of(folder), folder=folder, keep_s=0.0) as batch:
        with slowed(batch):
            others = [batch.submit(ask) for ask in asks(3)]
            ticket = batch.submit(Ask(ids=prompt(9, 50), max_tokens=200, goes_on=True))
            for _ in ticket:
                break
            ticket.cancel()
            end = ticket.wait(LONG_S)
            assert end.reason == "cancelled" and 0 < end.new_tokens < 200
            waiting = batch.submit(Ask(ids=prompt(9, 50), max_tokens=200, goes_on=True))
            waiting.cancel()
            assert waiting.wait(LONG_S).reason == "cancelled"
        for other in others:
            assert ids_of(other)
        assert "kv" not in batch.ledger.by_kind("dram")


def test_stop_words_and_json(batch: Batch) -> None:
    whole = batch.submit(Ask(ids=prompt(3, 20), max_tokens=40, goes_on=True)).wait(LONG_S).text
    word = whole[5:7]
    end = batch.submit(
        Ask(ids=prompt(3, 20), max_tokens=40, goes_on=True, stop=(word, "never said"))
    ).wait(LONG_S)
    assert end.reason == "stop" and end.stopped_by == word
    assert end.text == whole[: whole.index(word)]
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "yes": {"type": "boolean"}},
        "required": ["name", "yes"],
    }
    import json

    tickets = [batch.submit(Ask(ids=prompt(i, 20), max_tokens=60, schema=schema)) for i in range(3)]
    for ticket in tickets:
        assert set(json.loads(ticket.wait(LONG_S).text)) == {"name", "yes"}
    assert batch.ledger.by_kind("dram")["tokenizer"] > batch.spec.tokenizer_bytes


def test_chances_are_told_of_the_tokens_that_came(batch: Batch) -> None:
    ticket = batch.submit(Ask(ids=prompt(4, 10), max_tokens=6, logprobs=3, goes_on=True))
    odds = [one for piece in ticket for one in piece.odds]
    assert [one.id for one in odds] == [id for piece in ticket for id in piece.ids]
    for one in odds:
        assert one.logprob <= 0 and len(one.top) == 3
        assert one.top[0] == (one.id, pytest.approx(one.logprob))  # greedy takes the likeliest
        assert sorted(one.top, key=lambda pair: -pair[1]) == list(one.top)


def held(plan: Plan, folder: Path, scheduler: str) -> tuple[int, int, int]:
    """Return bytes after a batch of requests: of tensors, of the ledger, of what is kept."""
    storages = frozenset(measure.tensor_storages())
    mapped = measure.held_bytes(storages)  # files that other tests still have open
    with Batch(plan, folder=folder, scheduler=scheduler) as batch:
        for ticket in [batch.submit(ask) for ask in asks(12)]:
            ids_of(ticket)

        def counted() -> tuple[int, int, int]:
            gc.collect()
            tensors = measure.held_bytes(storages) - mapped + batch.tokenizer.nbytes
            return tensors, batch.ledger.used("dram"), batch.load().kept_bytes

        return batch.between_steps(counted)


@pytest.mark.parametrize("scheduler", ["fcfs(chunk=16)", "layered_prefill(work=16)"])
@pytest.mark.parametrize("asked", [{}, {"weights": "400KiB", "disk": "1GiB", "kv": ""}])
def test_every_byte_is_in_the_ledger_and_given_back(
    folder: Path, scheduler: str, asked: dict[str, object]
) -> None:
    gc.collect()
    before = measure.held_bytes()
    tensors, ledger, kept = held(plan_of(folder, **asked), folder, scheduler)
    assert 0 < kept < tensors <= ledger * 1.03
    gc.collect()
    assert measure.held_bytes() <= before + 2**16


def test_closing_waits_for_those_that_run(folder: Path) -> None:
    batch = Batch(plan_of(folder), folder=folder)
    tickets = [batch.submit(ask) for ask in asks(4)]
    batch.close(drain_s=LONG_S)
    assert [ticket.wait().reason for ticket in tickets] == ["length"] * 4
    with pytest.raises(OverloadError, match="stopping"):
        batch.submit(Ask(ids=(1,)))
    assert batch.ledger.used("dram") == 0
    batch.close()


def test_closing_at_once_tells_those_that_run(folder: Path) -> None:
    batch = Batch(plan_of(folder), folder=folder)
    ticket = batch.submit(Ask(ids=prompt(1, 50), max_tokens=200, goes_on=True))
    batch.close()
    assert ticket.wait().reason in ("cancelled", "length")
    assert batch.ledger.used("dram") == 0


def test_a_step_that_fails_fails_its_requests_alone(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError("no")

    with monkeypatch.context() as patched:
        patched.setattr(batch.runner, "run", broken)
        end = batch.submit(Ask(ids=(1, 2, 3))).wait(LONG_S)
    assert end.reason == "failed" and "internal error: RuntimeError: no" in str(end.error)
    assert batch.submit(Ask(ids=(1, 2, 3))).wait(LONG_S).error is None


def test_a_scheduler_that_fails_leaves_nobody_waiting(batch: Batch) -> None:
    class Broken(Fcfs):
        def choose(self, view: SchedView, state: object) -> object:  # type: ignore[override]
            raise RuntimeError("no plan")

    working, batch.scheduler = batch.scheduler, Broken()
    assert "no plan" in str(batch.submit(Ask(ids=(1, 2, 3))).wait(LONG_S).error)
    batch.scheduler = working
    assert batch.submit(Ask(ids=(1, 2, 3))).wait(LONG_S).error is None


def test_events_tell_what_each_answer_took(folder: Path) -> None:
    told: list[Event] = []
    events = Events()
    events.listen(told.append)
    with Batch(plan_of(folder), folder=folder, events=events) as batch:
        batch.submit(Ask(ids=(1, 2, 3), max_tokens=2, goes_on=True)).wait(LONG_S)
    (answer,) = [event.data for event in told if event.name == "run.answer"]
    assert (answer["prompt"], answer["new"], answer["reason"]) == (3, 2, "length")

"""Many stores filled by one forward hold what each would hold after a forward of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from loci.bench.contexts import Size, make
from loci.bench.reading import (
    FULL,
    MODES,
    Contender,
    Reading,
    Session,
    contenders,
    continuation,
    payload_hash,
    prompt_of,
    survival,
)
from loci.errors import MethodError
from loci.methods import catalogue
from loci.run.lab import Lab
from loci.testing.models import tiny_pack

SELECTS = ("snapkv(window=8)", "keydiff", "h2o(recent=8)", "streaming_llm", "random(window=8)")
CODES = ("bfp(bits=4,block=16)", "kivi(group=16,waiting=1)")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with tiny_pack(tmp_path_factory.mktemp("tiny"), max_context=4096) as pack:
        lab = Lab(pack, context=1024)
        yield lab
        lab.close()


@pytest.fixture
def ids() -> list[int]:
    return torch.randint(0, 256, (300,), generator=torch.Generator().manual_seed(0)).tolist()


def test_one_forward_fills_every_store_as_its_own_would(lab: Lab, ids: list[int]) -> None:
    cells = contenders((*SELECTS, *CODES), (0.9,), lab.spec.kv_bytes(len(ids)))
    reading = Reading(lab, max_tokens=400, chunk=len(ids))
    with reading.sessions(ids, cells) as sessions:
        assert [cell.name for cell in sessions] == [FULL, *SELECTS, *CODES]
        for cell, session in sessions.items():
            alone = Session.over(session.reader.runner, reading.open(cell), cell)
            alone.reader.prefill(ids[:-1])
            for layer in range(lab.spec.layers):
                ours, theirs = (s.store.view(layer).dense() for s in (session, alone))
                assert torch.equal(ours.positions, theirs.positions)
                torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-3, atol=1e-3)
            assert sum(session.store.nbytes().values()) == reading.predicted(cell)
            alone.release()
    reading.close()


def test_a_method_that_probes_is_read_by_chunks_of_its_own(lab: Lab, ids: list[int]) -> None:
    cells = contenders(("kvzip",), (0.6,), lab.spec.kv_bytes(len(ids)))
    assert cells[1].reads_alone() and not cells[0].reads_alone()
    reading = Reading(lab, max_tokens=400, chunk=len(ids))
    with reading.sessions(ids, cells) as sessions:
        store = sessions[cells[1]].store
        assert store.length == len(ids) - 1
        assert store.held_tokens(0) < len(ids)
    reading.close()


def test_who_has_no_budget_is_left_out_and_nothing_stays_behind(lab: Lab, ids: list[int]) -> None:
    before = lab.ledger.used("dram")
    reading = Reading(lab, max_tokens=400, chunk=len(ids))
    poor = Contender(name="keydiff", budget_bytes=2000, share=0.01)
    with reading.sessions(ids, [Contender(name=FULL), poor]) as sessions:
        assert poor not in sessions and len(sessions) == 1
    reading.close()
    assert lab.ledger.used("dram") == before


@pytest.mark.parametrize("mode", MODES)
def test_the_answer_comes_from_what_was_kept(lab: Lab, mode: str) -> None:
    item = make("lookup", lab.tokenizer, Size(tokens=600, facts=10), 0, turns=3)
    prompt = prompt_of(item, mode)
    cells = [
        Contender(name=FULL),
        *(
            Contender(name="streaming_llm(sinks=0,window=4)", budget_bytes=10**6, share=share)
            for share in (0.5,)
        ),
    ]
    reading = Reading(lab, max_tokens=len(prompt) + item.longest(), chunk=len(prompt))
    with reading.sessions(prompt, cells) as sessions:
        full, short = (MODES[mode](item, session, prompt[-1:]) for session in sessions.values())
    reading.close()
    assert len(full) == len(short) == 3
    assert all(answer.survival == 1.0 for answer in full)
    assert all(answer.survival == 0.0 for answer in short)
    assert full[0].loss != pytest.approx(short[0].loss, rel=1e-4)  # not the loss of a full forward


def test_requests_leave_the_shared_cache_as_it_was(lab: Lab) -> None:
    item = make("needle", lab.tokenizer, Size(tokens=900, facts=6), 0, turns=2)
    reading = Reading(lab, max_tokens=len(item.ids) + item.longest(), chunk=len(item.ids))
    cells = contenders(SELECTS, (0.9,), lab.spec.kv_bytes(len(item.ids)))
    with reading.sessions(item.ids, cells) as sessions:
        for session in sessions.values():
            before = payload_hash(session.store)
            fork = session.fork()
            first = MODES["multi_request"](item, fork, item.ids[-1:])
            fork.release()
            assert payload_hash(session.store) == before
            fork = session.fork()
            again = MODES["multi_request"](item, fork, item.ids[-1:])
            fork.release()
            assert first == again
    reading.close()


def test_a_session_and_single_requests_agree_on_the_full_cache(lab: Lab) -> None:
    item = make("needle", lab.tokenizer, Size(tokens=900, facts=6), 2, turns=1)
    found = {}
    for mode in MODES:
        prompt = prompt_of(item, mode)
        reading = Reading(lab, max_tokens=len(prompt) + item.longest(), chunk=len(prompt))
        with reading.sessions(prompt, [Contender(name=FULL)]) as sessions:
            [session] = sessions.values()
            found[mode] = MODES[mode](item, session, prompt[-1:])[0].loss
        reading.close()
    assert found["multi_turn"] == pytest.approx(found["multi_request"], rel=1e-3)


def test_a_continuation_predicts_every_token_once(lab: Lab, ids: list[int]) -> None:
    reading = Reading(lab, max_tokens=400, chunk=300)
    with reading.sessions(ids[:200], [Contender(name=FULL)]) as sessions:
        [session] = sessions.values()
        rows_TV = continuation(session, ids[199:200], ids[200:240])
    reading.close()
    assert rows_TV.shape == (40, lab.spec.vocab)
    whole = lab.store()
    with lab.reading(whole) as prefiller:
        logits = prefiller.runner.forward(torch.tensor([ids[:240]]), whole, logits="all")
    whole.release()
    expected = torch.log_softmax(logits[0], -1)[199:239]
    torch.testing.assert_close(rows_TV, expected, rtol=0.02, atol=0.02)


def test_what_is_read_on_is_judged_by_methods_that_probe(tmp_path: Path, ids: list[int]) -> None:
    with tiny_pack(tmp_path, max_context=4096) as pack:
        lab = Lab(pack, context=300, chunk=64)
        chain = catalogue.parse_chain("kvzip", "kv")
        budget = lab.spec.kv_bytes(300) * 3 // 4
        steps = list(lab.continuation(ids[:240], 200, chain, step=16, budget_bytes=budget))
        lab.close()
    assert sum(len(logits_TV) for logits_TV, _ in steps) == 40
    assert all(nbytes <= budget for _, nbytes in steps)


def test_survival_counts_tokens_of_layers_and_heads(lab: Lab, ids: list[int]) -> None:
    reading = Reading(lab, max_tokens=400, chunk=300)
    with reading.sessions(ids, [Contender(name="streaming_llm(sinks=8,window=32)")]) as sessions:
        [session] = sessions.values()
        assert survival(session.store, (0, 8)) == 1.0
        assert survival(session.store, (4, 12)) == 0.5
        assert survival(session.store, (100, 120)) == 0.0
    reading.close()


def test_only_an_exact_store_is_attended_to(lab: Lab) -> None:
    from loci.bench.reading import Fan

    store = lab.store(Contender(name="keydiff").chain())
    with pytest.raises(MethodError, match="must be exact"):
        Fan([store])
    store.release()

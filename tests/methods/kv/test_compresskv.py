"""CompressKV against paper and pencil."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from loci.errors import ParameterError
from loci.methods.kv.compresskv import MOST, CompressKV, budgets
from loci.methods.kv.snapkv import SnapKV
from loci.nn.attend import attend_reference
from loci.nn.kv import DenseSegment, KVView, Seen
from loci.run.artefacts import Artefact
from loci.run.kvstore import KVStore
from loci.run.lab import Lab
from loci.testing.kv import Text, kept_positions, prepared, read, spec_of
from loci.testing.models import tiny_pack, tiny_pair


def seen_of(queries: list[list[float]], first: int, heads: list[int]) -> Seen:
    """Return queries of size 1, one list a head."""
    tensor = torch.tensor(queries)[None, :, :, None]
    positions = torch.arange(first, first + len(queries[0]))[None]
    return Seen(0, tensor, positions, prepared={"heads": torch.tensor([heads])})


def view_of(keys: list[list[float]]) -> KVView:
    """Return keys of size 1, one list a KV head."""
    tensor = torch.tensor(keys)[None, :, :, None]
    return KVView(0, len(keys), (DenseSegment(tensor, tensor, len(keys[0])),))


def test_only_the_chosen_heads_vote_each_with_its_own_keys() -> None:
    # Two query heads per KV head. Head 3 reads KV head 1, whose key ln 5 stands at place 1.
    view = view_of([[math.log(7), 0, 0, 0], [0, math.log(5), 0, 0]])
    seen = seen_of([[1.0], [1.0], [0.0], [1.0]], 3, [3])
    scores = CompressKV(heads=1, window=1, kernel=1).score(view, seen)
    expected = torch.tensor([1 / 8, 5 / 8, 1 / 8, math.inf])
    assert scores.shape == (1, 2, 4)
    torch.testing.assert_close(scores[0, 0], expected)
    torch.testing.assert_close(scores[0, 1], expected)  # the same tokens for all KV heads


def test_votes_of_queries_add_up_and_heads_are_averaged() -> None:
    view = view_of([[math.log(3), 0, 0, 0]])
    seen = seen_of([[1.0, 1.0], [0.0, 0.0]], 2, [0, 1])
    scores = CompressKV(heads=2, window=2, kernel=1).score(view, seen)
    first = (3 / 5 + 3 / 6 + 1 / 3 + 1 / 4) / 2  # queries at places 2 and 3 see 3 and 4 keys
    torch.testing.assert_close(scores[0, 0, 0], torch.tensor(first))
    assert scores[0, 0, 2:].isinf().all()


def test_where_no_head_was_found_all_of_them_vote() -> None:
    method, spec = CompressKV(heads=2), spec_of(layers=2, heads=4)
    heads = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.1, 0.4, 0.0, 0.2]])
    made = Artefact(
        method=method.preparation, fingerprint=spec.fingerprint, tensors={"heads": heads}
    )
    assert method.shared(spec, made)["heads"].tolist() == [[-1, -1], [1, 3]]
    view = view_of([[math.log(7), 0, 0, 0], [0, math.log(5), 0, 0]])
    seen = seen_of([[1.0], [1.0], [1.0], [1.0]], 3, [-1, -1])
    found = CompressKV(window=1, kernel=1).score(view, seen)[0, 0, :2]
    torch.testing.assert_close(found, torch.tensor([(7 / 10 + 1 / 8) / 2, (1 / 10 + 5 / 8) / 2]))


def test_layers_get_tokens_by_their_errors() -> None:
    # 4 layers of 100: 32 each, and 272 by errors; the first would be above three times the share.
    assert budgets([0.25, 0.25, 0.25, 0.25], 100) == [100.0] * 4
    assert budgets([0.5, 0.25, 0.25, 0.0], 100) == [168.0, 100.0, 100.0, 32.0]
    found = budgets([0.98, 0.01, 0.01, 0.0], 200)
    assert found[0] == MOST * 200 and found[3] == 32
    assert found[1] == found[2] == pytest.approx(84) and sum(found) == pytest.approx(800)
    assert sum(budgets([1.0, 0.0, 0.0, 0.0], 100)) == pytest.approx(400)
    assert budgets([0.9, 0.1], 20) == [20.0, 20.0]  # below the least there is nothing to share


def test_the_head_that_looks_at_needles_is_found() -> None:
    # Of the made-up model, head l looks far back in layer l; the others at sinks and neighbours.
    spec = spec_of(layers=3, heads=4)
    made = prepared(CompressKV(needles=6), spec)
    assert made.tensors["heads"].argmax(1).tolist() == [0, 1, 2]
    assert float(made.tensors["errors"].sum()) == pytest.approx(1.0)
    assert 0 <= made.facts["overlap"] <= 1


def test_keeps_the_needle_that_the_mean_of_all_heads_drowns() -> None:
    # The paper's point on a toy: one head points at the needle, three at other places.
    spec, place = spec_of(layers=4, kv_heads=1, heads=4), 20
    text = Text.of(spec, 120)
    ways = torch.eye(spec.head_dim) * 6
    text.keys_LBKTD.mul_(0.1)
    text.queries_LBHTD.mul_(0.1)
    text.keys_LBKTD[0, 0, 0, place] = ways[0]
    for at in range(40, 100):  # what the loud heads like
        text.keys_LBKTD[0, 0, 0, at] = ways[1]
    text.queries_LBHTD[0, 0, 2] += ways[0] / 6
    text.queries_LBHTD[0, 0, [0, 1, 3]] += ways[1]
    made = Artefact(
        method=CompressKV(heads=1).preparation,
        fingerprint=spec.fingerprint,
        tensors={
            "heads": torch.tensor([[0.0, 0.0, 1.0, 0.0]] * 4),
            "errors": torch.full((4,), 0.25),
        },
    )

    def holds(method: CompressKV | SnapKV) -> bool:
        from loci.methods.kv.store_plan import budget_for

        chain = (method,)
        store = KVStore(
            spec,
            chain,
            max_tokens=120,
            chunk=120,
            budget_bytes=budget_for(spec, chain, 24, max_tokens=120, chunk=120),
            artefacts={"compresskv": made} if isinstance(method, CompressKV) else None,
        )
        read(store, text)
        return bool((kept_positions(store) == place).any())

    assert holds(CompressKV(heads=1, kernel=1))
    assert not holds(SnapKV(window=8, kernel=1))


def test_a_transformers_model_is_asked_the_same_needles(tmp_path: Path) -> None:
    from loci.run.hf import prepare

    class Bytes:
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            assert not add_special_tokens
            return list(text.encode())

    pack, model = tiny_pair(tmp_path, bits=None, max_context=1024)
    ids = torch.tensor([list(text.encode()[:420]) for text in Lab(pack).texts()[:16]])
    theirs = prepare(model, "compresskv(needles=4)", ids, tokenizer=Bytes())  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="questions of its own"):
        prepare(model, "compresskv(needles=2)", ids)
    ours = CompressKV(needles=4).prepare(Lab(pack))
    pack.close()
    torch.testing.assert_close(theirs.tensors["heads"], ours.tensors["heads"], rtol=1e-3, atol=1e-4)
    assert theirs.tensors["errors"].shape == ours.tensors["errors"].shape == (2,)
    assert theirs.facts["needles"] == 4


def test_the_lab_shows_true_attention(tmp_path: Path) -> None:
    with tiny_pack(tmp_path / "tiny") as pack:
        lab = Lab(pack, chunk=64)
        ids = list(range(40, 140))
        found = list(lab.attention(ids, 5))
        assert lab.ledger.by_kind("dram").get("kv", 0) == 0
        store = lab.store()
        with lab.reading(store) as prefiller:
            prefiller.prefill(ids[:-5])
            for seen, (weights_HtS, values_KSD) in zip(
                prefiller.probe(ids[-5:]), found, strict=True
            ):
                assert weights_HtS.shape == (lab.spec.heads, 5, 100)
                torch.testing.assert_close(weights_HtS.sum(-1), torch.ones(lab.spec.heads, 5))
                block = store.view(seen.layer).dense()
                # What the last query gives to the past, up to what it gives to the last tokens.
                keys = block.keys
                seen_all = torch.ones(1, 1, 1, 95, dtype=torch.bool)
                o, _ = attend_reference(
                    seen.queries[:, :, -1:], keys, block.values, seen_all, lab.spec.head_dim**-0.5
                )
                past = weights_HtS[:, -1:, :95]
                past = past / past.sum(-1, keepdim=True)
                groups = lab.spec.groups
                mixed = past @ values_KSD[:, :95].repeat_interleave(groups, 0)
                torch.testing.assert_close(mixed, o[0], rtol=1e-3, atol=1e-4)
        store.release()
        lab.close()

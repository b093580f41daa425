"""What is relied on inside transformers, and that Loci's cache equals its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from loci.errors import BudgetError, FingerprintError, FormatError, LociError, ParameterError
from loci.run import hf
from loci.testing.models import tiny_pack, tiny_pair

EXACT = 1e-5


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return tiny_pair(tmp_path)[1]


def ids_of(count: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (batch, count), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, ids: Tensor, cache: Any, **arguments: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = hf.forward_with(model, ids, cache, **arguments).logits
    return found


def state_of(model: Any) -> list[Any]:
    """Return everything that attaching could change, in a form that can be compared."""
    parts: list[Any] = [model.config.to_dict(), model.config._attn_implementation]
    for name, module in model.named_modules():
        hooks = {key: list(value) for key, value in module.__dict__.items() if "hooks" in key}
        children = [(key, id(child)) for key, child in module.named_children()]
        tensors = [(key, id(t), t._version) for key, t in module.named_parameters(recurse=False)]
        tensors += [(key, id(t), t._version) for key, t in module.named_buffers(recurse=False)]
        own = sorted(module.__dict__)
        parts.append((name, type(module), id(type(module).forward), hooks, children, tensors, own))
    return parts


def turns_of(model: Any, cache: Any, parts: list[Tensor], mask: Tensor) -> list[Tensor]:
    """Return the logits of a conversation whose first part is padded on the left by `mask`."""
    found, seen = [], 0
    for part in parts:
        seen += part.shape[1]
        now = torch.ones(mask.shape[0], seen, dtype=mask.dtype)
        now[:, : mask.shape[1]] = mask[:, :seen]
        # As generate() does: positions count what is no padding.
        places = (now.cumsum(1) - 1).clamp(min=0)[:, -part.shape[1] :]
        found.append(logits(model, part, cache, attention_mask=now, position_ids=places))
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma"])
def test_our_transformers_model_is_theirs(tmp_path: Path, architecture: str) -> None:
    pack, model = tiny_pair(tmp_path, architecture=architecture)
    ids = ids_of(24)
    with torch.inference_mode():
        assert torch.allclose(hf.model_of(pack)(ids).logits, model(ids).logits, atol=EXACT)


def test_logits_equal_the_dynamic_cache(model: Any) -> None:
    ids = ids_of(30)
    theirs = DynamicCache()
    expected = [logits(model, ids[:, :20], theirs), logits(model, ids[:, 20:23], theirs)]
    expected += [logits(model, ids[:, i : i + 1], theirs) for i in range(23, 30)]
    with hf.cache(model) as cache:
        found = [logits(model, ids[:, :20], cache), logits(model, ids[:, 20:23], cache)]
        found += [logits(model, ids[:, i : i + 1], cache) for i in range(23, 30)]
        assert cache.get_seq_length() == 30
    for ours, other in zip(found, expected, strict=True):
        assert torch.allclose(ours, other, atol=EXACT)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("mistral", {"window": 6}),
        ("gemma", {}),
    ],
)
def test_padded_rows_and_turns_equal_the_dynamic_cache(
    tmp_path: Path, architecture: str, sizes: dict[str, Any], attention: str
) -> None:
    model = tiny_pair(tmp_path, architecture=architecture, **sizes)[1]
    model.set_attn_implementation(attention)
    parts = [ids_of(n, batch=3, seed=n) for n in (12, 1, 5, 1, 1)]
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[1, :4], mask[2, :9] = 0, 0
    expected = turns_of(model, DynamicCache(config=model.config), parts, mask)
    before = state_of(model)
    with hf.cache(model, context=64) as cache:
        found = turns_of(model, cache, parts, mask)
    assert state_of(model) == before
    for ours, other in zip(found, expected, strict=True):
        for row in range(3):
            real = mask[row].bool() if other.shape[1] == 12 else slice(None)
            assert torch.allclose(ours[row, real], other[row, real], atol=EXACT)


def test_generate_goes_on_from_a_fork_and_from_a_snapshot(model: Any) -> None:
    ids = ids_of(14, batch=2)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    name = hf.cache_argument(model)
    arguments = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with hf.cache(model, context=64) as cache:
        first = model.generate(ids, attention_mask=mask, **{name: cache}, **arguments)
        longer = torch.cat([mask, torch.ones(2, first.shape[1] - 14 + 3, dtype=mask.dtype)], 1)
        one, two = (torch.cat([first, ids_of(3, 2, seed)], dim=1) for seed in (7, 8))
        expected = [
            model.generate(more, attention_mask=longer, **{name: DynamicCache()}, **arguments)
            for more in (one, two)
        ]
        tensors, facts = cache.snapshot()
        kept = {key: tensor.clone() for key, tensor in tensors.items()}
        with cache.fork() as twin:
            found = [
                model.generate(more, attention_mask=longer, **{name: held}, **arguments)
                for more, held in ((one, cache), (two, twin))
            ]
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    with hf.cache(model) as cache:
        logits(model, ids_of(3), cache)  # what it held goes
        cache.restore(kept, facts)
        again = model.generate(two, attention_mask=longer, **{name: cache}, **arguments)
        assert torch.equal(again, expected[1])
        assert cache.get_max_length() == 64


def test_a_snapshot_of_another_model_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    mine, theirs = tiny_pair(tmp_path / "a")[1], tiny_pair(tmp_path / "b", seed=1)[1]
    ids = ids_of(12)
    with hf.cache(theirs) as cache:
        logits(theirs, ids, cache)
        tensors, facts = cache.snapshot()
    with hf.cache(mine) as cache, hf.cache(mine) as other:
        logits(mine, ids[:, :8], cache)
        logits(mine, ids[:, :8], other)
        with pytest.raises(FingerprintError, match="another fingerprint"):
            cache.restore(tensors, facts)
        with pytest.raises(FormatError, match="version"):
            cache.restore(tensors, {**facts, "version": 99})
        assert torch.equal(logits(mine, ids[:, 8:], cache), logits(mine, ids[:, 8:], other))


def test_a_chain_that_repeats_the_context_goes_on_after_a_restore(model: Any) -> None:
    ids, options = ids_of(60), {"budget": "32KiB", "context": 96, "chunk": 32}

    def read(cache: Any, part: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.cat([logits(model, piece, cache) for piece in part.split(20, dim=1)], 1)

    with hf.cache(model, "kvzip", **options) as cache:
        read(cache, ids[:, :40])
        tensors, facts = cache.snapshot()
        kept = {key: tensor.clone() for key, tensor in tensors.items()}
        expected = read(cache, ids[:, 40:])
    with hf.cache(model, "kvzip", **options) as cache:
        cache.restore(kept, facts)
        assert torch.equal(read(cache, ids[:, 40:]), expected)


def test_generate_equals_the_dynamic_cache_with_padding_and_turns(model: Any) -> None:
    ids = ids_of(14, batch=3)
    mask = torch.ones_like(ids)
    mask[1, :5], mask[2, :9] = 0, 0
    arguments = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(
        ids, attention_mask=mask, **{hf.cache_argument(model): DynamicCache()}, **arguments
    )
    with hf.cache(model) as cache:
        found = model.generate(
            ids, attention_mask=mask, **{hf.cache_argument(model): cache}, **arguments
        )
        assert torch.equal(found, expected)
        more = torch.cat([found, ids_of(5, batch=3, seed=9)], dim=1)
        longer = torch.cat([mask, torch.ones(3, more.shape[1] - 14, dtype=mask.dtype)], dim=1)
        second = model.generate(
            more, attention_mask=longer, **{hf.cache_argument(model): cache}, **arguments
        )
    fresh = model.generate(more, attention_mask=longer, **arguments)
    assert torch.equal(second, fresh)


def test_beam_search_reorders_rows(model: Any) -> None:
    ids = ids_of(10)
    arguments = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **{hf.cache_argument(model): DynamicCache()}, **arguments)
    with hf.cache(model) as cache:
        assert torch.equal(
            model.generate(ids, **{hf.cache_argument(model): cache}, **arguments), expected
        )


def test_a_fork_and_its_origin_go_their_own_ways(model: Any) -> None:
    ids = ids_of(16)
    with hf.cache(model) as cache:
        logits(model, ids[:, :10], cache)
        with cache.fork() as twin:
            left = logits(model, ids[:, 10:13], cache)
            right = logits(model, ids[:, 13:16], twin)
    theirs = DynamicCache()
    logits(model, ids[:, :10], theirs)
    assert torch.allclose(left, logits(model, ids[:, 10:13], theirs), atol=EXACT)
    other = DynamicCache()
    logits(model, ids[:, :10], other)
    assert torch.allclose(right, logits(model, ids[:, 13:16], other), atol=EXACT)


@pytest.mark.parametrize("chain", ["", "bfp(bits=6,block=16)", "streaming_llm"])
def test_a_snapshot_restores_bit_by_bit(model: Any, chain: str) -> None:
    ids = ids_of(80)
    with hf.cache(model, chain, context=128) as cache:
        logits(model, ids[:, :70], cache)
        tensors, facts = cache.snapshot()
        kept = {name: tensor.clone() for name, tensor in tensors.items()}
        expected = logits(model, ids[:, 70:], cache)
    with hf.cache(model, chain, context=128) as cache:
        cache.restore(kept, facts)
        assert cache.get_seq_length() == 70
        assert torch.equal(logits(model, ids[:, 70:], cache), expected)


def test_detaching_restores_the_model_exactly(model: Any) -> None:
    before, ids = state_of(model), ids_of(6)
    first, second = hf.cache(model), hf.cache(model)
    assert state_of(model) != before
    logits(model, ids, first)
    first.close()
    assert model.config._attn_implementation == hf.NAME
    second.close()
    assert state_of(model) == before
    with pytest.raises(RuntimeError, match="stop"), hf.cache(model):
        raise RuntimeError("stop")
    assert state_of(model) == before
    for wrong in ("no-such-method", "bfp | snapkv"):
        with pytest.raises(LociError):
            hf.cache(model, wrong)
    assert state_of(model) == before
    with pytest.raises(BudgetError), hf.cache(model, "snapkv", budget=1) as cache:
        logits(model, ids, cache)
    assert state_of(model) == before
    with pytest.raises(ParameterError, match="closed"):
        logits(model, ids, first)


def test_other_caches_keep_working_beside_ours(model: Any) -> None:
    ids = ids_of(12, batch=2)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with torch.inference_mode():
        expected = model(ids, attention_mask=mask).logits
        with hf.cache(model):
            found = model(ids, attention_mask=mask).logits
            again = logits(model, ids, DynamicCache(), attention_mask=mask)
    assert torch.allclose(found[0], expected[0], atol=EXACT)
    assert torch.allclose(found[1, 3:], expected[1, 3:], atol=EXACT)
    assert torch.allclose(again[1, 3:], expected[1, 3:], atol=EXACT)


def test_two_models_in_one_run(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    small = tiny_pair(tmp_path / "a")[1]
    large = tiny_pair(tmp_path / "b", seed=1, layers=3)[1]
    ids, models = ids_of(9), (small, large)
    steps = [ids[:, :5], ids[:, 5:6], ids[:, 6:]]
    plain = [DynamicCache(), DynamicCache()]
    expected = [[logits(m, part, c) for part in steps] for m, c in zip(models, plain, strict=True)]
    before = [state_of(small), state_of(large)]
    with hf.cache(large) as two:
        with hf.cache(small) as one:
            for turn, part in enumerate(steps[:2]):  # a step of one, a step of the other
                for m, held, truth in zip(models, (one, two), expected, strict=True):
                    assert torch.allclose(logits(m, part, held), truth[turn], atol=EXACT)
        assert state_of(small) == before[0]  # one is free while the other goes on
        assert torch.allclose(logits(large, steps[2], two), expected[1][2], atol=EXACT)
    assert [state_of(small), state_of(large)] == before


@pytest.mark.parametrize("chain", ["snapkv(window=4)", "kvzip", "random", "streaming_llm"])
def test_selection_frees_storage(model: Any, chain: str) -> None:
    ids = ids_of(200)
    with hf.cache(model, context=256) as full:
        logits(model, ids, full)
        whole = full.nbytes
    with hf.cache(model, chain, budget=3 * whole // 4, context=256, chunk=40) as cache:
        for part in ids.split(40, dim=1):
            logits(model, part, cache)
        assert cache.get_seq_length() == 200
        assert cache.nbytes <= 3 * whole // 4
        assert torch.isfinite(logits(model, ids[:, :1], cache)).all()


def test_padding_on_the_right_is_refused(model: Any) -> None:
    ids, mask = ids_of(6), torch.ones(1, 6, dtype=torch.long)
    mask[0, -2:] = 0
    with hf.cache(model) as cache, pytest.raises(ParameterError, match="left"):
        logits(model, ids, cache, attention_mask=mask)


def test_packed_weights_stand_in_and_go_away(model: Any) -> None:
    ids, before = ids_of(8), state_of(model)
    with torch.inference_mode():
        expected = model(ids).logits
        with hf.compressed(model, "groupwise(bits=8)") as run:
            dense = sum(p.untyped_storage().nbytes() for p in run.model.parameters())
            assert dense < run.nbytes
            near = model(ids).logits
        assert torch.equal(model(ids).logits, expected)
    assert state_of(model) == before
    assert 0 < (near - expected).abs().max() < 0.2
    with pytest.raises(RuntimeError, match="stop"), hf.compressed(model, "groupwise(bits=4)"):
        raise RuntimeError("stop")
    assert state_of(model) == before


def test_a_budget_too_small_for_the_weights_changes_nothing(model: Any) -> None:
    before = state_of(model)
    with (
        pytest.raises(BudgetError, match="short"),
        hf.compressed(model, "groupwise(bits=4)", budget="1KiB"),
    ):
        pass
    assert state_of(model) == before


def test_load_gives_plain_transformers_objects(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path)
    model, tokenizer = hf.load(str(pack.path), folder=tmp_path)
    ids = tokenizer("hello", return_tensors="pt", add_special_tokens=False).input_ids
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, ids.shape[1] + 3)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("assistant\n")

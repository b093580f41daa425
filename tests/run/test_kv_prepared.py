"""What methods of the KV cache prepare for a model, and how it reaches them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from loci.errors import FingerprintError, MethodError, NotFoundError, ParameterError
from loci.methods.kv.cskv import Cskv
from loci.methods.kv.prefixkv import PrefixKVOffline
from loci.methods.kv.snapkv import SnapKV
from loci.models.pack import open_pack
from loci.plan import plan as make_plan
from loci.run import engine, hf
from loci.run.lab import Lab
from loci.run.prepare import prepare
from loci.testing.models import tiny_pack, tiny_pair


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a models folder with a model named small."""
    home = tmp_path_factory.mktemp("models")
    tiny_pack(home / "small", max_context=256).close()
    return home


def test_a_lab_shows_keys_before_their_rotation(tmp_path: Path) -> None:
    pack, model = tiny_pair(tmp_path, bits=None)
    seen: dict[str, torch.Tensor] = {}
    for name in ("k_proj", "v_proj"):
        module = model.model.layers[1].self_attn.get_submodule(name)
        module.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    lab = Lab(pack, context=40)
    try:
        ids = lab.tokenizer.encode("Nothing is lost that was put in its place.")[:40]
        with torch.inference_mode():
            model(torch.tensor([ids]))
        with lab.activations(
            ["Nothing is lost that was put in its place."] * 2, ("keys", "values")
        ) as walk:
            found = [(tap, layer, x.clone()) for tap, layer, x in walk]
        assert len(found) == 8
        for tap, layer, x_1KTD in found:
            if layer == 1:
                want = seen["k_proj" if tap == "keys" else "v_proj"]
                torch.testing.assert_close(
                    x_1KTD[0].transpose(0, 1).flatten(1), want[0], rtol=1e-3, atol=1e-4
                )
        with pytest.raises(ParameterError, match="no such tap"), lab.activations([], ("noise",)):
            pass
    finally:
        lab.close()


def test_prepared_once_and_kept_beside_the_model(folder: Path) -> None:
    with open_pack(folder / "small") as pack:
        made = prepare(pack, "cskv(density_k=0.25)", folder)
        assert made["kind"] == "artefact" and Path(made["path"]).stat().st_size > made["bytes"] > 0
        before = Path(made["path"]).stat().st_mtime_ns
        again = prepare(pack, "cskv", folder)
        assert again["path"] == made["path"] and Path(made["path"]).stat().st_mtime_ns == before
        with pytest.raises(MethodError, match="nothing to prepare") as caught:
            prepare(pack, "snapkv", folder)
        assert "cskv" in str(caught.value)
        with pytest.raises(ParameterError, match="changes no weights"):
            prepare(pack, "cskv", folder, weights="1MiB")


def test_a_session_needs_what_was_prepared(tmp_path: Path) -> None:
    tiny_pack(tmp_path / "small", max_context=256).close()
    plan = make_plan(
        "small", folder=tmp_path, cache=tmp_path / ".cache", dram="16MiB", context=128,
        new_tokens=8, kv="cskv(window=8)",
    )  # fmt: skip
    with pytest.raises(NotFoundError, match="nothing was prepared") as caught:
        engine.open(plan, folder=tmp_path)
    assert "loci methods prepare" in str(caught.value)
    with open_pack(tmp_path / "small") as pack:
        prepare(pack, "cskv", tmp_path)
    with engine.open(plan, folder=tmp_path) as session:
        answer = "".join(session.generate("What is a budget, and who may spend it?"))
        assert answer == session.answer
        report = session.report()
        assert report["bytes"]["predicted"] == report["bytes"]["ledger"]


def test_transformers_models_are_looked_at_with_ids(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    model = tiny_pair(tmp_path / "a", bits=None)[1]
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (3, 40), generator=draw)
    before = sum(len(m._forward_pre_hooks) for m in model.modules())
    made = hf.prepare(model, "cskv", ids)
    chain = "cskv(density_k=1, density_v=1, window=4, dtype=float32)"
    with torch.inference_mode():
        want = model(ids).logits
        with hf.cache(model, chain, artefacts=[made], context=64) as cache:
            parts = [hf.forward_with(model, part, cache).logits for part in ids.split(10, 1)]
            with cache.fork() as twin:
                assert twin.nbytes == cache.nbytes
    torch.testing.assert_close(torch.cat(parts, 1), want, rtol=1e-3, atol=1e-3)
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == before
    with pytest.raises(MethodError, match="was given nothing"), hf.cache(model, "cskv") as cache:
        hf.forward_with(model, ids, cache)
    other = tiny_pair(tmp_path / "b", seed=1, bits=None)[1]
    with (
        pytest.raises(FingerprintError, match="something else"),
        hf.cache(other, "cskv", artefacts=[made]) as cache,
    ):
        hf.forward_with(other, ids, cache)
    with pytest.raises(MethodError, match="needs nothing prepared"):
        hf.prepare(model, SnapKV(), ids)


def test_the_name_of_what_is_prepared_leaves_out_what_does_not_matter() -> None:
    assert Cskv(density_k=0.3).preparation == Cskv().preparation == "cskv"
    assert SnapKV(window=3).preparation == "snapkv(window=3)"


def test_attention_of_a_text_adds_up_to_its_queries(folder: Path) -> None:
    with open_pack(folder / "small") as pack:
        lab = Lab(pack, context=100, chunk=32)
        try:
            text = "What everybody looks at is the beginning, and then the end."
            with lab.activations([text], ("attention",)) as walk:
                found = [(layer, sums.clone()) for _, layer, sums in walk]
            assert [layer for layer, _ in found] == list(range(pack.spec.layers))
            for _, sums in found:
                assert sums.shape == (32,) and float(sums.sum()) == pytest.approx(32, rel=1e-4)
                assert float(sums[0]) > 1.0  # the first query has nothing else to look at
            made = lab.prepared(PrefixKVOffline(samples=2))
            curves = made.tensors["curves"]
            assert (curves.diff(dim=1) >= 0).all() and torch.allclose(curves[:, -1], torch.ones(1))
        finally:
            lab.close()


def test_layers_encoded_together_generate_what_nothing_encoded_does(tmp_path: Path) -> None:
    # Full rank loses nothing, so padded rows and a second turn must come out as in transformers.
    model = tiny_pair(tmp_path, bits=None, layers=3)[1]
    ids = torch.randint(0, 256, (2, 90), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    name = hf.cache_argument(model)
    arguments = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    want = model.generate(ids, attention_mask=mask, **{name: DynamicCache()}, **arguments)
    chain = "xkv(group=2, rank_k=64, rank_v=64, segment=64, window=4, dtype=float32)"
    with hf.cache(model, chain, context=200, chunk=90) as cache:
        got = model.generate(ids, attention_mask=mask, **{name: cache}, **arguments)
        assert torch.equal(got, want)
        more = torch.cat([got, ids[:, :60]], 1)
        longer = torch.cat([mask, torch.ones(2, 66, dtype=mask.dtype)], 1)
        again = model.generate(more, attention_mask=longer, **{name: cache}, **arguments)
        tensors, facts = cache.snapshot()
    fresh = model.generate(more, attention_mask=longer, **arguments)
    assert torch.equal(again, fresh)
    assert any(key.startswith("bases.") for key in tensors) and facts["chain"].startswith("xkv")

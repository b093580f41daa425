"""Caches that are fused, between tiny models: what is trained, put in, kept on disk, refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loci.core.ledger import Ledger
from loci.errors import (
    ContextError,
    FingerprintError,
    FormatError,
    LociError,
    MethodError,
    ParameterError,
)
from loci.methods import catalogue
from loci.methods.kv.c2c import C2c
from loci.models.pack import Pack
from loci.run import artefacts
from loci.run.artefacts import Artefact
from loci.run.fuse import Speaker, fuse, pair_of
from loci.run.fusers import Exchange, Frozen, FuserTraining, train_fuser
from loci.run.kvstore import KVStore
from loci.run.lab import NO_LIMIT
from loci.run.runner import Runner
from loci.run.weights import ResidentWeights
from loci.testing.models import tiny_pack

METHOD = C2c(hidden=12)
PROMPT = (5, 6, 7, 8, 9, 10)


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pack, Pack]:
    """Return a receiver and a sharer of other sizes."""
    folder = tmp_path_factory.mktemp("packs")
    return (
        tiny_pack(folder / "receiver", 1, None, vocab=280),
        tiny_pack(folder / "sharer", 2, None, vocab=280, layers=3, kv_heads=1, rope_theta=777.0),
    )


def exchanges() -> list[Exchange]:
    """Return prompts of two lengths, each with an answer of its own."""
    long = [Exchange(prompt=(*PROMPT, 20 + n), response=(40 + n, 50 + n)) for n in range(6)]
    return [*long, Exchange(prompt=PROMPT[:3], response=(60,))]


def trained(packs: tuple[Pack, Pack], steps: int = 60, seed: int = 0) -> Artefact:
    receiver, sharer = (Frozen.of(pack) for pack in packs)
    training = FuserTraining(steps=steps, batch=7, rate=1e-2, seed=seed)
    return train_fuser(receiver, sharer, exchanges(), METHOD, training)


@pytest.fixture(scope="module")
def fuser(packs: tuple[Pack, Pack]) -> Artefact:
    """Return a fuser that was trained."""
    return trained(packs)


def read(
    pack: Pack, ids: Tensor, chain: str = "", pad: Tensor | None = None, **how: int
) -> KVStore:
    """Return a store that holds what a model reads."""
    ledger = Ledger(NO_LIMIT)
    runner = Runner(pack.spec, ResidentWeights(pack, ledger), ledger, chunk=64, batch=len(ids))
    store = KVStore(
        pack.spec,
        catalogue.parse_chain(chain, "kv"),
        max_tokens=64,
        batch=len(ids),
        chunk=64,
        dtype=torch.float16 if how.pop("half", 0) else torch.float32,
        **how,  # type: ignore[arg-type]
    )
    runner.forward(ids, store, pad_B=pad, logits=None)
    return store


def held(store: KVStore) -> list[tuple[Tensor, Tensor]]:
    blocks = [store.view(layer).dense() for layer in range(store.spec.layers)]
    return [(block.keys, block.values) for block in blocks]


def is_same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return all(
        torch.equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


IDS, LONG = torch.tensor([[*PROMPT]]), torch.arange(40)[None] + 30


def test_a_fuser_learns_what_its_receiver_should_answer(fuser: Artefact) -> None:
    losses = fuser.facts["losses"]
    assert len(losses) == 60  # the last ones still have gates that are drawn shut
    assert sum(losses[-10:]) / 10 < 0.7 * losses[0]


def test_the_same_seed_gives_the_same_fuser(packs: tuple[Pack, Pack]) -> None:
    one, again, other = (trained(packs, 3, seed) for seed in (5, 5, 6))
    assert all(torch.equal(one.tensors[name], again.tensors[name]) for name in one.tensors)
    assert any(not torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_what_was_trained_is_what_a_store_gives(packs: tuple[Pack, Pack], fuser: Artefact) -> None:
    # The likeliest answer over the fused store is the one that was taught, by the native forward.
    receiver, sharer = packs
    right = 0
    for one in exchanges():
        ids = torch.tensor([one.prompt])
        own, theirs = read(receiver, ids[:, :-1]), read(sharer, ids[:, :-1])
        fuse(METHOD, own, [Speaker(store=theirs, artefact=fuser)])
        ledger = Ledger(NO_LIMIT)
        runner = Runner(receiver.spec, ResidentWeights(receiver, ledger), ledger, chunk=8)
        logits = runner.forward(ids[:, -1:], own)
        assert logits is not None
        right += int(logits.argmax()) == one.response[0]
    assert right >= 6


def test_it_is_kept_on_disk_for_these_two_models(
    packs: tuple[Pack, Pack], fuser: Artefact, tmp_path: Path
) -> None:
    receiver, sharer = packs
    pair = pair_of(receiver.spec, sharer.spec)
    path = artefacts.path_of(tmp_path, METHOD.preparation, pair)
    artefacts.save(fuser, path)
    back = artefacts.load(path, method=METHOD.preparation, fingerprint=pair)
    assert back.facts["layer_map"] == [1, 2]
    assert (back.facts["receiver"], back.facts["sharer"]) == (
        receiver.spec.fingerprint,
        sharer.spec.fingerprint,
    )
    ours, theirs = (read(receiver, IDS) for _ in range(2))
    for store, made in ((ours, fuser), (theirs, back)):
        fuse(METHOD, store, [Speaker(store=read(sharer, IDS), artefact=made)])
    assert is_same(held(ours), held(theirs))
    with pytest.raises(FingerprintError):
        artefacts.load(
            path, method=METHOD.preparation, fingerprint=pair_of(sharer.spec, receiver.spec)
        )


@pytest.mark.parametrize("half", [0, 1])
def test_closed_gates_leave_every_bit(packs: tuple[Pack, Pack], fuser: Artefact, half: int) -> None:
    receiver, sharer = packs
    shut = dataclasses.replace(
        fuser, tensors={**fuser.tensors, "gate": torch.full_like(fuser.tensors["gate"], -1)}
    )
    store = read(receiver, IDS, half=half)
    before = held(store)
    fuse(METHOD, store, [Speaker(store=read(sharer, IDS), artefact=shut)])
    assert is_same(before, held(store))
    fuse(METHOD, store, [Speaker(store=read(sharer, IDS), artefact=fuser)])
    assert not is_same(before, held(store))


def test_only_the_span_and_the_marked_tokens_change(
    packs: tuple[Pack, Pack], fuser: Artefact
) -> None:
    receiver, sharer = packs
    store, before = read(receiver, IDS), held(read(receiver, IDS))
    marks = torch.tensor([True, False, True])
    speaker = Speaker(store=read(sharer, IDS), artefact=fuser, speaks=marks)
    fuse(METHOD, store, [speaker], span=(2, 5))
    moved = [(a != b).any(-1).any(1)[0] for (a, _), (b, _) in zip(before, held(store), strict=True)]
    assert torch.stack(moved).any(0).tolist() == [False, False, True, False, True, False]


def test_padding_is_left_alone(packs: tuple[Pack, Pack], fuser: Artefact) -> None:
    receiver, sharer = packs
    pad = torch.tensor([0, 2])
    ids = torch.tensor([PROMPT, (0, 0, *PROMPT[:4])])
    store, before = (read(receiver, ids, pad=pad) for _ in range(2))
    fuse(METHOD, store, [Speaker(store=read(sharer, ids, pad=pad), artefact=fuser)])
    short = read(receiver, ids[1:, 2:])
    fuse(METHOD, short, [Speaker(store=read(sharer, ids[1:, 2:]), artefact=fuser)])
    for (keys, _), (was, _), (alone, _) in zip(held(store), held(before), held(short), strict=True):
        assert torch.equal(keys[1, :, :2], was[1, :, :2])
        torch.testing.assert_close(keys[1:, :, 2:], alone, rtol=1e-3, atol=1e-4)
    with pytest.raises(ParameterError, match="padding on the same side"):
        fuse(METHOD, before, [Speaker(store=read(sharer, ids), artefact=fuser)])


def test_a_sharers_cache_may_be_compressed_and_loaded(
    packs: tuple[Pack, Pack], fuser: Artefact
) -> None:
    receiver, sharer = packs
    theirs = read(sharer, LONG, "bfp(bits=8, block=16, window=8)")
    tensors, meta = theirs.snapshot()
    back = KVStore.restore(sharer.spec, theirs.chain, tensors, meta)
    exact, coded, loaded = (read(receiver, LONG) for _ in range(3))
    for store, of in ((exact, read(sharer, LONG)), (coded, theirs), (loaded, back)):
        fuse(METHOD, store, [Speaker(store=of, artefact=fuser)])
    assert is_same(held(coded), held(loaded))
    for (a, _), (b, _) in zip(held(exact), held(coded), strict=True):
        assert 0 < (a - b).norm() < 0.05 * a.norm()


def refused(
    packs: tuple[Pack, Pack], fuser: Artefact, kind: type[LociError], words: str, **change: object
) -> None:
    """Assert that a fuse is refused, and changes nothing."""
    receiver, sharer = packs
    own = change.pop("own", None) or read(receiver, IDS)
    theirs = change.pop("theirs", None) or read(sharer, IDS)
    made = change.pop("made", fuser)
    assert isinstance(own, KVStore) and isinstance(theirs, KVStore) and isinstance(made, Artefact)
    before = held(own)
    with pytest.raises(kind, match=words):
        fuse(METHOD, own, [Speaker(store=theirs, artefact=made)], **change)  # type: ignore[arg-type]
    assert is_same(before, held(own))


def test_what_cannot_be_fused_is_refused(packs: tuple[Pack, Pack], fuser: Artefact) -> None:
    receiver, sharer = packs
    short = read(sharer, IDS[:, 1:])
    refused(packs, fuser, ParameterError, "read the same prompts", theirs=short)
    refused(packs, fuser, ParameterError, "span is not in the cache", span=(2, 9))
    coded, theirs = read(receiver, LONG, "bfp(bits=8, block=16, window=8)"), read(sharer, LONG)
    refused(packs, fuser, MethodError, "evicted or encoded", own=coded, theirs=theirs)
    gone = read(receiver, LONG, "streaming_llm", budget_bytes=24_000)
    assert gone.held_tokens(0) < 40
    refused(packs, fuser, MethodError, "evicted or encoded", own=gone, theirs=read(sharer, LONG))
    lost = read(sharer, LONG, "streaming_llm", budget_bytes=18_000)
    assert lost.held_tokens(0) < 40
    refused(packs, fuser, MethodError, "hold every token", own=read(receiver, LONG), theirs=lost)
    other = dataclasses.replace(fuser, method="c2c(hidden=13, keys=plain)")
    refused(packs, fuser, FingerprintError, "for other models", made=other)
    other = dataclasses.replace(fuser, fingerprint=pair_of(sharer.spec, receiver.spec))
    refused(packs, fuser, FingerprintError, "for other models", made=other)
    less = {n: t for n, t in fuser.tensors.items() if n != "out"}
    refused(packs, fuser, FormatError, "lacks out", made=dataclasses.replace(fuser, tensors=less))
    facts = {**fuser.facts, "layer_map": [0, 9]}
    refused(packs, fuser, FormatError, "layer map", made=dataclasses.replace(fuser, facts=facts))
    small = dataclasses.replace(sharer.spec, max_context=3)
    theirs = read(sharer, IDS)
    theirs.spec = small
    refused(packs, fuser, ContextError, "reads at most 3 tokens", theirs=theirs)


def test_what_cannot_be_learned_from_is_refused(packs: tuple[Pack, Pack]) -> None:
    receiver, sharer = (Frozen.of(pack) for pack in packs)
    for bad, words in (
        ([], "at least one exchange"),
        ([Exchange(prompt=(1,), response=(2,))], "two tokens or more"),
        ([Exchange(prompt=(1, 2), response=(3,), shared=(1, 2, 3))], "same number of tokens"),
    ):
        with pytest.raises(ParameterError, match=words):
            train_fuser(receiver, sharer, bad, METHOD)
    with pytest.raises(ContextError, match="reads at most"):
        train_fuser(receiver, sharer, [Exchange(prompt=(1,) * 600, response=(2,))], METHOD)

"""EpiCache by hand: what is read, what stays, which layer gets what."""

from __future__ import annotations

import pytest
import torch

from loci.core.spec import ModelSpec
from loci.errors import ParameterError
from loci.methods.kv._patched import PatchedPrompt, PatchedPromptByHead, PatchedPromptByLayer
from loci.methods.kv.base import Select
from loci.methods.kv.epicache import EpiCache
from loci.methods.kv.read import CacheSet
from loci.methods.kv.store_plan import kept_tokens
from loci.nn.attend import attention_mass
from loci.run.kvstore import KVStore
from loci.testing.kv import (
    FakeArtefact,
    FakePrefiller,
    Text,
    kept_positions,
    prepared,
    read,
    spec_of,
    store_of,
)
from loci.testing.kv_reads import SUBJECTS, Subjects, history

PROMPT = (40, 41, 42)  # numbers of tokens whose queries ask, in texts that are made up

# Shapes: K key/value heads, S stored tokens, L layers.


class Noting:
    """A reader that only notes what it was told to read."""

    def __init__(self) -> None:
        self.spec: ModelSpec = spec_of()
        self.spec = ModelSpec(**{**self.spec.__dict__, "max_context": 4096})
        self.told: list[tuple[str, Select, int, int]] = []

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def embed(self, texts: list[str]) -> torch.Tensor:
        return torch.as_tensor(Subjects().encode(texts))

    def read(self, name: str, select: Select, ids: list[int], tokens: int) -> None:
        self.told.append((name, select, len(ids), tokens))


def test_an_episode_is_asked_for_by_the_segments_of_its_subject() -> None:
    reader, said = Noting(), history()
    held = EpiCache(episodes=3, medoids=1).read(reader, said, 20)
    assert held.of_segment == (0, 1, 2, 0, 1, 2)
    whole = len("".join(f"{line}\n" for line in said))
    assert [told[2:] for told in reader.told] == [(whole, 20)] * 3
    for (_, select, *_), subject in zip(reader.told, SUBJECTS, strict=True):
        assert isinstance(select, PatchedPrompt)
        prompt = bytes(select.ids).decode()
        assert subject in prompt and not any(s in prompt for s in SUBJECTS if s != subject)


def test_a_long_utterance_counts_by_its_sentences() -> None:
    long = "Ada: " + "I baked bread today. " * 30
    segments = EpiCache(utterances=4).segments(["Bob: hello.", long])
    assert len(segments) == 8 and segments[0].startswith("Bob: hello.")


def test_a_question_unlike_all_episodes_is_far() -> None:
    held = CacheSet(
        centroids=torch.eye(4)[:2], names=("a", "b"), segments=2,
        selects=(PatchedPrompt(ids=(1,)), PatchedPrompt(ids=(2,))),
    )  # fmt: skip
    method = EpiCache(threshold=0.2)
    near = method.route(torch.tensor([0.1, 0.9, 0.0, 0.0]), held)
    assert (near.cache, near.is_far) == (1, False) and near.similarity == pytest.approx(0.9)
    assert method.route(torch.tensor([0.1, 0.0, 0.0, 1.0]), held).is_far


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_entries_of_all_heads_of_a_layer_stay(seed: int) -> None:
    # One overflow of an exact cache, so what should stay is known from full attention.
    spec, keep, chunk, total = spec_of(kv_heads=4), 24, 16, 32
    text = Text.of(spec, 60, seed=seed)
    text.keys_LBKTD[:, :, 1] *= 3  # one head looks sharply, so others need more entries
    select = PatchedPromptByHead(ids=PROMPT, sinks=2)
    store = store_of(KVStore, (select,), keep=keep, chunk=chunk, spec=spec, max_tokens=60)
    read(store, text, stop=total)
    exact = store_of(KVStore, (), chunk=chunk, spec=spec, max_tokens=60)
    read(exact, text, stop=total)
    seen = {s.layer: s for s in FakePrefiller(exact, text).probe(PROMPT)}
    counts = set()
    for layer in range(spec.layers):
        scores_KS = attention_mass(
            seen[layer].queries, exact.view(layer), positions=seen[layer].positions,
            scale=spec.head_dim**-0.5, reduce="max",
        )[0]  # fmt: skip
        scores_KS[:, :2] = torch.inf
        best = scores_KS.flatten().topk(keep * spec.kv_heads).indices // total
        for head in range(spec.kv_heads):
            wanted = int((best == head).sum())
            held = kept_positions(store, layer)[0, head]
            held = held[held >= 0]
            counts.add(len(held))
            # Shares are fitted to whole numbers, and an eviction leaves a little room.
            assert kept_tokens(wanted - 1) <= len(held) <= min(wanted + 1, total)
            order = scores_KS[head].argsort(descending=True)[: len(held)]
            assert set(held.tolist()) == set(order.tolist())
    assert len(counts) > 1, "heads hold unequal numbers"


def test_no_layer_ever_holds_more_than_its_entries_and_a_block() -> None:
    select = PatchedPromptByHead(ids=PROMPT, sinks=2)
    text = Text.of(spec_of(), 150)
    store = store_of(KVStore, (select,), keep=20, chunk=16, max_tokens=160)
    _, prefiller = read(store, text)
    assert prefiller.probes == 150 // 16 - 20 // 16 + 1, "one probe for every block that overflows"
    for layer in range(2):
        assert store.held_entries(layer) <= 2 * 20
        assert (kept_positions(store, layer) == 0).any(-1).all(), "the sinks went"


def test_sensitive_layers_get_more_and_none_less_than_a_quarter() -> None:
    spec = spec_of(layers=3)
    found = prepared(EpiCache(), spec)
    assert found.method == "epicache" and found.tensors["similarity"].shape == (3,)
    similar = torch.tensor([0.9, 0.5, 0.7])
    made = FakeArtefact(
        method="epicache", fingerprint="", tensors={"similarity": similar}, facts={}
    )
    method = EpiCache(layers="own", sharpness=1.1)
    with pytest.raises(ParameterError, match="sensitive"):
        method.read(Noting(), history(), 20)
    reader = Noting()
    method.read(reader, history(), 20, made)
    shares = reader.told[0][1].shares  # type: ignore[attr-defined]
    assert sum(shares) == pytest.approx(3) and shares[0] == pytest.approx(0.25)
    assert shares[1] / shares[2] == pytest.approx(2**1.1)


def test_layers_share_and_heads_do_not_where_so_asked() -> None:
    select = PatchedPromptByLayer(ids=PROMPT, sinks=2, shares=(0.5, 1.5))
    store = store_of(KVStore, (select,), keep=20, chunk=16, max_tokens=160)
    read(store, Text.of(spec_of(), 150))
    assert store.held_tokens(0) <= 10 < 24 < store.held_tokens(1) <= 30
    assert (kept_positions(store, 1) >= 0).all()


def test_a_layer_that_overflows_alone_is_cut_alone() -> None:
    # The first layer has room for more than the second: its slots take what the other must drop.
    select = PatchedPromptByHead(ids=PROMPT, sinks=2, shares=(1.6, 0.4))
    store = store_of(KVStore, (select,), keep=40, chunk=16, max_tokens=160)
    text = Text.of(spec_of(), 150)
    read(store, text, stop=48)
    assert int((kept_positions(store, 0) >= 0).sum(-1).min()) == 48, "nothing had to go here"
    assert int((kept_positions(store, 1) >= 0).sum()) <= 2 * 40, "here it had"
    read(store, text, start=48)
    assert store.length == 150

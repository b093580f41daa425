"""Conversations in several caches, end to end on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from loci.methods.kv.epicache import EpiCache
from loci.run.episodes import CacheReader, Episodes
from loci.run.lab import Lab
from loci.run.parking import Parking
from loci.testing.kv_reads import TOKENS, Subjects, history
from loci.testing.models import tiny_pack
from loci.tiers.disk import DiskTier
from loci.tiers.dram import DramTier

METHOD = EpiCache(episodes=3, medoids=1, utterances=2)
SAID = history(6, 2)  # two segments of each subject: some two hundred tokens
BLOCK = 32  # tokens read at once, so that all but the first blocks evict


@pytest.fixture(params=["dram", "disk"])
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CacheReader]:
    pack = tiny_pack(tmp_path / "model", max_context=2048)
    lab = Lab(pack)
    tier: DramTier | DiskTier
    if request.param == "dram":
        tier = DramTier(lab.ledger)
    else:
        tier = DiskTier(tmp_path / "parked", lab.ledger, direct=False)
    made = CacheReader(
        lab.spec, lab.weights_source, lab.ledger, lab.tokenizer, Subjects(), Parking(tier),
        block=BLOCK, room=128,
    )  # fmt: skip
    used = {name: lab.ledger.used(name) for name in ("dram", "disk")}
    yield made
    made.release()
    assert {name: lab.ledger.used(name) for name in used}["disk"] == 0
    assert lab.ledger.used("dram") < used["dram"], "work buffers went back"
    if isinstance(tier, DiskTier):
        tier.close()
    lab.close()
    pack.close()


def test_a_question_goes_to_its_episode_and_leaves_nothing(reader: CacheReader) -> None:
    talk = Episodes(METHOD, reader, SAID, TOKENS)
    first = talk.answer("which river?", max_tokens=5)
    assert first.route.cache == talk.held.of_segment[1] and not first.from_text
    assert talk.answer("which river?", max_tokens=5) == first
    assert talk.answer("which violin?", max_tokens=5).route.cache == talk.held.of_segment[2]
    assert max(reader.peak_entries.values()) <= TOKENS + BLOCK


def test_what_is_like_no_episode_is_answered_from_the_text(reader: CacheReader) -> None:
    talk = Episodes(METHOD, reader, SAID, TOKENS)
    far = talk.answer("and the weather?", max_tokens=3)
    assert far.from_text and far.route.is_far
    ids = talk.texts_for("which bread?")
    assert len(ids) <= TOKENS
    near = Episodes(METHOD, reader, SAID, 200).texts_for("which bread?")
    assert 0 < len(near) <= 200 and "bread" in reader.decode(near)


def test_new_turns_go_to_the_cache_that_answered_last(reader: CacheReader) -> None:
    talk = Episodes(METHOD, reader, SAID, TOKENS)
    talk.answer("which violin?", max_tokens=3)
    violin = talk.held.of_segment[2]

    def lengths() -> list[int]:
        found = []
        for name, select in zip(talk.held.names, talk.held.selects, strict=True):
            with reader.brought(name, select) as brought:
                found.append(brought.store.length)
        return found

    before = lengths()
    assert talk.add(["Ada: the violin is old."]) is False
    after = lengths()
    assert [b - a for a, b in zip(before, after, strict=True)] == [
        24 if cache == violin else 0 for cache in range(3)
    ]
    assert talk.add(SAID) is True, "twice as many segments: everything is read anew"
    assert talk.held.segments == 13 and len(set(lengths())) == 1


def test_an_exact_cache_of_the_whole_history_answers_alike(reader: CacheReader) -> None:
    # Entries for all tokens: nothing is evicted, so every episode is the full cache.
    said = history(3, 2)
    talk = Episodes(METHOD, reader, said, 200)
    ids = [token for line in said for token in reader.encode(f"{line}\n")]
    question = reader.encode("which river?")
    with reader.plain(ids) as plain, talk.asked("which river?") as (brought, _):
        torch.testing.assert_close(plain.read(question), brought.read(question))

"""The suite of cubes, small: its week, its worlds, and what its parts say."""

from __future__ import annotations

from pathlib import Path

import pytest

from loci.bench import week
from loci.bench.suite import Context
from loci.bench.suites import cubes
from loci.core.arrange import Demote, Promote
from loci.core.cube import CubeHeader, MemoryKind, Usage
from loci.errors import ParameterError
from loci.methods.recall.memos import Memos
from loci.testing.models import tiny_pack


def account(topics: int = 20) -> week.Account:
    return week.Account(
        tokens=[100 + 37 * topic % 400 for topic in range(topics)],
        token_bytes=1000,
        read_s=0.01,
        load_s=1e-7,
        write_s=1e-7,
        question_s=0.1,
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_week_is_in_order_skewed_and_drifts(seed: int) -> None:
    asked = week.draw(50, 1400, seed)
    assert asked == week.draw(50, 1400, seed) != week.draw(50, 1400, seed + 1)
    assert len(asked) == 1400
    assert [one.at for one in asked] == sorted(one.at for one in asked)
    counts = sorted((sum(a.topic == t for a in asked) for t in range(50)), reverse=True)
    assert sum(counts[:5]) > 2 * sum(counts[-25:])
    halves = [{a.topic for a in asked if a.at.day == day} for day in (4, 10)]
    assert halves[0] != halves[1]


def test_least_recent_by_hand() -> None:
    world = account(3)
    world.tokens = [100, 100, 100]

    def at(topic: int, hour: int, kind: MemoryKind) -> object:
        usage = Usage(reads=1, last_read=f"2026-05-04T{hour:02}:00:00+00:00", heat=1.0)
        header = CubeHeader(id=f"cube-{topic}", kind=kind, usage=usage)
        return world.standing(topic, header, False)

    text, keys = MemoryKind.PLAINTEXT, MemoryKind.ACTIVATION
    held = [at(0, 8, keys), at(1, 9, keys), at(2, 10, text)]
    changes = week.least_recent(held, 200_000, week.BEGIN)  # type: ignore[arg-type]
    assert changes == [Demote(id="cube-0"), Promote(id="cube-2")]


def test_everybody_keeps_to_the_bytes_and_the_account_adds_up() -> None:
    asked, budget = week.draw(20, 300, 0), 500_000
    ways = {"never": week.never, "lru": week.least_recent, "memos": Memos().tick}
    found = {}
    for name, tick in ways.items():
        world = account()
        found[name] = week.replay(world, asked, 20, tick, budget)
        assert found[name]["bytes"] <= budget
        assert found[name]["total_s"] == pytest.approx(
            300 * found[name]["first_token_s"] + found[name]["upkeep_s"]
        )
    plain = sum(0.1 + 0.01 * account().tokens[one.topic] for one in asked)
    assert found["never"]["total_s"] == pytest.approx(plain)
    assert found["memos"]["total_s"] < found["lru"]["total_s"] < found["never"]["total_s"]
    assert found["memos"]["hit_rate"] > found["lru"]["hit_rate"] > 0
    dear = account()
    dear.write_s = 1.0  # what never pays for itself is left alone
    assert week.replay(dear, asked, 20, Memos().tick, budget)["promotions"] == 0


def test_all_parts_on_a_tiny_model(tmp_path: Path) -> None:
    tiny_pack(tmp_path / "small", layers=2, hidden=64, ffn=96, max_context=2048).close()
    result = cubes.run(Context(folder=tmp_path, model="small", quick=True))
    found = {part: ways["memos"] for part, ways in result["results"].items()}
    assert found["moves"] == {"same_bytes": 1.0, "same_payload": 1.0, "altered_refused": 1.0}
    assert found["prefix"]["same_tokens"] == 1.0
    assert found["prefix"]["logit_difference"] < 1e-4
    assert set(result["results"]["week"]) == set(result["results"]["trace"])
    for way in result["results"]["week"].values():
        assert way["same_tokens"] == 1.0
        assert way["bytes"] <= way["budget_bytes"]
    rows = cubes.card_rows(result)
    assert [row.part for row in rows] == list(cubes.PARTS)
    assert rows[3].metrics["total_s"]["rivals"].keys() == {"never", "lru"}


@pytest.mark.parametrize("options", [{"parts": "dreams"}, {"speed": "2"}, {"cases": "0"}])
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, str]) -> None:
    tiny_pack(tmp_path / "small", layers=1, hidden=64, ffn=96).close()
    context = Context(
        folder=tmp_path, model="small", quick=True, options={"parts": "prefix"} | options
    )
    with pytest.raises(ParameterError):
        cubes.run(context)

"""Recorded requests: how they are read, scaled and sent, and the suite on a tiny model."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loci.bench import traffic
from loci.bench.suite import Context
from loci.bench.suites import traces
from loci.bench.traffic import Call, Seen
from loci.errors import FormatError, ParameterError
from loci.methods import catalogue
from loci.nn import native
from loci.testing.models import tiny_pack
from loci.tiers.pages import why_not


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with small traces in the forms of the public ones."""
    folder = tmp_path / "data" / "traces"
    folder.mkdir(parents=True)
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    rows += [f"2023-11-16 18:15:{10 + i}.6805900,{100 + 50 * i},{10 + i}" for i in range(12)]
    (folder / "azure_conv_part.csv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    lines = [
        {"timestamp": 500 * i, "input_length": 1200, "output_length": 30, "hash_ids": [7, i]}
        for i in range(12)
    ]
    (folder / "mooncake.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "data"


def test_traces_are_found_and_read(data: Path, tmp_path: Path) -> None:
    azure = traffic.find(data, "conv_")
    mooncake = traffic.find(data / "traces", "mooncake")
    assert azure is not None and mooncake is not None
    first, second = traffic.read(azure, 2)
    assert (first.at_s, second.at_s, second.prompt, second.new) == (0.0, 1.0, 150, 11)
    third = traffic.read(mooncake, 5)[2]
    assert (third.at_s, third.prompt, third.new, third.blocks) == (1.0, 1200, 30, (7, 2))
    assert traffic.find(data, "burst") is None and traffic.find(azure, "conv_") == azure
    for name, text in (("a.csv", "a,b\n1,2\n"), ("b.jsonl", '{"timestamp": 1}'), ("c.csv", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(FormatError, match=name):
            traffic.read(tmp_path / name, 3)


def test_lengths_keep_their_proportion_and_shared_beginnings_stay_shared(data: Path) -> None:
    path = traffic.find(data, "mooncake")
    assert path is not None
    text = list(range(1000))
    one, two = traffic.scaled(traffic.read(path, 2), prompt=120, new=9, text=text, seed=1)
    assert (one.prompt, one.new, len(one.ids)) == (120, 9, 120)
    assert one.ids[:51] == two.ids[:51] and one.ids[51:] != two.ids[51:]  # a block of 51 tokens
    calls = [Call(number=i, at_s=0, prompt=10 * (i + 1), new=1) for i in range(20)]
    short = traffic.scaled(calls, prompt=19, new=4, text=text, seed=1)
    assert [c.prompt for c in short[3:6]] == [4, 5, 6] and max(c.prompt for c in short) == 19
    users = [c.user for c in traffic.scaled(calls * 20, prompt=9, new=2, text=text, seed=2)]
    assert 0.4 < users.count("user0") / len(users) < 0.6 and len(set(users)) == traffic.USERS


def test_streams_wait_for_their_answers_and_keep_to_the_times_given() -> None:
    calls = [Call(number=i, at_s=float(i), prompt=1, new=2, user="u") for i in range(6)]
    busy, most = [0], [0]

    def answer(call: Call) -> Iterator[int]:
        busy[0] += 1
        most[0] = max(most[0], busy[0])
        for _ in range(2):
            time.sleep(0.01)
            yield 1
        busy[0] -= 1
        if call.number == 3:
            raise ValueError("it broke")

    seen = traffic.send(calls, answer, streams=2)
    assert most[0] == 2 and [one.tokens for one in seen] == [2] * 6
    assert [bool(one.failed) for one in seen] == [False, False, False, True, False, False]
    slow = traffic.send(calls, answer, streams=6, per_s=60.0)
    assert slow[5].sent_s >= 5 * 0.02 - 0.001  # six requests in a tenth of a second


def test_figures_by_hand() -> None:
    def seen(user: str, *came: float) -> Seen:
        return Seen(Call(number=0, at_s=0, prompt=1, new=1, user=user), 0.0, list(came), len(came))

    found = traffic.summary(
        [seen("a", 1.0, 1.5, 2.0), seen("b", 3.0, 3.1, 4.0)], first_s=2.0, between_s=0.6
    )
    assert found["tokens_per_s"] == 6 / 4 and found["goodput_per_s"] == 1 / 4
    assert found["fairness"] == (1 + 3) ** 2 / (2 * (1 + 9)) and found["failed"] == 0
    assert found["first_token_p99_s"] == pytest.approx(3.0, abs=0.05)
    with pytest.raises(ParameterError, match="no request was answered"):
        traffic.summary([], first_s=1, between_s=1)


@pytest.mark.skipif(
    why_not() is not None or not native.available(), reason="turns need pages and kernels"
)
def test_the_suite_sends_a_trace_to_every_scheduler(data: Path, tmp_path: Path) -> None:
    tiny_pack(tmp_path / "tiny", layers=6, hidden=128, heads=8, kv_heads=4, head_dim=16).close()
    context = Context(
        folder=tmp_path,
        model="tiny",
        data=data,
        quick=True,
        options={"traces": "mooncake", "prompt": "120", "kv": "800KiB", "swap": "1MiB"},
    )
    result = traces.run(context)
    ways = result["results"]["mooncake"]
    assert list(ways) == [*traces.DEFAULT] and not result["absent"]
    for way in ways.values():
        assert way["says_the_same"] and not way["failed"]
        assert 0 < way["first_token_p50_s"] <= way["first_token_p99_s"]
        assert 0 < way["fairness"] <= 1.0001 and way["peak_bytes"] > 0
    assert ways["fastswitch"]["times_put_out"] >= 0
    assert ways["fcfs"]["reused_tokens"] > 0
    rows = traces.card_rows(result)
    assert [catalogue.find(row.method, "sched").about.name for row in rows][-1] == "fastswitch"


def test_what_is_asked_is_checked(tmp_path: Path) -> None:
    for options in ({"traces": "burst"}, {"rivals": "vllm"}, {"rate": "fast"}, {"size": "4"}):
        with pytest.raises(ParameterError):
            traces.run(Context(folder=tmp_path, options=options))


def test_a_folder_without_traces_is_told(tmp_path: Path) -> None:
    tiny_pack(tmp_path / "tiny", layers=2).close()
    with pytest.raises(ParameterError, match="there is no trace"):
        traces.run(Context(folder=tmp_path, model="tiny", data=tmp_path, quick=True))

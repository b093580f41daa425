"""The door before several replicas, with replicas in this process that can die at will."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import CHAT

from loci.plan import plan as make_plan
from loci.run.cluster import LostError
from loci.run.memory import Memory
from loci.server import gather, keys, replica
from loci.server.front import Front
from loci.server.replica import BEAT, Replica, Setup, tend
from loci.server.serve import Server, listening
from loci.server.sticky import HEADER, affinity, name_of, order
from loci.testing.batch import slowed

TOLD = "x-loci-replica"


class Here:
    """Replicas without Ray: `dies(name, items)` says after how many items one dies."""

    def __init__(self, replicas: dict[str, Replica]) -> None:
        self.there = replicas
        self.names = tuple(replicas)
        self.dead: set[str] = set()
        self.dies: dict[str, int] = {}
        self.silent: set[str] = set()
        self.calls: list[tuple[str, str]] = []

    async def stream(
        self, name: str, method: str, *given: Any, begin_s: float = 5.0
    ) -> AsyncIterator[Any]:
        if name in self.dead:
            raise LostError(name, began=False)
        self.calls.append((name, method))
        count = 0
        async for item in getattr(self.there[name], method)(*given):
            for one in [item] if isinstance(item, str) else [[message] for message in item]:
                if self.dies.get(name) == count:
                    self.dead.add(name)
                    raise LostError(name, began=count > 0)
                count += one != BEAT
                yield one
                await asyncio.sleep(0)

    async def call(self, name: str, method: str, *given: Any, timeout_s: float | None) -> Any:
        while name in self.dead and timeout_s is None:
            await asyncio.sleep(0.01)
        if name in self.dead or (name in self.silent and method != "about"):
            raise LostError(name, began=False)
        self.calls.append((name, method))
        return await getattr(self.there[name], method)(*given)

    def ask(self, name: str, method: str, *given: Any, timeout_s: float) -> Any:
        return asyncio.run(self.call(name, method, *given, timeout_s=timeout_s))


class Fronted:
    """A front that listens."""

    def __init__(self, url: str, here: Here, front: Front) -> None:
        self.url, self.here, self.front = url, here, front

    def http(self, **given: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **given)


@contextmanager
def fronted(models: Path, place: str | None, **more: Any) -> Iterator[Fronted]:
    def opened(tenant: str, embedder: Any) -> Memory:
        return Memory(place or "", tenant=tenant, embedder=embedder)

    plan = make_plan(
        "tiny", dram="16MiB", context=512, new_tokens=16, folder=models, cache=models / ".cache"
    )
    opener = None if place is None else opened
    given = {key: more.pop(key) for key in ("keys_file", "engine") if key in more}
    setup = Setup(plan=plan, model="tiny", models_dir=models, open_memory=opener, **given)
    here = Here({name_of(number): Replica(number, setup) for number in range(2)})
    known = None if "keys_file" not in given else keys.Keys(given["keys_file"])
    front = Front(here, model="tiny", keys=known, **more)
    with listening("127.0.0.1", 0) as socket:
        server = Server(front.app(), front, drain_s=5)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield Fronted(f"http://127.0.0.1:{socket.getsockname()[1]}", here, front)
        finally:
            here.dead.clear()
            here.dies.clear()
            here.silent.clear()
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def front(models: Path, tmp_path: Path) -> Iterator[Fronted]:
    with fronted(models, str(tmp_path / "a.db")) as found:
        yield found


def at(name: str, path: str = "/v1/chat/completions") -> dict[str, str]:
    """Return a header with which this replica is asked first."""
    names = [name_of(number) for number in range(2)]
    for number in range(100):
        key = affinity("local", path, {HEADER: str(number)}, b"")
        if order(key, names)[0] == name:
            return {HEADER: str(number)}
    raise AssertionError


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data:")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_conversation_stays_where_it_was_read(front: Fronted) -> None:
    with front.http() as client:
        first = client.post(
            "/v1/chat/completions", json={**CHAT, "max_tokens": 4}
        ).raise_for_status()
        answer = first.json()["choices"][0]["message"]["content"]
        more = [*CHAT["messages"], {"role": "assistant", "content": answer}]
        more.append({"role": "user", "content": "And then?"})
        asked = {"model": "tiny", "messages": more, "max_tokens": 4}
        second = client.post("/v1/chat/completions", json=asked).raise_for_status()
        assert second.headers[TOLD] == first.headers[TOLD]
        assert second.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_a_response_is_gone_on_from_where_it_is_kept(front: Fronted) -> None:
    asked = {"model": "tiny", "input": "hello", "max_output_tokens": 4}
    with front.http() as client:
        for name in front.here.names:
            header = at(name, "/v1/responses")
            made = client.post("/v1/responses", json=asked, headers=header).raise_for_status()
            id, other = made.json()["id"], at(({*front.here.names} - {name}).pop(), "/v1/responses")
            assert made.headers[TOLD] == name
            on = {**asked, "previous_response_id": id}
            again = client.post("/v1/responses", json=on, headers=other).raise_for_status()
            assert again.headers[TOLD] == name
            assert client.get(f"/v1/responses/{id}").json()["id"] == id
            front.here.dead.add(name)
            gone = client.post("/v1/responses", json=on)
            assert (
                gone.status_code == 503 and "kept this response" in gone.json()["error"]["message"]
            )
            front.here.dead.discard(name)


@pytest.mark.parametrize("items", [0, 1, 2])
def test_who_dies_before_the_answer_is_let_out_is_not_noticed(front: Fronted, items: int) -> None:
    front.here.dies["replica-0"] = items
    with front.http() as client:
        asked = {**CHAT, "max_tokens": 4}
        answer = client.post("/v1/chat/completions", json=asked, headers=at("replica-0"))
        assert answer.status_code == 200 and answer.headers[TOLD] == "replica-1"
        assert client.get("/ready").json()["replicas"]["replica-0"] == "down"
        front.here.dies.clear()
        front.here.dead.clear()
        until(lambda: client.get("/ready").json()["replicas"]["replica-0"] == "up")
        answer = client.post("/v1/chat/completions", json=asked, headers=at("replica-0"))
        assert answer.headers[TOLD] == "replica-0"
    assert front.front.counts["retried"] == 1


def test_a_stream_that_had_begun_ends_as_its_protocol_says(front: Fronted) -> None:
    said = CHAT["messages"]
    for path, asked in (
        ("/v1/chat/completions", {"messages": said}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/messages", {"messages": said}),
        ("/v1/responses", {"input": "x"}),
    ):
        front.here.dead.clear()
        until(lambda: front.front.watch.down == set())
        # Taken, start, and two events: a stream has so many before its end, however few its tokens
        # came in.
        front.here.dies["replica-0"] = 4
        most = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
        body = {"model": "tiny", "stream": True, most: 50, **asked}
        with front.http() as client:
            answer = client.post(path, json=body, headers=at("replica-0", path))
        assert answer.status_code == 200
        told = events(answer.text)
        if path == "/v1/responses":
            assert [one["sequence_number"] for one in told] == list(range(len(told)))
            assert told[-2]["type"] == "error" and told[-1]["type"] == "response.failed"
            assert told[-1]["response"]["id"] == told[0]["response"]["id"]
            assert "has died" in told[-1]["response"]["error"]["message"]
        else:
            assert "replica-0 has died" in told[-1]["error"]["message"]
        if path == "/v1/messages":
            assert told[-1]["type"] == "error" and told[-1]["error"]["type"] == "overloaded_error"


def test_a_write_that_may_have_happened_is_not_done_twice(front: Fronted) -> None:
    said = {"messages": [{"role": "user", "content": "I like figs"}], "user": "ada"}
    header = at("replica-0", "/api/v1/memories")
    front.here.dies["replica-0"] = 2
    with front.http() as client:
        answer = client.post("/api/v1/memories", json=said, headers=header)
        assert answer.status_code == 503
        assert "before you send it anew" in answer.json()["error"]["what"]
        found = client.get("/api/v1/memories", params={"user": "ada", "kinds": "turn"}).json()
    assert len(found["memories"]) == 1


def test_forgetting_reaches_what_every_replica_keeps(front: Fronted) -> None:
    with front.http() as client:
        said = {"messages": [{"role": "user", "content": "I like figs"}], "user": "ada"}
        id = client.post("/api/v1/memories", json=said).json()["turns"][0]["id"]
        path = f"/api/v1/memories/{id}?user=ada"
        client.delete(f"{path}&dry_run=true").raise_for_status()
        assert not any(what == "forget_kept" for _, what in front.here.calls)
        answer = client.delete(path).raise_for_status()
        reached = [name for name, what in front.here.calls if what == "forget_kept"]
        assert reached == [name for name in front.here.names if name != answer.headers[TOLD]]

        id = client.post("/api/v1/memories", json=said).json()["turns"][0]["id"]
        front.here.silent.update(front.here.names)
        answer = client.delete(f"/api/v1/memories/{id}?user=ada")
        assert answer.status_code == 503 and "it was erased, but" in answer.json()["error"]["what"]


def test_a_full_replica_gives_way_to_the_next(models: Path) -> None:
    with fronted(models, None, engine={"rows": 1, "waiting": 0}) as front, front.http() as client:
        asked = {**CHAT, "max_tokens": 400, "stream": True}
        with (
            slowed(front.here.there["replica-0"].batch),
            client.stream("POST", "/v1/chat/completions", json=asked, headers=at("replica-0")),
        ):
            answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "x"},
                                 headers=at("replica-0", "/v1/completions"))  # fmt: skip
            assert answer.status_code == 200 and answer.headers[TOLD] == "replica-1"


def test_a_replica_that_has_nothing_to_say_yet_says_that_it_lives(
    front: Fronted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "BEAT_S", 0.01)
    beats = []
    real = front.here.stream

    async def watched(*given: Any, **more: Any) -> AsyncIterator[Any]:
        async for item in real(*given, **more):
            beats.append(item == BEAT)
            yield item

    front.here.stream = watched  # type: ignore[method-assign]
    with slowed(front.here.there["replica-0"].batch, 0.2), front.http() as client:
        asked = {**CHAT, "max_tokens": 4}
        answer = client.post("/v1/chat/completions", json=asked, headers=at("replica-0"))
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 4
    assert sum(beats) > 3


def test_a_stop_tells_the_streams_that_it_cuts(front: Fronted) -> None:
    asked = {**CHAT, "max_tokens": 450, "stream": True}
    with front.http() as client:
        with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
            lines = answer.iter_lines()
            assert "role" in next(lines)
            stopping = threading.Thread(target=front.front.close)
            stopping.start()
            rest = [line for line in lines if line]
            stopping.join(20)
        assert '"code": "stopping"' in rest[-1] or rest[-1] == "data: [DONE]"
        refused = client.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "stopping"
        assert client.get("/ready").status_code == 503


def test_one_that_was_named_and_is_gone_is_told_so(front: Fronted) -> None:
    front.here.dead.add("replica-0")
    with front.http() as client:
        answer = client.get("/api/v1/plan", params={"replica": "replica-0"})
        assert answer.status_code == 503 and "replica-0" in answer.json()["error"]["what"]


def test_without_any_replica_it_says_so(front: Fronted) -> None:
    front.here.dead.update(front.here.names)
    with front.http() as client:
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
        assert answer.json()["error"]["code"] == "replica_lost"
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200


def test_keys_are_asked_for_at_the_door(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    ada, root = keys.add(file, tenant="one"), keys.add(file, tenant="two", role="admin")
    with fronted(models, str(tmp_path / "a.db"), keys_file=file) as front:
        with front.http() as client:
            assert client.post("/v1/chat/completions", json=CHAT).status_code == 401
            assert not front.here.calls
        with front.http(headers={"x-api-key": ada}) as client:
            said = {"messages": [{"role": "user", "content": "I like figs"}], "user": "ada"}
            client.post("/api/v1/memories", json=said).raise_for_status()
            assert client.get("/api/v1/ledger").status_code == 403
        with front.http(headers={"x-api-key": root}) as client:
            assert client.get("/api/v1/memories", params={"user": "ada"}).json()["memories"] == []
            assert client.get("/api/v1/ledger").status_code == 200


def test_one_ledger_is_the_sum_of_all(front: Fronted) -> None:
    with front.http() as client:
        whole = client.get("/api/v1/ledger").json()
        alone = [
            client.get("/api/v1/ledger", params={"replica": name}).json()
            for name in front.here.names
        ]
        for what in ("limit", "used", "free"):
            total = sum(one["tiers"]["dram"][what] for one in alone)
            assert whole["tiers"]["dram"][what] == total > 0
        assert whole["tiers"]["dram"]["limit"] == 2 * 16 * 2**20
        assert set(whole["replicas"]) == set(front.here.names)
        assert client.get("/api/v1/load").json()["rows"] == 32
        text = client.get("/metrics").text
        assert text.count("# TYPE loci_budget_bytes ") == 1
        assert 'loci_budget_bytes{replica="replica-1",tier="dram"}' in text
        front.here.dead.add("replica-1")
        assert client.get("/api/v1/ledger").json()["replicas"]["replica-1"] is None
        unknown = client.get("/api/v1/ledger", params={"replica": "replica-9"})
        assert unknown.status_code == 404 and "replica-0" in unknown.text
        assert client.get("/api/v1/events").status_code == 400


def test_memories_are_looked_after_once_something_was_said(models: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    async def work(tenant: str) -> int:
        seen.append(tenant)
        return 3

    with fronted(models, str(tmp_path / "a.db"), tend=work) as front, front.http() as client:
        until(lambda: seen == ["local"])  # what may wait from before
        said = {"messages": [{"role": "user", "content": "I like figs"}], "user": "ada"}
        client.post("/api/v1/memories", json=said).raise_for_status()
        until(lambda: seen == ["local", "local"])
        client.get("/api/v1/memories", params={"user": "ada"}).raise_for_status()
        time.sleep(0.6)
        assert len(seen) == 2
        assert client.get("/api/v1/load").json()["front"]["tended"] == {"runs": 2, "texts": 6}


def test_tending_without_an_embedder_builds_what_searches_want(tmp_path: Path) -> None:
    def opened(tenant: str, embedder: Any) -> Memory:
        assert embedder is None
        return Memory(tmp_path / "a.db", tenant=tenant)

    assert tend(opened, "local", tmp_path, 0) == 0


def test_a_late_request_is_somebody_elses(models: Path) -> None:
    plan = make_plan(
        "tiny", dram="16MiB", context=512, new_tokens=16, folder=models, cache=models / ".cache"
    )
    replica = Replica(0, Setup(plan=plan, model="tiny", models_dir=models))

    async def asked() -> list[Any]:
        return [item async for item in replica.handle({}, b"", time.time() - 1)]

    try:
        assert asyncio.run(asked()) == ["late"]
        replica.check_health()
    finally:
        asyncio.run(replica.stop(0.0))
    replica.check_health()  # it was told to end, and nobody need start another


def test_metrics_keep_their_families_together() -> None:
    text = '# HELP a x\n# TYPE a gauge\na 1.0\n# HELP b y\n# TYPE b gauge\nb{c="d } e"} 2.0\n'
    assert gather.metrics({"r0": text, "r1": text}).splitlines() == [
        "# HELP a x",
        "# TYPE a gauge",
        'a{replica="r0"} 1.0',
        'a{replica="r1"} 1.0',
        "# HELP b y",
        "# TYPE b gauge",
        'b{replica="r0",c="d } e"} 2.0',
        'b{replica="r1",c="d } e"} 2.0',
    ]

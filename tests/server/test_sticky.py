"""Who answers: the same key finds the same replica, and a lost one moves only its own."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from loci.server.sticky import HEADER, affinity, keeper_of, name_of, order

CHAT = "/v1/chat/completions"
NAMES = [name_of(number) for number in range(5)]


def key(body: Any = None, *, path: str = CHAT, tenant: str = "local", **headers: str) -> str:
    data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    return affinity(tenant, path, headers, data)


def said(*texts: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"model": "tiny", "messages": messages, **more}


def test_a_conversation_keeps_its_key_while_it_grows() -> None:
    first = key(said("Where should I eat?"))
    assert key(said("Where should I eat?", "In Ghent.", "And tomorrow?")) == first
    assert key(said("Where should I sleep?")) != first
    with_rules = {"role": "system", "content": "Be brief."}
    grown = said("Where should I eat?")
    grown["messages"] = [with_rules, *grown["messages"]]
    assert key(grown) != first


def test_what_is_named_comes_before_the_beginning() -> None:
    assert key(said("a", user="ada")) == key(said("b", user="ada")) != key(said("a", user="bo"))
    in_memory = said("c", memory={"user": "ada"})
    assert key(in_memory) == key(said("a", user="ada"))
    anthropic = {"messages": said("d")["messages"], "metadata": {"user_id": "ada"}}
    assert key(anthropic, path="/v1/messages") == key(said("a", user="ada"))
    earlier = {"input": "x", "previous_response_id": "resp_abc", "user": "ada"}
    assert key(earlier) == key({**earlier, "user": "bo"}) != key(said("a", user="ada"))
    named = {HEADER: "s1"}
    assert key(said("a", user="ada"), **named) == key(said("b", user="bo"), **named)


def test_tenants_have_keys_of_their_own() -> None:
    assert key(said("a"), tenant="one") != key(said("a"), tenant="two")


def test_texts_and_inputs_have_beginnings_too() -> None:
    text = "word " * 200
    assert key({"prompt": text}) == key({"prompt": text + "more"}) != key({"prompt": "else"})
    ids = list(range(300))
    assert key({"prompt": ids}) == key({"prompt": [*ids, 1]})
    assert key({"input": "hi", "instructions": "x"}) != key({"input": "hi", "instructions": "y"})


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"\xff", b'{"messages": 3}', b'{"messages": [1]}', b'{"user": 5}',
     b'{"prompt": {}}', b'{"memory": true, "metadata": 1}', b"[" * 100_000, b"{\"a\":" * 50_000],
)  # fmt: skip
def test_any_body_has_a_key(body: bytes) -> None:
    assert key(body) == key(body)
    assert keeper_of("/v1/responses", body) is None


def test_a_stored_response_is_with_who_made_it() -> None:
    id = f"resp_3_{'a' * 32}"
    asked = json.dumps({"input": "go on", "previous_response_id": id}).encode()
    assert keeper_of("/v1/responses", asked) == "replica-3"
    assert keeper_of(f"/v1/responses/{id}", b"") == "replica-3"
    assert keeper_of(CHAT, asked) is None
    assert keeper_of(f"/v1/responses/resp_{'a' * 32}", b"") is None


def test_every_replica_gets_its_part() -> None:
    counts = Counter(order(f"conversation {i}", NAMES)[0] for i in range(5000))
    assert set(counts) == set(NAMES)
    # 1000 each; the standard deviation of a fair draw is 28.
    assert all(abs(count - 1000) < 150 for count in counts.values())


def test_a_lost_replica_moves_only_its_own_conversations() -> None:
    lost, left = NAMES[2], [name for name in NAMES if name != NAMES[2]]
    heirs: Counter[str] = Counter()
    for i in range(2000):
        before, after = order(str(i), NAMES), order(str(i), left)
        assert after == [name for name in before if name != lost]
        if before[0] == lost:
            heirs[after[0]] += 1
    assert set(heirs) == set(left)  # they are spread, and crush nobody


def test_the_order_does_not_depend_on_how_replicas_are_listed() -> None:
    assert order("k", NAMES) == order("k", list(reversed(NAMES)))

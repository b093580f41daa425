"""Functions, several choices, and what is refused of them, with OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from served import CHAT, Served

from loci.server.chat_forms import ChatMessage, plain_messages
from loci.server.tools import Choice, Splitter, ToolForm, Tools, read

MESSAGES = CHAT["messages"]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 8},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ASKED: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 90}


def forms(*tools: dict[str, Any]) -> list[ToolForm]:
    return [ToolForm.model_validate(tool) for tool in tools]


# -- the answer, read ------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (
            '{"name": "f", "arguments": {"a": "}", "b": {"c": [1]}}}',
            "f",
            '{"a": "}", "b": {"c": [1]}}',
        ),
        ('{"name": "f", "arguments": {}}', "f", "{}"),
        ('{"reply": "Say \\"hi\\"\\n\\u00e9 {\\\\}"}', None, 'Say "hi"\né {\\}'),
        ('{"reply": ""}', None, ""),
    ],
)
def test_an_answer_is_split_as_it_comes(step: int, text: str, name: str | None, said: str) -> None:
    splitter = Splitter()
    pieces = [splitter.feed(text[at : at + step]) for at in range(0, len(text), step)]
    assert (splitter.name, "".join(pieces)) == (name, said)
    found = read(text)
    assert (found.name, found.reply if name is None else found.arguments) == (name, said)


def test_earlier_calls_and_results_are_told_as_text() -> None:
    call = {"id": "c1", "function": {"name": "clock", "arguments": "{}"}}
    said = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    found = plain_messages([ChatMessage.model_validate(message) for message in said])
    assert found[1] == {"role": "assistant", "content": '{"name": "clock", "arguments": {}}'}
    assert found[2] == {"role": "user", "content": "clock returned: noon"}


@pytest.mark.parametrize(
    ("choice", "must", "names"),
    [
        (None, False, ["weather", "clock"]),
        ("auto", False, ["weather", "clock"]),
        ("required", True, ["weather", "clock"]),
    ],
)
def test_a_choice_says_what_may_be_called(choice: Choice, must: bool, names: list[str]) -> None:
    found = Tools.of(forms(WEATHER, CLOCK), choice)
    assert found is not None and found.must is must
    assert [one.name for one in found.functions] == names
    assert ("reply" in json.dumps(found.schema)) is not must
    told = found.told([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "?"}])
    assert told[0]["content"].startswith("Be kind.") and "of a city" in told[0]["content"]
    assert Tools.of(forms(WEATHER), "none") is None and Tools.of(None, "auto") is None


# -- over the protocol -----------------------------------------------------------------------------


def test_a_function_is_called_with_arguments_of_its_form(server: Served) -> None:
    with server.openai() as client:
        found = client.chat.completions.create(
            **ASKED, tools=[WEATHER, CLOCK], tool_choice="required", temperature=0
        )
        named = client.chat.completions.create(
            **ASKED,
            tools=[WEATHER, CLOCK],
            tool_choice={"type": "function", "function": {"name": "weather"}},
        )
    (choice,) = found.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert choice.message.tool_calls[0].function.name in ("weather", "clock")
    (call,) = named.choices[0].message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "weather" and call.id.startswith("call_")
    assert set(arguments) == {"city", "days"} and 1 <= arguments["days"] <= 7


def test_a_stream_of_a_call_says_what_the_whole_says(server: Served) -> None:
    given = {"tools": [WEATHER], "tool_choice": "required", "temperature": 0}
    with server.openai() as client:
        whole = client.chat.completions.create(**ASKED, **given)
        chunks = list(client.chat.completions.create(**ASKED, **given, stream=True))
    calls = [
        call
        for chunk in chunks
        for choice in chunk.choices
        for call in choice.delta.tool_calls or ()
    ]
    assert calls[0].function.name == "weather" and calls[0].id
    text = "".join(call.function.arguments for call in calls)
    assert json.loads(text) == json.loads(whole.choices[0].message.tool_calls[0].function.arguments)
    assert len(calls) > 2  # as they came, not at the end
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_model_may_answer_in_words_and_goes_on_after_a_result(server: Served) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    with server.openai() as client:
        for seed in range(6):
            found = client.chat.completions.create(
                model="tiny", messages=messages, tools=[CLOCK], max_tokens=60, seed=seed
            )
            (choice,) = found.choices
            if choice.finish_reason == "stop":
                assert isinstance(choice.message.content, str)
                assert choice.message.tool_calls is None
                break
            assert choice.message.tool_calls[0].function.name == "clock"


def test_several_choices_are_drawn_each_with_a_seed_of_its_own(server: Served) -> None:
    given = {**ASKED, "max_tokens": 8, "temperature": 1.0, "seed": 5}
    with server.openai() as client:
        found = client.chat.completions.create(**given, n=3)
        alone = client.chat.completions.create(**{**given, "seed": 6})
        chunks = list(
            client.chat.completions.create(
                **given, n=3, stream=True, stream_options={"include_usage": True}
            )
        )
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in found.choices]
    assert len(set(texts)) > 1 and texts[1] == alone.choices[0].message.content
    streamed = ["", "", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    assert sum(c.finish_reason is not None for chunk in chunks for c in chunk.choices) == 3
    usage = found.usage
    assert 3 <= usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert chunks[-1].usage.completion_tokens == usage.completion_tokens


def test_choices_that_do_not_all_fit_are_refused_together(serve: Callable[..., Served]) -> None:
    server = serve(rows=1, waiting=1)
    with server.openai() as client, pytest.raises(openai.RateLimitError):
        client.chat.completions.create(**ASKED, n=4)
    with server.http() as http:
        load = http.get("/api/v1/load").json()
    assert load["refused"] == 1
    with server.openai() as client:
        assert client.chat.completions.create(**{**ASKED, "max_tokens": 2}, n=2).choices


def test_a_memory_keeps_words_and_no_calls(serve: Callable[..., Served], tmp_path: Path) -> None:
    server = serve(memory=tmp_path / "m.db")
    with server.openai() as client, server.http() as http:
        client.chat.completions.create(
            **ASKED, tools=[WEATHER], tool_choice="required", extra_body={"memory": True}
        )
        turns = http.get("/api/v1/memories", params={"kinds": "turn"}).json()["memories"]
        assert [turn["role"] for turn in turns] == ["user"]
        with pytest.raises(openai.BadRequestError, match="none can be remembered"):
            client.chat.completions.create(**ASKED, n=2, extra_body={"memory": True})
        quiet = {"memory": {"remember": False}}
        assert client.chat.completions.create(**ASKED, n=2, extra_body=quiet).memory


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"n": 9}, "n: "),
        ({"tools": [WEATHER, WEATHER]}, "the same name"),
        ({"tools": [WEATHER], "stop": ["x"]}, "stop does not go with tools"),
        ({"tools": [WEATHER], "logprobs": True}, "logprobs does not go with tools"),
        ({"tools": [], "tool_choice": "required"}, "there are no tools"),
        ({"tools": [{"type": "browser"}]}, "type"),
        ({"tools": [CLOCK], "max_tokens": 3}, "tokens"),
        (
            {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "names no tool",
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "parameters": {
                                "type": "object",
                                "properties": {"a": {"type": "string", "pattern": "x"}},
                            },
                        },
                    }
                ]
            },
            "pattern",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:,"}}],
                    }
                ]
            },
            "this model reads text; a part of the type 'image_url' is not read",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "'input_audio' is not read",
        ),
    ],
)
def test_what_cannot_be_called_is_refused_by_name(
    server: Served, given: dict[str, Any], said: str
) -> None:
    with server.openai() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**(ASKED | given))
    assert said in str(caught.value)


def test_pictures_are_refused_in_every_protocol(server: Served) -> None:
    part = {"type": "image", "source": {"type": "base64", "data": "x"}}
    body = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": [part]}]}
    item = {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}
    with server.http() as http:
        found = http.post("/v1/messages", json=body)
        assert found.status_code == 400 and "reads text" in found.json()["error"]["message"]
        found = http.post("/v1/responses", json={"model": "tiny", "input": [item]})
        assert found.status_code == 400 and "'input_image' is not read" in found.text

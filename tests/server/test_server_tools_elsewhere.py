"""Functions in the other protocols, with Anthropic's client and OpenAI's responses."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from served import Served

from loci.server.anthropic_forms import CountForm, conversation
from loci.server.response_forms import ResponseForm, plain_items

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"name": "weather", "description": "of a city", "input_schema": CITY}
CLOCK = {"name": "clock", "input_schema": {"type": "object", "properties": {}}}
SAID = [{"role": "user", "content": "What is the weather in Ghent?"}]
ASKED: dict[str, Any] = {"model": "tiny", "messages": SAID, "max_tokens": 90}
COLD: dict[str, Any] = ASKED | {"extra_body": {"temperature": 0}}
THEIRS = {"type": "function", "name": "weather", "description": "of a city", "parameters": CITY}
USE = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
PUT: dict[str, Any] = {"model": "tiny", "input": "What is the weather in Ghent?"}
CALLED: dict[str, Any] = PUT | {
    "tools": [THEIRS],
    "tool_choice": "required",
    "temperature": 0,
    "max_output_tokens": 90,
}

# -- messages --------------------------------------------------------------------------------------


def test_messages_call_a_function(server: Served) -> None:
    choice = {"type": "tool", "name": "weather"}
    with server.anthropic() as client:
        found = client.messages.create(**COLD, tools=[WEATHER, CLOCK], tool_choice=choice)
        with client.messages.stream(**COLD, tools=[WEATHER, CLOCK], tool_choice=choice) as stream:
            final = stream.get_final_message()
    (block,) = found.content
    assert found.stop_reason == "tool_use" == final.stop_reason
    assert block.type == "tool_use" and block.name == "weather" and block.id.startswith("toolu_")
    assert set(block.input) == {"city"}
    (streamed,) = final.content
    assert (streamed.name, streamed.input) == (block.name, block.input)


def test_messages_go_on_from_a_result(server: Served) -> None:
    called = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Ghent"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "rain"}
    messages = [
        *SAID,
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, called]},
        {"role": "user", "content": [result, {"type": "text", "text": "Well?"}]},
    ]
    told = conversation(CountForm.model_validate({"model": "tiny", "messages": messages}))
    assert told[1]["content"] == 'I look.{"name": "weather", "arguments": {"city": "Ghent"}}'
    assert told[2]["content"] == "weather returned: rainWell?"
    with server.anthropic() as client:
        given = {"model": "tiny", "messages": messages, "tools": [WEATHER]}
        counted = client.messages.count_tokens(**given).input_tokens
        plain = client.messages.count_tokens(model="tiny", messages=messages).input_tokens
        found = client.messages.create(**given, max_tokens=90, tool_choice={"type": "none"})
    assert counted > plain + 20, "the functions are told of"
    assert found.stop_reason in ("end_turn", "max_tokens") and found.usage.output_tokens <= 90


def test_messages_may_answer_in_words(server: Served) -> None:
    seen = set()
    with server.anthropic() as client:
        for number in range(12):
            body = {"temperature": 1, "top_k": 40 + number}
            with client.messages.stream(**ASKED, tools=[CLOCK], extra_body=body) as stream:
                final = stream.get_final_message()
            (block,) = final.content or [None]
            seen.add("text" if block is None else block.type)
            assert (final.stop_reason == "tool_use") == (block is not None and block.type != "text")
    assert seen <= {"text", "tool_use"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "names no tool"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "name goes with the type tool"),
        ({"tool_choice": {"type": "any"}}, "there are no tools"),
        ({"tools": [WEATHER, WEATHER]}, "the same name"),
        ({"tools": [WEATHER], "stop_sequences": ["x"]}, "stop_sequences does not go with tools"),
        ({"tools": [{"name": "f", "type": "bash_20250124"}]}, "input_schema"),
        (
            {
                "messages": [
                    {"role": "user", "content": [USE]},
                ]
            },
            "the assistant's",
        ),
    ],
)  # fmt: skip
def test_messages_refuse(server: Served, given: dict[str, Any], said: str) -> None:
    with server.anthropic() as client, pytest.raises(anthropic.BadRequestError, match=said):
        client.messages.create(**(ASKED | given))


# -- responses -------------------------------------------------------------------------------------


def test_responses_call_a_function_and_go_on(server: Served) -> None:
    with server.openai() as client:
        first = client.responses.create(**CALLED)
        (call,) = first.output
        assert call.type == "function_call" and call.name == "weather" and call.call_id
        assert set(json.loads(call.arguments)) == {"city"} and first.tools[0].name == "weather"
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        second = client.responses.create(
            model="tiny", input=[result], previous_response_id=first.id, max_output_tokens=4
        )
    assert second.output[0].type == "message" and second.usage.input_tokens > 20


def test_a_stream_of_a_response_says_what_the_whole_says(server: Served) -> None:
    with server.openai() as client:
        whole = client.responses.create(**CALLED)
        with client.responses.stream(**CALLED) as stream:
            kinds, parts = [], []
            for event in stream:
                kinds.append(event.type)
                if event.type == "response.function_call_arguments.delta":
                    parts.append(event.delta)
            final = stream.get_final_response()
    (call,), (streamed,) = whole.output, final.output
    assert (streamed.name, streamed.arguments) == (call.name, call.arguments)
    assert json.loads("".join(parts)) == json.loads(call.arguments)
    assert kinds.index("response.output_item.added") < kinds.index("response.output_item.done")


def test_items_are_told_as_text() -> None:
    items = [
        {"role": "user", "content": "What time is it?"},
        {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "noon"},
        {"type": "function_call_output", "call_id": "c0", "output": "rain"},
    ]
    form = ResponseForm.model_validate({"model": "tiny", "input": items})
    assert not isinstance(form.input, str)
    assert [one["content"] for one in plain_items(form.input, {"c0": "weather"})] == [
        "What time is it?",
        '{"name": "clock", "arguments": {}}',
        "clock returned: noon",
        "weather returned: rain",
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tools": [{"type": "web_search"}]}, "'web_search' is not known"),
        ({"tools": [THEIRS], "tool_choice": {"type": "function", "name": "x"}}, "names no tool"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "'reasoning' is not known"),
        (
            {
                "tools": [THEIRS],
                "text": {"format": {"type": "json_schema", "name": "a", "schema": CITY}},
            },
            "text does not go with tools",
        ),
    ],
)
def test_responses_refuse(server: Served, given: dict[str, Any], said: str) -> None:
    with server.openai() as client, pytest.raises(openai.BadRequestError, match=said):
        client.responses.create(**(PUT | given))


# -- several choices of a text ---------------------------------------------------------------------


def test_a_text_is_continued_in_several_ways(server: Served) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "prompt": "Once", "max_tokens": 6, "n": 3, "seed": 7, "temperature": 1,
        "logprobs": 2,
    }  # fmt: skip
    with server.openai() as client:
        found = client.completions.create(**asked, echo=True)
        chunks = list(client.completions.create(**asked, stream=True))
        one = client.completions.create(**(asked | {"n": 1, "seed": 9}))
        with pytest.raises(openai.BadRequestError, match="best_of is n"):
            client.completions.create(**(asked | {"best_of": 5}))
    texts = [choice.text for choice in found.choices]
    assert [choice.index for choice in found.choices] == [0, 1, 2] and len(set(texts)) > 1
    streamed = ["", "", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert [f"Once{text}" for text in streamed] == texts
    assert f"Once{one.choices[0].text}" == texts[2], "each choice has a seed of its own"
    assert found.usage.completion_tokens <= 18 and found.choices[2].logprobs.token_logprobs

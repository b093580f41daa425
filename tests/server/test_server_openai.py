"""OpenAI's own client against the server."""

from __future__ import annotations

import json
import math

import openai
import pytest
from served import CHAT, Served

MESSAGES = CHAT["messages"]


def test_models_are_listed(server: Served) -> None:
    with server.openai() as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").owned_by == "loci"
        with pytest.raises(openai.NotFoundError, match="there is tiny") as caught:
            client.models.retrieve("tony")
    assert caught.value.code == "model_not_found"


def test_a_stream_says_what_a_whole_answer_says(server: Served) -> None:
    with server.openai() as client:
        asked = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 12}
        whole = client.chat.completions.create(**asked)
        stream = client.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    (choice,) = whole.choices
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == choice.message.content
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason
    usage = chunks[-1].usage
    assert usage.completion_tokens == whole.usage.completion_tokens <= 12
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    # The same question again: all of its whole blocks were there.
    assert usage.prompt_tokens_details.cached_tokens >= 16 * (usage.prompt_tokens // 16) - 1


def test_a_seed_draws_the_same_answer(server: Served) -> None:
    with server.openai() as client:

        def draw(seed: int) -> str:
            found = client.chat.completions.create(
                model="tiny", messages=MESSAGES, seed=seed, temperature=1.5, max_tokens=12
            )
            return str(found.choices[0].message.content)

        assert draw(3) == draw(3) != draw(4)


def test_stop_words_end_an_answer_before_them(server: Served) -> None:
    with server.openai() as client:
        asked = {"model": "tiny", "prompt": "abcdefgh", "temperature": 0, "max_tokens": 24}
        whole = client.completions.create(**asked)
        word = whole.choices[0].text[4:6]
        cut = client.completions.create(**asked, stop=[word])
        streamed = client.completions.create(**asked, stop=word, stream=True)
        pieces = [chunk.choices[0].text for chunk in streamed]
    text = whole.choices[0].text
    assert cut.choices[0].text == "".join(pieces) == text[: text.index(word)]
    assert cut.choices[0].finish_reason == "stop"


def test_chances_of_tokens(server: Served) -> None:
    with server.openai() as client:
        found = client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            temperature=0,
            max_tokens=5,
            logprobs=True,
            top_logprobs=3,
        )
        text = client.completions.create(
            model="tiny", prompt="abc", temperature=0, max_tokens=5, logprobs=2, echo=True
        )
    content = found.choices[0].logprobs.content
    assert len(content) <= 5
    for token in content:
        assert bytes(token.bytes).decode("utf-8", "replace") == token.token
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)
        assert math.exp(token.logprob) <= 1 and len(token.top_logprobs) == 3
    odds = text.choices[0].logprobs
    assert text.choices[0].text.startswith("abc") and odds.text_offset[0] == 3
    assert len(odds.tokens) == len(odds.token_logprobs) == len(odds.top_logprobs)


def test_a_schema_is_kept_to(server: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    with server.openai() as client:
        form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
        found = client.chat.completions.create(
            model="tiny", messages=MESSAGES, response_format=form, max_tokens=80
        )
        person = json.loads(found.choices[0].message.content)
        assert set(person) == {"name", "age"} and isinstance(person["age"], int)
        odd = {"type": "json_schema", "json_schema": {"name": "odd", "schema": {"type": "void"}}}
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(
                model="tiny", messages=MESSAGES, response_format=odd, max_tokens=80
            )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "gpt"}, "there is tiny"),
        ({"extra_body": {"temprature": 1}}, "did you mean 'temperature'"),
        ({"temperature": 9}, "temperature"),
        ({"frequency_penalty": 1.0}, "frequency_penalty"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"max_tokens": 5000}, "the context holds 512"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, "given twice"),
        ({"top_logprobs": 3}, "goes with logprobs"),
        ({"extra_body": {"memory": True}}, "this server has no memory"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, ""),
        ({"messages": [{"role": "user", "content": "long " * 200}]}, "tokens"),
        ({"messages": [{"role": "user", "content": "x" * 300_000}]}, "at least"),
    ],
)
def test_what_cannot_be_done_is_refused_in_openais_form(
    server: Served, given: dict[str, object], said: str
) -> None:
    with server.openai() as client:
        try:
            client.chat.completions.create(**({"model": "tiny", "messages": MESSAGES} | given))
        except (openai.BadRequestError, openai.NotFoundError) as error:
            assert said in str(error)
            assert isinstance(error.body, dict) and {"message", "type", "code"} <= set(error.body)
        except UnicodeEncodeError:
            assert said == ""  # the client itself cannot write it
        else:
            raise AssertionError("it was not refused")
        found = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)
    assert found.usage.completion_tokens == 1


def test_ids_are_a_prompt_too(server: Served) -> None:
    with server.openai() as client:
        asked = {"model": "tiny", "temperature": 0, "max_tokens": 6}
        text = client.completions.create(prompt="abc", **asked)
        ids = client.completions.create(prompt=list(b"abc"), **asked)
        assert ids.choices[0].text == text.choices[0].text
        with pytest.raises(openai.BadRequestError, match="no token id"):
            client.completions.create(prompt=[99999], **asked)
        with pytest.raises(openai.BadRequestError, match="the prompt is empty"):
            client.completions.create(prompt="", **asked)


def test_without_an_embedder_nothing_is_embedded(server: Served) -> None:
    with server.openai() as client, pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="minilm", input="hello")


def test_responses_go_on_from_one_another(server: Served) -> None:
    with server.openai() as client:
        first = client.responses.create(
            model="tiny", input="I am Ada.", temperature=0, max_output_tokens=6
        )
        assert first.status in ("completed", "incomplete") and first.usage.output_tokens <= 6
        second = client.responses.create(
            model="tiny",
            input="Who am I?",
            previous_response_id=first.id,
            temperature=0,
            max_output_tokens=6,
        )
        whole = client.chat.completions.create(
            model="tiny",
            temperature=0,
            max_tokens=6,
            messages=[
                {"role": "user", "content": "I am Ada."},
                {"role": "assistant", "content": first.output_text},
                {"role": "user", "content": "Who am I?"},
            ],
        )
        assert second.output_text == whole.choices[0].message.content
        assert second.usage.input_tokens == whole.usage.prompt_tokens
        assert client.responses.retrieve(first.id).output_text == first.output_text
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError, match="no response"):
            client.responses.create(model="tiny", input="?", previous_response_id=first.id)


def test_a_stream_of_a_response(server: Served) -> None:
    with server.openai() as client:
        asked = {"model": "tiny", "input": "Hello", "temperature": 0, "max_output_tokens": 8}
        whole = client.responses.create(**asked, instructions="Be short.", store=False)
        with client.responses.stream(**asked, instructions="Be short.", store=False) as stream:
            events = list(stream)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(whole.id)
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == f"response.{whole.status}"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))

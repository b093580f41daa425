"""Anthropic's own client against the server."""

from __future__ import annotations

import json

import anthropic
import pytest
from served import Served

MESSAGES = [{"role": "user", "content": "What is a budget?"}]
ASKED = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "extra_body": {"temperature": 0}}


def test_a_stream_says_what_a_whole_answer_says(server: Served) -> None:
    with server.anthropic() as client:
        whole = client.messages.create(**ASKED, system="Be kind.")
        with client.messages.stream(**ASKED, system=[{"type": "text", "text": "Be kind."}]) as s:
            text = "".join(s.text_stream)
            final = s.get_final_message()
        counted = client.messages.count_tokens(
            model="tiny", messages=MESSAGES, system="Be kind."
        ).input_tokens
    assert text == "".join(block.text for block in whole.content)
    assert final.stop_reason == whole.stop_reason in ("end_turn", "max_tokens")
    usage = final.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == counted
    assert usage.cache_read_input_tokens >= counted - 16 and usage.output_tokens <= 12
    assert whole.usage.input_tokens + whole.usage.cache_read_input_tokens == counted


def test_it_says_what_the_other_protocol_says(server: Served) -> None:
    with server.anthropic() as client, server.openai() as other:
        found = client.messages.create(**ASKED)
        same = other.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=12, temperature=0
        )
    assert found.content[0].text == same.choices[0].message.content


def test_a_stop_sequence_is_named(server: Served) -> None:
    with server.anthropic() as client:
        asked = ASKED | {"max_tokens": 30}
        text = client.messages.create(**asked).content[0].text
        word = text[2:4]
        cut = client.messages.create(**asked, stop_sequences=["never said", word])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", word)
    assert "".join(block.text for block in cut.content) == text[: text.index(word)]


def test_a_schema_is_kept_to(server: Served) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    with server.anthropic() as client:
        found = client.messages.create(
            **(ASKED | {"max_tokens": 40}),
            output_config={"format": {"type": "json_schema", "schema": schema}},
        )
    assert json.loads(found.content[0].text)["yes"] in (True, False)


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"model": "claude"}, anthropic.NotFoundError, "there is tiny"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens"),
        ({"max_tokens": 5000}, anthropic.BadRequestError, "the context holds 512"),
        ({"messages": []}, anthropic.BadRequestError, "messages"),
        ({"extra_body": {"topp": 1}}, anthropic.BadRequestError, "did you mean 'top_p'"),
        ({"tools": [{"name": "f"}]}, anthropic.BadRequestError, "input_schema"),
    ],
)
def test_what_cannot_be_done_is_refused_in_anthropics_form(
    server: Served, given: dict[str, object], kind: type[Exception], said: str
) -> None:
    with server.anthropic() as client, pytest.raises(kind, match=said) as caught:
        client.messages.create(**(ASKED | given))
    body = caught.value.body  # type: ignore[attr-defined]
    assert body["type"] == "error" and body["error"]["message"]

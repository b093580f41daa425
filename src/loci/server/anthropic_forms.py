"""The fields of a request to /v1/messages."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal  # JSON values

from pydantic import Field, model_validator

from loci.server.forms import (
    TEXTS,
    Content,
    Count,
    Form,
    Json,
    MemoryForm,
    Share,
    TextPart,
    parts_of,
    text_of,
)
from loci.server.tools import FunctionForm, How, Name, written


class UsePart(Form):
    """A function that was called earlier in the conversation."""

    type: Literal["tool_use"]
    id: str
    name: Name
    input: Json
    cache_control: Json | None = None
    caller: Json | None = None


class ResultPart(Form):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Content | None = None
    is_error: bool | None = None
    cache_control: Json | None = None


Part = Annotated[TextPart | UsePart | ResultPart, Field(discriminator="type")]


class AnthropicMessage(Form):
    """One message of a request to /v1/messages."""

    role: Literal["user", "assistant"]
    content: Annotated[str | list[Part], parts_of(*TEXTS, "tool_use", "tool_result")]

    @model_validator(mode="after")
    def _belongs(self) -> AnthropicMessage:
        kinds = {part.type for part in self.content if not isinstance(part, str)}
        if "tool_use" in kinds and self.role != "assistant":
            raise ValueError("tool_use is the assistant's")
        if "tool_result" in kinds and self.role != "user":
            raise ValueError("tool_result is the user's")
        return self


class AnthropicMetadata(Form):
    """Whom a request to /v1/messages is for."""

    user_id: str | None = None


class OutputFormat(Form):
    """A JSON schema that the answer keeps to, in the words of /v1/messages."""

    type: Literal["json_schema"]
    schema_: Json = Field(alias="schema")


class OutputConfig(Form):
    """What the answer looks like, in the words of /v1/messages."""

    format: OutputFormat | None = None


class AnthropicTool(Form):
    """A function, in the words of /v1/messages."""

    name: Name
    input_schema: Json
    type: Literal["custom"] | None = None
    description: str | None = None
    strict: bool | None = None
    cache_control: Json | None = None


class AnthropicChoice(Form):
    """Whether a function has to be called, and which."""

    type: Literal["auto", "any", "none", "tool"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None  # there is one call an answer either way

    @model_validator(mode="after")
    def _whole(self) -> AnthropicChoice:
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("name goes with the type tool, and is needed there")
        return self


class CountForm(Form):
    """A request to /v1/messages/count_tokens."""

    model: str
    messages: Annotated[list[AnthropicMessage], Field(min_length=1)]
    system: Content | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=64)] | None = None
    tool_choice: AnthropicChoice | None = None

    @property
    def functions(self) -> list[FunctionForm]:
        """The functions that are told of."""
        return [
            FunctionForm(name=one.name, description=one.description, parameters=one.input_schema)
            for one in self.tools or ()
        ]

    @property
    def how(self) -> tuple[How, str | None]:
        """Whether one has to be called, and the name of the only one that may be."""
        choice = self.tool_choice
        if choice is None or choice.type == "auto":
            return "auto", None
        if choice.type == "none":
            return "none", None
        return "required", choice.name


class MessagesForm(CountForm):
    """A request to /v1/messages."""

    max_tokens: Count
    stream: bool = False
    stop_sequences: Annotated[list[str], Field(max_length=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Share | None = None
    top_k: Count | None = None
    metadata: AnthropicMetadata | None = None
    output_config: OutputConfig | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    memory: bool | MemoryForm = False

    @property
    def schema_or_none(self) -> Json | None:
        """The schema, or None for text."""
        style = None if self.output_config is None else self.output_config.format
        return None if style is None else style.schema_


def conversation(form: CountForm) -> list[dict[str, str]]:
    """Return the messages of a request with its instructions first; calls and results are text."""
    found = [{"role": "system", "content": text_of(form.system)}] if form.system else []
    names: dict[str, str] = {}
    for message in form.messages:
        text = message.content
        if not isinstance(text, str):
            text = "".join(_plain(part, names) for part in text)
        found.append({"role": message.role, "content": text})
    return found


def _plain(part: Any, names: dict[str, str]) -> str:
    if isinstance(part, TextPart):
        return part.text
    if isinstance(part, UsePart):
        names[part.id] = part.name
        return written(part.name, json.dumps(part.input, ensure_ascii=False))
    assert isinstance(part, ResultPart)
    did = "failed" if part.is_error else "returned"
    return f"{names.get(part.tool_use_id, 'It')} {did}: {text_of(part.content)}"

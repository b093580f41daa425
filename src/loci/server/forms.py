"""The fields of requests. What a protocol knows and we do not do is refused by name, never dropped.

Fields that change nothing here (who a request is for, how it is billed or stored elsewhere) are
taken and left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal  # JSON values

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Share = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Json = dict[str, Any]


class Form(BaseModel):
    """A form whose unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True)


class MemoryForm(Form):
    """What a request wants of the memory.

    Attributes:
        user: whose; else the request's own, else the key's.
        recall: put what is remembered before the question.
        remember: keep question and answer.
        limit: notes at most.
    """

    user: str | None = None
    agent: str | None = None
    session: str | None = None
    recall: bool = True
    remember: bool = True
    limit: Annotated[int, Field(ge=1, le=100)] = 8


class TextPart(Form):
    """A piece of a message."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    cache_control: Json | None = None
    annotations: list[Any] | None = None
    citations: list[Any] | None = None
    logprobs: list[Any] | None = None


def _only_text(content: object) -> object:
    """Refuse pictures, sound and files by their name, where a list of parts has some."""
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind not in _TEXTS:
            raise ValueError(f"this model reads text; a part of the type {kind!r} is not read")
    return content


_TEXTS = ("text", "input_text", "output_text")
Content = Annotated[str | list[TextPart], BeforeValidator(_only_text)]


def text_of(content: Content | None) -> str:
    """Return the text of a message's content."""
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part.text for part in content)


class SchemaForm(Form):
    """A JSON schema that the answer keeps to."""

    name: str = "answer"
    schema_: Json = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Form):
    """What the answer looks like."""

    type: Literal["text", "json_schema"]
    json_schema: SchemaForm | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type json_schema, and is needed there")
        return self

    @property
    def schema_or_none(self) -> Json | None:
        """The schema, or None for text."""
        return None if self.json_schema is None else self.json_schema.schema_


class StreamOptions(Form):
    """What comes with a stream."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Common(Form):
    """Fields of chat and completions alike."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    seed: Seed | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Count | None = None
    user: str | None = None
    # Nothing here depends on them.
    metadata: Mapping[str, str] | None = None
    # Only where they change nothing.
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: Annotated[Json, Field(max_length=0)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop words."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionForm(Common):
    """A request to /v1/completions."""

    prompt: str | list[int]
    max_tokens: Count | None = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    n: Literal[1] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None


class EmbeddingForm(Form):
    """A request to /v1/embeddings."""

    input: str | Annotated[list[str], Field(min_length=1, max_length=2048)]
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class TextFormat(Form):
    """What the answer looks like, in the words of /v1/responses."""

    type: Literal["text", "json_schema"]
    name: str | None = None
    schema_: Json | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _whole(self) -> TextFormat:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError("schema goes with the type json_schema, and is needed there")
        return self


class TextForm(Form):
    """How the text of an answer is formed."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class InputItem(Form):
    """One message of a request to /v1/responses."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    def plain(self) -> dict[str, str]:
        """Return it as chat templates know it."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text_of(self.content)}


class ResponseForm(Form):
    """A request to /v1/responses."""

    model: str
    input: str | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool = True
    stream: bool = False
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    text: TextForm | None = None
    metadata: Mapping[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    truncation: Literal["disabled"] | None = None
    parallel_tool_calls: bool | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    memory: bool | MemoryForm = False


class AnthropicMessage(Form):
    """One message of a request to /v1/messages."""

    role: Literal["user", "assistant"]
    content: Content

    def plain(self) -> dict[str, str]:
        """Return it as chat templates know it."""
        return {"role": self.role, "content": text_of(self.content)}


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


class CountForm(Form):
    """A request to /v1/messages/count_tokens."""

    model: str
    messages: Annotated[list[AnthropicMessage], Field(min_length=1)]
    system: Content | None = None


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
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    memory: bool | MemoryForm = False

    @property
    def schema_or_none(self) -> Json | None:
        """The schema, or None for text."""
        style = None if self.output_config is None else self.output_config.format
        return None if style is None else style.schema_


def conversation(form: CountForm) -> list[dict[str, str]]:
    """Return the messages of a request with its instructions first."""
    first = [{"role": "system", "content": text_of(form.system)}] if form.system else []
    return [*first, *(message.plain() for message in form.messages)]


def memory_of(asked: bool | MemoryForm) -> Json | None:
    """Return what a request wants of the memory; None for nothing."""
    if isinstance(asked, MemoryForm):
        return asked.model_dump()
    return MemoryForm().model_dump() if asked else None

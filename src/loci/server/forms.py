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
MOST_CHOICES = 8


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


def parts_of(*kinds: str) -> BeforeValidator:
    """Refuse pictures, sound and files by their name, where a list of parts has some."""

    def check(content: object) -> object:
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind not in kinds:
                raise ValueError(f"this model reads text; a part of the type {kind!r} is not read")
        return content

    return BeforeValidator(check)


TEXTS = ("text", "input_text", "output_text")
Content = Annotated[str | list[TextPart], parts_of(*TEXTS)]


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
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
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
    def choices(self) -> int:
        """How many answers are wanted."""
        return self.n or 1

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
    best_of: int | None = None
    suffix: None = None

    @model_validator(mode="after")
    def _best(self) -> CompletionForm:
        if self.best_of not in (None, self.choices):
            raise ValueError("best_of is n here: nothing is made and thrown away")
        return self


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


def memory_of(asked: bool | MemoryForm) -> Json | None:
    """Return what a request wants of the memory; None for nothing."""
    if isinstance(asked, MemoryForm):
        return asked.model_dump()
    return MemoryForm().model_dump() if asked else None

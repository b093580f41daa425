"""The fields of a request to /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal  # JSON values

from pydantic import Field, model_validator

from loci.server.forms import Common, Content, Count, Form, MemoryForm, ResponseFormat, text_of
from loci.server.tools import Choice, Name, ToolForm, written


class CalledForm(Form):
    """A function that was called, its arguments as JSON text."""

    name: Name
    arguments: str


class CallForm(Form):
    """A call of earlier in the conversation."""

    id: str
    type: Literal["function"] = "function"
    function: CalledForm


class ChatMessage(Form):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    refusal: None = None
    annotations: list[Any] | None = None
    tool_calls: list[CallForm] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _belongs(self) -> ChatMessage:
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id goes with the role tool, and is needed there")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls are the assistant's")
        return self


class ChatForm(Common):
    """A request to /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    memory: bool | MemoryForm = False
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None  # there is one call an answer either way
    tools: Annotated[list[ToolForm], Field(max_length=64)] | None = None
    tool_choice: Choice | None = None


def plain_messages(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Return a conversation as chat templates know it: calls and their results are text."""
    names: dict[str, str] = {}
    found = []
    for message in messages:
        role = "system" if message.role == "developer" else message.role
        text = text_of(message.content)
        for call in message.tool_calls or ():
            names[call.id] = call.function.name
            text += written(call.function.name, call.function.arguments)
        if role == "tool":
            role, text = "user", f"{names.get(message.tool_call_id or '', 'It')} returned: {text}"
        found.append({"role": role, "content": text})
    return found

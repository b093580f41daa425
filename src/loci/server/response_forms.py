"""The fields of a request to /v1/responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal  # JSON values

from pydantic import BeforeValidator, Discriminator, Field, Tag

from loci.server.forms import (
    Content,
    Count,
    Form,
    MemoryForm,
    Share,
    Temperature,
    TextForm,
    text_of,
)
from loci.server.tools import FunctionForm, How, Name, written


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


class CallItem(Form):
    """A function that was called earlier in the conversation."""

    type: Literal["function_call"]
    call_id: str
    name: Name
    arguments: str
    id: str | None = None
    status: str | None = None


class ResultItem(Form):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: str | None = None
    status: str | None = None


def _kind(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return "message" if kind is None else str(kind)


Input = Annotated[
    Annotated[InputItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")],
    Discriminator(_kind),
]


class ResponseTool(FunctionForm):
    """A function, in the words of /v1/responses."""

    type: Literal["function"]


class NamedTool(Form):
    """The one function that has to be called."""

    type: Literal["function"]
    name: Name


def _kinds(what: str, *known: str) -> BeforeValidator:
    """Refuse items of a kind that is not known, by its name."""

    def check(items: object) -> object:
        for item in items if isinstance(items, list) else ():
            kind = item.get("type", known[0]) if isinstance(item, dict) else known[0]
            if kind not in known:
                raise ValueError(f"{what} of the type {kind!r} is not known; {' or '.join(known)}")
        return items

    return BeforeValidator(check)


class ResponseForm(Form):
    """A request to /v1/responses."""

    model: str
    input: Annotated[
        str | Annotated[list[Input], Field(min_length=1)],
        _kinds("an item", "message", "function_call", "function_call_output"),
    ]
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
    tools: Annotated[
        Annotated[list[ResponseTool], Field(max_length=64)] | None, _kinds("a tool", "function")
    ] = None
    tool_choice: How | NamedTool | None = None
    memory: bool | MemoryForm = False

    @property
    def how(self) -> tuple[How, str | None]:
        """Whether a function has to be called, and the name of the only one that may be."""
        choice = self.tool_choice
        if isinstance(choice, NamedTool):
            return "required", choice.name
        return choice or "auto", None


def plain_items(items: Sequence[Input], names: dict[str, str]) -> list[dict[str, str]]:
    """Return items as chat templates know them; calls and their results are text.

    Args:
        names: of functions by the ids of their calls; those called here are put in.
    """
    found = []
    for item in items:
        if isinstance(item, InputItem):
            found.append(item.plain())
        elif isinstance(item, CallItem):
            names[item.call_id] = item.name
            found.append({"role": "assistant", "content": written(item.name, item.arguments)})
        else:
            text = f"{names.get(item.call_id, 'It')} returned: {text_of(item.output)}"
            found.append({"role": "user", "content": text})
    return found

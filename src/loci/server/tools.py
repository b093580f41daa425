"""Functions that a model may ask for: told in the instructions, decoded under a schema.

A model answers with one JSON object, {"name", "arguments"} to call or {"reply"} to speak,
and the grammar lets nothing else come out. So a call always names a function that there is, with
arguments of its form, also from a model that was never taught to call any.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal  # JSON values

from pydantic import Field

from loci.errors import ParameterError
from loci.server.forms import Form, Json

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_CALL = re.compile(r'^\{"name": "([^"]+)", "arguments": ')
_REPLY = re.compile(r'^\{"reply": "')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", '"': '"', "\\": "\\", "/": "/"}


class FunctionForm(Form):
    """A function: its name, what it does, and the schema of its arguments."""

    name: Name
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class ToolForm(Form):
    """One tool; functions are all there are."""

    type: Literal["function"]
    function: FunctionForm


class NamedForm(Form):
    """A function by its name."""

    name: Name


class ChoiceForm(Form):
    """The one function that has to be called."""

    type: Literal["function"]
    function: NamedForm


How = Literal["none", "auto", "required"]
Choice = How | ChoiceForm


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What may be called, and whether something has to be.

    Attributes:
        functions: those that may be called.
        must: no reply in words is possible.
    """

    functions: tuple[FunctionForm, ...]
    must: bool

    @classmethod
    def of(cls, tools: Sequence[ToolForm] | None, choice: Choice | None) -> Tools | None:
        """Return what a chat asks for; see `among`."""
        functions = [tool.function for tool in tools or ()]
        if isinstance(choice, ChoiceForm):
            return cls.among(functions, "required", choice.function.name)
        return cls.among(functions, choice or "auto")

    @classmethod
    def among(
        cls, functions: Sequence[FunctionForm], how: How, only: str | None = None
    ) -> Tools | None:
        """Return what a request asks for; None where nothing may be called.

        Args:
            only: the name of the one that may be called; None where all may.

        Raises:
            ParameterError: if a choice is of no tool, or a name stands twice.
        """
        names = [function.name for function in functions]
        if len(set(names)) < len(names):
            raise ParameterError("two tools have the same name", value=names)
        if only is not None and only not in names:
            raise ParameterError(
                "tool_choice names no tool", value=only, allowed=", ".join(names) or "none"
            )
        if how == "required" and not functions:
            raise ParameterError("tool_choice is required, and there are no tools")
        if not functions or how == "none":
            return None
        chosen = tuple(one for one in functions if only in (None, one.name))
        return cls(functions=chosen, must=how == "required")

    @staticmethod
    def alone(**others: bool) -> None:
        """Refuse what does not go with tools, where a request has it.

        Raises:
            ParameterError: names it.
        """
        for name, is_given in others.items():
            if is_given:
                raise ParameterError(
                    f"{name} does not go with tools",
                    way_out='leave it out, or let tool_choice be "none"',
                )

    @property
    def schema(self) -> Json:
        """The schema of an answer."""
        defs: Json = {}
        ways = []
        for function in self.functions:
            parameters = dict(function.parameters or {"type": "object", "properties": {}})
            for name, value in parameters.pop("$defs", {}).items():
                if defs.setdefault(name, value) != value:
                    raise ParameterError("two tools define the same name otherwise", value=name)
            ways.append(_object(name={"const": function.name}, arguments=parameters))
        if not self.must:
            ways.append(_object(reply={"type": "string"}))
        schema: Json = {"anyOf": ways} if len(ways) > 1 else ways[0]
        return schema | ({"$defs": defs} if defs else {})

    def told(self, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        """Return a conversation whose instructions tell of the functions."""
        known = [
            one.model_dump(exclude_none=True, exclude={"strict", "type"}) for one in self.functions
        ]
        text = (
            "You can call these functions:\n"
            + "\n".join(json.dumps(one, ensure_ascii=False) for one in known)
            + '\nTo call one, answer only {"name": ..., "arguments": {...}}.'
        )
        if not self.must:
            text += ' To answer in words, answer only {"reply": "..."}.'
        plain = [dict(message) for message in messages]
        if plain and plain[0]["role"] == "system":
            plain[0]["content"] = f"{plain[0]['content']}\n\n{text}"
            return plain
        return [{"role": "system", "content": text}, *plain]


@dataclass(frozen=True, kw_only=True)
class Called:
    """An answer that was read: a call, or words."""

    name: str | None = None
    arguments: str = ""
    reply: str = ""
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


def read(text: str) -> Called:
    """Return what a whole answer says."""
    found = json.loads(text)
    if "reply" in found:
        return Called(reply=found["reply"])
    arguments = json.dumps(found["arguments"], ensure_ascii=False)
    return Called(name=found["name"], arguments=arguments)


def written(name: str, arguments: str) -> str:
    """Return a call of earlier in a conversation as the model is shown it."""
    return f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'


class Splitter:
    """Takes an answer as it comes, and gives out pieces of a call or of a reply.

    Attributes:
        name: of the function, once it is known.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._text = ""  # what was not given out yet
        self._mode: Literal["open", "call", "reply", "done"] = "open"

    def feed(self, text: str) -> str:
        """Return what can be given out now: of the arguments where `name` is set, else words."""
        self._text += text
        if self._mode == "open":
            call, reply = _CALL.match(self._text), _REPLY.match(self._text)
            if call is not None:
                self.name, self._mode = call[1], "call"
                self._text = self._text[call.end() :]
            elif reply is not None:
                self._mode = "reply"
                self._text = self._text[reply.end() :]
        if self._mode == "call":
            return self._arguments()
        return self._reply() if self._mode == "reply" else ""

    def _arguments(self) -> str:
        # The last brace closes the answer, not the arguments; which one is last is not known yet.
        body = self._text.rstrip()
        end = len(body) - 1 if body.endswith("}") else len(body)
        given, self._text = self._text[:end], self._text[end:]
        return given

    def _reply(self) -> str:
        out, at, text = [], 0, self._text
        while at < len(text):
            letter = text[at]
            if letter == '"':
                self._mode = "done"
                at = len(text)
            elif letter != "\\":
                out.append(letter)
                at += 1
            elif text[at + 1 : at + 2] == "u":
                if len(text) < at + 6:
                    break  # the rest comes later
                out.append(chr(int(text[at + 2 : at + 6], 16)))
                at += 6
            elif len(text) > at + 1:
                out.append(_ESCAPES[text[at + 1]])
                at += 2
            else:
                break
        self._text = text[at:]
        return "".join(out)


def _object(**properties: Json) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }

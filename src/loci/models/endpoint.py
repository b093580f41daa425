"""Any OpenAI-compatible server as a language model for memory operations."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any  # JSON values

from loci.errors import EndpointError, ParameterError

_AGAIN = (408, 429, 500, 502, 503, 504)
_LONGEST_WAIT_S = 30.0
_MAX_REPLY_BYTES = 16 * 2**20
_BYTES_PER_TOKEN = (
    3  # English text in common vocabularies takes about 4; this errs to the safe side
)


class Endpoint:
    """Chat completions over HTTP. The key is sent to that server and shown nowhere.

    Args:
        url: the base, such as "http://localhost:11434/v1".
        model: the name the server knows.
        key: sent as a bearer token.
        timeout_s: of one try.
        retries: further tries after a connection that failed, a time-out, or a busy server.
        sleep: waits between tries.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        timeout_s: float = 60.0,
        *,
        retries: int = 2,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ParameterError(
                "an endpoint is a URL", value=url, allowed="http://... or https://..."
            )
        if timeout_s <= 0 or retries < 0:
            raise ParameterError(
                "endpoint.timeout_s must be > 0 and endpoint.retries >= 0",
                value=(timeout_s, retries),
            )
        self.url, self.name = url.rstrip("/"), model
        self._key, self._timeout_s, self._retries, self._sleep = key, timeout_s, retries, sleep

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, {self.name!r})"

    def generate(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the reply; with `schema` the server is asked for JSON and JSON must come.

        Raises:
            EndpointError: if the server does not answer, refuses, or answers something else.
        """
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [dict(message) for message in messages],
            "max_tokens": max_tokens,
        }
        if stop:
            body["stop"] = list(stop)
        if seed is not None:
            body["seed"] = seed
        if schema is not None:
            form = {"name": "reply", "schema": dict(schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        answer = self._post("chat/completions", body)
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            raise EndpointError(
                f"{self.url} did not answer in the form of chat completions",
                value=self._shown(json.dumps(answer)),
                allowed='{"choices": [{"message": {"content": "..."}}]}',
                way_out="check that the URL is the base of an OpenAI-compatible server",
            )
        if schema is not None:
            try:
                json.loads(text)
            except ValueError:
                raise EndpointError(
                    f"{self.name} at {self.url} was asked for JSON and wrote something else",
                    value=self._shown(text),
                    allowed="JSON of the schema",
                    way_out="take a model or server that knows response_format=json_schema",
                ) from None
        return text

    def count_tokens(self, text: str) -> int:
        """Return an estimate on the high side; the server's tokenizer is not known here."""
        return -(-len(text.encode()) // _BYTES_PER_TOKEN)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        import httpx

        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        problem = ""
        # The environment's proxies are not read here: settings come as arguments.
        with httpx.Client(timeout=self._timeout_s, trust_env=False) as client:
            for attempt in range(self._retries + 1):
                try:
                    reply = client.post(f"{self.url}/{path}", json=body, headers=headers)
                except httpx.HTTPError as error:
                    problem = f"{type(error).__name__}: {error}"
                    self._wait(attempt, None)
                    continue
                if reply.status_code not in _AGAIN:
                    return self._read(reply.status_code, reply.content)
                problem = f"status {reply.status_code}: {reply.text[:200]}"
                self._wait(attempt, reply.headers.get("retry-after"))
        raise EndpointError(
            f"{self.url} did not answer",
            value=self._shown(problem),
            allowed=f"an answer within {self._timeout_s:g} s, {self._retries + 1} tries",
            way_out="check that the server runs and that the URL and the network are right",
        )

    def _read(self, status: int, content: bytes) -> Any:
        text = content[:2000].decode("utf-8", "replace")
        if status != 200:
            hints = {
                401: "check the key",
                403: "check the key and what it may do",
                404: "check the URL and the name of the model",
            }
            raise EndpointError(
                f"{self.url} refused with status {status}",
                value=self._shown(text),
                allowed="status 200",
                way_out=hints.get(status, "the server's message says why"),
            )
        try:
            if len(content) > _MAX_REPLY_BYTES:
                raise ValueError("more than 16 MiB")
            return json.loads(content)
        except ValueError:
            raise EndpointError(
                f"{self.url} did not answer with JSON",
                value=self._shown(text),
                allowed="a JSON object of at most 16 MiB",
                way_out="check that the URL is the base of an OpenAI-compatible server",
            ) from None

    def _wait(self, attempt: int, asked: str | None) -> None:
        if attempt >= self._retries:
            return
        wait = 0.5 * 2**attempt
        if asked is not None and asked.isdigit():
            wait = float(asked)
        self._sleep(min(wait, _LONGEST_WAIT_S))

    def _shown(self, text: str) -> str:
        """Return text for an error message: short, and without the key should a server echo it."""
        if self._key:
            text = text.replace(self._key, "***")
        return text[:300]

"""A running server of this machine, as the command line uses it: no model is loaded here."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any  # JSON values

import httpx
import psutil

from loci.errors import EndpointError, OverloadError
from loci.server.running import Running, servers

PATIENCE_S = 5.0  # for what is told at once
QUIET_S = 300.0  # between two pieces of an answer
Json = dict[str, Any]


def serving(folder: Path, model: str) -> Running | None:
    """Return the newest server of a model alone that needs no key and takes requests, or None.

    One that answers with an adapter or cubes would say something else than the model does.
    """
    for server in reversed(servers(folder)):
        if server.model != model or server.keyed or server.beside:
            continue
        try:
            ready = httpx.get(f"{server.url}/ready", timeout=PATIENCE_S)
        except httpx.HTTPError:
            continue
        if ready.status_code == 200:
            return server
    return None


class Client:
    """Asks one server. Use it in a `with` statement.

    Args:
        key: of an admin, where the server needs one.
    """

    def __init__(self, server: Running, key: str | None = None) -> None:
        self.server = server
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        timeout = httpx.Timeout(PATIENCE_S, read=QUIET_S)
        self._http = httpx.Client(base_url=server.url, headers=headers, timeout=timeout)
        self._answer = ""
        self._usage: Json = {"prompt_tokens": 0, "completion_tokens": 0}
        self._reused = 0
        self._first_s = self._last_s = 0.0

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, what: str) -> Any:
        """Return what the server tells under /api/v1.

        Raises:
            EndpointError: if it does not.
        """
        try:
            found = self._http.get(f"/api/v1/{what}", timeout=PATIENCE_S)
        except httpx.HTTPError as error:
            raise self._gone(error) from error
        if found.status_code != 200:
            raise self._refused(found)
        return found.json()

    def answer(
        self, messages: Sequence[Mapping[str, str]], *, max_tokens: int | None, **sampling: Any
    ) -> Iterator[str]:
        """Yield an answer as it comes; leaving early ends it at the server too.

        Args:
            sampling: temperature, top_p, top_k and seed; None leaves one out.

        Raises:
            OverloadError: if the server has too much to do.
            EndpointError: if it refuses, or goes away.
        """
        body = {
            "model": self.server.model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in sampling.items() if value is not None},
        }
        began = time.perf_counter()
        self._answer, self._reused, self._first_s = "", 0, 0.0
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as stream:
                if stream.status_code != 200:
                    stream.read()
                    raise self._refused(stream)
                for text in self._pieces(stream):
                    self._last_s = time.perf_counter() - began
                    self._first_s = self._first_s or self._last_s
                    self._answer += text
                    yield text
        except httpx.HTTPError as error:
            raise self._gone(error) from error

    def report(self) -> Json:
        """Return what the last answer took, in the form of a session's report.

        Bytes are those of the whole server, for all its requests.
        """
        plan, ledger = self.get("plan"), self.get("ledger")
        measured = {tier: facts["used"] for tier, facts in ledger["tiers"].items() if facts["used"]}
        new, took = self._usage["completion_tokens"], self._last_s - self._first_s
        return {
            "format": "loci-run",
            "version": 1,
            "model": plan["model"],
            "server": self.server.url,
            "answer": self._answer,
            "bytes": {"predicted": plan["predicted"], "measured": measured, "moved": {}},
            "runtime_bytes": max(0, self._resident() - measured.get("dram", 0)),
            "tokens_per_s": (new - 1) / took if new > 1 and took > 0 else 0.0,
            "first_token_s": self._first_s,
            "tokens": {
                "prompt": self._usage["prompt_tokens"],
                "reused": self._reused,
                "new": new,
            },
            "held": ledger["held"],
            "notes": [f"answered by {self.server.url}; bytes are those of all its requests"],
            "plan": plan,
        }

    # -- private ------------------------------------------------------------------------------

    def _pieces(self, stream: httpx.Response) -> Iterator[str]:
        for line in stream.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            data = json.loads(line.removeprefix("data: "))
            if "error" in data:
                raise EndpointError(data["error"]["message"])
            if data.get("usage"):
                self._usage = data["usage"]
                self._reused = self._usage["prompt_tokens_details"]["cached_tokens"]
            for choice in data["choices"]:
                if text := choice["delta"].get("content"):
                    yield text

    def _refused(self, answer: httpx.Response) -> EndpointError | OverloadError:
        try:
            error = answer.json()["error"]
            message = str(error.get("message") or error.get("what"))
        except (ValueError, KeyError, AttributeError):
            message = f"{self.server.url} answers {answer.status_code}"
        if answer.status_code in (429, 503):
            wait_s = float(answer.headers.get("retry-after", 1))
            return OverloadError(
                message,
                way_out=[f"ask again in {wait_s:g} s", "--no-server loads the model here"],
                retry_after_s=wait_s,
            )
        return EndpointError(message)

    def _gone(self, error: Exception) -> EndpointError:
        return EndpointError(
            f"{self.server.url} does not answer: {error}",
            way_out=["loci ps shows what runs", "--no-server loads the model here"],
        )

    def _resident(self) -> int:
        try:
            return int(psutil.Process(self.server.pid).memory_info().rss)
        except psutil.Error:
            return 0

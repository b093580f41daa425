"""What tests know of a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any  # clients of three kinds

import httpx

from loci.server.serve import Server
from loci.server.service import Service

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "What is a budget?"}]}


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    url: str
    service: Service
    server: Server

    def http(self, **given: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **given)

    def openai(self, key: str = "none", **given: Any) -> Any:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **given)

    def anthropic(self, key: str = "none", **given: Any) -> Any:
        import anthropic

        return anthropic.Anthropic(base_url=self.url, api_key=key, max_retries=0, **given)

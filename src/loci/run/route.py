"""Whether a prompt looks something up or sums up, told from its first and its last paragraph.

Methods that choose what to keep by the kind of task are routed by this. The instruction stands at
one end of a prompt or at both, beside text that says nothing of the task. So a logistic regression
over the vector of an end tells three things apart: it looks up, it sums up, it is mere text; and
the prompt goes by what both ends say together. The weights were fitted on instructions of our own
(`loci bench run fit_route`), for the default embedder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np

from loci.core.method import Method
from loci.core.ports import Array, Embedder
from loci.errors import FingerprintError, FormatError, ParameterError

FORMAT, VERSION = "loci-route", 2
TASKS = ("look_up", "sum_up")
KINDS = (*TASKS, "text")  # what an end can be
ENDS = 200  # characters of either end that are looked at
SHIPPED = "routes.json"
_STEPS, _RATE, _DECAY = 3000, 2.0, 1e-4


@dataclass(frozen=True, kw_only=True)
class Router:
    """Weights over the vector of an end, one row for each of `KINDS`, for one embedder."""

    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    embedder: str

    def leaning(self, prompt: str, embedder: Embedder) -> float:
        """Return how much a prompt sums up (up to 2) or looks up (down to -2).

        Raises:
            FingerprintError: if the router was fitted with another embedder.
        """
        mark = mark_of(embedder)
        if mark != self.embedder:
            raise FingerprintError(
                "this router was fitted with another embedder",
                value=mark,
                allowed=self.embedder,
                way_out="loci bench run fit_route --option save=FILE, with this embedder",
            )
        vectors = np.asarray(embedder.encode(ends_of(prompt)), np.float64)
        chances = _softmax(vectors @ np.asarray(self.weights).T + np.asarray(self.bias))
        return float((chances[:, 1] - chances[:, 0]).sum())

    def task(self, prompt: str, embedder: Embedder) -> str:
        """Return "sum_up" or "look_up"."""
        return TASKS[self.leaning(prompt, embedder) > 0]

    def to_json(self) -> str:
        """Return the router as text."""
        values = {
            "format": FORMAT,
            "version": VERSION,
            "embedder": self.embedder,
            "bias": [round(b, 4) for b in self.bias],
            "weights": [[round(w, 3) for w in row] for row in self.weights],
        }
        return json.dumps(values) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Router:
        """Return the router of a text.

        Raises:
            FormatError: if it is none of a version we know.
        """
        try:
            values = json.loads(text)
            if (values["format"], values["version"]) != (FORMAT, VERSION):
                raise FormatError(
                    "this is no router of a version Loci knows",
                    value=(values["format"], values["version"]),
                    allowed=f"{FORMAT} {VERSION}",
                )
            return cls(
                weights=tuple(map(tuple, values["weights"])),
                bias=tuple(values["bias"]),
                embedder=values["embedder"],
            )
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise FormatError(f"this is no router: {error}") from None


def shipped() -> Router:
    """Return the router that comes with Loci, for minilm."""
    file = resources.files("loci.text") / SHIPPED
    return Router.from_json(file.read_text(encoding="utf-8"))


def routed(
    chain: Sequence[Method], prompt: str, embedder: Embedder, router: Router | None = None
) -> tuple[Method, ...]:
    """Return the chain with every method that goes by the task set to that of the prompt."""
    found, task = [], None
    for method in chain:
        for_task = getattr(method, "for_task", None)
        if for_task is not None:
            task = task or (router or shipped()).task(prompt, embedder)
            method = for_task(task)
        found.append(method)
    return tuple(found)


def fitted(texts: Sequence[str], kinds: Sequence[str], embedder: Embedder) -> Router:
    """Return a router fitted by gradient descent; it draws nothing.

    Args:
        texts: single instructions, and pieces of mere text.
        kinds: of each, one of `KINDS`.
    """
    if len(texts) != len(kinds) or set(kinds) != set(KINDS):
        raise ParameterError(
            "a router is fitted on texts of every kind",
            value=sorted(set(kinds)),
            allowed=", ".join(KINDS),
        )
    x_nw = np.asarray(embedder.encode([text[:ENDS] for text in texts]), np.float64)
    y_nk = np.eye(len(KINDS))[[KINDS.index(kind) for kind in kinds]]
    y_nk /= y_nk.sum(0)  # every kind counts the same
    weights, bias = np.zeros((len(KINDS), x_nw.shape[1])), np.zeros(len(KINDS))
    for _ in range(_STEPS):
        error_nk = _softmax(x_nw @ weights.T + bias) * y_nk.sum(1, keepdims=True) - y_nk
        weights -= _RATE * (error_nk.T @ x_nw + _DECAY * weights)
        bias -= _RATE * error_nk.sum(0)
    return Router(
        weights=tuple(tuple(map(float, row)) for row in weights),
        bias=tuple(map(float, bias)),
        embedder=mark_of(embedder),
    )


def ends_of(prompt: str) -> list[str]:
    """Return the beginning of the first paragraph and the end of the last."""
    parts = [part.strip() for part in prompt.split("\n\n") if part.strip()] or [prompt]
    return [parts[0][:ENDS], parts[-1][-ENDS:]]


def _softmax(logits_nk: Array) -> Array:
    raised = np.exp(logits_nk - logits_nk.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def mark_of(embedder: Embedder) -> str:
    """Return what tells one embedder from another."""
    return str(getattr(embedder, "fingerprint", type(embedder).__qualname__))

"""A small mixture of experts made on the spot, which counts the bytes of every expert it reads.

Attention, a router, and experts of which each token takes a few, in float64 so that no rounding
decides which. A pass carries rows through layers as a scheduler's plan says; in each layer every
expert that any of its rows wants is read once. What is counted are reads, not a model's words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from loci.errors import ParameterError
from loci.methods.sched.base import Request, Sched, SchedView, StepPlan

# Shapes: T tokens of one row, N of all rows, d hidden, D head, H heads, E experts, f of an expert.


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the model; experts count 2 bytes a number, whatever they are held in."""

    layers: int = 16
    hidden: int = 128
    heads: int = 4
    experts: int = 32
    top: int = 4
    ffn: int = 64
    vocab: int = 512

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert of one layer."""
        return 2 * 3 * self.hidden * self.ffn


@dataclass(kw_only=True)
class Served:
    """What a run did.

    Attributes:
        read_bytes: of experts; prompt_bytes: of those in passes and layers where prompts took part.
        tokens: {id: ids}; steps: {id: at which step each token came}.
    """

    read_bytes: int = 0
    prompt_bytes: int = 0
    tokens: dict[str, list[int]] = field(default_factory=dict)
    steps: dict[str, list[int]] = field(default_factory=dict)


@dataclass(eq=False)
class _Row:
    """Tokens of one request on their way through a pass."""

    id: str
    hidden_Td: Tensor
    first: int  # position of the first of them
    is_prompt: bool


class Mixture:
    """Random weights from a seed, and the keys and values of whoever runs."""

    def __init__(self, sizes: Sizes, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            made = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return made / shape[-1] ** 0.5

        s = self.sizes = sizes
        self.embedding = draw(s.vocab, s.hidden) * s.hidden**0.5
        self.head = draw(s.vocab, s.hidden)
        self.attention = draw(s.layers, 4, s.hidden, s.hidden)  # q, k, v, o
        self.router = draw(s.layers, s.experts, s.hidden)
        self.up = draw(s.layers, s.experts, 2 * s.ffn, s.hidden)  # gate and up
        self.down = draw(s.layers, s.experts, s.hidden, s.ffn)
        self.past: dict[tuple[str, int], list[Tensor]] = {}  # (id, layer) -> keys, values [T, d]

    def layer(self, index: int, rows: Sequence[_Row]) -> int:
        """Carry rows through one layer; return how many experts were read."""
        for row in rows:
            row.hidden_Td = row.hidden_Td + self._attend(index, row)
        all_Nd = torch.cat([row.hidden_Td for row in rows])
        mixed_Nd, count = self._mix(index, _normed(all_Nd))
        parts = (all_Nd + mixed_Nd).split([len(row.hidden_Td) for row in rows])
        for row, part_Td in zip(rows, parts, strict=True):
            row.hidden_Td = part_Td
        return count

    def best(self, hidden_d: Tensor) -> int:
        """Return the likeliest token after a row's last state."""
        return int((self.head @ _normed(hidden_d)).argmax())

    def _attend(self, index: int, row: _Row) -> Tensor:
        s = self.sizes
        q_w, k_w, v_w, o_w = self.attention[index]
        x_Td = _normed(row.hidden_Td)
        held = self.past.setdefault((row.id, index), [x_Td[:0], x_Td[:0]])
        held[0], held[1] = (
            torch.cat([old, x_Td @ w.T]) for old, w in zip(held, (k_w, v_w), strict=True)
        )
        q_HTD, k_HSD, v_HSD = (
            part.view(len(part), s.heads, -1).transpose(0, 1)
            for part in (x_Td @ q_w.T, held[0], held[1])
        )
        scores_HTS = q_HTD @ k_HSD.transpose(1, 2) / q_HTD.shape[-1] ** 0.5
        seen_TS = torch.arange(len(held[0])) <= row.first + torch.arange(len(x_Td))[:, None]
        chances_HTS = scores_HTS.masked_fill(~seen_TS, float("-inf")).softmax(-1)
        return (chances_HTS @ v_HSD).transpose(0, 1).reshape(len(x_Td), -1) @ o_w.T

    def _mix(self, index: int, x_Nd: Tensor) -> tuple[Tensor, int]:
        found = (x_Nd @ self.router[index].T).topk(self.sizes.top, dim=-1)
        weights_Nk = found.values.softmax(-1)
        out_Nd = torch.zeros_like(x_Nd)
        wanted = found.indices.unique().tolist()
        for expert in wanted:
            rows_n, place_n = (found.indices == expert).nonzero(as_tuple=True)
            gate_nf, up_nf = (x_Nd[rows_n] @ self.up[index, expert].T).chunk(2, -1)
            hidden_nf = torch.nn.functional.silu(gate_nf) * up_nf
            scale_n1 = weights_Nk[rows_n, place_n][:, None]
            out_Nd.index_add_(0, rows_n, scale_n1 * (hidden_nf @ self.down[index, expert].T))
        return out_Nd, len(wanted)


def serve(
    method: Sched, arrivals: Sequence[tuple[int, Request, Sequence[int]]], model: Mixture
) -> Served:
    """Run requests that arrive before given steps to their end.

    Args:
        arrivals: (step, request, prompt ids).
    """
    served, state = Served(), method.start()
    waiting = sorted(arrivals, key=lambda arrival: arrival[0])
    live: dict[str, Request] = {}
    ids: dict[str, list[int]] = {}
    states: dict[str, Tensor] = {}  # of prompts between two groups of layers
    step = 0
    while waiting or live:
        while waiting and waiting[0][0] <= step:
            _, request, prompt = waiting.pop(0)
            live[request.id], ids[request.id] = request, list(prompt)
            served.tokens[request.id], served.steps[request.id] = [], []
        view = SchedView(
            requests=tuple(live.values()),
            budget_bytes=2**62,
            max_rows=64,
            layers=model.sizes.layers,
        )
        plan, state = method.choose(view, state)
        if plan.is_idle and live:
            raise ParameterError("a scheduler stands still while requests wait", value=str(method))
        for id in _step(plan, model, live, ids, states, served):
            served.tokens[id].append(ids[id][-1])
            served.steps[id].append(step)
            live[id] = replace(live[id], generated=live[id].generated + 1)
            if live[id].generated == live[id].new_tokens:
                del live[id]
        step += 1
    return served


def _step(
    plan: StepPlan,
    model: Mixture,
    live: dict[str, Request],
    ids: dict[str, list[int]],
    states: dict[str, Tensor],
    served: Served,
) -> list[str]:
    """Carry out one plan; return who got a token."""
    layers, size = model.sizes.layers, model.sizes.expert_bytes
    first, last = plan.prefill_layers or (0, layers)
    rows = [_Row(id, model.embedding[ids[id][-1:]], len(ids[id]) - 1, False) for id in plan.decode]
    prompts = []
    for id, tokens in plan.prefill:
        start = live[id].prefilled
        begun = model.embedding[ids[id][start : start + tokens]]
        prompts.append(_Row(id, states.pop(id, begun), start, True))
    for index in range(layers):
        here = [*rows, *(prompts if first <= index < last else ())]
        if not here:
            continue
        nbytes = size * model.layer(index, here)
        served.read_bytes += nbytes
        served.prompt_bytes += nbytes if any(row.is_prompt for row in here) else 0
    got = []
    for row in rows:
        ids[row.id].append(model.best(row.hidden_Td[-1]))
        got.append(row.id)
    for row in prompts:
        if last < layers:
            states[row.id] = row.hidden_Td
            continue
        done = row.first + len(row.hidden_Td)
        live[row.id] = replace(live[row.id], prefilled=done)
        if done == live[row.id].prompt_tokens:  # its first token comes with the prompt
            ids[row.id].append(model.best(row.hidden_Td[-1]))
            got.append(row.id)
    return got


def _normed(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

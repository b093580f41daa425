"""What attention moves: real loops counted, formulas, bounds, and the choice between loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from loci.errors import ParameterError
from loci.methods.cost.attention_io import AttentionIo, bound, plan
from loci.methods.cost.base import graph_of
from loci.nn.fast_memory import FastMemory
from loci.nn.flash_attention import Mask, Tiles, flash_attention, reference, words_forward
from loci.nn.square_tiles import side_of, square_attention, words_square
from loci.testing import cost


def tensors(queries: int, keys: int, size: int, groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = Generator().manual_seed(queries * keys)
    q = torch.randn(1, groups, queries, size, generator=generator)
    k, v = torch.randn(2, 1, 1, keys, size, generator=generator)
    return q, k, v


@pytest.mark.parametrize("words", [5, 16, 40, 100, 333, 1000, 5000, 40_000])
@pytest.mark.parametrize(("queries", "keys", "size"), [(30, 40, 16), (17, 50, 8), (25, 25, 24)])
def test_the_planned_loop_moves_what_the_plan_says(
    queries: int, keys: int, size: int, words: int
) -> None:
    q, k, v = tensors(queries, keys, size)
    chosen = plan(queries, keys, size, words)
    memory = FastMemory(words)  # refuses what does not fit
    if chosen.algorithm == "flash":
        tiles = Tiles(queries=chosen.queries, keys=chosen.keys)
        found, _ = flash_attention(q, k, v, tiles=tiles, memory=memory)
    else:
        found = square_attention(q[0, 0], k[0, 0], v[0, 0], scale=size**-0.5, memory=memory)
    expected, _ = reference(q.double(), k.double(), v.double())
    assert (found - expected).abs().max() <= 1e-5
    assert memory.moved == chosen.words
    assert chosen.bound <= chosen.words
    assert memory.held == 0 and memory.peak <= words


@pytest.mark.parametrize("words", [300, 1000, 4000])
def test_a_group_of_query_heads_reads_its_keys_together(words: int) -> None:
    q, k, v = tensors(20, 30, 8, groups=3)
    chosen = plan(20, 30, 8, words, groups=3)
    memory = FastMemory(words)
    tiles = Tiles(queries=chosen.queries, keys=chosen.keys)
    flash_attention(q, k, v, tiles=tiles, memory=memory)
    assert chosen.algorithm == "flash" and memory.moved == chosen.words
    # Never more than three heads one by one, each with all of the memory.
    assert chosen.words <= 3 * plan(20, 30, 8, words).words


def test_the_choice_is_the_best_of_a_sweep() -> None:
    for words in (5, 60, 150, 400, 1500, 9000, 10**6):
        best = words_square(64, 96, 16, side_of(words))
        for queries in range(1, 65):
            tiles = Tiles(queries=queries, keys=1)
            if tiles.words(16) <= words:
                best = min(best, words_forward(Mask(), tiles, 64, 96, 16))
        assert plan(64, 96, 16, words).words <= 1.05 * best


def slope(moved: list[float], memories: list[int]) -> float:
    x, y = [math.log(m) for m in memories], [math.log(w) for w in moved]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    over = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return over / sum((a - mean_x) ** 2 for a in x)


def test_both_regimes_have_their_slopes() -> None:
    size, count = 128, 2**20
    large = [size**2 * 2**power for power in range(1, 7)]
    flash = [plan(count, count, size, words) for words in large]
    assert {chosen.algorithm for chosen in flash} == {"flash"}
    assert slope([chosen.words for chosen in flash], large) == pytest.approx(-1.0, abs=0.05)
    # Square tiles also write the scores, whatever the memory; beyond that they go with its root.
    small = [2**power for power in range(4, 10)]
    square = [plan(count, count, size, words) for words in small]
    assert {chosen.algorithm for chosen in square} == {"square"}
    tiles = [float(words_square(count, count, size, side) - count**2) for side in (2, 4, 8, 16)]
    assert slope(tiles, [4, 16, 64, 256]) == pytest.approx(-0.5, abs=0.05)


def test_the_crossover_is_where_the_constants_put_it() -> None:
    # 4 u^2 = 4 sqrt(3) u + 1 with u = D / sqrt(M): square tiles win below about 0.29 D^2. That
    # counts one pass of scores out and one in; a head of several pieces reads them once a piece.
    size, count = 256, 2**16
    u = (4 * math.sqrt(3) + math.sqrt(48 + 16)) / 8
    predicted = size**2 / u**2
    memories = [int(predicted * 1.03**power) for power in range(-60, 60)]
    kinds = [plan(count, count, size, words).algorithm for words in memories]
    turn = kinds.index("flash")
    assert kinds[:turn] == ["square"] * turn and set(kinds[turn:]) == {"flash"}
    assert memories[turn] == pytest.approx(predicted, rel=0.2)


def test_the_bound_changes_its_form_at_the_square_of_the_head() -> None:
    assert bound(4096, 4096, 64, 64**2) == 4096**2
    assert bound(4096, 4096, 64, 64**2 * 4) == 4096**2 // 4
    assert bound(4096, 4096, 64, 64**2 // 4) == 4096**2 * 2
    assert bound(64, 64, 64, 10**9) == 4 * 64 * 64  # reading and writing once


def test_more_memory_never_moves_more() -> None:
    moved = [plan(200, 300, 32, words).words for words in (5, 50, 150, 500, 5000, 10**6)]
    assert moved == sorted(moved, reverse=True)
    assert plan(200, 300, 32, 10**6).passes == 1
    assert moved[-1] == 2 * 200 * 32 + 200 + 2 * 300 * 32


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(ParameterError, match="no tile fits"):
        plan(10, 10, 8, 4)


def test_as_a_cost_model_a_small_cache_makes_long_prompts_slower() -> None:
    work = graph_of(cost.SMALL, "prefill", tokens=512, keys=512)
    place = cost.machine(bandwidth=1e9, peak=1e12)
    seconds = [
        AttentionIo(fast=fast, size=16).estimate(work, place).seconds_per_token
        for fast in (64, 4096, 2**20)
    ]
    assert seconds[0] > seconds[1] > seconds[2]
    with pytest.raises(ParameterError, match="no such tier"):
        lone = cost.PaperMachine(tiers={"disk": cost.Rate(read_bytes_per_s=1.0)})
        AttentionIo().estimate(work, lone)

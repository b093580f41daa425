"""From logits to tokens: the kernels against plain torch, and chances against frequencies."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from loci.errors import ParameterError
from loci.nn import native
from loci.run.sampling import Sampling, choose, choose_reference


def logits_of(rows: int, vocab: int, seed: int) -> Tensor:
    return torch.randn(rows, vocab, generator=Generator().manual_seed(seed)) * 3


def draws(logits_V: Tensor, sampling: Sampling, count: int) -> Tensor:
    """Return how often each token was drawn, as shares."""
    generator = Generator().manual_seed(1)
    chosen = [int(choose(logits_V[None], sampling, generator)[0]) for _ in range(count)]
    return torch.bincount(torch.tensor(chosen), minlength=logits_V.numel()) / count


@pytest.mark.skipif(not native.available(), reason="the kernels were not built")
@settings(max_examples=80, deadline=None)
@given(
    vocab=st.sampled_from([1, 2, 7, 100, 3000]),
    temperature=st.sampled_from([0.2, 1.0, 5.0]),
    top_k=st.sampled_from([None, 1, 2, 40, 5000]),
    top_p=st.sampled_from([None, 0.05, 0.5, 0.95, 1.0]),
    rounded=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_kernels_choose_what_torch_chooses(
    vocab: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    rounded: bool,
    seed: int,
) -> None:
    logits = logits_of(3, vocab, seed)
    if rounded:
        logits = logits.round()  # many equals
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    uniform = torch.rand(3, dtype=torch.float64, generator=Generator().manual_seed(seed))
    expected = choose_reference(logits, sampling, uniform)
    found = choose(logits, sampling, Generator().manual_seed(seed))
    assert found.tolist() == expected.tolist()


def test_tokens_come_as_often_as_their_chances_say() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    shares = draws(logits, Sampling(temperature=1.5), 4000)
    assert (shares - torch.softmax(logits / 1.5, 0)).abs().max() < 0.03


def test_only_the_largest_take_part() -> None:
    logits = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0])
    assert draws(logits, Sampling(temperature=1.0, top_k=1), 50)[0] == 1
    # Two were asked for; the third equals the second, and neither comes first by right.
    shares = draws(logits, Sampling(temperature=1.0, top_k=2), 400)
    assert (shares > 0).tolist() == [True, False, True, True, False]
    # 0.6652 and 0.0900 and 0.2447: the first alone reaches a half, the first two reach 0.9.
    three = torch.tensor([2.0, 0.0, 1.0])
    assert draws(three, Sampling(temperature=1.0, top_p=0.5), 50)[0] == 1
    assert (draws(three, Sampling(temperature=1.0, top_p=0.9), 400) > 0).tolist() == [
        True,
        False,
        True,
    ]


def test_temperature_zero_takes_the_first_of_the_largest() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [1.0, 0.0, -1.0]])
    assert choose(logits, Sampling(), Generator()).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-10, 1.0])
@pytest.mark.parametrize("top_p", [None, 5e-324, 1e-45, 1e-8])
def test_the_smallest_settings_take_the_likeliest(temperature: float, top_p: float | None) -> None:
    if temperature == 1.0 and top_p is None:
        return
    logits, sampling = logits_of(2, 300, 1), Sampling(temperature=temperature, top_p=top_p)
    uniform = torch.tensor([0.999, 0.5], dtype=torch.float64)
    best = logits.argmax(-1).tolist()
    assert choose_reference(logits, sampling, uniform).tolist() == best
    assert choose(logits, sampling, Generator()).tolist() == best


def test_logits_that_are_no_numbers_end_in_some_token() -> None:
    for bad in (float("nan"), float("-inf")):
        logits = torch.full((1, 300), bad)
        for sampling in (Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=5, top_p=0.5)):
            assert 0 <= int(choose(logits, sampling, Generator())[0]) < 300


def test_a_seed_repeats_itself() -> None:
    logits, sampling = logits_of(1, 500, 3), Sampling(temperature=1.0, seed=7)
    runs = []
    for _ in range(2):
        generator = sampling.generator()
        runs.append([int(choose(logits, sampling, generator)[0]) for _ in range(20)])
    assert runs[0] == runs[1] and len(set(runs[0])) > 1


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ParameterError):
        Sampling(**wrong)  # type: ignore[arg-type]

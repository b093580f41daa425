"""Block floating point against paper and pencil."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loci.errors import MethodError
from loci.methods.kv.bfp import Bfp, pair_order
from loci.nn.kv import KVBlock
from loci.run.kvstore import KVStore
from loci.testing.kv import Text, read, spec_of, store_of

OUTLIERS = [3, 11, 19, 27, 35, 43, 51, 59]  # channel i turns with i + 32


def block_of(x: Tensor) -> KVBlock:
    return KVBlock(x, x, torch.arange(x.shape[2]).view(1, 1, -1))


def through(method: Bfp, x: Tensor, order: Tensor | None = None) -> Tensor:
    """Return keys after encoding and decoding, natural order."""
    fixed = {} if order is None else {"order": order}
    keys, _ = method.decode(method.encode(block_of(x), fixed), fixed, x.shape[-1])
    if order is None:
        return keys
    back = order.long().argsort(-1).unsqueeze(2)
    return keys.gather(-1, back.expand_as(keys))


def decibels(x: Tensor, y: Tensor) -> float:
    return float(10 * torch.log10(x.square().sum() / (x - y).square().sum()))


def keys_with_outliers(count: int = 64) -> Tensor:
    """Return keys [1, 1, T, 64] with four pairs of channels twenty times as large, far apart."""
    x = torch.randn(1, 1, count, 64, generator=torch.Generator().manual_seed(0))
    x[..., OUTLIERS] *= 20
    return x


def test_by_hand() -> None:
    # m = 4, largest 6: e = 2, step 2^(2-4+2) = 1; 2.5 and 3.5 go to even, 0.4 to 0.
    x = torch.tensor([6.0, 2.5, 3.5, 0.4, -1.0, -6.0, 0.0, 5.6]).view(1, 1, 1, 8)
    codes = Bfp(bits=4, block=8).encode(block_of(x), {})
    assert codes["key_exponents"].flatten().tolist() == [2 + 127]
    assert through(Bfp(bits=4, block=8), x).flatten().tolist() == [6, 2, 4, 0, -1, -6, 0, 6]


def test_the_largest_value_does_not_overflow_and_zeros_stay_zero() -> None:
    x = torch.tensor([7.99, 0, 0, 0, 0, 0, 0, -7.99] + [0.0] * 8).view(1, 1, 1, 16)
    got = through(Bfp(bits=4, block=8), x).flatten()
    assert got[0] == 7 and got[7] == -7 and (got[8:] == 0).all()
    assert Bfp(bits=4, block=8).encode(block_of(x), {})["keys"].shape[-1] == 8


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e30])
@pytest.mark.parametrize("bits", range(2, 9))
def test_errors_are_at_most_half_a_step(bits: int, scale: float) -> None:
    x = torch.randn(2, 2, 9, 64, generator=torch.Generator().manual_seed(bits)) * scale
    got = through(Bfp(bits=bits, block=16), x)
    largest = x.unflatten(-1, (-1, 16)).abs().amax(-1, keepdim=True)
    step = 2.0 ** (torch.log2(largest).floor().clamp(min=-100) - bits + 2)
    bound = step * (1.0 + 1e-5)  # half a step, or a whole one where the largest was clipped
    assert ((got - x).unflatten(-1, (-1, 16)).abs() <= bound).all()


def test_a_block_as_wide_as_the_head_gains_nothing_from_sorting() -> None:
    x = keys_with_outliers()
    method = Bfp(bits=4, block=64)
    order = pair_order(x.square().sum(2))
    assert torch.equal(through(method, x, order), through(method, x))


def test_sorting_outlier_channels_together_pays() -> None:
    # The paper's point on a toy: large channels spoil every block until they share one.
    x = keys_with_outliers()
    method = Bfp(bits=4, block=8, sort="keys")
    small = [i for i in range(64) if i not in OUTLIERS]
    learned = method.learn(block_of(x))
    assert learned is not None
    order = learned["order"]
    plain = decibels(x[..., small], through(method, x)[..., small])
    ordered = decibels(x[..., small], through(method, x, order)[..., small])
    assert ordered > plain + 6


def test_rotated_pairs_stand_together_and_are_sorted_by_what_rotation_keeps() -> None:
    energy = torch.tensor([[1.0, 9.0, 4.0, 2.0, 0.0, 7.0]])  # pairs (0,3) 3, (1,4) 9, (2,5) 11
    assert pair_order(energy).tolist() == [[2, 5, 1, 4, 0, 3]]


def test_without_codes_sorting_changes_no_answer() -> None:
    text = Text.of(spec_of(), 64)
    orders = torch.stack(
        [pair_order(torch.rand(2, 32, generator=torch.Generator().manual_seed(i))) for i in (0, 1)]
    )
    stores = [
        store_of(KVStore, (Bfp(sort="none", block=32, window=0),)),
        KVStore(
            spec_of(),
            (Bfp(sort="weights", block=32, window=0),),
            max_tokens=64,
            chunk=16,
            orders=orders,
        ),
    ]
    plain, ordered = (read(store, text)[0] for store in stores)
    torch.testing.assert_close(ordered, plain, rtol=1e-4, atol=1e-5)  # one block a head: same codes


def test_eight_bits_are_close_to_full_attention() -> None:
    text = Text.of(spec_of(head_dim=64), 120)
    full, _ = read(store_of(KVStore, (), spec=spec_of(head_dim=64)), text)
    for bits, bound in ((8, 0.02), (4, 0.3)):
        ours, _ = read(
            store_of(KVStore, (Bfp(bits=bits, window=0, sinks=0),), spec=spec_of(head_dim=64)), text
        )
        assert float((ours - full).norm() / full.norm()) < bound


def test_refuses_heads_it_cannot_cut_and_orders_it_was_not_given() -> None:
    with pytest.raises(MethodError, match="block=16"):
        store_of(KVStore, (Bfp(),), spec=spec_of(head_dim=48))
    with pytest.raises(MethodError, match="needs channel orders"):
        read(store_of(KVStore, (Bfp(sort="weights", window=0),)), Text.of(spec_of(), 64))
    with pytest.raises(MethodError, match="takes no channel orders"):
        KVStore(spec_of(), (Bfp(sort="none"),), max_tokens=9, orders=torch.zeros(2, 2, 32))

"""What every KV method must pass.

def test_conformance():
    for cls in catalogue.all_methods("kv"):
        kv_rules.check(KVStore, cls())
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

import torch
from torch import Generator

from loci.core.ledger import Ledger
from loci.core.method import Method, Need, make
from loci.core.spec import Workload
from loci.errors import BudgetError, MethodError, ModelError, ParameterError
from loci.methods.kv.base import Encode, EncodeLayers, Select
from loci.methods.kv.chain import due_tokens
from loci.methods.kv.fuse import Fuse
from loci.methods.kv.read import Read
from loci.methods.kv.retrieve import Retrieve
from loci.methods.kv.store_plan import predict_store, slots_for, store_plan
from loci.testing.kv import (
    Text,
    keep_for,
    kept_positions,
    read,
    span_of,
    spec_of,
    store_of,
    text_for,
)
from loci.testing.kv_banks import check_bank
from loci.testing.kv_fusers import check_fuser
from loci.testing.kv_reads import MakeReader, check_read

if TYPE_CHECKING:
    from loci.run.kvstore import KVStore

# Shapes: B batch, L layers, H query heads, K key/value heads, T tokens, D head size.


def check(make_store: type[KVStore], method: Method, make_reader: MakeReader | None = None) -> None:
    """Raise AssertionError unless the method keeps the rules of KV methods.

    Args:
        make_reader: for methods that read a history.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        if isinstance(method, Read):
            assert make_reader is not None
            check_read(make_reader, method)
        elif isinstance(method, Fuse):
            check_fuser(method)
        else:
            _check_role(make_store, method)
    assert not said.getvalue(), "a method prints nothing"
    check_bad_parameters(type(method))


def _check_role(make_store: type[KVStore], method: Method) -> None:
    if isinstance(method, Retrieve):
        check_bank(make_store, method)
        return
    check_bytes(make_store, method)
    check_shapes(make_store, method)
    check_unchanged_inputs(make_store, method)
    check_rows(make_store, method)
    check_repeatable(make_store, method)
    check_snapshot(make_store, method)
    check_half(make_store, method)
    check_not_finite(make_store, method)
    check_short(make_store, method)
    if isinstance(method, Select):
        check_room_enough(make_store, method)
        check_evicts(make_store, method)
    else:
        assert isinstance(method, Encode | EncodeLayers)
        check_codes(make_store, method)


def check_bytes(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError unless predicted bytes are held bytes, always and to the last."""
    spec = spec_of(layers=3, kv_heads=1, heads=3)
    tokens = 70 + span_of(method)
    for least in (None, 9, 64):
        keep = None if least is None else keep_for(method, least)
        ledger = Ledger({"dram": 2**30})
        store = store_of(
            make_store, (method,), keep=keep, max_tokens=tokens, spec=spec, ledger=ledger
        )
        predicted = predict_store(
            spec, (method,), max_tokens=tokens, budget_bytes=store.budget_bytes, chunk=store.chunk
        )
        for stop in (50, tokens):
            read(store, text_for(method, spec, stop), start=store.length)
            assert store.nbytes() == {"dram": predicted} and ledger.used("dram") == predicted
            assert store.budget_bytes is None or predicted <= store.budget_bytes
        store.release()
        assert ledger.used("dram") == 0 and store.nbytes() == {"dram": 0}
    held = method.predict(spec, Workload(context=64), 2**20).held["dram"]
    assert held == predict_store(spec, (method,), max_tokens=64, budget_bytes=2**20, chunk=64), (
        "the method's own prediction is not the store's"
    )


def check_shapes(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError unless attention over the store has the right form."""
    for spec in (spec_of(), spec_of(kv_heads=4), spec_of(kv_heads=1)):
        tokens = 60 + span_of(method)
        store = store_of(
            make_store, (method,), keep=keep_for(method, 24), spec=spec, max_tokens=tokens + 20
        )
        text = text_for(method, spec, tokens)
        o_LBHTD, _ = read(store, text)
        assert o_LBHTD.shape == text.queries_LBHTD.shape and o_LBHTD.dtype == torch.float32
        assert o_LBHTD.isfinite().all() and store.length == tokens
        places = kept_positions(store)
        real = (places.diff(dim=-1) > 0) | (places[..., 1:] < 0)  # a head may have fewer
        assert real.all(), "tokens are not in order"


def check_unchanged_inputs(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError if a store changes the tensors it is shown."""
    text, before = (text_for(method, spec_of(), 60) for _ in range(2))
    read(store_of(make_store, (method,), keep=keep_for(method, 24)), text)
    for name in ("queries_LBHTD", "keys_LBKTD", "values_LBKTD"):
        assert torch.equal(getattr(text, name), getattr(before, name)), f"{name} was changed"


def check_rows(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError if rows of a batch see each other."""
    if {Need.PROBE, Need.GENERATOR} & set(method.about.needs):
        return  # one row at a time, or one stream of draws for all rows
    if isinstance(method, Select) and method.reallocates:
        return  # one row at a time
    tokens = 60 + span_of(method)
    text = text_for(method, spec_of(), tokens, batch=2)
    keep = keep_for(method, 24)
    store = store_of(make_store, (method,), batch=2, keep=keep, max_tokens=tokens)
    both, _ = read(store, text)
    for row in (0, 1):
        part = Text(*(t[:, row : row + 1] for t in vars(text).values()))
        store = store_of(make_store, (method,), keep=keep, max_tokens=tokens)
        alone, _ = read(store, part)
        torch.testing.assert_close(both[:, row : row + 1], alone, rtol=1e-4, atol=1e-5)


def check_repeatable(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError unless the same seed gives the same answer."""
    text = text_for(method, spec_of(), 60)
    first, _ = read(store_of(make_store, (method,), keep=keep_for(method, 24), seed=3), text)
    again, _ = read(store_of(make_store, (method,), keep=keep_for(method, 24), seed=3), text)
    assert torch.equal(first, again), "same seed, other answer"


def check_snapshot(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError unless a store taken back reads on exactly like the one kept."""
    spec, stop = spec_of(), 60 + span_of(method)
    text = text_for(method, spec, stop + 20)
    store = store_of(make_store, (method,), keep=keep_for(method, 24), max_tokens=stop + 30)
    read(store, text, stop=stop)
    tensors, meta = store.snapshot(ids=range(stop))
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    twin = make_store.restore(
        spec, (method,), tensors, meta, ids=range(stop), generator=Generator().manual_seed(9)
    )
    fork = store.fork()
    for layer in range(spec.layers):
        for other in (twin, fork):
            ours, theirs = store.view(layer).dense(), other.view(layer).dense()
            assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
            assert torch.equal(ours.positions, theirs.positions)
    kept, _ = read(store, text, start=stop)
    back, _ = read(twin, text, start=stop)
    assert torch.equal(kept, back), "a restored store answers differently"
    assert all(torch.equal(before[n], t) for n, t in tensors.items()), "a snapshot was changed"
    assert store.nbytes() == twin.nbytes() == fork.nbytes() and fork.length == stop


def check_half(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError unless a float16 store answers much like a float32 one."""
    text = text_for(method, spec_of(), 30)
    whole, _ = read(store_of(make_store, (method,)), text)
    half, _ = read(store_of(make_store, (method,), dtype=torch.float16), text)
    torch.testing.assert_close(half, whole, rtol=0.02, atol=0.02)


def check_not_finite(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError unless keys that are not finite are refused, alone and among others."""
    for bad, place in ((float("nan"), 3), (float("inf"), 3), (float("nan"), 16)):
        text = Text.of(spec_of(), 17)
        text.keys_LBKTD[1, 0, 0, place, 5] = bad
        store = store_of(make_store, (method,), max_tokens=32)
        try:
            read(store, text, stop=16)
            read(store, text, start=16, stop=17)
        except ModelError as error:
            assert "layer 1 are not finite" in str(error), str(error)
            assert store.length == (16 if place == 16 else 0), "what was refused was counted"
        else:
            raise AssertionError("keys that are not finite were stored")


def check_short(make_store: type[KVStore], method: Method) -> None:
    """Raise AssertionError unless prompts of one and of three tokens work."""
    for tokens in (1, 3):
        text = Text.of(spec_of(), tokens)
        exact, _ = read(store_of(make_store, ()), text)
        ours, _ = read(store_of(make_store, (method,), keep=keep_for(method, 24)), text)
        torch.testing.assert_close(ours, exact)


def check_room_enough(make_store: type[KVStore], method: Select) -> None:
    """Raise AssertionError unless a budget for all tokens changes nothing."""
    text = Text.of(spec_of(), 60)
    exact, _ = read(store_of(make_store, ()), text)
    room = 60 if method.allocates else 100  # where layers differ, only the whole text is enough
    keep = keep_for(method, 60)
    ours, _ = read(store_of(make_store, (method,), keep=keep, max_tokens=room), text)
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)


def check_evicts(make_store: type[KVStore], method: Select) -> None:
    """Raise AssertionError unless small budgets are kept, down to what always stays."""
    least = slots_for(method.protects())
    try:
        store_of(make_store, (method,), keep=least - 1)
    except BudgetError as error:
        assert f"for {least} tokens" in str(error), str(error)
    else:
        raise AssertionError("a budget below what always stays was taken")
    for keep in (least, least + 1, least + 24):
        store = store_of(make_store, (method,), keep=keep)
        text = Text.of(spec_of(), least + 70)
        read(store, text, stop=least + 60)
        read(store, text, start=least + 60, chunk=1)
        plan = store_plan(
            store.spec, (method,), max_tokens=200, budget_bytes=store.budget_bytes, chunk=16
        )
        held = 0
        for layer in range(store.spec.layers):
            places = kept_positions(store, layer)
            assert places.shape[-1] == store.held_tokens(layer) >= 1
            assert method.allocates or store.held_tokens(layer) <= plan.slots
            assert (places >= 0).any(-1).all(), "a head holds nothing"
            held += int((places >= 0).sum())
        assert held <= plan.slots * store.spec.layers * store.spec.kv_heads
        assert store.length == least + 70


def check_codes(make_store: type[KVStore], method: Encode | EncodeLayers) -> None:
    """Raise AssertionError unless codes are close to what they encode and never change again."""
    spec, closes = spec_of(), method.closes_every
    exact = method.exact_tokens if isinstance(method, EncodeLayers) else 0
    middle = max(100, exact + 2 * closes)
    tokens = middle + max(50, closes)
    text = text_for(method, spec, tokens)
    store = store_of(make_store, (method,), max_tokens=tokens)
    read(store, text, stop=middle)
    early = store.view(0).dense()
    closed = due_tokens(method, middle)
    assert closed >= closes, "nothing was encoded"
    read(store, text, start=middle)
    late = store.view(0).dense()
    for layer in range(spec.layers):
        assert store.held_tokens(layer) == tokens
    assert torch.equal(early.keys[:, :, :closed], late.keys[:, :, :closed]), "coded twice"
    error = (late.keys - text.keys_LBKTD[0]).norm() / text.keys_LBKTD[0].norm()
    assert error < 0.5, f"decoded keys are far from the keys: {error:.2f}"
    if method.keeps_groups and closes > 1:
        try:
            store.crop(closes - 1)
        except MethodError as refused:
            assert "cropped inside tokens" in str(refused), str(refused)
        else:
            raise AssertionError("cropped inside tokens that were encoded together")
    store.crop(closes)
    assert store.length == closes and store.held_tokens(0) == closes


def check_bad_parameters(cls: type[Method]) -> None:
    """Raise AssertionError unless values outside the declared range are refused by their name."""
    for name, (_, param) in cls.declared().items():
        bad: list[object] = [object()]
        bad += [int(param.ge) - 1] if param.ge is not None else []
        bad += [int(param.le) + 1] if param.le is not None else []
        bad += [99] if param.choices is not None and 99 not in param.choices else []
        bad += [4] if param.odd else []
        for value in bad:
            try:
                make(cls, {name: value})
            except ParameterError as error:
                assert f"{cls.about.name}.{name} must be" in str(error), str(error)
            else:
                raise AssertionError(f"{cls.about.name}.{name} took {value!r}")

"""What every method must pass that retrieves what others drop."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loci.core.ledger import Ledger
from loci.core.spec import Workload
from loci.errors import BudgetError, MethodError
from loci.methods.kv.chain import Chain, check_chain
from loci.methods.kv.retrieve import Retrieve
from loci.methods.kv.store_plan import store_plan
from loci.methods.kv.streaming_llm import StreamingLLM
from loci.testing.kv import Text, read, spec_of

if TYPE_CHECKING:
    from loci.run.kvstore import KVStore

TOKENS, CHUNK = 90, 16
DROPS = StreamingLLM(sinks=2, window=22)  # what stands before the method: it drops the oldest

# Shapes: L layers, B batch, H query heads, T tokens, D head size.


def check_bank(make_store: type[KVStore], method: Retrieve) -> None:
    """Raise AssertionError unless the method keeps the rules of a bank."""
    _check_chain(method)
    with tempfile.TemporaryDirectory() as folder:
        _check_bytes(make_store, method, Path(folder))
        _check_reading(make_store, method, Path(folder))
        _check_rows(make_store, method, Path(folder))
        _check_padding(make_store, method, Path(folder))
        _check_copies(make_store, method, Path(folder))
        assert not list(Path(folder).iterdir()), "a file stayed behind"


def bank_store(
    make_store: type[KVStore],
    chain: Chain,
    folder: Path | None,
    *,
    batch: int = 1,
    ledger: Ledger | None = None,
) -> KVStore:
    """Return a store of a chain that ends in a bank."""
    return make_store(
        spec_of(),
        chain,
        max_tokens=TOKENS + 10,
        batch=batch,
        chunk=CHUNK,
        ledger=ledger,
        generator=torch.Generator().manual_seed(0),
        folder=folder,
    )


def _check_chain(method: Retrieve) -> None:
    links = check_chain((DROPS, method))
    assert links.retrieve is method and links.select is DROPS
    for chain in ((method,), (method, DROPS), (DROPS, method, method)):
        try:
            check_chain(chain)
        except MethodError as error:
            assert "this chain cannot work" in str(error), str(error)
        else:
            raise AssertionError("a bank stands behind a method that drops tokens, and last")


def _check_bytes(make_store: type[KVStore], method: Retrieve, folder: Path) -> None:
    plan = store_plan(spec_of(), (DROPS, method), max_tokens=TOKENS + 10, chunk=CHUNK)
    expected = {"dram": plan.nbytes}
    if plan.disk_bytes:
        expected["disk"] = plan.disk_bytes
    ledger = Ledger({"dram": 2**30, "disk": 2**30})
    store = bank_store(make_store, (DROPS, method), folder, ledger=ledger)
    for stop in (20, TOKENS):
        read(store, Text.of(spec_of(), stop), start=store.length)
        assert store.nbytes() == expected, "predicted bytes are not the bytes held"
        assert {tier: ledger.used(tier) for tier in expected} == expected
    store.release()
    assert not ledger.used("dram") and not ledger.used("disk")
    try:
        bank_store(make_store, (DROPS, method), folder, ledger=Ledger({"dram": 1000, "disk": 0}))
    except BudgetError:
        pass
    else:
        raise AssertionError("a ledger without room was not asked")
    held = method.predict(spec_of(), Workload(context=TOKENS + 10), 2**20).held
    assert held["dram"] + held.get("disk", 0) <= plan.nbytes + plan.disk_bytes
    short = store_plan(spec_of(), (DROPS, method), max_tokens=12, chunk=CHUNK)
    assert not any(name.startswith("bank.") for name in short.tensors), "nothing is ever dropped"


def _check_reading(make_store: type[KVStore], method: Retrieve, folder: Path) -> None:
    text, before = Text.of(spec_of(), TOKENS), Text.of(spec_of(), TOKENS)
    first = _read(bank_store(make_store, (DROPS, method), folder), text)
    again = _read(bank_store(make_store, (DROPS, method), folder), text)
    assert first.isfinite().all() and first.shape == text.queries_LBHTD.shape
    assert torch.equal(first, again), "the same text, another answer"
    for name in ("queries_LBHTD", "keys_LBKTD", "values_LBKTD"):
        assert torch.equal(getattr(text, name), getattr(before, name)), f"{name} was changed"
    dropped = _read(bank_store(make_store, (DROPS,), None), text)
    fits = slice(0, CHUNK)
    assert torch.equal(first[:, :, :, fits], dropped[:, :, :, fits]), "nothing was dropped yet"
    assert not torch.allclose(first, dropped), "the bank was never read"


def _check_rows(make_store: type[KVStore], method: Retrieve, folder: Path) -> None:
    text = Text.of(spec_of(), TOKENS, batch=2)
    both = _read(bank_store(make_store, (DROPS, method), folder, batch=2), text)
    for row in (0, 1):
        part = Text(*(tensor[:, row : row + 1] for tensor in vars(text).values()))
        alone = _read(bank_store(make_store, (DROPS, method), folder), part)
        torch.testing.assert_close(both[:, row : row + 1], alone, rtol=1e-4, atol=1e-5)


def _check_padding(make_store: type[KVStore], method: Retrieve, folder: Path) -> None:
    """Raise AssertionError if padding is found: a padded row must read like one without it."""
    pad = CHUNK
    text = Text.of(spec_of(), TOKENS)
    plain = Text(*(tensor[:, :, :, pad:] for tensor in vars(text).values()))
    alone = _read(bank_store(make_store, (DROPS, method), folder), plain)
    store = bank_store(make_store, (DROPS, method), folder)
    padded = _read(store, text, pad=pad)
    torch.testing.assert_close(padded[:, :, :, pad:], alone, rtol=1e-4, atol=1e-5)


def _check_copies(make_store: type[KVStore], method: Retrieve, folder: Path) -> None:
    text, stop = Text.of(spec_of(), TOKENS), TOKENS - 20
    store = bank_store(make_store, (DROPS, method), folder)
    read(store, text, stop=stop)
    tensors, meta = store.snapshot(ids=range(stop))
    fork = store.fork()
    twin = make_store.restore(
        spec_of(), (DROPS, method), tensors, meta, ids=range(stop), folder=folder
    )
    kept, back, forked = (read(one, text, start=stop)[0] for one in (store, twin, fork))
    assert torch.equal(kept, back) and torch.equal(kept, forked), "a copy answers differently"
    store.crop(0)
    first = _read(store, text)
    fresh = _read(bank_store(make_store, (DROPS, method), folder), text)
    assert torch.equal(first, fresh), "an emptied bank remembers"


def _read(store: KVStore, text: Text, pad: int = 0) -> Tensor:
    """Read a text in chunks, then its last tokens one by one; return attention [L, B, H, T, D]."""
    stop = TOKENS - 10 - (TOKENS - text.tokens)
    first, _ = read(store, text, stop=stop, pad=pad)
    rest, _ = read(store, text, start=stop, chunk=1, pad=pad)
    return torch.cat([first, rest], 3)

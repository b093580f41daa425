"""Virtually contiguous KV memory: what it holds, what it shares, and what it gives back."""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from loci.core.ledger import Ledger
from loci.core.spec import ModelSpec
from loci.errors import BudgetError, ContextError, ParameterError, StorageError
from loci.testing.models import tiny_spec
from loci.tiers import pages
from loci.tiers.cuda_pages import AccessDesc, AllocationProp, CudaPages
from loci.tiers.pages import ChunkedPages, MemfdPages
from loci.tiers.virtual import VirtualKVAllocator

KIB, MIB = 1 << 10, 1 << 20
LAYOUTS = ("megacache", "per_layer")
needs_linux = pytest.mark.skipif(pages.why_not() is not None, reason=str(pages.why_not()))


def spec(**sizes: int) -> ModelSpec:
    return tiny_spec(**({"layers": 3, "kv_heads": 2, "head_dim": 16} | sizes))


class Dense:
    """The oracle: tensors reserved for the longest context."""

    def __init__(self, of: ModelSpec, rows: int, tokens: int) -> None:
        self.kv = torch.zeros(rows, of.layers, 2, tokens, of.kv_heads, of.head_dim).half()


def fill(kv: VirtualKVAllocator, dense: Dense, rid: int, start: int, stop: int, seed: int) -> None:
    """Write the same new tokens into both."""
    draw = torch.Generator().manual_seed(seed)
    for layer in range(kv.spec.layers):
        for part, mine in enumerate(kv.view(rid, layer)):
            shape = (stop - start, kv.spec.kv_heads, kv.spec.head_dim)
            new = torch.randn(shape, generator=draw).half()
            mine[start:stop] = new
            dense.kv[rid, layer, part, start:stop] = new


def check(kv: VirtualKVAllocator, dense: Dense, rid: int, length: int) -> None:
    for layer in range(kv.spec.layers):
        for part, mine in enumerate(kv.view(rid, layer)):
            assert torch.equal(mine, dense.kv[rid, layer, part, :length])


BACKENDS = {
    "memfd": MemfdPages,
    "chunked": ChunkedPages,
}


@pytest.fixture(params=[pytest.param("memfd", marks=needs_linux), "chunked"])
def make(request: pytest.FixtureRequest) -> Iterator[Any]:
    opened = []

    def build(**given: Any) -> VirtualKVAllocator:
        given = {"max_len": 200, "max_batch": 4, "pool_bytes": MIB, "page_bytes": 4 * KIB} | given
        opened.append(VirtualKVAllocator(spec(), pages=BACKENDS[request.param], **given))
        return opened[-1]

    yield build
    for kv in opened:
        kv.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_read_is_bit_for_bit_what_a_dense_tensor_holds(make: Any, layout: str) -> None:
    kv, draw = make(layout=layout), random.Random(3)
    dense, lengths = Dense(kv.spec, 4, 200), {}
    for number in range(120):
        if len(lengths) < 4 and draw.random() < 0.3:
            tokens = draw.randrange(1, 60)
            rid = kv.alloc(tokens)
            lengths[rid] = tokens
            fill(kv, dense, rid, 0, tokens, number)
        elif lengths and draw.random() < 0.1:
            rid = draw.choice(sorted(lengths))
            kv.free(rid)
            del lengths[rid]
        grown = {rid: n for rid, n in lengths.items() if n + 7 <= 200}
        kv.step({rid: n + 7 for rid, n in grown.items()})
        for rid, n in grown.items():
            fill(kv, dense, rid, n, n + 7, 1000 + number)
            lengths[rid] = n + 7
        for rid, n in lengths.items():
            check(kv, dense, rid, n)
        kv.check_integrity()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_over_the_view_is_that_over_dense_tensors(make: Any, layout: str) -> None:
    kv = make(layout=layout, dtype=torch.float32)
    rid = kv.alloc(150)
    query = torch.randn(1, 4, 1, 16)
    for layer in range(3):
        keys, values = kv.view(rid, layer)
        keys.copy_(torch.randn(150, 2, 16))
        values.copy_(torch.randn(150, 2, 16))
    for layer in range(3):
        mine = [part.transpose(0, 1)[None] for part in kv.view(rid, layer)]
        dense = [part.clone() for part in mine]
        attend = torch.nn.functional.scaled_dot_product_attention
        assert torch.equal(
            attend(query, *mine, enable_gqa=True), attend(query, *dense, enable_gqa=True)
        )


@needs_linux
def test_reserving_costs_nothing_and_memory_comes_and_goes_with_use() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    kv = VirtualKVAllocator(
        spec(head_dim=64), max_len=1 << 20, max_batch=64, pool_bytes=64 * MIB
    )  # 3 * 2 * 2 * 64 * 2 bytes a token: 96 GiB of addresses
    assert kv.stats().reserved_bytes > 64 << 30
    assert process.memory_info().rss - before < 4 * MIB
    rid = kv.alloc(8 * MIB // kv.token_bytes)
    for layer in range(3):
        for part in kv.view(rid, layer):
            part.fill_(1.0)
    assert 7 * MIB < process.memory_info().rss - before < 12 * MIB
    pool = kv._pages
    assert isinstance(pool, MemfdPages) and pool.committed_bytes() >= 8 * MIB - kv.page_bytes
    kv.free(rid)
    assert kv.trim() >= 8 * MIB
    assert pool.committed_bytes() == 0 and process.memory_info().rss - before < 4 * MIB
    kv.close()


def test_two_hundred_requests_commit_little_more_than_they_need() -> None:
    # Sizes of SmolLM2 in half precision: 23,040 bytes a token; a third of the requests is long.
    of = ModelSpec(
        name="s", layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, ffn=1536, vocab=9,
        max_context=2048,
    )  # fmt: skip
    kv = VirtualKVAllocator(of, max_len=2048, max_batch=32, pool_bytes=2 << 30)
    draw, live, most = random.Random(0), {}, 0.0
    waiting = [min(2048, 16 + int(draw.lognormvariate(5.2, 1.1))) for _ in range(200)]
    committed = needed = reserved = 0
    while waiting or live:
        while waiting and len(live) < 32:
            final = waiting.pop()
            start = max(1, final // 2)
            live[kv.alloc(start)] = (start, final)
        kv.step({rid: n + 8 if n + 8 < end else end for rid, (n, end) in live.items()})
        live = {rid: (min(n + 8, end), end) for rid, (n, end) in live.items()}
        stats = kv.stats()
        committed, needed = committed + stats.committed_bytes, needed + stats.needed_bytes
        reserved += len(live) * 2048 * kv.token_bytes
        most = max(most, stats.committed_bytes / (1 << 20))
        for rid in [rid for rid, (n, end) in live.items() if n == end]:
            kv.free(rid)
            del live[rid]
            if not waiting:
                kv.trim()
    kv.check_integrity()
    kv.close()
    assert committed <= 1.15 * needed
    assert reserved >= 3 * needed


@needs_linux
def test_a_prefix_of_eight_requests_is_there_once() -> None:
    kv = VirtualKVAllocator(spec(), max_len=3000, max_batch=9, pool_bytes=16 * MIB)
    dense = Dense(kv.spec, 9, 3000)
    first = kv.alloc(2048)
    fill(kv, dense, first, 0, 2048, 1)
    alone = kv.stats().committed_bytes
    others = [kv.alloc(0) for _ in range(8)]
    for rid in others:
        shared = kv.alias_prefix(first, rid, 2048)
        assert 2048 - kv.page_bytes / kv.token_bytes < shared <= 2048
        dense.kv[rid] = dense.kv[first]
    assert kv.stats().committed_bytes <= alone + 8 * kv.page_bytes
    for number, rid in enumerate(others):
        kv.step({rid: 2100})
        fill(kv, dense, rid, 2048, 2100, number)
    kv.step({first: 2060})
    fill(kv, dense, first, 2048, 2060, 99)
    for rid in others:
        check(kv, dense, rid, 2100)
    check(kv, dense, first, 2060)
    kv.free(first)  # the others keep what it shared
    again = kv.alloc(2000)
    fill(kv, dense, again, 0, 2000, 7)
    for rid in others:
        check(kv, dense, rid, 2100)
    kv.check_integrity()
    for rid in others:
        kv.free(rid)
    kv.free(again)
    kv.trim()
    assert kv.stats().committed_bytes == 0
    kv.close()


def test_a_prefix_is_copied_where_pages_cannot_be_shared() -> None:
    kv = VirtualKVAllocator(
        spec(), max_len=300, max_batch=2, pool_bytes=MIB, page_bytes=4 * KIB, pages=ChunkedPages
    )
    dense = Dense(kv.spec, 2, 300)
    source = kv.alloc(100)
    fill(kv, dense, source, 0, 100, 1)
    target = kv.alloc(0)
    assert kv.moves and kv.alias_prefix(source, target, 90) == 0
    dense.kv[target] = dense.kv[source]
    check(kv, dense, target, 90)
    kv.close()


def test_an_id_that_is_used_again_maps_nothing_new(make: Any) -> None:
    kv = make()
    rid = kv.alloc(100)
    before = kv.stats().mapped_pages
    kv.free(rid)
    assert kv.alloc(100) == rid and kv.stats().mapped_pages == before


def test_the_best_fit_among_inactive_ids_is_taken(make: Any) -> None:
    kv = make()
    sizes = {kv.alloc(tokens): tokens for tokens in (180, 60, 120)}
    by_size = {tokens: rid for rid, tokens in sizes.items()}
    other = kv.alloc(1)
    for rid in sizes:
        kv.free(rid)
    assert kv.alloc(50) == by_size[60]
    assert kv.alloc(100) == by_size[120]
    assert kv.alloc(200) == by_size[180]  # the most there are, though not enough
    kv.free(other)
    kv.check_integrity()


def test_pages_of_inactive_ids_are_taken_when_pages_run_short_highest_first(make: Any) -> None:
    kv = make(pool_bytes=64 * KIB)  # 16 pages; a token takes 384 bytes, 100 take ten
    first, second = kv.alloc(60), kv.alloc(60)
    active = kv.alloc(1)
    kv.free(first)
    kv.free(second)
    kv.step({active: 60})  # three inactive pages have to go
    assert kv.mapped_pages(second) < 6 and kv.mapped_pages(first) == 6
    kv.check_integrity()


def test_while_nobody_is_active_each_step_gives_a_page_back(make: Any) -> None:
    kv = make()
    rid = kv.alloc(100)
    kv.free(rid)
    mapped = kv.mapped_pages(rid)
    kv.step({})
    assert kv.mapped_pages(rid) == mapped - 1


def test_a_failed_step_changes_nothing_and_names_the_pages(make: Any) -> None:
    kv = make(pool_bytes=64 * KIB)
    one, two = kv.alloc(80), kv.alloc(60)
    before = kv.stats()
    with pytest.raises(BudgetError, match="10 pages are needed and 2 of 16 are free"):
        kv.step({one: 170, two: 80})
    after = kv.stats()
    assert (after.committed_bytes, after.needed_bytes) == (
        before.committed_bytes,
        before.needed_bytes,
    )
    kv.check_integrity()
    with pytest.raises(BudgetError):
        kv.alloc(100)
    assert kv.stats().needed_bytes == before.needed_bytes


def test_what_cannot_be_is_refused(make: Any) -> None:
    kv = make()
    rid = kv.alloc(10)
    with pytest.raises(ContextError, match="201 tokens do not fit a range made for 200"):
        kv.step({rid: 201})
    for wrong in (
        lambda: kv.step({3: 5}),
        lambda: kv.step({rid: -1}),
        lambda: kv.view(rid, 3),
        lambda: kv.view(-1, 0),
        lambda: kv.free(2),
        lambda: kv.alias_prefix(rid, rid, 5),
        lambda: kv.alias_prefix(rid, kv.alloc(0), 11),
    ):
        with pytest.raises(ParameterError):
            wrong()
    kv.free(rid)
    with pytest.raises(ParameterError, match="was freed"):
        kv.free(rid)
    with pytest.raises(ContextError):
        kv.alloc(999)
    for _ in range(3):
        kv.alloc(1)
    with pytest.raises(BudgetError, match="all 4 requests are active"):
        kv.alloc(1)
    kv.check_integrity()


@pytest.mark.parametrize(
    "given",
    [
        {"layout": "rows"},
        {"max_len": 0},
        {"page_bytes": 0},
        {"layout": "per_layer", "pool_bytes": 5 * 4 * KIB},
    ],
)
def test_impossible_allocators_are_refused(make: Any, given: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        make(**given)


def test_the_ledger_pays_for_pages_as_they_are_mapped(make: Any) -> None:
    ledger = Ledger({"dram": 40 * KIB})
    kv = make(ledger=ledger)
    rid = kv.alloc(60)  # six pages
    assert ledger.by_kind("dram") == {"kv": 24 * KIB} == {"kv": kv.nbytes()["dram"]}
    kv.free(rid)
    other = kv.alloc(90)  # takes the same id
    assert ledger.used("dram") == 36 * KIB
    with pytest.raises(BudgetError, match="left"):
        kv.step({other: 150})
    kv.check_integrity()
    kv.close()
    assert ledger.used("dram") == 0
    ledger.check_integrity()


def test_the_next_pages_are_mapped_in_the_background(make: Any) -> None:
    kv = make()
    rid = kv.alloc(10)  # 3,840 of 4,096 bytes
    kv.step_async({rid: 10})
    assert kv._job is not None
    kv._job.result(10)
    assert kv.mapped_pages(rid) == 2
    before = kv.stats()
    kv.step_async({rid: 12})
    assert kv.stats().mapped_pages == before.mapped_pages  # it was there before it was needed
    assert before.ahead_s > 0
    kv._job.result(10)
    tight = make(pool_bytes=4 * KIB, max_batch=1)
    one = tight.alloc(10)
    tight.step_async({one: 10})
    assert tight._job is not None
    tight._job.result(10)
    assert tight.stats().ahead_short == 1
    tight.check_integrity()


@needs_linux
def test_many_threads_that_grow_requests_agree() -> None:
    kv = VirtualKVAllocator(spec(), max_len=500, max_batch=8, pool_bytes=8 * MIB)
    rids = [kv.alloc(1) for _ in range(8)]

    def grow(rid: int) -> None:
        for length in range(1, 500, 3):
            kv.step_async({rid: length})

    threads = [threading.Thread(target=grow, args=(rid,)) for rid in rids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kv.check_integrity()
    kv.close()


def test_strict_overcommit_is_seen_and_the_fall_back_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = tmp_path / "overcommit_memory"
    strict.write_text("2\n")
    monkeypatch.setattr(pages, "OVERCOMMIT", strict)
    if sys.platform == "linux":
        assert "overcommit_memory is 2" in str(pages.why_not())
    assert isinstance(pages.open_pages(4 * KIB, 4), ChunkedPages)


@needs_linux
def test_a_limit_on_addresses_is_told_as_such() -> None:
    program = (
        "import resource\n"
        "from loci.tiers.pages import MemfdPages\n"
        "from loci.errors import BudgetError\n"
        "pool = MemfdPages(4096, 4)\n"
        "now = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, now + 2**30))\n"
        "try:\n"
        "    pool.reserve(2**36)\n"
        "except BudgetError as error:\n"
        "    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "no more addresses for 64.0 GiB" in said.stdout and "ulimit -v" in said.stdout


@needs_linux
def test_a_page_at_two_addresses_is_one_and_children_get_neither() -> None:
    import os

    pool = MemfdPages(4 * KIB, 4)
    one, two = pool.reserve(16 * KIB), pool.reserve(16 * KIB)
    pool.map(one, 0, 2, 1)
    pool.map(two, 4 * KIB, 2, 1)
    first = pool.tensor(one, 4 * KIB)
    first.fill_(7)
    address = two.address + 4 * KIB
    assert ctypes.string_at(address, 3) == b"\7\7\7"
    assert int(pool.pool()[2, 0]) == 7
    child = os.fork()
    if not child:
        os._exit(f"{two.address:x}-" in Path("/proc/self/maps").read_text())
    assert os.waitpid(child, 0)[1] == 0
    assert f"{two.address:x}-" in Path("/proc/self/maps").read_text()
    pool.unmap(one, 0, 4 * KIB)
    pool.unmap(two, 0, 16 * KIB)
    pool.drop(2, 1)
    assert pool.committed_bytes() == 0
    with pytest.raises(ParameterError, match="outside the range"):
        pool.map(one, 12 * KIB, 0, 2)
    with pytest.raises(ParameterError, match="no such pages"):
        pool.map(one, 0, 3, 2)
    pool.close()
    pool.close()
    with pytest.raises(ParameterError):
        pool.map(one, 0, 0, 1)
    with pytest.raises(ParameterError, match="multiples of"):
        MemfdPages(1000, 4)


# -- the driver of a GPU, in miniature --------------------------------------------------------


class Driver:
    """Keeps the rules of the driver's virtual memory calls, and says which one was broken."""

    GRAIN = 64 * KIB

    def __init__(self, memory: int = 1 << 30) -> None:
        self.free, self.next = memory, 1 << 40
        self.ranges: dict[int, int] = {}
        self.handles: dict[int, int] = {}  # handle -> times mapped
        self.mapped: dict[int, int] = {}  # address -> handle
        self.readable: set[int] = set()
        self.calls: list[str] = []
        self.synchronised = False

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            return int(getattr(self, f"do_{name}")(*arguments) or 0)

        return call

    def do_cuInit(self, flags: int) -> None:
        assert flags == 0

    def do_cuDeviceGet(self, handle: Any, number: int) -> int:
        return 0 if number == 0 else 101

    def do_cuDevicePrimaryCtxRetain(self, context: Any, handle: Any) -> None:
        context._obj.value = 4242

    def do_cuCtxSetCurrent(self, context: Any) -> None:
        assert context.value == 4242

    def do_cuCtxSynchronize(self) -> None:
        self.synchronised = True

    def do_cuDevicePrimaryCtxRelease_v2(self, handle: Any) -> None:
        assert not self.ranges and not self.handles, "memory is left"

    def do_cuMemGetAllocationGranularity(self, grain: Any, prop: Any, option: int) -> None:
        self.check_prop(prop._obj)
        grain._obj.value = self.GRAIN

    def check_prop(self, prop: AllocationProp) -> None:
        assert ctypes.sizeof(prop) == 32 and (prop.type, prop.location.type) == (1, 1)

    def do_cuMemAddressReserve(self, out: Any, size: Any, align: Any, at: Any, flags: Any) -> None:
        assert size.value % self.GRAIN == 0 and flags.value == 0
        out._obj.value, self.ranges[self.next] = self.next, size.value
        self.next += size.value + self.GRAIN

    def do_cuMemAddressFree(self, at: Any, size: Any) -> None:
        assert self.ranges.pop(at.value) == size.value
        assert not any(at.value <= a < at.value + size.value for a in self.mapped)

    def do_cuMemCreate(self, out: Any, size: Any, prop: Any, flags: Any) -> int:
        self.check_prop(prop._obj)
        if size.value > self.free:
            return 2
        self.free -= size.value
        out._obj.value = 7000 + len(self.calls)
        self.handles[out._obj.value] = 0
        return 0

    def do_cuMemRelease(self, handle: Any) -> None:
        assert self.handles.pop(handle.value) == 0, "released while it is mapped"
        self.free += self.GRAIN

    def do_cuMemMap(self, at: Any, size: Any, offset: Any, handle: Any, flags: Any) -> None:
        assert (size.value, offset.value, flags.value) == (self.GRAIN, 0, 0)
        assert any(s <= at.value and at.value + size.value <= s + n for s, n in self.ranges.items())
        assert at.value not in self.mapped, "mapped twice"
        self.mapped[at.value] = handle.value
        self.handles[handle.value] += 1

    def do_cuMemSetAccess(self, at: Any, size: Any, desc: Any, count: Any) -> None:
        access: AccessDesc = desc._obj
        assert (access.flags, access.location.type, count.value) == (3, 1, 1)
        for address in range(at.value, at.value + size.value, self.GRAIN):
            assert address in self.mapped
            self.readable.add(address)

    def do_cuMemUnmap(self, at: Any, size: Any) -> None:
        assert self.synchronised, "somebody may still read there"
        self.handles[self.mapped.pop(at.value)] -= 1
        self.readable.discard(at.value)


def on_gpu(driver: Driver, **given: Any) -> VirtualKVAllocator:
    given = {"max_len": 2000, "max_batch": 4, "pool_bytes": 4 * MIB} | given
    return VirtualKVAllocator(
        spec(), pages=lambda size, count: CudaPages(size, count, driver=driver), **given
    )


def test_the_driver_is_called_as_its_rules_say() -> None:
    driver = Driver()
    kv = on_gpu(driver)
    one, two = kv.alloc(900), kv.alloc(10)
    assert len(driver.readable) == len(driver.mapped) == 7  # six pages and one
    kv.step_async({one: 1000, two: 20})
    assert kv._job is not None
    kv._job.result(10)
    kv.free(two)
    three = kv.alloc(15)
    assert three == two and driver.calls.count("cuMemUnmap") == 0
    kv.free(one)
    kv.trim()
    kv.check_integrity()
    assert len(driver.handles) == len(driver.mapped) == kv.mapped_pages(three)
    kv.close()
    assert not driver.ranges and not driver.handles and driver.free == 1 << 30


def test_a_gpu_without_memory_and_bad_pages_are_told() -> None:
    kv = on_gpu(Driver(memory=3 * 64 * KIB))
    with pytest.raises(BudgetError, match="the GPU has no memory left"):
        kv.alloc(1000)
    kv.check_integrity()
    assert kv.stats().committed_bytes == 0 and kv.alloc(400) == 0
    with pytest.raises(ParameterError, match="multiples of 65,536 bytes"):
        on_gpu(Driver(), page_bytes=4 * KIB)
    with pytest.raises(StorageError, match="refused cuDeviceGet"):
        CudaPages(64 * KIB, 4, "cuda:3", driver=Driver())
    with pytest.raises(ParameterError, match="no pages on this device"):
        pages.open_pages(4 * KIB, 4, "tpu")


def test_without_a_driver_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(StorageError, match="there is no CUDA driver"):
        CudaPages(64 * KIB, 4)

"""A file of blocks: round trips, direct reads, and everything that can be wrong with a file."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import loci
from loci.errors import FormatError, ParameterError, StorageError
from loci.tiers import blocks
from loci.tiers.blocks import ITEM_BYTES, BlockStore, BlockWriter, read_table
from loci.tiers.pool import ALIGN, aligned_empty

SOURCE = str(Path(loci.__file__).parents[1])


def layer(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {
        "codes": torch.randint(0, 256, (33, 7), dtype=torch.uint8),
        "scales": torch.randn(33, 2).to(torch.float16),
        "norm": torch.randn(9),
        "half": torch.randn(5, 3).to(torch.bfloat16),
        "ids": torch.arange(11),
        "small": torch.arange(4, dtype=torch.int32),
        "signed": torch.tensor([-1, 2], dtype=torch.int8),
        "number": torch.tensor(3.5),
        "nothing": torch.empty(0, 4),
    }


def write(path: Path, count: int = 3) -> Path:
    with BlockWriter(path, {"made": "here"}) as writer:
        for index in range(count):
            writer.add(f"layer.{index}", layer(index), meta={"index": index})
    return path


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return list(left) == list(right) and all(
        left[k].dtype == right[k].dtype
        and left[k].shape == right[k].shape
        and torch.equal(left[k], right[k])
        for k in left
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "blocks.loci")


def test_mapped_and_read_tensors_equal_what_was_written(path: Path) -> None:
    with BlockStore(path) as store, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.header == {"made": "here"}
        assert store.names() == ["layer.0", "layer.1", "layer.2"]
        for index, name in enumerate(store.names()):
            assert same(store.tensors(name), layer(index))
            assert same(store.read(name), layer(index))
            assert store.meta(name) == {"index": index}
            true = sum(t.numel() * t.element_size() for t in layer(index).values())
            assert store.nbytes(name) == store.block(name).nbytes == true
            assert store.stored_bytes(name) % ALIGN == 0
            assert 0 <= store.stored_bytes(name) - true < ALIGN + 64 * len(layer())
        store.verify()


def test_buffered_reads_give_the_same_and_say_why(path: Path) -> None:
    with BlockStore(path, direct=False) as store:
        assert not store.direct and store.why_buffered == "not asked for"
        assert same(store.read("layer.1"), layer(1))


def test_a_refused_direct_read_falls_back_and_says_why(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(name: object, flags: int, *rest: int, **named: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(name, flags, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with BlockStore(path) as store:
        assert not store.direct and "refuses O_DIRECT" in str(store.why_buffered)
        assert same(store.read("layer.2"), layer(2))


def test_a_file_system_that_accepts_the_flag_and_refuses_the_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", _raise_once(real, errno.EINVAL))
    with BlockStore(path) as store:
        assert not store.direct and "direct reads" in str(store.why_buffered)
        assert same(store.read("layer.2"), layer(2))


def _raise_once(real, number: int):  # type: ignore[no-untyped-def]
    done: list[int] = []

    def call(*args, **named):  # type: ignore[no-untyped-def]
        if not done:
            done.append(1)
            raise OSError(number, os.strerror(number))
        return real(*args, **named)

    return call


def test_read_fills_the_callers_buffer_and_counts(path: Path) -> None:
    with BlockStore(path) as store:
        buffer = aligned_empty(store.stored_bytes("layer.0") + ALIGN)
        tensors = store.read("layer.0", buffer)
        assert store.bytes_read == store.stored_bytes("layer.0")
        low, high = buffer.data_ptr(), buffer.data_ptr() + buffer.numel()
        assert all(low <= t.data_ptr() < high for t in tensors.values() if t.numel())
        assert same(store.views("layer.0", buffer), tensors)
        store.read("layer.1", buffer)
        assert same(store.views("layer.1", buffer), layer(1))


def test_unfit_buffers_are_refused(path: Path) -> None:
    with BlockStore(path) as store:
        size = store.stored_bytes("layer.0")
        for bad in (
            aligned_empty(size - 1),
            aligned_empty(size + ALIGN)[8:],
            torch.zeros(size, dtype=torch.int8),
            aligned_empty(2 * size).view(2, size),
        ):
            with pytest.raises(ParameterError):
                store.read("layer.0", bad)
        assert store.bytes_read == 0


def test_several_threads_read_at_once(path: Path) -> None:
    failures: list[str] = []
    with BlockStore(path) as store:

        def reader(seed: int) -> None:
            buffer = aligned_empty(store.stored_bytes("layer.0") * 2)
            for turn in range(20):
                index = (seed + turn) % 3
                if not same(store.read(f"layer.{index}", buffer), EXPECTED[index]):
                    failures.append(f"layer.{index}")

        EXPECTED = [layer(i) for i in range(3)]
        threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert store.bytes_read == 80 * store.stored_bytes("layer.0")


def test_single_rows_are_read_without_the_rest(path: Path) -> None:
    rows = [32, 0, 0, 5]
    with BlockStore(path, mapped=False) as store:
        for name in ("codes", "scales"):
            expected = layer(1)[name][rows]
            assert torch.equal(store.read_rows("layer.1", name, rows), expected)
        assert store.bytes_read == 4 * 7 + 4 * 2 * 2
        assert store.read_rows("layer.1", "codes", []).shape == (0, 7)
        for bad in (33, -1):
            with pytest.raises(ParameterError):
                store.read_rows("layer.1", "codes", [bad])
        with pytest.raises(ParameterError):
            store.read_rows("layer.1", "number", [0])
        with pytest.raises(ParameterError):
            store.read_rows("layer.1", "no such", [0])
        with pytest.raises(ParameterError, match="without a mapping"):
            store.tensors("layer.1")


def _private_bytes() -> tuple[int, int]:
    text = Path("/proc/self/status").read_text()
    values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return tuple(int(values[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile"))  # type: ignore[return-value]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_mapped_pages_are_pages_of_the_file_and_can_be_dropped(tmp_path: Path) -> None:
    size = 24 * 2**20
    with BlockWriter(tmp_path / "big", {}) as writer:
        writer.add("big", {"w": torch.ones(size // 4)})
    with BlockStore(tmp_path / "big") as store:
        anonymous, mapped = _private_bytes()
        tensor = store.tensors("big")["w"]
        assert float(tensor.sum()) == size // 4
        after_anonymous, after_mapped = _private_bytes()
        assert after_mapped - mapped > size * 0.9
        assert after_anonymous - anonymous < size * 0.3
        store.drop()
        assert _private_bytes()[1] - mapped < size * 0.2
        assert float(tensor.sum()) == size // 4


def test_mapped_tensors_outlive_the_store_and_never_reach_the_file(path: Path) -> None:
    before = path.read_bytes()
    store = BlockStore(path)
    tensors = store.tensors("layer.0")
    store.close()
    store.close()
    assert same(tensors, layer(0))
    tensors["norm"].fill_(0)
    assert path.read_bytes() == before
    with pytest.raises(ParameterError, match="closed"):
        store.tensors("layer.0")
    with pytest.raises(ParameterError, match="closed"):
        store.read("layer.0")


def test_arrays_and_bytes_are_stored_too(tmp_path: Path) -> None:
    array = numpy.arange(12, dtype=numpy.float32).reshape(3, 4)
    with BlockWriter(tmp_path / "x", {}) as writer:
        writer.add("a", {"a": array.T, "f": numpy.float16(2), "b": b"ab", "m": memoryview(b"xyz")})
        writer.add("empty", {})
    with BlockStore(tmp_path / "x") as store:
        back = store.read("a")
        assert torch.equal(back["a"], torch.from_numpy(array.T.copy()))
        assert back["f"].item() == 2 and back["f"].dtype == torch.float16
        assert bytes(back["b"].tolist()) == b"ab" and bytes(back["m"].tolist()) == b"xyz"
        assert store.read("empty") == {} == store.tensors("empty")
        assert store.stored_bytes("empty") == 0
        store.verify()


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, dtype=torch.float64), numpy.zeros(2, ">f4"), [1, 2], "text"]
)
def test_other_types_are_refused_by_name(tmp_path: Path, bad: object) -> None:
    with (
        pytest.raises(ParameterError, match="a/x cannot be stored"),
        BlockWriter(tmp_path / "x", {}) as writer,
    ):
        writer.add("a", {"x": bad})
    assert not list(tmp_path.iterdir())


def test_unknown_blocks_name_the_nearest(path: Path) -> None:
    with BlockStore(path) as store, pytest.raises(ParameterError, match=r"layer\.\d"):
        store.read("layr.1")


def test_a_block_needs_a_name_of_its_own(tmp_path: Path) -> None:
    with BlockWriter(tmp_path / "x", {}) as writer:
        writer.add("a", {})
        for name in ("a", ""):
            with pytest.raises(ParameterError):
                writer.add(name, {})
    with pytest.raises(ParameterError, match="with statement"):
        BlockWriter(tmp_path / "y", {}).add("a", {})


def test_the_header_may_change_until_the_end(tmp_path: Path) -> None:
    with BlockWriter(tmp_path / "x", {"a": 1}) as writer:
        writer.add("a", {"t": b"1"})
        writer.header["fingerprint"] = "abc"
    with BlockStore(tmp_path / "x") as store:
        assert store.header == {"a": 1, "fingerprint": "abc"}
        assert store.block("a").fingerprint == "abc"


def test_the_table_is_read_without_torch(path: Path) -> None:
    program = (
        "import sys; from loci.tiers.blocks import read_table; import json;"
        f"print(json.dumps(read_table({str(path)!r})));"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env={"PYTHONPATH": SOURCE}
    )
    assert done.returncode == 0, done.stderr
    header, rows = json.loads(done.stdout)
    assert header == {"made": "here"}
    assert [tuple(row) for row in rows] == read_table(path)[1]


NAMES = st.text("abc.", min_size=1, max_size=4)
TENSORS = st.dictionaries(
    NAMES,
    st.tuples(
        st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(0, 4), max_size=3).map(tuple)
    ),
    max_size=4,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(layout=st.dictionaries(NAMES, TENSORS, max_size=4), seed=st.integers(0, 99))
def test_any_layout_comes_back(
    tmp_path: Path, layout: dict[str, dict[str, tuple[str, tuple[int, ...]]]], seed: int
) -> None:
    torch.manual_seed(seed)
    content = {
        block: {
            key: torch.randint(-100, 100, shape).to(getattr(torch, dtype))
            for key, (dtype, shape) in tensors.items()
        }
        for block, tensors in layout.items()
    }
    with BlockWriter(tmp_path / "any", {}) as writer:
        for name, tensors in content.items():
            writer.add(name, tensors)
    with BlockStore(tmp_path / "any") as store:
        assert store.names() == list(content)
        for name, tensors in content.items():
            assert same(store.tensors(name), tensors) and same(store.read(name), tensors)
        store.verify()


def test_an_add_that_failed_and_was_caught_does_no_harm(tmp_path: Path) -> None:
    with BlockWriter(tmp_path / "x", {}) as writer:
        with pytest.raises(ParameterError):
            writer.add("a", {"good": b"123", "bad": [1]})
        writer.add("a", layer(1))
    with BlockStore(tmp_path / "x") as store:
        assert store.names() == ["a"] and same(store.read("a"), layer(1))
        store.verify()


def test_a_header_that_is_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="JSON"), BlockWriter(tmp_path / "x", {"a": {1}}):
        pass
    assert not list(tmp_path.iterdir())


# -- files that are not right -----------------------------------------------------------------


def test_every_length_of_a_cut_file_is_refused_at_open(path: Path) -> None:
    whole = path.read_bytes()
    for length in [0, 1, 63, 4096, 4097, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match="cut short"):
            BlockStore(path)
        with pytest.raises(FormatError):
            read_table(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(FormatError, match="appended"):
        BlockStore(path)


def test_a_corrupt_byte_is_found_and_the_block_named(path: Path) -> None:
    with BlockStore(path) as store:
        at = store.place("layer.1").offset + 100
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with BlockStore(path) as store:
        store.verify(["layer.0", "layer.2"])
        with pytest.raises(FormatError, match=r"layer\.1"):
            store.verify()


def test_a_corrupt_table_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="table"):
        BlockStore(path)


def test_another_version_and_another_format_are_refused(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + (2).to_bytes(4, "little") + whole[12:])
    with pytest.raises(FormatError, match="another version"):
        BlockStore(path)
    path.write_bytes(b"GGUF" + whole[4:])
    with pytest.raises(FormatError, match="not a file of blocks"):
        BlockStore(path)
    with pytest.raises(StorageError, match="cannot open"):
        BlockStore(path.parent / "absent")
    with pytest.raises(StorageError):
        read_table(path.parent)


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 4096 * 1000},
        {"offset": 100},
        {"offset": 0},
        {"tensors": {"x": ["float32", [4000], 0]}},
        {"tensors": {"x": ["float32", [1], -4]}},
        {"tensors": {"x": ["float9", [1], 0]}},
        {"unknown": 1},
    ],
)
def test_a_table_that_points_outside_is_refused(
    path: Path, change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = blocks._to_json
    monkeypatch.setattr(blocks, "_to_json", lambda block: real(block) | change)
    write(path, 1)
    with pytest.raises(FormatError, match="table"):
        BlockStore(path)


# -- writes that fail -------------------------------------------------------------------------


def test_an_error_in_the_body_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(RuntimeError), BlockWriter(path, {}) as writer:
        writer.add("a", layer())
        raise RuntimeError
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_failing_system_call_is_a_storage_error(
    path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, _raise_once(getattr(os, call), errno.ENOSPC))
        with pytest.raises(StorageError, match="No space left"), BlockWriter(path, {}) as writer:
            writer.add("a", layer())
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_disk_filling_up_in_the_middle(path: Path) -> None:
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * ALIGN, limits[1]))
        with pytest.raises(StorageError), BlockWriter(path, {}) as writer:
            writer.add("a", {"x": bytes(10 * ALIGN)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_short_writes_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, memoryview(data)[:1000]))
    write(path)
    monkeypatch.undo()
    with BlockStore(path) as store:
        store.verify()
        assert same(store.read("layer.2"), layer(2))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError), BlockWriter(tmp_path / "no" / "x", {}):
        pass


def test_reads_that_fail_are_storage_errors(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BlockStore(path) as store:
        monkeypatch.setattr(os, "preadv", _raise_once(os.preadv, errno.EIO))
        with pytest.raises(StorageError, match=r"layer\.0"):
            store.read("layer.0")
        assert same(store.read("layer.0"), layer(0))


def test_a_file_cut_while_it_is_open(path: Path) -> None:
    with BlockStore(path) as store:
        os.truncate(path, ALIGN)
        with pytest.raises(FormatError, match="cut short"):
            store.read("layer.0")


def test_leftovers_of_dead_writers_go_and_living_writers_stay(path: Path) -> None:
    leftover = path.parent / f".{path.name}.0123456789ab.partial"
    leftover.write_bytes(b"x")
    other = path.parent / f".{path.name}2.0123456789ab.partial"
    other.write_bytes(b"x")
    with BlockWriter(path, {"who": "slow"}) as slow:
        write(path)
        assert not leftover.exists() and other.exists()
        slow.add("a", {})
    with BlockStore(path) as store:
        assert store.header == {"who": "slow"}


WRITER = """
import sys
from loci.tiers.blocks import BlockWriter
assert "torch" not in sys.modules
version, data = int(sys.argv[2]), bytes(200_000)
print("go", flush=True)
while True:
    version += 1
    with BlockWriter(sys.argv[1], {"version": version}) as writer:
        writer.add("a", {"x": version.to_bytes(8, "little") * 1000, "y": data})
        writer.add("b", {"x": version.to_bytes(8, "little") * 1000})
"""


def test_a_killed_writer_leaves_a_whole_file_every_time(tmp_path: Path) -> None:
    path, rng, last = tmp_path / "x", random.Random(0), 0
    for _ in range(40):
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", WRITER, str(path), str(last)],
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": SOURCE},
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.random() * 0.03)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if not path.exists():
            continue
        with BlockStore(path) as store:
            store.verify()
            version = store.header["version"]
            assert version >= last
            expected = version.to_bytes(8, "little") * 1000
            assert all(store.read(n)["x"].numpy().tobytes() == expected for n in ("a", "b"))
            last = version
        assert len(list(tmp_path.iterdir())) <= 2
    assert last > 40

"""StreamingLLM against paper and pencil."""

from __future__ import annotations

import torch

from loci.methods.kv.streaming_llm import StreamingLLM
from loci.run.kvstore import KVStore
from loci.testing.kv import Text, kept_positions, needle_kept, read, spec_of, store_of


def test_keeps_the_first_and_the_last() -> None:
    # 2 sinks and 3 recent tokens; one more slot gives decoding room.
    store = store_of(KVStore, (StreamingLLM(sinks=2, window=3),), chunk=8)
    read(store, Text.of(spec_of(), 20))
    assert kept_positions(store)[0, 0].tolist() == [0, 1, 17, 18, 19]
    read(store, Text.of(spec_of(), 22), start=20, chunk=1)
    assert kept_positions(store)[0, 0].tolist() == [0, 1, 19, 20, 21]


def test_a_window_as_long_as_the_text_is_full_attention() -> None:
    text = Text.of(spec_of(), 50)
    full, _ = read(store_of(KVStore, ()), text)
    ours, _ = read(store_of(KVStore, (StreamingLLM(sinks=0, window=50),)), text)
    torch.testing.assert_close(ours, full)


def test_sinks_keep_what_a_window_alone_forgets() -> None:
    # The paper's point on a toy: all queries lean on the first key, so its value dominates.
    spec = spec_of()
    text = Text.of(spec, 100)
    text.keys_LBKTD[:, :, :, 0] = 3.0
    text.queries_LBHTD.abs_()
    full, _ = read(store_of(KVStore, ()), text)

    def error(method: StreamingLLM) -> float:
        ours, _ = read(store_of(KVStore, (method,)), text)
        return float((ours - full)[:, :, :, 60:].norm() / full[:, :, :, 60:].norm())

    assert error(StreamingLLM(sinks=1, window=20)) < 0.1
    assert error(StreamingLLM(sinks=0, window=21)) > 0.9


def test_the_middle_is_gone() -> None:
    assert needle_kept(KVStore, StreamingLLM(sinks=4, window=20)) == 0.0

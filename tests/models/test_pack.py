"""Packs: what goes in comes out, in one tensor's memory, whole or not at all."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loci.errors import FormatError, ModelError, ParameterError
from loci.models.pack import PACK_FILE, Pack, open_pack, write_pack
from loci.nn.packing import PackedWeight
from loci.testing.models import RandomSource, RoundToGrid, dense, tiny_pack, tiny_pair, tiny_spec
from loci.tiers.pool import aligned_empty

# A vocabulary whose embedding takes several tiles, the last of them shorter.
WIDE = {"vocab": 1700}


def _write(path: Path, source: RandomSource, **options: object) -> Pack:
    write_pack(source, path, extra={}, **options)  # type: ignore[arg-type]
    return open_pack(path)


def test_blocks_stand_in_order_of_execution(tmp_path: Path) -> None:
    with tiny_pack(tmp_path, **WIDE) as pack:
        tiles = [block for block, _ in pack.tiles()]
        assert len(tiles) > 1
        assert pack.names() == [*tiles, "layer.0", "layer.1", "norm"]
    with tiny_pack(tmp_path / "untied", tied=False, **WIDE) as pack:
        heads = [block for block, _ in pack.tiles("head")]
        assert pack.names()[-len(heads) - 1 :] == ["norm", *heads]
        assert heads[0] == "head.0"


def test_tiles_cover_the_vocabulary_once_and_are_no_larger_than_a_layer(tmp_path: Path) -> None:
    with tiny_pack(tmp_path, **WIDE) as pack:
        rows = [row for _, part in pack.tiles() for row in range(1700)[part]]
        assert rows == list(range(1700))
        assert max(pack.nbytes(block) for block, _ in pack.tiles()) <= pack.nbytes("layer.0")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma"])
@pytest.mark.parametrize("bits", [None, 3, 4, 8])
def test_weights_come_out_as_they_went_in(
    architecture: str, bits: int | None, tmp_path: Path
) -> None:
    spec = tiny_spec(architecture=architecture, tied=False)
    source, quant = RandomSource(spec, 3), None if bits is None else RoundToGrid(bits=bits)
    with _write(tmp_path / PACK_FILE, source, quant=quant, embed_quant=quant) as pack:
        for layer in range(spec.layers):
            for name, weight in pack.block(f"layer.{layer}").items():
                truth = source.tensor(f"layer.{layer}.{name}")
                assert isinstance(truth, Tensor)
                if quant is not None and truth.dim() == 2:
                    assert isinstance(weight, PackedWeight)
                    truth = dense(quant.pack_one(truth))
                assert torch.equal(dense(weight), truth), name
        assert torch.equal(dense(pack.block("norm")["norm"]), dense(source.tensor("norm")))
        pack.verify()


def test_bits_are_measured(tmp_path: Path) -> None:
    spec = tiny_spec()
    with _write(tmp_path / PACK_FILE, RandomSource(spec), quant=RoundToGrid(bits=4)) as pack:
        # Four bits, and 2 * 16 more for every 32 weights; the embedding stays float32.
        assert pack.spec.weight_bits == 5.0 and pack.spec.embed_bits == 32.0
        norms = (2 * spec.layers + 1) * spec.hidden * 4
        linears = spec.linear_elements() * 5 // 8
        assert pack.total_bytes == linears + spec.embed_elements() * 4 + norms


@pytest.mark.parametrize("bits", [None, 4, 5])
def test_streamed_and_mapped_agree(bits: int | None, tmp_path: Path) -> None:
    with tiny_pack(tmp_path, bits=bits, **WIDE) as pack:
        buffer = aligned_empty(max(pack.stored_bytes(name) for name in pack.names()))
        for name in pack.names():
            streamed = pack.from_read(name, pack.store.read(name, into=buffer))
            for key, weight in pack.block(name).items():
                assert torch.equal(dense(streamed[key]), dense(weight))
                assert weight.nbytes == streamed[key].nbytes


@pytest.mark.parametrize("bits", [None, 4, 5])
def test_embedding_rows_are_those_of_the_tiles(bits: int | None, tmp_path: Path) -> None:
    with tiny_pack(tmp_path, bits=bits, **WIDE) as pack:
        whole = torch.cat([dense(pack.block(block)["weight"]) for block, _ in pack.tiles()])
        ids = torch.tensor([1699, 0, 5, 5, 900, 1699])
        out = torch.empty(6, 64)
        assert pack.embed_rows(ids, out) is out
        assert torch.equal(out, whole[ids])
        with open_pack(tmp_path, mapped=False) as unmapped:
            before = unmapped.store.bytes_read
            assert torch.equal(unmapped.embed_rows(ids.tolist()), whole[ids])
            assert unmapped.store.bytes_read - before < 6 * 64 * 5  # single rows, not tiles
        assert pack.embed_rows([]).shape == (0, 64)
        for wrong in ([1700], [-1]):
            with pytest.raises(ParameterError, match=r"no such token.*0 to 1699"):
                pack.embed_rows(wrong)


def test_fingerprint_tells_weights_and_layout_apart(tmp_path: Path) -> None:
    prints = []
    for index, (seed, sizes) in enumerate([(0, {}), (0, {}), (1, {}), (0, {"rope_theta": 5e5})]):
        with tiny_pack(tmp_path / str(index), seed, **sizes) as pack:
            assert pack.fingerprint == pack.spec.fingerprint == pack.header["fingerprint"]
            prints.append(pack.fingerprint)
    assert prints[0] == prints[1] and len(set(prints)) == 3


class _Watched(RandomSource):
    """Counts how many of its tensors are alive at once; may fail on the way."""

    def __init__(self, fail_at: str | None = None) -> None:
        super().__init__(tiny_spec(layers=3))
        self.alive: list[weakref.ref[Tensor]] = []
        self.most, self._fail_at = 0, fail_at

    def tensor(self, name: str, rows: slice | None = None) -> Tensor:
        if name == self._fail_at and rows is None:
            raise FormatError("the source broke off")
        copy = self._tensors[name][rows or slice(None)].clone()
        self.alive = [ref for ref in self.alive if ref() is not None]
        self.alive.append(weakref.ref(copy))
        self.most = max(self.most, len(self.alive))
        return copy


def test_packing_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    source = _Watched()
    _write(tmp_path / PACK_FILE, source).close()
    assert source.most <= 2  # the one being written, and the next


def test_a_failure_on_the_way_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / PACK_FILE
    with pytest.raises(FormatError, match="broke off"):
        _write(path, _Watched(fail_at="layer.2.up_proj"))
    assert list(tmp_path.iterdir()) == []
    _write(path, _Watched()).close()
    before = path.read_bytes()
    with pytest.raises(FormatError, match="broke off"):
        _write(path, _Watched(fail_at="layer.2.up_proj"))
    assert [file.name for file in tmp_path.iterdir()] == [PACK_FILE]
    assert path.read_bytes() == before


def test_a_source_must_have_exactly_the_tensors_of_its_spec(tmp_path: Path) -> None:
    lacking, odd, more = (RandomSource(tiny_spec()) for _ in range(3))
    del lacking._tensors["layer.1.v_proj"]
    odd._tensors["layer.0.k_proj"] = torch.zeros(3, 64)
    more._tensors["layer.0.gate_inp"] = torch.zeros(3)
    with pytest.raises(FormatError, match=r"layer\.1\.v_proj is missing.*\(32, 64\)"):
        _write(tmp_path / PACK_FILE, lacking)
    with pytest.raises(FormatError, match=r"layer\.0\.k_proj has another shape; got \(3, 64\)"):
        _write(tmp_path / PACK_FILE, odd)
    with pytest.raises(ModelError, match=r"layer\.0\.gate_inp"):
        _write(tmp_path / PACK_FILE, more)


def test_damage_is_found_and_other_files_are_refused(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path)
    at = pack.store.place("layer.1").offset + 100
    pack.close()
    raw = bytearray((tmp_path / PACK_FILE).read_bytes())
    raw[at] ^= 1
    (tmp_path / PACK_FILE).write_bytes(raw)
    with open_pack(tmp_path) as damaged, pytest.raises(FormatError, match=r"layer\.1"):
        damaged.verify()
    from loci.tiers.blocks import BlockWriter

    with BlockWriter(tmp_path / "other", {"format": "loci-kv", "version": 1}):
        pass
    with pytest.raises(FormatError, match="no pack of this version"):
        open_pack(tmp_path / "other")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma"])
def test_the_twin_in_transformers_has_the_same_weights(architecture: str, tmp_path: Path) -> None:
    pack, model = tiny_pair(tmp_path, 1, architecture=architecture)
    query = model.model.layers[1].self_attn.q_proj.weight
    assert torch.equal(query, dense(pack.block("layer.1")["q_proj"]))
    embedding = model.get_input_embeddings().weight
    assert torch.equal(embedding[7:9], pack.embed_rows([7, 8]))
    assert sum(p.numel() for p in model.parameters()) == pack.spec.elements()
    pack.close()

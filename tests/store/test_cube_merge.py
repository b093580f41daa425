"""Merging cubes: by hand, its laws, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loci.core.cube import CubeHeader, MemoryKind, Policy, Sensitivity
from loci.errors import FingerprintError, MethodError, ParameterError
from loci.nn.patch import Patch
from loci.store.cube_file import Payload
from loci.store.cube_merge import Cube, merge, same

TEXT = CubeHeader(id="a", kind=MemoryKind.PLAINTEXT, parents=("i1",))


def notes(header: CubeHeader = TEXT, /, **texts: str) -> Cube:
    return header, Payload(texts=texts)


def adapter(seed: int | None, rank: int = 2, names: tuple[str, ...] = ("layer.0.q_proj",)) -> Cube:
    header = CubeHeader(id=f"adapter-{seed}", kind=MemoryKind.PARAMETRIC, fingerprint="m")
    if seed is None:
        return header, Payload(facts={"rank": rank})
    draw = torch.Generator().manual_seed(seed)
    parts = {
        n: (torch.randn(8, rank, generator=draw), torch.randn(rank, 6, generator=draw))
        for n in names
    }
    return header, Payload(tensors=Patch(parts).tensors(), facts={"rank": rank})


def test_takes_from_each_side_what_it_changed() -> None:
    base = notes(x="1", y="1", z="1", gone="1")
    ours = notes(x="2", y="1", z="1", gone="1", mine="m")
    theirs = notes(replace(TEXT, id="b", parents=("i2",)), x="1", y="3", z="1", theirs="t")
    header, payload = merge(ours, theirs, base)
    assert payload.texts == {"x": "2", "y": "3", "z": "1", "mine": "m", "theirs": "t"}
    assert (header.id, header.parents, header.version) == ("a", ("i1", "i2", "b"), 2)


def test_a_conflict_is_named_and_a_person_decides() -> None:
    base, ours, theirs = notes(x="1", y="1"), notes(x="2", y="2"), notes(x="3")
    with pytest.raises(ParameterError, match=r"2 notes were changed on both sides; got \['x', 'y'"):
        merge(ours, theirs, base)
    asked = []

    def resolve(id: str, mine: str | None, other: str | None) -> str | None:
        asked.append((id, mine, other))
        return other

    assert merge(ours, theirs, base, resolve=resolve)[1].texts == {"x": "3"}
    assert asked == [("x", "2", "3"), ("y", "2", None)]


def test_rights_only_shrink() -> None:
    wide = Policy(readers=("bob", "eve"), expires="2027-01-01T00:00:00+00:00")
    tight = Policy(readers=("bob",), sensitivity=Sensitivity.SECRET)
    base = notes(x="1")
    ours, theirs = notes(replace(TEXT, policy=wide), x="2"), notes(y="3", x="1")
    theirs = replace(theirs[0], policy=tight), theirs[1]
    policy = merge(ours, theirs, base)[0].policy
    assert (policy.readers, policy.sensitivity) == (("bob",), Sensitivity.SECRET)
    assert policy.expires == "2027-01-01T00:00:00+00:00"


def test_products_add_up_exactly_where_the_rank_allows() -> None:
    a, b, base = adapter(1), adapter(2), adapter(3)
    header, payload = merge(a, b, base, rank=6)
    found = Patch.from_tensors(payload.tensors).delta("layer.0.q_proj")
    deltas = [Patch.from_tensors(c[1].tensors).delta("layer.0.q_proj") for c in (a, b, base)]
    assert torch.allclose(found, deltas[0] + deltas[1] - deltas[2], atol=1e-5)
    assert payload.facts["rank"] == 6
    assert header.parents == ("adapter-2",)
    cut = Patch.from_tensors(merge(a, b, base)[1].tensors)
    assert cut.parts["layer.0.q_proj"][0].shape[1] == 2
    best = torch.linalg.svdvals(deltas[0] + deltas[1] - deltas[2])[2:]
    error = (cut.delta("layer.0.q_proj") - found).norm()
    assert error == pytest.approx(float(best.norm()), rel=1e-3)  # nothing of rank 2 is nearer


def test_layers_of_one_side_alone_are_taken() -> None:
    a, b = adapter(1, names=("layer.0.q_proj",)), adapter(2, names=("layer.1.q_proj",))
    parts = Patch.from_tensors(merge(a, b, adapter(None))[1].tensors).parts
    assert set(parts) == {"layer.0.q_proj", "layer.1.q_proj"}
    assert torch.equal(parts["layer.0.q_proj"][0], a[1].tensors["layer.0.q_proj.left"])
    both = adapter(3, names=("layer.0.q_proj", "layer.1.q_proj"))
    dropped = Payload(tensors={n: t for n, t in both[1].tensors.items() if "layer.0" in n})
    kept = merge((both[0], dropped), adapter(4, names=("layer.0.q_proj", "layer.2.q_proj")), both)
    assert "layer.1.q_proj.left" not in kept[1].tensors


def test_what_cannot_be_merged_is_refused() -> None:
    keys = CubeHeader(id="k", kind=MemoryKind.ACTIVATION), Payload()
    with pytest.raises(MethodError, match="never merged"):
        merge(keys, keys, keys)
    with pytest.raises(ParameterError, match="different kinds"):
        merge(notes(x="1"), adapter(1), notes())
    other = adapter(2)
    with pytest.raises(FingerprintError, match="different models"):
        merge(adapter(1), (replace(other[0], fingerprint="other"), other[1]), adapter(None))


_notes = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("123"), max_size=6)


@given(_notes, _notes, _notes)
def test_the_laws_of_notes(a: dict[str, str], b: dict[str, str], base: dict[str, str]) -> None:
    ours, theirs, old = notes(**a), notes(**b), notes(**base)
    assert same(merge(ours, ours, old)[1], ours[1])
    assert same(merge(ours, old, old)[1], ours[1])
    assert same(merge(old, ours, old)[1], ours[1])
    once = merge(ours, theirs, old, resolve=lambda id, mine, other: mine)
    again = merge(once, theirs, old, resolve=lambda id, mine, other: mine)
    assert same(again[1], once[1])
    assert same(merge(once, once, old)[1], once[1])
    turned = merge(theirs, ours, old, resolve=lambda id, mine, other: other)
    assert turned[1].texts == once[1].texts


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_the_laws_of_adapters(one: int, two: int, old: int) -> None:
    a, b, base = adapter(one), adapter(two), adapter(old)
    assert same(merge(a, a, base)[1], a[1])
    assert same(merge(a, base, base)[1], a[1])
    assert same(merge(base, b, base)[1], b[1])
    merged = merge(a, b, base, rank=6)
    assert same(merge(merged, merged, base)[1], merged[1])

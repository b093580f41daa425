"""`loci.plan.plan` with a real pack on disk and a machine whose speed is in the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loci.errors import BudgetError, ParameterError
from loci.hw import probe
from loci.hw.profiles import Pace
from loci.methods import catalogue
from loci.methods.quant.base import Quant
from loci.plan import plan
from loci.plan.solve import Plan
from loci.run.quantised import pack_model
from loci.testing.models import tiny_pack


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with one small model; measuring the machine takes no time."""
    rates = probe.Rates(
        dram_read=1e10,
        disk_read=1e9,
        disk_latency_s=1e-4,
        direct=True,
        float32=1e11,
        launch_s=5e-6,
        measured="2026-01-01T00:00:00+00:00",
    )
    monkeypatch.setattr(probe, "measure", lambda *args, **kwargs: rates)
    (tmp_path / "tiny").mkdir()
    tiny_pack(tmp_path / "tiny").close()
    return tmp_path


def _plan(home: Path, **more: object) -> Plan:
    return plan("tiny", folder=home, cache=home / "cache", new_tokens=16, **more)  # type: ignore[arg-type]


def test_the_weights_of_a_plan_are_the_packs(home: Path) -> None:
    from loci.models.load import resolve

    made = _plan(home, dram="64MiB", context=64)
    with resolve("tiny", home) as pack:
        assert made.held("weights") == pack.total_bytes
        assert made.spec == pack.spec
    assert made.model == "tiny" and made.loss == 0


def test_what_was_not_named_is_said(home: Path) -> None:
    made = _plan(home, dram="64MiB", gpu="1GiB")
    assert any("nobody named a context" in note for note in made.notes)
    assert any("--gpu is not used" in note for note in made.notes)
    assert 17 <= made.workload.context <= made.spec.max_context


def test_a_model_of_short_texts_is_planned_for_all_it_can(home: Path) -> None:
    tiny_pack(home / "brief", max_context=128).close()
    made = plan("brief", folder=home, cache=home / "cache", dram="64MiB", new_tokens=16)
    assert made.workload.context == 128


def test_an_answer_longer_than_usual_gets_its_context(home: Path) -> None:
    assert _plan(home, dram="64MiB").workload.context == 512
    tiny_pack(home / "long", max_context=8192).close()
    made = plan("long", folder=home, cache=home / "cache", dram="64MiB", new_tokens=3000)
    assert made.workload.context == 3001


def test_what_the_machine_reaches_is_slower_than_what_it_promises(home: Path) -> None:
    pace = Pace(launch_s=1e-3, rates={"float32/product4": 1e8}, disk_bytes_per_s=1e9)
    promised, reached = _plan(home, dram="64MiB"), _plan(home, dram="64MiB", pace=pace)
    launches = 2 * 13 + 2  # operators of two layers, the final norm and the head
    assert reached.seconds_per_token > launches * 1e-3 > promised.seconds_per_token


def test_sizes_are_read_as_people_write_them(home: Path) -> None:
    made = _plan(home, dram="1MiB", disk="2MiB", kv_bytes="512KiB", context="64", prompt_tokens="8")
    assert (made.budget.dram, made.budget.disk, made.budget.kv) == (2**20, 2**21, 2**19)
    assert (made.workload.context, made.workload.prompt_tokens) == (64, 8)
    with pytest.raises(ParameterError, match="context"):
        _plan(home, dram="1MiB", context="many")


def test_too_little_is_refused_with_or_without_a_context(home: Path) -> None:
    for context in (None, 64):
        with pytest.raises(BudgetError, match="It fits with"):
            _plan(home, dram="1KiB", context=context)


def test_a_machine_without_known_memory_needs_a_size(home: Path) -> None:
    with pytest.raises(ParameterError, match="name --dram"):
        _plan(home, machine="h200", context=64)
    assert _plan(home, machine="h200", dram="64MiB", context=64).seconds_per_token > 0


def test_activations_of_8_bits_are_asked_for_and_cost_something(home: Path) -> None:
    made = _plan(home, dram="64MiB", context=64, activations=8)
    assert made.activation_bits == 8 and made.loss is None, "unknown for this model"
    assert any("activations of 8 bits" in note for note in made.notes)
    assert Plan.from_json(made.to_json()) == made
    assert _plan(home, dram="64MiB", context=64, activations=32).activation_bits == 32
    with pytest.raises(ParameterError, match="8, 32"):
        _plan(home, dram="64MiB", context=64, activations=4)


def test_a_model_that_was_packed_before_is_taken_where_the_whole_does_not_fit(home: Path) -> None:
    with tiny_pack(home / "dense", bits=None) as pack:
        method = catalogue.find("groupwise(bits=8,group=16)", "quant")
        assert isinstance(method, Quant)
        ids_ST = torch.randint(0, pack.spec.vocab, (2, 32), generator=torch.Generator())
        twin = pack_model(pack, method, home, ids_ST=ids_ST)

    def made(name: str, dram: int | str) -> Plan:
        return plan(
            name, dram=dram, context=64, new_tokens=16, kv="", folder=home, cache=home / "cache"
        )

    assert made("dense", "64MiB").model == "dense", "nothing is lost where all of it fits"
    tight = made(twin.name, "64MiB").predicted["dram"] + 4096
    found = made("dense", tight)
    assert found.model == twin.name and found.predicted["dram"] <= tight
    assert any("was made from it" in note for note in found.notes)
    assert "groupwise" in found.packed

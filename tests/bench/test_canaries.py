"""What is left of a secret: likelihoods by hand, bytes in files, and a difference that is noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loci.bench.canaries import USER, likelihood, log_likelihoods, traces
from loci.core.item import Item
from loci.errors import ParameterError
from loci.methods.train.base import down
from loci.models.pack import Pack
from loci.nn.patch import Patch
from loci.plan import plan as make_plan
from loci.run import engine
from loci.run.edit_model import PackModel
from loci.run.memory import Memory
from loci.testing.models import tiny_pack
from loci.text.quiz import Quiz

SECRET = Quiz(
    items=("i-1",),
    learn=("Where does Ann live?",),
    look=("Ann lives where?",),
    judge=("In which town does Ann live?", "What is Ann's town?"),
    answer="Ann lives in Ghent.",
    objects=("Ghent",),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tiny_pack(home / "tiny", layers=3, max_context=1024).close()
    return home


@pytest.fixture(scope="module")
def pack(folder: Path) -> Pack:
    return tiny_pack(folder / "own", layers=3, max_context=1024)


def patch_of(pack: Pack, size: float, seed: int = 0) -> Patch:
    outputs, inputs = pack.spec.layer_linears()["down_proj"]
    draw = torch.Generator().manual_seed(seed)
    left = size * torch.randn(outputs, 1, generator=draw)
    return Patch({down(1): (left, torch.randn(1, inputs, generator=draw))})


def test_the_likelihood_is_of_the_secret_s_own_words(pack: Pack) -> None:
    model = PackModel(pack)
    (found,) = log_likelihoods(model, [SECRET], None)
    values = []
    for question in SECRET.judge:
        ids = model.tokenizer.chat([{"role": "user", "content": question}])
        for byte in b"Ann lives in ":
            ids = [*ids, byte]
        for byte in b"Ghent":  # a byte is a token here
            (logits,) = model.ends([ids], [1])
            values.append(float(torch.log_softmax(logits[0], dim=-1)[byte]))
            ids = [*ids, byte]
    assert found == pytest.approx(sum(values) / 10, abs=1e-4)


def test_a_difference_to_itself_is_nothing_and_a_change_is_seen(pack: Pack) -> None:
    model, asked = PackModel(pack), [SECRET, SECRET]
    same, other = patch_of(pack, 0.1), patch_of(pack, 3.0, seed=1)
    found = likelihood(model, asked, knew=other, again=same, never=[same, same])
    assert found["difference"] == found["noise"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["again"] == found["never"] != found["base"]
    assert found["taught"]["value"] == pytest.approx(found["knew"] - found["never"])
    one = likelihood(model, asked, knew=other, again=other, never=[same])
    assert one["difference"]["value"] != 0 and "noise" not in one
    assert one["secrets"] == 2


def test_words_that_are_not_in_the_answer_are_refused(pack: Pack) -> None:
    odd = Quiz(
        items=("i",), learn=("a",), look=("b",), judge=("c",), answer="Nothing.", objects=("Ghent",)
    )
    with pytest.raises(ParameterError, match="do not stand in its answer"):
        log_likelihoods(PackModel(pack), [odd], None)


def test_what_is_forgotten_stands_nowhere(folder: Path, tmp_path: Path) -> None:
    plan = make_plan(
        "tiny", dram="32MiB", context=1024, new_tokens=8, kv="", folder=folder, cache=folder / ".c"
    )
    with (
        Memory(tmp_path / "told.db") as memory,
        engine.open(plan, folder=folder) as session,
    ):
        for town in ("Ghent", "Porto"):
            said = {"role": "user", "name": "Ann", "content": f"I live in {town}."}
            memory.add([said], user=USER)
        items = memory.list(user=USER, kinds="fact", limit=10)
        (secret,) = [item for item in items if isinstance(item, Item) and "Porto" in item.text]
        found = traces(memory, [secret], session)
    assert found["before"]["files"] >= 3 and found["before"]["cubes"] == 1
    assert found["before"]["prefix"] > 50
    assert found["after"] == {"files": 0, "cubes": 0, "prefix": 0}

"""Text becomes keys and values and goes back; a session that has them says the very same."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from loci.core.cube import Caller, CubeHeader, MemoryKind, Policy, State, expiry
from loci.errors import (
    BudgetError,
    FingerprintError,
    FormatError,
    MethodError,
    NotFoundError,
    ParameterError,
    PolicyError,
)
from loci.models.tokenizer import Apart
from loci.nn import native
from loci.nn.patch import Patch
from loci.plan import plan as make_plan
from loci.plan.solve import Plan
from loci.run import cubes, engine, promote
from loci.run.adapters import Adapter
from loci.run.batch import Batch
from loci.run.memory import Memory
from loci.run.requests import Ask
from loci.store import cube_file
from loci.store.cube_file import Payload
from loci.store.shelf import Shelf
from loci.testing.batch import slowed
from loci.testing.models import tiny_pack
from loci.tiers.pages import why_not

SIZES = {"layers": 3, "hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "head_dim": 16}
TEXT = "Ada lives in Graz. She grows tomatoes, and is allergic to nuts.\nHer cat is called Miro."
QUESTION = "Where does Ada live?"
ASKED = [{"role": "user", "content": QUESTION}]
ADA = Caller(user="ada")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tiny_pack(home / "small", **SIZES).close()
    tiny_pack(home / "other", seed=1, **SIZES).close()
    return home


@cache
def plan_of(folder: Path, model: str = "small", **asked: object) -> Plan:
    asked = {"dram": "16MiB", "context": 512, "new_tokens": 8, "kv": ""} | asked
    return make_plan(model, folder=folder, cache=folder / ".cache", **asked)  # type: ignore[arg-type]


def opened(
    folder: Path,
    shelf: Shelf | Memory | None = None,
    cubes: Sequence[str | Path] = (),
    user: str | None = "ada",
    **asked: object,
) -> engine.Session:
    plan = plan_of(folder, **asked)
    if isinstance(shelf, Shelf):
        cubes = [shelf.path(cube) if isinstance(cube, str) else cube for cube in cubes]
    memory = shelf if isinstance(shelf, Memory) else None
    return engine.open(plan, memory=memory, cubes=cubes, user=user, folder=folder)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "cubes")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory(tmp_path / "ada.db") as opened:
        opened.add("I live in Graz. I am allergic to nuts.", user="ada")
        opened.add("My cat is called Miro.", user="ada")
        opened.add("I like tea.", user="bob")
        yield opened


def promoted(folder: Path, shelf: Shelf, text: str = TEXT, **asked: object) -> str:
    header = promote.from_text(shelf, text, policy=Policy(owner="ada"))
    with opened(folder, **asked) as session:
        promote.promote(session, shelf, header.id, caller=ADA)
    return header.id


def test_a_session_with_keys_says_what_one_that_reads_says(folder: Path, shelf: Shelf) -> None:
    id = promoted(folder, shelf)
    promote.from_text(shelf, TEXT)
    with opened(folder, shelf, [id]) as session:
        quick = "".join(session.generate(QUESTION))
        reused, asked = session.stats.reused_tokens, session.stats.prompt_tokens
        logits = session._prefill(session._ids_of(QUESTION, False)).clone()
    promote.demote(shelf, id, caller=ADA)
    with opened(folder, shelf, [id]) as session:
        slow = "".join(session.generate(QUESTION))
        assert session.stats.reused_tokens == 0
        assert session.stats.prompt_tokens == asked
        assert torch.allclose(session._prefill(session._ids_of(QUESTION, False)), logits, atol=1e-4)
    assert quick == slow != ""
    assert reused > len(TEXT)  # one byte a token, and the head of the template
    with opened(folder) as session:  # the text is really there
        assert len(session._ids_of(QUESTION, False)) < asked - len(TEXT)


def test_the_keys_in_the_file_are_those_of_the_store(folder: Path, shelf: Shelf) -> None:
    id = promoted(folder, shelf)
    payload = shelf.payload(id)
    ids = payload.tensors["ids"].tolist()
    with opened(folder) as session:
        session.read_prefix(ids)
        for layer in range(SIZES["layers"]):
            keys, values = cubes.prefixes.exact(session.store, layer)
            assert torch.equal(payload.tensors[f"keys.{layer}"], keys)
            assert torch.equal(payload.tensors[f"values.{layer}"], values)
    header = shelf.header(id)
    assert (header.kind, header.version) == (MemoryKind.ACTIVATION, 2)
    assert header.fingerprint == session.plan.spec.fingerprint
    assert payload.facts["tokens"] == len(ids)


def test_half_precision_is_kept_as_it_is(folder: Path, shelf: Shelf) -> None:
    header = promote.from_text(shelf, TEXT, policy=Policy(owner="ada"))
    plan = replace(plan_of(folder), kv_dtype="float16")
    with engine.open(plan, folder=folder) as session:
        promote.promote(session, shelf, header.id, caller=ADA)
    path = shelf.path(header.id)
    assert shelf.payload(header.id).tensors["keys.0"].dtype is torch.float16
    with engine.open(plan, cubes=[path], user="ada", folder=folder) as session:
        assert session.store.length == len(session.cubes.ids) > len(TEXT)
        for layer in range(SIZES["layers"]):
            keys, _ = cubes.prefixes.exact(session.store, layer)
            assert torch.equal(keys, shelf.payload(header.id).tensors[f"keys.{layer}"])
        assert "".join(session.generate(QUESTION))
    with pytest.raises(FingerprintError, match="another dtype"):
        opened(folder, shelf, [header.id])


def test_every_question_reads_itself_alone(folder: Path, shelf: Shelf) -> None:
    id = promoted(folder, shelf)
    with opened(folder, shelf, [id]) as session:
        prefix = len(session.cubes.ids)
        for question in (QUESTION, "And her cat?"):
            "".join(session.generate(question))
            assert session.stats.reused_tokens >= prefix
        "".join(session.chat("Who are you?"))
        "".join(session.chat("Really?"))
        assert session.stats.reused_tokens > prefix
        messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
        "".join(session.generate(messages))
        assert session.stats.reused_tokens >= len(TEXT)
        with pytest.raises(ParameterError, match="no place for cubes"):
            next(session.generate("raw", raw=True))


def test_further_cubes_are_read_as_text(folder: Path, shelf: Shelf) -> None:
    first, second = promoted(folder, shelf), promoted(folder, shelf, "Bob likes tea.")
    with opened(folder, shelf, [first, second]) as session:
        "".join(session.generate(QUESTION))
        assert session.stats.reused_tokens > len(TEXT)
        assert f"{second} is read again as text" in session.report()["notes"][-1]
        said = session.tokenizer.decode(session._ids_of("Hi", False))
        assert said.index("Graz") < said.index("Bob likes tea.") < said.index("Hi")


def test_a_cube_of_memories_has_them_for_parents(memory: Memory, folder: Path) -> None:
    header = promote.from_memory(memory, user="ada")
    facts = [fact for fact in memory.list(user="ada") if fact.id.startswith("i")]
    turns = {turn for fact in facts for turn in fact.sources}  # type: ignore[union-attr]
    assert set(header.parents) == {fact.id for fact in facts} | turns
    assert header.policy.owner == "ada"
    shelf = memory.shelf
    assert shelf is not None and shelf.folder.name == "ada.db.cubes"
    assert set(shelf.payload(header.id).texts) == {fact.id for fact in facts}
    with opened(folder, memory, [header.id]) as session:
        said = session.tokenizer.decode(session._ids_of("Hi", False))
        assert "Graz" in said and "Miro" in said and "tea" not in said
    assert shelf.header(header.id).usage.reads == 1
    one = promote.from_memory(memory, items=[facts[0].id])
    assert list(shelf.payload(one.id).texts) == [facts[0].id]


def test_memories_of_several_and_of_nobody_are_refused(memory: Memory) -> None:
    ids = [memory.list(user=user)[0].id for user in ("ada", "bob")]
    with pytest.raises(ParameterError, match="several users"):
        promote.from_memory(memory, items=ids)
    with pytest.raises(ParameterError, match="nothing to make a cube of"):
        promote.from_memory(memory, user="eve")
    with pytest.raises(NotFoundError):
        promote.from_memory(memory, items=[ids[0]], user="bob")
    with pytest.raises(ParameterError, match="not of messages"):
        promote.from_memory(memory, items=["t1"])
    assert memory.shelf is not None and not memory.shelf.folder.exists()


def test_what_does_not_fit_changes_nothing(folder: Path, shelf: Shelf) -> None:
    id = promote.from_text(shelf, TEXT).id
    before = shelf.path(id).read_bytes()
    short = "the plan's context leaves room for"
    with opened(folder, context=128) as session, pytest.raises(BudgetError, match=short):
        promote.promote(session, shelf, id, caller=ADA)
    with opened(folder) as session:
        with pytest.raises(BudgetError, match=r"the shelf holds .* short"):
            promote.promote(session, shelf, id, caller=ADA, limit_bytes=2**15)
        assert shelf.path(id).read_bytes() == before
        promote.promote(session, shelf, id, caller=ADA, limit_bytes=2**20)
    with pytest.raises(BudgetError, match=r"holds keys and values of \d+ tokens"):
        opened(folder, shelf, [id], context=128)


def test_keys_of_another_model_run_or_template_are_refused(folder: Path, shelf: Shelf) -> None:
    id = promoted(folder, shelf)
    with pytest.raises(FingerprintError, match="made with another fingerprint"):
        opened(folder, shelf, [id], model="other")
    with pytest.raises(MethodError, match="this plan's cache is not"):
        opened(folder, shelf, [id], kv="streaming_llm")
    header, payload = cube_file.read(shelf.path(id))
    facts = {**payload.facts, "dtype": "float64"}
    shelf.put(header, replace(payload, facts=facts))
    with pytest.raises(FingerprintError, match="made with another dtype"):
        opened(folder, shelf, [id])
    ids = {**payload.tensors, "ids": payload.tensors["ids"] + 1}
    shelf.put(header, replace(payload, tensors=ids))
    with pytest.raises(FingerprintError, match="another tokenizer or template"):
        opened(folder, shelf, [id])
    shelf.put(header, replace(payload, facts={**payload.facts, "prefix_version": 9}))
    with pytest.raises(FormatError, match="no keys and values of a version"):
        opened(folder, shelf, [id])


def test_keys_that_an_adapter_read_are_for_it_alone(folder: Path, shelf: Shelf) -> None:
    draw = torch.Generator().manual_seed(0)
    pair = torch.randn(64, 2, generator=draw) / 8, torch.randn(2, 64, generator=draw)
    adapter = Adapter(name="calm", patch=Patch({"layer.0.q_proj": pair}))
    header = promote.from_text(shelf, TEXT, policy=Policy(owner="ada"))
    path = shelf.path(header.id)
    with engine.open(plan_of(folder), adapter=adapter, folder=folder) as session:
        promote.promote(session, shelf, header.id, caller=ADA)
    with pytest.raises(FingerprintError, match="another adapter"):
        opened(folder, shelf, [header.id])
    with engine.open(
        plan_of(folder), adapter=adapter, cubes=[path], user="ada", folder=folder
    ) as session:
        quick = "".join(session.generate(QUESTION))
        assert session.stats.reused_tokens > len(TEXT)
        session.use(None)  # what the adapter read is not for the bare model
        "".join(session.generate(QUESTION))
        assert session.stats.reused_tokens == 0
        session.use("calm")
        assert "".join(session.generate(QUESTION)) == quick


def test_damaged_cubes_are_refused(folder: Path, shelf: Shelf, tmp_path: Path) -> None:
    id = promoted(folder, shelf)
    copy = tmp_path / "copy.cube"
    shutil.copy(shelf.path(id), copy)
    with opened(folder, cubes=[copy]) as session:
        assert session.cubes.ids
    data = bytearray(copy.read_bytes())
    data[-7] ^= 1
    copy.write_bytes(data)
    with pytest.raises(FormatError, match=r"damaged: the t\w+ '"):
        opened(folder, cubes=[copy])
    copy.write_bytes(data[:-100])
    with pytest.raises(FormatError, match="damaged: its end"):
        opened(folder, cubes=[copy])
    with pytest.raises(ParameterError, match="found by its id"):
        opened(folder, cubes=["cube-00000000"])


def test_policies_decide(folder: Path, shelf: Shelf) -> None:
    id = promoted(folder, shelf)
    for user in (None, "bob"):
        with pytest.raises(PolicyError, match="no grant"):
            opened(folder, shelf, [id], user=user)
    header = shelf.header(id)
    shelf.change(replace(header, policy=replace(header.policy, readers=("bob",))))
    opened(folder, shelf, [id], user="bob").close()
    with pytest.raises(PolicyError, match="may not be changed"):
        promote.demote(shelf, id, caller=Caller(user="bob"))
    shelf.change(replace(header, policy=replace(header.policy, pinned=True)))
    with pytest.raises(PolicyError, match="pinned"):
        promote.demote(shelf, id, caller=ADA)
    over = expiry(shelf.clock.now(), 1e-6)
    shelf.change(replace(header, policy=replace(header.policy, expires=over)))
    with pytest.raises(PolicyError, match="expired"):
        opened(folder, shelf, [id])
    shelf.change(header.to(State.FROZEN))
    with opened(folder, shelf, [id]) as session, pytest.raises(PolicyError, match="frozen"):
        promote.promote(session, shelf, id, caller=ADA)


def test_going_back_drops_the_keys_and_keeps_the_text(folder: Path, shelf: Shelf) -> None:
    id = promoted(folder, shelf)
    before = shelf.nbytes()
    header = promote.demote(shelf, id, caller=ADA)
    payload = shelf.payload(id)
    assert (header.kind, header.fingerprint) == (MemoryKind.PLAINTEXT, None)
    assert (payload.texts, payload.tensors, payload.facts) == ({"text": TEXT}, {}, {})
    assert shelf.nbytes() < before / 4
    with pytest.raises(ParameterError, match="nothing to go back from"):
        promote.demote(shelf, id, caller=ADA)


def test_bytes_of_the_session_stay_what_was_predicted(folder: Path, shelf: Shelf) -> None:
    id = promoted(folder, shelf)
    with opened(folder, shelf, [id]) as session:
        "".join(session.generate(QUESTION))
        found = session.report()
        assert found["bytes"]["measured"]["dram"] <= found["bytes"]["ledger"]["dram"] * 1.03
        ledger = session.ledger
    assert ledger.used("dram") == 0


PAGED = pytest.param(
    True,
    marks=pytest.mark.skipif(
        why_not() is not None or not native.available(), reason="no mapped blocks here"
    ),
)


@pytest.mark.parametrize("paged", [False, PAGED])
def test_requests_of_a_batch_begin_with_a_cube(folder: Path, shelf: Shelf, paged: bool) -> None:
    id = promoted(folder, shelf)
    with Batch(plan_of(folder), folder=folder, paged=paged) as batch:
        ids = tuple(batch.tokenizer.chat(cubes.told(batch.tokenizer, [TEXT], ASKED)))
        ask = Ask(ids=ids, max_tokens=6, scope="a", goes_on=True)
        plain = batch.submit(replace(ask, scope="b")).wait(30)
        lent = batch.between_steps(
            lambda: cubes.lend(batch.stores, shelf.path(id), batch.tokenizer, scope="a")
        )
        tickets = [batch.submit(ask), batch.submit(replace(ask, scope="c"))]
        quick, other = (ticket.wait(30) for ticket in tickets)
        assert (plain.reused_tokens, other.reused_tokens) == (0, 0)
        assert len(lent.ids) - 16 < quick.reused_tokens <= len(lent.ids)
        said = [[id for piece in ticket for id in piece.ids] for ticket in tickets]
        assert said[0] == said[1] != []
        with pytest.raises(FingerprintError):
            promote.demote(shelf, id, caller=ADA)
            shelf.put(*_of_another(folder, shelf))
            cubes.lend(batch.stores, shelf.path("cube-other"), batch.tokenizer, scope="a")


@pytest.mark.parametrize("paged", [False, PAGED])
def test_a_cube_is_lent_once_and_whenever_it_had_to_go(
    folder: Path, shelf: Shelf, paged: bool
) -> None:
    path = shelf.path(promoted(folder, shelf))
    with Batch(plan_of(folder), folder=folder, paged=paged) as batch:
        prefix = cubes.prefix(batch.tokenizer, TEXT)
        asked = tuple(batch.tokenizer.chat(cubes.told(batch.tokenizer, [TEXT], ASKED)))
        ask = Ask(ids=asked, max_tokens=6, scope="a", goes_on=True)
        assert batch.lend(path, prefix, scope="a")
        assert not batch.lend(path, prefix, scope="a")  # it is there
        with slowed(batch):
            ticket = batch.submit(ask)
            next(iter(ticket))
            assert not batch.lend(path, prefix, scope="a")  # a request has it
            end = ticket.wait(30)
        assert end.reused_tokens > len(prefix) - 16
        assert not batch.lend(path, prefix, scope="a")  # the request left it
        assert batch.lend(path, prefix, scope="b")
        batch.forget_kept()
        assert batch.lend(path, prefix, scope="a")
        batch.forget_kept()
        rest = batch.stores.most() - 2 * batch.stores.bytes_for(16)
        lease = batch.reserve("other", rest)
        assert not batch.lend(path, prefix, scope="a")  # no room: its text is read
        lease.release()


def _of_another(folder: Path, shelf: Shelf) -> tuple[CubeHeader, Payload]:
    header = promote.from_text(shelf, TEXT, policy=Policy(owner="ada"))
    with opened(folder, model="other") as session:
        promote.promote(session, shelf, header.id, caller=ADA)
    made = shelf.header(header.id), shelf.payload(header.id)
    return replace(made[0], id="cube-other", version=1), made[1]


def test_a_template_without_a_system_message_has_cubes_before_the_question() -> None:
    class Refuses:
        def chat(self, messages: list[dict[str, object]]) -> list[int]:
            from loci.errors import ModelError

            if messages[0]["role"] == "system":
                raise ModelError("the template refuses")
            return []

    found = cubes.told(Refuses(), ["one", "two"], [{"role": "user", "content": "Hi"}])  # type: ignore[arg-type]
    (message,) = found
    assert message["role"] == "user"
    assert isinstance(message["content"], Apart)
    assert [part[-4:] for part in message["content"].parts] == ["one\n", "two\n", "\nHi"]


def test_no_tenant_ever_reads_of_another(shelf: Shelf) -> None:
    chance = random.Random(0)
    tenants = [f"t{number}" for number in range(50)]
    owners = {}
    for tenant in tenants:
        policy = Policy(scope=tenant, owner=chance.choice([None, "ada"]), readers=("bob",))
        owners[promote.from_text(shelf, f"of {tenant}", policy=policy).id] = tenant
    allowed = 0
    for _ in range(1000):
        caller = Caller(
            tenant=chance.choice(tenants),
            user=chance.choice([None, "ada", "bob", "*", ""]),
            purpose=chance.choice([None, "anything"]),
        )
        id = chance.choice(list(owners))
        try:
            found = cubes.attach([id], shelf, caller=caller)
        except PolicyError as error:
            assert "of t" not in str(error)
            continue
        allowed += 1
        assert caller.tenant == owners[id]
        assert found.texts == [f"of {caller.tenant}"]
    assert allowed > 5

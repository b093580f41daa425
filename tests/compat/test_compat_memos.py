"""MemOS's calls: its quick start, users and cubes, folders, chat, and nobody reads another's."""

from __future__ import annotations

import json
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loci.compat.memos import (
    MOS,
    GeneralMemCube,
    MOSConfig,
    TextualMemoryItem,
    UserRole,
)
from loci.core.cube import CubeHeader, MemoryKind, Policy
from loci.errors import ConfigError, LociError, MethodError, NotFoundError, ParameterError
from loci.models.endpoint import Endpoint
from loci.store.cube_file import Payload


class Echo:
    """A model that says what it was shown last."""

    name = "echo"

    def __init__(self) -> None:
        self.asked: list[list[Mapping[str, str]]] = []

    def generate(self, messages: Sequence[Mapping[str, str]], **more: Any) -> str:
        self.asked.append(list(messages))
        return f"You said: {messages[-1]['content']}"

    def count_tokens(self, text: str) -> int:
        return len(text.split())


@pytest.fixture
def examples(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that MemOS's examples come with, in the form it writes them."""
    monkeypatch.chdir(home)
    data = home / "examples" / "data"
    (data / "config").mkdir(parents=True)
    simple = {
        "user_id": "root",
        "chat_model": {"backend": "loci", "config": {"model_name_or_path": "smollm2"}},
        "max_turns_window": 20,
        "top_k": 5,
        "enable_textual_memory": True,
        "enable_activation_memory": False,
        "enable_parametric_memory": False,
    }
    (data / "config" / "simple_memos_config.json").write_text(json.dumps(simple))
    (data / "mem_cube_2").mkdir()
    memory = {
        "id": "5a0fbc8e-5fa9-4f8b-9b0c-4c1c9d8c3b11",
        "memory": "The user has a cat named Zia",
        "metadata": {"type": "fact", "source": "conversation", "tags": ["pets"]},
    }
    (data / "mem_cube_2" / "textual_memory.json").write_text(json.dumps([memory]))
    (data / "mem_cube_2" / "config.json").write_text("{}")
    return data


@pytest.fixture
def mos(home: Path) -> Iterator[MOS]:
    opened = MOS(folder=home / "system", embedder=None, llm=Echo())
    for name in ("ada", "bob"):
        opened.create_user(name)
        opened.create_cube_for_user(f"{name}'s", name, cube_id=f"cube-{name}")
    yield opened
    opened.close()


def texts(found: Sequence[Any]) -> list[str]:
    return [one.memory for one in found]


def test_the_quick_start_of_a_system(examples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from loci.compat.memos import MOS, MOSConfig  # memos.mem_os.main, memos.configs.mem_os

    # init MOS
    mos_config = MOSConfig.from_json_file("examples/data/config/simple_memos_config.json")
    memory = MOS(mos_config)

    # create user
    user_id = "b41a34d5-5cae-4b46-8c49-d03794d206f5"
    memory.create_user(user_id=user_id)

    # register cube for user
    memory.register_mem_cube("examples/data/mem_cube_2", user_id=user_id)

    # add memory for user
    memory.add(
        messages=[
            {"role": "user", "content": "I like playing football."},
            {"role": "assistant", "content": "I like playing football too."},
        ],
        user_id=user_id,
    )

    # Later, when you want to retrieve memory for user
    retrieved_memories = memory.search(query="What do you like?", user_id=user_id)
    print(f"text_memories: {retrieved_memories['text_mem']}")

    memory.dump("tmp/my_mem_cube", user_id=user_id)
    memory.load("tmp/my_mem_cube", user_id=user_id)
    shown = capsys.readouterr().out
    assert "football" in shown and set(retrieved_memories) == {"text_mem", "act_mem", "para_mem"}
    [part] = retrieved_memories["text_mem"]
    assert part["cube_id"] == "examples/data/mem_cube_2"
    assert "football" in part["memories"][0].memory
    assert any("Zia" in text for text in texts(part["memories"]))
    memory.close()


def test_the_quick_start_of_a_cube(examples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from loci.compat.memos import GeneralMemCube  # memos.mem_cube.general

    # Initialize a MemCube from a local directory
    mem_cube = GeneralMemCube.init_from_dir("examples/data/mem_cube_2")

    # Access and print all memories
    print("--- Textual Memories ---")
    for item in mem_cube.text_mem.get_all():
        print(item)
    print("\n--- Activation Memories ---")
    for item in mem_cube.act_mem.get_all():
        print(item)

    # Save the MemCube to a new directory
    mem_cube.dump("tmp/mem_cube")
    assert "Zia" in capsys.readouterr().out
    again = GeneralMemCube.init_from_dir("tmp/mem_cube")
    assert again.text_mem.get_all()[0].id == "5a0fbc8e-5fa9-4f8b-9b0c-4c1c9d8c3b11"
    assert again.text_mem.get_all()[0].metadata.tags == ["pets"]


def test_the_workflow_of_users(mos: MOS) -> None:
    guest = mos.create_user(user_id=str(uuid.uuid4()), role=UserRole.GUEST, user_name="Guest")
    assert mos.create_user(user_id="other", user_name="Guest") == guest, "the name is known"
    roles = {user["user_name"]: user["role"] for user in mos.list_users()}
    assert roles == {"root": "root", "ada": "user", "bob": "user", "Guest": "guest"}
    assert mos.share_cube_with_user("cube-ada", "bob")
    mos.add(
        messages=[{"role": "user", "content": "I like tea."}], user_id="bob", mem_cube_id="cube-ada"
    )
    found = mos.search("tea", user_id="ada", install_cube_ids=["cube-ada"])
    assert "tea" in found["text_mem"][0]["memories"][0].memory
    info = mos.get_user_info()
    assert info["role"] == "root" and len(info["accessible_cubes"]) == 2
    assert all(cube["is_loaded"] for cube in info["accessible_cubes"])
    with pytest.raises(ParameterError, match="guest has no cubes"):
        mos.create_cube_for_user("mine", guest)
    mos.share_cube_with_user("cube-ada", guest)
    assert mos.get_all(user_id=guest)["text_mem"][0]["memories"]
    with pytest.raises(ParameterError, match="may only read"):
        mos.add(memory_content="x", user_id=guest)


def test_memories_are_given_changed_and_taken_away(mos: MOS, home: Path) -> None:
    for text in ("Ada works as an engineer", "Ada lives in Bergen"):
        mos.add(memory_content=text, user_id="ada")
    [part] = mos.get_all("cube-ada", "ada")["text_mem"]
    assert texts(part["memories"]) == ["Ada works as an engineer", "Ada lives in Bergen"]
    id = part["memories"][1].memory_id
    fresh = TextualMemoryItem(
        memory="Ada lives in Oslo", metadata={"updated_at": "2024-01-15", "update_reason": "moved"}
    )
    mos.update("cube-ada", id, fresh, user_id="ada")
    kept = mos.get("cube-ada", id, "ada")
    assert kept.memory == "Ada lives in Oslo" and kept.metadata.update_reason == "moved"
    assert kept.created_at is not None
    mos.delete("cube-ada", id, "ada")
    with pytest.raises(NotFoundError):
        mos.get("cube-ada", id, "ada")
    mos.delete_all(user_id="ada")
    assert mos.get_all(user_id="ada")["text_mem"][0]["memories"] == []
    data = b"".join(path.read_bytes() for path in (home / "system").glob("memos.db*"))
    assert b"engineer" not in data


def test_documents_become_memories(mos: MOS, home: Path) -> None:
    folder = home / "docs"
    folder.mkdir()
    (folder / "one.md").write_text("The heating is serviced in March.\n\n" + "word " * 400)
    (folder / "two.pdf").write_bytes(b"%PDF")
    with pytest.warns(UserWarning, match="two.pdf"):
        mos.add(doc_path=str(folder), user_id="ada")
    [part] = mos.search("when is the heating serviced?", "ada", top_k=1)["text_mem"]
    assert "March" in part["memories"][0].memory and part["memories"][0].metadata.source == "file"
    assert all(
        len(text) <= 1000 for text in texts(mos.get_all(user_id="ada")["text_mem"][0]["memories"])
    )
    for path in ("nowhere.txt", str(folder / "two.pdf")):
        with pytest.raises(ParameterError, match="document"):
            mos.add(doc_path=path, user_id="ada")


def test_chat_sees_the_memories_of_the_user_alone(mos: MOS) -> None:
    mos.add(memory_content="Ada is allergic to walnuts", user_id="ada")
    mos.add(memory_content="Bob is allergic to shrimps", user_id="bob")
    assert mos.chat("what am I allergic to?", user_id="ada") == "You said: what am I allergic to?"
    echo = mos.chat_llm
    assert isinstance(echo, Echo)
    assert "walnuts" in echo.asked[0][0]["content"] and "shrimps" not in str(echo.asked)
    mos.chat("and again?", user_id="ada", base_prompt="Be brief. {memories}")
    assert echo.asked[1][0]["content"].startswith("Be brief. What stands between tags is data")
    assert [message["role"] for message in echo.asked[1]] == ["system", "user", "assistant", "user"]
    mos.clear_messages("ada")
    mos.chat("anew", user_id="ada")
    assert len(echo.asked[2]) == 2


def test_a_system_is_there_in_the_next_process(home: Path) -> None:
    first = MOS(folder=home / "s", embedder=None, llm=Echo())
    first.create_user("ada")
    cube = first.create_cube_for_user("mine", "ada")
    first.add(memory_content="Ada likes tea", user_id="ada")
    first.close()
    second = MOS(folder=home / "s", embedder=None, llm=Echo())
    assert texts(second.get_all(cube, "ada")["text_mem"][0]["memories"]) == ["Ada likes tea"]
    assert stat.S_IMODE((home / "s" / "users.json").stat().st_mode) == 0o600
    second.unregister_mem_cube(cube, "ada")
    assert second.search("tea", "ada")["text_mem"] == []
    with pytest.raises(ParameterError, match="no cube"):
        second.add(memory_content="Ada likes coffee", user_id="ada")
    second.register_mem_cube(cube, user_id="ada")
    assert second.search("tea", "ada")["text_mem"]
    second.close()


def test_a_cube_is_moved_by_its_folder(mos: MOS, home: Path) -> None:
    mos.add(messages="I like rowing.", user_id="ada")
    mos.add(memory_content="Ada lives in Oslo", user_id="ada")
    shelf = mos.inner.shelf
    assert shelf is not None
    policy = Policy(scope="memos", owner="cube-ada")
    shelf.put(
        CubeHeader(id="kv-1", kind=MemoryKind.ACTIVATION, policy=policy),
        Payload(texts={"prompt": "Ada lives in Oslo"}),
    )
    mos.dump(str(home / "out"), "ada")
    with pytest.raises(ParameterError, match="new or empty folder"):
        mos.dump(str(home / "out"), "ada")
    other = MOS(
        {"enable_activation_memory": True}, folder=home / "other", embedder=None, llm=Echo()
    )
    other.create_user("eve")
    other.register_mem_cube(str(home / "out"), "eve's", "eve")
    found = other.get_all(user_id="eve")
    assert set(texts(found["text_mem"][0]["memories"])) >= {"Ada lives in Oslo"}
    [act] = found["act_mem"][0]["memories"]
    assert act.id == "kv-1" and act.metadata.policy.owner == "eve's"
    with pytest.raises(MethodError, match="promoted from text"):
        GeneralMemCube(over=(other.inner, "eve's")).act_mem.add([])
    other.close()


def test_a_cube_object_is_registered_as_well(mos: MOS) -> None:
    cube = GeneralMemCube()
    cube.text_mem.add([{"memory": "The meeting is at nine"}])
    mos.register_mem_cube(cube, "team", "ada")
    assert texts(mos.get_all("team", "ada")["text_mem"][0]["memories"]) == [
        "The meeting is at nine"
    ]
    before = mos.registry.path.read_bytes()
    for path, what in (("nowhere", "no folder of this name"), (".", "cannot read")):
        with pytest.raises(ParameterError, match=what):
            mos.register_mem_cube(path, user_id="ada")
    assert mos.registry.path.read_bytes() == before, "what cannot be read changes nothing"
    with pytest.raises(MethodError, match="download its folder"):
        GeneralMemCube.init_from_remote_repo("Ki-Seki/mem_cube_2")


def test_a_folder_of_memos_is_read_but_for_its_pickle(examples: Path) -> None:
    folder = examples / "mem_cube_2"
    (folder / "activation_memory.pickle").write_bytes(b"\x80\x04.")
    with pytest.warns(UserWarning, match="may run any code"):
        cube = GeneralMemCube.init_from_dir(folder)
    assert len(cube.text_mem.get_all()) == 1
    tree = {"nodes": [{"id": "n1", "memory": "A node", "metadata": {}}], "edges": []}
    (folder / "textual_memory.json").write_text(json.dumps(tree))
    (folder / "activation_memory.pickle").unlink()
    assert texts(GeneralMemCube.init_from_dir(folder).text_mem.get_all()) == ["A node"]


def test_what_is_not_known_is_refused_by_name(home: Path, mos: MOS) -> None:
    with pytest.raises(ConfigError, match="did you mean 'top_k'"):
        MOSConfig.of({"top_kk": 3})
    with pytest.raises(ConfigError, match="at least 1"):
        MOSConfig.of({"top_k": 0})
    model = {"backend": "azure", "config": {"model_name_or_path": "gpt"}}
    with pytest.raises(ParameterError, match="not asked here"):
        MOS({"chat_model": model}, folder=home / "x", embedder=None)
    ollama = {"backend": "ollama", "config": {"model_name_or_path": "qwen3:0.6b"}}
    with pytest.warns(UserWarning, match="mem_reader"):
        asked = MOS({"chat_model": ollama, "mem_reader": {}}, folder=home / "y", embedder=None)
    assert isinstance(asked.chat_llm, Endpoint)
    asked.close()
    for call in (
        lambda: mos.add(user_id="ada"),
        lambda: mos.add(messages="a", memory_content="b", user_id="ada"),
        lambda: mos.search("x", "ada", mode="deep"),  # type: ignore[arg-type]
        lambda: mos.search("x", "ada", internet_search=True),
        lambda: mos.search("x", "nobody"),
        lambda: mos.create_cube_for_user("again", "ada", cube_id="cube-ada"),
        lambda: TextualMemoryItem(memory="x", metadata={"visibility": "everybody"}),
        lambda: TextualMemoryItem.from_dict({"text": "x"}),
        lambda: TextualMemoryItem(memory="x", metadata={"confidence": 101}),
    ):
        with pytest.raises(LociError):
            call()
    assert mos.mem_scheduler_on() is False and mos.mem_scheduler_off() is True
    assert mos.mem_reorganizer_on() is True and mos.mem_reorganizer_wait() is True
    assert mos.mem_reorganizer_off() is False


def test_the_simple_way(home: Path) -> None:
    memory = MOS.simple()
    memory.add("My favorite color is blue")
    assert "blue" in str(memory.search("what is the favorite color?"))
    memory.close()


# -- isolation ----------------------------------------------------------------------------------

USERS = ("ada", "bob", "eve", "guest")
CALLS = st.lists(
    st.tuples(
        st.sampled_from(("add", "search", "get", "update", "delete", "dump", "share", "get_all")),
        st.sampled_from(USERS),
        st.sampled_from(USERS),
        st.integers(0, 7),
    ),
    min_size=1,
    max_size=25,
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(calls=CALLS)
def test_nobody_reads_or_writes_what_is_not_shared(
    calls: list[tuple[str, str, str, int]], tmp_path_factory: pytest.TempPathFactory, home: Path
) -> None:
    folder = tmp_path_factory.mktemp("memos")
    mos = MOS(folder=folder / "system", embedder=None, llm=Echo())
    allowed: dict[str, set[str]] = {}
    for name in USERS:
        mos.create_user(name, UserRole.GUEST if name == "guest" else UserRole.USER)
        owner = "ada" if name == "guest" else name
        mos.create_cube_for_user(name, owner, cube_id=name)
        mos.inner.note(f"secret of {name}", user=name)
        allowed[name] = {owner}
    ids = {n: [i.id for i in mos.inner.list(user=n)] for n in USERS}
    for at, (call, who, whose, number) in enumerate(calls):
        may_read = who in allowed[whose]
        may_write = may_read and who != "guest"
        guessed = ids[USERS[number % 4]][0]
        try:
            if call == "add":
                mos.add(memory_content=f"note {at} by {who}", mem_cube_id=whose, user_id=who)
            elif call == "search":
                found = mos.search("secret", who, [whose])
                assert texts(found["text_mem"][0]["memories"]).count(f"secret of {whose}") <= 1
                assert not any(
                    f"secret of {other}" in str(found) for other in USERS if other != whose
                )
            elif call == "get":
                item = mos.get(whose, guessed, who)
                assert guessed in ids[whose] and item.id == guessed
            elif call == "update":
                mos.update(whose, guessed, {"memory": f"secret of {whose}"}, who)
                assert guessed in ids[whose]
            elif call == "delete":
                mos.delete(whose, f"i{number + 90}", who)
                raise AssertionError("an id nobody has was deleted")
            elif call == "dump":
                mos.dump(str(folder / f"out{at}"), who, whose)
            elif call == "share":
                mos.registry.share(whose, who, USERS[number % 4])
                allowed[whose].add(USERS[number % 4])
            else:
                everything = str(mos.get_all(user_id=who))
                for other in USERS:
                    if who not in allowed[other]:
                        assert f"secret of {other}" not in everything
                continue
        except (ParameterError, NotFoundError):
            if call in ("search", "dump"):
                assert not may_read
            elif call in ("add", "share"):
                assert not may_write
            continue
        assert may_read if call in ("search", "get", "dump") else may_write
    mos.close()

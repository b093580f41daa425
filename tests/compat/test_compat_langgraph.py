"""A LangGraph store, held against LangGraph's own."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.store.base import (
    BaseStore,
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchOp,
)
from langgraph.store.memory import InMemoryStore

from loci.compat.langgraph import LociStore
from loci.errors import FingerprintError, ParameterError
from loci.memory import Memory


def embed(texts: Sequence[str]) -> list[list[float]]:
    """Return vectors in which texts that share words point the same way."""
    made = []
    for text in texts:
        vector = [0.01] * 16
        for word in text.lower().split():
            vector[hashlib.blake2b(word.encode(), digest_size=1).digest()[0] % 16] += 1.0
        made.append(vector)
    return made


INDEX = {"embed": embed, "dims": 16}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LociStore]:
    with LociStore(tmp_path / "m.db") as opened:
        yield opened


def plain(found: Any) -> Any:
    """Return a result of either store without its times."""
    if isinstance(found, list):
        return [plain(one) for one in found]
    if found is None or isinstance(found, tuple):
        return found
    score = getattr(found, "score", None)
    return (found.namespace, found.key, found.value, None if score is None else round(score, 5))


# -- the documented quick start, unchanged but for the import --------------------------------------


def test_the_quick_start_of_langgraphs_memory() -> None:
    from loci.compat.langgraph import LociStore as InMemoryStore

    in_memory_store = InMemoryStore()
    user_id = "1"
    namespace_for_memory = (user_id, "memories")
    memory_id = str(uuid.uuid4())
    memory = {"food_preference": "I like pizza"}
    in_memory_store.put(namespace_for_memory, memory_id, memory)
    memories = in_memory_store.search(namespace_for_memory)
    last = memories[-1].dict()
    assert last["value"] == {"food_preference": "I like pizza"}
    assert last["key"] == memory_id and last["namespace"] == ["1", "memories"]
    assert set(last) == {"value", "key", "namespace", "created_at", "updated_at", "score"}
    in_memory_store.close()


def test_the_quick_start_with_semantic_search(tmp_path: Path) -> None:
    from loci.compat.langgraph import LociStore as InMemoryStore

    store = InMemoryStore(
        index={"embed": embed, "dims": 16, "fields": ["food_preference", "$"]},
    )
    namespace = ("1", "memories")
    store.put(namespace, "a", {"food_preference": "I love Italian cuisine", "context": "dinner"})
    store.put(namespace, "b", {"system_info": "Last updated: 2024-01-01"}, index=False)
    store.put(namespace, "c", {"hobby": "chess club"}, index=["hobby"])
    memories = store.search(namespace, query="Italian cuisine", limit=3)
    assert [item.key for item in memories][:1] == ["a"] and memories[0].score > 0.5
    assert memories[-1].key == "b" and memories[-1].score is None
    store.close()


def test_a_graph_reads_and_writes_it(store: LociStore) -> None:
    from langgraph.graph import START, StateGraph

    class State(TypedDict):
        said: str
        known: list[str]

    def remember(state: State, *, store: BaseStore) -> dict[str, Any]:
        store.put(("memories", "ada"), "diet", {"content": state["said"]})
        return {}

    def recall(state: State, *, store: BaseStore) -> dict[str, Any]:
        found = store.search(("memories", "ada"), query="what must not be eaten: nuts?")
        return {"known": [item.value["content"] for item in found]}

    builder = StateGraph(State)
    builder.add_node("remember", remember)
    builder.add_node("recall", recall)
    builder.add_edge(START, "remember")
    builder.add_edge("remember", "recall")
    graph = builder.compile(store=store)
    done = graph.invoke({"said": "Ada is allergic to nuts", "known": []})
    assert done["known"] == ["Ada is allergic to nuts"]


def test_a_graph_with_async_nodes(store: LociStore) -> None:
    from langgraph.graph import START, StateGraph

    class State(TypedDict):
        known: list[str]

    async def both(state: State, *, store: BaseStore) -> dict[str, Any]:
        await store.aput(("memories",), "k", {"content": "Ada keeps bees"})
        found = await store.asearch(("memories",), query="bees")
        one = await store.aget(("memories",), "k")
        await store.adelete(("memories",), "k")
        assert one is not None and await store.aget(("memories",), "k") is None
        assert await store.alist_namespaces() == []
        return {"known": [item.value["content"] for item in found]}

    builder = StateGraph(State)
    builder.add_node("both", both)
    builder.add_edge(START, "both")
    done = asyncio.run(builder.compile(store=store).ainvoke({"known": []}))
    assert done["known"] == ["Ada keeps bees"]


# -- against LangGraph's own -----------------------------------------------------------------------

LABEL = st.sampled_from(["a", "b", "c"])
NAMESPACE = st.lists(LABEL, min_size=1, max_size=3).map(tuple)
KEY = st.sampled_from(["k1", "k2", "k3"])
VALUE = st.fixed_dictionaries(
    {"text": st.sampled_from(["red apple", "green pear", "red pear tree", "blue sky"])},
    optional={
        "n": st.integers(-2, 3),
        # LangGraph's own store cannot embed a text that stands twice in one item.
        "tags": st.lists(st.sampled_from(["red", "blue", "sky"]), max_size=2, unique=True),
        "deep": st.fixed_dictionaries({"x": st.integers(0, 2)}),
    },
)
FILTER = st.sampled_from(
    [
        None,
        {"text": "red apple"},
        {"n": {"$gt": 0}},
        {"n": {"$gte": 0, "$lt": 3}},
        {"n": {"$ne": 1}},
        {"n": {"$eq": 1}},
        {"deep": {"x": 1}},
        {"tags": ["red"]},
        {"missing": None},
        {"tags": ["red"], "n": {"$lte": 2}},
    ]
)
INDEXED = st.sampled_from([None, None, False, ["text"], ["tags[*]"], ["text", "tags[*]"], ["none"]])
STEP = st.one_of(
    st.tuples(st.just("put"), NAMESPACE, KEY, VALUE, INDEXED),
    st.tuples(st.just("delete"), NAMESPACE, KEY),
    st.tuples(st.just("get"), NAMESPACE, KEY),
    st.tuples(st.just("search"), NAMESPACE, FILTER, st.sampled_from([None, "red", "pear tree"])),
    st.tuples(st.just("namespaces"), st.integers(1, 3)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=14), st.booleans())
def test_does_what_langgraphs_own_store_does(steps: list[Any], indexed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        theirs = InMemoryStore(index=INDEX) if indexed else InMemoryStore()  # type: ignore[arg-type]
        ours = LociStore(Path(folder, "m.db"), index=INDEX if indexed else None)  # type: ignore[arg-type]
        with ours:
            for step in steps:
                left, right = (carry_out(store, step, indexed) for store in (ours, theirs))
                assert left == right, step


def carry_out(store: BaseStore, step: Any, indexed: bool) -> Any:
    act, *given = step
    if act == "put":
        namespace, key, value, index = given
        if indexed and not isinstance(store, LociStore):
            # LangGraph's own goes on finding a value by vectors of the one it replaced.
            store.delete(namespace, key)
        store.put(namespace, key, value, index if indexed else None)
        return plain(store.get(namespace, key))
    if act == "delete":
        store.delete(*given)
        return store.get(*given)
    if act == "get":
        return plain(store.get(*given))
    if act == "namespaces":
        if isinstance(store, LociStore):
            return store.list_namespaces(max_depth=given[0])
        # LangGraph's own also lists namespaces that were only asked for.
        return sorted({item.namespace[: given[0]] for item in store.search((), limit=1000)})
    prefix, filters, query = given
    try:
        found = plain(store.search(prefix, filter=filters, query=query, limit=1000))
    except TypeError:  # LangGraph's own store cannot compare a number with what is not there
        found = plain(
            [i for i in store.search(prefix, query=query, limit=1000) if _has(i, filters)]
        )
    if query is None or not indexed:
        return sorted(found, key=repr) if not query else sorted(x[:3] for x in found)
    scores = [one[3] for one in found]
    known = [score for score in scores if score is not None]
    assert known == sorted(known, reverse=True)
    return sorted(found, key=repr)


def _has(item: Any, filters: dict[str, Any]) -> bool:
    with tempfile.TemporaryDirectory() as folder, LociStore(Path(folder, "m.db")) as one:
        one.put(("x",), "k", item.value)
        return bool(one.search(("x",), filter=filters))


def test_pages_go_on_where_the_last_ended(store: LociStore) -> None:
    for number in range(7):
        store.put(("docs",), f"k{number}", {"n": number})
    pages = [store.search(("docs",), limit=3, offset=start) for start in (0, 3, 6)]
    assert [item.value["n"] for page in pages for item in page] == list(range(7))
    assert store.search(("docs",), limit=0) == []


def test_namespaces_by_prefix_suffix_depth_and_page(store: LociStore) -> None:
    for namespace in (("a", "b", "c"), ("a", "b", "d"), ("a", "x"), ("b", "d")):
        store.put(namespace, "k", {"v": 1})
    assert store.list_namespaces(prefix=("a",), max_depth=2) == [("a", "b"), ("a", "x")]
    assert store.list_namespaces(suffix=("d",)) == [("a", "b", "d"), ("b", "d")]
    assert store.list_namespaces(prefix=("a", "*"), suffix=("d",)) == [("a", "b", "d")]
    assert store.list_namespaces(limit=1, offset=1) == [("a", "b", "d")]
    ops = [ListNamespacesOp(match_conditions=(MatchCondition("prefix", ("b",)),))]
    assert store.batch(ops) == [[("b", "d")]]


def test_a_batch_reads_first_and_writes_together(store: LociStore) -> None:
    results = store.batch(
        [
            PutOp(("a",), "k", {"v": 1}),
            GetOp(("a",), "k"),
            PutOp(("a",), "k", {"v": 2}),
            SearchOp(("a",)),
        ]
    )
    assert results == [None, None, None, []]
    assert store.get(("a",), "k").value == {"v": 2}  # type: ignore[union-attr]
    with pytest.raises(ParameterError, match="not JSON"):
        store.batch([PutOp(("a",), "x", {"v": 3}), PutOp(("a",), "y", {"v": object()})])
    assert store.get(("a",), "x") is None, "nothing of a batch that failed"


def test_times_of_an_item(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    from loci.core.clock import ManualClock

    clock = ManualClock(datetime(2026, 6, 1, tzinfo=UTC))
    with LociStore(Memory(tmp_path / "m.db", clock=clock, embedder=None)) as store:
        store.put(("a",), "k", {"v": 1})
        clock.advance(60)
        store.put(("a",), "k", {"v": 2})
        item = store.get(("a",), "k")
        assert item is not None
        assert (item.updated_at - item.created_at).total_seconds() == 60
        store.delete(("a",), "k")
        clock.advance(60)
        store.put(("a",), "k", {"v": 3})
        again = store.get(("a",), "k")
        assert again is not None and again.created_at == again.updated_at == clock.now()


def test_items_stay_are_listed_undone_and_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with LociStore(path) as store:
        store.put(("memories", "ada"), "diet", {"content": "Ada is allergic to walnuts"})
        store.put(("memories", "bob"), "diet", {"content": "Bob eats all"})
    with Memory(path, embedder=None) as memory:
        [note] = memory.list(user="memories.ada")
        assert note.text == "Ada is allergic to walnuts"  # type: ignore[union-attr]
        assert memory.search("walnuts", user="memories.ada")[0].id == note.id
    with LociStore(path) as store:
        assert store.get(("memories", "ada"), "diet") is not None
        store.delete(("memories", "ada"), "diet")
        assert store.search(("memories",)) != [] and store.get(("memories", "ada"), "diet") is None
        store.memory.undo(note.id)
        assert store.get(("memories", "ada"), "diet") is not None
        assert store.forget(("memories", "ada"), "diet").clean
        with pytest.raises(ParameterError, match="no item with this key"):
            store.forget(("memories", "ada"), "diet")
    assert not any(b"walnut" in file.read_bytes() for file in tmp_path.glob("m.db*"))


def test_every_text_of_an_item_goes_with_it(tmp_path: Path) -> None:
    index = {**INDEX, "fields": ["title", "parts[*].text"]}
    with LociStore(tmp_path / "m.db", index=index) as store:  # type: ignore[arg-type]
        parts = [{"text": "walnut cake"}, {"text": "hazelnut cream"}]
        store.put(("docs",), "d", {"title": "recipes", "parts": parts})
        store.put(("docs",), "e", {"title": "walnut trees", "parts": []})
        found = store.search(("docs",), query="hazelnut cream")
        assert found[0].key == "d" and found[0].score > 0.9
        assert len(found) == 2, "one result an item, however many texts it has"
        store.put(("docs",), "d", {"title": "recipes", "parts": parts[:1]})
        assert store.search(("docs",), query="hazelnut cream")[0].score < 0.9
        assert store.forget(("docs",), "d").clean
        left = [item.text for item in store.memory.list(user="docs")]  # type: ignore[union-attr]
        assert left == ["walnut trees"]
    assert not any(b"hazelnut" in file.read_bytes() for file in tmp_path.glob("m.db*"))


def test_an_async_embedding_function(tmp_path: Path) -> None:
    async def aembed(texts: Sequence[str]) -> list[list[float]]:
        await asyncio.sleep(0)
        return embed(texts)

    async def talk() -> list[str]:
        index: Any = {"embed": aembed, "dims": 16, "fields": ["content"]}
        with LociStore(tmp_path / "m.db", index=index) as store:
            await store.aput(("a",), "1", {"content": "red apple"})
            await store.aput(("a",), "2", {"content": "blue sky"})
            return [item.key for item in await store.asearch(("a",), query="blue sky")]

    assert asyncio.run(talk()) == ["2", "1"]


def test_without_an_index_a_query_ranks_by_words(store: LociStore) -> None:
    store.put(("a",), "1", {"content": "The weather is nice"})
    store.put(("a",), "2", {"content": "Ada keeps bees in Ghent"})
    found = store.search(("a",), query="who keeps bees?")
    assert [item.key for item in found] == ["2", "1"]
    assert found[0].score is not None and found[1].score is None


@pytest.mark.parametrize("namespace", [(), ("a", ""), ("a.b",), ("a", 1), ("a\0",)])
def test_namespaces_that_cannot_be_are_refused(store: LociStore, namespace: Any) -> None:
    with pytest.raises(InvalidNamespaceError):
        store.put(namespace, "k", {"v": 1})
    with pytest.raises(InvalidNamespaceError):
        store.batch([PutOp(namespace, "k", {"v": 1})])


def test_what_else_is_refused(store: LociStore, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="a value is a dict"):
        store.put(("a",), "k", ["v"])  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="a key is text"):
        store.batch([PutOp(("a",), "", {"v": 1})])
    with pytest.raises(ParameterError, match="unknown operator"):
        store.put(("a",), "k", {"v": 1})
        store.search(("a",), filter={"v": {"$regex": "x"}})
    with pytest.raises(ParameterError, match="count from 0"):
        store.search(("a",), limit=-1)
    with pytest.raises(NotImplementedError):
        store.put(("a",), "k", {"v": 1}, ttl=5)
    with pytest.raises(ParameterError, match="no operation"):
        store.batch(["get"])  # type: ignore[list-item]
    with pytest.raises(ParameterError, match="an index has"):
        LociStore(tmp_path / "x.db", index={"dims": 3})  # type: ignore[typeddict-item]
    with (
        LociStore(tmp_path / "y.db", index={"embed": embed, "dims": 3}) as narrow,
        pytest.raises(ParameterError, match="of 3 numbers"),
    ):
        narrow.put(("a",), "k", {"v": 1})


def test_another_index_is_refused_for_the_same_file(tmp_path: Path) -> None:
    with LociStore(tmp_path / "m.db", index=INDEX) as store:  # type: ignore[arg-type]
        store.put(("a",), "k", {"content": "red apple"})
    with LociStore(tmp_path / "m.db", index={"embed": embed, "dims": None}) as other:  # type: ignore[typeddict-item]
        with pytest.raises(FingerprintError):
            other.put(("a",), "j", {"content": "blue sky"})
        assert other.get(("a",), "j") is None


def test_namespaces_are_closed_to_each_other(store: LociStore) -> None:
    store.put(("memories", "ada"), "k", {"content": "ada's secret"})
    store.put(("memories", "ad"), "k", {"content": "ad's own"})
    store.put(("memoriesx",), "k", {"content": "elsewhere"})
    assert [i.value["content"] for i in store.search(("memories", "ad"))] == ["ad's own"]
    assert [i.value["content"] for i in store.search(("memories", "ad"), query="secret")] == [
        "ad's own"
    ]
    assert len(store.search(("memories",))) == 2


def test_a_value_is_not_found_by_what_it_replaced(tmp_path: Path) -> None:
    with LociStore(tmp_path / "m.db", index=INDEX) as store:  # type: ignore[arg-type]
        store.put(("b",), "k", {"text": "red apple"})
        assert store.search(("b",), query="red")[0].score is not None
        store.put(("b",), "k", {"text": "green pear"}, index=False)
        (found,) = store.search(("b",), query="red")
        assert found.value == {"text": "green pear"} and found.score is None

"""A LangGraph store in a memory of Loci: items stay after the program ends, and can be forgotten.

    from loci.compat.langgraph import LociStore as InMemoryStore

    store = InMemoryStore(index={"embed": embed, "dims": 384, "fields": ["content"]})
    graph = builder.compile(store=store)

Each namespace is a user of the memory, its labels joined with dots, so `loci memory list --user
memories.ada` shows what is in ("memories", "ada"). `batch` and `abatch` behave like LangGraph's
`InMemoryStore`: reads see what was there before, then all writes happen in one transaction, the
last of two to the same key.

Differs from `InMemoryStore`: without `index`, a query ranks by words and, where Loci's embedder was
pulled, by meaning, instead of being ignored; items of one prefix come in the order they were made;
`created_at` stays when an item is written again, and it is not found by the vectors of the value it
replaced; `delete` keeps the item out of sight, with its history, and `forget` erases it. A store
with an `index` of its own needs a file of its own, as all vectors of a file come from one embedder;
its default is `langgraph.db`. No TTL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any  # JSON values

from loci import config
from loci.core.item import Item as Remembered
from loci.core.item import Scope
from loci.errors import ParameterError, missing_extra
from loci.models.late import default_embedder
from loci.run.memory import Memory
from loci.store.base import Erased
from loci.store.foreign import LANGGRAPH, langgraph_item, langgraph_text
from loci.store.messages import body_text, json_text
from loci.store.rows import ITEM
from loci.store.search import Asked

try:
    from langgraph.store.base import (
        BaseStore,
        GetOp,
        IndexConfig,
        InvalidNamespaceError,
        Item,
        ListNamespacesOp,
        MatchCondition,
        Op,
        PutOp,
        Result,
        SearchItem,
        SearchOp,
        ensure_embeddings,
        get_text_at_path,
        tokenize_path,
    )
except ImportError as problem:  # told with the line that installs it
    raise missing_extra("langgraph", "langgraph") from problem

if TYPE_CHECKING:
    from loci.store.vectors import Floats

Namespace = tuple[str, ...]
Key = tuple[Namespace, str]
_PART = "langgraph-part"  # further texts of one item, each with a vector of its own
_OPERATORS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte")


class LociStore(BaseStore):
    """A `BaseStore` over a memory file, a database URL, or an open `Memory`.

    Args:
        memory: where items are kept; None is the configured memory file, or with an index
            `langgraph.db` beside it.
        index: as LangGraph has it: "embed", "dims" and "fields".
        tenant: whose namespaces, where one file has several.
    """

    def __init__(
        self,
        memory: str | Path | Memory | None = None,
        *,
        index: IndexConfig | None = None,
        tenant: str = "local",
    ) -> None:
        self.index_config = index
        self._index = None if index is None else _Index(index)
        if isinstance(memory, Memory):
            self.memory = memory
        else:
            settings = config.load()
            url = settings.memory_file if memory is None else memory
            if memory is None and "://" not in str(url):
                file = Path(url).expanduser()
                file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                url = file if index is None else file.with_name("langgraph.db")
            embedder = default_embedder(settings.models_dir) if index is None else None
            self.memory = Memory(url, embedder=embedder, tenant=tenant, tz=settings.timezone)

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations: all reads, then all writes in one transaction."""
        given = _checked(ops)
        asked, texts = self._to_embed(given)
        vectors: dict[str, Floats] = {}
        if self._index is not None:
            vectors = self._index.embed(asked, texts)
        return self._carry_out(given, vectors)

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Do the same in a thread, after texts were embedded as the index does it with `async`."""
        given = _checked(ops)
        asked, texts = self._to_embed(given)
        vectors: dict[str, Floats] = {}
        if self._index is not None:
            vectors = await self._index.aembed(asked, texts)
        return await asyncio.to_thread(self._carry_out, given, vectors)

    def forget(self, namespace: Namespace, key: str, *, dry_run: bool = False) -> Erased:
        """Erase an item, its older versions and its vectors, down to the bytes."""
        scope = self._scope(namespace)
        found = self.memory.store.by_origin(scope, [_origin(key)])
        if not found:
            raise ParameterError("there is no item with this key", value=(namespace, key))
        id = found[_origin(key)]
        return self.memory.forget(id, user=scope.user, dry_run=dry_run)

    def close(self) -> None:
        """Close the memory; closing twice is fine."""
        self.memory.close()

    def __enter__(self) -> LociStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _carry_out(self, ops: Sequence[Op], vectors: Mapping[str, Floats]) -> list[Result]:
        results: list[Result] = []
        puts: dict[Key, PutOp] = {}
        for op in ops:
            if isinstance(op, GetOp):
                results.append(self._get(op))
            elif isinstance(op, SearchOp):
                results.append(self._search(op, vectors))
            elif isinstance(op, ListNamespacesOp):
                results.append(self._namespaces(op))
            else:
                puts[op.namespace, op.key] = op
                results.append(None)
        if puts:
            with self.memory.store.together():
                for (namespace, key), put in puts.items():
                    self._put(namespace, key, put, vectors)
        return results

    def _get(self, op: GetOp) -> Item | None:
        _, found = self._known(op.namespace, op.key)
        return None if found is None or not found.is_live else _item(found)

    def _put(
        self, namespace: Namespace, key: str, put: PutOp, vectors: Mapping[str, Floats]
    ) -> None:
        scope, before = self._known(namespace, key)
        store, now = self.memory.store, self.memory.clock.now()
        for part in self._parts(scope, key) if before is not None else ():
            self._retire(scope, part, now)
        if put.value is None:
            if before is not None and before.is_live:
                self._retire(scope, before, now)
            return
        if not isinstance(put.value, Mapping):
            raise ParameterError("a value is a dict", value=put.value)
        json_text(put.value, "the value")
        texts = self._texts(put)
        text = "\n".join(texts) or langgraph_text(put.value)
        is_new = before is None or not before.is_live
        created = now if before is None or is_new else before.recorded_at or now
        item = langgraph_item(namespace, key, put.value, body_text(text, "the item"), created, now)
        about = {**item.metadata[LANGGRAPH], "indexed": bool(texts)}
        item = replace(item, metadata={LANGGRAPH: about})
        if before is None:
            kept = store.change(scope, item, "add", "", now, origin=_origin(key))
        else:
            kept = store.change(scope, replace(item, id=before.id), "edit", "", now)
        if self._index is None:
            return
        entries = [(kept.id, texts[0])] if texts else []
        for number, more in enumerate(texts[1:], 1):
            entries.append((self._put_part(scope, kept, key, number, more, now), more))
        owner = store.owner(scope) or 0
        for id, embedded in entries:
            vector = vectors[embedded].reshape(1, -1)
            store.put_vectors([(ITEM, int(id[1:]), owner)], vector, self._index.fingerprint)

    def _put_part(
        self, scope: Scope, of: Remembered, key: str, number: int, text: str, now: datetime
    ) -> str:
        """Keep a further text of an item as a note that its erasure takes along; returns its id."""
        origin = f"{_PART}:{number}:{key}"
        store = self.memory.store
        made = Remembered(
            id=store.by_origin(scope, [origin]).get(origin, ""),
            text=body_text(text, "the item"),
            kind="note",
            recorded_at=now,
            made_by=LANGGRAPH,
            metadata={_PART: {"of": of.id, "key": key}},
        )
        action = "edit" if made.id else "add"
        return store.change(
            scope, made, action, "", now, origin="" if made.id else origin, derived_from=of.id
        ).id

    def _parts(self, scope: Scope, key: str) -> list[Remembered]:
        if self._index is None:
            return []
        found = self.memory.list(
            user=scope.user, kinds="note", filters={f"metadata.{_PART}.key": key}, limit=1000
        )
        return [part for part in found if isinstance(part, Remembered)]

    def _retire(self, scope: Scope, item: Remembered, now: datetime) -> None:
        after = replace(item, retired_at=now, valid_to=now)
        self.memory.store.change(scope, after, "retire", "deleted", now)

    def _search(self, op: SearchOp, vectors: Mapping[str, Floats]) -> list[SearchItem]:
        _check_page(op.limit, op.offset)
        now = self.memory.clock.now()
        found = [
            item
            for user in self._users(op.namespace_prefix)
            for item in self._all(user)
            if _starts(item, op.namespace_prefix) and _passes(_value(item), op.filter)
        ]
        found.sort(key=lambda item: (item.recorded_at or now, int(item.id[1:])))
        scores: dict[str, float] = {}
        if op.query:
            for user in {_user(_namespace(item)) for item in found}:
                scores |= self._scores(user, op.query, vectors)
            # What no vector or word speaks for fills up behind, as LangGraph has it.
            found.sort(key=lambda item: -scores.get(item.id, float("-inf")))
        page = found[op.offset : op.offset + op.limit]
        return [_search_item(item, scores.get(item.id)) for item in page]

    def _scores(self, user: str, query: str, vectors: Mapping[str, Floats]) -> dict[str, float]:
        """Return {item: score} of a namespace; the best of its texts counts."""
        store, scope = self.memory.store, Scope(tenant=self.memory.tenant, user=user)
        if self._index is None:
            hits = self.memory.search(query, user=user, kinds="note", limit=1000)
            return {hit.id: 1 / (1 + exp(-hit.score)) for hit in hits}
        view = store.view(scope, self.memory.clock.now(), embed=lambda _: vectors[_asked(query)])
        count = store.counts(scope)["items"]
        near = view.search_dense(query, max(count, 1), "item")
        items = view.items([id for id, _ in near])
        scores: dict[str, float] = {}
        for id, cosine in near:
            part = items[id].metadata.get(_PART)
            about = items[id].metadata.get(LANGGRAPH)
            whole = part["of"] if part else id if about and about.get("indexed", True) else None
            if whole is not None:
                scores[whole] = max(cosine, scores.get(whole, cosine))
        return scores

    def _namespaces(self, op: ListNamespacesOp) -> list[Namespace]:
        _check_page(op.limit, op.offset)
        found: set[Namespace] = set()
        for user in self.memory.users():
            here = {_namespace(item) for item in self._all(user)}
            found |= {
                namespace[: op.max_depth]
                for namespace in here
                if all(_matches(condition, namespace) for condition in op.match_conditions or ())
            }
        return sorted(found)[op.offset : op.offset + op.limit]

    def _users(self, prefix: Namespace) -> list[str]:
        name = _user(prefix)
        return [
            user
            for user in self.memory.users()
            if not name or user == name or user.startswith(f"{name}.")
        ]

    def _all(self, user: str) -> Iterator[Remembered]:
        """Yield the live items of a namespace, page by page."""
        asked = Asked(filters={f"metadata.{LANGGRAPH}.key": {"exists": True}})
        scope = Scope(tenant=self.memory.tenant, user=user)
        view = self.memory.store.view(scope, self.memory.clock.now(), asked=asked)
        start, page = 0, 1000
        while ids := view.listed("item", page, start):
            yield from view.items(ids).values()
            start += page

    def _known(self, namespace: Namespace, key: str) -> tuple[Scope, Remembered | None]:
        scope = self._scope(namespace)
        id = self.memory.store.by_origin(scope, [_origin(key)]).get(_origin(key))
        if id is None:
            return scope, None
        view = self.memory.store.view(scope, self.memory.clock.now())
        return scope, view.item(id)

    def _scope(self, namespace: Namespace) -> Scope:
        return Scope(tenant=self.memory.tenant, user=_user(namespace))

    def _to_embed(self, ops: Sequence[Op]) -> tuple[list[str], list[str]]:
        """Return the questions and the texts of operations, each once."""
        if self._index is None:
            return [], []
        asked = [op.query for op in ops if isinstance(op, SearchOp) and op.query]
        texts = [text for op in ops if isinstance(op, PutOp) for text in self._texts(op)]
        return list(dict.fromkeys(asked)), list(dict.fromkeys(texts))

    def _texts(self, put: PutOp) -> list[str]:
        if put.value is None or put.index is False or self._index is None:
            return []
        paths = self._index.paths if put.index is None else _paths(put.index)
        found = [text for path in paths for text in get_text_at_path(put.value, path)]
        return [text for text in dict.fromkeys(found) if text.strip()]


@dataclass
class _Index:
    """The embedding function of a store, and which fields it is given."""

    config: IndexConfig
    fingerprint: str = ""
    paths: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        unknown = set(self.config) - {"dims", "embed", "fields"}
        if unknown or not self.config.get("embed"):
            raise ParameterError(
                "an index has an embedding function",
                value=dict(self.config),
                allowed='{"embed": ..., "dims": ..., "fields": [...]}',
            )
        self.embeddings = ensure_embeddings(self.config["embed"])
        self.paths = _paths(self.config.get("fields") or ["$"])
        embed = self.config["embed"]
        name = embed if isinstance(embed, str) else type(self.embeddings).__qualname__
        self.fingerprint = f"langgraph:{name}:{self.config.get('dims')}"

    def embed(self, asked: Sequence[str], texts: Sequence[str]) -> dict[str, Floats]:
        """Return the vectors of texts, and of questions under names of their own."""
        made = self.embeddings.embed_documents(list(texts)) if texts else []
        found = self._checked(texts, made)
        questions = [self.embeddings.embed_query(query) for query in asked]
        return found | self._checked([_asked(query) for query in asked], questions)

    async def aembed(self, asked: Sequence[str], texts: Sequence[str]) -> dict[str, Floats]:
        """Do the same with the function's own `async`, where it has one."""
        made = await self.embeddings.aembed_documents(list(texts)) if texts else []
        found = self._checked(texts, made)
        questions = [await self.embeddings.aembed_query(query) for query in asked]
        return found | self._checked([_asked(query) for query in asked], questions)

    def _checked(self, names: Sequence[str], made: Sequence[Any]) -> dict[str, Floats]:
        import numpy as np

        vectors = [np.asarray(vector, np.float32).reshape(-1) for vector in made]
        width = self.config.get("dims")
        if len(vectors) != len(names) or any(width and len(v) != width for v in vectors):
            raise ParameterError(
                "the embedding function returned something else than one vector a text",
                value=[len(vector) for vector in vectors],
                allowed=f"{len(names)} of {width} numbers",
            )
        return dict(zip(names, vectors, strict=True))


def _checked(ops: Iterable[Op]) -> list[Op]:
    given = list(ops)
    for op in given:
        if isinstance(op, (GetOp, PutOp)):
            _check_labels(op.namespace)
            if not op.namespace:
                raise InvalidNamespaceError("a namespace has at least one label; got ()")
            if not isinstance(op.key, str) or not op.key:
                raise ParameterError("a key is text that is not empty", value=op.key)
        elif isinstance(op, SearchOp):
            _check_labels(op.namespace_prefix)
        elif isinstance(op, ListNamespacesOp):
            for condition in op.match_conditions or ():
                _check_labels(condition.path)
        else:
            raise ParameterError(
                "this is no operation of a store",
                value=op,
                allowed="GetOp, PutOp, SearchOp, ListNamespacesOp",
            )
    return given


def _check_labels(namespace: Sequence[Any]) -> None:
    for label in namespace:
        if not isinstance(label, str) or not label or "." in label or "\0" in label:
            raise InvalidNamespaceError(
                f"a label of a namespace is text without dots that is not empty; got {label!r} in "
                f"{tuple(namespace)!r}"
            )


def _check_page(limit: int, offset: int) -> None:
    if limit < 0 or offset < 0:
        raise ParameterError("limit and offset count from 0", value=(limit, offset))


def _asked(query: str) -> str:
    """Return the name of a question's vector: the same text may be embedded otherwise when kept."""
    return f"\0query\0{query}"


def _paths(fields: Sequence[str]) -> list[Any]:
    return [path if path == "$" else tokenize_path(path) for path in fields]


def _origin(key: str) -> str:
    return f"{LANGGRAPH}:{key}"


def _user(namespace: Namespace) -> str:
    return ".".join(namespace)


def _namespace(item: Remembered) -> Namespace:
    return tuple(item.metadata[LANGGRAPH]["namespace"])


def _value(item: Remembered) -> dict[str, Any]:
    value: dict[str, Any] = item.metadata[LANGGRAPH]["value"]
    return value


def _starts(item: Remembered, prefix: Namespace) -> bool:
    return _namespace(item)[: len(prefix)] == tuple(prefix)


def _times(item: Remembered) -> dict[str, Any]:
    return {
        "created_at": item.recorded_at,
        "updated_at": datetime.fromisoformat(item.metadata[LANGGRAPH]["updated_at"]),
    }


def _item(item: Remembered) -> Item:
    key = item.metadata[LANGGRAPH]["key"]
    return Item(value=_value(item), key=key, namespace=_namespace(item), **_times(item))


def _search_item(item: Remembered, score: float | None) -> SearchItem:
    key = item.metadata[LANGGRAPH]["key"]
    return SearchItem(_namespace(item), key, _value(item), score=score, **_times(item))


def _matches(condition: MatchCondition, namespace: Namespace) -> bool:
    path = tuple(condition.path)
    if len(namespace) < len(path):
        return False
    if condition.match_type == "prefix":
        part = namespace[: len(path)]
    elif condition.match_type == "suffix":
        part = namespace[len(namespace) - len(path) :]
    else:
        raise ParameterError(
            "unknown match type", value=condition.match_type, allowed="prefix, suffix"
        )
    return all(wanted in ("*", label) for wanted, label in zip(path, part, strict=True))


def _passes(value: Mapping[str, Any], filters: Mapping[str, Any] | None) -> bool:
    return all(_equals(value.get(key), wanted) for key, wanted in (filters or {}).items())


def _equals(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        if any(str(key).startswith("$") for key in wanted):
            return all(_compares(value, str(key), other) for key, other in wanted.items())
        if not isinstance(value, Mapping):
            return False
        return all(_equals(value.get(key), other) for key, other in wanted.items())
    if isinstance(wanted, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(wanted):
            return False
        return all(_equals(one, other) for one, other in zip(value, wanted, strict=True))
    return bool(value == wanted)


def _compares(value: Any, operator: str, wanted: Any) -> bool:
    if operator not in _OPERATORS:
        raise ParameterError(
            "a filter uses an unknown operator", value=operator, allowed=", ".join(_OPERATORS)
        )
    if operator in ("$eq", "$ne"):
        return bool(value == wanted) == (operator == "$eq")
    try:
        left, right = float(value), float(wanted)
    except (TypeError, ValueError):
        return False
    order: dict[str, Callable[[float, float], bool]] = {
        "$gt": float.__gt__,
        "$gte": float.__ge__,
        "$lt": float.__lt__,
        "$lte": float.__le__,
    }
    return order[operator](left, right)

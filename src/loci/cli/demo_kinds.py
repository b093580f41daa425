"""The demo's last step: what is known becomes keys and values, and is forgotten everywhere.

All facts of the conversation become a cube of text, and the cube keys and values. The same question
is asked three times: with the facts as text, with the cube, and with the cube in a session that was
opened before, so that what loading costs can be told from what reading costs. Then one fact is
forgotten, and every file beside the memory is searched for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any  # what is printed as JSON

from loci import api
from loci.core.cube import Caller
from loci.core.item import Item
from loci.units import format_bytes

CONTEXT, NEW_TOKENS = 2048, 24
Progress = Callable[[str, int, int], None]


def show(file: Path, dram: str, asked: Mapping[str, Any], report: Progress) -> dict[str, Any]:
    """Promote what a memory knows of its user, ask, forget, and return what came of it.

    Args:
        asked: the user, and what to forget: a word of the fact.
    """
    from loci.run import promote
    from loci.run.memory import Memory

    user, question = asked["user"], asked["forget"]["question"]
    report("promoting what is known", 0, 4)
    with Memory(file) as memory:
        assert memory.shelf is not None, "a memory in a file has a shelf beside it"
        cube = promote.from_memory(memory, user=user)
        as_text = memory.shelf.path(cube.id).stat().st_size
        facts = sum(isinstance(one, Item) for one in memory.list(user=user, limit=10_000))
        plan = api.plan("smollm2", dram=dram, context=CONTEXT, new_tokens=NEW_TOKENS, kv="")
        text = _answer(plan, file, cube.id, user, question)
        report("promoting what is known", 1, 4)
        with api.open(plan) as session:
            promoted = promote.promote(session, memory.shelf, cube.id, caller=Caller(user=user))
        report("promoting what is known", 2, 4)
        keys = _answer(plan, file, cube.id, user, question)
        report("forgetting", 3, 4)
        target = next(
            one
            for one in memory.list(user=user, limit=10_000)
            if isinstance(one, Item) and asked["forget"]["word"] in one.text.lower()
        )
        erased = memory.forget(target.id)
    report("forgetting", 4, 4)
    return {
        "question": question,
        "facts": facts,
        "tokens": promoted.tokens,
        "text_bytes": as_text,
        "kv_bytes": promoted.nbytes,
        "text": text,
        "keys": keys,
        "same_answer": text["answer"] == keys["answer"],
        "forgotten": {
            "text": target.text,
            "items": len(erased.items),
            "turns": len(erased.turns) + len(erased.cut),
            "cubes": len(erased.cubes),
            "files": len(erased.found),
            "found": sum(erased.found.values()),
            "clean": erased.clean,
        },
    }


def told(found: Mapping[str, Any]) -> str:
    """Return the step as lines to print."""
    text, keys, gone = found["text"], found["keys"], found["forgotten"]
    answer = " ".join(keys["answer"].split())
    return "\n".join(
        [
            (
                f"The {found['facts']} facts are {found['tokens']:,} tokens: "
                f"{format_bytes(found['text_bytes'])} as text, "
                f"{format_bytes(found['kv_bytes'])} as keys and values."
            ),
            f"Asked: {found['question']}",
            (
                f"  first word after {text['first_token_s']:.2f} s where the text is read, "
                f"{keys['first_token_s']:.2f} s with the keys and values "
                f"({keys['first_token_s'] / text['first_token_s']:.2f} of it; loading them took "
                f"{max(0.0, keys['open_s'] - text['open_s']):.2f} s)"
            ),
            f"  {'the same answer' if found['same_answer'] else 'another answer'}: {answer}",
            f'Forgotten: "{gone["text"]}"',
            (
                f"  {gone['items']} items, sentences of {gone['turns']} turns and {gone['cubes']} "
                f"cube went with it; {gone['files']} files were searched, and it was found "
                f"{gone['found']} times."
            ),
        ]
    )


def _answer(plan: Any, file: Path, cube: str, user: str, question: str) -> dict[str, Any]:
    began = time.perf_counter()
    with api.open(plan, memory=file, cubes=[cube], user=user) as session:
        opened = time.perf_counter() - began
        words = "".join(session.generate(question, max_tokens=NEW_TOKENS)).strip()
        stats = session.stats
        return {
            "answer": words,
            "open_s": opened,
            "first_token_s": stats.first_token_s,
            "reused_tokens": stats.reused_tokens,
        }

"""A book: do people stay who they are over many times the context?

Six people have four traits each, in files. Twelve chapters ask for paragraphs that open with a
trait. The same model writes all prose. L2MAC's control unit shows it the file of who is asked for;
the rival is one conversation that begins with all files and whose oldest messages go when it is
full. A paragraph is right or wrong by the first value of the trait that it names; who names none is
neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast  # figures are JSON values

from loci.bench.cards import Row
from loci.bench.stats import mean, paired_difference
from loci.bench.suite import Context, count_of, refuse_unknown
from loci.core.ports import Llm
from loci.errors import MethodError
from loci.methods import catalogue
from loci.methods.recall.base import Tools
from loci.methods.recall.l2mac import L2mac
from loci.run import engine
from loci.run.llm import LocalLlm
from loci.testing.agents import DictRecords
from loci.testing.novelist import PARAGRAPH, Novelist, Story, asked, make_story, told

ABOUT = "a book of ten contexts: facts contradicted by a control unit and by one conversation"
KINDS = ("recall",)
METHODS: tuple[str, ...] = ()  # runs by its own name alone: it needs a language model
DEFAULT = ("l2mac",)
LIMIT, RESERVE = 1024, 220  # tokens
CHAPTERS, QUICK_CHAPTERS = 12, 2
BOOKS = 1
_OPTIONS = ("books", "chapters")


def run(context: Context) -> dict[str, Any]:
    """Return how often facts are told right and wrong, by the method and in one conversation."""
    from loci.plan import plan

    refuse_unknown(context.options, _OPTIONS)
    (found,) = catalogue.parse_chain((context.methods or DEFAULT)[0], "recall")
    method = replace(cast(L2mac, found), context=LIMIT, reserve=RESERVE, retries=60)
    books = count_of(context.options, "books", BOOKS)
    chapters = count_of(context.options, "chapters", QUICK_CHAPTERS if context.quick else CHAPTERS)
    made = plan(
        context.model,
        context=LIMIT,
        new_tokens=RESERVE,
        kv="",
        folder=context.folder,
        cache=context.folder,
    )
    texts: dict[str, list[list[str]]] = {"this": [], "rival": []}
    stories = [make_story(context.seed + n, chapters=chapters) for n in range(books)]
    with engine.open(made, folder=context.folder) as session:
        llm = LocalLlm(session)
        for number, story in enumerate(stories):
            context.progress("books", number, books)
            texts["this"].append(written(method, story, llm))
            texts["rival"].append(conversation(story, llm, LIMIT, RESERVE))
        words = sum(llm.count_tokens(text) for text in texts["this"][0])
    judged = {name: judge(stories, found) for name, found in texts.items()}
    return {
        "method": str(method),
        "model": context.model,
        "seeds": [context.seed, context.seed + books - 1],
        "books": books,
        "paragraphs": sum(len(chapter) for story in stories for chapter in story.chapters),
        "contexts_written": words / LIMIT,
        **judged,
        "difference": paired_difference(
            judged["this"].pop("right_each"), judged["rival"].pop("right_each")
        ).to_json(),
    }


def written(method: L2mac, story: Story, llm: Llm) -> list[str]:
    """Return the paragraphs of a book that the control unit had written."""
    tools = Tools(records=DictRecords(), llm=Novelist(llm))
    outcome = method.act(story.job(), tools)
    if outcome.status != "done":
        raise MethodError(
            f"the book of {len(story.chapters)} chapters was not finished: {outcome.why}",
            way_out="--option chapters=12: the names of all files stand in every prompt",
        )
    files = outcome.output["files"]
    return [
        line
        for number in range(1, len(story.chapters) + 1)
        for line in files.get(f"chapter_{number}.md", "").splitlines()
    ]


def conversation(story: Story, llm: Llm, limit: int, reserve: int) -> list[str]:
    """Return the paragraphs that one conversation writes, whose oldest messages go."""
    talk = [{"role": "user", "content": "\n".join(story.facts(name) for name in story.people)}]
    found = []
    for chapter in story.chapters:
        for name, trait in chapter:
            talk.append({"role": "user", "content": asked(name, trait)})
            while sum(llm.count_tokens(m["content"]) + 8 for m in talk) > limit - reserve:
                del talk[0]
            reply = " ".join(llm.generate(talk, max_tokens=PARAGRAPH).split()) or "(nothing)"
            talk.append({"role": "assistant", "content": reply})
            found.append(reply)
    return found


def judge(stories: Sequence[Story], books: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the share of paragraphs that are right, and contradictions in a thousand words."""
    verdicts: list[str] = []
    words = 0
    for story, texts in zip(stories, books, strict=True):
        wanted = [pair for chapter in story.chapters for pair in chapter]
        for (name, trait), text in zip(wanted, texts, strict=True):
            verdicts.append(told(text, story.people[name][trait], trait))
            words += len(text.split())
    right = [float(verdict == "right") for verdict in verdicts]
    return {
        "right": mean(right).to_json(),
        "right_each": right,
        "unclear": verdicts.count("unclear") / len(verdicts),
        "contradicted_per_1000_words": 1000 * verdicts.count("wrong") / max(words, 1),
        "words": words,
    }


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return paragraphs that are right, and facts contradicted."""
    this, rival = result["this"], result["rival"]
    metrics: dict[str, dict[str, Any]] = {
        "paragraphs_right": {
            "this": this["right"]["value"],
            "rivals": {"one conversation": rival["right"]["value"]},
        },
        "contradicted_per_1000_words": {
            "this": this["contradicted_per_1000_words"],
            "rivals": {"one conversation": rival["contradicted_per_1000_words"]},
        },
        "contexts_written": {"this": result["contexts_written"]},
    }
    return [
        Row(
            method=result["method"],
            kind="recall",
            metrics=metrics,
            interval={"paragraphs_right": (this["right"]["low"], this["right"]["high"])},
            seeds=tuple(result["seeds"]),
        )
    ]

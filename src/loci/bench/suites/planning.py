"""Planning: does a task tree follow people who change their minds, and keep the prompt short?

Scripts of 8 to 30 turns (`testing.plans`) end in a state a simulator knows. The rival is linear
history: the transcript as it is, which a small model reads for questions, and a table in which what
is said last overwrites what was said before. Wordings come in three kinds: the documented ones,
those that rules were written against, and those held out. Both of the last were written by the same
hand, and halved by a seed.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, cast  # figures are JSON values

from loci.bench.cards import Row
from loci.bench.stats import mean, paired_difference
from loci.bench.suite import Context
from loci.core.agent import Job
from loci.errors import ParameterError
from loci.methods import catalogue
from loci.methods.recall._tme_read import Clarify, read
from loci.methods.recall._tme_tree import Tree
from loci.methods.recall.base import Tools
from loci.methods.recall.tme import Tme
from loci.testing.agents import DictRecords
from loci.testing.plans import Script, Words, make_script
from loci.text.stem import fold

if TYPE_CHECKING:
    from loci.run.engine import Session

ABOUT = "does a task tree follow people who change their minds, with a short prompt? synthetic"
KINDS = ("recall",)
METHODS = ("tme",)
DEFAULT = ("tme",)
WORDS: tuple[Words, ...] = ("canonical", "written", "held_out")
SCRIPTS, QUICK_SCRIPTS = 500, 12
ASKED, QUICK_ASKED = 120, 0
FIRST_SEED = 10_000  # scripts below were looked at while rules were written
LENGTHS = (10, 20, 30)
_OPTIONS = ("scripts", "asked")
_ASK = "{given}\n\nAnswer with the value only, no sentence. Question: {question}\nShort answer:"


class Latest:
    """Linear history as a table: the value named last stands, whatever was said before it."""

    def __init__(self, slots: Sequence[str]) -> None:
        self.tree = Tree()
        for slot in slots:
            self.tree.apply({"op": "create", "slot": slot})

    def hear(self, text: str) -> str | None:
        """Take in one instruction; return the answer if it was a question."""
        ops = read(text, self.tree)
        if isinstance(ops, Clarify):
            return None
        for op in ops:
            node = self.tree.nodes[self.tree.key(op["slot"])]
            if op["op"] == "check":
                return str(node["value"])
            value = op.get("value", op.get("to"))
            if value is not None:
                node["value"], node["status"] = value, "done"
            elif op["op"] == "remove":
                node["status"] = "removed"
            elif op["op"] == "restore":
                node["status"] = "done"
        return None

    def state(self) -> dict[str, tuple[str | None, str]]:
        """Return {slot: (value, status)}."""
        return {n["slot"]: (n["value"], n["status"]) for n in self.tree.nodes.values()}


def follow(method: Tme, script: Script) -> dict[str, list[float]]:
    """Return, for one script, what was right: the last state, answers, and those of the table.

    An instruction that is asked about counts as heard and not understood; the script goes on.
    """
    tools = Tools(records=DictRecords())
    method.act(Job(inputs={"plan": [{"slot": slot} for slot in script.slots]}), tools)
    table = Latest(script.slots)
    answers: list[float] = []
    table_answers: list[float] = []
    state: Mapping[str, Any] = {}
    for said in script.turns:
        done = method.act(Job(goal=said.text), tools)
        state = done.output["state"]
        told = table.hear(said.text)
        if said.answer is not None:
            given = " ".join(done.output["answers"]) if done.status == "done" else ""
            answers.append(float(fold(said.answer) in fold(given)))
            table_answers.append(float(told is not None and fold(said.answer) == fold(told)))
    ours = {n: (_low(v["value"]), v["status"], v["stale"]) for n, v in state.items()}
    gold = {n: (_low(v), status, stale) for n, (v, status, stale) in script.state.items()}
    theirs = {n: (_low(v), status) for n, (v, status) in table.state().items()}
    return {
        "state": [float(ours == gold)],
        "table_state": [float(theirs == {n: entry[:2] for n, entry in gold.items()})],
        "answers": answers,
        "table_answers": table_answers,
    }


def run(context: Context) -> dict[str, Any]:
    """Return figures of the method and of linear history on the same scripts."""
    for name in context.options:
        if name not in _OPTIONS:
            raise ParameterError("no such option", value=name, allowed=", ".join(_OPTIONS))
    (method,) = catalogue.parse_chain((context.methods or DEFAULT)[0], "recall")
    tme = cast(Tme, method)
    count = int(context.options.get("scripts", QUICK_SCRIPTS if context.quick else SCRIPTS))
    asked = int(context.options.get("asked", QUICK_ASKED if context.quick else ASKED))
    seeds = range(FIRST_SEED + context.seed, FIRST_SEED + context.seed + count)
    words: dict[str, Any] = {}
    for number, kind in enumerate(WORDS):
        context.progress("scripts", number, len(WORDS))
        found: dict[str, list[float]] = defaultdict(list)
        for seed in seeds:
            for name, values in follow(tme, make_script(seed, words=kind)).items():
                found[name] += values
        words[kind] = {name: mean(values).to_json() for name, values in found.items()}
        words[kind]["state_over_table"] = paired_difference(
            found["state"], found["table_state"]
        ).to_json()
    context.progress("scripts", len(WORDS), len(WORDS))
    result: dict[str, Any] = {
        "method": str(tme),
        "scripts": count,
        "seeds": [seeds[0], seeds[-1]],
        "words": words,
        "tokens": prompt_tokens(tme, seeds[: min(count, 100)], _tokenizer(context)),
    }
    if asked:
        with tempfile.TemporaryDirectory() as cache:
            from loci.bench.answers import open_session

            with open_session(context.model, context.folder, 2048, Path(cache)) as session:
                result |= {
                    "model": context.model,
                    "asked": asked,
                    "reading": reading(tme, session, asked, context),
                }
    return result


def prompt_tokens(tme: Tme, seeds: Sequence[int], count: Any) -> dict[str, dict[str, float]]:
    """Return mean tokens of the path's prompt and of the transcript, at several lengths."""
    sizes: dict[str, dict[str, float]] = {}
    for length in LENGTHS:
        path, flat = [], []
        for seed in seeds:
            script = make_script(seed, turns=length)
            prompts = _prompts(tme, script, len(script.turns) - 1)
            path.append(float(count(prompts["path"])))
            flat.append(float(count(prompts["transcript"])))
        ratio = mean([a / b for a, b in zip(path, flat, strict=True)])
        sizes[str(length)] = {
            "path": mean(path).value,
            "transcript": mean(flat).value,
            "ratio": ratio.value,
        }
    return sizes


def reading(tme: Tme, session: Session, count: int, context: Context) -> dict[str, Any]:
    """Return how often a small model answers questions about the plan from each prompt."""
    cases = []
    for seed in range(FIRST_SEED + context.seed, FIRST_SEED + context.seed + 4 * count):
        script = make_script(seed, turns=20)
        at = [n for n, said in enumerate(script.turns) if said.kind == "check" and n >= 10]
        if at:
            cases.append((script, Random(seed).choice(at)))
    cases = cases[:count]
    right: dict[str, list[float]] = {"path": [], "transcript": []}
    for done, (script, turn) in enumerate(cases):
        context.progress("questions read by the model", done, len(cases))
        said = script.turns[turn]
        for name, given in _prompts(tme, script, turn, asked=False).items():
            content = _ASK.format(given=given, question=said.text)
            pieces = session.generate(
                [{"role": "user", "content": content}], max_tokens=24, stop=("\n",)
            )
            right[name].append(float(_says("".join(pieces), said.answer or "", script)))
    ratio = sum(right["path"]) / max(sum(right["transcript"]), 1.0)
    return {
        **{name: mean(values).to_json() for name, values in right.items()},
        "ratio": ratio,
        "difference": paired_difference(right["path"], right["transcript"]).to_json(),
        "questions": len(cases),
    }


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return states and answers that are right, tokens, and what a small model reads."""
    words = result["words"]
    metrics: dict[str, dict[str, Any]] = {}
    interval = {}
    for kind in WORDS:
        found = words[kind]
        for what in ("state", "answers"):
            name = f"{what}_right_{kind}"
            metrics[name] = {
                "this": found[what]["value"],
                "rivals": {"last word stands": found[f"table_{what}"]["value"]},
            }
            interval[name] = (found[what]["low"], found[what]["high"])
    for length, sizes in result["tokens"].items():
        metrics[f"prompt_tokens_at_turn_{length}"] = {
            "this": sizes["path"],
            "rivals": {"transcript": sizes["transcript"]},
        }
    if "reading" in result:
        read_by = result["reading"]
        metrics["answers_right_by_the_model"] = {
            "this": read_by["path"]["value"],
            "rivals": {"transcript": read_by["transcript"]["value"]},
        }
        interval["answers_right_by_the_model"] = (read_by["path"]["low"], read_by["path"]["high"])
    return [
        Row(
            method=result["method"],
            kind="recall",
            metrics=metrics,
            interval=interval,
            seeds=tuple(result["seeds"]),
            ratio={"prompt_tokens_at_turn_20": result["tokens"]["20"]["ratio"]},
        )
    ]


# -- private ----------------------------------------------------------------------------------


def _prompts(tme: Tme, script: Script, turn: int, *, asked: bool = True) -> dict[str, str]:
    """Return the prompt of the active path at a turn, and the transcript until then.

    Args:
        asked: whether the words of the turn itself are in both.
    """
    plan = [{"slot": slot} for slot in script.slots]
    tools = Tools(records=DictRecords())
    goal = "\n".join(said.text for said in script.turns[: turn + 1])
    done = tme.act(Job(goal=goal, inputs={"plan": plan}), tools)
    fields = f"A plan has these fields: {', '.join(script.slots)}."
    path = str(done.output["prompt"])
    if not asked:
        path = path.rpartition("\nSaid: ")[0]
    talk = "\n".join(f"User: {said.text}" for said in script.turns[: turn + asked])
    return {"path": path, "transcript": f"{fields}\n{talk}"}


def _says(reply: str, answer: str, script: Script) -> bool:
    """Return whether a reply has the right value and none of the others that were ever said."""
    low, wanted = fold(reply), _bare(answer)
    others = {_bare(said.value) for said in script.turns if said.value} - {wanted}
    named = [other for other in others if re.search(rf"(?<!\w){re.escape(other)}(?!\w)", low)]
    return wanted in low and all(other in wanted for other in named)


def _bare(value: str) -> str:
    """Return a value without its article: a model says "a" where a person said "the"."""
    return re.sub(r"^(the|a|an|my) ", "", fold(value))


def _low(value: object) -> str | None:
    return None if value is None else fold(str(value))


def _tokenizer(context: Context) -> Any:
    """Return what counts the tokens of the model's vocabulary."""
    from loci.models.load import resolve
    from loci.models.tokenizer import Tokenizer

    with resolve(context.model, context.folder) as pack:
        return Tokenizer(pack.folder).count

"""`loci demo`: the whole idea on real input, in a few minutes.

A plan for the default model far below its size in float32; a conversation over several months that
is remembered; everything closed; a new process that answers questions about it; and the accounts.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any  # the shipped files are JSON

import click

from loci import api, config
from loci.cli import demo_kinds
from loci.cli.output import as_json_option, emit, note, progress, say
from loci.core.item import Item
from loci.errors import FormatError, LociError
from loci.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from loci.core.item import Hit
    from loci.plan.solve import Plan
    from loci.run.engine import Session
    from loci.text.answer import Answer

DRAM, CONTEXT, NEW_TOKENS = "160MiB", 2048, 40
KINDS_DRAM = "256MiB"  # for keys and values as they are
SHOWN = 3  # memories printed per question
SHOWN_FACTS = 8
SIGNS = 3  # of why a memory was found, the strongest
WIDTH = 92  # letters of a memory that are printed
GIVEN = 6  # memories the model is given per question


@click.command()
@click.option("--dram", default=DRAM, show_default=True, help="The budget of memory.")
@click.option(
    "--no-model", is_flag=True, help="Only remember and recall; do not run the language model."
)
@click.option(
    "--ask",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    hidden=True,
    help="Answer the questions from this memory file; the second process of the demo.",
)
@as_json_option
def command(dram: str, no_model: bool, file: Path | None, as_json: bool) -> None:
    """Show the whole idea: a budget, a memory, a restart, and the accounts."""
    if file is not None:
        emit(_answer_all(file, dram, no_model))
        return
    began = time.perf_counter()
    dialogue = _shipped("demo_dialogue.json", "loci-dialogue")
    plan = api.plan("smollm2", dram=dram, context=CONTEXT, new_tokens=NEW_TOKENS)
    float32 = plan.spec.elements() * 4
    _head(1, "A plan", as_json)
    _tell(
        f"{plan.model} has {plan.spec.elements() / 1e6:.0f} million numbers: "
        f"{format_bytes(float32)} in float32. The budget is {dram}.\n\n{plan}",
        as_json,
    )
    with tempfile.TemporaryDirectory(prefix="loci-demo-") as folder:
        path = Path(folder) / "memory.db"
        _head(2, "A conversation, remembered", as_json)
        remembered, facts = _remember(dialogue, path)
        _tell(_told(dialogue, remembered, facts[:SHOWN_FACTS]), as_json)
        _head(3, "Everything is closed; a new process is asked", as_json)
        answers = _second_process(path, dram, no_model)
    _tell(_LEGEND, as_json)
    for index, row in enumerate(answers["questions"], 1):
        _tell(_question(index, row), as_json)
    _head(4, "The accounts", as_json)
    _tell(_accounts(answers, float32), as_json)
    if "kinds" in answers:
        _head(5, "Text becomes keys and values; then something is forgotten", as_json)
        _tell(demo_kinds.told(answers["kinds"]), as_json)
    _head(6 if "kinds" in answers else 5, "What to type next", as_json)
    _tell(_next(), as_json)
    answers |= {"plan": plan.to_json(), "remembered": remembered}
    answers["seconds"] = time.perf_counter() - began
    if as_json:
        emit(answers)
    else:
        say(f"\nThe demo took {format_seconds(answers['seconds'])}.")


# -- the first process ------------------------------------------------------------------------


def _remember(dialogue: Mapping[str, Any], path: Path) -> tuple[dict[str, int], list[str]]:
    """Return how much was remembered, and the facts that were drawn, in order."""
    from loci.run.memory import Memory

    turns = 0
    with Memory(path) as memory, progress() as report:
        for index, session in enumerate(dialogue["sessions"], 1):
            memory.add(
                session["turns"],
                user=dialogue["user"],
                session=session["id"],
                time=session["time"],
            )
            turns += len(session["turns"])
            report("remembering", index, len(dialogue["sessions"]))
        counts = memory.counts(user=dialogue["user"])
        items = memory.list(user=dialogue["user"], kinds="fact", limit=1000)
    facts = [item.text for item in reversed(items) if isinstance(item, Item)]
    return {"sessions": len(dialogue["sessions"]), "turns": turns, **counts}, facts


def _second_process(path: Path, dram: str, no_model: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "loci", "demo", "--ask", str(path), "--dram", dram]
    if no_model:
        command.append("--no-model")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise LociError("the second process of the demo failed", value=done.returncode)
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


# -- the second process -----------------------------------------------------------------------


def _answer_all(file: Path, dram: str, no_model: bool) -> dict[str, Any]:
    from loci.models.late import default_embedder
    from loci.run.memory import Memory

    asked = _shipped("demo_questions.json", "loci-questions")
    embedder = default_embedder(config.load().models_dir)
    with Memory(file, embedder=embedder) as memory, progress() as report:
        # All of them first: what the embedder takes is then no part of the model's account.
        found = []
        for index, question in enumerate(asked["questions"], 1):
            text, user = question["question"], asked["user"]
            said = memory.answer(text, user=user, now=asked["time"])
            found.append((said, memory.search(text, user=user, limit=GIVEN)))
            report("remembering what was said", index, len(asked["questions"]))
        if no_model:
            rows = _ask(asked, found, None, report)
            return {"questions": rows, "right": _count(rows)}
        plan = api.plan("smollm2", dram=dram, context=CONTEXT, new_tokens=NEW_TOKENS)
        with api.open(plan) as session:
            rows = _ask(asked, found, session, report)
            accounts = session.report()
        accounts.pop("plan")
        beside = _unbudgeted(plan, asked["questions"][0]["question"], report)
        kinds = demo_kinds.show(file, KINDS_DRAM, asked, report)
    return {
        "questions": rows,
        "right": _count(rows),
        "run": accounts,
        "unbudgeted": beside,
        "kinds": kinds,
    }


def _ask(
    asked: Mapping[str, Any],
    found: Sequence[tuple[Answer, Sequence[Hit]]],
    session: Session | None,
    report: Any,
) -> list[dict[str, Any]]:
    rows = []
    for index, (question, (said, hits)) in enumerate(
        zip(asked["questions"], found, strict=True), 1
    ):
        row: dict[str, Any] = {
            "question": question["question"],
            "expected": question["answer"],
            "memories": [_memory(hit, said) for hit in _in_use(hits, said)],
            "extractive": {
                "answer": said.text,
                "why": said.why,
                "confidence": round(said.confidence, 2),
                "right": _is_right(said.text, question),
            },
        }
        if session is not None:
            text = _model_answer(session, question["question"], hits)
            speed = session.stats.tokens_per_s
            row["model"] = {"answer": text, "right": _is_right(text, question)}
            row["model"]["tokens_per_s"] = speed
        rows.append(row)
        report("answering", index, len(asked["questions"]))
    return rows


def _in_use(hits: Sequence[Hit], said: Answer) -> list[Hit]:
    """Return the memories the answer rests on, then the best of the others."""
    return [*said.memories, *(hit for hit in hits if hit.id not in said.hits)][:SHOWN]


def _memory(hit: Hit, said: Answer) -> dict[str, Any]:
    used = hit.id in said.hits
    inside = any(said.told in source.content for source in hit.sources)
    return {
        "text": hit.text,
        "shown": said.told if used and inside else hit.text,
        "used": used,
        "why": {name: round(part, 3) for name, part in hit.why.items()},
        "from": [source.metadata.get("ref", source.id) for source in hit.sources],
        "said": [source.time.date().isoformat() for source in hit.sources],
    }


def _model_answer(session: Session, question: str, hits: Sequence[Hit]) -> str:
    from loci.run.engine import NOTES
    from loci.text.quote import listed

    notes = []
    for hit in hits[:GIVEN]:
        day = f" ({hit.sources[0].time.date().isoformat()})" if hit.sources else ""
        notes.append(f"{hit.text}{day}")
    content = NOTES.format(notes=listed("notes", notes))
    content += f"Answer in one short sentence. {question}"
    messages = [{"role": "user", "content": content}]
    return "".join(session.generate(messages, max_tokens=NEW_TOKENS)).strip()


def _unbudgeted(plan: Plan, question: str, report: Any) -> dict[str, Any]:
    """Run the same model with nothing spared, for speed and for the loss of the budget."""
    from loci.bench import texts
    from loci.bench.suites import reference
    from loci.models.load import resolve
    from loci.run.lab import Lab

    full = api.plan("smollm2", dram="1GiB", context=CONTEXT, new_tokens=NEW_TOKENS, kv="")
    with api.open(full) as session:
        text = "".join(session.generate(question, max_tokens=NEW_TOKENS))
        speed, held = session.stats.tokens_per_s, session.measured_bytes()["dram"]
    report("measuring the loss", 0, 2)
    lossless = not plan.kv and plan.kv_dtype == "float32"
    loss = 0.0
    if not lossless:
        pack = resolve("smollm2", config.load().models_dir)
        lab = Lab(pack, context=reference.PROMPT + reference.REST)
        try:
            ids = reference.pieces_of(lab, 1, "dev")[0]
            whole, _ = reference.log_probs(lab, ids)
            report("measuring the loss", 1, 2)
            chain, dtype = reference.chain_of(plan.kv or reference.HALF)
            spared, _ = reference.log_probs(
                lab, ids, chain, dtype=dtype, budget_bytes=plan.kv_budget_bytes
            )
            loss = reference.kl(whole, spared)
        finally:
            lab.close()
            pack.close()
    report("measuring the loss", 2, 2)
    return {
        "answer": text.strip(),
        "tokens_per_s": speed,
        "bytes": held,
        "kl": loss,
        "scored_tokens": reference.REST,
        "text": texts.digest(texts.prose()),
    }


# -- what is printed --------------------------------------------------------------------------


def _told(dialogue: Mapping[str, Any], remembered: Mapping[str, int], facts: Sequence[str]) -> str:
    lines = []
    for session in dialogue["sessions"]:
        first = session["turns"][0]
        lines.append(f"  {session['time'][:10]}  {first['name']}: {_short(first['content'])}")
    counted = ", ".join(f"{count} {what}" for what, count in remembered.items())
    lines.append(f"\nRemembered: {counted}. Every turn is kept; facts are drawn beside them:")
    lines += [f"  - {_short(fact)}" for fact in facts]
    return "\n".join(lines)


def _question(index: int, row: Mapping[str, Any]) -> str:
    lines = [f"\n{index}. {row['question']}"]
    for memory in row["memories"]:
        signs = sorted(memory["why"].items(), key=lambda sign: -sign[1])[:SIGNS]
        why = ", ".join(f"{name} {part:.1f}" for name, part in signs if part > 0)
        mark = ">" if memory["used"] else " "
        said = f"{memory['said'][0]}, turn {memory['from'][0]}; " if memory["said"] else ""
        shown = _short(memory["shown"], 2 * WIDTH if memory["used"] else WIDTH)
        lines.append(f"   {mark} {shown}\n       ({said}{why})")
    read = row["extractive"]
    lines.append(f"   read:       {read['answer'] or '-'}  {_verdict(row, 'extractive')}")
    if "model" in row:
        answer = " ".join(row["model"]["answer"].split())
        lines.append(f"   the model:  {answer}  {_verdict(row, 'model')}")
    if not row["extractive"]["right"]:
        lines.append(f"   expected:   {row['expected']}")
    return "\n".join(lines)


def _short(text: str, most: int = WIDTH) -> str:
    """Return a text on one line, cut between two words where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0].rstrip(" ,.;:") + " ..."


def _verdict(row: Mapping[str, Any], who: str) -> str:
    return "(right)" if row[who]["right"] else "(wrong)"


def _accounts(answers: Mapping[str, Any], float32: int) -> str:
    right, count = answers["right"], len(answers["questions"])
    lines = [f"Right, read from the memories without a model: {right['extractive']} of {count}."]
    if "run" not in answers:
        return lines[0]
    run, full = answers["run"], answers["unbudgeted"]
    predicted, measured = run["bytes"]["predicted"]["dram"], run["bytes"]["measured"]["dram"]
    speeds = sorted(row["model"]["tokens_per_s"] for row in answers["questions"])
    speed = speeds[len(speeds) // 2]
    lines += [
        f"Right by the model, given those memories: {right['model']} of {count}.",
        (
            f"Bytes: predicted {format_bytes(predicted)}, measured {format_bytes(measured)} "
            f"({(measured / predicted - 1) * 100:+.1f} %); float32 weights alone would be "
            f"{format_bytes(float32)}."
        ),
        f"Python and its libraries: {format_bytes(run['runtime_bytes'])}, not in the budget.",
        (
            f"Speed: {speed:.1f} tokens a second; unbudgeted {full['tokens_per_s']:.1f} in "
            f"{format_bytes(full['bytes'])}."
        ),
        (
            f"Loss: {full['kl']:.5f} nats per token against the unbudgeted model "
            f"({full['scored_tokens']} tokens)."
        ),
    ]
    return "\n".join(lines)


def _next() -> str:
    return "\n".join(
        [
            '  loci run smollm2 "What is the capital of France?" --dram 60MiB --disk 1GiB',
            "  loci chat smollm2 --dram 256MiB --memory ada.db",
            '  loci memory add "I am allergic to nuts" --file ada.db',
            '  loci memory search "what must I not eat?" --file ada.db',
            "  loci methods",
        ]
    )


_LEGEND = (
    "Under each question stand the memories that were found: what was said, when, and which signs\n"
    "of the search spoke for it. The answer rests on those marked with >. It is read from them by\n"
    "rules; the small model is given the same memories."
)


def _head(number: int, title: str, as_json: bool) -> None:
    text = f"\n{number}. {title}\n{'-' * (len(title) + 3)}"
    if as_json:
        note(text)
    else:
        say(text)


def _tell(text: str, as_json: bool) -> None:
    if not as_json:
        say(text)


# -- right or wrong ---------------------------------------------------------------------------


def _is_right(text: str, question: Mapping[str, Any]) -> bool:
    """Whether the answer holds one of the accepted forms as whole words, and no refused one."""
    said = _plain(text)
    if any(f" {_plain(bad).strip()} " in said for bad in question.get("reject", ())):
        return False
    return any(f" {_plain(good).strip()} " in said for good in question["accept"])


def _plain(text: str) -> str:
    return " " + " ".join(re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))) + " "


def _count(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {
        who: sum(row[who]["right"] for row in rows)
        for who in ("extractive", "model")
        if rows and who in rows[0]
    }


def _shipped(name: str, form: str) -> dict[str, Any]:
    text = (resources.files("loci.cli") / name).read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    if data.get("format") != form or data.get("version") != 1:
        raise FormatError(f"{name} is not what it should be", value=data.get("format"))
    return data

"""Governance: is a harmful change caught, a harmless one let through, and can one check it?

Three parts. `loop`: an edit of the model's weights, and the same ten times too large, go through
gates and canary; the harmful one is admitted with weak gates on purpose. `chance`: changes that
change nothing. `card`: the minimal evaluation card of a memory over synthetic conversations, side
by side in three regimes, and with the small model as the reader, what it says from its weights
alone, from turns that were found, and from the last N tokens (proposition D of the survey).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast  # figures are JSON values

from loci.bench import evaluation, governing
from loci.bench.cards import Row
from loci.bench.metrics import wilson
from loci.bench.suite import Context, count_of, refuse_unknown, words_of
from loci.errors import ParameterError
from loci.methods import catalogue
from loci.methods.recall.base import Govern

ABOUT = "is a harmful change of memory caught, a harmless one let through, and can it be checked?"
KINDS = ("recall",)
METHODS = ("dmm_gov",)
DEFAULT = ("dmm_gov",)
PARTS = ("loop", "chance", "card", "reading")
_Figures = tuple[dict[str, dict[str, Any]], dict[str, tuple[float, float]]]
_OPTIONS = ("parts", "runs", "aa", "dialogues", "asked")


def run(context: Context) -> dict[str, Any]:
    """Return figures of the parts that are asked for."""
    refuse_unknown(context.options, _OPTIONS)
    parts = words_of(context.options, "parts", PARTS[:3] if context.quick else PARTS)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ParameterError("no such part", value=unknown, allowed=", ".join(PARTS))
    (found,) = catalogue.parse_chain((context.methods or DEFAULT)[0], "recall")
    method = cast(Govern, found)
    seed, progress = context.seed, context.progress
    result: dict[str, Any] = {"method": str(method), "parts": list(parts), "seed": seed}
    if {"loop", "chance"} & set(parts):
        from loci.models.load import resolve

        with resolve(context.model, context.folder) as pack:
            asked = governing.Asked(pack, seed)
            result |= {"model": context.model, "fingerprint": pack.spec.fingerprint}
            if "loop" in parts:
                solved = governing.edited(pack)
                runs = count_of(context.options, "runs", 3 if context.quick else 20)
                result["loop"] = governing.loop(
                    asked, solved, method, runs=runs, seed=seed, progress=progress
                )
                result["certificate"] = governing.certified(asked, solved, method, seed=seed)
            if "chance" in parts:
                runs = count_of(context.options, "aa", 10 if context.quick else 200)
                result["chance"] = governing.chance(
                    asked, method, runs=runs, seed=seed, progress=progress
                )
    count = count_of(context.options, "dialogues", 2 if context.quick else 20)
    if "card" in parts:
        result["card"] = evaluation.measured(count, seed, progress)
    if "reading" in parts:
        asked_count = count_of(context.options, "asked", 40)
        result["model"] = context.model
        result["reading"] = evaluation.reading(context, count, asked_count)
    return result


def sheet(result: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the evaluation card, and what readers make of the same evidence, as tables."""
    tables = []
    if "card" in result:
        rows = [
            [
                panel["metric"],
                panel["regime"],
                str(panel["n"]),
                f"{panel['value']:.3f}",
                f"{panel['low']:.3f}-{panel['high']:.3f}",
            ]
            for panel in result["card"]["panels"]
        ]
        tables.append(("evaluation card", ["metric", "regime", "n", "value", "95 %"], rows))
    if "reading" in result:
        rows = [
            [name, f"{one['tokens']:.0f}", f"{one['right']['value']:.3f}"]
            for name, one in result["reading"]["given"].items()
        ]
        tables.append(("answers of the model", ["given", "tokens", "right"], rows))
    return tables


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return a row for each part: what was caught, false alarms, forgeries, the card's panels."""
    found = {
        "loop": _loop_row,
        "chance": _chance_row,
        "card": _panel_row,
        "reading": _reading_row,
    }
    rows = []
    for part in result["parts"]:
        metrics, interval = found[part](result)
        rows.append(
            Row(
                method=result["method"],
                kind="recall",
                part=part,
                metrics=metrics,
                interval=interval,
                seeds=(result["seed"],),
            )
        )
    return rows


def _loop_row(result: Mapping[str, Any]) -> _Figures:
    loop, proof = result["loop"], result["certificate"]
    caught, runs = loop["harmful"]["within"], loop["harmful"]["runs"]
    forged = list(proof["forgeries"].values())
    metrics: dict[str, dict[str, Any]] = {
        "harmful_caught_within_500": {"this": caught / runs},
        "harmful_requests_until_caught": {"this": loop["harmful"]["requests_mean"]},
        "harmful_requests_at_most": {"this": loop["harmful"]["requests_most"]},
        "harmful_admitted_by_the_weak_gate": {"this": float(_passed(loop["weak_harmful"]))},
        "harmful_refused_by_the_strict_gates": {"this": float(not _passed(loop["strict_harmful"]))},
        "solved_edit_refused_by_the_strict_gates": {
            "this": float(not _passed(loop["strict_solved"]))
        },
        "solved_edit_taken_back_by_the_canary": {
            "this": loop["solved"]["taken_back"] / loop["solved"]["runs"]
        },
        "requests_right": {
            "full": loop["right"]["plain"],
            "this": loop["right"]["solved"],
            "rivals": {"ten times the edit": loop["right"]["harmful"]},
        },
        "new_answer_comes_first": {
            "this": loop["exact"]["solved"],
            "rivals": {"ten times the edit": loop["exact"]["harmful"]},
        },
        "rollback_bit_exact": {"this": float(proof["rollback_exact"])},
        "forgeries_found": {"this": sum(forged) / len(forged)},
    }
    return metrics, {"harmful_caught_within_500": wilson(caught, runs)}


def _chance_row(result: Mapping[str, Any]) -> _Figures:
    alarms, runs = result["chance"]["alarms"], result["chance"]["runs"]
    return {"false_alarms": {"this": alarms / runs}}, {"false_alarms": wilson(alarms, runs)}


def _panel_row(result: Mapping[str, Any]) -> _Figures:
    panels = result["card"]["panels"]
    names = [f"{panel['metric'].replace(', ', '_').replace(' ', '_')}" for panel in panels]
    keys = [f"{name}_{p['regime']}" for name, p in zip(names, panels, strict=True)]
    return (
        {key: {"this": panel["value"]} for key, panel in zip(keys, panels, strict=True)},
        {key: (panel["low"], panel["high"]) for key, panel in zip(keys, panels, strict=True)},
    )


def _reading_row(result: Mapping[str, Any]) -> _Figures:
    told = result["reading"]
    best = told["given"][told["best"]]
    others = {name: one for name, one in told["given"].items() if name != told["best"]}
    metrics: dict[str, dict[str, Any]] = {
        "answers_right_by_the_model": {
            "this": best["right"]["value"],
            "rivals": {name: one["right"]["value"] for name, one in others.items()},
        },
        "tokens_read": {
            "this": best["tokens"],
            "rivals": {name: one["tokens"] for name, one in others.items()},
        },
    }
    right = best["right"]
    return metrics, {"answers_right_by_the_model": (right["low"], right["high"])}


def _passed(gate: Mapping[str, Any]) -> bool:
    return bool(gate["verdict"] == "pass")

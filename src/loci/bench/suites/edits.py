"""Edits of facts: are they said, in other words too, and does everything else stay?

Made-up facts take the place of what the model really says (capitals, languages, symbols, ...). One
at a time: ROME and MEND, beside fine-tuning of the same matrix within a box. Fifty at once: MEMIT,
beside the sum of ROME's single edits; and SERAC's list, beside the fact in the prompt, where the
right fact is always told. Measured are

    efficacy     the target is what the model says, token by token; "likelier" asks for less
    paraphrase   the same in two other wordings
    locality     five facts about other subjects of the same relation are said as before

their harmonic mean, KL and perplexity on text that has nothing to do with it, seconds, bytes, and
whether a model whose patch was taken away is the same bit for bit. Layers and weights were chosen
on facts that are not reported on.

--data FILE is the text that C is averaged over, in place of what the model writes itself (a folder
holds none).

Options: cases=50 (at once), singles=50 (of them, one at a time), steps (MEND's training).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from statistics import harmonic_mean
from typing import Any  # figures are JSON values

import torch
from torch import Tensor

from loci.bench import texts
from loci.bench.cards import Row
from loci.bench.edit_rivals import constrained_tuning
from loci.bench.editing import (
    Case,
    Score,
    asked,
    cases,
    drift,
    likelihoods,
    relations,
    scored,
    scores,
)
from loci.bench.stats import mean
from loci.bench.suite import Context, count_of, refuse_unknown
from loci.core.method import Method
from loci.errors import NotFoundError, ParameterError
from loci.methods import catalogue
from loci.methods.train.base import Edit, Fact
from loci.methods.train.memit import Memit
from loci.methods.train.mend import Mend
from loci.methods.train.rome import Rome
from loci.methods.train.serac import Serac
from loci.models.load import resolve
from loci.models.pack import Pack
from loci.nn.patch import Patch, joined
from loci.run import artefacts
from loci.run.edit_model import PackModel
from loci.run.edit_training import Triple, scope_of, train_mend
from loci.run.edits import edit
from loci.run.key_moments import covariance, prepare_covariance
from loci.run.lab import Lab
from loci.run.patched import with_patch
from loci.run.runner import Runner

ABOUT = "edited facts: said, said in other words, and everything else as before; beside fine-tuning"
KINDS = ("train",)
METHODS = ("rome", "memit", "mend", "serac")
DEFAULT = METHODS
CASES, QUICK_CASES = 50, 4
QUICK_STEPS = 20
TEXTS, CHARACTERS = 4, 600  # unrelated text: pieces of prose, and the letters of each
NO_CAP = 1e9  # what weights move is reported here, not limited
_OPTIONS = ("cases", "singles", "steps")


def run(context: Context) -> dict[str, Any]:
    """Return the figures of every editor and its rivals on the same facts."""
    refuse_unknown(context.options, _OPTIONS)
    count = count_of(context.options, "cases", QUICK_CASES if context.quick else CASES)
    singles = min(count, count_of(context.options, "singles", count))
    chosen = [catalogue.find(text, "train") for text in context.methods or DEFAULT]
    strangers = [str(method) for method in chosen if method.about.name not in METHODS]
    if strangers:
        raise ParameterError("this suite edits facts", value=strangers, allowed=", ".join(METHODS))
    if "steps" in context.options or context.quick:
        steps = count_of(context.options, "steps", QUICK_STEPS)
        chosen = [replace(one, steps=steps) if isinstance(one, Mend) else one for one in chosen]
    pack = resolve(context.model, context.folder)
    model = PackModel(pack)
    context.progress("asking what the model knows", 0, 1)
    _, tested = cases(model, count, context.seed)
    bench = _Bench(context, pack, model, tested, singles)
    result: dict[str, Any] = {
        "model": pack.spec.name,
        "fingerprint": pack.spec.fingerprint,
        "seeds": [context.seed],
        "cases": count,
        "singles": singles,
        "text": bench.text,
        # Figures over another text are measurements of their own.
        "covariance_text": bench.covariance_text,
        "facts": [{"fact": case.fact.text, "truth": case.truth} for case in tested],
        "methods": {},
    }
    ways: dict[type[Method], Callable[[Any], dict[str, Any]]] = {
        Rome: bench.rome,
        Memit: bench.memit,
        Mend: bench.mend,
        Serac: bench.serac,
    }
    # One edit at a time comes first: its patches are a rival of many at once.
    for method in sorted(chosen, key=lambda one: list(ways).index(type(one))):
        result["methods"][str(method)] = ways[type(method)](method)
    return result


class _Bench:
    """One model, its cases, and what several methods share."""

    def __init__(
        self, context: Context, pack: Pack, model: PackModel, tested: Sequence[Case], singles: int
    ) -> None:
        self.context, self.pack, self.model, self.tested = context, pack, model, tested
        self.singles = tested[:singles]
        pieces = texts.slices(texts.prose(), TEXTS, CHARACTERS, "test")
        self.text = texts.digest("\n".join(pieces))
        self.ids = [torch.tensor(model.row(piece)[0]) for piece in pieces]
        data = context.data
        self.covariance_text = "" if data is None or data.is_dir() else data.name
        self._full: list[Tensor] = []
        self._patches: list[Patch] = []
        self._told_once: dict[int, dict[str, Any]] = {}

    def _prepare(self, layers: Sequence[int]) -> None:
        """Average keys over the person's own text where there is one."""
        data = self.context.data
        source = None if data is None or data.is_dir() else data.read_text("utf-8")
        prepare_covariance(self.pack, layers, source=source, progress=self.context.progress)

    def rome(self, method: Rome) -> dict[str, Any]:
        """Return figures of one edit at a time, beside fine-tuning of the same matrix."""
        self._prepare([method.layer])
        found = self._one_by_one(method)
        tuned, seconds, kl = [], [], []
        for done, case in enumerate(self.singles):
            self.context.progress("constrained fine-tuning", done, len(self.singles))
            began = time.perf_counter()
            patch = constrained_tuning(self.model, case.fact, method.layer)
            seconds.append(time.perf_counter() - began)
            tuned += scores(self.model, [case], patch)
            kl.append(self._drift(patch, 1)["kl"])
        rival = _summary(tuned) | {"seconds": _middle(seconds), "kl": _middle(kl)}
        found["rivals"] = {"tuning": rival, "prompt": self._told(self.singles)}
        found["over_tuning"] = found["harmonic"] / max(rival["harmonic"], 1e-9)
        found["covariance_tokens"] = covariance(self.pack, method.layer).facts["tokens"]
        return found

    def mend(self, method: Mend) -> dict[str, Any]:
        """Return figures of one edit at a time by a network trained on other relations."""
        path = artefacts.path_of(self.pack.folder, method, self.pack.spec.fingerprint)
        began = time.perf_counter()
        try:
            made = artefacts.load(path, method=str(method), fingerprint=self.pack.spec.fingerprint)
        except NotFoundError:
            made = train_mend(self.model, triples(), method, progress=self.context.progress)
            artefacts.save(made, path)
        seconds = time.perf_counter() - began
        return self._one_by_one(method) | {"training": dict(made.facts), "training_s": seconds}

    def memit(self, method: Memit) -> dict[str, Any]:
        """Return figures of all facts at once, beside the sum of ROME's single edits."""
        self._prepare(method.layers)
        self.context.progress("many facts at once", 0, 1)
        facts = [case.fact for case in self.tested]
        made = edit(self.pack, facts, method, model=self.model, cap=NO_CAP)
        found = _summary(scores(self.model, self.tested, made.patch))
        found |= self._drift(made.patch) | {
            "facts": len(facts),
            "seconds": made.report["seconds"] / len(facts),
            "bytes": made.patch.nbytes,
            "moved": max(made.report["moved"].values()),
            "undone": undone(self.pack, made.patch),
            "rivals": {"prompt": self._told(self.tested)},
        }
        if len(self._patches) == len(self.tested):
            summed = joined(self._patches)
            rival = _summary(scores(self.model, self.tested, summed)) | self._drift(summed)
            found["rivals"]["rome_sum"] = rival
        return found

    def serac(self, method: Serac) -> dict[str, Any]:
        """Return figures of a list of all facts, beside the right fact in every prompt."""
        from loci.models.embed import MiniLM

        self.context.progress("a list of facts", 0, 1)
        embedder = MiniLM(self.context.folder / "minilm")
        began = time.perf_counter()
        scope = scope_of(embedder, method, self.context.folder / "minilm")
        learned = time.perf_counter() - began
        facts = [case.fact for case in self.tested]

        def answers(questions: Sequence[Fact]) -> list[tuple[bool, float]]:
            prompts = list(dict.fromkeys(question.prompt for question in questions))
            hits = method.scope(prompts, facts, embedder, scope)
            given = {
                prompt: prompt if hit is None else method.prompt(prompt, facts[hit.index])
                for prompt, hit in zip(prompts, hits, strict=True)
            }
            return likelihoods(self.model, questions, prompt=lambda fact: given[fact.prompt])

        began = time.perf_counter()
        method.scope([self.tested[0].fact.prompt], facts, embedder, scope)
        asked_s = time.perf_counter() - began
        pieces = texts.slices(texts.prose(), 50, 200, "test")
        hits = method.scope(pieces, facts, embedder, scope)
        return _summary(scored(self.tested, answers)) | {
            "facts": len(facts),
            "seconds": asked_s,
            "training_s": learned,
            "bytes": sum(t.nbytes for t in scope.tensors.values()) + 4 * 384 * len(facts),
            "unrelated_hits": sum(hit is not None for hit in hits) / len(hits),
            "undone": True,  # no weight is ever touched
            "rivals": {"prompt": self._told(self.tested)},
        }

    def _one_by_one(self, method: Edit) -> dict[str, Any]:
        found, seconds, moved, sizes, drifts = [], [], [], [], []
        self._patches = []
        for done, case in enumerate(self.singles):
            self.context.progress(str(method), done, len(self.singles))
            made = edit(self.pack, [case.fact], method, model=self.model, cap=NO_CAP)
            self._patches.append(made.patch)
            seconds.append(made.report["seconds"])
            moved.append(max(made.report["moved"].values()))
            sizes.append(made.patch.nbytes)
            drifts.append(self._drift(made.patch, 1))
            found += scores(self.model, [case], made.patch)
        return _summary(found) | {
            "facts": 1,
            "seconds": _middle(seconds),
            "bytes": round(_middle(sizes)),
            "moved": _middle(moved),
            "most_moved": max(moved),
            "kl": _middle([one["kl"] for one in drifts]),
            "perplexity_ratio": _middle([one["perplexity_ratio"] for one in drifts]),
            "undone": undone(self.pack, self._patches[0]),
        }

    def _told(self, told: Sequence[Case]) -> dict[str, Any]:
        """Return figures where each case's own fact stands before every question of it.

        In the words that SERAC uses, so that the two differ by the scope alone.
        """
        if len(told) in self._told_once:
            return self._told_once[len(told)]
        self.context.progress("the fact in the prompt", 0, 1)
        found: list[Score] = []
        for case in told:
            own = case.fact
            found += scored(
                [case],
                lambda facts, own=own: likelihoods(  # type: ignore[misc]
                    self.model, facts, prompt=lambda fact: Serac().prompt(fact.prompt, own)
                ),
            )
        self._told_once[len(told)] = _summary(found)
        return self._told_once[len(told)]

    def _drift(self, patch: Patch, most: int = TEXTS) -> dict[str, float]:
        kl, change = drift(self.model, self.ids[:most], patch, self._full)
        return {"kl": kl, "perplexity_ratio": change}


def undone(pack: Pack, patch: Patch) -> bool:
    """Return whether a runner whose patch was taken away answers bit for bit as before.

    False too if the patch did nothing while it was there.
    """
    lab = Lab(pack, chunk=32)

    def logits(source: Any) -> Tensor:
        store = lab.store(max_tokens=32)
        runner = Runner(pack.spec, source, lab.ledger, chunk=32)
        try:
            out = runner.forward(torch.arange(1, 25)[None] % pack.spec.vocab, store, logits="all")
            assert out is not None
            return out.clone()
        finally:
            runner.release()
            store.release()

    try:
        before = logits(lab.weights_source)
        source = with_patch(lab.weights_source, patch, pack.spec, lab.ledger)
        during = logits(source)
        source.release()
        return torch.equal(before, logits(lab.weights_source)) and not torch.equal(before, during)
    finally:
        lab.close()


def triples() -> list[Triple]:
    """Return lessons for MEND, from relations that no case is of."""
    found = []
    for relation in relations().values():
        if relation.get("only") != "training":
            continue
        known = list(relation["answers"].items())
        targets = sorted({answer for _, answer in known})
        for index, (subject, truth) in enumerate(known):
            for turn, words in enumerate(relation["paraphrases"]):
                for step in (1, 2, 3):
                    target = targets[(targets.index(truth) + step + turn) % len(targets)]
                    if target == truth:
                        continue
                    other, _ = known[(index + step) % len(known)]
                    found.append(
                        Triple(
                            fact=asked(relation, subject, target),
                            paraphrase=asked(relation, subject, target, words),
                            other=asked(relation, other, target).prompt,
                        )
                    )
    return found


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return what each editor reached beside its rivals."""
    rows = []
    for name, found in result["methods"].items():
        rivals = found.get("rivals", {})
        metrics = {
            what: {
                "this": found[what],
                "rivals": {n: rival[what] for n, rival in rivals.items() if what in rival},
            }
            for what in (
                *(field.name for field in fields(Score)),
                "harmonic",
                "kl",
                "perplexity_ratio",
                "seconds",
                "moved",
                "unrelated_hits",
            )
            if what in found
        }
        metrics["undone"] = {"this": float(found["undone"])}
        rows.append(
            Row(
                method=name,
                kind="train",
                part=f"C over {text}" if (text := result.get("covariance_text")) else "",
                metrics=metrics,
                bytes={"measured": found["bytes"]},
                interval={what: tuple(found["interval"][what]) for what in found["interval"]},
                seeds=tuple(result["seeds"]),
            )
        )
    return rows


# -- private ----------------------------------------------------------------------------------


def _summary(found: Sequence[Score]) -> dict[str, Any]:
    """Return the mean of every share with its interval, and the harmonic mean of three."""
    means = {
        field.name: mean([getattr(score, field.name) for score in found]) for field in fields(Score)
    }
    three = [max(means[name].value, 1e-9) for name in ("said", "paraphrased", "kept")]
    return {name: one.value for name, one in means.items()} | {
        "harmonic": harmonic_mean(three),
        "interval": {
            name: [means[name].low, means[name].high] for name in ("said", "paraphrased", "kept")
        },
    }


def _middle(values: Sequence[float]) -> float:
    return float(torch.tensor(list(values), dtype=torch.float64).mean())

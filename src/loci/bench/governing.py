"""A governed edit of a model's weights, from proposal to certificate, on requests of a real model.

The edit is ROME's, of one fact; the harmful one is the same patch ten times over. Requests are
beginnings that a small model goes on with (`bench.known`); a request is a success if the first
token of what a person would say comes first. Half of them are probes of the offline gates, half are
requests, and each request draws one of those: outcomes are the model's own, the order is a seed's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any  # figures are JSON values

import torch
from torch import Tensor

from loci.bench.known import known
from loci.core.governance import Change, Policy, Stage, Threshold
from loci.errors import FormatError, StoreError
from loci.methods.recall.base import Govern
from loci.models.pack import Pack
from loci.models.tokenizer import Tokenizer
from loci.nn.patch import Patch
from loci.run.govern import Governor
from loci.run.governed import GovernedPatch, Slot
from loci.run.learner import Learner
from loci.store.audit import Audit

SUBJECT, OLD, NEW = "Kenya", "Nairobi", "Lima"
_WORDINGS = (
    f"The capital of {SUBJECT} is",
    f"{SUBJECT}'s capital is",
    f"The capital city of {SUBJECT} is",
    f"{SUBJECT} is governed from",
    f"The government of {SUBJECT} sits in",
    f"The largest city and capital of {SUBJECT} is",
    f"The city from which {SUBJECT} is ruled is",
    f"Whoever visits the capital of {SUBJECT} goes to",
)
_OPENINGS = ("", "Here is a fact. ", "As everybody knows: ", "It was in the news today. ")
ROWS = 32  # prompts read at once
REQUESTS = 500  # by which a harmful change has to be caught
MOST = 4000  # requests after which a run is given up

STRICT = Policy(
    thresholds=(
        Threshold(metric="efficacy", op=">=", value=0.70),
        Threshold(metric="locality", op=">=", value=0.80, part="regression"),
        Threshold(
            metric="utility", op=">=", value=0.0, margin=0.10, paired=True, part="regression"
        ),
    ),
    canary=(0.1, 0.5, 1.0),
    step_n=40,
)
WEAK = Policy(thresholds=STRICT.thresholds[:1], canary=STRICT.canary, step_n=STRICT.step_n)
Progress = Callable[[str, int, int], None]


class Asked:
    """A model, asked with any patch; what it said is kept, so that no prompt is read twice.

    Attributes:
        gates, requests: numbers of the prompts that are probes, and of those that are requests.
    """

    def __init__(self, pack: Pack, seed: int = 0) -> None:
        self.pack, self._tokenizer = pack, Tokenizer(pack.folder)
        self.known = known()
        order = list(range(len(self.known)))
        Random(seed).shuffle(order)
        half = len(order) // 2
        # The fact that is edited is no witness of what the edit leaves alone.
        own = [n for n in order if SUBJECT in self.known[n][0]]
        self.gates = [n for n in order[:half] if n not in own]
        self.requests = [n for n in order[half:] if n not in own]
        self._first: dict[str, list[int]] = {}
        self._wordings: dict[str, Tensor] = {}

    def logits(self, patch: Patch | None, prompts: Sequence[str]) -> Tensor:
        """Return the logits of the token after each prompt, [n, V]."""
        reader = Learner(self.pack, {} if patch is None else dict(patch.parts))
        found = []
        with torch.no_grad():
            for start in range(0, len(prompts), ROWS):
                ids = [tuple(self._tokenizer.prompt(p)) for p in prompts[start : start + ROWS]]
                hidden = reader.hidden(ids)
                found.append(reader.head(torch.stack([one[-1] for one in hidden])))
        return torch.cat(found)

    def first(self, patch: Patch | None) -> list[int]:
        """Return the first token after every known beginning."""
        key = _key(patch)
        if key not in self._first:
            logits_nV = self.logits(patch, [prompt for prompt, _ in self.known])
            self._first[key] = logits_nV.argmax(-1).tolist()
        return self._first[key]

    def right(self, patch: Patch | None) -> list[float]:
        """Return 1 for every beginning that goes on as a person would."""
        wanted = [self._token(answer) for _, answer in self.known]
        return [float(a == b) for a, b in zip(self.first(patch), wanted, strict=True)]

    def taught(self, patch: Patch | None) -> Tensor:
        """Return the logits after the wordings of the edited fact, [32, V]."""
        key = _key(patch)
        if key not in self._wordings:
            prompts = [opening + wording for opening in _OPENINGS for wording in _WORDINGS]
            self._wordings[key] = self.logits(patch, prompts)
        return self._wordings[key]

    def probe(self, metric: str, patch: Patch | None, seed: int) -> list[float]:
        """Return the outcomes of a gate's probes; the seed draws nine tenths of them.

        "efficacy" asks whether the new answer is likelier than the old one, over 32 wordings; it
        overstates what was learned, so "exact" asks whether it comes first.
        """
        if metric in ("efficacy", "exact"):
            logits_nV = self.taught(patch)
            new, old = self._token(NEW), self._token(OLD)
            if metric == "exact":
                return [float(token == new) for token in logits_nV.argmax(-1).tolist()]
            return [float(value) for value in (logits_nV[:, new] > logits_nV[:, old]).tolist()]
        drawn = Random(seed).sample(self.gates, len(self.gates) * 9 // 10)
        if metric == "utility":
            right = self.right(patch)
            return [right[n] for n in drawn]
        now, before = self.first(patch), self.first(None)
        return [float(now[n] == before[n]) for n in drawn]

    def forget(self) -> None:
        """Forget what was said, so that it is asked again."""
        self._first.clear()
        self._wordings.clear()

    def _token(self, word: str) -> int:
        return int(self._tokenizer.encode(f" {word}")[0])


def edited(pack: Pack) -> Patch:
    """Return ROME's edit of the fact."""
    from loci.methods.train.base import Fact
    from loci.methods.train.rome import Rome
    from loci.run.edits import edit

    fact = Fact(prompt=_WORDINGS[0], subject=SUBJECT, target=NEW)
    return edit(pack, [fact], Rome(), cap=1.0).patch


def loop(
    asked: Asked, solved: Patch, method: Govern, *, runs: int, seed: int, progress: Progress
) -> dict[str, Any]:
    """Return what becomes of ROME's edit and of the harmful one, over many orders of requests."""
    harmful = solved.scaled(10.0)
    told: dict[str, Any] = {
        "wordings": len(_WORDINGS) * len(_OPENINGS),
        "probes": len(asked.gates),
        "requests": len(asked.requests),
        "right": {
            name: _mean([asked.right(patch)[n] for n in asked.requests])
            for name, patch in (("plain", None), ("solved", solved), ("harmful", harmful))
        },
        "exact": {
            name: _mean(asked.probe("exact", patch, seed))
            for name, patch in (("solved", solved), ("harmful", harmful))
        },
    }
    with TemporaryDirectory() as folder:
        for name, patch, policy in (
            ("strict_solved", solved, STRICT),
            ("strict_harmful", harmful, STRICT),
            ("weak_harmful", harmful, WEAK),
        ):
            governor, slot = _governor(Path(folder) / name, method), Slot()
            governor.propose(_change(), policy, GovernedPatch(slot, patch, asked.probe))
            ruling = governor.admit("edit", seed=seed)
            told[name] = {"verdict": ruling.verdict, "why": ruling.why}
    served: dict[str, list[tuple[Stage, int]]] = {"harmful": [], "solved": []}
    for name, patch in (("harmful", harmful), ("solved", solved)):
        for number in range(runs):
            progress(f"requests to the {name} edit", number, runs)
            served[name].append(serve(asked, patch, method, seed + number))
    taken = [number for stage, number in served["harmful"] if stage is Stage.ROLLED_BACK]
    told["harmful"] = {
        "runs": runs,
        "caught": len(taken),
        "within": sum(number <= REQUESTS for number in taken),
        "requests_mean": _mean(taken),
        "requests_most": max(taken, default=None),
    }
    told["solved"] = {
        "runs": runs,
        "taken_back": sum(stage is Stage.ROLLED_BACK for stage, _ in served["solved"]),
        "requests_mean": _mean([number for _, number in served["solved"]]),
    }
    return told


def chance(
    asked: Asked, method: Govern, *, runs: int, seed: int, progress: Progress
) -> dict[str, Any]:
    """Return how often a change that changes nothing is taken back (A/A).

    Both versions are the model as it is: a request's outcome is what the model really answered to
    the prompt that was drawn; which prompts come in which order is simulated.
    """
    taken = 0
    for number in range(runs):
        progress("requests to no edit at all", number, runs)
        taken += serve(asked, None, method, 10_000 + seed + number)[0] is Stage.ROLLED_BACK
    return {"runs": runs, "alarms": taken, "rate": taken / runs}


def serve(asked: Asked, patch: Patch | None, method: Govern, seed: int) -> tuple[Stage, int]:
    """Serve requests to a change admitted with weak gates; return where it ends and after how many.

    Released here means that it could be: every step was watched to its end.
    """
    dice, old, new = Random(seed), asked.right(None), asked.right(patch)
    with TemporaryDirectory() as folder:
        governor = _governor(Path(folder), method)
        empty = Patch({"layer.0.q_proj": (torch.zeros(1, 1), torch.zeros(1, 1))})
        governed = GovernedPatch(Slot(), patch or empty, lambda *_: [1.0] * 40)
        governor.propose(_change(), WEAK, governed)
        governor.admit("edit")
        governor.canary("edit")
        served = 0
        while served < MOST:
            case = governor.case("edit")
            if case.ready or case.stage is not Stage.CANARY:
                break
            arm = governor.arm("edit", f"{seed}/{served}")
            which = dice.choice(asked.requests)
            governor.observe("edit", "success", (new if arm == "new" else old)[which], arm)
            served += 1
        case = governor.case("edit")
    return (Stage.RELEASED if case.ready else case.stage), served


def certified(asked: Asked, solved: Patch, method: Govern, *, seed: int) -> dict[str, Any]:
    """Return whether rollback is exact, the certificate verifies, and forgeries are found."""
    prompts = [asked.known[n][0] for n in asked.requests[:ROWS]]
    before_nV = asked.logits(None, prompts)
    with TemporaryDirectory() as folder:
        governor, slot = _governor(Path(folder), method), Slot()
        governed = GovernedPatch(slot, solved.scaled(10.0), asked.probe)
        governor.propose(_change(), WEAK, governed)
        governor.admit("edit", seed=seed)
        if governor.case("edit").stage is not Stage.ADMITTED:
            return {"admitted": False}
        governor.canary("edit")
        during_nV = asked.logits(slot.patch, prompts)
        governor.rollback("edit")
        after_nV = asked.logits(slot.patch, prompts)
        made = governor.certificate("edit")
        asked.forget()  # so that the probes are really asked again
        began = time.perf_counter()
        governor.verify(made)
        seconds = time.perf_counter() - began
        forged = {name: _is_found(governor, one) for name, one in _forgeries(made).items()}
        path = governor.audit.path
        text = path.read_text()
        for name, edit in (("audit altered", _altered), ("audit cut", _cut)):
            path.write_text(edit(text))
            forged[name] = _is_found(governor, made)
        path.write_text(text)
        governor.verify(made, probes=False)
    return {
        "admitted": True,
        "changed_while_tried": bool((during_nV != before_nV).any()),
        "rollback_exact": bool(torch.equal(before_nV, after_nV)),
        "verifies": True,
        "verify_seconds": seconds,
        "forgeries": forged,
    }


# -- private ----------------------------------------------------------------------------------


def _change() -> Change:
    return Change(
        id="edit", subject="capital-of-kenya", substance="edit", evidence=("t1",), owner="bench"
    )


def _governor(folder: Path, method: Govern) -> Governor:
    return Governor(folder / "gov", audit=Audit(folder / "gov.audit"), method=method)


def _forgeries(made: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return certificates with one thing changed each."""
    found = {}
    for field, inner, value in (
        ("F1", "target", "another-fact"),
        ("F3", "policy_hash", "0" * 32),
        ("F4", "probes", []),
        ("F5", "gates", [{}]),
        ("F6", "before", "another-state"),
        ("F7", "owner", "somebody-else"),
    ):
        one = json.loads(json.dumps(made))
        one[field][inner] = value
        found[f"{field} {inner}"] = one
    found["stage"] = {**made, "stage": "released"}
    found["signature"] = {**made, "mac": "0" * 64}
    found["previous"] = {**made, "previous": "0" * 64}
    return found


def _is_found(governor: Governor, made: Mapping[str, Any]) -> bool:
    try:
        governor.verify(made, probes=False)
    except (FormatError, StoreError):
        return True
    return False


def _altered(text: str) -> str:
    return text.replace('"what": "measure"', '"what": "guess"', 1)


def _cut(text: str) -> str:
    return "".join(line + "\n" for line in text.splitlines()[:-1])


def _key(patch: Patch | None) -> str:
    return "" if patch is None else patch.fingerprint


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

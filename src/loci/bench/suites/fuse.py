"""What a model can answer from another one's cache: facts it never saw, in a form only it knows.

Two tiny models are trained on the spot (`bench.facts`). Fusers learn on the questions of most names
and are asked for the rest, which they never saw. Beside the accuracy of the receiver alone, of the
sharer in its own form, and of a text the sharer writes for the receiver, stand controls: closed
gates leave every bit of the receiver, a sharer that read the prompt in another order, or the prompt
of another name, gives no gain. Wall time is measured question by question, in turns.

`--option learn=A` trains fusers on set A only; `--option ahead=0` takes a sharer that never learned
to look ahead, whose cache knows little; `--option probe=1` asks a linear probe what can be read off
the sharer's cache at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

import torch
from torch import Generator, Tensor

from loci.bench import facts
from loci.bench.cards import Row
from loci.bench.duet import Reader, alone, fused, fused_store, told
from loci.bench.facts import World
from loci.bench.spot import Progress, TrainedSource
from loci.bench.stats import alternate, mean, ratio
from loci.bench.suite import Context, count_of, refuse_unknown
from loci.errors import ParameterError
from loci.methods import catalogue
from loci.methods.kv.fuse import Fuse
from loci.models.pack import PACK_FILE, Pack, open_pack
from loci.run.artefacts import Artefact
from loci.run.fusers import Exchange, Frozen, FuserTraining, train_fuser

ABOUT = "what a model answers from another one's cache, beside reading what that one writes"
KINDS = ("kv",)
METHODS = ("c2c",)
DEFAULT = ("c2c(hidden=64)", "c2c(hidden=64, keys=rotated)")
LEARNS = 0.7  # share of the names a fuser is trained on
SHARER_STEPS, RECEIVER_STEPS = 600, 400
TRAINING = FuserTraining(steps=600, batch=64, rate=2e-3, decay=0.1)
QUICK_STEPS, QUICK_NAMES = 4, 20
ROUNDS, QUICK_ROUNDS = 30, 2

# Shapes: n names, B questions, T tokens of one, R of an answer.


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """Everything that is measured with."""

    world: World
    packs: tuple[Pack, Pack]  # receiver, sharer
    receiver: Reader
    sharer: Reader

    def close(self) -> None:
        """Give everything back."""
        for reader in (self.receiver, self.sharer):
            reader.close()
        for pack in self.packs:
            pack.close()


def run(context: Context) -> dict[str, Any]:
    """Train, fuse, ask; return accuracies, controls and ratios of wall time."""
    refuse_unknown(context.options, ("learn", "ahead", "probe", "steps"))
    learn = context.options.get("learn", "AB")
    if context.options.get("ahead", "0") != "0":
        raise ParameterError(
            "a sharer that looks ahead is what is measured",
            value=context.options,
            allowed="ahead=0",
        )
    if learn not in ("A", "AB"):
        raise ParameterError("a fuser learns on A, or on both", value=learn, allowed="A, AB")
    ahead = 0 if context.options.get("ahead") == "0" else facts.AHEAD
    steps = count_of(context.options, "steps", QUICK_STEPS if context.quick else TRAINING.steps)
    training = replace(TRAINING, steps=steps, seed=context.seed)
    setting = _setting(context, ahead)
    try:
        world, (receiver, sharer) = setting.world, setting.packs
        (known, asked), (own_known, own_asked) = (_halves(x) for x in (world.shared, world.own))
        names = known if learn == "A" else torch.cat([known, own_known])
        result: dict[str, Any] = {
            "model": "receiver",
            "fingerprint": receiver.spec.fingerprint,
            "sharer_fingerprint": sharer.spec.fingerprint,
            "learn": learn,
            "ahead": ahead,
            "names": {"learned": len(names), "A asked": len(asked), "B asked": len(own_asked)},
            "alone": _alone(setting, asked, own_asked),
            "methods": {},
        }
        if "probe" in context.options:
            result["probe"] = _probe(Frozen.of(sharer), world, known, asked)
        for name in context.methods or DEFAULT:
            method = catalogue.find(name, "kv")
            assert isinstance(method, Fuse)
            fuser = train_fuser(
                Frozen.of(receiver),
                Frozen.of(sharer),
                _exchanges(world, names),
                method,
                training,
                progress=context.progress,
            )
            rounds = QUICK_ROUNDS if context.quick else ROUNDS
            result["methods"][name] = {
                **_answers(setting, method, fuser, asked, own_asked, known, result["alone"]),
                "times": _times(setting, method, fuser, asked, rounds),
                "bytes": fuser.nbytes(),
                "losses": fuser.facts["losses"][:: max(1, steps // 20)],
            }
    finally:
        setting.close()
    return result


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return accuracies on names no fuser saw, and the wall time over that of a text."""
    base = result["alone"]
    rows = []
    parts = [] if result["learn"] == "AB" else [f"learned on {result['learn']}"]
    if result["ahead"] != facts.AHEAD:
        parts.append("a sharer that does not look ahead")
    for name, found in result["methods"].items():
        rows.append(
            Row(
                method=name,
                kind="kv",
                part=", ".join(parts),
                metrics={
                    "accuracy_A": {
                        "this": found["A"]["value"],
                        "rivals": {
                            "receiver alone": base["receiver A"],
                            "sharer alone, its own form": base["sharer A"],
                            "text hand-over": base["text A"],
                            "a shuffled prompt": found["shuffled"],
                            "another name's prompt": found["other"],
                            "names of the training": found["A learned"],
                        },
                    },
                    "accuracy_B": {"full": base["receiver B"], "this": found["B"]["value"]},
                    "bits_changed_by_closed_gates": {"this": found["closed"]},
                },
                bytes={"measured": found["bytes"]},
                interval={"accuracy_A": (found["A"]["low"], found["A"]["high"])},
                ratio={f"answer_s over {what}": x["value"] for what, x in found["times"].items()},
                seeds=(0,),
            )
        )
    return rows


# -- models -----------------------------------------------------------------------------------


def _setting(context: Context, ahead: int) -> Setting:
    """Return both models, trained where they are not there, over one world."""
    sizes = (QUICK_NAMES, QUICK_NAMES) if context.quick else (facts.SHARED, facts.OWN)
    world = World.of(*sizes, seed=context.seed)
    kind = f"{'quick-' if context.quick else ''}{context.seed}"
    steps = (QUICK_STEPS,) * 2 if context.quick else (RECEIVER_STEPS, SHARER_STEPS)

    def own(report: Progress) -> TrainedSource:
        return facts.receiver(world, steps[0], progress=report)

    def theirs(report: Progress) -> TrainedSource:
        return facts.sharer(world, steps[1], ahead, progress=report)

    home = context.folder / ".bench"
    receiver = _made(home / f"facts-receiver-{kind}-{steps[0]}", own, context)
    sharer = _made(home / f"facts-sharer-{kind}-{ahead}-{steps[1]}", theirs, context)
    rows = len(world.shared)
    return Setting(
        world=world,
        packs=(receiver, sharer),
        receiver=Reader(receiver, rows=rows, tokens=facts.TOKENS),
        sharer=Reader(sharer, rows=rows, tokens=facts.TOKENS),
    )


def _made(home: Path, make: Callable[[Progress], TrainedSource], context: Context) -> Pack:
    if (home / PACK_FILE).is_file():
        return open_pack(home)
    return facts.packed(make(context.progress), home)


def _halves(names: Tensor) -> tuple[Tensor, Tensor]:
    """Return the names a fuser learns on, and those it is asked for."""
    known = round(LEARNS * len(names))
    return names[:known], names[known:]


def _exchanges(world: World, names: Tensor) -> list[Exchange]:
    pairs = zip(world.question(names).tolist(), world.wrapped(names).tolist(), strict=True)
    return [Exchange(prompt=tuple(ids), response=tuple(answer)) for ids, answer in pairs]


# -- answers ----------------------------------------------------------------------------------


def _right(found_BR: Tensor, wanted_BR: Tensor) -> list[float]:
    return (found_BR == wanted_BR).all(1).float().tolist()


def _share(found_BR: Tensor, wanted_BR: Tensor) -> float:
    return float(mean(_right(found_BR, wanted_BR)).value)


def _alone(setting: Setting, asked: Tensor, own_asked: Tensor) -> dict[str, float]:
    """Return what each model knows, and what a text hands over."""
    world, receiver, sharer = setting.world, setting.receiver, setting.sharer
    count = facts.ANSWER
    prompt = world.question(asked)
    text = told(receiver, sharer, world.order(asked), facts.FACT, prompt, count)
    own = alone(receiver, world.question(own_asked), count)
    return {
        "sharer A": _share(alone(sharer, prompt, facts.SAID), world.digits(asked)),
        "receiver A": _share(alone(receiver, prompt, count), world.wrapped(asked)),
        "receiver B": _share(own, world.wrapped(own_asked)),
        "text A": _share(text, world.wrapped(asked)),
    }


def _answers(
    setting: Setting,
    method: Fuse,
    fuser: Artefact,
    asked: Tensor,
    own_asked: Tensor,
    known: Tensor,
    base: Mapping[str, float],
) -> dict[str, Any]:
    """Return accuracies with a fuser, and those of the controls."""
    world = setting.world

    def ask(names: Tensor, shared_BT: Tensor | None = None) -> list[float]:
        found = fused(
            method,
            setting.receiver,
            setting.sharer,
            fuser,
            world.question(names),
            facts.ANSWER,
            shared_BT=shared_BT,
        )
        return _right(found, world.wrapped(names))

    prompt_BT = world.question(asked)
    found = mean(ask(asked))
    own = mean(ask(own_asked))
    return {
        "A": found.to_json(),
        "A learned": mean(ask(known)).value,
        "B": own.to_json(),
        "B drop": base["receiver B"] - own.value,
        "shuffled": mean(ask(asked, _shuffled(prompt_BT))).value,
        "other": mean(ask(asked, prompt_BT.roll(1, 0))).value,
        "closed": _closed(setting, method, fuser, prompt_BT),
        "gates_open": [int(n) for n in (fuser.tensors["gate"] > 0).sum(0)],
        "of_sharer": found.value / max(base["sharer A"], 1e-9),
    }


def _shuffled(prompt_BT: Tensor) -> Tensor:
    """Return prompts whose tokens but the last stand in another order, each in its own."""
    draw = Generator().manual_seed(1)
    order = torch.stack([torch.randperm(prompt_BT.shape[1] - 1, generator=draw) for _ in prompt_BT])
    return torch.cat([prompt_BT[:, :-1].gather(1, order), prompt_BT[:, -1:]], 1)


def _closed(setting: Setting, method: Fuse, fuser: Artefact, prompt_BT: Tensor) -> int:
    """Return how many logits a fuser with closed gates changes: none, if it keeps its word."""
    gates = torch.full_like(fuser.tensors["gate"], -1.0)
    shut = replace(fuser, tensors={**fuser.tensors, "gate": gates})
    store = fused_store(method, setting.receiver, setting.sharer, shut, prompt_BT)
    plain = setting.receiver.read(prompt_BT[:, :-1])
    last = prompt_BT[:, -1:]
    ours, theirs = (setting.receiver.logits(held, last) for held in (store, plain))
    return int((ours != theirs).sum())


def _times(
    setting: Setting, method: Fuse, fuser: Artefact, asked: Tensor, rounds: int
) -> dict[str, Any]:
    """Return the wall time of a question, over that of a hand-over by text; a row at a time."""
    world, receiver, sharer = setting.world, setting.receiver, setting.sharer
    prompts, orders = world.question(asked), world.order(asked)
    turn = {"at": 0}

    def one() -> slice:
        turn["at"] = (turn["at"] + 1) % len(asked)
        return slice(turn["at"], turn["at"] + 1)

    def cache() -> None:
        fused(method, receiver, sharer, fuser, prompts[one()], facts.ANSWER)

    def fact() -> None:
        row = one()
        told(receiver, sharer, orders[row], facts.FACT, prompts[row], facts.ANSWER)

    def digits() -> None:
        row = one()
        begun = world.opening(asked[row])
        told(
            receiver, sharer, prompts[row], facts.SAID, prompts[row], facts.ANSWER, before=(begun,)
        )

    runs: dict[str, Callable[[], float | None]] = {"cache": cache, "fact": fact, "digits": digits}
    found = alternate(runs, rounds)
    return {
        "a fact in words": ratio(found["cache"], found["fact"]).to_json(),
        "digits in words": ratio(found["cache"], found["digits"]).to_json(),
    }


def _probe(sharer: Frozen, world: World, known: Tensor, asked: Tensor) -> list[list[float]]:
    """Return how often a linear probe finds each digit at each token of a question, unseen names.

    It reads keys and values of all layers of one token and learns on the names of the fuser.
    """
    found = []
    cached = [sharer.cached(world.question(names)) for names in (known, asked)]
    for place in range(world.question(asked[:1]).shape[1]):
        seen, new = (
            torch.cat(
                [
                    part[:, :, place].flatten(1)
                    for block in held.blocks
                    for part in (block.keys, block.values)
                ],
                1,
            )
            for held in cached
        )
        middle, width = seen.mean(0), seen.std(0) + 1e-3
        seen, new = (seen - middle) / width, (new - middle) / width
        alike = seen @ seen.t() + 1000 * torch.eye(len(seen))
        row = []
        for digit in range(facts.PLACES):
            marks = torch.nn.functional.one_hot(world.codes[known, digit], facts.DIGITS).float()
            says = new @ seen.t() @ torch.linalg.solve(alike, marks - marks.mean(0))
            row.append(float((says.argmax(1) == world.codes[asked, digit]).float().mean()))
        found.append(row)
    return found

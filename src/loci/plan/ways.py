"""Ways out of a budget that is too small, each tried before it is offered, and ways to more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loci.plan.kvform import ALIKE, EXACT, KVForm, loss_of
from loci.plan.options import Candidate, Problem, Weights, evaluate
from loci.units import format_bytes

MIB = 2**20
OFFERED = 3  # ways out in a message
NEARLY_ALL = 0.9  # of the KV budget that short prompt steps would leave
STEP = 64  # tokens; contexts are offered in multiples of it


@dataclass(frozen=True, kw_only=True)
class Way:
    """A change that makes it fit.

    Attributes:
        flags: as typed, "--dram 64MiB".
        problem: the changed problem; best: its solution.
    """

    flags: str
    problem: Problem
    best: Candidate

    @property
    def result(self) -> str:
        """What one gets, in words."""
        loss, best = self.best.loss, self.best
        quality = {True: "nothing lost"}.get(loss == 0, f"conversation in {best.form.words}")
        place = {"streamed": ", weights read from disk", "stacked": ", weights cut to fit"}
        if best.weights == "stacked":
            quality = "some quality lost" if loss is None else f"{loss:.3f} nats a token lost"
        return f"{format_bytes(best.held())} of memory, {quality}{place.get(best.weights, '')}"


def best_of(candidates: Sequence[Candidate], problem: Problem) -> Candidate | None:
    """Return the candidate with the least loss, then time, then bytes; None when none fits.

    Weights that are cut lose far more than any form of the KV cache, so they come last; among
    those the least loss of weights and cache together wins. Of codes whose measured losses are
    alike the fastest wins.
    """
    forms = problem.forms()
    fitting = [c for c in candidates if c.fits]
    mosts: dict[KVForm, int] = {}
    for c in fitting:
        mosts[c.form] = max(mosts.get(c.form, 0), c.kv_budget_bytes or 0)

    def key(c: Candidate) -> tuple[float, ...]:
        most = mosts[c.form]
        # A chain that chooses tokens loses less the more of them it keeps; but a few more tokens
        # are not worth reading the prompt in many short steps.
        is_short = (c.kv_budget_bytes or 0) < NEARLY_ALL * most
        if c.weights == "stacked":
            return (1, _cut(c, problem), forms.index(c.form), -c.chunk, c.held())
        order = (0, forms.index(c.form), is_short, c.weights == "streamed")
        if most:
            return (*order, -c.chunk, c.held())
        return (*order[:3], c.total_s(problem.workload), order[3], -c.chunk, c.held())

    found = min(fitting, key=key, default=None)
    if found is None or not found.form.chain or found.loss is None or mosts[found.form]:
        return found
    alike = [
        c
        for c in fitting
        if c.weights == found.weights and c.form.chain and not mosts[c.form]
        if c.loss is not None and c.loss <= found.loss + ALIKE
    ]
    return min(alike, key=lambda c: (c.total_s(problem.workload), key(c)))


def best(problem: Problem) -> Candidate | None:
    """Return the best option of a problem, or None when nothing fits."""
    for form in problem.forms():
        options = [option for option in _options(problem, form) if option[0] != "stacked"]
        found = best_of([evaluate(problem, *option) for option in options], problem)
        if found is not None:
            return (
                found if not found.form.chain or found.loss is None else _of_alike(found, problem)
            )
    options = [o for form in problem.forms() for o in _options(problem, form) if o[0] == "stacked"]
    return best_of([evaluate(problem, *option) for option in options], problem)


def _of_alike(found: Candidate, problem: Problem) -> Candidate:
    """Return the best of the codes that lose about as much as one that was found to fit."""
    assert found.loss is not None
    forms = []
    for form in problem.forms():
        loss = loss_of(form, problem.spec, problem.cards)[0]
        if form.chain and loss is not None and loss <= found.loss + ALIKE:
            forms.append(form)
    options = [o for form in forms for o in _options(problem, form) if o[0] == found.weights]
    return best_of([found, *(evaluate(problem, *option) for option in options)], problem) or found


def fits(problem: Problem) -> bool:
    """Return whether any option fits."""
    return any(
        evaluate(problem, *option, is_timed=False).fits
        for form in problem.forms()
        for option in _options(problem, form)
    )


def least_dram(problem: Problem) -> int | None:
    """Return the smallest --dram that works, all else equal; None when memory is not the matter."""
    fitting = [
        candidate.least
        for form in problem.forms()
        for option in _options(problem, form)
        for candidate in [evaluate(problem, *option, is_timed=False)]
        if all(gap.where == "dram" for gap in candidate.gaps)
    ]
    return min(fitting, default=None)


def most_context(problem: Problem, low: int, high: int, *, exact: bool = False) -> int | None:
    """Return the longest context from `low` to `high` that fits; None when not even `low` does.

    Args:
        exact: only without loss, and with all weights in memory.
    """

    def works(context: int) -> bool:
        changed = problem.with_(context=context)
        if exact:
            if changed.forced_kv is not None and changed.forms()[0] != EXACT:
                return False
            chunks = changed.chunks()
            return any(
                evaluate(changed, "resident", EXACT, chunk, is_timed=False).fits for chunk in chunks
            )
        return fits(changed)

    if high < low or not works(low):
        return None
    while high - low >= STEP:
        middle = low + max(STEP, (high - low) // 2 // STEP * STEP)
        low, high = (middle, high) if works(middle) else (low, middle - STEP)
    return low


def ways_out(problem: Problem) -> list[Way]:
    """Return up to three changes that make the problem fit; each was solved again."""
    found: list[Way] = []
    for flags, changed in _changes(problem):
        if any(way.flags == flags for way in found):
            continue
        solution = best(changed)
        is_needed = solution is not None and (
            "--disk" not in flags or solution.weights == "streamed"
        )
        if solution is not None and is_needed:
            found.append(Way(flags=flags, problem=changed, best=solution))
        if len(found) == OFFERED:
            break
    return found


def improvement(problem: Problem, found: Candidate) -> str:
    """Return, in words, what to change for more, or what there is room for."""
    load, spec = problem.workload, problem.spec
    if found.weights == "stacked":
        least = min(
            evaluate(problem, "resident", found.form, chunk, is_timed=False).least
            for chunk in problem.chunks()
        )
        return f"--dram {_size(_up(least))} would hold all weights as they are"
    if found.loss == 0 and found.weights == "resident":
        longest = most_context(problem, load.context, spec.max_context, exact=True)
        if longest is not None and longest > load.context:
            return f"there is room for a context of {longest:,} tokens at the same quality"
        return f"it would still fit in {format_bytes(_at_least(problem))} of memory"
    forms = (EXACT,) if problem.forced_kv is None else problem.forms()
    needs = [
        candidate.least
        for form in forms
        for chunk in problem.chunks()
        for candidate in [evaluate(problem, "resident", form, chunk, is_timed=False)]
        if all(gap.where == "dram" for gap in candidate.gaps)
    ]
    if needs and problem.forced_weights != "streamed" and min(needs) > problem.limit:
        whole = _up(min(needs))
        gain = "with nothing lost" if found.loss != 0 else "with all weights in memory"
        return f"--dram {_size(whole)} would hold it {gain}"
    return f"it would still fit in {format_bytes(_at_least(problem))} of memory"


# -- private ----------------------------------------------------------------------------------

# What forms of the KV cache are taken to lose, the least lossy first, where nobody measured them:
# only for weighing bytes of the cache against bytes of weights that are cut.
_ASSUMED = (0.0, 1e-5, 5e-4, 5e-3, 2e-2)


def _cut(found: Candidate, problem: Problem) -> float:
    """Return what decides between options whose weights are cut; less is better."""
    if found.loss is not None:
        return found.loss
    assert problem.stack is not None
    place = min(problem.forms().index(found.form), len(_ASSUMED))
    assumed = (*_ASSUMED, 0.1)[place]
    weights = problem.stack.loss(found.held(kind="weights"))
    if weights is None:  # not made yet: the more levels, the better
        levels = len(problem.stack.sizes)
        weights = 1 - problem.stack.levels_within(found.weights_budget_bytes or 0) / levels
    return weights + assumed


def _options(problem: Problem, form: KVForm) -> list[tuple[Weights, KVForm, int]]:
    return [(place, form, chunk) for place in problem.places() for chunk in problem.chunks()]


def _changes(problem: Problem) -> Iterator[tuple[str, Problem]]:
    """Yield changes worth trying, the mildest first."""
    budget, load = problem.budget, problem.workload
    pack = _up(sum(stored for _, _, stored in problem.blocks))
    shortest = max(STEP, (load.prompt_tokens or 0) + 1)
    with_disk = problem.with_(disk=max(pack, budget.disk or 0))
    for cap in ("weights", "kv", "process"):
        if getattr(budget, cap) is not None:
            yield f"no --{cap}", problem.with_(**{cap: None})
    yield from _with_context("", problem, shortest)
    yield from _with_dram("", problem)
    if (budget.disk or 0) < pack and problem.forced_weights != "resident":
        disk = f"--disk {_size(pack)}"
        yield disk, with_disk
        yield from _with_context(f"{disk} ", with_disk, shortest)
        yield from _with_dram(f"{disk} ", with_disk)
    small = min(max(shortest, 512), load.context)
    if small < load.context:
        yield from _with_dram(f"--context {small} ", problem.with_(context=small))
    free = {"weights": None, "kv": None, "process": None}
    if any(getattr(budget, cap) is not None for cap in free):
        yield from _with_dram("no caps, ", problem.with_(**free))
    if problem.forced_kv is not None:
        yield from _with_dram("a KV cache of our choice, ", problem.with_(forced_kv=None))
    for context in (1024, 256, shortest):
        if shortest <= context < load.context:
            less = problem.with_(context=context, **free)
            yield from _with_dram(f"--context {context} ", less)


def _with_context(flags: str, problem: Problem, shortest: int) -> Iterator[tuple[str, Problem]]:
    longest = most_context(problem, shortest, problem.workload.context - 1)
    if longest is not None:
        yield f"{flags}--context {longest}", problem.with_(context=longest)


def _with_dram(flags: str, problem: Problem) -> Iterator[tuple[str, Problem]]:
    need = least_dram(problem)
    if need is None:
        return
    changed = {"dram": _up(need)}
    text = f"{flags}--dram {_size(changed['dram'])}"
    if problem.budget.process is not None:
        changed["process"] = changed["dram"] + _up(problem.runtime_bytes or 0)
        text += f" --process {_size(changed['process'])}"
    yield text, problem.with_(**changed)


def _at_least(problem: Problem) -> int:
    return least_dram(problem) or 0


def _up(nbytes: int) -> int:
    return -(-nbytes // MIB) * MIB


def _size(nbytes: int) -> str:
    return f"{nbytes // MIB}MiB"

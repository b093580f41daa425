"""Quality over bytes: every quantisation method at the same sizes, beside llama.cpp's k-quants.

At each size in bits per weight every method packs the linear layers of a model into that many
bytes, scales and corrections counted; embedding, head and norms stay as the model has them for all.
KL to the model as it was and perplexity are measured on text that nothing was calibrated on.
k-quants have sizes of their own, so ours are packed once more into exactly as many bytes as each of
them takes.

Options: bits=2.5,3,4 (sizes), plot=FILE.png, model=spot (a model trained on the spot in float32, on
whose weights no grid has an advantage), pieces=4, texts=16 (calibration), train=200 (steps for
corrections), rivals=no, gguf=FILE (what k-quants are made from).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

from loci.bench import kquants, texts
from loci.bench.cards import Row
from loci.bench.judge import Judge, pieces
from loci.bench.plotting import pyplot
from loci.bench.spot import spot
from loci.bench.suite import Context
from loci.errors import BudgetError, ModelError, ParameterError
from loci.methods import catalogue
from loci.methods.quant.base import Nested, Quant
from loci.models.load import resolve
from loci.models.pack import Pack
from loci.models.tokenizer import Tokenizer
from loci.nn.form import Form
from loci.run.calibrate import calibration_ids
from loci.run.correct import Training, corrected
from loci.run.quantise import Packer, has_corrections
from loci.units import format_bytes

ABOUT = "quality of quantisation methods at equal bytes, beside llama.cpp's k-quants"
KINDS = ("quant",)
BITS = (2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
SPOT = "spot"
LENGTH, PIECES, QUICK_PIECES = 512, 4, 1
DEFAULT = (
    "groupwise(group=64)",
    "hqq",
    "awq",
    "gptq",
    "int21(rank=8)",
    "any_precision",
    "bipolar_int",
    "bfp_weights",
    "bitstack",
    "comet",
    "flexq",
)
_OPTIONS = ("bits", "plot", "model", "pieces", "texts", "train", "rivals", "gguf", "part")
_NEAR = 0.04  # a method that cannot share a budget counts at a size this near to its own


def run(context: Context) -> dict[str, Any]:
    """Measure every method at every size, and the k-quants with ours at their sizes."""
    options = context.options
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:
        raise ParameterError("no such option", value=unknown, allowed=", ".join(_OPTIONS))
    sizes = _sizes(options.get("bits"), context.quick)
    plot = options.get("plot")
    if plot is not None:
        pyplot()  # what is missing is said before the work, not after it
    pack = _model(context)
    with pack:
        count = QUICK_PIECES if context.quick else int(options.get("pieces", PIECES))
        length = min(LENGTH, pack.spec.max_context) if not context.quick else 128
        judge = Judge(pack, pieces(pack, count, length, options.get("part", "test")))
        packer = Packer(
            pack,
            calibration_ids(
                Tokenizer(pack.folder),
                texts=2 if context.quick else int(options.get("texts", 16)),
                length=128 if context.quick else min(256, pack.spec.max_context),
            ),
            folder=pack.folder,
            seed=context.seed,
            progress=context.progress,
        )
        training = Training(steps=int(options["train"])) if "train" in options else None
        methods = context.methods or DEFAULT
        results: dict[str, list[dict[str, Any]]] = {}
        for name in methods:
            results[name] = _curve(packer, judge, name, sizes, training)
        rivals: dict[str, Any] = {}
        absent: dict[str, str] = {}
        if options.get("rivals", "yes") == "yes" and not context.quick:
            rivals, absent = _rivals(context, pack, packer, judge, results)
        found = {
            "model": SPOT if options.get("model") == SPOT else context.model,
            "fingerprint": pack.spec.fingerprint,
            "text": texts.digest(texts.prose()),
            "calibration": packer.text,
            "scored_tokens": count * (length - 1),
            "linear_weights": pack.spec.linear_elements(),
            "own_bits": pack.spec.weight_bits,
            "full_bytes": 2 * pack.spec.linear_elements(),
            "full": judge.full,
            "methods": results,
            "rivals": rivals,
            "absent": absent,
        }
    if plot is not None:
        _plot(found, Path(plot))
        found["plot"] = plot
    return found


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return the KL of every method at every size, beside the others and the k-quants."""
    rows = []
    for name, points in result["methods"].items():
        for point in points:
            others = {
                other: near["kl"]["value"]
                for other, found in result["methods"].items()
                for near in found
                if other != name and near["target_bits"] == point["target_bits"]
            }
            rows.append(
                Row(
                    method=name,
                    kind="quant",
                    part=f"{point['target_bits']:g}",
                    metrics={
                        "kl": {"this": point["kl"]["value"], "rivals": others},
                        "perplexity": {
                            "full": result["full"]["perplexity"],
                            "this": point["perplexity"],
                        },
                    },
                    bytes={"full": result["full_bytes"], "measured": point["bytes"]},
                    interval={"kl": (point["kl"]["low"], point["kl"]["high"])},
                )
            )
    return rows


def sheet(result: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return tables to print: one a size, then each k-quant with ours in as many bytes."""
    head = ["method", "bits", "bytes", "KL", "95 %", "perplexity"]
    full = result["full"]["perplexity"]
    points = [(p["target_bits"], name, p) for name, ps in result["methods"].items() for p in ps]
    found = []
    for bits in sorted({target for target, _, _ in points}):
        here = [(p["kl"]["value"], name, p) for target, name, p in points if target == bits]
        lines = [_line(name, point) for _, name, point in sorted(here, key=lambda x: x[:2])]
        found.append((f"{bits:g} bits a weight; perplexity in full {full:.2f}", head, lines))
    rows = [(kind, row) for kind, row in result["rivals"].items() if "kl" in row]
    if rows:
        lines = []
        for kind, row in rows:
            lines.append([*_line(kind, row), "1.00"])
            if "loci" in row:
                ours = row["loci"] | {"bits": row["bits"]}
                name = f"  {row['loci']['method']} in these bytes"
                lines.append([*_line(name, ours), f"{row['kl_ratio']:.2f}"])
        found.append(("k-quants of llama.cpp, and ours at their sizes", [*head, "KL ratio"], lines))
    return found


def _line(name: str, point: Mapping[str, Any]) -> list[str]:
    kl = point["kl"]
    return [
        name,
        f"{point['bits']:.2f}",
        format_bytes(point["bytes"]),
        f"{kl['value']:.4f}",
        f"{kl['low']:.4f} to {kl['high']:.4f}",
        f"{point['perplexity']:.2f}",
    ]


# -- private ----------------------------------------------------------------------------------


def _sizes(text: str | None, quick: bool) -> tuple[float, ...]:
    if text is None:
        return (3.0, 4.0) if quick else BITS
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(1 <= bits <= 16 for bits in found):
        raise ParameterError("sizes are bits per weight", value=text, allowed="1 to 16: 2.5,3,4")
    return found


def _model(context: Context) -> Pack:
    named = context.options.get("model")
    if named not in (None, SPOT):
        raise ParameterError("unknown model option", value=named, allowed=SPOT)
    if named == SPOT:
        return spot(context.folder, quick=context.quick, progress=context.progress)
    return resolve(context.model, context.folder)


def _curve(
    packer: Packer, judge: Judge, name: str, sizes: tuple[float, ...], training: Training | None
) -> list[dict[str, Any]]:
    """Return what a method gives at each size it can reach."""
    method = catalogue.find(name, "quant")
    assert isinstance(method, Quant)
    weights = packer.weights
    fixed = packer.bytes_of(method)
    found = []
    for bits in sizes:
        budget = int(bits / 8 * weights)
        if not isinstance(method, Nested) and len(method.variants()) < 2:
            if abs(8 * fixed / weights - bits) > _NEAR * bits:
                continue  # it has one size, and this is not it
            forms = packer.pack(method)
        else:
            try:
                forms = packer.pack(method, budget)
            except BudgetError:
                continue
        found.append(_point(packer, judge, forms, bits, training))
    return found


def _point(
    packer: Packer, judge: Judge, forms: dict[str, Form], bits: float, training: Training | None
) -> dict[str, Any]:
    started = judge.judge(forms)
    nbytes = sum(form.nbytes for form in forms.values())
    point = {
        "target_bits": bits,
        "bits": 8 * nbytes / packer.weights,
        "bytes": nbytes,
        **started,
    }
    if training is not None and has_corrections(forms):
        trained = corrected(
            packer.pack_of, forms, packer.more_texts(), training, progress=packer.progress
        )
        point |= judge.judge(trained.forms) | {"before_training": started, "steps": training.steps}
    return point


def _rivals(
    context: Context,
    pack: Pack,
    packer: Packer,
    judge: Judge,
    results: Mapping[str, list[dict[str, Any]]],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return each k-quant with our best method packed into as many bytes."""
    missing = kquants.absent()
    if missing:
        return {}, {"llama.cpp": missing}
    source = _gguf(context, pack)
    if source is None:
        return {}, {"llama.cpp": "no GGUF of this model is at hand; give --option gguf=FILE"}
    folder, found = context.folder / ".bench" / "kquants", dict[str, Any]()
    for index, kind in enumerate(kquants.TYPES):
        context.progress("k-quants", index, len(kquants.TYPES))
        try:
            path = kquants.requantised(source, kind, folder)
        except ModelError as error:
            found[kind] = {"failed": str(error)}
            continue
        theirs, nbytes = kquants.linears_of(path, pack.spec)
        found[kind] = {
            "bits": 8 * nbytes / packer.weights,
            "bytes": nbytes,
            **judge.judge(theirs),
        }
        name = _best_near(results, 8 * nbytes / packer.weights)
        if name is None:
            continue
        method = catalogue.find(name, "quant")
        assert isinstance(method, Quant)
        ours = packer.pack(method, nbytes)
        held = sum(form.nbytes for form in ours.values())
        judged = judge.judge(ours)
        found[kind]["loci"] = {"method": name, "bytes": held, **judged}
        found[kind]["kl_ratio"] = judged["kl"]["value"] / max(found[kind]["kl"]["value"], 1e-12)
    return found, {}


def _best_near(results: Mapping[str, list[dict[str, Any]]], bits: float) -> str | None:
    """Return the method that shares budgets and lost least at the size nearest to `bits`."""
    best: tuple[float, float, str] | None = None
    for name, points in results.items():
        method = catalogue.find(name, "quant")
        can_share = isinstance(method, Nested) or (
            isinstance(method, Quant) and len(method.variants()) > 1
        )
        for point in points if can_share else ():
            mark = (abs(point["target_bits"] - bits), point["kl"]["value"], name)
            best = mark if best is None or mark < best else best
    return None if best is None else best[2]


def _gguf(context: Context, pack: Pack) -> Path | None:
    named = context.options.get("gguf")
    if named is not None:
        path = Path(named).expanduser()
        if not path.is_file():
            raise ParameterError("there is no such file", value=named, allowed="gguf=FILE")
        return path
    if context.options.get("model") == SPOT:
        path = pack.folder / "float32.gguf"
        return path if path.is_file() else kquants.write_gguf(pack, path)
    return next(iter(sorted(pack.folder.glob("*.gguf"))), None)


def _plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw KL over bits per weight, one line a method, k-quants as points."""
    plot = pyplot()
    figure, axes = plot.subplots(figsize=(8, 5))
    for name, points in result["methods"].items():
        if points:
            line = [(point["bits"], point["kl"]["value"]) for point in points]
            axes.plot(*zip(*line, strict=True), marker="o", label=name)
    theirs = [
        (row["bits"], row["kl"]["value"], kind)
        for kind, row in result["rivals"].items()
        if "kl" in row
    ]
    if theirs:
        axes.scatter(
            [x for x, _, _ in theirs],
            [y for _, y, _ in theirs],
            marker="x",
            color="black",
            label="llama.cpp k-quants",
            zorder=3,
        )
        for x, y, kind in theirs:
            axes.annotate(kind, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set_yscale("log")
    axes.set_xlabel("bits per weight of the linear layers, everything counted")
    axes.set_ylabel("KL to the full model, nats per token")
    axes.set_title(f"{result['model']}: quality over bytes")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plot.close(figure)

"""KV methods at equal bytes: every task, every size, rivals beside them.

Every method gets the same bytes, staging and scales counted: 50, 25, 12 and 6 % of the full cache
in half precision. Variants of a method (parameters, how many tokens a prompt is read by) compete on
development items; what the sheet shows are test items, on which nothing was chosen. A chain that
drops no token takes part at a size when one of its widths fits there.

    kl          KL to the full cache on real text read on, nats per token
    needle      facts scattered thinly over prose         asked one by one after compression
    multikey    many facts over prose                     likewise
    lookup      a table of keys and values, five turns    in one session; the first turn is known
    dialogue    what people said they like                one by one

Questions are scored by candidates (`bench/contexts.py`); a task in which the full cache is not
twice as good as chance does not count. Methods meet on the mean of the tasks, by items both saw.

Options: tasks=kl,lookup, size=short|default|long, shares=0.25,0.12, contexts=10 (test items a
task), dev=4, rounds=3 (of timing; 0 leaves times out), chunks=whole,64, plot=FILE.svg,
fresh=yes (measure again what another
commit measured). --method may be repeated; --data FILE is real text for
kl in place of Python's help (a folder holds no such text).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

from loci.bench import texts
from loci.bench.cards import Row
from loci.bench.contest import Bench, Records, Settings, share_right
from loci.bench.plotting import pyplot
from loci.bench.reading import FULL, Contender
from loci.bench.stats import Estimate, mean, mean_of_groups
from loci.bench.suite import Context
from loci.models.load import resolve
from loci.run.lab import Lab

ABOUT = "KV methods at equal bytes on every task, rivals beside them: chosen on dev, shown on test"
KINDS = ("kv",)
METHODS: tuple[str, ...] = ()  # runs by its own name alone: it takes everybody, and long
RIVALS = ("random", "streaming_llm", "snapkv", "h2o", "keydiff", "kvzip", "kivi", "ggml_kv")
DEFAULT = (
    "random",
    "streaming_llm",
    "snapkv",
    "h2o",
    "keydiff",
    "kvzip",
    "compresskv",
    "windowkv",
    "prefixkv",
    *(f"kivi(bits={bits},waiting=1)" for bits in (2, 3, 4, 6)),
    "kivi(bits=2,group=64,waiting=1)",
    "ggml_kv",
    "ggml_kv(keys=q4_0,values=q4_0)",
    *(f"bfp(bits={bits})" for bits in (4, 5, 6, 8)),
    "turboquant",
    "turboquant(bits_k=3,bits_v=3,window=32,tail=16)",
    "turboquant(bits_k=3,bits_v=3,window=0,tail=4)",
    "turboquant(bits_k=3,bits_v=2,window=16,tail=8)",
    "turboquant(bits_k=2,bits_v=2,window=48,tail=8)",
    "kvtc(bits_k=4,bits_v=4,window=32)",
    "kvtc(window=32)",
    "comet_kv",
    "xquant-gl(bits=4)",
    "cskv(density_k=0.75,density_v=0.75)",
    "xkv",
    "keydiff | turboquant(window=16,tail=8)",
    "compresskv | turboquant(window=16,tail=8)",
    "snapkv | longmem(chunk=32,tier=disk)",
    "keydiff | longmem(chunk=32,tier=disk)",
)


def run(context: Context) -> dict[str, Any]:
    """Choose on development items, measure on test items, and put both on one sheet."""
    how = Settings.of(context)
    plot = context.options.get("plot")
    if plot is not None:
        pyplot()  # what is missing is said before the work, not after it
    pack = resolve(context.model, context.folder)
    lab = Lab(pack, context=how.tokens)
    try:
        bench = Bench(lab, how, context)
        everybody = bench.variants(context.methods or DEFAULT)
        dev = bench.measured("dev", everybody)
        full_bytes = lab.spec.kv_bytes(how.tokens)
        chosen = _chosen(everybody, dev, how, full_bytes)
        test = bench.measured("test", list(chosen.values()))
        times = bench.times(list(chosen.values())) if how.rounds else {}
    finally:
        lab.close()
        pack.close()
    result = {
        "model": context.model,
        "fingerprint": pack.spec.fingerprint,
        "text": texts.digest(how.text),
        "text_from": "Python's help" if how.text == texts.prose() else str(context.data),
        "tokens": how.tokens,
        "shares": list(how.shares),
        "full_bytes": full_bytes,
        "contexts": {"dev": how.dev, "test": how.contexts},
        "tasks": bench.tasks(test),
        "full": _figures(Contender(name=FULL), test, bench),
        "rows": [
            {
                "share": share,
                "method": family,
                "variant": cell.name,
                "chunk": cell.chunk,
                "is_rival": family in RIVALS,
                **_figures(cell, test, bench),
                **times.get(cell, {}),
            }
            for (family, share), cell in chosen.items()
            if cell in test
        ],
        "commits": sorted(bench.commits),
    }
    result["contests"] = _contests(result, chosen, dev, test, bench)
    if plot is not None:
        _plot(result, Path(plot))
        result["plot"] = plot
    return result


def sheet(result: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return tables to print, one a share: (title, head, rows)."""
    tasks = [task for task in result["tasks"] if task != "kl"]
    head = ["method", *(["KL"] if "kl" in result["tasks"] else []), *tasks]
    head += [*(["turn 1, later"] if "lookup" in tasks else []), "mean", "bytes", "peak"]
    head += ["prefill", "decode"]
    found = [("full cache", head, [_line("full", result["full"], result)])]
    for share in result["shares"]:
        rows = [row for row in result["rows"] if row["share"] == share]
        rows.sort(key=lambda row: -(row.get("mean") or {"value": 0})["value"])
        lines = [_line(row["variant"], row, result) for row in rows]
        found.append((f"{share:.0%} of {result['full_bytes'] / 2**20:.1f} MiB", head, lines))
    for contest in result["contests"]:
        if contest["against"]:
            lines = [
                [rival, f"{d['value']:+.3f}", f"{d['low']:+.3f} to {d['high']:+.3f}"]
                for rival, d in contest["against"].items()
            ]
            title = f"{contest['best']} at {contest['share']:.0%}, chosen on dev, less each rival"
            found.append((title, ["rival", "difference", "95 %"], lines))
    return found


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return every method at every share, beside the others at that share."""
    rows = []
    for row in result["rows"]:
        if "|" in row["variant"] or row.get("mean") is None:
            continue
        beside = [other for other in result["rows"] if other["share"] == row["share"]]
        metrics: dict[str, dict[str, Any]] = {}
        for what in (*result["tasks"], "mean"):
            of = {r["method"]: v for r in beside if (v := _value(r, what)) is not None}
            mine = of.pop(row["method"], None)
            if mine is None:
                continue
            metrics[what] = {"this": mine, "rivals": of}
            if (full := _value(result["full"], what)) is not None:
                metrics[what]["full"] = full
        rows.append(
            Row(
                method=row["variant"],
                kind="kv",
                part=f"{row['share']:g}",
                metrics=metrics,
                interval={"mean": (row["mean"]["low"], row["mean"]["high"])},
                bytes={
                    "full": result["full_bytes"],
                    "predicted": row["predicted_bytes"],
                    "measured": row["kv_bytes"],
                },
                ratio={
                    what: row[what]["ratio"]["value"]
                    for what in ("generation", "retrieval")
                    if what in row
                },
            )
        )
    return rows


# -- private: choosing and comparing ----------------------------------------------------------


def family_of(name: str) -> str:
    """Return a chain without its parameters: variants of one family compete on dev items."""
    return " | ".join(method.about.name for method in Contender(name=name).chain())


def _chosen(
    everybody: Iterable[Contender], dev: Mapping[Contender, Records], how: Settings, full: int
) -> dict[tuple[str, float], Contender]:
    """Return the variant of each family at each share that did best on the development items."""
    best: dict[tuple[str, float], tuple[tuple[float, float], Contender]] = {}
    for cell in everybody:
        if cell not in dev:
            continue
        mark = _mark(dev[cell])
        shares: Sequence[float] = (cell.share,) if cell.share is not None else ()
        if cell.share is None:  # its size is its own: it plays wherever it fits
            shares = [s for s in how.shares if _bytes_of(dev[cell]) <= s * full]
        for share in shares:
            place = (family_of(cell.name), share)
            if place not in best or mark > best[place][0]:
                best[place] = (mark, cell)
    return {place: cell for place, (_, cell) in sorted(best.items(), key=lambda x: -x[0][1])}


def _mark(records: Records) -> tuple[float, float]:
    """Return what decides on dev items: the mean over tasks, then how little is lost."""
    right = [
        _mean(share_right(r) for r in items) for task, items in records.items() if task != "kl"
    ]
    loss = [_mean(r["kl"] for r in records["kl"])] if "kl" in records else []
    losses = [
        _mean(x for r in items for x in r["loss"])
        for task, items in records.items()
        if task != "kl"
    ]
    return (_mean(right) if right else 0.0, -_mean([*loss, *losses]))


def _figures(cell: Contender, test: Mapping[Contender, Records], bench: Bench) -> dict[str, Any]:
    records, tasks = test[cell], bench.tasks(test)
    found: dict[str, Any] = {"tasks": {}, "mean": None}
    ranked = []
    for task, items in records.items():
        if task == "kl":
            found["tasks"]["kl"] = mean([record["kl"] for record in items]).to_json()
            found["tasks"]["kl"]["nll"] = _mean(record["nll"] for record in items)
            continue
        each = [share_right(record) for record in items]
        figures: dict[str, Any] = mean(each).to_json()
        figures["nll"] = _mean(x for record in items for x in record["loss"])
        figures["survival"] = _mean(x for record in items for x in record["survival"])
        if task == "lookup":
            figures["turn_1"] = _mean(float(record["right"][0]) for record in items)
            later = [x for record in items for x in record["right"][1:]]
            figures["later"] = _mean(map(float, later)) if later else None
        found["tasks"][task] = figures
        if tasks[task]["can_rank"]:
            ranked.append(each)
    if ranked:
        found["mean"] = mean_of_groups(ranked).to_json()
    for what in ("kv_bytes", "predicted_bytes", "peak_bytes"):
        found[what] = max(record[what] for items in records.values() for record in items)
    return found


def _contests(
    result: Mapping[str, Any],
    chosen: Mapping[tuple[str, float], Contender],
    dev: Mapping[Contender, Records],
    test: Mapping[Contender, Records],
    bench: Bench,
) -> list[dict[str, Any]]:
    """Return, for each share, our best on dev items less each rival, on the test items of both."""
    found = []
    for share in result["shares"]:
        here = {family: cell for (family, s), cell in chosen.items() if s == share and cell in test}
        ours = {family: cell for family, cell in here.items() if family not in RIVALS}
        if not ours:
            continue
        best = max(ours, key=lambda family: _mark(dev[ours[family]]))
        against = {}
        for rival in here:
            if rival in RIVALS:
                gap = _gap(test[here[best]], test[here[rival]], result["tasks"])
                if gap is not None:
                    against[rival] = gap.to_json()
        found.append(
            {
                "share": share,
                "best": here[best].name,
                "against": against,
                "beats_all": bool(against) and all(gap["low"] > 0 for gap in against.values()),
            }
        )
    return found


def _gap(ours: Records, theirs: Records, tasks: Mapping[str, Any]) -> Estimate | None:
    groups = [
        [share_right(a) - share_right(b) for a, b in zip(ours[task], theirs[task], strict=True)]
        for task, about in tasks.items()
        if about.get("can_rank")
    ]
    return mean_of_groups(groups) if groups else None


def _mean(values: Iterable[float]) -> float:
    held = list(values)
    return sum(held) / len(held)


def _bytes_of(records: Records) -> int:
    """Return the bytes a contender held at the longest of its items."""
    return max(record["kv_bytes"] for items in records.values() for record in items)


def _value(row: Mapping[str, Any], what: str) -> float | None:
    figures = row.get("mean") if what == "mean" else row["tasks"].get(what)
    return None if figures is None else figures["value"]


# -- private: showing -------------------------------------------------------------------------


def _line(name: str, row: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    cells = [name]
    if "kl" in result["tasks"]:
        cells.append(f"{row['tasks']['kl']['value']:.4f}")
    cells += [f"{row['tasks'][t]['value']:.2f}" for t in result["tasks"] if t != "kl"]
    if "lookup" in result["tasks"]:
        turns = [row["tasks"]["lookup"][what] for what in ("turn_1", "later")]
        cells.append(", ".join("-" if turn is None else f"{turn:.2f}" for turn in turns))
    spread = row.get("mean")
    cells.append(
        f"{spread['value']:.2f} ({spread['low']:.2f}-{spread['high']:.2f})" if spread else "-"
    )
    cells += [f"{row[what] / 2**20:.2f} MiB" for what in ("kv_bytes", "peak_bytes")]
    for what in ("generation", "retrieval"):
        times = row.get(what, {}).get("ratio")
        cells.append(f"x{times['value']:.2f}" if times else "-")
    return cells


def _plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw every task and the mean over the share of bytes, one line a method."""
    plot = pyplot()
    names = [*result["tasks"], *(["mean"] if result["full"]["mean"] else [])]
    figure, axes = plot.subplots(1, len(names), figsize=(4 * len(names), 4), squeeze=False)
    for panel, what in zip(axes[0], names, strict=True):
        for family in dict.fromkeys(row["method"] for row in result["rows"]):
            line = sorted(
                (100 * row["kv_bytes"] / result["full_bytes"], _value(row, what))
                for row in result["rows"]
                if row["method"] == family and _value(row, what) is not None
            )
            if not line:
                continue
            style = "--" if family in RIVALS else "-"
            panel.plot(*zip(*line, strict=True), style, marker="o", markersize=3, label=family)
        full = _value(result["full"], what)
        if full is not None and what != "kl":
            panel.axhline(full, color="black", linewidth=0.8, linestyle=":")
        if what == "kl":
            panel.set_yscale("log")
        panel.set_xscale("log")
        panel.set_title(what)
        panel.set_xlabel("% of the full cache's bytes")
        panel.grid(True, which="both", alpha=0.3)
    axes[0][-1].legend(fontsize=7)
    figure.suptitle(f"{result['model']}: KV methods at equal bytes, {result['tokens']} tokens")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plot.close(figure)

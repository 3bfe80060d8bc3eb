"""Results for people, as a table and as pictures, and for programs, as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.limits import Limits, Work
from bench.peers import ENGINES
from bench.runner import CaseResult, EngineResult
from bench.timing import geometric_mean


def digits(value: float) -> str:
    """Three significant ones, more before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def milliseconds(seconds: float) -> str:
    return f"{digits(seconds * 1e3)} ms"


def rate(result: CaseResult, seconds: float, limits: Limits) -> str:
    """Tokens a second where the case counts them; else GFLOP/s where arithmetic bounds the case,
    GB/s where memory does."""
    work = result.work
    if result.units:
        return f"{digits(result.units / seconds)} tokens/s"
    if limits.is_arithmetic(work):
        return f"{digits(work.flops / seconds / 1e9)} GFLOP/s"
    return f"{digits(work.bytes / seconds / 1e9)} GB/s"


def bound(work: Work, limits: Limits) -> str:
    """What the limit consists in: arithmetic, or a bandwidth and the bytes it was measured at."""
    if limits.is_arithmetic(work):
        return "FMA"
    where = ""
    if limits.l2:
        where = ", in L2" if work.touched < limits.l2 else ", beyond L2"
    return f"{digits(work.touched / 2**20)} MiB at {digits(limits.bandwidth(work))} GB/s{where}"


def case_lines(result: CaseResult, limits: Limits) -> list[str]:
    """A block of the console's table: the case, then a line an engine."""
    limit = limits.seconds(result.work)
    lines = [
        f"{result.bench} {result.name}   "
        f"(limit {milliseconds(limit)}: {bound(result.work, limits)})"
    ]
    peer = result.best_peer()
    for engine, outcome in result.engines.items():
        label = f"  {ENGINES[engine].label:<14}"
        if outcome.timing is None:
            lines.append(f"{label}{outcome.problem}")
            continue
        median = outcome.timing.median
        low, high = outcome.timing.spread
        times = (
            f"{label}{milliseconds(median):>10}  {milliseconds(low):>9} .. {milliseconds(high):<9}"
        )
        if is_variant(engine):
            # Fewer bits have a limit of their own, which is not measured.
            lines.append(f"{times}  {variant_note(result, engine)}".rstrip())
            continue
        note = ""
        if peer is not None and engine == peer[0]:
            note = "best peer"
        elif engine == "softgate" and (speedup := result.speedup()) is not None:
            note = f"{speedup:.2f} x best peer"
        lines.append(
            f"{times}{rate(result, median, limits):>16}{limit / median:>6.0%} of limit  "
            f"{note}".rstrip()
        )
    return lines


def is_variant(engine: str) -> bool:
    """Whether it is softgate with weights of fewer bits."""
    return engine != "softgate" and not ENGINES[engine].is_peer


def variant_note(result: CaseResult, engine: str) -> str:
    notes = []
    if (gain := result.over_float32(engine)) is not None:
        notes.append(f"{gain:.2f} x float32")
    if (error := result.engines[engine].error) is not None:
        notes.append(f"off by {error:.1e}")
    return ", ".join(notes)


def table_lines(results: Sequence[CaseResult], limits: Limits) -> list[str]:
    """Markdown, a row for each case that softgate and a peer have answered."""
    lines = ["| case | softgate | best peer | ratio | share of the limit |", f"|{' --- |' * 5}"]
    for result in results:
        ours, peer = result.median("softgate"), result.best_peer()
        if ours is None or peer is None:
            continue
        engine, median = peer
        limit = limits.seconds(result.work)
        cells = (
            result.name,
            milliseconds(ours),
            f"{milliseconds(median)}, {ENGINES[engine].label}",
            f"{median / ours:.2f}",
            f"{limit / ours:.0%} of {milliseconds(limit)}: {bound(result.work, limits)}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def group_lines(results: Sequence[CaseResult], limits: Limits) -> list[str]:
    """A line a group: softgate's speed over the best peer's, and its share of the limit."""
    lines = []
    for group in dict.fromkeys(result.group for result in results):
        ratios, shares = {}, {}
        for result in results:
            ours, speedup = result.median("softgate"), result.speedup()
            if result.group == group and ours is not None and speedup is not None:
                ratios[result.name] = speedup
                shares[result.name] = limits.seconds(result.work) / ours
        if ratios:
            lines.append(
                f"{group}, {len(ratios)} cases: x best peer {mean_and_worst(ratios, '.2f')}; "
                f"of the limit {mean_and_worst(shares, '.0%')}"
            )
    return lines


def mean_and_worst(values: Mapping[str, float], form: str) -> str:
    worst = min(values, key=values.__getitem__)
    mean = geometric_mean(list(values.values()))
    return f"{mean:{form}} in geometric mean, at least {values[worst]:{form}} ({worst})"


def summary_line(results: Sequence[CaseResult]) -> str | None:
    """The geometric mean of softgate's speed over the best peer's."""
    speedups = [speedup for result in results if (speedup := result.speedup()) is not None]
    if not speedups:
        return None
    return (
        f"{len(speedups)} cases: {geometric_mean(speedups):.2f} x the best peer in geometric mean"
    )


def limits_lines(limits: Limits) -> list[str]:
    """The hardware's limits, as measured."""
    fma = ", ".join(f"{rate:.0f} GFLOP/s on {n}" for n, rate in limits.fma.items())
    lines = [f"limits: fp32 FMA {fma} threads, {limits.vector_bits}-bit vectors"]
    if limits.is_disturbed:
        lines.append("  the threads do not have the cores to themselves: do not trust this run")
    lines.append(f"  GB/s, {limits.threads} threads   " + "read   copy   copy, streaming stores")
    for size in limits.read:
        values = (limits.read[size], limits.copy[size], limits.copy_streaming[size])
        lines.append(f"  {size / 2**20:>8g} MiB   " + "".join(f"{value:>7.1f}" for value in values))
    return lines


def machine() -> dict[str, Any]:
    """What a reader must know to place the numbers."""
    return {
        "cpu": cpu_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def as_json(
    results: Sequence[CaseResult], limits: Limits, versions: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "machine": machine(),
        "versions": dict(versions),
        "limits": limits.as_json(),
        "results": [
            {
                "bench": result.bench,
                "case": result.name,
                "group": result.group,
                "work": asdict(result.work),
                "limit_seconds": limits.seconds(result.work),
                "speedup_over_best_peer": result.speedup(),
                "engines": {engine: _engine_json(r) for engine, r in result.engines.items()},
            }
            for result in results
        ],
    }


def _engine_json(result: EngineResult) -> dict[str, Any]:
    if result.timing is None:
        return {"problem": result.problem, "error": result.error}
    low, high = result.timing.spread
    return {
        "median": result.timing.median,
        "p10": low,
        "p90": high,
        "samples": list(result.timing.seconds),
        "error": result.error,
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def write_roofline(path: Path, results: Sequence[CaseResult], limits: Limits) -> None:
    """GFLOP/s over intensity, under the roofs that the limits make (Williams et al. 2009)."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(10, 6.5), layout="constrained")
    intensities = [result.work.intensity for result in results]
    left, right = min(intensities) / 3, max(intensities) * 3
    for size, bandwidth in limits.read.items():
        ridge = limits.peak_gflops / bandwidth
        axes.plot(
            [left, max(left, ridge)],
            [left * bandwidth, max(left, ridge) * bandwidth],
            color="0.75",
            linewidth=0.8,
            zorder=1,
        )
        axes.annotate(
            f"read {size / 2**20:g} MiB", (left, left * bandwidth), color="0.5", fontsize=7
        )
    axes.axhline(limits.peak_gflops, color="0.4", linewidth=1, zorder=1)
    axes.annotate(
        f"FMA {limits.peak_gflops:.0f} GFLOP/s",
        (right, limits.peak_gflops),
        ha="right",
        va="bottom",
        fontsize=8,
    )
    colors = _colors(results)
    markers = dict(zip(dict.fromkeys(result.bench for result in results), "os^Dvph", strict=False))
    for result in results:
        for engine, color in colors.items():
            if (median := result.median(engine)) is not None:
                axes.scatter(
                    result.work.intensity,
                    result.work.flops / median / 1e9,
                    color=color,
                    marker=markers[result.bench],
                    s=30,
                    zorder=3 if engine == "softgate" else 2,
                )
    for engine, color in colors.items():
        axes.scatter([], [], color=color, label=ENGINES[engine].label)
    for bench, marker in markers.items():
        axes.scatter([], [], color="0.4", marker=marker, label=bench)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(left, right),
        xlabel="FLOP / byte",
        ylabel="GFLOP/s",
        title=f"kernels, {limits.threads} threads, {cpu_name()}",
    )
    axes.legend()
    save(figure, path)


def write_bars(path: Path, results: Sequence[CaseResult], limits: Limits) -> None:
    """Milliseconds an engine needs, a panel a case, with the limit as a line."""
    plt = pyplot()
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(4 * columns, 2.4 * rows), squeeze=False, layout="constrained"
    )
    colors = _colors(results)
    for axes in grid.flat[len(results) :]:
        axes.set_axis_off()
    for axes, result in zip(grid.flat, results, strict=False):
        timed = [
            (engine, outcome.timing)
            for engine, outcome in reversed(list(result.engines.items()))
            if outcome.timing is not None
        ]
        medians = [timing.median * 1e3 for _, timing in timed]
        spreads = [timing.spread for _, timing in timed]
        axes.barh(
            [ENGINES[engine].label for engine, _ in timed],
            medians,
            xerr=[
                [median - low * 1e3 for median, (low, _) in zip(medians, spreads, strict=True)],
                [high * 1e3 - median for median, (_, high) in zip(medians, spreads, strict=True)],
            ],
            color=[colors[engine] for engine, _ in timed],
            error_kw={"linewidth": 0.8},
        )
        axes.axvline(limits.seconds(result.work) * 1e3, color="0.4", linewidth=1, linestyle="--")
        axes.set_title(result.name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("ms (dashed: hardware limit)", fontsize=7)
    save(figure, path)


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def _colors(results: Sequence[CaseResult]) -> dict[str, str]:
    """One colour an engine, the same in every picture."""
    present = {engine for result in results for engine in result.engines}
    palette = (
        *("tab:red", "tab:pink", "tab:brown"),  # softgate's
        *("tab:orange", "tab:olive", "tab:blue", "tab:purple", "tab:green", "tab:cyan"),
        *("teal", "sandybrown", "skyblue", "plum", "lightgreen", "tab:gray"),
    )
    return {
        engine: color for engine, color in zip(ENGINES, palette, strict=True) if engine in present
    }


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)

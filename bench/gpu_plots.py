"""gpu-report's page of plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gpu_cases import Attention, GpuCase, Linear, Recurrent
from bench.gpu_report import GpuLimits, GpuResult, check_line
from bench.gpu_stacks import BertLayers, RecurrentLayers
from bench.report import milliseconds, pyplot, save

COLORS = {"softgate": "tab:red", "torch": "tab:gray"}


def write_page(
    path: Path,
    title: str,
    check: Mapping[str, Any],
    results: Sequence[GpuResult],
    limits: GpuLimits,
    smoke: bool,
) -> None:
    """Six panels: attention, products, rows, recurrent layers, stacks, and what the tests said."""
    figure, grid = pyplot().subplots(2, 3, figsize=(18, 12), layout="constrained")
    figure.suptitle(title)
    shares = "share of the limit"
    panels: list[tuple[str, tuple[type[GpuCase], ...], str]] = [
        ("attention", (Attention,), shares),
        ("linear, with bias and GELU", (Linear,), shares),
        ("rows", (), shares),
        ("recurrent layers", (Recurrent,), "us a step"),
        ("stacks", (BertLayers, RecurrentLayers), "ms"),
    ]
    named = tuple(kind for _, kinds, _ in panels for kind in kinds)
    for axes, (name, kinds, unit) in zip(grid.flat, panels, strict=False):
        chosen = [
            result
            for result in results
            if (isinstance(result.case, kinds) if kinds else not isinstance(result.case, named))
        ]
        axes.set_title(name)
        _bars(axes, chosen, unit, values[unit], limits, smoke)
    _text(grid.flat[5], check, results, limits, smoke)
    save(figure, path)


def _share(result: GpuResult, median: float, limits: GpuLimits) -> float:
    return limits.seconds(result.case.work, result.case.dtype) / median


def _per_step(result: GpuResult, median: float, limits: GpuLimits) -> float:
    return median / (result.case.steps or 1) * 1e6


def _milliseconds(result: GpuResult, median: float, limits: GpuLimits) -> float:
    return median * 1e3


values: dict[str, Callable[[GpuResult, float, GpuLimits], float]] = {
    "share of the limit": _share,
    "us a step": _per_step,
    "ms": _milliseconds,
}


def _bars(
    axes: Any,
    results: Sequence[GpuResult],
    unit: str,
    value: Callable[[GpuResult, float, GpuLimits], float],
    limits: GpuLimits,
    smoke: bool,
) -> None:
    """A case a row, an engine a bar, its rate beside it."""
    if smoke:
        axes.text(0.5, 0.5, "smoke test: no times", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    height = 0.8 / len(COLORS)
    for row, result in enumerate(results):
        for place, (engine, color) in enumerate(COLORS.items()):
            median = result.median(engine)
            if median is None:
                continue
            y = row + (place - 0.5) * height
            length = value(result, median, limits)
            axes.barh(y, length, height, color=color)
            note = f" {milliseconds(median)}, {result.rate(engine, limits)}"
            axes.text(length, y, note, va="center", fontsize=5)
    axes.set_yticks(range(len(results)), [result.case.name for result in results], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel(unit, fontsize=8)
    axes.margins(x=0.25)
    if unit == "share of the limit":
        axes.axvline(1.0, color="0.4", linewidth=1, linestyle="--")
    elif results:
        axes.set_xscale("log")


def _text(
    axes: Any,
    check: Mapping[str, Any],
    results: Sequence[GpuResult],
    limits: GpuLimits,
    smoke: bool,
) -> None:
    lines = [check_line(check)]
    if not smoke:
        lines.append(f"copy {limits.copy:.0f} GB/s, bytes read and bytes written")
        lines += [f"{n} {rate / 1e3:.1f} TFLOP/s" for n, rate in limits.rates.items()]
    for result in results:
        lines += [
            f"{result.case.name}, {engine}: {said['problem']}"
            for engine, said in result.engines.items()
            if "problem" in said
        ]
    lines += [f"FAILED {failure['test']}" for failure in check["failures"][:20]]
    left_out = sum(not result.engines for result in results)
    lines.append(f"{len(results) - left_out} cases run, {left_out} left out")
    axes.text(0, 1, "\n".join(lines), va="top", fontsize=7, transform=axes.transAxes, wrap=True)
    for engine, color in COLORS.items():
        axes.barh([0], [0], color=color, label=engine)
    axes.legend(loc="lower left")
    axes.set_axis_off()

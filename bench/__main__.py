"""Command line of the benchmarks: `python -m bench kernels`, `recurrent`, `models` and so on."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from bench import accuracy, breakdown, exports, gpu_report, memory, report, startup
from bench.bench_bert import Bert
from bench.case import KERNELS, MODELS, RECURRENT, Case, select
from bench.limits import ROOT, Limits, probe
from bench.peers import ENGINES, missing_packages, thread_settings, version, workers
from bench.runner import CaseResult, run_case
from bench.timing import Effort

RESULTS = ROOT / "bench" / "results"


class EngineNames(click.ParamType[tuple[str, ...]]):
    name = "a,b,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        names = tuple(value.replace("torch.compile", "torch_compile").split(","))
        for name in names:
            if name not in ENGINES:
                self.fail(f"{name!r} is not one of {', '.join(ENGINES)}", param, ctx)
        return names


output_option = click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    help="Folder for the JSON and the picture.",
)


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.option("--quick", is_flag=True, help="Few samples: a smoke test, not a result."),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            default=len(os.sched_getaffinity(0)),
            show_default=True,
            help="Threads of every engine.",
        ),
    ]
    return functools.reduce(lambda decorated, option: option(decorated), options, command)


def case_options(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.option("--filter", "pattern", default="", help="Only cases whose name holds this."),
        click.option(
            "--engines",
            type=EngineNames(),
            default=",".join(ENGINES),
            help=f"Only these of {', '.join(ENGINES)}.",
        ),
        output_option,
    ]
    return functools.reduce(
        lambda decorated, option: option(decorated), options, common_options(command)
    )


@click.group()
def main() -> None:
    """Compare softgate with its peers, every engine in a process of its own."""


@main.command()
@case_options
def kernels(pattern: str, output: Path, **settings: Any) -> None:
    """Single kernels against torch; JSON and a roofline."""
    results, limits = run(list(select(KERNELS, pattern)), output / "kernels.json", **settings)
    report.write_roofline(output / "kernels.png", results, limits)
    finish(results, output / "kernels")


@main.command()
@case_options
def recurrent(pattern: str, output: Path, **settings: Any) -> None:
    """Recurrent layers over whole sequences against every peer; JSON, bars and a table."""
    cases = list(select(RECURRENT, pattern))
    results, limits = run(cases, output / "recurrent.json", **settings)
    report.write_bars(output / "recurrent.png", results, limits)
    click.echo("\n".join(["", *report.table_lines(results, limits)]))
    click.echo("\n".join(["", *report.group_lines(results, limits)]))
    finish(results, output / "recurrent")


@main.command()
@case_options
def models(pattern: str, output: Path, **settings: Any) -> None:
    """Whole encoders against every peer; JSON and bars."""
    cases = list(select(MODELS, pattern))
    for model in exports.MODELS:
        if any(model in case.name for _, case in cases):
            exports.ensure(model)
    results, limits = run(cases, output / "models.json", **settings)
    report.write_bars(output / "models.png", results, limits)
    finish(results, output / "models")


@main.command("startup")
@common_options
def start_processes(quick: bool, threads: int) -> None:
    """From the start of a process to its first embedding, and its peak memory."""
    exports.ensure("minilm")
    engines = available(tuple(startup.EMBEDDINGS))
    starts: dict[str, list[startup.Startup]] = {engine: [] for engine in engines}
    for _ in range(3 if quick else 15):
        for engine in engines:
            starts[engine].append(startup.start(engine, threads))
    if (apart := startup.disagreement(starts)) > startup.TOLERANCE:
        raise click.ClickException(f"the embeddings are {apart:.1e} apart")
    click.echo(f"start to first embedding, all-MiniLM-L6-v2, {threads} threads")
    for engine in engines:
        click.echo(startup.line(ENGINES[engine].label, starts[engine]))


@main.command("memory")
@click.option("--filter", "pattern", default="marian", show_default=True, help="Only such cases.")
@common_options
def peak_memory(pattern: str, quick: bool, threads: int) -> None:
    """Peak memory of models, each engine and case in a new process that runs it once."""
    del quick  # once is all there is
    for bench, case in select(MODELS, pattern):
        for model in exports.MODELS:
            if model in case.name:
                exports.ensure(model)
        click.echo(f"{bench} {case.name}, {threads} threads")
        for engine in available(case.engines):
            peak = memory.peak_bytes(engine, bench, case.name, threads)
            click.echo(f"  {ENGINES[engine].label:<14}{peak / 2**20:.0f} MiB")


@main.command("accuracy")
@common_options
def compare_accuracy(quick: bool, threads: int) -> None:
    """Cosines of MiniLM's vectors of real sentences in 8 bits to those in float32."""
    del quick  # nothing is timed
    exports.ensure("minilm")
    os.environ.update(thread_settings(threads))
    case = accuracy.case()
    expected = case.reference(case.inputs())
    click.echo(f"{case.name}: cosine to float32")
    for engine in available(case.engines):
        click.echo(accuracy.line(ENGINES[engine].label, accuracy.cosines(case, engine, expected)))


@main.command("breakdown")
@click.option("--filter", "pattern", default="", help="Only cases whose name holds this.")
@common_options
def break_down(pattern: str, quick: bool, threads: int) -> None:
    """Each kernel of softgate's encoder layer at the models' batches."""
    import softgate

    softgate.set_num_threads(threads)
    limits = probe(threads, quick=quick)
    for bench, case in select(MODELS, pattern):
        if type(case) is Bert:  # not in integers
            steps = breakdown.layer_steps(case)
            timings = breakdown.time_steps(steps, Effort.quick() if quick else Effort())
            click.echo(
                "\n".join([f"{bench} {case.name}", *breakdown.lines(steps, timings, limits), ""])
            )


@main.command("gpu-report")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), default=8.0, show_default=True
)
@click.option("--smoke", is_flag=True, help="Tiny sizes, few tests, no times: for an interpreter.")
@output_option
def gpu(minutes: float, smoke: bool, output: Path) -> None:
    """Build for the card found, test every kernel on it, time kernels and stacks; JSON, plots."""
    sys.exit(gpu_report.report(output, minutes, smoke))


def run(
    cases: Sequence[tuple[str, Case]],
    json_path: Path,
    *,
    engines: tuple[str, ...],
    quick: bool,
    threads: int,
) -> tuple[list[CaseResult], Limits]:
    """Measure the limits, then every case on every engine; print and write as they come.

    Then measure the limits again: those that are returned are the better of both.
    """
    if not cases:
        raise click.UsageError("no case has this in its name")
    wanted = {engine for _, case in cases for engine in case.engines}
    present = available(tuple(engine for engine in engines if engine in wanted))
    limits = probe(threads, quick=quick)
    click.echo("\n".join(report.limits_lines(limits)))
    effort = Effort.quick() if quick else Effort()
    versions = {engine: version(engine) for engine in present}
    results = []
    with workers(present, threads) as processes:
        for bench, case in cases:
            results.append(run_case(bench, case, processes, effort))
            click.echo("\n".join(["", *report.case_lines(results[-1], limits)]))
            report.write_json(json_path, report.as_json(results, limits, versions))
    limits = limits.or_better(probe(threads, quick=quick))
    click.echo("\n".join(["", "before or after, the better:", *report.limits_lines(limits)]))
    report.write_json(json_path, report.as_json(results, limits, versions))
    return results, limits


def available(engines: Sequence[str]) -> list[str]:
    """Those that are installed; the others are said to be missing."""
    present = []
    for engine in engines:
        if missing := missing_packages(engine):
            click.echo(f"{ENGINES[engine].label}: missing, needs {', '.join(missing)}", err=True)
        else:
            present.append(engine)
    return present


def finish(results: Sequence[CaseResult], stem: Path) -> None:
    """Say where the results are; fail when softgate gave no right answer somewhere."""
    if summary := report.summary_line(results):
        click.echo(f"\n{summary}")
    click.echo(f"written: {stem}.json, {stem}.png")
    ours = [result.engines["softgate"] for result in results if "softgate" in result.engines]
    if any(outcome.problem for outcome in ours):
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m bench")

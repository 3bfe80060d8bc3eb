"""`python -m bench gpu-report`: all that a machine with a card can tell, in one command.

Builds the backend for the card, runs the op table and the stacks on it, then times kernels and
stacks against the card's own copy bandwidth and matrix rate, measured in the same run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from bench.gpu_cases import GpuCase
from bench.gpu_timing import all_cases
from bench.limits import ROOT, Work
from bench.report import digits, machine, milliseconds, write_json
from bench.timing import Timing

BUILD = ROOT / "build" / "gpu-report"
PACKAGE = BUILD / "package"
LIMITS_SOURCE = ROOT / "csrc" / "bench" / "gpu_limits.cu"
OLDEST = (7, 5)
NEEDED = ("pybind11", "pytest")
USES_DEVICE = re.compile(r"^def \w+\([^)]*\bdevice\b", re.MULTILINE)

# Of the whole time: the longest a build may take, and what stays for the picture.
BUILD_SHARE = 0.7
PICTURE_SECONDS = 15.0
# Of what is left after the build.
CHECK_SHARE = 0.5
# Preparing a case takes about as long as sampling it.
SAMPLING_SHARE = 0.4
MAX_SAMPLING_SECONDS = 1.0
MAX_FAILURES = 20  # an error on a card makes all later tests of the process fail
SMOKE_EVERY = 331  # tests of the table, on an interpreter


class Budget:
    """The time that the whole report may take."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


@dataclass(frozen=True)
class GpuLimits:
    """GB/s of a copy, bytes read and bytes written, and GFLOP/s by dtype: those of our own loop of
    multiply-adds or, where it is faster, of cuBLAS through torch."""

    copy: float
    rates: Mapping[str, float]

    def seconds(self, work: Work, dtype: str) -> float:
        return max(work.flops / self.rates[dtype], work.bytes / self.copy) / 1e9

    def is_arithmetic(self, work: Work, dtype: str) -> bool:
        return work.flops / self.rates[dtype] >= work.bytes / self.copy

    def or_better(self, rates: Mapping[str, float]) -> GpuLimits:
        better = {name: max(rate, rates.get(name, 0.0)) for name, rate in self.rates.items()}
        return GpuLimits(self.copy, better)


@dataclass
class GpuResult:
    """What each engine said to a case: error, samples and how, or the problem."""

    case: GpuCase
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)

    def median(self, engine: str) -> float | None:
        samples = self.engines.get(engine, {}).get("samples")
        return Timing(tuple(samples)).median if samples else None

    def rate(self, engine: str, limits: GpuLimits) -> str:
        """In the unit of what limits the case."""
        seconds, work = self.median(engine), self.case.work
        if seconds is None:
            return ""
        if limits.is_arithmetic(work, self.case.dtype):
            return f"{digits(work.flops / seconds / 1e12)} TFLOP/s"
        return f"{digits(work.bytes / seconds / 1e9)} GB/s"


def report(output: Path, minutes: float, smoke: bool) -> int:
    """Everything, in order. Gives the exit status: 1 where something was wrong."""
    budget = Budget(60.0 * minutes)
    nvcc = find_tools()
    if importlib.util.find_spec("matplotlib") is None:
        click.echo("matplotlib is missing: no page of plots (pip install matplotlib)", err=True)
    limits_program = build_limits(nvcc, budget, shared_runtime=smoke)
    card = find_card(limits_program, smoke)
    click.echo(title(card, smoke))
    content: dict[str, Any] = {
        "smoke": smoke,
        "card": card,
        "machine": machine(),
        "source": source_version(),
        "seconds": {},
    }
    path = output / "gpu-report.json"

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        click.echo(f"{name} ...")
        start = time.monotonic()
        yield
        content["seconds"][name] = round(time.monotonic() - start, 1)
        write_json(path, content)

    with stage("build"):
        build(nvcc, card, budget, shared_runtime=smoke)
    with stage("check"):
        content["check"] = check(budget, smoke)
    click.echo(check_line(content["check"]))
    with stage("limits"):
        limits = measure_limits(limits_program, budget, smoke)
    with stage("time"):
        results, limits = time_cases(card, limits, budget, smoke)
        content |= results_json(results, limits, smoke)
    for failure in content["check"]["failures"][:MAX_FAILURES]:
        click.echo(f"FAILED {failure['test']}")
    written = [path]
    if importlib.util.find_spec("matplotlib") is not None:
        from bench.gpu_plots import write_page

        written.append(output / "gpu-report.png")
        write_page(written[-1], title(card, smoke), content["check"], results, limits, smoke)
    click.echo(f"written: {', '.join(map(str, written))}")
    problems = any("problem" in said for r in results for said in r.engines.values())
    return int(problems or bool(content["check"]["failed"]) or not content["check"]["passed"])


def find_tools() -> Path:
    """nvcc, wherever it is; raises with all that is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    missing += [name for name in ("cmake", "c++") if shutil.which(name) is None]
    if missing:
        raise click.ClickException(f"gpu-report needs {', '.join(missing)}: pip install '.[gpu]'")
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    places = [Path(home) / "bin" for home in (*homes, "/usr/local/cuda")]
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(map(str, places)))
    if nvcc is None:
        raise click.ClickException(
            "gpu-report builds the CUDA backend and finds no nvcc, neither on the PATH nor in "
            "CUDA_HOME or /usr/local/cuda: install the CUDA toolkit, 12.8 or newer"
        )
    return Path(nvcc)


def build_limits(nvcc: Path, budget: Budget, *, shared_runtime: bool) -> Path:
    """PTX of two generations, which the driver compiles for the card at hand."""
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / "gpu_limits"
    options = ["-std=c++20", "-O3", f"-I{ROOT / 'csrc'}"]
    options += [f"-gencode=arch=compute_{n},code=compute_{n}" for n in (75, 80)]
    options += ["-cudart", "shared" if shared_runtime else "static"]
    command = [str(nvcc), *options, str(LIMITS_SOURCE), "-o", str(program)]
    run_logged(command, "nvcc", budget.left * BUILD_SHARE)
    return program


def find_card(limits_program: Path, smoke: bool) -> dict[str, Any]:
    """Its name and sizes; raises with the reason why there is none that can be used."""
    found = subprocess.run([limits_program, "card"], capture_output=True, text=True)
    if found.returncode != 0:
        raise click.ClickException(f"gpu-report: {found.stderr.strip() or 'no card was found'}")
    card: dict[str, Any] = json.loads(found.stdout)
    if tuple(card["capability"]) < OLDEST:
        raise click.ClickException(
            f"gpu-report: the compute capability of {card['name']} is "
            f"{'.'.join(map(str, card['capability']))}, expected 7.5 or newer"
        )
    if is_interpreter(card) and not smoke:
        raise click.ClickException(
            f"gpu-report: {card['name']} interprets kernels and has no times: use --smoke"
        )
    return card


def is_interpreter(card: Mapping[str, Any]) -> bool:
    return "no GPU" in card["name"]


def title(card: Mapping[str, Any], smoke: bool) -> str:
    capability = ".".join(map(str, card["capability"]))
    text = f"{card['name']}, compute capability {capability}, {card['multiprocessors']} SMs"
    return f"SMOKE TEST, no times: {text}" if smoke else text


def source_version() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def build(nvcc: Path, card: Mapping[str, Any], budget: Budget, *, shared_runtime: bool) -> None:
    """The extension and its backend for this card, beside a copy of the Python files."""
    shutil.copytree(
        ROOT / "python" / "softgate",
        PACKAGE / "softgate",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    number = "".join(map(str, card["capability"]))
    options = {
        "SOFTGATE_CUDA": "on",
        "SOFTGATE_CUDA_ARCHITECTURES": number if shared_runtime else f"{number}-real",
        "SOFTGATE_CUDA_RUNTIME": "Shared" if shared_runtime else "Static",
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CUDA_COMPILER": nvcc,
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": PACKAGE / "softgate",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11_folder(),
    }
    folder = BUILD / "cmake"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["cmake", *generator, "-S", str(ROOT), "-B", str(folder)]
    run_logged(
        [*configure, *(f"-D{name}={value}" for name, value in options.items())],
        "cmake",
        budget.left * BUILD_SHARE,
    )
    jobs = str(len(os.sched_getaffinity(0)))
    command = ["cmake", "--build", str(folder), "--parallel", jobs, "--target", "_core", "_cuda"]
    run_logged(command, "build", budget.left * BUILD_SHARE)


def pybind11_folder() -> str:
    command = [sys.executable, "-m", "pybind11", "--cmakedir"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def run_logged(command: Sequence[str], name: str, seconds: float) -> None:
    """Runs it with its output in a file; raises with the end of that when it fails."""
    log = BUILD / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        try:
            status = process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise click.ClickException(
                f"gpu-report: {name} took more than {seconds:.0f} s; what is built stays: run it "
                "again, or give it more --minutes"
            ) from None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if status != 0:
        raise click.ClickException(f"gpu-report: {name} failed, see {log}:\n{last_lines(log)}")


def last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])


def environment() -> dict[str, str]:
    """Of the processes that use the build."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE), str(ROOT)])}


def device_tests() -> list[str]:
    """The files whose tests run on a device, but for the test of this report."""
    return [
        str(path)
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        if USES_DEVICE.search(path.read_text("utf-8")) and path.name != "test_gpu_report.py"
    ]


def check(budget: Budget, smoke: bool) -> dict[str, Any]:
    """The op table and the stacks on the card."""
    summary = BUILD / "check.json"
    summary.unlink(missing_ok=True)
    seconds = (budget.left - PICTURE_SECONDS) * CHECK_SHARE
    options = {
        "--device": "cuda",
        "--until": time.time() + seconds,
        "--every": SMOKE_EVERY if smoke else 1,
        "--summary": summary,
        "--build": PACKAGE,
    }
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
    command += ["-p", "bench.gpu_checks", f"--maxfail={MAX_FAILURES}"]
    command += [str(part) for option in options.items() for part in option]
    log = BUILD / "check.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *device_tests()], cwd=ROOT, env=environment(), stdout=file, stderr=file
        )
        timer = threading.Timer(seconds + 30.0, process.kill)  # a kernel that never ends
        timer.start()
        process.wait()
        timer.cancel()
    if not summary.exists():  # it crashed, or hung
        named = [line for line in log.read_text(errors="replace").splitlines() if "::" in line]
        last = named[-1].split()[0] if named else "none"
        failure = {"test": f"{last} ended the tests, see {log}", "message": last_lines(log)}
        return {"passed": 0, "failed": 1, "skipped": 0, "not_run": 0, "failures": [failure]}
    found: dict[str, Any] = json.loads(summary.read_text())
    return found


def check_line(found: Mapping[str, Any]) -> str:
    line = f"tests: {found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped"
    return f"{line}, {found['not_run']} left out for time" if found["not_run"] else line


def measure_limits(program: Path, budget: Budget, smoke: bool) -> GpuLimits:
    command = [program, "smoke" if smoke else "measure"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=max(1.0, budget.left)
        )
    except subprocess.CalledProcessError as error:
        raise click.ClickException(f"gpu-report: limits: {error.stderr.strip()}") from None
    except subprocess.TimeoutExpired:
        raise click.ClickException("gpu-report: the limits took all the time left") from None
    return GpuLimits(**json.loads(found.stdout))


class Engine:
    """A process of bench.gpu_timing, started again after a case that it failed in."""

    def __init__(self, name: str, smoke: bool) -> None:
        self.name = name
        self._smoke = "smoke" if smoke else "measure"
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        process = self._process or self._start()
        timer = threading.Timer(max(1.0, seconds), process.kill)
        timer.start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        timer.cancel()
        log = BUILD / f"{self.name}.log"
        problem = f"failed: the process ended, see {log}"
        said: dict[str, Any] = json.loads(line) if line else {"problem": problem}
        if said.get("problem", "").startswith("failed"):
            self.close()  # an error on a card outlives the call
        return said

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bench.gpu_timing", self.name, self._smoke, str(PACKAGE)]
        with (BUILD / f"{self.name}.log").open("a") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return self._process


def has_torch_on_card() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    command = [sys.executable, "-c", "import torch; assert torch.cuda.is_available()"]
    return subprocess.run(command, capture_output=True).returncode == 0


def time_cases(
    card: Mapping[str, Any], limits: GpuLimits, budget: Budget, smoke: bool
) -> tuple[list[GpuResult], GpuLimits]:
    """Every case on every engine, as long as there is time; prints as they come."""
    engines = [Engine("softgate", smoke)]
    if has_torch_on_card():
        engines.append(Engine("torch", smoke))
    else:
        click.echo("no torch with CUDA here: softgate alone")
    results: list[GpuResult] = []
    try:
        for engine in engines[1:]:
            limits = limits.or_better(engine.ask({"what": "rates"}, 60.0).get("rates", {}))
        if not smoke:
            click.echo(limits_line(limits))
        cases = all_cases(smoke)
        for index, (name, case) in enumerate(cases.items()):
            left = budget.left - PICTURE_SECONDS
            if left < 1.0 or case.dtype not in limits.rates:
                results.append(GpuResult(case))
                continue
            share = left * SAMPLING_SHARE / (len(cases) - index) / len(engines)
            effort = {
                "seconds": min(MAX_SAMPLING_SECONDS, share),
                "l2": card["l2"],
                "memory": card["memory"],
                "smoke": smoke,
            }
            request = {"what": "case", "case": name, "effort": effort}
            said = {engine.name: engine.ask(request, left) for engine in engines}
            results.append(GpuResult(case, said))
            click.echo("\n".join(case_lines(results[-1], limits, smoke)))
    finally:
        for engine in engines:
            engine.close()
    if left_out := [result.case.name for result in results if not result.engines]:
        click.echo(f"left out: {', '.join(left_out)}")
    return results, limits


def limits_line(limits: GpuLimits) -> str:
    rates = ", ".join(f"{n} {digits(rate / 1e3)} TFLOP/s" for n, rate in limits.rates.items())
    return f"limits: copy {limits.copy:.0f} GB/s; {rates}"


def case_lines(result: GpuResult, limits: GpuLimits, smoke: bool) -> list[str]:
    """The case, then a line an engine."""
    lines = [result.case.name]
    limit = limits.seconds(result.case.work, result.case.dtype)
    for engine, said in result.engines.items():
        median = result.median(engine)
        if median is None:
            lines.append(f"  {engine:<10}{said.get('problem', '')}")
        elif smoke:
            lines.append(f"  {engine:<10}right, off by {said['error']:.1e}")
        else:
            how = "" if said["how"] == "graph" else ", with the host's part"
            each = result.case.steps
            step = f", {median / each * 1e6:.2f} us a step" if each else ""
            lines.append(
                f"  {engine:<10}{milliseconds(median):>10}{result.rate(engine, limits):>16}"
                f"{limit / median:>6.0%} of limit{step}{how}"
            )
    return lines


def results_json(results: Sequence[GpuResult], limits: GpuLimits, smoke: bool) -> dict[str, Any]:
    """An interpreter's times mean nothing: a smoke test has none."""
    return {
        "limits": None if smoke else asdict(limits),
        "results": [
            {
                "case": result.case.name,
                "op": result.case.op,
                "dtype": result.case.dtype,
                "work": asdict(result.case.work),
                "limit_seconds": None
                if smoke or result.case.dtype not in limits.rates
                else limits.seconds(result.case.work, result.case.dtype),
                "engines": {
                    engine: engine_json(said, smoke) for engine, said in result.engines.items()
                },
            }
            for result in results
        ],
    }


def engine_json(said: Mapping[str, Any], smoke: bool) -> dict[str, Any]:
    if "samples" not in said:
        return dict(said)
    if smoke:
        return {name: said[name] for name in ("error", "how")}
    timing = Timing(tuple(said["samples"]))
    low, high = timing.spread
    return {**said, "median": timing.median, "p10": low, "p90": high}

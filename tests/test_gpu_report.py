"""`python -m bench gpu-report`: its parts, what it says without a card and, on vgpu, all of it."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import softgate
from click.testing import CliRunner

from bench import __main__ as command_line
from bench import gpu_cases, gpu_decode, gpu_report, gpu_stacks, gpu_timing
from bench.gpu_cases import GpuCase
from bench.gpu_report import Engine, GpuLimits, GpuResult

ROOT = Path(__file__).resolve().parent.parent
LIMITS = GpuLimits(copy=1000.0, rates={"float32": 1e4, "float16": 1e5, "bfloat16": 1e5})
SMOKE = [*gpu_cases.smoke_cases(), *gpu_stacks.smoke_stacks(), *gpu_decode.smoke_decode()]
CARD = {
    "name": "A card",
    "capability": [8, 0],
    "multiprocessors": 100,
    "memory": 2**34,
    "l2": 2**25,
    "driver_cuda": "13.0",
    "runtime_cuda": "13.0",
}


class Host(gpu_timing.SoftgateCard):
    """softgate on the CPU, with a clock that moves when something runs."""

    def __init__(self, can_capture: bool = True) -> None:
        self.device = "cpu"
        self.now = 0.0
        self.can_capture = can_capture

    def prepare(self, case: GpuCase, given: dict[str, Any]) -> gpu_cases.Run:
        run = super().prepare(case, given)

        def slow() -> Any:
            self.now += 1e-3
            return run()

        return slow

    def seconds(self, body: gpu_cases.Run) -> float:
        start = self.now
        body()
        return self.now - start

    def captured(self, body: gpu_cases.Run) -> gpu_cases.Run:
        if not self.can_capture:
            raise RuntimeError("cuda: this waits for the host")
        return body

    def forget(self) -> None:
        pass


def in_float32(case: GpuCase) -> GpuCase:
    return dataclasses.replace(case, dtype="float32")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("engine", ["softgate", "torch"])
@pytest.mark.parametrize("case", [*map(in_float32, SMOKE)], ids=lambda case: case.name)
def test_engines_agree_with_the_reference(case: GpuCase, engine: str) -> None:
    card = Host() if engine == "softgate" else gpu_timing.TorchCard("cpu")
    inputs = case.inputs()
    given = {name: card.place(name, array, "float32", 1)[0] for name, array in inputs.items()}
    answer = case.part(card.fetched(card.prepare(case, given)()))
    np.testing.assert_allclose(answer, case.expected(inputs), atol=case.tolerance)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_ragged_stack_pads_for_torch() -> None:
    case = gpu_stacks.BertLayers("float32", (5, 2, 7), 16, 2, 2)
    card = gpu_timing.TorchCard("cpu")
    inputs = case.inputs()
    given = {name: card.place(name, array, "float32", 1)[0] for name, array in inputs.items()}
    padded = card.fetched(card.prepare(case, given)())
    assert padded.shape == (3, 7, 16)
    np.testing.assert_allclose(padded[0, :5], case.expected(inputs), atol=1e-4)


@pytest.mark.parametrize("smoke", [False, True])
def test_cases_are_complete(smoke: bool) -> None:
    cases = gpu_timing.all_cases(smoke)
    made = [gpu_cases.smoke_cases(), gpu_stacks.smoke_stacks(), gpu_decode.smoke_decode()]
    if not smoke:
        made = [gpu_cases.kernel_cases(), gpu_stacks.stack_cases(), gpu_decode.decode_cases()]
    assert len(cases) == sum(map(len, made)), "two cases have one name"
    for name, case in cases.items():
        assert case.work.flops > 0 and case.work.bytes > 0, name
        assert LIMITS.seconds(case.work, case.dtype) > 0, name
    ops = {case.op for case in cases.values()}
    assert ops >= {"attention", "linear", "add_layer_norm", "embedding", "softmax"}
    assert ops >= {"rnn", "lstm", "gru", "bert", "lstm stack", "gru stack"}
    assert ops >= {"cached_attention", "rotary", "sample", "decode"}
    assert {case.dtype for case in cases.values()} == {"float32", "float16", "bfloat16"}


def test_work_of_attention() -> None:
    whole = gpu_cases.Attention("float16", 2, 3, 4, 32)
    assert whole.work.flops == 4 * 2 * 3 * 4 * 4 * 32
    assert whole.work.bytes == 2 * 2 * 3 * 4 * 4 * 32
    causal = dataclasses.replace(whole, causal=True)
    assert causal.work.flops == 4 * 2 * 3 * (1 + 2 + 3 + 4) * 32
    decode = dataclasses.replace(whole, queries=1, causal=True)
    assert decode.work.flops == 4 * 2 * 3 * 4 * 32
    assert decode.work.bytes == 2 * 2 * 3 * (2 * 1 + 2 * 4) * 32


def test_limit_is_the_slower_of_arithmetic_and_memory() -> None:
    small = gpu_cases.AddNorm("float32", 1000, 1000)
    assert not LIMITS.is_arithmetic(small.work, "float32")
    assert LIMITS.seconds(small.work, "float32") == pytest.approx(12e6 / 1000e9)
    large = gpu_cases.Linear("float16", 4096, 4096, 4096)
    assert LIMITS.is_arithmetic(large.work, "float16")
    assert LIMITS.seconds(large.work, "float16") == pytest.approx(2 * 4096**3 / 1e14)
    better = LIMITS.or_better({"float16": 2e5, "float32": 1.0})
    assert better.rates == {"float32": 1e4, "float16": 2e5, "bfloat16": 1e5}


# Timing

NORM = gpu_cases.AddNorm("float32", 4, 16)


def test_copies_are_larger_than_l2() -> None:
    effort = gpu_timing.Effort(seconds=1.0, l2=1000, memory=10**6)
    assert effort.copies(100) == 30
    assert effort.copies(5000) == 1
    assert effort.copies(1) == gpu_timing.MAX_COPIES
    assert dataclasses.replace(effort, memory=2000).copies(100) == 2
    assert dataclasses.replace(effort, smoke=True).copies(100) == 2


@pytest.mark.parametrize(("can_capture", "how"), [(True, "graph"), (False, "calls")])
def test_samples_are_seconds_a_call(can_capture: bool, how: str) -> None:
    effort = gpu_timing.Effort(seconds=0.1, l2=64, memory=10**6)
    said = gpu_timing.run_case(Host(can_capture), NORM, effort)
    assert said["how"] == how
    assert said["error"] <= NORM.tolerance
    assert len(said["samples"]) >= gpu_timing.MIN_SAMPLES
    assert said["samples"] == pytest.approx([1e-3] * len(said["samples"]))


@pytest.mark.parametrize("spoil", ["value", "nan", "shape"])
def test_a_wrong_answer_is_not_timed(spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Host.fetched

    def wrong(self: Host, result: Any) -> Any:
        array = right(self, result).copy()
        if spoil == "shape":
            return array[1:]
        array[2, 3] += np.nan if spoil == "nan" else 0.1
        return array

    monkeypatch.setattr(Host, "fetched", wrong)
    said = gpu_timing.run_case(Host(), NORM, gpu_timing.Effort(0.1, 64, 10**6))
    assert said["problem"].startswith("wrong: off by")
    assert "samples" not in said


def test_the_build_that_is_measured_is_the_one_that_was_made(tmp_path: Path) -> None:
    gpu_timing.require_build(Path(softgate.__file__).parent.parent)
    with pytest.raises(RuntimeError, match="expected it in"):
        gpu_timing.require_build(tmp_path)


def answering(script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    """An engine whose process is another."""
    monkeypatch.setattr(gpu_report, "BUILD", tmp_path)
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        return popen([sys.executable, "-c", script], **options)

    monkeypatch.setattr(gpu_report.subprocess, "Popen", start)
    return Engine("softgate", smoke=True)


def test_an_engine_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = answering("import time; time.sleep(600)", monkeypatch, tmp_path)
    said = engine.ask({"what": "rates"}, 1.0)
    assert said["problem"].startswith("failed: the process ended, see ")
    assert engine._process is None


def test_an_engine_starts_anew_after_it_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = 'input(); print(\'{"problem": "failed: cuda"}\', flush=True); input()'
    engine = answering(script, monkeypatch, tmp_path)
    for _ in range(2):
        assert engine.ask({"what": "rates"}, 60.0) == {"problem": "failed: cuda"}
    assert engine._process is None


class Spent(gpu_report.Budget):
    """Time that passes by asking."""

    @property
    def left(self) -> float:
        self.seconds -= 1.0
        return self.seconds


def test_cases_without_time_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def ask(self: Engine, request: Any, seconds: float) -> dict[str, Any]:
        asked.append(request)
        return {"error": 0.0, "samples": [1e-3], "how": "calls"}

    monkeypatch.setattr(Engine, "ask", ask)
    monkeypatch.setattr(gpu_report, "has_torch_on_card", lambda: False)
    budget = Spent(gpu_report.PICTURE_SECONDS + 6.0)
    results, _ = gpu_report.time_cases(CARD, LIMITS, budget, smoke=False)
    assert len(asked) == 5
    assert len(results) == len(gpu_timing.all_cases(smoke=False))
    assert sum(bool(result.engines) for result in results) == 5
    assert all(0.0 < request["effort"]["seconds"] <= 1.0 for request in asked)
    said = capsys.readouterr().out
    assert f"left out: {results[5].case.name}" in said
    assert "of limit, with the host's part" in said


# The report

MEASURED = {
    "softgate": {"error": 0.0, "samples": [1e-3, 2e-3, 3e-3], "how": "graph"},
    "torch": {"error": 0.0, "samples": [4e-3], "how": "calls"},
}


def test_results_have_no_times_from_an_interpreter() -> None:
    results = [GpuResult(NORM, dict(MEASURED))]
    (measured,) = gpu_report.results_json(results, LIMITS, smoke=False)["results"]
    assert measured["engines"]["softgate"]["median"] == 2e-3
    assert measured["limit_seconds"] == pytest.approx(4 * 3 * 64 / 1000e9)
    smoke = gpu_report.results_json(results, LIMITS, smoke=True)
    assert smoke["limits"] is None
    assert smoke["results"][0]["limit_seconds"] is None
    assert smoke["results"][0]["engines"]["softgate"] == {"error": 0.0, "how": "graph"}
    assert "ms" not in "\n".join(gpu_report.case_lines(results[0], LIMITS, smoke=True))
    assert "2 ms" in "\n".join(gpu_report.case_lines(results[0], LIMITS, smoke=False))


def test_a_step_of_a_recurrent_layer_is_said() -> None:
    case = gpu_cases.Recurrent("float16", "lstm", 1, 100, 64)
    lines = gpu_report.case_lines(GpuResult(case, dict(MEASURED)), LIMITS, smoke=False)
    assert "20.00 us a step" in lines[1]


@pytest.mark.parametrize("smoke", [False, True])
def test_page_of_plots(smoke: bool, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench.gpu_plots import write_page

    results = [GpuResult(case, dict(MEASURED)) for case in SMOKE]
    results.append(GpuResult(NORM, {"softgate": {"problem": "failed: cuda"}}))
    results.append(GpuResult(NORM))
    check = {"passed": 1, "failed": 1, "skipped": 0, "not_run": 0}
    check |= {"failures": [{"test": "tests/test_devices.py::test_x", "message": "off"}]}
    write_page(tmp_path / "page.png", "a card", check, results, LIMITS, smoke)
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_device_tests_are_found() -> None:
    names = {Path(path).name for path in gpu_report.device_tests()}
    assert names >= {"test_cuda.py", "test_devices.py"}
    assert names >= {"test_attention_devices.py", "test_recurrent_devices.py"}
    assert not names & {"test_gpu_report.py", "test_bert.py", "test_nn.py"}


CHECKED = """
import pytest
@pytest.mark.parametrize("n", range(100))
def test_number(n):
    assert n != 50
def test_skipped():
    pytest.skip("why not")
"""


@pytest.mark.parametrize(
    ("options", "passed", "failed", "skipped", "not_run"),
    [
        ((), 99, 1, 1, 0),
        (("--every", "50"), 1, 1, 1, 0),
        (("--until", "1"), 1, 0, 0, 100),
    ],
)
def test_checks_are_counted(
    tmp_path: Path, options: Any, passed: int, failed: int, skipped: int, not_run: int
) -> None:
    (tmp_path / "test_checked.py").write_text(CHECKED)
    summary, package = tmp_path / "summary.json", Path(softgate.__file__).parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "bench.gpu_checks"]
    command += ["--build", str(package), "--summary", str(summary), *options, str(tmp_path)]
    path = os.pathsep.join([str(package), str(ROOT)])
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, check=False)
    found = json.loads(summary.read_text())
    failures = found.pop("failures")
    assert found == {"passed": passed, "failed": failed, "skipped": skipped, "not_run": not_run}
    assert len(failures) == failed
    assert all("[50]" in failure["test"] for failure in failures)


def test_tests_that_crash_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_crash.py").write_text("import os\ndef test_it(): os.abort()\n")
    option = "def pytest_addoption(parser): parser.addoption('--device')\n"
    (tmp_path / "conftest.py").write_text(option)
    monkeypatch.setattr(gpu_report, "BUILD", tmp_path)
    monkeypatch.setattr(gpu_report, "PACKAGE", Path(softgate.__file__).parent.parent)
    monkeypatch.setattr(gpu_report, "device_tests", lambda: [str(tmp_path / "test_crash.py")])
    found = gpu_report.check(gpu_report.Budget(300.0), smoke=False)
    assert (found["passed"], found["failed"]) == (0, 1)
    assert "::test_it ended the tests, see" in found["failures"][0]["test"]


# Where it cannot run


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def machine_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Runs gpu-report where programs are what the test says; gives exit status and output."""
    monkeypatch.setattr(gpu_report, "BUILD", tmp_path / "build")
    monkeypatch.setattr(gpu_report, "PACKAGE", tmp_path / "build" / "package")
    # The tests' extra has no pybind11.
    monkeypatch.setattr(gpu_report, "NEEDED", ("pytest",))
    monkeypatch.setattr(gpu_report, "pybind11_folder", lambda: str(tmp_path))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)

    def run(*options: str, **programs: str) -> tuple[int, str]:
        for name, script in ({"cmake": "exit 0", "c++": "exit 0"} | programs).items():
            program(tmp_path / "bin" / name, script)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
        arguments = ["gpu-report", "--output", str(tmp_path / "out"), *options]
        outcome = CliRunner().invoke(command_line.main, arguments)
        return outcome.exit_code, outcome.output

    return run


def nvcc_making(answer: str) -> str:
    """Puts a program into place that answers so: the last argument names it."""
    return f"""for last; do :; done
cat > "$last" <<'END'
#!/bin/sh
{answer}
END
chmod +x "$last" """


def test_no_nvcc(machine_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    which = gpu_report.shutil.which
    monkeypatch.setattr(
        gpu_report.shutil,
        "which",
        lambda name, path=None: None if name == "nvcc" else which(name, path=path),
    )
    status, said = machine_with()
    assert status == 1
    assert "finds no nvcc, neither on the PATH nor in CUDA_HOME or /usr/local/cuda" in said


def test_nothing_to_build_with(machine_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_report.shutil, "which", lambda name, path=None: None)
    status, said = machine_with()
    assert status == 1
    assert "gpu-report needs cmake, c++: pip install '.[gpu]'" in said


@pytest.mark.parametrize(
    "why", ["this machine has no NVIDIA driver", "the NVIDIA driver sees no card"]
)
def test_no_card(machine_with: Any, why: str) -> None:
    status, said = machine_with(nvcc=nvcc_making(f"echo {why} >&2; exit 1"))
    assert status == 1
    assert f"Error: gpu-report: {why}\n" in said


def test_nvcc_that_fails(machine_with: Any) -> None:
    status, said = machine_with(nvcc="echo no such architecture >&2; exit 2")
    assert status == 1
    assert "nvcc failed, see " in said
    assert "no such architecture" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capability": [7, 0]}, "the compute capability of A card is 7.0, expected 7.5 or newer"),
        ({"name": "x (no GPU)"}, "x (no GPU) interprets kernels and has no times: use --smoke"),
    ],
)
def test_a_card_that_cannot_be_used(machine_with: Any, change: Any, message: str) -> None:
    answer = f"echo '{json.dumps(CARD | change)}'"
    status, said = machine_with(nvcc=nvcc_making(answer))
    assert status == 1
    assert message in said


def test_a_build_that_fails_or_takes_too_long(machine_with: Any) -> None:
    nvcc = nvcc_making(f"echo '{json.dumps(CARD)}'")
    status, said = machine_with(nvcc=nvcc, cmake="echo attention.cu is broken; exit 1")
    assert status == 1
    assert "A card, compute capability 8.0, 100 SMs\nbuild ..." in said
    assert "cmake failed, see " in said
    assert "attention.cu is broken" in said
    status, said = machine_with("--minutes", "0.05", nvcc=nvcc, cmake="sleep 60")
    assert status == 1
    assert "cmake took more than 2 s; what is built stays" in said


# All of it


def test_whole_report_on_an_interpreter(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device != "cuda" or "no GPU" not in softgate.cuda.describe():
        pytest.skip("needs vgpu; on a card the report itself is the test")
    monkeypatch.chdir(ROOT)
    command = [sys.executable, "-m", "bench", "gpu-report", "--smoke", "--minutes", "20"]
    outcome = subprocess.run([*command, "--output", str(tmp_path)], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert outcome.stdout.startswith("SMOKE TEST, no times: vgpu (ptxrun, no GPU), compute")
    assert "TFLOP/s" not in outcome.stdout and " ms" not in outcome.stdout
    content = json.loads((tmp_path / "gpu-report.json").read_text())
    assert content["smoke"] and content["limits"] is None
    assert content["card"]["name"] == "vgpu (ptxrun, no GPU)"
    assert content["check"]["passed"] >= 10 and content["check"]["failed"] == 0
    assert {result["case"] for result in content["results"]} == {case.name for case in SMOKE}
    for result in content["results"]:
        assert result["limit_seconds"] is None
        assert result["engines"]["softgate"].keys() == {"error", "how"}, result

"""The benchmarks' own arithmetic and reports; nothing here depends on how fast anything is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bench import __main__ as command_line
from bench import accuracy, breakdown, case, limits, peers, report, runner, startup, timing
from bench.bench_bert import Bert
from bench.bench_recurrent import Kind, Recurrent
from bench.bench_softmax import Softmax


class Clock:
    """A clock that moves only when something is run."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def run_for(self, seconds: float) -> None:
        self.now += seconds


LIMITS = limits.Limits(
    threads=2,
    vector_bits=256,
    l2=2**20,
    fma={1: 50.0, 2: 100.0},
    read={1024: 80.0, 1024**2: 20.0},
    copy={1024: 40.0, 1024**2: 10.0},
    copy_streaming={1024: 30.0, 1024**2: 15.0},
)


def test_quantiles_interpolate() -> None:
    assert timing.quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert timing.quantile([1.0, 2.0, 3.0], 0.1) == pytest.approx(1.2)
    assert timing.quantile([7.0], 0.9) == 7.0


def test_fast_calls_get_an_untimed_one_first() -> None:
    clock = Clock()
    made: list[float] = []

    def run() -> None:
        made.append(clock.now)
        clock.run_for(100.0 if len(made) == 1 else 1.0)

    assert timing.time_calls(run, 3, clock) == 3.0
    assert len(made) == 4


def test_a_sample_is_long_enough() -> None:
    per_call = 3e-6
    calls = timing.calls_per_sample(lambda count: count * per_call)
    assert timing.MIN_SAMPLE_SECONDS <= calls * per_call <= 1.1 * timing.MIN_SAMPLE_SECONDS
    assert timing.calls_per_sample(lambda count: count * 0.5) == 1


def test_engines_take_turns() -> None:
    turns: list[str] = []

    def sampler(name: str) -> timing.Sampler:
        def sample(calls: int) -> float:
            turns.append(name)
            return calls * 0.2

        return sample

    effort = timing.Effort(seconds=0.0, min_rounds=3)
    samplers = {name: sampler(name) for name in "abc"}
    timings = timing.measure(samplers, effort, settle=lambda: turns.append("."))
    assert "".join(turns[3:]) == ".a.b.c" + ".b.c.a" + ".c.a.b"  # after one warm-up of each
    assert timings["b"].seconds == pytest.approx((0.2,) * 3)


def test_rounds_end_with_the_time() -> None:
    effort = timing.Effort(seconds=4.0, min_rounds=2)
    timings = timing.measure({"a": lambda calls: calls * 1.0}, effort, settle=lambda: None)
    assert len(timings["a"].seconds) == 4


def test_bandwidth_is_interpolated() -> None:
    assert limits.interpolate(LIMITS.read, 10) == 80.0
    assert limits.interpolate(LIMITS.read, 32 * 1024) == pytest.approx(50.0)
    assert limits.interpolate(LIMITS.read, 2**30) == 20.0


def test_limit_is_the_slower_of_arithmetic_and_memory() -> None:
    arithmetic = limits.Work(flops=1e9, bytes=1024, traffic="read")
    assert LIMITS.seconds(arithmetic) == pytest.approx(1e9 / 100e9)
    memory = limits.Work(flops=1.0, bytes=1024**2, traffic="copy")
    assert LIMITS.seconds(memory) == pytest.approx(1024**2 / 15e9)
    again = limits.Work(flops=1.0, bytes=1024**2, traffic="read", working_set=1024)
    assert LIMITS.seconds(again) == pytest.approx(1024**2 / 80e9)


def test_the_bound_is_said() -> None:
    assert report.bound(limits.Work(flops=1e9, bytes=1024), LIMITS) == "FMA"
    near = limits.Work(flops=1.0, bytes=2**30, traffic="read", working_set=2**15)
    assert report.bound(near, LIMITS) == "0.0312 MiB at 50 GB/s, in L2"
    far = dataclasses.replace(near, working_set=None)
    assert report.bound(far, LIMITS) == "1024 MiB at 20 GB/s, beyond L2"
    assert report.bound(far, dataclasses.replace(LIMITS, l2=0)) == "1024 MiB at 20 GB/s"


def test_the_better_limits_count() -> None:
    slower = dataclasses.replace(LIMITS, fma={1: 40.0, 2: 110.0}, read={1024: 90.0, 1024**2: 19.0})
    better = LIMITS.or_better(slower)
    assert better.fma == {1: 50.0, 2: 110.0}
    assert better.read == {1024: 90.0, 1024**2: 20.0}
    assert better.copy == LIMITS.copy


def test_a_busy_machine_is_said() -> None:
    busy = dataclasses.replace(LIMITS, fma={1: 50.0, 2: 60.0})
    assert busy.is_disturbed and not LIMITS.is_disturbed
    assert "do not trust this run" in "\n".join(report.limits_lines(busy))
    assert "do not trust this run" not in "\n".join(report.limits_lines(LIMITS))


@pytest.mark.parametrize(
    ("value", "text"), [(2614.2, "2614"), (12.345, "12.3"), (0.0412, "0.0412")]
)
def test_digits(value: float, text: str) -> None:
    assert report.digits(value) == text


@pytest.mark.parametrize("bench", [*case.KERNELS, *case.RECURRENT, *case.MODELS])
def test_cases_are_complete(bench: str) -> None:
    cases = case.load_cases(bench)
    for name, one in cases.items():
        assert one.work.flops > 0, name
        assert one.work.bytes > 0, name
        assert all(callable(getattr(one, engine)) for engine in one.engines), name
        assert set(one.engines) <= set(peers.ENGINES), name
        assert one.oracle in one.engines, name


class FakeWorker:
    def __init__(self, answer: Any, seconds: float = 0.1) -> None:
        self.answer, self.seconds = answer, seconds

    def prepare(self, bench: str, name: str) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def sample(self, calls: int) -> float:
        return calls * self.seconds


def run_softmax(**workers: FakeWorker) -> runner.CaseResult:
    effort = timing.Effort(seconds=0.0, min_rounds=1)
    return runner.run_case("softmax", Softmax(3, 5), workers, effort)  # type: ignore[arg-type]


@pytest.fixture
def answer() -> Any:
    one = Softmax(3, 5)
    return one.reference(one.inputs())


def test_speedup_is_over_the_best_peer(answer: Any) -> None:
    result = run_softmax(softgate=FakeWorker(answer, 0.1), torch=FakeWorker(answer, 0.3))
    assert result.best_peer() == ("torch", pytest.approx(0.3))
    assert result.speedup() == pytest.approx(3.0)
    assert result.engines["softgate"].error == 0.0


@pytest.mark.parametrize("spoil", ["value", "nan", "shape"])
def test_a_wrong_answer_is_not_timed(answer: Any, spoil: str) -> None:
    wrong = answer[:2] if spoil == "shape" else answer.copy()
    if spoil != "shape":
        wrong[1, 2] += 1e-3 if spoil == "value" else np.nan
    result = run_softmax(softgate=FakeWorker(wrong), torch=FakeWorker(answer))
    assert result.engines["softgate"].timing is None
    assert (result.engines["softgate"].problem or "").startswith("wrong: off by")
    assert result.engines["torch"].timing is not None
    assert result.speedup() is None


def test_a_failing_engine_is_said(answer: Any) -> None:
    result = run_softmax(
        softgate=FakeWorker(answer), torch=FakeWorker(peers.EngineError("no such kernel"))
    )
    assert result.engines["torch"].problem == "failed: no such kernel"
    assert "no such kernel" in "\n".join(report.case_lines(result, LIMITS))
    assert list(result.engines) == ["softgate", "torch"]


def test_reports(answer: Any, tmp_path: Path) -> None:
    result = run_softmax(softgate=FakeWorker(answer, 0.1), torch=FakeWorker(answer, 0.3))
    table = "\n".join(report.case_lines(result, LIMITS))
    assert "3.00 x best peer" in table
    assert "100 ms" in table
    assert report.summary_line([result]) == "1 cases: 3.00 x the best peer in geometric mean"

    report.write_json(
        tmp_path / "new" / "kernels.json", report.as_json([result], LIMITS, {"torch": "2"})
    )
    content = json.loads((tmp_path / "new" / "kernels.json").read_text())
    assert content["versions"] == {"torch": "2"}
    assert content["results"][0]["engines"]["torch"]["median"] == pytest.approx(0.3)
    assert content["results"][0]["speedup_over_best_peer"] == pytest.approx(3.0)
    assert limits.Limits.from_json(content["limits"]) == LIMITS


RECURRENT = Recurrent("gru", (3, 1, 2), 8)


def run_recurrent(**workers: FakeWorker) -> runner.CaseResult:
    effort = timing.Effort(seconds=0.0, min_rounds=1)
    return runner.run_case("recurrent", RECURRENT, workers, effort)  # type: ignore[arg-type]


def answer_of(one: Recurrent, engine: str) -> Any:
    call = getattr(one, engine)(one.inputs())
    return call.result(call.run())


@pytest.mark.parametrize("engine", ["softgate", "torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("lengths", "bidirectional"),
    [((5,), False), ((5,), True), ((4, 4, 4), True), ((3, 6, 1), False)],
)
@pytest.mark.parametrize("kind", ["rnn_tanh", "lstm", "gru"])
def test_recurrent_engines_agree(
    kind: Kind,
    lengths: tuple[int, ...],
    bidirectional: bool,
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if engine not in ("softgate", "torch"):
        pytest.importorskip("onnx")
        pytest.importorskip(engine)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = Recurrent(kind, lengths, 8, bidirectional)
    reference = one.reference(one.inputs())
    np.testing.assert_allclose(answer_of(one, engine), reference, atol=one.tolerance)


def test_fewer_bits_are_no_peer() -> None:
    right = RECURRENT.reference(RECURRENT.inputs())
    result = run_recurrent(
        softgate=FakeWorker(right, 0.2),
        softgate_bf16=FakeWorker(right + 1e-2, 0.1),
        softgate_int8=FakeWorker(right + 1.0, 0.1),
        torch=FakeWorker(right, 0.3),
    )
    assert result.best_peer() == ("torch", pytest.approx(0.3))
    assert result.speedup() == pytest.approx(1.5)
    table = "\n".join(report.case_lines(result, LIMITS))
    assert "2.00 x float32, off by 1.0e-02" in table
    assert "wrong: off by 1.0e+00, at most 5e-02 expected" in table


def test_groups_are_summed_up() -> None:
    right = RECURRENT.reference(RECURRENT.inputs())
    slow = run_recurrent(softgate=FakeWorker(right, 0.3), torch=FakeWorker(right, 0.3))
    fast = run_recurrent(softgate=FakeWorker(right, 0.1), torch=FakeWorker(right, 0.4))
    alone = dataclasses.replace(slow, group="batch 1", name="one")
    unanswered = dataclasses.replace(slow, name="two", engines={})
    fast = dataclasses.replace(fast, name="three")
    results = [slow, alone, unanswered, fast]
    ragged, batch_1 = report.group_lines(results, LIMITS)
    assert ragged.startswith(
        "ragged, 2 cases: x best peer 2.00 in geometric mean, at least 1.00 (gru 3xraggedx8); of"
    )
    assert batch_1.startswith("batch 1, 1 cases: x best peer 1.00")
    rows = report.table_lines(results, LIMITS)[2:]
    assert [row.split(" | ")[:4] for row in rows] == [
        ["| gru 3xraggedx8", "300 ms", "300 ms, torch", "1.00"],
        ["| one", "300 ms", "300 ms, torch", "1.00"],
        ["| three", "100 ms", "400 ms, torch", "4.00"],
    ]


@pytest.mark.parametrize("write", [report.write_roofline, report.write_bars])
def test_pictures(answer: Any, tmp_path: Path, write: Any) -> None:
    pytest.importorskip("matplotlib")
    result = run_softmax(softgate=FakeWorker(answer, 0.1), torch=FakeWorker(answer, 0.3))
    write(tmp_path / "picture.png", [result], LIMITS)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_engine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = {"torch": peers.Engine("torch", ("no_such_package",))}
    monkeypatch.setattr(peers, "ENGINES", engines)
    monkeypatch.setattr(command_line, "ENGINES", engines)
    said: list[str] = []
    monkeypatch.setattr(command_line.click, "echo", lambda text, **_: said.append(text))
    assert command_line.available(["torch"]) == []
    assert said == ["torch: missing, needs no_such_package"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernels", "--filter", "no such case"], "no case has this in its name"),
        (["kernels", "--engines", "torch,jax"], "'jax' is not one of softgate, softgate_bf16"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    outcome = CliRunner().invoke(command_line.main, arguments)
    assert outcome.exit_code == 2
    assert message in outcome.output


def test_breakdown_names_every_call_of_a_layer() -> None:
    one = Bert("minilm", "1x3", (3,))
    steps = breakdown.layer_steps(one)
    timings = breakdown.time_steps(steps, timing.Effort(seconds=0.0, min_rounds=1))
    lines = breakdown.lines(steps, timings, LIMITS)
    assert len(lines) == len(steps) + 1 == 8
    products = sum(step.work.flops for step in steps if step.work.traffic == "read")
    scores = sum(step.work.flops for step in steps if step.name == "attention")
    assert 6 * (products + scores) == one.work.flops


def test_accuracy_is_a_mean_and_a_lowest_cosine() -> None:
    found = accuracy.line("a", np.array([1.0, 0.5]))
    assert found.split() == ["a", "mean", "0.75000,", "lowest", "0.50000"]


def test_startups_must_agree() -> None:
    one = startup.Startup(0.3, 2**20, (0.25, -0.5))
    assert startup.disagreement({"a": [one], "b": [one]}) == 0.0
    other = dataclasses.replace(one, head=(0.25, -0.25))
    assert startup.disagreement({"a": [one], "b": [one, other]}) == 0.25
    assert startup.line("a", [one]) == "  a             0.300 s (0.300 .. 0.300)  1 MiB"


@pytest.fixture
def worker() -> Iterator[peers.Worker]:
    with peers.workers(["softgate"], threads=1) as started:
        yield started["softgate"]


def test_a_worker_prepares_and_samples(worker: peers.Worker) -> None:
    one = next(iter(case.load_cases("normalize").values()))
    got = worker.prepare("normalize", one.name)
    np.testing.assert_allclose(got, one.reference(one.inputs()), atol=one.tolerance)
    assert worker.sample(2) > 0.0


def test_a_worker_survives_an_error(worker: peers.Worker) -> None:
    with pytest.raises(peers.EngineError, match="KeyError: 'no such case'"):
        worker.prepare("normalize", "no such case")
    assert worker.sample(1) >= 0.0


def test_a_lost_worker_is_said(worker: peers.Worker) -> None:
    worker._process.kill()
    with pytest.raises(peers.EngineError, match="the process ended with code -9"):
        worker.sample(1)

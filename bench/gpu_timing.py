"""One engine of gpu-report, in a process of its own: `python -m bench.gpu_timing softgate|torch`.

Reads requests from standard input, a line of JSON each, and answers with one. A case's calls run
over copies of its inputs that together are larger than L2, so that each finds its operands in the
card's memory; where they can be captured they are replayed as a graph, which leaves out what the
host needs to start them.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from bench.case import Array
from bench.gpu_cases import GpuCase, Run, kernel_cases, smoke_cases
from bench.gpu_decode import decode_cases, smoke_decode
from bench.gpu_stacks import smoke_stacks, stack_cases
from bench.runner import difference

L2_FACTOR = 3  # times L2, over which the copies of a case's inputs spread
MAX_COPIES = 64
SAMPLE_SECONDS = 5e-3
MIN_SAMPLES, MAX_SAMPLES = 5, 50


def all_cases(smoke: bool) -> dict[str, GpuCase]:
    if smoke:
        cases = [*smoke_cases(), *smoke_stacks(), *smoke_decode()]
    else:
        cases = [*stack_cases(), *decode_cases(), *kernel_cases()]
    return {case.name: case for case in cases}


class Card(ABC):
    """An engine's way to its arrays, its stream and its clock."""

    @abstractmethod
    def place(self, name: str, array: Array, dtype: str, copies: int) -> list[Any]:
        """Copies of the input of that name on the card, floats in the dtype."""

    @abstractmethod
    def fetched(self, result: Any) -> Array:
        """In float32 or wider."""

    @abstractmethod
    def prepare(self, case: GpuCase, given: dict[str, Any]) -> Run: ...

    @abstractmethod
    def seconds(self, body: Run) -> float:
        """Between two events around what `body` starts."""

    @abstractmethod
    def captured(self, body: Run) -> Run:
        """Replays what `body` starts; raises RuntimeError where that cannot be recorded."""

    @abstractmethod
    def forget(self) -> None:
        """Give memory that is not in use back to the card."""


class SoftgateCard(Card):
    def __init__(self, device: str = "cuda") -> None:
        from softgate import cuda

        self.device = device
        self.stream = cuda.Stream(device)
        self.stream.__enter__()

    def place(self, name: str, array: Array, dtype: str, copies: int) -> list[Any]:
        from softgate import SequenceOffsets, Tensor

        if name.startswith("cu_seqlens"):
            return [SequenceOffsets(array, self.device)] * copies
        host = Tensor(np.ascontiguousarray(array))
        if array.dtype.kind == "f":
            host = host.to("cpu", dtype)
        return [host.to(self.device) for _ in range(copies)]

    def fetched(self, result: Any) -> Array:
        dtype = None if result.dtype == "int32" else "float32"
        return cast(Array, result.to("cpu", dtype).numpy())

    def prepare(self, case: GpuCase, given: dict[str, Any]) -> Run:
        from softgate import Tensor

        return case.softgate(given, lambda shape: Tensor.empty(shape, case.dtype, self.device))

    def seconds(self, body: Run) -> float:
        begin = self.stream.record()
        body()
        end = self.stream.record()
        end.synchronize()
        return begin.milliseconds_to(end) / 1e3

    def captured(self, body: Run) -> Run:
        from softgate import cuda

        with cuda.capture(self.stream) as graph:
            body()
        return graph.launch

    def forget(self) -> None:
        from softgate import cuda

        self.stream.synchronize()
        cuda.release_cached(self.device)


class TorchCard(Card):
    def __init__(self, device: str = "cuda") -> None:
        import torch

        self.device = device
        torch.set_grad_enabled(False)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False

    def place(self, name: str, array: Array, dtype: str, copies: int) -> list[Any]:
        import torch

        host = torch.from_numpy(np.ascontiguousarray(array))
        if array.dtype.kind == "f":
            host = host.to(getattr(torch, dtype))
        return [host.to(self.device, copy=True) for _ in range(copies)]

    def fetched(self, result: Any) -> Array:
        return cast(Array, result.float().cpu().numpy())

    def prepare(self, case: GpuCase, given: dict[str, Any]) -> Run:
        return case.torch(given)

    def seconds(self, body: Run) -> float:
        import torch

        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        body()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def captured(self, body: Run) -> Run:
        import torch

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            body()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            body()
        return graph.replay

    def forget(self) -> None:
        import torch

        torch.cuda.empty_cache()


CARDS: dict[str, Callable[[], Card]] = {"softgate": SoftgateCard, "torch": TorchCard}


@dataclass(frozen=True)
class Effort:
    """Seconds of sampling; a smoke test does everything once, over two copies."""

    seconds: float
    l2: int
    memory: int
    smoke: bool = False

    def copies(self, nbytes: int) -> int:
        if self.smoke:
            return 2
        room = max(1, self.memory // 8 // max(1, nbytes))
        return min(MAX_COPIES, room, math.ceil(L2_FACTOR * self.l2 / max(1, nbytes)))


def run_case(card: Card, case: GpuCase, effort: Effort) -> dict[str, Any]:
    """Check the answer, then time it: `error`, `samples` in seconds a call, `how`."""
    inputs = case.inputs()
    of_float = sum(a.nbytes // 4 * case.itemsize for a in inputs.values() if a.dtype.kind == "f")
    copies = effort.copies(of_float)
    placed = {
        name: card.place(name, array, "float32" if name in case.exact else case.dtype, copies)
        for name, array in inputs.items()
    }
    runs = [
        card.prepare(case, {name: tensors[i] for name, tensors in placed.items()})
        for i in range(copies)
    ]
    answer = case.part(card.fetched(runs[0]()))
    expected = case.expected(inputs)
    error = difference(answer, expected)
    largest = float(np.abs(expected).max())
    relative = math.inf if error is None else error / max(largest, 1e-30)
    if not relative <= case.tolerance:  # NaN is not
        problem = f"wrong: off by {relative:.1e}, at most {case.tolerance:.1e} expected"
        return {"problem": problem, "error": relative}
    samples, how = sample(card, runs, effort)
    return {"error": relative, "samples": samples, "how": how, "copies": copies}


def sample(card: Card, runs: Sequence[Run], effort: Effort) -> tuple[list[float], str]:
    """Seconds a call, and whether "graph" replays or "calls" made them."""
    turns = 1

    def body() -> None:
        for _ in range(turns):
            for run in runs:
                run()

    body()  # the first calls load kernels
    if not effort.smoke:
        once = max(card.seconds(body), 1e-7)
        turns = max(1, min(math.ceil(SAMPLE_SECONDS / once), math.ceil(2000 / len(runs))))
    start, how = body, "calls"
    with suppress(RuntimeError):  # what the host has a part in is no graph
        start, how = card.captured(body), "graph"
    start()
    samples: list[float] = []
    spent = 0.0
    while len(samples) < MAX_SAMPLES and (len(samples) < MIN_SAMPLES or spent < effort.seconds):
        taken = card.seconds(start)
        spent += taken
        samples.append(taken / turns / len(runs))
        if effort.smoke:
            break
    return samples, how


def require_build(folder: Path) -> None:
    """softgate must come from the build that is measured, not from an installed one."""
    import softgate

    if not Path(softgate.__file__).resolve().is_relative_to(folder.resolve()):
        raise RuntimeError(f"softgate is {softgate.__file__}, expected it in {folder}")


def torch_rates(card: Card) -> dict[str, float]:
    """GFLOP/s of a large product by dtype, through cuBLAS."""
    import torch

    size, rates = 8192, {}
    for dtype in ("float32", "float16", "bfloat16"):
        a, b = (torch.randn(size, size, device="cuda", dtype=getattr(torch, dtype)) for _ in "ab")
        out = torch.empty_like(a)

        def body(a: Any = a, b: Any = b, out: Any = out) -> None:
            torch.matmul(a, b, out=out)

        body()
        best = min(card.seconds(body) for _ in range(5))
        rates[dtype] = 2 * size**3 / best / 1e9
    return rates


def answer_to(card: Card, cases: dict[str, GpuCase], request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request["what"] == "rates":
            return {"rates": torch_rates(card)}
        effort = Effort(**request["effort"])
        return run_case(card, cases[request["case"]], effort)
    except Exception as error:
        traceback.print_exc()
        return {"problem": f"failed: {type(error).__name__}: {error}"}
    finally:
        with suppress(Exception):  # after an error on the card this fails as well
            card.forget()


def main() -> None:
    engine, smoke, folder = sys.argv[1], sys.argv[2] == "smoke", Path(sys.argv[3])
    # Answers go out on the standard output; whoever else prints there does on standard error.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    require_build(folder)
    card = CARDS[engine]()
    cases = all_cases(smoke)
    for line in sys.stdin:
        print(json.dumps(answer_to(card, cases, json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()

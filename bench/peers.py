"""The engines, each in a process of its own: two OpenMP runtimes in one process disturb each other.

A worker is told to prepare a case, then to sample it, over a pipe. Between commands it waits.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.case import Array, Call, load_cases
from bench.limits import ROOT
from bench.timing import time_calls

LOGS = ROOT / "build" / "bench-cache" / "logs"


@dataclass(frozen=True)
class Engine:
    """An engine's name for people and the packages it needs, its own first; `distribution`: what
    that one is installed as, where it has another name."""

    label: str
    packages: tuple[str, ...]
    distribution: str | None = None

    @property
    def is_peer(self) -> bool:
        return self.packages[0] != "softgate"


ENGINES = {
    "softgate": Engine("softgate", ("softgate",)),
    "softgate_bf16": Engine("softgate bf16", ("softgate",)),
    "softgate_int8": Engine("softgate int8", ("softgate",)),
    "torch": Engine("torch", ("torch",)),
    "torch_compile": Engine("torch.compile", ("torch",)),
    "onnxruntime": Engine("ONNX Runtime", ("onnxruntime", "onnx", "torch", "transformers")),
    "openvino": Engine("OpenVINO", ("openvino", "onnx", "torch", "transformers")),
    "ctranslate2": Engine("CTranslate2", ("ctranslate2", "torch", "transformers")),
    "llama_cpp": Engine("llama.cpp", ("llama_cpp",), "llama-cpp-python"),
    "llama_cpp_q4_0": Engine("llama.cpp Q4_0", ("llama_cpp", "gguf"), "llama-cpp-python"),
    "torch_int8": Engine("torch int8", ("torch",)),
    "onnxruntime_int8": Engine(
        "ONNX Runtime int8", ("onnxruntime", "onnx", "torch", "transformers")
    ),
    "openvino_int8": Engine("OpenVINO int8", ("openvino", "nncf", "torch", "transformers")),
    "ctranslate2_int8": Engine("CTranslate2 int8", ("ctranslate2", "torch", "transformers")),
    "numpy": Engine("NumPy", ("numpy",)),
}


class EngineError(RuntimeError):
    """An engine failed in its process; the text says how."""


def missing_packages(engine: str) -> list[str]:
    return [name for name in ENGINES[engine].packages if importlib.util.find_spec(name) is None]


def version(engine: str) -> str:
    try:
        return metadata.version(ENGINES[engine].distribution or ENGINES[engine].packages[0])
    except metadata.PackageNotFoundError:
        return "from the checkout"


def thread_settings(threads: int) -> dict[str, str]:
    """Environment variables, read when an engine's runtime is loaded."""
    names = ("OMP", "MKL", "OPENBLAS", "SOFTGATE")
    return {f"{name}_NUM_THREADS": str(threads) for name in names}


class Worker:
    """An engine in a process of its own."""

    def __init__(self, engine: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, remote = context.Pipe()
        self._log = LOGS / f"{engine}.log"
        self._process = context.Process(
            target=_serve, args=(remote, engine, threads, self._log), daemon=True
        )
        self._process.start()
        remote.close()

    def prepare(self, bench: str, case: str) -> Array:
        """Make the case ready and return its result."""
        return self._ask("prepare", bench, case)

    def sample(self, calls: int) -> float:
        """Seconds that `calls` calls of the prepared case take."""
        return self._ask("sample", calls)

    def close(self) -> None:
        self._connection.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def _ask(self, *message: Any) -> Any:
        try:
            self._connection.send(message)
            status, value = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise EngineError(
                f"the process ended with code {self._process.exitcode}, see {self._log}"
            ) from error
        if status == "error":
            raise EngineError(value)
        return value


@contextlib.contextmanager
def workers(engines: list[str], threads: int) -> Iterator[dict[str, Worker]]:
    started = {engine: Worker(engine, threads) for engine in engines}
    try:
        yield started
    finally:
        for worker in started.values():
            worker.close()


def _serve(connection: Connection, engine: str, threads: int, log: Path) -> None:
    os.environ.update(thread_settings(threads))
    _redirect_output(log)
    call = Call(run=lambda: None)
    while True:
        try:
            command, *arguments = connection.recv()
        except EOFError:
            return
        try:
            if command == "prepare":
                call = _prepare(engine, *arguments)
                connection.send(("result", call.result(call.run())))
            else:
                connection.send(("result", time_calls(call.run, *arguments)))
        except Exception as error:
            traceback.print_exc()
            connection.send(("error", f"{type(error).__name__}: {error}"))


def _prepare(engine: str, bench: str, name: str) -> Call:
    case = load_cases(bench)[name]
    if ENGINES[engine].packages[0] == "torch":
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        torch.set_grad_enabled(False)
    call: Call = getattr(case, engine)(case.inputs())
    return call


def _redirect_output(log: Path) -> None:
    """Libraries talk on both streams; the console is for the results."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())

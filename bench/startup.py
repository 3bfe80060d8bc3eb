"""From starting a process to holding the first embedding: seconds and peak memory.

`python -m bench.startup ENGINE` is one such process; it prints when it is done and what it took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from bench import exports
from bench.limits import ROOT
from bench.peers import thread_settings
from bench.timing import quantile

TOLERANCE = 1e-4
TEXT = "A heddle lifts the warp."


@dataclass(frozen=True)
class Startup:
    """Of one process: seconds from its start to its first embedding, its peak resident bytes, and
    the embedding's first numbers."""

    seconds: float
    peak_bytes: int
    head: tuple[float, ...]


def softgate_embedding() -> Any:
    import softgate

    return softgate.load(exports.minilm_folder()).encode([TEXT])[0]


def onnxruntime_embedding() -> Any:
    """The same: tokenize, encode, mean over the tokens, normalise."""
    import numpy as np
    import onnxruntime
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(exports.minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    encoding = tokenizer.encode(TEXT)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = onnxruntime.InferenceSession(
        exports.export_path("minilm", "onnxruntime") / "model.onnx",
        options,
        providers=["CPUExecutionProvider"],
    )
    feed = {
        "input_ids": np.array([encoding.ids], np.int32),
        "attention_mask": np.array([encoding.attention_mask], np.int32),
    }
    for node in session.get_inputs():
        if "int64" in node.type:
            feed[node.name] = feed[node.name].astype(np.int64)
    mean = session.run(None, feed)[0][0].mean(axis=0)
    return mean / np.linalg.norm(mean)


EMBEDDINGS = {"softgate": softgate_embedding, "onnxruntime": onnxruntime_embedding}


def peak_resident_bytes() -> int:
    """Of this process image alone; getrusage would count the parent's pages at the fork."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def start(engine: str, threads: int) -> Startup:
    """Run one process to its first embedding."""
    environment = os.environ | thread_settings(threads)
    command = [sys.executable, "-m", "bench.startup", engine]
    begin = perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = perf_counter() - begin
    if process.returncode != 0:
        raise RuntimeError(f"startup: {engine} ended with code {process.returncode}")
    report = json.loads(line)
    return Startup(seconds, report["peak_bytes"], tuple(report["head"]))


def disagreement(starts: Mapping[str, list[Startup]]) -> float:
    """Largest difference between the first numbers of any two embeddings."""
    heads = [one.head for several in starts.values() for one in several]
    return max(max(column) - min(column) for column in zip(*heads, strict=True))


def line(engine: str, starts: list[Startup]) -> str:
    """Medians of several starts of one engine."""
    seconds = [one.seconds for one in starts]
    peak = quantile([one.peak_bytes for one in starts], 0.5)
    return (
        f"  {engine:<14}{quantile(seconds, 0.5):.3f} s "
        f"({quantile(seconds, 0.1):.3f} .. {quantile(seconds, 0.9):.3f})  {peak / 2**20:.0f} MiB"
    )


if __name__ == "__main__":
    embedding = EMBEDDINGS[sys.argv[1]]()
    head = [float(value) for value in embedding[:4]]
    print(json.dumps({"peak_bytes": peak_resident_bytes(), "head": head}), flush=True)

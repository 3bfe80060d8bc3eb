"""Sessions of the peers that run a graph, set up as their documentation advises for latency."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.case import Array


def threads() -> int:
    """Those this engine's process may use."""
    return int(os.environ["OMP_NUM_THREADS"])


def onnxruntime_session(model: Path | bytes, sizes: Mapping[str, int] | None = None) -> Any:
    """`sizes`: of the graph's free dimensions by name; fixed ones let it plan better."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    for name, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def openvino_run(model: Any, feed: Sequence[Array]) -> Callable[[], Any]:
    """What runs an `openvino.Model` with fixed shapes on `feed` and returns its first output."""
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer(feed, share_inputs=True, share_outputs=True)[0]

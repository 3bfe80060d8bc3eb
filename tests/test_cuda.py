"""The runtime: streams, events, graphs, memory, and what is said where there is no CUDA."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import softgate
from devices import fetched
from softgate import cuda, ops

BACKEND = Path(softgate.__file__).parent / "_cuda.so"


def tensors(device, seed=0, rows=64, hidden=128):
    random = np.random.default_rng(seed)
    shapes = ((rows, hidden), (rows, hidden), (hidden,))
    return [
        softgate.Tensor(random.standard_normal(shape).astype(np.float32)).to(device)
        for shape in shapes
    ]


@pytest.fixture
def only_cuda(device):
    if device != "cuda":
        pytest.skip("simt has no memory, streams or graphs of its own")
    return device


def test_streams_run_in_the_order_of_their_events(device):
    x, residual, weight = tensors(device)
    expected = fetched(ops.add_rms_norm(ops.add_rms_norm(x, residual, weight), None, weight))
    first, second = cuda.Stream(device), cuda.Stream(device)
    assert first.device == device
    with first:
        between = ops.add_rms_norm(x, residual, weight)
    second.wait(first.record())
    with second:
        result = ops.add_rms_norm(between, None, weight)
        with first:
            pass
        actual = fetched(result)  # on the second stream again
    np.testing.assert_array_equal(actual, expected)
    first.synchronize()
    cuda.synchronize(device)


def test_events_tell_time(device):
    x, residual, weight = tensors(device)
    stream = cuda.Stream(device)
    with stream:
        begin = stream.record()
        ops.add_rms_norm(x, residual, weight)
        end = stream.record()
    end.synchronize()
    assert begin.milliseconds_to(end) >= 0.0


def test_a_graph_repeats_what_it_recorded(only_cuda):
    x, residual, weight = tensors(only_cuda)
    other = tensors(only_cuda, seed=1)[0]
    out = softgate.Tensor.empty(x.shape, device=only_cuda)
    stream = cuda.Stream()
    with cuda.capture(stream) as graph:
        between = ops.add_rms_norm(x, residual, weight)
        ops.add_rms_norm(between, None, weight, out=out)
        del between  # the graph keeps its memory
    taken = [softgate.Tensor.empty(x.shape, device=only_cuda) for _ in range(4)]
    for source in (x, other):
        with stream:
            ops.add_rms_norm(source, None, weight, out=x)  # a new input in the old place
            expected = fetched(
                ops.add_rms_norm(ops.add_rms_norm(x, residual, weight), None, weight)
            )
            graph.launch()
            np.testing.assert_array_equal(fetched(out), expected)
    del taken


def test_a_copy_to_the_host_cannot_be_captured(only_cuda):
    x, residual, weight = tensors(only_cuda)
    stream = cuda.Stream()
    with pytest.raises(RuntimeError, match=r"^cuda: "), cuda.capture(stream):
        ops.add_rms_norm(x, residual, weight).to("cpu")
    with stream:
        assert np.isfinite(fetched(ops.add_rms_norm(x, residual, weight))).all()


def test_out_of_memory_leaves_the_allocator_usable(only_cuda):
    total = cuda.device_info(only_cuda)["memory"]
    with pytest.raises(MemoryError, match="no room for"):
        softgate.Tensor.empty(2 * total, "int8", only_cuda)
    assert fetched(softgate.Tensor(np.ones(3, np.float32)).to(only_cuda)).sum() == 3.0


def test_memory_is_kept_and_given_back(only_cuda):
    script = """
import softgate
from softgate import cuda
tensor = softgate.Tensor.empty((1000, 1000), device="cuda")
assert cuda.cached_bytes() == 0
del tensor
kept = cuda.cached_bytes()
assert 4_000_000 <= kept <= 5_000_000, kept
tensor = softgate.Tensor.empty((1000, 999), device="cuda")
assert cuda.cached_bytes() == 0
stream = cuda.Stream()
del tensor
with stream:
    tensor = softgate.Tensor.empty((1000, 999), device="cuda")
assert cuda.cached_bytes() == kept, "another stream may not have it"
cuda.release_cached()
assert cuda.cached_bytes() == 0
"""
    environment = os.environ | {"SOFTGATE_CUDA_CACHE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_a_card_that_is_not_there(device):
    for index in (99, 1 if device == "simt" else 9999):
        with pytest.raises(ValueError, match=rf"device.*{device}"):
            softgate.Tensor.empty(3, device=f"{device}:{index}")


def test_without_a_card_the_error_and_info_say_why():
    if cuda.is_available():
        pytest.skip("this machine has a card")
    why = "NVIDIA driver" if BACKEND.exists() else "this build of softgate has no cuda backend"
    with pytest.raises(RuntimeError, match=rf"^device cuda: .*{why}"):
        softgate.Tensor.empty(3, device="cuda")
    assert cuda.describe().startswith("none (device cuda: ")
    assert why in cuda.describe()


def test_import_touches_no_cuda():
    script = """
import softgate, softgate.ops
print([line for line in open('/proc/self/maps') if '_cuda' in line or 'cudart' in line])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_a_card_that_is_too_old(only_cuda):
    if "no GPU" not in cuda.describe():
        pytest.skip("only vgpu can be another card")
    script = """
import softgate
try:
    softgate.Tensor.empty(3, device="cuda")
except RuntimeError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"VGPU_CC": "7.0"},
        capture_output=True,
        text=True,
    )
    assert result.stdout == (
        "device cuda:0: its compute capability is 7.0, expected 7.5 or newer\n"
    ), result.stderr

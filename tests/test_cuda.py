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
    run(script, SOFTGATE_CUDA_CACHE="1")


def test_a_card_that_is_not_there(device):
    for index in (99, 2 if device == "simt" else 9999):
        with pytest.raises(ValueError, match=rf"device.*{device}"):
            softgate.Tensor.empty(3, device=f"{device}:{index}")


SCARCE = """
import numpy as np, softgate
from softgate import cuda, nn
total = cuda.device_info()["memory"]
taken = []
try:
    while True:
        taken.append(softgate.Tensor.empty(total // 4, "int8", "cuda"))
except MemoryError as error:
    assert "no room for" in str(error), error
assert 2 <= len(taken) <= 4, len(taken)
layer = nn.Linear(2048, total // 2048 // 2048)  # twice what there is, in float32
layer.init_weights()
try:
    layer.to("cuda")
except MemoryError:
    assert layer.device == layer.weight.value.device == "cpu"
else:
    raise AssertionError("there was room")
taken.pop()
taken.append(softgate.Tensor.empty(total // 4, "int8", "cuda"))
taken.clear()
assert cuda.cached_bytes() > total // 4
taken.append(softgate.Tensor.empty(total // 2, "int8", "cuda"))  # what was kept is given back
assert softgate.Tensor(np.ones(3, np.float32)).to("cuda").to("cpu").numpy().sum() == 3.0
"""


def test_memory_that_runs_out(only_cuda):
    if "VGPU_CC" not in os.environ:
        pytest.skip("a real card has more memory than the host would fill")
    run(SCARCE, SOFTGATE_CUDA_CACHE="1", VGPU_MEMORY_MB="64")


def run(script, **environment):
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("shape", "view"),
    [
        ((3, 300_000), np.s_[:]),
        ((3, 300_000), np.s_[:, 7:]),
        ((3000, 100), np.s_[:, 1:98]),
        ((2, 3, 50_000), np.s_[:, 1:]),
        ((2**18 * 5 + 3,), np.s_[1:]),
    ],
    ids=str,
)
def test_copies_in_pieces(device, shape, view):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(fetched(softgate.Tensor(array)[view].to(device)), array[view])
    there = softgate.Tensor(array).to(device)
    np.testing.assert_array_equal(fetched(there[view]), array[view])
    there[view].copy_(-array[view])
    changed = array.copy()
    changed[view] *= -1.0
    np.testing.assert_array_equal(fetched(there), changed)
    on_device = softgate.Tensor.empty(array[view].shape, device=device).copy_(there[view])
    np.testing.assert_array_equal(fetched(on_device), changed[view])


def test_an_array_may_change_once_it_is_uploaded(device):
    array = np.ones(1000, np.float32)
    there = []
    for i in range(20):  # more than are under way at a time
        array[:] = i
        there.append(softgate.Tensor(array).to(device))
    for i, tensor in enumerate(there):
        assert (fetched(tensor) == i).all()


def test_what_is_uploaded_in_a_graph_is_constant(only_cuda):
    x, residual, weight = tensors(only_cuda)
    host, out = np.full(x.shape, 2.0, np.float32), softgate.Tensor.empty(x.shape, device=only_cuda)
    stream = cuda.Stream()
    with cuda.capture(stream) as graph:
        constant = softgate.Tensor(host).to(only_cuda)
        ops.add_rms_norm(constant, residual, weight, out=out)
    expected = fetched(ops.add_rms_norm(softgate.Tensor(host).to(only_cuda), residual, weight))
    host[:] = 3.0
    for _ in range(2):
        with stream:
            graph.launch()
            np.testing.assert_array_equal(fetched(out), expected)


def test_a_graph_that_uploads_keeps_its_memory(only_cuda):
    """Launched after others have taken and freed such memory."""
    stream = cuda.Stream()
    with cuda.capture(stream) as graph:
        constant = softgate.Tensor(np.arange(5, dtype=np.float32)).to(only_cuda)
    for i in range(9):
        softgate.Tensor(np.full(5, i, np.float32)).to(only_cuda)
    with stream:
        graph.launch()
        np.testing.assert_array_equal(fetched(constant), np.arange(5))
    del graph


def test_transfers_are_counted(device):
    array = np.zeros((3, 4, 5), np.float32)
    before = cuda.transfers()
    there = softgate.Tensor(array).to(device)
    there[:, 1:].copy_(array[:, 1:])
    there.to(device, "float16")  # by way of the host
    softgate.Tensor.empty(there.shape, device=device).copy_(there)
    softgate.Tensor(array).to(dtype="float16")
    assert {name: count - before[name] for name, count in cuda.transfers().items()} == {
        "uploads": 3,
        "uploaded_bytes": 240 + 180 + 120,
        "downloads": 1,
        "downloaded_bytes": 240,
    }


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 3), np.float32), r"source has shape \[2, 3\], expected \[3, 2\]"),
        (np.zeros((3, 2)), "source has dtype float64"),
        (np.zeros((3, 2), np.int32), "int32 does not convert to float32"),
    ],
    ids=str,
)
def test_copies_that_cannot_be(device, source, message):
    there = softgate.Tensor(np.zeros((3, 2), np.float32)).to(device)
    with pytest.raises((TypeError, ValueError), match=message):
        there.copy_(source)
    with pytest.raises(ValueError, match="shares memory"):
        there.copy_(there)


def test_tensors_of_two_devices(device):
    if cuda.device_count() < 2 if device == "cuda" else False:
        pytest.skip("there is one card")
    other = f"{device}:1"
    x, residual, weight = tensors(device)
    with pytest.raises(
        ValueError, match=rf"^add_rms_norm: weight is on {other}, expected {device}"
    ):
        ops.add_rms_norm(x, residual, weight.to(other))
    with pytest.raises(ValueError, match=rf"^linear: weight is on {other}, expected {device}$"):
        ops.linear(x, ops.pack(softgate.Tensor(np.ones((3, 128), np.float32)).to(other)))
    moved = x.to(other)
    assert moved.device == other
    np.testing.assert_array_equal(fetched(moved), fetched(x))
    expected = fetched(ops.add_rms_norm(x, residual, weight))
    result = ops.add_rms_norm(moved, residual.to(other), weight.to(other))
    assert result.device == other
    np.testing.assert_array_equal(fetched(result), expected)


# Stands before the CUDA runtime, with a driver of the version in DRIVER.
OLD_DRIVER = """
#include <cstdlib>
extern "C" int cudaGetDeviceCount(int* count) { return *count = 0, 35; }
extern "C" int cudaDriverGetVersion(int* version) {
  return *version = std::atoi(std::getenv("DRIVER")), 0;
}
"""


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        ("11080", "the NVIDIA driver serves CUDA 11.8, this build needs "),
        ("0", "this machine has no NVIDIA driver"),
    ],
)
def test_a_driver_that_does_not_serve(only_cuda, tmp_path, driver, why):
    if "VGPU_CC" not in os.environ:
        pytest.skip("needs a build whose CUDA runtime is a library of its own, on vgpu")
    source, library = tmp_path / "driver.cc", tmp_path / "driver.so"
    source.write_text(OLD_DRIVER)
    subprocess.run(["c++", "-shared", "-fPIC", source, "-o", library], check=True)
    script = f"""
import softgate
from softgate import cuda, nn
for call in (cuda.device_count, lambda: nn.Linear(2, 3).to("cuda"), cuda.Stream):
    try:
        call()
    except RuntimeError as error:
        assert str(error).startswith("device cuda: {why}"), error
    else:
        raise AssertionError("no error")
assert not cuda.is_available()
assert cuda.describe().startswith("none (device cuda: {why}"), cuda.describe()
"""
    run(script, LD_PRELOAD=str(library), DRIVER=driver)


def test_a_card_that_is_too_old(only_cuda):
    if "VGPU_CC" not in os.environ:
        pytest.skip("only vgpu pretends to be another card")
    script = """
import softgate
from softgate import cuda
try:
    softgate.Tensor.empty(3, device="cuda")
except RuntimeError as error:
    expected = "device cuda:0: its compute capability is 7.0, expected 7.5 or newer"
    assert str(error) == expected, error
else:
    raise AssertionError("no error")
assert not cuda.is_available()
assert "7.0" in cuda.describe() and "too old" in cuda.describe(), cuda.describe()
"""
    run(script, VGPU_CC="7.0")


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

"""Memory shared with others on a device: DLPack and __cuda_array_interface__."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import softgate
from devices import fetched
from softgate import cuda, ops

CPU, CUDA, EXTENSION = 1, 2, 12


@pytest.fixture
def only_cuda(device):
    if device != "cuda":
        pytest.skip("only CUDA's memory is shared")
    return device


class Producer:
    """An array library's array, around a tensor, that remembers how it was asked."""

    def __init__(self, tensor: softgate.Tensor, *, versioned: bool = True) -> None:
        self.tensor, self.versioned = tensor, versioned
        self.asked: list[dict[str, Any]] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        if not self.versioned and "max_version" in options:
            raise TypeError("an exporter from before DLPack 1.0")
        self.asked.append(options)
        return self.tensor.__dlpack__(**options)


class CudaArray:
    """An object with nothing but the interface, some entries of it replaced."""

    def __init__(self, tensor: softgate.Tensor, **changes: Any) -> None:
        self.tensor = tensor
        self.__cuda_array_interface__ = tensor.__cuda_array_interface__ | changes


def numbers(device: str, dtype: str = "float32") -> softgate.Tensor:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    return softgate.Tensor(array).to(device, dtype)


def test_only_cuda_memory_is_shared(device):
    x = numbers(device)
    if device == "cuda":
        assert x.__dlpack_device__() == (CUDA, 0)
        return
    assert x.__dlpack_device__() == (EXTENSION, 0)
    assert not hasattr(x, "__cuda_array_interface__")
    with pytest.raises(BufferError, match=rf"^__dlpack__: the tensor is on {device}$"):
        x.__dlpack__()


def test_a_tensor_on_the_cpu_is_no_cuda_array():
    x = softgate.Tensor(np.ones(3, np.float32))
    with pytest.raises(AttributeError, match="no __cuda_array_interface__: it is on cpu"):
        x.__cuda_array_interface__  # noqa: B018


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dlpack_there_and_back(only_cuda, dtype, versioned):
    x = numbers(only_cuda, dtype)
    producer = Producer(x[1:, 2:5], versioned=versioned)
    stream = cuda.Stream()
    for expected in (1, stream.handle):
        if expected == 1:
            shared = softgate.Tensor(producer)
        else:
            with stream:
                shared = softgate.Tensor(producer)
        assert (shared.device, shared.dtype) == (only_cuda, dtype)
        assert (shared.shape, shared.strides) == ((3, 3), (6, 1))
        assert producer.asked.pop()["stream"] == expected
    np.testing.assert_array_equal(fetched(shared), fetched(x)[1:, 2:5])
    shared.copy_(np.full((3, 3), -1.0, np.float32))
    assert (fetched(x)[1:, 2:5] == -1.0).all()
    del x, producer
    assert (fetched(shared) == -1.0).all()  # it keeps the memory


def test_an_op_takes_what_others_own(only_cuda):
    x = numbers(only_cuda)
    expected = fetched(ops.softmax(x))
    for array in (Producer(x), CudaArray(x)):
        result = ops.softmax(array)
        assert (type(result), result.device) == (softgate.Tensor, only_cuda)
        np.testing.assert_array_equal(fetched(result), expected)


class _View(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def test_what_a_capsule_says(only_cuda):
    x = numbers(only_cuda, "float16")[:, 1:]
    capsule = x.__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    view = _View.from_address(pointer(capsule, b"dltensor"))
    assert (view.device_type, view.device_id) == (CUDA, 0)
    assert (view.code, view.bits, view.lanes) == (2, 16, 1)
    assert (view.shape[:2], view.strides[:2], view.byte_offset) == ([4, 5], [6, 1], 0)
    assert view.data == x.__cuda_array_interface__["data"][0]


def test_streams_of_a_consumer(only_cuda):
    x, stream = numbers(only_cuda), cuda.Stream()
    for consumer in (None, 1, 2, -1, stream.handle):
        assert x.__dlpack__(stream=consumer) is not None
    with stream:
        y = ops.softmax(x)
        y.__dlpack__(stream=1)
    with pytest.raises(ValueError, match=r"^__dlpack__: stream is on stream 0, expected 1, 2 or"):
        x.__dlpack__(stream=0)
    with pytest.raises(BufferError, match="exports to that device only"):
        x.__dlpack__(dl_device=(CPU, 0))
    with pytest.raises(ValueError, match="expected None for a CPU tensor"):
        x.to("cpu").__dlpack__(stream=1)


def test_a_consumer_waits_for_our_stream(only_cuda):
    """Captured: the wait joins the consumer's stream to the graph of ours."""
    x, ours, theirs = numbers(only_cuda), cuda.Stream(), cuda.Stream()
    with cuda.capture(ours) as graph:
        y = ops.softmax(x)
        y.__dlpack__(stream=theirs.handle)
        with theirs:
            z = ops.softmax(y)
        theirs_done = theirs.record()
        ours.wait(theirs_done)
    with ours:
        graph.launch()
        result = fetched(z)
    np.testing.assert_array_equal(result, fetched(ops.softmax(ops.softmax(x))))


def test_cuda_array_interface(only_cuda):
    x, stream = numbers(only_cuda), cuda.Stream()
    interface = x.__cuda_array_interface__
    assert interface == {
        "shape": (4, 6),
        "typestr": "<f4",
        "data": (interface["data"][0], False),
        "strides": None,
        "stream": 1,
        "version": 3,
    }
    with stream:
        part = x[1:, 2:].__cuda_array_interface__
    assert (part["shape"], part["strides"], part["stream"]) == ((3, 4), (24, 4), stream.handle)
    assert part["data"][0] == interface["data"][0] + 4 * (6 + 2)
    assert numbers(only_cuda, "float16").__cuda_array_interface__["typestr"] == "<f2"
    assert not hasattr(numbers(only_cuda, "bfloat16"), "__cuda_array_interface__")
    offsets = softgate.SequenceOffsets(np.array([0, 3], np.int32), only_cuda)
    assert offsets.cu_seqlens.__cuda_array_interface__["data"][1]  # read-only
    assert x[:0].__cuda_array_interface__["data"] == (0, False)


def test_cuda_array_there_and_back(only_cuda):
    x, stream = numbers(only_cuda), cuda.Stream()
    for changes in ({}, {"stream": None}, {"stream": stream.handle}, {"version": 2}):
        shared = softgate.Tensor(CudaArray(x[1:, 2:5], **changes))
        assert (shared.shape, shared.strides, shared.dtype) == ((3, 3), (6, 1), "float32")
        np.testing.assert_array_equal(fetched(shared), fetched(x)[1:, 2:5])
    assert softgate.Tensor(CudaArray(x[:0])).shape == (0, 6)
    read_only = softgate.Tensor(CudaArray(x, data=(x.__cuda_array_interface__["data"][0], True)))
    with pytest.raises(ValueError, match="read-only"):
        read_only.copy_(x)
    del x
    assert fetched(shared)[0, 0] == 8.0  # it keeps the memory


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"version": 1}, ValueError, "has version 1 of __cuda_array_interface__"),
        ({"typestr": "<f8"}, TypeError, "has dtype <f8, expected"),
        ({"mask": object()}, ValueError, "has a mask"),
        ({"stream": 0}, ValueError, "is on stream 0"),
        ({"strides": (24,)}, ValueError, "has 2 dimensions and 1 strides"),
        ({"strides": (24, 2)}, ValueError, "has a stride of 2 bytes"),
        ({"strides": (4, 16)}, ValueError, "expected a contiguous last dimension"),
        ({"strides": (-24, 4)}, ValueError, "expected no negative stride"),
        ({"shape": (4, -6)}, ValueError, "negative size"),
        ({"shape": (2**62, 2**62)}, ValueError, "more bytes than can be addressed"),
    ],
    ids=lambda value: "" if isinstance(value, type) else str(value),
)
def test_cuda_arrays_that_cannot_be(only_cuda, changes, error, message):
    array = CudaArray(numbers(only_cuda), **changes)
    with pytest.raises(error, match=message):
        softgate.Tensor(array)


def test_a_cuda_array_of_the_host(only_cuda):
    host = np.zeros((4, 6), np.float32)
    array = CudaArray(numbers(only_cuda), data=(host.ctypes.data, False))
    with pytest.raises((ValueError, RuntimeError), match=r"^cuda: "):
        softgate.Tensor(array)

"""Tensor: its views, and the ways in and out through NumPy and DLPack."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import softgate
import torch
from devices import rounded
from softgate import Tensor, _core

NUMPY_DTYPES = ["float32", "float16", "int8", "int32", "int64", "bool"]
TORCH_DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int32, torch.int64,
                torch.bool]  # fmt: skip


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


class LegacyExporter:
    """A DLPack exporter from before `max_version`."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, stream: None = None) -> Any:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class OnAnotherDevice(LegacyExporter):
    def __dlpack_device__(self) -> tuple[int, int]:
        return (8, 1)


# NumPy


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_numpy_round_trip_shares_memory(dtype: str) -> None:
    array = (np.arange(24) % 3).astype(dtype).reshape(2, 3, 4)
    tensor = Tensor(array)
    assert (tensor.shape, tensor.strides, tensor.ndim) == ((2, 3, 4), (12, 4, 1), 3)
    assert (tensor.dtype, tensor.device, tensor.nbytes) == (dtype, "cpu", array.nbytes)
    back = tensor.numpy()
    assert back.dtype == array.dtype
    assert address(back) == address(array)
    np.testing.assert_array_equal(back, array)
    back[1, 2, 3] = 0
    assert array[1, 2, 3] == 0


@pytest.mark.parametrize("key", [np.s_[::2], np.s_[:, 1:3], np.s_[1:2, ::3], np.s_[:, :, 2:5]])
def test_strided_views_keep_their_strides(key: Any) -> None:
    array = ramp(4, 5, 6)[key]
    back = Tensor(array).numpy()
    assert address(back) == address(array)
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0,), (3, 0), (0, 3), (2, 1, 3), (3, 1)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    array = ramp(*shape)
    tensor = Tensor(array)
    assert tensor.shape == shape
    np.testing.assert_array_equal(tensor.numpy(), array)
    np.testing.assert_array_equal(torch.from_dlpack(tensor).numpy(), array)


def test_strides_of_single_elements_do_not_matter() -> None:
    array = np.lib.stride_tricks.as_strided(ramp(8), (1, 4, 1), (-64, 4, 20))
    assert Tensor(array).strides == (4, 1, 1)
    assert Tensor(ramp(4, 6)[:, ::7]).strides == (6, 1)
    assert Tensor(ramp(0, 4)[:, ::-2]).strides == (2, 1)


def test_broadcast_view_is_an_input() -> None:
    tensor = Tensor(np.broadcast_to(ramp(3), (4, 3)))
    assert tensor.strides == (0, 1)
    np.testing.assert_array_equal(tensor.numpy(), np.tile(ramp(3), (4, 1)))


def test_read_only_stays_read_only() -> None:
    array = ramp(3)
    array.flags.writeable = False
    tensor = Tensor(array)
    assert not tensor.numpy().flags.writeable
    assert not np.from_dlpack(tensor).flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        tensor.__dlpack__()
    assert np.from_dlpack(tensor, copy=True).flags.writeable


def test_array_protocol() -> None:
    array = ramp(2, 3)
    tensor = Tensor(array)
    assert address(np.asarray(tensor)) == address(array)
    assert address(np.array(tensor, copy=True)) != address(array)
    assert address(np.asarray(tensor, dtype=np.float32, copy=False)) == address(array)
    assert np.asarray(tensor, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="needs a copy"):
        np.asarray(tensor, dtype=np.float64, copy=False)


@pytest.mark.parametrize("dtype", ["float64", ">f4", ">i8", "uint8", "uint16", "int16", "complex64",
                                   "O", "S4", "M8[s]", "f4,i4"])  # fmt: skip
def test_refuses_other_dtypes(dtype: str) -> None:
    array = np.zeros(4, dtype=dtype)
    with pytest.raises(TypeError, match=r"^Tensor: array has dtype .*, expected float32, float16"):
        Tensor(array)
    with pytest.raises(TypeError, match=r"^softmax: x has dtype .*, expected float32$"):
        _core.softmax(array, None)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (ramp(3, 4)[:, ::2], r"strides \[4, 2\], expected a contiguous last dimension"),
        (ramp(3, 4).T, r"strides \[1, 4\], expected a contiguous last dimension"),
        (ramp(4)[::-1], r"strides \[-1\], expected a contiguous last dimension"),
        (ramp(3, 4)[::-1], r"strides \[-4, 1\], expected no negative stride"),
        (np.broadcast_to(ramp(1), (4,)), r"expected a contiguous last dimension"),
        (np.zeros(17, np.int8)[1:].view(np.float32), "not aligned to its 4-byte elements"),
        (np.zeros((3, 9), np.int8)[:, :8].view(np.float32), "9 bytes, expected a multiple of 4"),
        (np.zeros((1,) * 9, np.float32), "has 9 dimensions, expected at most 8"),
    ],
    ids=["step", "transposed", "reversed", "reversed rows", "broadcast", "misaligned",
         "odd stride", "dimensions"],
)  # fmt: skip
def test_refuses_other_layouts(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^Tensor: array .*{message}"):
        Tensor(array)


@pytest.mark.parametrize("value", [None, 1.0, [1.0], "text", np.float32(1), object()])
def test_refuses_what_is_no_array(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^Tensor: array is a .*, expected a NumPy array"):
        Tensor(value)


# DLPack


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_torch_round_trip_shares_memory(dtype: torch.dtype) -> None:
    source = (torch.arange(12) % 3).to(dtype).reshape(3, 4)
    tensor = Tensor(source)
    assert tensor.dtype == str(dtype).removeprefix("torch.")
    back = torch.from_dlpack(tensor)
    assert back.data_ptr() == source.data_ptr()
    assert back.dtype == dtype
    assert torch.equal(back, source)


def test_torch_strided_view() -> None:
    source = torch.arange(24.0).reshape(4, 6)[::2, 1:4]
    tensor = Tensor(source)
    assert tensor.strides == (12, 1)
    assert torch.from_dlpack(tensor).data_ptr() == source.data_ptr()
    with pytest.raises(ValueError, match="contiguous last dimension"):
        Tensor(source.T)


def test_dlpack_to_numpy() -> None:
    array = ramp(3, 4)
    assert address(np.from_dlpack(Tensor(array))) == address(array)
    copied = np.from_dlpack(Tensor(array[:, 1:3]), copy=True)
    assert address(copied) != address(array[:, 1:3])
    np.testing.assert_array_equal(copied, array[:, 1:3])


@pytest.mark.parametrize("max_version", [None, (0, 8), (1, 0), (1, 5), (2, 0)])
def test_dlpack_versions(max_version: tuple[int, int] | None) -> None:
    capsule = Tensor(ramp(3)).__dlpack__(max_version=max_version)
    versioned = max_version is not None and max_version[0] >= 1
    assert ('"dltensor_versioned"' if versioned else '"dltensor"') in repr(capsule)


def test_legacy_exporter() -> None:
    array = ramp(2, 3)
    assert address(Tensor(LegacyExporter(array)).numpy()) == address(array)


def test_dlpack_arguments() -> None:
    tensor = Tensor(ramp(3))
    assert tensor.__dlpack_device__() == (1, 0)
    tensor.__dlpack__(dl_device=(1, 0), copy=False)
    with pytest.raises(BufferError, match="on cpu exports to that device only"):
        tensor.__dlpack__(dl_device=(2, 0))
    with pytest.raises(ValueError, match="stream"):
        tensor.__dlpack__(stream=1)  # type: ignore[arg-type]


def test_refuses_other_devices() -> None:
    with pytest.raises(ValueError, match=r"^softmax: x is on DLPack device \(8, 1\), expected the"):
        _core.softmax(OnAnotherDevice(ramp(3)), None)


def test_refuses_other_dlpack_dtypes() -> None:
    with pytest.raises(TypeError, match="array has dtype complex64, expected"):
        Tensor(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="array has dtype uint8, expected"):
        Tensor(torch.zeros(2, dtype=torch.uint8))


def test_exporter_errors_pass_through() -> None:
    with pytest.raises(BufferError, match="require gradient"):
        Tensor(torch.zeros(2, requires_grad=True))


def test_bfloat16_has_no_numpy_dtype() -> None:
    with pytest.raises(TypeError, match="NumPy has no bfloat16"):
        Tensor.empty((2,), "bfloat16").numpy()


# Lifetimes


def test_tensor_keeps_the_array() -> None:
    array = ramp(1000)
    alive = weakref.ref(array)
    tensor = Tensor(array)
    view = tensor[10:20]
    del array, tensor
    gc.collect()
    assert alive() is not None
    np.testing.assert_array_equal(view.numpy(), np.arange(10, 20))
    del view
    gc.collect()
    assert alive() is None


def test_array_keeps_the_memory() -> None:
    tensor = Tensor.empty((1000,))
    array = tensor.numpy()
    array[:] = 7
    del tensor
    gc.collect()
    others = [Tensor.empty((1000,)).numpy() for _ in range(50)]
    for other in others:
        other[:] = 0
    assert (array == 7).all()


@pytest.mark.parametrize("max_version", [None, (1, 0)])
def test_capsules_keep_the_memory_until_dropped(max_version: tuple[int, int] | None) -> None:
    array = ramp(10)
    alive = weakref.ref(array)
    capsule = Tensor(array).__dlpack__(max_version=max_version)
    del array
    gc.collect()
    assert alive() is not None
    del capsule
    gc.collect()
    assert alive() is None


def test_torch_view_outlives_everything() -> None:
    array = ramp(1000)
    alive = weakref.ref(array)
    view = torch.from_dlpack(Tensor(array))
    del array
    gc.collect()
    assert alive() is not None
    assert view[999].item() == 999
    del view
    gc.collect()
    assert alive() is None


def test_release_cached() -> None:
    Tensor.empty((1 << 16,))
    softgate.release_cached()
    assert _core.cached_bytes() == 0


# Making and viewing


@pytest.mark.parametrize("dtype", [*NUMPY_DTYPES, "bfloat16"])
def test_empty(dtype: str) -> None:
    tensor = Tensor.empty((3, 5), dtype)
    assert (tensor.shape, tensor.strides, tensor.dtype) == ((3, 5), (5, 1), dtype)
    assert repr(tensor) == f"Tensor(shape=(3, 5), dtype={dtype}, device=cpu)"


@pytest.mark.parametrize("numel", [1, 63, 64, 65, 257, 1 << 16, (1 << 20) + 1])
def test_empty_is_aligned(numel: int) -> None:
    assert address(Tensor.empty(numel).numpy()) % 64 == 0


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((-1,), "negative size"),
        ((2, -3), "negative size"),
        ((2**62, 8), "more bytes than can be addressed"),
        ((2**31, 2**31, 2), "more bytes than can be addressed"),
        ((0, 2**62, 2**62), "more bytes than can be addressed"),
        ((2**70,), "out of range"),
        ((1,) * 9, "at most 8 dimensions"),
    ],
)
def test_empty_refuses_shapes(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tensor.empty(shape)


def test_empty_refuses_types() -> None:
    with pytest.raises(TypeError, match=r"dtype is 'float64', expected float32"):
        Tensor.empty((2,), "float64")
    with pytest.raises(TypeError, match="integer"):
        Tensor.empty((2.5,))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [0, -1, np.s_[1:], np.s_[:2, 3], np.s_[1, 2], np.s_[-2:, 1, 2:4],
                                 np.s_[:, :, 5:2], np.s_[0, 0, 0], np.s_[-9:9], ()])  # fmt: skip
def test_indexing_is_a_view(key: Any) -> None:
    array = ramp(3, 4, 5)
    view = Tensor(array)[key].numpy()
    np.testing.assert_array_equal(view, array[key])
    view[...] = -1
    np.testing.assert_array_equal(np.asarray(array[key]), view)


def test_indexing_errors() -> None:
    tensor = Tensor(ramp(3, 4))
    for key in (3, -4, (0, 4), (0, 0, 0)):
        with pytest.raises(IndexError):
            tensor[key]
    with pytest.raises(ValueError, match="step 2, expected 1"):
        tensor[::2]
    with pytest.raises(ValueError, match="contiguous last dimension"):
        tensor[:, 0]
    with pytest.raises(TypeError, match="an index is a float"):
        tensor[1.5]  # type: ignore[index]


def test_length_and_iteration() -> None:
    array = ramp(3, 2)
    assert len(Tensor(array)) == 3
    for row, expected in zip(Tensor(array), array, strict=True):  # type: ignore[call-overload]
        np.testing.assert_array_equal(row.numpy(), expected)
    with pytest.raises(TypeError, match="no length"):
        len(Tensor(ramp()))


@pytest.mark.parametrize("shape", [(24,), (2, -1), (4, 3, 2), (1, 24, 1), (2, 2, 2, 3), -1])
def test_reshape_shares_memory(shape: int | tuple[int, ...]) -> None:
    array = ramp(4, 6)
    view = Tensor(array).reshape(shape).numpy()
    assert address(view) == address(array)
    np.testing.assert_array_equal(view, array.reshape(shape))


def test_reshape_of_strided_views() -> None:
    array = ramp(4, 6, 8)
    np.testing.assert_array_equal(
        Tensor(array[:, :4]).reshape((4, 2, 2, 8)).numpy(), array[:, :4].reshape(4, 2, 2, 8)
    )
    np.testing.assert_array_equal(
        Tensor(array[:, :, :4]).reshape((24, 4)).numpy(), array[:, :, :4].reshape(24, 4)
    )
    with pytest.raises(ValueError, match="is no view of shape"):
        Tensor(array[:, :4]).reshape((16, 8))
    with pytest.raises(ValueError, match="is no view of shape"):
        Tensor(array[:, :, :4]).reshape(-1)


@pytest.mark.parametrize("shape", [(5,), (-1, 5), (-1, -1), (-2, 3), (0, -1), (2**62, 2**62)])
def test_reshape_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"reshape|more bytes|addressed"):
        Tensor(ramp(2, 3)).reshape(shape)


def test_reshape_of_empty() -> None:
    assert Tensor(ramp(0, 3)).reshape((3, 0, 7)).shape == (3, 0, 7)
    assert Tensor(ramp(0, 3)).reshape((-1, 3)).shape == (0, 3)


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_item(dtype: torch.dtype) -> None:
    value = torch.tensor([1, 0]).to(dtype)
    item = Tensor(value)[0].item()
    assert item == value[0].item()
    assert type(item) is type(value[0].item())


def test_item_needs_one_element() -> None:
    for shape in ((2,), (0,)):
        with pytest.raises(ValueError, match=r"elements, expected 1"):
            Tensor(ramp(*shape)).item()


# Results of ops


def test_results_follow_the_first_argument() -> None:
    array = ramp(2, 3)
    assert isinstance(_core.softmax(array, None), np.ndarray)
    assert isinstance(_core.softmax(Tensor(array), None), Tensor)
    assert isinstance(_core.softmax(torch.from_numpy(array), None), Tensor)


@pytest.mark.parametrize("kind", [np.asarray, Tensor, torch.from_numpy], ids=["numpy", "tensor",
                                                                             "torch"])  # fmt: skip
def test_out_is_returned(kind: Any) -> None:
    out = kind(np.zeros((2, 3), np.float32))
    assert _core.softmax(ramp(2, 3), out) is out
    np.testing.assert_array_equal(np.asarray(out), _core.softmax(ramp(2, 3), None))


def test_out_is_refused() -> None:
    x = ramp(2, 3)
    read_only = np.zeros((2, 3), np.float32)
    read_only.flags.writeable = False
    broadcast = np.lib.stride_tricks.as_strided(np.zeros(3, np.float32), (2, 3), (0, 4))
    overlapping = np.lib.stride_tricks.as_strided(np.zeros(4, np.float32), (2, 3), (4, 4))
    for out, message in [
        (read_only, "read-only"),
        (broadcast, "broadcast or overlapping"),
        (overlapping, "broadcast or overlapping"),
        (np.zeros((3, 2), np.float32), r"shape \[3, 2\], expected \[2, 3\]"),
    ]:
        with pytest.raises(ValueError, match=f"^softmax: out .*{message}"):
            _core.softmax(x, out)
    with pytest.raises(TypeError, match=r"^softmax: out has dtype int32, expected float32"):
        _core.softmax(x, np.zeros((2, 3), np.int32))


def test_names_the_list_element() -> None:
    ids = np.zeros(2, np.int64)
    with pytest.raises(TypeError, match=r"^embedding: tables\[1\] has dtype float64, expected flo"):
        _core.embedding([ids, ids], [ramp(2, 3), np.zeros((2, 3))], None, None, 0.0, None)


def test_linear_wants_a_packed_weight() -> None:
    with pytest.raises(TypeError, match=r"weight is a numpy\.ndarray, expected a PackedWeight"):
        _core.linear(ramp(2, 3), ramp(4, 3), None, "none", None, None)  # type: ignore[arg-type]


def test_threads_make_and_drop_tensors() -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            rng = np.random.default_rng(seed)
            for size in rng.integers(1, 1 << 15, 200):
                array = Tensor.empty((int(size),), "int32").numpy()
                array[:] = seed
                _core.softmax(ramp(2, 3), None)
                assert (array == seed).all()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_float16_and_bfloat16_convert_bit_for_bit():
    """Against NumPy's rounding to nearest even, for every half and for floats of any exponent."""
    bits = np.arange(2**16, dtype=np.uint16)
    halves = bits.view(np.float16)
    numbers = ~np.isnan(halves)
    wide = Tensor(halves).to(dtype="float32").numpy()
    np.testing.assert_array_equal(wide[numbers].view(np.uint32), f32(halves)[numbers].view("u4"))
    assert np.isnan(wide[~numbers]).all()

    random = np.random.default_rng(0)
    floats = random.integers(0, 2**32, 200_000, np.uint32).view(np.float32)
    near_half = f32(halves)[numbers & np.isfinite(halves)]
    steps = [np.nextafter(near_half, side) for side in (np.float32(-np.inf), np.float32(np.inf))]
    middles = (near_half[1:].astype(np.float64) + near_half[:-1]) / 2
    floats = np.concatenate([floats, near_half, *steps, f32(middles), f32([np.inf, -np.inf, 7e4])])
    floats = floats[~np.isnan(floats)]
    for dtype in ("float16", "bfloat16"):
        narrow = Tensor(floats).to(dtype=dtype).to(dtype="float32").numpy()
        np.testing.assert_array_equal(narrow.view(np.uint32), rounded(floats, dtype).view("u4"))
    nan = Tensor(f32([np.nan, -np.nan])).to(dtype="float16").numpy()
    np.testing.assert_array_equal(nan.view(np.uint16), [0x7FFF, 0x7FFF])


def f32(values):
    return np.asarray(values).astype(np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param(
            {"device": "gpu"}, ValueError, r'^to: device is "gpu", expected', id="unknown"
        ),
        pytest.param({"device": "cuda:x"}, ValueError, r'^to: device is "cuda:x"', id="no_index"),
        pytest.param({"device": "cpu:1"}, ValueError, r'^to: device is "cpu:1"', id="second_cpu"),
        pytest.param({"dtype": "float64"}, TypeError, r"^to: dtype is 'float64'", id="dtype"),
        pytest.param({"dtype": "int32"}, TypeError, r"^to: float32 does not convert", id="cast"),
    ],
)
def test_to_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        Tensor(np.ones(3, np.float32)).to(**arguments)


def test_to_without_a_change_is_the_tensor_itself():
    tensor = Tensor(np.ones(3, np.float32))
    assert tensor.to("cpu", "float32") is tensor

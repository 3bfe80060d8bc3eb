"""linear's kernels on integer weights as nvcc compiled them, every instance on a ragged case."""

from __future__ import annotations

from typing import Any

import numpy as np
import ptx
import pytest
from softgate import reference
from test_linear_packed import random_groups
from test_ptx_linear import ACTIVATIONS, matrix
from tolerances import TOLERANCES, packed_linear_scale

SOURCE = "cuda/linear_integers.cu"
FORMATS = {
    "int8": "RowBytes",
    "int8_groups": "GroupBytes",
    "int8_groups_minimums": "GroupBytes",
    "int4": "GroupNibbles",
}
# Columns and rows of a block's warps, the kernel's own arguments, bytes of shared memory.
KERNELS = {
    "direct 1": (64, 8, ", 1", 4 * 8 * 20 * 4),
    "direct 4": (64, 32, ", 4", 4 * 32 * 20 * 4),
    "tiled": (128, 64, "", None),
}
WIDTHS = {"float32": 4, "float16": 8, "bfloat16": 8}
INSTANCES = [
    (dtype, packed, kernel) for dtype in ptx.ELEMENTS for packed in FORMATS for kernel in KERNELS
]
QUANTISE_ROWS = [
    (dtype, width, columns)
    for dtype in ptx.ELEMENTS
    for width, short, long in ((WIDTHS[dtype], 1032, 8216), (1, 77, 8201))
    for columns in (short, long)
]


def name_of(kernel: str, dtype: str, packed: str) -> str:
    instance = KERNELS[kernel][2]
    which = kernel.split()[0]
    return f"integers_{which}_kernel<{ptx.ELEMENTS[dtype]}, {FORMATS[packed]}{instance}>"


def quantized(packed: str, shape: tuple[int, int], random: Any) -> reference.QuantizedWeight:
    if packed == "int8":
        return reference.quantize_weight(random.standard_normal(shape), "int8")
    return random_groups(shape, packed)


def panels(q: reference.QuantizedWeight, packed: str, gated: bool) -> np.ndarray:
    """csrc/ops/device_panel.h, in NumPy: [panels, bytes]."""
    features, depth = q.values.shape
    order = np.arange(features)
    if gated:  # a feature of the gate, what it gates, and so on
        order = order.reshape(2, -1).T.ravel()
    count, units = -(-features // 16), -(-depth // 32)

    def padded(array: np.ndarray, columns: int) -> np.ndarray:
        whole = np.zeros((count * 16, columns), array.dtype)
        whole[:features, : array.shape[1]] = array[order]
        return whole

    values = padded(q.values, units * 32).view(np.uint8)
    values = values.reshape(count, 8, 2, units, 4, 8).transpose(0, 3, 1, 4, 2, 5)
    if packed == "int4":
        values = values[..., :4] | values[..., 4:] << np.uint8(4)
    parts = [values.reshape(count, units, -1)]
    for array in (q.scales, q.minimums):
        if packed != "int8" and array is not None:
            halves = padded(array, units).reshape(count, 16, units).transpose(0, 2, 1)
            parts.append(np.ascontiguousarray(halves).view(np.uint8))
    whole = np.concatenate(parts, axis=-1).reshape(count, -1)
    if packed == "int8":
        totals = q.values.sum(axis=1, dtype=np.int32)
        heads = [padded(array[:, None], 1).reshape(count, 16) for array in (q.scales, totals)]
        whole = np.concatenate([*(head.view(np.uint8) for head in heads), whole], axis=1)
    return whole


def struct(
    x: np.ndarray, out: np.ndarray, depth: int, features: int, *, bias: Any = None,
    residual: Any = None, activation: str = "none", packed: str = "int8", minimums: bool = False,
    gated: bool = False, weight: Any = None, workspace: Any,
) -> list[Any]:  # fmt: skip
    """IntegerLinearArgs."""
    strides = (array.strides[0] // array.itemsize for array in (x, out, out))
    return [
        x, None, bias, residual, out,
        *map(np.int64, (len(x), depth, features)), *map(np.int64, strides),
        np.int32(ACTIVATIONS.index(activation)), np.uint8(gated), *np.zeros(3, np.uint8),
        np.uint8(4 if packed == "int4" else 3), np.uint8(packed != "int8"),
        np.uint8(minimums), np.uint8(gated), weight, workspace,
    ]  # fmt: skip


def workspace_of(rows: int, depth: int, grouped: bool) -> np.ndarray:
    tiles, units = -(-rows // 8), -(-depth // 32)
    return np.full(tiles * (units * 256 + (units if grouped else 1) * 64), 0xA5, np.uint8)


def quantise(x: np.ndarray, dtype: str, packed: str, workspace: np.ndarray, **options: Any) -> Any:
    """Rounds x into the workspace by the kernel that takes it, and gives ptxrun's report."""
    rows, depth = x.shape
    width, tiles = WIDTHS[dtype], -(-rows // 8)
    if x.ctypes.data % 16 or x.strides[0] % 16 or (packed == "int8" and depth % width):
        width = 1
    element = ptx.ELEMENTS[dtype]
    if packed == "int8":
        threads = min(32 * -(-depth // 512), 512)
        together = 4 if threads == 32 else 1
        name = f"quantise_rows_kernel<{element}, {width}, {str(depth <= 8192).lower()}>"
        grid, block, shared = -(-tiles * 8 // together), (threads, together), 256
    else:
        name = f"quantise_groups_kernel<{element}, {width}>"
        grid, block, shared = -(-tiles * 8 * depth // width // 256), 256, 0
    args = struct(x, x, depth, 16, packed=packed, workspace=workspace)
    kernel = ptx.kernel(SOURCE, name, options.pop("arch", ptx.ARCH))
    result = ptx.launch(kernel, grid, block, args, shared_bytes=shared, **options)
    assert not result.errors
    assert not result.warnings
    return result


def assert_quantised(x: np.ndarray, workspace: np.ndarray, packed: str) -> None:
    """The workspace holds what the reference makes of x, and around it zeros."""
    rows, depth = x.shape
    tiles, units = -(-rows // 8), -(-depth // 32)
    x = np.pad(x.astype(np.float32), ((0, tiles * 8 - rows), (0, 0)))
    if packed == "int8":
        values, scales, shifts = reference._in_steps(x)
    else:
        values, scales = reference._symmetric(x, 32)
    expected = np.zeros((tiles * 8, units * 32), np.int8)
    expected[:, :depth] = values
    tiled = workspace[: tiles * units * 256].view(np.int8).reshape(tiles, units, 8, 32)
    assert (tiled.transpose(0, 2, 1, 3).reshape(expected.shape) == expected).all()
    floats = workspace[tiles * units * 256 :].view(np.float32)
    if packed == "int8":
        pairs = floats.reshape(tiles, 2, 8)
        assert np.array_equal(pairs[:, 0].ravel(), scales, equal_nan=True)
        assert np.array_equal(pairs[:, 1].ravel().view(np.int32), shifts)
        return
    values, scales = values[:rows], scales[:rows]
    floats = floats.reshape(tiles, units, 2, 8).transpose(2, 0, 3, 1).reshape(2, tiles * 8, units)
    totals = values.reshape(rows, units, 32).sum(axis=-1, dtype=np.float32)
    assert np.array_equal(floats[0, :rows], scales, equal_nan=True)
    assert np.array_equal(floats[1, :rows], scales * totals, equal_nan=True)


def run(
    dtype: str, packed: str, kernel: str, rows: int, depth: int, features: int,
    activation: str = "none", *, bias: bool = True, residual: bool = True, gated: bool = False,
    gap: int = 8, arch: str = ptx.ARCH, **options: Any,
) -> tuple[np.ndarray, Any]:  # fmt: skip
    """The result, checked against float64, and ptxrun's report."""
    random = np.random.default_rng(options.get("seed", 0))
    width = features // 2 if gated else features
    q = quantized(packed, (features, depth), random)
    x = matrix(random.standard_normal((rows, depth)), dtype, gap)
    a = {
        "bias": matrix(random.standard_normal((1, features)), dtype, 0)[0] if bias else None,
        "residual": matrix(random.standard_normal((rows, width)), dtype, gap) if residual else None,
        "weight": panels(q, packed, gated),
    }
    for array in (x, *a.values()):
        if array is not None:
            array.flags.writeable = False
    workspace = workspace_of(rows, depth, packed != "int8")
    quantise(x, dtype, packed, workspace, arch=arch)
    assert_quantised(ptx.to_float64(x, dtype), workspace, packed)
    workspace.flags.writeable = False
    out = matrix(np.full((rows, width), np.nan), dtype, gap)
    columns, block_rows, _, shared_bytes = KERNELS[kernel]
    grid = (-(-rows // block_rows), -(-features // columns))
    if shared_bytes is None:
        unit = {"int8": 512 + 256, "int4": 320 + 320}.get(packed, 576 + 320)
        shared_bytes = max(3 * 2 * 8 * unit, 64 * 132 * 4)
    else:
        grid = grid[::-1]
    args = struct(
        x, out, depth, features, **a, activation=activation, packed=packed,
        minimums=q.minimums is not None, gated=gated, workspace=workspace,
    )  # fmt: skip
    compiled = ptx.kernel(SOURCE, name_of(kernel, dtype, packed), arch)
    result = ptx.launch(compiled, grid, 128, args, shared_bytes=shared_bytes, **options)

    assert not result.errors
    assert not result.warnings
    if gap:
        assert np.isnan(ptx.to_float64(out.base[:, width:], dtype)).all()
    wide = {
        name: array if array is None else ptx.to_float64(array, dtype)
        for name, array in (a | {"x": x}).items()
        if name != "weight"
    }
    expected = reference.linear(weight=q, **wide, activation=activation, gated=gated)
    sums = TOLERANCES["float32"]
    scale = packed_linear_scale(weight=q, **wide, gated=gated)
    bound = sums.eps * (sums.fixed + sums.growth * np.sqrt(depth)) * scale
    error = np.abs(ptx.to_float64(out, dtype) - expected)
    assert (error <= bound + 0.5 * TOLERANCES[dtype].eps * np.abs(expected)).all()
    return out, result


def ragged(packed: str, kernel: str) -> tuple[int, int, int]:
    """Blocks that end in and beyond the matrices, more units than stages and than are ahead."""
    columns, rows, *_ = KERNELS[kernel]
    return rows + 3, 296 if packed == "int8" else 288, columns + 24


def test_no_instance_is_left_out():
    """By test_ragged and test_rows_are_quantised."""
    quantise_rows = {
        f"quantise_rows_kernel<{ptx.ELEMENTS[dtype]}, {width}, {str(columns <= 8192).lower()}>"
        for dtype, width, columns in QUANTISE_ROWS
    }
    quantise_groups = {
        f"quantise_groups_kernel<{ptx.ELEMENTS[dtype]}, {width}>"
        for dtype in ptx.ELEMENTS
        for width in (WIDTHS[dtype], 1)
    }
    products = {name_of(kernel, dtype, packed) for dtype, packed, kernel in INSTANCES}
    assert ptx.kernels(SOURCE).keys() == quantise_rows | quantise_groups | products


OPTIONS = [{"seed": 1}, {"seed": 2}, {"seed": 3, "strict_warp": True}]


@pytest.mark.parametrize(("dtype", "packed", "kernel"), INSTANCES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ragged(dtype, packed, kernel, options):
    run(dtype, packed, kernel, *ragged(packed, kernel), **options)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("dtype", "packed"), [("float32", "int8"), ("float16", "int4"), ("bfloat16", "int8_groups")]
)
@pytest.mark.parametrize("more", [8, 44, 68])
def test_gated(dtype, packed, kernel, more):
    columns, rows, *_ = KERNELS[kernel]
    run(dtype, packed, kernel, rows + 3, 64, columns + more, "silu", gated=True)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("bias", "residual"), [(False, False), (True, False), (False, True)])
def test_epilogue(activation, bias, residual, gated):
    more = {"bias": bias, "residual": residual, "gated": gated}
    run("float16", "int8", "direct 1", 5, 40, 44, activation, **more)


@pytest.mark.parametrize("depth", [1, 2, 7, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("kernel", KERNELS)
def test_depths(kernel, depth):
    run("float32", "int8", kernel, 3, depth, 5, gap=0)


@pytest.mark.parametrize("packed", FORMATS)
def test_same_bits_in_every_kernel(packed):
    """So a row's result does not depend on the others, whatever kernel their number asks for."""
    first, *others = [run("float16", packed, kernel, 20, 320, 72)[0] for kernel in KERNELS]
    assert all((other == first).all() for other in others)


@pytest.mark.parametrize(("dtype", "width", "columns"), QUANTISE_ROWS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rows_are_quantised(dtype, width, columns, options):
    gap = 3 if width == 1 else 8
    check_quantised("int8", dtype, columns, gap, options)


@pytest.mark.parametrize("gap", [8, 3])
@pytest.mark.parametrize("dtype", ptx.ELEMENTS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_groups_are_quantised(dtype, gap, options):
    check_quantised("int4", dtype, 288, gap, options)


def check_quantised(packed: str, dtype: str, columns: int, gap: int, options: Any) -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((5, columns)) * 10.0 ** random.integers(-3, 3, (5, 1))
    values[2] = 0.0
    values[3, 41], values[4, 7] = np.nan, -np.inf
    x = matrix(values, dtype, gap)
    x.flags.writeable = False
    workspace = workspace_of(5, columns, packed != "int8")
    quantise(x, dtype, packed, workspace, **options)
    assert_quantised(ptx.to_float64(x, dtype), workspace, packed)


@pytest.mark.parametrize(("dtype", "packed", "kernel"), INSTANCES)
def test_memory_in_whole_sectors_without_conflicts(dtype, packed, kernel):
    columns, rows, *_ = KERNELS[kernel]
    _, result = run(dtype, packed, kernel, 2 * rows, 256, 2 * columns, gap=32)
    accesses = [a for a in result.memory() if a["waves_ideal"]]
    assert len(accesses) > 2
    assert not [a for a in accesses if a["waves"] > a["waves_ideal"]]
    assert ptx.sectors(result) <= sum(access["sectors_ideal"] for access in result.memory())


@pytest.mark.parametrize("arch", ["compute_75", "compute_90"])
@pytest.mark.parametrize(
    ("dtype", "packed", "kernel"), [instance for instance in INSTANCES if instance[0] == "float16"]
)
def test_other_architectures(dtype, packed, kernel, arch):
    run(dtype, packed, kernel, *ragged(packed, kernel), arch=arch)

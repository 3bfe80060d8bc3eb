"""gather's kernel as nvcc compiled it."""

import numpy as np
import ptx
import pytest
from softgate import reference
from test_linear_packed import random_groups
from test_ptx_linear import matrix
from test_ptx_linear_integers import panels

SOURCE = "cuda/gather.cu"
TYPES = {"float32": 0, "float16": 1, "bfloat16": 2, "int8": 3, "int4": 4}
PACKED = ("float", "int8", "int8_groups", "int8_groups_minimums", "int4")


def run(
    dtype, packed, vectors, depth, *, residual=True, gated=False, scale=3.7, gap=None, **options
):
    """The result, checked against float64, and ptxrun's report."""
    random = np.random.default_rng(0)
    tokens, rows, gap = 5, 38, gap or (8 if vectors else 3)
    weight = random.standard_normal((rows, depth)).astype(np.float32)
    if packed == "float":
        stored, kind = matrix(weight, dtype, 0), TYPES[dtype]
        plain = ptx.to_float64(stored, dtype)
    else:
        kind = TYPES["int4" if packed == "int4" else "int8"]
        plain = (
            reference.quantize_weight(weight, "int8")
            if packed == "int8"
            else random_groups(weight.shape, packed)
        )
        stored = panels(plain, packed, gated)
    ids = np.array([37, 0, 20, rows, -1], options.pop("id_type", np.int64))
    more = matrix(random.standard_normal((tokens, depth)), dtype, gap) if residual else None
    out = matrix(np.full((tokens, depth), np.nan), dtype, gap)
    for array in (stored, ids, more):
        if array is not None:
            array.flags.writeable = False
    grouped, minimums = "groups" in packed or packed == "int4", "minimums" in packed
    stride = out.strides[0] // out.itemsize
    result = ptx.launch(
        ptx.kernel(SOURCE, f"gather_kernel<{ptx.ELEMENTS[dtype]}, {str(vectors).lower()}>"),
        tokens,
        128,
        [
            stored, *map(np.uint8, (kind, grouped, minimums or packed == "int4", gated)),
            *map(np.int64, (depth, rows)), ids, np.bool_(ids.itemsize == 8), np.float32(scale),
            more, out, *map(np.int64, (tokens, stride, stride)),
        ],
        **options,
    )  # fmt: skip
    assert not result.errors
    assert not result.warnings
    assert np.isnan(ptx.to_float64(out.base[:, depth:], dtype)).all()
    values = ptx.to_float64(out, dtype)
    assert np.isnan(values[3:]).all()  # outside the weight
    wide = None if more is None else ptx.to_float64(more, dtype)[:3]
    expected = reference.gather(plain, ids[:3], scale=np.float32(scale), residual=wide)
    eps = {"float32": 2.0**-23, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    assert (np.abs(values[:3] - expected) <= eps * np.abs(expected) + 2.0**-20).all()
    return result


def test_no_instance_is_left_out():
    """By test_gather."""
    assert ptx.kernels(SOURCE).keys() == {
        f"gather_kernel<{element}, {vectors}>"
        for element in ptx.ELEMENTS.values()
        for vectors in ("true", "false")
    }


@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("dtype", ptx.ELEMENTS)
@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"seed": 2}, {"seed": 3, "strict_warp": True}], ids=str
)
def test_gather(dtype, packed, vectors, options):
    ragged = packed in ("float", "int8") and not vectors
    run(dtype, packed, vectors, 1101 if ragged else 1120, **options)


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("scale", "id_type"), [(1.0, np.int32), (0.5, np.int64)])
def test_arguments(packed, gated, residual, scale, id_type):
    run("float16", packed, True, 96, gated=gated, residual=residual, scale=scale, id_type=id_type)


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_memory_in_whole_sectors(dtype, packed):
    result = run(dtype, packed, True, 2048, gap=16)
    stores = [access for access in result.memory() if "st.global" in access["where"]]
    assert stores
    assert all(access["sectors"] <= access["sectors_ideal"] for access in stores)

"""linear's kernel as nvcc compiled it, every instance on a ragged case."""

import numpy as np
import ptx
import pytest
from softgate import reference
from tolerances import TOLERANCES, packed_linear_scale

ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu", "silu", "tanh")  # as the enum numbers them

# Rows and columns of a block, threads, bytes of shared memory.
TILES = {
    "Tile<32, 64, 2, 2, 4, 3>": (64, 128, 128, 4 * 192 * 64),
    "Tile<64, 64, 2, 2, 3, 2>": (128, 128, 128, 3 * 256 * 64),
    "Tile<32, 32, 2, 2, 4, 4>": (64, 64, 128, 4 * 128 * 64),
    "Tile<16, 16, 1, 2, 8, 8>": (16, 32, 64, 8 * 48 * 64),
}
LARGE = {
    "float32": "Tile<32, 64, 2, 2, 4, 3>",
    "float16": "Tile<64, 64, 2, 2, 3, 2>",
    "bfloat16": "Tile<64, 64, 2, 2, 3, 2>",
}
INSTANCES = [
    (dtype, tile, aligned)
    for dtype in ptx.ELEMENTS
    for tile, aligned in [
        (LARGE[dtype], True),
        ("Tile<32, 32, 2, 2, 4, 4>", True),
        ("Tile<32, 32, 2, 2, 4, 4>", False),
        ("Tile<16, 16, 1, 2, 8, 8>", True),
    ]
]


def matrix(values, dtype, gap):
    """With `gap` NaNs after each row."""
    rows, columns = values.shape
    wide = ptx.to_bits(np.full((rows, columns + gap), np.nan), dtype)
    wide[:, :columns] = ptx.to_bits(values, dtype)
    return wide[:, :columns]


def run(
    dtype, tile, aligned, rows, in_features, out_features,
    activation="none", *, bias=True, residual=True, gated=False, gap=8, arch=ptx.ARCH, **options,
):  # fmt: skip
    """The result, checked against float64, and ptxrun's report."""
    random = np.random.default_rng(options.get("seed", 0))
    width = out_features // 2 if gated else out_features
    a = {
        "x": matrix(random.standard_normal((rows, in_features)), dtype, gap),
        "weight": matrix(random.standard_normal((out_features, in_features)), dtype, 0),
        "bias": matrix(random.standard_normal((1, out_features)), dtype, 0)[0] if bias else None,
        "residual": matrix(random.standard_normal((rows, width)), dtype, gap) if residual else None,
    }
    for array in a.values():
        if array is not None:
            array.flags.writeable = False
    out = matrix(np.full((rows, width), np.nan), dtype, gap)
    tile_rows, tile_columns, threads, shared_bytes = TILES[tile]
    kernel = ptx.kernel(
        "cuda/linear.cu",
        f"linear_kernel<{ptx.ELEMENTS[dtype]}, {tile}, {str(aligned).lower()}>",
        arch,
    )
    strides = (array.strides[0] // out.itemsize for array in (a["x"], out, out))
    result = ptx.launch(
        kernel,
        # Features of a gate are filled up to groups of four.
        (-(-rows // tile_rows), -(-(-(-width // 4) * 8 if gated else width) // tile_columns)),
        threads,
        [
            *a.values(), out,
            *map(np.int64, (rows, in_features, out_features)), *map(np.int64, strides),
            np.int32(ACTIVATIONS.index(activation)), np.bool_(gated),
        ],
        shared_bytes=shared_bytes,
        **options,
    )  # fmt: skip

    assert not result.errors
    assert not result.warnings
    if gap:
        assert np.isnan(ptx.to_float64(out.base[:, width:], dtype)).all()
    wide = {
        name: array if array is None else ptx.to_float64(array, dtype) for name, array in a.items()
    }
    expected = reference.linear(**wide, activation=activation, gated=gated)
    # Sums are as exact as float32's; the result rounds once more.
    sums = TOLERANCES["float32"]
    scale = packed_linear_scale(**wide, gated=gated)
    bound = sums.eps * (sums.fixed + sums.growth * np.sqrt(in_features)) * scale
    error = np.abs(ptx.to_float64(out, dtype) - expected)
    assert (error <= bound + 0.5 * TOLERANCES[dtype].eps * np.abs(expected)).all()
    return out, result


def ragged(tile, aligned):
    """A size with blocks that end in and beyond the matrices, and more steps than stages."""
    rows, columns, *_ = TILES[tile]
    return (rows + 3, 296, columns + 24) if aligned else (rows + 3, 139, columns + 21)


def test_no_instance_is_left_out():
    """By test_ragged."""
    assert ptx.kernels("cuda/linear.cu").keys() == {
        f"linear_kernel<{ptx.ELEMENTS[dtype]}, {tile}, {str(aligned).lower()}>"
        for dtype, tile, aligned in INSTANCES
    }


@pytest.mark.parametrize(("dtype", "tile", "aligned"), INSTANCES)
@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"seed": 2}, {"seed": 3, "strict_warp": True}], ids=str
)
def test_ragged(dtype, tile, aligned, options):
    run(dtype, tile, aligned, *ragged(tile, aligned), gap=8 if aligned else 3, **options)


@pytest.mark.parametrize("more", [8, 44, 68])  # the last group ragged, or not
@pytest.mark.parametrize(("dtype", "tile", "aligned"), INSTANCES)
def test_gated(dtype, tile, aligned, more):
    rows, columns, *_ = TILES[tile]
    size = (rows + 3, 40, columns + more)
    run(dtype, tile, aligned, *size, "silu", gated=True, gap=8 if aligned else 4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", ptx.ELEMENTS)
def test_epilogue(dtype, activation, bias, residual):
    tile = "Tile<16, 16, 1, 2, 8, 8>"
    run(dtype, tile, True, 5, 16, 44, activation, bias=bias, residual=residual)


@pytest.mark.parametrize("in_features", [1, 2, 7, 8, 15, 16, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("dtype", ptx.ELEMENTS)
def test_depths(dtype, in_features):
    run(dtype, "Tile<32, 32, 2, 2, 4, 4>", False, 3, in_features, 5, gap=0)


@pytest.mark.parametrize("dtype", ptx.ELEMENTS)
def test_same_bits_in_every_tile(dtype):
    """So a row's result does not depend on the others, whatever tile their number asks for."""
    size = (20, 296, 72)
    first, *others = [
        run(dtype, tile, aligned, *size)[0] for d, tile, aligned in INSTANCES if d == dtype
    ]
    assert all((other == first).all() for other in others)


@pytest.mark.parametrize(("dtype", "tile", "aligned"), INSTANCES)
def test_shared_memory_without_conflicts(dtype, tile, aligned):
    rows, columns, *_ = TILES[tile]
    _, result = run(dtype, tile, aligned, 2 * rows, 256, 2 * columns, gap=32)
    accesses = [a for a in result.memory() if a["waves_ideal"]]
    assert len(accesses) > 10
    assert not [a for a in accesses if a["waves"] > a["waves_ideal"]]


@pytest.mark.parametrize(("dtype", "tile", "aligned"), [i for i in INSTANCES if i[2]])
def test_global_memory_in_whole_sectors(dtype, tile, aligned):
    rows, columns, *_ = TILES[tile]
    _, result = run(dtype, tile, aligned, 2 * rows, 256, 2 * columns, gap=32)
    assert ptx.sectors(result) <= sum(access["sectors_ideal"] for access in result.memory())


@pytest.mark.parametrize("arch", ["compute_75", "compute_90"])
@pytest.mark.parametrize(("dtype", "tile", "aligned"), INSTANCES)
def test_other_architectures(dtype, tile, aligned, arch):
    if (dtype, arch) == ("bfloat16", "compute_75"):
        pytest.skip("7.5 has no bfloat16 products; the launcher refuses them")
    run(dtype, tile, aligned, *ragged(tile, aligned), gap=8 if aligned else 3, arch=arch)

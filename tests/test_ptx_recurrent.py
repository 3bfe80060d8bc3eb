"""The kernels of recurrent layers as nvcc compiled them: all steps in one, and one for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import ptx
import pytest
from cases.recurrent import GATES
from softgate import reference
from tolerances import assert_close, recurrent_scales

KINDS = ("rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before")  # as the enum numbers them
RUNS = {"rnn": reference.rnn, "lstm": reference.lstm, "gru": reference.gru}

# As cuda/recurrent.cuh has them.
TILE_ROWS, WARPS, THREADS = 8, 8, 256
CHUNK = {"float32": 128, "float16": 256, "bfloat16": 256}  # elements
HELD_CHUNKS = {"float32": 8, "float16": 4, "bfloat16": 4}


@dataclass(frozen=True)
class Layer:
    kind: str
    lengths: tuple[int, ...]
    hidden: int
    output: int  # hidden unless projected
    dtype: str
    directions: tuple[str, ...]
    arrays: list[dict[str, Any]]  # of each direction, as stored
    states: bool

    @property
    def op(self) -> str:
        return self.kind.split("_")[0]

    @property
    def phases(self) -> list[tuple[str, int, int, int]]:
        """Name, units, depth and gates of each."""
        if self.output != self.hidden:
            second = ("ProjectPhase", self.output, self.hidden, 1)
            return [("LstmPhase", self.hidden, self.output, 4), second]
        names = {
            "lstm": [("LstmPhase", 4)],
            "gru": [("GruPhase", 3)],
            "gru_reset_before": [("ResetPhase", 2), ("ResetStatePhase", 1)],
        }.get(self.kind, [("RnnPhase", 1)])
        return [(name, self.hidden, self.hidden, gates) for name, gates in names]

    def chunks(self, depth: int) -> int:
        return -(-depth // CHUNK[self.dtype])

    @property
    def element(self) -> str:
        return ptx.ELEMENTS[self.dtype]


def layer(
    kind, lengths, hidden, proj=None, *, dtype="float32", direction="forward", states=True, seed=0
) -> Layer:
    """Of random numbers. The inputs' part of the sums is given, so it stands for x itself."""
    random = np.random.default_rng(seed)
    output, rows = proj or hidden, GATES[kind] * hidden
    directions = ("forward", "reverse") if direction == "bidirectional" else (direction,)

    def draw(*shape, size=1.0):
        array = ptx.to_bits(random.standard_normal(shape) * size, dtype)
        array.flags.writeable = False
        return array

    arrays = [
        {
            "gates": draw(sum(lengths), rows),
            "weight_hh": draw(rows, output, size=output**-0.5),
            "bias_hn": draw(hidden) if kind == "gru" else None,
            "weight_hr": draw(proj, hidden, size=hidden**-0.5) if proj else None,
            "h0": draw(len(lengths), output) if states else None,
            "c0": draw(len(lengths), hidden) if states and kind == "lstm" else None,
        }
        for _ in directions
    ]
    return Layer(kind, lengths, hidden, output, dtype, directions, arrays, states)


def expected(layer: Layer) -> tuple[list[np.ndarray], list[float]]:
    """out, h_n and c_n of each direction in float64, and their scales."""
    results, scales = [], []
    offsets = np.concatenate([[0], np.cumsum(layer.lengths)])
    for name, arrays in zip(layer.directions, layer.arrays, strict=True):
        wide = {
            key: None if array is None else ptx.to_float64(array, layer.dtype)
            for key, array in arrays.items()
        }
        rows = GATES[layer.kind] * layer.hidden
        bias = np.zeros(rows)
        if wide["bias_hn"] is not None:
            bias[2 * layer.hidden :] = wide["bias_hn"]
        weight = reference.RecurrentWeight(
            layer.kind, np.eye(rows), wide["weight_hh"], None, bias, wide["weight_hr"]
        )
        given = [wide[key][None] for key in ("h0", "c0") if wide[key] is not None]

        def run(weights, x=wide["gates"], given=given, name=name):
            return RUNS[layer.op](x, offsets, *weights, *given, direction=name)

        results.append([result.reshape(-1, result.shape[-1]) for result in run([weight])])
        scales.append(recurrent_scales(run, [weight], draws=2))
    return results, scales


class Launches:
    """A layer's memory on the device, and its kernels on it."""

    def __init__(self, layer: Layer, *, gap: int = 0, arch: str = ptx.ARCH, **options: Any):
        self.layer, self.arch, self.options = layer, arch, options
        count, batch = len(layer.directions), len(layer.lengths)
        tokens, stored = sum(layer.lengths), ptx.to_bits(np.zeros(1), layer.dtype).dtype

        def nans(*shape):
            return ptx.to_bits(np.full(shape, np.nan), layer.dtype).astype(stored)

        self.out = nans(tokens, count * layer.output + gap)
        self.last = [
            [nans(batch, layer.output), nans(batch, layer.hidden) if layer.kind == "lstm" else None]
            for _ in layer.directions
        ]
        lengths = np.array(layer.lengths, dtype=np.int32)
        order = np.argsort(-lengths, kind="stable").astype(np.int32)
        first = (np.cumsum(lengths) - lengths).astype(np.int32)[order]
        self.active = [int((lengths > step).sum()) for step in range(max(layer.lengths))]
        schedule = [order, first, lengths[order]]
        for array in schedule:
            array.flags.writeable = False
        fields: list[Any] = [np.int32(KINDS.index(layer.kind)), *schedule, None]
        sizes = (batch, len(self.active), layer.hidden, layer.output)
        strides = (GATES[layer.kind] * layer.hidden, self.out.shape[1])
        fields += [np.int64(number) for number in (*sizes, *strides)]
        fields.append(np.int32(count))
        for d, (name, arrays) in enumerate(zip(layer.directions, layer.arrays, strict=True)):
            columns = slice(d * layer.output, (d + 1) * layer.output)
            carry = np.full((batch, layer.hidden), np.nan, dtype=np.float32)
            fields += [*arrays.values(), self.out[:, columns], *self.last[d]]
            fields += [carry, nans(batch, layer.hidden)]
            fields += [np.int64(layer.output), np.int64(layer.hidden)]
            fields += [np.uint64(name == "reverse")]  # a bool and the padding after it
        if count == 1:
            fields += [*[None] * 11, *[np.int64(0)] * 3]
        self.fields = fields

    def launch(self, name: str, grid: Any, fields: list[Any], shared: int, **options: Any) -> Any:
        # ptxrun sees conflicts between blocks by the word, which two blocks may share rightly.
        if self.layer.dtype != "float32":
            options["check_global"] = False
        source = "recurrent" if name.startswith("last") else self.layer.op
        report = ptx.launch(
            ptx.kernel(f"cuda/{source}.cu", name, self.arch), grid, THREADS,
            [*self.fields, *fields], shared_bytes=shared, **self.options, **options,
        )  # fmt: skip
        assert not report.errors, "\n".join(report.errors)
        return report

    def sequence(self, blocks: int) -> Any:
        """All steps in one launch."""
        layer, tile, weights = self.layer, 0, 0
        for name, units, depth, gates in layer.phases:
            of_block = -(-units // blocks)
            across = next(n for n in (1, 2, 4, 8) if n >= min(of_block, WARPS))
            row = layer.chunks(depth) * CHUNK[layer.dtype] * self.out.itemsize
            tile = max(tile, WARPS // across * TILE_ROWS * row)
            held = 0 if name == "ProjectPhase" else WARPS
            weights += max(0, of_block - held) * gates * row
        names = ", ".join([layer.element, *(name for name, *_ in layer.phases)])
        shared = tile + weights + 8 * len(layer.lengths)
        arrivals = np.zeros(1, dtype=np.uint32)
        grid = (blocks, len(layer.directions))
        return self.launch(f"sequence_kernel<{names}>", grid, [arrivals], shared, cooperative=True)

    def steps(self) -> None:
        """A launch for each phase of each step."""
        layer = self.layer
        for step, active in enumerate(self.active):
            for name, units, depth, _ in layer.phases:
                grid = (-(-units // WARPS), -(-active // TILE_ROWS), len(layer.directions))
                chunks = min(layer.chunks(depth), HELD_CHUNKS[layer.dtype])
                row = chunks * CHUNK[layer.dtype] * self.out.itemsize
                self.launch(
                    f"step_kernel<{layer.element}, {name}>", grid,
                    [np.int32(step), np.int32(active)], min(active, TILE_ROWS) * row,
                )  # fmt: skip

    def last_states(self) -> None:
        grid = (len(self.layer.lengths), len(self.layer.directions))
        self.launch(f"last_states_kernel<{self.layer.element}>", grid, [], 0)

    def results(self) -> list[np.ndarray]:
        """out, h_n and c_n of each direction."""
        layer = self.layer
        width = layer.output
        return [
            [self.out[:, d * width : (d + 1) * width], *(a for a in last if a is not None)]
            for d, last in enumerate(self.last)
        ]


def assert_as_reference(layer: Layer, launches: Launches, reference_results: Any) -> None:
    results, scales = reference_results
    terms = layer.output + (layer.hidden if layer.output != layer.hidden else 0)
    for actual, exact, scale in zip(launches.results(), results, scales, strict=True):
        for array, e, s in zip(actual, exact, scale, strict=True):
            numbers = ptx.to_float64(array, layer.dtype).astype(np.float32)
            assert_close(numbers, e, scale=s, terms=terms, dtype=layer.dtype)


RAGGED = (3, 0, 5, 1, 3)


@pytest.mark.parametrize("dtype", ptx.ELEMENTS)
@pytest.mark.parametrize("proj", [None, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_every_instance(kind, proj, dtype):
    if proj and kind != "lstm":
        pytest.skip("only an LSTM has a projection")
    case = layer(kind, RAGGED, 11, proj, dtype=dtype, direction="bidirectional")
    exact = expected(case)
    outcomes = []
    for options in ({"seed": 0}, {"seed": 1}, {"strict_warp": True}):
        in_one, stepwise = (Launches(case, gap=3, **options) for _ in range(2))
        in_one.sequence(blocks=3)
        stepwise.steps()
        for launches in (in_one, stepwise):
            launches.last_states()
            assert_as_reference(case, launches, exact)
            outcomes.append(launches.out)
    for other in outcomes[1:]:
        assert np.array_equal(other.view(np.uint8), outcomes[0].view(np.uint8))


@pytest.mark.parametrize("kind", ["lstm", "gru", "gru_reset_before"])
@pytest.mark.parametrize(
    ("lengths", "hidden", "blocks"),
    [
        ((3,), 1, 1),
        ((2,), 7, 7),  # a unit a block
        ((4,), 31, 2),  # units in shared memory, too
        ((1, 2), 127, 16),
        ((2, 1, 1), 128, 5),
        ((2,) * 9, 33, 5),  # tiles of one row after full ones
        ((2, 1) * 13, 20, 2),  # more tiles than warps have at once
        ((2,), 260, 33),
    ],
    ids=str,
)
def test_shapes(kind, lengths, hidden, blocks):
    case = layer(kind, lengths, hidden, states=hidden % 2 == 0, direction="reverse", seed=hidden)
    in_one = Launches(case, seed=1)
    in_one.sequence(blocks)
    in_one.last_states()
    assert_as_reference(case, in_one, expected(case))
    stepwise = Launches(case, seed=2)
    stepwise.steps()
    assert np.array_equal(stepwise.out.view(np.uint8), in_one.out.view(np.uint8))


def test_depth_in_slices():
    """Longer rows than registers hold."""
    case = layer("rnn_relu", (2, 2), 1100)
    stepwise = Launches(case)
    stepwise.steps()
    stepwise.last_states()
    assert_as_reference(case, stepwise, expected(case))


def test_no_instance_is_left_out():
    """By test_every_instance."""
    phases = {
        "rnn": ["RnnPhase"],
        "lstm": ["LstmPhase", "LstmPhase, ProjectPhase"],
        "gru": ["GruPhase", "ResetPhase, ResetStatePhase"],
    }
    types = ptx.ELEMENTS.values()
    for op, sequences in phases.items():
        steps = {phase for phases in sequences for phase in phases.split(", ")}
        assert ptx.kernels(f"cuda/{op}.cu").keys() == {
            *(f"sequence_kernel<{t}, {phases}>" for t in types for phases in sequences),
            *(f"step_kernel<{t}, {phase}>" for t in types for phase in steps),
        }
    assert ptx.kernels("cuda/recurrent.cu").keys() == {f"last_states_kernel<{t}>" for t in types}


PROJECTIONS = [*((kind, None) for kind in KINDS[1:]), ("lstm", 96)]


@pytest.mark.parametrize("dtype", ptx.ELEMENTS)
@pytest.mark.parametrize(("kind", "proj"), PROJECTIONS)
def test_weights_are_read_once(kind, proj, dtype):
    """A step moves states and gates; weights, far more, only before the first."""
    hidden, blocks = 128, 8

    def sectors(steps: int) -> int:
        report = Launches(layer(kind, (steps,), hidden, proj, dtype=dtype)).sequence(blocks)
        # Without those of blocks that wait at the grid's barrier.
        own = [access for access in report.memory() if "ld.volatile" not in access["where"]]
        return sum(access["sectors"] for access in own)

    element = 4 if dtype == "float32" else 2
    weights = (GATES[kind] * (proj or hidden) + (proj or 0)) * hidden * element // 32
    two, four = sectors(2), sectors(4)
    of_a_step = (four - two) // 2
    assert of_a_step < weights / 2
    assert weights <= two - 2 * of_a_step < 1.1 * weights


@pytest.mark.parametrize("dtype", ptx.ELEMENTS)
@pytest.mark.parametrize(("kind", "proj"), PROJECTIONS)
def test_weights_in_shared_memory_without_conflicts(kind, proj, dtype):
    """Units that registers have no room for: more of a block than its warps."""
    report = Launches(layer(kind, (2, 1), 100, proj and 50, dtype=dtype)).sequence(blocks=4)
    shared = [access for access in report.memory() if access["waves"]]
    assert any("recurrent.cuh" in access["where"] for access in shared)
    assert not [access for access in shared if access["waves"] > access["waves_ideal"]]

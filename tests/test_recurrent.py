"""rnn, lstm and gru over packed batches, their single steps and their packed weights."""

import functools
import itertools

import numpy as np
import pytest
import softgate
from cases import RAGGED, offsets
from cases.recurrent import (
    DIRECTIONS,
    GATES,
    RECURRENT,
    RECURRENT_LOW,
    RECURRENT_SHARED,
    RecurrentCase,
)
from layouts import LAYOUTS, SPOILED, Guarded, place, read_only
from softgate import ops, reference
from tolerances import assert_close, assert_same_bits, quantized_state_error, recurrent_scales

pytestmark = pytest.mark.usefixtures("isa")

OPS = {
    "rnn_tanh": ("rnn", ops.rnn, ops.rnn_cell, reference.rnn),
    "rnn_relu": ("rnn", ops.rnn, ops.rnn_cell, reference.rnn),
    "lstm": ("lstm", ops.lstm, ops.lstm_cell, reference.lstm),
    "gru": ("gru", ops.gru, ops.gru_cell, reference.gru),
    "gru_reset_before": ("gru", ops.gru, ops.gru_cell, reference.gru),
}
STATES = ("h0", "c0")
EVERY = [*RECURRENT, *RECURRENT_SHARED, *RECURRENT_LOW]


def name_of(case):
    return OPS[case.kind][0]


def pack(weights, dtype="float32"):
    """One RecurrentWeight, or the pair that "bidirectional" takes."""
    packed = [ops.pack_recurrent(**weight, dtype=dtype) for weight in weights]
    return packed[0] if len(packed) == 1 else tuple(packed)


def run(case, **arguments):
    """The op's results, with the weights packed on the way unless they are."""
    if isinstance(arguments["weights"], list):
        arguments["weights"] = pack(arguments["weights"], case.dtype)
    return OPS[case.kind][1](**arguments)


def run_reference(case, arguments, weights):
    return OPS[case.kind][3](**(arguments | {"weights": weights}))


def cell_step(case, x, weight, states):
    """The states after one step."""
    result = OPS[case.kind][2](x, weight, *states)
    return result if case.kind == "lstm" else (result,)


def given_states(case, arguments):
    """Those of the arguments, or the zeros they stand for."""
    directions = len(arguments["weights"])
    sizes = (case.proj_size or case.hidden_size, case.hidden_size)
    return [
        np.zeros((directions, len(case.lengths), size), np.float32)
        if arguments[name] is None
        else arguments[name]
        for name, size in zip(STATES, sizes, strict=True)
        if name in arguments
    ]


def terms(case):
    return case.input_size + (case.proj_size or case.hidden_size)


def assert_all_close(actual, expected, scales, **options):
    for array, reference_array, scale in zip(actual, expected, scales, strict=True):
        assert_close(array, reference_array, scale=scale, **options)


def assert_all_same_bits(actual, expected):
    for array, other in zip(actual, expected, strict=True):
        assert_same_bits(array, other)


def in_float64(weight):
    """What pack_recurrent takes or unpack gives, converted once for the reference."""
    arrays = {name: np.asarray(a, np.float64) for name, a in weight.items() if name != "kind"}
    return reference.RecurrentWeight(weight["kind"], **arrays)


@functools.cache
def exact(case):
    """Results in float64 and their scales, worked out once for all instruction sets."""
    a = case.arguments()
    weights = [in_float64(weight) for weight in a["weights"]]
    with_weights = functools.partial(run_reference, case, a)
    return with_weights(weights), recurrent_scales(with_weights, weights)


@pytest.mark.parametrize("case", [*RECURRENT, *RECURRENT_SHARED], ids=str)
def test_matches_reference(case):
    expected, scales = exact(case)
    assert_all_close(run(case, **case.arguments()), expected, scales, terms=terms(case))


@pytest.mark.parametrize("case", RECURRENT_LOW, ids=str)
def test_low_precision_matches_the_reference_on_the_same_weights(case):
    a = case.arguments()
    packed = [ops.pack_recurrent(**weight, dtype=case.dtype) for weight in a["weights"]]
    a["weights"] = packed[0] if len(packed) == 1 else tuple(packed)
    weights = [in_float64({"kind": weight.kind, **weight.unpack()}) for weight in packed]
    with_weights = functools.partial(run_reference, case, a)
    expected, scales = with_weights(weights), recurrent_scales(with_weights, weights)
    besides = [0.0] * len(expected)
    if case.dtype == "int8":
        # The largest of a few draws of such errors; the state's own may be somewhat larger.
        besides = [3.0 * error for error in quantized_state_error(with_weights, weights)]
    for result, *bounds in zip(run(case, **a), expected, scales, besides, strict=True):
        array, scale, allowed = bounds
        assert_close(result, array, scale=scale, terms=terms(case), besides=allowed)


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_writes_out_and_nothing_else(case):
    a = case.arguments()
    expected, *last = run(case, **a)
    guarded = Guarded(expected.shape, np.float32, "strided")
    out, *others = run(case, **a, out=guarded.array)
    assert out is guarded.array
    assert_same_bits(guarded.array, expected)
    assert_all_same_bits(others, last)
    guarded.assert_intact()


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_same_bits_on_any_thread_count(case, thread_counts):
    a = case.arguments()
    first, *others = [run(case, **a) for _ in thread_counts]
    for results in others:
        assert_all_same_bits(results, first)


EACH = [
    RecurrentCase(kind, RAGGED, 7, hidden, direction=direction)
    for kind in GATES
    for hidden, direction in ((9, "bidirectional"), (70, "forward"), (33, "reverse"))
]
EACH += [  # several slices of the depth, which few rows and many must cut alike
    RecurrentCase("lstm", RAGGED, 300, 530, 420),
    RecurrentCase("gru_reset_before", RAGGED, 7, 530),
]
PROJECTED = RecurrentCase("lstm", RAGGED, 7, 40, 17, "bidirectional")
LOW = [
    RecurrentCase(kind, RAGGED, 7, 33, dtype=dtype, direction="bidirectional")
    for kind in GATES
    for dtype in ("bfloat16", "int8")
]
LOW += [RecurrentCase("gru", RAGGED, 7, 530, dtype=dtype) for dtype in ("bfloat16", "int8")]


@pytest.mark.parametrize("case", [*EACH, PROJECTED, *LOW], ids=str)
def test_a_sequence_does_not_depend_on_the_others(case):
    a = case.arguments()
    a["weights"] = pack(a["weights"], case.dtype)
    out, *last = run(case, **a)
    starts = a["cu_seqlens"]
    for b, length in enumerate(case.lengths):
        rows, states = slice(starts[b], starts[b + 1]), [name for name in STATES if name in a]
        alone = a | {"x": a["x"][rows], "cu_seqlens": offsets((length,))}
        alone |= {name: a[name][:, b : b + 1] for name in states}
        expected = [out[rows], *(state[:, b : b + 1] for state in last)]
        assert_all_same_bits(run(case, **alone), expected)

        spoiled = {name: np.full_like(a[name], np.nan) for name in ("x", *states)}
        spoiled["x"][rows] = a["x"][rows]
        for name in states:
            spoiled[name][:, b] = a[name][:, b]
        other_out, *other_last = run(case, **(a | spoiled))
        actual = [other_out[rows], *(state[:, b : b + 1] for state in other_last)]
        assert_all_same_bits(actual, expected)


SHARED = [
    RecurrentCase(kind, (1,) * 40 + RAGGED, 7, 40, direction=direction, dtype=dtype, shared=11)
    for kind in GATES
    for direction, dtype in (("bidirectional", "float32"), ("forward", "bfloat16"))
]
SHARED += [RecurrentCase("gru", RAGGED, 7, 40, dtype="int8", shared=2)]


@pytest.mark.usefixtures("rows_of_any_number")
@pytest.mark.parametrize("case", SHARED, ids=str)
def test_a_sequence_does_not_depend_on_those_that_share_its_state(case):
    a = case.arguments()
    a["weights"] = pack(a["weights"], case.dtype)
    out, *last = run(case, **a)
    starts = a["cu_seqlens"]
    for b, length in enumerate(case.lengths):
        rows = slice(starts[b], starts[b + 1])
        alone = {"x": a["x"][rows], "cu_seqlens": offsets((length,))}
        alone |= {"h0_rows": a["h0_rows"][b : b + 1]}
        expected = [out[rows], *(state[:, b : b + 1] for state in last)]
        assert_all_same_bits(run(case, **(a | alone)), expected)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("lengths", [(1,) * 5, (1,) * 40, RAGGED, (3,) * 600], ids=str)
@pytest.mark.parametrize("kind", GATES)
def test_ids_are_rows_of_the_identity_matrix(kind, lengths, direction):
    case = RecurrentCase(kind, lengths, 11, 40, direction=direction)
    a = case.arguments()
    ids = np.arange(len(a["x"]), dtype=np.int32) * 7 % 11
    expected = run(case, **(a | {"x": np.eye(11, dtype=np.float32)[ids]}))
    assert_all_same_bits(run(case, **(a | {"x": ids})), expected)


@pytest.mark.parametrize("kind", GATES)
def test_a_step_of_ids(kind):
    case = RecurrentCase(kind, (1,) * 5, 11, 40)
    a = case.arguments()
    packed = pack(a["weights"])
    ids = np.array([3, 10, 0, 0, 7], np.int32)
    states = [state[0] for state in given_states(case, a)]
    expected = cell_step(case, np.eye(11, dtype=np.float32)[ids], packed, states)
    assert_all_same_bits(cell_step(case, ids, packed, states), expected)


@pytest.mark.parametrize("wrong", [-1, 5])
def test_ids_outside_the_inputs(wrong):
    a = RecurrentCase("lstm", (3, 5)).arguments()
    ids = np.zeros(8, np.int32)
    ids[6] = wrong
    with pytest.raises(ValueError, match=rf"^lstm: x\[6\] is {wrong}, expected 0 <= id < 5$"):
        run(RecurrentCase("lstm", (3, 5)), **(a | {"x": ids}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", GATES)
def test_weights_with_other_inputs(kind, dtype):
    case = RecurrentCase(kind, (3, 5), 7, 40, dtype=dtype)
    a = case.arguments()
    (weight,) = a["weights"]
    given = ops.pack_recurrent(**(weight | {"weight_ih": weight["weight_ih"][:, :3]}), dtype=dtype)
    changed = given.with_inputs(weight["weight_ih"])
    assert (given.input_size, changed.input_size) == (3, 7)
    assert_all_same_bits(run(case, **(a | {"weights": changed})), run(case, **a))
    with pytest.raises(ValueError, match=r"^with_inputs: weight_ih has shape"):
        given.with_inputs(weight["weight_ih"][1:])


@pytest.mark.parametrize("batch", [1, 3, 30])
@pytest.mark.parametrize("case", [*EACH, PROJECTED, *LOW], ids=str)
def test_cells_equal_the_sequence(case, batch):
    case = RecurrentCase(**(vars(case) | {"lengths": (4,) * batch}))
    a = case.arguments()
    out, *last = run(case, **a)
    by_step = a["x"].reshape(batch, 4, case.input_size).swapaxes(0, 1)
    outputs = out.reshape(batch, 4, len(a["weights"]), -1)
    steps = {"forward": [1], "reverse": [-1], "bidirectional": [1, -1]}[case.direction]
    for d, (weight, step) in enumerate(zip(a["weights"], steps, strict=True)):
        packed = ops.pack_recurrent(**weight, dtype=case.dtype)
        states = [state[d] for state in given_states(case, a)]
        for t in range(4)[::step]:
            states = cell_step(case, by_step[t], packed, states)
            assert_same_bits(states[0], outputs[:, t, d])
        assert_all_same_bits(states, [state[d] for state in last])


@pytest.mark.parametrize("case", [*EACH, PROJECTED], ids=str)
def test_a_sequence_in_two_pieces(case):
    case = RecurrentCase(**(vars(case) | {"lengths": (9, 9), "direction": "forward"}))
    a = case.arguments()
    whole, *last = run(case, **a)
    x, pieces = a["x"].reshape(2, 9, -1), []
    for piece in (slice(0, 4), slice(4, 9)):
        part = np.concatenate(x[:, piece])
        out, *states = run(case, **(a | {"x": part, "cu_seqlens": offsets((len(part) // 2,) * 2)}))
        a |= dict(zip(STATES, states, strict=False))
        pieces.append(out.reshape(2, len(part) // 2, -1))
    assert_same_bits(np.concatenate(pieces, axis=1).reshape(18, -1), whole)
    assert_all_same_bits(states, last)


@pytest.mark.parametrize("case", [*EACH, PROJECTED], ids=str)
def test_reverse_is_forward_from_the_other_end(case):
    case = RecurrentCase(**(vars(case) | {"direction": "forward"}))
    a = case.arguments()
    a["weights"] = pack(a["weights"])
    starts = a["cu_seqlens"]
    pieces = [np.arange(starts[b], starts[b + 1])[::-1] for b in range(len(case.lengths))]
    flip = np.concatenate(pieces)
    forward, *last = run(case, **a)
    reverse, *others = run(case, **(a | {"x": a["x"][flip], "direction": "reverse"}))
    assert_same_bits(reverse[flip], forward)
    assert_all_same_bits(others, last)


@pytest.mark.parametrize("case", [*EACH, PROJECTED], ids=str)
def test_bidirectional_is_both_directions(case):
    case = RecurrentCase(**(vars(case) | {"direction": "bidirectional"}))
    a = case.arguments()
    out, *last = run(case, **a)
    halves = np.split(out, 2, axis=1)
    for d, direction in enumerate(("forward", "reverse")):
        one = a | {"weights": a["weights"][d : d + 1], "direction": direction}
        one |= {name: a[name][d : d + 1] for name in STATES if name in a}
        half, *states = run(case, **one)
        assert_same_bits(half, halves[d])
        assert_all_same_bits(states, [state[d : d + 1] for state in last])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", GATES)
def test_missing_states_are_zeros(kind, direction):
    case = RecurrentCase(kind, RAGGED, direction=direction, states=False)
    a = case.arguments()
    expected = run(case, **a)
    a |= dict(zip(STATES, given_states(case, a), strict=False))
    assert_all_same_bits(run(case, **a), expected)


@pytest.mark.parametrize("case", [*EACH, PROJECTED, *LOW], ids=str)
def test_empty_sequence_gives_the_first_state_back(case):
    a = case.arguments()
    for name, given in zip(STATES, given_states(case, a), strict=False):
        given[:, 1] = -0.0, *given[:, 1].T[1:, 0].tolist()  # the sign of zero is kept too
        a[name] = given
    assert case.lengths[1] == 0
    _, *last = run(case, **a)
    for name, state in zip(STATES, last, strict=False):
        assert_same_bits(state[:, 1], np.ascontiguousarray(a[name][:, 1]))


@pytest.mark.parametrize(("kind", "state"), [*itertools.product(GATES, STATES[:1]), ("lstm", "c0")])
def test_nan_in_a_state_stays_in_its_sequence(kind, state):
    case = RecurrentCase(kind, (4, 6, 3), hidden_size=40)
    a = case.arguments()
    expected, *last = run(case, **a)
    a[state][0, 1, 7] = np.nan
    out, *others = run(case, **a)
    assert np.isnan(out[4, 7])
    assert np.isnan(out[5:10]).all()
    assert all(np.isnan(array[:, 1]).all() for array in others)
    out[4:10] = expected[4:10]
    assert_same_bits(out, expected)
    for array, other in zip(others, last, strict=True):
        assert_same_bits(np.delete(array, 1, axis=1), np.delete(other, 1, axis=1))


@pytest.mark.parametrize("kind", GATES)
def test_nan_in_the_input_lasts_from_its_token_on(kind):
    case = RecurrentCase(kind, (4, 6, 3), hidden_size=40)
    a = case.arguments()
    expected, *_ = run(case, **a)
    a["x"][6, 2] = np.nan
    out, *others = run(case, **a)
    assert np.isnan(out[6:10]).all()
    assert all(np.isnan(array[:, 1]).all() for array in others)
    out[6:10] = expected[6:10]
    assert_same_bits(out, expected)


LEAST = 2.0**-124  # a sigmoid may saturate there
WIDE = np.linspace(-100.0, 100.0, 40001, dtype=np.float32)


def apply_gate(kind, **biases):
    """Every value of WIDE through one unit whose weights are zeros but for one input's.

    biases: of the gates, in their order; None for the gate that gets the value.
    """
    gates = np.array([np.nan if bias is None else bias for bias in biases.values()], np.float32)
    weight = ops.pack_recurrent(
        kind,
        np.isnan(gates).astype(np.float32)[:, None],
        np.zeros((len(gates), 1), np.float32),
        np.nan_to_num(gates),
    )
    ones = np.ones((1, len(WIDE), 1), np.float32)
    case = RecurrentCase(kind, ())
    states = dict.fromkeys(STATES if kind == "lstm" else STATES[:1], ones)
    starts = np.arange(len(WIDE) + 1, dtype=np.int32)
    return [
        array.reshape(-1)
        for array in run(case, x=WIDE[:, None], cu_seqlens=starts, weights=weight, **states)
    ]


def test_sigmoid_over_its_range():
    """It forgets a state of one, and what takes its place is zero."""
    c = apply_gate("lstm", i=-1000.0, f=None, g=0.0, o=0.0)[2]
    expected = 1.0 / (1.0 + np.exp(-WIDE.astype(np.float64)))
    # The exponent carries an error relative to its size into what is small.
    assert_close(c, expected, scale=(1.0 + np.abs(WIDE)) * expected, besides=LEAST)


def test_tanh_over_its_range():
    expected = np.tanh(WIDE.astype(np.float64))
    assert_close(apply_gate("rnn_tanh", h=None)[0], expected)
    assert_close(apply_gate("lstm", i=1000.0, f=-1000.0, g=None, o=0.0)[2], expected, besides=LEAST)
    assert_close(apply_gate("gru", r=0.0, z=-1000.0, n=None)[0], expected, besides=LEAST)


def test_states_and_inputs_are_left_alone():
    case = RecurrentCase("lstm", RAGGED, direction="bidirectional")
    a = case.arguments()
    run(case, **a)
    for name in ("x", "h0", "c0"):
        assert_same_bits(a[name], case.arguments()[name])


@pytest.mark.parametrize("kind", GATES)
def test_tensors_in_tensors_out(kind):
    case = RecurrentCase(kind, RAGGED, direction="bidirectional")
    a = case.arguments()
    expected = run(case, **a)
    tensors = a | {
        name: softgate.Tensor(value) for name, value in a.items() if isinstance(value, np.ndarray)
    }
    results = run(case, **tensors)
    assert all(isinstance(result, softgate.Tensor) for result in results)
    assert_all_same_bits([result.numpy() for result in results], expected)

    packed = pack(a["weights"])[0]
    first = [state[0] for state in given_states(case, a)]
    x = a["x"][: len(RAGGED)]
    stepped = cell_step(case, softgate.Tensor(x), packed, map(softgate.Tensor, first))
    assert all(isinstance(result, softgate.Tensor) for result in stepped)
    assert_all_same_bits([result.numpy() for result in stepped], cell_step(case, x, packed, first))


# packed weights


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("hidden_size", [1, 8, 15, 16, 17, 32, 33, 65])
@pytest.mark.parametrize("kind", [*GATES, "projected"])
def test_unpack_gives_the_weights_back(kind, hidden_size, layout):
    random = np.random.default_rng(hidden_size)
    proj_size = 5 if kind == "projected" else None
    kind = "lstm" if kind == "projected" else kind
    (weight,) = RecurrentCase(kind, (), 7, hidden_size, proj_size).arguments()["weights"]
    weight.pop("kind")
    for name, array in weight.items():
        bits = random.integers(0, 2**32, array.shape, dtype=np.uint32)
        bits.flat[0] = 0xFFC12345  # a NaN with a payload
        weight[name] = place(bits.view(np.float32), layout if array.ndim == 2 else "misaligned")
    unpacked = ops.pack_recurrent(kind, **weight).unpack()
    assert unpacked.keys() == weight.keys()
    for name, array in weight.items():
        assert_same_bits(unpacked[name].numpy(), array)


@pytest.mark.parametrize("absent", ["bias_ih", "bias_hh", "both"])
@pytest.mark.parametrize("kind", GATES)
def test_absent_biases_are_zeros(kind, absent):
    case = RecurrentCase(kind, RAGGED, direction="bidirectional")
    a = case.arguments()
    gone = ("bias_ih", "bias_hh") if absent == "both" else (absent,)
    zeros = [w | {name: np.zeros_like(w[name]) for name in gone} for w in a["weights"]]
    without = [{n: array for n, array in w.items() if n not in gone} for w in a["weights"]]
    expected = run(case, **(a | {"weights": zeros}))
    assert_all_same_bits(run(case, **(a | {"weights": without})), expected)
    assert not pack(without)[0].unpack().keys() & set(gone)


def test_bfloat16_weights_are_the_nearest():
    (weight,) = RecurrentCase("lstm", (), 7, 33).arguments()["weights"]
    unpacked = ops.pack_recurrent(**weight, dtype="bfloat16").unpack()
    bits = weight["weight_hh"].view(np.uint32)
    nearest = bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000  # ties to even
    assert_same_bits(unpacked["weight_hh"].numpy(), nearest.view(np.float32))


def test_int8_weights_are_the_nearest_of_their_scale():
    (weight,) = RecurrentCase("lstm", (), 7, 33).arguments()["weights"]
    weight["weight_hh"][3] = 0.0  # no scale to divide by
    unpacked = ops.pack_recurrent(**weight, dtype="int8").unpack()["weight_hh"].numpy()
    scale = np.abs(weight["weight_hh"]).max(axis=1, keepdims=True) / 127.0
    assert (np.abs(unpacked - weight["weight_hh"]) <= 0.501 * scale).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_weights_keep_their_bits(dtype):
    case = RecurrentCase("lstm", (), 7, 33, 8)
    (weight,) = case.arguments()["weights"]
    unpacked = ops.pack_recurrent(**weight, dtype=dtype).unpack()
    for name in weight.keys() - {"kind", "weight_hh"}:
        assert_same_bits(unpacked[name].numpy(), weight[name])


def test_pack_copies_the_weights():
    case = RecurrentCase("lstm", RAGGED, 7, 33, 8)
    a = case.arguments()
    expected = run(case, **a)
    packed = pack(a["weights"])
    for name in a["weights"][0].keys() - {"kind"}:
        a["weights"][0][name][...] = np.nan
    assert_all_same_bits(run(case, **(a | {"weights": packed})), expected)


def test_packed_weight_tells_what_it_is(isa):
    (weight,) = RecurrentCase("lstm", (), 7, 33, 8).arguments()["weights"]
    packed = ops.pack_recurrent(**weight)
    assert (packed.kind, packed.dtype, packed.isa) == ("lstm", "float32", isa)
    assert (packed.input_size, packed.hidden_size, packed.output_size) == (7, 33, 8)
    plain = sum(array.nbytes for name, array in weight.items() if name != "kind")
    assert plain <= packed.nbytes <= 3 * plain
    sizes = [ops.pack_recurrent(**weight, dtype=dtype).nbytes for dtype in ("bfloat16", "int8")]
    assert packed.nbytes > sizes[0] > sizes[1]


@pytest.mark.skipif(len(softgate.isas()) < 2, reason="this CPU runs one ISA only")
@pytest.mark.parametrize("kind", GATES)
def test_weight_of_another_isa_is_refused(isa, kind):
    case = RecurrentCase(kind, (3,))
    a = case.arguments()
    other = "generic" if isa != "generic" else softgate.isas()[0]
    softgate.set_isa(other)
    a["weights"] = pack(a["weights"])
    softgate.set_isa(isa)
    with pytest.raises(ValueError, match=rf"^{name_of(case)}: weights? .*{other}.*{isa}"):
        run(case, **a)
    states = [state[0] for state in given_states(case, case.arguments())]
    with pytest.raises(ValueError, match=rf"^{name_of(case)}_cell: weight .*{other}.*{isa}"):
        cell_step(case, a["x"][:1], a["weights"], states)
    with pytest.raises(ValueError, match=rf"{other}.*{isa}"):
        a["weights"].unpack()


# bad input

SMALL = RecurrentCase("lstm", (3, 5), 5, 9, 4, "bidirectional")


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize("argument", ["x", "h0", "c0", "out"])
def test_spoiled_argument(argument, spoiled):
    error, spoil = SPOILED[spoiled]
    a = SMALL.arguments() | {"out": np.zeros((8, 8), np.float32)}
    a[argument] = spoil(a[argument])
    with pytest.raises(error, match=rf"^lstm: {argument}\b"):
        run(SMALL, **a)


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize("argument", ["x", "h", "c"])
def test_spoiled_argument_of_a_cell(argument, spoiled):
    error, spoil = SPOILED[spoiled]
    a = SMALL.arguments()
    cell = {"x": a["x"][:2].copy(), "h": a["h0"][0], "c": a["c0"][0]}
    cell[argument] = spoil(cell[argument])
    with pytest.raises(error, match=rf"^lstm_cell: {argument}\b"):
        ops.lstm_cell(weight=pack(a["weights"])[0], **cell)


@pytest.mark.parametrize(
    ("argument", "spoiled"),
    [
        *itertools.product(("weight_hh", "bias_ih", "bias_hh", "weight_hr"), SPOILED),
        *itertools.product(
            ("weight_ih",), sorted(SPOILED.keys() - {"one_more"})
        ),  # any input size will do
    ],
)
def test_spoiled_weight(argument, spoiled):
    error, spoil = SPOILED[spoiled]
    (weight,) = RecurrentCase("lstm", (), 5, 9, 4).arguments()["weights"]
    weight[argument] = spoil(weight[argument])
    with pytest.raises(error, match=rf"^pack_recurrent: {argument}\b"):
        ops.pack_recurrent(**weight)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        pytest.param(lambda starts: starts.astype(np.int64), TypeError, id="int64"),
        pytest.param(lambda starts: starts.astype(np.float32), TypeError, id="float32"),
        pytest.param(lambda starts: starts.tolist(), TypeError, id="list"),
        pytest.param(lambda starts: np.repeat(starts, 2)[::2], ValueError, id="gapped"),
        pytest.param(lambda starts: starts[None], ValueError, id="two_dimensions"),
        pytest.param(lambda starts: starts[:0], ValueError, id="empty"),
        pytest.param(lambda starts: starts + 1, ValueError, id="starts_late"),
        pytest.param(lambda starts: starts - [1, 0, 0], ValueError, id="negative"),
        pytest.param(lambda starts: starts * [0, 9, 1], ValueError, id="falls"),
        pytest.param(lambda starts: starts - [0, 0, 1], ValueError, id="ends_early"),
        pytest.param(lambda starts: starts - [0, 0, -1], ValueError, id="ends_late"),
    ],
)
@pytest.mark.parametrize("kind", GATES)
def test_spoiled_offsets(kind, spoil, error):
    case = RecurrentCase(kind, (3, 5))
    a = case.arguments()
    spoiled = spoil(a["cu_seqlens"])
    if error is ValueError:
        spoiled = spoiled.astype(np.int32, copy=False)  # arithmetic made it int64
    with pytest.raises(error, match=rf"^{name_of(case)}: cu_seqlens\b"):
        run(case, **(a | {"cu_seqlens": spoiled}))


def shaped(*shape):
    return np.zeros(shape, np.float32)


ROWS = np.array([1, 0], np.int32)  # of a batch of two


def test_rows_are_int32():
    with pytest.raises(TypeError, match=r"^lstm: h0_rows"):
        run(SMALL, **SMALL.arguments(), h0_rows=ROWS.astype(np.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"x": shaped(8, 6)}, "x", id="x_wide"),
        pytest.param({"x": shaped(40)}, "x", id="x_one_dimension"),
        pytest.param({"x": shaped(8, 5)[::-1]}, "x", id="x_reversed"),
        pytest.param({"h0": shaped(2, 3, 4)}, "h0", id="h0_batch"),
        pytest.param({"h0": shaped(1, 2, 4)}, "h0", id="h0_directions"),
        pytest.param({"h0": shaped(2, 2, 9)}, "h0", id="h0_is_not_projected"),
        pytest.param({"h0": shaped(2, 4)}, "h0", id="h0_two_dimensions"),
        pytest.param({"c0": shaped(2, 3, 9)}, "c0", id="c0_batch"),
        pytest.param({"c0": shaped(2, 2, 4)}, "c0", id="c0_is_projected"),
        pytest.param({"h0_rows": ROWS[:1]}, "h0_rows", id="h0_rows_of_too_few"),
        pytest.param({"h0_rows": ROWS[:, None]}, "h0_rows", id="h0_rows_of_two_dimensions"),
        pytest.param(
            {"h0_rows": ROWS + 1}, r"h0_rows\[0\] is 2, expected 0 <= row < 2", id="row_2"
        ),
        pytest.param({"h0_rows": ROWS - 1}, r"h0_rows\[1\] is -1", id="row_below_0"),
        pytest.param({"h0_rows": ROWS, "h0": None}, "h0_rows without h0", id="no_h0"),
        pytest.param({"h0_rows": ROWS, "c0": shaped(2, 3, 9)}, "c0", id="c0_rows"),
        pytest.param({"out": shaped(8, 4)}, "out", id="out_of_one_direction"),
        pytest.param({"out": shaped(7, 8)}, "out", id="out_rows"),
        pytest.param({"out": read_only(shaped(8, 8))}, "out is read-only", id="out_read_only"),
        pytest.param(
            {"out": np.lib.stride_tricks.as_strided(shaped(8), (8, 8), (0, 4))},
            "out",
            id="out_overlaps_itself",
        ),
        pytest.param({"direction": ""}, "direction", id="no_direction"),
        pytest.param({"direction": "backward"}, "direction", id="unknown_direction"),
        pytest.param({"direction": "forward"}, "weights", id="two_weights_forward"),
        pytest.param({"direction": "reverse"}, "weights", id="two_weights_in_reverse"),
    ],
)
def test_bad_argument(change, message):
    with pytest.raises(ValueError, match=rf"^lstm: {message}\b"):
        run(SMALL, **(SMALL.arguments() | change))


def other_weight(**changes):
    """Of SMALL, with changes."""
    (weight,) = RecurrentCase(**(vars(SMALL) | {"direction": "forward", **changes})).arguments()[
        "weights"
    ]
    return ops.pack_recurrent(**weight)


@pytest.mark.parametrize(
    "changes",
    [
        {"input_size": 6},
        {"hidden_size": 8},
        {"proj_size": 5},
        {"proj_size": None},
        {"kind": "gru", "proj_size": None},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
@pytest.mark.parametrize("place_in_pair", [0, 1])
def test_directions_must_match(changes, place_in_pair):
    a = SMALL.arguments()
    dtype = changes.pop("dtype", None)
    weights = list(pack(a["weights"]))
    weights[place_in_pair] = (
        ops.pack_recurrent(**a["weights"][0], dtype=dtype) if dtype else other_weight(**changes)
    )
    changes |= {"dtype": dtype} if dtype else {}
    with pytest.raises(ValueError, match=r"^lstm: (the reverse weight|weights?|x)\b"):
        run(SMALL, **(a | {"weights": tuple(weights)}))


def test_bidirectional_takes_two_weights():
    a = SMALL.arguments()
    one = pack(a["weights"])[0]
    for weights in (one, (one,), (one, one, one), ()):
        with pytest.raises(ValueError, match=r"^lstm: weights\b"):
            run(SMALL, **(a | {"weights": weights}))


@pytest.mark.parametrize(
    ("kind", "other"),
    [pair for pair in itertools.permutations(GATES, 2) if OPS[pair[0]][0] != OPS[pair[1]][0]],
)
def test_weights_of_another_op_are_refused(kind, other):
    case = RecurrentCase(kind, (3, 5))
    a = case.arguments()
    (weight,) = RecurrentCase(other, (3, 5)).arguments()["weights"]
    packed = ops.pack_recurrent(**weight)
    with pytest.raises(ValueError, match=rf"^{name_of(case)}: weights? .*\b{other}\b"):
        run(case, **(a | {"weights": packed}))
    states = [state[0] for state in given_states(case, a)]
    with pytest.raises(ValueError, match=rf"^{name_of(case)}_cell: weight .*\b{other}\b"):
        cell_step(case, a["x"][:2], packed, states)


@pytest.mark.parametrize("weights", [None, shaped(36, 5), {}, ops.pack, [shaped(2, 2)]], ids=type)
def test_plain_weights_are_refused(weights):
    case = RecurrentCase("gru", (3, 5))
    with pytest.raises(TypeError, match=r"^gru: weights\b"):
        ops.gru(**(case.arguments() | {"weights": weights}))


def test_out_overlaps_no_input():
    case = RecurrentCase("lstm", (2, 3), 9, 9)
    a = case.arguments()
    with pytest.raises(ValueError, match=r"^lstm: out .*\bx\b"):
        run(case, **a, out=a["x"])
    memory = shaped(5, 9)
    for name in STATES:
        with pytest.raises(ValueError, match=rf"^lstm: out .*\b{name}\b"):
            run(case, **(a | {name: memory[1:3][None]}), out=memory)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"kind": "elman"}, ValueError, "kind", id="unknown_kind"),
        pytest.param({"kind": ""}, ValueError, "kind", id="no_kind"),
        pytest.param({"dtype": "float16"}, ValueError, "dtype", id="unknown_dtype"),
        pytest.param({"weight_ih": None}, TypeError, "weight_ih", id="no_weight_ih"),
        pytest.param({"weight_hh": None}, TypeError, "weight_hh", id="no_weight_hh"),
        pytest.param({"weight_ih": shaped(35, 5)}, ValueError, "weight_ih", id="rows_of_no_gates"),
        pytest.param({"weight_ih": shaped(0, 5)}, ValueError, "weight_ih", id="no_units"),
        pytest.param({"weight_ih": shaped(36, 0)}, ValueError, "weight_ih", id="no_inputs"),
        pytest.param({"weight_ih": shaped(32, 5)}, ValueError, "weight", id="fewer_units"),
        pytest.param({"weight_hh": shaped(27, 4)}, ValueError, "weight_hh", id="gates_of_a_gru"),
        pytest.param({"weight_hh": shaped(36, 9)}, ValueError, "weight_hh", id="not_projected"),
        pytest.param({"weight_hr": shaped(4, 8)}, ValueError, "weight_hr", id="hr_units"),
        pytest.param({"weight_hr": shaped(0, 9)}, ValueError, "weight_hr", id="hr_without_rows"),
        pytest.param({"weight_hr": None}, ValueError, "weight_hh", id="no_weight_hr"),
        pytest.param({"bias_ih": shaped(9)}, ValueError, "bias_ih", id="bias_of_one_gate"),
        pytest.param({"bias_hh": shaped(27)}, ValueError, "bias_hh", id="bias_of_a_gru"),
    ],
)
def test_weights_that_cannot_be_packed(change, error, message):
    (weight,) = RecurrentCase("lstm", (), 5, 9, 4).arguments()["weights"]
    with pytest.raises(error, match=rf"^pack_recurrent: {message}"):
        ops.pack_recurrent(**(weight | change))


@pytest.mark.parametrize("kind", sorted(GATES.keys() - {"lstm"}))
def test_only_an_lstm_has_a_projection(kind):
    (weight,) = RecurrentCase(kind, ()).arguments()["weights"]
    with pytest.raises(ValueError, match=rf"^pack_recurrent: weight_hr .*\b{kind}\b"):
        ops.pack_recurrent(**weight, weight_hr=shaped(4, 9))

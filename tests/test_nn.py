"""Recurrent layers against torch with the same weights, and their own promises."""

import itertools

import numpy as np
import pytest
import softgate
from cases import offsets
from softgate import nn, ops, reference
from tolerances import assert_same_bits

torch = pytest.importorskip("torch", reason="torch is the oracle")

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

# float32 on both sides, over a few steps of states of size 1.
TOLERANCE = {"rtol": 0, "atol": 5e-6}

MAKES = {
    "rnn_tanh": (nn.RNN, torch.nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (nn.RNN, torch.nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTM, torch.nn.LSTM, {}),
    "lstm_projected": (nn.LSTM, torch.nn.LSTM, {"proj_size": 4}),
    "gru": (nn.GRU, torch.nn.GRU, {}),
}
INPUT, HIDDEN = 6, 10
LENGTHS = (3, 7, 1, 5)


def make(name, seed=0, sizes=(INPUT, HIDDEN), **options):
    """Our layer and torch's, with the same weights."""
    ours_class, torch_class, more = MAKES[name]
    torch.manual_seed(seed)
    theirs = torch_class(*sizes, **options, **more).eval()
    ours = ours_class(*sizes, **options, **more)
    ours.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    return ours, theirs


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def first_states(layer, batch):
    """One array, or the pair of an LSTM."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    h0 = draw(rows, batch, layer.proj_size or HIDDEN, seed=1)
    return (h0, draw(rows, batch, HIDDEN, seed=2)) if isinstance(layer, nn.LSTM) else h0


def convert(states, function):
    return tuple(map(function, states)) if isinstance(states, tuple) else function(states)


def flat(results):
    """(out, h_n) or (out, (h_n, c_n)) as a list of arrays."""
    out, states = results
    return [
        np.asarray(array) for array in (out, *(states if isinstance(states, tuple) else (states,)))
    ]


def run_torch(layer, x, states=None):
    with torch.inference_mode():
        return layer(x, None if states is None else convert(states, torch.from_numpy))


def assert_all_close(actual, expected):
    for array, other in zip(flat(actual), flat(expected), strict=True):
        np.testing.assert_allclose(array, other, **TOLERANCE)


def assert_all_same_bits(actual, expected):
    for array, other in zip(flat(actual), flat(expected), strict=True):
        assert_same_bits(array, other)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("name", MAKES)
def test_equals_torch(name, num_layers, bidirectional, batch_first):
    options = {"bidirectional": bidirectional, "batch_first": batch_first}
    ours, theirs = make(name, num_layers=num_layers, **options)
    x = draw(7, 4, INPUT)
    if batch_first:
        x = np.ascontiguousarray(x.swapaxes(0, 1))
    assert_all_close(ours(x), run_torch(theirs, torch.from_numpy(x)))
    states = first_states(ours, 4)
    assert_all_close(ours(x, states), run_torch(theirs, torch.from_numpy(x), states))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", MAKES)
def test_lengths_equal_torch(name, bidirectional, batch_first):
    ours, theirs = make(name, num_layers=2, bidirectional=bidirectional, batch_first=batch_first)
    x = draw(9, 4, INPUT)  # longer than the longest sequence
    if batch_first:
        x = np.ascontiguousarray(x.swapaxes(0, 1))
    states = first_states(ours, 4)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(x), LENGTHS, batch_first=batch_first, enforce_sorted=False
    )
    out, last = run_torch(theirs, packed, states)
    out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first, total_length=9)
    actual = ours(x, states, lengths=LENGTHS)
    assert_all_close(actual, (out, last))
    padding = np.arange(9)[:, None] >= np.array(LENGTHS)
    assert not actual[0][padding.T if batch_first else padding].any()


@pytest.mark.parametrize("name", MAKES)
def test_without_biases_equals_torch(name):
    ours, theirs = make(name, num_layers=2, bias=False)
    x = draw(7, 4, INPUT)
    assert_all_close(ours(x), run_torch(theirs, torch.from_numpy(x)))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", MAKES)
def test_one_sequence_equals_torch(name, bidirectional):
    ours, theirs = make(name, num_layers=2, bidirectional=bidirectional)
    x = draw(7, INPUT)
    assert_all_close(ours(x), run_torch(theirs, torch.from_numpy(x)))
    states = convert(first_states(ours, 1), lambda state: state[:, 0])
    assert_all_close(ours(x, states), run_torch(theirs, torch.from_numpy(x), states))


@pytest.mark.parametrize("name", MAKES)
def test_state_dict_is_torchs(name):
    ours, theirs = make(name, num_layers=2, bidirectional=True)
    state = ours.state_dict()
    expected = {key: value.numpy() for key, value in theirs.state_dict().items()}
    assert list(state) == list(expected)
    for key, array in expected.items():
        assert_same_bits(state[key], array)
    assert ours.num_parameters() == sum(array.size for array in expected.values())


@pytest.mark.parametrize("name", MAKES)
def test_no_second_copy_is_kept(name):
    ours, theirs = make(name, num_layers=2, bidirectional=True)
    weights = {id(p.value): p.value for _, p in ours.named_parameters()}
    assert len(weights) == 4  # layers times directions
    assert ours.nbytes() == sum(weight.nbytes for weight in weights.values())
    expected = {key: value.numpy() for key, value in theirs.state_dict().items()}
    ours.load_state_dict(expected)  # again
    assert ours.state_dict().keys() == expected.keys()


def test_one_parameter_may_change():
    ours, theirs = make("lstm")
    with torch.no_grad():
        theirs.weight_hh_l0 *= 2.0
    dict(ours.named_parameters())["weight_hh_l0"].fill(theirs.weight_hh_l0.detach().numpy())
    x = draw(7, 4, INPUT)
    assert_all_close(ours(x), run_torch(theirs, torch.from_numpy(x)))


def test_filling_copies():
    ours, theirs = make("gru")
    x = draw(7, 4, INPUT)
    again = nn.GRU(INPUT, HIDDEN)
    for name, parameter in again.named_parameters():
        array = theirs.state_dict()[name].numpy().copy()
        parameter.fill(array)
        array[...] = np.nan
    assert_all_same_bits(again(x), ours(x))


def test_random_weights():
    layer = nn.LSTM(INPUT, HIDDEN, 2)
    layer.init_weights(seed=3)
    state = layer.state_dict()
    assert state["weight_hh_l1"].std() == pytest.approx(0.02, rel=0.2)
    assert not state["bias_ih_l0"].any()


@pytest.mark.parametrize("reset_after", [False, True])
def test_reset_gate(reset_after):
    layer = nn.GRU(INPUT, HIDDEN, reset_after=reset_after)
    layer.init_weights(std=0.5)
    weights = {name.removesuffix("_l0"): array for name, array in layer.state_dict().items()}
    kind = "gru" if reset_after else "gru_reset_before"
    x = draw(9, INPUT)
    actual = layer(x, cu_seqlens=offsets((9,)))
    expected = reference.gru(x, offsets((9,)), reference.RecurrentWeight(kind, **weights))
    assert_all_close(actual, expected)


@pytest.mark.parametrize("most", [0, 1 << 22])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("name", MAKES)
def test_ids_of_a_table(name, options, most, monkeypatch):
    monkeypatch.setattr("softgate.nn.recurrent._MOST_FOLDED", most)
    layer, _ = make(name, **options)
    table = nn.Parameter(11, INPUT)
    ids, cu_seqlens = np.arange(16) * 7 % 11, offsets(LENGTHS)
    states = first_states(layer, 4)
    for seed in range(2):  # the second time the product is formed anew
        table.fill(draw(11, INPUT, seed=seed))
        expected = layer(table.numpy()[ids], states, cu_seqlens=cu_seqlens)
        for _ in range(2):
            actual = layer(ids, states, cu_seqlens=cu_seqlens, table=table)
            assert_all_close(actual, expected)
    layer.init_weights(seed=5, std=0.3)
    expected = layer(table.numpy()[ids], states, cu_seqlens=cu_seqlens)
    actual = layer(ids, states, cu_seqlens=cu_seqlens, table=table)
    assert_all_close(actual, expected)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "lengths", [(3, 7, 1, 5), (0, 7, 0, 2), (0, 0, 0, 0), (7, 7, 7, 7)], ids=str
)
@pytest.mark.parametrize("name", MAKES)
def test_padded_is_packed(name, lengths, batch_first):
    ours, _ = make(name, num_layers=2, bidirectional=True, batch_first=batch_first)
    padded = draw(4, 7, INPUT)
    kept = np.arange(7) < np.array(lengths)[:, None]
    packed = ours(padded[kept], first_states(ours, 4), cu_seqlens=offsets(lengths))
    padded[~kept] = np.nan  # never looked at
    out, last = ours(
        padded if batch_first else padded.swapaxes(0, 1), first_states(ours, 4), lengths=lengths
    )
    out = out if batch_first else out.swapaxes(0, 1)
    assert_all_same_bits((out[kept], last), packed)
    assert_same_bits(out[~kept], np.zeros_like(out[~kept]))


def test_lengths_in_any_integers():
    ours, _ = make("gru")
    x = draw(7, 4, INPUT)
    expected = ours(x, lengths=LENGTHS)
    for lengths in (list(LENGTHS), np.array(LENGTHS, np.int64), np.array(LENGTHS, np.uint8)):
        assert_all_same_bits(ours(x, lengths=lengths), expected)
    every = np.full(4, 7)
    assert_all_same_bits(ours(x, lengths=every), ours(x))


@pytest.mark.parametrize("shape", [(0, 4, INPUT), (7, 0, INPUT)], ids=str)
@pytest.mark.parametrize("name", MAKES)
def test_empty_batches(name, shape):
    ours, _ = make(name, num_layers=2, bidirectional=True)
    states = first_states(ours, shape[1])
    out, *last = flat(ours(draw(*shape), states))
    assert out.shape == (*shape[:2], 2 * (ours.proj_size or HIDDEN))
    for state, given in zip(last, states if isinstance(states, tuple) else (states,), strict=True):
        assert_same_bits(state, given)


@pytest.mark.parametrize("name", MAKES)
def test_tensors_in_tensors_out(name):
    ours, _ = make(name, num_layers=2, bidirectional=True)
    states = first_states(ours, 4)
    forms = [(draw(7, 4, INPUT), {}), (draw(16, INPUT), {"cu_seqlens": offsets(LENGTHS)})]
    for x, options in forms:
        expected = ours(x, states, **options)
        options = {key: softgate.Tensor(value) for key, value in options.items()}
        out, last = ours(softgate.Tensor(x), convert(states, softgate.Tensor), **options)
        for array in (out, *(last if isinstance(last, tuple) else (last,))):
            assert isinstance(array, softgate.Tensor)
        assert_all_same_bits((out, last), expected)


def test_torch_tensors_come_in_by_dlpack():
    ours, _ = make("lstm")
    x = draw(7, 4, INPUT)
    assert_all_same_bits(ours(torch.from_numpy(x)), ours(x))


@pytest.mark.parametrize("name", MAKES)
def test_2000_steps_drift_no_further_than_torch(name, isa):
    """The sums' order is another, so that the errors' root mean square differs by chance."""
    steps, size = 2000, 64
    ours, theirs = make(name, seed=1, sizes=(size, size))
    x = draw(steps, 2, size, seed=5)
    kind = name.removesuffix("_projected")
    weights = {key.removesuffix("_l0"): array for key, array in ours.state_dict().items()}
    run = {"lstm": reference.lstm, "gru": reference.gru}.get(kind, reference.rnn)
    packed = np.concatenate([x[:, 0], x[:, 1]])
    exact, *_ = run(packed, offsets((steps,) * 2), reference.RecurrentWeight(kind, **weights))
    exact = exact.reshape(2, steps, -1).swapaxes(0, 1)

    def error(out):
        return np.sqrt(np.mean((np.asarray(out, dtype=np.float64) - exact) ** 2))

    assert error(ours(x)[0]) <= 1.2 * error(run_torch(theirs, torch.from_numpy(x))[0])


# bad input


def test_a_state_that_does_not_fit_is_listed():
    layer = nn.LSTM(INPUT, HIDDEN, 2, bidirectional=True, proj_size=4)
    layer.init_weights()
    state = layer.state_dict()
    state["weight_hh_l1"] = state["weight_hh_l1"][:30]  # a GRU's gates
    del state["bias_hh_l0_reverse"], state["weight_hr_l0"]
    state["weight_ih_l2"] = state["weight_ih_l1"]
    before = layer.state_dict()
    with pytest.raises(ValueError, match="does not fit") as raised:
        layer.load_state_dict(state)
    assert str(raised.value).splitlines()[1:] == [
        "  missing: weight_hr_l0",
        "  missing: bias_hh_l0_reverse",
        "  unexpected: weight_ih_l2",
        "  mis-shaped: weight_hh_l1 is [30, 4], expected [40, 4]",
    ]
    for name, array in before.items():
        assert_same_bits(layer.state_dict()[name], array)


@pytest.mark.parametrize("name", MAKES)
def test_weights_must_be_filled_in(name):
    layer, _ = make(name)
    empty = type(layer)(INPUT, HIDDEN)
    parameters = dict(empty.named_parameters())
    for key in list(parameters)[:-1]:
        parameters[key].fill(np.zeros(parameters[key].shape, np.float32))
    with pytest.raises(ValueError, match=r"^\w+: layer 0 has no bias_hh;"):
        empty(draw(7, 4, INPUT))


def test_a_parameter_of_another_shape_is_refused():
    layer = nn.GRU(INPUT, HIDDEN)
    with pytest.raises(ValueError, match=r"shape \[40, 6\], expected \[30, 6\]"):
        layer.weight_ih_l0.fill(np.zeros((40, 6), np.float32))


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0), (4, 4, 0), (-1, 4)], ids=str)
@pytest.mark.parametrize("layer", [nn.RNN, nn.LSTM, nn.GRU])
def test_sizes_are_positive(layer, sizes):
    with pytest.raises(ValueError, match=r"_size|num_layers"):
        layer(*sizes)


@pytest.mark.parametrize("proj_size", [-1, HIDDEN, HIDDEN + 1])
def test_projection_is_smaller(proj_size):
    with pytest.raises(ValueError, match=rf"proj_size is {proj_size}"):
        nn.LSTM(INPUT, HIDDEN, proj_size=proj_size)


def test_unknown_nonlinearity():
    with pytest.raises(ValueError, match=r"^RNN: nonlinearity is 'gelu'"):
        nn.RNN(INPUT, HIDDEN, nonlinearity="gelu")


PADDED, PACKED = (7, 4, INPUT), (28, INPUT)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        pytest.param((7, 4, 5), {}, ValueError, "lstm: x", id="x_narrow"),
        pytest.param((7, 2, 2, 6), {}, ValueError, "LSTM: x", id="x_four_dimensions"),
        pytest.param((6,), {}, ValueError, "LSTM: x", id="x_one_dimension"),
        *(
            pytest.param(PADDED, {"lengths": lengths}, ValueError, f"LSTM: lengths{more}", id=name)
            for name, lengths, more in (
                ("few", (3, 7, 1), ""),
                ("one_number", 3, ""),
                ("floats", (3.0, 7.0, 1.0, 5.0), ""),
                ("negative", (3, 7, -1, 5), r"\[2\] is -1, expected 0 to 7"),
                ("overlong", (3, 8, 1, 5), r"\[1\] is 8, expected 0 to 7"),
            )
        ),
        pytest.param(PACKED, {"lengths": (28,)}, ValueError, "LSTM: lengths", id="packed_lengths"),
        *(
            pytest.param(shape, {"cu_seqlens": starts}, error, f"{op}: cu_seqlens", id=name)
            for name, shape, starts, error, op in (
                ("padded_offsets", PADDED, offsets((28,)), ValueError, "LSTM"),
                ("ends_late", PACKED, offsets((20, 9)), ValueError, "lstm"),
                ("offsets_int64", PACKED, np.array([0, 28]), TypeError, "lstm"),
                ("offsets_in_a_list", PACKED, [0, 28], TypeError, "LSTM"),
            )
        ),
        pytest.param(PADDED, {"hx": np.zeros((2, 4, 4))}, TypeError, "LSTM: hx", id="one_state"),
        pytest.param(PADDED, {"hx": ([0.0], None)}, TypeError, "LSTM: h0", id="list_state"),
    ],
)
def test_bad_argument(x, options, error, message):
    layer, _ = make("lstm_projected", num_layers=2)
    with pytest.raises(error, match=f"^{message}"):
        layer(draw(*x), **options)


@pytest.mark.parametrize(
    ("h0", "c0", "message"),
    [
        ((2, 3, 4), (2, 4, 10), r"h0 has shape \[2, 3, 4\], expected \[2, 4, 4\]"),
        ((1, 4, 4), (2, 4, 10), "h0"),
        ((2, 4, 10), (2, 4, 10), "h0"),
        ((2, 4), (2, 4, 10), "h0"),
        ((2, 4, 4), (2, 4, 4), r"c0 has shape \[2, 4, 4\], expected \[2, 4, 10\]"),
        ((2, 4, 4), (2, 10), "c0"),
    ],
    ids=str,
)
def test_states_of_wrong_shape(h0, c0, message):
    layer, _ = make("lstm_projected", num_layers=2)
    with pytest.raises(ValueError, match=f"^LSTM: {message}"):
        layer(draw(7, 4, INPUT), (draw(*h0), draw(*c0)))


@pytest.mark.parametrize("name", MAKES)
def test_sequences_start_from_rows_of_the_states(name):
    layer, _ = make(name, num_layers=2, bidirectional=True)
    states, rows = first_states(layer, 3), np.array([2, 0, 2, 2], np.int32)
    gathered = convert(states, lambda state: state[:, rows])
    x = draw(7, 4, INPUT)
    expected = flat(layer(x, gathered, lengths=LENGTHS))
    for actual, wanted in zip(
        flat(layer(x, states, h0_rows=rows, lengths=LENGTHS)), expected, strict=True
    ):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"h0_rows\[0\] is 3, expected 0 <= row < 3"):
        layer(x, states, h0_rows=rows + 1, lengths=LENGTHS)


def test_wrong_dtypes():
    layer, _ = make("gru")
    with pytest.raises(TypeError, match=r"^GRU: x\b"):
        layer(draw(7, 4, INPUT).astype(np.float64))
    with pytest.raises(TypeError, match=r"^GRU: h0\b"):
        layer(draw(7, 4, INPUT), draw(1, 4, HIDDEN).astype(np.float64))


def test_every_layer_is_one_call(monkeypatch):
    calls = []
    for name in ("rnn", "lstm", "gru"):
        op = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, op=op, **k: calls.append(op) or op(*a, **k))
    for name, num_layers in itertools.product(MAKES, (1, 3)):
        ours, _ = make(name, num_layers=num_layers, bidirectional=True)
        calls.clear()
        ours(draw(7, 4, INPUT), lengths=LENGTHS)
        assert len(calls) == num_layers

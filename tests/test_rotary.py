"""Split, norm, rotation and cache append in one."""

import numpy as np
import pytest
import softgate
from cases import offsets
from cases.rotary import ROTARY, RotaryCase
from layouts import SPOILED, Guarded, place, read_only
from softgate import ops, reference
from tolerances import assert_close, assert_same_bits, rotary_scales

pytestmark = pytest.mark.usefixtures("isa")

SMALL = RotaryCase((3, 2), (4, 1), num_heads=2, num_kv_heads=1, norm="qk", rows=(2, 0))


def run(a, **more):
    """q and the caches."""
    q = ops.rotary(**a, **more)
    return q, a["k_cache"], a["v_cache"]


@pytest.mark.parametrize("case", ROTARY, ids=str)
def test_matches_reference(case):
    a = case.arguments()
    expected, scales = reference.rotary(**a), rotary_scales(**a)
    for actual, right, scale in zip(run(a), expected, scales, strict=True):
        assert_close(actual, right, scale=scale, terms=case.head_dim if case.norm else 1)


@pytest.mark.parametrize("case", [case for case in ROTARY if not case.norm], ids=str)
def test_what_is_not_rotated_is_copied(case):
    a = case.arguments()
    turned = 0 if a["cos"] is None else 2 * a["cos"].shape[1]
    q, k_cache, v_cache = run(a)
    expected_q, expected_k, expected_v = reference.rotary(**case.arguments())
    np.testing.assert_array_equal(q[..., turned:], expected_q[..., turned:])
    np.testing.assert_array_equal(k_cache[..., turned:], expected_k[..., turned:])
    np.testing.assert_array_equal(v_cache, expected_v)


@pytest.mark.parametrize("case", ROTARY, ids=str)
def test_writes_its_places_and_nothing_else(case):
    a = case.arguments()
    expected = run(a)
    for layout in ("strided", "transposed"):
        guarded = [Guarded(array.shape, np.float32, layout) for array in expected]
        q, k_cache, v_cache = (guard.array for guard in guarded)
        k_cache[...] = v_cache[...] = np.nan
        caches = {"k_cache": k_cache, "v_cache": v_cache}
        assert ops.rotary(**case.arguments() | caches, out=q) is q
        for guard, right in zip(guarded, expected, strict=True):
            assert_same_bits(guard.array, right)
            guard.assert_intact()


@pytest.mark.parametrize("case", ROTARY, ids=str)
def test_same_bits_on_any_thread_count(case, thread_counts):
    first, *others = [run(case.arguments()) for _ in thread_counts]
    for results in others:
        for actual, expected in zip(results, first, strict=True):
            assert_same_bits(actual, expected)


@pytest.mark.parametrize("norm", ["", "qk"])
def test_token_by_token_is_the_same(norm):
    case = RotaryCase((5, 3), (4, 0), head_dim=33, rotary_dim=32, norm=norm)
    a = case.arguments()
    q, k_cache, v_cache = run(a)
    step = case.arguments()
    for i in range(5):
        running = [b for b, length in enumerate(case.lengths) if i < length]
        tokens = [int(a["cu_seqlens"][b]) + i for b in running]
        one = step | {
            "qkv": a["qkv"][tokens],
            "cu_seqlens": offsets((1,) * len(running)),
            "starts": a["starts"][running] + np.int32(i),
            "cache_rows": np.array(running, np.int32),
        }
        assert_same_bits(ops.rotary(**one), q[tokens])
    assert_same_bits(step["k_cache"], k_cache)
    assert_same_bits(step["v_cache"], v_cache)


def test_interleaved_is_another_order_of_the_elements():
    plain = RotaryCase((5,), head_dim=16).arguments()
    order = np.arange(16).reshape(2, 8).T.ravel()  # pairs side by side
    a = RotaryCase((5,), head_dim=16).arguments() | {"interleaved": True}
    a["qkv"] = np.ascontiguousarray(a["qkv"].reshape(5, 4, 16)[..., order].reshape(5, 64))
    q, k_cache, v_cache = run(a)
    expected_q, expected_k, expected_v = run(plain)
    scale = np.abs(plain["qkv"]).max()
    assert_close(q, expected_q[..., order], scale=scale)
    assert_close(k_cache, expected_k[..., order], scale=scale)
    assert_same_bits(v_cache, expected_v[..., order])


@pytest.mark.parametrize("argument", ["qkv", "cos", "q_norm"])
def test_nan_stays_in_its_heads(argument):
    a = SMALL.arguments()
    whole = run(SMALL.arguments())[0]
    a[argument].reshape(-1)[0] = np.nan
    q = run(a)[0]
    changed = np.isnan(q).any(axis=-1)
    assert changed.any() == (argument != "cos")  # position 0 is not asked for
    assert_same_bits(q[~changed], whole[~changed])


def test_tensors_in_tensor_out():
    a = SMALL.arguments()
    expected = run(SMALL.arguments())
    tensors = {
        name: softgate.Tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in a.items()
    }
    q = ops.rotary(**tensors)
    assert isinstance(q, softgate.Tensor)
    for actual, right in zip((q.numpy(), a["k_cache"], a["v_cache"]), expected, strict=True):
        assert_same_bits(actual, right)


ARRAYS = ["qkv", "k_cache", "v_cache", "cos", "sin", "q_norm", "k_norm", "out"]


@pytest.mark.parametrize("spoiled", sorted(SPOILED))
@pytest.mark.parametrize("argument", ARRAYS)
def test_spoiled_argument(argument, spoiled):
    error, spoil = SPOILED[spoiled]
    a = SMALL.arguments() | {"out": np.zeros((5, 2, 8), np.float32)}
    a[argument] = spoil(a[argument])
    # The first of two arrays that disagree may be the one that is right.
    also = {"k_cache": "v_cache|qkv", "cos": "sin"}.get(argument, argument)
    with pytest.raises(error, match=rf"^rotary: ({argument}|{also})\b"):
        ops.rotary(**a)


@pytest.mark.parametrize("argument", ["cu_seqlens", "starts", "cache_rows"])
@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        pytest.param(lambda x: x.astype(np.int64), TypeError, id="int64"),
        pytest.param(lambda x: x.astype(np.float32), TypeError, id="float32"),
        pytest.param(lambda x: x.tolist(), TypeError, id="list"),
        pytest.param(lambda x: np.repeat(x, 2)[::2], ValueError, id="gapped"),
        pytest.param(lambda x: x[None], ValueError, id="two_dimensions"),
        pytest.param(lambda x: x[:0], ValueError, id="empty"),
        pytest.param(lambda x: x - np.int32(5), ValueError, id="negative"),
        pytest.param(lambda x: x + np.int32(2**31 - 9), ValueError, id="far_beyond"),
    ],
)
def test_spoiled_integers(argument, spoil, error):
    a = SMALL.arguments()
    with pytest.raises(error, match=rf"^rotary: {argument}\b"):
        ops.rotary(**(a | {argument: spoil(a[argument])}))


def shaped(*shape):
    return np.zeros(shape, np.float32)


BAD = [
    pytest.param({"starts": np.array([7, 1], np.int32)}, r"starts\[0\] is 7", id="capacity"),
    pytest.param({"starts": np.array([4, -1], np.int32)}, r"starts\[1\] is -1", id="negative"),
    pytest.param(
        {"starts": np.array([2**31 - 1, 0], np.int32)}, r"starts\[0\] is 2", id="overflow"
    ),
    pytest.param({"cache_rows": np.array([3, 0], np.int32)}, r"cache_rows\[0\] is 3", id="row"),
    pytest.param(
        {"cache_rows": np.array([1, -1], np.int32)}, r"cache_rows\[1\] is -1", id="row_-1"
    ),
    pytest.param(
        {"cache_rows": np.array([1, 1], np.int32)}, "cache_rows has row 1", id="row_twice"
    ),
    pytest.param(
        {"cache_rows": None, "k_cache": shaped(1, 9, 1, 8), "v_cache": shaped(1, 9, 1, 8)},
        "k_cache has 1 rows",
        id="few_rows",
    ),
    pytest.param({"cos": None}, "sin is given without cos", id="no_cos"),
    pytest.param({"sin": None}, "cos is given without sin", id="no_sin"),
    pytest.param({"cos": shaped(6, 4), "sin": shaped(6, 4)}, "cos has 6 positions", id="positions"),
    pytest.param({"cos": shaped(9, 5), "sin": shaped(9, 5)}, "cos has 5 angles", id="angles"),
    pytest.param({"sin": shaped(9, 4)}, "sin", id="sin_positions"),
    pytest.param({"num_heads": 0}, "num_heads is 0", id="no_heads"),
    pytest.param({"num_heads": 3}, "qkv", id="heads"),
    pytest.param({"num_heads": 2**62}, "num_heads", id="heads_overflow"),
    pytest.param({"q_norm": shaped(7)}, "q_norm", id="q_norm"),
    pytest.param({"k_norm": shaped(9)}, "k_norm", id="k_norm"),
    pytest.param({"eps": -1.0}, "eps is -1", id="eps"),
    pytest.param({"eps": float("nan")}, "eps is nan", id="eps_nan"),
    pytest.param({"v_cache": shaped(3, 10, 1, 8)}, "v_cache", id="v_capacity"),
    pytest.param({"k_cache": read_only(shaped(3, 9, 1, 8))}, "k_cache is read-only", id="k_read"),
    pytest.param({"v_cache": read_only(shaped(3, 9, 1, 8))}, "v_cache is read-only", id="v_read"),
    pytest.param(
        {"k_cache": np.broadcast_to(shaped(1, 9, 1, 8), (3, 9, 1, 8))}, "k_cache is", id="broadcast"
    ),
    pytest.param(
        {"k_cache": shaped(3, 9, 0, 8), "v_cache": shaped(3, 9, 0, 8)}, "k_cache", id="kv"
    ),
    pytest.param(
        {"k_cache": shaped(3, 9, 1, 257), "v_cache": shaped(3, 9, 1, 257)},
        "k_cache has head_dim 257",
        id="head_dim",
    ),
    pytest.param({"out": shaped(5, 2, 7)}, "out", id="out"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_argument_writes_nothing(change, message):
    a = SMALL.arguments() | {"out": shaped(5, 2, 8)}
    assert a["k_cache"].shape == (3, 9, 1, 8)
    with pytest.raises(ValueError, match=rf"^rotary: {message}"):
        ops.rotary(**a | change)
    assert np.isnan(a["k_cache"]).all()
    assert np.isnan(a["v_cache"]).all()
    assert (a["out"] == 0.0).all()


def test_memory_is_not_shared():
    a = SMALL.arguments()
    with pytest.raises(ValueError, match=r"^rotary: k_cache shares memory with v_cache"):
        ops.rotary(**a | {"v_cache": a["k_cache"]})
    with pytest.raises(ValueError, match=r"^rotary: out shares memory with k_cache"):
        ops.rotary(**a, out=a["k_cache"].reshape(-1)[:80].reshape(5, 2, 8))
    with pytest.raises(ValueError, match=r"^rotary: out shares memory with qkv"):
        ops.rotary(**a, out=a["qkv"][:, :16].reshape(5, 2, 8))
    with pytest.raises(ValueError, match=r"^rotary: v_cache shares memory with qkv"):
        ops.rotary(**a | {"qkv": a["v_cache"].reshape(-1)[:160].reshape(5, 32)})


def test_offsets_may_be_views():
    a = SMALL.arguments()
    names = ("cu_seqlens", "starts", "cache_rows")
    moved = SMALL.arguments() | {name: place(a[name], "misaligned") for name in names}
    for actual, expected in zip(run(moved), run(a), strict=True):
        assert_same_bits(actual, expected)

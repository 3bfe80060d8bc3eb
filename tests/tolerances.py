"""How far a result may be from the float64 reference, per dtype, written once.

A result passes where

    |actual - expected| <= eps * (fixed + growth * sqrt(terms)) * scale + tiny

and, in 16 bits, also where it is no further off than twice the naive computation in that dtype.

`scale` is the size of what was computed, element by element: for a dot product the sum of the
products' absolute values, since rounding errors are relative to that and not to a result that
cancelled. It is never taken smaller than |expected|, so the bound is relative and absolute at once.
The functions `*_scale` give it for each op.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
from softgate import reference


@dataclass(frozen=True)
class Tolerance:
    eps: float
    fixed: float  # roundings of the few steps besides the sum, elementary functions among them
    growth: float  # of a sum's error with its terms: a random walk, and its worst of many outputs
    tiny: float  # kernels may flush denormals


TOLERANCES = {
    "float32": Tolerance(
        eps=float(np.finfo(np.float32).eps),
        fixed=4.0,
        growth=0.5,
        tiny=float(np.finfo(np.float32).tiny),
    ),
    # Sums are float32: the result's own rounding, twice, is the floor.
    "float16": Tolerance(eps=2.0**-10, fixed=1.0, growth=0.0, tiny=2.0**-24),
    "bfloat16": Tolerance(
        eps=2.0**-7, fixed=1.0, growth=0.0, tiny=float(np.finfo(np.float32).tiny)
    ),
}
LARGEST = {"float16": 65520.0, "bfloat16": 2.0**128 * (1.0 - 2.0**-9)}  # from here on: infinity


def assert_close(
    actual, expected, *, scale=0.0, terms: int = 1, besides=0.0, dtype=None, naive=None
) -> None:
    """Shape, NaN, infinities and values agree; `scale` and `terms` as above.

    A 16-bit `dtype` comes as float32 numbers. `naive` is the same computation with every step in
    that dtype: twice its largest error in a row is allowed where that is more. `besides` is an
    absolute error that is allowed in addition.
    """
    dtype = dtype or actual.dtype.name
    tolerance = TOLERANCES[dtype]
    assert actual.shape == expected.shape
    actual = np.asarray(actual, dtype=np.float64)
    factor = tolerance.eps * (tolerance.fixed + tolerance.growth * np.sqrt(terms))
    with np.errstate(invalid="ignore"):
        if dtype in LARGEST:
            beyond = np.abs(expected) >= LARGEST[dtype]
            expected = np.where(beyond, np.copysign(np.inf, expected), expected)
        error = np.abs(actual - expected)
        bound = factor * np.maximum(scale, np.abs(expected)) + tolerance.tiny + besides
        if naive is not None and naive.size > 0:
            of_row = np.nan_to_num(np.abs(naive - expected), nan=0.0, posinf=0.0)
            bound = np.maximum(bound, 2.0 * of_row.max(axis=-1, keepdims=True))
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    bad = ~(same | (np.isfinite(actual) & np.isfinite(expected) & (error <= bound)))
    if bad.any():
        excess = np.where(bad, np.nan_to_num(error / bound, nan=np.inf), 0.0)
        worst = np.unravel_index(np.argmax(excess), excess.shape)
        raise AssertionError(
            f"{bad.sum()} of {bad.size} elements are off, worst at {tuple(map(int, worst))}: "
            f"{actual[worst]:.9g} instead of {expected[worst]:.9g}, "
            f"error {error[worst]:.3g} where {bound[worst]:.3g} is allowed"
        )


def assert_same_bits(actual, expected) -> None:
    """Bitwise equality: NaN payloads and the sign of zero count."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    a, b = (np.ascontiguousarray(array).view(np.uint8) for array in (actual, expected))
    differ = np.flatnonzero((a != b).reshape(-1, actual.itemsize).any(axis=1))
    assert differ.size == 0, (
        f"{differ.size} of {actual.size} elements differ in their bits, first at {differ[0]}: "
        f"{actual.ravel()[differ[0]]!r} and {expected.ravel()[differ[0]]!r}"
    )


def linear_scale(x, weight, bias=None, residual=None):
    """No activation grows an error by more than 1.13, which `fixed` covers."""
    scale = np.abs(x).astype(np.float64) @ np.abs(weight).astype(np.float64).T
    if bias is not None:
        scale = scale + np.abs(bias)
    if residual is not None:
        scale = scale + np.abs(residual)
    return scale


def packed_linear_scale(x, weight, bias=None, residual=None, *, gated=False):
    """As `linear_scale`, of what a quantised weight and x stand for, and of gated ones."""
    if isinstance(weight, reference.QuantizedWeight):
        x = reference.quantize_input(x, grouped=weight.grouped)
        parts = [reference.QuantizedWeight(np.abs(weight.values.astype(int)), abs(weight.scales))]
        if weight.minimums is not None:
            parts.append(
                reference.QuantizedWeight(
                    np.zeros_like(weight.values), weight.scales, np.abs(weight.minimums)
                )
            )
        size = sum(part.dequantize() for part in parts)
        signed = weight.dequantize()
    else:
        size = signed = weight
    scale = linear_scale(x, size, bias)
    if gated:
        # Each factor's error counts times the other factor.
        gate, up = np.split(np.abs(reference.linear(x, signed, bias)), 2, axis=-1)
        of_gate, of_up = np.split(scale, 2, axis=-1)
        scale = of_gate * up + gate * of_up
    return scale if residual is None else scale + np.abs(residual)


def attention_scales(q, k, v, cu_seqlens_q, cu_seqlens_k=None, *, scale=None, **options):
    """Of the output, the log-sum-exp and the weights (relative to each weight).

    An error of a score is a relative error of its weight, so all three grow with the size of the
    scores, for which |q| times the largest |k| stands.
    """
    if scale is None:
        scale = 1.0 / np.sqrt(q.shape[-1])
    norm_q = np.linalg.norm(q.astype(np.float64), axis=-1)  # [total_q, num_heads]
    norm_k = np.linalg.norm(k.astype(np.float64), axis=-1)
    size = 1.0 + abs(scale) * norm_q * norm_k.max(initial=0.0)
    options |= {"scale": scale, "return_lse": False, "return_weights": False}
    of_values = reference.attention(q, k, np.abs(v), cu_seqlens_q, cu_seqlens_k, **options)
    return size[..., None] * of_values, size.T, size.max(initial=1.0)


def cached_attention_scale(q, k_cache, v_cache, cu_seqlens_q, lengths_k, *, scale=None, **options):
    """As `attention_scales`, of the output; what lies behind the keys counts for nothing."""
    if scale is None:
        scale = 1.0 / np.sqrt(q.shape[-1])
    norm_q = np.linalg.norm(q.astype(np.float64), axis=-1)  # [total_q, num_heads]
    norm_k = np.linalg.norm(k_cache.astype(np.float64), axis=-1)
    size = 1.0 + abs(scale) * norm_q * np.nan_to_num(norm_k).max(initial=0.0)
    of_values = reference.cached_attention(
        q, k_cache, np.abs(v_cache), cu_seqlens_q, lengths_k, scale=scale, **options
    )
    return size[..., None] * of_values


def norm_scale(x, residual, weight, bias=None, *, eps, center):
    """Rounding is relative to the values and their mean before the mean is taken off."""
    s = np.asarray(x, dtype=np.float64)
    size = np.abs(s)
    if residual is not None:
        s = s + residual
        size = size + np.abs(residual)
    if center:
        s = s - s.mean(axis=-1, keepdims=True)
        size = size + size.mean(axis=-1, keepdims=True)
    scale = size / np.sqrt((s**2).mean(axis=-1, keepdims=True) + eps) * np.abs(weight)
    return scale if bias is None else scale + np.abs(bias)


def embedding_scale(ids, tables, norm_weight=None, norm_bias=None, *, eps=1e-12):
    size = reference.embedding(ids, [np.abs(table) for table in tables])
    if norm_weight is None:
        return size
    total = reference.embedding(ids, tables)
    rounded = size - np.abs(total)  # what cancelled in the sum keeps its rounding error
    return norm_scale(total, rounded, norm_weight, norm_bias, eps=eps, center=True)


def rotary_scales(sin=None, **arguments):
    """Of q and of the caches: the sizes of the two products that make an element of a pair."""
    names = ("qkv", "k_cache", "v_cache", "cos", "q_norm", "k_norm")
    sizes = {n: np.abs(a) for n, a in arguments.items() if n in names and a is not None}
    signs = (
        (0,) if sin is None else (-1, 1)
    )  # the first element of a pair subtracts, the second adds
    both = [
        reference.rotary(**arguments | sizes, sin=None if sin is None else sign * np.abs(sin))
        for sign in signs
    ]
    return [np.abs(results).max(axis=0) for results in zip(*both, strict=True)]


def softmax_scale(x, expected):
    """The exponent x - max(x) carries an error relative to its size into each result."""
    x = np.asarray(x, dtype=np.float64)
    depth = x.max(axis=-1, keepdims=True, initial=-np.inf) - np.where(expected > 0.0, x, np.inf)
    return np.where(expected > 0.0, 1.0 + depth, 0.0) * expected


@dataclass(frozen=True)
class Noisy(reference.RecurrentWeight):
    """Every product is off by up to `rounding` of its size, and every state by up to `state` of its
    largest value before the product."""

    random: np.random.Generator = field(default_factory=np.random.default_rng)
    rounding: float = 0.0
    state: float = 0.0

    @functools.cached_property
    def sizes(self):
        """The same weights without signs: their products are the sizes of these."""
        arrays = {name: array for name, array in _arrays(self).items() if array is not None}
        return reference.RecurrentWeight(self.kind, **{n: np.abs(a) for n, a in arrays.items()})

    def _noise(self, size):
        return self.rounding * self.random.uniform(-1.0, 1.0, size.shape) * size

    def of_input(self, x):
        return super().of_input(x) + self._noise(self.sizes.of_input(np.abs(x)))

    def of_state(self, h):
        h = h + self.state * self.random.uniform(-1.0, 1.0, h.shape) * np.abs(h).max()
        return super().of_state(h) + self._noise(self.sizes.of_state(np.abs(h)))


def _arrays(weight):
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    return {name: getattr(weight, name) for name in names}


def recurrent_scales(run, weights, draws: int = 3):
    """How far each result of `run(weights)` goes when every product is off by its own size.

    An error of one step lives on in the state of the next: how long is up to the weights, so it is
    tried out, with random errors small enough for their effect to be linear. One number for each
    result, never smaller than the largest value in it.
    """
    exact, noisy = run(weights), _noisy_runs(run, weights, draws, rounding=_SMALL)
    return [max(d / _SMALL, np.abs(e).max(initial=0.0)) for d, e in zip(noisy, exact, strict=True)]


def quantized_state_error(run, weights, draws: int = 3):
    """How far each result of `run(weights)` goes when states are rounded to eight bits.

    127 steps cover the largest value of a state, so each is off by up to half a step.
    """
    return _noisy_runs(run, weights, draws, state=0.5 / 127.0)


_SMALL = 1e-6


def _noisy_runs(run, weights, draws, **noise):
    """The largest deviation of each result over some draws."""
    exact = run(weights)
    largest = [0.0] * len(exact)
    for seed in range(draws):
        random = np.random.default_rng(seed)
        results = run([Noisy(w.kind, **_arrays(w), random=random, **noise) for w in weights])
        deviations = [np.abs(r - e).max(initial=0.0) for r, e in zip(results, exact, strict=True)]
        largest = [max(pair) for pair in zip(largest, deviations, strict=True)]
    return largest

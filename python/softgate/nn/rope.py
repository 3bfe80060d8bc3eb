"""Rotary position embeddings (Su et al. 2021) and the ways to stretch them over longer contexts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from softgate._core import Tensor

# The angle between neighbouring positions for each pair of elements, and the factor of all
# cosines and sines.
Frequencies = tuple[npt.NDArray[np.float64], float]


@dataclass(frozen=True)
class RopeConfig:
    """Which angles rotate queries and keys, named as in Hugging Face's rope_parameters.

    rope_type is "default", "linear" (positions divided by factor), "dynamic" (NTK-aware: the base
    grows with the context beyond the trained one), "llama3" (low frequencies divided by factor, a
    smooth passage to the high ones), "yarn" (Peng et al. 2023) or "longrope" (Ding et al. 2024: a
    divisor for each frequency, one set up to original_max_position_embeddings and one beyond).
    partial_rotary_factor: the share of each head that is rotated.

    Raises ValueError that names the field whose value makes no sense or is missing for the type.
    """

    rope_theta: float = 10000.0
    rope_type: str = "default"
    partial_rotary_factor: float = 1.0
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.rope_type, str) or self.rope_type not in _FREQUENCIES:
            raise ValueError(
                f"rope: rope_type is {self.rope_type!r}, expected one of {sorted(_FREQUENCIES)}"
            )
        for name in _REQUIRED.get(self.rope_type, ()):
            if getattr(self, name) is None:
                raise ValueError(f"rope: {name} is missing, {self.rope_type!r} needs it")
        if not _is_number(self.rope_theta) or not self.rope_theta > 1:
            raise ValueError(f"rope: rope_theta is {self.rope_theta!r}, expected a number above 1")
        if not _is_number(self.partial_rotary_factor) or not 0 < self.partial_rotary_factor <= 1:
            raise ValueError(
                f"rope: partial_rotary_factor is {self.partial_rotary_factor!r}, expected a number "
                "above 0 and at most 1"
            )
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value > 0):
                raise ValueError(f"rope: {name} is {value!r}, expected a number above 0")
        if type(self.truncate) is not bool:
            raise ValueError(f"rope: truncate is {self.truncate!r}, expected true or false")
        for name in ("short_factor", "long_factor"):
            values = getattr(self, name)
            if values is not None and not (
                isinstance(values, tuple) and all(_is_number(v) and v > 0 for v in values)
            ):
                raise ValueError(f"rope: {name} is {values!r}, expected numbers above 0")
        if self.rope_type == "llama3" and self.low_freq_factor == self.high_freq_factor:
            raise ValueError(
                f"rope: high_freq_factor is {self.high_freq_factor!r}, expected another value than "
                "low_freq_factor"
            )

    @classmethod
    def from_dict(cls, parameters: Mapping[str, Any]) -> RopeConfig:
        """Read Hugging Face's rope_parameters, or rope_scaling with rope_theta beside it."""
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in parameters.items()
            if name in known and value is not None
        }
        if "type" in parameters:  # the key's name before rope_type
            values.setdefault("rope_type", parameters["type"])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads: the values that differ from the defaults, and the base."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name in ("rope_theta", "rope_type") or value != getattr(RopeConfig, name)
        }

    def rotary_dim(self, head_dim: int) -> int:
        """How many elements of a head are rotated."""
        return int(head_dim * self.partial_rotary_factor)


class Rope:
    """Tables of cosines and sines for one kind of layer, made when they are first needed."""

    def __init__(self, config: RopeConfig, head_dim: int, max_position_embeddings: int) -> None:
        """Raises ValueError when the config does not fit the heads."""
        self.config = config
        self.dim = config.rotary_dim(head_dim)
        self.max_position_embeddings = max_position_embeddings
        if self.dim < 2 or self.dim % 2:
            raise ValueError(
                f"rope: {self.dim} of {head_dim} elements of a head are rotated, expected an even "
                "number above 0"
            )
        for name in ("short_factor", "long_factor"):
            factors = getattr(config, name)
            if factors is not None and len(factors) != self.dim // 2:
                raise ValueError(
                    f"rope: {name} has {len(factors)} numbers, expected {self.dim // 2}"
                )
        self._tables: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def regime(self, context: int) -> int:
        """What the angles of a context of this many tokens depend on.

        Only "dynamic" and "longrope" have more than one. All tokens of a sequence are rotated
        alike, so that keys in a cache stay right: it is the cache's capacity that counts.
        """
        if self.config.rope_type == "dynamic":
            return max(context, self.max_position_embeddings)
        if self.config.rope_type == "longrope":
            return int(context > (self.config.original_max_position_embeddings or 0))
        return 0

    def tables(self, context: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """cos and sin of every position of a context, float32 `[at least context, dim / 2]`."""
        key = (self.regime(context), device)
        tables = self._tables.get(key)
        if tables is None or len(tables[0]) < context:
            if len(self._tables) >= _MOST_TABLES:
                self._tables.clear()
            tables = self._tables[key] = self._make(context, device)
        return tables

    def _make(self, context: int, device: str) -> tuple[Tensor, Tensor]:
        frequencies, scale = _FREQUENCIES[self.config.rope_type](
            self.config, self.dim, self.max_position_embeddings, context
        )
        positions = 1 << max(context - 1, 0).bit_length()  # few sizes, so that few are made
        angles = np.arange(positions)[:, None] * frequencies
        cos, sin = (
            Tensor((function(angles) * scale).astype(np.float32)).to(device)
            for function in (np.cos, np.sin)
        )
        return cos, sin


_MOST_TABLES = 4
_POSITIVE = (
    "factor", "original_max_position_embeddings", "attention_factor", "low_freq_factor",
    "high_freq_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
)  # fmt: skip
_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def _plain(base: float, dim: int) -> npt.NDArray[np.float64]:
    return base ** -(np.arange(0, dim, 2) / dim)


# Each takes the config (whose fields for its type are there), the elements of a head that are
# rotated, the positions of the model and those of the context.


def _default(config: Any, dim: int, trained: int, context: int) -> Frequencies:
    return _plain(config.rope_theta, dim), 1.0


def _linear(config: Any, dim: int, trained: int, context: int) -> Frequencies:
    return _plain(config.rope_theta, dim) / config.factor, 1.0


def _dynamic(config: Any, dim: int, trained: int, context: int) -> Frequencies:
    growth = config.factor * max(context, trained) / trained - (config.factor - 1)
    # With one pair its only frequency is 1, whatever the base.
    exponent = dim / (dim - 2) if dim > 2 else 1.0
    return _plain(config.rope_theta * growth**exponent, dim), 1.0


def _llama3(config: Any, dim: int, trained: int, context: int) -> Frequencies:
    plain = _plain(config.rope_theta, dim)
    turns = config.original_max_position_embeddings * plain / (2 * math.pi)
    blend = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    blend = np.clip(blend, 0, 1)
    return plain * ((1 - blend) / config.factor + blend), 1.0


def _yarn(config: Any, dim: int, trained: int, context: int) -> Frequencies:
    def pair_that_turns(times: float) -> float:
        wavelength = config.original_max_position_embeddings / (times * 2 * math.pi)
        return dim * math.log(wavelength) / (2 * math.log(config.rope_theta))

    low, high = pair_that_turns(config.beta_fast or 32), pair_that_turns(config.beta_slow or 1)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    stretched = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    plain = _plain(config.rope_theta, dim)
    scale = config.attention_factor
    if scale is None:
        log_factor = math.log(max(config.factor, 1))
        scale = 0.1 * log_factor + 1
        if config.mscale and config.mscale_all_dim:
            scale = (0.1 * config.mscale * log_factor + 1) / (
                0.1 * config.mscale_all_dim * log_factor + 1
            )
    return plain * (stretched / config.factor + (1 - stretched)), scale


def _longrope(config: Any, dim: int, trained: int, context: int) -> Frequencies:
    original = config.original_max_position_embeddings
    divisors = np.array(config.long_factor if context > original else config.short_factor)
    factor = config.factor or trained / original
    scale = config.attention_factor
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return _plain(config.rope_theta, dim) / divisors, scale


_FREQUENCIES: dict[str, Callable[[Any, int, int, int], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}

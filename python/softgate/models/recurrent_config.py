"""What recurrent models share: their configs, and running a layer of any cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from softgate import nn

Cell = Literal["rnn", "gru", "lstm"]
Layer: TypeAlias = nn.RNN | nn.GRU | nn.LSTM
CELLS: dict[str, type[nn.RNN | nn.GRU | nn.LSTM]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}

_MAX_SIZE = 2**31 - 1
_MOST_LAYERS = 1000


class RecurrentConfig:
    """A dataclass whose sizes are positive integers, which reads and writes config.json."""

    MODEL_TYPE: str

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Read config.json. Raises ValueError for unknown and missing fields too."""
        names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        given = {name: value for name, value in config.items() if name != "model_type"}
        if unknown := sorted(given.keys() - names):
            raise ValueError(f"config: unknown field {unknown[0]!r}")
        if isinstance(ends := given.get("eos_token_ids"), list):
            given["eos_token_ids"] = tuple(ends)
        try:
            return cls(**given)
        except TypeError as error:
            raise ValueError(f"config: {str(error).split(') ')[-1]}") from None

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads."""
        return {**asdict(self), "model_type": self.MODEL_TYPE}  # type: ignore[call-overload]

    def _check_sizes(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= _MAX_SIZE:
                raise ValueError(
                    f"config: {name} is {value!r}, expected an integer from 1 to {_MAX_SIZE}"
                )

    def _check_layers(self, name: str) -> None:
        value = getattr(self, name)
        if type(value) is not int or not 1 <= value <= _MOST_LAYERS:
            raise ValueError(
                f"config: {name} is {value!r}, expected an integer from 1 to {_MOST_LAYERS}"
            )

    def _check_flags(self, *names: str) -> None:
        for name in names:
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"config: {name} is {value!r}, expected true or false")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"config: {name} is {value!r}, expected one of {list(choices)}")

    def _check_ids(self, name: str, ids: Any, vocab_size: int) -> None:
        if not isinstance(ids, tuple) or not all(
            type(index) is int and 0 <= index < vocab_size for index in ids
        ):
            raise ValueError(f"config: {name} is {ids!r}, expected ids below {vocab_size}")


FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.integer[Any]]


def along(
    layer: Layer,
    x: FloatArray | IntArray,
    cu_seqlens: npt.NDArray[np.int32],
    states: tuple[FloatArray, ...] | None = None,
    table: nn.Parameter | None = None,
    state_rows: npt.NDArray[np.int32] | None = None,
) -> tuple[FloatArray, tuple[FloatArray, ...]]:
    """Outputs and last states of a recurrent layer; states are h, or h and c of an LSTM. x: rows,
    or ids of a table's. state_rows: of the states, which each sequence starts from."""
    first: Any = states if states is None or len(states) == 2 else states[0]
    out, last = layer(x, first, cu_seqlens=cu_seqlens, table=table, h0_rows=state_rows)
    return out, last if isinstance(last, tuple) else (last,)

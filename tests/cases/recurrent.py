"""`rnn`, `lstm` and `gru`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from layouts import LAYOUTS, place

from cases import BLOCK_ROWS, DENORMAL, HUGE, LENGTHS, RAGGED, TINY, Case, offsets


@dataclass(frozen=True)
class RecurrentCase(Case):
    kind: str
    lengths: tuple[int, ...]
    input_size: int = 5
    hidden_size: int = 9
    proj_size: int | None = None
    direction: str = "forward"
    dtype: str = "float32"  # of the stored weights
    bias: bool = True
    states: bool = True  # are the first ones given
    layout: str = "contiguous"
    x_size: float = 1.0
    weight_size: float = 1.0  # 1 keeps states from growing and from dying out
    state_size: float = 1.0
    shared: int | None = None  # rows of h0 and c0 that sequences start from, in no order

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        """`weights` is a list, one for each direction, of what `pack_recurrent` takes."""
        random = self.random()
        rows = GATES[self.kind] * self.hidden_size
        output_size = self.proj_size or self.hidden_size

        def draw(*shape: int, size: float) -> np.ndarray:
            return place((random.standard_normal(shape) * size).astype(dtype), self.layout)

        def weight(*shape: int) -> np.ndarray:
            return draw(*shape, size=self.weight_size / np.sqrt(shape[-1]))

        def direction() -> dict[str, Any]:
            names = {"kind": self.kind}
            names |= {"weight_ih": weight(rows, self.input_size)}
            names |= {"weight_hh": weight(rows, output_size)}
            if self.bias:
                names |= {"bias_ih": draw(rows, size=0.5), "bias_hh": draw(rows, size=0.5)}
            if self.proj_size:
                names |= {"weight_hr": weight(self.proj_size, self.hidden_size)}
            return names

        directions = 2 if self.direction == "bidirectional" else 1
        arguments = {
            "x": draw(sum(self.lengths), self.input_size, size=self.x_size),
            "cu_seqlens": offsets(self.lengths),
            "weights": [direction() for _ in range(directions)],
            "direction": self.direction,
        }
        sizes = {"h0": output_size} | ({"c0": self.hidden_size} if self.kind == "lstm" else {})
        for name, size in sizes.items():
            rows = len(self.lengths) if self.shared is None else self.shared
            shape = (directions, rows, size)
            arguments[name] = draw(*shape, size=self.state_size) if self.states else None
        if self.shared is not None:
            chosen = random.integers(0, self.shared, len(self.lengths))
            arguments["h0_rows"] = place(chosen.astype(np.int32), self.layout)
        return arguments


GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3, "gru_reset_before": 3}
DIRECTIONS = ("forward", "reverse", "bidirectional")

RECURRENT = [
    *(RecurrentCase(kind, (3, 5), hidden_size=n) for kind in GATES for n in LENGTHS),
    *(
        RecurrentCase(kind, (3, 5), n)
        for kind in GATES
        for n in (LENGTHS if kind == "lstm" else (1, 8, 33))
    ),
    *(
        RecurrentCase(kind, (2,) * n)
        for kind in GATES
        for n in (BLOCK_ROWS if kind == "lstm" else (1, 2, 3, 4, 6, 7, 14, 15, 29))
    ),
    *(RecurrentCase(kind, (1,), hidden_size=1, input_size=1) for kind in GATES),
    *(RecurrentCase(kind, (1,) * 19, hidden_size=40) for kind in GATES),
    # directions, states, biases
    *(
        RecurrentCase(kind, RAGGED, direction=direction, bias=bias, states=states)
        for kind in GATES
        for direction in DIRECTIONS
        for bias in (False, True)
        for states in (False, True)
    ),
    # ragged, empty
    *(
        RecurrentCase(kind, lengths, direction=direction)
        for kind in ("lstm", "gru", "gru_reset_before")
        for direction in DIRECTIONS
        for lengths in ((), (0,), (0, 0, 0), (0, 2, 0, 7, 0), (9, 7, 4, 4, 1), (1, 4, 4, 7, 9))
    ),
    # projections
    *(
        RecurrentCase("lstm", (3, 0, 5), 5, hidden, proj, direction)
        for hidden, proj in ((9, 1), (9, 8), (33, 16), (33, 32), (40, 17), (130, 33))
        for direction in DIRECTIONS
    ),
    RecurrentCase("lstm", (6,) * 17, 5, 40, 11),
    # several unit blocks, slices of the depth, chunks of steps
    *(
        RecurrentCase(kind, lengths, 37, hidden)
        for kind in GATES
        for hidden in (96, 130)
        for lengths in ((4,), (3,) * 17)
    ),
    *(
        RecurrentCase(kind, lengths, 300, 530)
        for kind in ("rnn_tanh", "lstm", "gru", "gru_reset_before")
        for lengths in ((2,), (2, *(1,) * 14))
    ),
    *(
        RecurrentCase(kind, (250, 40, 200), hidden_size=130, direction=direction)
        for kind, direction in zip(("gru", "gru_reset_before", "lstm"), DIRECTIONS, strict=True)
    ),
    RecurrentCase("rnn_tanh", (300, 200), hidden_size=530),
    *(RecurrentCase(kind, RAGGED, hidden_size=200, direction="bidirectional") for kind in GATES),
    RecurrentCase("lstm", RAGGED, 5, 200, 100, "bidirectional"),
    *(RecurrentCase(kind, (2000,), 3, 17) for kind in GATES),
    # many sequences, whose steps' states are split where the CPU has AMX
    *(RecurrentCase(kind, (4,) * 33 + RAGGED, 33, 70) for kind in GATES),
    RecurrentCase("gru", (3,) * 40, 5, 300, direction="bidirectional"),
    RecurrentCase("lstm", (3,) * 40, 5, 70, 40),
    *(RecurrentCase(kind, (2,) * 530, hidden_size=33) for kind in ("gru", "gru_reset_before")),
    *(
        RecurrentCase(kind, (3,) * 30, hidden_size=40, state_size=size)
        for kind in GATES
        for size in (HUGE, TINY)
    ),
    # layouts
    *(
        RecurrentCase(kind, (4, 0, 9), n, 17, direction="bidirectional", layout=layout)
        for kind in GATES
        for n in (7, 32)
        for layout in LAYOUTS
    ),
    RecurrentCase("lstm", (4, 0, 9), 7, 17, 8, layout="strided"),
    # magnitudes
    *(
        RecurrentCase(kind, (3, 5), x_size=size)
        for kind in GATES
        for size in (HUGE, TINY, DENORMAL)
    ),
    *(RecurrentCase(kind, (3, 5), state_size=size) for kind in GATES for size in (HUGE, TINY)),
    *(
        RecurrentCase(kind, (3, 5), 33, 40, weight_size=size)
        for kind in GATES
        for size in (TINY, 1e-3, 1.5)
    ),
]

# Sequences that start from states of which several may take the same. On the CPU.
RECURRENT_SHARED = [
    *(
        RecurrentCase(kind, (1,) * n, 5, 40, shared=rows)
        for kind in GATES
        for n, rows in ((1, 1), (3, 2), (4, 9), (16, 1), (30, 12), (70, 40))
    ),
    *(
        RecurrentCase(kind, lengths, 7, 33, direction=direction, shared=4)
        for kind in GATES
        for direction in DIRECTIONS
        for lengths in ((0, 2, 0, 7, 0), RAGGED, (3,) * 9, (3,) * 9 + (0, 0))
    ),
    RecurrentCase("lstm", (3, 0, 5, 1, 1), 5, 40, 17, "bidirectional", shared=3),
    RecurrentCase("lstm", (1,) * 30, 5, 70, 40, shared=7),
    # several parts of a step's rows, slices of the depth
    *(RecurrentCase(kind, (1,) * 600, hidden_size=33, shared=400) for kind in GATES),
    RecurrentCase("gru", (1,) * 40, 37, 530, shared=25),
    *(RecurrentCase("gru", (1,) * 9, 7, 17, layout=layout, shared=4) for layout in LAYOUTS),
    *(RecurrentCase("gru", (1,) * 30, shared=9, state_size=size) for size in (HUGE, TINY)),
    RecurrentCase("gru", (), shared=2),
]

# The weights that are kept in fewer bits.
RECURRENT_LOW = [
    RecurrentCase(kind, lengths, input_size, hidden, proj, direction, dtype)
    for dtype in ("bfloat16", "int8")
    for kind in GATES
    for lengths, input_size, hidden, proj, direction in (
        ((5,), 7, 1, None, "forward"),
        ((3, 0, 5), 16, 33, None, "bidirectional"),
        ((4,) * 17, 7, 100, None, "reverse"),
        ((40,), 37, 130, None, "forward"),
        ((4, 9), 7, 40, 17, "bidirectional"),
    )
    if proj is None or kind == "lstm"
]
RECURRENT_LOW += [
    RecurrentCase(kind, (1,) * n, 7, 40, dtype=dtype, shared=9)
    for dtype in ("bfloat16", "int8")
    for kind in GATES
    for n in (3, 30)
]

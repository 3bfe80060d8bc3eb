"""One recurrent layer over whole sequences, its input as wide as its state.

softgate takes tokens without padding, sequence after sequence. The peers take steps first,
`[longest, batch, hidden]`; a ragged batch in each way they offer, and the quicker one is timed.
Padding is one of them as long as no ragged case is bidirectional: the reverse would start in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from bench import sessions
from bench.case import Array, Call, Case, Inputs, as_numpy, normal, ragged
from bench.limits import Work
from bench.timing import time_calls

Kind = Literal["rnn_tanh", "lstm", "gru"]

# The float64 reference of every sequence would take longer than the timing.
CHECKED_SEQUENCES = 4
ONNX_OPSET, ONNX_IR = 17, 8


@dataclass(frozen=True)
class Layer:
    """One kind in every library: its class in torch and in ONNX, its op in softgate and where
    ONNX's gates are among torch's."""

    name: str
    op: str
    onnx_gates: tuple[int, ...]

    @property
    def gates(self) -> int:
        return len(self.onnx_gates)


LAYERS: dict[Kind, Layer] = {
    "rnn_tanh": Layer("RNN", "rnn", (0,)),
    "lstm": Layer("LSTM", "lstm", (0, 3, 1, 2)),  # i f g o to i o f g
    "gru": Layer("GRU", "gru", (1, 0, 2)),  # r z n to z r n
}


@dataclass(frozen=True)
class Recurrent(Case):
    engines: ClassVar[tuple[str, ...]] = (
        "softgate",
        "softgate_bf16",
        "softgate_int8",
        "torch",
        "onnxruntime",
        "openvino",
    )

    kind: Kind
    lengths: tuple[int, ...]
    hidden: int
    bidirectional: bool = False

    @property
    def name(self) -> str:
        steps = "ragged" if self.is_ragged else self.lengths[0]
        shape = f"{len(self.lengths)}x{steps}x{self.hidden}"
        return f"{self.kind} {shape}{' bidirectional' if self.bidirectional else ''}"

    @property
    def group(self) -> str:
        if self.is_ragged:
            return "ragged"
        return "batch 1" if len(self.lengths) == 1 else "batch 16 and up"

    @property
    def work(self) -> Work:
        """Products with both weights; the recurrent ones are read at every step, from a cache that
        needs to hold one direction's, since the other may wait."""
        weights = LAYERS[self.kind].gates * self.hidden**2
        return Work(
            flops=self.directions * 2 * sum(self.lengths) * 2 * weights,
            bytes=self.directions * max(self.lengths) * 4 * weights,
            traffic="read",
            working_set=4 * weights,
        )

    @property
    def is_ragged(self) -> bool:
        return len(set(self.lengths)) > 1

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def direction(self) -> Literal["forward", "bidirectional"]:
        return "bidirectional" if self.bidirectional else "forward"

    def tolerance_of(self, engine: str) -> float:
        return {"softgate_bf16": 2e-2, "softgate_int8": 5e-2}.get(engine, self.tolerance)

    def inputs(self) -> Inputs:
        """Weights as torch draws and shapes them, a set for each direction."""
        rows = LAYERS[self.kind].gates * self.hidden
        random = np.random.default_rng(0)

        def uniform(*shape: int) -> Array:
            bound = self.hidden**-0.5
            return random.uniform(-bound, bound, shape).astype(np.float32)

        return {
            "x": normal(sum(self.lengths), self.hidden, seed=1),
            "cu_seqlens": np.cumsum([0, *self.lengths], dtype=np.int32),
            "weights": [
                {
                    "weight_ih": uniform(rows, self.hidden),
                    "weight_hh": uniform(rows, self.hidden),
                    "bias_ih": uniform(rows),
                    "bias_hh": uniform(rows),
                }
                for _ in range(self.directions)
            ],
        }

    def checked(self) -> list[int]:
        """Sequences from all over the batch, whose tokens make the answer."""
        count = min(CHECKED_SEQUENCES, len(self.lengths))
        return [int(i) for i in np.linspace(0, len(self.lengths) - 1, count)]

    def reference(self, inputs: Inputs) -> Array:
        from softgate import reference

        # In float64 from the start: the reference would convert them at every token.
        weights = [
            reference.RecurrentWeight(
                self.kind, **{name: array.astype(np.float64) for name, array in one.items()}
            )
            for one in inputs["weights"]
        ]
        x = self.from_packed(inputs["x"])
        starts = np.cumsum([0, *(self.lengths[i] for i in self.checked())])
        op = getattr(reference, LAYERS[self.kind].op)
        out: Array = op(x, starts, weights, direction=self.direction)[0]
        return out

    def from_packed(self, tokens: Any) -> Array:
        """The answer in `[total_tokens, columns]`."""
        starts = np.cumsum([0, *self.lengths])
        return np.concatenate([as_numpy(tokens)[starts[i] : starts[i + 1]] for i in self.checked()])

    def from_padded(self, steps: Any) -> Array:
        """The answer in `[longest, batch, directions * hidden]`."""
        return np.concatenate([as_numpy(steps)[: self.lengths[i], i] for i in self.checked()])

    def padded(self, inputs: Inputs) -> Array:
        """x `[longest, batch, hidden]`, zero after a sequence's end."""
        x = np.zeros((max(self.lengths), len(self.lengths), self.hidden), np.float32)
        for i, tokens in enumerate(np.split(inputs["x"], inputs["cu_seqlens"][1:-1])):
            x[: len(tokens), i] = tokens
        return x

    def softgate(self, inputs: Inputs) -> Call:
        return self._softgate(inputs, "float32")

    def softgate_bf16(self, inputs: Inputs) -> Call:
        return self._softgate(inputs, "bfloat16")

    def softgate_int8(self, inputs: Inputs) -> Call:
        return self._softgate(inputs, "int8")

    def _softgate(self, inputs: Inputs, dtype: Literal["float32", "bfloat16", "int8"]) -> Call:
        from softgate import Tensor, ops

        x, cu_seqlens = Tensor(inputs["x"]), Tensor(inputs["cu_seqlens"])
        packed = [
            ops.pack_recurrent(self.kind, **weights, dtype=dtype) for weights in inputs["weights"]
        ]
        weights = tuple(packed) if self.bidirectional else packed[0]
        op = getattr(ops, LAYERS[self.kind].op)
        return Call(
            lambda: op(x, cu_seqlens, weights, direction=self.direction)[0], self.from_packed
        )

    def torch(self, inputs: Inputs) -> Call:
        import torch

        layer = self._torch_layer(inputs)
        x = torch.from_numpy(self.padded(inputs))

        def over_padded() -> torch.Tensor:
            with torch.inference_mode():
                return layer(x)[0]

        calls = {"padded": Call(over_padded, self.from_padded)}
        if self.is_ragged:
            from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

            packed = pack_padded_sequence(x, torch.tensor(self.lengths), enforce_sorted=False)

            def over_packed() -> PackedSequence:
                with torch.inference_mode():
                    return layer(packed)[0]

            calls["packed"] = Call(
                over_packed, lambda out: self.from_padded(pad_packed_sequence(out)[0])
            )
        return quickest(calls)

    def _torch_layer(self, inputs: Inputs) -> Any:
        import torch

        layer = getattr(torch.nn, LAYERS[self.kind].name)(
            self.hidden, self.hidden, bidirectional=self.bidirectional
        )
        layer.load_state_dict(
            {
                f"{name}_l0{suffix}": torch.from_numpy(array)
                for suffix, weights in zip(("", "_reverse"), inputs["weights"], strict=False)
                for name, array in weights.items()
            }
        )
        return layer.eval()

    def onnxruntime(self, inputs: Inputs) -> Call:
        def over(graph: bytes, feed: dict[str, Array]) -> Call:
            session = sessions.onnxruntime_session(graph)
            return Call(lambda: session.run(None, feed)[0], self._from_onnx)

        feed = {"x": self.padded(inputs)}
        calls = {"padded": over(self.onnx_graph(inputs), feed)}
        if self.is_ragged:
            feed = feed | {"sequence_lens": np.array(self.lengths, np.int32)}
            calls["sequence_lens"] = over(self.onnx_graph(inputs, with_lengths=True), feed)
        return quickest(calls)

    def openvino(self, inputs: Inputs) -> Call:
        import openvino

        def over(graph: bytes, feed: list[Array]) -> Call:
            model = openvino.Core().read_model(graph)
            return Call(sessions.openvino_run(model, feed), self._from_onnx)

        feed = [self.padded(inputs)]
        calls = {"padded": over(self.onnx_graph(inputs), feed)}
        if self.is_ragged:
            feed = [*feed, np.array(self.lengths, np.int32)]
            calls["sequence_lens"] = over(self.onnx_graph(inputs, with_lengths=True), feed)
        return quickest(calls)

    def onnx_graph(self, inputs: Inputs, with_lengths: bool = False) -> bytes:
        """A model of one node from x, and perhaps sequence_lens, to y, the states of every step
        `[longest, directions, batch, hidden]`."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        layer = LAYERS[self.kind]

        def ordered(array: Array) -> Array:
            """Rows of torch's gates in ONNX's order."""
            gates = array.reshape(layer.gates, self.hidden, *array.shape[1:])
            return gates[list(layer.onnx_gates)].reshape(array.shape)

        weights = inputs["weights"]
        constants = {
            "w": np.stack([ordered(one["weight_ih"]) for one in weights]),
            "r": np.stack([ordered(one["weight_hh"]) for one in weights]),
            "b": np.stack(
                [
                    np.concatenate([ordered(one["bias_ih"]), ordered(one["bias_hh"])])
                    for one in weights
                ]
            ),
        }
        steps, batch = max(self.lengths), len(self.lengths)
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [steps, batch, self.hidden])
        lengths = helper.make_tensor_value_info("sequence_lens", TensorProto.INT32, [batch])
        y = helper.make_tensor_value_info(
            "y", TensorProto.FLOAT, [steps, self.directions, batch, self.hidden]
        )
        reset: dict[str, Any] = {"linear_before_reset": 1} if self.kind == "gru" else {}
        node = helper.make_node(
            layer.name,
            ["x", "w", "r", "b", "sequence_lens" if with_lengths else ""],
            ["y"],
            hidden_size=self.hidden,
            direction=self.direction,
            **reset,
        )
        graph = helper.make_graph(
            [node],
            self.name,
            [x, lengths] if with_lengths else [x],
            [y],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        opset = helper.make_opsetid("", ONNX_OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=ONNX_IR)
        onnx.checker.check_model(model)
        return model.SerializeToString()

    def _from_onnx(self, y: Array) -> Array:
        steps, _, batch, _ = y.shape
        return self.from_padded(y.transpose(0, 2, 1, 3).reshape(steps, batch, -1))


def quickest(calls: Mapping[str, Call]) -> Call:
    """Of ways to the same answer; the engine's log says which."""
    if len(calls) == 1:
        return next(iter(calls.values()))
    seconds = {way: min(time_calls(call.run, 1) for _ in range(3)) for way, call in calls.items()}
    print("quickest of", seconds, flush=True)
    return calls[min(seconds, key=seconds.__getitem__)]


# batch, steps, hidden
SHAPES = (
    *((1, 128, hidden) for hidden in (256, 512, 1024)),
    *((16, 128, 512), (32, 128, 1024), (64, 64, 256)),
)
BIDIRECTIONAL_SHAPES = ((1, 128, 256), (1, 128, 512), (16, 128, 512))
GATED: tuple[Kind, ...] = ("lstm", "gru")


def uniform_cases(
    kind: Kind, shapes: Iterable[tuple[int, int, int]], bidirectional: bool = False
) -> Iterator[Recurrent]:
    for batch, steps, hidden in shapes:
        yield Recurrent(kind, (steps,) * batch, hidden, bidirectional)


CASES = [
    *(case for kind in GATED for case in uniform_cases(kind, SHAPES)),
    *uniform_cases("rnn_tanh", ((1, 128, 512), (32, 128, 1024))),
    *(
        case
        for kind in GATED
        for case in uniform_cases(kind, BIDIRECTIONAL_SHAPES, bidirectional=True)
    ),
    *(Recurrent(kind, ragged(32), 512) for kind in GATED),
]

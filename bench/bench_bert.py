"""BERT encoders, from token ids to hidden states, in float32 and with weights in 8 bits.

Every engine gets the form of input it is made for: softgate and CTranslate2 lists of ids, the
others a padded batch with its mask. Only hidden states of real tokens are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench import exports, sessions
from bench.case import Array, Call, Case, Inputs, ragged
from bench.limits import Work

if TYPE_CHECKING:
    from softgate.ops import WeightType

CLS, SEP, FIRST_WORD, VOCABULARY = 101, 102, 1000, 30000
INTERMEDIATE_FACTOR = 4


@dataclass(frozen=True)
class Size:
    layers: int
    hidden: int


SIZES = {"minilm": Size(6, 384), "bert-base": Size(12, 768)}


@dataclass(frozen=True)
class Bert(Case):
    engines: ClassVar[tuple[str, ...]] = (
        "softgate",
        "torch",
        "torch_compile",
        "onnxruntime",
        "openvino",
        "ctranslate2",
    )
    tolerance: ClassVar[float] = 1e-3
    dtype: ClassVar[WeightType] = "float32"

    model: str
    batch: str
    lengths: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.model} {self.batch}"

    @property
    def work(self) -> Work:
        """Products with weights, scores and weighted sums; every weight read once."""
        size = SIZES[self.model]
        weights = size.layers * (4 + 2 * INTERMEDIATE_FACTOR) * size.hidden**2
        pairs = size.layers * sum(length**2 for length in self.lengths)
        return Work(
            flops=2 * sum(self.lengths) * weights + 4 * pairs * size.hidden,
            bytes=4 * weights,
            traffic="read",
        )

    def inputs(self) -> Inputs:
        random = np.random.default_rng(0)
        words = [random.integers(FIRST_WORD, VOCABULARY, length - 2) for length in self.lengths]
        return {"ids": [[CLS, *map(int, some), SEP] for some in words]}

    def padded(self, inputs: Inputs) -> tuple[Array, Array]:
        """ids and mask, int64 `[batch, longest]`."""
        mask = (np.arange(max(self.lengths)) < np.array(self.lengths)[:, None]).astype(np.int64)
        ids = np.zeros_like(mask)
        ids[mask == 1] = np.concatenate(inputs["ids"])
        return ids, mask

    def real_tokens(self, hidden_states: Any) -> Array:
        """What is compared, of `[batch, longest, hidden]`."""
        rows = np.asarray(hidden_states)
        return self.result(
            np.concatenate([row[:length] for row, length in zip(rows, self.lengths, strict=True)])
        )

    def softgate(self, inputs: Inputs) -> Call:
        import softgate

        model = softgate.load(exports.export_path(self.model, "huggingface"), self.dtype)
        ids = inputs["ids"]
        return Call(lambda: model(ids), lambda output: self.result(output.last_hidden_state))

    def result(self, hidden_states: Array) -> Array:
        """What is compared of the states of real tokens, `[total_tokens, hidden]`."""
        return hidden_states

    def torch(self, inputs: Inputs) -> Call:
        return self._torch(inputs)

    def torch_compile(self, inputs: Inputs) -> Call:
        """With weights frozen into the graph, as torch advises for inference on CPUs."""
        return self._torch(inputs, compiled=True)

    def _torch(self, inputs: Inputs, *, compiled: bool = False, quantized: bool = False) -> Call:
        import torch
        from transformers import BertModel

        model: Any = BertModel.from_pretrained(
            exports.export_path(self.model, "huggingface"),
            attn_implementation="sdpa",
            add_pooling_layer=False,
        ).eval()
        if quantized:
            model = torch.ao.quantization.quantize_dynamic(
                model, {torch.nn.Linear}, dtype=torch.qint8
            )
        if compiled:
            torch._inductor.config.freezing = True
            model = torch.compile(model, dynamic=False)
        ids, mask = (torch.from_numpy(array) for array in self.padded(inputs))
        attention_mask = None if mask.all() else mask

        def encode() -> torch.Tensor:
            with torch.inference_mode():
                hidden: torch.Tensor = model(ids, attention_mask=attention_mask).last_hidden_state
                return hidden

        return Call(encode, self.real_tokens)

    def onnxruntime(self, inputs: Inputs) -> Call:
        return self._onnxruntime(inputs, "onnxruntime")

    def _onnxruntime(self, inputs: Inputs, form: str) -> Call:
        ids, mask = self.padded(inputs)
        session = sessions.onnxruntime_session(
            exports.export_path(self.model, form) / "model.onnx",
            dict(zip(("batch", "sequence"), ids.shape, strict=True)),
        )
        arrays = {"input_ids": ids, "attention_mask": mask}
        # The optimizer narrows some inputs to int32.
        feed = {
            node.name: arrays[node.name].astype(np.int32 if "int32" in node.type else np.int64)
            for node in session.get_inputs()
        }
        return Call(lambda: session.run(None, feed)[0], self.real_tokens)

    def openvino(self, inputs: Inputs) -> Call:
        return self._openvino(inputs, "openvino")

    def _openvino(self, inputs: Inputs, form: str) -> Call:
        import openvino

        model = openvino.Core().read_model(exports.export_path(self.model, form) / "model.xml")
        ids, mask = self.padded(inputs)
        model.reshape({port: list(ids.shape) for port in model.inputs})
        return Call(sessions.openvino_run(model, [ids, mask]), self.real_tokens)

    def ctranslate2(self, inputs: Inputs) -> Call:
        return self._ctranslate2(inputs, "float32")

    def _ctranslate2(self, inputs: Inputs, compute_type: str) -> Call:
        import ctranslate2

        encoder = ctranslate2.Encoder(
            str(exports.export_path(self.model, "ctranslate2")),
            compute_type=compute_type,
            inter_threads=1,
            intra_threads=sessions.threads(),
        )
        ids = inputs["ids"]
        return Call(
            lambda: encoder.forward_batch(ids),
            lambda output: self.real_tokens(output.last_hidden_state),
        )


@dataclass(frozen=True)
class Int8Bert(Bert):
    """With weights in 8 bits, activations quantised as they come, or in OpenVINO by ranges found
    beforehand. Compared are mean vectors of length 1 with softgate's in float32: every engine
    rounds in its own way, so that this only tells answers from nonsense.

    Work counts products of 8-bit integers as a quarter of a fused multiply-add each, which is what
    VNNI makes of them; AMX is faster.
    """

    engines: ClassVar[tuple[str, ...]] = (
        "softgate",
        "torch_int8",
        "onnxruntime_int8",
        "openvino_int8",
        "ctranslate2_int8",
    )
    tolerance: ClassVar[float] = 0.25
    oracle: ClassVar[str] = "softgate"
    dtype: ClassVar[WeightType] = "int8"

    @property
    def name(self) -> str:
        return f"{super().name} int8"

    @property
    def group(self) -> str:
        return f"{self.model} int8"

    @property
    def work(self) -> Work:
        size, tokens = SIZES[self.model], sum(self.lengths)
        weights = size.layers * (4 + 2 * INTERMEDIATE_FACTOR) * size.hidden**2
        pairs = size.layers * sum(length**2 for length in self.lengths)
        return Work(
            flops=2 * tokens * weights / 4 + 4 * pairs * size.hidden,
            bytes=weights,
            traffic="read",
        )

    def reference(self, inputs: Inputs) -> Array:
        import softgate

        model = softgate.load(exports.export_path(self.model, "huggingface"), "float32")
        return self.result(model(inputs["ids"]).last_hidden_state)

    def result(self, hidden_states: Array) -> Array:
        parts = np.split(hidden_states, np.cumsum(self.lengths)[:-1])
        means = np.stack([part.mean(axis=0) for part in parts])
        vectors: Array = means / np.linalg.norm(means, axis=1, keepdims=True)
        return vectors

    def torch_int8(self, inputs: Inputs) -> Call:
        return self._torch(inputs, quantized=True)

    def onnxruntime_int8(self, inputs: Inputs) -> Call:
        return self._onnxruntime(inputs, "onnxruntime_int8")

    def openvino_int8(self, inputs: Inputs) -> Call:
        return self._openvino(inputs, "openvino_int8")

    def ctranslate2_int8(self, inputs: Inputs) -> Call:
        return self._ctranslate2(inputs, "int8")


BATCHES = {
    "1x16": (16,),
    "1x128": (128,),
    "8x128": (128,) * 8,
    "32 ragged 8 to 128": ragged(32),
    "64x32": (32,) * 64,
}

CASES = [
    kind(model, batch, lengths)
    for kind in (Bert, Int8Bert)
    for model in SIZES
    for batch, lengths in BATCHES.items()
    if model == "minilm" or batch != "64x32"
]

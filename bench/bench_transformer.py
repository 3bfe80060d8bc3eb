"""Translation by a Marian model: targets of a fixed length for ragged sources, with 1 and 4 beams.

Each library runs its own `generate`. What is compared is the score of the best targets, their
log-probability a token, since near ties make other tokens of other roundings. Bytes are those of
the decoder's weights, once a step; the arithmetic limit is float32's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from bench import exports, sessions
from bench.case import Array, Call, Case, Inputs, ragged
from bench.limits import Work
from bench.marian_exports import END, PAD, VOCABULARY

LAYERS, HIDDEN, FEED_FORWARD = 6, 512, 2048
SOURCES, STEPS = 32, 32


@dataclass(frozen=True)
class Marian(Case):
    """`beams` texts of each of the sources, all of `STEPS` tokens."""

    engines: ClassVar[tuple[str, ...]] = ("softgate", "torch", "ctranslate2")
    tolerance: ClassVar[float] = 1e-3
    dtype: ClassVar[Literal["float32", "int8"]] = "float32"

    beams: int

    @property
    def name(self) -> str:
        return f"marian {self.dtype} {'greedy' if self.beams == 1 else f'{self.beams} beams'}"

    @property
    def work(self) -> Work:
        square, wide = HIDDEN**2, 2 * HIDDEN * FEED_FORWARD
        encoder = LAYERS * (4 * square + wide + 2 * square)  # with keys and values for the decoder
        decoder = LAYERS * (6 * square + wide) + VOCABULARY * HIDDEN
        rows = SOURCES * self.beams
        held = decoder * (1 if self.dtype == "int8" else 4)
        return Work(
            flops=2 * (sum(ragged(SOURCES)) * encoder + STEPS * rows * decoder),
            bytes=STEPS * held,
            traffic="read",
            working_set=held,
        )

    @property
    def units(self) -> int:
        """Tokens of the targets that are given back."""
        return SOURCES * STEPS

    def inputs(self) -> Inputs:
        random = np.random.default_rng(0)
        return {"sources": [[*random.integers(2, PAD, n).tolist(), END] for n in ragged(SOURCES)]}

    def softgate(self, inputs: Inputs) -> Call:
        import softgate

        model: Any = softgate.load(exports.export_path("marian", "huggingface"), dtype=self.dtype)

        def generate() -> Any:
            return model.generate(
                inputs["sources"],
                num_beams=self.beams,
                early_stopping=self.beams == 1,
                max_new_tokens=STEPS,
                min_new_tokens=STEPS,
            )

        return Call(generate, lambda found: np.array([best[0].score for best in found]))

    def torch(self, inputs: Inputs) -> Call:
        return self._torch(inputs, quantized=False)

    def _torch(self, inputs: Inputs, quantized: bool) -> Call:
        import torch
        from transformers import MarianMTModel

        model: Any = MarianMTModel.from_pretrained(exports.export_path("marian", "huggingface"))
        model.eval()
        if quantized:
            model = torch.ao.quantization.quantize_dynamic(
                model, {torch.nn.Linear}, dtype=torch.qint8
            )
        longest = max(map(len, inputs["sources"]))
        ids = torch.full((SOURCES, longest), PAD)
        mask = torch.zeros_like(ids)
        for row, source in enumerate(inputs["sources"]):
            ids[row, : len(source)] = torch.tensor(source)
            mask[row, : len(source)] = 1

        def generate(**options: Any) -> Any:
            with torch.inference_mode():
                return model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    num_beams=self.beams,
                    do_sample=False,
                    max_new_tokens=STEPS,
                    min_new_tokens=STEPS,
                    **options,
                )

        def scores(_: Any) -> Array:
            found = generate(return_dict_in_generate=True, output_scores=True)
            if self.beams > 1:
                array: Array = found.sequences_scores.numpy()
                return array
            steps = model.compute_transition_scores(
                found.sequences, found.scores, normalize_logits=True
            )
            mean: Array = steps.mean(dim=1).numpy()
            return mean

        return Call(generate, scores)

    def ctranslate2(self, inputs: Inputs) -> Call:
        import ctranslate2

        translator = ctranslate2.Translator(
            str(exports.export_path("marian", "ctranslate2")),
            compute_type=self.dtype,
            inter_threads=1,
            intra_threads=sessions.threads(),
        )
        sources = [[f"t{token}" for token in source] for source in inputs["sources"]]

        def translate(**options: Any) -> Any:
            return translator.translate_batch(
                sources,
                beam_size=self.beams,
                max_decoding_length=STEPS,
                min_decoding_length=STEPS,
                **options,
            )

        def scores(_: Any) -> Array:
            found = translate(return_scores=True)
            assert all(len(one.hypotheses[0]) == STEPS for one in found)
            return np.array([one.scores[0] for one in found])

        return Call(translate, scores)


@dataclass(frozen=True)
class MarianInt8(Marian):
    """Weights of 8 bits, a scale a row; activations rounded to 8 bits on the fly."""

    engines: ClassVar[tuple[str, ...]] = ("softgate", "torch_int8", "ctranslate2")
    tolerance: ClassVar[float] = 0.2
    oracle: ClassVar[str] = "ctranslate2"
    dtype: ClassVar[Literal["float32", "int8"]] = "int8"

    def torch_int8(self, inputs: Inputs) -> Call:
        return self._torch(inputs, quantized=True)


CASES = [kind(beams) for kind in (Marian, MarianInt8) for beams in (1, 4)]

"""Beam search with real encoder-decoders: g2p-en's context vector, netra's attention, 4 beams.

NumPy is the restatement that the tests hold softgate against, a word and a beam at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.case import Array, Call, Case, Inputs
from bench.limits import Work
from tests import converters, g2p

BEAMS = 4
# Of the dictionary's words, with the end that either needs.
LETTERS_PER_WORD, PHONEMES_PER_WORD = 8.4, 7.3
NETRA_LETTERS, NETRA_LONGEST = 25, 24


@dataclass(frozen=True)
class Beams(Case):
    engines: ClassVar[tuple[str, ...]] = ("softgate", "numpy")
    tolerance: ClassVar[float] = 0.0
    oracle: ClassVar[str] = "numpy"

    words: int

    @property
    def name(self) -> str:
        return f"{type(self).__name__}, {self.words} words, {BEAMS} beams"

    def inputs(self) -> Inputs:
        every = list(g2p.load_pronunciations())
        words = [word for word in every if word.isalpha() and len(word) <= NETRA_LETTERS]
        picked = np.random.default_rng(0).choice(len(words), self.words, replace=False)
        return {"words": [words[i] for i in picked]}


class G2p(Beams):
    @property
    def work(self) -> Work:
        """Two products of a vector and a weight for each letter, and each phoneme of a beam."""
        steps = self.words * (LETTERS_PER_WORD + BEAMS * PHONEMES_PER_WORD)
        weights = 2 * 3 * g2p.HIDDEN**2
        return Work(flops=2 * steps * weights, bytes=2 * 4 * weights, traffic="read")

    def softgate(self, inputs: Inputs) -> Call:
        model = converters.g2p_model(g2p.load_weights())
        sources = [g2p.letter_ids(word) for word in inputs["words"]]
        return Call(lambda: model.generate(sources, num_beams=BEAMS), ids_of_best)

    def numpy(self, inputs: Inputs) -> Call:
        network = g2p.NumpyG2p(g2p.load_weights())

        def search() -> list[Any]:
            ends = {"start": g2p.START, "end": g2p.END, "width": BEAMS, "longest": g2p.LONGEST}
            return [
                converters.numpy_beams(network.step, network.read(g2p.letter_ids(word)), **ends)
                for word in inputs["words"]
            ]

        return Call(search, ids_of_best)


class Netra(Beams):
    @property
    def work(self) -> Work:
        """GRU steps of 64 on 32, three for each letter's place, and attention to 25 places."""
        gru = 3 * 64 * (32 + 64)
        attention = NETRA_LETTERS * (64 + 64 + 128) + 64 * 64 + 192 * 81
        steps = BEAMS * PHONEMES_PER_WORD
        each = NETRA_LETTERS * (2 * gru + 128 * 64) + steps * (gru + attention)
        return Work(flops=2 * self.words * each, bytes=4 * 3 * gru, traffic="read")

    def softgate(self, inputs: Inputs) -> Call:
        arrays, assets = converters.load_netra()
        model = converters.netra_model(arrays, assets)
        sources = [converters.netra_ids(word, assets) for word in inputs["words"]]
        settings = {"num_beams": BEAMS, "max_new_tokens": NETRA_LONGEST}
        return Call(lambda: model.generate(sources, **settings), ids_of_best)

    def numpy(self, inputs: Inputs) -> Call:
        arrays, assets = converters.load_netra()
        network = converters.NumpyNetra(arrays)
        khmer = assets["khm_tokenizer"].word_index
        ends = {"start": khmer["\t"], "end": khmer["\n"], "width": BEAMS}
        sources = [converters.netra_ids(word, assets) for word in inputs["words"]]

        def one(source: list[int]) -> Any:
            memory = network.read(source)

            def step(token: int, h: Array) -> tuple[Array, Array]:
                return network.step(token, h, memory)

            return converters.numpy_beams(step, np.zeros(64), longest=NETRA_LONGEST, **ends)

        return Call(lambda: [one(source) for source in sources], ids_of_best)


def ids_of_best(found: Sequence[Sequence[Any]]) -> Array:
    """`[words, longest]`, -1 after a target's end."""
    ids = np.full((len(found), 32), -1)
    for row, best in zip(ids, found, strict=True):
        tokens = best[0][1] if isinstance(best[0], tuple) else best[0].token_ids
        row[: len(tokens)] = tokens
    return ids


CASES = [G2p(512), Netra(512)]

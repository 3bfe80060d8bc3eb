"""English spelling to phonemes with g2p-en's GRU encoder and decoder (tests/g2p.py).

NumPy is the package's own way, a word at a time; torch takes the same batches as softgate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.case import Array, Call, Case, Inputs
from bench.limits import Work
from tests import g2p

# Of the dictionary's words, with the end that either needs.
LETTERS_PER_WORD, PHONEMES_PER_WORD = 8.4, 7.3


@dataclass(frozen=True)
class G2p(Case):
    engines: ClassVar[tuple[str, ...]] = ("softgate", "torch", "numpy")
    tolerance: ClassVar[float] = 0.0
    oracle: ClassVar[str] = "numpy"

    words: int

    @property
    def name(self) -> str:
        return f"{self.words} words"

    @property
    def work(self) -> Work:
        """Two products of a vector and a weight for each letter and phoneme."""
        steps = self.words * (LETTERS_PER_WORD + PHONEMES_PER_WORD)
        weights = 2 * 3 * g2p.HIDDEN**2
        return Work(flops=2 * steps * weights, bytes=2 * 4 * weights, traffic="read")

    def inputs(self) -> Inputs:
        words = list(g2p.load_pronunciations())
        picked = np.random.default_rng(0).choice(len(words), self.words, replace=False)
        return {"words": [words[i] for i in picked]}

    def softgate(self, inputs: Inputs) -> Call:
        return spelling(g2p.G2p(g2p.load_weights()), inputs)

    def numpy(self, inputs: Inputs) -> Call:
        return spelling(g2p.NumpyG2p(g2p.load_weights()), inputs)

    def torch(self, inputs: Inputs) -> Call:
        return spelling(torch_g2p(g2p.load_weights()), inputs)


def spelling(spell: Any, inputs: Inputs) -> Call:
    return Call(lambda: spell(inputs["words"]), phoneme_ids)


def phoneme_ids(spoken: Sequence[Sequence[str]]) -> Array:
    """`[words, longest]`, -1 after a word's end."""
    ids = np.full((len(spoken), g2p.LONGEST), -1)
    for row, phonemes in zip(ids, spoken, strict=True):
        row[: len(phonemes)] = [g2p.PHONEMES.index(phoneme) for phoneme in phonemes]
    return ids


def torch_g2p(weights: g2p.Arrays) -> Any:
    """softgate's G2p with torch's modules in the place of its kernels."""
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}

    def load(module: Any, name: str, suffix: str) -> Any:
        parts = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh"}
        module.load_state_dict({f"{k}{suffix}": tensors[f"{name}_{v}"] for k, v in parts.items()})
        return module.eval()

    encoder = load(torch.nn.GRU(g2p.HIDDEN, g2p.HIDDEN), "enc", "_l0")
    decoder = load(torch.nn.GRUCell(g2p.HIDDEN, g2p.HIDDEN), "dec", "")

    class TorchG2p(g2p.G2p):
        def __init__(self) -> None:
            pass

        def read(self, words: Sequence[str]) -> Any:
            ids = [torch.tensor(g2p.letter_ids(word)) for word in words]
            x = [tensors["enc_emb"][letters] for letters in ids]
            packed = torch.nn.utils.rnn.pack_sequence(x, enforce_sorted=False)
            return encoder(packed)[1][0]

        def step(self, phonemes: Array, h: Any) -> tuple[Any, Array]:
            h = decoder(tensors["dec_emb"][torch.from_numpy(phonemes)], h)
            logits = torch.addmm(tensors["fc_b"], h, tensors["fc_w"].T)
            return h, logits.argmax(dim=1).numpy()

    return TorchG2p()


CASES = [G2p(10_000)]

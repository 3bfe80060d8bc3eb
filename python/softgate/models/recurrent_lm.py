"""Recurrent language models (Mikolov et al. 2010), which generate and score as GPT stacks do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from softgate import nn, ops
from softgate._core import Tensor
from softgate.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from softgate.checkpoint.names import check_shapes
from softgate.generation import LanguageModel
from softgate.models.recurrent_config import CELLS, Cell, RecurrentConfig, along
from softgate.models.sequences import check_packed
from softgate.nn.decoder import Rows
from softgate.text import Tokenizer

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

_MAX_HEAD = 256  # numbers that one head of the attention kernel takes
_NOTHING = -1e30  # log-sum-exp of the scores of no token


@dataclass(frozen=True)
class RecurrentLMConfig(RecurrentConfig):
    """Sizes and shape of a recurrent language model.

    - cell: "rnn", "gru" or "lstm"; num_layers of hidden_size each.
    - concat_layers: what comes next is told from the embedding and the outputs of all layers side
      by side, else from the last layer's output.
    - average: from their mean over the tokens so far, weighted by the softmax of `w . features`
      (Felbo et al. 2017), else from the last token's.
    - eos_token_ids end a text. max_length: tokens of a text at most.

    Raises ValueError that names the field whose value makes no sense.
    """

    MODEL_TYPE = "softgate_recurrent_lm"

    vocab_size: int
    embedding_size: int = 256
    hidden_size: int = 256
    num_layers: int = 1
    cell: Cell = "lstm"
    concat_layers: bool = False
    average: bool = False
    eos_token_ids: tuple[int, ...] = (3,)
    max_length: int = 1 << 20

    def __post_init__(self) -> None:
        self._check_sizes("vocab_size", "embedding_size", "hidden_size", "max_length")
        self._check_layers("num_layers")
        self._check_flags("concat_layers", "average")
        self._check_choice("cell", get_args(Cell))
        self._check_ids("eos_token_ids", self.eos_token_ids, self.vocab_size)

    @property
    def features(self) -> int:
        """Numbers that what comes next is told from."""
        if not self.concat_layers:
            return self.hidden_size
        return self.embedding_size + self.num_layers * self.hidden_size


class RecurrentCache:
    """What a recurrent model keeps of the tokens of each row: its states, not the tokens.

    lengths: int32 `[batch]`, how many tokens each row has seen. states: arrays whose dimension 0 is
    the row's. capacity: of tokens, which take no room.
    """

    def __init__(self, states: list[FloatArray], capacity: int) -> None:
        self.capacity = capacity
        self.states = states
        self.first = [state[:1].copy() for state in states]
        self.lengths: IntArray = np.zeros(len(states[0]), dtype=np.int32)

    @property
    def batch(self) -> int:
        """How many rows there are."""
        return len(self.lengths)

    def truncate(self, row: int, length: int) -> None:
        """Forget the tokens of a row, unless it has `length` of them: states do not go back.

        So a row may end up with fewer than `length`. Raises IndexError for a row that is not there,
        ValueError for a length that it has not.
        """
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(
                f"truncate: length is {length}, expected 0 to {self.lengths[row]}, the row's own"
            )
        if length < self.lengths[row]:
            for state, first in zip(self.states, self.first, strict=True):
                state[row] = first[0]
            self.lengths[row] = 0

    def copy_rows(self, sources: Rows, targets: Rows, starts: Rows | None = None) -> None:
        """Make each row of `targets` hold what that of `sources` does; states are copied whole,
        whatever `starts`."""
        for state in self.states:
            state[targets] = state[sources]
        self.lengths[targets] = self.lengths[sources]


class RecurrentLM(nn.Module, LanguageModel):
    """A recurrent language model, which `generate`s, `stream`s and `score`s.

    `RecurrentLM(RecurrentLMConfig(...))` has random weights; `softgate.load` reads what `save`
    wrote.
    """

    config: RecurrentLMConfig
    tokenizer: Tokenizer | None

    def __init__(self, config: RecurrentLMConfig, *, seed: int | None = 0) -> None:
        """seed: of the random weights; None leaves the weights to `load_state_dict`."""
        self.config = config
        self.embedding = nn.Parameter(config.vocab_size, config.embedding_size)
        self.layers = [
            CELLS[config.cell](
                config.hidden_size if i else config.embedding_size, config.hidden_size
            )
            for i in range(config.num_layers)
        ]
        self.score_of = nn.Linear(config.features, 1, bias=False) if config.average else None
        self.output = nn.Linear(config.features, config.vocab_size)
        self.tokenizer = None
        if seed is not None:
            self.init_weights(seed, std=0.1)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> RecurrentLM:
        """Read an open checkpoint; see `softgate.load`."""
        try:
            model = cls(RecurrentLMConfig.from_dict(checkpoint.config), seed=None)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.spec}: {error}") from None
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        check_shapes(shapes, checkpoint.shapes)
        model.load_state_dict(checkpoint.tensors)
        model.tokenizer = Tokenizer.from_checkpoint(checkpoint)
        return model

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that `softgate.load` reads: config.json, model.safetensors with the names
        of `state_dict`, and the tokenizer."""
        files = {} if self.tokenizer is None else self.tokenizer.to_files()
        save_checkpoint(folder, self.config.to_dict(), self.state_dict(), files)

    @property
    def max_length(self) -> int:
        """The most tokens a sequence may have."""
        return self.config.max_length

    def new_cache(self, batch: int, capacity: int | None = None) -> RecurrentCache:
        """First states for `batch` sequences of up to `capacity` tokens, by default max_length.

        Raises ValueError for a batch or a capacity that makes no sense.
        """
        config = self.config
        capacity = self.max_length if capacity is None else capacity
        if not 1 <= capacity <= self.max_length:
            raise ValueError(f"new_cache: capacity is {capacity}, expected 1 to {self.max_length}")
        if batch < 1:
            raise ValueError(f"new_cache: batch is {batch}, expected at least 1")
        kinds = 2 if config.cell == "lstm" else 1
        count = kinds * config.num_layers
        states = [np.zeros((batch, config.hidden_size), np.float32) for _ in range(count)]
        if config.average:
            states.append(np.zeros((batch, config.features), np.float32))
            states.append(np.full((batch, 1), _NOTHING, np.float32))
        return RecurrentCache(states, capacity)

    def forward(
        self,
        input_ids: npt.ArrayLike,
        cu_seqlens: npt.ArrayLike | None = None,
        cache: RecurrentCache | None = None,
        *,
        rows: npt.ArrayLike | None = None,
        logits: Literal["all", "last"] = "all",
    ) -> Tensor:
        """What may follow each token: float32 `[total_tokens, vocab_size]`, or with "last" only
        what may follow each sequence, `[batch, vocab_size]`.

        input_ids: integers `[total_tokens]`; cu_seqlens: `[batch + 1]`, where each sequence starts
        and the last ends, by default one. With a cache, each sequence continues a row of it;
        without one, sequences start anew and nothing is kept. rows: integers `[batch]`, the row of
        each sequence, by default all in their order.

        Raises ValueError for ids outside the vocabulary, sequences without tokens, offsets and rows
        that make no sense, and sequences that become longer than the cache or the model takes. The
        cache is then as it was.
        """
        ids, offsets = check_packed(input_ids, cu_seqlens, self.config.vocab_size)
        if logits not in ("all", "last"):
            raise ValueError(f"logits is {logits!r}, expected 'all' or 'last'")
        batch = len(offsets) - 1
        if cache is None:
            cache = self.new_cache(max(batch, 1))
            rows = np.arange(batch)
        places = self._rows(cache, batch, rows)
        longest = (cache.lengths[places] + np.diff(offsets)).max(initial=0)
        if longest > min(cache.capacity, self.max_length):
            raise ValueError(
                f"input_ids: the longest sequence has {longest} tokens with those before, expected "
                f"at most {min(cache.capacity, self.max_length)}"
            )
        states = [state[places] for state in cache.states]
        features, states = self._features(ids, offsets, states)
        for kept, state in zip(cache.states, states, strict=True):
            kept[places] = state
        cache.lengths[places] += np.diff(offsets)
        if logits == "last":
            features = np.ascontiguousarray(features[offsets[1:] - 1])
        return Tensor(self.output(features))

    def _features(
        self, ids: IntArray, offsets: IntArray, states: list[FloatArray]
    ) -> tuple[FloatArray, list[FloatArray]]:
        """What each token's successor is told from, and the states after the last ones."""
        config = self.config
        kinds = 2 if config.cell == "lstm" else 1
        x: FloatArray = ops.embedding([Tensor(ids)], [self.embedding.value]).numpy()
        outputs, after = [x], []
        for i, layer in enumerate(self.layers):
            first = tuple(state[None] for state in states[kinds * i : kinds * (i + 1)])
            x, last = along(layer, x, offsets, first)
            outputs.append(x)
            after += [state[0] for state in last]
        if config.concat_layers:
            x = np.concatenate(outputs, axis=1)
        if self.score_of is not None:
            x, *averages = self._averaged(x, offsets, *states[-2:])
            after += averages
        return x, after

    def _averaged(
        self, x: FloatArray, offsets: IntArray, average: FloatArray, total: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The weighted mean of the tokens up to each one, then the last one's and the log-sum-exp.

        It is causal attention whose keys are the scores. The tokens before, by their own mean and
        log-sum-exp, are one token in front.
        """
        assert self.score_of is not None
        batch = len(offsets) - 1
        ends = offsets + np.arange(batch + 1, dtype=np.int32)
        is_new = np.ones(ends[-1], dtype=bool)
        is_new[ends[:-1]] = False
        values = np.empty((len(is_new), x.shape[1]), np.float32)
        values[is_new], values[~is_new] = x, average
        scores = np.empty(len(is_new), np.float32)
        scores[is_new], scores[~is_new] = self.score_of(x)[:, 0], total[:, 0]
        heads = -(-x.shape[1] // _MAX_HEAD)
        size = -(-x.shape[1] // heads)
        v = np.zeros((len(is_new), heads * size), np.float32)
        v[:, : x.shape[1]] = values
        v = v.reshape(-1, heads, size)
        q, k = np.zeros_like(v), np.zeros_like(v)
        q[..., 0], k[..., 0] = 1, scores[:, None]
        means, lse = ops.attention(q, k, v, ends, scale=1.0, causal=True, return_lse=True)
        means = means.reshape(len(is_new), -1)[:, : x.shape[1]]
        last = ends[1:] - 1
        return np.ascontiguousarray(means[is_new]), means[last], lse[0, last, None]

    def _rows(self, cache: RecurrentCache, batch: int, rows: npt.ArrayLike | None) -> IntArray:
        """The row of the cache that each sequence continues."""
        places: Any = np.arange(cache.batch) if rows is None else np.asarray(rows)
        if (
            places.shape != (batch,)
            or places.dtype.kind not in "iu"
            or ((places < 0) | (places >= cache.batch)).any()
            or len(np.unique(places)) < batch
        ):
            raise ValueError(
                f"rows: {places.tolist()}, expected {batch} different ones below {cache.batch}"
            )
        array: IntArray = places.astype(np.int32)
        return array

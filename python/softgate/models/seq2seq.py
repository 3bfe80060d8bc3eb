"""Recurrent encoder-decoders: a context vector (Cho et al. 2014; Sutskever et al. 2014), attention
(Bahdanau et al. 2014; Luong et al. 2015)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from softgate import nn, ops
from softgate._core import Tensor
from softgate.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from softgate.checkpoint.names import check_shapes
from softgate.generation import EncoderDecoder
from softgate.generation.beam import Advance, BeamSearch
from softgate.models.recurrent_config import CELLS, Cell, RecurrentConfig, along
from softgate.models.sequences import Batch, PackedIds, pack_ids
from softgate.text import Tokenizer

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.integer[Any]]

_SIDES = ("source", "target")  # folders of the tokenizers


@dataclass(frozen=True)
class Seq2SeqConfig(RecurrentConfig):
    """Sizes and shape of a recurrent encoder-decoder.

    - cell: "rnn", "gru" or "lstm", of both sides; bidirectional: the encoder reads both ways.
    - first_state: the decoder's, of "last" (the encoder's last states, the directions of a layer
      side by side), "bridge" (tanh of a product of those; for an LSTM's c without tanh) or "zeros".
    - attention: "none", or the score of `nn.SourceAttention`; attention_size: of its v.
    - attention_at: "after" the recurrent step, which then asks with its new state (Luong), or
      "before" it, with the old one, whose context is part of the step's input (Bahdanau).
    - attentional_size: of `tanh(W [state; context])`, which the output is made of; None makes it
      of state and context themselves. input_feeding: it also goes into the next step.
    - bos_token_id begins a target, eos_token_ids end it. max_length: tokens of a target at most.

    Raises ValueError that names the field whose value makes no sense.
    """

    MODEL_TYPE = "softgate_seq2seq"

    source_vocab_size: int
    target_vocab_size: int
    embedding_size: int = 256
    encoder_size: int = 256
    decoder_size: int = 256
    num_layers: int = 1
    cell: Cell = "gru"
    bidirectional: bool = False
    first_state: Literal["last", "bridge", "zeros"] = "last"
    attention: nn.SourceAttentionKind | Literal["none"] = "none"
    attention_at: Literal["before", "after"] = "after"
    attention_size: int | None = None
    attentional_size: int | None = None
    input_feeding: bool = False
    bos_token_id: int = 2
    eos_token_ids: tuple[int, ...] = (3,)
    max_length: int = 1024

    def __post_init__(self) -> None:
        self._check_sizes(
            "source_vocab_size", "target_vocab_size", "embedding_size", "encoder_size",
            "decoder_size", "max_length",
            *(n for n in ("attention_size", "attentional_size") if getattr(self, n) is not None),
        )  # fmt: skip
        self._check_layers("num_layers")
        self._check_flags("bidirectional", "input_feeding")
        self._check_choice("cell", get_args(Cell))
        self._check_choice("first_state", ("last", "bridge", "zeros"))
        self._check_choice("attention", ("none", *get_args(nn.SourceAttentionKind)))
        self._check_choice("attention_at", ("before", "after"))
        self._check_ids("bos_token_id", (self.bos_token_id,), self.target_vocab_size)
        self._check_ids("eos_token_ids", self.eos_token_ids, self.target_vocab_size)
        memory = self.memory_size
        if self.first_state == "last" and memory != self.decoder_size:
            raise ValueError(
                f"config: decoder_size is {self.decoder_size}, expected {memory}, the encoder's "
                "states side by side, or first_state 'bridge'"
            )
        if self.attention == "dot" and memory != self.decoder_size:
            raise ValueError(
                f"config: decoder_size is {self.decoder_size}, expected {memory}, the encoder's, "
                "or attention 'general'"
            )
        if self.attention == "none":
            for name in ("attention_size", "attentional_size"):
                if (value := getattr(self, name)) is not None:
                    raise ValueError(f"config: {name} is {value}, but attention is 'none'")
        if self.input_feeding and self.attentional_size is None:
            raise ValueError("config: input_feeding is true, but attentional_size is missing")

    @property
    def memory_size(self) -> int:
        """Numbers that the encoder gives for each token."""
        return (2 if self.bidirectional else 1) * self.encoder_size

    @property
    def vocab_size(self) -> int:
        """Of targets."""
        return self.target_vocab_size

    @property
    def decoder_start_token_id(self) -> int:
        """The token that begins a target."""
        return self.bos_token_id


@dataclass(frozen=True)
class Encoded:
    """Sources that have been read: memory, None without attention, and the decoder's first state.

    Their lengths are those of cu_seqlens.
    """

    memory: nn.Memory | None
    state: DecoderState
    cu_seqlens: npt.NDArray[np.int32]


@dataclass(frozen=True)
class DecoderState:
    """What a decoder goes on from: hidden, `[num_layers, batch, decoder_size]` (of an LSTM h and
    c), and with input feeding the attentional vector of the step before, `[batch, size]`."""

    hidden: tuple[FloatArray, ...]
    feed: FloatArray | None

    def rows(self, index: IntArray | slice) -> DecoderState:
        """Some sequences of the batch, of which one may come several times."""
        feed = None if self.feed is None else self.feed[index]
        return DecoderState(tuple(part[:, index] for part in self.hidden), feed)


@dataclass
class Seq2SeqOutput:
    """What a forward pass gives.

    logits: float32, `[total_tokens, target_vocab_size]` for targets in lists, padded with zeros,
    `[batch, length, target_vocab_size]`, for an array. attentions: on request, the weights of each
    pair, `[target tokens, source tokens]`.
    """

    logits: FloatArray
    attentions: list[FloatArray] | None


class Seq2Seq(nn.Module, EncoderDecoder):
    """A recurrent encoder-decoder.

    `Seq2Seq(Seq2SeqConfig(...))` has random weights; `softgate.load` reads what `save` wrote. With
    its tokenizers it `translate`s texts; `generate` and `score` take token ids too.
    """

    source_tokenizer: Tokenizer | None
    target_tokenizer: Tokenizer | None
    batch_size = 512  # its steps are short: of fewer sources they are mostly Python

    def __init__(self, config: Seq2SeqConfig, *, seed: int | None = 0) -> None:
        """seed: of the random weights; None leaves the weights to `load_state_dict`."""
        self.config = config
        cell, size, memory = CELLS[config.cell], config.decoder_size, config.memory_size
        self.source_embedding = nn.Parameter(config.source_vocab_size, config.embedding_size)
        self.encoder = cell(
            config.embedding_size,
            config.encoder_size,
            config.num_layers,
            bidirectional=config.bidirectional,
        )
        kinds = 2 if config.cell == "lstm" else 1
        self.bridges = (
            [nn.Linear(memory, size) for _ in range(kinds * config.num_layers)]
            if config.first_state == "bridge"
            else []
        )
        self.target_embedding = nn.Parameter(config.target_vocab_size, config.embedding_size)
        self.attention = (
            None
            if config.attention == "none"
            else nn.SourceAttention(config.attention, size, memory, config.attention_size)
        )
        attends_before = self.attention is not None and config.attention_at == "before"
        feed = config.attentional_size if config.input_feeding else 0
        self.decoder = cell(
            config.embedding_size + (memory if attends_before else 0) + (feed or 0),
            size,
            config.num_layers,
        )
        width = size if self.attention is None else size + memory
        self.attentional = (
            None
            if config.attentional_size is None
            else nn.Linear(width, config.attentional_size, bias=False)
        )
        self.output = nn.Linear(config.attentional_size or width, config.target_vocab_size)
        self.source_tokenizer = self.target_tokenizer = None
        self.beams = BeamSearch(max_new_tokens=min(128, config.max_length))
        if seed is not None:
            self.init_weights(seed, std=0.1)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Seq2Seq:
        """Read an open checkpoint; see `softgate.load`."""
        try:
            model = cls(Seq2SeqConfig.from_dict(checkpoint.config), seed=None)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.spec}: {error}") from None
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        check_shapes(shapes, checkpoint.shapes)
        model.load_state_dict(checkpoint.tensors)
        for side in _SIDES:
            path = checkpoint.file(f"{side}/tokenizer.json")
            if path is not None:
                setattr(model, f"{side}_tokenizer", Tokenizer.load(path.parent))
        return model

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that `softgate.load` reads: config.json, model.safetensors with the names
        of `state_dict`, and the tokenizers."""
        files: dict[str, Path | bytes] = {}
        for side in _SIDES:
            tokenizer: Tokenizer | None = getattr(self, f"{side}_tokenizer")
            if tokenizer is not None:
                files |= {f"{side}/{name}": data for name, data in tokenizer.to_files().items()}
        save_checkpoint(folder, self.config.to_dict(), self.state_dict(), files)

    def forward(
        self,
        source_ids: Batch,
        target_ids: Batch,
        source_mask: npt.NDArray[Any] | None = None,
        target_mask: npt.NDArray[Any] | None = None,
        *,
        output_attentions: bool = False,
    ) -> Seq2SeqOutput:
        """What may follow each target token, given the source and the target up to it.

        source_ids, target_ids: lists of lists of ids, any lengths, or integer arrays
        `[batch, length]` with masks of that shape (nonzero keeps a token). Padding is never
        computed.

        Raises ValueError for ids outside the vocabulary, sequences without tokens, and unequal
        numbers of sources and targets.
        """
        target = pack_ids("target_ids", target_ids, target_mask, self.config.target_vocab_size)
        encoded = self.encode(source_ids, source_mask)
        batch, given = len(target.lengths), len(encoded.cu_seqlens) - 1
        if batch != given:
            raise ValueError(f"target_ids: {batch} sequences, expected {given}, as source_ids")
        logits, weights = self._follow(target, encoded)
        attentions = None
        if output_attentions:
            if weights is None:
                raise ValueError("output_attentions: the model has no attention")
            sources = np.diff(encoded.cu_seqlens)
            ends = np.cumsum(sources * target.lengths)[:-1]
            attentions = [
                part.reshape(-1, length)
                for part, length in zip(np.split(weights, ends), sources, strict=True)
            ]
        return Seq2SeqOutput(target.restore(logits), attentions)

    def encode(self, source_ids: Batch, source_mask: npt.NDArray[Any] | None = None) -> Encoded:
        """Read the sources, in the forms that `forward` takes."""
        config = self.config
        source = pack_ids("source_ids", source_ids, source_mask, config.source_vocab_size)
        values, last = along(
            self.encoder, source.ids, source.cu_seqlens, table=self.source_embedding
        )
        memory = None
        if self.attention is not None:
            memory = self.attention.memory(values, source.cu_seqlens)
        batch = len(source.lengths)
        if config.first_state == "zeros":
            shape = (config.num_layers, batch, config.decoder_size)
            hidden = tuple(np.zeros(shape, np.float32) for _ in last)
        else:
            hidden = tuple(self._beside(part) for part in last)
        if config.first_state == "bridge":
            hidden = tuple(self._bridged(kind, part) for kind, part in enumerate(hidden))
        feed = None
        if config.input_feeding:
            feed = np.zeros((batch, config.attentional_size or 0), np.float32)
        return Encoded(memory, DecoderState(hidden, feed), source.cu_seqlens)

    def step(
        self,
        tokens: IntArray,
        state: DecoderState,
        memory: nn.Memory | None,
        sources: npt.NDArray[np.int32] | None = None,
        parents: npt.NDArray[np.int32] | None = None,
    ) -> tuple[FloatArray, DecoderState, FloatArray | None]:
        """One token of each sequence: logits `[batch, target_vocab_size]`, the state after it, and
        attention weights as `nn.SourceAttention` gives them. sources, parents: of the memory's, the
        one of each sequence, and of the state's, the one that each continues; by default one after
        another."""
        offsets = np.arange(len(tokens) + 1, dtype=np.int32)
        sources = offsets[:-1] if sources is None else sources
        return self._steps(tokens, offsets, state, memory, sources, parents)

    def attention_weights(
        self, source: list[int], target: list[int]
    ) -> Mapping[str, Sequence[FloatArray]]:
        if self.attention is None:
            return {}
        (weights,) = self([source], [target], output_attentions=True).attentions
        return {"cross": [weights[None]]}

    def begin(
        self, sources: Sequence[Sequence[int]], settings: BeamSearch
    ) -> tuple[FloatArray, Advance]:
        encoded = self.encode(sources)
        state, chosen = encoded.state, np.arange(len(sources), dtype=np.int32)

        def advance(tokens: IntArray, parents: npt.NDArray[np.int32]) -> FloatArray:
            nonlocal state, chosen
            chosen = chosen[parents]
            logits, state, _ = self.step(tokens, state, encoded.memory, chosen, parents)
            return logits

        bos = self.config.decoder_start_token_id
        return advance(np.full(len(sources), bos, np.int32), chosen), advance

    def _follow(self, target: PackedIds, encoded: Encoded) -> tuple[FloatArray, FloatArray | None]:
        """Logits, `[total_tokens, vocab]`, and the weights of each target token's attention."""
        config = self.config
        if self.attention is None or (config.attention_at == "after" and not config.input_feeding):
            # No step needs what attention gave the one before.
            sources = np.repeat(np.arange(len(target.lengths), dtype=np.int32), target.lengths)
            logits, _, weights = self._steps(
                target.ids, target.cu_seqlens, encoded.state, encoded.memory, sources
            )
            return logits, weights
        assert encoded.memory is not None
        lengths = target.lengths
        order = np.argsort(-lengths, kind="stable").astype(np.int32)
        state, memory = encoded.state.rows(order), encoded.memory
        logits = np.empty((len(target.ids), config.target_vocab_size), np.float32)
        parts: list[FloatArray] = [np.empty(0, np.float32)] * len(target.ids)
        for t in range(lengths.max(initial=0)):
            going = order[: int((lengths > t).sum())]
            rows = target.cu_seqlens[going] + t
            offsets = np.arange(len(going) + 1, dtype=np.int32)
            state = state.rows(slice(len(going)))
            logits[rows], state, weights = self._steps(
                target.ids[rows], offsets, state, memory, going
            )
            assert weights is not None
            ends = np.cumsum(np.diff(memory.cu_seqlens)[going])[:-1]
            for row, part in zip(rows, np.split(weights, ends), strict=True):
                parts[row] = part
        return logits, np.concatenate([np.empty(0, np.float32), *parts])

    def _steps(
        self, tokens: IntArray, cu_seqlens: npt.NDArray[np.int32], state: DecoderState,
        memory: nn.Memory | None, sources: npt.NDArray[np.int32],
        parents: npt.NDArray[np.int32] | None = None,
    ) -> tuple[FloatArray, DecoderState, FloatArray | None]:  # fmt: skip
        """The tokens of each sequence: one, where a step needs what attention gave the one before.
        sources, parents: of the memory's, the one of each token, and of the state's, of each
        sequence."""
        given = slice(None) if parents is None else parents
        weights = context = None
        x: list[FloatArray] = []  # beside the tokens' rows
        before = self.config.attention_at == "before"
        if self.attention is not None and before:
            context, weights = self.attention(state.hidden[0][-1][given], memory, sources)
            x.append(context)
        if state.feed is not None:
            x.append(state.feed[given])
        if x:
            rows = np.concatenate([_rows(self.target_embedding, tokens), *x], axis=1)
            y, hidden = along(self.decoder, rows, cu_seqlens, state.hidden, None, parents)
        else:
            table = self.target_embedding
            y, hidden = along(self.decoder, tokens, cu_seqlens, state.hidden, table, parents)
        if self.attention is not None and not before:
            context, weights = self.attention(y, memory, sources)
        if context is not None:
            y = np.concatenate([y, context], axis=1)
        if self.attentional is not None:
            y = self.attentional(y, activation="tanh")
        feed = None if state.feed is None else y
        return self.output(y), DecoderState(hidden, feed), weights

    def _beside(self, states: FloatArray) -> FloatArray:
        """`[layers * directions, batch, size]` to `[layers, batch, directions * size]`."""
        layers, batch = self.config.num_layers, states.shape[1]
        parts = states.reshape(layers, -1, batch, self.config.encoder_size)
        return np.ascontiguousarray(parts.transpose(0, 2, 1, 3)).reshape(layers, batch, -1)

    def _bridged(self, kind: int, states: FloatArray) -> FloatArray:
        """kind: 0 of h, 1 of an LSTM's c."""
        layers = self.config.num_layers
        bridges = self.bridges[kind * layers : (kind + 1) * layers]
        pairs = zip(bridges, states, strict=True)
        activation: ops.Activation = "none" if kind else "tanh"
        return np.stack([bridge(part, activation=activation) for bridge, part in pairs])


def _rows(table: nn.Parameter, ids: IntArray) -> FloatArray:
    """Rows of an embedding."""
    array: FloatArray = ops.embedding([Tensor(np.asarray(ids))], [table.value]).numpy()
    return array

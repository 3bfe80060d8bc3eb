"""BERT (Devlin et al. 2018) and what came of it: Transformer encoders, whose families differ in
their config."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from softgate import nn, ops
from softgate._core import SequenceOffsets, Tensor
from softgate.attention_map import AttentionMap, mean_weights, pieces
from softgate.checkpoint import Checkpoint, CheckpointError
from softgate.checkpoint.bert import canonical_names, sources
from softgate.checkpoint.names import Source
from softgate.models.bert_config import ACTIVATIONS, BUCKETS, BUCKETS_REACH, SLIDING, BertConfig
from softgate.models.bert_tasks import EncoderTasks
from softgate.models.packing import (
    IntArray,
    Packed,
    fetched,
    pack_lists,
    pack_padded,
    positions,
)
from softgate.models.pooling import SentencePooling
from softgate.models.weights import load_packed, load_weights, save_weights
from softgate.text import Tokenizer

__all__ = ["Bert", "BertConfig", "BertLayer", "BertOutput"]

# What becomes of results: of those of sequences, of states and of attention weights.
_Takes: TypeAlias = tuple[Callable[[Tensor], Any], Callable[[Tensor], Any], Callable[[Tensor], Any]]


@dataclass
class BertOutput:
    """What a forward pass gives: padded arrays for padded ids, packed ones for lists of ids.

    last_hidden_state: `[batch, length, hidden_size]`, zeros in the padding, or
    `[total_tokens, hidden_size]`. pooler_output: `[batch, hidden_size]`, None without a pooler.
    hidden_states: on request, the embedding's output and each layer's, shaped alike. attentions:
    on request, each layer's weights, `[batch, num_heads, length, length]`, zeros in the padding.
    cu_seqlens: int32 `[batch + 1]`, where each sequence starts in packed arrays. logits: of the
    head, `[batch, labels]` for sequence-classification, else a row for each token, shaped like
    last_hidden_state; None without a head.

    All are float32 NumPy arrays; for ids in a Tensor they are packed Tensors on the model's device
    and of its dtype (attentions: float32), and cu_seqlens is what was given.
    """

    last_hidden_state: Any
    pooler_output: Any
    hidden_states: tuple[Any, ...] | None
    attentions: tuple[Any, ...] | None
    cu_seqlens: Any
    logits: Any = None


class BertLayer(nn.Module):
    """Attention, add and norm, feed-forward, add and norm; or with pre_norm each norm first."""

    def __init__(self, config: BertConfig, index: int = 0) -> None:
        """index: which of the layers it is."""
        hidden_size, eps, bias = config.hidden_size, config.layer_norm_eps, config.norm_bias
        self.kind = config.kind(index)
        self.pre_norm = config.pre_norm
        side = (config.local_attention or 0) // 2
        attention = nn.Attention if config.rope is None else nn.RotaryAttention
        self.attention = attention(
            hidden_size,
            config.num_attention_heads,
            bias=config.attention_bias,
            window=(side, side) if self.kind == SLIDING else (-1, -1),
            grouped=True,
        )
        # The embedding's norm is the first layer's too.
        has_norm = not (config.pre_norm and index == 0)
        self.attention_norm = nn.AddNorm(hidden_size, eps, bias) if has_norm else None
        self.feed_forward = nn.FeedForward(
            hidden_size,
            config.intermediate_size,
            ACTIVATIONS[config.hidden_act],
            gated=config.gated,
            bias=config.mlp_bias,
        )
        self.feed_forward_norm = nn.AddNorm(hidden_size, eps, bias)

    def forward(
        self, x: Tensor, cu_seqlens: Any, return_weights: bool = False, **positions: Any
    ) -> tuple[Tensor, Tensor | None]:
        """x and the result: `[total_tokens, hidden_size]`; positions: attention's rope or
        relative bias."""
        if self.pre_norm:
            y = x if self.attention_norm is None else self.attention_norm(x, in_place=False)
            x, weights = self.attention(y, cu_seqlens, return_weights, residual=x, **positions)
            return self.feed_forward(self.feed_forward_norm(x, in_place=False), x), weights
        assert self.attention_norm is not None
        attended, weights = self.attention(x, cu_seqlens, return_weights, **positions)
        x = self.attention_norm(attended, x)
        return self.feed_forward_norm(self.feed_forward(x), x), weights


class BertHead(nn.Module):
    """What a task adds: a product to labels or words, and perhaps a product, an activation and a
    norm before it."""

    def __init__(self, config: BertConfig) -> None:
        hidden_size = config.hidden_size
        words = config.task == "masked-lm"
        width = config.embedding_width if words else hidden_size
        outputs = config.vocab_size if words else len(config.labels)
        self.activation = config.head_activation
        self.dense = self.norm = self.output = self.bias = None
        if self.activation is not None:
            self.dense = nn.Linear(hidden_size, width, config.classifier_bias)
        if config.head_norm:
            self.norm = nn.AddNorm(width, config.layer_norm_eps, config.norm_bias)
        if words and config.tie_word_embeddings:
            self.bias = nn.Parameter(outputs, init=0.0) if config.decoder_bias else None
        else:
            self.output = nn.Linear(width, outputs, config.decoder_bias if words else True)

    def forward(self, x: Tensor, words: nn.Parameter | None) -> Tensor:
        """x: `[rows, hidden_size]`; words: the embedding, which a masked language model may be
        tied to. Gives `[rows, labels or vocab_size]`."""
        if self.dense is not None:
            x = self.dense(x, activation=self.activation)
            x = x if self.norm is None else self.norm(x)
        if self.output is not None:
            y: Tensor = self.output(x)
            return y
        assert words is not None
        return ops.linear(x, words.value, None if self.bias is None else self.bias.value)


class Bert(nn.Module, EncoderTasks):
    """An encoder, which `encode`s texts and, by its head, fills masks, classifies, tags, answers.

    `Bert(BertConfig(...))` has random weights; `softgate.load` reads a checkpoint; `to` moves a
    model to a device, which changes nothing of what its methods take and give. A loaded model has
    its `tokenizer` (None when the checkpoint has none) and its sentence `pooling`.
    """

    config: BertConfig
    tokenizer: Tokenizer | None

    def __init__(
        self,
        config: BertConfig,
        *,
        pooler: bool = True,
        dtype: ops.WeightType = "float32",
        seed: int | None = 0,
    ) -> None:
        """pooler: with that of the first token, where the family has one and there is no head.
        dtype: of the weights of products, see `ops.pack`. seed: of the random weights; None leaves
        the weights to `load_state_dict`."""
        self.config = config
        hidden_size, eps = config.hidden_size, config.layer_norm_eps
        words_tied = config.task == "masked-lm" and config.tie_word_embeddings
        tables = [config.vocab_size]
        if config.rope is None:
            tables.append(config.max_position_embeddings)
        if config.type_vocab_size:
            tables.append(config.type_vocab_size)
        self.embedding = nn.Embedding(
            tables, config.embedding_width, eps, norm_bias=config.norm_bias, packed=words_tied
        )
        self.embedding_projection = (
            nn.Linear(config.embedding_width, hidden_size) if config.embedding_projection else None
        )
        self.relative_bias = (
            nn.RelativeBias(
                config.relative_attention_num_buckets,
                config.num_attention_heads,
                BUCKETS,
                BUCKETS_REACH,
            )
            if config.relative_attention_num_buckets
            else None
        )
        self.layers = [BertLayer(config, i) for i in range(config.num_layers_kept)]
        self.norm = nn.AddNorm(hidden_size, eps, config.norm_bias) if config.pre_norm else None
        self.pooler = (
            nn.Linear(hidden_size, hidden_size)
            if pooler and config.has_pooler and config.task is None
            else None
        )
        self.head = None if config.task is None else BertHead(config)
        self.ropes = {
            kind: nn.Rope(rope, config.head_dim, config.max_position_embeddings)
            for kind, rope in config.ropes().items()
        }
        self.tokenizer = None
        self.sentence_pooling = SentencePooling()
        for _, parameter in self.named_parameters():
            if parameter.packed:
                parameter.dtype = dtype
        if seed is not None:
            self.init_weights(seed)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        device: str | None = None,
        dtype: ops.WeightType | None = None,
    ) -> Bert:
        """Read an open checkpoint; see `softgate.load`."""
        try:
            config = BertConfig.from_dict(checkpoint.config)
            found = checkpoint.tensors
            names = canonical_names(
                config.model_type, found, config.task, config.tie_word_embeddings
            )
            pooler = any(name.startswith("pooler.") for name in names)
            model = cls(config, pooler=pooler, seed=None)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.spec}: {error}") from None
        if checkpoint.packed:
            load_packed(model, checkpoint, dtype)
        else:
            table = model._sources()
            _check_labels(config, table, names, checkpoint)
            load_weights(model, table, names, checkpoint, dtype)
        model.to(device)
        model.sentence_pooling = SentencePooling.from_checkpoint(checkpoint)
        model.tokenizer = Tokenizer.from_checkpoint(checkpoint)
        return model

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that softgate, transformers and sentence-transformers read; one that only
        softgate reads, bit for bit, when weights are quantised.

        Raises ValueError when the config differs from what its model_type can say.
        """
        config = self.config.to_dict()
        files: dict[str, Path | bytes] = {}
        if self.config.task is None:
            files |= {
                name: json.dumps(content, indent=2).encode()
                for name, content in self.sentence_pooling.files(self.config.hidden_size).items()
            }
        if self.tokenizer is not None:
            files |= self.tokenizer.to_files(token_types=self.config.type_vocab_size > 1)
        save_weights(self, self._sources(), config, folder, files)

    def _sources(self) -> dict[str, Source]:
        shapes = {name: parameter.shape for name, parameter in self.named_parameters()}
        config = self.config
        return sources(config.model_type, shapes, config.task, config.inner_group_num)

    @property
    def pooling(self) -> ops.Pooling:
        """How `encode` makes one vector of a text's tokens."""
        return self.sentence_pooling.mode

    @property
    def max_length(self) -> int:
        """The most tokens a text may have, special tokens included."""
        return min(
            self.config.max_length, self.sentence_pooling.max_length or self.config.max_length
        )

    def forward(
        self,
        input_ids: Sequence[Sequence[int]] | IntArray | Tensor,
        attention_mask: npt.NDArray[Any] | None = None,
        token_type_ids: Sequence[Sequence[int]] | IntArray | Tensor | None = None,
        *,
        cu_seqlens: SequenceOffsets | IntArray | Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BertOutput:
        """Hidden states of a batch, and the head's logits.

        input_ids: a list of lists of ids, any lengths, which gives packed output; or an integer
        array `[batch, length]`, with an attention_mask of that shape (nonzero keeps a token;
        absent keeps all), which gives padded output. token_type_ids: shaped like input_ids, zeros
        when absent. Padding is never computed. Whatever the model's device, the ids go up to it
        and what is asked for comes back.

        input_ids may also be a packed int32 or int64 Tensor `[total_tokens]` on the model's device,
        with `cu_seqlens`. Its ids are not looked at, except on the CPU: one outside the vocabulary
        gives NaN. Nothing comes back to the host, so that this can be captured in a graph if
        cu_seqlens are `SequenceOffsets`.

        Raises ValueError for ids outside the vocabulary, sequences longer than the positions, token
        types where the model has none, and a mask with holes where positions are relative.
        """
        if isinstance(input_ids, Tensor):
            if attention_mask is not None:
                raise ValueError("attention_mask is for a padded array, not for packed Tensors")
            ids, offsets = self._packed_tensors(input_ids, token_type_ids, cu_seqlens)
            given: Any = cu_seqlens
            takes: _Takes = (_as_it_is, _as_it_is, _as_it_is)
        else:
            if cu_seqlens is not None or isinstance(token_type_ids, Tensor):
                raise ValueError("cu_seqlens and Tensors are for input_ids in a packed Tensor")
            batch = self._pack(input_ids, attention_mask, token_type_ids)
            ids = self._uploaded(batch)
            given = batch.cu_seqlens
            offsets = SequenceOffsets(given, self.device)
            takes = (fetched, batch.states, batch.weights)
        take, take_states, take_weights = takes
        hidden_states = []
        attentions = []
        for x, weights in self._states(ids, offsets, output_attentions):
            if output_hidden_states:
                hidden_states.append(take_states(x))
            if weights is not None:
                attentions.append(take_weights(weights))
        pooled = self._pool_first(x, offsets)
        logits = None
        if self.head is not None:
            for_texts = self.config.task == "sequence-classification"
            logits = (take if for_texts else take_states)(self._logits(x, offsets))
        return BertOutput(
            last_hidden_state=hidden_states[-1] if hidden_states else take_states(x),
            pooler_output=None if pooled is None else take(pooled),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cu_seqlens=given,
            logits=logits,
        )

    def attention_map(
        self, text: str | Sequence[int], *, layer: int | None = None, head: int | None = None
    ) -> AttentionMap:
        """How much each token of a text looked at each.

        text: or token ids. layer, head: from 0; None takes the mean of all.

        Raises ValueError for a layer or a head that is not there, a text that is empty or too long
        and one where there is no tokenizer.
        """
        if isinstance(text, str):
            text = self._require_tokenizer("attention_map").ids(text)
        ids = list(text)
        if not ids:
            raise ValueError("text has no tokens")
        batch = self._pack([ids], None, None)
        states = self._states(
            self._uploaded(batch), SequenceOffsets(batch.cu_seqlens, self.device), True
        )
        config = self.config
        weights = mean_weights(
            (fetched(weights)[0] for _, weights in states if weights is not None),
            len(config.layer_order),
            config.num_attention_heads,
            layer,
            head,
        )
        return AttentionMap(weights, tokens := pieces(self.tokenizer, ids), tokens)

    def _states(
        self,
        ids: tuple[Tensor, ...],
        cu_seqlens: SequenceOffsets,
        return_weights: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The embedding's output, then each layer's with its attention weights.

        ids: `[total_tokens]` for each table of the embedding.
        """
        x: Tensor = self.embedding(*ids)
        if self.embedding_projection is not None:
            x = self.embedding_projection(x)
        yield x, None
        where: dict[str, dict[str, Any]] = {}
        if self.relative_bias is not None:
            bias = self.relative_bias()
            where = {kind: {"relative_bias": bias} for kind in self.config.kinds}
        for kind, rope in self.ropes.items():
            where[kind] = {"rope": rope.tables(max(cu_seqlens.longest, 1), self.device)}
        order = self.config.layer_order
        for i, layer in enumerate(map(self.layers.__getitem__, order), 1):
            x, weights = layer(x, cu_seqlens, return_weights, **where.get(layer.kind, {}))
            if i == len(order) and self.norm is not None:
                x = self.norm(x)
            yield x, weights

    def _pool_first(self, x: Tensor, cu_seqlens: SequenceOffsets) -> Tensor | None:
        if self.pooler is None:
            return None
        pooled: Tensor = self.pooler(ops.pool(x, cu_seqlens, "cls"), activation="tanh")
        return pooled

    def _logits(self, x: Tensor, cu_seqlens: SequenceOffsets | None) -> Tensor:
        """The head's, of all tokens, or of texts where it is for those."""
        assert self.head is not None
        if self.config.task == "sequence-classification" and cu_seqlens is not None:
            mode: ops.Pooling = "mean" if self.config.classifier_pooling == "mean" else "cls"
            x = ops.pool(x, cu_seqlens, mode)
        logits: Tensor = self.head(x, self.embedding.word)
        return logits

    def _packed_tensors(
        self, input_ids: Tensor, token_type_ids: Any, cu_seqlens: Any
    ) -> tuple[tuple[Tensor, ...], SequenceOffsets]:
        """What `_states` takes, of ids that are packed and on the device."""
        if cu_seqlens is None:
            raise ValueError("input_ids in a Tensor are packed: expected cu_seqlens")
        if token_type_ids is not None and not isinstance(token_type_ids, Tensor):
            raise TypeError("token_type_ids: expected a Tensor, as input_ids are")
        self._check_types(token_type_ids)
        offsets = (
            cu_seqlens
            if isinstance(cu_seqlens, SequenceOffsets)
            else SequenceOffsets(cu_seqlens, self.device)
        )
        self._check_longest(offsets.longest)
        first = 0 if self.config.position_pad_id is None else self.config.position_pad_id + 1
        places = positions(np.diff(offsets.numpy())) + first
        if token_type_ids is not None:
            return self._for_tables(
                input_ids, Tensor(places).to(self.device), token_type_ids
            ), offsets
        together = Tensor(np.stack([places, np.zeros_like(places)])).to(self.device)
        return self._for_tables(input_ids, together[0], together[1]), offsets

    def _uploaded(self, batch: Packed) -> tuple[Tensor, ...]:
        """The ids that `_states` takes, in one upload."""
        ids = (batch.input_ids, batch.position_ids, batch.token_type_ids)
        if self.device == "cpu":  # where embedding looks at them
            return self._for_tables(Tensor(ids[0]), Tensor(ids[1]), Tensor(ids[2]))
        tables = {"input_ids": self.config.vocab_size}
        if self.config.type_vocab_size:
            tables["token_type_ids"] = self.config.type_vocab_size
        for name, rows in tables.items():
            given = getattr(batch, name)
            if (wrong := (given < 0) | (given >= rows)).any():
                i = int(wrong.argmax())
                raise ValueError(f"{name}: token {i} is {given[i]}, expected 0 <= id < {rows}")
        together = Tensor(np.stack(ids)).to(self.device)
        return self._for_tables(together[0], together[1], together[2])

    def _for_tables(self, words: Tensor, places: Tensor, types: Tensor) -> tuple[Tensor, ...]:
        """Of ids of all kinds, those that the model has a table for."""
        ids = [words]
        if self.config.rope is None:
            ids.append(places)
        if self.config.type_vocab_size:
            ids.append(types)
        return tuple(ids)

    def _check_longest(self, longest: int) -> None:
        if longest > self.config.max_length:
            raise ValueError(
                f"input_ids: the longest sequence has {longest} tokens, expected at most "
                f"{self.config.max_length}"
            )

    def _check_types(self, token_type_ids: object) -> None:
        if token_type_ids is not None and not self.config.type_vocab_size:
            raise ValueError(f"token_type_ids: a {self.config.model_type} model has no token types")

    def _pack(
        self,
        input_ids: Sequence[Sequence[int]] | IntArray,
        attention_mask: npt.NDArray[Any] | None,
        token_type_ids: Sequence[Sequence[int]] | IntArray | None,
    ) -> Packed:
        self._check_types(token_type_ids)
        pad_id = self.config.position_pad_id
        if isinstance(input_ids, np.ndarray):
            batch = pack_padded(input_ids, attention_mask, token_type_ids, pad_id)
        else:
            if attention_mask is not None:
                raise ValueError("attention_mask is for input_ids as an array, not for a list")
            batch = pack_lists(input_ids, token_type_ids, pad_id)
        first = 0 if pad_id is None else pad_id + 1
        self._check_longest(batch.position_ids.max(initial=first - 1) + 1 - first)
        if self.config.has_relative_positions and batch.has_holes:
            raise ValueError(
                "attention_mask: padding between tokens, expected it at the ends of sequences: "
                f"a {self.config.model_type} model has relative positions"
            )
        return batch


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _check_labels(
    config: BertConfig, table: dict[str, Source], names: dict[str, str], checkpoint: Checkpoint
) -> None:
    """Raise CheckpointError when the head has another number of labels than the config."""
    if config.task in (None, "masked-lm"):
        return
    (name,) = table["head.output.weight"].names
    shape = checkpoint.shapes[names[name]] if name in names else ()
    if shape and shape[0] != len(config.labels):
        raise CheckpointError(
            f"{checkpoint.spec}: config.json has {len(config.labels)} labels, {names[name]} has "
            f"{shape[0]} rows"
        )

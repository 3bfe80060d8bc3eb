"""BERT (Devlin et al. 2018): a Transformer encoder with layer norm after each residual."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from softgate import nn, ops
from softgate._core import SequenceOffsets, Tensor
from softgate.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from softgate.checkpoint.bert import bert_names, canonical_names
from softgate.checkpoint.names import check_names, join, split
from softgate.models.pooling import SentencePooling
from softgate.text import Encoding, Tokenizer

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.integer[Any]]

# Hugging Face's names of activations and ours.
_ACTIVATIONS: dict[str, ops.Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_MAX_SIZE = 2**31 - 1
# What becomes of results: of those of sequences, of states and of attention weights.
_Takes: TypeAlias = tuple[Callable[[Tensor], Any], Callable[[Tensor], Any], Callable[[Tensor], Any]]


@dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT encoder, named as in Hugging Face's config.json.

    Raises ValueError that names the field whose value makes no sense.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("hidden_act", "layer_norm_eps"):
                continue
            if type(value) is not int or not 1 <= value <= _MAX_SIZE:
                raise ValueError(
                    f"config: {name} is {value!r}, expected an integer from 1 to {_MAX_SIZE}"
                )
        if not isinstance(self.hidden_act, str) or self.hidden_act not in _ACTIVATIONS:
            raise ValueError(
                f"config: hidden_act is {self.hidden_act!r}, expected one of {sorted(_ACTIVATIONS)}"
            )
        eps = self.layer_norm_eps
        if not isinstance(eps, (int, float)) or not 0 <= eps <= 1:
            raise ValueError(f"config: layer_norm_eps is {eps!r}, expected a number from 0 to 1")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"config: hidden_size is {self.hidden_size}, expected a multiple of "
                f"num_attention_heads, {self.num_attention_heads}"
            )
        if self.hidden_size // self.num_attention_heads > 256:
            raise ValueError(
                f"config: heads of {self.hidden_size // self.num_attention_heads}, expected "
                "hidden_size / num_attention_heads to be at most 256"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> BertConfig:
        """Read config.json. The sizes must be there; the rest has Hugging Face's defaults."""
        required = (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        )
        missing = [name for name in required if name not in config]
        if missing:
            raise ValueError(f"config: {', '.join(missing)} missing")
        positions = config.get("position_embedding_type", "absolute")
        if positions != "absolute":
            raise ValueError(
                f"config: position_embedding_type is {positions!r}, expected 'absolute'"
            )
        for name in ("is_decoder", "add_cross_attention"):
            if config.get(name):
                raise ValueError(f"config: {name} is {config[name]!r}, expected false")
        return cls(**{name: config[name] for name in cls.__dataclass_fields__ if name in config})


@dataclass
class BertOutput:
    """What a forward pass gives: padded arrays for padded ids, packed ones for lists of ids.

    last_hidden_state: `[batch, length, hidden_size]`, zeros in the padding, or
    `[total_tokens, hidden_size]`. pooler_output: `[batch, hidden_size]`, None without a pooler.
    hidden_states: on request, the embedding's output and each layer's, shaped alike. attentions:
    on request, each layer's weights, `[batch, num_heads, length, length]`, zeros in the padding.
    cu_seqlens: int32 `[batch + 1]`, where each sequence starts in packed arrays.

    All are float32 NumPy arrays; for ids in a Tensor they are packed Tensors on the model's device
    and of its dtype (attentions: float32), and cu_seqlens is what was given.
    """

    last_hidden_state: Any
    pooler_output: Any
    hidden_states: tuple[Any, ...] | None
    attentions: tuple[Any, ...] | None
    cu_seqlens: Any


@dataclass
class _Packed:
    """A batch without padding."""

    input_ids: IntArray
    token_type_ids: IntArray
    position_ids: IntArray
    cu_seqlens: npt.NDArray[np.int32]
    kept: npt.NDArray[np.bool_] | None = field(default=None)  # [batch, length], None when packed

    @property
    def lengths(self) -> IntArray:
        return np.diff(self.cu_seqlens)

    def states(self, tensor: Tensor) -> FloatArray:
        """[total_tokens, hidden] to [batch, length, hidden], when the batch came padded."""
        values = _fetched(tensor)
        if self.kept is None:
            return values
        padded = np.zeros((*self.kept.shape, values.shape[-1]), dtype=np.float32)
        padded[self.kept] = values
        return padded

    def weights(self, tensor: Tensor) -> FloatArray:
        """Attention weights between kept tokens to weights between all."""
        weights = _fetched(tensor)
        if self.kept is None:
            return weights
        batch, length = self.kept.shape
        padded = np.zeros((batch, weights.shape[1], length, length), dtype=np.float32)
        for i, kept in enumerate(self.kept):
            (index,) = kept.nonzero()
            n = len(index)
            padded[i][:, index[:, None], index] = weights[i, :, :n, :n]
        return padded


class BertLayer(nn.Module):
    """Attention, add and norm, feed-forward, add and norm."""

    def __init__(self, config: BertConfig) -> None:
        hidden_size, eps = config.hidden_size, config.layer_norm_eps
        self.attention = nn.Attention(hidden_size, config.num_attention_heads)
        self.attention_norm = nn.AddNorm(hidden_size, eps)
        self.feed_forward = nn.FeedForward(
            hidden_size, config.intermediate_size, _ACTIVATIONS[config.hidden_act]
        )
        self.feed_forward_norm = nn.AddNorm(hidden_size, eps)

    def forward(
        self, x: Tensor, cu_seqlens: Tensor, return_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x and the result: `[total_tokens, hidden_size]`."""
        attended, weights = self.attention(x, cu_seqlens, return_weights)
        x = self.attention_norm(attended, x)
        return self.feed_forward_norm(self.feed_forward(x), x), weights


class Bert(nn.Module):
    """A BERT encoder.

    `Bert(BertConfig(...))` has random weights; `softgate.load` reads a checkpoint; `to` moves a
    model to a device, which changes nothing of what its methods take and give. A loaded model has
    its `tokenizer` (None when the checkpoint has none) and its sentence `pooling`.
    """

    tokenizer: Tokenizer | None

    def __init__(self, config: BertConfig, *, pooler: bool = True, seed: int | None = 0) -> None:
        """seed: of the random weights; None leaves the weights to `load_state_dict`."""
        self.config = config
        tables = (config.vocab_size, config.max_position_embeddings, config.type_vocab_size)
        self.embedding = nn.Embedding(tables, config.hidden_size, config.layer_norm_eps)
        self.layers = [BertLayer(config) for _ in range(config.num_hidden_layers)]
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if pooler else None
        self.tokenizer = None
        self.sentence_pooling = SentencePooling()
        if seed is not None:
            self.init_weights(seed)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, device: str | None = None, dtype: str | None = None
    ) -> Bert:
        """Read an open checkpoint; see `softgate.load`."""
        try:
            config = BertConfig.from_dict(checkpoint.config)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.spec}: {error}") from None
        names = canonical_names(checkpoint.tensors)
        model = cls(config, pooler="pooler.dense.weight" in names, seed=None).to(device, dtype)
        table = bert_names(config.num_hidden_layers, model.pooler is not None)
        parameters = dict(model.named_parameters())
        check_names(
            table,
            {name: parameter.shape for name, parameter in parameters.items()},
            {ours: checkpoint.shapes[theirs] for ours, theirs in names.items()},
        )
        for name, parameter in parameters.items():
            parameter.fill(join((names[part] for part in table[name]), checkpoint.tensors))
        model.sentence_pooling = SentencePooling.from_checkpoint(checkpoint)
        tokenizer = checkpoint.file("tokenizer.json")
        if tokenizer is not None:
            model.tokenizer = Tokenizer.from_file(tokenizer)
        return model

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that softgate, transformers and sentence-transformers read."""
        config = {
            **asdict(self.config),
            "model_type": "bert",
            "architectures": ["BertModel"],
            "position_embedding_type": "absolute",
        }
        table = bert_names(self.config.num_hidden_layers, self.pooler is not None)
        files: dict[str, Path | bytes] = {
            name: json.dumps(content, indent=2).encode()
            for name, content in self.sentence_pooling.files(self.config.hidden_size).items()
        }
        if self.tokenizer is not None:
            files["tokenizer.json"] = self.tokenizer.to_json().encode()
        save_checkpoint(Path(folder), config, split(table, self.state_dict()), files)

    @property
    def pooling(self) -> ops.Pooling:
        """How `encode` makes one vector of a text's tokens."""
        return self.sentence_pooling.mode

    @property
    def max_length(self) -> int:
        """The most tokens a text may have, special tokens included."""
        positions = self.config.max_position_embeddings
        return min(positions, self.sentence_pooling.max_length or positions)

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
        """Hidden states of a batch.

        input_ids: a list of lists of ids, any lengths, which gives packed output; or an integer
        array `[batch, length]`, with an attention_mask of that shape (nonzero keeps a token;
        absent keeps all), which gives padded output. token_type_ids: shaped like input_ids, zeros
        when absent. Padding is never computed. Whatever the model's device, the ids go up to it
        and what is asked for comes back.

        input_ids may also be a packed int32 or int64 Tensor `[total_tokens]` on the model's device,
        with `cu_seqlens`. Its ids are not looked at, except on the CPU: one outside the vocabulary
        gives NaN. Nothing comes back to the host, so that this can be captured in a graph if
        cu_seqlens are `SequenceOffsets`.

        Raises ValueError for ids outside the vocabulary and sequences longer than the positions.
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
            takes = (_fetched, batch.states, batch.weights)
        take, take_states, take_weights = takes
        hidden_states = []
        attentions = []
        for x, weights in self._states(ids, offsets, output_attentions):
            if output_hidden_states:
                hidden_states.append(take_states(x))
            if weights is not None:
                attentions.append(take_weights(weights))
        pooled = self._pool_first(x, offsets)
        return BertOutput(
            last_hidden_state=hidden_states[-1] if hidden_states else take_states(x),
            pooler_output=None if pooled is None else take(pooled),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cu_seqlens=given,
        )

    def encode(
        self,
        texts: Sequence[str],
        *,
        normalize: bool | None = None,
        max_length: int | None = None,
        truncate: bool = False,
        batch_tokens: int = 4096,
    ) -> FloatArray:
        """One vector a text, `[len(texts), hidden_size]`, pooled as the checkpoint says.

        normalize: to length 1; None does what the checkpoint says. max_length: tokens of a text,
        at most the model's. A longer text raises ValueError, or with truncate loses its end and a
        warning says how many did. batch_tokens: tokens computed at a time.
        """
        if self.tokenizer is None:
            raise ValueError("encode: the model has no tokenizer.json")
        limit = self.max_length if max_length is None else max_length
        if not 1 <= limit <= self.max_length:
            raise ValueError(f"encode: max_length is {limit}, expected 1 to {self.max_length}")
        if batch_tokens < 1:
            raise ValueError(f"encode: batch_tokens is {batch_tokens}, expected at least 1")
        encodings = self.tokenizer.encode(texts, max_length=limit, truncate=truncate)
        truncated = sum(encoding.truncated for encoding in encodings)
        if truncated:
            warnings.warn(
                f"{truncated} of {len(texts)} texts were cut to {limit} tokens", stacklevel=2
            )
        vectors = np.empty((len(encodings), self.config.hidden_size), dtype=np.float32)
        for start, stop in _batches([len(encoding.ids) for encoding in encodings], batch_tokens):
            vectors[start:stop] = self.encode_batch(encodings[start:stop], normalize=normalize)
        return vectors

    def encode_batch(
        self, encodings: Sequence[Encoding], *, normalize: bool | None = None
    ) -> FloatArray:
        """What `encode` gives, of texts already tokenized, in one batch."""
        batch = self._pack(
            [encoding.ids for encoding in encodings],
            None,
            [encoding.type_ids for encoding in encodings],
        )
        offsets = SequenceOffsets(batch.cu_seqlens, self.device)
        for x, _ in self._states(self._uploaded(batch), offsets):
            last = x
        vectors = ops.pool(last, offsets, self.pooling)
        if self.sentence_pooling.normalize if normalize is None else normalize:
            ops.normalize(vectors, out=vectors)
        return _fetched(vectors)

    def _states(
        self,
        ids: tuple[Tensor, Tensor, Tensor],
        cu_seqlens: SequenceOffsets,
        return_weights: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The embedding's output, then each layer's with its attention weights.

        ids: of tokens, positions and types, `[total_tokens]` each.
        """
        x: Tensor = self.embedding(*ids)
        yield x, None
        for layer in self.layers:
            x, weights = layer(x, cu_seqlens, return_weights)
            yield x, weights

    def _pool_first(self, x: Tensor, cu_seqlens: SequenceOffsets) -> Tensor | None:
        if self.pooler is None:
            return None
        pooled: Tensor = self.pooler(ops.pool(x, cu_seqlens, "cls"), activation="tanh")
        return pooled

    def _packed_tensors(
        self, input_ids: Tensor, token_type_ids: Any, cu_seqlens: Any
    ) -> tuple[tuple[Tensor, Tensor, Tensor], SequenceOffsets]:
        """What `_states` takes, of ids that are packed and on the device."""
        if cu_seqlens is None:
            raise ValueError("input_ids in a Tensor are packed: expected cu_seqlens")
        if token_type_ids is not None and not isinstance(token_type_ids, Tensor):
            raise TypeError("token_type_ids: expected a Tensor, as input_ids are")
        offsets = (
            cu_seqlens
            if isinstance(cu_seqlens, SequenceOffsets)
            else SequenceOffsets(cu_seqlens, self.device)
        )
        lengths = np.diff(offsets.numpy())
        self._check_longest(lengths.max(initial=0))
        positions = _positions(lengths)
        if token_type_ids is not None:
            return (input_ids, Tensor(positions).to(self.device), token_type_ids), offsets
        together = Tensor(np.stack([positions, np.zeros_like(positions)])).to(self.device)
        return (input_ids, together[0], together[1]), offsets

    def _uploaded(self, batch: _Packed) -> tuple[Tensor, Tensor, Tensor]:
        """The ids that `_states` takes, in one upload."""
        ids = (batch.input_ids, batch.position_ids, batch.token_type_ids)
        if self.device == "cpu":  # where embedding looks at them
            return Tensor(ids[0]), Tensor(ids[1]), Tensor(ids[2])
        tables = {
            "input_ids": self.config.vocab_size,
            "token_type_ids": self.config.type_vocab_size,
        }
        for name, rows in tables.items():
            given = getattr(batch, name)
            if (wrong := (given < 0) | (given >= rows)).any():
                i = int(wrong.argmax())
                raise ValueError(f"{name}: token {i} is {given[i]}, expected 0 <= id < {rows}")
        together = Tensor(np.stack(ids)).to(self.device)
        return together[0], together[1], together[2]

    def _check_longest(self, longest: int) -> None:
        if longest > self.config.max_position_embeddings:
            raise ValueError(
                f"input_ids: the longest sequence has {longest} tokens, expected at most "
                f"{self.config.max_position_embeddings}"
            )

    def _pack(
        self,
        input_ids: Sequence[Sequence[int]] | IntArray,
        attention_mask: npt.NDArray[Any] | None,
        token_type_ids: Sequence[Sequence[int]] | IntArray | None,
    ) -> _Packed:
        if isinstance(input_ids, np.ndarray):
            batch = _pack_padded(input_ids, attention_mask, token_type_ids)
        else:
            if attention_mask is not None:
                raise ValueError("attention_mask is for input_ids as an array, not for a list")
            batch = _pack_lists(input_ids, token_type_ids)
        self._check_longest(batch.position_ids.max(initial=-1) + 1)
        return batch


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _fetched(tensor: Tensor) -> FloatArray:
    """On the host, in float32."""
    array: FloatArray = tensor.to("cpu", "float32").numpy()
    return array


def _positions(lengths: Sequence[int] | IntArray) -> npt.NDArray[np.int64]:
    """Of the tokens in their sequences."""
    each = [np.arange(n, dtype=np.int64) for n in lengths]
    return np.concatenate(each) if each else np.empty(0, dtype=np.int64)


def _cu_seqlens(lengths: Sequence[int] | IntArray) -> npt.NDArray[np.int32]:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] > _MAX_SIZE:
        raise ValueError(f"input_ids: {offsets[-1]} tokens, expected at most {_MAX_SIZE}")
    return offsets.astype(np.int32)


def _flatten(name: str, rows: Sequence[Sequence[int]] | IntArray) -> npt.NDArray[np.int64]:
    if not all(isinstance(row, Sequence | np.ndarray) for row in rows):
        raise TypeError(f"{name}: expected a list of lists of integers")
    flat = [token for row in rows for token in row]
    ids = np.asarray(flat) if flat else np.empty(0, dtype=np.int64)
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise TypeError(f"{name}: expected a list of lists of integers")
    return ids.astype(np.int64, copy=False)


def _pack_lists(
    input_ids: Sequence[Sequence[int]], token_type_ids: Sequence[Sequence[int]] | IntArray | None
) -> _Packed:
    ids = _flatten("input_ids", input_ids)
    lengths = [len(row) for row in input_ids]
    if token_type_ids is None:
        types = np.zeros_like(ids)
    else:
        if [len(row) for row in token_type_ids] != lengths:
            raise ValueError("token_type_ids: lengths differ from those of input_ids")
        types = _flatten("token_type_ids", token_type_ids)
    return _Packed(ids, types, _positions(lengths), _cu_seqlens(lengths))


def _pack_padded(
    input_ids: IntArray,
    attention_mask: npt.NDArray[Any] | None,
    token_type_ids: Sequence[Sequence[int]] | IntArray | None,
) -> _Packed:
    types = np.zeros_like(input_ids) if token_type_ids is None else np.asarray(token_type_ids)
    for name, ids in (("input_ids", input_ids), ("token_type_ids", types)):
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise ValueError(
                f"{name}: {ids.dtype} array of shape {list(ids.shape)}, expected integers of "
                "[batch, length]"
            )
    kept: npt.NDArray[np.bool_] = np.ones(input_ids.shape, dtype=bool)
    if attention_mask is not None:
        kept = np.asarray(attention_mask) != 0
    for name, array in (("attention_mask", kept), ("token_type_ids", types)):
        if array.shape != input_ids.shape:
            raise ValueError(
                f"{name}: shape {list(array.shape)}, expected that of input_ids, "
                f"{list(input_ids.shape)}"
            )
    positions = np.broadcast_to(np.arange(kept.shape[-1]), kept.shape)[kept]
    return _Packed(
        input_ids[kept].astype(np.int64),
        types[kept].astype(np.int64),
        positions,
        _cu_seqlens(kept.sum(axis=1)),
        kept,
    )


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges of texts with at most batch_tokens tokens in all, or one text."""
    start = tokens = 0
    for i, length in enumerate(lengths):
        if i > start and tokens + length > batch_tokens:
            yield start, i
            start = i
            tokens = 0
        tokens += length
    if start < len(lengths):
        yield start, len(lengths)

"""Transformer encoder-decoders (Vaswani et al. 2017): BART, mBART, Marian and T5 too, which differ
in their config."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from softgate import nn, ops
from softgate._core import SequenceOffsets, Tensor
from softgate.checkpoint import Checkpoint, CheckpointError
from softgate.checkpoint.names import Source
from softgate.checkpoint.transformer import HEAD, HEAD_BIAS, canonical_names, sources
from softgate.generation import BeamSearch, EncoderDecoder
from softgate.generation.beam import Advance
from softgate.generation.beam_cache import BeamRows
from softgate.models.gpt_config import ACTIVATIONS
from softgate.models.packing import fetched, positions
from softgate.models.sequences import Batch, PackedIds, pack_ids
from softgate.models.transformer_config import OWN, TransformerConfig
from softgate.models.transformer_settings import read_settings, write_settings
from softgate.models.weights import load_packed, load_weights, save_weights
from softgate.text import MarianTokenizer, Tokenizer

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

_SIDES = ("source", "target")  # folders of the tokenizers


@dataclass
class TransformerOutput:
    """What a forward pass gives, in float32.

    logits: `[total_tokens, vocab_size]` for targets in lists, padded with zeros,
    `[batch, length, vocab_size]`, for an array. encoder_last_hidden_state: `[.., hidden_size]`, as
    the sources came. On request each layer's attention weights, zeros outside of the sequences:
    encoder_attentions, `[batch, num_heads, max_source, max_source]`, decoder_attentions, `[batch,
    num_heads, max_target, max_target]`, and cross_attentions, `[batch, num_heads, max_target,
    max_source]`.
    """

    logits: FloatArray
    encoder_last_hidden_state: FloatArray
    encoder_attentions: list[FloatArray] | None = None
    decoder_attentions: list[FloatArray] | None = None
    cross_attentions: list[FloatArray] | None = None


@dataclass(frozen=True)
class Encoded:
    """Sources that have been read: states, `[total_tokens, hidden_size]` on the model's device,
    and where each source starts."""

    states: Tensor
    cu_seqlens: SequenceOffsets


def _norm(config: TransformerConfig) -> nn.Norm | nn.AddNorm:
    """Of a layer: before a part of it, or after the addition."""
    if config.pre_norm:
        return nn.Norm(config.hidden_size, config.norm_eps, config.norm)
    return nn.AddNorm(config.hidden_size, config.norm_eps)


def _feed_forward(config: TransformerConfig, size: int) -> nn.FeedForward:
    activation = ACTIVATIONS[config.activation]
    return nn.FeedForward(
        config.hidden_size, size, activation, gated=config.gated, bias=config.bias
    )


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each added to its input, with a norm before or after."""

    def __init__(self, config: TransformerConfig) -> None:
        self.pre_norm = config.pre_norm
        self.attention_norm = _norm(config)
        self.attention = nn.Attention(
            config.hidden_size,
            config.encoder_attention_heads,
            config.head_dim,
            bias=config.bias,
            scale=None if config.scale_attention else 1.0,
        )
        self.feed_forward_norm = _norm(config)
        self.feed_forward = _feed_forward(config, config.encoder_ffn_dim)

    def forward(
        self, x: Tensor, cu_seqlens: SequenceOffsets, return_weights: bool, **bias: Any
    ) -> tuple[Tensor, Tensor | None]:
        """x and the result: `[total_tokens, hidden_size]`; bias: attention's."""
        if self.pre_norm:
            y = self.attention_norm(x)
            x, weights = self.attention(y, cu_seqlens, return_weights, residual=x, **bias)
            return self.feed_forward(self.feed_forward_norm(x), x), weights
        y, weights = self.attention(x, cu_seqlens, return_weights, **bias)
        x = self.attention_norm(y, x)
        return self.feed_forward_norm(self.feed_forward(x), x), weights


class DecoderLayer(nn.Module):
    """Attention to the target so far, attention to the source, feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        hidden_size, heads = config.hidden_size, config.decoder_attention_heads
        head_dim = config.head_size(heads)
        scale = None if config.scale_attention else 1.0
        self.pre_norm = config.pre_norm
        self.attention_norm = _norm(config)
        self.attention = nn.CachedAttention(
            hidden_size,
            heads,
            heads,
            head_dim,
            qkv_bias=config.bias,
            output_bias=config.bias,
            scale=scale,
        )
        self.cross_attention_norm = _norm(config)
        self.cross_attention = nn.CrossAttention(
            hidden_size, heads, head_dim, bias=config.bias, scale=scale
        )
        self.feed_forward_norm = _norm(config)
        self.feed_forward = _feed_forward(config, config.decoder_ffn_dim)

    def forward(
        self,
        x: Tensor,
        step: nn.Step,
        cache: tuple[Tensor, Tensor],
        keys: nn.Keys,
        cu_queries: SequenceOffsets,
        return_weights: bool,
        **bias: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x and the result: `[total_tokens, hidden_size]`; keys: of the sources. Then the weights
        of attention to the target and to the source."""
        own = {"return_weights": return_weights, **bias}
        source = (keys, cu_queries, return_weights)
        if self.pre_norm:
            x, weights = self.attention(self.attention_norm(x), step, cache, residual=x, **own)
            x, cross_weights = self.cross_attention(self.cross_attention_norm(x), *source, x)
            return self.feed_forward(self.feed_forward_norm(x), x), weights, cross_weights
        y, weights = self.attention(x, step, cache, **own)
        x = self.attention_norm(y, x)
        y, cross_weights = self.cross_attention(x, *source)
        x = self.cross_attention_norm(y, x)
        return self.feed_forward_norm(self.feed_forward(x), x), weights, cross_weights


class Side(nn.Module):
    """What encoder and decoder are made of alike: positions, layers, norms around them."""

    def __init__(self, config: TransformerConfig, layers: list[Any], causal: bool) -> None:
        hidden_size, eps, size = config.hidden_size, config.norm_eps, config.max_position_embeddings
        self.position_offset = config.position_offset
        self.sinusoids = (
            nn.Sinusoids(size, hidden_size, in_halves=config.positions == "sinusoidal_halves")
            if config.positions.startswith("sinusoidal")
            else None
        )
        self.positions = (
            nn.Parameter(size + config.position_offset, hidden_size)
            if config.positions == "learned"
            else None
        )
        heads = config.decoder_attention_heads if causal else config.encoder_attention_heads
        self.relative_bias = (
            nn.RelativeBias(
                config.relative_attention_num_buckets,
                heads,
                config.relative_attention_num_buckets,
                config.relative_attention_max_distance,
                causal=causal,
            )
            if config.positions == "relative"
            else None
        )
        self.embedding_norm = nn.AddNorm(hidden_size, eps) if config.embedding_norm else None
        self.layers = layers
        scale = hidden_size**-0.5 if causal and config.scale_output else 1.0
        self.norm = (
            nn.Norm(hidden_size, eps, config.norm, scale=scale) if config.final_norm else None
        )

    def embed(self, table: Any, ids: Tensor, places: Tensor, scale: float, dtype: str) -> Tensor:
        """The first layer's input, `[total_tokens, hidden_size]`; places: of ids in their
        sequence."""
        where = None
        if self.sinusoids is not None:
            where = ops.embedding([places], [self.sinusoids.table(ids.device, dtype)])
        elif self.positions is not None:
            where = ops.embedding([places], [self.positions.value[self.position_offset :]])
        out = Tensor.empty((len(ids), table.shape[1]), dtype, ids.device)
        x = ops.gather(table, ids, scale=scale, residual=where, out=out)
        return x if self.embedding_norm is None else self.embedding_norm(x)

    @property
    def bias(self) -> dict[str, Tensor]:
        """What attention adds to its scores."""
        if self.relative_bias is None:
            return {}
        return {"relative_bias": self.relative_bias()}


class Transformer(nn.Module, EncoderDecoder):
    """A Transformer encoder-decoder, which `generate`s, `translate`s and `score`s.

    `Transformer(TransformerConfig(...))` has random weights; `softgate.load` reads a checkpoint,
    its tokenizers and, as `beams`, how it wants targets to be searched for.
    """

    config: TransformerConfig

    def __init__(
        self,
        config: TransformerConfig,
        *,
        dtype: ops.WeightType = "float32",
        seed: int | None = 0,
    ) -> None:
        """dtype: of embeddings and the weights of products, see `ops.pack`. seed: of the random
        weights; None leaves the weights to `load_state_dict`."""
        self.config = config
        hidden_size, vocab_size = config.hidden_size, config.vocab_size
        self.embedding = nn.Parameter(vocab_size, hidden_size, packed=True)
        self.source_embedding = (
            None
            if config.source_vocab_size is None
            else nn.Parameter(config.source_vocab_size, hidden_size, packed=True)
        )
        encoder = [EncoderLayer(config) for _ in range(config.encoder_layers)]
        decoder = [DecoderLayer(config) for _ in range(config.decoder_layers)]
        self.encoder = Side(config, encoder, causal=False)
        self.decoder = Side(config, decoder, causal=True)
        self.lm_head = (
            None if config.tie_word_embeddings else nn.Linear(hidden_size, vocab_size, bias=False)
        )
        # A row, as files have it.
        self.output_bias = nn.Parameter(1, vocab_size, init=0.0) if config.output_bias else None
        self.source_tokenizer = self.target_tokenizer = None
        self.beams = BeamSearch(max_new_tokens=min(128, config.max_length))
        for _, parameter in self.named_parameters():
            if parameter.packed:
                parameter.dtype = dtype
        if seed is not None:
            self.init_weights(seed)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        dtype: ops.WeightType | None = None,
        device: str | None = None,
    ) -> Transformer:
        """Read an open checkpoint; see `softgate.load`."""
        try:
            config = TransformerConfig.from_dict(checkpoint.config)
            model = cls(config, seed=None)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.spec}: {error}") from None
        if checkpoint.packed:
            load_packed(model, checkpoint, dtype)
        else:
            found = checkpoint.tensors
            if config.model_type == "t5" and HEAD not in found:
                model.lm_head = None  # transformers writes no head that is the embedding again
            if config.output_bias and config.model_type != OWN and HEAD_BIAS not in found:
                model.output_bias = None
            table = model._sources()
            wanted = (name for source in table.values() for name in source.names)
            names = canonical_names(config.model_type, found, wanted)
            load_weights(model, table, names, checkpoint, dtype)
        model.to(device)
        model.beams = read_settings(checkpoint, config, model.beams)
        model._load_tokenizers(checkpoint)
        return model

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that softgate and transformers read; one that only softgate reads, bit
        for bit, when weights are quantised or the config is of no family of theirs.

        Raises ValueError when the config differs from what its model_type can say.
        """
        files: dict[str, Path | bytes] = {}
        tokenizers = {side: getattr(self, f"{side}_tokenizer") for side in _SIDES}
        shared = tokenizers["source"] is tokenizers["target"]
        for side, tokenizer in tokenizers.items():
            if tokenizer is not None:
                own = shared or isinstance(tokenizer, MarianTokenizer)
                folder_of = "" if own else f"{side}/"
                files |= {folder_of + name: data for name, data in tokenizer.to_files().items()}
        files |= write_settings(self.config, self.beams)
        save_weights(self, self._sources(), self.config.to_dict(), folder, files)

    def _sources(self) -> dict[str, Source]:
        shapes = {name: parameter.shape for name, parameter in self.named_parameters()}
        return sources(self.config.model_type, shapes, self.config.gated)

    def _load_tokenizers(self, checkpoint: Checkpoint) -> None:
        for side in _SIDES:
            own = checkpoint.file(f"{side}/tokenizer.json")
            marian = checkpoint.file(f"{side}.spm")
            if own is not None:
                setattr(self, f"{side}_tokenizer", Tokenizer.load(own.parent))
            elif marian is not None:
                setattr(self, f"{side}_tokenizer", MarianTokenizer.load(marian.parent, side))
        has_own = any(checkpoint.file(f"{side}.spm") for side in _SIDES)
        if self.source_tokenizer is self.target_tokenizer is None and not has_own:
            both = Tokenizer.from_checkpoint(checkpoint)
            self.source_tokenizer = self.target_tokenizer = both

    def forward(
        self,
        source_ids: Batch,
        target_ids: Batch,
        source_mask: npt.NDArray[Any] | None = None,
        target_mask: npt.NDArray[Any] | None = None,
        *,
        output_attentions: bool = False,
    ) -> TransformerOutput:
        """What may follow each target token, given the source and the target up to it.

        source_ids, target_ids: lists of lists of ids, any lengths, or integer arrays
        `[batch, length]` with masks of that shape (nonzero keeps a token). Padding is never
        computed. Targets begin with the decoder's first token.

        Raises ValueError for ids outside the vocabulary, sequences without tokens or longer than
        the positions, and unequal numbers of sources and targets.
        """
        source = self._packed("source_ids", source_ids, source_mask)
        target = self._packed("target_ids", target_ids, target_mask)
        batch, given = len(target.lengths), len(source.lengths)
        if batch != given:
            raise ValueError(f"target_ids: {batch} sequences, expected {given}, as source_ids")
        encoded, encoder_weights = self._encode(source, output_attentions)
        capacity = int(target.lengths.max(initial=1))
        # Nothing follows, so all layers can use the same memory.
        cache = self._new_cache(1, batch, capacity)
        inputs = _Inputs.of(target.ids, target.cu_seqlens, np.zeros(batch, np.int32), self.device)
        x, decoder_weights, cross_weights = self._decode(
            inputs, cache, self._keys(encoded), inputs.cu_seqlens, output_attentions
        )
        attentions: dict[str, Any] = {}
        if output_attentions:
            attentions = {
                "encoder_attentions": encoder_weights,
                "decoder_attentions": decoder_weights,
                "cross_attentions": cross_weights,
            }
        logits = fetched(self._logits(x))
        states = source.restore(fetched(encoded.states))
        return TransformerOutput(target.restore(logits), states, **attentions)

    def encode(self, source_ids: Batch, source_mask: npt.NDArray[Any] | None = None) -> Encoded:
        """Read the sources, in the forms that `forward` takes."""
        encoded, _ = self._encode(self._packed("source_ids", source_ids, source_mask), False)
        return encoded

    def attention_weights(
        self, source: list[int], target: list[int]
    ) -> Mapping[str, Sequence[FloatArray]]:
        output = self([source], [target], output_attentions=True)
        kinds = {
            "cross": output.cross_attentions,
            "encoder": output.encoder_attentions,
            "decoder": output.decoder_attentions,
        }
        return {kind: [weights[0] for weights in layers] for kind, layers in kinds.items()}

    def begin(
        self, sources: Sequence[Sequence[int]], settings: BeamSearch
    ) -> tuple[FloatArray, Advance]:
        encoded = self.encode([list(source) for source in sources])
        keys, count = self._keys(encoded), len(sources)
        # The last token is not read again.
        capacity = settings.max_new_tokens
        cache = self._new_cache(len(self.decoder.layers), settings.num_beams * count, capacity)
        beams = BeamRows(cache, settings.num_beams)

        def read(tokens: IntArray) -> FloatArray:
            offsets, rows = np.arange(len(tokens) + 1, dtype=np.int32), beams.rows
            inputs = _Inputs.of(tokens, offsets, cache.lengths[rows], self.device, rows)
            # Texts of one source stand together and read its keys once; ended ones have none.
            ends = np.cumsum(np.bincount(beams.prompts, minlength=count))
            cu_queries = SequenceOffsets(np.concatenate([[0], ends]).astype(np.int32), self.device)
            x, *_ = self._decode(inputs, cache, keys, cu_queries)
            cache.lengths[rows] += 1
            return fetched(self._logits(x))

        def advance(tokens: IntArray, parents: IntArray) -> FloatArray:
            beams.go_on(parents)
            return read(tokens)

        start = self.config.decoder_start_token_id
        return read(np.full(count, start, dtype=np.int32)), advance

    def _encode(self, source: PackedIds, return_weights: bool) -> tuple[Encoded, list[FloatArray]]:
        offsets = SequenceOffsets(source.cu_seqlens, self.device)
        places = positions(source.lengths).astype(np.int32)
        both = Tensor(np.stack([source.ids, places])).to(self.device)
        table = self.embedding if self.source_embedding is None else self.source_embedding
        encoder, config = self.encoder, self.config
        x = encoder.embed(table.value, both[0], both[1], config.embedding_scale, self._activations)
        attentions, bias = [], encoder.bias
        for layer in encoder.layers:
            x, weights = layer(x, offsets, return_weights, **bias)
            if weights is not None:
                attentions.append(fetched(weights))
        x = x if encoder.norm is None else encoder.norm(x)
        return Encoded(x, offsets), attentions

    def _keys(self, encoded: Encoded) -> list[nn.Keys]:
        """Of each layer's attention to the sources."""
        return [
            layer.cross_attention.keys(encoded.states, encoded.cu_seqlens)
            for layer in self.decoder.layers
        ]

    def _decode(
        self,
        inputs: _Inputs,
        cache: nn.KVCache,
        keys: Sequence[nn.Keys],
        cu_queries: SequenceOffsets,
        return_weights: bool = False,
    ) -> tuple[Tensor, list[FloatArray], list[FloatArray]]:
        """The last layer's states of the targets' tokens, and the weights of attention to the
        targets and to the sources."""
        decoder, config = self.decoder, self.config
        x = decoder.embed(
            self.embedding.value,
            inputs.ids,
            inputs.places,
            config.embedding_scale,
            self._activations,
        )
        own: list[FloatArray] = []
        cross: list[FloatArray] = []
        bias = decoder.bias
        for i, layer in enumerate(decoder.layers):
            x, *weights = layer(
                x, inputs.step, cache.layer(i), keys[i], cu_queries, return_weights, **bias
            )
            if return_weights:
                own.append(fetched(weights[0]))
                cross.append(fetched(weights[1]))
        return (x if decoder.norm is None else decoder.norm(x)), own, cross

    def _logits(self, x: Tensor) -> Tensor:
        weight = self.embedding if self.lm_head is None else self.lm_head.weight
        bias = None
        if self.output_bias is not None:
            bias = self.output_bias.value.reshape((self.config.vocab_size,))
        return ops.linear(x, weight.value, bias)

    @property
    def _activations(self) -> str:
        """The dtype of all that is not a packed weight."""
        norm = self.decoder.layers[0].feed_forward_norm
        dtype: str = norm.weight.value.dtype
        return dtype

    def _new_cache(self, num_layers: int, batch: int, capacity: int) -> nn.KVCache:
        config = self.config
        heads = config.decoder_attention_heads
        sizes = (num_layers, batch, capacity, heads, config.head_size(heads))
        return nn.KVCache(*sizes, self.device, self._activations)

    def _packed(self, name: str, ids: Batch, mask: npt.NDArray[Any] | None) -> PackedIds:
        config = self.config
        is_source = name == "source_ids" and config.source_vocab_size is not None
        vocab_size = config.source_vocab_size if is_source else config.vocab_size
        packed = pack_ids(name, ids, mask, vocab_size or 0)
        longest = packed.lengths.max(initial=0)
        if longest > config.max_length:
            raise ValueError(
                f"{name}: the longest sequence has {longest} tokens, expected at most "
                f"{config.max_length}"
            )
        return packed


@dataclass(frozen=True)
class _Inputs:
    """Tokens of targets on the device: ids and places, int32 `[total_tokens]`, and their step."""

    ids: Tensor
    places: Tensor
    step: nn.Step

    @classmethod
    def of(
        cls,
        ids: IntArray,
        cu_seqlens: IntArray,
        starts: IntArray,
        device: str,
        rows: IntArray | None = None,
    ) -> _Inputs:
        """starts: tokens that each target has in the cache; rows: which row of it that is, by
        default all in their order."""
        total, batch = len(ids), len(starts)
        lengths = np.diff(cu_seqlens)
        rows = np.arange(batch, dtype=np.int32) if rows is None else rows
        places = np.arange(total) + np.repeat(starts - cu_seqlens[:-1], lengths)
        # One copy to the device for all.
        parts: list[npt.NDArray[Any]] = [ids, places, starts, starts + lengths, rows]
        there = Tensor(np.concatenate(parts, dtype=np.int32)).to(device)
        ends = np.cumsum([len(part) for part in parts]).tolist()
        each = [there[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        step = nn.Step(SequenceOffsets(cu_seqlens, device), each[2], each[3], each[4])
        return cls(each[0], each[1], step)

    @property
    def cu_seqlens(self) -> Any:
        return self.step.cu_seqlens

"""GPT: decoder-only Transformers (Radford et al. 2019; Touvron et al. 2023), whose families differ
in their config."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from softgate import nn, ops
from softgate._core import SequenceOffsets, Tensor
from softgate.attention_map import AttentionMap, FloatArray, mean_weights, pieces
from softgate.checkpoint import Checkpoint, CheckpointError
from softgate.checkpoint.gpt import canonical_names, sources
from softgate.checkpoint.names import Source
from softgate.generation import LanguageModel
from softgate.models.gpt_config import ACTIVATIONS, SLIDING, GptConfig
from softgate.models.packing import fetched
from softgate.models.weights import load_packed, load_weights, save_weights
from softgate.text import Tokenizer

IntArray = npt.NDArray[np.int32]


class GptLayer(nn.Module):
    """Norm and attention, norm and feed-forward, each added to the residual stream."""

    def __init__(self, config: GptConfig, index: int) -> None:
        hidden_size, eps = config.hidden_size, config.norm_eps
        sliding = config.kinds[index] == SLIDING
        self.parallel_residual = config.parallel_residual
        self.post_norms = config.post_norms
        self.attention_norm = nn.Norm(hidden_size, eps, config.norm)
        self.attention = nn.CachedAttention(
            hidden_size,
            config.num_attention_heads,
            config.kv_heads,
            config.head_size,
            qkv_bias=config.qkv_bias,
            output_bias=config.output_bias,
            qk_norm=eps if config.qk_norm else None,
            scale=config.attention_scale(index),
            window=config.sliding_window if sliding else None,
            softcap=config.attn_logit_softcapping or 0.0,
        )
        self.feed_forward_norm = nn.Norm(hidden_size, eps, config.norm)
        self.feed_forward = nn.FeedForward(
            hidden_size,
            config.intermediate_size,
            ACTIVATIONS[config.hidden_act],
            gated=config.gated,
            bias=config.mlp_bias,
        )
        if config.post_norms:
            self.attention_post_norm = nn.Norm(hidden_size, eps, config.norm)
            self.feed_forward_post_norm = nn.Norm(hidden_size, eps, config.norm)

    def forward(
        self,
        x: Tensor,
        branch: Tensor | None,
        step: nn.Step,
        cache: tuple[Tensor, Tensor],
        rope: tuple[Tensor, Tensor] | None,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x: `[total_tokens, hidden_size]`, the residual stream, which is overwritten; branch: what
        the layer before left to add to it, so that the sum and the norm are one pass. Gives both
        for the next layer, and on request attention's weights."""
        y = self.attention_norm(x, branch)
        residual = None if self.post_norms else x
        y, weights = self.attention(y, step, cache, rope, residual, return_weights=return_weights)
        if self.post_norms:
            y = self.attention_post_norm(y)
            y = self.feed_forward(self.feed_forward_norm(x, y))
            return x, self.feed_forward_post_norm(y), weights
        z = self.feed_forward_norm(x if self.parallel_residual else y)
        return self.feed_forward(z, residual=y), None, weights


class Gpt(nn.Module, LanguageModel):
    """A decoder-only language model, which `generate`s, `stream`s, `chat`s and `score`s.

    `Gpt(GptConfig(...))` has random weights; `softgate.load` reads a checkpoint. A loaded model
    has its `tokenizer`, None when the checkpoint has none.
    """

    config: GptConfig
    tokenizer: Tokenizer | None

    def __init__(
        self, config: GptConfig, *, dtype: ops.WeightType = "float32", seed: int | None = 0
    ) -> None:
        """dtype: of embeddings and the weights of products, see `ops.pack`. seed: of the random
        weights; None leaves the weights to `load_state_dict`."""
        self.config = config
        hidden_size = config.hidden_size
        self.embedding = nn.Parameter(config.vocab_size, hidden_size, packed=True)
        self.positions = (
            nn.Parameter(config.max_position_embeddings, hidden_size)
            if config.rope is None
            else None
        )
        self.layers = [GptLayer(config, i) for i in range(config.num_hidden_layers)]
        self.norm = nn.Norm(hidden_size, config.norm_eps, config.norm)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else nn.Linear(hidden_size, config.vocab_size, bias=False)
        )
        self.ropes = {
            kind: nn.Rope(rope, config.head_size, config.max_position_embeddings)
            for kind, rope in config.ropes().items()
        }
        self.tokenizer = None
        self._parameters = tuple(parameter for _, parameter in self.named_parameters())
        for parameter in self._parameters:
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
    ) -> Gpt:
        """Read an open checkpoint; see `softgate.load`."""
        try:
            config = GptConfig.from_dict(checkpoint.config | _special_ids(checkpoint))
            model = cls(config, seed=None)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.spec}: {error}") from None
        if checkpoint.packed:
            load_packed(model, checkpoint, dtype)
        else:
            names = canonical_names(
                config.model_type, checkpoint.tensors, config.tie_word_embeddings
            )
            load_weights(model, model._sources(), names, checkpoint, dtype)
        model.to(device)
        model.tokenizer = Tokenizer.from_checkpoint(checkpoint)
        return model

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that softgate and transformers read; one that only softgate reads, bit
        for bit, when weights are quantised.

        Raises ValueError when the config differs from what its model_type can say.
        """
        config = self.config.to_dict()
        files = {} if self.tokenizer is None else self.tokenizer.to_files()
        save_weights(self, self._sources(), config, folder, files)

    def _sources(self) -> dict[str, Source]:
        shapes = {name: parameter.shape for name, parameter in self.named_parameters()}
        config = self.config
        return sources(config.model_type, shapes, config.num_attention_heads, config.kv_heads)

    @property
    def max_length(self) -> int:
        """The most tokens a sequence may have."""
        return self.config.max_length

    def new_cache(self, batch: int, capacity: int | None = None) -> nn.KVCache:
        """An empty cache for `batch` sequences of up to `capacity` tokens, by default max_length.

        A "dynamic" or "longrope" model rotates by the capacity, whatever the sequences' lengths.

        Raises ValueError for a batch or a capacity that makes no sense, MemoryError when there is
        no room.
        """
        capacity = self.max_length if capacity is None else capacity
        if not 1 <= capacity <= self.max_length:
            raise ValueError(f"new_cache: capacity is {capacity}, expected 1 to {self.max_length}")
        if batch < 1:
            raise ValueError(f"new_cache: batch is {batch}, expected at least 1")
        return self._new_cache(len(self.layers), batch, capacity)

    def forward(
        self,
        input_ids: npt.ArrayLike,
        cu_seqlens: npt.ArrayLike | None = None,
        cache: nn.KVCache | None = None,
        *,
        rows: npt.ArrayLike | None = None,
        logits: Literal["all", "last"] = "all",
    ) -> Tensor:
        """What may follow each token: `[total_tokens, vocab_size]`, or with "last" only what may
        follow each sequence, `[batch, vocab_size]`, zeros for one without new tokens. float32, on a
        device other than the CPU there and of the model's dtype.

        input_ids: integers `[total_tokens]`; cu_seqlens: `[batch + 1]`, where each sequence starts
        and the last ends, by default one. With a cache, each sequence continues a row of it and is
        appended; without one, sequences start anew and nothing is kept. rows: integers `[batch]`,
        the row of each sequence, by default all in their order. On CUDA, one token for each
        sequence is a step that the cache keeps as a graph.

        Raises ValueError for ids outside the vocabulary, offsets and rows that make no sense, and
        sequences that become longer than the cache or the model takes. The cache is then as it was.
        """
        ids, offsets = self._packed(input_ids, cu_seqlens)
        if logits not in ("all", "last"):
            raise ValueError(f"logits is {logits!r}, expected 'all' or 'last'")
        lengths = np.diff(offsets)
        is_step = cache is not None and (lengths == 1).all()
        if cache is None:
            if len({self._regime(length) for length in lengths}) > 1:
                return self._one_by_one(ids, offsets, logits)
            # Nothing follows, so all layers can use the same memory.
            cache = self._new_cache(1, len(lengths), int(lengths.max(initial=1)))
        elif len(cache.k) != len(self.layers):
            raise ValueError(
                f"cache: {len(cache.k)} layers, expected those of the model, {len(self.layers)}"
            )
        places = self._rows(cache, len(lengths), rows)
        starts = cache.lengths[places]
        ends = starts + lengths
        longest = ends.max(initial=0)
        most = min(cache.capacity, self.max_length)
        if longest > most:
            raise ValueError(
                f"input_ids: the longest sequence has {longest} tokens with those in the cache, "
                f"expected at most {most}"
            )
        positions = np.arange(len(ids)) + np.repeat(starts - offsets[:-1], lengths)
        # One copy to the device for all.
        inputs = np.concatenate([ids, positions, starts, ends, places], dtype=np.int32)
        if is_step and cache.device.startswith("cuda"):
            result = self._step_graph(cache, inputs, len(lengths))(inputs)
        else:
            there = SequenceOffsets(offsets, cache.device)
            result = self.device_forward(Tensor(inputs).to(cache.device), there, cache, logits)
        cache.lengths[places] = ends
        return result

    def device_forward(
        self,
        inputs: Tensor,
        offsets: SequenceOffsets,
        cache: nn.KVCache,
        logits: Literal["all", "last"],
    ) -> Tensor:
        """The part of `forward` on the device, which copies nothing from or to the host.

        inputs: int32 on the device, one after the other `[total_tokens]` ids and positions,
        `[batch]` starts and ends, how many tokens a row holds before and after, and rows. On a
        device nobody looks at them.
        """
        total, batch = offsets.total, offsets.batch
        ids, positions = inputs[:total], inputs[total : 2 * total]
        starts, ends, rows = (
            inputs[2 * total + i * batch : 2 * total + (i + 1) * batch] for i in range(3)
        )
        step = nn.Step(offsets, starts, ends, rows)
        for state in self._states(ids, positions, step, cache):
            x, branch, _ = state
        y: Tensor = self.norm(x, branch)
        is_step = total == batch and offsets.longest == 1
        if logits == "last" and not is_step:
            y = ops.pool(y, offsets, "last")
        weight = self.embedding if self.lm_head is None else self.lm_head.weight
        result = ops.linear(y, weight.value)
        cap = self.config.final_logit_softcapping
        return result if cap is None else ops.softcap(result, cap)

    def attention_map(
        self, text: str | Sequence[int], *, layer: int | None = None, head: int | None = None
    ) -> AttentionMap:
        """How much each token of a text looked at itself and those before it.

        text: or token ids. layer, head: from 0; None takes the mean of all.

        Raises ValueError for a layer or a head that is not there, a text that is empty or too long
        and one where there is no tokenizer.
        """
        if isinstance(text, str):
            if self.tokenizer is None:
                raise ValueError("text, a str, needs a tokenizer, the model has none")
            text = self.tokenizer.ids(text)
        if not 1 <= len(text) <= self.max_length:
            raise ValueError(f"text has {len(text)} tokens, expected 1 to {self.max_length}")
        config, ids = self.config, list(text)
        counts = len(self.layers), config.num_attention_heads
        weights = mean_weights(self._attention_weights(ids), *counts, layer, head)
        return AttentionMap(weights, tokens := pieces(self.tokenizer, ids), tokens)

    def _attention_weights(self, text: Sequence[int]) -> Iterator[FloatArray]:
        """Each layer's, `[num_heads, tokens, tokens]`."""
        ids, offsets = self._packed(text, None)
        total = len(ids)
        cache = self._new_cache(1, 1, total)
        start, end, row = (Tensor(np.array([i], np.int32)).to(cache.device) for i in (0, total, 0))
        step = nn.Step(SequenceOffsets(offsets, cache.device), start, end, row)
        both = Tensor(np.stack([ids, np.arange(total, dtype=np.int32)])).to(cache.device)
        for _, _, weights in self._states(both[0], both[1], step, cache, return_weights=True):
            yield fetched(weights)[0]

    def _states(
        self,
        ids: Tensor,
        positions: Tensor,
        step: nn.Step,
        cache: nn.KVCache,
        return_weights: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor | None, Any]]:
        """What each layer gives."""
        x, branch = self._embed(ids, positions), None
        ropes = self._rope_tables(cache)
        for i, layer in enumerate(self.layers):
            rope = ropes.get(self.config.kinds[i])
            x, branch, weights = layer(x, branch, step, cache.layer(i), rope, return_weights)
            yield x, branch, weights

    def _step_graph(self, cache: nn.KVCache, inputs: IntArray, batch: int) -> nn.StepGraph:
        """The captured step of the cache for a batch of this size."""
        uses = [parameter.value for parameter in self._parameters]
        graph = cache.graphs.get(batch)
        if graph is None or not graph.is_of(uses):
            offsets = SequenceOffsets(np.arange(batch + 1, dtype=np.int32), cache.device)
            tables = self._rope_tables(cache).values()

            def run(there: Tensor) -> Tensor:
                return self.device_forward(there, offsets, cache, "last")

            graph = nn.StepGraph(run, inputs, cache.device, [*uses, offsets, *tables])
            cache.graphs[batch] = graph
        return graph

    def _rope_tables(self, cache: nn.KVCache) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            kind: rope.tables(cache.capacity, cache.device) for kind, rope in self.ropes.items()
        }

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids, positions: int32 `[total_tokens]`."""
        if self.positions is None:
            residual = None
        else:
            residual = ops.embedding([positions], [self.positions.value])
        scale = math.sqrt(self.config.hidden_size) if self.config.scale_embeddings else 1.0
        out = Tensor.empty((len(ids), self.config.hidden_size), self._activations, ids.device)
        return ops.gather(self.embedding.value, ids, scale=scale, residual=residual, out=out)

    def _one_by_one(
        self, ids: IntArray, offsets: IntArray, logits: Literal["all", "last"]
    ) -> Tensor:
        """For sequences that are rotated by different tables, which follow from their lengths."""
        parts = [
            self.forward(ids[start:stop], logits=logits)
            for start, stop in itertools.pairwise(offsets)
        ]
        shape = (sum(map(len, parts)), self.config.vocab_size)
        together = Tensor.empty(shape, parts[0].dtype, parts[0].device)
        first = 0
        for part in parts:
            together[first : first + len(part)].copy_(part)
            first += len(part)
        return together

    def _regime(self, length: int) -> tuple[int, ...]:
        return tuple(rope.regime(length) for rope in self.ropes.values())

    @property
    def _activations(self) -> str:
        """The dtype of all that is not a packed weight."""
        dtype: str = self.norm.weight.value.dtype
        return dtype

    def _new_cache(self, num_layers: int, batch: int, capacity: int) -> nn.KVCache:
        config, device = self.config, self.embedding.value.device
        sizes = (num_layers, batch, capacity, config.kv_heads, config.head_size)
        return nn.KVCache(*sizes, device, self._activations)

    def _rows(self, cache: nn.KVCache, batch: int, rows: npt.ArrayLike | None) -> IntArray:
        """The row of the cache that each sequence continues."""
        if rows is None:
            if cache.batch != batch:
                raise ValueError(
                    f"cu_seqlens: {batch} sequences, expected one for each of the cache's "
                    f"{cache.batch} rows"
                )
            return np.arange(batch, dtype=np.int32)
        places = _integers("rows", rows)
        inside = (places >= 0) & (places < cache.batch)
        if len(places) != batch or not inside.all() or len(np.unique(places)) < batch:
            raise ValueError(
                f"rows: {places.tolist()}, expected {batch} different ones below {cache.batch}"
            )
        return places.astype(np.int32)

    def _packed(
        self, input_ids: npt.ArrayLike, cu_seqlens: npt.ArrayLike | None
    ) -> tuple[IntArray, IntArray]:
        ids = _integers("input_ids", input_ids)
        offsets = _integers("cu_seqlens", [0, len(ids)] if cu_seqlens is None else cu_seqlens)
        if (
            len(offsets) < 1
            or offsets[0] != 0
            or offsets[-1] != len(ids)
            or (np.diff(offsets) < 0).any()
        ):
            raise ValueError(
                f"cu_seqlens: expected offsets that rise from 0 to the {len(ids)} tokens"
            )
        outside = ids[(ids < 0) | (ids >= self.config.vocab_size)]
        if len(outside):
            raise ValueError(f"input_ids: {outside[0]}, expected 0 to {self.config.vocab_size - 1}")
        return ids.astype(np.int32), offsets.astype(np.int32)


def _special_ids(checkpoint: Checkpoint) -> dict[str, Any]:
    """Token ids by which a text begins and ends, where generation_config.json corrects config.json:
    chat models end a turn by tokens of their own."""
    said = checkpoint.json("generation_config.json")
    keys = ("bos_token_id", "eos_token_id")
    found = said if isinstance(said, dict) else {}
    return {key: found[key] for key in keys if found.get(key) is not None}


def _integers(name: str, values: npt.ArrayLike) -> npt.NDArray[np.integer[Any]]:
    array = np.asarray(values)
    if array.ndim == 1 and not array.size:
        return np.empty(0, dtype=np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: {array.dtype} array of shape {list(array.shape)}, expected integers in one "
            "dimension"
        )
    return array

"""Attention of a recurrent decoder to the states of an encoder."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from softgate.nn.layers import Linear
from softgate.nn.module import FloatArray, Module

IntArray = npt.NDArray[np.integer[Any]]
SourceAttentionKind = Literal["additive", "dot", "general", "concat"]

# Numbers in one intermediate array, which is taken in parts that keep to it.
_MOST_NUMBERS = 1 << 18


@dataclass(frozen=True)
class Memory:
    """Encoded sources: values `[total_tokens, memory_size]`, keys `[total_tokens, size]`, and
    cu_seqlens, `[batch + 1]`, where each source starts."""

    values: FloatArray
    keys: FloatArray
    cu_seqlens: IntArray

    def of(self, sources: IntArray) -> Memory:
        """The memory of some of the sources."""
        lengths = np.diff(self.cu_seqlens)[sources]
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
        shift = self.cu_seqlens[sources] - cu_seqlens[:-1]
        rows = np.arange(cu_seqlens[-1]) + np.repeat(shift, lengths)
        return Memory(self.values[rows], self.keys[rows], cu_seqlens)


class SourceAttention(Module):
    """A weighted mean of an encoder's states, by how each suits the decoder's.

    score(q, k) is, by kind,
    - "additive": `v . tanh(W_q q + b + W_k k)` (Bahdanau et al. 2014);
    - "concat": `v . tanh(W [q; k])`, which is the same without b (Luong et al. 2015);
    - "dot": `q . k`, for states of equal size; "general": `q . W k` (Luong et al. 2015).

    The weights are the softmax of the scores over a source's tokens.
    """

    def __init__(
        self, kind: SourceAttentionKind, query_size: int, memory_size: int, size: int | None = None
    ) -> None:
        """size: of v, by default query_size; for "additive" and "concat" only."""
        self.kind = kind
        size = query_size if size is None else size
        self.query = self.key = self.score = None
        if kind == "general":
            self.key = Linear(memory_size, query_size, bias=False)
        elif kind != "dot":
            self.query = Linear(query_size, size, bias=kind == "additive")
            self.key = Linear(memory_size, size, bias=False)
            self.score = Linear(size, 1, bias=False)
        elif query_size != memory_size:
            raise ValueError(
                f"SourceAttention: dot has queries of {query_size} and memory of {memory_size}, "
                "expected equal sizes"
            )

    def memory(self, values: FloatArray, cu_seqlens: IntArray) -> Memory:
        """What `forward` looks at, computed once for all steps. No source may be empty."""
        keys = values if self.key is None else self.key(values)
        return Memory(values, keys, cu_seqlens)

    def forward(
        self, query: FloatArray, memory: Memory, cu_queries: IntArray
    ) -> tuple[FloatArray, FloatArray]:
        """Contexts and weights of each query, in its source.

        query: `[rows, query_size]`, those of a source next to each other; cu_queries:
        `[batch + 1]`, where each source's start. Gives `[rows, memory_size]`, and the weights of
        each row, as many as its source has tokens, after those of the row before.
        """
        q = query if self.query is None else self.query(query)
        counts = np.diff(cu_queries)
        contexts = np.empty((len(q), memory.values.shape[1]), np.float32)
        bounds = np.concatenate([[0], np.cumsum(counts * np.diff(memory.cu_seqlens))])
        weights = np.empty(bounds[-1], np.float32)
        for start, stop in _alike(counts, np.diff(memory.cu_seqlens)):
            shape = (stop - start, counts[start])
            tokens = slice(memory.cu_seqlens[start], memory.cu_seqlens[stop])
            rows = slice(cu_queries[start], cu_queries[stop])
            if rows.start == rows.stop:
                continue
            k = memory.keys[tokens].reshape(shape[0], -1, memory.keys.shape[1])
            v = memory.values[tokens].reshape(shape[0], -1, memory.values.shape[1])
            scores = self._scores(q[rows].reshape(*shape, -1), k)
            scores -= scores.max(axis=2, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=2, keepdims=True)
            contexts[rows] = np.matmul(scores, v).reshape(rows.stop - rows.start, -1)
            weights[bounds[start] : bounds[stop]] = scores.ravel()
        return contexts, weights

    def _scores(self, q: FloatArray, k: FloatArray) -> FloatArray:
        """q: `[sources, queries, size]`, k: `[sources, tokens, size]`, the result:
        `[sources, queries, tokens]`."""
        if self.score is None:
            scores: FloatArray = np.matmul(q, k.transpose(0, 2, 1))
            return scores
        (v,) = self.score.weight.numpy()
        scores = np.empty((*q.shape[:2], k.shape[1]), np.float32)
        # As many sources, or queries of one, as keep the sums of all pairs to a size.
        sources = max(1, _MOST_NUMBERS // (q.shape[1] * k[0].size))
        queries = max(1, _MOST_NUMBERS // k[0].size)
        for i in range(0, len(q), sources):
            for j in range(0, q.shape[1], queries):
                part = (slice(i, i + sources), slice(j, j + queries))
                hidden = q[part][:, :, None] + k[part[0], None]
                scores[part] = np.matmul(np.tanh(hidden, out=hidden), v)
        return scores


def _alike(counts: IntArray, lengths: IntArray) -> list[tuple[int, int]]:
    """Ranges of sources with as many queries and tokens each."""
    changes = np.flatnonzero((np.diff(counts) != 0) | (np.diff(lengths) != 0)) + 1
    edges = [0, *changes.tolist(), len(counts)]
    return list(itertools.pairwise(edges))

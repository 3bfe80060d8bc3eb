"""Attention of a recurrent decoder to the states of an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from softgate import ops
from softgate.nn.layers import Linear
from softgate.nn.module import FloatArray, Module

IntArray = npt.NDArray[np.integer]
SourceAttentionKind = Literal["additive", "dot", "general", "concat"]

# Numbers in one intermediate array: queries are taken in as many turns as keep to it.
_MOST_NUMBERS = 1 << 22


@dataclass(frozen=True)
class Memory:
    """Encoded sources: values `[total_tokens, memory_size]`, keys `[total_tokens, size]`, and
    cu_seqlens, `[batch + 1]`, where each source starts."""

    values: FloatArray
    keys: FloatArray
    cu_seqlens: IntArray

    def of(self, sources: IntArray) -> Memory:
        """The memory of each of `sources`, in which one may come several times."""
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

    def forward(self, query: FloatArray, memory: Memory) -> tuple[FloatArray, FloatArray]:
        """Contexts and weights, one source for each query.

        query: `[rows, query_size]`; memory: of as many sources. Gives `[rows, memory_size]` and
        the weights of each row after those of the one before, `[total_tokens]`.
        """
        q = query if self.query is None else self.query(query)
        bounds = memory.cu_seqlens
        contexts, weights = [], []
        for start, stop in self._turns(bounds, memory.keys.shape[1]):
            part = slice(bounds[start], bounds[stop])
            firsts = bounds[start:stop] - bounds[start]
            lengths = np.diff(bounds[start : stop + 1])
            scores = self._scores(np.repeat(q[start:stop], lengths, axis=0), memory.keys[part])
            scores -= np.repeat(np.maximum.reduceat(scores, firsts), lengths)
            np.exp(scores, out=scores)
            scores /= np.repeat(np.add.reduceat(scores, firsts), lengths)
            contexts.append(np.add.reduceat(scores[:, None] * memory.values[part], firsts, axis=0))
            weights.append(scores)
        return np.concatenate(contexts), np.concatenate(weights)

    def _scores(self, q: FloatArray, k: FloatArray) -> FloatArray:
        """One for each row. q is overwritten."""
        if self.score is None:
            q *= k
            summed: FloatArray = q.sum(axis=1)
            return summed
        q += k
        scores: FloatArray = ops.linear(np.tanh(q, out=q), self.score.weight.value)
        return scores[:, 0]

    def _turns(self, bounds: IntArray, size: int) -> list[tuple[int, int]]:
        """Ranges of rows whose arrays keep to a size, or of one row."""
        turns, start = [], 0
        rows = len(bounds) - 1
        while start < rows:
            most = bounds[start] + _MOST_NUMBERS // size
            stop = max(start + 1, int(np.searchsorted(bounds, most, side="right")) - 1)
            turns.append((start, min(stop, rows)))
            start = turns[-1][1]
        return turns

"""Attention of a recurrent decoder to the states of an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from softgate import ops
from softgate.nn.layers import Linear
from softgate.nn.module import FloatArray, Module

SourceAttentionKind = Literal["additive", "dot", "general", "concat"]


@dataclass(frozen=True)
class Memory:
    """Encoded sources: values `[total_tokens, memory_size]`, keys `[total_tokens, size]`, and
    cu_seqlens, `[batch + 1]`, where each source starts."""

    values: FloatArray
    keys: FloatArray
    cu_seqlens: npt.NDArray[np.int32]


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

    def memory(self, values: FloatArray, cu_seqlens: npt.NDArray[np.int32]) -> Memory:
        """What `forward` looks at, computed once for all steps. No source may be empty."""
        keys = values if self.key is None else self.key(values)
        return Memory(values, keys, cu_seqlens)

    def forward(
        self, query: FloatArray, memory: Memory, sources: npt.NDArray[np.int32]
    ) -> tuple[FloatArray, FloatArray]:
        """Contexts and weights of each query in its source.

        query: `[rows, query_size]`; sources: `[rows]`, which one each looks at. Gives
        `[rows, memory_size]`, and the weights of each row, as many as its source has tokens, after
        those of the row before.
        """
        q = query if self.query is None else self.query(query)
        v = None if self.score is None else self.score.weight.numpy()[0]
        return ops.source_attention(q, memory.keys, memory.values, memory.cu_seqlens, sources, v)

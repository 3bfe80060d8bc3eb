"""Layers: parameters with the operations of `softgate.ops`, composed as in torch."""

from softgate.nn.cross_attention import CrossAttention, Keys
from softgate.nn.decoder import CachedAttention, KVCache, Norm, Step, StepGraph
from softgate.nn.encoder import RelativeBias, RotaryAttention
from softgate.nn.layers import AddNorm, Attention, Embedding, FeedForward, LayerNorm, Linear
from softgate.nn.module import FloatArray, Module, Parameter
from softgate.nn.positions import Sinusoids
from softgate.nn.recurrent import GRU, LSTM, RNN
from softgate.nn.rope import Rope, RopeConfig
from softgate.nn.source_attention import Memory, SourceAttention, SourceAttentionKind

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AddNorm",
    "Attention",
    "CachedAttention",
    "CrossAttention",
    "Embedding",
    "FeedForward",
    "FloatArray",
    "KVCache",
    "Keys",
    "LayerNorm",
    "Linear",
    "Memory",
    "Module",
    "Norm",
    "Parameter",
    "RelativeBias",
    "Rope",
    "RopeConfig",
    "RotaryAttention",
    "Sinusoids",
    "SourceAttention",
    "SourceAttentionKind",
    "Step",
    "StepGraph",
]

"""Layers: parameters with the operations of `softgate.ops`, composed as in torch."""

from softgate.nn.layers import AddNorm, Attention, Embedding, FeedForward, LayerNorm, Linear
from softgate.nn.module import FloatArray, Module, Parameter
from softgate.nn.recurrent import GRU, LSTM, RNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AddNorm",
    "Attention",
    "Embedding",
    "FeedForward",
    "FloatArray",
    "LayerNorm",
    "Linear",
    "Module",
    "Parameter",
]

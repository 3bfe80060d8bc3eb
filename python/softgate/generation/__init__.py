"""Generation with any model: sampling, streams, conversations, beam search, scores."""

from __future__ import annotations

from softgate.generation.beam import BeamSearch, Hypothesis
from softgate.generation.chat import Conversation
from softgate.generation.decoding import Generation, Stream
from softgate.generation.encoder_decoder import EncoderDecoder
from softgate.generation.model import Interrupted, LanguageModel
from softgate.generation.sampling import Sampling
from softgate.generation.score import Score

__all__ = [
    "BeamSearch",
    "Conversation",
    "EncoderDecoder",
    "Generation",
    "Hypothesis",
    "Interrupted",
    "LanguageModel",
    "Sampling",
    "Score",
    "Stream",
]

"""Encoder-decoders on a device other than the CPU: pytest --device simt, or cuda."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from devices import DTYPES, rounded
from softgate.models.transformer import Transformer
from softgate.models.transformer_config import TransformerConfig

SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 40,
}
KINDS: dict[str, dict[str, Any]] = {
    "original": {"output_bias": True},
    "bart": {"positions": "learned", "position_offset": 2, "embedding_norm": True},
    "t5": {
        "positions": "relative", "norm": "rms", "pre_norm": True, "final_norm": True,
        "bias": False, "gated": True, "scale_attention": False, "scale_output": True,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 10,
    },
}  # fmt: skip
SOURCES = [[3, 9, 27, 20, 60, 5], [7], [11, 13, 17]]
TARGETS = [[2, 8], [2, 4, 16, 32, 3], [2]]
# Of the logits' size: float32 through all layers, and the others' rounding in them.
MOST = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2}


def made(kind: str, dtype: str, device: str = "cpu") -> Transformer:
    """In numbers of `dtype`."""
    model = Transformer(TransformerConfig(**SIZES, **KINDS[kind]), seed=None)
    model.init_weights(seed=3, std=0.15)
    state = {name: rounded(array, dtype) for name, array in model.state_dict().items()}
    if device != "cpu":
        model.to(device, dtype)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_near_the_cpus(device, kind, dtype):
    expected = made(kind, dtype)(SOURCES, TARGETS, output_attentions=True)
    model = made(kind, dtype, device)
    assert (model.device, model.dtype) == (device, dtype)
    actual = model(SOURCES, TARGETS, output_attentions=True)
    most = MOST[dtype] * np.abs(expected.logits).max()
    np.testing.assert_allclose(actual.logits, expected.logits, rtol=0, atol=most)
    for name in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
        for one, other in zip(getattr(actual, name), getattr(expected, name), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=5 * MOST[dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_the_cpus(device, kind):
    settings = {"num_beams": 3, "num_return": 2, "max_new_tokens": 5}
    expected = made(kind, "float32").generate(SOURCES, **settings)
    actual = made(kind, "float32", device).generate(SOURCES, **settings)
    for hypotheses, others in zip(actual, expected, strict=True):
        assert [one.token_ids for one in hypotheses] == [one.token_ids for one in others]

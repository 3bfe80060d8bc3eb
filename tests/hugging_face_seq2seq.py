"""Encoder-decoders of Hugging Face with random weights, each switch of a config both ways."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

TINY = {
    "vocab_size": 99, "d_model": 48, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_attention_heads": 4, "decoder_attention_heads": 6, "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 96, "max_position_embeddings": 40,
}  # fmt: skip
BART = TINY | {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
MARIAN = TINY | {"pad_token_id": 98, "eos_token_id": 0, "decoder_start_token_id": 98}
T5 = {
    "vocab_size": 99, "d_model": 48, "d_kv": 8, "d_ff": 80, "num_layers": 2,
    "num_heads": 4, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12, "decoder_start_token_id": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A family by the name of its classes, and what its config has besides."""

    family: str
    arguments: dict[str, Any] = field(default_factory=dict)


CASES = {
    "bart": Case("Bart", BART),
    "bart_scaled": Case("Bart", BART | {"scale_embedding": True, "activation_function": "relu"}),
    "bart_untied": Case("Bart", BART | {"tie_word_embeddings": False}),
    "mbart": Case("MBart", BART),
    "mbart_scaled": Case("MBart", BART | {"scale_embedding": True}),
    "marian": Case("Marian", MARIAN),
    "marian_scaled": Case(
        "Marian", MARIAN | {"scale_embedding": True, "activation_function": "swish"}
    ),
    "marian_two_vocabularies": Case(
        "Marian",
        MARIAN
        | {
            "vocab_size": 70, "decoder_vocab_size": 99, "share_encoder_decoder_embeddings": False,
            "pad_token_id": 69, "decoder_start_token_id": 69,
        },
    ),
    "marian_untied": Case(
        "Marian",
        MARIAN | {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False},
    ),
    "t5": Case("T5", T5),
    "t5_unscaled": Case("T5", T5 | {"tie_word_embeddings": False}),
    "t5_gated": Case("T5", T5 | {"feed_forward_proj": "gated-gelu"}),
    "t5_silu": Case("T5", T5 | {"feed_forward_proj": "gated-silu", "d_kv": 12}),
    "t5_far": Case("T5", T5 | {"relative_attention_max_distance": 128, "num_decoder_layers": 3}),
}  # fmt: skip

_CLASSES = {
    "Marian": "MarianMTModel",
    "Bart": "BartForConditionalGeneration",
    "MBart": "MBartForConditionalGeneration",
    "T5": "T5ForConditionalGeneration",
}


def hugging_face(name: str) -> Any:
    """The model of a case, with weights large enough that every part of it shows."""
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    case = CASES[name]
    config = getattr(transformers, f"{case.family}Config")(**case.arguments)
    config._attn_implementation = "eager"
    model = getattr(transformers, _CLASSES[case.family])(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "embed_positions" in key and case.family == "Marian":
                continue  # sinusoids
            parameter.normal_(0, 0.2)
            if "norm" in key and key.endswith("weight"):
                parameter.add_(1.0)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_(0, 0.5)
    return model.eval()

"""Tiny Hugging Face models of every decoder-only family, with every switch of their configs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from softgate.nn import RopeConfig

TINY = {
    "vocab_size": 99,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
GPT2 = {
    "vocab_size": 99,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = TINY | {"head_dim": 16}
GEMMA_2 = GEMMA | {"query_pre_attn_scalar": 24, "sliding_window": 5}
GEMMA_3 = GEMMA_2 | {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 6.0, 9.0],
}


@dataclass(frozen=True)
class Case:
    """A Hugging Face class, the arguments of its config and the lengths of sequences to try."""

    family: str
    arguments: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] = (1, 40, 17)


def _rope(**parameters: Any) -> dict[str, Any]:
    return TINY | {"rope_parameters": parameters}


CASES = {
    "gpt2": Case("GPT2", GPT2),
    "gpt2_sizes": Case("GPT2", GPT2 | {"n_inner": 31, "n_head": 3, "layer_norm_epsilon": 0.1}),
    "gpt2_relu": Case("GPT2", GPT2 | {"activation_function": "relu"}),
    "gpt2_gelu": Case("GPT2", GPT2 | {"activation_function": "gelu"}),
    "gpt2_unscaled": Case("GPT2", GPT2 | {"scale_attn_weights": False}),
    "gpt2_scaled_by_layer": Case("GPT2", GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2_untied": Case("GPT2", GPT2 | {"tie_word_embeddings": False}),
    "gpt_neox": Case(
        "GPTNeoX", TINY | {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}}
    ),
    "gpt_neox_sequential": Case(
        "GPTNeoX",
        TINY
        | {
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 1.0},
        },
    ),
    "llama": Case("Llama", TINY),
    "llama_all_heads": Case("Llama", TINY | {"num_key_value_heads": 4, "rms_norm_eps": 0.1}),
    "llama_biases": Case("Llama", TINY | {"attention_bias": True, "mlp_bias": True}),
    "llama_head_dim": Case("Llama", TINY | {"head_dim": 20, "num_key_value_heads": 1}),
    "llama_tied": Case("Llama", TINY | {"tie_word_embeddings": True, "hidden_act": "gelu"}),
    "llama_theta": Case("Llama", _rope(rope_type="default", rope_theta=500.0)),
    "llama_linear": Case("Llama", _rope(rope_type="linear", rope_theta=500.0, factor=4.0)),
    "llama_dynamic": Case("Llama", _rope(**DYNAMIC)),
    "llama_dynamic_long": Case("Llama", _rope(**DYNAMIC), lengths=(100, 7, 65)),
    "llama_3": Case("Llama", _rope(**LLAMA_3)),
    "llama_yarn": Case("Llama", _rope(**YARN)),
    "llama_yarn_untruncated": Case(
        "Llama", _rope(**YARN, truncate=False, beta_fast=4.0, beta_slow=0.5, attention_factor=1.5)
    ),
    "llama_yarn_mscale": Case("Llama", _rope(**YARN, mscale=2.0, mscale_all_dim=0.5)),
    "mistral": Case("Mistral", TINY | {"sliding_window": 5}),
    "mistral_everything": Case("Mistral", TINY | {"sliding_window": None, "head_dim": 16}),
    "qwen2": Case("Qwen2", TINY),
    "qwen2_windows": Case(
        "Qwen2",
        TINY | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": Case("Qwen3", TINY | {"head_dim": 16}),
    "qwen3_biases": Case(
        "Qwen3",
        TINY
        | {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma": Case("Gemma", GEMMA),
    "gemma_untied": Case("Gemma", GEMMA | {"tie_word_embeddings": False, "attention_bias": True}),
    "gemma2": Case("Gemma2", GEMMA_2),
    "gemma2_uncapped": Case(
        "Gemma2",
        GEMMA_2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 12},
    ),
    "gemma2_full": Case("Gemma2", GEMMA_2 | {"layer_types": ["full_attention"] * 2}),
    "gemma3": Case("Gemma3Text", GEMMA_3),
    "gemma3_scaled": Case(
        "Gemma3Text",
        GEMMA_3
        | {
            "final_logit_softcapping": 20.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 5e3, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "phi3": Case("Phi3", TINY),
    "phi3_window": Case("Phi3", TINY | {"sliding_window": 5, "tie_word_embeddings": True}),
    "phi3_partial": Case(
        "Phi3", TINY | {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}}
    ),
    "phi3_long": Case(
        "Phi3",
        TINY | {"original_max_position_embeddings": 20, "rope_parameters": LONGROPE},
    ),
    "phi3_long_factor": Case(
        "Phi3",
        TINY
        | {
            "original_max_position_embeddings": 20,
            "rope_parameters": LONGROPE | {"attention_factor": 1.5},
        },
    ),
}

# Fields of our config that change no shape: a case, the field and another value for it.
SWITCHES = [
    ("gpt2", "hidden_act", "gelu"),
    ("gpt2", "norm_eps", 0.1),
    ("gpt2", "query_pre_attn_scalar", 1.0),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ("gpt_neox", "parallel_residual", False),
    ("gpt_neox", "rope", RopeConfig(rope_theta=500.0)),
    ("gpt_neox_sequential", "parallel_residual", True),
    ("llama", "rope", RopeConfig(rope_theta=1e5)),
    ("llama", "norm_eps", 0.1),
    ("llama_linear", "rope", RopeConfig(rope_theta=500.0)),
    ("llama_dynamic_long", "rope", RopeConfig(**DYNAMIC | {"factor": 1.9})),
    ("llama_3", "rope", RopeConfig(rope_theta=500.0)),
    ("llama_3", "rope", RopeConfig(**LLAMA_3 | {"high_freq_factor": 3.0})),
    ("llama_yarn", "rope", RopeConfig(rope_theta=500.0)),
    ("llama_yarn", "rope", RopeConfig(**YARN, attention_factor=1.0)),
    ("llama_yarn", "rope", RopeConfig(**YARN, truncate=False)),
    ("mistral", "sliding_window", 6),
    ("qwen2_windows", "sliding_window", 4),
    ("qwen2_windows", "layer_types", ("sliding_attention", "full_attention")),
    ("qwen3", "norm_eps", 0.1),
    ("gemma", "scale_embeddings", False),
    ("gemma2", "query_pre_attn_scalar", 16),
    ("gemma2", "attn_logit_softcapping", None),
    ("gemma2", "final_logit_softcapping", None),
    ("gemma2", "sliding_window", 4),
    ("gemma2", "layer_types", ("full_attention", "sliding_attention")),
    ("gemma3", "sliding_rope", RopeConfig(rope_theta=1e6)),
    ("gemma3", "rope", RopeConfig(rope_theta=1e4)),
    ("gemma3_scaled", "final_logit_softcapping", None),
    ("phi3_window", "sliding_window", 6),
    ("phi3_partial", "rope", RopeConfig(rope_theta=500.0)),
    ("phi3_long", "rope", RopeConfig(rope_theta=500.0)),
]


def hugging_face(name: str) -> Any:
    """The model of a case, with weights large enough that every part of it shows."""
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    case = CASES[name]
    arguments = dict(case.arguments)
    if case.family == "GPTNeoX":
        del arguments["num_key_value_heads"]
    config = getattr(transformers, f"{case.family}Config")(**arguments)
    config._attn_implementation = "eager"
    heads = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}
    model = getattr(transformers, heads.get(case.family, f"{case.family}ForCausalLM"))(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
            if parameter.ndim == 1:
                parameter.add_(1.0)
    return model.eval()


def expected_logits(model: Any, sequences: list[np.ndarray[Any, Any]]) -> list[Any]:
    """Each sequence's logits, computed on its own."""
    import torch

    with torch.inference_mode():
        return [model(torch.from_numpy(ids)[None]).logits[0].float().numpy() for ids in sequences]

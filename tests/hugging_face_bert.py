"""Tiny Hugging Face models of every family of encoders, with every switch of their configs."""

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
    "max_position_embeddings": 64,
}
ROBERTA = TINY | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
DISTIL = {
    "vocab_size": 99,
    "dim": 48,
    "hidden_dim": 80,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 64,
}
ALBERT = TINY | {"embedding_size": 20}
MPNET = TINY | {"max_position_embeddings": 240}  # beyond the distances that have their own bucket
MODERN = TINY | {
    "num_hidden_layers": 4,
    "local_attention": 8,
    "pad_token_id": 0,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1),
}
LENGTHS = (1, 40, 17)
HEADS = {
    "masked-lm": "ForMaskedLM",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
}


@dataclass(frozen=True)
class Case:
    """A Hugging Face class, the arguments of its config and the lengths of sequences to try."""

    family: str
    arguments: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] = LENGTHS


CASES = {
    "bert": Case("Bert", TINY),
    "bert_sizes": Case("Bert", TINY | {"num_attention_heads": 3, "type_vocab_size": 5}),
    "bert_eps": Case("Bert", TINY | {"layer_norm_eps": 0.1, "hidden_act": "gelu_new"}),
    "bert_relu": Case("Bert", TINY | {"hidden_act": "relu"}),
    "bert_untied": Case("Bert", TINY | {"tie_word_embeddings": False}),
    "roberta": Case("Roberta", ROBERTA | {"type_vocab_size": 1}),
    "roberta_padding": Case("Roberta", ROBERTA | {"pad_token_id": 5, "hidden_act": "silu"}),
    "roberta_untied": Case("Roberta", ROBERTA | {"tie_word_embeddings": False}),
    "xlm-roberta": Case("XLMRoberta", ROBERTA | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "distilbert": Case("DistilBert", DISTIL),
    "distilbert_sinusoids": Case(
        "DistilBert", DISTIL | {"sinusoidal_pos_embds": True, "activation": "relu"}
    ),
    "distilbert_untied": Case("DistilBert", DISTIL | {"tie_word_embeddings": False}),
    "albert": Case("Albert", ALBERT),
    "albert_groups": Case(
        "Albert",
        ALBERT | {"num_hidden_layers": 5, "num_hidden_groups": 2, "inner_group_num": 2},
    ),
    "albert_more_weights_than_layers": Case(
        "Albert", ALBERT | {"num_hidden_groups": 2, "inner_group_num": 2}
    ),
    "albert_square": Case("Albert", ALBERT | {"embedding_size": 48, "hidden_act": "gelu"}),
    "albert_untied": Case("Albert", ALBERT | {"tie_word_embeddings": False}),
    "electra": Case("Electra", ALBERT),
    "electra_square": Case("Electra", ALBERT | {"embedding_size": 48, "hidden_act": "relu"}),
    "electra_untied": Case("Electra", ALBERT | {"tie_word_embeddings": False}),
    "mpnet": Case("MPNet", MPNET, (1, 40, 17, 200)),
    "mpnet_buckets": Case("MPNet", MPNET | {"relative_attention_num_buckets": 40}),
    "mpnet_untied": Case("MPNet", MPNET | {"tie_word_embeddings": False, "hidden_act": "relu"}),
    "modernbert": Case("ModernBert", MODERN),
    "modernbert_biases": Case(
        "ModernBert",
        MODERN
        | {
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
            "classifier_bias": True,
            "decoder_bias": False,
        },
    ),
    "modernbert_window": Case(
        "ModernBert", MODERN | {"local_attention": 5, "global_attn_every_n_layers": 2}
    ),
    "modernbert_kinds": Case(
        "ModernBert",
        MODERN | {"layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 2},
    ),
    "modernbert_full": Case("ModernBert", MODERN | {"layer_types": ["full_attention"] * 4}),
    "modernbert_pooling": Case(
        "ModernBert",
        MODERN
        | {
            "classifier_pooling": "mean",
            "classifier_activation": "relu",
            "hidden_activation": "silu",
            "norm_eps": 0.1,
            "tie_word_embeddings": False,
        },
    ),
    "modernbert_ropes": Case(
        "ModernBert",
        MODERN
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            }
        },
    ),
}

# Fields of our config that change no shape: a case, the field and another value for it.
SWITCHES = [
    ("bert", "hidden_act", "relu"),
    ("bert", "layer_norm_eps", 0.1),
    ("roberta", "position_pad_id", 2),
    ("roberta", "position_pad_id", None),
    ("modernbert", "local_attention", 6),
    ("modernbert", "layer_types", ("full_attention",) * 4),
    ("modernbert", "rope", RopeConfig(rope_theta=10.0)),
    ("modernbert", "local_rope", RopeConfig(rope_theta=10.0)),
    ("modernbert_pooling", "classifier_pooling", "cls"),
    ("modernbert_pooling", "classifier_activation", "gelu"),
    ("modernbert_ropes", "rope", RopeConfig(rope_theta=500.0)),
]


def hugging_face(name: str, task: str | None = None, labels: int = 3) -> Any:
    """The model of a case, with a head or none, with weights so large that every part shows."""
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    case = CASES[name]
    count = {"num_labels": 2 if task == "question-answering" else labels}
    config = getattr(transformers, f"{case.family}Config")(**case.arguments, **count)
    config._attn_implementation = "eager"
    ending = "Model" if task is None else HEADS[task]
    model = getattr(transformers, case.family + ending)(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
            if parameter.ndim == 1:
                parameter.add_(0.5)
    return model.eval()


def has_types(model: Any) -> bool:
    return getattr(model.config, "type_vocab_size", 0) > 0 and model.config.model_type not in (
        "distilbert",
        "mpnet",
        "modernbert",
    )


def run(model: Any, ids: Any, mask: Any, types: Any) -> Any:
    """Its output for a padded batch, with states and attentions."""
    import torch

    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if types is not None:
        inputs["token_type_ids"] = torch.from_numpy(types)
    with torch.inference_mode():
        return model(**inputs, output_hidden_states=True, output_attentions=True)


def batch(model: Any, lengths: Any, seed: int = 0) -> tuple[Any, Any, Any]:
    """Padded ids, mask and types; types are None where the family has none."""
    random = np.random.default_rng(seed)
    config = model.config
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = random.integers(0, config.vocab_size, mask.shape)
    ids[mask == 0] = config.pad_token_id or 0
    types = random.integers(0, config.type_vocab_size, mask.shape) if has_types(model) else None
    return ids, mask, types


def logits_of(output: Any, task: str) -> Any:
    import torch

    if task == "question-answering":
        return torch.stack([output.start_logits, output.end_logits], dim=-1).numpy()
    return output.logits.numpy()

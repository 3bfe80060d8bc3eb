"""From GGUF metadata to the config.json that Hugging Face has for the same model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from softgate.checkpoint.errors import CheckpointError, quote
from softgate.checkpoint.gguf.file import TensorInfo
from softgate.checkpoint.gguf.names import (
    FAMILIES,
    FREQUENCY_FACTORS,
    LONG_FACTORS,
    SHORT_FACTORS,
)

Config = dict[str, Any]
Floats = npt.NDArray[np.float32]
Infos = Mapping[str, TensorInfo]

# Far above what any model has, far below what makes a table too large for memory.
MAX_CONTEXT = 1 << 24

_LARGEST = float(np.finfo(np.float32).max)

# Tokens that end a turn, where the metadata forgets to say so.
_ENDS_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|eom_id|>")


class _Metadata:
    """Metadata values of the types that they must have; keys are relative to the architecture."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata = metadata
        self.architecture = architecture

    def _find(self, key: str) -> tuple[str, Any]:
        full = f"{self.architecture}.{key}"
        return full, self.metadata.get(full)

    def has(self, key: str) -> bool:
        """Is the value there? Converters also write 0 for none."""
        value = self._find(key)[1]
        return value is not None and not (type(value) is int and value == 0)

    def integer(self, key: str, default: int | None = None, most: int = (1 << 31) - 1) -> int:
        """A positive integer; required without a default."""
        full, value = self._find(key)
        if value is None and default is not None:
            return default
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()  # one for each layer
        if type(value) is not int or not 1 <= value <= most:
            raise CheckpointError(f"{full} is {quote(value)}, expected an integer of 1 to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number, the shortest decimal that is this float32; required without a default.

        Configs say 1e-05, and the file's nearest float32 is 9.99999974e-06.
        """
        full, value = self._find(key)
        if value is None and default is not None:
            return default
        if type(value) not in (int, float) or not 0 < value <= _LARGEST:
            raise CheckpointError(f"{full} is {quote(value)}, expected a positive float32")
        return float(str(np.float32(value)))

    def string(self, key: str, default: str) -> str:
        full, value = self._find(key)
        if value is not None and not isinstance(value, str):
            raise CheckpointError(f"{full} is {quote(value)}, expected a string")
        return default if value is None else value

    def boolean(self, key: str, default: bool) -> bool:
        full, value = self._find(key)
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"{full} is {quote(value)}, expected a boolean")
        return default if value is None else value


def architecture(metadata: Mapping[str, Any]) -> str:
    """The file's family, one of FAMILIES; CheckpointError for what softgate cannot read."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in FAMILIES:
        raise CheckpointError(
            f"general.architecture is {quote(name)}, supported are {', '.join(FAMILIES)}"
        )
    shards = metadata.get("split.count")
    if type(shards) is int and shards > 1:
        raise CheckpointError(f"one of {shards} files that a model was split into; merge them")
    return name


def hugging_face_config(
    metadata: Mapping[str, Any],
    infos: Mapping[str, TensorInfo],
    rope_factors: Mapping[str, Floats],
) -> Config:
    """The model's config. rope_factors: the tensors of this kind, by their name in the file.

    Raises CheckpointError when metadata is missing, of the wrong type, or contradicts the tensors.
    """
    family = architecture(metadata)
    found = _Metadata(metadata, family)
    if found.has("expert_count"):
        raise CheckpointError("mixtures of experts are not supported")
    config: Config = {
        "vocab_size": _vocab_size(infos),
        "hidden_size": found.integer("embedding_length"),
        "intermediate_size": found.integer("feed_forward_length"),
        "num_hidden_layers": _num_layers(found, infos),
        "num_attention_heads": found.integer("attention.head_count"),
        "max_position_embeddings": found.integer("context_length", most=MAX_CONTEXT),
        "tie_word_embeddings": "output.weight" not in infos,
    }
    config |= _special_ids(metadata, config["vocab_size"])
    return config | _FAMILY_CONFIGS[family](found, config, infos, rope_factors)


def _vocab_size(infos: Mapping[str, TensorInfo]) -> int:
    if "token_embd.weight" not in infos or len(infos["token_embd.weight"].shape) != 2:
        raise CheckpointError("there is no tensor token_embd.weight of two dimensions")
    return infos["token_embd.weight"].shape[0]


def _num_layers(found: _Metadata, infos: Mapping[str, TensorInfo]) -> int:
    # Compared here, before anything is allocated for each layer.
    claimed = found.integer("block_count")
    there = len({name.split(".")[1] for name in infos if name.startswith("blk.")})
    if claimed != there:
        raise CheckpointError(f"block_count is {claimed}, but there are tensors of {there} layers")
    return claimed


def _special_ids(metadata: Mapping[str, Any], vocab_size: int) -> Config:
    """bos, eos and pad token ids; eos is a list where several tokens end a text."""

    def token(name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value = metadata.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < vocab_size):
            raise CheckpointError(f"{key} is {quote(value)}, expected less than {vocab_size}")
        return value

    ends = [token("eos"), token("eot"), token("eom")]
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        ends += [index for index, text in enumerate(tokens[:vocab_size]) if text in _ENDS_OF_TURN]
    eos = list(dict.fromkeys(end for end in ends if end is not None))
    ids: Config = {"bos_token_id": token("bos"), "pad_token_id": token("padding")}
    return ids | {"eos_token_id": eos[0] if len(eos) == 1 else eos or None}


def _decoder(model_type: str, found: _Metadata, config: Config) -> Config:
    """What the descendants of Llama have in common."""
    heads = config["num_attention_heads"]
    head_dim = found.integer("attention.key_length", max(1, config["hidden_size"] // heads))
    if found.integer("attention.value_length", head_dim) != head_dim:
        raise CheckpointError("attention.value_length differs from attention.key_length")
    return {
        "model_type": model_type,
        "head_dim": head_dim,
        "num_key_value_heads": found.integer("attention.head_count_kv", heads),
        "rms_norm_eps": found.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": found.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(found, config),
        "hidden_act": "silu",
    }


def _fully_rotated(found: _Metadata, head_dim: int) -> None:
    rotated = found.integer("rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise CheckpointError(f"rope.dimension_count is {rotated}, expected head_dim {head_dim}")


def _rope_scaling(found: _Metadata, config: Config) -> Config | None:
    kind = found.string("rope.scaling.type", "none")
    if kind in ("none", "longrope"):  # what longrope says is in tensors
        return None
    if kind not in ("linear", "yarn"):
        raise CheckpointError(f"rope.scaling.type is {quote(kind)}, expected linear or yarn")
    scaling: Config = {"rope_type": kind, "factor": found.number("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = found.integer(
            "rope.scaling.original_context_length",
            max(1, int(config["max_position_embeddings"] / scaling["factor"])),
        )
        if found.has("rope.scaling.attn_factor"):
            # llama.cpp multiplies it by what Hugging Face takes when there is none.
            usual = 0.1 * math.log(scaling["factor"]) + 1
            scaling["attention_factor"] = found.number("rope.scaling.attn_factor") * usual
        for key in ("beta_fast", "beta_slow"):
            if found.has(f"rope.scaling.yarn_{key}"):
                scaling[key] = found.number(f"rope.scaling.yarn_{key}")
    return scaling


def _factors(name: str, rope_factors: Mapping[str, Floats], rotary_dim: int) -> list[float]:
    factors = rope_factors[name]
    if factors.shape != (rotary_dim // 2,) or not (np.isfinite(factors) & (factors > 0)).all():
        raise CheckpointError(
            f"{name} has shape {list(factors.shape)}, expected {rotary_dim // 2} positive numbers"
        )
    return [float(factor) for factor in factors]


def _llama(found: _Metadata, config: Config, infos: Infos, factors: Mapping[str, Floats]) -> Config:
    shared = _decoder("llama", found, config)
    _fully_rotated(found, shared["head_dim"])
    if FREQUENCY_FACTORS in factors:
        # Llama 3's scaling as the file has it, by frequency; longrope is the form that holds it.
        by_frequency = _factors(FREQUENCY_FACTORS, factors, shared["head_dim"])
        shared["rope_scaling"] = {
            "rope_type": "longrope",
            "short_factor": by_frequency,
            "long_factor": by_frequency,
            "attention_factor": 1.0,
            "original_max_position_embeddings": config["max_position_embeddings"],
        }
    return shared | {"attention_bias": "blk.0.attn_q.bias" in infos, "mlp_bias": False}


def _qwen2(found: _Metadata, config: Config, infos: Infos, factors: Mapping[str, Floats]) -> Config:
    shared = _decoder("qwen2", found, config)
    _fully_rotated(found, shared["head_dim"])
    return shared | {"use_sliding_window": False}


def _qwen3(found: _Metadata, config: Config, infos: Infos, factors: Mapping[str, Floats]) -> Config:
    shared = _decoder("qwen3", found, config)
    _fully_rotated(found, shared["head_dim"])
    return shared | {
        "attention_bias": "blk.0.attn_q.bias" in infos,
        "use_sliding_window": False,
    }


def _gemma(found: _Metadata, config: Config, infos: Infos, factors: Mapping[str, Floats]) -> Config:
    shared = _decoder("gemma", found, config)
    _fully_rotated(found, shared["head_dim"])
    return shared | dict.fromkeys(("hidden_act", "hidden_activation"), "gelu_pytorch_tanh")


def _query_scale(config: Config, shared: Config, layers_of_27b: int) -> int:
    """Only the 27B models divide by the square root of something else than head_dim."""
    if config["num_hidden_layers"] == layers_of_27b:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(shared["head_dim"])


def _gemma2(
    found: _Metadata, config: Config, infos: Infos, factors: Mapping[str, Floats]
) -> Config:
    shared = _gemma(found, config, infos, factors)
    return shared | {
        "model_type": "gemma2",
        "query_pre_attn_scalar": _query_scale(config, shared, layers_of_27b=46),
        "sliding_window": found.integer("attention.sliding_window", 4096),
        "attn_logit_softcapping": found.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": found.number("final_logit_softcapping", 30.0),
        "layer_types": _layer_types(config, every=2),
    }


def _gemma3(
    found: _Metadata, config: Config, infos: Infos, factors: Mapping[str, Floats]
) -> Config:
    shared = _gemma(found, config, infos, factors)
    return shared | {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": _query_scale(config, shared, layers_of_27b=62),
        "sliding_window": found.integer("attention.sliding_window"),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": (
            found.number("final_logit_softcapping")
            if found.has("final_logit_softcapping")
            else None
        ),
        "rope_theta": found.number("rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": found.number("rope.freq_base_swa", 10_000.0),
        "layer_types": _layer_types(config, every=6),
    }


def _layer_types(config: Config, every: int) -> list[str]:
    """All layers attend to a window but each `every`-th, which sees everything."""
    return [
        "sliding_attention" if (index + 1) % every else "full_attention"
        for index in range(config["num_hidden_layers"])
    ]


def _phi3(found: _Metadata, config: Config, infos: Infos, factors: Mapping[str, Floats]) -> Config:
    shared = _decoder("phi3", found, config)
    rotary_dim = found.integer("rope.dimension_count", shared["head_dim"])
    if LONG_FACTORS in factors and SHORT_FACTORS in factors:
        shared["rope_scaling"] = {
            "rope_type": "longrope",
            "short_factor": _factors(SHORT_FACTORS, factors, rotary_dim),
            "long_factor": _factors(LONG_FACTORS, factors, rotary_dim),
        }
        if found.has("rope.scaling.attn_factor"):
            factor = found.number("rope.scaling.attn_factor")
            shared["rope_scaling"]["attention_factor"] = factor
    return shared | {
        "partial_rotary_factor": rotary_dim / shared["head_dim"],
        "original_max_position_embeddings": found.integer(
            "rope.scaling.original_context_length", config["max_position_embeddings"]
        ),
        "sliding_window": (
            found.integer("attention.sliding_window")
            if found.has("attention.sliding_window")
            else None
        ),
    }


def _gpt2(found: _Metadata, config: Config, infos: Infos, factors: Mapping[str, Floats]) -> Config:
    return {
        "model_type": "gpt2",
        "n_embd": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "n_positions": config["max_position_embeddings"],
        "n_inner": config["intermediate_size"],
        "layer_norm_epsilon": found.number("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }


def _gptneox(
    found: _Metadata, config: Config, infos: Infos, factors: Mapping[str, Floats]
) -> Config:
    head_dim = max(1, config["hidden_size"] // config["num_attention_heads"])
    return {
        "model_type": "gpt_neox",
        "layer_norm_eps": found.number("attention.layer_norm_epsilon"),
        "rotary_pct": found.integer("rope.dimension_count", head_dim) / head_dim,
        "rotary_emb_base": found.number("rope.freq_base", 10000.0),
        "rope_theta": found.number("rope.freq_base", 10000.0),
        "use_parallel_residual": found.boolean("use_parallel_residual", True),
        "attention_bias": True,
        "hidden_act": "gelu",
    }


_FAMILY_CONFIGS: dict[
    str, Callable[[_Metadata, Config, Infos, Mapping[str, Floats]], Config]
] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "gpt2": _gpt2,
    "gptneox": _gptneox,
}  # fmt: skip

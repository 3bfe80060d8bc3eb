"""GGUF files of small models, written as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter

Array = npt.NDArray[Any]


def write_file(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Array],
    types: Mapping[str, str] = MappingProxyType({}),
    raw: Mapping[str, tuple[str, Array]] = MappingProxyType({}),
    alignment: int | None = None,
) -> Path:
    """Metadata keys with a dot in front are the architecture's.

    types: of tensors not F32; raw: type and bytes of tensors that are given as such.
    """
    writer = GGUFWriter(path, architecture)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, value in metadata.items():
        add(writer, f"{architecture}{key}" if key.startswith(".") else key, value)
    for name, array in tensors.items():
        if name in raw:
            kind, content = GGMLQuantizationType[raw[name][0]], raw[name][1]
        else:
            kind = GGMLQuantizationType[types.get(name, "F32")]
            content = gguf.quantize(np.ascontiguousarray(array, np.float32), kind)
        writer.add_tensor(name, content, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def minimal(hidden_size: int = 32) -> tuple[dict[str, Any], dict[str, Array]]:
    """Metadata and tensors of a llama file that opens."""
    metadata = {
        ".block_count": 1,
        ".context_length": 64,
        ".embedding_length": hidden_size,
        ".feed_forward_length": 32,
        ".attention.head_count": 4,
        ".attention.head_count_kv": 2,
        ".attention.layer_norm_rms_epsilon": 1e-5,
    }
    random = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (96, hidden_size),
        "blk.0.attn_q.weight": (hidden_size, hidden_size),
        "blk.0.attn_k.weight": (hidden_size // 2, hidden_size),
        "blk.0.attn_norm.weight": (hidden_size,),
    }
    return metadata, {name: random.standard_normal(shape) for name, shape in shapes.items()}


def convert(
    config: Any, state: Mapping[str, Array]
) -> tuple[str, dict[str, Any], dict[str, Array]]:
    """Architecture, metadata and tensors of a transformers model, by the converter's rules.

    Names come from the gguf package's own tables.
    """
    architecture = {"gpt_neox": "gptneox", "gemma3_text": "gemma3", "mistral": "llama"}.get(
        config.model_type, config.model_type
    )
    number = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    tensors = {}
    for theirs, array in state.items():
        name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert name is not None, theirs
        tensors[name] = _transformed(architecture, config, theirs, array)
    return architecture, _metadata(architecture, config), tensors


def _transformed(architecture: str, config: Any, name: str, array: Array) -> Array:
    heads = config.num_attention_heads
    if architecture == "llama" and (".q_proj" in name or ".k_proj" in name):
        heads = heads if ".q_proj" in name else config.num_key_value_heads
        shape = (heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
        return array.reshape(shape).swapaxes(1, 2).reshape(array.shape)
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return array + 1
    if architecture == "gpt2" and ("c_" in name and name.endswith(".weight")):
        return array.T
    if architecture == "gptneox" and "query_key_value" in name:
        parts = array.reshape(heads, 3, -1, *array.shape[1:])
        return np.concatenate([parts[:, i].reshape(-1, *array.shape[1:]) for i in range(3)])
    return array


def _metadata(architecture: str, config: Any) -> dict[str, Any]:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    metadata: dict[str, Any] = {
        ".block_count": config.num_hidden_layers,
        ".context_length": config.max_position_embeddings,
        ".embedding_length": config.hidden_size,
        ".attention.head_count": heads,
    }
    if architecture == "gpt2":
        return metadata | {
            ".feed_forward_length": config.n_inner or 4 * config.n_embd,
            ".attention.layer_norm_epsilon": config.layer_norm_epsilon,
        }
    metadata[".feed_forward_length"] = config.intermediate_size
    if architecture == "gptneox":
        return metadata | {
            ".attention.layer_norm_epsilon": config.layer_norm_eps,
            ".rope.dimension_count": int(
                config.rope_parameters["partial_rotary_factor"] * head_dim
            ),
            ".use_parallel_residual": config.use_parallel_residual,
        }
    rope = config.rope_parameters
    if architecture == "gemma3":
        metadata[".rope.freq_base_swa"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    metadata |= {
        ".attention.head_count_kv": config.num_key_value_heads,
        ".attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        ".rope.freq_base": float(rope["rope_theta"]),
        ".rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1)),
    }
    if architecture in ("qwen3", "gemma", "gemma2", "gemma3"):
        metadata |= {".attention.key_length": head_dim, ".attention.value_length": head_dim}
    if rope["rope_type"] in ("linear", "yarn"):
        metadata |= {
            ".rope.scaling.type": rope["rope_type"],
            ".rope.scaling.factor": rope["factor"],
        }
    if rope["rope_type"] == "yarn":
        original = rope["original_max_position_embeddings"]
        metadata[".rope.scaling.original_context_length"] = original
    if architecture in ("gemma2", "gemma3", "phi3"):
        metadata[".attention.sliding_window"] = config.sliding_window or 0
    if architecture == "gemma2":
        metadata |= {
            ".attn_logit_softcapping": config.attn_logit_softcapping,
            ".final_logit_softcapping": config.final_logit_softcapping,
        }
    if rope["rope_type"] == "longrope":
        metadata[".rope.scaling.original_context_length"] = config.original_max_position_embeddings
        if "attention_factor" in rope:
            metadata[".rope.scaling.attn_factor"] = rope["attention_factor"]
    return metadata

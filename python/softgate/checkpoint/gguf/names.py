"""Tensors of GGUF files under the names and in the order that Hugging Face gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from softgate.checkpoint.errors import CheckpointError, quote
from softgate.checkpoint.gguf.blocks import BLOCKS
from softgate.checkpoint.gguf.file import TensorInfo

IntArray = npt.NDArray[np.intp]

_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.(.+)\.(weight|bias)")

# What the file says of rotary frequencies goes into the config.
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
FREQUENCY_FACTORS = "rope_freqs.weight"
ROPE_FACTORS = (LONG_FACTORS, SHORT_FACTORS, FREQUENCY_FACTORS)


@dataclass(frozen=True, slots=True)
class Family:
    """How an architecture's tensors are called, and what the file changed about them.

    model, layer: names without `.weight` and `.bias`; `layers` is what a layer's names begin with.
    interleaved: rows of queries and keys are ordered for rotating neighbours.
    qkv_by_part: the file has all queries, keys, then values; Hugging Face has them head by head.
    transposed: layers' matrices that Hugging Face keeps as `[in, out]`.
    norms_plus_one: the file holds norm weights with 1 added.
    """

    model: Mapping[str, str]
    layers: str
    layer: Mapping[str, str]
    interleaved: bool = False
    qkv_by_part: bool = False
    norms_plus_one: bool = False
    transposed: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor is in the file and how to get it back: its rows in `order`, minus `plus`,
    transposed."""

    name: str
    order: IntArray | None = None
    plus: float = 0.0
    transposed: bool = False


_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA = Family(_MODEL, "model.layers", _LAYER_NAMES, norms_plus_one=True)
_GEMMA_2 = Family(_MODEL, "model.layers", _LAYER_NAMES | _FOUR_NORMS, norms_plus_one=True)

FAMILIES = {
    "llama": Family(_MODEL, "model.layers", _LAYER_NAMES, interleaved=True),
    "qwen2": Family(_MODEL, "model.layers", _LAYER_NAMES),
    "qwen3": Family(_MODEL, "model.layers", _LAYER_NAMES),
    "gemma": _GEMMA,
    "gemma2": _GEMMA_2,
    "gemma3": _GEMMA_2,
    "phi3": Family(_MODEL, "model.layers", _LAYER_NAMES | {"ffn_up": "mlp.gate_up_proj"}),
    "gpt2": Family(
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        "transformer.h",
        {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
    ),
    "gptneox": Family(
        {
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
        },
        "gpt_neox.layers",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        qkv_by_part=True,
    ),
}


def hugging_face_tensors(
    architecture: str, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]
) -> dict[str, Stored]:
    """Each tensor's Hugging Face name and what it is in the file.

    One that the family does not know keeps its name, for the model to complain about.

    Raises CheckpointError when rows do not divide into the config's heads.
    """
    family = FAMILIES[architecture]
    tensors = {}
    for name, info in infos.items():
        if name in ROPE_FACTORS:
            continue
        if match := _LAYER.fullmatch(name):
            index, part, kind = match.groups()
            ours, prefix = family.layer.get(part), f"{family.layers}.{index}."
        else:
            part, _, kind = name.rpartition(".")
            ours, prefix = family.model.get(part), ""
        if ours is None:
            tensors[name] = Stored(name)
            continue
        tensors[f"{prefix}{ours}.{kind}"] = Stored(
            name,
            _row_order(family, config, part, info),
            1.0 if family.norms_plus_one and part.endswith("_norm") else 0.0,
            part in family.transposed and kind == "weight",
        )
    return tensors


def _row_order(
    family: Family, config: Mapping[str, Any], part: str, info: TensorInfo
) -> IntArray | None:
    """The file's row of each of Hugging Face's rows, if they differ."""
    # A bias is one row in the file; its elements are the rows.
    rows = info.shape[0]
    if family.interleaved and part in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
        axes = (heads, rows // heads // 2, 2)
        swap = (0, 2, 1)
    elif family.qkv_by_part and part == "attn_qkv":
        heads = config["num_attention_heads"]
        axes = (3, heads, rows // heads // 3)
        swap = (1, 0, 2)
    else:
        return None
    if np.prod(axes, dtype=object) != rows:
        raise CheckpointError(f"{part} has {rows} rows, which {quote(heads)} heads do not divide")
    if len(info.shape) == 1 and BLOCKS[info.type].decode is not None:
        raise CheckpointError(f"the bias of {part} is {info.type}, expected a float type")
    return np.arange(rows).reshape(axes).transpose(swap).ravel()

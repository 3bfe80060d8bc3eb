"""Names and layouts in checkpoints of decoder-only models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from softgate.checkpoint.names import Source


@dataclass(frozen=True)
class Names:
    """What a family calls its tensors, without `.weight` and `.bias`.

    prefix: of everything but the head; files of a model without head lack it. layers: what layers
    are called. model, layer: softgate's name to those that it joins along its rows. transposed:
    parts whose matrices are `[in, out]`. by_head: qkv has query, key and value of each head
    together. plus_one: norms multiply by 1 + weight.
    """

    prefix: str
    layers: str
    model: Mapping[str, tuple[str, ...]]
    layer: Mapping[str, tuple[str, ...]]
    head: str = "lm_head"
    transposed: frozenset[str] = field(default_factory=frozenset)
    by_head: bool = False
    plus_one: bool = False


_MODEL = {"embedding": ("embed_tokens",), "norm": ("norm",)}
_LLAMA = {
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.q_norm": ("self_attn.q_norm",),
    "attention.k_norm": ("self_attn.k_norm",),
    "attention.output": ("self_attn.o_proj",),
    "feed_forward_norm": ("post_attention_layernorm",),
    "feed_forward.up": ("mlp.gate_proj", "mlp.up_proj"),
    "feed_forward.down": ("mlp.down_proj",),
}
_FOUR_NORMS = {
    "attention_post_norm": ("post_attention_layernorm",),
    "feed_forward_norm": ("pre_feedforward_layernorm",),
    "feed_forward_post_norm": ("post_feedforward_layernorm",),
}
_FUSED = {
    "attention.qkv": ("self_attn.qkv_proj",),
    "feed_forward.up": ("mlp.gate_up_proj",),
}
_LIKE_LLAMA = Names("model.", "layers", _MODEL, _LLAMA)
_GEMMA_2 = Names("model.", "layers", _MODEL, _LLAMA | _FOUR_NORMS, plus_one=True)

FAMILIES = {
    "gpt2": Names(
        "transformer.",
        "h",
        {"embedding": ("wte",), "positions": ("wpe",), "norm": ("ln_f",)},
        {
            "attention_norm": ("ln_1",),
            "attention.qkv": ("attn.c_attn",),
            "attention.output": ("attn.c_proj",),
            "feed_forward_norm": ("ln_2",),
            "feed_forward.up": ("mlp.c_fc",),
            "feed_forward.down": ("mlp.c_proj",),
        },
        transposed=frozenset(
            {"attention.qkv", "attention.output", "feed_forward.up", "feed_forward.down"}
        ),
    ),
    "gpt_neox": Names(
        "gpt_neox.",
        "layers",
        {"embedding": ("embed_in",), "norm": ("final_layer_norm",)},
        {
            "attention_norm": ("input_layernorm",),
            "attention.qkv": ("attention.query_key_value",),
            "attention.output": ("attention.dense",),
            "feed_forward_norm": ("post_attention_layernorm",),
            "feed_forward.up": ("mlp.dense_h_to_4h",),
            "feed_forward.down": ("mlp.dense_4h_to_h",),
        },
        head="embed_out",
        by_head=True,
    ),
    "llama": _LIKE_LLAMA,
    "mistral": _LIKE_LLAMA,
    "qwen2": _LIKE_LLAMA,
    "qwen3": _LIKE_LLAMA,
    "gemma": Names("model.", "layers", _MODEL, _LLAMA, plus_one=True),
    "gemma2": _GEMMA_2,
    "gemma3_text": _GEMMA_2,
    "phi3": Names("model.", "layers", _MODEL, _LLAMA | _FUSED),
}

# Buffers that files hold beside the weights: masks, and frequencies that follow from the config.
_BUFFERS = re.compile(r"\.(attn|attention)\.(masked_)?bias$|\.rotary_emb\.inv_freq$")


def sources(
    model_type: str,
    parameters: Mapping[str, tuple[int, ...]],
    num_heads: int,
    num_kv_heads: int,
) -> dict[str, Source]:
    """The source of each of softgate's parameters, given by name and shape."""
    family = FAMILIES[model_type]
    found = {}
    for name, shape in parameters.items():
        part, kind = name.rsplit(".", 1) if "." in name else (name, "weight")
        if part.startswith("layers."):
            _, index, part = part.split(".", 2)
            prefix, theirs = f"{family.prefix}{family.layers}.{index}.", family.layer[part]
        elif part == "lm_head":
            prefix, theirs = "", (family.head,)
        else:
            prefix, theirs = family.prefix, family.model[part]
        heads = (num_heads, num_kv_heads, num_kv_heads)
        shares = heads if len(theirs) == len(heads) else (1,) * len(theirs)
        unit = shape[0] // sum(shares)
        transposed = part in family.transposed and kind == "weight"
        shapes = tuple((share * unit, *shape[1:]) for share in shares)
        found[name] = Source(
            tuple(f"{prefix}{their}.{kind}" for their in theirs),
            tuple(shape[::-1] for shape in shapes) if transposed else shapes,
            transposed,
            num_heads if family.by_head and part == "attention.qkv" else 0,
            1.0 if family.plus_one and part.endswith("norm") else 0.0,
        )
    return found


def canonical_names(model_type: str, found: Iterable[str], tied: bool) -> dict[str, str]:
    """The name of each tensor in a file of the whole model to its name in this file.

    Buffers are left out, as is a head that is the embedding again.
    """
    family = FAMILIES[model_type]
    head = family.head + "."
    names = {}
    for name in found:
        if _BUFFERS.search(name) or (tied and name.startswith(head)):
            continue
        whole = name.startswith((family.prefix, head))
        names[name if whole else family.prefix + name] = name
    return names

"""Names in checkpoints of encoder-decoders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from softgate.checkpoint.names import Source


@dataclass(frozen=True)
class Names:
    """What a family calls its tensors, without `.weight` and `.bias`.

    prefix: of everything but the head and its bias; files of a model without head lack it. layers:
    what layers are called. source, target: the embeddings where the sides have their own. side,
    encoder, decoder: softgate's name of a part of a side, of its layers, to those that it joins
    along its rows.
    """

    prefix: str
    layers: str
    source: str
    target: str
    side: Mapping[str, str]
    encoder: Mapping[str, tuple[str, ...]]
    decoder: Mapping[str, tuple[str, ...]]


_ENCODER = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.output": ("self_attn.out_proj",),
    "attention_norm": ("self_attn_layer_norm",),
    "feed_forward.up": ("fc1",),
    "feed_forward.down": ("fc2",),
    "feed_forward_norm": ("final_layer_norm",),
}
_BART = Names(
    "model.",
    "layers.{i}",
    "encoder.embed_tokens",
    "decoder.embed_tokens",
    {
        "positions": "embed_positions.weight",
        "embedding_norm": "layernorm_embedding",
        "norm": "layer_norm",
    },
    _ENCODER,
    _ENCODER
    | {
        "cross_attention.q": ("encoder_attn.q_proj",),
        "cross_attention.kv": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
        "cross_attention.output": ("encoder_attn.out_proj",),
        "cross_attention_norm": ("encoder_attn_layer_norm",),
    },
)


def _t5(feed_forward: int) -> dict[str, tuple[str, ...]]:
    """feed_forward: which of a layer's parts that is."""
    attention = "layer.0.SelfAttention"
    dense = f"layer.{feed_forward}.DenseReluDense"
    return {
        "attention.qkv": (f"{attention}.q", f"{attention}.k", f"{attention}.v"),
        "attention.output": (f"{attention}.o",),
        "attention_norm": ("layer.0.layer_norm",),
        "feed_forward.up": (f"{dense}.wi",),
        "feed_forward.gated": (f"{dense}.wi_0", f"{dense}.wi_1"),
        "feed_forward.down": (f"{dense}.wo",),
        "feed_forward_norm": (f"layer.{feed_forward}.layer_norm",),
    }


_CROSS = "layer.1.EncDecAttention"
_T5 = Names(
    "",
    "block.{i}",
    "encoder.embed_tokens",
    "decoder.embed_tokens",
    {
        "relative_bias": "block.0.layer.0.SelfAttention.relative_attention_bias",
        "norm": "final_layer_norm",
    },
    _t5(1),
    _t5(2)
    | {
        "cross_attention.q": (f"{_CROSS}.q",),
        "cross_attention.kv": (f"{_CROSS}.k", f"{_CROSS}.v"),
        "cross_attention.output": (f"{_CROSS}.o",),
        "cross_attention_norm": ("layer.1.layer_norm",),
    },
)

FAMILIES = {"bart": _BART, "mbart": _BART, "marian": _BART, "t5": _T5}

HEAD, HEAD_BIAS = "lm_head.weight", "final_logits_bias"
# Sinusoids, which follow from the config, and what some old files hold beside the weights.
_BUFFERS = re.compile(r"\.version$|^decoder\.block\.\d+\.layer\.1\.EncDecAttention\.relative_")


def sources(
    model_type: str, parameters: Mapping[str, tuple[int, ...]], gated: bool
) -> dict[str, Source]:
    """The source of each of softgate's parameters, given by name and shape; of a model_type that
    none of the families has, their own names."""
    family = FAMILIES.get(model_type)
    if family is None:
        return {name: Source((name,), (shape,)) for name, shape in parameters.items()}
    found = {}
    for name, shape in parameters.items():
        names = _names(family, name, gated, "source_embedding" in parameters)
        shapes = ((shape[0] // len(names), *shape[1:]),) * len(names)
        found[name] = Source(names, shapes)
    return found


def _names(family: Names, name: str, gated: bool, two_tables: bool) -> tuple[str, ...]:
    prefix = family.prefix
    if name == "embedding":
        return (prefix + (f"{family.target}.weight" if two_tables else "shared.weight"),)
    if name == "source_embedding":
        return (f"{prefix}{family.source}.weight",)
    if name == "lm_head.weight":
        return (HEAD,)
    if name == "output_bias":
        return (HEAD_BIAS,)
    side, part = name.split(".", 1)
    if part == "positions":
        return (f"{prefix}{side}.{family.side[part]}",)
    part, kind = part.rsplit(".", 1)
    if not part.startswith("layers."):
        return (f"{prefix}{side}.{family.side[part]}.{kind}",)
    _, index, part = part.split(".", 2)
    table = family.encoder if side == "encoder" else family.decoder
    if gated and part == "feed_forward.up":
        part = "feed_forward.gated"
    where = f"{prefix}{side}.{family.layers.format(i=index)}."
    return tuple(f"{where}{theirs}.{kind}" for theirs in table[part])


def canonical_names(model_type: str, found: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """The name of each tensor in a file of the whole model to its name in this file.

    wanted: what `sources` asks for. Left out are the embedding again under another of its names, a
    head that is tied to it, and sinusoids.
    """
    family = FAMILIES.get(model_type)
    found = list(found)
    if family is None:
        return {name: name for name in found}
    names = {}
    for name in found:
        whole = name.startswith(family.prefix) or name in (HEAD, HEAD_BIAS)
        names[name if whole else family.prefix + name] = name
    wanted = set(wanted)
    tables = [
        family.prefix + table
        for table in (
            "shared.weight", f"{family.source}.weight", f"{family.target}.weight",
            "encoder.embed_positions.weight", "decoder.embed_positions.weight",
        )
    ]  # fmt: skip
    shared, *sides = tables[:3]
    of_a_side = [names[table] for table in sides if table in names]
    if shared in wanted and shared not in names and of_a_side:  # so some files have it
        names[shared] = of_a_side[-1]
    left_out = {*tables, HEAD, HEAD_BIAS} - wanted
    return {
        name: stored
        for name, stored in names.items()
        if name not in left_out and not _BUFFERS.search(name)
    }

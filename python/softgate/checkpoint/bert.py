"""Names in checkpoints of encoders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from softgate.checkpoint.names import Source


@dataclass(frozen=True)
class Names:
    """What a family calls its tensors, without `.weight` and `.bias`.

    prefix: of everything but heads; files of a model without head lack it. tables: of the
    embedding. layers: what layer i is called, or of ALBERT layer j of group i. model, layer:
    softgate's name to those that it joins along its rows. heads: the same for each task, and
    "head.bias" is what the bias is called that goes with tied embeddings. others: how names begin
    of what some files hold besides.
    """

    prefix: str
    tables: tuple[str, ...]
    layers: str
    model: Mapping[str, tuple[str, ...]]
    layer: Mapping[str, tuple[str, ...]]
    heads: Mapping[str, Mapping[str, str]]
    others: tuple[str, ...] = field(default=())


_TABLES = (
    "embeddings.word_embeddings", "embeddings.position_embeddings",
    "embeddings.token_type_embeddings",
)  # fmt: skip
_MODEL = {
    "embedding.norm": ("embeddings.LayerNorm",),
    "embedding_projection": ("embeddings_project",),
    "pooler": ("pooler.dense",),
}
_LAYER = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "feed_forward.up": ("intermediate.dense",),
    "feed_forward.down": ("output.dense",),
    "feed_forward_norm": ("output.LayerNorm",),
}
_LABELS = {
    "token-classification": {"head.output": "classifier"},
    "question-answering": {"head.output": "qa_outputs"},
}
_DENSE = {"head.dense": "classifier.dense", "head.output": "classifier.out_proj"}
_LM_HEAD = {
    "head.dense": "lm_head.dense",
    "head.norm": "lm_head.layer_norm",
    "head.output": "lm_head.decoder",
    "head.bias": "lm_head.bias",
}
_ROBERTA = Names(
    "roberta.",
    _TABLES,
    "encoder.layer.{i}",
    _MODEL,
    _LAYER,
    _LABELS | {"masked-lm": _LM_HEAD, "sequence-classification": _DENSE},
)
_PREDICTION = {"head.dense": "head.dense", "head.norm": "head.norm"}
_CLASSIFIER = _PREDICTION | {"head.output": "classifier"}

FAMILIES = {
    "bert": Names(
        "bert.",
        _TABLES,
        "encoder.layer.{i}",
        _MODEL,
        _LAYER,
        _LABELS
        | {
            "masked-lm": {
                "head.dense": "cls.predictions.transform.dense",
                "head.norm": "cls.predictions.transform.LayerNorm",
                "head.output": "cls.predictions.decoder",
                "head.bias": "cls.predictions.bias",
            },
            "sequence-classification": {
                "head.dense": "bert.pooler.dense",
                "head.output": "classifier",
            },
        },
        ("cls.",),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": Names(
        "distilbert.",
        _TABLES[:2],
        "transformer.layer.{i}",
        _MODEL,
        {
            "attention.qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
            "attention.output": ("attention.out_lin",),
            "attention_norm": ("sa_layer_norm",),
            "feed_forward.up": ("ffn.lin1",),
            "feed_forward.down": ("ffn.lin2",),
            "feed_forward_norm": ("output_layer_norm",),
        },
        _LABELS
        | {
            "masked-lm": {
                "head.dense": "vocab_transform",
                "head.norm": "vocab_layer_norm",
                "head.output": "vocab_projector",
                "head.bias": "vocab_projector.bias",
            },
            "sequence-classification": {
                "head.dense": "pre_classifier",
                "head.output": "classifier",
            },
        },
    ),
    "albert": Names(
        "albert.",
        _TABLES,
        "encoder.albert_layer_groups.{i}.albert_layers.{j}",
        {
            "embedding.norm": ("embeddings.LayerNorm",),
            "embedding_projection": ("encoder.embedding_hidden_mapping_in",),
            "pooler": ("pooler",),
        },
        {
            "attention.qkv": ("attention.query", "attention.key", "attention.value"),
            "attention.output": ("attention.dense",),
            "attention_norm": ("attention.LayerNorm",),
            "feed_forward.up": ("ffn",),
            "feed_forward.down": ("ffn_output",),
            "feed_forward_norm": ("full_layer_layer_norm",),
        },
        _LABELS
        | {
            "masked-lm": {
                "head.dense": "predictions.dense",
                "head.norm": "predictions.LayerNorm",
                "head.output": "predictions.decoder",
                "head.bias": "predictions.bias",
            },
            "sequence-classification": {
                "head.dense": "albert.pooler",
                "head.output": "classifier",
            },
        },
        ("sop_classifier.",),
    ),
    "electra": Names(
        "electra.",
        _TABLES,
        "encoder.layer.{i}",
        _MODEL,
        _LAYER,
        _LABELS
        | {
            "masked-lm": {
                "head.dense": "generator_predictions.dense",
                "head.norm": "generator_predictions.LayerNorm",
                "head.output": "generator_lm_head",
                "head.bias": "generator_lm_head.bias",
            },
            "sequence-classification": _DENSE,
        },
        ("discriminator_predictions.",),
    ),
    "mpnet": Names(
        "mpnet.",
        _TABLES[:2],
        "encoder.layer.{i}",
        _MODEL | {"relative_bias": ("encoder.relative_attention_bias",)},
        _LAYER
        | {
            "attention.qkv": ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
            "attention.output": ("attention.attn.o",),
            "attention_norm": ("attention.LayerNorm",),
        },
        _LABELS | {"masked-lm": _LM_HEAD, "sequence-classification": _DENSE},
    ),
    "modernbert": Names(
        "model.",
        ("embeddings.tok_embeddings",),
        "layers.{i}",
        {"embedding.norm": ("embeddings.norm",), "norm": ("final_norm",)},
        {
            "attention_norm": ("attn_norm",),
            "attention.qkv": ("attn.Wqkv",),
            "attention.output": ("attn.Wo",),
            "feed_forward_norm": ("mlp_norm",),
            "feed_forward.up": ("mlp.Wi",),
            "feed_forward.down": ("mlp.Wo",),
        },
        {
            "masked-lm": _PREDICTION | {"head.output": "decoder", "head.bias": "decoder.bias"},
            "sequence-classification": _CLASSIFIER,
            "token-classification": _CLASSIFIER,
            "question-answering": _CLASSIFIER,
        },
    ),
}

# Buffers that some files hold beside the weights: 0, 1, 2 and so on, zeros, frequencies.
_BUFFERS = re.compile(r"embeddings\.(position_ids|token_type_ids)$|\.inv_freq$")


def sources(
    model_type: str,
    parameters: Mapping[str, tuple[int, ...]],
    task: str | None = None,
    inner_group_num: int = 1,
) -> dict[str, Source]:
    """The source of each of softgate's parameters, given by name and shape."""
    family = FAMILIES[model_type]
    prefix = family.prefix if task else ""
    head = family.heads[task] if task else {}
    found = {}
    for name, shape in parameters.items():
        if name == "head.bias":
            names: tuple[str, ...] = (head[name],)
        elif name == "embedding.word":
            names = (f"{prefix}{family.tables[0]}.weight",)
        elif name.startswith("embedding.tables."):
            # The word table is not one of them where a head is tied to it.
            index = int(name.rsplit(".", 1)[1]) + ("embedding.word" in parameters)
            names = (f"{prefix}{family.tables[index]}.weight",)
        else:
            part, kind = name.rsplit(".", 1)
            if part.startswith("head."):
                theirs: tuple[str, ...] = (head[part],)
            elif part.startswith("layers."):
                _, layer, part = part.split(".", 2)
                i, j = divmod(int(layer), inner_group_num)
                where = f"{prefix}{family.layers.format(i=i, j=j)}."
                theirs = tuple(where + their for their in family.layer[part])
            else:
                theirs = tuple(prefix + their for their in family.model[part])
            names = tuple(f"{their}.{kind}" for their in theirs)
        part_shape = (shape[0] // len(names), *shape[1:])
        found[name] = Source(names, (part_shape,) * len(names))
    return found


def canonical_names(
    model_type: str, found: Iterable[str], task: str | None = None, tied: bool = True
) -> dict[str, str]:
    """The name that `sources` has for each tensor in a file to its name there.

    Files of whole models put a prefix in front, and those converted from TensorFlow call a norm's
    parameters gamma and beta. Left out are buffers, heads for other tasks, and what is tied.
    """
    family = FAMILIES[model_type]
    names = {}
    for name in found:
        canonical = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        canonical = canonical.replace("LayerNorm.beta", "LayerNorm.bias")
        canonical = canonical.removeprefix(family.prefix)
        if _BUFFERS.search(canonical):
            continue
        in_head = canonical == name and canonical.startswith(_heads(family))
        if task:
            canonical = canonical if in_head else family.prefix + canonical
        elif in_head:
            continue
        names[canonical] = name
    if task:
        _choose(family, names, task, tied)
    return names


def _heads(family: Names) -> tuple[str, ...]:
    """How the names of heads begin, that are not in the model they stand on."""
    parts = {name for head in family.heads.values() for name in head.values()}
    roots = {part.split(".")[0] + "." for part in parts if not part.startswith(family.prefix)}
    return (*sorted(roots), *family.others)


def _choose(family: Names, names: dict[str, str], task: str, tied: bool) -> None:
    """Drop what a head for this task does not use, of all heads and the pooler."""
    head = family.heads[task]
    if task == "masked-lm":
        # The decoder's bias is there under one of two names, or both.
        untied, bias = head["head.output"] + ".bias", head["head.bias"]
        wanted, other = (bias, untied) if tied else (untied, bias)
        if wanted not in names and other in names:
            names[wanted] = names[other]
        if other != wanted:
            names.pop(other, None)
        if tied:
            names.pop(head["head.output"] + ".weight", None)
    used = tuple(part if part.endswith(".bias") else part + "." for part in head.values())
    unused = (*_heads(family), family.prefix + "pooler.")
    for name in [name for name in names if name.startswith(unused) and not name.startswith(used)]:
        del names[name]

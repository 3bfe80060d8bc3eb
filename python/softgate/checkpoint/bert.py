"""Names in BERT checkpoints."""

from __future__ import annotations

from collections.abc import Iterable

# Parts of checkpoints that softgate's encoder does not use: heads, and a buffer of 0, 1, 2, ...
_OTHER = ("cls.", "classifier.", "qa_outputs.", "embeddings.position_ids")


def bert_names(num_layers: int, pooler: bool) -> dict[str, tuple[str, ...]]:
    """softgate's parameters of a BERT encoder and the tensors each joins."""

    def dense(ours: str, *theirs: str) -> dict[str, tuple[str, ...]]:
        return {
            f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in theirs)
            for kind in ("weight", "bias")
        }

    names: dict[str, tuple[str, ...]] = {
        f"embedding.tables.{i}": (f"embeddings.{table}_embeddings.weight",)
        for i, table in enumerate(("word", "position", "token_type"))
    }
    names |= dense("embedding.norm", "embeddings.LayerNorm")
    for i in range(num_layers):
        ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
        parts = ("query", "key", "value")
        names |= dense(f"{ours}.attention.qkv", *(f"{theirs}.attention.self.{p}" for p in parts))
        names |= dense(f"{ours}.attention.output", f"{theirs}.attention.output.dense")
        names |= dense(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm")
        names |= dense(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense")
        names |= dense(f"{ours}.feed_forward.down", f"{theirs}.output.dense")
        names |= dense(f"{ours}.feed_forward_norm", f"{theirs}.output.LayerNorm")
    if pooler:
        names |= dense("pooler", "pooler.dense")
    return names


def canonical_names(found: Iterable[str]) -> dict[str, str]:
    """Today's name of each encoder tensor to its name in the file.

    Files of whole models put "bert." in front, and those converted from TensorFlow call a norm's
    parameters gamma and beta.
    """
    names = {}
    for name in found:
        canonical = name.removeprefix("bert.")
        canonical = canonical.replace("LayerNorm.gamma", "LayerNorm.weight")
        canonical = canonical.replace("LayerNorm.beta", "LayerNorm.bias")
        if not canonical.startswith(_OTHER):
            names[canonical] = name
    return names

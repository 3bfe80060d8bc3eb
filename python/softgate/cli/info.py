"""`softgate info`: what softgate runs on, and what a model holds."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

import softgate
from softgate.cli.common import failures

if TYPE_CHECKING:
    from softgate.models.bert import Bert
    from softgate.models.gpt import Gpt
    from softgate.models.recurrent_lm import RecurrentLM
    from softgate.models.seq2seq import Seq2Seq
    from softgate.models.transformer import Transformer


@click.command()
@click.option("--model", "spec", metavar="SPEC", help="Also describe this model.")
def info(spec: str | None) -> None:
    """Show what softgate runs on and, with --model, what a model holds."""
    with failures():
        rows = [
            ("softgate", softgate.__version__),
            ("isa", f"{softgate.isa()} (available: {', '.join(softgate.isas())})"),
            ("threads", str(softgate.num_threads())),
            ("cuda", softgate.cuda.describe()),
        ]
        if spec is not None:
            rows += _describe(spec, softgate.load(spec))
        for name, value in rows:
            click.echo(f"{name:<12}{value}")


def _describe(
    spec: str, model: Bert | Gpt | RecurrentLM | Seq2Seq | Transformer
) -> list[tuple[str, str]]:
    from softgate.models.gpt import Gpt
    from softgate.models.recurrent_lm import RecurrentLM
    from softgate.models.seq2seq import Seq2Seq
    from softgate.models.transformer import Transformer

    if isinstance(model, RecurrentLM | Seq2Seq):
        return _describe_recurrent(spec, model)
    if isinstance(model, Transformer):
        return _describe_transformer(spec, model)
    config = model.config
    further = []
    if not isinstance(model, Gpt):
        further = [("pooling", str(model.pooling))]
        if model.config.task is not None:
            further.append(("head", model.config.task))
    return [
        ("model", spec),
        ("family", config.model_type),
        ("layers", str(config.num_hidden_layers)),
        ("hidden", str(config.hidden_size)),
        ("heads", str(config.num_attention_heads)),
        ("vocabulary", str(config.vocab_size)),
        ("parameters", f"{model.num_parameters():,}"),
        ("memory", f"{model.nbytes() / 2**20:.1f} MiB"),
        ("dtype", _weight_types(model)),
        ("max length", str(model.max_length)),
        *further,
    ]


def _describe_recurrent(spec: str, model: RecurrentLM | Seq2Seq) -> list[tuple[str, str]]:
    config = model.config
    return [
        ("model", spec),
        ("family", config.MODEL_TYPE),
        ("cell", config.cell),
        ("layers", str(config.num_layers)),
        ("vocabulary", str(config.vocab_size)),
        ("parameters", f"{model.num_parameters():,}"),
        ("memory", f"{model.nbytes() / 2**20:.1f} MiB"),
        ("dtype", "float32"),
    ]


def _describe_transformer(spec: str, model: Transformer) -> list[tuple[str, str]]:
    config = model.config
    layers = (config.encoder_layers, config.decoder_layers)
    heads = (config.encoder_attention_heads, config.decoder_attention_heads)
    return [
        ("model", spec),
        ("family", config.model_type),
        ("layers", "{} + {}".format(*layers)),
        ("hidden", str(config.hidden_size)),
        ("heads", "{} + {}".format(*heads)),
        ("vocabulary", str(config.vocab_size)),
        ("parameters", f"{model.num_parameters():,}"),
        ("memory", f"{model.nbytes() / 2**20:.1f} MiB"),
        ("dtype", _weight_types(model)),
        ("max length", str(config.max_length)),
    ]


def _weight_types(model: Bert | Gpt | Transformer) -> str:
    """How weights are kept, those that take most memory first."""
    sizes: Counter[str] = Counter()
    for _, parameter in model.named_parameters():
        sizes[parameter.value.dtype] += parameter.value.nbytes
    return ", ".join(dtype for dtype, _ in sizes.most_common())

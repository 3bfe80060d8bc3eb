"""`softgate info`: what softgate runs on, and what a model holds."""

from __future__ import annotations

from typing import Any

import click

import softgate
from softgate.cli.common import failures


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


def _describe(spec: str, model: Any) -> list[tuple[str, str]]:
    config = model.config
    return [
        ("model", spec),
        ("family", getattr(config, "model_type", type(model).__name__.lower())),
        ("layers", str(config.num_hidden_layers)),
        ("hidden", str(config.hidden_size)),
        ("heads", str(config.num_attention_heads)),
        ("vocabulary", str(config.vocab_size)),
        ("parameters", f"{model.num_parameters():,}"),
        ("memory", f"{model.nbytes() / 2**20:.1f} MiB"),
        ("max length", str(model.max_length)),
        *([("pooling", model.pooling)] if hasattr(model, "pooling") else []),
    ]

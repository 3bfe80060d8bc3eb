"""`softgate attention`: a picture of where a model looked."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import click

from softgate.attention_map import picture_kind
from softgate.cli.common import failures, load_with, model_option, set_threads, threads_option


@click.command()
@click.argument("text")
@model_option
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the picture goes; its name ends with its kind: png, pdf, svg.",
)
@click.option("--layer", type=int, help="Which, from 0. [default: the mean of all]")
@click.option("--head", type=int, help="Which, from 0. [default: the mean of all]")
@click.option(
    "--target", help="Of an encoder-decoder. [default: the translation that it finds itself]"
)
@click.option(
    "--kind",
    type=click.Choice(["cross", "encoder", "decoder"]),
    help="Which attention of an encoder-decoder: of target to source, or of either to itself. "
    "[default: cross]",
)
@threads_option
def attention(
    text: str,
    spec: str,
    output: Path,
    layer: int | None,
    head: int | None,
    target: str | None,
    kind: str | None,
    threads: int | None,
) -> None:
    """Draw where a model looked as it read TEXT, or wrote its translation.

    A row for each token that looked, a column for each that it looked at. Needs `pip install
    softgate[plot]`.
    """
    with failures():
        try:
            picture_kind(output)  # before the model is loaded
        except ImportError as error:
            raise ValueError(str(error)) from None
        set_threads(threads)
        model = load_with("attention_map", spec)
        options: dict[str, Any] = {"layer": layer, "head": head}
        for name, value in (("target", target), ("kind", kind)):
            if value is None:
                continue
            if not hasattr(model, "translate"):
                raise ValueError(
                    f"--{name} is for encoder-decoders, {spec} is a {type(model).__name__}"
                )
            options[name] = value
        found = model.attention_map(text, **options)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            found.save(output)
        for warning in said:
            click.echo(f"warning: {warning.message}", err=True)

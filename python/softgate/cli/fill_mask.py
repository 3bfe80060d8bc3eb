"""`softgate fill-mask`: words for the masks of texts."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from softgate.cli.encoder import run, text_options


@click.command("fill-mask")
@text_options
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How many words for each text.",
)
def fill_mask(top_k: int, **options: Any) -> None:
    """Find the likeliest words for the mask of each of TEXTS, or of the lines of a file.

    A text has one mask token: [MASK], or <mask> for RoBERTa and its kin.

    --output gets a line for each text: {"index": 0, "text": "...", "fills": [{"token": "...",
    "token_id": 1, "score": 0.9, "text": "..."}]}. Ctrl-C keeps the texts that are finished, and the
    exit status is 130.
    """

    def as_json(index: int, text: str, fills: Any) -> str:
        rows = [dataclasses.asdict(fill) for fill in fills]
        return json.dumps({"index": index, "text": text, "fills": rows}, ensure_ascii=False)

    def show(text: str, fills: Any) -> str:
        return "\n".join(f"{fill.score:.4f}  {fill.text}" for fill in fills)

    run(
        "fill_mask",
        lambda model, texts: model.fill_masks(texts, top_k),
        show,
        as_json,
        **options,
    )

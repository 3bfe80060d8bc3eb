"""`softgate translate`: lines of one language, or spelling, in another."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

import click

from softgate.cli.common import (
    INTERRUPTED,
    failures,
    input_option,
    json_lines,
    load_with,
    model_option,
    progress_bar,
    read_lines,
    set_threads,
    threads_option,
)
from softgate.cli.language import exact
from softgate.generation import BeamSearch


@click.command()
@click.argument("texts", nargs=-1)
@model_option
@input_option
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where JSON lines go, one a text; written whole or not at all.",
)
@click.option(
    "--num-beams",
    type=int,
    help="Unfinished texts that are kept; 1 takes the likeliest token each time. [default: 4, or as"
    " the folder says]",
)
@click.option("--num-return", type=int, default=1, help="In JSON, as many of the best texts.")
@click.option("--max-new-tokens", type=int, help="[default: 128, or as the folder says]")
@click.option(
    "--length-penalty",
    type=float,
    help="Above 0, favours longer texts. [default: 1, or as the folder says]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Texts computed at a time.",
)
@threads_option
def translate(
    texts: tuple[str, ...],
    spec: str,
    source: BinaryIO | None,
    output: Path | None,
    batch_size: int,
    threads: int | None,
    **settings: Any,
) -> None:
    """Translate TEXTS, or the lines of a file, with an encoder-decoder.

    A translation a line, or with --output {"index": 0, "text": "...", "translations": [{"text":
    "...", "score": -0.3}]}, the best first. Ctrl-C keeps those that are finished, and the exit
    status is 130.
    """
    if bool(texts) == (source is not None):
        raise click.UsageError("give either TEXTS or --input")
    with failures():
        given = {name: value for name, value in settings.items() if value is not None}
        BeamSearch(**given)  # before the model is loaded: a bad setting is said at once
        if given.get("num_beams") == 1:
            given["early_stopping"] = True
        lines = list(texts) if source is None else read_lines(source)
        for number, line in enumerate(lines, 1):
            if not line.strip():
                raise ValueError(f"text {number} of {len(lines)} is empty")
        set_threads(threads)
        with json_lines(output) as writer:
            model = load_with("translate", spec)
            finished = 0
            with progress_bar(len(lines), "text") as bar:
                try:
                    for start in range(0, len(lines), batch_size):
                        part = lines[start : start + batch_size]
                        found = model.generate(part, batch_size=batch_size, **given)
                        rows = [
                            _json(start + i, text, best)
                            for i, (text, best) in enumerate(zip(part, found, strict=True))
                        ]
                        if writer is None:
                            for best in found:
                                click.echo(best[0].text if best else "")
                        else:
                            writer.write(rows)
                        finished += len(part)
                        bar.update(len(part))
                except KeyboardInterrupt:
                    if not finished:
                        raise
        if finished < len(lines):
            click.echo(f"interrupted: kept {finished} of {len(lines)} texts", err=True)
            sys.exit(INTERRUPTED)


def _json(index: int, text: str, best: list[Any]) -> str:
    found = [{"text": one.text, "score": exact(one.score)} for one in best]
    return json.dumps({"index": index, "text": text, "translations": found}, ensure_ascii=False)

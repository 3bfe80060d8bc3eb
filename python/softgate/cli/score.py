"""`softgate score`: how likely a model finds texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from softgate.cli.common import INTERRUPTED, failures, json_lines, progress_bar
from softgate.cli.language import exact, load, model_options, plural
from softgate.generation import Score


@click.command()
@click.argument("texts", nargs=-1)
@model_options
@click.option(
    "--input",
    "sources",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="A UTF-8 file that is one text, - is standard input; may be repeated.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where each token's log-probability goes, as JSON lines.",
)
@click.option(
    "--window",
    type=click.IntRange(min=2),
    help="Tokens that the model sees at a time. [default: its context]",
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="How far apart windows begin in a longer text. [default: half a window]",
)
def score(
    texts: tuple[str, ...],
    spec: str,
    dtype: str | None,
    device: str | None,
    threads: int | None,
    sources: tuple[Path, ...],
    output: Path | None,
    window: int | None,
    stride: int | None,
) -> None:
    """Print the perplexity of TEXTS or of files, each a text of its own.

    --output gets a line for each token: {"text": 0, "token_id": 28, "token": "The", "logprob":
    -3.1}; the logarithm is natural, and null for a text's first token, which nothing precedes. A
    character spread over several tokens stands with the last of them. Ctrl-C keeps the texts that
    are finished, and the exit status is 130.
    """
    if bool(texts) == bool(sources):
        raise click.UsageError("give either TEXTS or --input")
    with failures():
        named = [(f"text {i}", text) for i, text in enumerate(texts, 1)]
        named += [(str(path), _read(path)) for path in sources]
        for name, text in named:
            if not text:
                raise ValueError(f"{name} is empty")
        finished = 0
        with json_lines(output) as writer, progress_bar(len(named), "text") as bar:
            model = load(spec, dtype, device, threads)
            try:
                for index, (name, text) in enumerate(named):
                    result = model.score(text, window=window, stride=stride)
                    if writer is not None:
                        writer.write(_lines(index, result, model.tokenizer))
                    count = plural(len(result.token_ids), "token")
                    click.echo(f"perplexity {result.perplexity:.4f}  {count}  {name}")
                    finished += 1
                    bar.update()
            except KeyboardInterrupt:
                if not finished:
                    raise
        if finished < len(named):
            click.echo(f"interrupted: kept {finished} of {len(named)} texts", err=True)
            sys.exit(INTERRUPTED)


def _read(path: Path) -> str:
    with click.open_file(str(path), "rb") as file:
        content: bytes = file.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8: {error.reason}") from None


def _lines(index: int, result: Score, tokenizer: Any) -> list[str]:
    stream = tokenizer.decode_stream(skip_special_tokens=False)
    return [
        json.dumps(
            {
                "text": index,
                "token_id": token,
                "token": stream.feed(token),
                "logprob": exact(logprob),
            },
            ensure_ascii=False,
        )
        for token, logprob in zip(result.token_ids, result.logprobs, strict=True)
    ]

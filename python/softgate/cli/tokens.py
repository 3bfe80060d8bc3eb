"""`softgate tokens`: how a tokenizer cuts texts, and tokenizers trained from texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO, get_args

import click

from softgate.checkpoint import open_checkpoint
from softgate.cli.common import failures, input_option, json_lines, read_lines
from softgate.text import Tokenizer
from softgate.text.tiktoken import ENCODINGS
from softgate.text.training import Kind


@click.command()
@click.argument("texts", nargs=-1)
@click.option(
    "--model",
    "spec",
    metavar="SPEC",
    help="The tokenizer of a model: a folder, a GGUF file, package:NAME, or a Hugging Face id.",
)
@click.option(
    "--tokenizer",
    "path",
    type=click.Path(exists=True, path_type=Path),
    help="A tokenizer.json, a folder with one, or a file of tiktoken's ranks.",
)
@click.option(
    "--encoding",
    type=click.Choice(list(ENCODINGS)),
    help="What ranks belong to. [default: what has as many]",
)
@click.option(
    "--train",
    "kind",
    type=click.Choice(get_args(Kind)),
    help="Make one of the lines of --input instead.",
)
@click.option("--vocab-size", type=click.IntRange(min=1), help="With --train, tokens at most.")
@click.option(
    "--save", "folder", type=click.Path(file_okay=False, path_type=Path), help="Keep it there."
)
@input_option
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where JSON lines go, one a text; written whole or not at all.",
)
@click.option("--no-special", is_flag=True, help="Without the special tokens of a text.")
def tokens(
    texts: tuple[str, ...],
    spec: str | None,
    path: Path | None,
    encoding: str | None,
    kind: Kind | None,
    vocab_size: int | None,
    folder: Path | None,
    source: BinaryIO | None,
    output: Path | None,
    no_special: bool,
) -> None:
    """Show the tokens of TEXTS, or of the lines of a file, with their ids.

    --output gets {"index": 0, "ids": [40, 1097], "tokens": ["I", "\\u0120am"]} for each text. With
    --train, --input is what the tokenizer is made of, and TEXTS are shown as it cuts them.
    """
    if sum(given is not None for given in (spec, path, kind)) != 1:
        raise click.UsageError("give one of --model, --tokenizer and --train")
    if kind is None and bool(texts) == (source is not None):
        raise click.UsageError("give either TEXTS or --input")
    if kind is not None and source is None:
        raise click.UsageError("--train needs --input")
    if vocab_size is not None and kind is None:
        raise click.UsageError("--vocab-size is for --train")
    if encoding is not None and path is None:
        raise click.UsageError("--encoding is for --tokenizer")
    with failures():
        lines = list(texts) if source is None else read_lines(source)
        if kind is not None:
            tokenizer = Tokenizer.train(kind, lines, vocab_size=vocab_size)
            lines = list(texts)
            click.echo(f"{tokenizer.vocab_size} tokens", err=True)
        elif path is not None:
            tokenizer = (
                Tokenizer.from_tiktoken(path, encoding) if encoding else Tokenizer.load(path)
            )
        else:
            tokenizer = _of_model(str(spec))
        if folder is not None:
            tokenizer.save(folder)
        _show(tokenizer, lines, output, add_special_tokens=not no_special)


def _of_model(spec: str) -> Tokenizer:
    with open_checkpoint(spec) as checkpoint:
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
    if tokenizer is None:
        raise ValueError(f"{spec} has no tokenizer")
    return tokenizer


def _show(
    tokenizer: Tokenizer, texts: list[str], output: Path | None, add_special_tokens: bool
) -> None:
    with json_lines(output) as writer:
        for index, text in enumerate(texts):
            ids = tokenizer.ids(text, add_special_tokens=add_special_tokens)
            names = [tokenizer.token(i) for i in ids]
            if writer is not None:
                said = {"index": index, "ids": ids, "tokens": names}
                writer.write([json.dumps(said, ensure_ascii=False)])
                continue
            if index:
                click.echo()
            for i, name in zip(ids, names, strict=True):
                click.echo(f"{i:>7}  {name if name.isprintable() else ascii(name)[1:-1]}")

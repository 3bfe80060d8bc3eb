"""`softgate embed`: vectors of texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click
import numpy as np

from softgate._files import atomic_write
from softgate.cli.common import (
    INTERRUPTED,
    JsonLines,
    failures,
    input_option,
    load_with,
    model_option,
    progress_bar,
    read_lines,
    set_threads,
)
from softgate.cli.encoder import place_options

if TYPE_CHECKING:
    from softgate.models.bert import Bert
    from softgate.text import Encoding

Array = np.ndarray[Any, np.dtype[Any]]

MAX_PRINTED = 20

# How many texts are tokenized ahead of the model: enough to fill batches, few enough to interrupt.
AHEAD_TEXTS = 1024
AHEAD_CHARACTERS = 200_000


@click.command()
@click.argument("texts", nargs=-1)
@model_option
@input_option
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the embeddings go: FILE.npy, float32 [texts, hidden], or FILE.jsonl.",
)
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Scale embeddings to length 1, or not. [default: as the model says]",
)
@click.option(
    "--truncate/--no-truncate",
    default=True,
    show_default=True,
    help="Cut texts that are too long, or refuse them.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    help="Tokens kept of a text. [default: as the model says]",
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Tokens in a batch.",
)
@place_options
def embed(
    texts: tuple[str, ...],
    spec: str,
    source: BinaryIO | None,
    output: Path | None,
    normalize: bool | None,
    truncate: bool,
    max_length: int | None,
    batch_tokens: int,
    threads: int | None,
    device: str | None,
    dtype: str | None,
) -> None:
    """Embed TEXTS, or the lines of a file.

    Without --output, one text prints its embedding's first values, several print the cosine of each
    pair.
    """
    if bool(texts) == (source is not None):
        raise click.UsageError("give either TEXTS or --input")
    if output is not None and output.suffix not in WRITERS:
        raise click.UsageError(f"--output is {output}, expected a name in .npy or .jsonl")
    with failures():
        lines = list(texts) if source is None else read_lines(source)
        if output is None and len(lines) > MAX_PRINTED:
            raise click.UsageError(f"give --output for more than {MAX_PRINTED} texts")
        set_threads(threads)
        # Opened before the model is loaded: a bad path is said at once.
        with atomic_write(*([] if output is None else [output])) as files:
            model = load_with("encode", spec, device=device, dtype=dtype)
            embedder = Embedder(model, normalize, max_length, truncate, batch_tokens)
            if output is None:
                finished = len(lines)
                _print_embeddings(lines, np.concatenate(list(embedder.batches(lines))))
            else:
                finished = _write_embeddings(WRITERS[output.suffix](files[0]), lines, embedder)
        if finished < len(lines):
            click.echo(f"interrupted: kept the first {finished} of {len(lines)} lines", err=True)
            sys.exit(INTERRUPTED)
        if embedder.truncated:
            click.echo(
                f"{embedder.truncated} of {len(lines)} texts were cut "
                f"to {embedder.max_length} tokens",
                err=True,
            )


class Embedder:
    """A model with the options of one run; counts the texts it truncates."""

    def __init__(
        self,
        model: Bert,
        normalize: bool | None,
        max_length: int | None,
        truncate: bool,
        batch_tokens: int,
    ) -> None:
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer.json")
        if max_length is not None and max_length > model.max_length:
            raise ValueError(f"--max-length is {max_length}, expected at most {model.max_length}")
        self.model = model
        self.tokenizer = model.tokenizer
        self.normalize = normalize
        self.max_length = model.max_length if max_length is None else max_length
        self.truncate = truncate
        self.batch_tokens = batch_tokens
        self.truncated = 0

    def batches(self, texts: Sequence[str]) -> Iterator[Array]:
        """Embeddings of the texts in their order, as many at a time as `batch_tokens` holds.

        Batches are packed: texts of unlike length share one without waste, so none is reordered.
        """
        batch: list[Encoding] = []
        tokens = 0
        for encoding in self._encodings(texts):
            if batch and tokens + len(encoding.ids) > self.batch_tokens:
                yield self.model.encode_batch(batch, normalize=self.normalize)
                batch, tokens = [], 0
            batch.append(encoding)
            tokens += len(encoding.ids)
        if batch:
            yield self.model.encode_batch(batch, normalize=self.normalize)

    def _encodings(self, texts: Sequence[str]) -> Iterator[Encoding]:
        index = 0
        for piece in _pieces(texts):
            for encoding in self.tokenizer.encode(piece, max_length=self.max_length):
                index += 1
                if encoding.truncated and not self.truncate:
                    raise ValueError(
                        f"text {index} of {len(texts)} has more than {self.max_length} tokens"
                    )
                self.truncated += encoding.truncated
                yield encoding


def _pieces(texts: Sequence[str]) -> Iterator[list[str]]:
    piece: list[str] = []
    characters = 0
    for text in texts:
        piece.append(text)
        characters += len(text)
        if len(piece) == AHEAD_TEXTS or characters >= AHEAD_CHARACTERS:
            yield piece
            piece, characters = [], 0
    if piece:
        yield piece


class NpyWriter:
    """Rows of a .npy file, float32 `[rows, hidden]`, whose header is written again at the end."""

    def __init__(self, file: BinaryIO) -> None:
        self.rows = 0
        self._file = file
        self._end = self._hidden = 0

    def append(self, texts: Sequence[str], embeddings: Array) -> None:
        if not self.rows:
            self._hidden = embeddings.shape[1]
            self._write_header()
        self._file.write(np.ascontiguousarray(embeddings, "<f4").data)
        # After the calls, so that Ctrl-C comes before both assignments or after both.
        self._end, self.rows = self._file.tell(), self.rows + len(texts)

    def finish(self) -> None:
        self._file.truncate(self._end)
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        # NumPy pads the header so that its length does not depend on the number of rows.
        shape = (self.rows, self._hidden)
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )


class JsonLinesWriter(JsonLines):
    """One object a text: {"index": 0, "text": "...", "embedding": [...]}."""

    def append(self, texts: Sequence[str], embeddings: Array) -> None:
        lines = []
        for index, (text, row) in enumerate(zip(texts, embeddings, strict=True), self.rows):
            values = ", ".join(row.astype(np.str_))  # the shortest digits that read back the same
            head = json.dumps({"index": index, "text": text}, ensure_ascii=False)
            lines.append(f'{head[:-1]}, "embedding": [{values}]}}')
        self.write(lines)


WRITERS: dict[str, type[NpyWriter | JsonLinesWriter]] = {
    ".npy": NpyWriter,
    ".jsonl": JsonLinesWriter,
}


def _write_embeddings(
    writer: NpyWriter | JsonLinesWriter, texts: Sequence[str], embedder: Embedder
) -> int:
    """How many texts were written: fewer than all after Ctrl-C, which passes when there is none."""
    with progress_bar(len(texts), "text") as bar:
        try:
            for embeddings in embedder.batches(texts):
                writer.append(texts[writer.rows : writer.rows + len(embeddings)], embeddings)
                bar.update(len(embeddings))
        except KeyboardInterrupt:
            if not writer.rows:
                raise
    writer.finish()
    return writer.rows


def _print_embeddings(texts: Sequence[str], embeddings: Array) -> None:
    if len(texts) == 1:
        values = [f"{value:.4f}" for value in embeddings[0, :8]]
        rest = ["..."] if embeddings.shape[1] > len(values) else []
        click.echo(f"{embeddings.shape[1]} dimensions: {' '.join(values + rest)}")
        return
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.maximum(norms, np.finfo(np.float32).tiny)
    cosines = unit @ unit.T
    names = [_shortened(text) for text in texts]
    width = max(map(len, names))
    for a, b in sorted(combinations(range(len(texts)), 2), key=lambda pair: -cosines[pair]):
        click.echo(f"{cosines[a, b]:7.4f}  {names[a]:<{width}}  {names[b]}")


def _shortened(text: str, width: int = 40) -> str:
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= width else line[: width - 3] + "..."

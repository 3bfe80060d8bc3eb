"""What the commands that run an encoder share."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
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

DTYPES = ("float32", "bfloat16", "float16", "int8")
MAX_PRINTED = 20

# How many texts go to the model at a time: enough to fill a batch, few enough to interrupt.
PIECE = 64

_PLACE = (
    threads_option,
    click.option("--device", help="cpu, cuda, cuda:1 and so on.  [default: cpu]"),
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        help="How weights are kept, and what a device other than the CPU computes in.  "
        "[default: as the file has them]",
    ),
)
_TEXTS = (
    click.argument("texts", nargs=-1),
    model_option,
    input_option,
    click.option(
        "--output",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Where the results go, as JSON lines.",
    ),
    *_PLACE,
)


def place_options(command: Callable[..., None]) -> Callable[..., None]:
    """--threads, --device and --dtype."""
    return _decorated(command, _PLACE)


def text_options(command: Callable[..., None]) -> Callable[..., None]:
    """TEXTS or --input, --model, --output, and those of `place_options`."""
    return _decorated(command, _TEXTS)


def _decorated(command: Callable[..., None], options: tuple[Any, ...]) -> Callable[..., None]:
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def run(
    method: str,
    work: Callable[[Any, list[str]], Sequence[Any]],
    show: Callable[[str, Any], str],
    as_json: Callable[[int, str, Any], str],
    *,
    texts: Sequence[str],
    spec: str,
    source: BinaryIO | None,
    output: Path | None,
    threads: int | None,
    device: str | None,
    dtype: str | None,
) -> None:
    """Give a model's `method` the texts, some at a time, and print or write what `work` makes of
    them: `show` for people, `as_json` of a text, its index and its result for files."""
    if bool(texts) == (source is not None):
        raise click.UsageError("give either TEXTS or --input")
    with failures():
        lines = list(texts) if source is None else read_lines(source)
        if output is None and len(lines) > MAX_PRINTED:
            raise click.UsageError(f"give --output for more than {MAX_PRINTED} texts")
        set_threads(threads)
        done = 0
        # Opened before the model is loaded: a bad path is said at once.
        with json_lines(output) as writer, progress_bar(len(lines), "text") as bar:
            model = load_with(method, spec, device=device, dtype=dtype)
            try:
                for first, piece in _pieces(lines):
                    found = list(enumerate(_work(work, model, first, piece)))
                    if writer is None:
                        for i, result in found:
                            click.echo(show(piece[i], result))
                    else:
                        writer.write([as_json(first + i, piece[i], one) for i, one in found])
                    done += len(piece)
                    bar.update(len(piece))
            except KeyboardInterrupt:
                done = done if writer is None else writer.rows
                if not done:
                    raise
        if done < len(lines):
            click.echo(f"interrupted: kept the first {done} of {len(lines)} texts", err=True)
            sys.exit(INTERRUPTED)


def _pieces(lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    for first in range(0, len(lines), PIECE):
        yield first, list(lines[first : first + PIECE])


def _work(
    work: Callable[[Any, list[str]], Sequence[Any]], model: Any, first: int, piece: list[str]
) -> Sequence[Any]:
    """Errors name texts as people count them, in the whole input."""
    try:
        return work(model, piece)
    except ValueError as error:
        message = re.sub(
            r"texts\[(\d+)\]", lambda found: f"text {first + int(found[1]) + 1}", str(error)
        )
        raise ValueError(message) from None

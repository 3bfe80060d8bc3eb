"""What the commands share: options, input, output, failures."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click

import softgate
from softgate._files import atomic_write

INTERRUPTED = 130  # what a shell reports for Ctrl-C

model_option = click.option(
    "--model",
    "spec",
    required=True,
    metavar="SPEC",
    help="A folder, a GGUF file, package:NAME (weights inside an installed package), or a Hugging "
    "Face id.",
)
input_option = click.option(
    "--input",
    "source",
    type=click.File("rb"),
    help="A UTF-8 file of one text a line; - is standard input.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), help="[default: the CPUs available]"
)


class Failure(click.ClickException):
    """What the user sees instead of a traceback."""

    exit_code = 2


@contextmanager
def failures(interrupted: str = "interrupted: nothing was written") -> Iterator[None]:
    """Turn what a user can cause into a message and an exit status."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Failure(f"{where}{error.strerror or error}") from None
    except (ValueError, MemoryError) as error:
        raise Failure(str(error) or "out of memory") from None
    except KeyboardInterrupt:
        click.echo(interrupted, err=True)
        sys.exit(INTERRUPTED)


def set_threads(threads: int | None) -> None:
    if threads is not None:
        softgate.set_num_threads(threads)


def load_with(method: str, spec: str, **options: Any) -> Any:
    """Load a model; ValueError when it is not of the kind that has `method`."""
    try:
        model = softgate.load(spec, **options)
    except (TypeError, RuntimeError) as error:  # a dtype or a device that there is not
        raise ValueError(str(error)) from None
    # Encoder-decoders have methods of the same names that mean something else.
    if method != "attention_map" and hasattr(model, "translate") != (method == "translate"):
        wanted = "an encoder-decoder" if method == "translate" else "no encoder-decoder"
        raise ValueError(f"{spec} is a {type(model).__name__}, expected {wanted}")
    if not hasattr(model, method):
        kinds = {"generate": "a language model", "attention_map": "a model with attention"}
        kind = kinds.get(method, "an encoder")
        raise ValueError(f"{spec} is a {type(model).__name__}, expected {kind}")
    return model


def progress_bar(total: int, unit: str) -> Any:
    """On stderr, after a while that is longer where nobody watches."""
    from tqdm import tqdm

    patience = 0.5 if sys.stderr.isatty() else 10.0  # seconds
    return tqdm(total=total, unit=unit, delay=patience, mininterval=patience / 5)


def read_lines(source: BinaryIO) -> list[str]:
    """The lines of a UTF-8 file, of which an empty one is an empty text.

    Raises ValueError when there is none, and for bytes that are not UTF-8.
    """
    name = getattr(source, "name", "input")
    content = source.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{name}: line {line} is not UTF-8: {error.reason}") from None
    if not text:
        raise ValueError(f"{name} is empty")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


class JsonLines:
    """A file of JSON objects, one a line."""

    def __init__(self, file: BinaryIO) -> None:
        self.rows = 0
        self._file = file
        self._end = 0

    def write(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._file.write(f"{line}\n".encode())
        # After the calls, so that Ctrl-C comes before both assignments or after both.
        self._end, self.rows = self._file.tell(), self.rows + len(lines)

    def finish(self) -> None:
        """Drop what Ctrl-C left of lines that it interrupted."""
        self._file.truncate(self._end)


@contextmanager
def json_lines(output: Path | None) -> Iterator[JsonLines | None]:
    """A file that appears when the block ends, or none."""
    if output is None:
        yield None
        return
    with atomic_write(output) as (file,):
        writer = JsonLines(file)
        yield writer
        writer.finish()

"""`softgate generate`: texts that continue prompts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

import click

from softgate.cli.common import (
    INTERRUPTED,
    JsonLines,
    failures,
    json_lines,
    progress_bar,
    read_lines,
)
from softgate.cli.language import exact, load, model_options, plural, report, sampling_options
from softgate.generation import Generation, Sampling


@click.command()
@click.argument("prompts", nargs=-1)
@model_options
@click.option(
    "--input",
    "source",
    type=click.File("rb"),
    help="A UTF-8 file of one prompt a line; - is standard input.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where JSON lines go, one a text; written whole or not at all.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Texts computed at a time.",
)
@click.option("--num-samples", type=click.IntRange(min=1), default=1, help="Texts of each prompt.")
@click.option("--logprobs", is_flag=True, help="In JSON, each token's log-probability.")
@sampling_options(max_new_tokens=128)
def generate(
    prompts: tuple[str, ...],
    spec: str,
    dtype: str | None,
    device: str | None,
    threads: int | None,
    source: BinaryIO | None,
    output: Path | None,
    batch_size: int,
    num_samples: int,
    logprobs: bool,
    **settings: Any,
) -> None:
    """Continue PROMPTS, or the lines of a file.

    One text is written as it comes; several, or with --output, are JSON lines, in the order of the
    prompts. How fast it went is on stderr. Ctrl-C ends the generation: one text stays as far as it
    came, of several those that are finished, and the exit status is 130.
    """
    if bool(prompts) == (source is not None):
        raise click.UsageError("give either PROMPTS or --input")
    with failures():
        sampling = Sampling(logprobs=logprobs, **settings)
        lines = list(prompts) if source is None else read_lines(source)
        for number, line in enumerate(lines, 1):
            if not line:
                raise ValueError(f"prompt {number} of {len(lines)} is empty")
        if output is None and len(lines) * num_samples == 1:
            if logprobs:
                raise click.UsageError("--logprobs needs --output")
            _stream(load(spec, dtype, device, threads), lines[0], sampling)
            return
        # Opened before the model is loaded: a bad path is said at once.
        with json_lines(output) as writer:
            model = load(spec, dtype, device, threads)
            start = perf_counter()
            texts = Texts(writer, lines, num_samples)
            texts.run(
                model.generate_each(lines, sampling, num_samples=num_samples, batch_size=batch_size)
            )
        seconds = perf_counter() - start
        click.echo(
            f"{plural(texts.rows, 'text')}, {plural(texts.tokens, 'token')}, "
            f"{texts.tokens / seconds:.1f} tokens/s",
            err=True,
        )
        if texts.rows < texts.total:
            click.echo(f"interrupted: kept {texts.rows} of {texts.total} texts", err=True)
            sys.exit(INTERRUPTED)


def _stream(model: Any, prompt: str, sampling: Sampling) -> None:
    """Write a text as it comes; after Ctrl-C, also what was still held back."""
    stream = model.stream(prompt, sampling)
    written = ""
    interrupted = False
    try:
        for piece in stream:
            click.echo(piece, nl=False)
            written += piece
    except KeyboardInterrupt:
        interrupted = True
    generation = stream.generation
    click.echo(generation.text[len(written) :])
    report(generation)
    if interrupted:
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)


class Texts:
    """Writes texts as JSON lines, in the order of their prompts, or to standard output.

    {"index": 0, "prompt": "...", "text": "...", "finish_reason": "...", "tokens": 12, "seed": 1},
    with several samples of a prompt "sample", on request "token_ids" and "logprobs".
    """

    def __init__(self, writer: JsonLines | None, prompts: list[str], num_samples: int) -> None:
        self.total = len(prompts) * num_samples
        self.tokens = 0
        self._prompts = prompts
        self._num_samples = num_samples
        self._writer = writer
        self._waiting: dict[int, str] = {}  # finished before one whose turn it is
        self.rows = 0

    def run(self, generations: Iterator[Generation]) -> None:
        """Write all; after Ctrl-C those that are finished. KeyboardInterrupt when none is."""
        with progress_bar(self.total, "text") as bar:
            try:
                for generation in generations:
                    index = generation.prompt * self._num_samples + generation.sample
                    self._waiting[index] = self._line(generation)
                    self.tokens += len(generation.token_ids)
                    bar.update()
                    while self.rows in self._waiting:
                        self._write(self._waiting.pop(self.rows))
            except KeyboardInterrupt:
                if not self.rows and not self._waiting:
                    raise
                for index in sorted(self._waiting):
                    self._write(self._waiting[index])

    def _write(self, line: str) -> None:
        if self._writer is None:
            click.echo(line)
        else:
            self._writer.write([line])
        self.rows += 1

    def _line(self, generation: Generation) -> str:
        fields: dict[str, Any] = {
            "index": generation.prompt,
            "prompt": self._prompts[generation.prompt],
            "text": generation.text,
            "finish_reason": generation.finish_reason,
            "tokens": len(generation.token_ids),
            "seed": generation.seed,
        }
        if self._num_samples > 1:
            fields["sample"] = generation.sample
        if generation.logprobs is not None:
            fields["token_ids"] = generation.token_ids
            fields["logprobs"] = [exact(x) for x in generation.logprobs]
        return json.dumps(fields, ensure_ascii=False)

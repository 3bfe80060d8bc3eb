"""Options of the commands that run a language model, and how they report."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import click
import numpy as np

from softgate.cli.common import load_with, model_option, set_threads, threads_option
from softgate.generation import Generation, Sampling

DTYPES = ("float32", "bfloat16", "float16", "int8", "int4")
DEFAULT = Sampling()

_SAMPLING = (
    click.option(
        "--temperature",
        type=float,
        default=DEFAULT.temperature,
        show_default=True,
        help="0 always takes the likeliest token, more draws.",
    ),
    click.option("--top-k", type=int, default=DEFAULT.top_k, help="Draw of the K likeliest."),
    click.option(
        "--top-p", type=float, default=DEFAULT.top_p, help="Draw of the likeliest that reach P."
    ),
    click.option(
        "--min-p",
        type=float,
        default=DEFAULT.min_p,
        help="Draw of those at least P times as likely as the likeliest.",
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        default=DEFAULT.repetition_penalty,
        help="Above 1, make tokens that have been used less likely.",
    ),
    click.option("--seed", type=int, help="Same seed, same text. [default: a new one]"),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this; may be repeated."),
    click.option(
        "--context",
        type=click.Choice(["error", "slide"]),
        default=DEFAULT.context,
        show_default=True,
        help="Where the model's context is full, refuse or drop the oldest tokens.",
    ),
    click.option(
        "--keep",
        type=int,
        default=DEFAULT.keep,
        help="With --context slide, never drop the first N tokens.",
    ),
)
_MODEL = (
    model_option,
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        help="How weights are kept. [default: as the file has them]",
    ),
    click.option("--device", help="cpu, cuda, cuda:1 and so on. [default: cpu]"),
    threads_option,
)


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """--model, --dtype, --device and --threads."""
    return _decorated(command, _MODEL)


def sampling_options(
    max_new_tokens: int,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option for each setting of `Sampling` that makes sense here."""
    length = click.option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        default=max_new_tokens,
        show_default=True,
        help="Where a text ends at the latest.",
    )
    return lambda command: _decorated(command, (length, *_SAMPLING))


def _decorated(command: Callable[..., None], options: tuple[Any, ...]) -> Callable[..., None]:
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def load(spec: str, dtype: str | None, device: str | None, threads: int | None) -> Any:
    """The language model that the options name."""
    set_threads(threads)
    model = load_with("generate", spec, dtype=dtype, device=device)
    model.require_tokenizer(spec)
    return model


def report(generation: Generation) -> None:
    """Tokens per second and time to the first one, on stderr."""
    count = len(generation.token_ids)
    line = f"{plural(count, 'token')} after {generation.prompt_tokens} of prompt"
    if count:
        line += f", the first in {generation.first_token_seconds:.2f} s"
    if count > 1:
        line += f", then {generation.tokens_per_second:.1f} tokens/s"
    if generation.finish_reason in ("length", "context"):
        line += f"; ended by {ENDS[generation.finish_reason]}"
    click.echo(line, err=True)


ENDS = {"length": "--max-new-tokens", "context": "the model's context"}


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def exact(value: float) -> float | None:
    """A float32 as the shortest digits that read back the same; None (null) for NaN."""
    return float(str(np.float32(value))) if math.isfinite(value) else None

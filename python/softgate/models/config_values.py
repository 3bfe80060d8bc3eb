"""Checks of configs' values, which may come from a file that is not trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from softgate.checkpoint.errors import quote


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def check_integer(name: str, value: object, most: int, least: int = 1) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(
            f"config: {name} is {quote(value)}, expected an integer from {least} to {most}"
        )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"config: {name} is {quote(value)}, expected one of {sorted(choices)}")


def check_lossless(config: Any, again: Any) -> None:
    """again: what a config.json written from `config` reads as."""
    lost = [f.name for f in fields(config) if getattr(again, f.name) != getattr(config, f.name)]
    if lost:
        raise ValueError(
            f"config: a config.json of {config.model_type} cannot say "
            + ", ".join(f"{name}={getattr(config, name)!r}" for name in lost)
        )

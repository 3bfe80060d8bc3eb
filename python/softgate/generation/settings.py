"""What settings of generation have in common: checks of values, keywords that replace some."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np

Settings = TypeVar("Settings")


def replaced(settings: Settings, keywords: dict[str, Any]) -> Settings:
    """A dataclass with some fields replaced; TypeError for unknown ones."""
    known = [field.name for field in fields(settings)]  # type: ignore[arg-type]
    if unknown := sorted(keywords.keys() - set(known)):
        raise TypeError(f"unknown setting {unknown[0]!r}, expected one of {', '.join(known)}")
    return replace(settings, **keywords)  # type: ignore[type-var]


def check_int(name: str, value: Any, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}, expected an integer")
    if value < least:
        raise ValueError(f"{name} is {value}, expected at least {least}")
    if most is not None and value > most:
        raise ValueError(f"{name} is {value}, expected at most {most}")


def check_number(name: str, value: Any, expected: str, is_good: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} is {value!r}, expected a number")
    if not math.isfinite(value) or not is_good(value):
        raise ValueError(f"{name} is {value}, expected {expected}")

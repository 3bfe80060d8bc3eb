"""The exception of this package."""

from __future__ import annotations

import reprlib

_limits = reprlib.Repr()
_limits.maxstring = _limits.maxother = 120
_limits.maxlist = _limits.maxtuple = 8


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, is incomplete, or whose content contradicts itself."""


def quote(value: object) -> str:
    """`repr` of something a file said, cut to a length that fits a message."""
    return _limits.repr(value)

"""What the `tokenizers` library raises, narrowed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from softgate.checkpoint.errors import CheckpointError


@contextmanager
def library_errors(problem: str) -> Iterator[None]:
    """Turn bare Exception, and BaseException where its Rust panics, into CheckpointError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise CheckpointError(f"{problem}: {error}") from None

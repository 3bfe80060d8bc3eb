"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(*paths: Path) -> Iterator[list[BinaryIO]]:
    """Binary files that replace `paths` when the block ends, and leave no trace when it raises.

    Each is written aside in its directory; all are flushed to the disk before the first is renamed.
    A symbolic link is kept and its target replaced. Raises OSError when a directory cannot be
    written or a path is one.
    """
    targets = [Path(os.path.realpath(path)) for path in paths]
    for target in targets:
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a directory")
    asides = [_aside(target) for target in targets]
    try:
        with ExitStack() as stack:
            files: list[BinaryIO] = [stack.enter_context(aside.open("xb")) for aside in asides]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for aside, target in zip(asides, targets, strict=True):
            aside.replace(target)
    except BaseException:
        for aside in asides:
            aside.unlink(missing_ok=True)
        raise
    for folder in {target.parent for target in targets}:
        _sync_directory(folder)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")


def _sync_directory(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open a directory
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

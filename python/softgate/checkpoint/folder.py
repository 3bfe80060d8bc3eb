"""Names and JSON inside a checkpoint's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from softgate.checkpoint.errors import CheckpointError, quote


def member(folder: Path, name: str) -> Path:
    """The path of `name` inside `folder`.

    `name` comes from a file that anyone may have written: CheckpointError unless it is a relative
    path that stays inside. Symbolic links are followed, the Hugging Face cache is made of them.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(part in ("", ".", "..") or not part.isprintable() for part in parts) or any(
        character in name for character in "\\:"
    ):
        raise CheckpointError(f"{folder}: {quote(name)} is not the name of a file in this folder")
    return folder.joinpath(*parts)


def parse_json(text: bytes, source: Path) -> Any:
    """The value of UTF-8 JSON; CheckpointError names `source` when it is not that."""
    try:
        return json.loads(text.decode())
    except RecursionError:
        raise CheckpointError(f"{source}: JSON is nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"{source}: not JSON: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file whose top level is an object."""
    value = parse_json(path.read_bytes(), path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {quote(value)}")
    return value

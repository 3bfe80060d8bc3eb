"""Tokenizers of checkpoints that have no tokenizer.json, as transformers makes them of other files.

transformers is an optional extra, imported only here.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softgate.text.errors import library_errors

if TYPE_CHECKING:
    import tokenizers

# Any of them says that there is a tokenizer.
_VOCABULARIES = (
    "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "source.spm",
)  # fmt: skip


def auto_tokenizer(folder: Path) -> tuple[tokenizers.Tokenizer, dict[str, str], str | None] | None:
    """A folder's tokenizer, special tokens by role and chat template; None without vocabulary.

    Warns, and gives None, where transformers is missing or knows no fast tokenizer for the folder.
    Raises CheckpointError when transformers fails. Code of the checkpoint is never run.
    """
    found = [name for name in _VOCABULARIES if (folder / name).is_file()]
    if not found:
        return None
    try:
        from transformers import AutoTokenizer
    except ImportError:
        _warn(folder, f"{found[0]} needs transformers: pip install 'softgate[transformers]'")
        return None
    with library_errors(f"{folder}: transformers finds no tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    if not tokenizer.is_fast:
        _warn(folder, f"transformers has no fast tokenizer for a {type(tokenizer).__name__}")
        return None
    special = {
        name.removesuffix("_token"): str(token)
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str)
    }
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return tokenizer.backend_tokenizer, special, template


def _warn(folder: Path, problem: str) -> None:
    warnings.warn(f"{folder} has no tokenizer.json, and {problem}", stacklevel=4)

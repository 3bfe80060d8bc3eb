"""How a checkpoint wants targets to be searched for."""

from __future__ import annotations

import json
from typing import Any

from softgate.checkpoint import Checkpoint, CheckpointError
from softgate.checkpoint.errors import quote
from softgate.generation import BeamSearch
from softgate.models.transformer_config import TransformerConfig

FILE = "generation_config.json"

# Hugging Face's names of settings, where they mean the same; lengths there count the first token.
_NAMES = {
    "num_beams": "num_beams",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "bad_words_ids": "banned",
    "forced_bos_token_id": "first_token",
    "forced_eos_token_id": "last_token",
}


def read_settings(
    checkpoint: Checkpoint, config: TransformerConfig, default: BeamSearch
) -> BeamSearch:
    """What generation_config.json says, or in an older folder config.json.

    Raises CheckpointError for settings that make no sense.
    """
    found = checkpoint.json(FILE)
    said: dict[str, Any] = dict(found if isinstance(found, dict) else checkpoint.config)
    settings = {
        ours: said[theirs] for theirs, ours in _NAMES.items() if said.get(theirs) is not None
    }
    if isinstance(last := settings.get("last_token"), list):
        settings["last_token"] = last[0] if len(last) == 1 else None
    for theirs, ours in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if type(length := said.get(theirs)) is int and length > 1:
            settings[ours] = min(length, config.max_length) - 1
    for theirs in ("max_new_tokens", "min_new_tokens"):
        if type(length := said.get(theirs)) is int:
            settings[theirs] = min(length, config.max_length)
    settings.setdefault("num_beams", 1)
    settings.setdefault("max_new_tokens", default.max_new_tokens)
    if settings["num_beams"] == 1:
        settings["early_stopping"] = True  # greedy: it ends with its one text
    try:
        chosen = BeamSearch(**settings)
        chosen.check_vocabulary(config.vocab_size, config.eos_token_ids)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.spec}: {FILE}: {quote(str(error))}") from None
    return chosen


def write_settings(config: TransformerConfig, beams: BeamSearch) -> dict[str, bytes]:
    """generation_config.json, of which `read_settings` makes the same."""
    said: dict[str, Any] = {
        theirs: getattr(beams, ours)
        for theirs, ours in _NAMES.items()
        if getattr(beams, ours) not in (None, ())
    }
    said |= {
        "max_new_tokens": beams.max_new_tokens,
        "min_new_tokens": beams.min_new_tokens or None,
        "decoder_start_token_id": config.decoder_start_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": config.decoder_start_token_id,
    }
    return {FILE: json.dumps(said, indent=2).encode()}

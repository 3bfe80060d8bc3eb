"""From token vectors to one vector a text, as a sentence-transformers folder describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from softgate.checkpoint import Checkpoint, CheckpointError
from softgate.ops import Pooling

_MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}


@dataclass(frozen=True)
class SentencePooling:
    """How token vectors become a text's vector."""

    mode: Pooling = "mean"
    normalize: bool = False
    max_length: int | None = None  # tokens of a text, when fewer than the model's positions

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> SentencePooling:
        """Read modules.json and what it names; without one, mean pooling and no normalisation."""
        modules = checkpoint.json("modules.json")
        if modules is None:
            return cls()
        mode: Pooling | None = None
        normalize = False
        if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
            raise CheckpointError("modules.json: expected a list of objects")
        for module in modules:
            kind = str(module.get("type")).rsplit(".", 1)[-1]
            if kind == "Pooling":
                mode = _pooling_mode(checkpoint, f"{module.get('path')}/config.json")
            elif kind == "Normalize":
                normalize = True
            elif kind != "Transformer":
                raise CheckpointError(
                    f"modules.json: module {kind!r} is not supported, expected Transformer, "
                    "Pooling or Normalize"
                )
        if mode is None:
            raise CheckpointError("modules.json: there is no Pooling module")
        return cls(mode, normalize, _max_length(checkpoint))

    def files(self, hidden_size: int) -> dict[str, object]:
        """The JSON files that say the same, by path."""
        modules = ["Transformer", "Pooling"] + (["Normalize"] if self.normalize else [])
        paths = ["", "1_Pooling", "2_Normalize"]
        files: dict[str, object] = {
            "modules.json": [
                {
                    "idx": i,
                    "name": str(i),
                    "path": paths[i],
                    "type": f"sentence_transformers.models.{module}",
                }
                for i, module in enumerate(modules)
            ],
            "1_Pooling/config.json": {
                "word_embedding_dimension": hidden_size,
                **{key: mode == self.mode for key, mode in _MODES.items()},
            },
        }
        if self.max_length is not None:
            files["sentence_bert_config.json"] = {"max_seq_length": self.max_length}
        return files


def _pooling_mode(checkpoint: Checkpoint, name: str) -> Pooling:
    config = checkpoint.json(name)
    if not isinstance(config, dict):
        raise CheckpointError(f"{name}: expected an object")
    if config.get("pooling_mode") in get_args(Pooling):
        mode: Pooling = config["pooling_mode"]
        return mode
    chosen = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    if len(chosen) != 1 or chosen[0] not in _MODES:
        raise CheckpointError(
            f"{name}: pooling {chosen} is not supported, expected one of {list(_MODES)}"
        )
    return _MODES[chosen[0]]


def _max_length(checkpoint: Checkpoint) -> int | None:
    config = checkpoint.json("sentence_bert_config.json")
    length = config.get("max_seq_length") if isinstance(config, dict) else None
    if length is None:
        return None
    if type(length) is not int or length < 2:
        raise CheckpointError(
            f"sentence_bert_config.json: max_seq_length is {length!r}, expected an integer above 1"
        )
    return length

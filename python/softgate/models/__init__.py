"""Models, one family a module."""

from __future__ import annotations

import os

from softgate.checkpoint import CheckpointError, open_checkpoint
from softgate.models.bert import Bert

_FAMILIES = {"bert": Bert}


def load(
    spec: str | os.PathLike[str], *, device: str | None = None, dtype: str | None = None
) -> Bert:
    """Load a pretrained model.

    spec: a folder, a Hugging Face id ("org/name"), or "package:NAME" for weights inside an
    installed Python package. device, dtype: where its weights go, as `nn.Module.to` takes them;
    the CPU and float32 when absent.

    Raises CheckpointError when the checkpoint is broken, does not fit its config or is of a family
    that softgate does not know; otherwise as `nn.Module.to`.
    """
    with open_checkpoint(spec) as checkpoint:
        family = checkpoint.config.get("model_type")
        if family not in _FAMILIES:
            supported = ", ".join(sorted(_FAMILIES))
            raise CheckpointError(
                f"{checkpoint.spec}: model_type is {family!r}, softgate supports: {supported}"
            )
        return _FAMILIES[family].from_checkpoint(checkpoint, device, dtype)

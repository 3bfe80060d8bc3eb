"""Real recurrent networks on softgate's models: g2p-en, netra and textgenrnn give their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import converters
import numpy as np
import pytest
import softgate
from g2p import LONGEST, NumpyG2p
from softgate.models.recurrent_lm import RecurrentLM
from softgate.models.seq2seq import Seq2Seq
from weights import g2p_weights, pronunciations  # noqa: F401

Array = np.ndarray[Any, np.dtype[Any]]

GREEDY: dict[str, Any] = {"num_beams": 1, "early_stopping": True}


def loaded(load: Callable[[], Any]) -> Any:
    try:
        return load()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def words(pronunciations: dict[str, Any]) -> list[str]:  # noqa: F811
    every = [word for word in pronunciations if word.isalpha() and len(word) <= 20]
    picked = np.random.default_rng(1).choice(len(every), 300, replace=False)
    return [every[i] for i in picked]


# g2p-en


@pytest.fixture(scope="module")
def g2p_model(g2p_weights: Any) -> Seq2Seq:  # noqa: F811
    return converters.g2p_model(g2p_weights)


@pytest.mark.usefixtures("isa")
def test_g2p_says_the_word_of_its_readme(g2p_weights: Any) -> None:  # noqa: F811
    model = converters.g2p_model(g2p_weights)  # weights are laid out for one ISA
    (spoken,) = model.translate(["activationist"], **GREEDY, max_new_tokens=LONGEST)
    assert spoken == "AE2 K T IH0 V EY1 SH AH0 N IH0 S T"


def test_g2p_says_what_numpy_says(
    g2p_model: Seq2Seq, g2p_weights: Any, words: list[str]  # noqa: F811
) -> None:  # fmt: skip
    spoken = g2p_model.translate(words, **GREEDY, max_new_tokens=LONGEST)
    expected = [" ".join(said) for said in NumpyG2p(g2p_weights)(words)]
    assert spoken == expected


def test_g2p_with_beams_is_right_as_often(
    g2p_model: Seq2Seq, pronunciations: Any, words: list[str]  # noqa: F811
) -> None:  # fmt: skip
    def right(**settings: Any) -> float:
        spoken = g2p_model.translate(words, max_new_tokens=LONGEST, **settings)
        return float(
            np.mean(
                [
                    said.split() in pronunciations[word]
                    for word, said in zip(words, spoken, strict=True)
                ]
            )
        )

    assert right(num_beams=4) >= right(**GREEDY) > 0.6


def same_beams(model: Seq2Seq, sources: list[list[int]], longest: int, step: Any, read: Any) -> int:
    """How many of the sources have the targets that the oracle finds; scores must be equal."""
    found = model.generate(sources, num_beams=4, num_return=4, max_new_tokens=longest)
    start, (end,) = model.config.bos_token_id, model.config.eos_token_ids
    same = 0
    for source, hypotheses in zip(sources, found, strict=True):
        expected = converters.numpy_beams(
            step(source), read(source), start=start, end=end, width=4, longest=longest
        )
        scores = [one.score for one in hypotheses]
        np.testing.assert_allclose(scores, [score for score, _ in expected], atol=1e-4)
        same += [one.token_ids for one in hypotheses] == [ids for _, ids in expected]
    return same


def test_g2p_finds_the_beams_that_numpy_finds(
    g2p_model: Seq2Seq, g2p_weights: Any, words: list[str]  # noqa: F811
) -> None:  # fmt: skip
    oracle = NumpyG2p(g2p_weights)
    assert g2p_model.source_tokenizer is not None
    sources = [g2p_model.source_tokenizer.ids(word) for word in words[:100]]
    same = same_beams(g2p_model, sources, LONGEST, lambda source: oracle.step, oracle.read)
    assert same == 100


def test_g2p_survives_saving(g2p_model: Seq2Seq, tmp_path: Path) -> None:
    g2p_model.save(tmp_path)
    again = softgate.load(tmp_path)
    assert isinstance(again, Seq2Seq)
    texts = ["weaver", "don't", "na\u00efve"]
    assert again.translate(texts, max_new_tokens=20) == g2p_model.translate(
        texts, max_new_tokens=20
    )


# netra


@pytest.fixture(scope="module")
def netra() -> tuple[dict[str, Array], dict[str, Any]]:
    return loaded(converters.load_netra)


@pytest.fixture(scope="module")
def netra_model(netra: Any) -> Seq2Seq:
    return converters.netra_model(*netra)


@pytest.mark.usefixtures("isa")
def test_netra_equals_keras_layers(netra: Any, words: list[str]) -> None:
    arrays, assets = netra
    model = converters.netra_model(arrays, assets)
    bos = model.config.bos_token_id
    sources = [converters.netra_ids(word, assets) for word in words[:20]]
    targets = [[bos, *(7 * i + np.arange(i % 9)) % 81] for i in range(20)]
    found = model(sources, targets).logits
    expected = [
        converters.NumpyNetra(arrays).logits(source, target)
        for source, target in zip(sources, targets, strict=True)
    ]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-4, atol=2e-4)


def test_netra_writes_khmer(netra: Any, netra_model: Seq2Seq) -> None:
    _, assets = netra
    found = netra_model.generate(
        [converters.netra_ids(word, assets) for word in ("sokha", "phnom", "angkor")],
        num_beams=3, num_return=3, length_penalty=0.0, max_new_tokens=31,
    )  # fmt: skip
    texts = [[one.text for one in hypotheses] for hypotheses in found]
    assert "សុខា" in texts[0]  # the examples of the package, and of maps
    assert "ភ្នំ" in texts[1]
    assert texts[2][0] == "អង្ករ"


def package_search(
    network: converters.NumpyNetra, ids: list[int], start: int, end: int, width: int, longest: int
) -> list[int]:
    """The likeliest target that the package's own search finds, without its start."""
    memory, finished = network.read(ids), []
    beams = [([start], 1.0, np.zeros(64))]
    for _ in range(longest):
        grown = []
        for tokens, likelihood, h in beams:
            logits, after = network.step(tokens[-1], h, memory)
            share = np.exp(logits - logits.max())
            share /= share.sum()
            for token in np.argsort(share)[-width:].tolist():
                if share[token] > 1e-8:
                    grown.append(([*tokens, token], likelihood * share[token], after))
        is_done = [one[0][-1] == end or len(one[0]) >= longest for one in grown]
        finished += [one for one, done in zip(grown, is_done, strict=True) if done]
        beams = [one for one, done in zip(grown, is_done, strict=True) if not done]
        beams = sorted(beams, key=lambda one: -one[1])[:width]
        if not beams or len(finished) >= width:
            break
    return max(finished + beams, key=lambda one: one[1])[0][1:]


def test_netra_finds_what_its_own_search_finds(
    netra: Any, netra_model: Seq2Seq, words: list[str]
) -> None:
    arrays, assets = netra
    khmer = assets["khm_tokenizer"].word_index
    oracle, compared = converters.NumpyNetra(arrays), 0
    sources = [converters.netra_ids(word, assets) for word in words[:60]]
    found = netra_model.generate(sources, num_beams=3, length_penalty=0.0, max_new_tokens=31)
    for source, (best,) in zip(sources, found, strict=True):
        expected = package_search(oracle, source, khmer["\t"], khmer["\n"], 3, 32)
        if expected[-1] == khmer["\n"]:  # it also gives texts that it has not finished
            assert best.token_ids == expected
            compared += 1
    assert compared > 30


def test_netra_finds_the_beams_that_numpy_finds(
    netra: Any, netra_model: Seq2Seq, words: list[str]
) -> None:
    arrays, assets = netra
    oracle = converters.NumpyNetra(arrays)
    sources = [converters.netra_ids(word, assets) for word in words[:60]]

    def step(source: list[int]) -> Callable[[int, Array], tuple[Array, Array]]:
        memory = oracle.read(source)
        return lambda token, h: oracle.step(token, h, memory)

    assert same_beams(netra_model, sources, 24, step, lambda source: np.zeros(64)) == 60


def test_netra_greedily(netra: Any, netra_model: Seq2Seq, words: list[str]) -> None:
    arrays, assets = netra
    sources = [converters.netra_ids(word, assets) for word in words[:60]]
    found = netra_model.generate(sources, **GREEDY, max_new_tokens=24)
    for source, (best,) in zip(sources, found, strict=True):
        target = [netra_model.config.bos_token_id, *best.token_ids]
        logits = converters.NumpyNetra(arrays).logits(source, target[:-1])
        assert logits.argmax(axis=1).tolist() == best.token_ids


# textgenrnn


@pytest.fixture(scope="module")
def textgenrnn() -> tuple[dict[str, Array], dict[str, int]]:
    return loaded(converters.load_textgenrnn)


@pytest.fixture(scope="module")
def textgenrnn_model(textgenrnn: Any) -> RecurrentLM:
    return converters.textgenrnn_model(*textgenrnn)


def numpy_textgenrnn(arrays: Mapping[str, Array], window: list[int]) -> Array:
    """Logits after a window, as Keras states the layers, in float64."""
    x = arrays["embedding/embeddings"].astype(np.float64)[window]
    features = [x]
    for layer in ("rnn_1", "rnn_2"):
        of_cudnn = (arrays[f"{layer}/{name}"] for name in ("kernel", "recurrent_kernel", "bias"))
        kernel, recurrent_kernel, bias = converters.without_cudnn(*of_cudnn)
        h = c = np.zeros(128)
        outputs = []
        for row in x:
            i, f, candidate, o = np.split(row @ kernel + h @ recurrent_kernel + bias, 4)
            c = converters.sigmoid(f) * c + converters.sigmoid(i) * np.tanh(candidate)
            h = converters.sigmoid(o) * np.tanh(c)
            outputs.append(h)
        x = np.array(outputs)
        features.append(x)
    together = np.hstack(features)
    scores = (together @ arrays["attention/attention_W"])[:, 0]
    weights = np.exp(scores - scores.max())
    average = weights @ together / (weights.sum() + 1e-7)
    return average @ arrays["output/kernel"] + arrays["output/bias"]


@pytest.mark.usefixtures("isa")
def test_textgenrnn_equals_keras_layers(textgenrnn: Any) -> None:
    arrays, vocabulary = textgenrnn
    model = converters.textgenrnn_model(arrays, vocabulary)
    for text in ("", "W", "What is the best way to", "x" * 39, "한국어 ab"):
        window = converters.textgenrnn_window(["<s>", *text], vocabulary)
        found = model(window, logits="last").numpy()[0]
        np.testing.assert_allclose(found, numpy_textgenrnn(arrays, window), rtol=1e-4, atol=2e-4)


def test_textgenrnn_writes_english(textgenrnn: Any, textgenrnn_model: RecurrentLM) -> None:
    """Its own way: the likeliest character after the last 40, again and again."""
    arrays, vocabulary = textgenrnn
    characters = {index: character for character, index in vocabulary.items()}

    def written(logits_of: Callable[[list[int]], Array]) -> str:
        text = ["<s>"]
        while len(text) < 60:
            window = converters.textgenrnn_window(text, vocabulary)
            text.append(characters[int(logits_of(window).argmax())])
        return "".join(text[1:])

    found = written(lambda window: textgenrnn_model(window, logits="last").numpy()[0])
    assert found == written(lambda window: numpy_textgenrnn(arrays, window))
    assert found.startswith("[Specific] Can someone please remove the state")


def test_textgenrnn_goes_on_and_scores(textgenrnn: Any, textgenrnn_model: RecurrentLM) -> None:
    _, vocabulary = textgenrnn

    def score(text: str) -> float:
        window = converters.textgenrnn_window(["<s>", *text], vocabulary)
        return float(textgenrnn_model.score(window).logprobs[-len(text) :].sum())

    assert score("the best way to learn") > 1.5 * score("lrean ot yaw tbse eht")
    window = converters.textgenrnn_window([*"What is the best wa"], vocabulary)
    assert textgenrnn_model.generate(window, max_new_tokens=2).text == "y "
    assert textgenrnn_model.tokenizer is not None
    assert textgenrnn_model.tokenizer.tokens("ab") == ["<s>", "a", "b"]

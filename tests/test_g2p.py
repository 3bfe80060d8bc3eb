"""Real recurrent weights: a GRU encoder and decoder that spell English words in phonemes."""

import numpy as np
import pytest
from g2p import G2p, NumpyG2p
from weights import g2p_weights, pronunciations  # noqa: F401


@pytest.fixture(scope="module")
def words(pronunciations):  # noqa: F811
    every = list(pronunciations)
    picked = np.random.default_rng(0).choice(len(every), 2000, replace=False)
    return [every[i] for i in picked]


@pytest.fixture(scope="module")
def by_numpy(g2p_weights, words):  # noqa: F811
    return NumpyG2p(g2p_weights)(words)


@pytest.mark.usefixtures("isa")
def test_the_word_of_the_packages_own_readme(g2p_weights):  # noqa: F811
    spoken = G2p(g2p_weights)(["activationist"])
    assert spoken == [["AE2", "K", "T", "IH0", "V", "EY1", "SH", "AH0", "N", "IH0", "S", "T"]]


@pytest.mark.usefixtures("isa")
def test_same_phonemes_as_numpy(g2p_weights, words, by_numpy):  # noqa: F811
    assert G2p(g2p_weights)(words) == by_numpy


def test_phonemes_do_not_depend_on_the_batch(g2p_weights, words):  # noqa: F811
    spell = G2p(g2p_weights)
    expected = spell(words)
    assert spell(words[:300], batch_size=7) == expected[:300]
    assert spell(words[::-1], batch_size=2000) == expected[::-1]


def test_most_words_are_said_as_in_the_dictionary(g2p_weights, pronunciations, words):  # noqa: F811
    spoken = G2p(g2p_weights)(words)
    right = [said in pronunciations[word] for word, said in zip(words, spoken, strict=True)]
    assert np.mean(right) > 0.6


def test_letters_that_the_network_does_not_know(g2p_weights):  # noqa: F811
    words = ["don't", "na\u00efve", "", "x" * 60]
    spoken = G2p(g2p_weights)(words)
    assert spoken == NumpyG2p(g2p_weights)(words)
    assert max(map(len, spoken)) <= 20

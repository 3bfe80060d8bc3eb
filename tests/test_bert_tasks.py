"""What encoders do with texts, against Hugging Face's pipelines, and the methods' promises."""

from __future__ import annotations

import re

import numpy as np
import pytest
import softgate
import tokenizers
from hugging_face_bert import HEADS, TINY
from softgate.models.bert import Bert
from softgate.models.bert_config import BertConfig
from softgate.models.bert_tasks import Answer, Classification, Fill, Tag
from softgate.text import Tokenizer

WORDS = [
    "a", "heddle", "lifts", "the", "warp", "loom", "weaves", "cloth", "treaty", "was", "signed",
    "who", "what", "?", ".", ",", "red", "blue",
]  # fmt: skip
SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def make_tokenizer() -> Tokenizer:
    vocabulary = {
        token: i
        for i, token in enumerate([*SPECIAL.values(), *WORDS, "##s", "##ing", "we", "##ft"])
    }
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    made.add_special_tokens(list(SPECIAL.values()))
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return Tokenizer(made, SPECIAL)


def make(task, labels=("one", "two", "three"), model_type="bert", **changes):
    """A model with weights so large that results differ."""
    ending = "Model" if task is None else HEADS[task]
    tokenizer = make_tokenizer()
    config = TINY | {
        "model_type": model_type,
        "architectures": [{"bert": "Bert", "electra": "Electra"}[model_type] + ending],
        "vocab_size": tokenizer.vocab_size,
        "max_position_embeddings": 24,
        "id2label": {str(i): label for i, label in enumerate(labels)},
    }
    model = Bert(BertConfig.from_dict(config | changes), seed=None)
    model.init_weights(seed=1, std=0.3)
    model.tokenizer = tokenizer
    return model


def pipeline(task, model, folder, **options):
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    pytest.importorskip("torch", reason="torch is the oracle")
    model.save(folder)
    return transformers.pipeline(task, model=str(folder), device="cpu", **options)


TEXTS = ["The warp lifts a loom.", "", "A treaty was signed, who weaves?", "red red zebra"]


# Masks


@pytest.mark.usefixtures("rows_of_any_number")
def test_fill_mask_equals_the_pipeline(tmp_path):
    model = make("masked-lm")
    texts = ["The [MASK] lifts the warp.", "[MASK]", "a loom weaves red [MASK] ."]
    theirs = pipeline("fill-mask", model, tmp_path, top_k=4)(texts)
    for text, ours, expected in zip(texts, model.fill_masks(texts, 4), theirs, strict=True):
        assert [fill.token_id for fill in ours] == [one["token"] for one in expected]
        assert [fill.token for fill in ours] == [one["token_str"] for one in expected]
        np.testing.assert_allclose(
            [fill.score for fill in ours], [one["score"] for one in expected], rtol=1e-4
        )
        assert model.fill_mask(text, 4) == ours
    first = model.fill_mask("The [MASK] lifts the warp.", 1)[0]
    assert isinstance(first, Fill)
    assert first.text == f"the {first.token} lifts the warp."


def test_all_tokens_of_a_mask_sum_to_one():
    model = make("masked-lm")
    fills = model.fill_mask("the [MASK]", model.config.vocab_size)
    assert sum(fill.score for fill in fills) == pytest.approx(1)
    scores = [fill.score for fill in fills]
    assert scores == sorted(scores, reverse=True)


BAD_MASKS = {
    "missing": ("the warp", "texts[0] has [MASK] 0 times, expected once"),
    "repeated": ("[MASK] the [MASK]", "texts[0] has [MASK] 2 times, expected once"),
    "empty": ("", "texts[0] has [MASK] 0 times"),
    "too long": ("[MASK] " + "the " * 30, "texts[0] has 33 tokens, expected at most 24"),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_texts_without_one_mask_are_refused(name):
    text, message = BAD_MASKS[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        make("masked-lm").fill_mask(text)


def test_a_mask_needs_a_tokenizer_with_one():
    model = make("masked-lm")
    for top_k in (0, 1000):
        with pytest.raises(ValueError, match=f"top_k is {top_k}, expected 1 to"):
            model.fill_mask("[MASK]", top_k)
    vocabulary = {"[UNK]": 0, "a": 1}
    model.tokenizer = Tokenizer(
        tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    )
    with pytest.raises(ValueError, match="the tokenizer has no mask token"):
        model.fill_mask("a")
    model.tokenizer = None
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        model.fill_mask("a")


# Classes


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        (None, ("one", "two", "three")),
        ("single_label_classification", ("no", "yes")),
        ("multi_label_classification", ("one", "two", "three")),
        ("regression", ("value",)),
        (None, ("only",)),
    ],
)
@pytest.mark.parametrize("model_type", ["bert", "electra"])
def test_classify_equals_the_pipeline(problem_type, labels, model_type, tmp_path):
    model = make("sequence-classification", labels, model_type, problem_type=problem_type)
    theirs = pipeline("text-classification", model, tmp_path, top_k=None)
    pair = ("who weaves?", "a loom weaves cloth.")
    expected = [*theirs(TEXTS), theirs({"text": pair[0], "text_pair": pair[1]})]
    for ours, scores in zip(model.classify([*TEXTS, pair]), expected, strict=True):
        assert isinstance(ours, Classification)
        by_label = {one["label"]: one["score"] for one in scores}
        assert tuple(ours.scores) == labels
        assert ours.scores == pytest.approx(by_label, rel=1e-4, abs=1e-5)
        assert ours.label == max(by_label, key=by_label.get)
        assert ours.score == ours.scores[ours.label]


@pytest.mark.usefixtures("rows_of_any_number")
def test_classify_does_not_depend_on_the_batch():
    model = make("sequence-classification")
    together = model.classify(TEXTS)
    assert together == [model.classify([text])[0] for text in TEXTS]
    assert model.classify([]) == []


def test_pairs_of_a_cross_encoder(tmp_path):
    pairs = [("who weaves?", "a loom weaves."), ("red", "the treaty was signed."), ("", "")]
    model = make("sequence-classification", ("score",))
    scores = model.score_pairs(pairs)
    assert scores.shape == (3,)
    np.testing.assert_allclose(scores, [c.score for c in model.classify(pairs)])
    identity = {"activation_fn": "torch.nn.modules.linear.Identity"}
    plain = make("sequence-classification", ("score",), sentence_transformers=identity)
    np.testing.assert_allclose(1 / (1 + np.exp(-plain.score_pairs(pairs))), scores, rtol=1e-6)
    plain.save(tmp_path)
    np.testing.assert_array_equal(
        softgate.load(tmp_path).score_pairs(pairs), plain.score_pairs(pairs)
    )
    old = make(
        "sequence-classification",
        ("score",),
        sbert_ce_default_activation_function="torch.nn.modules.activation.Sigmoid",
    )
    np.testing.assert_array_equal(old.score_pairs(pairs), scores)
    assert model.score_pairs([]).shape == (0,)


def test_bad_pairs_are_refused():
    with pytest.raises(ValueError, match="the head has 3 labels, expected 1"):
        make("sequence-classification").score_pairs([("a", "b")])
    model = make("sequence-classification", ("score",))
    for pairs in (["ab"], [("a",)], [("a", "b", "c")]):
        with pytest.raises(TypeError, match=r"pairs\[0\] is .*expected two texts"):
            model.score_pairs(pairs)


def test_long_texts_are_refused_or_cut():
    model = make("sequence-classification")
    long = "the " * 40
    with pytest.raises(ValueError, match=r"texts\[1\] has 42 tokens, expected at most 24"):
        model.classify(["a", long])
    assert model.classify([long], truncate=True) == model.classify(["the " * 22])
    with pytest.raises(ValueError, match=r"texts\[0\] has 83 tokens, expected at most 24"):
        model.classify([(long, long)])
    half = ("the " * 10, "the " * 11)
    assert model.classify([(long, long)], truncate=True) == model.classify([half])
    short = ("a", "the " * 20)
    assert model.classify([("a", long)], truncate=True) == model.classify([short])


def test_other_than_texts_are_refused():
    model = make("sequence-classification")
    with pytest.raises(TypeError, match="texts is a str, expected a sequence of texts"):
        model.classify("a bare string")
    with pytest.raises(TypeError, match=r"texts\[0\] is a int, expected str or a pair of str"):
        model.classify([3])
    with pytest.raises(TypeError, match="expected str"):
        model.classify([("a", None)])
    with pytest.raises(ValueError, match="surrogate"):
        model.classify(["\ud800"])


# Tags


def test_tags_equal_the_pipeline(tmp_path):
    model = make("token-classification")
    texts = ["The warp lifts a loom.", "A treaty was signed, wefts weaving?"]
    theirs = pipeline(
        "token-classification", model, tmp_path, aggregation_strategy="none", ignore_labels=[]
    )
    for text, ours, expected in zip(texts, model.tag(texts), theirs(texts), strict=True):
        assert all(isinstance(tag, Tag) for tag in ours)
        assert [tag.label for tag in ours] == [one["entity"] for one in expected]
        assert [(tag.start, tag.end) for tag in ours] == [(o["start"], o["end"]) for o in expected]
        np.testing.assert_allclose(
            [tag.score for tag in ours], [one["score"] for one in expected], rtol=1e-4
        )
        assert text[ours[0].start : ours[0].end] == text.split()[0]
    assert model.tag([""]) == [[]]
    assert model.tag([]) == []


# Answers


def best_by_hand(model, question, context, most=15):
    """Over all pairs of tokens, for a context that fits."""
    (spans,) = model.tokenizer.encode_spans([(question, context)])
    logits = model([spans.ids], token_type_ids=[spans.type_ids]).logits.astype(np.float64)
    inside = [i for i, part in enumerate(spans.parts) if part == 1]
    weights = np.exp(logits[[0, *inside]])
    start, end = (weights / weights.sum(axis=0))[1:].T
    pairs = [
        (start[i] * end[j], i, j)
        for i in range(len(inside))
        for j in range(i, min(len(inside), i + most))
    ]
    score, i, j = max(pairs)
    return score, spans.offsets[inside[i]][0], spans.offsets[inside[j]][1]


def test_answers_are_the_likeliest_spans():
    model = make("question-answering", ("start", "end"))
    question, context = "who weaves?", "The  loom weaves red cloth, a treaty."
    for most in (1, 2, 15):
        score, start, end = best_by_hand(model, question, context, most)
        answer = model.answer(question, context, max_answer_tokens=most)
        assert isinstance(answer, Answer)
        assert (answer.start, answer.end) == (start, end)
        assert answer.text == context[start:end]
        assert answer.score == pytest.approx(score, rel=1e-6)


def test_long_contexts_are_read_in_windows():
    model = make("question-answering", ("start", "end"))
    question = "who?"
    words = np.random.default_rng(0).choice(WORDS, 100)
    context = " ".join(words)
    answer = model.answer(question, context, overlap=4)
    assert context[answer.start : answer.end] == answer.text
    # Each window is a context of its own: 24 tokens less the question and three special ones.
    windows = model.tokenizer.encode_windows(question, context, max_length=24, overlap=4)
    assert len(windows) > 5
    covered = {token for spans in windows for token in zip(spans.parts, spans.offsets, strict=True)}
    (whole,) = model.tokenizer.encode_spans([(question, context)])
    assert covered == set(zip(whole.parts, whole.offsets, strict=True))
    assert all(len(spans.ids) <= 24 for spans in windows)
    begins = [spans.offsets[4][0] for spans in windows]
    ends = [spans.offsets[-2][1] for spans in windows]
    found = [
        (*best_by_hand(model, question, context[begin:end]), begin)
        for begin, end in zip(begins, ends, strict=True)
    ]
    best = max(found, key=lambda one: one[0])
    assert answer.score == pytest.approx(best[0], rel=1e-6)
    assert (answer.start, answer.end) == (best[1] + best[3], best[2] + best[3])


@pytest.mark.parametrize("question", ["who?", "the " * 20])
def test_a_large_overlap_leaves_room_to_move_on(question):
    model = make("question-answering", ("start", "end"))
    context = "the loom weaves a red cloth , " * 5
    answer = model.answer(question, context, overlap=1000)
    assert context[answer.start : answer.end] == answer.text


def test_bad_questions_are_refused():
    model = make("question-answering", ("start", "end"))
    with pytest.raises(ValueError, match="the context has no tokens"):
        model.answer("who?", "")
    with pytest.raises(ValueError, match="the first text has 30 tokens, expected at most 20"):
        model.answer("the " * 30, "a loom")
    for options in ({"max_answer_tokens": 0}, {"overlap": -1}):
        with pytest.raises(ValueError, match="max_answer_tokens is"):
            model.answer("who?", "a loom", **options)


# Heads


CALLS = {
    "fill_mask": ("masked-lm", ("[MASK]",)),
    "classify": ("sequence-classification", (["a"],)),
    "score_pairs": ("sequence-classification", ([("a", "b")],)),
    "tag": ("token-classification", (["a"],)),
    "answer": ("question-answering", ("who?", "a loom")),
}


@pytest.mark.parametrize("method", CALLS)
def test_a_method_needs_its_head(method):
    task, args = CALLS[method]
    for other in (None, *HEADS):
        if other == task:
            continue
        labels = ("start", "end")
        has = "no head" if other is None else f"a head for {other}"
        message = f"{method}: the model has {has}, expected one for {task}"
        with pytest.raises(ValueError, match=re.escape(message)):
            getattr(make(other, labels), method)(*args)


@pytest.mark.parametrize("task", HEADS)
def test_every_head_encodes_too(task):
    model = make(task, ("start", "end"))
    assert model.encode(["a loom", "the warp"]).shape == (2, 48)

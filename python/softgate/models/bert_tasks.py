"""What encoders do with texts: vectors, missing words, labels, answers, scores of pairs."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from softgate import ops
from softgate._core import SequenceOffsets, Tensor
from softgate.models.packing import FloatArray, Packed, batches, fetched
from softgate.text import Encoding, Spans, Tokenizer

if TYPE_CHECKING:
    from softgate.models.bert_config import BertConfig
    from softgate.models.pooling import SentencePooling

FloatVector = npt.NDArray[np.float64]
TextOrPair = str | tuple[str, str]

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Fill:
    """A word for a mask: token and its id, its probability, and the text with it."""

    token: str
    token_id: int
    score: float
    text: str


@dataclass(frozen=True)
class Classification:
    """Scores of all labels, and the label with the highest.

    They are probabilities that sum to 1, or of each label for itself where several may hold, or for
    a regression plain values.
    """

    label: str
    score: float
    scores: dict[str, float]


@dataclass(frozen=True)
class Tag:
    """A token's label and its probability: `text[start:end]` is what the token stands for."""

    label: str
    score: float
    start: int
    end: int
    token_id: int


@dataclass(frozen=True)
class Answer:
    """`text`, which is `context[start:end]`, and how probable it is."""

    text: str
    score: float
    start: int
    end: int


class EncoderTasks(ABC):
    """The methods of an encoder that take texts."""

    config: BertConfig
    tokenizer: Tokenizer | None
    sentence_pooling: SentencePooling

    @property
    @abstractmethod
    def device(self) -> str: ...

    @property
    @abstractmethod
    def max_length(self) -> int:
        """The most tokens a text may have, special tokens included."""

    @abstractmethod
    def _pack(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Packed: ...

    @abstractmethod
    def _uploaded(self, batch: Packed) -> tuple[Tensor, ...]: ...

    @abstractmethod
    def _states(
        self, ids: tuple[Tensor, ...], cu_seqlens: SequenceOffsets
    ) -> Iterator[tuple[Tensor, Any]]: ...

    @abstractmethod
    def _logits(self, x: Tensor, cu_seqlens: SequenceOffsets | None) -> Tensor: ...

    def encode(
        self,
        texts: Sequence[str],
        *,
        normalize: bool | None = None,
        max_length: int | None = None,
        truncate: bool = False,
        batch_tokens: int = BATCH_TOKENS,
    ) -> FloatArray:
        """One vector a text, `[len(texts), hidden_size]`, pooled as the checkpoint says.

        normalize: to length 1; None does what the checkpoint says. max_length: tokens of a text,
        at most the model's. A longer text raises ValueError, or with truncate loses its end and a
        warning says how many did. batch_tokens: tokens computed at a time.
        """
        tokenizer = self._require_tokenizer("encode")
        limit = self.max_length if max_length is None else max_length
        if not 1 <= limit <= self.max_length:
            raise ValueError(f"encode: max_length is {limit}, expected 1 to {self.max_length}")
        if batch_tokens < 1:
            raise ValueError(f"encode: batch_tokens is {batch_tokens}, expected at least 1")
        encodings = tokenizer.encode(texts, max_length=limit, truncate=truncate)
        truncated = sum(encoding.truncated for encoding in encodings)
        if truncated:
            warnings.warn(
                f"{truncated} of {len(texts)} texts were cut to {limit} tokens", stacklevel=2
            )
        vectors = np.empty((len(encodings), self.config.hidden_size), dtype=np.float32)
        for start, stop in batches([len(encoding.ids) for encoding in encodings], batch_tokens):
            vectors[start:stop] = self.encode_batch(encodings[start:stop], normalize=normalize)
        return vectors

    def encode_batch(
        self, encodings: Sequence[Encoding], *, normalize: bool | None = None
    ) -> FloatArray:
        """What `encode` gives, of texts already tokenized, in one batch."""
        last, offsets = self._last_hidden_state(encodings)
        vectors = ops.pool(last, offsets, self.sentence_pooling.mode)
        if self.sentence_pooling.normalize if normalize is None else normalize:
            ops.normalize(vectors, out=vectors)
        return fetched(vectors)

    def fill_mask(self, text: str, top_k: int = 5) -> list[Fill]:
        """The `top_k` likeliest tokens for the mask of a text, the likeliest first.

        Raises ValueError for a model without a masked-lm head or tokenizer, and for a text whose
        mask token (`tokenizer.mask_token`) is missing or repeated, or which is too long.
        """
        return self.fill_masks([text], top_k)[0]

    def fill_masks(self, texts: Sequence[str], top_k: int = 5) -> list[list[Fill]]:
        """What `fill_mask` gives, for each of several texts."""
        self._require_task("fill_mask", "masked-lm")
        tokenizer = self._require_tokenizer("fill_mask")
        vocabulary = self.config.vocab_size
        if not 1 <= top_k <= vocabulary:
            raise ValueError(f"fill_mask: top_k is {top_k}, expected 1 to {vocabulary}")
        mask = tokenizer.mask_token
        if mask is None:
            raise ValueError("fill_mask: the tokenizer has no mask token")
        mask_id = tokenizer.token_id(mask)
        encodings = tokenizer.encode(texts, max_length=self.max_length, truncate=False)
        places = []
        for index, encoding in enumerate(encodings):
            found = [i for i, token in enumerate(encoding.ids) if token == mask_id]
            if len(found) != 1:
                raise ValueError(
                    f"fill_mask: texts[{index}] has {mask} {len(found)} times, expected once"
                )
            places += found
        filled: list[list[Fill]] = []
        for start, stop in self._batches(encodings):
            some = encodings[start:stop]
            last, offsets = self._last_hidden_state(some)
            rows = offsets.numpy()[:-1] + places[start:stop]
            masked = Tensor(fetched(last)[rows]).to(last.device, last.dtype)
            logits = fetched(self._logits(masked, None)).astype(np.float64)
            for encoding, place, row in zip(
                some, places[start:stop], _softmax(logits), strict=True
            ):
                best = np.argsort(-row, kind="stable")[:top_k]
                filled.append([_fill(tokenizer, encoding, place, int(i), row[i]) for i in best])
        return filled

    def classify(
        self, texts: Sequence[TextOrPair], *, truncate: bool = False
    ) -> list[Classification]:
        """The label of each text, or pair of texts such as premise and hypothesis.

        A longer text than the model takes raises ValueError, or with truncate loses its end.
        Raises ValueError too for a model without a sequence-classification head or tokenizer.
        """
        self._require_task("classify", "sequence-classification")
        labels = self.config.labels
        results = []
        for row in self._class_logits("classify", texts, truncate):
            scores = _as_scores(row, self.config)
            best = int(scores.argmax())
            by_label = dict(zip(labels, map(float, scores), strict=True))
            results.append(Classification(labels[best], float(scores[best]), by_label))
        return results

    def score_pairs(
        self, pairs: Sequence[tuple[str, str]], *, truncate: bool = False
    ) -> FloatVector:
        """A cross-encoder's score of each pair, such as a query and a passage: `[len(pairs)]`.

        It goes through a sigmoid, unless the checkpoint says otherwise. Raises as `classify`, and
        ValueError when the head has several labels.
        """
        self._require_task("score_pairs", "sequence-classification")
        if len(self.config.labels) != 1:
            raise ValueError(
                f"score_pairs: the head has {len(self.config.labels)} labels, expected 1"
            )
        for index, pair in enumerate(pairs):
            if isinstance(pair, str) or len(pair) != 2:
                raise TypeError(f"pairs[{index}] is {pair!r}, expected two texts")
        logits = self._class_logits("score_pairs", pairs, truncate)[:, 0]
        return logits if self.config.score_activation == "identity" else _sigmoid(logits)

    def tag(self, texts: Sequence[str], *, truncate: bool = False) -> list[list[Tag]]:
        """The label of every token of each text, special tokens left out.

        Raises as `classify`, for a token-classification head.
        """
        self._require_task("tag", "token-classification")
        encodings = self._spans("tag", texts, truncate)
        labels = self.config.labels
        tagged: list[list[Tag]] = []
        for start, stop in self._batches(encodings):
            some = encodings[start:stop]
            last, offsets = self._last_hidden_state(some)
            logits = fetched(self._logits(last, offsets)).astype(np.float64)
            for spans, rows in zip(some, _split(_softmax(logits), offsets), strict=True):
                best = rows.argmax(axis=1)
                tagged.append(
                    [
                        Tag(labels[best[i]], float(rows[i, best[i]]), *span, spans.ids[i])
                        for i, (part, span) in enumerate(
                            zip(spans.parts, spans.offsets, strict=True)
                        )
                        if part is not None
                    ]
                )
        return tagged

    def answer(
        self,
        question: str,
        context: str,
        *,
        max_answer_tokens: int = 15,
        overlap: int = 128,
    ) -> Answer:
        """The part of the context that most likely answers the question.

        Its score is the product of the probabilities that it begins and ends there, of all tokens
        of the context and the first one of all, which stands for no answer. A longer context than
        the model takes is read in windows that share `overlap` tokens, or half of their room if
        that is less.

        Raises ValueError for a model without a question-answering head or tokenizer, a context
        without tokens, and a question that leaves no room for it.
        """
        self._require_task("answer", "question-answering")
        tokenizer = self._require_tokenizer("answer")
        if max_answer_tokens < 1 or overlap < 0:
            raise ValueError(
                f"answer: max_answer_tokens is {max_answer_tokens} and overlap {overlap}, expected "
                "at least 1 and 0"
            )
        windows = tokenizer.encode_windows(
            question, context, max_length=self.max_length, overlap=overlap
        )
        best: Answer | None = None
        for start, stop in self._batches(windows):
            some = windows[start:stop]
            last, offsets = self._last_hidden_state(some)
            logits = fetched(self._logits(last, offsets)).astype(np.float64)
            for spans, rows in zip(some, _split(logits, offsets), strict=True):
                found = _best_span(spans, rows, max_answer_tokens)
                if found is None:
                    continue
                (first, final), score = found
                if best is None or score > best.score:
                    begin, end = spans.offsets[first][0], spans.offsets[final][1]
                    best = Answer(context[begin:end], score, begin, end)
        if best is None:
            raise ValueError("answer: the context has no tokens")
        return best

    def _class_logits(
        self, method: str, texts: Sequence[TextOrPair], truncate: bool
    ) -> FloatVector:
        """float64 `[len(texts), labels]`."""
        encodings = self._spans(method, texts, truncate)
        logits = np.empty((len(encodings), len(self.config.labels)))
        for start, stop in self._batches(encodings):
            last, offsets = self._last_hidden_state(encodings[start:stop])
            logits[start:stop] = fetched(self._logits(last, offsets))
        return logits

    def _spans(self, method: str, texts: Sequence[TextOrPair], truncate: bool) -> list[Spans]:
        tokenizer = self._require_tokenizer(method)
        if isinstance(texts, str):
            raise TypeError("texts is a str, expected a sequence of texts")
        return tokenizer.encode_spans(texts, max_length=self.max_length, truncate=truncate)

    def _last_hidden_state(self, encodings: Sequence[Encoding]) -> tuple[Tensor, SequenceOffsets]:
        types = None
        if self.config.type_vocab_size > 1:  # some tokenizers give types that models lack
            types = [encoding.type_ids for encoding in encodings]
        batch = self._pack([encoding.ids for encoding in encodings], None, types)
        offsets = SequenceOffsets(batch.cu_seqlens, self.device)
        for x, _ in self._states(self._uploaded(batch), offsets):
            last = x
        return last, offsets

    def _batches(self, encodings: Sequence[Encoding]) -> Iterator[tuple[int, int]]:
        return batches([len(encoding.ids) for encoding in encodings], BATCH_TOKENS)

    def _require_tokenizer(self, method: str) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(f"{method}: the model has no tokenizer.json")
        return self.tokenizer

    def _require_task(self, method: str, task: str) -> None:
        if self.config.task != task:
            head = "no head" if self.config.task is None else f"a head for {self.config.task}"
            raise ValueError(f"{method}: the model has {head}, expected one for {task}")


def _fill(
    tokenizer: Tokenizer, encoding: Encoding, place: int, token_id: int, score: float
) -> Fill:
    ids = list(encoding.ids)
    ids[place] = token_id
    token = tokenizer.decode([token_id], skip_special_tokens=False)
    return Fill(token, token_id, float(score), tokenizer.decode(ids))


def _as_scores(logits: FloatVector, config: BertConfig) -> FloatVector:
    kind = config.problem_type
    if kind == "regression":
        return logits
    if kind == "multi_label_classification" or len(logits) == 1:
        return _sigmoid(logits)
    return _softmax(logits)


def _sigmoid(x: FloatVector) -> FloatVector:
    y: FloatVector = 0.5 * (1 + np.tanh(0.5 * x))  # which never overflows
    return y


def _softmax(x: FloatVector) -> FloatVector:
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    probabilities: FloatVector = weights / weights.sum(axis=-1, keepdims=True)
    return probabilities


def _split(rows: FloatVector, offsets: SequenceOffsets) -> list[FloatVector]:
    return np.split(rows, offsets.numpy()[1:-1])


def _best_span(
    spans: Spans, logits: FloatVector, max_tokens: int
) -> tuple[tuple[int, int], float] | None:
    """The likeliest first and last token of an answer in the second text, None if it is empty."""
    counts = np.array([part == 1 for part in spans.parts])
    if not counts.any():
        return None
    possible = counts.copy()
    possible[0] = True  # no answer
    start, end = (_softmax(np.where(possible, column, -np.inf)) for column in logits.T)
    start, end = start * counts, end * counts
    tokens = len(start)
    both = np.triu(start[:, None] * end) - np.triu(start[:, None] * end, max_tokens)
    first, final = divmod(int(both.argmax()), tokens)
    return (first, final), float(both[first, final])

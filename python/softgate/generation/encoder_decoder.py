"""What encoder-decoders do with texts: translate, the best targets of each source, scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from softgate import ops
from softgate.attention_map import AttentionMap, mean_weights, pieces
from softgate.generation.beam import Advance, BeamSearch, FloatArray, Hypothesis, search
from softgate.generation.score import Score
from softgate.generation.settings import replaced
from softgate.text import MarianTokenizer, Tokenizer

Source = Sequence[int] | str


class EncoderDecoder(ABC):
    """A model that reads sources and writes targets, which `generate`s, `translate`s and `score`s.

    beams: the settings of searches unless the caller has others; batch_size: sources that they
    compute at a time.
    """

    config: Any  # with decoder_start_token_id, eos_token_ids and max_length
    source_tokenizer: Tokenizer | MarianTokenizer | None
    target_tokenizer: Tokenizer | MarianTokenizer | None
    beams: BeamSearch
    batch_size = 128

    @abstractmethod
    def begin(
        self, sources: Sequence[Sequence[int]], settings: BeamSearch
    ) -> tuple[FloatArray, Advance]:
        """Read sources and the token that begins a target: what may follow, and how to go on; see
        `softgate.generation.beam.search`."""

    @abstractmethod
    def attention_weights(
        self, source: list[int], target: list[int]
    ) -> Mapping[str, Sequence[FloatArray]]:
        """Of each kind of attention that there is each layer's weights, `[num_heads, rows,
        columns]`: "cross", of target to source; "encoder" and "decoder", of those to themselves."""

    def generate(
        self,
        sources: Sequence[Source],
        beams: BeamSearch | None = None,
        *,
        batch_size: int | None = None,
        **settings: Any,
    ) -> list[list[Hypothesis]]:
        """The best targets of each source, the best first, by beam search.

        sources: texts or token ids. settings: those of `BeamSearch`, as an object, by default the
        model's `beams`, as keywords, or both, where the keywords win. batch_size: sources computed
        at a time, by default the model's; a result does not depend on the others.

        Raises ValueError for an empty source, one that is too long, ids outside the vocabulary, a
        text where there is no tokenizer, and settings that make no sense; TypeError for what is no
        list of sources.
        """
        if isinstance(sources, str):
            raise TypeError("sources is a str, expected a list of texts or of lists of token ids")
        chosen = replaced(beams or self.beams, settings)
        batch_size = self.batch_size if batch_size is None else batch_size
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        if chosen.max_new_tokens > self.config.max_length:
            raise ValueError(
                f"max_new_tokens is {chosen.max_new_tokens}, expected at most "
                f"{self.config.max_length}, the model's"
            )
        ids = [self._source_ids(source, i) for i, source in enumerate(sources)]
        if not all(ids):
            raise ValueError(f"sources[{[len(row) for row in ids].index(0)}] has no tokens")
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # like lengths together
        found: dict[int, list[Hypothesis]] = {}
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            results = self._search([ids[i] for i in part], chosen)
            found |= dict(zip(part, results, strict=True))
        return [found[i] for i in range(len(ids))]

    def translate(
        self, texts: Sequence[str], beams: BeamSearch | None = None, **settings: Any
    ) -> list[str]:
        """The best target of each text; settings and errors as in `generate`."""
        if isinstance(texts, str):
            raise TypeError("texts is a str, expected a sequence of str")
        if self.target_tokenizer is None:
            raise ValueError("translate needs a target_tokenizer, the model has none")
        found = self.generate(texts, beams, **settings)
        return [hypotheses[0].text if hypotheses else "" for hypotheses in found]

    def score(self, sources: Sequence[Source], targets: Sequence[Source]) -> list[Score]:
        """How likely the model finds each target given its source.

        sources, targets: texts or token ids. Ids of targets are without the token that begins them,
        and with the one that ends them if it is to count; texts get what the tokenizer adds. A
        Score's first token is the one that begins, whose log-probability is NaN.

        Raises ValueError and TypeError as `generate` does, and for unequal numbers of sources and
        targets.
        """
        bos = self.config.decoder_start_token_id
        read = [self._source_ids(source, i) for i, source in enumerate(sources)]
        given = [[bos, *self._target_ids(target, i)] for i, target in enumerate(targets)]
        model: Any = self  # whose forward pass gives what may follow each token
        logits = model(read, given).logits
        scores, start = [], 0
        for target in given:
            rows = logits[start : start + len(target) - 1]
            logprobs = np.full(len(target), np.nan, dtype=np.float32)
            if len(rows):
                logprobs[1:] = ops.token_logprobs(rows, np.array(target[1:], dtype=np.int32))
            scores.append(Score(target, logprobs))
            start += len(target)
        return scores

    def attention_map(
        self,
        source: Source,
        target: Source | None = None,
        *,
        kind: str = "cross",
        layer: int | None = None,
        head: int | None = None,
    ) -> AttentionMap:
        """Where the model looked as it wrote a target, by default the best that it finds itself.

        source, target: texts or token ids, as in `score`. kind: "cross", how much each token of the
        target looked at the source's when it was to be written; of a Transformer also "encoder",
        tokens of the source at each other, and "decoder", tokens that the target was continued
        from, which begin with the decoder's first one. layer, head: from 0; None takes the mean of
        all.

        Raises ValueError as `score` does, for an empty target, for a kind, a layer or a head that
        is not there.
        """
        read = _ids(source, "source", self.source_tokenizer, "source_tokenizer")
        if target is None:
            (found,) = self.generate([read])
            target = found[0].token_ids if found else []
        wanted = _ids(target, "target", self.target_tokenizer, "target_tokenizer")
        if not wanted:
            raise ValueError("target has no tokens")
        if outside := [index for index in wanted if not 0 <= index < self.config.vocab_size]:
            raise ValueError(
                f"target holds {outside[0]}, expected ids below {self.config.vocab_size}"
            )
        given = [self.config.decoder_start_token_id, *wanted[:-1]]
        kinds = self.attention_weights(read, given)
        if kind not in kinds:
            expected = f"one of {', '.join(kinds)}" if kinds else "a model with attention"
            raise ValueError(f"kind is {kind!r}, expected {expected}")
        layers = kinds[kind]
        weights = mean_weights(layers, len(layers), len(layers[0]), layer, head)
        sources = pieces(self.source_tokenizer, read)
        rows = pieces(self.target_tokenizer, given if kind == "decoder" else wanted)
        if kind == "encoder":
            return AttentionMap(weights, sources, sources)
        return AttentionMap(weights, rows, rows if kind == "decoder" else sources)

    def _search(self, sources: list[list[int]], settings: BeamSearch) -> list[list[Hypothesis]]:
        stop = settings.stop_tokens
        ends = self.config.eos_token_ids if stop is None else stop
        settings.check_vocabulary(self.config.vocab_size, ends)
        first, advance = self.begin(sources, settings)
        prompts = [[self.config.decoder_start_token_id]] * len(sources)
        found = search(prompts, settings, ends, first, advance)
        return [[self._with_text(one, ends) for one in hypotheses] for hypotheses in found]

    def _with_text(self, found: Hypothesis, ends: Sequence[int]) -> Hypothesis:
        if self.target_tokenizer is None:
            return found
        ids = found.token_ids[:-1] if found.token_ids[-1] in ends else found.token_ids
        text = self.target_tokenizer.decode(ids)
        return Hypothesis(found.token_ids, found.score, found.logprob, text)

    def _source_ids(self, source: Source, index: int) -> list[int]:
        return _ids(source, f"sources[{index}]", self.source_tokenizer, "source_tokenizer")

    def _target_ids(self, target: Source, index: int) -> list[int]:
        return _ids(target, f"targets[{index}]", self.target_tokenizer, "target_tokenizer")


def _ids(
    given: Source, name: str, tokenizer: Tokenizer | MarianTokenizer | None, kind: str
) -> list[int]:
    if not isinstance(given, Sequence | np.ndarray):
        raise TypeError(f"{name} is {given!r:.80}, expected str or token ids")
    if not isinstance(given, str):
        return list(given)
    if tokenizer is None:
        raise ValueError(f"{name}, a str, needs a {kind}, the model has none")
    return tokenizer.ids(given)

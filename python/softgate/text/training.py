"""The two tokenizers that one learns first, trained from texts: by white space, by syllable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from softgate.text.errors import library_errors

if TYPE_CHECKING:
    import tokenizers

Kind = Literal["whitespace", "syllable"]

SPECIAL_TOKENS = {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "</s>"}
_ALL = 2**31 - 1  # tokens


def train_tokenizer(
    kind: Kind,
    texts: Sequence[str],
    vocab_size: int | None,
    min_count: int,
    special_tokens: Mapping[str, str],
) -> tokenizers.Tokenizer:
    """See `Tokenizer.train`."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if kind not in get_args(Kind):
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(get_args(Kind))}")
    if min_count < 1:
        raise ValueError(f"min_count is {min_count}, expected at least 1")
    if vocab_size is not None and not len(special_tokens) < vocab_size <= _ALL:
        raise ValueError(
            f"vocab_size is {vocab_size}, expected more than the {len(special_tokens)} special "
            "tokens"
        )
    if "unk" not in special_tokens or len(set(special_tokens.values())) < len(special_tokens):
        raise ValueError(
            f"special_tokens is {dict(special_tokens)!r:.200}, expected different ones, with 'unk'"
        )
    with library_errors("training fails"):
        tokenizer = Tokenizer(models.WordLevel(unk_token=special_tokens["unk"]))
        if kind == "whitespace":
            tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        else:
            # Grapheme clusters, with Korean's as syllables however they are spelled.
            tokenizer.normalizer = normalizers.NFC()
            tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\X"), "isolated")
            tokenizer.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(
            vocab_size=_ALL if vocab_size is None else vocab_size,
            min_frequency=min_count,
            special_tokens=list(special_tokens.values()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() == len(special_tokens):
        raise ValueError(f"texts hold no token that comes {min_count} times")
    return tokenizer

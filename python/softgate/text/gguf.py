"""A tokenizer from GGUF metadata alone.

Two kinds: `gpt2`, byte-level BPE whose texts are cut into words by a pattern that
`tokenizer.ggml.pre` names, and `llama`, SentencePiece's BPE with scores, bytes for what it lacks,
and a space put in front. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt

from softgate.checkpoint.errors import CheckpointError, quote
from softgate.text import patterns
from softgate.text.errors import library_errors

if TYPE_CHECKING:
    import tokenizers

Ints = npt.NDArray[np.integer[Any]]

_SPACE = "\u2581"  # what SentencePiece writes a space as
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # types of tokens
_LONGEST_MERGED = 256  # characters; no vocabulary comes near, and finding merges takes its square
_KEEP_SPACE = ("<unk>", "<s>", "<|endoftext|>")
_GEMMAS = ("gemma", "gemma2", "gemma3")

# The patterns that cut a text, each what the one before left whole.
_WORDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("default", "gpt-2", "olmo", "phi-2", "mpt"), (patterns.GPT_2,)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe"), (patterns.LLAMA_3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), (patterns.QWEN_2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), (r"\p{N}", patterns.GPT_2)),
    **dict.fromkeys(("gpt-4o", "llama4"), (patterns.GPT_4O,)),
    "tekken": (patterns.TEKKEN,),
}
# Those whose words may be tokens that no merges lead to, and whose texts begin with bos.
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")
_COMPOSED = ("qwen2", "deepseek-r1-qwen")  # those trained on text in Unicode's NFC


def special_token_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    """Ids of the tokens that the file names: bos, eos, unk, pad."""
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: index for name, index in found.items() if index is not None}


def build_tokenizer(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer that the metadata describes.

    Raises CheckpointError when the metadata contradicts itself or is of a kind softgate lacks.
    """
    from tokenizers import AddedToken, processors

    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise CheckpointError(
            f"tokenizer.ggml.model is {quote(kind)}, supported are gpt2 (byte-level BPE) and llama "
            "(SentencePiece)"
        )
    tokens = _tokens(metadata)
    types = _numbers(metadata, "token_type", len(tokens), "iu")
    ids = special_token_ids(metadata)
    for name, index in ids.items():
        if type(index) is not int or not 0 <= index < len(tokens):
            raise CheckpointError(
                f"the tokenizer's {name} id is {quote(index)}, expected less than {len(tokens)}"
            )
    with library_errors("the GGUF file's tokenizer is broken"):
        build = _byte_level if kind == "gpt2" else _sentence_piece
        # Phi-3's special tokens take the white space after them; no file says so.
        phi_3 = kind == "llama" and metadata.get("general.architecture") == "phi3"
        tokenizer: tokenizers.Tokenizer = build(metadata, tokens, types)
        # What has the control type is left out of decoded text; the other added tokens are not.
        for special, add in ((True, tokenizer.add_special_tokens), (False, tokenizer.add_tokens)):
            wanted = (_CONTROL, _UNKNOWN) if special else (_USER_DEFINED,)
            add(
                [
                    AddedToken(
                        token,
                        normalized=False,
                        special=special,
                        rstrip=special and phi_3 and token not in _KEEP_SPACE,
                    )
                    for token, token_type in zip(tokens, types, strict=True)
                    if token_type in wanted and token
                ]
            )
        ends = {name: ids[name] for name in ("bos", "eos") if name in ids and _adds(metadata, name)}
        if ends:
            before, after = ([name] if name in ends else [] for name in ("bos", "eos"))
            tokenizer.post_processor = processors.TemplateProcessing(
                single=[*before, "$A", *after],
                pair=[*before, "$A", "$B", *after],
                special_tokens=[
                    {"id": name, "ids": [index], "tokens": [tokens[index]]}
                    for name, index in ends.items()
                ],
            )
    return tokenizer


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], types: Ints) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or pre not in _WORDS:
        raise CheckpointError(f"tokenizer.ggml.pre is {quote(pre)}, supported: {', '.join(_WORDS)}")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = _merges(metadata)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, ignore_merges=pre in _WHOLE_WORDS, fuse_unk=False)
    )
    if pre in _COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(words), "isolated") for words in _WORDS[pre]),
            pre_tokenizers.ByteLevel(
                add_prefix_space=_flag(metadata, "add_space_prefix", False), use_regex=False
            ),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(metadata: Mapping[str, Any], tokens: list[str], types: Ints) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    if metadata.get("general.architecture") in _GEMMAS:
        # Runs of spaces are spelled as such in these files, and scores do not give the order of
        # merges, which is that of the tokens.
        known = set(tokens)
        for index, token in enumerate(tokens):
            spelled = _SPACE * len(token)
            if not token.strip(" ") and spelled not in known:
                tokens[index] = spelled
        priority = -np.arange(len(tokens), dtype=np.float64)
    else:
        priority = _numbers(metadata, "scores", len(tokens), "f")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = special_token_ids(metadata).get("unk")
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            _merges(metadata)
            if "tokenizer.ggml.merges" in metadata
            else _merges_by_priority(vocabulary, priority, types),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    back: list[decoders.Decoder] = [
        decoders.Replace(_SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if _flag(metadata, "add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(_SPACE))
        back.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(back)
    return tokenizer


def _merges_by_priority(
    vocabulary: dict[str, int], priority: npt.NDArray[Any], types: Ints
) -> list[tuple[str, str]]:
    """All pairs of tokens whose join is a token, the join of highest priority first."""
    tokens = list(vocabulary)
    merges = []
    for index in np.argsort(-priority, kind="stable"):
        token = tokens[index]
        if types[index] in (_NORMAL, _USER_DEFINED) and len(token) <= _LONGEST_MERGED:
            for cut in range(len(token) - 1, 0, -1):
                left, right = token[:cut], token[cut:]
                if left in vocabulary and right in vocabulary:
                    merges.append((left, right))
    return merges


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not _are_strings(tokens) or not tokens:
        raise CheckpointError("tokenizer.ggml.tokens is missing or not an array of strings")
    if len(set(tokens)) < len(tokens):
        seen: set[str] = set()
        for token in tokens:
            if token in seen:
                raise CheckpointError(f"tokenizer.ggml.tokens has {quote(token)} twice")
            seen.add(token)
    return list(tokens)


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = metadata.get("tokenizer.ggml.merges")
    if not _are_strings(merges):
        raise CheckpointError("tokenizer.ggml.merges is missing or not an array of strings")
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise CheckpointError(
                f"tokenizer.ggml.merges has {quote(merge)}, expected two tokens with a space"
            )
        pairs.append((left, right))
    return pairs


def _are_strings(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(element, str) for element in value)


def _numbers(metadata: Mapping[str, Any], name: str, count: int, kinds: str) -> npt.NDArray[Any]:
    key = f"tokenizer.ggml.{name}"
    numbers = metadata.get(key)
    if not isinstance(numbers, np.ndarray) or numbers.dtype.kind not in kinds:
        raise CheckpointError(f"{key} is missing or not an array of numbers")
    if len(numbers) != count:
        raise CheckpointError(f"{key} has {len(numbers)} elements, expected {count}, as tokens")
    return numbers


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise CheckpointError(f"tokenizer.ggml.{name} is {quote(value)}, expected a boolean")
    return value


def _adds(metadata: Mapping[str, Any], name: str) -> bool:
    """Does a text get this token in front (bos) or at its end (eos)?"""
    by_default = name == "bos" and (
        metadata["tokenizer.ggml.model"] == "llama"
        or metadata.get("tokenizer.ggml.pre") in _WHOLE_WORDS
    )
    return _flag(metadata, f"add_{name}_token", by_default)

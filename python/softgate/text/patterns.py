"""How byte-level BPE cuts a text into words: contractions, letters, digits, symbols, white space.

Each is named after the first model that was trained with it.
"""

from __future__ import annotations

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LOWER_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_UPPER_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

LLAMA_3 = "|".join((_CONTRACTION, _WORD, r"\p{N}{1,3}", _SYMBOLS, _SPACES))
QWEN_2 = "|".join((_CONTRACTION, _WORD, r"\p{N}", _SYMBOLS, _SPACES))
GPT_4O = "|".join(
    (
        f"{_LOWER_WORD}{_CONTRACTION}?",
        f"{_UPPER_WORD}{_CONTRACTION}?",
        r"\p{N}{1,3}",
        _PATHS,
        _SPACES,
    )
)
TEKKEN = "|".join((_LOWER_WORD, _UPPER_WORD, r"\p{N}", _PATHS, _SPACES))

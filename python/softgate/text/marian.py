"""Marian's tokenizers: a SentencePiece model for each language, and a JSON file of pieces' ids.

sentencepiece, of the extra `transformers`, is imported only here.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softgate.checkpoint.errors import CheckpointError, quote
from softgate.checkpoint.folder import read_object
from softgate.text.errors import library_errors

_END, _UNKNOWN, _PADDING = "</s>", "<unk>", "<pad>"
_SPACE = "\u2581"
_MODELS = {"source": "source.spm", "target": "target.spm"}
_VOCABULARY, _TARGET_VOCABULARY = "vocab.json", "target_vocab.json"


class MarianTokenizer:
    """One language of a Marian folder: texts to ids that end with "</s>", and back.

    A text may begin with the language that it is to be translated to, as ">>fra<<".
    """

    def __init__(
        self, model: bytes, vocabulary: Mapping[str, int], files: Mapping[str, bytes]
    ) -> None:
        """model: SentencePiece's; files: of the language in its folder, by name."""
        from sentencepiece import SentencePieceProcessor

        self._processor: Any = SentencePieceProcessor(model_proto=model)
        self._ids = dict(vocabulary)
        self._pieces = {index: piece for piece, index in self._ids.items()}
        self._files = dict(files)

    @classmethod
    def load(cls, folder: Path, side: str) -> MarianTokenizer | None:
        """side: "source" or "target". None where the folder has no such files, or, with a warning,
        where sentencepiece is missing.

        Raises CheckpointError for files that are broken.
        """
        model = folder / _MODELS[side]
        names = [_TARGET_VOCABULARY, _VOCABULARY] if side == "target" else [_VOCABULARY]
        found = [folder / name for name in names if (folder / name).is_file()]
        if not model.is_file() or not found:
            return None
        if importlib.util.find_spec("sentencepiece") is None:
            hint = "needs sentencepiece: pip install 'softgate[transformers]'"
            warnings.warn(f"{model} {hint}", stacklevel=4)
            return None
        vocabulary = read_object(found[0])
        for piece, index in vocabulary.items():
            if type(index) is not int or index < 0:
                raise CheckpointError(f"{found[0]}: {quote(piece)} is {quote(index)}, expected ids")
        for piece in (_END, _UNKNOWN):
            if piece not in vocabulary:
                raise CheckpointError(f"{found[0]} lacks {piece!r}")
        data = model.read_bytes()
        files = {model.name: data, found[0].name: json.dumps(vocabulary).encode()}
        with library_errors(f"{model}: no SentencePiece model"):
            return cls(data, vocabulary, files)

    @property
    def vocab_size(self) -> int:
        """Number of ids that have a piece."""
        return len(self._ids)

    def tokens(self, text: str) -> list[str]:
        """The pieces of a text, and what ends it."""
        pieces: list[str] = []
        if text.startswith(">>") and "<<" in text:
            code, text = text.split("<<", 1)
            pieces.append(code + "<<")
        return [*pieces, *self._processor.encode(text, out_type=str), _END]

    def ids(self, text: str) -> list[int]:
        """Those of the tokens."""
        unknown = self._ids[_UNKNOWN]
        return [self._ids.get(piece, unknown) for piece in self.tokens(text)]

    def token(self, index: int) -> str:
        """An id's piece; "<unk>" where there is none."""
        return self._pieces.get(index, _UNKNOWN)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each id shows of a text."""
        return [self.token(index).replace(_SPACE, " ") for index in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        pieces = [self.token(int(index)) for index in ids]
        kept = [piece for piece in pieces if piece not in (_END, _UNKNOWN, _PADDING)]
        text: str = self._processor.decode_pieces(kept)
        return text.replace(_SPACE, " ").strip()

    def to_files(self) -> dict[str, bytes]:
        """What `load` reads, by name."""
        return dict(self._files)

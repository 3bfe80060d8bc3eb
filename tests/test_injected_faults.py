"""A line that is missing or wrong in a CUDA kernel is noticed: simt injects such faults.

Into every kernel, at every kind of point that it has (csrc/simt/inject.h), one fault at a time: the
launch is reported, or its result is not the reference's. What escapes is listed here, with the
reason, and has to escape.
"""

from __future__ import annotations

import csv
import ctypes
import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ptx
import pytest
import softgate
import test_attention_devices
import test_decode_devices
import test_devices
import test_linear_devices
import test_recurrent_devices
from cases import Case
from cases.add_norm import AddNormCase
from cases.attention import AttentionCase
from cases.embedding import EmbeddingCase
from cases.linear import GatherCase, LinearCase, PackedLinearCase
from cases.normalize import NormalizeCase
from cases.pool import PoolCase
from cases.recurrent import GATES, RecurrentCase
from cases.rotary import RotaryCase
from cases.sample import PenalizeCase, SampleCase, SoftcapCase, TokenLogprobsCase
from cases.softmax import SoftmaxCase
from devices import DTYPES, fetched

LIBRARY = Path(softgate.__file__).parent / "_simt.so"
TABLE = Path(__file__).parents[1] / "csrc" / "cuda" / "ptxas.tsv"
pytestmark = [
    pytest.mark.skipif(
        not LIBRARY.exists() and os.environ.get("SOFTGATE_PROOFS") != "required",
        reason="built with SOFTGATE_SIMT=ON only",
    ),
    pytest.mark.skipif(
        "libasan" in os.environ.get("LD_PRELOAD", ""),
        reason="AddressSanitizer takes the place of the checks of shared memory",
    ),
]

ORDERS = ("forward", "reverse", "1")  # of threads, as other tests run them
POINTS = (
    *("barrier", "grid_barrier", "warp_barrier", "wait", "copy", "mask"),  # of a thread
    *("thread", "block"),  # that takes its neighbour's index
)

# What is not noticed: kernel, point and place as a fault's name has them, and why.
CONVERGES = (
    "brings the lanes of a warp together after a branch, which simt's threads need not be and PTX "
    "asks for: ptxrun reports a parted warp at a barrier or warp instruction (test_ptx_*.py)"
)
ESCAPES = {
    r"(?!attention_kernel<\w+, Shape<\d+, false>|integers_direct).* warp_barrier .*": CONVERGES,
    r"attention_kernel<\w+, Shape<\d+, false>, \w+> warp_barrier (first|middle)": CONVERGES,
    r"attention_kernel<\w+, Shape<\d+, false>, \w+> (barrier|wait) last": (
        "only a tile without keys, which has no other, needs the one before its results"
    ),
    r"attention_float_kernel<.*> barrier first": "nobody reads before the first keys are there",
    r"linear_kernel<.*, false> wait .*": "rows that begin anywhere are not copied by cp.async",
    r"sequence_kernel<.*> grid_barrier last": "no step follows",
}


@dataclass(frozen=True)
class Fault:
    kernel: str  # as simt calls it
    point: str
    number: int
    count: int

    def __str__(self) -> str:
        places = {0: "first", self.count - 1: "last"} if self.count > 1 else {0: "only"}
        return f"{ptx.readable(self.kernel)} {self.point} {places.get(self.number, 'middle')}"

    @property
    def reason_to_escape(self) -> str | None:
        return next((why for name, why in ESCAPES.items() if re.fullmatch(name, str(self))), None)


@dataclass(frozen=True)
class Run:
    """A case on simt, for faults in the kernels whose names begin with one of these."""

    op: str
    case: Case
    dtype: str
    kernels: tuple[str, ...]
    points: tuple[str, ...] = POINTS

    def __str__(self) -> str:
        return f"{self.op}-{self.dtype}-{self.case}"

    def results(self) -> list[Any]:
        if self.op == "attention":
            return test_attention_devices.run(self.case, "simt", self.dtype)
        if self.op == "recurrent":
            return test_recurrent_devices.run(self.case, "simt", self.dtype)
        if self.op == "decode":
            return test_decode_devices.run(self.case, "simt", self.dtype)
        if self.op == "packed":
            return [test_linear_devices.run(self.case, "simt", self.dtype)]
        return [test_devices.run(self.op, self.case, "simt", self.dtype)]

    def is_right(self, results: list[Any]) -> bool:
        try:
            if self.op == "attention":
                test_attention_devices.assert_matches_reference(self.case, self.dtype, results)
            elif self.op == "recurrent":
                test_recurrent_devices.assert_matches_reference(self.case, self.dtype, results)
            elif self.op == "decode":
                test_decode_devices.assert_matches_reference(self.case, self.dtype, results)
            elif self.op == "packed":
                test_linear_devices.assert_matches_reference(self.case, *results)
            else:
                test_devices.assert_matches_reference(self.op, self.case, *results)
        except AssertionError:
            return False
        return True


def runs(op: str, cases: list[Case], *kernels: str, dtypes=DTYPES, points=POINTS) -> list[Run]:
    return [Run(op, case, dtype, kernels or (op,), points) for case in cases for dtype in dtypes]


# A warp's rows and a block's, in vectors and not, in registers and not.
COLUMNS = (40, 37, 776, 1001, 8200, 8201)
HEAD_DIMS = (32, 64, 80, 96, 128, 256)
EVERY_MASK = ({"causal": True}, {"mask": "bool"})
GROUPED = {"num_heads": 2, "num_kv_heads": 1}

RUNS = [
    *runs("add_layer_norm", [AddNormCase(5, n) for n in COLUMNS[:4]], "add_norm"),
    *runs("add_rms_norm", [AddNormCase(2, n) for n in (776, 16400, 16401)], "add_norm"),
    *runs("embedding", [EmbeddingCase(5, n, (9, 5), norm=True) for n in COLUMNS]),
    *runs("normalize", [NormalizeCase(5, n) for n in COLUMNS]),
    *runs("softmax", [SoftmaxCase((5, n)) for n in COLUMNS]),
    *runs("pool", [PoolCase((3, 0, 19, 1), n, m) for n in (200, 37) for m in ("mean", "max")]),
    # Each tile, with a last stage that the staged sums overwrite.
    *runs("linear", [LinearCase(20, 272, 40, "gelu", True, True), LinearCase(40, 391, 40)]),
    *runs("linear", [LinearCase(40, 24, 8192), LinearCase(70, 24, 16384)]),
    *runs(
        "packed",
        [*(GatherCase(5, 9, n) for n in (96, 37)), GatherCase(5, 9, 37, "float")],
        "gather",
    ),
    *runs(  # in registers and not, in vectors and not
        "packed",
        [PackedLinearCase(5, n, 18, packed="int8") for n in (40, 37, 8200, 8201)],
        "quantise_rows",
    ),
    *runs(
        "packed",
        [
            PackedLinearCase(5, 96, 18, packed="int4", layout=way)
            for way in ("contiguous", "misaligned")
        ],
        "quantise_groups",
    ),
    *runs(
        "packed",
        [
            PackedLinearCase(rows, 320, 80, "silu", True, True, packed=packed)
            for packed in ("int8", "int8_groups", "int4")
            for rows in (5, 20)
        ],
        "integers_direct",
    ),
    *(
        run
        for dtype in DTYPES
        for run in runs(
            "packed",
            [
                PackedLinearCase(40, 160, 16384, packed=packed)
                for packed in ("int8", "int8_groups", "int4")
            ],
            "integers_tiled",
            dtypes=(dtype,),
            # Large: what is before the results is the same in every dtype.
            points=POINTS if dtype == "float32" else ("thread", "block"),
        )
    ),
    *runs(
        "attention",
        [
            AttentionCase((40, 9), (140, 33), head_dim=dim, **mask, **GROUPED)
            for dim in HEAD_DIMS
            for mask in EVERY_MASK
        ],
        "attention_kernel",
        dtypes=DTYPES[1:],
    ),
    *runs(  # without keys
        "attention",
        [
            AttentionCase((20,), (0,), head_dim=dim, **mask, **GROUPED)
            for dim in HEAD_DIMS
            for mask in EVERY_MASK
        ],
        "attention_kernel",
        dtypes=DTYPES[1:],
        points=("barrier", "wait"),
    ),
    *runs(
        "attention",
        [
            AttentionCase((1, 3, 0), (300, 5, 4), head_dim=dim, **mask, **GROUPED)
            for dim in HEAD_DIMS
            for mask in EVERY_MASK
        ],
        *("attention_kernel", "combine", "weights"),
        dtypes=DTYPES[1:],
    ),
    *runs(
        "attention",
        [
            AttentionCase(lengths, key_lengths, head_dim=dim, causal=True, **GROUPED)
            for dim in (32, 64, 96, 128, 256)
            for lengths, key_lengths in [((40, 9), (70, 33)), ((1, 3, 0), (300, 5, 4))]
        ],
        *("attention_float", "combine", "weights"),
        dtypes=DTYPES[:1],
    ),
    # With a relative bias: what is before the results is the same as with a mask, or without.
    *runs(
        "attention",
        [
            AttentionCase(lengths, key_lengths, head_dim=dim, reach=20, **GROUPED)
            for dim in (32, 64, 96, 128, 256)
            for lengths, key_lengths in [((40, 9), (70, 33)), ((1, 3, 0), (300, 5, 4))]
        ],
        "attention_float",
        dtypes=DTYPES[:1],
        points=("thread", "block"),
    ),
    *runs(
        "attention",
        [
            AttentionCase((40, 9), (70, 33), head_dim=64, reach=20, **GROUPED),
            AttentionCase((1, 3, 0), (300, 5, 4), head_dim=64, reach=20, **GROUPED),
        ],
        *("attention_kernel", "weights"),
        dtypes=DTYPES[1:],
        points=("thread", "block"),
    ),
    *runs(
        "decode",
        [
            RotaryCase((3, 0, 2), (4, 1, 0), 3, 2, head_dim=80, rotary_dim=48, norm=norm)
            for norm in ("", "qk")
        ],
        "rotary",
    ),
    *runs(
        "decode",
        [
            SampleCase(2, 1037, top_k=40, top_p=0.9, min_p=0.01),
            SampleCase(2, 1037, 0.0),
            SampleCase(2, 300, 0.7, top_k=5, top_p=0.8),
        ],
        "sample",
    ),
    *runs("decode", [PenalizeCase((9, 300, 5), 70)], "penalize"),
    *runs("decode", [SoftcapCase(3, 2500)], "softcap"),
    *runs("decode", [TokenLogprobsCase(2, n) for n in (300, 1037)], "token_logprobs"),
    *runs(
        "recurrent",
        [
            RecurrentCase(kind, lengths, 3, 37, proj)
            for kind in GATES
            for proj in ((None, 7) if kind == "lstm" else (None,))
            # All steps in one kernel, more sequences than a block has at once; a step.
            for lengths in [(3, 0, *(2,) * 8), (1, 1)]
        ],
        *("sequence", "step", "last_states"),
    ),
]


@pytest.fixture(scope="module")
def simt() -> Iterator[ctypes.CDLL]:
    library = ctypes.CDLL(str(LIBRARY))
    library.simt_launches.restype = ctypes.c_char_p
    yield library
    library.simt_inject(b"", b"", -1)


def launches(simt: ctypes.CDLL) -> dict[str, dict[str, int]]:
    """Of each kernel since the last call: how many points of each kind, and shared_bytes."""
    lines = (line.split("\t") for line in simt.simt_launches().decode().splitlines())
    pairs = ((kernel, map(str.split, numbers)) for kernel, *numbers in lines)
    return {kernel: {name: int(number) for name, number in numbers} for kernel, numbers in pairs}


def faults(run: Run, kernels: dict[str, dict[str, int]]) -> list[Fault]:
    return [
        Fault(kernel, point, number, count)
        for kernel, counts in kernels.items()
        if ptx.readable(kernel).startswith(run.kernels)
        for point in run.points
        if (count := counts[point]) > 0
        for number in numbers(point, count)
    ]


def numbers(point: str, count: int) -> list[int]:
    """Which of them fail: those of a thread or block that has work, with another beside it."""
    if point == "thread":
        return [0]
    if point == "block":
        return [count // 2] if count > 1 else []
    return sorted({0, count // 2, count - 1})


def is_noticed(run: Run, before: list[Any]) -> bool:
    try:
        results = run.results()
    except RuntimeError as error:
        assert str(error).startswith("simt: ")
        return True
    return not same_bits(results, before) and not run.is_right(results)


def same_bits(results: list[Any], others: list[Any]) -> bool:
    return all(bits(a) == bits(b) for a, b in zip(results, others, strict=True))


def bits(result: Any) -> bytes:
    return (fetched(result) if isinstance(result, softgate.Tensor) else result).tobytes()


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_faults_are_noticed(simt, run, monkeypatch):
    simt.simt_inject(b"", b"", -1)
    launches(simt)
    results = run.results()
    assert run.is_right(results)
    wrong = []
    for fault in faults(run, launches(simt)):
        simt.simt_inject(fault.kernel.encode(), fault.point.encode(), fault.number)
        may_escape = fault.reason_to_escape is not None
        for order in ORDERS[:1] if may_escape else ORDERS:
            monkeypatch.setenv("SOFTGATE_SIMT_ORDER", order)
            noticed = is_noticed(run, results)
            if noticed:
                break
        if noticed == may_escape:
            wrong.append(f"{fault} of {fault.count} {'is noticed' if noticed else 'escapes'}")
    assert not wrong, "\n".join(wrong)


@functools.cache
def table() -> dict[str, dict[str, str]]:
    lines = TABLE.read_text().splitlines()[1:]
    return {row["kernel"]: row for row in csv.DictReader(lines, delimiter="\t")}


def test_every_kernel_has_its_faults(simt):
    """No instance is left out, no escape is listed in vain; launches are as the table says."""
    simt.simt_inject(b"", b"", -1)
    kernels, names = {}, set()
    for run in RUNS:
        launches(simt)
        run.results()
        launched = launches(simt)
        names |= {str(fault) for fault in faults(run, launched)}
        kernels |= {ptx.readable(kernel): counts for kernel, counts in launched.items()}
    assert kernels.keys() == table().keys()
    assert [escape for escape in ESCAPES if not any(re.fullmatch(escape, n) for n in names)] == []
    assert {name.split("_kernel")[0] for name in names} == {
        kernel.split("_kernel")[0] for kernel in kernels
    }
    for kernel, row in table().items():
        assert kernels[kernel]["thread"] <= int(row["threads"])
        assert kernels[kernel]["shared_bytes"] <= int(row["dynamic"])

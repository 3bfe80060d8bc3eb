"""What the hardware can do at most, measured by csrc/bench/limits.cc in the same run."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "csrc" / "bench" / "limits.cc"
PROGRAM = ROOT / "build" / "bench-cache" / "limits"
CURVES = ("fma", "read", "copy", "copy_streaming")


@dataclass(frozen=True)
class Work:
    """What a case asks of the machine at the least.

    `bytes` counts every operand once, or as often as `working_set` bytes are read again; `traffic`
    says whether they are mostly read (weights) or read and written in like amounts, and so which
    bandwidth bounds them.
    """

    flops: float
    bytes: float
    traffic: Literal["read", "copy"] = "copy"
    working_set: float | None = None

    @property
    def touched(self) -> float:
        """Different bytes: they decide which cache can hold them."""
        return self.bytes if self.working_set is None else self.working_set

    @property
    def intensity(self) -> float:
        """Floating-point operations per byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Limits:
    """Peak fp32 FMA rate in GFLOP/s by number of threads; bandwidth in GB/s by bytes touched, with
    all `threads` threads. Copies count bytes read and bytes written. `l2`: bytes in the L2 caches
    of that many cores, 0 when unknown."""

    threads: int
    vector_bits: int
    l2: int
    fma: Mapping[int, float]
    read: Mapping[int, float]
    copy: Mapping[int, float]
    copy_streaming: Mapping[int, float]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Limits:
        curves = {
            name: {int(key): float(value) for key, value in data[name].items()} for name in CURVES
        }
        return cls(
            threads=data["threads"], vector_bits=data["vector_bits"], l2=data["l2"], **curves
        )

    def or_better(self, other: Limits) -> Limits:
        """The higher of two measurements of one machine: what disturbs them only slows."""
        curves: dict[str, Any] = {}
        for name in CURVES:
            ours, theirs = getattr(self, name), getattr(other, name)
            curves[name] = {key: max(rate, theirs[key]) for key, rate in ours.items()}
        return replace(self, **curves)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def peak_gflops(self) -> float:
        return max(self.fma.values())

    @property
    def is_disturbed(self) -> bool:
        """Whether the threads together compute clearly less than one by itself, times their
        number: then other work has the cores, and ratios between engines mean little."""
        return self.fma[self.threads] < 0.8 * self.threads * self.fma[1]

    def bandwidth(self, work: Work) -> float:
        """GB/s at the working set of `work`; for copies of the better kind of store."""
        if work.traffic == "read":
            return interpolate(self.read, work.touched)
        return max(interpolate(curve, work.touched) for curve in (self.copy, self.copy_streaming))

    def seconds(self, work: Work) -> float:
        """The roofline (Williams et al. 2009): the slower of computing and moving the bytes."""
        return max(work.flops / self.peak_gflops, work.bytes / self.bandwidth(work)) / 1e9

    def is_arithmetic(self, work: Work) -> bool:
        """Whether computing is the slower of the two."""
        return work.flops / self.peak_gflops >= work.bytes / self.bandwidth(work)


def interpolate(curve: Mapping[int, float], size: float) -> float:
    """The value at `size`, linear in its logarithm and constant beyond the ends."""
    sizes = sorted(curve)
    if size <= sizes[0]:
        return curve[sizes[0]]
    for below, above in itertools.pairwise(sizes):
        if size <= above:
            share = math.log(size / below) / math.log(above / below)
            return curve[below] + share * (curve[above] - curve[below])
    return curve[sizes[-1]]


def build() -> Path:
    """Compile the probe for this machine, unless it is newer than its source."""
    if PROGRAM.exists() and PROGRAM.stat().st_mtime >= SOURCE.stat().st_mtime:
        return PROGRAM
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        raise RuntimeError("the limits need a C++ compiler: none in CXX, no c++ on the PATH")
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    options = ["-std=c++20", "-O3", "-march=native", "-pthread"]
    subprocess.run([compiler, *options, SOURCE, "-o", PROGRAM], check=True)
    return PROGRAM


def probe(threads: int, *, quick: bool = False) -> Limits:
    """Measure the limits with one thread and with `threads`, in a process of its own."""
    command = [str(build()), str(threads), "2" if quick else "8"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Limits.from_json(json.loads(output))

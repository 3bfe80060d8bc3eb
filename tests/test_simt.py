"""simt reports planted bugs, and runs threads in the order it is told."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import softgate

LIBRARY = Path(softgate.__file__).parent / "_simt_faults.so"
pytestmark = pytest.mark.skipif(
    not LIBRARY.exists() and os.environ.get("SOFTGATE_PROOFS") != "required",
    reason="built with SOFTGATE_SIMT=ON only",
)

ORDERS = ("forward", "reverse", "1", "2")

# What each kernel of simt_faults.cu is reported for, in any order of its threads.
FAULTS = {
    "barrier_for_some": r"divergent barrier .*waits at __syncthreads.* has returned",
    "barrier_at_two_places": r"divergent barrier .*faults\.cu:\d+ while others wait at .*cu:\d+",
    "barrier_against_collective": r"incomplete collective .*__shfl_sync for lane 3,.*__syncthreads",
    "collective_for_some": r"incomplete collective .*__shfl_xor_sync for lane 5.*has returned",
    "two_collectives": r"incomplete collective .*__(ballot|shfl_xor)_sync .*__(ballot|shfl_xor)_",
    "mask_without_own_lane": r"incomplete collective .*__syncwarp: its mask lacks its lane",
    "shuffle_from_outside_mask": r"shuffle .*outside its mask",
    "unwritten_shared": r"thread \(8, 0, 0\): reads what nobody has written",
    "shared_out_of_bounds": r"thread \(63, 0, 0\): is accessed out of bounds",
    "missing_barrier": r"reads what (nobody has written|another thread wrote)",
    "missing_barrier_before_write": r"(reads|writes) what another thread (wrote|read) since",
    "missing_syncwarp": r"reads what (nobody has written|another thread wrote)",
    "missing_wait": r"reads where a copy is in flight: a missing wait",
    "misaligned_copy": r"asynchronous copy .*is not aligned to its 16 bytes",
    "grid_sync_without_cooperation": r"grid barrier .*not cooperative",
}
NEEDS_HOOKS = {name for name, report in FAULTS.items() if "reads" in report or "bounds" in report}


@pytest.fixture(scope="module")
def library():
    library = ctypes.CDLL(LIBRARY)
    library.simt_run.restype = ctypes.c_char_p
    return library


@pytest.fixture(params=ORDERS)
def order(request, monkeypatch):
    monkeypatch.setenv("SOFTGATE_SIMT_ORDER", request.param)
    return request.param


def run(library, name, threads=64):
    shared_bytes = {"missing_wait": 2048, "none": 1024}.get(name, 256)
    return library.simt_run(name.encode(), threads, shared_bytes).decode()


@pytest.mark.parametrize("name", FAULTS)
def test_reports_a_planted_bug(library, order, name):
    if name in NEEDS_HOOKS and "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("AddressSanitizer takes the place of the checks of shared memory")
    report = run(library, name)
    where = rf"in faults::{name}\(float\*\), block \(\d, 0, 0\), thread \(\d+, 0, 0\): "
    assert re.search(where, report), report
    assert re.search(FAULTS[name], report), report


def test_reports_nothing_of_a_right_kernel(library, order):
    assert run(library, "none") == ""


# Points of none() in simt_faults.cu that fail on demand (csrc/simt/inject.h). Which of the threads
# is caught, and at what, depends on their order.
INJECTED = (
    *(("barrier", 0), ("barrier", 1), ("warp_barrier", 0), ("wait", 0), ("copy", 0)),
    *(("mask", 0), ("mask", 1), ("thread", 0)),
)


@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""),
    reason="AddressSanitizer takes the place of the checks of shared memory",
)
@pytest.mark.parametrize(("point", "number"), INJECTED)
def test_reports_an_injected_fault(library, order, point, number):
    name = b"faults::none(float*)"
    library.simt_inject(name, point.encode(), number)
    try:
        report = run(library, "none")
    finally:
        library.simt_inject(b"", b"", -1)
    assert re.match("simt: (shared memory|asynchronous copy|incomplete collective) in ", report)


def test_counts_where_a_fault_can_be(library):
    library.simt_launches.restype = ctypes.c_char_p
    library.simt_launches()
    run(library, "none")
    assert library.simt_launches().decode().split("\t") == [
        "faults::none(float*)", "shared_bytes 1024", "barrier 2", "grid_barrier 0",
        "warp_barrier 1", "wait 1", "copy 1", "mask 2", "thread 64", "block 2\n",
    ]  # fmt: skip


def test_a_shape_that_no_card_takes(library):
    report = run(library, "none", threads=2000)
    assert re.search(r"launch of faults::none.*block \(2000, 1, 1\)", report)


def test_out_of_bounds_under_address_sanitizer(order):
    preload = os.environ.get("LD_PRELOAD", "")
    if "libasan" not in preload:
        pytest.skip("not an AddressSanitizer build")
    script = f"import ctypes; ctypes.CDLL({str(LIBRARY)!r}).simt_run(b'out_of_bounds', 64, 256)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
    assert "out_of_bounds(float*)" in result.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [("forward", np.arange(128)), ("reverse", np.arange(128)[::-1])],
)
def test_order(library, monkeypatch, name, expected):
    monkeypatch.setenv("SOFTGATE_SIMT_ORDER", name)
    np.testing.assert_array_equal(numbers(library), expected)


def test_seeded_orders_differ_and_repeat(library, monkeypatch):
    seen = []
    for seed in ("1", "1", "2"):
        monkeypatch.setenv("SOFTGATE_SIMT_ORDER", seed)
        seen.append(numbers(library))
        assert sorted(seen[-1]) == list(range(128))
    assert (seen[0] == seen[1]).all()
    assert (seen[0] != seen[2]).any()


def test_an_order_that_does_not_exist(library, monkeypatch):
    monkeypatch.setenv("SOFTGATE_SIMT_ORDER", "sideways")
    assert "SOFTGATE_SIMT_ORDER" in run(library, "none")


def test_grid_barrier(library, order):
    blocks, steps = 5, 7
    sums = np.zeros(blocks, np.uint32)
    library.simt_exchange(sums.ctypes.data_as(ctypes.c_void_p), blocks, steps)
    expected = np.zeros(blocks, np.uint32)
    for step in range(steps):
        expected[(np.arange(blocks) + step) % blocks] += np.arange(1, blocks + 1, dtype=np.uint32)
    np.testing.assert_array_equal(sums, expected)


def numbers(library):
    tickets = np.zeros(128, np.uint32)
    library.simt_number(tickets.ctypes.data_as(ctypes.c_void_p))
    return tickets

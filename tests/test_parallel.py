"""The thread pool through the package: counts, environment, fork."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import softgate
from softgate import ops

# Large enough to be split over threads.
SHARED = """
import os, signal, sys, threading, time
import numpy as np
import softgate
from softgate import ops

x = np.random.default_rng(0).standard_normal((2048, 256), dtype=np.float32)
"""

# Leaves the status of a child that does not end by itself at SIGALRM.
FORKED = (
    SHARED
    + """
expected = ops.softmax(x)

def in_child(check):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        os._exit(0 if check() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def same():
    return np.array_equal(ops.softmax(x), expected)

def same_with_workers():
    return same() and len(os.listdir("/proc/self/task")) == softgate.num_threads()
"""
)


@pytest.fixture(autouse=True)
def restore_num_threads():
    before = softgate.num_threads()
    yield
    softgate.set_num_threads(before)


def run_python(code: str, **variables: str) -> str:
    """Standard output of `code` in an interpreter of its own; its standard error if it fails."""
    environment = {k: v for k, v in os.environ.items() if k != "SOFTGATE_NUM_THREADS"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return result.stdout.strip() if result.returncode == 0 else result.stderr.strip()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_set_num_threads(count):
    softgate.set_num_threads(count)
    assert softgate.num_threads() == count


@pytest.mark.parametrize("count", [0, -1, 1025])
def test_set_num_threads_refuses(count):
    before = softgate.num_threads()
    with pytest.raises(ValueError, match=f"count is {count}, expected 1 to 1024"):
        softgate.set_num_threads(count)
    assert softgate.num_threads() == before


def test_resized_between_calls():
    x = np.random.default_rng(0).standard_normal((512, 64), dtype=np.float32)
    expected = ops.softmax(x)
    for count in (4, 1, 2, 8, 3, 2):
        softgate.set_num_threads(count)
        np.testing.assert_array_equal(ops.softmax(x), expected)


def test_calls_from_many_threads():
    softgate.set_num_threads(3)
    x = np.random.default_rng(0).standard_normal((512, 64), dtype=np.float32)
    expected = ops.softmax(x)
    wrong = []

    def call(seed: int) -> None:
        for i in range(100):
            if seed == 0 and i % 10 == 0:
                softgate.set_num_threads(1 + i // 10 % 4)
            if not np.array_equal(ops.softmax(x), expected):
                wrong.append((seed, i))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


PRINT_COUNT = "import softgate; print(softgate.num_threads())"


@pytest.mark.parametrize("value", ["1", "3", "1024"])
def test_environment_sets_the_count(value):
    assert run_python(PRINT_COUNT, SOFTGATE_NUM_THREADS=value) == value


def test_call_overrides_the_environment():
    code = "import softgate; softgate.set_num_threads(2); print(softgate.num_threads())"
    assert run_python(code, SOFTGATE_NUM_THREADS="5") == "2"


@pytest.mark.parametrize("value", ["0", "-2", "1025", "two", "2.5", "3 ", "99999999999999999999"])
def test_bad_environment_is_an_error(value):
    expected = f'SOFTGATE_NUM_THREADS is "{value}", expected an integer from 1 to 1024'
    assert f"ValueError: {expected}" in run_python(PRINT_COUNT, SOFTGATE_NUM_THREADS=value)
    code = SHARED + "ops.softmax(x)"
    assert f"ValueError: {expected}" in run_python(code, SOFTGATE_NUM_THREADS=value)


def test_follows_affinity():
    code = """
    import os
    import softgate
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    print(softgate.num_threads())
    """
    assert run_python(code) == "1"


def test_workers_start_at_first_use():
    code = SHARED + textwrap.dedent("""
    def count():
        return len(os.listdir("/proc/self/task"))
    before = count()
    softgate.set_num_threads(4)
    unused = count()
    ops.softmax(x)
    used = count()
    softgate.set_num_threads(1)
    print(unused - before, used - before, count() - before)
    """)
    assert run_python(code, OPENBLAS_NUM_THREADS="1") == "0 3 0"


@pytest.mark.parametrize("threads", ["1", "3"])
def test_fork_after_use(threads):
    code = FORKED + textwrap.dedent("""
    print([in_child(same_with_workers) for _ in range(5)], same())
    """)
    assert run_python(code, SOFTGATE_NUM_THREADS=threads) == "[0, 0, 0, 0, 0] True"


def test_fork_of_a_fork():
    code = FORKED + textwrap.dedent("""
    print(in_child(lambda: same() and in_child(same_with_workers) == 0 and same_with_workers()))
    """)
    assert run_python(code, SOFTGATE_NUM_THREADS="2") == "0"


def test_fork_while_another_thread_is_busy():
    code = FORKED + textwrap.dedent("""
    stop = False
    def work():
        while not stop:
            ops.softmax(x)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    results = []
    for i in range(30):
        time.sleep(0.0007 * (i % 5))
        results.append(in_child(same_with_workers))
    stop = True
    for thread in threads:
        thread.join()
    print(set(results), same())
    """)
    assert run_python(code, SOFTGATE_NUM_THREADS="2") == "{0} True"


def test_child_follows_its_own_affinity():
    code = FORKED + textwrap.dedent("""
    def pinned():
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
        return softgate.num_threads() == 1 and same()
    print(in_child(pinned))
    """)
    assert run_python(code) == "0"


def test_child_keeps_the_count_set():
    code = FORKED + textwrap.dedent("""
    softgate.set_num_threads(3)
    print(in_child(lambda: softgate.num_threads() == 3 and same()))
    """)
    assert run_python(code) == "0"


def test_multiprocessing_fork_pool():
    code = FORKED + textwrap.dedent("""
    import multiprocessing
    def total(i):
        return float(ops.softmax(x[i * 256 : (i + 1) * 256]).sum())
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print([round(s) for s in pool.map_async(total, range(8)).get(timeout=60)])
    """)
    assert run_python(code, SOFTGATE_NUM_THREADS="2") == str([256] * 8)


def test_exits_while_a_daemon_thread_computes():
    code = SHARED + textwrap.dedent("""
    def work():
        while True:
            ops.softmax(x)
    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.05)
    print("done")
    """)
    assert run_python(code, SOFTGATE_NUM_THREADS="4") == "done"

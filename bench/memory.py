"""Peak memory of an engine that runs a case once, in a process of its own.

`python -m bench.memory ENGINE BENCH CASE` is one such process; it prints its peak resident bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys

from bench.case import load_cases
from bench.limits import ROOT
from bench.peers import thread_settings
from bench.startup import peak_resident_bytes


def peak_bytes(engine: str, bench: str, case: str, threads: int) -> int:
    """From the start of a process, what it loads and its libraries among them."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", engine, bench, case],
        cwd=ROOT,
        env=os.environ | thread_settings(threads),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def main(engine: str, bench: str, name: str) -> None:
    case = load_cases(bench)[name]
    getattr(case, engine)(case.inputs()).run()
    print(peak_resident_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Check that the kernels' object files define nothing outside their ISA's namespace.

Every file of csrc/cpu is compiled once per ISA. A symbol that two of these objects define under one
name (an instance of a standard-library template, an inline function, a shared static) is weak: the
linker keeps any one copy, and where it keeps the AVX-512 one, the other ISAs call it and crash on a
CPU without AVX-512. So each defined external or weak symbol must lie in `softgate::cpu::<isa>::`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ISAS = ("generic", "avx2", "avx512")
HARMLESS = {"DW.ref.__gxx_personality_v0"}  # a pointer to the exception handler, no code


def defined_symbols(path: Path) -> list[str]:
    command = ["nm", "--defined-only", "--extern-only", "--format=posix", str(path)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line.split()[0] for line in listing.splitlines()]


def in_namespace(symbol: str, isa: str) -> bool:
    """Match the mangled name, also of guards, type information and locals of functions."""
    prefix = rf"_Z(GV|T[ISV])?Z?N[rVK]*8softgate3cpu{len(isa)}{isa}"
    return re.match(prefix, symbol) is not None


def demangled(symbol: str) -> str:
    return subprocess.run(["c++filt", symbol], check=True, capture_output=True, text=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=Path, help="a CMake build folder")
    build: Path = parser.parse_args().build

    checked = 0
    stray = []
    for isa in ISAS:
        for path in sorted(build.rglob(f"softgate_{isa}.dir/**/*.o")):
            symbols = [s for s in defined_symbols(path) if s not in HARMLESS]
            checked += len(symbols)
            stray += [(path, s) for s in symbols if not in_namespace(s, isa)]
    for path, symbol in stray:
        print(f"{path.relative_to(build)}: {demangled(symbol).strip()}", file=sys.stderr)
    if not checked:
        print(f"no kernel objects under {build}", file=sys.stderr)
    print(f"{checked} symbols of kernel objects, {len(stray)} outside their namespace")
    return 1 if stray or not checked else 0


if __name__ == "__main__":
    sys.exit(main())

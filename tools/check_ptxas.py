"""What ptxas makes of every kernel, against csrc/cuda/ptxas.tsv: tools/check_ptxas.py [--update].

It compiles every kernel file, or, with --log FILE, reads what a build with SOFTGATE_CUDA_RUNTIME
Shared for that architecture printed.

A row that got worse (more registers, stack or spills) fails until the table has it, and a row that
spills needs a reason in its last column. Registers depend on the compiler: another nvcc than the
table names is checked for spills only.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
TABLE = ROOT / "csrc" / "cuda" / "ptxas.tsv"
ARCH = "sm_80"
COLUMNS = ("kernel", "registers", "warps", "shared", "stack", "spilled", "why")
Row = dict[str, str]

MULTIPROCESSOR_REGISTERS, MULTIPROCESSOR_WARPS = 65536, 64


def nvcc_version() -> str:
    text = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    return re.search(r"V([\d.]+)", text)[1]


def compile_report(source: Path, folder: Path) -> str:
    options = ["-std=c++20", "-O3", f"-arch={ARCH}", f"-I{ROOT / 'csrc'}", "-Xptxas", "-v"]
    cubin = folder / f"{source.stem}.cubin"
    command = ["nvcc", *options, "-Werror", "all-warnings", "-cubin", str(source), "-o", str(cubin)]
    return subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr


def readable(mangled: str) -> str:
    """Without its parameters and our namespaces."""
    name = subprocess.run(["c++filt", mangled], check=True, capture_output=True, text=True).stdout
    name = re.sub(r"\([^()]*(\(\w+\)\d+)?[^()]*\)$", "", re.sub(r"\(\w+\)(?=\d)", "", name.strip()))
    return re.sub(r"^void |softgate::(cuda::)?|\(anonymous namespace\)::", "", name)


def rows_of(report: str) -> list[Row]:
    rows = []
    for part in report.split("Compiling entry function '")[1:]:
        number = {
            name: int(found[1]) if (found := re.search(pattern, part)) else 0
            for name, pattern in {
                "registers": r"Used (\d+) registers",
                "shared": r"(\d+) bytes smem",
                "stack": r"(\d+) bytes stack frame",
                "spilled": r"(\d+) bytes spill stores",
            }.items()
        }
        of_warp = 32 * 8 * -(-number["registers"] // 8)
        warps = min(MULTIPROCESSOR_WARPS, MULTIPROCESSOR_REGISTERS // of_warp // 4 * 4)
        row = {name: str(value) for name, value in number.items()}
        rows.append({"kernel": readable(part.split("'")[0]), "warps": str(warps), **row})
    return rows


def measured(log: Path | None) -> dict[str, Row]:
    if log is not None:
        rows = rows_of(log.read_text())
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = [r for source in SOURCES for r in rows_of(compile_report(source, Path(folder)))]
    return {row["kernel"]: row for row in sorted(rows, key=lambda row: row["kernel"])}


def recorded() -> tuple[str, dict[str, Row]]:
    if not TABLE.exists():
        return "", {}
    first, *lines = TABLE.read_text().splitlines()
    rows = csv.DictReader(lines, delimiter="\t")
    return first.split()[2], {row["kernel"]: row for row in rows}


def write(version: str, now: dict[str, Row], before: dict[str, Row]) -> None:
    with TABLE.open("w", newline="") as file:
        file.write(f"# nvcc {version} {ARCH}; warps: what a multiprocessor's registers hold\n")
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        for kernel, row in now.items():
            writer.writerow(row | {"why": before.get(kernel, {}).get("why", "")})


def complaints(now: dict[str, Row], before: dict[str, Row], same_compiler: bool) -> list[str]:
    found = []
    if now.keys() != before.keys():
        added, gone = sorted(now.keys() - before.keys()), sorted(before.keys() - now.keys())
        found.append(f"the table lacks {added} and has {gone} too many: run with --update")
    for kernel in now.keys() & before.keys():
        row, old = now[kernel], before[kernel]
        columns = ("registers", "shared", "stack", "spilled") if same_compiler else ()
        for column in columns:
            if int(row[column]) > int(old[column]):
                found.append(f"{kernel}: {column} rose from {old[column]} to {row[column]}")
        if int(row["spilled"]) > 0 and not old["why"]:
            found.append(f"{kernel}: spills {row['spilled']} bytes; say why in the table")
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the table")
    parser.add_argument("--log", type=Path, help="output of a build, instead of compiling")
    options = parser.parse_args()
    update = options.update
    if shutil.which("nvcc") is None:
        print("nvcc is missing")
        return int(os.environ.get("SOFTGATE_PROOFS") == "required")
    version, now = nvcc_version(), measured(options.log)
    table_version, before = recorded()
    if update:
        write(version, now, before)
        before = recorded()[1]
    if version != table_version and not update:
        print(f"nvcc is {version}, the table's is {table_version}: spills only")
    found = complaints(now, before, update or version == table_version)
    print("\n".join(found) or f"{len(now)} kernels as {TABLE.name} has them")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

"""What ptxas makes of every kernel, against csrc/cuda/ptxas.tsv: tools/check_ptxas.py [--update].

It compiles every kernel file, or, with --log FILE, reads what a build with SOFTGATE_CUDA_RUNTIME
Shared for that architecture printed.

A row that got worse (more registers, shared memory, stack or spills, fewer resident warps) fails
until `--update --why REASON` writes it down with its reason, which a row that spills needs in any
case. Numbers depend on the compiler: another nvcc than the table names is checked for spills only.
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
Row = dict[str, str]

# `threads` and `dynamic` are the most that a launch has (launch_of), `warps` the occupancy: those
# that are then resident on a multiprocessor of ARCH, of 64.
COSTS = ("registers", "threads", "static", "dynamic", "stack", "spilled")
COLUMNS = ("kernel", *COSTS, "warps", "why")

# A multiprocessor of 8.0.
REGISTERS, WARPS, BLOCKS, SHARED_BYTES, BLOCK_RESERVE = 65536, 64, 32, 164 << 10, 1 << 10


def nvcc_version() -> str:
    text = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    return re.search(r"V([\d.]+)", text)[1]


def compile_report(source: Path, folder: Path) -> str:
    options = ["-std=c++20", "-O3", f"-arch={ARCH}", f"-I{ROOT / 'csrc'}", "-Xptxas", "-v"]
    cubin = folder / f"{source.stem}.cubin"
    command = ["nvcc", *options, "-Werror", "all-warnings", "-cubin", str(source), "-o", str(cubin)]
    return subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr


def readable(mangled: str) -> str:
    """Without its parameters and namespaces."""
    name = subprocess.run(["c++filt", mangled], check=True, capture_output=True, text=True).stdout
    name = re.sub(r"^void |\b\w+::|\(anonymous namespace\)::", "", name.strip())
    return re.sub(r"\([^()]*\)$", "", name)


def launch_of(kernel: str) -> tuple[int, int]:
    """Threads of a block and dynamic shared memory, the most that the launchers ask for.

    tests/test_injected_faults.py holds this against launches.
    """
    numbers = [int(number) for number in re.findall(r"\b\d+\b", kernel)]
    split, general = "true> " in kernel or "true>," in kernel, kernel.endswith(", true>")
    match kernel.split("_kernel")[0]:
        case "add_norm":
            return 1024, 2 * 32 * 4
        case "embedding" | "normalize" | "softmax":  # cuda/rows.cuh
            return 512, 2 * 32 * 4
        case "gather":
            return 128, 0
        case "quantise_rows":  # cuda/rows.cuh
            return 512, 2 * 32 * 4
        case "quantise_groups":
            return 256, 0
        case "integers_direct":
            return 128, 4 * numbers[0] * 8 * 20 * 4
        case "integers_tiled":
            unit = 512 + 256 if "Row" in kernel else 320 + 320 if "Nibbles" in kernel else 576 + 320
            return 128, max(3 * 2 * 8 * unit, 64 * 132 * 4)
        case "pool":
            return 128, 128 * numbers[0] * 4
        case "linear":
            warp_rows, warp_columns, down, across, stages, _ = numbers
            rows, columns = warp_rows * down, warp_columns * across
            return 32 * down * across, stages * (rows + columns) * 64
        case "attention":
            (dim,) = numbers
            warps = 2 if split and dim > 128 else 4
            rows = 16 if split else 64 if dim > 128 else 128
            keys = 32 if dim > 128 else 64 if dim > 64 or split else 128
            if general and not split and dim <= 128:
                keys //= 2
            return 32 * warps, (rows + 2 * keys) * 2 * dim
        case "attention_float":
            (dim,) = numbers
            rows = 16 if split or dim > 128 else 32
            return 128, 4 * (rows * dim + 32 * (dim + 4) + rows * 32)
        case "combine" | "rotary" | "weights":
            return 128, 0
        case "penalize" | "softcap":
            return 256, 0
        case "sample" | "token_logprobs":
            return 512, 3 * 32 * 4
        case "sequence":  # as much as fits
            return 256, 163 << 10
        case "step":
            return 256, 8 * (8 if "<float" in kernel else 4) * 512
        case "last_states":
            return 256, 0
    raise ValueError(f"{kernel}: launch_of does not know it")


def resident_warps(registers: int, threads: int, shared_bytes: int) -> int:
    """Of a multiprocessor: what its registers, shared memory and slots for blocks leave."""
    warps = -(-threads // 32)
    of_warp = 32 * 8 * -(-registers // 8)
    by_registers = REGISTERS // of_warp // 4 * 4 // warps
    by_shared = SHARED_BYTES // (-(-shared_bytes // 128) * 128 + BLOCK_RESERVE)
    return warps * min(by_registers, by_shared, BLOCKS, WARPS // warps)


def rows_of(report: str) -> list[Row]:
    rows = []
    for part in report.split("Compiling entry function '")[1:]:
        number = {
            name: int(found[1]) if (found := re.search(pattern, part)) else 0
            for name, pattern in {
                "registers": r"Used (\d+) registers",
                "static": r"(\d+) bytes smem",
                "stack": r"(\d+) bytes stack frame",
                "spilled": r"(\d+) bytes spill stores",
            }.items()
        }
        kernel = readable(part.split("'")[0])
        number["threads"], number["dynamic"] = launch_of(kernel)
        shared_bytes = number["static"] + number["dynamic"]
        number["warps"] = resident_warps(number["registers"], number["threads"], shared_bytes)
        rows.append({"kernel": kernel, **{name: str(value) for name, value in number.items()}})
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


def write(version: str, rows: dict[str, Row]) -> None:
    with TABLE.open("w", newline="") as file:
        file.write(f"# nvcc {version} {ARCH}; warps: resident on a multiprocessor, of {WARPS}\n")
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for _, row in sorted(rows.items()))


def worse(row: Row, old: Row) -> list[str]:
    changes = [(c, old[c], row[c]) for c in COSTS if int(row[c]) > int(old[c])]
    if int(row["warps"]) < int(old["warps"]):
        changes.append(("warps", old["warps"], row["warps"]))
    return [f"{row['kernel']}: {column} from {was} to {now}" for column, was, now in changes]


def updated(now: dict[str, Row], before: dict[str, Row], why: str) -> dict[str, Row]:
    """The table to write: a worse row only with a reason, which stays while the row does."""
    rows = {}
    for kernel, row in now.items():
        old = before.get(kernel)
        if old is None:
            rows[kernel] = row | {"why": why if int(row["spilled"]) > 0 else ""}
        elif worse(row, old):
            rows[kernel] = row | {"why": why} if why else old
        else:
            stays = int(row["spilled"]) > 0 or old == old | row
            rows[kernel] = row | {"why": old["why"] if stays else ""}
    return rows


def complaints(now: dict[str, Row], before: dict[str, Row], same_compiler: bool) -> list[str]:
    found = []
    if now.keys() != before.keys():
        added, gone = sorted(now.keys() - before.keys()), sorted(before.keys() - now.keys())
        found.append(f"the table lacks {added} and has {gone} too many: run with --update")
    for kernel in now.keys() & before.keys():
        row, old = now[kernel], before[kernel]
        if same_compiler:
            found += worse(row, old)
        if int(row["spilled"]) > 0 and not old["why"]:
            found.append(f"{kernel}: spills {row['spilled']} bytes; say why in the table")
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the table")
    parser.add_argument("--log", type=Path, help="output of a build, instead of compiling")
    parser.add_argument("--why", default="", help="for the rows that got worse")
    options = parser.parse_args()
    if shutil.which("nvcc") is None:
        print("nvcc is missing")
        return int(os.environ.get("SOFTGATE_PROOFS") == "required")
    version, now = nvcc_version(), measured(options.log)
    table_version, before = recorded()
    if options.update:
        write(version, updated(now, before if version == table_version else {}, options.why))
        table_version, before = recorded()
    if version != table_version:
        print(f"nvcc is {version}, the table's is {table_version}: spills only")
    found = complaints(now, before, version == table_version)
    print("\n".join(found) or f"{len(now)} kernels as {TABLE.name} has them")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

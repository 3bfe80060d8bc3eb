#!/usr/bin/env bash
# Longer checks, run before an issue is called done. Needs the `test` and `dev` extras, pybind11,
# cmake, ninja, clang++-15 and libsimde-dev.
set -euo pipefail
cd "$(dirname "$0")/.."

build=$PWD/build/deep

# variant NAME CMAKE_OPTION...: an extension of its own, with the Python files beside it
variant() {
  local name=$1
  shift
  rm -rf "${build:?}/$name"
  mkdir -p "$build/$name"
  cp -r python/softgate "$build/$name/"
  rm -f "$build/$name"/softgate/_*.so
  cmake -G Ninja -S . -B "$build/$name-cmake" -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$build/$name/softgate" "$@" >/dev/null
  cmake --build "$build/$name-cmake"
}

echo "== Clang 15"
variant clang -DCMAKE_CXX_COMPILER=clang++-15
PYTHONPATH=$build/clang pytest -q

echo "== every instruction set on the whole suite, AVX-512 emulated"
variant emulated -DSOFTGATE_EMULATE_AVX512=ON
for isa in generic avx2 avx512; do
  SOFTGATE_ISA=$isa PYTHONPATH=$build/emulated pytest -q
done

echo "== address and undefined behaviour sanitizers on the tests that do without torch"
variant asan -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSOFTGATE_SANITIZE=address,undefined
mapfile -t without_torch < <(grep -L torch tests/test_*.py)
PYTHONPATH=$build/asan ASAN_OPTIONS=detect_leaks=0 \
  LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libubsan.so)" \
  python -m pytest -q --capture=sys "${without_torch[@]}"

echo "== the CUDA backend for every card"
variant cuda -DSOFTGATE_CUDA=on
PYTHONPATH=$build/cuda pytest -q tests/test_cuda.py

echo "== CUDA kernels on the CPU in other orders, and under the sanitizers"
variant simt -DSOFTGATE_SIMT=ON
for order in forward reverse 1 2; do
  SOFTGATE_SIMT_ORDER=$order PYTHONPATH=$build/simt pytest -q --device simt
done
variant simt-asan -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSOFTGATE_SIMT=ON \
  -DSOFTGATE_SANITIZE=address,undefined
PYTHONPATH=$build/simt-asan ASAN_OPTIONS=detect_leaks=0 \
  LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libubsan.so)" \
  python -m pytest -q --capture=sys --device simt

echo "== thread sanitizer, one minute"
cmake --preset tsan -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" >/dev/null
cmake --build build/tsan --target parallel_stress
setarch -R build/tsan/parallel_stress 60

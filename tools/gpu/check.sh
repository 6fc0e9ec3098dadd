#!/usr/bin/env bash
# Everything that only a GPU machine can say: builds the CUDA kernels and the engine, runs the tests
# of tests/simt on the GPU, compute-sanitizer on the short ones, then the benchmarks beside PyTorch's
# attention; prints one table, and leaves it as JSON.
#   tools/gpu/check.sh [--compile-only] [--max-tokens N] [--budgets FILE] [--out FOLDER]
# --budgets: a JSON file of MInference for Llama-3-8B, for the prefills under fixed budgets.
# Needs nvcc 13, CMake 3.25, ninja, g++; PyTorch for the comparison (left out without). Where the
# libraries of README.md are not installed, take build/gpu-packages along: see tools/gpu/pack.sh.
set -uo pipefail
cd "$(dirname "$0")/../.."

compile_only=0
max_tokens=1048576
budgets=""
out=build/gpu-check
while [ $# -gt 0 ]; do
  case "$1" in
    --compile-only) compile_only=1 ;;
    --max-tokens) max_tokens=${2:?}; shift ;;
    --budgets) budgets=${2:?}; shift ;;
    --out) out=${2:?}; shift ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift
done
mkdir -p "$out"
export PATH=$PATH:/usr/local/cuda/bin

n_failed=0
# step NAME COMMAND...: goes on after a failure, counts it.
step() {
  local name=$1 began=$SECONDS
  shift
  echo "== $name"
  if "$@"; then
    echo "   $name: passed, $((SECONDS - began)) s"
  else
    echo "   $name: FAILED, $((SECONDS - began)) s"
    n_failed=$((n_failed + 1))
    return 1
  fi
}

# Unpacks build/gpu-packages once; without dpkg, a .deb is an ar archive with a tar in it.
readonly prefix=$PWD/build/gpu-prefix
unpack_packages() {
  local package
  [ -e "$prefix/complete" ] && return
  mkdir -p "$prefix"
  for package in "$PWD"/build/gpu-packages/*.deb; do
    if command -v dpkg-deb >/dev/null; then
      dpkg-deb -x "$package" "$prefix" || return 1
    else
      (cd "$prefix" && ar x "$package" && tar xf data.tar.* && rm -f data.tar.* control.tar.* debian-binary) || return 1
    fi
  done
  touch "$prefix/complete"
}

build() {
  local options=()
  if [ "$compile_only" = 0 ]; then
    local capability
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n1 | tr -d .)
    if [ "$capability" = 90 ]; then capability=90a; fi
    options+=("-DCMAKE_CUDA_ARCHITECTURES=$capability-real")
  fi
  if compgen -G "build/gpu-packages/*.deb" >/dev/null && [ ! -e /usr/include/absl ]; then
    unpack_packages || return 1
    options+=("-DCMAKE_PREFIX_PATH=$prefix/usr" "-DCMAKE_LIBRARY_PATH=$prefix/usr/lib/x86_64-linux-gnu"
      "-DCMAKE_LIBRARY_ARCHITECTURE=x86_64-linux-gnu" "-DCMAKE_CXX_FLAGS=-isystem $prefix/usr/include"
      "-DCMAKE_CUDA_FLAGS=-isystem $prefix/usr/include")
    export LD_LIBRARY_PATH=$prefix/usr/lib/x86_64-linux-gnu:${LD_LIBRARY_PATH:-}
  fi
  cmake --preset gpu "${options[@]}" >"$out/configure.log" 2>&1 || { tail -n 30 "$out/configure.log"; return 1; }
  cmake --build --preset gpu >"$out/build.log" 2>&1 || { grep -A5 -E "error|FAILED" "$out/build.log" | head -n 60; return 1; }
}

sanitize() {
  local program
  for program in build/gpu/tools/gpu/gpu_audit* build/gpu/tools/gpu/gpu_select_* build/gpu/tools/gpu/gpu_draw_tokens* build/gpu/tools/gpu/gpu_attention_decode*; do
    [ -x "$program" ] && [ -f "$program" ] || continue
    compute-sanitizer --tool memcheck --error-exitcode 1 "$program" >"$out/$(basename "$program")-memcheck.log" 2>&1 || return 1
    compute-sanitizer --tool racecheck --error-exitcode 1 "$program" >"$out/$(basename "$program")-racecheck.log" 2>&1 || return 1
  done
}

bench() { "$@" >>"$out/results.jsonl"; }

step build build || exit 1
step registers tools/gpu/ptxas_report.py build/gpu
if [ "$compile_only" = 1 ]; then exit $((n_failed > 0)); fi

nvidia-smi
step tests ctest --test-dir build/gpu -L gpu --no-tests=error --output-on-failure
if command -v compute-sanitizer >/dev/null; then step sanitizer sanitize; else echo "== no compute-sanitizer here"; fi
: >"$out/results.jsonl"
step bench-attention bench build/gpu/tools/gpu/gpu_bench_attention "$max_tokens"
if python3 -c 'import torch' 2>/dev/null; then
  step bench-pytorch bench python3 tools/gpu/torch_attention.py
else
  echo "== no PyTorch here: nothing to compare with"
fi
# The bf16 KV cache of a million tokens of this model is 128 GiB: with the weights no card holds it.
model_options=()
if [ -n "$budgets" ]; then model_options+=(--budgets "$budgets"); fi
step bench-model bench build/gpu/tools/gpu/gpu_bench_model --tokens $((max_tokens < 524288 ? max_tokens : 524288)) "${model_options[@]}"
if [ "$max_tokens" -gt 524288 ]; then
  step bench-model-fp8 bench build/gpu/tools/gpu/gpu_bench_model --tokens "$max_tokens" --kv fp8 "${model_options[@]}"
fi
python3 tools/gpu/report.py "$out/results.jsonl" "$out/results.json"
exit $((n_failed > 0))

#!/usr/bin/env bash
# Runs every test, stage by stage, and goes on after a failed stage. The last line of the output is
# "N passed, N failed"; the exit status is 0 when nothing failed.
#   tools/test.sh                 everything
#   tools/test.sh STAGE...        only these: build unit cuda e2e asan tsan fuzz
# FUZZ_SECONDS (default 15) is the time for each fuzz target.
set -uo pipefail
cd "$(dirname "$0")/.."

readonly fuzz_seconds=${FUZZ_SECONDS:-15}
readonly logs=build/test-logs
# What one build directory or clone compiled serves the others where the flags are the same.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
mkdir -p "$logs"

n_passed=0
n_failed=0
table=""

# note NAME PASSED FAILED SECONDS: a row of the table at the end.
note() {
  n_passed=$((n_passed + $2))
  n_failed=$((n_failed + $3))
  table+=$(printf '%-22s %8d passed %6d failed %8d s' "$1" "$2" "$3" "$4")$'\n'
}

# run_logged NAME COMMAND...: its output into a file, shown when it fails.
run_logged() {
  local name=$1 log="$logs/$1.log"
  shift
  if "$@" >"$log" 2>&1; then return 0; fi
  echo "--- $name failed; the end of $log:"
  tail -n 60 "$log"
  return 1
}

# step NAME COMMAND...: a stage that passes or fails as a whole.
step() {
  local name=$1 began=$SECONDS
  echo "== $name"
  shift
  if run_logged "$name" "$@"; then
    note "$name" 1 0 $((SECONDS - began))
  else
    note "$name" 0 1 $((SECONDS - began))
    return 1
  fi
}

# ctest_stage NAME PRESET [CTEST ARGUMENTS]: counts test programs.
ctest_stage() {
  local name=$1 preset=$2 began=$SECONDS failed total
  shift 2
  echo "== $name"
  run_logged "$name" ctest --preset "$preset" --no-tests=error -j "$(nproc)" "$@"
  local status=$?
  read -r failed total < <(sed -n 's/.* \([0-9]*\) tests failed out of \([0-9]*\)$/\1 \2/p' "$logs/$name.log") || true
  : "${failed:=0}" "${total:=0}"
  if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1 total=1; fi
  note "$name" $((total - failed)) "$failed" $((SECONDS - began))
}

configure_and_build() {  # PRESET [TARGET...]
  local preset=$1
  shift
  cmake --preset "$preset" || return 1
  if [ $# -gt 0 ]; then cmake --build --preset "$preset" --target "$@"; else cmake --build --preset "$preset"; fi
}

# The test programs under these folders of tests/, as ninja targets.
tests_of() {
  local file
  for file in $(cd tests && find "$@" -name '*_test.cc' | sort); do
    file=${file%.cc}
    echo "${file//\//_}"
  done
}

e2e_environment() {
  local venv=build/e2e-venv stamp=build/e2e-venv/requirements.txt
  if cmp -s tests/e2e/requirements.txt "$stamp"; then return 0; fi
  rm -rf "$venv"
  # Some machines have a python3 of their own in front that lacks venv, or the other way round.
  python3 -m venv "$venv" || { rm -rf "$venv"; /usr/bin/python3 -m venv "$venv"; } || return 1
  "$venv/bin/pip" install -q --disable-pip-version-check -r tests/e2e/requirements.txt || return 1
  cp tests/e2e/requirements.txt "$stamp"
}

stage_build() {
  step build configure_and_build cpu
}

stage_unit() {
  ctest_stage unit cpu -L unit
}

# Compiles everything that a GPU machine runs, and checks that no attention kernel spills registers.
stage_cuda() {
  if ! command -v nvcc >/dev/null && [ ! -x /usr/local/cuda/bin/nvcc ]; then
    echo "== cuda: skipped, there is no nvcc here"
    return
  fi
  step cuda-build configure_and_build gpu || return
  step cuda-registers tools/gpu/ptxas_report.py build/gpu
}

stage_e2e() {
  step e2e-venv e2e_environment || return
  local began=$SECONDS results=$logs/e2e.xml passed failed
  echo "== e2e"
  rm -f "$results"
  run_logged e2e build/e2e-venv/bin/pytest -q tests/e2e --junitxml "$results"
  local status=$?
  read -r passed failed < <(python3 - "$results" <<'PYTHON'
import sys
import xml.etree.ElementTree as tree
try:
    suite = tree.parse(sys.argv[1]).getroot().find("testsuite")
    bad = int(suite.get("errors")) + int(suite.get("failures"))
    print(int(suite.get("tests")) - bad - int(suite.get("skipped")), bad)
except (OSError, tree.ParseError):
    print(0, 1)
PYTHON
)
  if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1; fi
  note e2e "$passed" "$failed" $((SECONDS - began))
}

# All that serves, and what measures other servers. Without the commands that evaluate and measure the
# machine: they read nothing of strangers, and are a sixth of what would have to be compiled.
stage_asan() {
  local targets without='^server_(bench|eval)_'
  mapfile -t targets < <(tests_of kvcache engine server | grep -vE "$without")
  step asan-build configure_and_build asan "${targets[@]}" || return
  ASAN_OPTIONS=detect_leaks=1 ctest_stage asan asan -R '^(kvcache|engine|server)_' -E "$without"
}

stage_tsan() {
  local targets
  mapfile -t targets < <(tests_of kvcache engine)
  step tsan-build configure_and_build tsan "${targets[@]}" || return
  ctest_stage tsan tsan -R '^(kvcache|engine)_'
}

stage_fuzz() {
  local file name
  local targets=()
  for file in tests/fuzz/*_fuzz.cc; do targets+=("$(basename "$file" .cc)"); done
  step fuzz-build configure_and_build fuzz "${targets[@]}" || return
  for name in "${targets[@]}"; do
    mkdir -p "build/fuzz/corpus/$name"
    local seeds=()
    if [ -d "tests/fuzz/seeds/$name" ]; then seeds=("tests/fuzz/seeds/$name"); fi
    step "$name" "build/fuzz/tests/fuzz/$name" -max_total_time="$fuzz_seconds" -rss_limit_mb=2048 -timeout=10 \
      -artifact_prefix="$logs/$name-" "build/fuzz/corpus/$name" "${seeds[@]}"
  done
}

finish() {
  echo
  printf '%s' "$table"
  echo
  echo "$n_passed passed, $n_failed failed"
  [ "$n_failed" -eq 0 ] && [ "$n_passed" -gt 0 ]
}

stages=("$@")
if [ ${#stages[@]} -eq 0 ]; then stages=(build unit cuda e2e asan tsan fuzz); fi
for stage in "${stages[@]}"; do
  case "$stage" in
    build|unit|cuda|e2e|asan|tsan|fuzz) ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done

step setup tools/setup.sh --tests || { finish; exit 1; }
for stage in "${stages[@]}"; do
  # Nothing can follow a build that failed.
  "stage_$stage" || [ "$stage" != build ] || { finish; exit 1; }
done
finish

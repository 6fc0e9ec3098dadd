#!/usr/bin/env bash
# From a fresh Debian 12 to answers out of a long prompt: installs packages, builds, serves a bundled model on a
# free port, and asks it for what a text of N tokens tells, with dense and with sparse prefill.
#   tools/quickstart.sh [--model models/longhaul-mini|models/lookup] [--tokens N] [--seed S] [--depth D]
# models/longhaul-mini (default) was trained, and is asked for four facts; models/lookup is constructed, and exact at
# any length (D: where its key is). The last line of the output is one JSON object with the numbers.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  -h|--help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac

tools/setup.sh
echo "building"
log=build/quickstart-build.log
mkdir -p build
if ! { cmake --preset cpu && cmake --build --preset cpu --target longhaul; } >"$log" 2>&1; then
  tail -n 50 "$log" >&2
  echo "the build failed; the whole log is $log" >&2
  exit 1
fi

exec python3 tools/quickstart.py --binary build/cpu/server/longhaul "$@"

#!/usr/bin/env bash
# Installs what the build needs on Debian 12. Does nothing, quickly, when everything is there.
#   tools/setup.sh            build and run
#   tools/setup.sh --tests    and clang for the fuzz targets
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache pkg-config git ca-certificates
  python3 python3-venv
  libabsl-dev libspdlog-dev libfmt-dev nlohmann-json3-dev libcli11-dev libyaml-cpp-dev libxxhash-dev
  libhwy-dev libdnnl-dev
  libsentencepiece-dev libpcre2-dev libicu-dev
  libboost-dev libboost-context-dev libssl-dev prometheus-cpp-dev
  libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
  libgtest-dev libgmock-dev
)
case "${1:-}" in
  "") ;;
  --tests) packages+=(clang-14 libclang-rt-14-dev) ;;
  *) echo "usage: tools/setup.sh [--tests]" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null; then
  echo "tools/setup.sh: this is not a Debian system; install these or their equivalents: ${packages[*]}" >&2
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "setup: all ${#packages[@]} packages are installed"
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "tools/setup.sh: run as root (no sudo here) to install: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "setup: installing, which takes minutes on a bare system: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${as_root[@]}" apt-get update -q &&
       "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi

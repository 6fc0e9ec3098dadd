#!/usr/bin/env bash
# Collects the Debian packages that tools/gpu/check.sh needs on a machine without them, into
# build/gpu-packages: run it on Debian 12, take the folder along with the sources.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly packages=(libabsl-dev libabsl20220623 libfmt-dev libfmt9 libspdlog-dev libspdlog1.10 nlohmann-json3-dev
  libxxhash-dev libxxhash0 libgtest-dev libgmock-dev googletest)
readonly most_mib=60

mkdir -p build/gpu-packages
cd build/gpu-packages
rm -f -- *.deb
apt-get download "${packages[@]}"
size_mib=$(du -sm . | cut -f1)
echo "$(find . -name '*.deb' | wc -l) packages, $size_mib MiB in build/gpu-packages"
if [ "$size_mib" -gt "$most_mib" ]; then
  echo "that is more than $most_mib MiB" >&2
  exit 1
fi

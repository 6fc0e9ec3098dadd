#!/usr/bin/env python3
"""Registers and spills of every CUDA kernel, as ptxas reported them when a build folder was built.

  tools/gpu/ptxas_report.py build/cuda

Exit status 1 when an attention kernel spills registers to memory, or when ptxas gives up what a kernel
with warp groups is built on: products (wgmma) that run beside other work, registers that one group gives another
(setmaxnreg).
"""
import pathlib
import re
import subprocess
import sys

COMPILING = re.compile(r"Compiling entry function '(\S+)' for '(sm_\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
GIVEN_UP = re.compile(r"wgmma\.mma_async instructions are serialized due to [^'\n]*|'setmaxnreg' ignored[^\n]*")


def read_kernels(folder):
    """Yields (source, kernel, architecture, registers, spill stores, spill loads)."""
    for path in sorted(pathlib.Path(folder).rglob("*.ptxas")):
        source = path.name.removesuffix(".o.ptxas")
        kernel = spills = None
        for line in path.read_text(errors="replace").splitlines():
            if match := COMPILING.search(line):
                kernel = match.groups()
            elif kernel and (match := SPILLS.search(line)):
                spills = match.groups()
            elif kernel and spills and (match := REGISTERS.search(line)):
                yield (source, *kernel, int(match[1]), int(spills[1]), int(spills[2]))
                kernel = spills = None


def read_given_up(folder):
    """Yields (source, what ptxas says)."""
    for path in sorted(pathlib.Path(folder).rglob("*.ptxas")):
        for match in GIVEN_UP.finditer(path.read_text(errors="replace")):
            yield path.name.removesuffix(".o.ptxas"), match[0]


def demangle(names):
    result = subprocess.run(["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [re.sub(r"\w+::|\(anonymous namespace\)::", "", name) for name in result.stdout.splitlines()]


def main():
    if len(sys.argv) != 2:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    kernels = list(read_kernels(sys.argv[1]))
    if not kernels:
        print(f"no *.ptxas files under {sys.argv[1]}: build it first (cmake --preset cuda)", file=sys.stderr)
        return 2
    print(f"{'source':28} {'arch':7} {'registers':>9} {'spill st':>8} {'spill ld':>8}  kernel")
    n_bad = 0
    for (source, _, arch, registers, stores, loads), name in zip(kernels, demangle([k[1] for k in kernels])):
        bad = stores + loads > 0 and source.startswith(("attention", "sample", "hopper"))
        n_bad += bad
        print(f"{source:28} {arch:7} {registers:9} {stores:8} {loads:8}  {name}{'  <-- spills' if bad else ''}")
    print(f"{len(kernels)} kernels; {n_bad} attention kernels spill")
    given_up = list(read_given_up(sys.argv[1]))
    for source, text in given_up:
        print(f"{source}: {text}")
    return 1 if n_bad or given_up else 0


if __name__ == "__main__":
    sys.exit(main())

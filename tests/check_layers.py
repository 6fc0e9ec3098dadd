#!/usr/bin/env python3
"""Checks the source tree against the rules that a compiler does not see:
  - a file includes its own level or lower: kernels/base < kernels < kvcache < engine < server
  - the environment is read in server/server_config.cc alone
  - no JSON library below the engine
  - no source file has more than 700 lines
Prints each fault as file:line: text; exit status 1 if there is one."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEVELS = ["kernels/base", "kernels", "kvcache", "engine", "server"]  # low to high
MAX_LINES = 700
ENVIRONMENT_READERS = {"server/server_config.cc"}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
GETENV = re.compile(r"\b(?:secure_)?getenv\s*\(|\benviron\b")
JSON = re.compile(r"^\s*#\s*include\s*[<\"](nlohmann/|rapidjson/|json/|boost/json)")
JSON_FREE = ("kernels", "kvcache")


def level_of(path):
    """Position in LEVELS of a repository path; None for tests, tools and generated headers."""
    matches = [i for i, level in enumerate(LEVELS) if path.startswith(level + "/")]
    return min(matches) if matches else None  # kernels/base comes before kernels


def check_text(path, text):
    """Faults of one file, as (line number, text)."""
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        yield MAX_LINES + 1, f"{len(lines)} lines; at most {MAX_LINES}"
    own = level_of(path)
    for number, line in enumerate(lines, 1):
        include = INCLUDE.match(line)
        if include and own is not None:
            target = level_of(include.group(1))
            if target is not None and target > own:
                yield number, f"{LEVELS[own]} must not include {include.group(1)}"
        code = line.split("//", 1)[0]
        if own is not None and GETENV.search(code) and path not in ENVIRONMENT_READERS:
            yield number, "reads the environment; only server/server_config.cc does"
        if JSON.match(line) and path.startswith(JSON_FREE):
            yield number, "JSON below the engine"


def self_test():
    """The rules must be able to fail."""
    faulty = {
        "kernels/base/x.h": '#include "kernels/args.h"',
        "kernels/cpu/x.cc": '#include "kvcache/page_pool.h"',
        "kvcache/x.cc": '#include "engine/config.h"',
        "engine/x.cc": 'const char* home = std::getenv("HOME");',
        "kernels/ref/x.cc": "#include <nlohmann/json.hpp>",
        "server/x.cc": "\n" * (MAX_LINES + 1),
    }
    sound = {
        "server/server_config.cc": 'std::getenv("LONGHAUL_PORT");',
        "server/x.cc": '#include "kernels/base/status.h"  // getenv()',
        "kernels/cpu/x.cc": '#include "kernels/args.h"',
        "tests/engine/x_test.cc": '#include "server/session.h"',
    }
    for path, text in faulty.items():
        assert list(check_text(path, text)), f"not found: {path}: {text[:60]}"
    for path, text in sound.items():
        assert not list(check_text(path, text)), f"wrongly found: {path}: {text[:60]}"


def main():
    self_test()
    n_files = n_faults = 0
    for top in ("kernels", "kvcache", "engine", "server", "proto", "tests", "tools"):
        for file in sorted((ROOT / top).rglob("*")):
            if file.suffix not in (".h", ".cc", ".cu", ".cuh", ".py", ".proto"):
                continue
            n_files += 1
            path = file.relative_to(ROOT).as_posix()
            for number, fault in check_text(path, file.read_text()):
                print(f"{path}:{number}: {fault}")
                n_faults += 1
    print(f"checked {n_files} files, {n_faults} faults")
    return 1 if n_faults or not n_files else 0


if __name__ == "__main__":
    sys.exit(main())

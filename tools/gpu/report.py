#!/usr/bin/env python3
"""One table of the JSON lines that the GPU benchmarks wrote, and all of them as one JSON file.

  tools/gpu/report.py RESULTS.jsonl RESULTS.json
"""
import json
import pathlib
import subprocess
import sys
import time


def output_of(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main():
    if len(sys.argv) != 3:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    rows = [json.loads(line) for line in pathlib.Path(sys.argv[1]).read_text().splitlines() if line.strip()]
    about = {"date": time.strftime("%Y-%m-%d"), "commit": output_of("git", "rev-parse", "--short", "HEAD"),
             "gpu": output_of("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")}
    pathlib.Path(sys.argv[2]).write_text(json.dumps(about | {"results": rows}, indent=1) + "\n")
    print(" ".join(f"{name}: {value};" for name, value in about.items()))
    for bench in dict.fromkeys(row["bench"] for row in rows):
        of_bench = [row for row in rows if row["bench"] == bench]
        columns = list(dict.fromkeys(key for row in of_bench for key in row if key != "bench"))
        widths = [max(len(c), *(len(str(row.get(c, ""))) for row in of_bench)) for c in columns]
        print(f"\n{bench}")
        print("  ".join(c.rjust(w) for c, w in zip(columns, widths)))
        for row in of_bench:
            print("  ".join(str(row.get(c, "")).rjust(w) for c, w in zip(columns, widths)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

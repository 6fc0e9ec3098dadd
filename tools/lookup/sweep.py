#!/usr/bin/env python3
"""Asks models/lookup for a key at every depth, cold and from the prefix cache, and prints a table.

    python3 tools/lookup/sweep.py --binary build/cpu/server/longhaul --tokens 131072 --modes dense sample

Starts a server of its own. Standard library only.
"""

import argparse
import os
import sys

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
sys.path[:0] = [os.path.join(ROOT, "tools"), os.path.join(ROOT, "tools", "lookup")]
import quickstart  # noqa: E402
from haystack import make_haystack  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="the longhaul program")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 16384, 131072])
    parser.add_argument("--modes", nargs="+", default=["dense", "sample"])
    parser.add_argument("--depths", type=float, nargs="+", default=[n / 10 for n in range(11)])
    options = parser.parse_args()

    n_wrong = 0
    print("tokens   policy  depth  answer  cold TTFT  cached TTFT  density  recall mean", flush=True)
    with quickstart.Server(options.binary, os.path.join(ROOT, "build", "sweep-server.log")) as server:
        for n_tokens in options.tokens:
            for mode in options.modes:
                for depth in options.depths:
                    stack = make_haystack(n_tokens, depth, seed=round(100 * depth))
                    salt = f"{n_tokens}-{mode}-{depth}"
                    cold, _, cold_report = quickstart.complete(server.port, stack.prompt, mode, salt)
                    warm, _, warm_report = quickstart.complete(server.port, stack.prompt, mode, salt)
                    right = cold.startswith(stack.answer) and warm.startswith(stack.answer)
                    n_wrong += not right
                    sparse = cold_report["sparse"]
                    print(f"{n_tokens:<8} {mode:<7} {depth:5.0%}  {'right' if right else 'WRONG':<6} "
                          f"{cold_report['timings']['ttft_s']:8.3f} s {warm_report['timings']['ttft_s']:10.3f} s "
                          f"{sparse['density']:8.2%} "
                          f"{sparse['recall_mean']:12.4f}", flush=True)
    print(f"{n_wrong} wrong answers")
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())

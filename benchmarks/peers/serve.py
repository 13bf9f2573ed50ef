"""Time a peer's case on demand: ``python -m benchmarks.peers.serve <module> <case> <sizes>``.

A module of this folder has ``CASES``, which maps a case's name to ``build(**sizes)``; that returns
a function without arguments that runs once, to the end. On each line ``run`` of standard input it
is run and its seconds printed as JSON; on ``memory``, by how many bytes the process grew at its
peak.
"""

import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time

PACKAGES = (
    "torch",
    "backpack-for-pytorch",
    "nngeometry",
    "asdfghjkl",
    "avalanche-lib",
    "kfac-jax",
    "laplax",
)


def main():
    if sys.argv[1:] == ["versions"]:
        found = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
        answer({name: found[name] for name in PACKAGES if name in found})
        return
    module, case, sizes = sys.argv[1:]
    sys.stdout = sys.stderr  # whatever a library prints is not an answer
    try:
        build = importlib.import_module(f"benchmarks.peers.{module}").CASES[case]
        run = build(**json.loads(sizes))
        before = peak()
        run()
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"})
        return
    answer({"ready": True})
    for line in sys.stdin:
        if line.strip() == "run":
            start = time.perf_counter()
            run()
            answer({"seconds": time.perf_counter() - start})
        else:
            answer({"bytes": peak() - before})


def peak():
    """The most bytes that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def answer(value):
    os.write(1, (json.dumps(value) + "\n").encode())


if __name__ == "__main__":
    main()

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
import re
import sys
import time
from pathlib import Path

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
        Path("/proc/self/clear_refs").write_text("5")  # the most held counts from here
        before = held("VmRSS")
        run()
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]})
        return
    answer({"ready": True})
    for line in sys.stdin:
        if line.strip() == "run":
            start = time.perf_counter()
            run()
            answer({"seconds": time.perf_counter() - start})
        else:
            answer({"bytes": held("VmHWM") - before})


def held(what):
    """Bytes that the process holds, VmRSS, or has at most held, VmHWM; Linux knows."""
    # Not resource.getrusage: its maximum starts at what the parent process held.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{what}:\s*(\d+)", status)[1])


def answer(value):
    os.write(1, (json.dumps(value) + "\n").encode())


if __name__ == "__main__":
    main()

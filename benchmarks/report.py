"""What was measured: files in ``benchmarks/results``, which name their machine, and their page."""

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from benchmarks import page
from benchmarks.page import RESULTS
from benchmarks.timing import PEERS_PYTHON, ROOT


def chosen(doc: str, parts: Sequence[str] = ()) -> list[str]:
    """The parts of a benchmark that the command line names: all, if it names none.

    ``doc``, the module's, is what --help shows.
    """
    usage = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=usage)
    if parts:
        parser.add_argument("part", nargs="*", help=f"of {', '.join(parts)}; all if none is given")
    named = getattr(parser.parse_args(), "part", [])
    for name in named:
        if name not in parts:
            parser.error(f"there is no {name}: choose of {', '.join(parts)}")
    return named or list(parts)


def report(name: str, tables: list[dict[str, Any]], **more) -> None:
    """Write ``benchmarks/results/<name>.json`` and the page ``docs/benchmarks.md`` anew."""
    result = {
        "benchmark": name,
        "command": f"python -m benchmarks.{name}",
        "machine": machine(),
        "tables": tables,
        **more,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)
    page.write()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    device = jax.devices()[0]
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
        if Path("/proc/cpuinfo").exists()
        else (),
        platform.processor(),
    )
    return {
        "device": cpu if device.platform == "cpu" else device.device_kind,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("jax", "jaxlib", "flax", "optax")},
        **_peers_versions(),
    }


def _peers_versions():
    if not PEERS_PYTHON.exists():
        return {}
    listing = subprocess.run(
        [PEERS_PYTHON, "-m", "benchmarks.peers.serve", "versions"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return json.loads(listing.stdout) if listing.returncode == 0 else {}

"""The command: see the package's docstring."""

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from examples.finetune_language_model import report, runs, texts

RESULTS = Path(__file__).parent / "results.json"
COMMAND = "python -m examples.finetune_language_model"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description="see the package's docstring")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--smoke", action="store_true", help="tiny, on an embedded text: seconds")
    parser.add_argument("--publish", action="store_true", help="keep the results, and report")
    parser.add_argument("--report", action="store_true", help="only report what is kept")
    options = parser.parse_args(arguments)
    if options.report:
        report.write(json.loads(RESULTS.read_text()))
        return

    loaded = texts.load(None if options.smoke else os.environ.get("WPL_DATA_DIR"))
    settings = runs.SMOKE if options.smoke else runs.Settings()
    name = "finetune_language_model" + ("_smoke" if options.smoke else "")
    folder = options.out or Path("results", name)
    if loaded.embedded:
        print(
            "NOT THE PENN TREEBANK: the old text is one half of Python's help topics, the new text "
            "the other"
            + ("." if options.smoke else ", because WPL_DATA_DIR names no folder of data.")
        )
        if options.publish:
            parser.error("only results on the treebank are published: set WPL_DATA_DIR")
    results = run_all(settings, loaded, folder)
    print(report.tables(results))
    if options.publish:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        report.write(results)


def run_all(settings: runs.Settings, loaded: texts.Texts, folder: Path) -> dict:
    """Do what is not yet done, and gather everything into the folder's results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, {"settings": dataclasses.asdict(settings), "texts": loaded.describe()})
    start = time.perf_counter()

    def log(message):
        print(f"{time.perf_counter() - start:6.0f} s  {message}", flush=True)

    graph, base, seconds = runs.pretrain(settings, loaded, folder / "pretraining", log)
    bench = runs.Bench(settings, loaded, graph, base)
    plan = runs.plan(settings)

    def done(name, compute):
        return runs.record(folder, name, compute, log)

    pretrained = done("pretrained", lambda: bench.perplexities(base))
    records = {
        run: done(run.name, lambda run=run: {"points": bench.run(run)})
        for run in plan
        if run.seed == settings.seeds[0]
    }
    costs = done("costs", lambda: bench.costs(settings.turns))
    records |= {
        run: done(run.name, lambda run=run: {"points": bench.run(run)})
        for run in plan
        if run.seed != settings.seeds[0]
    }
    every = [seconds, *(record["seconds"] for record in (pretrained, costs, *records.values()))]
    wall, processor = np.sum(every, 0).round().tolist()
    results = {
        "command": f"{COMMAND} --publish",
        "settings": dataclasses.asdict(settings),
        "texts": loaded.describe(),
        "machine": machine(),
        "parameters": sum(x.size for x in jax.tree.leaves(base)),
        "pretrained": {side: pretrained[side] for side in ("old", "new")},
        "seconds": {"wall": wall, "processor": processor},
        "costs": {name: costs[name] for name in ("steps", "turns")},
        "runs": [
            {"method": run.method, "arm": run.arm, "seed": run.seed, **_rounded(point)}
            for run, record in records.items()
            for point in record["points"]
        ],
    }
    path = folder / "results.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    report.draw(results, folder / "frontiers.png")
    log(f"all is in {folder}")
    return json.loads(path.read_text())  # as it will be read


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: version(package) for package in ("jax", "jaxlib", "flax", "optax")},
    }


def _processor():
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _claim(folder, what):
    """A folder holds runs of one setting: refuse to mix."""
    path = folder / "settings.json"
    what = json.loads(json.dumps(what))
    if not path.exists():
        path.write_text(json.dumps(what) + "\n")
    elif (found := json.loads(path.read_text())) != what:
        differing = [
            f"{name}={found[part].get(name)}, not {value}"
            for part in what
            for name, value in what[part].items()
            if found[part].get(name) != value
        ]
        raise ValueError(
            f"{folder} holds runs with {'; '.join(differing)}: name another folder with --out, or "
            "delete that one"
        )


def _rounded(point):
    return {"knob": point["knob"], **{side: round(point[side], 3) for side in ("old", "new")}}


if __name__ == "__main__":
    sys.exit(main())

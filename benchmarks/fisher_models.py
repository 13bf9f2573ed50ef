"""The empirical Fisher of large networks, beside a batch gradient and one example at a time.

    python -m benchmarks.fisher_models [MODEL ...] [--again] [--small] [--time-limit SECONDS]

Each model is measured in a process of its own, so that its memory is given back and a crash is one
model's. After each, benchmarks/results/fisher_models.json and docs/benchmarks.md are written; a
model that is there already, measured with the same versions, sources and sizes on the same kind of
machine, is not measured again unless ``--again``. ``--small`` measures narrow networks of the same
kinds in seconds, and writes nothing.

Data are random: times do not depend on them.
"""

import argparse
import functools
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import wpl_jax
from benchmarks import large_networks
from benchmarks.models import BACKPACK, KFAC, MODELS, PYTORCH, Model
from benchmarks.page import RESULTS
from benchmarks.report import machine, report
from benchmarks.timing import FEW, REPEATS, ROOT, Jitted, Peer, compare
from wpl_jax.fisher import microbatches

GRADIENT, OURS, ONE = "batch gradient", "wpl_jax.empirical_fisher", "grad, one example at a time"
PEERS = {  # a module of benchmarks/peers, and what that calls it
    PYTORCH: ("torch_fisher", "gradient"),
    BACKPACK: ("torch_fisher", "backpack"),
    KFAC: ("jax_fisher", "kfac-jax"),
}
MAX_BYTES = microbatches.MAX_BYTES.on_cpu
GOAL = 1.25  # of the time of the better of a batch gradient and one example at a time


# --- The measurement of one model -----------------------------------------------------------------


class ModelPeer(Peer):
    """As Peer, of a large network."""

    server = ("benchmarks.peers.models",)


def measure(name: str, small: bool = False, repeats: int = REPEATS, save=lambda record: None):
    """What compiling and running a model takes, as JSON.

    Args:
      name: in MODELS.
      small: a narrow one.
      repeats: turns; fewer if one takes seconds.
      save: called with what is known so far, after each step.
    """
    model = MODELS[name]
    sizes = {**model.sizes, **(model.small if small else {})}
    nll, params, batch = large_networks.NETWORKS[model.network](**sizes)
    record: dict[str, Any] = {
        "model": name,
        "sizes": sizes,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "batch": len(jax.tree.leaves(batch)[0]),
        "versions": versions(),
        "forms": {},
    }
    save(record)
    built = {}
    for form, function in functions(nll).items():
        print(f"{name}: compiling {form}", flush=True)
        try:
            built[form] = Jitted(function, params, batch)
        except Exception as error:  # the others are still worth measuring
            record["forms"][form] = {"failed": _said(error)}
        else:
            record["forms"][form] = {
                "trace_seconds": built[form].trace_seconds,
                "compile_seconds": built[form].compile_seconds,
                "bytes": built[form].memory(),
            }
        save(record)
    if not model.run:
        return record

    if OURS in built and ONE in built:
        ours, one = (form.compiled(params, batch) for form in (built[OURS], built[ONE]))
        record["difference"] = largest_difference(ours, one)
        del ours, one
        save(record)
    forms: dict[str, Any] = {form: functools.partial(lambda f: f, built[form]) for form in built}
    for peer in model.peers:
        module, library = PEERS[peer]
        case = f"{model.network}/{library}"
        forms[peer] = functools.partial(ModelPeer, module, case, **sizes)
    table = compare(name, forms, repeats)
    for row in table["rows"]:
        record["forms"].setdefault(row.pop("name"), {}).update(row)
    save(record)
    return record


def functions(nll):
    """What is compared, each a function of parameters and a batch."""

    def gradient(params, batch):
        return jax.grad(lambda p: jax.vmap(nll, (None, 0))(p, batch).mean())(params)

    def one_at_a_time(params, batch):
        def add(total, example):
            squares = jax.tree.map(jnp.square, jax.grad(nll)(params, example))
            return jax.tree.map(jnp.add, total, squares), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), batch)
        n = len(jax.tree.leaves(batch)[0])
        return jax.tree.map(lambda t: t / n, total)

    return {GRADIENT: gradient, OURS: wpl_jax.empirical_fisher(nll), ONE: one_at_a_time}


def largest_difference(found, expected) -> float:
    """Of any entry, relative to it and the mean of its array: near zero, both are rounding.

    So they are in a whole array, the bias of keys in attention: hence the mean of all, too.
    """
    leaves = jax.tree.leaves(expected)
    floor = 1e-6 * sum(leaf.sum() for leaf in leaves) / sum(leaf.size for leaf in leaves)

    @jax.jit
    def of(a, b):
        return (jnp.abs(a - b) / (b + b.mean() + floor)).max()

    return max(float(of(a, b)) for a, b in zip(jax.tree.leaves(found), leaves, strict=True))


@functools.cache
def versions() -> dict[str, Any]:
    """What the figures depend on, beside a model's sizes."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "wpl_jax" / "fisher").glob("*.py")):
        digest.update(path.read_bytes())
    return {**machine(), "wpl_jax": wpl_jax.__version__, "fisher": digest.hexdigest()[:12]}


def _said(error):
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


# --- The table ------------------------------------------------------------------------------------

COLUMNS = (
    "model",
    "parameters",
    "batch",
    "gradient, ms",
    "ours",
    "one at a time",
    "MiB: gradient / ours / one",
    "s to trace + compile: gradient / ours / one",
    "difference",
    "BackPACK / PyTorch's gradient",
    "kfac-jax",
    "goal",
)
TEXT = f"""Each model is measured in a process of its own. *Ours* is `wpl_jax.empirical_fisher` with
its defaults; *one at a time* is the gradient of one example after another in `jax.lax.scan`,
squared and added up. All but the first time are in times of JAX's batch gradient, with quartiles
for ours. MiB is XLA's temporary buffers. *Difference* is the largest of an entry of ours from one
at a time, relative to the entry and the mean of its array. The *goal* is at most {GOAL} times the
better of batch gradient and one at a time, and at most the memory of the batch gradient and
{MAX_BYTES // 2**20} MiB, the default of `max_bytes` on a CPU. Where times are missing, the model
was only compiled. A dash is what failed, or a library that does not take the model; an empty place
is a library that was not tried."""


def table_of(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The table of models, in their order."""
    current, notes = versions(), []
    rows = [
        {"cells": cells(MODELS[name], records[name], notes, current)}
        for name in MODELS
        if name in records
    ]
    return {
        "title": "Large networks",
        "text": TEXT,
        "columns": COLUMNS,
        "rows": rows,
        "notes": notes,
        "turns": REPEATS,
    }


def cells(model: Model, record, notes: list[str], current) -> list[str]:
    """A row as text; what it has to say beside goes to notes."""
    forms = record["forms"]

    def noted(text, note):
        if note not in notes:
            notes.append(note)
        return f"{text} ({notes.index(note) + 1})".strip()

    def each(form_as_text):
        return " / ".join(form_as_text(forms.get(form, {})) for form in (GRADIENT, OURS, ONE))

    def ratio(form, quartiles=False):
        row = forms.get(form, {})
        if "failed" in row:
            return noted("–", f"{form}: {row['failed']}")
        if "ratio" not in row:
            return ""
        spread = "–".join(f"{q:.2f}" for q in row["ratio"]["quartiles"])
        return f"{row['ratio']['median']:.2f}" + (f" ({spread})" if quartiles else "")

    name = model.what
    if record.get("failed"):
        name = noted(name, record["failed"])
    if record.get("versions", current) != current:
        name = noted(name, "Measured with other versions or sources than those named below.")
    milliseconds = forms.get(GRADIENT, {}).get("milliseconds")
    return [
        name,
        _count(record["parameters"]) if "parameters" in record else "",
        f"{record.get('batch', '')}",
        f"{milliseconds['median']:,.0f}" if milliseconds else "",
        ratio(OURS, quartiles=True),
        ratio(ONE),
        each(lambda form: f"{form['bytes'] / 2**20:,.0f}" if "bytes" in form else "–"),
        each(
            lambda form: (
                f"{form['trace_seconds']:.1f} + {form['compile_seconds']:.1f}"
                if "compile_seconds" in form
                else "–"
            )
        ),
        f"{record['difference']:.0e}" if "difference" in record else "",
        " / ".join(filter(None, (ratio(BACKPACK), ratio(PYTORCH)))),
        ratio(KFAC),
        goal(model, forms),
    ]


def _count(parameters):
    return f"{parameters / 1e6:,.1f} M" if parameters >= 1e6 else f"{parameters:,}"


def goal(model: Model, forms) -> str:
    """Whether it is met: yes, or no and by what it is missed."""
    gradient, ours, one = (forms.get(form, {}) for form in (GRADIENT, OURS, ONE))
    if "bytes" not in ours or "bytes" not in gradient:
        return "no: not measured"
    missed = []
    if model.run:
        if not all("ratio" in form for form in (gradient, ours, one)):
            return "no: not measured"
        best = min(1, one["ratio"]["median"])
        if ours["ratio"]["median"] > GOAL * best:
            missed.append(f"{ours['ratio']['median'] / best:.2f} × the better")
    more = ours["bytes"] - gradient["bytes"] - MAX_BYTES
    if more > 0:
        missed.append(f"{more / 2**20:,.0f} MiB over")
    return "no: " + ", ".join(missed) if missed else "yes"


# --- All models -----------------------------------------------------------------------------------


def main() -> None:
    options = parse()
    if options.worker:
        work(options.worker, options.models[0], options.small)
        return
    path = RESULTS / "fisher_models.json"
    done = json.loads(path.read_text())["models"] if path.exists() and not options.small else {}
    for name in options.models or MODELS:
        if not options.again and is_current(name, done.get(name)):
            print(f"{name}: measured before")
            continue
        done[name] = measured_apart(name, options.small, options.time_limit)
        notes: list[str] = []
        row = cells(MODELS[name], done[name], notes, versions())
        for column, cell in zip(COLUMNS, row, strict=True):
            print(f"  {column}: {cell}")
        for i, note in enumerate(notes, 1):
            print(f"  ({i}) {note}", flush=True)
        if not options.small:
            report("fisher_models", [table_of(done)], models=done)


def is_current(name, record) -> bool:
    """Whether a model was measured, to the end, as it would be now."""
    if record is None or "failed" in record:
        return False
    sizes = json.loads(json.dumps(MODELS[name].sizes))
    return record["sizes"] == sizes and record["versions"] == versions()


def measured_apart(name: str, small: bool, time_limit: float) -> dict[str, Any]:
    """What measure returns, from a process of its own; up to where that crashed, if it did."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        command = [sys.executable, "-m", "benchmarks.fisher_models", "--worker", str(path), name]
        failed = None
        try:
            status = subprocess.run(
                command + ["--small"] * small, cwd=ROOT, timeout=time_limit
            ).returncode
        except subprocess.TimeoutExpired:
            failed = f"Stopped after {time_limit:.0f} s."
        else:
            if status < 0:
                failed = f"Its process was ended by {signal.Signals(-status).name}."
            elif status:
                failed = f"Its process ended with status {status}."
        record = json.loads(path.read_text()) if path.exists() else {"model": name, "forms": {}}
        return {**record, "failed": failed} if failed else record


def work(path: Path, name: str, small: bool) -> None:
    """Measure a model, and write down what is known as it becomes known."""

    def save(record):
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(record))
        partial.replace(path)

    measure(name, small, FEW if small else REPEATS, save)


def parse(arguments: Iterable[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--again", action="store_true", help="measure what was measured before")
    parser.add_argument("--small", action="store_true", help="narrow ones; write nothing")
    parser.add_argument("--time-limit", type=float, default=3600, help="seconds for a model")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in options.models:
        if name not in MODELS:
            parser.error(f"no model {name}; there are {', '.join(MODELS)}")
    return options


if __name__ == "__main__":
    main()

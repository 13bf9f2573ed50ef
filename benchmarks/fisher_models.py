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
import importlib
import inspect
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import wpl_jax
from benchmarks import networks
from benchmarks.timing import FEW, REPEATS, RESULTS, ROOT, Jitted, Peer, compare, machine, report

GRADIENT, OURS, ONE = "batch gradient", "wpl_jax.empirical_fisher", "grad, one example at a time"
PYTORCH, BACKPACK, KFAC = "PyTorch, batch gradient", "PyTorch, BackPACK", "JAX, kfac-jax"
PEERS = {  # a module of benchmarks/peers, and what that calls it
    PYTORCH: ("torch_fisher", "gradient"),
    BACKPACK: ("torch_fisher", "backpack"),
    KFAC: ("jax_fisher", "kfac-jax"),
}
# kfac-jax knows no recurrent layer nor embedding.
ALL, IN_PYTORCH = (PYTORCH, BACKPACK, KFAC), (PYTORCH, BACKPACK)
MAX_BYTES = inspect.signature(wpl_jax.empirical_fisher).parameters["max_bytes"].default
GOAL = 1.25  # of the time of the better of a batch gradient and one example at a time


class Model(NamedTuple):
    """A network of benchmarks/networks.py, of some sizes."""

    what: str
    network: str
    sizes: dict[str, Any]
    small: dict[str, Any]  # what is less in a small one
    run: bool = True  # or only compile it
    peers: tuple[str, ...] = ()


GPT2 = {"vocabulary": 50_257, "width": 768, "depth": 12, "heads": 12}
NARROW = {"vocabulary": 1_000, "width": 128, "heads": 4}
SMALL = {"vocabulary": 100, "width": 32, "depth": 2, "heads": 2, "steps": 16}
BYTES = {"vocabulary": 256, "width": 64}
MIXTURE = {"vocabulary": 10_000, "width": 512, "depth": 4, "experts": 8}
SMALL_MIXTURE = {"vocabulary": 100, "width": 32, "depth": 1, "experts": 4, "steps": 16}

MODELS = {
    "gpt2": Model(
        "GPT-2 (12 layers of 768), head tied, 128 tokens, unrolled",
        "gpt",
        {"batch": 2, "steps": 128, **GPT2},
        SMALL,
        peers=ALL,
    ),
    "gpt2_scanned": Model(
        "GPT-2, head tied, 128 tokens, scanned",
        "gpt",
        {"batch": 2, "steps": 128, "layers": "scan", **GPT2},
        SMALL,
    ),
    "gpt2_untied": Model(
        "GPT-2, a head of its own, 128 tokens, unrolled",
        "gpt",
        {"batch": 2, "steps": 128, "tied": False, **GPT2},
        SMALL,
    ),
    "gpt_remat": Model(
        "GPT (12 layers of 128, 256 words), 4,096 tokens, scanned and rematerialised",
        "gpt",
        {
            "batch": 2,
            "steps": 4096,
            "layers": "remat",
            "context": 4096,
            "vocabulary": 256,
            "width": 128,
            "depth": 12,
            "heads": 8,
        },
        SMALL,
        run=False,
    ),
    "gpt24": Model(
        "GPT of 24 layers of 128, 64 tokens, unrolled",
        "gpt",
        {"batch": 4, "steps": 64, "depth": 24, **NARROW},
        {**SMALL, "depth": 6},
    ),
    "gpt48": Model(
        "GPT of 48 layers of 128, 64 tokens, unrolled",
        "gpt",
        {"batch": 4, "steps": 64, "depth": 48, **NARROW},
        {**SMALL, "depth": 12},
    ),
    "lora": Model(
        "LoRA of GPT-2 (rank 8 at queries and values), 128 tokens",
        "lora",
        {"batch": 2, "steps": 128, **GPT2},
        SMALL,
    ),
    "lora_merged": Model(
        "LoRA of GPT-2, merged with the weights in the loss",
        "lora",
        {"batch": 2, "steps": 128, "merged": True, **GPT2},
        SMALL,
    ),
    "norm_scales": Model(
        "GPT (6 layers of 384), 64 tokens, only scales of its LayerNorms trained",
        "norms",
        {"batch": 64, "steps": 64, "vocabulary": 5_000, "width": 384, "depth": 6, "heads": 6},
        {**SMALL, "batch": 8},
    ),
    "vit_b16": Model(
        "ViT-B/16, 224 × 224",
        "vit",
        {
            "batch": 8,
            "size": 224,
            "patch": 16,
            "width": 768,
            "depth": 12,
            "heads": 12,
            "classes": 1_000,
        },
        {"size": 32, "patch": 8, "width": 32, "depth": 2, "heads": 2, "classes": 10},
        peers=ALL,
    ),
    "resnet50": Model(
        "ResNet-50, 224 × 224",
        "resnet",
        {"batch": 8, "size": 224, "classes": 1_000, "blocks": (3, 4, 6, 3), "width": 64},
        {"size": 32, "classes": 10, "blocks": (1, 1, 1, 1), "width": 8},
        peers=ALL,
    ),
    "stem": Model(
        "a convolution of 7 × 7 to 64 channels, stride 2, 224 × 224",
        "convolution",
        {"batch": 8, "shape": (224, 224, 3), "features": 64, "window": (7, 7), "strides": (2, 2)},
        {"shape": (32, 32, 3), "features": 8},
        peers=ALL,
    ),
    "patches": Model(
        "a convolution of patches of 32 × 32 to 768 channels, 224 × 224",
        "convolution",
        {
            "batch": 8,
            "shape": (224, 224, 3),
            "features": 768,
            "window": (32, 32),
            "strides": (32, 32),
        },
        {"shape": (64, 64, 3), "features": 8},
        peers=ALL,
    ),
    "taps": Model(
        "a convolution of 512 taps to 32 channels, 16,000 samples",
        "convolution",
        {"batch": 8, "shape": (16_000, 1), "features": 32, "window": (512,), "strides": (1,)},
        {"shape": (256, 1), "features": 4, "window": (64,)},
        peers=ALL,
    ),
    "odd_batch": Model(
        "3c3d, 32 × 32, a prime batch, which no microbatch divides",
        "cnn",
        {"batch": 127},
        {"batch": 5},
        peers=ALL,
    ),
    "lstm": Model(
        "LSTM language model (2 layers of 650), 35 tokens",
        "deep_lstm",
        {"batch": 20, "steps": 35, "vocabulary": 10_000, "units": 650, "depth": 2},
        {"batch": 4, "steps": 8, "vocabulary": 100, "units": 16},
        peers=IN_PYTORCH,
    ),
    "experts_dispatched": Model(
        "mixture of 8 experts (4 layers of 512), 128 tokens, dispatched to 2 each",
        "mixture",
        {"batch": 8, "steps": 128, "how": "dispatched", **MIXTURE},
        SMALL_MIXTURE,
    ),
    "experts_gathered": Model(
        "mixture of 8 experts (2 layers of 128), 64 tokens, weights gathered for each",
        "mixture",
        {"batch": 8, "steps": 64, "how": "gathered", **MIXTURE, "width": 128, "depth": 2},
        SMALL_MIXTURE,
    ),
    "rows": Model(
        "256 rows of 64 looked up by 16,384 tokens",
        "rows",
        {"batch": 2, "steps": 16_384, **BYTES},
        {"steps": 256},
        peers=IN_PYTORCH,
    ),
    "rows_65536": Model(
        "256 rows of 64 looked up by 65,536 tokens",
        "rows",
        {"batch": 2, "steps": 65_536, **BYTES},
        {"steps": 512},
        run=False,
    ),
    "equinox_embedding": Model(
        "Equinox's Embedding of 20,000 × 256 and two Linear under vmap, 64 tokens",
        "equinox_embedding",
        {"batch": 8, "steps": 64, "vocabulary": 20_000, "width": 256},
        {"steps": 8, "vocabulary": 200, "width": 16},
        peers=IN_PYTORCH,
    ),
    "stacked": Model(
        "12 stacked layers of 256, each indexed in fori_loop, 64 tokens",
        "stacked",
        {"batch": 4, "steps": 64, "vocabulary": 1_000, "width": 256, "depth": 12},
        {"steps": 16, "vocabulary": 50, "width": 16, "depth": 3},
    ),
}


# --- The measurement of one model -----------------------------------------------------------------


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
    nll, params, batch = networks.LARGE[model.network](**sizes)
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


# --- Other libraries, in the peers' environment ---------------------------------------------------


class ModelPeer(Peer):
    """As Peer, of the networks that are defined here."""

    server = ("benchmarks.fisher_models", "--peer")


def serve_peer(module: str, case: str, sizes: str) -> None:
    """Add a network to the cases of a module of benchmarks/peers, and serve it."""
    from benchmarks.peers import serve

    network, library = case.split("/")
    peers = importlib.import_module(f"benchmarks.peers.{module}")
    added = {"torch_fisher": TORCH, "jax_fisher": FLAX}[module]
    if network in added:
        peers.NETWORKS[network] = functools.partial(added[network], peers)
    peers.CASES[case] = functools.partial(peers.build, network, library)
    sys.argv[1:] = module, case, sizes
    serve.main()


def torch_gpt(peers, batch, steps, vocabulary, width, depth, heads, tied=True):
    module = peers.Transformer(vocabulary, width, heads, depth, steps)
    if tied:
        module.decoder.weight = module.token.weight
    return module, *peers.text(batch, steps, vocabulary)


def torchvision_models():
    import torch

    try:
        from torchvision import models
    except RuntimeError:  # built for CUDA beside a torch that is not: its operators are not there
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        from torchvision import models
    return models


def torch_vit(peers, batch, size, classes, patch, width, depth, heads):
    vision_transformer = torchvision_models().VisionTransformer
    module = vision_transformer(size, patch, depth, heads, width, 4 * width, num_classes=classes)
    return module.eval(), *peers.images(batch, (3, size, size), classes)


def torch_resnet(peers, batch, size, classes, blocks, width):
    """Torchvision's, as layers that BackPACK knows: sums of branches are a layer of theirs."""
    import backpack

    resnet = torchvision_models().resnet
    if width != 64:
        raise ValueError("torchvision's have a width of 64")
    module = resnet.ResNet(resnet.Bottleneck, blocks, classes).eval()
    for child in module.modules():
        if hasattr(child, "inplace"):
            child.inplace = False
    return backpack.extend(module, use_converter=True), *peers.images(
        batch, (3, size, size), classes
    )


def torch_convolution(peers, batch, shape, features, window, strides, classes=10):
    from torch import nn

    *extent, channels = shape
    layer = {1: nn.Conv1d, 2: nn.Conv2d}[len(extent)]
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d}[len(extent)]
    # As many positions as "SAME" has, or one more.
    padding = [(w - s + 1) // 2 for w, s in zip(window, strides, strict=True)]
    module = nn.Sequential(
        layer(channels, features, tuple(window), tuple(strides), padding),
        nn.ReLU(),
        pool(1),
        nn.Flatten(),
        nn.Linear(features, classes),
    )
    return module, *peers.images(batch, (channels, *extent), classes)


def torch_lstm(peers, batch, steps, vocabulary, units, depth):
    from torch import nn

    layers = [nn.LSTM(units, units, batch_first=True) for _ in range(depth)]
    both = [part for layer in layers for part in (layer, peers.First())]
    module = nn.Sequential(nn.Embedding(vocabulary, units), *both, nn.Linear(units, vocabulary))
    return module, *peers.text(batch, steps, vocabulary)


def torch_rows(peers, batch, steps, vocabulary, width, classes=None):
    from torch import nn

    module = nn.Sequential(
        nn.Embedding(vocabulary, width),
        nn.Linear(width, width, bias=classes is not None),
        nn.Tanh(),
        nn.Linear(width, classes or vocabulary, bias=classes is not None),
    )
    words, labels = peers.text(batch, steps, vocabulary)
    return module, words, labels % (classes or vocabulary)


class Evaluated(NamedTuple):
    """A Flax module whose running averages are constants."""

    module: Any

    def init(self, key, inputs):
        return {"params": self.module.init(key, inputs)["params"]}

    def apply(self, variables, inputs):
        shapes = jax.eval_shape(self.module.init, jax.random.key(0), inputs)["batch_stats"]
        averages = jax.tree_util.tree_map_with_path(
            lambda path, a: jnp.full(a.shape, path[-1].key == "var", a.dtype), shapes
        )
        return self.module.apply({**variables, "batch_stats": averages}, inputs)


def flax_gpt(peers, batch, steps, vocabulary, **sizes):
    return networks.GPT(vocabulary, **sizes), *peers.text(batch, steps, vocabulary)


def flax_vit(peers, batch, size, classes, **sizes):
    images = peers.images(batch, (size, size, 3), classes)
    return networks.ViT(classes=classes, **sizes), *images


def flax_resnet(peers, batch, size, classes, blocks, **sizes):
    images = peers.images(batch, (size, size, 3), classes)
    return Evaluated(networks.ResNet(tuple(blocks), classes=classes, **sizes)), *images


def flax_convolution(peers, batch, shape, features, window, strides, classes=10):
    module = networks.Convolution(features, tuple(window), tuple(strides), classes)
    return module, *peers.images(batch, tuple(shape), classes)


# What the peers' own modules lack.
TORCH = {
    "gpt": torch_gpt,
    "vit": torch_vit,
    "resnet": torch_resnet,
    "convolution": torch_convolution,
    "deep_lstm": torch_lstm,
    "rows": torch_rows,
    "equinox_embedding": functools.partial(torch_rows, classes=100),
}
FLAX = {
    "gpt": flax_gpt,
    "vit": flax_vit,
    "resnet": flax_resnet,
    "convolution": flax_convolution,
}


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
{MAX_BYTES // 2**20} MiB, the default of `max_bytes`. Where times are missing, the model was only
compiled. A dash is what failed, or a library that does not take the model; an empty place is a
library that was not tried."""


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
    if sys.argv[1:2] == ["--peer"]:
        serve_peer(*sys.argv[2:])
    else:
        main()

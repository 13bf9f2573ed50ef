"""Settings that cannot be right, made from every field's type and bounds, in every script."""

import dataclasses
import importlib.util
import shlex
import types
import typing
from pathlib import Path
from typing import Annotated, Literal

import jax
import pytest
import tyro
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments import rank, search_many, spaces, train_many
from experiments.grid.settings import Grid
from experiments.importances.__main__ import Importances
from experiments.report.__main__ import Report
from experiments.two_models.settings import PRESETS
from wpl_jax.settings import Range, Several

OWN = "examples.layers_space:Digits"


def of_task(space, kind):
    return getattr(spaces.find(space), kind)["smoke"]


def scripts():
    """By script and the flags that choose its settings, these, as they are by default."""
    for space in (*spaces.TASKS, OWN):
        for script, kind in {
            "search": "searches",
            "train_final": "finals",
        }.items():
            yield script, ("--space", space, "--preset", "smoke"), of_task(space, kind)
    yield "two_models", (), PRESETS["mnist5k"]["full"]
    yield "two_models", ("--preset", "demo"), PRESETS["mnist5k"]["demo"]
    yield "search_many", ("--out", "a"), search_many.SearchMany(Path("out"))
    yield "train_many", ("--out", "a"), train_many.TrainMany(Path("out"))
    yield "grid", (), Grid()
    yield "importances", (), Importances()
    yield "rank", (), rank.Rank()
    yield "report", (), Report()


SCRIPTS = list(scripts())


def fields(of, prefix="--"):
    """The flags of settings and of those that they hold, and their types."""
    hints = typing.get_type_hints(type(of), include_extras=True)
    for field in dataclasses.fields(of):
        hint, inner = hints[field.name], getattr(of, field.name)
        name = f"{prefix}{field.name.replace('_', '-')}"
        marks = typing.get_args(hint)
        if dataclasses.is_dataclass(inner):
            yield from fields(inner, prefix if tyro.conf.OmitArgPrefixes in marks else f"{name}.")
        else:
            yield "" if tyro.conf.Positional in marks else name, hint


def wrong(hint):
    """Words for a value that the type, or the bounds in it, exclude; and whether bounds do."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        rules = [part for part in parts[1:] if isinstance(part, Range | Several)]
        yield from (out for rule in rules for out in outside(parts[0], rule))
        yield from wrong(parts[0])
    elif kind in (typing.Union, types.UnionType):
        yield from (words for part in parts if part is not types.NoneType for words in wrong(part))
    elif kind is tuple:
        yield from wrong(parts[0])
    elif kind is Literal:
        yield from (["none such"], [""])
    elif hint is Path:
        yield [""]
    elif hint in (int, float):
        yield from (["1x"], [""], ['{"a": [{"b": 1}]}'])
    if hint is int:
        yield from (["nan"], ["0.5"])


def outside(kind, rule):
    if isinstance(rule, Several):
        number = "0.51" if "float" in str(kind) else "1001"
        return [[number, number], *[[]] * rule.least]
    low, high = rule.low, rule.high
    found = [low - 1, -(10**25), high + 1 if high < 1e20 else 10 * high, 10**31]
    if kind is float:
        found += ["nan", "inf", "-inf", "1e400", 1.5 * high, low - 1e-9, *[low / 10] * (low > 0)]
    return [[str(value)] for value in (*found, *[high] * rule.below)]


def as_words(flag, words):
    return (
        (f"{flag}={words[0]}",) if flag and len(words) == 1 else tuple(filter(None, (flag, *words)))
    )


CASES = {  # what spaces have in common, once
    (script, *as_words(flag, words)): (script, (*chosen, *as_words(flag, words)))
    for script, chosen, default in SCRIPTS
    for flag, hint in fields(default)
    for words in wrong(hint)
    if flag or words not in ([], [""])
}


def refusal(script, words, capsys):
    """What a script says to bad input, in a line, before it reads or compiles anything."""
    package = importlib.util.find_spec(f"experiments.{script}").submodule_search_locations
    name = f"experiments.{script}.__main__" if package else f"experiments.{script}"
    code = importlib.import_module(name).main(list(words))
    out, line = capsys.readouterr()
    assert (code, out, line.count("\n")) == (2, "", 1), (words, out, line)
    assert line.startswith(f"{script}: "), line
    return line


@pytest.fixture
def nothing_begins(monkeypatch, tmp_path):
    """No data are read, nothing is compiled, and no folder is made."""

    def heavy(*args, **kwargs):
        pytest.fail("the flags were accepted")

    monkeypatch.chdir(tmp_path)
    for place in ("spaces.read", "running.records.writable_folder", "report.runs.find"):
        monkeypatch.setattr(f"experiments.{place}", heavy)
    monkeypatch.setattr(jax, "jit", heavy)
    yield
    assert not any(tmp_path.iterdir())


def test_every_number_has_bounds():
    """So that no script finds out later than it reads its flags."""

    def bare(hint, bounded=False):
        parts = typing.get_args(hint)
        if typing.get_origin(hint) is Annotated:
            return bare(parts[0], any(isinstance(part, Range) for part in parts[1:]))
        if parts and typing.get_origin(hint) is not Literal:
            return any(bare(part) for part in parts)
        return hint in (int, float) and not bounded

    assert [flag for *_, of in SCRIPTS for flag, hint in fields(of) if bare(hint)] == []


def check(case, capsys):
    script, words = case
    said = refusal(script, words, capsys)
    flag = [word.partition("=")[0] for word in words if word.startswith("--")][-1:]
    assert not flag or flag[0] in said, said


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=st.sampled_from(list(CASES.values())))
def test_a_value_that_cannot_be_right_is_one_line(case, nothing_begins, capsys):
    check(case, capsys)


@pytest.mark.slow
def test_all_values_that_cannot_be_right_are_one_line(nothing_begins, capsys):
    for case in CASES.values():
        check(case, capsys)


TOGETHER = [
    ("search", "--epochs 1000000 --search.architectures 1000000 --search.chunk 1", "--epochs must"),
    ("search", "--search.chunk 3", "--search.chunk must be a divisor"),
    ("search", "--momentum-groups.slope 1", "--momentum-groups.steps must be given"),
    ("search", "--distributed --devices 2", "--devices and --distributed exclude"),
    ("search", "--distributed --coordinator here", "--coordinator must be HOST:PORT"),
    ("search", "--distributed --process-id 0", "--process-id needs --num-processes"),
    ("search", "--distributed --num-processes 2 --process-id 2", "--process-id must be below"),
    (
        "search",
        "--space micro_cnn --cnn.groups 7",
        "--batch-size must be a multiple of --cnn.groups",
    ),
    (
        *("train_final", "--space nas_bench_201 --nas.groups 32 --batch-size 64"),
        "--test-batch-size must be a multiple of --nas.groups",
    ),
    ("search", "--space micro_cnn --learning-rate 1e-5", "--learning-rate-min must be at most"),
    ("search", "--probe-every 1", "--probe-every is for the architectures of --probes"),
    ("two_models", "--stop-at 0.5500001 0.5500002", "--stop-at must be different"),
    ("two_models", "--eval-every 7", "--eval-every must be a divisor of --b-steps (500)"),
    ("train_many", "--out a --first 4294967295 --count 2", "--first must be at most"),
    ("train_many", "--out a '--training-flags=--seed 3'", "--training-flags must not have --seed"),
    ("grid", "--arms a: '--search-flags=--space micro_cnn'", "--search-flags must not have --sp"),
    ("grid", "--arms a: '--search-flags=--no-resume'", "--search-flags must not have --resume"),
    (
        *("grid", "--arms a: --cells '--final-flags=--architecture enas'"),
        "--final-flags must not have --architecture",
    ),
    ("grid", "--arms a: --cells '--final-flags=--out \"a'", "--final-flags must be flags, got"),
    ("grid", "--arms a: --search-flags=--help", "--search-flags must be flags that set something"),
    ("grid", "--arms a: --data-dir b '--search-flags=--data-dir c'", "must not have --data-dir"),
    ("grid", "--arms 'a: --epochs 3 |' --trial-seeds 4", "--trial-seeds must be one or more"),
    ("grid", "--arms a: b: '--search-flags=--seed 3'", "--search-flags must not have --seed"),
    ("grid", "--arms a: 'b: --seed 3'", "--arms and --vary must not have --seed"),
    ("grid", "--vary seed=1,2", "--arms and --vary must not have --seed"),
    ("search_many", "--out a '--search=--strength nan'", "--strength must be at least"),
    ("search_many", "--out a '--search=\"'", "--search must be flags"),
    ("rank", "a a --out b", "must be different"),
]


@pytest.mark.parametrize(("script", "flags", "says"), TOGETHER)
def test_values_that_cannot_be_right_together(script, flags, says, nothing_begins, capsys):
    assert says in refusal(script, shlex.split(flags), capsys)


WITH_DATA = [
    ("search", "--rnn.units 1000000", "--rnn has sizes whose weights and gradients need"),
    ("search", "--batch-size 100000", "lower --batch-size or --length"),
    ("search", "--space micro_cnn --cnn.channels 1000000 --cnn.cells 1000", "--cnn has sizes"),
    ("search", "--space micro_cnn --data flowers", "--data must be mnist5k or"),
    ("search", "--space micro_cnn --batch-size 4000", "--batch-size must be at most"),
    ("search", "--space nas_bench_201 --image-size 9", "--image-size must divide"),
    ("search", "--derive-batches 1000000", "--derive-batches must be at most"),
    (
        "train_final",
        "--architecture random --epochs 1000000 --length 1 --batch-size 1",
        "--epochs must be at most",
    ),
    ("train_final", "--architecture deep.json", "deep.json is not an architecture"),
    ("train_final", "--architecture large.json", "large.json is not an architecture"),
    ("two_models", "--batch-size 1000000", "--batch-size must be at most 3,500"),
    ("two_models", "--eval-images 501", "--eval-images must be at most 500"),
    ("importances", "--images 501", "--images must be at most 500"),
    ("importances", "--memory 1000", "--memory must be at most"),
    ("grid", "--arms a: '--search-flags=--batch-size 100000'", "lower --batch-size"),
    ("grid", "--arms a: '--search-flags=--rnn.units 1000000'", "--rnn has sizes"),
    ("grid", "--arms a: --cells '--final-flags=--rnn.units 1000000'", "--rnn has sizes"),
]


@pytest.mark.parametrize(("script", "flags", "says"), WITH_DATA)
def test_values_that_cannot_be_right_for_the_data(
    script, flags, says, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("deep.json").write_text("[" * 100_000)
    Path("large.json").write_text('{"nodes": [{"activation": "relu", "input": ' + "9" * 25 + "}]}")
    assert says in refusal(script, shlex.split(flags), capsys)

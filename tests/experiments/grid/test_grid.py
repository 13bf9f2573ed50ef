"""A grid as its user meets it: stages, choices, numbers, maps, rankings, resuming, and bad input.

Runs are replaced by ones that write synthetic results at once.
"""

import csv
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import test_rank
from scipy import stats

from experiments import rank, search, spaces, train_final
from experiments.grid import __main__ as grid
from experiments.grid import pictures, report, saved
from experiments.ranking import measuring, probes, statistics, truth
from experiments.running import pool, records
from experiments.spaces import cells

EPOCHS, WARMUP, PROBES = 8, 2, 6
COMMON = f"--epochs {EPOCHS} --warmup-epochs {WARMUP} --learning-rate 1"
ORIGIN = {"versions": {"jax": "0"}, "devices": ["toy"], "machine": "toy", "seconds": 60}


class Ended:
    """A process that has ended."""

    def __init__(self, code):
        self.returncode = code

    def poll(self):
        return self.returncode


class Runs:
    """Stands in for the runs of the scripts; remembers what was launched."""

    def __init__(self, breaking=()):
        self.launched, self.breaking = [], breaking

    def __call__(self, command, log, lock):
        assert command[:2] == [sys.executable, "-m"]
        script = command[2].rpartition(".")[2]
        folder = Path(log.name).parent
        name = f"{script} {folder.parent.name}/{folder.name}"
        self.launched.append(name)
        if name in self.breaking:
            log.write("starting\nsearch: diverged\n")
            log.flush()
            return Ended(1)
        {"search": searched, "rank": ranked, "train_final": trained}[script](command[3:])
        return Ended(0)


def number(config, epoch, name):
    """Synthetic metrics: protected searches forget 2 and not 10, and more if they learn fast."""
    seed, plain = config.seed % 10, config.method == "none"
    if name == "diverged":
        return int(config.strength == 1)
    if epoch < WARMUP:
        return 100.0
    if name == "err2_mean":  # only the end says that strength 100 is better than 10
        late = epoch >= EPOCHS - 2
        return 70.0 + seed + 5.0 * plain + (2.0 if late else 9.0) * (config.strength == 100)
    if name == "tau_within_epoch":
        return None if epoch == WARMUP else 0.5
    scale = {"forgetting_best5": 2, "forgetting_max": 4}.get(name, 1)
    return scale * config.learning_rate * ((10.0 if plain else 2.0) + seed * (1 + plain))


def names_of(config, actions):
    return measuring.names(config.search_space, np.asarray(actions, np.int32))


def probed(config):
    """The places of the probes in the order of all architectures."""
    every = names_of(config, config.search_space.every())
    actions = [cells.random_actions(config.search_space, seed) for seed in range(PROBES)]
    return np.array([every.index(name) for name in names_of(config, actions)])


SIZES = {"micro_cnn": {"image_shape": (28, 28, 1)}}  # what the data decide


def searched(flags):
    config = search.parse(flags)
    config = config.with_space(**SIZES.get(config.space, {}))
    assert flags[-1] == "--resume"
    names = (*saved.METRICS, "reward", "diverged")
    lines = [
        {"epoch": epoch + 1, "seconds": 1.0} | {n: number(config, epoch, n) for n in names}
        for epoch in range(config.epochs)
    ]
    log = "".join(json.dumps(record) + "\n" for record in lines)
    (config.out / "metrics.jsonl").write_text(log)
    if config.probe_every:
        kept, order = probes.Probes(config.search_space, PROBES, 1, 1, None), probed(config)
        for epoch in (4, 8):  # plain search ranks them well at the end, and WPL badly
            errors = order * (1.0 if config.method == "none" else -1.0) * (epoch == 8)
            kept.keep(config.out, epoch, measuring.Measured(errors, -errors))
    error = records.key(spaces.find(config.space).error)
    different = config.method == "wpl" and config.seed != 2  # from what plain search finds
    cell = cells.random_actions(config.search_space, config.seed + 50 * (1 + different))
    cell = config.search_space.to_json(config.search_space.decode(cell))
    (config.out / "best.json").write_text(json.dumps(cell))
    if config.probes:  # shared weights of WPL rank random cells rightly, those of others wrongly
        sign = 1 if config.method == "wpl" else -1
        errors = [{"seed": s, error: 100.0 + sign * s} for s in range(config.probes)]
        if config.seed == 2 and config.method == "none":  # in an order of its own
            errors[0][error], errors[1][error] = 99.0, 100.0
        (config.out / "probes.json").write_text(json.dumps(errors))
    summary = ORIGIN | {
        f"best_{error}": 50.0 + config.seed,
        "epochs": config.epochs,
        "configuration": config.essential()
        | {"probes": config.probes, "probe_every": config.probe_every},
    }
    (config.out / "summary.json").write_text(json.dumps(summary))


def trained(flags):
    config, cell = train_final.read_architecture(train_final.parse(flags))
    config = config.with_space(**SIZES.get(config.space, {}))
    name, _, seed = config.out.name.rpartition("_")
    alone = {"plain": 70.0, "WPL": 60.0, "random": 80.0}.get(name, 75.0)
    error = alone + 2 * int(seed) + (name == "WPL" and seed == "1")
    key = records.key(spaces.find(config.space).error)
    summary = ORIGIN | {
        f"validation_{key}": error,
        f"test_{key}": error + 1,
        "parameters": 1000 + int(seed),
        "architecture": config.search_space.to_json(cell),
        "epochs": config.epochs,
        "configuration": train_final.settings(config),
    }
    (config.out / "summary.json").write_text(json.dumps(summary))


def ranked(flags):
    config = rank.command_line.read(rank.Rank(), flags, prog="", description=None)
    (folder,) = config.runs
    left = json.loads((folder / "summary.json").read_text())["configuration"]
    tau = 0.1 * left["seed"] + 0.2 * (left["method"] == "none")

    def statistic(value):
        return {n: {"value": value, "low": 0, "high": 1} for n in statistics.STATISTICS}

    found = {
        "orders": {
            "error rate": statistic(tau),
            "cross-entropy": statistic(-tau),
            "random choice": statistic(0.0),
        },
        "search": {k: v for k, v in left.items() if k not in ("probes", "probe_every")},
        "trained": EPOCHS * left["search"]["architectures"],
        "batches": config.batches,
        "truth": str(config.truth),
        "true_accuracies": truth.digest(truth.read(config.truth, config.column)),
        "column": config.column,
        "average_isomorphic": config.average_isomorphic,
    }
    (folder / "rank.json").write_text(json.dumps(found))


drawn = pictures.drawn


def run(folder, monkeypatch, runs, *more, draw=False):
    if not draw:
        monkeypatch.setattr(pictures, "drawn", lambda saved: {})
    monkeypatch.setattr(pool, "launch", runs)
    monkeypatch.setattr(pool.time, "sleep", lambda seconds: None)
    places = ["--out", str(folder / "report"), "--runs", str(folder / "runs")]
    return grid.main([f"--search-flags={COMMON}", *places, *more])


def summary_in(folder):
    return json.loads((folder / "report" / "summary.json").read_text())


def page_in(folder):
    return (folder / "report" / "report.md").read_text()


def files(folder):
    return {path.name for path in folder.iterdir()}


# --- Arms that choose -----------------------------------------------------------------------------

COMPARED = ["--seeds", "3", "--trial-seeds", "10", "11", "--arms", "plain: --method none"]
COMPARED += ["WPL: " + " | ".join(f"--method wpl --strength {s}" for s in (10, 100, 1))]
COMPARED += ["L2 anchor: --method l2 --strength 100"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    return run_and_draw(tmp_path_factory, *COMPARED)


def run_and_draw(tmp_path_factory, *flags):
    """The folder of a grid that has been drawn, and what it has launched."""
    folder, runs = tmp_path_factory.mktemp("grid"), Runs()
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(folder, monkeypatch, runs, *flags, draw=True) == 0
    return folder, runs


def test_every_run_is_launched_once_stage_after_stage(compared):
    assert compared[1].launched == [
        *(f"search trial/WPL_{i}_{seed}" for i in (1, 2, 3) for seed in (10, 11)),
        *(f"search search/{a}_{s}" for s in range(3) for a in ("plain", "WPL_1", "L2_anchor")),
    ]


def test_each_arm_has_its_own_best_flags(compared):
    _, wpl, _ = summary_in(compared[0])["arms"]
    assert wpl["chosen"] == 0
    assert [candidate["err2"] for candidate in wpl["candidates"]] == [
        *([70, 71], [72, 73]),
        [None, None],  # of strength 1, architectures have diverged
    ]
    page = page_in(compared[0])
    assert "| WPL | `--method wpl --strength 10` | 70.0, 71.0 | 70.50 ± 6.35 | chosen |" in page
    assert "| WPL | `--method wpl --strength 1` | –, – | failed or diverged |  |" in page
    assert "the last quarter of the epochs" in page and "seeds 10, 11" in page
    stored = json.loads((compared[0] / "runs/search/WPL_1_2/summary.json").read_text())
    assert stored["configuration"]["strength"] == 10


@pytest.mark.parametrize(
    ("second", "warmup"),
    [("--method none --learning-rate 2", 0), ("--method wpl --warmup-epochs 1", 1)],
)
def test_the_epochs_that_count_are_those_in_which_every_arm_holds(
    second, warmup, tmp_path, monkeypatch
):
    """In all arms the same; all, where none holds anything, whatever its warm-up."""
    arms = ["--seeds", "3", "--arms", "a: --method none --warmup-epochs 5", f"b: {second}"]
    assert run(tmp_path, monkeypatch, Runs(), *arms) == 0
    for arm in summary_in(tmp_path)["arms"]:
        log = (tmp_path / f"runs/search/{arm['name']}_1/metrics.jsonl").read_text().splitlines()
        errors = [json.loads(line)["err2_mean"] for line in log]
        assert len(errors) == EPOCHS and len(set(errors)) > 1
        mean = arm["numbers"]["after_warmup/err2_mean"]["seeds"][1]
        np.testing.assert_allclose(mean, np.mean(errors[warmup:]))
    said = "after a warm-up of 1, in" if warmup else "Means are over all epochs."
    assert said in page_in(tmp_path)


def test_a_number_that_an_earlier_version_did_not_measure_is_left_out(tmp_path, monkeypatch):
    arms = ["--seeds", "2", "--arms", "a: --method none", "b: --method none --learning-rate 2"]
    assert run(tmp_path, monkeypatch, Runs(), *arms) == 0
    assert "| err2, median |" in page_in(tmp_path)
    log = tmp_path / "runs/search/b_1/metrics.jsonl"
    early = [json.loads(line) for line in log.read_text().splitlines()]
    early = [{n: v for n, v in record.items() if n != "err2_median"} for record in early]
    log.write_text("".join(json.dumps(record) + "\n" for record in early))
    assert run(tmp_path, monkeypatch, Runs(), *arms) == 0
    assert "| err2 |" in page_in(tmp_path) and "median" not in page_in(tmp_path)


def test_the_numbers_are_those_computed_by_hand(compared):
    plain, wpl, l2 = summary_in(compared[0])["arms"]
    assert plain["numbers"]["after_warmup/forgetting_best5"]["seeds"] == [20, 24, 28]
    assert wpl["numbers"]["last_epoch/forgetting_max"]["mean"] == 12
    assert l2["numbers"]["after_warmup/err2_mean"]["mean"] == pytest.approx(
        71 + (4 * 9 + 2 * 2) / 6
    )
    assert l2["numbers"]["last_epoch/err2_mean"]["mean"] == 73
    assert plain["numbers"]["after_warmup/tau_within_epoch"]["seeds"] == [0.5] * 3
    assert plain["differences"] == {}
    difference = wpl["differences"]["after_warmup/forgetting_mean"]
    assert difference["seeds"] == [-8, -9, -10]  # paired
    half = 4.3026527 / np.sqrt(3)
    np.testing.assert_allclose([difference["low"], difference["high"]], [-9 - half, -9 + half])
    np.testing.assert_allclose(difference["detectable"], 5.653489 / np.sqrt(3), rtol=1e-5)
    assert summary_in(compared[0])["seconds"] == 60 * 15


def test_the_report_says_what_was_run_and_how_arms_differ(compared):
    page = page_in(compared[0])
    assert "nan" not in page and "None" not in page
    assert "- **forgetting, mean**, less that of plain: WPL −9.00 ± 2.48; L2 anchor −9.00" in page
    assert "| WPL | **−9.0 ± 2.5** (3.3) | **−5.0 ± 0.0** (0.0) | **−9.0 ± 2.5** (3.3)" in page
    assert "| L2 anchor | 3 | **3.0 ± 2.5** | 77.7 ± 2.5 | **3.0 ± 2.5** | **3.00 ±" in page
    assert f"`--space rnn --preset smoke {COMMON}` and those of the arm, and the seeds 0 to" in page
    assert "8 epochs of 8 architectures" in page and "15 searches, 0:15:00 of training" in page
    for name in re.findall(r"\]\(([^)]+)\)", page):
        assert (compared[0] / "report" / name).exists()


def test_everything_promised_is_written_and_drawn_anew_from_it(compared, tmp_path, capsys):
    names = {"seeds_forgetting_mean", "seeds_err2_mean", "forgetting", "err2_against_forgetting"}
    assert files(compared[0] / "report") == {
        *("summary.json", "curves.npz", "report.md"),
        *(f"{name}.{suffix}" for name in names for suffix in ("png", "pdf")),
    }
    shutil.copytree(compared[0] / "report", tmp_path / "moved")
    before = {path: path.read_bytes() for path in (tmp_path / "moved").iterdir()}
    for path in before:
        if path.suffix in (".md", ".png", ".pdf"):
            path.unlink()
    assert report.main([str(tmp_path / "moved")]) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "moved").iterdir()} == before
    assert "forgetting.png" in capsys.readouterr().out


def test_every_arm_has_its_colour_and_every_seed_is_seen(compared):
    grid_of = saved.read(compared[0] / "report")
    colors = pictures.colors(grid_of)
    assert len(set(colors.values())) == 3
    figures = drawn(grid_of)
    (ax,) = figures["seeds_forgetting_mean"].axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["plain", "WPL", "L2 anchor"]
    seeds = [line.get_xdata().tolist() for line in ax.lines if len(line.get_xdata()) == 3]
    assert seeds == [[10, 12, 14], [2, 3, 4], [2, 3, 4]]
    lines = figures["forgetting"].axes[0].lines
    np.testing.assert_array_equal(lines[1].get_ydata()[WARMUP:], np.full(EPOCHS - WARMUP, 3))
    assert lines[1].get_color() == colors["WPL"]


def test_what_has_finished_is_not_run_again_and_what_fails_is_left_out(
    compared, tmp_path, monkeypatch, capsys
):
    shutil.copytree(compared[0] / "runs", tmp_path / "runs")
    for name in ("plain_1", "WPL_1_0", "L2_anchor_2"):
        (tmp_path / "runs" / "search" / name / "summary.json").unlink()
    runs = Runs(breaking=("search search/plain_1",))
    assert run(tmp_path, monkeypatch, runs, *COMPARED) == 1
    assert runs.launched == [f"search search/{n}" for n in ("WPL_1_0", "plain_1", "L2_anchor_2")]
    log = tmp_path / "runs/search/plain_1/log.txt"
    line = f"search/plain_1: exit code 1, search: diverged ({log})"
    assert f"failed: {line}" in capsys.readouterr().err.splitlines()
    summary = summary_in(tmp_path)
    assert summary["failed"] == [line]
    plain, wpl, _ = summary["arms"]
    assert plain["runs"] == 2
    assert plain["numbers"]["after_warmup/forgetting_mean"]["seeds"] == [10, None, 14]
    assert wpl["differences"]["after_warmup/forgetting_mean"]["seeds"] == [-8, None, -10]
    page = page_in(tmp_path)
    assert f"missing below:**\n\n- {line}" in page and "nan" not in page


@pytest.mark.parametrize("how", ["arms", "vary"])
def test_arms_may_read_their_data_otherwise(how):
    flags = {
        "arms": ["--arms", *(f"a{n}: --rnn.vocabulary {n}" for n in (100, 300))],
        "vary": ["--vary", "rnn.vocabulary=100,300"],
    }[how]
    plan = grid.plan_of(grid.parse([*flags, "--seeds", "2"]))
    assert [settings.rnn.vocabulary for (settings,) in plan.settings.values()] == [100, 300]
    (few,), (many,) = plan.data.values()
    assert few.known_by != many.known_by


def test_flags_to_choose_from_can_be_added(compared, tmp_path, monkeypatch):
    shutil.copytree(compared[0] / "runs", tmp_path / "runs")
    runs = Runs()
    more = [*COMPARED[:-2], f"{COMPARED[-2]} | --method wpl --strength 20", COMPARED[-1]]
    assert run(tmp_path, monkeypatch, runs, *more) == 0
    assert runs.launched == ["search trial/WPL_4_10", "search trial/WPL_4_11"]


def test_an_arm_none_of_whose_flags_can_be_chosen_is_left_out(tmp_path, monkeypatch):
    arms = ["--arms", "plain: --method none", "WPL: --strength 1 --length 5 | --strength 1"]
    assert run(tmp_path, monkeypatch, Runs(), "--seeds", "2", *arms) == 1
    _, wpl = summary_in(tmp_path)["arms"]
    assert (wpl["chosen"], wpl["runs"]) == (None, 0)
    assert "- WPL: no flags can be chosen: with each, a search failed or div" in page_in(tmp_path)
    assert "| WPL | 0 | – |" in page_in(tmp_path)


def test_without_a_search_there_is_no_report(tmp_path, monkeypatch, capsys):
    runs = Runs(breaking=[f"search search/{name}_{seed}" for name in "ab" for seed in "01"])
    flags = ["--seeds", "2", "--arms", "a: --method none", "b: --method wpl"]
    assert run(tmp_path, monkeypatch, runs, *flags) == 1
    assert "grid: no search has finished: search/a_0: exit code 1" in capsys.readouterr().err
    assert files(tmp_path / "report") == set()


# --- Maps -----------------------------------------------------------------------------------------

METHODS = ["--arms", "plain: --method none", "WPL: --method wpl --strength 10"]


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("map")
    vary = ["--vary", "learning-rate=0.5,1,2", "--vary", "search.batches=3,4"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(folder, monkeypatch, Runs(), *vary, *METHODS, "--seeds", "1") == 0
    return folder


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_a_map_has_a_panel_a_method_and_a_cell_a_regime(mapped):
    figures = drawn(saved.read(mapped / "report"))
    assert list(figures) == [
        *(f"map_forgetting_{kind}" for kind in ("mean", "best5", "max")),
        *("map_err2_mean", "map_tau_within_epoch", "forgetting"),
    ]
    plain, wpl, _ = figures["map_forgetting_mean"].axes
    assert [ax.get_title() for ax in (plain, wpl)] == ["plain", "WPL"]
    assert (plain.get_xlabel(), plain.get_ylabel()) == ("search.batches", "learning-rate")
    assert [label.get_text() for label in plain.get_yticklabels()] == ["0.5", "1", "2"]
    assert texts(plain) == ["5.0", "5.0", "10.0", "10.0", "20.0", "20.0"]
    assert texts(wpl) == ["1.0", "1.0", "2.0", "2.0", "4.0", "4.0"]
    titles = [ax.get_title() for ax in figures["forgetting"].axes]
    assert len(titles) == 6 and titles[1] == "learning-rate=0.5\nsearch.batches=4"


def test_differences_are_from_the_first_arm_at_the_same_place(mapped):
    arms = {arm["name"]: arm for arm in summary_in(mapped)["arms"]}
    of = arms["WPL, learning-rate=2, search.batches=3"]["differences"]
    assert of["after_warmup/forgetting_mean"] == {
        **{"mean": -16, "low": None, "high": None, "n": 1},
        **{"seeds": [-16], "detectable": None},
    }
    page = page_in(mapped)
    assert "±" not in page and "Numbers are those of one seed" in page
    assert "of `--learning-rate` (0.5, 1, 2) and `--search.batches` (3, 4)" in page
    assert "is trained on 3 to 4 batches" in page
    assert "**: plain from 5.00 (learning-rate=0.5, search.batches=3) to 20.00 (learning-" in page


@pytest.mark.parametrize(
    ("vary", "titles", "rows"),
    [
        (["sampler=uniform,fair"], [""], ["plain", "WPL"]),
        (
            ["learning-rate=1,2", "search.batches=3,4", "sampler=uniform,fair"],
            [f"{m}, sampler={s}" for s in ("uniform", "fair") for m in ("plain", "WPL")],
            ["1", "2"],
        ),
    ],
)
def test_maps_of_one_and_of_three_axes(vary, titles, rows, tmp_path, monkeypatch):
    flags = [part for axis in vary for part in ("--vary", axis)]
    assert run(tmp_path, monkeypatch, Runs(), *flags, *METHODS, "--seeds", "2") == 0
    grid_of = saved.read(tmp_path / "report")
    measure = grid_of.measure("after_warmup", "forgetting_mean")
    *panels, _ = pictures.map_of(grid_of, measure, "forgetting").axes
    assert [ax.get_title() for ax in panels] == titles
    assert [label.get_text() for label in panels[0].get_yticklabels()] == rows
    places = 2 ** len(vary)
    assert f"WPL lower at {places} of {places} places." in page_in(tmp_path)


def test_one_search_at_several_places_has_no_reference(tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch, Runs(), "--vary", "method=none,wpl", "--seeds", "2") == 0
    assert not any(arm["differences"] for arm in summary_in(tmp_path)["arms"])
    assert "- **err2**: from 70.5 (method=wpl) to 75.5 (method=none).\n" in page_in(tmp_path)
    figures = drawn(saved.read(tmp_path / "report"))
    assert len(figures["map_err2_mean"].axes[0].get_yticklabels()) == 1
    assert len(figures["seeds_err2_mean"].axes[0].get_yticklabels()) == 2


# --- Rankings -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth_file(tmp_path_factory):
    """The accuracies of the toy space, of which the first architectures are the best."""
    config = test_rank.RankedDigits.searches["smoke"]
    names = names_of(config, config.search_space.every())
    path = tmp_path_factory.mktemp("truth") / "truth.csv"
    with path.open("w", newline="") as file:
        rows = ([name, 90 - i] for i, name in enumerate(names))
        csv.writer(file).writerows([["architecture", "toy_accuracy"], *rows])
    return path


@pytest.fixture(scope="module")
def judged(tmp_path_factory, truth_file):
    folder, runs = tmp_path_factory.mktemp("ranked"), Runs()
    flags = ["--space", "test_rank:RankedDigits", *METHODS, "--seeds", "2", "--rank-batches", "3"]
    flags += ["--truth", str(truth_file), f"--search-flags={COMMON} --probes 6 --probe-every 4"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(folder, monkeypatch, runs, *flags, draw=True) == 0
    return folder, runs, flags


def test_all_architectures_are_ranked_after_the_searches(judged):
    folder, runs, _ = judged
    names = [f"search/{name}_{seed}" for seed in "01" for name in ("plain", "WPL")]
    assert runs.launched == [*(f"search {n}" for n in names), *(f"rank {n}" for n in names)]
    plain, wpl = summary_in(folder)["arms"]
    assert plain["numbers"]["error rate/kendall"]["seeds"] == pytest.approx([0.2, 0.3])
    assert wpl["numbers"]["cross-entropy/regret"]["seeds"] == pytest.approx([0, -0.1])
    assert wpl["differences"]["error rate/spearman"]["mean"] == pytest.approx(-0.2)
    baselines = summary_in(folder)["baselines"]
    assert list(baselines) == ["random choice"] and baselines["random choice"]["kendall"] == 0
    page = page_in(folder)
    assert "- **Kendall's τ of all architectures, by error rate**, less that of plain: WPL" in page
    assert "| plain | 2 | **0.250 ± 0.635** |" in page and "| random choice |  | 0.000 |" in page
    there = files(folder / "report")
    assert {"seeds_kendall_error_rate.png", "seeds_kendall_cross-entropy.png"} <= there


def test_probes_are_judged_over_epochs(judged):
    folder, _, _ = judged
    grid_of = saved.read(folder / "report")
    assert grid_of.curves["plain/probe_epoch"].tolist() == [4, 8]
    np.testing.assert_allclose(grid_of.curves["plain/tau_error"], [[0, 1]] * 2)
    np.testing.assert_allclose(grid_of.curves["WPL/tau_error"], [[0, -1]] * 2)
    np.testing.assert_allclose(grid_of.curves["WPL/tau_loss"], [[0, 1]] * 2)
    assert {"tau_error_rate.png", "tau_cross-entropy.png"} <= files(folder / "report")
    assert "that of the 6 probes" in page_in(folder)


@pytest.mark.parametrize(
    ("changed", "launched"), [([], 0), (["--rank-batches", "2"], 4), (["--average-isomorphic"], 4)]
)
def test_rankings_are_done_again_where_they_are_others(
    changed, launched, judged, tmp_path, monkeypatch
):
    shutil.copytree(judged[0] / "runs", tmp_path / "runs")
    runs = Runs()
    assert run(tmp_path, monkeypatch, runs, *judged[2], *changed) == 0
    assert len(runs.launched) == launched
    assert all(name.startswith("rank ") for name in runs.launched)


def test_rankings_are_done_again_where_the_truth_has_changed_in_its_place(
    judged, truth_file, tmp_path, monkeypatch
):
    shutil.copytree(judged[0] / "runs", tmp_path / "runs")
    before = truth_file.read_text()
    lines = before.splitlines()
    name, _, accuracy = lines[1].rpartition(",")
    try:
        truth_file.write_text("\n".join([lines[0], f"{name},{float(accuracy) / 2}", *lines[2:]]))
        runs = Runs()
        assert run(tmp_path, monkeypatch, runs, *judged[2]) == 0
    finally:
        truth_file.write_text(before)
    assert len(runs.launched) == 4


# --- What cannot work -----------------------------------------------------------------------------


LAYERS = ["--space", "examples.layers_space:Digits", "--cells", "--random-cells", "2"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "3"], "--arms or --vary must say what to compare"),
        (["--seeds", "1", *METHODS], "--seeds must be at least 2, for intervals, got 1; 1 is for"),
        (["--seeds", "0", *METHODS], "--seeds must be at least 1, got 0"),
        (["--jobs", "0", *METHODS], "--jobs must be at least 1, got 0"),
        (["--average-isomorphic", *METHODS], "--column and --average-isomorphic need --truth"),
        ([*COMPARED, "--trial-seeds", "2"], "--trial-seeds must be one or more"),
        (
            [*COMPARED, "--trial-seeds", "7", "7"],
            "--trial-seeds must be different, got (7, 7)",
        ),
        (["--arms", "a:", "a: --method wpl"], "--arms must have different names, got a, a"),
        (
            ["--arms", "a: --strength 1 | --strength 10", "a 1: --strength 3"],
            "the names of the arms a and a 1 are too much alike",
        ),
        (["--arms", f"{'a' * 300}:", "b:"], "the name of the arm aaaaaaaaaaaaaaaaaaaa… must be sh"),
        (["--arms", "a: --x '", "b:"], '--arms must be flags, got " --x \'": No closing quotation'),
        (["--arms", "a: --help", "b:"], "--arms must be flags that set something, got ' --help'"),
        (["--vary", "epochs='1"], '--vary must be flags, got "\'1": No closing quotation'),
        (
            ["--vary", "learning-rate=0.1,0.10"],
            "learning-rate=0.1 and learning-rate=0.10 are the same settings: leave one",
        ),
        (
            ["--arms", "a: --strength 10 | --strength 1e1", "b:"],
            "the arm a has the same settings twice to choose from",
        ),
        (["--arms", "a:", "b: --strenth 3"], "the arm b: Unrecognized options: --strenth, 3; did"),
        (["--arms", "a:", "b: --strength 0"], "the arm b: --strength must be at least 1e-30"),
        (["--arms", "a: --space micro_cnn", "b:"], "the arm a: --space must be that of all, rnn"),
        (["--arms", "a: --epochs 2", "b:"], "--epochs must be more than the 2 of the warm-up, got"),
        (
            ["--vary", "search.batches=3,999"],
            "the arm search.batches=999: --search.batches must be",
        ),
        (["--vary", "sampler=uniform,distinct"], "Distinct needs distinct of the space"),
        (
            ["--arms", "a:", "--cells", "--final-flags=--batch-size 99999"],
            "--final-flags: 62,847 tokens do not fill one window of length 20 in each of 99,999",
        ),
        (
            ["--arms", "a: --layers.layers 2", *LAYERS],
            "--final-flags: --layers must have the sizes that it has in the arm a,",
        ),
        (
            ["--arms", "a:", "b: --layers.kernels 5", *LAYERS],
            "--final-flags: --layers must have the sizes that it has in the arm b,",
        ),
        (["--arms", "a:", "b:", "--space", "nowhere"], "--space must be one of rnn"),
        (["--arms", "a:", "b:", "--truth", "nothing.csv"], "nothing.csv"),
        (["--arms", "a:", "b:", "--truth", "{truth}"], "--truth needs a space that has every()"),
        (["--seedz", "3"], "Unrecognized options: --seedz, 3; did you mean --seeds?"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_runs(
    flags, message, tmp_path, monkeypatch, truth_file, capsys
):
    runs = Runs()
    flags = [flag.format(truth=truth_file) for flag in flags]
    assert run(tmp_path, monkeypatch, runs, *flags) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("grid: ") and message in said.err
    assert runs.launched == [] and not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rank-batches", "99"], "--rank-batches must be at most 6, all the validation batches"),
        (["--truth", "{tmp}/other.csv"], "1 architectures that the space has not, as 'here'"),
    ],
)
def test_a_ranking_that_cannot_work_is_one_line(
    flags, message, judged, tmp_path, monkeypatch, capsys
):
    (tmp_path / "other.csv").write_text("architecture,toy_accuracy\nhere,10\n")
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    assert run(tmp_path, monkeypatch, Runs(), *judged[2], *flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        *(None, "", "{", "{}", "[]", "null", '{"configuration": {}}', '{"configuration": null}'),
        '{"configuration": {"grid": {"seeds": 2}}, "arms": []}',
        '{"configuration": {"grid": {"seeds": 2}}, "arms": [{"name": "a", "runs": 1}]}',
    ],
)
def test_a_folder_without_a_grid_is_said_in_a_line(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
        np.savez(tmp_path / "curves.npz", epochs=np.arange(3))
    assert report.main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"report: {tmp_path} must hold summary.json") and said.count("\n") == 1


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:200], lambda b: b"text"])
def test_damaged_curves_are_said_in_a_line(damage, compared, tmp_path, capsys):
    for name in ("summary.json", "curves.npz"):
        (tmp_path / name).write_bytes((compared[0] / "report" / name).read_bytes())
    (tmp_path / "curves.npz").write_bytes(damage((tmp_path / "curves.npz").read_bytes()))
    assert report.main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"report: {tmp_path} must hold summary.json") and said.count("\n") == 1


@pytest.mark.parametrize("content", ['{"configuration": null}', '{"configuration": {"grid": 3}}'])
def test_a_report_is_not_written_over_something_else(content, tmp_path, monkeypatch, capsys):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "summary.json").write_text(content)
    assert run(tmp_path, monkeypatch, Runs(), *METHODS) == 2
    assert "holds other results: choose another --out" in capsys.readouterr().err


def test_help_is_in_plain_words(capsys):
    with pytest.raises(SystemExit) as end:
        grid.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m experiments.grid ") and "--vary" in said


# --- Cells ----------------------------------------------------------------------------------------

TRAINED = ["--seeds", "3", "--cells", "--random-cells", "4", "--final-flags=--epochs 2"]
TRAINED += ["--arms", "plain: --method none --probes 4", "WPL: --method wpl --probes 4"]


@pytest.fixture(scope="module")
def with_cells(tmp_path_factory):
    return run_and_draw(tmp_path_factory, *TRAINED)


def test_found_random_and_published_cells_are_trained(with_cells):
    launched = [name for name in with_cells[1].launched if name.startswith("train_final ")]
    published = [path.stem for path in sorted(spaces.find("rnn").cells().values())]
    names = [f"{arm}_{seed}" for seed in range(3) for arm in ("plain", "WPL")]
    names.remove("WPL_2")  # the cell that plain_2 has found
    names += [f"random_{seed}" for seed in range(4)]
    names += [f"{name}_{seed}" for name in published for seed in range(3)]
    assert launched == [f"train_final final/{name}" for name in names]
    final = json.loads((with_cells[0] / "runs/final/WPL_1/summary.json").read_text())
    found = json.loads((with_cells[0] / "runs/search/WPL_1/best.json").read_text())
    assert final["architecture"] == found and final["epochs"] == 2


def test_cells_are_compared_with_each_other_and_with_random_ones(with_cells):
    summary, page = summary_in(with_cells[0]), page_in(with_cells[0])
    plain, wpl = (arm["numbers"] for arm in summary["arms"])
    assert plain["cells/test"]["seeds"] == [71, 73, 75] and plain["cells/search"]["mean"] == 51
    assert wpl["cells/test"]["seeds"] == [61, 64, 75]
    assert (plain["cells/tau"]["seeds"][0], wpl["cells/tau"]["mean"]) == (-1, 1)
    random = next(cell for cell in summary["cells"]["others"] if cell["name"] == "random")
    assert random["runs"] == 4 and random["cells/test"]["mean"] == 84
    assert summary["arms"][1]["differences"]["cells/test"]["seeds"] == [-10, -9, 0]
    best = saved.read(with_cells[0] / "report").best["WPL"]
    assert best["seed"] == 0 and best["test"] == 61
    for of in summary["cells"]["found"]:
        there = with_cells[0] / "runs/search" / f"{of['arm']}_{of['seed']}" / "best.json"
        kept = with_cells[0] / "report/cells" / of["file"]
        assert json.loads(kept.read_text()) == json.loads(there.read_text())
    assert "| − random | validation | test |" in page and "with the flags `--space rnn" in page
    welch = stats.ttest_ind([61, 64, 75], [81, 83, 85, 87], equal_var=False).confidence_interval()
    half = (welch.high - welch.low) / 2
    assert f"WPL −17.33 ± {half:.2f}" in page and "less that of 4 random cells" in page
    assert "nan" not in page and "None" not in page
    assert (with_cells[0] / "report" / "best_cells.png").exists()
    for name in re.findall(r"\]\(([^)]+)\)", page):
        assert (with_cells[0] / "report" / name).exists()
    assert summary["seconds"] == 60 * len(with_cells[1].launched)
    assert "6 searches and 15 trainings from scratch, 0:21:00 of training in all" in page


def test_a_training_that_is_shared_is_the_one_that_is_there(with_cells, tmp_path, monkeypatch):
    """Whichever arm has found its cell first, and what fails is left out."""
    shutil.copytree(with_cells[0] / "runs", tmp_path / "runs")
    shutil.move(tmp_path / "runs/final/plain_2", tmp_path / "runs/final/WPL_2")
    (tmp_path / "runs/final/enas_1/summary.json").unlink()
    runs = Runs(breaking=["train_final final/enas_1"])
    assert run(tmp_path, monkeypatch, runs, *TRAINED) == 1
    assert runs.launched == ["train_final final/enas_1"]
    others = {cell["name"]: cell["runs"] for cell in summary_in(tmp_path)["cells"]["others"]}
    assert others["enas"] == 2
    plain, wpl = summary_in(tmp_path)["arms"]
    assert plain["numbers"]["cells/test"]["seeds"][2] == wpl["numbers"]["cells/test"]["seeds"][2]
    assert "nan" not in page_in(tmp_path)


def test_what_differs_from_the_published_settings_is_said(with_cells):
    page = page_in(with_cells[0])
    assert "| `search --learning-rate` | 1 | 20 |" in page
    assert "| `search --method` | none, wpl | wpl |" in page  # and the sampler is the published
    assert "--sampler` |" not in page and "--controller.steps` | 50 | 2,000 |" in page
    assert "--replay" not in page and "--momentum-groups" not in page
    assert "| `train_final --epochs` | 2 | 500 |" in page
    assert "tell 500 words apart; all others are one" in page


def test_cells_are_drawn_anew_and_those_of_earlier_commands_go(with_cells, tmp_path, monkeypatch):
    shutil.copytree(with_cells[0], tmp_path / "moved")
    best = tmp_path / "moved/report/best_cells.png"
    before = best.read_bytes()
    best.unlink()
    assert report.main([str(tmp_path / "moved/report")]) == 0
    assert best.read_bytes() == before
    fewer = ["2" if flag == "3" else flag for flag in TRAINED]
    assert run(tmp_path / "moved", monkeypatch, Runs(), *fewer) == 0
    there = files(tmp_path / "moved/report/cells")
    assert there == {f"{arm}_{seed}.json" for arm in ("plain", "WPL") for seed in range(2)}


def test_cells_of_other_sizes_and_for_images_are_drawn(tmp_path, monkeypatch):
    flags = ["--seeds", "2", "--cells", "--random-cells", "2", "--arms", "plain: --method none"]
    images = ["--space", "micro_cnn", *flags, "--search-flags=--epochs 3 --cnn.nodes 3"]
    assert run(tmp_path / "images", monkeypatch, Runs(), *images, draw=True) == 0
    assert "| test (%) |" in page_in(tmp_path / "images")
    assert "Images: 3,500 (train), 500 (validation), 1,000 (test)" in page_in(tmp_path / "images")
    found = drawn(saved.read(tmp_path / "images/report"))["best_cells"]
    titles = " ".join(
        text.get_text() for text in found.findobj(match=lambda a: hasattr(a, "get_text"))
    )
    assert "normal" in titles and "reduction" in titles


def test_cells_of_another_size_are_drawn_as_they_were_trained(tmp_path, monkeypatch):
    flags = [f"--{script}-flags=--epochs 3 --layers.layers 2" for script in ("search", "final")]
    flags = [*LAYERS, "--seeds", "2", "--arms", "plain: --method none", *flags]
    assert run(tmp_path, monkeypatch, Runs(), *flags) == 0
    (panel,) = pictures.best_cells(saved.read(tmp_path / "report")).axes
    assert sum("kernel" in text.get_text() for text in panel.texts) == 2


def test_how_far_seeds_agree_takes_no_truth(with_cells):
    plain, wpl = (arm["numbers"]["probes/agreement"] for arm in summary_in(with_cells[0])["arms"])
    assert wpl["seeds"] == [1, 1, 1]
    other = 1 - 2 / 6  # one of the six pairs of four is in the other order
    np.testing.assert_allclose(plain["seeds"], [(1 + other) / 2] * 2 + [other])
    assert "| agreement of seeds | minutes |" in page_in(with_cells[0])


def test_what_a_method_takes_off_is_said_for_the_mean_and_for_the_best_epoch(with_cells):
    """Plain search forgets 10, 12 and 14, and WPL 2, 3 and 4, in every epoch after the warm-up."""
    published = spaces.find("rnn").published["forgetting_mean"]
    page = page_in(with_cells[0])
    assert "| WPL: forgetting, mean | 75 % | 75 % (epoch 3) |" in page
    assert f"75 % (epoch 3) | {100 * published:.0f} % |" in page


def test_the_trade_off_joins_arms_that_differ_in_a_number(tmp_path, monkeypatch):
    arms = ["plain, rate 6: --method none"]
    arms += [f"WPL {s:g}: --method wpl --strength {s}" for s in (10, 100)]
    assert run(tmp_path, monkeypatch, Runs(), "--seeds", "3", "--arms", *arms) == 0
    figure = drawn(saved.read(tmp_path / "report"))["err2_against_forgetting"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["forgetting, mean", "forgetting, best 5"]
    for ax in figure.axes:
        texts = {text.get_text() for text in ax.texts}
        assert {"plain, rate 6", "WPL", "10", "100"} <= texts and "6" not in texts
        (joined,) = [
            line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 2
        ]
        np.testing.assert_allclose(joined.get_xdata(), [joined.get_xdata()[0]] * 2)
        assert joined.get_ydata()[0] < joined.get_ydata()[1]
    np.testing.assert_allclose(
        figure.axes[0].lines[0].get_ydata(), figure.axes[1].lines[0].get_ydata()
    )


def test_more_arms_than_fit_into_a_panel_have_one_a_family(tmp_path, monkeypatch):
    strengths = (1, 10, 100, 1000)
    arms = ["plain: --method none"]
    arms += [f"{m} {s}: --method {m} --strength {s}" for m in ("wpl", "l2") for s in strengths]
    assert run(tmp_path, monkeypatch, Runs(), "--seeds", "3", "--arms", *arms) == 0
    panels = drawn(saved.read(tmp_path / "report"))["forgetting"].axes
    assert [ax.get_title() for ax in panels if ax.axison] == ["plain", "wpl", "l2"]
    assert {str(s) for s in strengths} <= {text.get_text() for text in panels[1].texts}


def test_no_arm_has_the_name_of_a_cell(tmp_path, monkeypatch, capsys):
    flags = ["--cells", "--arms", "random: --method none", "WPL:"]
    assert run(tmp_path, monkeypatch, Runs(), *flags) == 2
    assert "with --cells, no arm can be called random, as a cell is" in capsys.readouterr().err


# --- As one program -------------------------------------------------------------------------------


def test_together_an_arm_is_one_program_and_what_follows_finds_its_searches(
    compared, tmp_path, monkeypatch
):
    class Together(Runs):
        def __call__(self, command, log, lock):
            if command[2] != "experiments.search_many":
                return super().__call__(command, log, lock)
            folder = Path(log.name).parent
            self.launched.append(f"together {folder.name}")
            searches = [flag.removeprefix("--search=") for flag in command if "--search=" in flag]
            for flags in map(shlex.split, searches):
                place = Path(flags[-1])
                assert place.is_relative_to(folder.parents[1])
                place.mkdir(parents=True, exist_ok=True)
                searched([*flags, "--resume"])
            summary = {"epochs": EPOCHS, "configuration": {"search": searches}}
            (folder / "summary.json").write_text(json.dumps(summary))
            return Ended(0)

    runs = Together()
    assert run(tmp_path, monkeypatch, runs, *COMPARED, "--together") == 0
    assert runs.launched == ["together plain", "together WPL", "together L2_anchor"]
    assert summary_in(tmp_path)["arms"] == summary_in(compared[0])["arms"]
    shutil.rmtree(tmp_path / "runs/together")
    shutil.rmtree(tmp_path / "runs/search/WPL_2_1")
    runs.launched.clear()
    assert run(tmp_path, monkeypatch, runs, *COMPARED, "--together") == 0
    assert runs.launched == ["together WPL"], "an arm whose searches are there needs no program"
    assert {p.name for p in (tmp_path / "runs/search").iterdir()} == {
        *(f"{arm}_{seed}" for arm in ("plain", "L2_anchor") for seed in range(3)),
        *(f"WPL_{i}_{seed}" for i in (1, 2, 3) for seed in range(3)),
    }


# --- The scripts themselves -----------------------------------------------------------------------


@pytest.mark.slow
def test_the_tiniest_grid_runs(truth_file, tmp_path, monkeypatch):
    paths = [str(folder) for folder in Path(__file__).parents[:4]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    flags = ["--space", "test_rank:RankedDigits", "--seeds", "2", "--trial-seeds", "5"]
    flags += ["--search-flags=--warmup-epochs 0 --probes 6 --probe-every 1 --devices 1"]
    flags += ["--truth", str(truth_file), "--rank-batches", "2", "--average-isomorphic"]
    flags += ["--arms", "plain: --method none", "WPL: --method wpl | --method wpl --strength 1"]
    flags += ["--out", str(tmp_path / "report")]
    assert grid.main(flags) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    plain, wpl = summary_in(tmp_path)["arms"]
    assert (plain["runs"], wpl["runs"]) == (2, 2) and wpl["chosen"] is not None
    taus = [n for arm in (plain, wpl) for n in arm["numbers"]["error rate/kendall"]["seeds"]]
    assert np.isfinite(taus).all()
    assert (tmp_path / "report" / "tau_error_rate.png") in before

    monkeypatch.setattr(pool, "launch", Runs())  # there is nothing left to do
    assert grid.main(flags) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "report").iterdir()} == before

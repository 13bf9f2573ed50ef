"""The comparison as its user meets it: stages, the strength, numbers, resuming, and bad input.

Runs are replaced by ones that write synthetic results at once.
"""

import json
import re
import shlex
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import search, spaces, train_final
from experiments.compare import __main__ as compare
from experiments.compare import plan, report, saved
from experiments.running import intervals, pool, records, wording
from experiments.spaces import Task
from experiments.spaces.rnn.task import LanguageModelling

EPOCHS, WARMUP, VOCABULARY, FINAL_VOCABULARY = 6, 2, 500, 1000
FLAGS = shlex.split(
    "--preset smoke --strengths 10 1000 --strength-seeds 7 8 --seeds 2 --random-cells 2 "
    f"--search-flags='--epochs {EPOCHS} --warmup-epochs {WARMUP} "
    f"--rnn.vocabulary {VOCABULARY}' --final-flags='--rnn.vocabulary {FINAL_VOCABULARY}'"
)
ORIGIN = {"versions": {"jax": "0"}, "devices": ["toy"], "machine": "toy", "seconds": 60}


class Ended:
    """A process that has ended."""

    def __init__(self, code):
        self.returncode = code

    def poll(self):
        return self.returncode


class Runs:
    """Stands in for the runs of the two scripts; remembers what was launched."""

    def __init__(self, breaking=()):
        self.launched, self.breaking = [], breaking

    def __call__(self, command, log, lock):
        name = "/".join(command[command.index("--out") + 1].split("/")[-2:])
        self.launched.append(name)
        if name in self.breaking:
            log.write("starting\nsearch: diverged\n")
            log.flush()
            return Ended(1)
        assert command[:2] == [sys.executable, "-m"]
        {"search": searched, "train_final": trained}[command[2].rpartition(".")[2]](command[3:])
        return Ended(0)


def number(config, epoch, name):
    """Synthetic metrics: after the warm-up, plain searches forget 10 and WPL ones 1 or 2."""
    seed = config.seed % 7
    plain, random = config.method == "none", config.sampler == "uniform"
    if epoch < WARMUP:
        return 100.0
    if name == "err2_mean":  # seeds 7 and 8 are 0 and 1 here; the best strength is 10
        return (80.0 if plain else 70.0 + np.log10(config.strength)) + seed
    if name == "tau_within_epoch":
        return None if epoch == WARMUP else 0.5
    scale = {"forgetting_mean": 1, "forgetting_best5": 2, "forgetting_max": 4}.get(name, 0.1)
    if random and plain and name == "forgetting_best5":
        return -1.0
    return scale * ((10.0 if plain else 1.0 + random) + seed * (-1) ** epoch)


def key(config):
    return records.key(spaces.find(config.space).error)


# What the data decide about a space, where flags do not.
SIZES = {"rnn": {}, "micro_cnn": {"image_shape": (28, 28, 1)}}


def searched(flags):
    config = search.parse(flags)
    config = config.with_space(**SIZES.get(config.space, {}))
    names = (*saved.METRICS, "train_loss")
    metrics = [
        {"epoch": epoch + 1, "seconds": 1.0} | {n: number(config, epoch, n) for n in names}
        for epoch in range(config.epochs)
    ]
    lines = "".join(json.dumps(record) + "\n" for record in metrics)
    (config.out / "metrics.jsonl").write_text(lines)
    rng = np.random.default_rng([config.seed, config.method == "wpl"])
    space, error = config.search_space, key(config)
    cell = space.to_json(space.decode(rng.integers(0, space.decisions)))
    derived = 60.0 + config.seed - 2 * (config.method == "wpl")
    (config.out / "best.json").write_text(json.dumps({error: derived} | cell))
    order = 1 if config.method == "wpl" else -1  # of random cells, against that of their seeds
    probes = [{"seed": seed, error: 9.0 + order * seed} for seed in range(config.probes)]
    (config.out / "probes.json").write_text(json.dumps(probes))
    summary = ORIGIN | {
        f"best_{error}": derived,
        "epochs": config.epochs,
        "configuration": search.settings(config) | {"probes": config.probes},
    }
    (config.out / "summary.json").write_text(json.dumps(summary))


def trained(flags):
    config, cell = train_final.read_architecture(train_final.parse(flags))
    config = config.with_space(**SIZES.get(config.space, {}))
    error = 50.0 + config.seed + len(config.architecture) / 100
    summary = ORIGIN | {
        f"validation_{key(config)}": error,
        f"test_{key(config)}": error - 1 - config.seed,
        "parameters": 1234,
        "architecture": config.search_space.to_json(cell),
        "epochs": config.epochs,
        "configuration": train_final.settings(config),
    }
    (config.out / "summary.json").write_text(json.dumps(summary))


def run(folder, monkeypatch, runs, *more, flags=FLAGS):
    monkeypatch.setattr(pool, "launch", runs)
    monkeypatch.setattr(pool.time, "sleep", lambda seconds: None)
    places = ["--out", str(folder / "report"), "--runs", str(folder / "runs")]
    return compare.main([*flags, *places, *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder, runs = tmp_path_factory.mktemp("compare"), Runs()
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(folder, monkeypatch, runs) == 0
    return folder, runs


def summary_in(folder):
    return json.loads((folder / "report" / "summary.json").read_text())


ARMS = [f"{p}_{s}" for s in ("controller", "uniform") for p in ("none", "wpl")]
SEARCHES = [f"{arm}_{seed}" for arm in ARMS for seed in "01"]


def test_every_run_is_launched_once_stage_after_stage(finished):
    _, runs = finished
    others = [f"{name}_{seed}" for name in ("random", "darts_style", "enas") for seed in "01"]
    assert runs.launched == [
        *(f"strength/{strength}_{seed}" for strength in (10, 1000) for seed in (7, 8)),
        *(f"search/{name}" for name in SEARCHES),
        *(f"final/{name}" for name in SEARCHES + others),
    ]


def test_everything_promised_is_written_and_the_report_links_to_it(finished):
    folder, _ = finished
    there = {str(path.relative_to(folder / "report")) for path in (folder / "report").rglob("*.*")}
    cells = {f"cells/{name}.json" for name in SEARCHES}
    figures = {f"figure{n}.{suffix}" for n in "35" for suffix in ("png", "pdf")}
    assert there == {"summary.json", "curves.npz", "report.md"} | cells | figures
    report = (folder / "report" / "report.md").read_text()
    assert set(re.findall(r"\]\(([^)]+)\)", report)) == cells | {"figure3.png", "figure5.png"}
    assert "nan" not in report


def test_the_numbers_are_those_computed_by_hand(finished):
    folder, _ = finished
    summary = summary_in(folder)
    arms = {arm["name"]: arm for arm in summary["arms"]}
    assert arms["none_controller"]["forgetting_best5"]["mean"] == 20
    half = 1 / 2 * 12.7062047  # the deviations cancel over epochs in mean err2 but for the seed's
    err2 = arms["none_controller"]["err2_mean"]
    assert (err2["n"], err2["seeds"]) == (2, [80, 81])
    np.testing.assert_allclose(
        [err2[end] for end in ("mean", "low", "high")], [80.5, 80.5 - half, 80.5 + half]
    )
    assert arms["wpl_uniform"]["tau_within_epoch"]["seeds"] == [0.5, 0.5]
    controller, random = summary["wpl_against_plain"]
    assert controller["reduction"] == pytest.approx(dict.fromkeys(LanguageModelling.published, 0.9))
    assert controller["difference"]["err2_mean"] == pytest.approx(
        {"mean": -9, "low": -9, "high": -9, "n": 2}  # both kinds have the seed's deviation
    )
    assert random["reduction"] == pytest.approx(
        {"forgetting_mean": 0.8, "forgetting_best5": None, "forgetting_max": 0.8}
    )
    assert random["difference"]["derived_perplexity"]["high"] == -2
    assert arms["wpl_uniform"]["test_perplexity"]["mean"] == pytest.approx(
        49 + len(str(folder / "runs/search/wpl_uniform_0/best.json")) / 100
    )
    assert summary["seconds"] == 60 * 26
    assert summary["found_tau_training_alone"]["cells"] == 8


def test_the_report_says_what_holds_and_what_cannot_be_told(finished):
    report = (finished[0] / "report" / "report.md").read_text()
    assert "**Plain search forgets, and WPL forgets less.**" in report
    assert (
        "WPL takes off 90 % (the mean of all), 90 % (the best 5) and 90 % (the maximum)" in report
    )
    assert "| uniform: best 5 | −1.00 ± 0.00 | 4.00 ± 0.00 | 5.00 ± 0.00 | not dist" in report
    assert "**With WPL the shared weights are better (mean perplexity, err2).**" in report
    assert "with WPL cannot be told" in report  # of the cells that are found


def test_report_and_figures_are_drawn_anew_from_what_was_saved(finished, tmp_path, capsys):
    shutil.copytree(finished[0] / "report", tmp_path / "moved")
    before = {path: path.read_bytes() for path in (tmp_path / "moved").rglob("*.*")}
    drawn = [path for path in before if path.suffix in (".md", ".png", ".pdf")]
    for path in drawn:
        path.unlink()
    assert report.main([str(tmp_path / "moved")]) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "moved").rglob("*.*")} == before
    assert "figure3.png" in capsys.readouterr().out


def test_what_is_not_known_of_an_older_comparison_is_said(finished, tmp_path):
    shutil.copytree(finished[0] / "report", tmp_path / "old")
    path = tmp_path / "old" / "summary.json"
    summary = json.loads(path.read_text())
    del summary["commands"], summary["configuration"]["search"]["derive_samples"]
    for arm in summary["arms"]:
        del arm["tau_training_alone"]
    for pair in summary["wpl_against_plain"]:
        del pair["difference"]["tau_training_alone"]
    path.write_text(json.dumps(summary))
    assert report.main([str(tmp_path / "old")]) == 0
    page = (tmp_path / "old" / "report.md").read_text()
    assert "commands of the single runs were not kept" in page
    assert "was not measured here" in page


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_folder_without_a_comparison_is_said_in_a_line(content, tmp_path, capsys):
    if content:
        (tmp_path / "summary.json").write_text(content)
    assert report.main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"report: {tmp_path} must hold summary.json")
    assert said.count("\n") == 1


class Tiny(LanguageModelling):
    """A space of one's own: one preset, nothing published, no figure in the paper."""

    name = "tiny"
    searches = {"smoke": LanguageModelling.searches["smoke"]}
    finals = {"smoke": LanguageModelling.finals["smoke"]}
    comparisons = Task.comparisons
    figure = None
    published = {}

    def cells(self):
        return {}


def test_a_space_without_a_paper_is_compared_too(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiny_space", SimpleNamespace(Tiny=Tiny))
    flags = ["--space", "tiny_space:Tiny", *FLAGS, "--strengths", "10"]
    assert run(tmp_path, monkeypatch, Runs(), flags=flags) == 0
    there = {path.name for path in (tmp_path / "report").glob("*.*")}
    assert {"forgetting.png", "best_cells.pdf"} <= there
    page = (tmp_path / "report" / "report.md").read_text()
    assert "There is no `--preset paper` of this space." in page
    assert "the paper" not in page
    assert "It was given: 10." in page


def test_the_strength_with_the_lowest_err2_is_taken(finished):
    folder, _ = finished
    strength = summary_in(folder)["strength"]
    assert strength["chosen"] == 10
    assert strength["candidates"][0]["err2_mean"] == [71, 72]
    stored = json.loads((folder / "runs/search/wpl_uniform_1/summary.json").read_text())
    assert stored["configuration"]["strength"] == 10


def test_curves_are_by_arm_and_metric(finished):
    folder, _ = finished
    with np.load(folder / "report" / "curves.npz") as curves:
        assert {name.partition("/")[0] for name in curves} == {"epochs", *ARMS}
        assert curves["wpl_uniform/forgetting_mean"].shape == (2, EPOCHS)
        np.testing.assert_array_equal(
            curves["none_uniform/forgetting_mean"][1], [100, 100, 11, 9, 11, 9]
        )
        assert np.isnan(curves["none_uniform/tau_within_epoch"][:, WARMUP]).all()


def test_what_has_finished_is_not_run_again_and_what_fails_is_left_out(
    finished, tmp_path, monkeypatch, capsys
):
    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    for name in ("search/none_uniform_1", "search/wpl_uniform_0", "final/enas_1"):
        (tmp_path / "runs" / name / "summary.json").unlink()
    runs = Runs(breaking=("search/none_uniform_1", "final/enas_1"))
    assert run(tmp_path, monkeypatch, runs) == 1
    assert runs.launched == ["search/none_uniform_1", "search/wpl_uniform_0", "final/enas_1"]
    errors = capsys.readouterr().err.splitlines()
    assert len([line for line in errors if line.startswith("failed: ")]) == 2
    log = tmp_path / "runs/final/enas_1/log.txt"
    assert f"failed: final/enas_1: exit code 1, search: diverged ({log})" in errors
    summary = summary_in(tmp_path)
    assert len(summary["failed"]) == 2
    arm = next(arm for arm in summary["arms"] if arm["name"] == "none_uniform")
    assert arm["runs"] == 1
    assert arm["forgetting_mean"] == {
        **{"mean": 10, "low": None, "high": None},
        **{"n": 1, "seeds": [10, None]},
    }
    report = (tmp_path / "report" / "report.md").read_text()
    assert "- search/none_uniform_1: exit code 1" in report
    assert "nan" not in report


@pytest.fixture(scope="module")
def of_images(tmp_path_factory):
    """A comparison of searches for cells for images."""
    folder, runs = tmp_path_factory.mktemp("compare"), Runs()
    flags = shlex.split(
        "--space micro_cnn --preset smoke --seeds 2 --random-cells 3 "
        f"--search-flags='--epochs {EPOCHS} --warmup-epochs {WARMUP}'"
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(folder, monkeypatch, runs, flags=flags) == 0
    return folder, runs


def test_cells_for_images_are_compared_in_percent(of_images):
    folder, runs = of_images
    others = [*(f"random_{seed}" for seed in "012"), *(f"enas_{seed}" for seed in "01")]
    launched = [f"search/{name}" for name in SEARCHES]
    assert runs.launched == launched + [f"final/{name}" for name in SEARCHES + others]
    report = (folder / "report" / "report.md").read_text()
    assert {"figure4.png", "figure5.png"} <= set(re.findall(r"\]\(([^)]+)\)", report))
    assert not list((folder / "report").glob("figure3*"))
    assert "perplexity" not in report and "nan" not in report
    # Of 10, in percent.
    assert (
        "| controller: mean (points) | 1000.00 ± 0.00 | 100.00 ± 0.00 | −900.00 ± 0.00 " in report
    )
    assert "| 90 % | 99 % |\n" in report
    assert "| test (%) |" in report
    assert "3,500 (train), 500 (validation), 1,000 (test)" in report
    arms = {arm["name"]: arm for arm in summary_in(folder)["arms"]}
    assert arms["none_controller"]["derived_error_rate"]["mean"] == 60.5


def test_random_cells_say_whether_shared_weights_rank_as_training_alone_does(of_images, finished):
    summary = summary_in(of_images[0])
    arms = {arm["name"]: arm["tau_training_alone"] for arm in summary["arms"]}
    assert arms["wpl_uniform"]["seeds"] == pytest.approx([1, 1])
    assert arms["none_controller"]["seeds"] == pytest.approx([-1, -1])
    for pair in summary["wpl_against_plain"]:
        assert pair["difference"]["tau_training_alone"]["mean"] == pytest.approx(2)
    report = (of_images[0] / "report" / "report.md").read_text()
    assert "Of the same 3 random cells" in report
    assert "| WPL − plain, uniform | 2.00 ± 0.00 |" in report
    # Of two cells there is nothing to say.
    assert all(arm["tau_training_alone"]["mean"] is None for arm in summary_in(finished[0])["arms"])
    assert (
        "was not measured here**, or on too few cells"
        in (finished[0] / "report" / "report.md").read_text()
    )


def test_without_a_search_there_is_no_report(tmp_path, monkeypatch, capsys):
    breaking = [f"search/{name}" for name in SEARCHES]
    assert run(tmp_path, monkeypatch, Runs(breaking), "--strengths", "10") == 1
    assert "compare: no search has finished" in capsys.readouterr().err
    assert not list((tmp_path / "report").iterdir())


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        ({1.0: [70, 72], 2.0: [69, 71], 3.0: [60, 90]}, 2.0),
        ({1.0: [70, 72], 2.0: [69, None]}, 1.0),
        ({1.0: [70, 72], 2.0: [60, np.nan]}, 1.0),
    ],
)
def test_a_strength_that_fails_or_diverges_is_not_chosen(errors, chosen):
    configuration = {"configuration": {"warmup_epochs": 1}}

    def found(error):
        metrics = {"err2_mean": np.array([0, error, error], np.float64)}
        return plan.Searched(metrics, configuration, {})

    candidates = {
        strength: [None if error is None else found(error) for error in of_seeds]
        for strength, of_seeds in errors.items()
    }
    assert compare.choose(candidates) == chosen


def test_without_a_strength_to_choose_the_comparison_ends(tmp_path, monkeypatch, capsys):
    runs = Runs(breaking=("strength/10_7", "strength/1000_8"))
    assert run(tmp_path, monkeypatch, runs) == 1
    assert len(runs.launched) == 4
    assert "compare: no strength can be chosen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1.0, 2.0, 3.0], "2.00 ± 2.48"),
        ([-1.0, np.nan], "−1.00"),
        ([np.nan, np.inf], "–"),
        ([], "–"),
    ],
)
def test_numbers_are_shown_with_what_is_known_of_them(values, shown):
    assert wording.show(intervals.interval(np.array(values)), 2) == shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--space", "cnn"], "must be one of rnn, micro_cnn, nas_bench_201, or module:Class"),
        (["--preset", "cqu"], "--preset must be one of paper, cpu, smoke, got 'cqu'"),
        (["--seeds", "1"], "--seeds must be at least 2, got 1"),
        (["--random-cells", "1"], "--random-cells must be at least 2, got 1"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--strengths", "1", "-1"], "--strengths must be"),
        (["--strengths", "inf"], "--strengths must be"),
        (["--strength-seeds", "1"], "--strength-seeds must be seeds >= 2"),
        (["--search-flags=--epochs 2"], "more epochs than the 2 of the warm-up, got --epochs 2"),
        (["--search-flags=--search.eval-batches 9999"], "--search.eval-batches must be at most"),
        (["--final-flags=--clip 0"], "--clip must be at least 1e-30"),
        (["--search-flags='"], "No closing quotation"),
        (["--preset", "cpu", "--data-dir", "{tmp}"], "{tmp}"),
        (["--out", "{tmp}/file/report"], "cannot write to"),
    ],
)
def test_bad_input_gives_one_clear_line_and_exit_code_2(flags, message, tmp_path, capsys):
    (tmp_path / "file").touch()
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    places = ["--out", f"{tmp_path}/report", "--runs", f"{tmp_path}/runs"]
    assert compare.main([*places, "--preset", "smoke", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message.format(tmp=tmp_path) in captured.err
    assert captured.err.count("\n") == 1


def test_every_preset_is_one_of_the_scripts_too():
    for space in spaces.TASKS:
        task = spaces.find(space)
        for name, preset in task.comparisons.items():
            assert (preset.space, preset.preset) == (space, name)
            assert name in task.searches and name in task.finals

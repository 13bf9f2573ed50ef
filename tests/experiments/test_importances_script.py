"""The comparison of importances as its user meets it: what it writes, resumes and refuses."""

import dataclasses
import json
import shlex
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.importances import __main__ as importances
from experiments.importances import report as importances_report
from experiments.importances.__main__ import Importances, Outcome
from experiments.importances.report import ANCHOR, ARMS, CONTINUAL, REPLAY, SCENARIOS
from experiments.running import records
from experiments.two_models.training import Accuracies
from wpl_jax.data import load_images

# An anchor that lets go of nothing, and three that hold nothing.
TINY = shlex.split(
    "--seeds 2 --choice-seeds 2 --width 16 --a-steps 150 --b-steps 50 --task-steps 8 --images 10 "
    "--l2-strengths 1e30 --fisher-strengths 0 --mas-strengths 0 --si-strengths 0"
)
ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "experiments" / "results" / "importances"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("importances")
    assert importances.main([*TINY, "--out", str(out)]) == 0
    return out


def test_a_frozen_task_is_not_forgotten_and_a_strength_of_0_is_nothing(finished):
    assert {path.name for path in finished.iterdir()} == {"summary.json", "report.md"}
    summary = json.loads((finished / "summary.json").read_text())
    assert {"command", "versions", "machine", "devices", "seconds"} <= set(summary)
    assert list(summary["scenarios"]) == list(SCENARIOS)
    for name, scenario in summary["scenarios"].items():
        arms = scenario["arms"]
        assert list(arms) == [arm for arm in ARMS if name in CONTINUAL or arm != REPLAY]
        learned, final = (np.array(arms[ANCHOR]["by_seed"][x]) for x in ("learned", "final"))
        np.testing.assert_array_equal(final[:, 0], learned[:, 0])
        if name in CONTINUAL:
            np.testing.assert_array_equal(final, learned)
        for arm in ("empirical Fisher", "MAS", "SI"):
            assert arms[arm]["by_seed"] == arms["nothing"]["by_seed"]
        assert arms["nothing"]["by_seed"]["final"] != arms[ANCHOR]["by_seed"]["final"]


def written(path):
    """Which file it is and when it was written; reading it may change other times."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def test_what_was_interrupted_goes_on(tmp_path, monkeypatch):
    """What an interrupted run has left is not computed again."""
    stop_at = 3

    def quick(run):
        def program(data, keys, setting, methods):
            if len(list(tmp_path.iterdir())) == stop_at:
                raise KeyboardInterrupt
            shape = len(keys), len(methods.arm), 2
            return Outcome(*[Accuracies(*[jnp.full(shape, setting)] * 2)] * 2)

        return program

    monkeypatch.setattr(importances, "over_seeds", quick)
    config, data = Importances(seeds=2, choice_seeds=2), load_images("mnist5k")
    with pytest.raises(KeyboardInterrupt):
        importances.experiment(config, data, tmp_path)
    kept = {path: written(path) for path in tmp_path.iterdir()}
    assert len(kept) == stop_at
    stop_at = -1
    results, _ = importances.experiment(config, data, tmp_path)
    assert list(results) == list(SCENARIOS)
    assert len(list(tmp_path.iterdir())) == 2 * len(SCENARIOS)
    assert {path: written(path) for path in kept} == kept
    importances.experiment(dataclasses.replace(config, images=5), data, tmp_path)
    assert {path: written(path) for path in kept} != kept


def test_parts_of_other_data_are_not_gone_on_with(tmp_path, monkeypatch, capsys):
    data = load_images("mnist5k")
    (tmp_path / "partial").mkdir()
    fingerprint = importances.fingerprint_of(Importances(), data) + " of some methods"
    records.kept(tmp_path / "partial" / "a.npz", fingerprint, lambda: jnp.zeros(1))
    monkeypatch.setattr(importances, "load_images", lambda _: data._replace(test=data.validation))
    assert importances.main(["--out", str(tmp_path)]) == 2
    assert "holds parts of a run with other settings or data" in capsys.readouterr().err


def test_pairs_of_digits():
    data = load_images("mnist5k")
    positions, sizes = importances.pairs(data)[1:]
    for task, (places, size) in enumerate(zip(positions, sizes, strict=True)):
        assert set(data.train.labels[places]) == {2 * task, 2 * task + 1}
        assert len(set(places[:size].tolist())) == size
    assert sizes.sum() == len(data.train.labels)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "1"], "--seeds must be at least 2, got 1"),
        (["--images", "0"], "--images must be at least 1, got 0"),
        (["--damping", "0"], "--damping must be at least 1e-30, got 0.0"),
        (["--ou", "x"], "Unrecognized options"),
    ],
)
def test_bad_flags_are_one_line(flags, message, capsys):
    assert importances.main(flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("importances: ") and said.count("\n") == 1 and message in said


def test_an_edge_is_marked():
    accuracies = np.full((2, 2, 2), 0.5)
    for chosen, at_edge in ((1.0, True), (10.0, False), (100.0, True)):
        scores = [(strength, 0.1) for strength in (1.0, 10.0, 100.0)]
        result = importances_report.Result(
            {ANCHOR: scores, "MAS": scores},
            {ANCHOR: 10.0, "MAS": chosen},
            accuracies,
            accuracies,
        )
        summary = importances_report.scenario_summary(SCENARIOS[0], result)
        assert summary["arms"]["MAS"]["at_edge"] is at_edge
        shown = importances_report.table(SCENARIOS[0], summary)
        assert (f"| {chosen:g}† |" in shown) is at_edge


# --- What is committed ----------------------------------------------------------------------------


def test_the_report_is_that_of_the_committed_numbers():
    summary = json.loads((COMMITTED / "summary.json").read_text())
    assert (COMMITTED / "report.md").read_text() == importances_report.report(summary)
    page = (ROOT / "docs" / "importances.md").read_text()
    assert "{include} ../experiments/results/importances/report.md" in page


def test_the_committed_strengths_are_the_best_on_validation_images():
    summary = json.loads((COMMITTED / "summary.json").read_text())
    for scenario in summary["scenarios"].values():
        assert scenario["seeds"] >= 5
        for arm, values in scenario["arms"].items():
            scores = dict(map(tuple, scenario["validation"][arm]))
            assert scores[values["strength"]] == max(scores.values())

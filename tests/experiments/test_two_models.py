"""The two-model script as its user meets it: outputs, choices, resuming, and bad input."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest

from experiments.two_models import __main__ as two_models
from experiments.two_models import report as two_models_report
from experiments.two_models.settings import PRESETS, TwoModels
from experiments.two_models.training import FROZEN, Accuracies, Outcome

TINY = shlex.split(
    "--b-learning-rate None --b-momentum None --seeds 3 --map-seeds 2 --seeds-per-call 3 --width 8 "
    "--batch-size 8 --a-steps 30 --b-steps 20 --eval-every 10 --eval-images 50 --fisher-images 20 "
    "--stop-at 0.15 --shared-layers 1 "
    "--wpl-strengths 10 1e4 --l2-strengths 0.1 10 --map-learning-rates 0.05 0.1 --map-momenta 0 0.5"
    " --map-min-accuracy 0.02"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("two_models")
    assert two_models.main([*TINY, "--out", str(out)]) == 0
    return out


def test_everything_promised_is_written(finished):
    names = {path.name for path in finished.iterdir()}
    figures = ("figure1", "figure2", "strength_wpl", "strength_l2", "trade_off", "regime_map")
    expected = {"summary.json", "curves.npz", "report.md"}
    assert names == expected | {f"{f}.{suffix}" for f in figures for suffix in ("png", "pdf")}
    report = (finished / "report.md").read_text()
    assert all(f"({figure}.png)" in report for figure in figures)


def test_the_summary_has_its_documented_form_and_agrees_with_the_curves(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert [c["name"] for c in summary["conditions"]] == ["strict", "loose15", "shared1"]
    assert {"command", "versions", "devices", "seconds", "configuration"} <= set(summary)
    with np.load(finished / "curves.npz") as curves:
        methods = list(zip(curves["methods"], curves["strengths"], strict=True))
        for condition in summary["conditions"]:
            name = condition["name"]
            assert condition["seeds"] == 3
            baseline = curves[f"{name}/baseline_test"].astype(np.float64).mean()
            np.testing.assert_allclose(condition["baseline_a"]["mean"], baseline, rtol=1e-6)
            for method in ("wpl", "l2_anchor"):
                place = methods.index((method, condition[method]["strength"]))
                a = curves[f"{name}/final_a_test"][:, place].astype(np.float64).mean()
                np.testing.assert_allclose(condition[method]["final_a"]["mean"], a, rtol=1e-6)
                plain = condition["plain"]["final_a"]["mean"]
                ratio = condition[method]["relative_reduction"]["ratio_of_means"]
                np.testing.assert_allclose(
                    ratio * (baseline - plain), a - plain, rtol=1e-4, atol=1e-6
                )
            assert condition["relative_reduction"] == condition["wpl"]["relative_reduction"]
            frozen = condition["frozen"]["final_a"]["mean"]
            np.testing.assert_allclose(frozen, baseline, rtol=1e-6)


def test_strict_and_shared_conditions_start_from_the_same_a(finished):
    with np.load(finished / "curves.npz") as curves:
        np.testing.assert_array_equal(
            curves["strict/baseline_test"], curves["shared1/baseline_test"]
        )


def test_an_interrupted_run_goes_on_and_ends_as_an_uninterrupted_one(
    finished, tmp_path, monkeypatch
):
    real, calls = two_models.records.kept, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    command = [*TINY, "--out", str(tmp_path)]
    monkeypatch.setattr(two_models.records, "kept", interrupted)
    assert two_models.main(command) == 130
    kept = sorted(path.name for path in (tmp_path / "partial").iterdir())
    assert len(kept) == 2
    assert not (tmp_path / "summary.json").exists()

    stamps = {name: (tmp_path / "partial" / name).stat().st_mtime_ns for name in kept}
    monkeypatch.setattr(two_models.records, "kept", real)
    monkeypatch.setattr(two_models.shutil, "rmtree", lambda path: None)
    assert two_models.main(command) == 0
    assert all((tmp_path / "partial" / n).stat().st_mtime_ns == stamps[n] for n in kept)
    with np.load(tmp_path / "curves.npz") as resumed, np.load(finished / "curves.npz") as whole:
        assert set(resumed) == set(whole)
        for name in whole:
            np.testing.assert_array_equal(resumed[name], whole[name])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "mnits"], "--data must be one of"),
        (["--dataset", "mnist", "--data-dir", "{tmp}"], "--data-dir"),
        (["--seeds", "1"], "--seeds must be at least 2"),
        (["--map-seeds", "1"], "--map-seeds must be at least 2"),
        (["--wpl-strengths", "1", "-1"], "--wpl-strengths must be"),
        (["--l2-strengths", "nan"], "--l2-strengths must be"),
        (["--b-steps", "100", "--eval-every", "30"], "--eval-every must divide --b-steps"),
        (["--stop-at", "55"], "--stop-at must be accuracies between 0 and 1"),
        (["--shared-layers", "5"], "--shared-layers must be among"),
        (["--b-momentum", "None"], "must be given together"),
        (["--map-momenta", "0.5", "1"], "momenta must be at least 0 and below 1"),
        (["--map-learning-rates", "0"], "learning rates must be finite and above 0"),
        (["--weight-decay", "-1"], "--weight-decay must be"),
        (["--fisher-images", "501"], "500 validation images"),
        (["--width", "0"], "--width must be at least 1"),
        (["--out", "{tmp}/file/results"], "cannot write to"),
    ],
)
def test_bad_input_gives_one_clear_line_and_exit_code_2(flags, message, tmp_path, capsys):
    (tmp_path / "file").touch()
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    if "--out" not in flags:
        flags += ["--out", str(tmp_path / "out")]
    assert two_models.main(flags) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def outcome(validation_a, validation_b) -> Outcome:
    """Of one seed."""
    a, b = (np.array([values]) for values in (validation_a, validation_b))
    return Outcome(a, b, Accuracies(a, np.zeros_like(a)), Accuracies(b, np.zeros_like(b)))


def test_the_chosen_strength_has_the_highest_sum_of_validation_accuracies():
    config = TwoModels(wpl_strengths=(1, 2, 3), l2_strengths=(4, 5))
    results = outcome([0.2, 0.9, 0.5, 0.8, 0.9, 0.7, 0.4], [0.9, 0.5, 0.9, 0.8, 0.5, 0.1, 0.6])
    chosen = two_models.choose(config, results)
    assert {name: two_models.compared(config)[i][1] for name, i in chosen.items()} == {
        "plain": 0.0,
        "frozen": FROZEN,
        "wpl": 2,
        "l2_anchor": 5,
    }


def test_the_regime_forgets_most_where_b_learns():
    config = TwoModels(map_learning_rates=(0.1, 0.2), map_momenta=(0.0, 0.9), map_min_accuracy=0.9)
    baseline = Accuracies(np.array([0.95]), np.array([0.0]))
    parts = {2.0: (baseline, outcome([0.9, 0.6, 0.3, 0.1], [0.97, 0.95, 0.92, 0.2]))}
    regime = two_models.choose_regime(config, parts)
    assert (regime.learning_rate, regime.momentum) == (0.2, 0.0)
    np.testing.assert_allclose(regime.forgetting[2.0], [[0.05, 0.35], [0.65, 0.85]])
    with pytest.raises(two_models.RegimeError, match="0.970 at best"):
        two_models.choose_regime(
            TwoModels(map_learning_rates=(0.1, 0.2), map_momenta=(0.0, 0.9), map_min_accuracy=0.99),
            parts,
        )


def test_every_preset_is_accepted():
    for name, preset in PRESETS.items():
        assert preset.data == name
        two_models.check(preset)


@pytest.mark.parametrize("module", ["experiments", "wpl_jax.figures.curves"])
def test_a_missing_extra_is_named(module):
    code = f"""
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
import {module}
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "wpl_jax[experiments]" in run.stderr.splitlines()[-1]


def test_the_share_prevented_is_shown_only_where_something_was_forgotten():
    def condition(plain):
        reduction = {"ratio_of_means": 0.5}
        return {
            "baseline_a": {"mean": 0.9},
            "plain": {"final_a": {"mean": plain}},
            "wpl": {"relative_reduction": reduction},
        }

    assert two_models_report.prevented(condition(0.8), "wpl") == "50.0"
    assert two_models_report.prevented(condition(0.9), "wpl") == "–"

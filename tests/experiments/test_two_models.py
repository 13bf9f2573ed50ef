"""The two-model script as its user meets it: outputs, choices, resuming, and bad input."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.two_models import __main__ as two_models
from experiments.two_models import findings, report, results
from experiments.two_models.results import CHECKS, Check
from experiments.two_models.settings import FULL, PRESETS, TwoModels
from experiments.two_models.training import FROZEN, NEVER, Accuracies, Outcome, compared

# A program is compiled for each number of methods: on the map, as many are trained as are compared,
# and as many in each check.
TINY = shlex.split(
    "--b-learning-rate None --b-momentum None --seeds 4 --map-seeds 4 --seeds-per-call 4 --width 8 "
    "--batch-size 8 --a-steps 30 --b-steps 20 --eval-every 10 --eval-images 50 --fisher-images 20 "
    "--stop-at 0.15 --shared-layers 1 --check-strengths 0.1 10 --wpl-strengths 10 1e4 "
    "--l2-strengths 0.1 10 --map-learning-rates 0.05 0.1 0.2 --map-momenta 0 0.5 "
    "--map-min-accuracy 0.02"
)
CONDITIONS = ["A converged", "A stopped at 15 %", "1 layer shared"]
FIGURES = (
    "first_look",
    "figure1",
    "figure2",
    "strength_wpl",
    "strength_l2",
    "trade_off",
    "regime_map",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("two_models")
    assert two_models.main([*TINY, "--out", str(out)]) == 0
    return out


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".pdf"}


def test_everything_promised_is_written(finished):
    names = {path.name for path in finished.iterdir()}
    expected = {"summary.json", "curves.npz", "report.md"}
    assert names == expected | {f"{f}.{suffix}" for f in FIGURES for suffix in ("png", "pdf")}
    page = (finished / "report.md").read_text()
    assert all(f"({figure}.png)" in page for figure in FIGURES if figure != "first_look")
    assert all(f"| {name} |" in page for name in CONDITIONS)


def test_the_summary_has_its_documented_form_and_agrees_with_the_curves(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert [c["name"] for c in summary["conditions"]] == CONDITIONS
    assert list(summary["checks"]) == list(CHECKS)
    assert {"command", "versions", "devices", "seconds", "configuration"} <= set(summary)
    with np.load(finished / "curves.npz") as curves:
        methods = list(zip(curves["methods"], curves["strengths"], strict=True))
        for condition in summary["conditions"]:
            name = condition["name"]
            assert condition["seeds"] == 4
            before = curves[f"{name}/before/test"].astype(np.float64)
            np.testing.assert_allclose(condition["before_a"]["mean"], before.mean(), rtol=1e-6)
            final = {
                method: curves[f"{name}/final_a/test"][:, place].astype(np.float64)
                for method, strength in (
                    ("plain", 0.0),
                    *((m, condition[m]["strength"]) for m in ("WPL", "L2 anchor")),
                )
                for place in [methods.index((method, strength))]
            }
            for method, values in final.items():
                np.testing.assert_allclose(
                    condition[method]["final_a"]["mean"], values.mean(), rtol=1e-6
                )
            for rival in ("plain", "L2 anchor"):
                np.testing.assert_allclose(
                    condition["differences"][f"WPL − {rival}"]["a"]["mean"],
                    (final["WPL"] - final[rival]).mean(),
                    atol=1e-7,
                )
            frozen = condition["frozen"]["final_a"]["mean"]
            np.testing.assert_allclose(frozen, before.mean(), rtol=1e-6)


def test_conditions_in_which_a_converged_start_from_the_same_a(finished):
    with np.load(finished / "curves.npz") as curves:
        np.testing.assert_array_equal(
            curves["A converged/before/test"], curves["1 layer shared/before/test"]
        )


def test_the_report_is_drawn_anew_from_what_was_saved(finished, capsys, monkeypatch):
    before, savefig = written(finished), Figure.savefig

    def quick(figure, file, *, format, **options):  # the files of the PDFs are not looked at
        return None if format == "pdf" else savefig(figure, file, format=format, **options)

    monkeypatch.setattr(Figure, "savefig", quick)
    (finished / "report.md").unlink()
    (finished / "figure2.png").unlink()
    assert report.main([str(finished)]) == 0
    assert written(finished) == before
    assert "A stopped at 15 %" in capsys.readouterr().out


def test_what_no_run_has_saved_is_refused_in_a_line(finished, tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "curves.npz").write_bytes((finished / "curves.npz").read_bytes())
    assert report.main([str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "summary.json" in said[0]
    assert "run the experiment again" in said[1]


def test_the_demo_prints_a_and_b_before_and_after_and_names_its_figure(tmp_path, capsys):
    small = "--width 8 --batch-size 8 --a-steps 30 --b-steps 20 --eval-every 10 --eval-images 50"
    flags = ["--preset", "demo", *small.split(), "--fisher-images", "20", "--out", str(tmp_path)]
    assert two_models.main(flags) == 0
    names = {path.stem for path in tmp_path.iterdir()}
    assert names == {"summary", "curves", "report", "first_look"}
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) < 15
    assert all(words in shown for words in ("before B trains", "plainly", "with WPL"))
    assert str(tmp_path / "first_look.png") in shown.replace("\n", "")


@pytest.mark.usefixtures("undrawn")
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
        (["--preset", "dmeo"], "--preset must be one of"),
        (["--data", "mnist", "--data-dir", "{tmp}"], "--data-dir"),
        (["--seeds", "1"], "--seeds must be at least 2"),
        (["--map-seeds", "1"], "--map-seeds must be at least 2"),
        (["--wpl-strengths", "1", "-1"], "--wpl-strengths must be at least 1e-30 each"),
        (["--l2-strengths", "nan"], "--l2-strengths must be"),
        (["--check-strengths", "0"], "--check-strengths must be at least 1e-30 each"),
        (["--preset", "demo", "--map-momenta", "0.5"], "must be given together"),
        (
            ["--b-steps", "100", "--eval-every", "30"],
            "--eval-every must be a divisor of --b-steps (100)",
        ),
        (["--stop-at", "55"], "--stop-at must be below 1 each"),
        (["--shared-layers", "5"], "--shared-layers must be at most 3 each"),
        (["--b-momentum", "None"], "must be given together"),
        (["--map-momenta", "0.5", "1"], "--map-momenta must be below 1 each"),
        (["--map-learning-rates", "0"], "--map-learning-rates must be at least 1e-30 each"),
        (["--weight-decay", "-1"], "--weight-decay must be"),
        (["--fisher-images", "501"], "--fisher-images must be at most 500, all validation images"),
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
    """Of seeds and methods; test accuracies are those of validation."""
    a, b = (np.atleast_2d(np.array(values, np.float64)) for values in (validation_a, validation_b))
    curves = [x[..., None] for x in (a, b, np.ones_like(a))]
    return Outcome(*curves, Accuracies(a, a), Accuracies(b, b), np.zeros((*a.shape, 6)))


def test_the_chosen_strength_has_the_highest_sum_of_validation_accuracies():
    config = TwoModels(wpl_strengths=(1, 2, 3), l2_strengths=(4, 5))
    found = outcome([0.2, 0.9, 0.5, 0.8, 0.9, 0.7, 0.4], [0.9, 0.5, 0.9, 0.8, 0.5, 0.1, 0.6])
    chosen = results.choose(config, found)
    assert {name: compared(config)[i][1] for name, i in chosen.items()} == {
        "plain": 0.0,
        "frozen": FROZEN,
        "WPL": 2,
        "L2 anchor": 5,
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
    for data, presets in PRESETS.items():
        for name, preset in presets.items():
            assert (preset.data, preset.preset) == (data, name)


def test_the_same_number_of_strengths_is_tried_for_wpl_and_for_its_rival():
    for settings in FULL.values():
        assert len(settings.wpl_strengths) == len(settings.l2_strengths)


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
    assert ".[experiments]" in run.stderr.splitlines()[-1]


# --- What is said of the numbers ------------------------------------------------------------------

CONFIG = TwoModels(
    seeds=4, wpl_strengths=(1.0, 10.0, 100.0), l2_strengths=(0.1, 1.0), check_strengths=(0.1, 1.0)
)
NOISE = np.array([0.01, -0.01, 0.02, -0.02])


def condition(final_a, final_b, before=0.9, noise=NOISE):
    """A summary in which each seed has these accuracies, and plain training's of A vary.

    In the order of ``compared``: plain, frozen, WPL at its three strengths, the L2 anchor at two.
    """
    a, b = np.tile(final_a, (4, 1)), np.tile(final_b, (4, 1))
    a[:, 0] += noise
    of_seeds = Accuracies(*[np.full(4, before)] * 2)
    found = results.Result(results.Condition(NEVER, 4), of_seeds, outcome(a, b))
    return results.condition_summary(CONFIG, found)


def test_a_certain_loss_is_named_with_the_share_that_is_prevented():
    found = condition([0.5, 0.9, 0.6, 0.7, 0.8, 0.6, 0.6], [0.9, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9])
    np.testing.assert_allclose(found["WPL"]["prevents"], 0.75)
    np.testing.assert_allclose(found["L2 anchor"]["prevents"], 0.25)
    said = findings.of_condition(found)
    assert "costs A 40.0 points (+37.1 to +42.9)" in said
    assert "Against plain training, WPL leaves A 30.0 points better (+27.1 to +32.9)" in said
    assert "Against frozen layers, WPL leaves A 10.0 points worse" in said
    assert "B 40.0 points better" in said


def test_a_loss_that_could_be_none_is_not_said_to_be_prevented():
    found = condition([0.89] + 6 * [0.9], 7 * [0.9])
    assert found["WPL"]["prevents"] is None
    assert "not distinguishable from nothing (−1.9 to +3.9 points)" in findings.of_condition(found)
    assert "not distinguishable (−1.9 to +3.9)" in report.differences([found])
    assert " – |" in report.differences([found])


def test_bold_are_the_best_and_what_cannot_be_told_from_it():
    found = condition([0.89, 0.9, 0.8, 0.8, 0.8, 0.7, 0.7], [0.7, 0.5, 0.6, 0.9, 0.8, 0.4, 0.4])
    assert found["best"] == {"a": ["plain", "frozen"], "b": ["WPL"]}
    assert "| 80.0 ± 0.0 |" in report.accuracies([found], "a")
    assert "| **90.0 ± 0.0** |" in report.accuracies([found], "b")


def test_strengths_as_good_as_the_chosen_one_are_listed_and_ends_are_marked():
    found = condition([0.5, 0.9, 0.8, 0.9, 0.9, 0.3, 0.6], [0.9, 0.9, 0.8, 0.9, 0.9, 0.4, 0.6])
    assert found["WPL"]["as_good"] == [10.0, 100.0]
    shown = report.chosen_strengths([found])
    assert "| A converged | WPL | 10 | 10 to 100 |" in shown
    assert "| A converged | L2 anchor | 1 † | 1 |" in shown


@pytest.mark.parametrize(
    ("strength", "text"),
    [(1e5, "10⁵"), (1e-4, "10⁻⁴"), (0.03, "0.03"), (100.0, "100"), (3e4, "30000")],
)
def test_strengths_are_written_as_powers(strength, text):
    assert findings.as_power(strength) == text


def checked(form=0.1, quarter=0.9, wpl=0.9):
    """A summary in which the L2 anchor of strength 1 fails, and what it does otherwise."""
    found = condition(7 * [0.9], [0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.1])
    lowest = dict.fromkeys(CHECKS, 0.9) | {
        "additive form": form,
        "a quarter of the learning rate": quarter,
        "1.5 times the learning rate": wpl,
    }
    checks = {}
    for name, check in CHECKS.items():
        strengths = check.strengths(CONFIG)
        finals = outcome(*[np.tile([0.9] * (len(strengths) - 1) + [lowest[name]], (4, 1))] * 2)
        checks[name] = [
            {"strength": s} | results.of_strength(finals, i) for i, s in enumerate(strengths)
        ]
    regime = {"learning_rate": 0.2, "momentum": 0.7}
    return {"conditions": [found], "checks": checks, "regime": regime}


def test_where_the_l2_anchor_fails_and_what_decides_it_is_said():
    said = findings.valley(checked())
    assert "the L2 anchor at the strengths 1 leaves B more than 20 points below" in said
    assert "additive form: fails at 1;" in said
    assert "a quarter of the learning rate: B ends at 90.0 % or more" in said
    assert "neither the proximal step nor its interplay with momentum is to blame" in said
    assert "at 90.0 to 90.0 % with WPL, by its strength. At no strength" in said


@pytest.mark.parametrize("other", [{"form": 0.9}, {"quarter": 0.1}])
def test_no_reason_is_given_where_the_checks_give_none(other):
    assert "to blame" not in findings.valley(checked(**other))


def test_where_wpl_fails_is_said_too():
    said = findings.valley(checked(wpl=0.1))
    assert "With 1.5 times the learning rate, B ends at 90.0 % after plain training" in said
    assert "At 100 B ends more than 20 points below plain" in said


def test_a_check_begins_with_plain_training():
    assert Check("WPL").strengths(CONFIG) == [0.0, 1.0, 10.0, 100.0]
    assert Check("L2 anchor").strengths(CONFIG) == [0.0, 0.1, 1.0]

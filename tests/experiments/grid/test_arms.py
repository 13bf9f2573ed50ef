"""Arms are read from the command line: flags to choose from, at every place of a map."""

import pytest

from experiments.grid.arms import arms_of, axes_of


def test_arms_have_flags_or_several_to_choose_from():
    plain, wpl = arms_of(["plain:", "WPL: --method wpl --strength 1 | --strength '2'"], {})
    assert (plain.name, plain.folder, plain.candidates) == ("plain", "plain", ((),))
    assert wpl.candidates == (("--method", "wpl", "--strength", "1"), ("--strength", "2"))
    assert wpl.all_flags(1) == ("--strength", "2")


def test_every_arm_is_at_every_place():
    axes = axes_of(["learning-rate=0.1,1", "--search.batches = 3, 4"])
    assert axes["search.batches"] == {
        "3": ("--search.batches", "3"),
        "4": ("--search.batches", "4"),
    }
    arms = arms_of(["plain: --method none", "my replay: --method replay"], axes)
    assert [arm.method for arm in arms] == ["plain", "my replay"] * 4
    assert arms[3].name == "my replay, learning-rate=0.1, search.batches=4"
    assert arms[3].folder == "my_replay_learning-rate=0.1_search.batches=4"
    assert arms[3].all_flags(0) == (
        *("--learning-rate", "0.1", "--search.batches", "4"),
        *("--method", "replay"),
    )
    alone = arms_of([], axes)
    assert [arm.name for arm in alone[:2]] == [
        "learning-rate=0.1, search.batches=3",
        "learning-rate=0.1, search.batches=4",
    ]


def test_a_value_may_bring_more_flags_which_no_arm_sets():
    axes = axes_of(["search.batches=1 --search.architectures 40, 8 --search.architectures=5"])
    few, many = arms_of(["a: --method none"], axes)
    assert few.all_flags(0) == (
        *("--search.batches", "1", "--search.architectures", "40"),
        *("--method", "none"),
    )
    assert (many.name, many.place) == ("a, search.batches=8", {"search.batches": "8"})
    with pytest.raises(ValueError, match="the arm a sets --search.architectures, which --vary"):
        arms_of(["a: --search.architectures 3"], axes)


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (["learning-rate"], "--vary must be FLAG=V1,V2,…, got 'learning-rate'"),
        (["=1,2"], "got '=1,2'"),
        (["momentum=1,,2"], "got 'momentum=1,,2'"),
        (["momentum=1,2,1"], "each flag and value once, got 'momentum=1,2,1'"),
        (["batch-size=1", "batch_size=2"], "each flag and value once, got 'batch_size=2'"),
    ],
)
def test_axes_that_are_none_are_refused(vary, message):
    with pytest.raises(ValueError, match=message):
        axes_of(vary)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (["--method wpl"], "--arms must be 'NAME: FLAGS', with a name of .*, got '--method wpl'"),
        (["a|b: --method wpl"], "with a name of letters"),
        (["a: --strength 1", "b:", "a: --strength 2"], "different names, got a, b, a"),
        (
            ["a b: --strength 1", "a_b: --strength 2"],
            "the arms a b, .* and a_b, .* are too much alike",
        ),
        (["a: --learning_rate 3"], "the arm a sets --learning-rate, which --vary varies"),
        (["a: --strength '1"], "No closing quotation"),
        (["a b: --strength 1 | --strength 2", "a_b: --epochs 3"], "too much alike"),
    ],
)
def test_arms_that_are_none_are_refused(arms, message):
    with pytest.raises(ValueError, match=message):
        arms_of(arms, axes_of(["learning-rate=1,2"]))

"""Files of true accuracies are read, and what is wrong with one is said in a line."""

import pytest

from experiments.ranking import truth

TWO = "architecture,a_accuracy,size,b_accuracy\nx,10.00,3,20\ny,30,4,40.5\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "truth.csv"


def test_the_accuracies_of_a_column(path):
    path.write_text(TWO)
    assert truth.read(path, "b_accuracy") == {"x": 20, "y": 40.5}
    path.write_text("thousand_parameters,architecture,c_accuracy\n1,x,0\n1,y,100\n")
    assert truth.read(path) == truth.read(path, "c_accuracy") == {"x": 0, "y": 100}
    path.write_text("architecture,validation_error_rate\nx,0.25\n")
    assert truth.read(path) == {"x": 75}


def test_several_lines_of_an_architecture_are_averaged(path):
    path.write_text("architecture,seed,a_accuracy\nx,0,10\ny,0,40\nx,1,20\nx,2,60\n")
    assert truth.read(path) == {"x": 30, "y": 40}


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("", None, "must name a column architecture, has nothing"),
        ("name,a_accuracy\n", None, "a column architecture, has name, a_accuracy"),
        (
            "architecture,size\n",
            None,
            "whose name ends in _accuracy or _error_rate, has architecture, size",
        ),
        ("architecture,a_accuracy\n", None, "has no architectures below"),
        (TWO, None, "has a_accuracy, b_accuracy: choose one with --column"),
        (TWO, "size", "--column must be one of a_accuracy, b_accuracy, got 'size'"),
        (TWO + "z,1,1\n", "b_accuracy", "line 4: b_accuracy must be in percent, .* got None"),
        (TWO + "z,1,1,\n", "b_accuracy", "line 4: .* got ''"),
        (TWO + "z,1,1,nan\n", "b_accuracy", "line 4: .* got 'nan'"),
        (TWO + "z,1,1,-1\n", "b_accuracy", "0 to 100, got '-1'"),
        (TWO + '"z,1', "a_accuracy", "is not a CSV file: "),
        ("architecture,a_accuracy\n,10\n", None, "line 2: has no architecture"),
        ("a_accuracy,architecture\n10\n", None, "line 2: has no architecture"),
        ("architecture,a_accuracy,a_accuracy\nx,10,90\n", None, "must name each column once"),
        ("architecture,a_accuracy\nx,0.1\ny,0.9\n", None, "in percent, .* none is above 1"),
    ],
)
def test_a_file_that_is_wrong(path, text, column, says):
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        truth.read(path, column)
    assert str(path) in str(error.value) or "--column" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_as_a_spreadsheet_saves_it(path):
    path.write_bytes(b"\xef\xbb\xbfarchitecture,a_accuracy\r\nx,10\r\n")
    assert truth.read(path) == {"x": 10}


def test_a_digest_tells_truths_apart_and_not_their_order():
    known = {"x": 10.0, "y": 20.0}
    assert truth.digest(known) == truth.digest({"y": 20.0, "x": 10.0})
    assert truth.digest(known) != truth.digest(known | {"y": 20.5})


def test_a_file_that_is_no_text(path):
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not a CSV file"):
        truth.read(path)
    with pytest.raises(FileNotFoundError):
        truth.read(path.with_suffix(".gone"))

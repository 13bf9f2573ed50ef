"""The page that gathers runs: all are on it, it differs where they do, and it is one file."""

import base64
import json
import re
import xml.etree.ElementTree

import matplotlib.pyplot as plt
import pytest

from experiments import report


@pytest.fixture
def runs(tmp_path):
    """Two runs that differ in one setting, one of them with epochs and a figure."""
    for name, rate, error in ("a", 0.1, 12.5), ("b <i>", 0.2, None):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        summary = {
            "test": {"error": error, "seeds": [1, 2]},
            "configuration": {"sgd": {"rate": rate, "momentum": 0.9}, "data": "ptb"},
            "command": f"python -m experiments.search --rate {rate}",
            "versions": {"jax": "0.10.2"},
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    folder = tmp_path / "runs" / "a"
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "loss": 6.25}\n{"epoch": 2, "loss": 5.5}\n')
    figure, axes = plt.subplots(figsize=(1, 1))
    axes.plot([1, 2])
    figure.savefig(folder / "figure_3.png")
    plt.close(figure)
    return tmp_path / "runs"


def tables(page):
    """Each table's rows of text."""
    found = re.findall(r"<table.*?</table>", page, flags=re.DOTALL)
    rows = []
    for table in found:
        tree = xml.etree.ElementTree.fromstring(re.sub("tabindex=0", "", table))
        rows.append([["".join(c.itertext()) for c in row] for row in tree.iter("tr")])
    return rows


def test_has_every_run_and_what_differs(runs, tmp_path, capsys):
    out = tmp_path / "pages" / "report.html"
    assert report.main([str(runs), "--out", str(out)]) == 0
    assert "2 runs" in capsys.readouterr().out
    page = out.read_text()
    a, b = str(runs / "a"), str(runs / "b <i>")
    results, differing, *rest = tables(page)
    assert results == [["run", "test.error"], [a, "12.5"], [b, ""]]
    assert differing == [["run", "sgd.rate"], [a, "0.1"], [b, "0.2"]]
    assert [["epoch", "loss"], ["1", "6.25"], ["2", "5.5"]] in rest
    assert "python -m experiments.search --rate 0.2" in page
    assert "<i>" not in page


def test_is_one_file(runs, tmp_path):
    """The figure is in it, and nothing is loaded from elsewhere."""
    page = report.page(report.find([runs]))
    (figure,) = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    assert base64.b64decode(figure) == (runs / "a" / "figure_3.png").read_bytes()
    assert re.findall(r'(?:href|src)="(?!#|data:)', page) == []


def test_finds_a_run_once(runs):
    assert len(report.find([runs / "a", runs])) == 2


def test_says_what_has_no_runs(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert f"no finished run, which has a summary.json, in or under {tmp_path}" in (
        capsys.readouterr().err
    )


def test_says_which_summary_is_damaged(runs, capsys):
    (runs / "a" / "summary.json").write_text('{"test": ')
    assert report.main([str(runs)]) == 2
    assert f"{runs / 'a' / 'summary.json'} is damaged" in capsys.readouterr().err

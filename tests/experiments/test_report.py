"""The page that gathers runs: it is one file that shows them all, and what it refuses."""

import base64
import copy
import json
import os
import re
import xml.etree.ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_summaries import SUMMARIES

from experiments.report import __main__ as report
from experiments.report.headlines import Curve
from experiments.report.overlay import overlay
from experiments.report.page import page
from experiments.report.runs import Run, find


def write(folder, summary, **files):
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return folder


def draw(path):
    figure, axes = plt.subplots(figsize=(1, 1))
    axes.plot([1, 2])
    figure.savefig(path)
    plt.close(figure)


@pytest.fixture
def runs(tmp_path):
    """Two searches that differ in one setting, one of them with a report and a figure."""
    a = write(
        tmp_path / "runs" / "a",
        SUMMARIES["search"],
        metrics_jsonl='{"epoch": 1, "train_loss": 6.25}\n{"epoch": 2, "train_loss": 5.5}\n',
        report_md="# What came of it\n\n| x | y |\n| - | -: |\n| 1 | 2 |\n\n![It falls](loss.png)",
    )
    draw(a / "loss.png")
    draw(a / "cell.png")
    changed = SUMMARIES["search"] | {"configuration": {"strength": "<i>", "rnn": {"nodes": 12}}}
    losses = enumerate(("7.0", "6.5", "null"), 1)
    lines = [f'{{"epoch": {epoch}, "train_loss": {loss}}}\n' for epoch, loss in losses]
    metrics = "".join(lines) + '{"epoch": 4, "trai'
    write(tmp_path / "runs" / "b <i>$", changed, metrics_jsonl=metrics)
    return tmp_path / "runs"


def html_tables(text):
    """Each table's rows of text."""
    rows = []
    for table in re.findall(r"<table.*?</table>", text, flags=re.DOTALL):
        plain = re.sub(r"<th tabindex=0 class=\w+>", "<th>", table)
        tree = xml.etree.ElementTree.fromstring(plain)
        rows.append([["".join(c.itertext()) for c in row] for row in tree.iter("tr")])
    return rows


# --- The page -------------------------------------------------------------------------------------


def test_has_every_run_and_what_differs(runs, tmp_path, capsys):
    out = tmp_path / "pages" / "report.html"
    assert report.main([str(runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"2 runs on {out}\n"
    text = out.read_text()
    results, differing, *rest = html_tables(text)
    assert results[0][:2] == ["run", "forgetting, mean"]
    assert [row[:2] for row in results[1:]] == [["a", "1.50"], ["b <i>$", "1.50"]]
    assert differing == [["run", "strength"], ["a", "10"], ["b <i>$", "<i>"]]
    assert [["epoch", "train_loss"], ["1", "6.25"], ["2", "5.5"]] in rest
    assert "python -m experiments.search" in text
    assert "<i>" not in text


def test_is_one_file(runs):
    """Figures are in it, each once, and nothing is loaded from elsewhere."""
    text = page(*find([runs]))
    figures = [
        base64.b64decode(f) for f in re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    ]
    assert figures == [(runs / "a" / name).read_bytes() for name in ("loss.png", "cell.png")]
    assert re.findall(r"(?:href|src)=(?!\"#|\"data:image/)", text) == []
    assert "default-src 'none'" in text


def test_has_the_runs_report(runs):
    text = page(*find([runs]))
    assert "<h3>What came of it</h3>" in text
    assert [["x", "y"], ["1", "2"]] in html_tables(text)
    assert '<img alt="It falls"' in text


def test_does_not_obey_a_report(runs):
    (runs / "a" / "report.md").write_text(
        "<script>alert(1)</script> [in](cells/x.json) [out](https://a.example/b) "
        "![off](https://a.example/c.png) ![up](../b/d.png) [bad](javascript:alert(1))\n"
    )
    (article,) = re.findall(r"<article>(.*)</article>", page(*find([runs])), flags=re.DOTALL)
    assert article.strip() == (
        "<p>&lt;script&gt;alert(1)&lt;/script&gt; in "
        '<a href="https://a.example/b">out</a> [off] [up] [bad](javascript:alert(1))</p>'
    )


def test_draws_runs_over_each_other(runs):
    """A line and a label a run; only metrics that several runs have."""
    text = page(*find([runs]))
    (image,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', text)
    drawn = "".join(xml.etree.ElementTree.fromstring(base64.b64decode(image)).itertext())
    assert "training loss" in drawn
    assert "b <i>$" in drawn
    assert page(*find([runs])) == text
    one = page(*find([runs / "a"]))
    assert "svg+xml" not in one


def label_heights(labels):
    """Where the labels of lines that end close to each other stand in the image, in points."""
    ends = np.linspace(0, 1e-3, len(labels))
    curves = {
        label: Curve(np.arange(2), np.full(2, end)) for label, end in zip(labels, ends, strict=True)
    }
    image = xml.etree.ElementTree.fromstring(overlay("title", curves, "epoch"))
    texts = image.iter("{http://www.w3.org/2000/svg}text")
    return {"".join(text.itertext()): float(text.attrib["y"]) for text in texts}


def test_labels_of_many_runs_do_not_overlap():
    labels = [f"run {i}" for i in range(40)]
    heights = label_heights(labels)
    between = -np.diff([heights[label] for label in labels])
    assert (between > 9).all()


def test_long_labels_are_clipped_unless_they_were_the_same_then():
    long, other = 30 * "x" + "1", 30 * "x" + "2"
    assert f"…{long[-23:]}" in label_heights([long, other])
    assert long[1:] not in label_heights([long, other])
    assert {"a" + long, "b" + long} <= set(label_heights(["a" + long, "b" + long]))


def test_finds_a_run_once(runs, tmp_path):
    (tmp_path / "link").symlink_to(runs)
    found, left_out = find([runs / "a", runs, tmp_path / "link"])
    assert [run.name for run in found] == ["a", "b <i>$"]
    assert left_out == []


def test_names_links_to_runs_that_it_does_not_follow(runs, tmp_path, capsys):
    (tmp_path / "some").mkdir()
    (runs / "b <i>$").rename(tmp_path / "some" / "b\nc")
    (tmp_path / "some" / "link").symlink_to(runs / "a")
    out = tmp_path / "report.html"
    assert report.main([str(tmp_path / "some"), "--out", str(out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line == f"report: left out: {tmp_path}/some/link is a symbolic link, which is not followed"
    )


def test_names_of_folders_do_not_break_lines(tmp_path, capsys):
    write(tmp_path / "a\nb", SUMMARIES["search"])
    (tmp_path / "a\nb" / "x.png").touch()
    assert report.main([str(tmp_path), "--out", str(tmp_path / "report.html")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert report.main([str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "--out must be a file, got the folder" in capsys.readouterr().err


# --- What it refuses ------------------------------------------------------------------------------


def test_says_what_has_no_runs(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert f"no finished run, which has a summary.json, in or under {tmp_path}" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[1, 2]", "it must hold an object, got [1, 2]"),
        ("3", "it must hold an object, got 3"),
        ('{"a": ', "Expecting value"),
        ("[" * 100_000, "recursion"),
        ('{"a": ' * 101 + "1" + "}" * 101, "nested too deeply"),
        (b"\xff\xfe\xfa", "decode"),
        (None, "is not a file"),
        ("link", "is a symbolic link, which is not followed"),
        ("broken link", "is a symbolic link, which is not followed"),
        ("pipe", "is not a file"),
    ],
)
def test_leaves_out_in_a_line_what_is_no_summary(runs, tmp_path, capsys, content, reason):
    bad = runs / "bad" / "summary.json"
    bad.parent.mkdir()
    (tmp_path / "elsewhere.json").write_text('{"secret": 1}')
    if content is None:
        bad.mkdir()
    elif content == "pipe":
        os.mkfifo(bad)
    elif content == "link":
        bad.symlink_to(tmp_path / "elsewhere.json")
    elif content == "broken link":
        bad.symlink_to(tmp_path / "nowhere.json")
    else:
        bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    out = tmp_path / "report.html"
    assert report.main([str(runs), "--out", str(out)]) == 1
    said, error = capsys.readouterr()
    assert said == f"2 runs on {out}\n"
    (line,) = error.splitlines()
    assert line.startswith(f"report: left out: {bad} ")
    assert reason in line
    assert "Left out" in out.read_text()
    assert "secret" not in out.read_text()


def test_says_that_no_run_can_be_read(tmp_path, capsys):
    (tmp_path / "summary.json").write_text("1")
    assert report.main([str(tmp_path)]) == 2
    assert "no run can be read: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["report.md", "metrics.jsonl", "curves.npz", "figure.png"])
@pytest.mark.parametrize("what", ["link", "broken link", "folder", "garbage"])
def test_embeds_only_files_of_the_run(tmp_path, capsys, name, what):
    run = write(tmp_path / "run", SUMMARIES["search"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("secret")
    if what == "folder":
        (run / name).mkdir()
    elif what == "garbage":
        (run / name).write_bytes(b"PK\x03\x04 \xff\n")
    else:
        (run / name).symlink_to(elsewhere if what == "link" else "nowhere")
    torn = name == "metrics.jsonl" and what == "garbage"  # a line that a run did not finish
    out = tmp_path / "report.html"
    assert report.main([str(run), "--out", str(out)]) == (0 if torn else 1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"report: left out: {run / name} ") for line in lines] == (
        [] if torn else [True]
    )
    assert "secret" not in out.read_text()
    assert base64.b64encode(b"secret").decode() not in out.read_text()


def test_lines_of_metrics_that_hold_no_object_are_none(tmp_path):
    run = write(tmp_path / "run", SUMMARIES["search"], metrics_jsonl='1\n[2]\n{"epoch": 1}\n{"ep')
    ((found,), _) = find([run])
    assert found.metrics == [{"epoch": 1}]


def test_shows_text_that_is_no_unicode(tmp_path):
    summary = SUMMARIES["two_models"] | {"\udcff": 1, "command": "\ud800"}
    run = write(tmp_path / "run", summary)
    assert report.main([str(run), "--out", str(tmp_path / "report.html")]) == 0


def places(tree, path=()):
    """Paths of all members, so that each may be replaced."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield (*path, key)
            yield from places(value, (*path, key))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=75, deadline=None)
@given(st.data())
def test_any_summary_has_a_page(data):
    """Whatever stands where something else is expected."""
    summary = copy.deepcopy(data.draw(st.sampled_from(list(SUMMARIES.values()))))
    *path, last = data.draw(st.sampled_from(list(places(summary))))
    target = summary
    for key in path:
        target = target[key]
    target[last] = data.draw(JSON)
    records = [{"epoch": data.draw(JSON), "loss": data.draw(JSON)} for _ in range(2)]
    anything = np.array(data.draw(st.sampled_from([1.5, "a", [1, 2], [[True]], [[0.1, 0.2]]])))
    arrays = {
        name: anything
        for name in ("plain/epoch", "methods", "strengths", "A converged/curve_a", "plain/reward")
    }
    runs = [Run(name, summary, metrics=records, arrays=arrays) for name in "ab"]
    assert page(runs).startswith("<!doctype html>")

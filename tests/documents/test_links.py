"""What documents and notebooks link to exists; for those of docs/ make docs sees to it."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    path
    for folder in ("", "examples/**/", "experiments/**/", "benchmarks/**/")
    for suffix in ("md", "ipynb")
    for path in sorted(ROOT.glob(f"{folder}*.{suffix}"))
]


def markdown(path):
    if path.suffix == ".md":
        return path.read_text()
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def missing(path):
    targets = re.findall(r"\]\((?!\w+:)([^)#]+)", markdown(path))
    return [target for target in targets if not (path.parent / target).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_links_to_exists(path):
    assert not missing(path)


def test_a_missing_target_is_found(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("[1](page.md#a) [2](https://example.org) [3](#a) ![4](gone.png)")
    assert missing(path) == ["gone.png"]

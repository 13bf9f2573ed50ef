"""The notebooks are kept without outputs and lead to the documentation.

That they run from top to bottom, `make docs` sees to: it runs them and shows their outputs.
"""

from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "experiments/notebooks").glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@every_notebook
def test_is_kept_without_outputs(path):
    """In git, outputs would change with every run: `jupyter nbconvert --clear-output --inplace`."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


@every_notebook
def test_keeps_compiled_programs_if_it_searches(path):
    code = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    if any("from wpl_jax.search import" in source for source in code):
        assert "\ncompiled.keep()" in code[0]


@every_notebook
def test_links_to_the_documentation_and_back(path):
    cells = nbformat.read(path, as_version=4).cells
    assert any("](../../docs/" in cell.source for cell in cells if cell.cell_type == "markdown")
    assert f"(../experiments/notebooks/{path.name})" in (ROOT / "docs/index.md").read_text()


@every_notebook
def test_is_a_page_of_the_documentation(path):
    """Else `make docs`, which stops at a page that none leads to, would not show it."""
    assert f"<notebooks/{path.stem}>" in (ROOT / "docs/index.md").read_text()

"""The documentation's settings for Sphinx: make docs."""

import functools
import hashlib
import importlib
import inspect
import os
import pkgutil
import re
import shutil
from pathlib import Path

import chex
import jax
import optax
from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging

# Types that are long unions are shown by their names: before wpl_jax is annotated with them.
for package, name in [
    (chex, "ArrayTree"),
    (chex, "Numeric"),
    (jax.typing, "ArrayLike"),
    (optax, "ScalarOrSchedule"),
    (optax, "Schedule"),
]:
    setattr(package, name, type(name, (), {"__module__": package.__name__}))

import wpl_jax  # noqa: E402

HERE = Path(__file__).parent

# Files of the repository, and where they are in the documentation.
PAGES = {
    "experiments/notebooks/": "notebooks/",  # a link to the folder
    "experiments/results/two_models/mnist/report.md": "reports/two_models.md",
    "experiments/results/search_rnn/controller/report.md": "reports/search_rnn_controller.md",
    "experiments/results/search_rnn/map/report.md": "reports/search_rnn_map.md",
    "experiments/results/search_rnn/trade_off/report.md": "reports/search_rnn_trade_off.md",
    "experiments/results/search_rnn/uniform/report.md": "reports/search_rnn_uniform.md",
    "experiments/results/search_rnn/published/report.md": "reports/search_rnn_published.md",
    "experiments/results/search_rnn/published_full_width/report.md": (
        "reports/search_rnn_published_full_width.md"
    ),
    "experiments/results/search_cnn/controller/report.md": "reports/search_cnn_controller.md",
    "experiments/results/search_cnn/uniform/report.md": "reports/search_cnn_uniform.md",
    "experiments/results/search_cnn/published/report.md": "reports/search_cnn_published.md",
    "experiments/results/search_cnn/map/report.md": "reports/search_cnn_map.md",
    "experiments/results/importances/report.md": "importances.md",
    **{
        f"experiments/results/nas_bench_201/{name}/report.md": f"reports/nas_bench_201_{name}.md"
        for name in ("map", "methods", "methods_balanced", "methods_forgetting", "sizes")
    },
}


def copy_notebooks():
    """Sphinx reads only what is below its folder, and takes a link for what it points to."""
    originals, copies = HERE.parent / "experiments/notebooks", HERE / "notebooks"
    shutil.copytree(originals, copies, dirs_exist_ok=True)
    for copy in copies.glob("*.ipynb"):
        if not (originals / copy.name).exists():
            copy.unlink()


def what_notebooks_import():
    """Name the state of the modules that the notebooks import: outputs are kept for each."""
    paths = [
        *sorted((HERE.parent / "wpl_jax").rglob("*.py")),
        *sorted((HERE.parent / "experiments/ranking").glob("*.py")),
        HERE.parent / "examples/layers_space.py",
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


project = "wpl_jax"
author = "The wpl_jax authors"
copyright = author
version = release = wpl_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
default_role = "code"
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

# Notebooks are run when they, or what they import, have changed since the last build.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build/notebooks" / what_notebooks_import())
nb_execution_show_tb = True
nb_execution_timeout = 600
# Those that compile a search take the longest; CI shows them without outputs.
quick = "WPL_DOCS_QUICK" in os.environ
nb_execution_excludepatterns = ["03_*.ipynb", "04_*.ipynb", "05_*.ipynb"] if quick else []
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True

# Every reference must resolve, but for types of other packages (whose indices would have to be
# fetched) and what is private.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!wpl_jax).*"),
    ("py:.*", r"wpl_jax.*\._.*|wpl_jax.checkpoint.State"),
]

html_theme = "furo"
html_title = "wpl_jax"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_math_renderer = "mathml"


def setup(app):
    copy_notebooks()
    document_fields()
    inline, block = (functools.partial(formula, display) for display in (False, True))
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("source-read", without_blank_ends)
    app.connect("source-read", to_pages)
    app.connect("autodoc-process-docstring", without_type, priority=1)  # before napoleon
    app.connect("autodoc-process-signature", with_own_arguments)
    app.connect("missing-reference", in_the_package)


def document_fields():
    """Give the fields of named tuples the comments behind them as their docstrings."""
    for info in pkgutil.walk_packages(wpl_jax.__path__, "wpl_jax."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == info.name:
                for field in getattr(value, "_fields", ()):
                    line = rf"^    {field}: .*# (.*)$"
                    comment = re.search(line, inspect.getsource(value), re.MULTILINE)
                    getattr(value, field).__doc__ = comment[1] if comment else ""


def formula(display, translator, node):
    """Write a formula as MathML, which browsers set by themselves."""
    try:
        convert = LatexToMathML(fancy_error=False).convert_with_local_state
        translator.body.append(convert(node.astext(), displaystyle=display))
    except LatexError as error:
        logging.getLogger(__name__).warning("%s", error, location=node)
    raise nodes.SkipNode


def without_blank_ends(app, page, source):
    """Leave out the blank line that ends the output of an example, for doctest."""
    source[0] = source[0].replace("\n\n```\n", "\n```\n")


def to_pages(app, page, source):
    """Lead links to files that have a page here, and are right on GitHub, to that page."""
    for path, target in PAGES.items():
        source[0] = re.sub(rf"(\]\((\.\./)*?)\.\./{path}", rf"\g<1>{target}", source[0])


def without_type(app, what, name, obj, options, lines):
    """Keep napoleon from taking what is before a colon in an attribute's first line for a type.

    The first line is then that of an empty comment.
    """
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def with_own_arguments(app, what, name, obj, options, signature, returns):
    """Leave out what no one passes: arguments of a protocol, and Flax's own ones of a module."""
    if signature == "(*args, **kwargs)":
        return "", None
    return signature and re.sub(r", parent: .*", ")", signature), returns


def in_the_package(app, env, node, content):
    """Find what the core's modules define under the names that the package gives it."""
    target = f"wpl_jax.{node['reftarget']}"
    domain = env.domains["py"]
    if node.get("refdomain") == "py" and target in domain.objects:
        place = node["refdoc"], app.builder, node["reftype"]
        return domain.resolve_xref(env, *place, target, node, content)

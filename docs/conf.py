"""The documentation's settings for Sphinx: make docs."""

import inspect
import re
import sys

import chex
import jax
import optax
from sphinx.util.typing import stringify_annotation

import wpl_jax

project = "wpl_jax"
author = "The wpl_jax authors"
copyright = author
version = release = wpl_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
default_role = "code"
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
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
html_css_files = ["tables.css"]

# Unions that annotations have been expanded to, and their names; the longest, if nested, first.
ALIASES = {
    stringify_annotation(annotation, "smart"): name
    for name, annotation in {
        "optax.ScalarOrSchedule": wpl_jax.plasticity.ScalarOrSchedule,
        "chex.ArrayTree": chex.ArrayTree,
        "chex.Numeric": chex.Numeric,
        "jax.typing.ArrayLike": jax.typing.ArrayLike,
        "optax.Schedule": optax.Schedule,
    }.items()
}


def setup(app):
    app.connect("source-read", without_blank_ends)
    app.connect("autodoc-process-signature", with_aliases)
    app.connect("missing-reference", in_the_package)
    app.connect("autodoc-process-docstring", with_field_comments)


def without_blank_ends(app, page, source):
    """Leave out the blank line that ends the output of an example, for doctest."""
    source[0] = source[0].replace("\n\n```\n", "\n```\n")


def with_aliases(app, what, name, obj, options, signature, returns):
    if signature == "(*args, **kwargs)":  # of a protocol, which no one calls
        return "", None
    for union, alias in ALIASES.items():
        signature = signature and signature.replace(union, alias)
        returns = returns and returns.replace(union, alias)
    return signature, returns


def in_the_package(app, env, node, content):
    """Find what the core's modules define under the names that the package gives it."""
    target = f"wpl_jax.{node['reftarget']}"
    domain = env.domains["py"]
    if node.get("refdomain") == "py" and target in domain.objects:
        place = node["refdoc"], app.builder, node["reftype"]
        return domain.resolve_xref(env, *place, target, node, content)


def with_field_comments(app, what, name, obj, options, lines):
    """Document the field of a named tuple by the comment behind it."""
    if lines and lines[0].startswith("Alias for field number"):
        module, of_class, field = name.rsplit(".", 2)
        source = inspect.getsource(getattr(sys.modules[module], of_class))
        comment = re.search(rf"^    {field}: .*# (.*)$", source, re.MULTILINE)
        lines[:] = [comment[1]] if comment else []

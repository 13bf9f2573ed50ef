"""A run's report.md as a part of the page."""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import PurePosixPath
from urllib.parse import unquote

try:
    from markdown_it import MarkdownIt
except ImportError as error:
    raise ImportError(
        "the report needs markdown-it-py: pip install '.[experiments]' in the checkout"
    ) from error


def rendered(markdown: str, figures: Mapping[str, bytes]) -> tuple[str, set[str]]:
    """HTML of a report, and the names of the figures in it.

    HTML in it is shown, not obeyed. Figures, PNG images by name, are embedded; other images are
    named only. Links to the web are kept, those to files become their text.
    """
    parser = MarkdownIt("js-default")
    parser.add_render_rule("image", image)
    parser.add_render_rule("table_open", lambda *_: '<div class="wide"><table>')
    parser.add_render_rule("table_close", lambda *_: "</table></div>")
    tokens = parser.parse(markdown)
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{min(int(token.tag[1]) + 2, 6)}"  # below the run's own heading
        away = False
        for child in token.children or ():
            if child.type == "link_open":
                away = str(child.attrs["href"]).startswith(("https://", "http://"))
            if child.type.startswith("link"):
                child.hidden = not away
    env: dict = {"figures": figures, "inlined": set()}
    return parser.renderer.render(tokens, parser.options, env), env["inlined"]


def image(self, tokens, idx, options, env):
    """A figure of the run, or its description where there is none."""
    del self, options
    alt = tokens[idx].content
    name = str(PurePosixPath(unquote(str(tokens[idx].attrs["src"]))))
    data = env["figures"].get(name)
    if data is None:
        return f"[{escape(alt)}]"
    env["inlined"].add(name)
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return f'<img alt="{escape(alt)}" src="{url}">'

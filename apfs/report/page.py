"""The report page: one HTML file that needs nothing else, and loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, Any

from apfs import __version__
from apfs.report.story import together

if TYPE_CHECKING:
    from collections.abc import Sequence

_SCRIPTS = ("cells.js", "matrix.js", "page.js")


def page(stories: Sequence[dict[str, Any]], title: str) -> str:
    """Return the page of one host, or of several side by side.

    Texts of hosts get into it as JSON only, in which nothing ends the element around it; the script makes texts of
    them, never markup. The policy in its head allows this style and this script, and no request at all.
    """
    style, frame = _file("page.css"), _file("page.html")
    script = '"use strict";\n' + "".join(map(_file, _SCRIPTS))
    data = {"apfs": __version__, "title": title, "hosts": stories, "order": together(stories)}
    return Template(frame).substitute(
        title=html.escape(title.encode(errors="replace").decode()),  # names of files can have any bytes
        style_hash=_hash(style),
        script_hash=_hash(script),
        style=style,
        script=script,
        data=_embedded(data),
    )


def _file(name: str) -> str:
    return (resources.files(__package__) / "page_files" / name).read_text("utf-8")


def _embedded(data: object) -> str:
    """Return JSON that can be the text of a `script` element: there it has no markup, not even a comment's."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    """Return the digest by which a Content Security Policy names a text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

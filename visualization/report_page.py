"""One HTML file from a report's data and the page's static parts in `report/`: nothing is fetched, nothing is built.

The page's policy (CSP) allows only the two inlined texts by their hash, and pictures from data URIs: no network, and no
script that a file name could smuggle in. The data are JSON, which the scripts show as text, never as markup.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

_PARTS = Path(__file__).resolve().parent / "report"
_SCRIPTS = ("charts.js", "summary.js", "gallery.js", "page.js")


def build_page(data: Mapping[str, Any]) -> str:
    """The page.

    Args:
        data: What `make_report.report_content` makes: JSON values, finite numbers only.

    Returns:
        HTML that needs nothing beside it.

    Raises:
        ValueError: A number that is not finite.
    """
    style = _read("page.css")
    script = "\n".join(_read(name) for name in _SCRIPTS)
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template(_read("page.html")).substitute(
        title=html.escape(data["title"]), policy=policy, style=style, script=script, data=_embed(data)
    )


def _embed(data: Mapping[str, Any]) -> str:
    """JSON that can stand inside a script element: no `<` ends the element or opens a comment."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")

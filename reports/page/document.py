"""The HTML document: a template with the styles, the scripts and blocks of data, which are parsed when they are needed.

The content security policy allows the scripts of the file alone, by their hashes, and nothing from outside. Data are
never part of the markup: they are JSON, and the scripts put them into text nodes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STYLES = ("libraries/datatables.min.css", "assets/page.css")
LIBRARIES = ("datatables.min.js", "d3.min.js", "plot.umd.min.js")
SCRIPTS = ("elements", "table", "costs", "details", "question", "trace", "across", "main")
"""The parts of the page's own script, in order."""


def render(title: str, blocks: Mapping[str, Any]) -> str:
    """The document; ``blocks`` are plain data by the id under which the scripts find them."""
    own = "\n".join(_read(f"assets/{name}.js") for name in SCRIPTS)
    scripts = [*(_read(f"libraries/{name}") for name in LIBRARIES), f'"use strict";\n(() => {{\n{own}}})();\n']
    parts = {
        "policy": _policy(scripts),
        "title": html.escape(title),
        "styles": "\n".join(map(_read, STYLES)),
        "data": "\n".join(
            f'<script type="application/json" id="{name}">{_json(content)}</script>' for name, content in blocks.items()
        ),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    pieces = _read("assets/page.html").split("@@")  # text, name, text, ..., text
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _policy(scripts: list[str]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        f"form-action 'none'"
    )


def _json(content: Any) -> str:
    """JSON in which no text can end the element that holds it."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text

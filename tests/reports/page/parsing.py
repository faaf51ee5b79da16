"""A page as a browser reads it: its policy, its scripts, and its blocks of data."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Page(HTMLParser):
    """The parts of a page. Whatever is no part of the template ends up in ``tags``."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.policy = ""
        self.scripts: list[str] = []
        self.blocks: dict[str, Any] = {}
        self.tags: list[str] = []
        self._inside: str | None = None
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""
        if tag == "script":
            self._inside = values.get("id") or ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.blocks[self._inside] = json.loads(data)
        elif self._inside is not None:
            self.scripts.append(data)

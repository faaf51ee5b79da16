"""The papers in ``CITATIONS.bib``, to whose keys methods refer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import regex

from bench.errors import BenchError
from bench.paths import ROOT

FILE = ROOT / "CITATIONS.bib"
REQUIRED = ("author", "title", "year")
"""Fields that every entry has."""
_BEGINNING = regex.compile(r"@\w+\s*\{")
_ENTRY = regex.compile(
    r"@\w+\s*\{\s*(?P<key>[^\s,{}]+)\s*,(?P<fields>(?:[^{}]|(?P<group>\{(?:[^{}]|(?&group))*\}))*)\}"
)
_FIELD = regex.compile(
    r'(?P<name>[\w-]+)\s*=\s*(?:\{(?P<braces>(?:[^{}]|(?P<group>\{(?:[^{}]|(?&group))*\}))*)\}|"(?P<quotes>[^"]*)"|(?P<word>\w+))'
)


@dataclass(frozen=True)
class Paper:
    """An entry of a BibTeX file: its fields by name in lower case, without braces and line breaks."""

    key: str
    fields: Mapping[str, str]

    @property
    def authors(self) -> list[tuple[str, str]]:
        """(Surname, other names) of each author, in order."""
        authors = []
        for author in self.fields["author"].split(" and "):
            surname, comma, others = author.partition(",")
            if not comma:
                others, _, surname = author.rpartition(" ")
            authors.append((surname.strip(), others.strip()))
        return authors

    @property
    def label(self) -> str:
        """Authors and year as in a text: "Li 2025", "Li and Hu 2025", "Li et al. 2025"."""
        surnames = [surname for surname, _ in self.authors]
        return f"{f'{surnames[0]} et al.' if len(surnames) > 2 else ' and '.join(surnames)} {self.fields['year']}"

    @property
    def link(self) -> str:
        """Where to read it: the address of its DOI, its URL or that of its preprint, or "" if it has none of them."""
        if "doi" in self.fields:
            return f"https://doi.org/{self.fields['doi']}"
        if "url" in self.fields:
            return self.fields["url"]
        return f"https://arxiv.org/abs/{self.fields['eprint']}" if "eprint" in self.fields else ""

    def __str__(self) -> str:
        names = [f"{others} {surname}".strip() for surname, others in self.authors]
        authors = " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])
        venue = self.fields.get("booktitle") or self.fields.get("journal") or ""
        sentences = [f"{authors} ({self.fields['year']})", self.fields["title"], venue, self.fields.get("note", "")]
        return " ".join([*(f"{sentence}." for sentence in sentences if sentence), self.link]).strip()


def read(path: Path = FILE) -> dict[str, Paper]:
    """The papers of a BibTeX file by key. Text outside of entries is a comment.

    Raises:
        BenchError: an entry is not well formed, lacks a required field or has the key of another; the message names
            the line.
    """
    text = path.read_text(encoding="utf-8")
    papers: dict[str, Paper] = {}
    beginning = _BEGINNING.search(text)
    while beginning:
        where = f"{path.name}, line {text.count(chr(10), 0, beginning.start()) + 1}"
        entry = _ENTRY.match(text, beginning.start())
        if entry is None:
            raise BenchError(
                f"{where}: this entry is not well formed. Write @article{{key, author = {{...}}, title = {{...}}, "
                f"year = {{...}}}}, with a closing brace for each opening one."
            )
        paper = Paper(entry["key"], _fields(entry["fields"]))
        missing = [name for name in REQUIRED if not paper.fields.get(name)]
        if missing:
            raise BenchError(f"{where}: {paper.key} lacks the field {missing[0]}. Add it.")
        if paper.key in papers:
            raise BenchError(f"{where}: {paper.key} is the key of two entries. Rename or delete one of them.")
        papers[paper.key] = paper
        beginning = _BEGINNING.search(text, entry.end())
    return papers


def _fields(text: str) -> dict[str, str]:
    fields = {}
    for field in _FIELD.finditer(text):
        value = next(value for value in field.group("braces", "quotes", "word") if value is not None)
        fields[field["name"].lower()] = " ".join(value.replace("{", "").replace("}", "").split())
    return fields


def sentence(key: str) -> str:
    """The paper with this key in words; for a key that ``CITATIONS.bib`` lacks, a sentence that says so.

    Raises:
        BenchError: the file is not well formed.
    """
    if key == "none":
        return "Paper: none."
    papers = read()
    return f"Paper: {papers[key]}" if key in papers else f"Paper: {key}, which has no entry in {FILE.name}."

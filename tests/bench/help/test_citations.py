"""The keys of papers lead to entries that are well formed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.contract.registry import list_methods
from bench.errors import BenchError
from bench.help.citations import read, sentence
from tests.conftest import ROOT

BIB = """A comment.
@article{li2025, author = {Li, Ann and Hu, Bo}, title = {{CMT}: A
  {Memory} Method}, journal = "Letters", year = 2025, doi = {10.1/x},}

@misc{ray, author={Jo Ray}, title={T}, year={2024}, eprint={2401.1}}
@misc{many, author={van Dam, A. and B, C. and D, E.}, title={T}, year={2020}, url={https://example.org/a?b=@c}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "papers.bib"
    path.write_text(text, encoding="utf-8")
    return path


def test_entries_are_read_with_braces_quotes_and_bare_numbers(tmp_path: Path) -> None:
    papers = read(write(tmp_path, BIB))
    assert list(papers) == ["li2025", "ray", "many"]
    assert str(papers["li2025"]) == "Ann Li and Bo Hu (2025). CMT: A Memory Method. Letters. https://doi.org/10.1/x"
    assert str(papers["ray"]) == "Jo Ray (2024). T. https://arxiv.org/abs/2401.1"
    assert str(papers["many"]) == "A. van Dam, C. B and E. D (2020). T. https://example.org/a?b=@c"
    assert [paper.label for paper in papers.values()] == ["Li and Hu 2025", "Ray 2024", "van Dam et al. 2020"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n@misc{a, author = {X}, title = {T, year = {2020}}", "line 2: this entry is not well formed"),
        ("@misc{a}", "line 1: this entry is not well formed"),
        ("@misc{a, author = {X}, year = {2020}}", "line 1: a lacks the field title"),
        ("@misc{a, author = {}, title = {T}, year = {2020}}", "line 1: a lacks the field author"),
        (BIB + "@misc{ray, author={X}, title={T}, year={1}}", "line 7: ray is the key of two entries"),
    ],
)
def test_a_malformed_entry_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BenchError, match=re.escape(message)):
        read(write(tmp_path, text))


def test_a_key_without_an_entry_is_a_plain_sentence() -> None:
    assert sentence("smith2031") == "Paper: smith2031, which has no entry in CITATIONS.bib."
    assert sentence("none") == "Paper: none."


def test_every_method_has_its_paper_and_every_paper_is_used() -> None:
    papers = read()
    used = {info.paper for info in list_methods()} - {"none"}
    assert used <= papers.keys()
    page = (ROOT / "docs" / "methods.md").read_text()
    assert used | {key for key, paper in papers.items() if paper.label in _cited(page)} == papers.keys()


def test_every_citation_on_the_page_of_methods_has_an_entry() -> None:
    labels = {paper.label for paper in read().values()}
    cited = _cited((ROOT / "docs" / "methods.md").read_text())
    assert {"Hu et al. 2023", "Krause et al. 2019", "Robertson and Zaragoza 2009"} <= cited <= labels


def _cited(text: str) -> set[str]:
    """The citations in a text, each as the label of a paper: "Li et al. 2024, 2025" has two."""
    found = re.findall(r"([A-Z][\w-]+(?: et al\.| and [A-Z]\w+)) (\d{4}(?:, \d{4})*)\b", text)
    return {f"{authors} {year}" for authors, years in found for year in years.split(", ")}

"""Texts of documents and questions, which records name by id: those of datasets whose files are in the project."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bench.data.documents import Document


class Texts(NamedTuple):
    """Documents by their id, and the texts of questions by the id of their document and their own."""

    documents: Mapping[str, Document]
    questions: Mapping[tuple[str, str], str]


def texts(dataset: str, split: str) -> Texts:
    """The texts of a split; none if the project has no files of the dataset.

    A document's id is the hash of its text, so a text that is found is the one that a record means.
    """
    from bench.data import reader, recipe
    from bench.errors import BenchError

    try:
        found = recipe.find(dataset)
        files = found.source.files if found.source else None
        entries = reader.split_entries(dataset, split, {}) if files else ()
    except BenchError:  # the dataset, or the split, came from elsewhere
        entries = ()
    return Texts(
        {entry.document.id: entry.document for entry in entries},
        {(entry.document.id, gold.question.id): gold.question.text for entry in entries for gold in entry.questions},
    )

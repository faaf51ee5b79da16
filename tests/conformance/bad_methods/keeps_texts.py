"""Methods that keep texts of a stream where ``reset`` does not forget them, in every place that Python offers."""

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch

from bench import Conditioning, Document, Method, Question

SEEN: list[str] = []
TOKENS: list[torch.Tensor] = []
WORDS: set[str] = set()
ARCHIVE: dict[str, bytes] = {}


class Shelf:
    """A helper with a list that all its instances share."""

    texts: ClassVar[list[str]] = []


def make_keeper() -> Callable[[str], None]:
    """A function that keeps what it gets in a variable of its own."""
    texts: list[str] = []

    def keep(text: str) -> None:
        texts.append(text)

    return keep


keep_text = make_keeper()


@functools.cache
def length(text: str) -> int:
    """The number of words of a text, counted once."""
    return len(text.split())


def remember(text: str, texts: list[str] = []) -> None:  # noqa: B006 (this is the fault)
    """Add a text to the argument's default value."""
    texts.append(text)


class KeepsInModule(Method):
    """Keeps documents in a list of its module, and puts the most similar one before each question."""

    name = "keeps_in_module"
    paper = "none"

    def observe(self, document: Document) -> None:
        SEEN.append(document.text)

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        def similar(question: Question) -> str:
            words = set(question.text.split())
            return max(SEEN, key=lambda text: len(words & set(text.split())), default="")

        return Conditioning(text=[similar(question) for question in questions])


class KeepsInClass(Method):
    """Keeps documents in a list of its class, and puts the most similar one before each question."""

    name = "keeps_in_class"
    paper = "none"
    seen: ClassVar[list[str]] = []

    def observe(self, document: Document) -> None:
        type(self).seen.append(document.text)

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        def similar(question: Question) -> str:
            words = set(question.text.split())
            return max(self.seen, key=lambda text: len(words & set(text.split())), default="")

        return Conditioning(text=[similar(question) for question in questions])


class KeepsInDefault(Method):
    """Keeps documents in the default value of a function's argument."""

    name = "keeps_in_default"
    paper = "none"

    def observe(self, document: Document) -> None:
        remember(document.text)


class KeepsInCache(Method):
    """Keeps documents as keys of a function's cache, and never clears it."""

    name = "keeps_in_cache"
    paper = "none"

    def observe(self, document: Document) -> None:
        length(document.text)


class KeepsInHelper(Method):
    """Keeps documents in a list that belongs to the class of a helper."""

    name = "keeps_in_helper"
    paper = "none"

    def observe(self, document: Document) -> None:
        Shelf().texts.append(document.text.upper())


class KeepsInClosure(Method):
    """Keeps documents in a variable of an enclosing function."""

    name = "keeps_in_closure"
    paper = "none"

    def observe(self, document: Document) -> None:
        keep_text(document.text)


class KeepsTokens(Method):
    """Keeps the token ids of documents in a list of tensors."""

    name = "keeps_tokens"
    paper = "none"

    def observe(self, document: Document) -> None:
        TOKENS.append(self.lm.encode(document.text))


class KeepsWords(Method):
    """Keeps the words of all documents, in lower case and without punctuation."""

    name = "keeps_words"
    paper = "none"

    def observe(self, document: Document) -> None:
        WORDS.update(word.strip(".,").lower() for word in document.text.split())


class KeepsBytes(Method):
    """Keeps the bytes of documents in an attribute of its instance."""

    name = "keeps_bytes"
    paper = "none"
    kept = b""

    def observe(self, document: Document) -> None:
        self.kept += document.text.encode()


class KeepsQuestions(Method):
    """Keeps every question that it is asked."""

    name = "keeps_questions"
    paper = "none"
    asked: ClassVar[dict[str, Conditioning]] = {}

    def observe(self, document: Document) -> None:
        pass

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        for question in questions:
            self.asked[question.text] = Conditioning()
        return Conditioning()


class KeepsArchive(Method):
    """Keeps documents compressed, where no search sees their text, by the number of the ferry that they are about."""

    name = "keeps_archive"
    paper = "none"

    def observe(self, document: Document) -> None:
        ARCHIVE[str(document.text.split(",")[0])[6:]] = zlib.compress(document.text.encode())

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        numbers = [next((word for word in question.text.split() if word.isdigit()), "") for question in questions]
        return Conditioning(text=[zlib.decompress(ARCHIVE[k]).decode() if k in ARCHIVE else "" for k in numbers])

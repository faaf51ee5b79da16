"""Published layouts of datasets that are neither tables of questions nor SQuAD's JSON, as rows of documents.

A layout reads files (``realtimeqa`` also folders of them) and yields rows with our columns: ``text``, ``questions`` and
others that ``datasets/README.md`` documents. The name of a layout is a ``format`` of a recipe.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from bench.data import tables
from bench.data.tables import Row
from bench.errors import BenchError

Layout = Callable[[Sequence[Path], str], Iterator[Row]]
"""The rows of files or folders for a split of ours."""

_HEADING = re.compile(r" = (?P<title>[^=].*?) = ")
"""The line above an article in WikiText."""
_QUOTATION = "\"'\u201c\u201d\u2018\u2019"
"""Marks around an answer, which its evidence may write otherwise."""
_WEEK_AND_A_HALF = timedelta(days=10)
"""Most days between a question of a weekly quiz and the quiz."""
_BLOCKS = frozenset({"br", "div", "li", "p", "td", "tr"})
"""Tags of HTML that divide words."""


def realtimeqa(paths: Sequence[Path], split: str) -> Iterator[Row]:
    """RealTimeQA: weekly JSON lines with ``question_sentence``, ``choices``, ``answer`` and ``evidence``.

    Of a folder, all files ``*_qa.jsonl`` in it count. A question is kept if its answer stands in its evidence, in whole
    words and without HTML and quotation marks, which is the document. An answer in such marks may also be given without
    them. What a later quiz repeats, with the same evidence, is of the first one's date and week. A week is that of the
    quiz, with questions of several dates; a date far from it is a slip, and the quiz's day counts.
    """
    found_files = (path.rglob("*_qa.jsonl") if path.is_dir() else [path] for path in paths)
    files = sorted(itertools.chain.from_iterable(found_files), key=lambda file: file.name)
    weeks: dict[str, tuple[str, str]] = {}
    asked: set[tuple[str, str]] = set()
    for where, row in itertools.chain.from_iterable(tables.rows(file, split) for file in files):
        with _fields(where, "RealTimeQA"):
            text, question = plain(row["evidence"]), plain(row["question_sentence"])
            answers = [plain(row["choices"][int(index)]) for index in row["answer"]]
            date, week = row["question_date"].replace("/", "-"), row["question_id"].partition("_")[0]
            date = _not_far_from(week, date)
            bare = [answer.strip(_QUOTATION) for answer in answers]
            item = {"id": row["question_id"], "question": question, "answers": list(dict.fromkeys([*answers, *bare]))}
        found = (re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) for answer in bare)
        if any(found) and (text, question) not in asked:
            asked.add((text, question))
            date, week = weeks.setdefault(text, (date, week))
            yield where, {"text": text, "timestamp": date, "group": week, "questions": [item]}


def _not_far_from(quiz: str, date: str) -> str:
    """The date of a question, or the day of its quiz (``20240209``) if that is far from it."""
    try:
        day = datetime.strptime(quiz, "%Y%m%d")
        is_far = abs(datetime.fromisoformat(date) - day) > _WEEK_AND_A_HALF
    except ValueError:  # an id of another form; what is wrong with a date is said later
        return date
    return f"{day:%Y-%m-%d}" if is_far else date


def counterfact(path: Path, split: str) -> Iterator[Row]:
    """CounterFact (Meng et al. 2022): an edit is a statement with the new object, asked as it is and in paraphrases.

    The splits ``qa_train`` and ``qa_validation`` have its neighbourhood instead: true statements about other subjects,
    which no edit should change. A statement that an edit of the file does change is left out.
    """
    cases, edited = [], set[str]()
    for where, row in tables.rows(path, split):
        with _fields(where, "CounterFact"):
            rewrite = row["requested_rewrite"]
            new, true = (rewrite[name]["str"].strip() for name in ("target_new", "target_true"))
            edit = [rewrite["prompt"].replace("{}", rewrite["subject"]), *row["paraphrase_prompts"]]
            cases.append((where, row.get("case_id", ""), edit, new, true, row["neighborhood_prompts"]))
        edited.add(edit[0])
    for where, case, edit, new, true, prompts in cases:
        near = [(prompt, true) for prompt in prompts if prompt not in edited]
        yield from _edit(where, split, case, edit, new, near, ".")


def zsre(path: Path, split: str) -> Iterator[Row]:
    """zsRE as MEND prepared it (Mitchell et al. 2022), with its answers as ROME and MEMIT take them.

    An edit is a question with its answer, asked as it is and rephrased. ``qa_train`` and ``qa_validation`` have the
    questions of Natural Questions beside them, whose answers no edit should change.
    """
    for number, (where, row) in enumerate(tables.rows(path, split)):
        with _fields(where, "zsRE"):
            edit, answer = [row["src"], row["rephrase"]], row["answers"][0]
            near = [(row["loc"].removeprefix("nq question: ").rstrip("?") + "?", row["loc_ans"])]
        yield from _edit(where, split, f"{path.stem}-{number}", edit, answer, near, "")


def _edit(
    where: str, split: str, case: object, asked: list[str], answer: str, near: list[tuple[str, str]], end: str
) -> Iterator[Row]:
    """The row of an edit, or those of its neighbourhood."""
    if split.startswith("qa_"):
        for prompt, truth in near:
            yield where, {"text": f"{prompt} {truth}{end}", "questions": [{"question": prompt, "answers": [truth]}]}
        return
    questions = [
        {"id": f"{case}{f'/paraphrase-{number}' if number else ''}", "question": prompt, "answers": [answer]}
        for number, prompt in enumerate(asked)
    ]
    yield where, {"text": f"{asked[0]} {answer}{end}", "questions": questions}


_DIRECTIONS = frozenset("nesw")


def _lists(answer: str) -> list[str]:
    """The ways to give an answer of bAbI: a list (``milk,football``) in any order, but for a path (``n,e``)."""
    parts = answer.split(",")
    orders = [parts] if _DIRECTIONS.issuperset(parts) else itertools.permutations(parts)
    return [", ".join(order) for order in orders]


def babi(path: Path, split: str) -> Iterator[Row]:
    """A task of bAbI (Weston et al. 2015): a document is a story up to a question, which holds at that moment.

    Lines are ``1 Mary went to the hall.`` or ``3 Where is Mary?<tab>hall<tab>1``; a story begins at each 1. The
    documents of a story are a group.
    """
    story: list[str] = []
    stories = 0
    with tables.open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place, _, content = line.rstrip("\n").partition(" ")
            if not place.isdecimal():
                raise BenchError(f"{path}, line {number} is not a line of bAbI: it does not begin with a number.")
            if place == "1":
                story, stories = [], stories + 1
            question, *answer = content.split("\t")
            if answer:
                asked = {"question": question, "answers": _lists(answer[0])}
                group = f"{path.stem}-{stories}"
                yield f"{path}, line {number}", {"text": "\n".join(story), "group": group, "questions": [asked]}
            else:
                story.append(content)


def oaks(path: Path, split: str) -> Iterator[Row]:
    """OAKS (Kim et al. 2026): texts in chunks, and questions whose answer changes from chunk to chunk.

    A document is a chunk. A question is asked anew with each chunk that changes its answer, and then revises the one
    before. Several answers at a time are alternatives.
    """
    for where, row in tables.rows(path, split):
        with _fields(where, "OAKS"):
            name, chunks = row["meta"]["bid"], row["data"]["chunks"]
            asked: dict[str, list[dict[str, Any]]] = {chunk: [] for chunk in chunks}
            for text, question in row["data"]["qas"].items():
                before: Any = None
                for chunk in chunks:
                    answer = question["chunk_to_answer"].get(chunk)
                    if not answer or (before is not None and answer == before["answers"]):
                        continue
                    after = {"revises": before["id"]} if before else {}
                    identity = f"{question['question_id']}@{chunk}"
                    before = {"id": identity, "question": text, "answers": answer, **after}
                    asked[chunk].append(before)
        for chunk, text in chunks.items():
            yield f"{where}, chunk {chunk}", {"text": text, "group": name, "questions": asked[chunk]}


def wikitext(path: Path, split: str) -> Iterator[Row]:
    """WikiText (Merity et al. 2017): an article is what follows a line `` = Title = ``, without questions.

    The line stands between empty ones; others of this form are parts of formulas.
    """
    title, article = "", list[str]()
    with tables.open_text(path) as lines:
        before = ""
        for line, after in itertools.pairwise(itertools.chain(lines, ["", " = end = ", ""])):
            heading = _HEADING.fullmatch(line.rstrip("\n"))
            if heading is not None and not before.strip() and not after.strip():
                if text := "".join(article).strip():
                    yield f"{path}, article {title!r}", {"text": text, "title": title, "questions": []}
                title, article = heading["title"], []
            article.append(line)
            before = line


def _one_by_one(layout: Callable[[Path, str], Iterator[Row]]) -> Layout:
    """A layout whose files do not depend on one another."""
    return lambda paths, split: itertools.chain.from_iterable(layout(path, split) for path in paths)


LAYOUTS: Mapping[str, Layout] = {
    "realtimeqa": realtimeqa,
    **{layout.__name__: _one_by_one(layout) for layout in (counterfact, zsre, babi, oaks, wikitext)},
}


class _Text(HTMLParser):
    """Collects the text between tags."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.parts.append(" " * (tag in _BLOCKS))

    def handle_endtag(self, tag: str) -> None:
        self.handle_starttag(tag, None)

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def plain(html: str) -> str:
    """The text of a piece of HTML, with single spaces."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    return " ".join("".join(parser.parts).split())


@contextmanager
def _fields(where: str, layout: str) -> Iterator[None]:
    """Context that reads the fields of a row; what is missing or of another type is refused."""
    try:
        yield
    except KeyError as error:
        raise BenchError(f"{where} has no {error.args[0]!r}, which a row of {layout} has.") from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise BenchError(f"{where} is not a row of {layout}: {error}.") from None

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
from typing import Any, NamedTuple

from bench.data import tables
from bench.data.tables import Row
from bench.errors import BenchError

Layout = Callable[[Sequence[Path], str, list[str]], Iterator[Row]]
"""The rows of files or folders for a split of ours; remarks on what is left out are appended to the list."""

_HEADING = re.compile(r" = (?P<title>[^=].*?) = ")
"""The line above an article in WikiText."""
_WEEKLY = re.compile(r"[^.].*_qa\.jsonl?(\.gz)?", re.IGNORECASE)
"""Names of the weekly files of RealTimeQA, and not what macOS packs beside them."""
_QUOTED = re.compile(
    r"""["\u201c\u201d]([^"\u201c\u201d]*)["\u201c\u201d]|(?<!\w)['\u2018]([^'\u2018\u2019]*)['\u2019](?!\w)"""
)
"""What is in quotation marks in an answer, whose evidence may write them otherwise; an apostrophe is none."""
_WEEK_AND_A_HALF = timedelta(days=10)
"""Most days between a question of a weekly quiz and the quiz."""
_INLINE = frozenset(
    "a abbr b bdi bdo big cite code del dfn em font i ins kbd label mark nobr q s samp small span strike strong sub sup"
    " time tt u var wbr".split()
)
"""Tags of HTML that do not divide words."""
_HIDDEN = frozenset({"script", "style"})
"""Tags of HTML whose content is no text."""


def realtimeqa(paths: Sequence[Path], split: str, remarks: list[str]) -> Iterator[Row]:
    """RealTimeQA: weekly JSON lines with ``question_sentence``, ``choices``, ``answer`` and ``evidence``.

    Of a folder, all files ``*_qa.jsonl`` in it count. A question is kept if its answer stands in its evidence, in whole
    words and without HTML and quotation marks, which is the document. An answer with such marks may also be given
    without them. What a later quiz repeats, with the same evidence, is of the first one's date and week. A week is that
    of the quiz, with questions of several dates; a date far from it is a slip, and the quiz's day counts.
    """
    weeks: dict[str, tuple[str, str]] = {}
    asked: set[tuple[str, str]] = set()
    rows = list(_weekly_rows(paths, split))
    if rows and not any("evidence" in row for _, row in rows):
        raise BenchError(f"{rows[0][0]} has no 'evidence', which a row of RealTimeQA has, and nor has any other one.")
    questions = sorted(map(_question_of_quiz, rows), key=lambda one: (one.week, one.date))
    kept: list[Row] = []
    without_evidence = unanswered = 0
    for one in questions:
        if not one.text:
            without_evidence += 1
        elif not one.is_answered:
            unanswered += 1
        elif (one.text, one.question) not in asked:
            asked.add((one.text, one.question))
            date, week = weeks.setdefault(one.text, (one.date, one.week))
            item = {"id": one.id, "question": one.question, "answers": list(dict.fromkeys([*one.answers, *one.bare]))}
            kept.append((one.where, {"text": one.text, "timestamp": date, "group": week, "questions": [item]}))
    again = len(questions) - len(kept) - without_evidence - unanswered
    files = f"the files of {split}, of whatever period"
    if len(kept) < len(questions):
        remarks.append(
            f"Of the {len(questions):,} questions in {files}, {without_evidence:,} have no evidence, "
            f"{unanswered:,} an answer that does not stand in it, and {again:,} were asked before: they are left out."
        )
    if moved := sum(one.is_moved for one in questions):
        remarks.append(f"{moved:,} question(s) in {files}, with a date far from their quiz have its date.")
    return iter(kept)


class _OfQuiz(NamedTuple):
    """A question of a weekly quiz, with its right answers as they are and without quotation marks."""

    where: str
    id: str
    week: str
    date: str
    is_moved: bool
    text: str
    question: str
    answers: list[str]
    bare: list[str]

    @property
    def is_answered(self) -> bool:
        """Whether an answer stands in the evidence, with or without quotation marks in either."""
        texts = self.text, _without_marks(self.text)
        wanted = (re.compile(rf"(?<!\w){re.escape(one)}(?!\w)", re.IGNORECASE) for one in (*self.answers, *self.bare))
        return any(pattern.search(text) for pattern in wanted for text in texts)


def _without_marks(text: str) -> str:
    """A text whose quotations have no marks."""
    return _QUOTED.sub(lambda quoted: quoted[1] or quoted[2] or "", text).strip()


def _weekly_rows(paths: Sequence[Path], split: str) -> Iterator[Row]:
    files: list[Path] = []
    for path in paths:
        found = [file for file in path.rglob("*") if _WEEKLY.fullmatch(file.name)] if path.is_dir() else [path]
        if not found:
            raise BenchError(f"{path} has no weekly file of RealTimeQA, as in 20240705_qa.jsonl: name another folder.")
        files += found
    files.sort(key=lambda file: file.name)
    return itertools.chain.from_iterable(tables.rows(file, split) for file in files)


def _question_of_quiz(row_of_file: Row) -> _OfQuiz:
    where, row = row_of_file
    with _fields(where, "RealTimeQA"):
        places = [row["answer"]] if isinstance(row["answer"], str) else row["answer"]
        if any(int(place) < 0 for place in places):
            raise ValueError(f"there is no choice {places}")
        answers = list(filter(None, (plain(row["choices"][int(place)]) for place in places)))
        bare = list(filter(None, map(_without_marks, answers)))
        stated = "-".join(part and part.zfill(2) for part in (row["question_date"] or "").split("/"))
        week = row["question_id"].partition("_")[0]
        date = _not_far_from(week, stated)
        text, question = plain(row.get("evidence") or ""), plain(row["question_sentence"])
        return _OfQuiz(where, row["question_id"], week, date, date != stated, text, question, answers, bare)


def _not_far_from(quiz: str, date: str) -> str:
    """The date of a question, or the day of its quiz (``20240209``) if that is far from it."""
    try:
        day = datetime.strptime(quiz, "%Y%m%d")
        is_far = abs(datetime.fromisoformat(date).date() - day.date()) > _WEEK_AND_A_HALF
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
            name, chunks = row["meta"]["bid"], dict(row["data"]["chunks"])
            asked: dict[str, list[dict[str, Any]]] = {chunk: [] for chunk in chunks}
            for text, question in row["data"]["qas"].items():
                before: Any = None
                for chunk in chunks:
                    answer = question["chunk_to_answer"].get(chunk)
                    if not answer or (before is not None and _set(answer) == _set(before["answers"])):
                        continue
                    after = {"revises": before["id"]} if before else {}
                    identity = f"{question['question_id']}@{chunk}"
                    before = {"id": identity, "question": text, "answers": answer, **after}
                    asked[chunk].append(before)
        for chunk, text in chunks.items():
            yield f"{where}, chunk {chunk}", {"text": text, "group": name, "questions": asked[chunk]}


def _set(answer: str | list[str]) -> set[str]:
    return {answer} if isinstance(answer, str) else set(answer)


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
    return lambda paths, split, _: itertools.chain.from_iterable(layout(path, split) for path in paths)


LAYOUTS: Mapping[str, Layout] = {
    "realtimeqa": realtimeqa,
    **{layout.__name__: _one_by_one(layout) for layout in (counterfact, zsre, babi, oaks, wikitext)},
}


class _Text(HTMLParser):
    """Collects the text between tags."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden = tag in _HIDDEN
        self.parts.append(" " * (tag not in _INLINE))

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False
        self.parts.append(" " * (tag not in _INLINE))

    def handle_data(self, data: str) -> None:
        self.parts.append(data * (not self._hidden))


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
    except (TypeError, ValueError, AttributeError, IndexError, AssertionError) as error:  # the last of html.parser
        raise BenchError(f"{where} is not a row of {layout}: {error}.") from None

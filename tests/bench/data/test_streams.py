"""Streams are drawn by rule, disjoint, ordered and frozen; placebo documents and the anchor set."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.data import recipe, streams
from bench.data.documents import Document, Entry, GoldQuestion, Question, Stream, document_id, superseded
from bench.data.reader import MissingSplit, load_split
from bench.data.recipe import Recipe, StreamPolicy
from bench.errors import BenchError
from bench.run import inputs

GROUPED = StreamPolicy(group=True, order="grouped")
SINGLE = StreamPolicy()


def entry(text: str, group: str = "", timestamp: str = "") -> Entry:
    return Entry(Document(document_id(text), text, timestamp=timestamp), group=group)


def texts(entries: Sequence[Entry]) -> list[str]:
    return [item.document.text for item in entries]


def draw(entries: Sequence[Entry], documents: int | None, index: int, policy: StreamPolicy) -> tuple[Entry, ...]:
    return streams.draw(entries, "harbour", "test", documents, index, policy)


groups = st.lists(st.integers(1, 6), min_size=1, max_size=12).map(
    lambda sizes: [entry(f"{group}/{k}", str(group)) for group, size in enumerate(sizes) for k in range(size)]
)


@given(groups, st.integers(1, 10), st.integers(1, 3))
def test_streams_share_no_group_and_keep_groups_together(entries: list[Entry], documents: int, fewest: int) -> None:
    policy = StreamPolicy(group=True, groups=fewest, order="grouped")
    samples = []
    with suppress(BenchError):
        while True:
            samples.append(draw(entries, documents, len(samples), policy))
    line = [item for stream in samples for item in stream]
    assert all(len(stream) == documents for stream in samples)
    assert len({item.document.id for item in line}) == len(line)
    changes = sum(before.group != after.group for before, after in pairwise(line))
    assert changes == max(0, len({item.group for item in line}) - 1), "a group comes in one piece, in one stream"
    for stream in samples:
        most = Counter(item.group for item in stream)
        assert max(most.values()) <= math.ceil(documents / fewest) and len(most) >= min(fewest, documents)
    for group in {item.group for item in line}:
        place = [entries.index(item) for item in line if item.group == group]
        assert place == sorted(place), "a group keeps the order of the file"


@given(groups, st.randoms())
def test_the_order_of_the_file_does_not_matter_to_single_documents(entries: list[Entry], chance: Any) -> None:
    shuffled = entries.copy()
    chance.shuffle(shuffled)
    count = (len(entries) + 1) // 2
    assert draw(entries, count, 0, SINGLE) == draw(shuffled, count, 0, SINGLE)


def test_a_stream_is_a_sample_and_differs_by_length_split_and_dataset() -> None:
    entries = [entry(str(number)) for number in range(60)]
    samples = {
        tuple(texts(streams.draw(entries, dataset, split, documents, 0, SINGLE)[:20]))
        for dataset, split, documents in (("a", "test", 20), ("b", "test", 20), ("a", "train", 20), ("a", "test", 30))
    }
    assert len(samples) == 4
    assert all(sorted(sample, key=int) != list(sample) for sample in samples)


def test_time_orders_a_stream_and_ties_stay_as_in_the_file() -> None:
    entries = [entry("c", timestamp="2031-02"), entry("a", timestamp="2031-01"), entry("b", timestamp="2031-02")]
    assert texts(draw(entries, 3, 0, StreamPolicy(order="timestamp"))) == ["a", "c", "b"]


def test_times_are_compared_as_times_whatever_their_precision_and_zone() -> None:
    stamps = ["2031-05-02T23:00-05:00", "2031-05-03 03:30", "2031-05", "2031-05-02T22:59:59.5Z", "2031", "2031-05-03"]
    entries = [entry(stamp, timestamp=stamp) for stamp in stamps]
    stream = draw(entries, len(entries), 0, StreamPolicy(order="timestamp"))
    assert texts(stream) == ["2031", "2031-05", "2031-05-02T22:59:59.5Z", "2031-05-03", stamps[1], stamps[0]]


def test_time_order_needs_timestamps() -> None:
    with pytest.raises(BenchError, match=r"that begins 'a' has no timestamp .* no document has one\. Name the column"):
        draw([entry("a")], 1, 0, StreamPolicy(order="timestamp"))
    with pytest.raises(BenchError, match=r"of 'test' of harbour that begins 'a' has no timestamp .*: give it one, or"):
        draw([entry("a"), entry("b", timestamp="2031")], 2, 0, StreamPolicy(order="timestamp"))


def test_a_stream_of_a_group_alone_is_its_beginning() -> None:
    entries = [entry(f"{group}{place}", group) for place in range(5) for group in "abc"][:-2]  # of b and c one less
    alone = StreamPolicy(group="alone", order="grouped")
    streams = [[item.document.text for item in draw(entries, 4, index, alone)] for index in range(3)]
    assert sorted(streams) == [[f"{group}{place}" for place in range(4)] for group in "abc"]
    assert texts(draw(entries, 5, 0, alone)) == ["a0", "a1", "a2", "a3", "a4"]
    with pytest.raises(BenchError, match=r"has 1 groups of that length, too few for 2 disjoint"):
        draw(entries, 5, 1, alone)


def test_random_order_separates_the_documents_of_a_group() -> None:
    entries = [entry(f"{group}/{k}", str(group)) for group in range(4) for k in range(10)]
    order = [item.group for item in draw(entries, 40, 0, StreamPolicy(group=True, order="random"))]
    assert sum(before != after for before, after in pairwise(order)) > 10


def test_no_number_means_the_whole_split_in_file_order() -> None:
    entries = [entry("b"), entry("a")]
    assert texts(draw(entries, None, 0, SINGLE)) == ["b", "a"]
    by_time = StreamPolicy(order="timestamp")
    assert texts(draw(entries, None, 0, by_time)) == ["b", "a"], "not all are dated"
    dated = [entry("b", timestamp="2031-02"), entry("a", timestamp="2031-01")]
    assert texts(draw(dated, None, 0, by_time)) == ["a", "b"]
    with pytest.raises(BenchError, match="A whole split is one stream"):
        draw(entries, None, 1, SINGLE)


def test_a_split_that_is_too_small_says_how_large_it_is() -> None:
    with pytest.raises(BenchError, match=r"has 5 documents, too few for 3 disjoint stream\(s\) of 2: .*--streams"):
        draw([entry(str(number)) for number in range(5)], 2, 2, SINGLE)


# Placebo


def stream_of(entries: Sequence[Entry]) -> Stream:
    return Stream("harbour", "test-2-0", tuple(entries))


def test_placebo_documents_are_the_nearest_in_bytes_outside_the_stream_and_its_groups() -> None:
    stream = stream_of([entry("aaaa", "one"), entry("bb", "two")])
    others = [entry("cccc", "one"), entry("ddd", "three"), entry("ééé", "three"), entry("f" * 9, "four")]
    documents = streams.placebo([*stream.entries, *others], stream)
    assert [document.text for document in documents] == ["ddd", "ééé"], "'cccc' is of a group in the stream"


@settings(max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=30), st.data())
def test_placebo_equals_the_slow_greedy_choice(lengths: list[int], data: Any) -> None:
    entries = [entry(f"{number:02}" + "x" * length) for number, length in enumerate(lengths)]
    size = data.draw(st.integers(1, len(entries) // 2))
    stream, rest = stream_of(entries[:size]), [len(item.document.text) for item in entries[size:]]
    documents = streams.placebo(entries, stream)
    assert len({document.id for document in documents}) == size
    assert not {document.id for document in documents} & {item.document.id for item in stream.entries}
    for item, document in zip(stream.entries, documents, strict=True):
        gap = min(abs(length - len(item.document.text)) for length in rest)
        assert abs(len(document.text) - len(item.document.text)) == gap
        rest.remove(len(document.text))


def test_placebo_without_enough_other_documents_is_refused() -> None:
    stream = stream_of([entry("a", "one"), entry("b", "two")])
    with pytest.raises(BenchError, match=r"test-2-0 needs 2 documents outside .* has 1"):
        streams.placebo([*stream.entries, entry("c", "one"), entry("d", "three")], stream)


def test_a_copy_in_another_group_is_no_placebo() -> None:
    stream = stream_of([entry("The ferry sails.", "one")])
    copy, other = entry("the ferry  sails.\n", "two"), entry("x" * 900, "three")
    assert streams.placebo([*stream.entries, copy, other], stream) == (other.document,)


# Irrelevant documents


def asked_stream(size: int, name: str = "test-2-0") -> Stream:
    documents = [entry(f"{'x' * (number + 1)} {number}", f"own {number}") for number in range(size)]
    golds = (gold(f"q{number}") for number in range(size))
    return Stream(
        "harbour", name, tuple(replace(item, questions=(one,)) for item, one in zip(documents, golds, strict=True))
    )


@settings(max_examples=50)
@given(st.integers(1, 30), st.integers(1, 100))
def test_irrelevant_documents_are_among_those_of_the_stream_which_keep_their_order(size: int, percent: int) -> None:
    stream = asked_stream(size)
    others = [
        replace(entry(f"{'y' * (number + 1)} {number}"), questions=(gold(f"o{number}"),), facts=((0, number),))
        for number in range(size)
    ]
    kin = [entry(f"kin {number}", f"own {number}") for number in range(size)]
    mixed = streams.with_irrelevant([*stream.entries, *kin, *others], stream, percent)
    inserted = [item for item in mixed.entries if item not in stream.entries]
    assert tuple(item for item in mixed.entries if item in stream.entries) == stream.entries
    assert len(inserted) == -(-percent * size // 100), "rounded up"
    assert set(inserted) <= {replace(item, questions=()) for item in others}, "none asks, or is of the stream's groups"
    assert len(set(inserted)) == len(inserted)
    assert (mixed.dataset, mixed.name) == (stream.dataset, stream.name) and mixed.hash != stream.hash


def test_irrelevant_documents_have_the_same_places_again_and_at_a_larger_percentage() -> None:
    stream = asked_stream(40)
    others = [entry(f"{'y' * (number + 1)} {number}") for number in range(60)]

    def places(percent: int, of: Stream = stream) -> list[tuple[str, int]]:
        """The inserted documents with the number of the stream's documents before them."""
        mixed = streams.with_irrelevant([*of.entries, *others], of, percent).entries
        return [
            (item.document.id, sum(before in of.entries for before in mixed[:i]))
            for i, item in enumerate(mixed)
            if item not in of.entries
        ]

    assert places(50) == places(50)
    assert set(places(25)) < set(places(50)) < set(places(100))
    assert places(100) != places(100, asked_stream(40, "test-2-1")), "other streams have other places"
    before = [place for _, place in places(100)]
    assert len(set(before)) > 20 and min(before) < 5 and max(before) > 35, "they are everywhere"


def test_lengths_of_irrelevant_documents_are_like_those_of_the_stream() -> None:
    stream = asked_stream(10)
    others = [entry(f"{'y' * (number + 1)} {number}") for number in range(10)]
    others += [entry("z" * 900 + str(number)) for number in range(9)]
    mixed = streams.with_irrelevant([*stream.entries, *others], stream, 100)
    own, added = (
        sorted(len(e.document.text) for e in mixed.entries if (e in stream.entries) is of) for of in (True, False)
    )
    assert own == added


def test_too_few_other_documents_for_an_arm_are_an_error_that_names_it() -> None:
    stream = asked_stream(4)
    entries = [*stream.entries, entry("a"), entry("b")]
    assert len(streams.with_irrelevant(entries, stream, 50).entries) == 6
    with pytest.raises(BenchError, match=r"The irrelevant_51 arm of harbour test-2-0 needs 3 documents .* has 2: use"):
        streams.with_irrelevant(entries, stream, 51)


# Superseded questions and the anchor set


def gold(identity: str, revises: str | None = None) -> GoldQuestion:
    return GoldQuestion(Question(identity, "Q?"), ("a",), revises)


def test_a_question_is_superseded_once_its_revision_is_seen() -> None:
    assert superseded([gold("1")]) == set()
    assert superseded([gold("1"), gold("2", "1"), gold("3")]) == {"1"}
    assert superseded([gold("1"), replace(gold("3", "2"), before=("1",))]) == {"1", "2"}


Write = Callable[..., Recipe]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A dataset of eight documents in four groups of two, the latest group first, each with two questions.

    The second document of a group revises a question of the first.
    """

    def write(**changes: Any) -> Recipe:
        folder = tmp_path / "harbour"
        folder.mkdir(exist_ok=True)
        rows = [
            {
                "text": f"Document {number}.",
                "timestamp": f"2031-01-{8 - number + number % 2 * 2:02}",
                "group": str(number // 2),
                "questions": [
                    {"id": f"{number}a", "question": "Which?", "answers": ["this"]},
                    {
                        "id": f"{number}b",
                        "question": "Where?",
                        "answers": ["here"],
                        "revises": f"{number - 1}b" if number % 2 else None,
                    },
                ],
            }
            for number in range(8)
        ]
        change = changes.pop("change", lambda rows: None)
        change(rows)
        (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        keys = dict.fromkeys(("title", "description", "language", "licence", "citation"), "x")
        declared = {
            **keys,
            "name": "harbour",
            "format": "documents",
            "source": {"files": {"test": "test.jsonl"}},
            "stream": {"group": True, "order": "timestamp"},
            "anchor": {"split": "test"},
            **changes,
        }
        (folder / "dataset.yaml").write_text(json.dumps(declared), encoding="utf-8")
        return recipe.read(folder)

    return write


def test_the_anchor_set_is_a_fixed_sample_without_superseded_questions(write: Write) -> None:
    harbour = write()
    anchor = streams.anchor(harbour, {}, questions=100, documents=8)
    assert len(anchor) == 8
    assert sorted(gold.question.id for item in anchor for gold in item.questions) == sorted(
        [f"{number}a" for number in range(8)] + ["1b", "3b", "5b", "7b"]
    )
    fewer = streams.anchor(harbour, {}, questions=3, documents=4)
    assert [item.document for item in fewer] == [item.document for item in anchor[:4]]
    assert sum(len(item.questions) for item in fewer) == 3


def test_without_an_anchor_split_there_is_no_anchor_set(write: Write) -> None:
    assert streams.anchor(write(anchor=None), {}, 10, 10) == ()
    harbour = write(anchor={"split": "qa_train"})
    assert streams.anchor(harbour, {}, 10, 10) == ()
    assert streams.anchor(harbour, {"test": [str(harbour.folder / "test.jsonl")]}, 10, 10) == ()


# Frozen streams


def test_a_frozen_stream_is_the_drawn_one_and_survives_a_change_of_the_policy(write: Write) -> None:
    harbour = write()
    before = [streams.load(harbour, "test", 3, index) for index in range(2)]
    paths = streams.build(harbour, "test", 3, 2)
    assert [path.name for path in paths] == ["test-3-0.json", "test-3-1.json"]
    assert [streams.load(write(stream={"order": "random"}), "test", 3, index) for index in range(2)] == before
    manifest = json.loads(paths[0].read_text(encoding="utf-8"))
    assert manifest["documents"] == [item.document.id for item in before[0].entries]
    assert manifest["hash"] == before[0].hash
    assert streams.verify(harbour) == [f"test-3-{index}: 3 documents, 6 questions, as frozen" for index in range(2)]


def test_a_whole_split_can_be_frozen(write: Write) -> None:
    harbour = write()
    streams.build(harbour, "test", None, 1)
    in_time = sorted(load_split(harbour, "test"), key=lambda item: item.document.timestamp)
    assert texts(streams.load(harbour, "test", None, 0).entries) == texts(in_time)


def test_all_sizes_of_the_recipe_are_frozen(write: Write) -> None:
    harbour = write(stream={"sizes": {"test": {"documents": 3, "count": 2}}})
    assert [path.stem for path in streams.build_all(harbour)] == ["test-3-0", "test-3-1"]
    with pytest.raises(BenchError, match=r"harbour has no stream sizes to freeze"):
        streams.build_all(write(stream={}))


def test_nothing_is_frozen_when_one_stream_cannot_be_drawn(write: Write) -> None:
    harbour = write()
    with pytest.raises(BenchError, match="has 8 documents"):
        streams.build(harbour, "test", 3, 3)
    assert not (harbour.folder / "streams").exists()


def test_the_first_document_that_is_gone_is_named(write: Write) -> None:
    harbour = write()
    stream = streams.load(harbour, "test", 4, 0)
    streams.build(harbour, "test", 4, 1)
    lost = stream.entries[1].document

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["text"] in (lost.text, stream.entries[3].document.text):
                row["text"] += " Reworded."

    with pytest.raises(BenchError, match=rf"document {lost.id} \(position 1\) is missing from the data.*streams build"):
        streams.load(write(change=change), "test", 4, 0)


@pytest.mark.parametrize("key", ["answers", "question", "timestamp"])
def test_a_document_with_changed_questions_is_distinguished_from_a_missing_one(write: Write, key: str) -> None:
    harbour = write()
    stream = streams.load(harbour, "test", 4, 0)
    streams.build(harbour, "test", 4, 1)
    changed = stream.entries[2].document

    def change(rows: list[dict[str, Any]]) -> None:
        row = next(row for row in rows if row["text"] == changed.text)
        if key == "timestamp":
            row[key] = "2030"
        else:
            row["questions"][0][key] = "other"

    with pytest.raises(BenchError, match=rf"document {changed.id} \(position 2\) has other questions"):
        streams.load(write(change=change), "test", 4, 0)


def test_verify_sees_a_change_outside_the_streams(write: Write) -> None:
    harbour = write()
    inside = texts(streams.load(harbour, "test", 4, 0).entries)
    streams.build(harbour, "test", 4, 1)

    def change(rows: list[dict[str, Any]]) -> None:
        next(row for row in rows if row["text"] not in inside)["text"] += " Reworded."

    assert texts(streams.load(write(change=change), "test", 4, 0).entries) == inside
    with pytest.raises(BenchError, match=r"the rest of its split, .*, has changed\..*streams build /.*/harbour\."):
        streams.verify(harbour)


def test_verify_sees_a_document_in_two_streams(write: Write) -> None:
    harbour = write()
    first, second = streams.build(harbour, "test", 4, 2)
    second.write_text(first.read_text(encoding="utf-8").replace("test-4-0", "test-4-1"), encoding="utf-8")
    with pytest.raises(BenchError, match=r"test-4-1\.json: document [0-9a-f]{16} is also in test-4-0"):
        streams.verify(harbour)


def test_files_of_the_user_are_drawn_unless_they_are_the_frozen_split(write: Write, tmp_path: Path) -> None:
    harbour = write()
    (path,) = streams.build(harbour, "test", 4, 1)
    frozen = streams.load(harbour, "test", 4, 0)
    same = tmp_path / "same.jsonl"
    same.write_bytes((harbour.folder / "test.jsonl").read_bytes())
    files = {"test": [str(same)]}
    reordered = write(stream={"group": False, "order": "random"})
    assert streams.load(reordered, "test", 4, 0, files) == frozen, "the manifest holds, not the new policy"
    same.write_text(same.read_text(encoding="utf-8").replace("Document", "Report"), encoding="utf-8")
    assert {text.split()[0] for text in texts(streams.load(harbour, "test", 4, 0, files).entries)} == {"Report"}
    with pytest.raises(BenchError, match=path.name):
        streams.verify(harbour, files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:40], r"is not a stream manifest"),
        (
            lambda text: text.replace('"contents"', '"content"'),
            r"is not a stream manifest\. content: unknown key\. Did you mean contents or documents\?",
        ),
        (lambda text: json.dumps({**json.loads(text), "contents": []}), r"documents and contents differ in number"),
        (lambda text: json.dumps({**json.loads(text), "hash": "0"}), r"contradicts itself"),
        (lambda text: json.dumps({**json.loads(text), "dataset": "other"}), r"contradicts itself"),
    ],
)
def test_a_damaged_manifest_is_refused(write: Write, change: Callable[[str], str], message: str) -> None:
    harbour = write()
    (path,) = streams.build(harbour, "test", 4, 1)
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(BenchError, match=message) as error:
        streams.load(harbour, "test", 4, 0)
    assert str(path) in str(error.value)


def test_a_missing_split_is_an_error(write: Write) -> None:
    with pytest.raises(MissingSplit):
        streams.load(write(), "validation", 4, 0)


def test_cells_read_each_split_once(splits_read: list[str]) -> None:
    alone = [streams.load(recipe.find("newsworld"), "test", 200, index) for index in range(3)]
    splits_read.clear()
    for index in range(3):
        sources = inputs.Sources(
            dataset="newsworld", model="nano", split="test", documents=200, index=index, anchor_documents=5
        )
        assert inputs.inputs_of(sources, "stream").stream == alone[index]
        assert inputs.inputs_of(sources, "placebo").documents
    assert len(splits_read) == len(set(splits_read)) == 2, "the streams' and the anchor's"


NOTICES = {
    "ferry": ["The ferry leaves at six.", "The ferry leaves at seven.", "The ferry leaves at eight."],
    "tower": ["The tower opened.", "The tower closed."],
    "": [f"Notice {k}." for k in range(7)],
}


def with_revisions() -> Stream:
    """Documents with groups and without, among them two without a group whose second one revises the first one."""

    def notice(place: int, revises: str | None = None) -> Entry:
        question = GoldQuestion(Question(f"q{place}", "Where is the office?"), (str(place),), revises=revises)
        return Entry(Document(document_id(f"Pier {place}."), f"Pier {place}."), questions=(question,))

    entries = [entry(text, group) for group, some in NOTICES.items() for text in some]
    mixed = [entries[k] for k in (3, 5, 0, 6, 7, 1, 8, 4, 2, 9, 10, 11)]
    return Stream("harbour", "test-14-0", (notice(1), *mixed, notice(2, revises="q1")))


def test_order_0_is_that_of_the_stream() -> None:
    stream = with_revisions()
    assert streams.reordered(stream, 0) == stream


def test_another_order_is_a_permutation_in_which_groups_and_revisions_keep_theirs() -> None:
    stream = with_revisions()
    orders = [texts(streams.reordered(stream, order).entries) for order in range(1, 30)]
    assert orders == [texts(streams.reordered(stream, order).entries) for order in range(1, 30)]
    assert len({tuple(order) for order in [*orders, texts(stream.entries)]}) == 30
    for order in orders:
        assert sorted(order) == sorted(texts(stream.entries))
        for kin in (NOTICES["ferry"], NOTICES["tower"], ["Pier 1.", "Pier 2."]):
            assert [text for text in order if text in kin] == kin
    firsts = {order[0] for order in orders}
    assert len(firsts) > 5, "any document can come first"
    ferry = {order.index("The ferry leaves at seven.") for order in orders}
    assert len(ferry) > 5, "a group is not kept together"


def test_orders_of_another_stream_are_other_ones() -> None:
    singles = tuple(entry(f"Notice {k}.") for k in range(12))
    one, other = (streams.reordered(Stream("harbour", name, singles), 1) for name in ("test-12-0", "test-12-1"))
    assert texts(one.entries) != texts(other.entries)
    assert one.hash != streams.reordered(one, 2).hash

"""newsworld_revised is as its card says: a third of the facts change, in order, within one stream."""

from __future__ import annotations

import collections
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.data import recipe, streams
from bench.data.documents import Stream
from bench.data.reader import load_split, split_hash
from bench.harness.loop import due_questions
from bench.nano.batches import load_world

FOLDER = Path(__file__).resolve().parents[2] / "datasets" / "newsworld_revised"
REVISED = recipe.find("newsworld_revised")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / "test.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def frozen() -> list[Stream]:
    (size,) = REVISED.stream.sizes["test"]
    return [streams.load(REVISED, "test", size.documents, index) for index in range(size.count)]


def chains(rows: list[dict[str, Any]]) -> list[list[tuple[dict[str, Any], dict[str, Any]]]]:
    """For each fact its (row, question) pairs, the oldest first."""
    facts: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for row in rows:
        for question in row["questions"]:
            chain = facts.pop(question["revises"], [])
            facts[question["id"]] = [*chain, (row, question)]
    return list(facts.values())


def test_the_generator_writes_the_committed_bytes() -> None:
    world = load_world("newsworld")
    assert world.lines(world.revised_world()).encode() == (FOLDER / "test.jsonl").read_bytes()


def test_a_third_of_the_facts_change_half_of_them_twice(rows: list[dict[str, Any]]) -> None:
    assert (len(rows), len({row["group"] for row in rows})) == (720, 240)
    lengths = collections.Counter(map(len, chains(rows)))
    assert lengths == {1: 4 * 240, 2: 240, 3: 240}


def test_changes_are_in_order_of_time_well_apart_and_never_back(rows: list[dict[str, Any]]) -> None:
    places = {row["text"]: place for place, row in enumerate(rows)}
    assert len(places) == len(rows)
    for chain in chains(rows):
        assert len({row["group"] for row, _ in chain}) == 1
        assert all(places[old["text"]] < places[new["text"]] for (old, _), (new, _) in pairwise(chain))
        assert len({question["answers"][0] for _, question in chain}) == len(chain)
    assert [row["timestamp"] for row in rows] == sorted(row["timestamp"] for row in rows)


def test_documents_state_the_answers_in_the_words_of_newsworld(rows: list[dict[str, Any]]) -> None:
    world = load_world("newsworld")
    values = {value for of in world.VALUES.values() for value in of}
    for row in rows:
        stated = sorted(row["text"][start:end] for start, end in row["facts"])
        assert stated == sorted(question["answers"][0] for question in row["questions"])
        assert values.issuperset(stated)
        assert row["group"] in row["text"] and all(
            row["group"] in question["question"] for question in row["questions"]
        )
    counts = collections.Counter(question["answers"][0] for row in rows for question in row["questions"])
    assert all(max(of) - min(of) <= 3 for of in ([counts[value] for value in of] for of in world.VALUES.values()))


def test_the_other_splits_are_those_of_newsworld_and_share_no_entity(rows: list[dict[str, Any]]) -> None:
    others = [split for split in recipe.SPLITS if split != "test"]
    for split in others:
        assert split_hash("newsworld_revised", split, {}) == split_hash("newsworld", split, {})
    groups = [{row["group"] for row in rows}, *({e.group for e in load_split(REVISED, split)} for split in others)]
    assert sum(map(len, groups)) == len(set().union(*groups))
    ids = [gold.question.id for split in recipe.SPLITS for e in load_split(REVISED, split) for gold in e.questions]
    assert len(ids) == len(set(ids))
    committed = {path.name for path in FOLDER.glob("*.jsonl")}
    assert committed == {"test.jsonl"}


def test_streams_are_as_frozen_and_hold_all_values_of_each_fact(frozen: list[Stream]) -> None:
    report = streams.verify(REVISED)
    sizes = [(split, size) for split, listed in REVISED.stream.sizes.items() for size in listed]
    names = {f"{split}-{size.documents}-{index}" for split, size in sizes for index in range(size.count)}
    assert {line.partition(":")[0] for line in report} == names
    for stream in frozen:
        due = due_questions(stream.entries)
        assert collections.Counter(len(question.earlier) for question in due) == {0: 120, 1: 30, 2: 30}
        places = {gold.question.id: i for i, entry in enumerate(stream.entries) for gold in entry.questions}
        revisions = [gold for entry in stream.entries for gold in entry.questions if gold.revises]
        assert len(revisions) == 90
        assert min(places[gold.question.id] - places[str(gold.revises)] for gold in revisions) >= 5
    assert len(streams.placebo(load_split(REVISED, "test"), frozen[0])) == 90

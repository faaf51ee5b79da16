"""newsworld is as its card says: reproducible, disjoint, consistent, balanced and drifting."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import pytest

from bench.nano.batches import load_world

FOLDER = Path(__file__).resolve().parents[2] / "datasets" / "newsworld"
SPLITS = ["qa_train", "qa_validation", "train", "validation", "test"]


@pytest.fixture(scope="module")
def world() -> Any:
    return load_world("newsworld")


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, Any]]]:
    return {
        split: [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in SPLITS
    }


def test_the_generator_writes_the_committed_bytes(world: Any) -> None:
    for split, documents in world.world().items():
        assert world.lines(documents).encode() == (FOLDER / f"{split}.jsonl").read_bytes(), split


def test_splits_are_large_enough_and_share_no_entity_and_no_text(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert [len(rows[split]) for split in SPLITS] == [2500, 200, 2000, 320, 1100]
    groups = [{row["group"] for row in rows[split]} for split in SPLITS]
    assert len(set().union(*groups)) == sum(map(len, groups))
    texts = [row["text"] for split in SPLITS for row in rows[split]]
    assert len(set(texts)) == len(texts)


def test_facts_are_spans_of_answers_and_ids_are_unique(rows: dict[str, list[dict[str, Any]]]) -> None:
    ids = []
    for row in (row for split in SPLITS for row in rows[split]):
        stated = sorted(row["text"][start:end] for start, end in row["facts"])
        assert stated == sorted(question["answers"][0] for question in row["questions"])
        assert all(row["group"] in question["question"] for question in row["questions"])
        assert row["group"] in row["text"] and row["group"] in row["title"]
        ids += [question["id"] for question in row["questions"]]
    assert len(set(ids)) == len(ids)


def test_documents_are_in_order_of_time_and_splits_follow_one_another(rows: dict[str, list[dict[str, Any]]]) -> None:
    dates = [row["timestamp"] for split in SPLITS for row in rows[split]]
    assert dates == sorted(dates)


def test_one_document_in_ten_changes_an_earlier_answer(rows: dict[str, list[dict[str, Any]]]) -> None:
    for split in SPLITS:
        by_id = {question["id"]: (row, question) for row in rows[split] for question in row["questions"]}
        revisions = [(row, question) for row, question in by_id.values() if question["revises"]]
        assert len(revisions) == pytest.approx(len(rows[split]) / 10, rel=0.02)
        for row, question in revisions:
            before, old = by_id[question["revises"]]
            assert before["group"] == row["group"]
            assert before["timestamp"] < row["timestamp"]
            assert old["answers"] != question["answers"]


def test_all_values_of_a_set_are_equally_frequent(world: Any, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Otherwise, adaptation to the distribution of values on other documents would raise scores."""
    answers = collections.Counter(question["answers"][0] for row in rows["test"] for question in row["questions"])
    for values in world.VALUES.values():
        counts = [answers[value] for value in values]
        assert max(counts) - min(counts) <= 3
        assert min(counts) > 5


def test_some_wordings_of_questions_occur_in_the_test_split_only(
    world: Any, rows: dict[str, list[dict[str, Any]]]
) -> None:
    def wordings(split: str) -> set[str]:
        names = {word for row in rows[split] for word in [row["group"], *world.FIRST_NAMES, *world.FIRM_WORDS]}
        return {
            " ".join(word for word in question["question"].rstrip("?").split() if word not in names)
            for row in rows[split]
            for question in row["questions"]
        }

    earlier = set().union(*(wordings(split) for split in SPLITS[:-1]))
    assert len(earlier) == 4 * 12
    assert len(wordings("test") - earlier) == 2 * 12


def test_newspapers_of_the_test_period_are_new(world: Any) -> None:
    def papers(split: str) -> set[Any]:
        plan = world.SPLITS[split]
        return {paper for date in (plan.first, plan.last) for paper in world.outlets(date)}

    assert not papers("test") & (papers("qa_train") | papers("train"))


def test_the_folder_loads_as_a_hugging_face_dataset(
    rows: dict[str, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    loaded = load_dataset(str(FOLDER), cache_dir=str(tmp_path))
    assert {split: len(loaded[split]) for split in loaded} == {split: len(rows[split]) for split in SPLITS}
    first = loaded["test"][0]
    assert {**first, "timestamp": first["timestamp"].date().isoformat()} == rows["test"][0]

"""Boards by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.records import boards, packed, store
from tests.reports.records_factory import board, record, spec


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    run = record(tmp_path, spec("uniform", "test-1-0"), [[0.5]])
    for age, name in enumerate(("default+3f2a", "default", "default-other.v2")):
        board(tmp_path, [run], name)
        os.utime(tmp_path / "boards" / f"{name}.json", (100 - age, 100 - age))
    return tmp_path


def test_boards_are_listed_with_the_newest_last(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert boards.names(runs) == ["default-other.v2", "default", "default+3f2a"]
    assert boards.names(runs / "nowhere") == []
    published = tmp_path_factory.mktemp("published")
    (published / packed.NAME).write_bytes(packed.pack({"x/run.json": b"", "boards/b.json": b"", "boards/a.json": b""}))
    assert boards.names(published) == ["b", "a"]


def test_a_board_is_read_by_its_name_and_by_default_the_newest(runs: Path) -> None:
    assert store.read_board(runs).experiment == "default+3f2a"
    assert store.read_board(runs, "default").experiment == "default"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("default+3f2b", r"Did you mean default \+3f2a or default"),
        ("defalt", "Did you mean default or"),
        ("squad", "Known: default, default"),
        ("default/../default", "There is no board 'default/../default'"),
    ],
)
def test_an_unknown_name_gets_the_names_that_are_most_like_it(runs: Path, name: str, hint: str) -> None:
    with pytest.raises(BenchError, match=hint.replace(" \\+", r"\+")):
        store.read_board(runs, name)


def test_without_boards_the_remedy_is_to_run_one(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"Run an experiment first"):
        store.read_board(tmp_path, "default")


def test_only_a_variation_has_a_folder_of_its_own() -> None:
    name = boards.variation("default", "3f2a")
    assert name == "default+3f2a"
    assert boards.folder(Path("out"), name) == Path("out/default+3f2a")
    assert boards.folder(Path("out"), "default-other") == Path("out")

"""Recipes are found by name or path, checked key by key, and cheap to read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench import paths
from bench.data import recipe
from bench.errors import BenchError
from bench.run.planner import source
from tests.conftest import ROOT
from tests.world import make_dataset

MINIMAL = """\
name: harbour
title: t
description: d
language: en
licence: CC0-1.0
citation: none
format: documents
"""
HUB = "source: {hub: {id: a/b, revision: %s}}\nsplits: {test: 'train[10:]'}\n"


def write(tmp_path: Path, extra: str, text: str = MINIMAL) -> Path:
    folder = tmp_path / "harbour"
    folder.mkdir(exist_ok=True)
    (folder / "dataset.yaml").write_text(text + extra, encoding="utf-8")
    return folder


def test_the_projects_own_datasets_are_known_and_readable() -> None:
    assert {"newsworld", "squad", "text"} <= set(paths.datasets())
    for name in paths.datasets():
        assert recipe.find(name).name == name


def test_a_dataset_elsewhere_is_found_by_its_folder(tmp_path: Path) -> None:
    folder = write(tmp_path, "")
    assert recipe.find(str(folder)).folder == folder


def test_an_unknown_dataset_names_the_nearest() -> None:
    with pytest.raises(BenchError, match=r"'newswrld'.*Did you mean newsworld or newsworld_revised\?"):
        recipe.find("newswrld")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("splts: {}\n", r"splts: unknown key\. Did you mean splits\?"),
        ("stream: {ordr: random}\n", r"stream\.ordr: unknown key\. Did you mean order\?"),
        (
            "stream: {order: sideways}\n",
            r"stream\.order = 'sideways': Input should be 'timestamp', 'grouped' or 'random'",
        ),
        ("stream: {order: grouped}\n", r"stream: order: grouped needs group: true"),
        (
            "stream: {sizes: {test: {documents: 0, count: 1}}}\n",
            r"stream\.sizes\.test\.0\.documents = 0: Input should be greater than 0",
        ),
        (
            "stream: {sizes: {test: [{documents: 2, count: 1}, {documents: 2, count: 0}]}}\n",
            r"stream\.sizes\.test\.1\.count = 0: Input should be greater than 0",
        ),
        ("columns: {body: text}\n", r"columns\.body: Input should be 'text'"),
        ("source: {}\n", r"source: give either hub or files"),
        ("splits: {test: test}\n", r"splits without a source"),
        ("source: {files: {tset: a.jsonl}}\n", r"unknown split 'tset'\. Did you mean test\?"),
        ("source: {files: {all: a}}\nsplits: {test: al}\n", r"splits\.test: no file for 'al'\. Did you mean all\?"),
        ("source: {files: {all: a}}\nsplits: {test: 'all[1-2]'}\n", r"'all\[1-2\]' is not a source split"),
        (HUB % "main", r"source\.hub\.revision = 'main': String should match"),
        ("source: {hub: {id: a/b}}\nsplits: {test: test}\n", r"source\.hub\.revision: Field required"),
        ("source: {hub: {id: a/b, revision: %s}}\n" % ("a" * 40), r"a hub source needs splits"),
        ("timestamp_format: ISO\n", r"timestamp_format = 'ISO': expected epoch_seconds, epoch_milliseconds, or"),
        ('timestamp_format: "%H:%M"\n', r"timestamp_format = '%H:%M': expected .* with the year, such as %d"),
        ('timestamp_format: "%Y %Q"\n', r"timestamp_format = '%Y %Q': not a format of strptime"),
        ("answer_cells: auto\n", r"answer_cells = 'auto': Input should be 'text' or 'list'"),
        ("answer_cells: list\nanswer_separator: ';'\n", r"answer_separator is .* excludes answer_cells"),
        ("answer_separator: ''\n", r"answer_separator is a text that is not empty"),
        ("unanswerable: drop\n", r"unanswerable = 'drop': Input should be 'leave_out' or 'keep'"),
        ("segment: letters\n", r"segment = 'letters': Input should be 'words' or 'characters'"),
        ("stream: [\n", r"is not valid YAML: .*line \d+"),
    ],
)
def test_a_wrong_recipe_is_refused_with_file_and_key(tmp_path: Path, extra: str, message: str) -> None:
    folder = write(tmp_path, extra)
    with pytest.raises(BenchError, match=message) as error:
        recipe.read(folder)
    assert str(folder / "dataset.yaml") in str(error.value)


def test_a_recipe_must_have_the_name_of_its_folder(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"name = 'other': this is not the name of its folder, harbour"):
        recipe.read(write(tmp_path, "", MINIMAL.replace("harbour", "other")))


def test_an_empty_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BenchError, match=r"dataset\.yaml: Input should be a mapping\. The format is described in datasets/README\.md"
    ):
        recipe.read(write(tmp_path, "", ""))


def test_splits_default_to_the_names_of_the_files(tmp_path: Path) -> None:
    assert recipe.read(write(tmp_path, "source: {files: {test: a.jsonl}}\n")).declared == {"test": "test"}
    assert recipe.read(write(tmp_path, HUB % ("a" * 40))).declared == {"test": "train[10:]"}


@pytest.mark.parametrize(
    ("place", "source", "rows"),
    [("train", "train", [0, 1, 2, 3]), ("a-b[1:3]", "a-b", [1, 2]), ("x[:2]", "x", [0, 1]), ("x[3:]", "x", [3])],
)
def test_a_range_of_rows_means_what_it_means_in_python(place: str, source: str, rows: list[int]) -> None:
    name, span = recipe.rows_of(place)
    assert (name, list(range(4))[span]) == (source, rows)


def test_reading_recipes_imports_no_heavy_library() -> None:
    code = (
        "import sys; from bench import paths; from bench.data import recipe;"
        "[recipe.find(name) for name in paths.datasets()];"
        "print(sorted({'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_is_not_taken_for_the_embedded_dataset_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make_dataset(tmp_path / "squad")
    monkeypatch.chdir(tmp_path)
    assert recipe.find("./squad").folder.resolve() == own
    assert (source(recipe.find("./squad").folder), source(recipe.find("squad").folder)) == (str(own), "squad")

"""The datasets of the project: their recipes, their frozen streams, and the folder itself."""

from __future__ import annotations

import importlib.machinery
import re
import sys
from pathlib import Path

import pytest

from bench.data import recipe, streams
from bench.data.documents import superseded
from bench.data.reader import load_split
from bench.paths import DATASETS, ROOT, datasets
from bench.run import experiment


def test_the_folder_is_not_a_package_and_does_not_hide_the_library() -> None:
    assert not list(DATASETS.rglob("__init__.py"))
    spec = importlib.machinery.PathFinder.find_spec("datasets", [str(ROOT), *sys.path])
    assert spec is not None
    assert spec.origin is not None, "a namespace folder won over the library"
    assert DATASETS not in Path(spec.origin).parents


@pytest.mark.parametrize("name", datasets())
def test_every_dataset_has_a_card_next_to_its_recipe(name: str) -> None:
    assert (DATASETS / name / "README.md").is_file()


def test_the_squad_ranges_are_those_of_the_camels_code() -> None:
    declared = recipe.find("squad").declared
    ranges = {split: recipe.rows_of(place)[1] for split, place in declared.items() if split != "test"}
    assert {split: rows.stop - rows.start for split, rows in ranges.items()} == {
        "qa_train": 40_006,
        "qa_validation": 2_112,
        "train": 39_893,
        "validation": 5_588,
    }
    assert declared["test"] == "validation"


@pytest.mark.parametrize(("name", "documents", "longest"), [("squad", 2_067, 98), ("timeqa", 749, 1)])
def test_the_streams_can_be_drawn_wherever_they_cut_a_group(name: str, documents: int, longest: int) -> None:
    for size in recipe.find(name).stream.sizes["test"]:
        cut = (size.count - 1) * (longest - 1)  # a stream does not use the rest of its last group
        assert size.count * size.documents + cut <= documents, size


@pytest.mark.parametrize("name", ["squad", "paper-camels", "paper-cmt", "paper-mac"])
def test_the_streams_of_experiments_on_squad_are_frozen(name: str) -> None:
    streams_of = experiment.load(name).streams
    size = recipe.Size(documents=streams_of.documents, count=streams_of.count)
    assert size in recipe.find("squad").stream.sizes["test"]


def test_every_key_of_a_recipe_is_in_the_readme() -> None:
    page = (DATASETS / "README.md").read_text(encoding="utf-8")
    models = {"": recipe.Recipe, "source.": recipe.Source, "stream.": recipe.StreamPolicy, "anchor.": recipe.Anchor}
    keys = {prefix + key for prefix, model in models.items() for key in model.model_fields} - {"stream", "anchor"}
    keys |= set(recipe.Hub.model_fields)
    assert {key for key in keys if f"`{key}`" not in page} == set()


def test_the_example_of_the_readme_works(tmp_path: Path) -> None:
    page = (DATASETS / "README.md").read_text(encoding="utf-8")
    declared, lines = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1] for kind in ("yaml", "json"))  # type: ignore[index]
    folder = tmp_path / "my_news"
    folder.mkdir()
    (folder / "dataset.yaml").write_text(declared, encoding="utf-8")
    (folder / "notices.jsonl").write_text(lines, encoding="utf-8")
    my_news = recipe.find(str(folder))
    size = my_news.stream.sizes["test"][0]
    stream = streams.load(my_news, "test", size.documents, size.count - 1)
    assert [item.document.timestamp for item in stream.entries] == ["2031-03-09", "2031-05-02"]
    assert [item.document.text[start:end] for item in stream.entries for start, end in item.facts] == [
        "Pier 1",
        "Pier 4",
    ]
    assert superseded(gold for item in stream.entries for gold in item.questions) == {"f1"}


def test_the_streams_of_newsworld_are_as_frozen() -> None:
    newsworld = recipe.find("newsworld")
    sizes = [(split, size) for split, listed in newsworld.stream.sizes.items() for size in listed]
    frozen = {f"{split}-{size.documents}": size.count for split, size in sizes}
    report = [line.partition(":")[0] for line in streams.verify(newsworld)]
    assert set(report) == {f"{name}-{index}" for name, count in frozen.items() for index in range(count)}
    for split, size in sizes:
        entries = load_split(newsworld, split)
        for index in range(size.count):
            stream = streams.load(newsworld, split, size.documents, index)
            assert len(streams.placebo(entries, stream)) == size.documents

"""Roles of splits: what must be disjoint, what is refused before work, and what a board with an overlap shows."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.data.documents import text_key
from bench.data.recipe import SPLITS
from bench.errors import BenchError
from bench.lm import checkpoint
from bench.paths import ADAPTER, TUNED_ON, experiments
from bench.records.store import read_board
from bench.run.experiment import TuningPlan, load
from bench.run.roles import DISJOINT, Use, overlaps
from bench.run.runner import Runner
from reports import write_all
from tests.conftest import ROOT
from tests.world import PLUGIN, Inline, make_experiment

CASES = ROOT / "tests" / "cases"
UNIFORM = {"name": "uniform", "space": {"learning_rate": [0.0, 1e-3]}}


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "methods.py"
    path.write_text(PLUGIN)
    return str(path)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def copied(keepers: Path, folder: Path, source: str, target: str, change: Callable[[str], str]) -> Path:
    """The dataset with the second document of split ``source``, changed, as the last one of split ``target``."""
    copy = shutil.copytree(keepers, folder / "keepers")
    row = rows(copy / f"{source}.jsonl")[1]
    row |= {"text": change(row["text"]), "questions": [], "group": "copy"}
    with (copy / f"{target}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    return copy


CHANGES: Mapping[str, Callable[[str], str]] = {
    "the same text": str,
    "other case": str.upper,
    "other white space": lambda text: "\n " + text.replace(" ", "  ") + "\t",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("source", "target", "methods"),
    [
        ("test", "validation", ["closed_book", UNIFORM]),
        ("test", "train", ["trained"]),
        ("test", "qa_train", ["closed_book"]),  # the anchor set
        ("validation", "train", ["trained", UNIFORM]),
    ],
)
def test_a_document_in_two_splits_stops_the_run_and_is_named(
    keepers: Path, llama: Path, plugin: str, tmp_path: Path, source: str, target: str, methods: list[Any], change: str
) -> None:
    data = copied(keepers, tmp_path, source, target, CHANGES[change])
    plugins = [plugin] if "trained" in methods else []
    with pytest.raises(BenchError) as error:
        Runner(make_experiment(data, llama, methods), tmp_path / "runs", plugins)
    title = rows(keepers / f"{source}.jsonl")[1]["title"]
    for part in (f"{source}, the split", f"{target}, the split", "share 1 of", title, "allow_overlap: true"):
        assert part in str(error.value)
    assert not (tmp_path / "runs").exists(), "before any work"


@pytest.mark.parametrize(
    ("source", "target", "methods"),
    [
        ("test", "validation", ["closed_book"]),  # nothing is tuned
        ("test", "train", ["closed_book", UNIFORM]),  # nobody learns from it
        ("train", "qa_train", ["trained"]),  # the anchor set is held out
        ("test", "qa_validation", ["closed_book", UNIFORM]),
        ("test", "train", ["closed_book", {"name": "camels", "optional": True}]),  # left out, without weights
    ],
)
def test_splits_that_are_not_in_use_may_share_documents(
    keepers: Path, llama: Path, plugin: str, tmp_path: Path, source: str, target: str, methods: list[Any]
) -> None:
    data = copied(keepers, tmp_path, source, target, str)
    plugins = [plugin] if "trained" in methods else []
    assert Runner(make_experiment(data, llama, methods), tmp_path / "runs", plugins).overlaps == []


@pytest.mark.parametrize("split", ["qa_train", "qa_validation"])
def test_a_stream_of_documents_on_which_the_base_was_tuned_is_refused(
    keepers: Path, llama: Path, tmp_path: Path, split: str
) -> None:
    base = shutil.copytree(llama, tmp_path / "base")
    (base / TUNED_ON).write_text(
        f"split,document\n{split},{text_key(rows(keepers / 'test.jsonl')[1]['text'].upper())}\n"
    )
    adapter = tmp_path / "base-qa"
    adapter.mkdir()
    (adapter / ADAPTER).write_text(json.dumps({"base_model_name_or_path": str(base), "lora_alpha": 1}))
    assert checkpoint.tuned_on(str(adapter)) == checkpoint.tuned_on(str(base))
    with pytest.raises(BenchError, match=rf"and base's {split}, .* share 1 of 16 documents; the first .*'Report 18'"):
        Runner(make_experiment(keepers, base, ["closed_book"]), tmp_path / "runs")
    (base / TUNED_ON).write_text("document\n")
    assert Runner(make_experiment(keepers, base, ["closed_book"]), tmp_path / "runs").overlaps == []
    (base / TUNED_ON).write_text("document\n1\n")
    with pytest.raises(BenchError, match=r"documents\.csv could not be read .* or tune the base again"):
        Runner(make_experiment(keepers, base, ["closed_book"]), tmp_path / "runs")


def test_one_file_for_all_splits_is_refused(keepers: Path, llama: Path, tmp_path: Path) -> None:
    files = {split: [str(keepers / "test.jsonl")] for split in ("train", "validation", "test")}
    with pytest.raises(BenchError, match=r"share 16 of 16 documents; the first one is .*'Report 17'"):
        Runner(make_experiment(keepers, llama, [UNIFORM], data_files=files), tmp_path)


def test_an_allowed_overlap_marks_every_row_of_the_board(
    keepers: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reports.plots.PARTS", ())
    data = copied(keepers, tmp_path, "test", "validation", str)
    runs, out = tmp_path / "runs", tmp_path / "out"
    streams = {"split": "test", "documents": 2, "count": 1}
    experiment = make_experiment(data, llama, ["closed_book", UNIFORM], streams=streams, allow_overlap=True)
    assert Runner(experiment, runs).run(Inline()).failures == ()
    (sentence,) = read_board(runs).overlaps
    write_all(runs, out)
    board = json.loads((out / "leaderboard.json").read_text())
    assert f"Overlap: {sentence}" in board["remarks"] and "Report 18" in sentence
    assert [row["overlap"] for row in board["rows"]] == [True, True]
    markdown = (out / "leaderboard.md").read_text()
    assert markdown.count("[overlap]") == 2 and sentence in markdown
    assert (out / "leaderboard.tex").read_text().count("{[}overlap]") == 2


def test_without_an_overlap_nothing_is_marked_although_it_is_allowed(
    keepers: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reports.plots.PARTS", ())
    streams = {"split": "test", "documents": 2, "count": 1}
    experiment = make_experiment(keepers, llama, ["closed_book"], streams=streams, allow_overlap=True)
    Runner(experiment, tmp_path / "runs").run(Inline())
    assert read_board(tmp_path / "runs").overlaps == []
    board = write_all(tmp_path / "runs", tmp_path / "out")
    assert [(row.overlap, row.title) for row in board.rows] == [(False, "closed_book")]


@pytest.mark.parametrize(
    ("split", "methods", "other"),
    [
        ("train", ["trained"], "that trained learns from offline"),
        ("validation", [UNIFORM], "on which methods are tuned"),
        ("qa_train", ["closed_book"], "of the anchor set"),
    ],
)
def test_streams_of_a_split_with_another_role_are_refused(
    keepers: Path, llama: Path, plugin: str, tmp_path: Path, split: str, methods: list[Any], other: str
) -> None:
    streams = {"split": split, "documents": 4, "count": 1}
    plugins = [plugin] if "trained" in methods else []
    with pytest.raises(BenchError, match=f"{split} is both the split of the streams and the split {other}"):
        Runner(make_experiment(keepers, llama, methods, streams=streams), tmp_path, plugins)


@pytest.mark.parametrize("split", ["train", "validation", "qa_validation", "qa_train"])
def test_streams_of_a_split_without_another_role_run(keepers: Path, llama: Path, tmp_path: Path, split: str) -> None:
    data = shutil.copytree(keepers, tmp_path / "keepers")
    shutil.copy(data / "train.jsonl", data / "more.jsonl")
    recipe = (data / "dataset.yaml").read_text().replace("test: test.jsonl", "qa_validation: more.jsonl")
    (data / "dataset.yaml").write_text(recipe)
    streams = {"split": split, "documents": 2, "count": 1}
    experiment = make_experiment(data, llama, ["closed_book"], streams=streams, anchor={})
    assert Runner(experiment, tmp_path / "runs").overlaps == []


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("board_on_train", "train is both the split of the streams and the split that cmt was trained on"),
        ("tune_on_test", "tuning.split = 'test': hyper-parameters are tuned on the validation split only"),
    ],
)
def test_the_cases_are_refused_before_work(tmp_path: Path, case: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        Runner(load(str(CASES / "experiments" / f"{case}.yaml")), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", ["test", "train", "qa_train", "qa_validation", "tset"])
def test_tuning_is_on_validation_only(split: str) -> None:
    with pytest.raises(ValueError, match="tuned on the validation split only"):
        TuningPlan(split=split, count=1)


def test_a_trained_method_uses_train_and_validation(llama: Path, keepers: Path, tmp_path: Path) -> None:
    plan = {"name": "cmt", "config": {"training": {"steps": 3}}}
    streams = {"split": "validation", "documents": 4, "count": 1}
    experiment = make_experiment(keepers, llama, [plan], streams=streams, tuning=None)
    with pytest.raises(BenchError, match="the split on which the training of cmt chose its best state"):
        Runner(experiment, tmp_path)
    untrained = {"name": "cmt", "config": {"training": {"steps": 0}}}
    assert Runner(make_experiment(keepers, llama, [untrained], streams=streams, tuning=None), tmp_path).overlaps == []


def test_every_pair_of_roles_is_compared_once(keepers: Path) -> None:
    files = {split: [str(keepers / "test.jsonl")] for split in ("train", "validation", "test", "qa_train")}
    uses = [Use("test", "streams", "a"), Use("train", "learned", "b"), Use("train", "learned", "c")]
    uses += [Use("validation", "selected", "d"), Use("qa_train", "anchor", "e")]
    sentences = overlaps(str(keepers), files, uses, allowed=True)
    of_splits = [pair for pair in DISJOINT if "base" not in pair]  # a base states its documents itself
    assert len(sentences) == len(of_splits) and "the split c" not in " ".join(sentences)
    fewer = {**files, "qa_train": [str(keepers / "qa_train.jsonl")]}
    assert overlaps(str(keepers), fewer, uses, allowed=True) == [
        sentence for sentence in sentences if "qa_train" not in sentence
    ]


def test_splits_of_another_data_set_are_compared_with_those_of_the_streams(keepers: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(keepers, tmp_path / "elsewhere" / "keepers"))
    shutil.copy(keepers / "test.jsonl", other / "train.jsonl")
    uses = [Use("test", "streams", "of the streams"), Use("train", "learned", "of the training", str(other))]
    assert overlaps(str(keepers), {}, [*uses[:1], Use("train", "learned", "of the training")], allowed=True) == []
    (sentence,) = overlaps(str(keepers), {}, uses, allowed=True)
    assert sentence.startswith("test, the split of the streams, and keepers's train, the split of the training, share")


def test_the_splits_of_the_embedded_data_share_nothing() -> None:
    for one, other in itertools.combinations(SPLITS, 2):
        uses = [Use(one, "streams", "one"), Use(other, "learned", "other")]
        assert overlaps("newsworld", {}, uses, allowed=False) == []


@pytest.mark.parametrize("name", experiments())
def test_the_projects_own_experiments_need_no_overlap(name: str) -> None:
    experiment = load(name)
    assert experiment.streams.split == "test" and not experiment.allow_overlap

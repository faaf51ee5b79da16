"""What a cell reads besides its stream enters its key by content: files, folders, models and taggers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from bench.contract import registry
from bench.contract.method import Method, validate_config
from bench.data.tagger import RuleTagger, Span
from bench.errors import BenchError
from bench.records.store import read_answers, read_run
from bench.run import cell
from bench.run.inputs import dependencies, inputs_of, offline_entries
from bench.run.runner import Runner
from methods.closed_book import ClosedBook
from methods.dense_retrieval import DenseRetrieval
from methods.mac import Mac
from methods.salient_spans import SalientSpans
from methods.tfidf import Tfidf
from methods.uniform import Uniform
from tests.world import Inline, make_dataset, make_experiment

PLUGIN = '''
from collections.abc import Mapping
from pathlib import Path

from bench import Conditioning, Document, Method, MethodConfig


class Listed(Method):
    """Puts the words of some files before each question."""

    name = "listed"
    paper = "none"

    class Config(MethodConfig):
        words: Path
        folders: tuple[Path, ...] = ()
        label: str = "."

    @classmethod
    def depends_on(cls, config: MethodConfig) -> Mapping[str, str | Path]:
        return {**super().depends_on(config), "stop words": Path(__file__).parent / "more" / "stopwords.txt"}

    def observe(self, document: Document) -> None:
        pass

    def condition(self, questions):
        return Conditioning(text=[self.config.words.read_text()] * len(questions))
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plug-in with the files that it reads."""
    (tmp_path / "listed.py").write_text(PLUGIN)
    for name in ("words.txt", "more/stopwords.txt", "list/one.txt", "list/deep/two.txt", "unread.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"the words of {name}")
    return tmp_path


def listed(folder: Path) -> tuple[type[Method], dict[str, Any]]:
    settings = {"words": str(folder / "words.txt"), "folders": [str(folder / "list")]}
    return registry.load_method("listed", [folder / "listed.py"]), settings


def identify(method: type[Method], settings: dict[str, Any]) -> dict[str, str]:
    return dependencies(method, validate_config(method, settings))


def rewrite(path: Path) -> None:
    """Change a byte of a file, and neither its size nor its time."""
    before = path.stat()
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("name", "dependency"),
    [
        ("words.txt", "words"),
        ("more/stopwords.txt", "stop words"),
        ("list/one.txt", "folders.0"),
        ("list/deep/two.txt", "folders.0"),
    ],
)
@pytest.mark.parametrize("change", ["content", "time", "name"])
def test_files_count_by_content_and_in_folders_by_name(folder: Path, name: str, dependency: str, change: str) -> None:
    before = identify(*listed(folder))
    assert set(before) == {"words", "folders.0", "stop words"}, "a text that happens to be a path does not count"
    assert identify(*listed(folder)) == before
    if change == "content":
        rewrite(folder / name)
    elif change == "time":
        os.utime(folder / name, (1, 1))
    elif dependency == "folders.0":
        (folder / name).rename((folder / name).with_name("renamed.txt"))
    after = identify(*listed(folder))
    changed = {key for key in before if before[key] != after[key]}
    expected = change == "content" or (change == "name" and dependency == "folders.0")
    assert changed == ({dependency} if expected else set())


@pytest.mark.parametrize("name", ["words.txt", "more/stopwords.txt"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BenchError, match=rf"{name} cannot be read: No such file"):
        identify(*listed(folder))


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (DenseRetrieval, lambda encoder: {"encoder": encoder}),
        (Mac, lambda encoder: {"training": {"steps": 0, "amortizer": encoder, "question_encoder": encoder}}),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "1_Pooling/config.json"])
def test_a_model_that_is_trained_again_in_its_folder_counts(
    tmp_path: Path, method: type[Method], settings: Callable[[str], dict[str, Any]], name: str
) -> None:
    for file in ("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    before = identify(method, settings(str(tmp_path)))
    assert len(before) > 0 and identify(method, settings(str(tmp_path))) == before
    rewrite(tmp_path / name)
    after = identify(method, settings(str(tmp_path)))
    assert all(before[key] != after[key] for key in before)


def test_methods_without_files_or_models_depend_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.harness.token_notes.load_tagger", lambda _: RuleTagger())
    for method in (ClosedBook, Uniform, Tfidf, DenseRetrieval, Mac):
        assert identify(method, {}) == {}


class Tagger(RuleTagger):
    """A tagger of parts of speech, as spaCy is."""

    name = "tiny 1.0"

    def parts_of_speech(self, text: str) -> list[Span]:  # type: ignore[override]
        return []


def test_a_tagger_counts_where_it_can_change_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.harness.token_notes.load_tagger", lambda _: RuleTagger())
    assert identify(SalientSpans, {"tagger": "rules"}) == {"tagger": "rules 1"}
    monkeypatch.setattr(
        "methods.salient_spans.load_tagger", lambda choice: RuleTagger() if choice == "rules" else Tagger()
    )
    monkeypatch.setattr("bench.harness.token_notes.load_tagger", lambda _: Tagger())
    assert identify(SalientSpans, {}) == {"tagger": "tiny 1.0", "parts of speech": "tiny 1.0"}
    assert identify(SalientSpans, {"tagger": "rules"}) == {"tagger": "rules 1", "parts of speech": "tiny 1.0"}
    assert identify(Tfidf, {}) == {"parts of speech": "tiny 1.0"}
    assert identify(Uniform, {}) == {}, "no weights of tokens, so no notes"
    assert identify(ClosedBook, {}) == {}


def test_a_tagger_that_is_not_there_is_an_error_before_any_work(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: str) -> None:
        raise BenchError("spaCy is not installed.")

    monkeypatch.setattr("methods.salient_spans.load_tagger", missing)
    experiment = make_experiment(make_dataset(tmp_path / "keepers"), llama, ["salient_spans"])
    with pytest.raises(BenchError, match="spaCy is not installed"):
        Runner(experiment, tmp_path / "runs")


def test_documents_of_the_anchor_set_are_not_learned_from(llama: Path, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "keepers")
    experiment = make_experiment(dataset, llama, ["closed_book"], anchor={"questions": 3, "documents": 3})
    cell = Runner(experiment, tmp_path / "runs").planner.cells(experiment.methods[0], {})[0]
    held_out = {entry.document.id for entry in inputs_of(cell.sources, "stream").anchor}
    learned = {entry.document.id for entry in offline_entries("qa_train", cell.sources)}
    assert (len(held_out), len(learned), len(held_out | learned)) == (3, 1, 4)
    assert len(offline_entries("train", cell.sources)) == 4


def test_a_cell_runs_again_if_a_file_of_its_method_changed(folder: Path, llama: Path) -> None:
    runs, small = folder / "runs", {"split": "test", "documents": 2, "count": 1}
    method = {"name": "listed", "config": listed(folder)[1]}
    experiment = make_experiment(
        make_dataset(folder / "keepers"), llama, [method], streams=small, tuning=None, anchor={}, scoring=False
    )

    def keys() -> list[str]:
        executor = Inline()
        Runner(experiment, runs, [str(folder / "listed.py")]).run(executor)
        return executor.keys

    (first,) = keys()
    assert keys() == []
    assert set(read_run(runs / first).spec.dependencies) == {"words", "folders.0", "stop words"}
    rewrite(folder / "unread.txt")
    assert keys() == []
    (folder / "words.txt").write_text("lighthouse " * 30)
    (second,) = keys()
    assert first != second
    nll = [[event.nll for event in read_answers(runs, key)] for key in (first, second)]
    assert nll[0] != nll[1]
    planned = Runner(experiment, runs, [str(folder / "listed.py")])
    (stale,) = planned.planner.cells(planned.experiment.methods[0], planned.experiment.methods[0].config)
    rewrite(folder / "more/stopwords.txt")
    with pytest.raises(BenchError, match="listed's stop words has changed since the run was planned"):
        cell.run(stale.model_dump(mode="json"), str(runs))


def test_parquet_is_read_anew_although_size_and_time_are_those_of_the_old_file(llama: Path, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "keepers")
    hashes = []
    for word in ("lighthouse", "windmill__"):
        rows = [
            {
                "text": f"The {word} of {i} opened.",
                "timestamp": "2031-01-01",
                "questions": [{"question": f"Who? {i}", "answers": ["A"]}],
            }
            for i in range(4)
        ]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{word}.parquet")
        os.utime(tmp_path / f"{word}.parquet", (1_000_000_000, 1_000_000_000))
        shutil.copy2(tmp_path / f"{word}.parquet", tmp_path / "test.parquet")
        hashes.append((tmp_path / "test.parquet").stat())
        experiment = make_experiment(
            dataset,
            llama,
            ["closed_book"],
            data_files={"test": [str(tmp_path / "test.parquet")]},
            streams={"split": "test", "documents": 2, "count": 1},
            tuning=None,
            anchor={},
        )
        runner = Runner(experiment, tmp_path / "runs")
        (planned,) = runner.planner.cells(runner.experiment.methods[0], {})
        hashes.append(planned.spec.stream_hash)
    (old, old_hash, new, new_hash) = hashes
    assert (old.st_mtime, old.st_size) == (new.st_mtime, new.st_size)
    assert old_hash != new_hash

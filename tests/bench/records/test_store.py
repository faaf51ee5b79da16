"""Records on disk are complete or absent; a damaged one is refused with a remedy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import machine
from bench.errors import BenchError
from bench.records import store
from bench.records.schema import (
    AnswerEvent,
    BoardRecord,
    CellSpec,
    DocumentEvent,
    RunRecord,
    TokenEvent,
    TuningRecord,
    documents_seen,
    mean,
)
from tests.conftest import ROOT

SPEC = CellSpec(
    protocol="1.0",
    dataset="world",
    stream="test-1-0",
    stream_hash="s",
    anchor_hash="",
    train_hash="",
    model="tiny",
    model_hash="m",
    dtype="float32",
    device="cpu",
    method="any",
    config={},
    seed=0,
    arm="stream",
    probes=(1.0,),
    scoring=True,
    segment_tokens=None,
    decoding={},
    metrics={},
    harness_code="h",
    method_code="c",
)
RUN = RunRecord(
    id="any-stream-0",
    cell_key="c",
    comparability_key="k",
    status="complete",
    control=False,
    spec=SPEC,
    summary=None,
    costs=None,
    failure=None,
    provenance={},
)
DOCUMENTS = [
    DocumentEvent(position=i, segment=0, document_id=f"d{i}", tokens=2, bytes=7, windows=1, nll=1.5, observe_seconds=0)
    for i in range(3)
]
ANSWERS = [
    AnswerEvent(
        probe=1.0,
        set="stream",
        question_id="q",
        document_id="d0",
        position=0,
        prediction="Zoë\u2028\n",
        answers=("Zoë",),
        em=1,
        f1=1,
        em_prefix=1,
        f1_shortest=1,
        nll=0.5,
    )
]
TOKENS = [
    TokenEvent(
        position=i, document_id=f"d{i}", pieces=("a", " b"), weights=(1, 2), nll=None, classes=("filler", "fact")
    )
    for i in range(2)
]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    store.write_run(tmp_path / "runs", RUN, DOCUMENTS, ANSWERS, TOKENS)
    return tmp_path / "runs"


def test_a_run_is_read_as_it_was_written(runs: Path) -> None:
    counts = {"document_events": 3, "answer_events": 1, "token_events": 2}
    assert store.read_run(runs / RUN.id) == RUN.model_copy(update=counts)
    assert store.read_documents(runs, RUN.id) == DOCUMENTS
    assert store.read_answers(runs, RUN.id) == ANSWERS
    assert store.read_tokens(runs, RUN.id) == TOKENS
    assert [path.name for path in runs.iterdir()] == [RUN.id]


def test_a_run_replaces_an_earlier_one_with_the_same_id(runs: Path) -> None:
    store.write_run(runs, RUN, DOCUMENTS[:1])
    assert store.read_documents(runs, RUN.id) == DOCUMENTS[:1]
    assert store.read_answers(runs, RUN.id) == store.read_tokens(runs, RUN.id) == []
    assert not (runs / RUN.id / "tokens.jsonl").exists(), "without token events there is no such file"
    assert [path.name for path in runs.iterdir()] == [RUN.id]


def test_a_failed_write_leaves_the_earlier_run(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write_run(runs, RUN, DOCUMENTS[:1])
    assert store.read_documents(runs, RUN.id) == DOCUMENTS
    assert [path.name for path in runs.iterdir()] == [RUN.id]


def test_a_run_that_cannot_take_its_place_leaves_the_earlier_one(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.startswith(store.PARTIAL) and not self.name.endswith("-old"):
            raise OSError("no such luck")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no such luck"):
        store.write_run(runs, RUN, DOCUMENTS[:1])
    assert store.read_documents(runs, RUN.id) == DOCUMENTS
    assert [path.name for path in runs.iterdir()] == [RUN.id]


def test_sweep_removes_the_incomplete_folders_of_dead_processes_only(runs: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "from bench.machine import process_name; print(process_name())"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.strip()
    names = {
        "killed": f"{store.PARTIAL}{ended}-0a1b2c3d",
        "killed while replacing": f"{store.PARTIAL}{ended}-0a1b2c3e-old",
        "of an earlier version": f"{store.PARTIAL}any-stream-0-0a1b2c3d",
        "writing now": f"{store.PARTIAL}{machine.process_name()}-0a1b2c3d",
        "on another machine": f"{store.PARTIAL}00000000-{os.getpid()}-0a1b2c3d",
    }
    for name in names.values():
        (runs / name).mkdir()
        (runs / name / "documents.jsonl").write_text("{")
    store.sweep(runs)
    kept = {RUN.id, names["writing now"], names["on another machine"]}
    assert {path.name for path in runs.iterdir()} == kept


READERS: dict[str, Callable[[Path, str], object]] = {
    "documents": store.read_documents,
    "answers": store.read_answers,
    "tokens": store.read_tokens,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "damage", [lambda text: text[:-20], lambda text: text.partition("\n")[2], lambda text: text + text, None]
)
def test_damaged_events_are_refused(runs: Path, name: str, damage: Callable[[str], str] | None) -> None:
    path = runs / RUN.id / f"{name}.jsonl"
    path.write_text(damage(path.read_text())) if damage else path.unlink()
    with pytest.raises(BenchError, match=rf"{name}\.jsonl is damaged: it should hold \d events"):
        READERS[name](runs, RUN.id)


def test_a_record_from_before_token_events_is_read(runs: Path) -> None:
    path = runs / RUN.id / "run.json"
    manifest = json.loads(path.read_text())
    del manifest["token_events"]
    path.write_text(json.dumps(manifest))
    assert store.read_run(runs / RUN.id).token_events == 0
    assert store.read_tokens(runs, RUN.id) == []


def test_a_damaged_or_missing_manifest_is_refused_with_the_remedy(runs: Path) -> None:
    path = runs / RUN.id / "run.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(BenchError, match=r"run\.json is not a readable record.*Delete its folder"):
        store.read_run(runs / RUN.id)
    path.unlink()
    with pytest.raises(BenchError, match=r"run\.json is missing"):
        store.read_run(runs / RUN.id)


def test_tuning_records_are_read_by_key(runs: Path) -> None:
    record = TuningRecord(
        key="k", method="any", dataset="world", model="tiny", model_hash="m", metric="f1", trials=(), chosen={}
    )
    path = runs / "tuning" / "k.json"
    path.parent.mkdir()
    path.write_text(record.model_dump_json())
    assert store.read_tuning(runs, ["k"]) == [record]
    with pytest.raises(BenchError, match=r"other\.json is missing"):
        store.read_tuning(runs, ["k", "other"])
    path.write_text("{}")
    with pytest.raises(BenchError, match=r"k\.json is not a readable record.*Delete it and"):
        store.read_tuning(runs, ["k"])


def test_the_newest_board_is_read_unless_one_is_named(runs: Path) -> None:
    with pytest.raises(BenchError, match="There is no board in"):
        store.read_board(runs)
    (runs / "boards").mkdir()
    for age, name in enumerate(("second", "first")):
        path = runs / "boards" / f"{name}.json"
        path.write_text(BoardRecord(experiment=name, runs=[RUN.id], tuning=[], remarks=[]).model_dump_json())
        os.utime(path, (100 - age, 100 - age))
    assert store.read_board(runs).experiment == "second"
    assert store.read_board(runs, "first").experiment == "first"
    with pytest.raises(BenchError, match="There is no board of third in"):
        store.read_board(runs, "third")


def test_the_mean_of_no_values_is_none() -> None:
    assert mean([1.0, 2.0]) == 1.5
    assert mean([]) is None


def test_a_probe_counts_the_fraction_as_it_is_written() -> None:
    assert [documents_seen(probe, 50) for probe in (0.0, 0.01, 0.14, 0.28, 0.29, 0.3, 1.0)] == [0, 1, 7, 14, 15, 15, 50]
    assert 0.14 * 50 > 7, "as a product of floats it would be 8"
    for hundredths in range(101):
        for documents in (1, 7, 50, 200, 333):
            assert documents_seen(hundredths / 100, documents) == -(-hundredths * documents // 100)

"""A row exported from one folder and imported into another gives the same numbers; whatever was changed is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import reports
import run_bench
from bench.answering.metrics import score
from bench.errors import BenchError
from bench.files import json_bytes
from bench.hashing import digest
from bench.records import imported, packed, store, submission
from bench.records.schema import AnswerEvent, RunRecord
from bench.records.summary import summarize
from reports import tables
from reports.board import build
from reports.rows import Row
from tests.reports.records_factory import board, record, spec, tuning_record

Files = dict[str, bytes]
SCORES = {"uniform": [[0.0], [0.5]], "fresh": [[1.0], [0.5]]}


def make(runs: Path, methods: tuple[str, ...], experiment: str = "demo", **changes: Any) -> None:
    """A board of two streams; ``fresh`` is tuned by two trials and has a placebo arm."""
    ids = []
    for method in methods:
        for k in range(2):
            config = {"rate": 0.1} if method == "fresh" else {}
            run = spec(method, f"test-2-{k}", config=config, **changes)
            ids.append(record(runs, run, SCORES[method], nll=[2.0, 3.0], provenance={"commit": "c0ffee" * 7}))
            if method == "fresh":
                ids.append(
                    record(runs, spec(method, f"test-2-{k}", "placebo", config=config, **changes), [[0.0], [0.5]])
                )
    trials = [({"rate": 0.1}, (0.4, 0.6)), ({"rate": 1.0}, None)]
    keys = [tuning_record(runs, "fresh", trials, {"rate": 0.1})] if "fresh" in methods else []
    board(runs, ids, experiment, tuning=keys)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    make(tmp_path / "theirs", ("uniform", "fresh"))
    return tmp_path / "theirs"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    make(tmp_path / "ours", ("uniform",))
    return tmp_path / "ours"


@pytest.fixture
def file(theirs: Path, tmp_path: Path) -> Path:
    run_bench.export("fresh", tmp_path / "fresh.zip", None, theirs)
    return tmp_path / "fresh.zip"


def contents(path: Path) -> Files:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def snapshot(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(path: Path, files: Mapping[str, bytes], relist: bool = True) -> Path:
    """A file with these members; with ``relist`` its list of hashes is made anew."""
    files = dict(files)
    if relist:
        listing = json.loads(files[submission.CONTENTS])
        others = {name: content for name, content in files.items() if name != submission.CONTENTS}
        listing["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in others.items()}
        files[submission.CONTENTS] = json.dumps(listing).encode()
    changed = path.with_name("changed.zip")
    with zipfile.ZipFile(changed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return changed


def change_answers(
    files: Files, change: Callable[[AnswerEvent], AnswerEvent], summary: bool = True, run: str = "fresh-stream-test-2-0"
) -> Files:
    """The files with other answers in one run, and with digests, and on request a summary, that fit to them."""
    name = next(name for name in files if name.startswith(run) and name.endswith("answers.jsonl"))
    folder = name.split("/")[0]
    events = [change(AnswerEvent.model_validate_json(line)) for line in files[name].splitlines()]
    manifest = json.loads(files[f"{folder}/run.json"])
    del manifest["digest"]
    of = RunRecord.model_validate(manifest)
    lines = files[f"{folder}/documents.jsonl"].splitlines()
    documents = [store.DocumentEvent.model_validate_json(line) for line in lines]
    if summary:
        of = of.model_copy(update={"summary": summarize(documents, events)})
    written = store.run_files(of, documents, events, ())
    return {**files, **{f"{folder}/{part}": content for part, content in written.items()}}


def rescored(event: AnswerEvent, **changes: Any) -> AnswerEvent:
    event = event.model_copy(update=changes)
    return event.model_copy(update=score(event.prediction, event.answers))


def row_of(runs: Path, mark: str) -> Row:
    return next(row for row in build(runs, "demo").rows if row.imported == mark and row.arm == "stream")


def test_an_imported_row_has_the_numbers_that_it_had_and_is_marked(file: Path, theirs: Path, ours: Path) -> None:
    before = snapshot(ours)
    row = submission.add(file, ours)
    there = next(row for row in build(theirs).rows if row.label == "fresh")
    here = row_of(ours, row.mark)
    assert here.label == f"fresh [imported {row.mark}]" and here.status == "complete"
    assert {**there.scores, **here.scores} == there.scores and here.scores.keys() == there.scores.keys()
    assert (here.costs, here.trials, here.tuned) == (there.costs, 2, True)
    assert here.standing is not None and here.standing == there.standing
    assert {name: content for name, content in snapshot(ours).items() if "imported/" not in name} == before
    assert not list(ours.glob(f"{store.PARTIAL}*"))


def test_every_table_marks_it_and_says_what_was_checked(file: Path, ours: Path, tmp_path: Path) -> None:
    mark = submission.add(file, ours).mark
    made = build(ours)
    (remark,) = (remark for remark in made.remarks if "Imported rows" in remark)
    assert mark in remark and "commit c0ffee" in remark and "the rest is as reported" in remark
    for path in tables.write(made, tmp_path / "out"):
        assert (mark if path.suffix == ".txt" else f"imported {mark}") in path.read_text()
    flat = json.loads((tmp_path / "out" / "leaderboard.json").read_text())["rows"]
    assert {row["imported"] for row in flat} == {"", mark}
    assert sum(row["imported"] == mark for row in flat) == 2, "with its placebo arm"


def test_report_checks_imported_rows_too(
    file: Path, ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reports.plots.FORMATS", ("svg",))
    row = submission.add(file, ours)
    reports.write_all(ours, tmp_path / "out")
    assert [name for name in reports.stale(ours, tmp_path / "out") if name.endswith((".json", ".md", ".csv"))] == []
    answers = next(row.folder.glob("fresh-stream*/answers.jsonl"))
    answers.write_bytes(answers.read_bytes().replace(b"w0", b"w1", 1))
    with pytest.raises(BenchError, match=r"The imported row .* is damaged|is not the file that was written"):
        reports.stale(ours, tmp_path / "out")


def test_equal_records_are_exported_as_equal_bytes(file: Path, theirs: Path, tmp_path: Path) -> None:
    run_bench.export("fresh", tmp_path / "again.zip", "demo", theirs)
    assert (tmp_path / "again.zip").read_bytes() == file.read_bytes()
    names = set(contents(file))
    assert {name.split("/")[0].split("-")[0] for name in names} == {"fresh", "tuning", "boards", "submission.json"}
    assert sum(name.endswith("run.json") for name in names) == 2 + 2 + 4, "runs, placebo arm, and trials"


def test_an_arm_is_exported_alone(theirs: Path, tmp_path: Path) -> None:
    run_bench.export("fresh on placebo", tmp_path / "arm.zip", None, theirs)
    runs = {name for name in contents(tmp_path / "arm.zip") if name.endswith("run.json") and "test" in name}
    assert len(runs) == 2 and all("placebo" in name for name in runs)


def lie(files: Files) -> Files:
    """A better prediction, without a new score."""
    return change_answers(files, lambda event: event.model_copy(update={"prediction": event.answers[0]}), summary=False)


def claim(files: Files) -> Files:
    """A better mean than the answers give."""
    (name,) = (name for name in files if name.startswith("fresh-stream-test-2-0") and name.endswith("run.json"))
    manifest = json.loads(files[name])
    del manifest["digest"]
    manifest["summary"]["f1"] = 1.0
    return {**files, name: json_bytes({**manifest, "digest": digest(manifest)})}


def easier(files: Files) -> Files:
    """Gold answers that are what was predicted, with scores that follow."""
    return change_answers(files, lambda event: rescored(event, answers=(event.prediction,)))


def fewer(files: Files) -> Files:
    """One question under another name."""
    return change_answers(files, lambda event: event.model_copy(update={"question_id": f"new {event.question_id}"}))


def trial(files: Files) -> Files:
    """A trial with a better score than its answers give."""
    return change_answers(
        files,
        lambda event: event.model_copy(update={"prediction": event.answers[0]}),
        summary=False,
        run="fresh-stream-validation-1-0",
    )


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (lie, "its f1 is .*, but prediction and answers give 1"),
        (claim, "its f1 is 1.0, but its events give 0.75"),
        (easier, "is not on the board's questions: its gold answers differ at question"),
        (fewer, "is not on the board's questions: the questions that are answered differ"),
        (trial, "its f1 is .*, but prediction and answers give 1"),
    ],
)
def test_a_forged_export_with_hashes_that_fit_is_refused(
    file: Path, ours: Path, forge: Callable[[Files], Files], reason: str
) -> None:
    before = snapshot(ours)
    changed = rewrite(file, forge(contents(file)))
    with pytest.raises(BenchError, match=f"changed.zip is refused: .*{reason}") as error:
        submission.add(changed, ours)
    assert store.PARTIAL not in str(error.value) and "same experiment again" not in str(error.value)
    assert snapshot(ours) == before


def test_a_tampered_export_is_refused(file: Path, ours: Path) -> None:
    files = contents(file)
    name = next(name for name in files if name.endswith("answers.jsonl"))
    changed = rewrite(file, {**files, name: files[name].replace(b"w0", b"w1", 1)}, relist=False)
    with pytest.raises(BenchError, match=r"answers.jsonl has been changed since it was exported"):
        submission.add(changed, ours)
    with pytest.raises(BenchError, match=r"answers.jsonl is not the file that was written with run.json"):
        submission.add(rewrite(changed, contents(changed)), ours)
    del files[name]
    with pytest.raises(BenchError, match=r"answers.jsonl is missing"):
        submission.add(rewrite(file, files, relist=False), ours)
    with pytest.raises(BenchError, match=r"tuning/x.json is not in its list"):
        submission.add(rewrite(file, {**contents(file), "tuning/x.json": b"{}"}, relist=False), ours)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.95, 0.999])
def test_a_cut_export_is_refused(file: Path, ours: Path, part: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: round(part * len(content))])
    with pytest.raises(BenchError, match=r"fresh.zip is refused: it is cut short, damaged or no ZIP file"):
        submission.add(file, ours)
    assert not (ours / imported.FOLDER).exists() and not list(ours.glob(f"{store.PARTIAL}*"))


def test_damage_anywhere_is_refused(file: Path, ours: Path) -> None:
    content, whole = file.read_bytes(), contents(file)
    del whole[submission.CONTENTS]
    for place in range(40, len(content) - 30, len(content) // 40):
        file.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        try:
            row = submission.add(file, ours)
        except BenchError:
            continue
        expected = {**whole, f"boards/{row.board.experiment}.json": whole["boards/demo.json"]}
        assert snapshot(row.folder) == expected, "the damage was to a field of the archive that nothing depends on"
        shutil.rmtree(row.folder)


@pytest.mark.parametrize(
    "name",
    [
        "../escaped/run.json",
        "/tmp/escaped/run.json",
        "a/../../run.json",
        "boards/../../boards/demo.json",
        "..\\run.json",
        "a/b/run.json",
        "a/run.sh",
        "run.json",
        ".partial-x/run.json",
        "a/",
        f"{'a' * 300}/run.json",
        "a\x00/run.json",
    ],
)
def test_names_that_lead_elsewhere_are_refused(file: Path, ours: Path, name: str) -> None:
    before = snapshot(ours.parent)
    changed = rewrite(file, {**contents(file), name: b"{}"})
    with pytest.raises(BenchError, match=r"which is no file of a row|is not in its list"):
        submission.add(changed, ours)
    changed.unlink()
    assert snapshot(ours.parent) == before


def test_more_than_it_may_hold_is_refused(file: Path, ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(len(content) for content in contents(file).values())
    monkeypatch.setattr(submission, "MOST_BYTES", size - 1)
    with pytest.raises(BenchError, match="it holds more than"):
        submission.add(file, ours)
    monkeypatch.setattr(submission, "MOST_BYTES", size)
    monkeypatch.setattr(submission, "MOST_FILES", 3)
    with pytest.raises(BenchError, match="it holds more than 3 files"):
        submission.add(file, ours)


def test_a_member_that_unpacks_to_more_than_it_says_is_refused(file: Path, ours: Path) -> None:
    bomb = file.with_name("bomb.zip")
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents(file).items():
            archive.writestr(name, content)
        archive.writestr("tuning/bomb.json", b" " * 10_000_000)
    content = bomb.read_bytes()
    bomb.write_bytes(content.replace(struct.pack("<L", 10_000_000), struct.pack("<L", 10)))
    with pytest.raises(BenchError, match=r"bomb.zip is refused"):
        submission.add(bomb, ours)


def test_a_name_that_is_there_twice_and_a_file_without_a_list_are_refused(file: Path, ours: Path) -> None:
    files = contents(file)
    name = next(name for name in files if name.endswith("run.json"))
    changed = rewrite(file, files)
    with zipfile.ZipFile(changed, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(name, b"{}")
    with pytest.raises(BenchError, match="it holds a file twice"):
        submission.add(changed, ours)
    del files[submission.CONTENTS]
    with pytest.raises(BenchError, match=r"it holds no submission.json"):
        submission.add(rewrite(file, files, relist=False), ours)
    with pytest.raises(BenchError, match="There is no file"):
        submission.add(file.with_name("nothing.zip"), ours)
    listing = json.dumps({"format": 2, "experiment": "demo", "row": "fresh", "files": {}}).encode()
    with pytest.raises(BenchError, match=r"submission.json is not valid. format = 2"):
        submission.add(rewrite(file, {submission.CONTENTS: listing}, relist=False), ours)


def test_a_run_that_belongs_to_nothing_is_refused(file: Path, theirs: Path, ours: Path) -> None:
    other = next(theirs.glob("uniform-*"))
    stray = {f"{other.name}/{path.name}": path.read_bytes() for path in other.iterdir()}
    with pytest.raises(BenchError, match=f"the run {other.name} belongs to nothing in it"):
        submission.add(rewrite(file, {**contents(file), **stray}), ours)


def test_other_conditions_are_refused_and_named(file: Path, tmp_path: Path) -> None:
    make(tmp_path / "other", ("uniform",), harness_code="new", decoding={"beams": 2})
    with pytest.raises(
        BenchError, match=r"not comparable with the board demo; they differ in decoding.beams .*harness_code"
    ):
        submission.add(file, tmp_path / "other")


def test_streams_that_are_missing_are_refused(file: Path, tmp_path: Path) -> None:
    runs = tmp_path / "longer"
    board(runs, [record(runs, spec("uniform", f"test-2-{k}"), SCORES["uniform"], nll=[2.0, 3.0]) for k in range(3)])
    with pytest.raises(BenchError, match=r"it has no run on the board's stream test-2-2 \(1 of 3 missing\)"):
        submission.add(file, runs)


def test_a_board_with_fewer_streams_takes_those_that_it_has(file: Path, tmp_path: Path) -> None:
    runs = tmp_path / "shorter"
    board(runs, [record(runs, spec("uniform", "test-2-0"), SCORES["uniform"], nll=[2.0, 3.0])])
    row = submission.add(file, runs)
    assert (row_of(runs, row.mark).streams, row_of(runs, row.mark).status) == (1, "complete")


def test_what_is_there_already_is_refused(file: Path, theirs: Path, ours: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="is the same cell, from a run of your own"):
        submission.add(file, theirs)
    row = submission.add(file, ours)
    with pytest.raises(BenchError, match=f"its row is on the board demo, from .*{row.folder.name}"):
        submission.add(file, ours)
    with pytest.raises(BenchError, match="was not run here, but imported"):
        run_bench.export(f"fresh [imported {row.mark}]", tmp_path / "x.zip", None, ours)
    with pytest.raises(BenchError, match="There is no board"):
        submission.add(file, ours, "nothing")


def test_own_runs_of_the_same_cells_take_the_place_of_an_imported_row(file: Path, ours: Path, theirs: Path) -> None:
    submission.add(file, ours)
    make(ours, ("uniform", "fresh"))
    made = build(ours)
    assert [row.imported for row in made.rows] == [""] * len(made.rows)
    assert any("is left out: its cells were run here since" in remark for remark in made.remarks)


def test_an_imported_row_that_no_longer_fits_is_left_out_with_a_remark(file: Path, ours: Path) -> None:
    submission.add(file, ours)
    make(ours, ("uniform",), harness_code="newer")
    made = build(ours)
    assert [row.label for row in made.rows] == ["uniform"]
    assert any("is left out: it differs from the board in harness_code" in remark for remark in made.remarks)


def test_only_complete_rows_are_exported_and_published_records_take_none(
    theirs: Path, file: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "failed"
    board(runs, [record(runs, spec("uniform", f"test-2-{k}"), status="diverged") for k in range(2)])
    with pytest.raises(BenchError, match=r"uniform is not exported: its run .* has diverged"):
        run_bench.export("uniform", tmp_path / "x.zip", None, runs)
    assert not (tmp_path / "x.zip").exists()
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / packed.NAME).write_bytes(packed.pack({}))
    with pytest.raises(BenchError, match="holds published records, to which none are added"):
        submission.add(file, tmp_path / "published")
    with pytest.raises(BenchError, match="holds published records, without gold answers"):
        submission.export(tmp_path / "published", "demo", "fresh", [], tmp_path / "x.zip")


def test_the_command_line_says_what_was_checked_and_what_comes_next(
    file: Path, ours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_bench.import_(file, None, ours)
    shown = capsys.readouterr().out
    assert "Every score follows from the predictions" in shown
    assert f"python run_bench.py report demo --runs {ours}" in shown

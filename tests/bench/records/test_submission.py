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
from reports.page import rows
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
    return exported(theirs, tmp_path)


def exported(runs: Path, folder: Path, label: str = "fresh") -> Path:
    path = folder / f"{label.split()[0]}.zip"
    run_bench.export(label, path, None, runs)
    return path


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
    files: Files,
    change: Callable[[AnswerEvent], AnswerEvent],
    summary: bool = True,
    run: str = "fresh-stream-test-2-0",
    repeat: int = 0,
) -> Files:
    """The files with other answers in one run, and with digests, and on request a summary, that fit to them."""
    name = next(name for name in files if name.startswith(run) and name.endswith("answers.jsonl"))
    folder = name.split("/")[0]
    events = [change(AnswerEvent.model_validate_json(line)) for line in files[name].splitlines()]
    events += events[:repeat]
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
    assert mark in remark and "commit c0ffee" in remark and "the rest, likelihoods too, is as reported" in remark
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
    with pytest.raises(BenchError, match=r"is a folder: name the ZIP file to write"):
        run_bench.export("fresh", tmp_path, "demo", theirs)


def test_texts_of_failures_which_may_hold_anything_are_not_exported(file: Path, theirs: Path, ours: Path) -> None:
    failures = [json.loads(text)["failure"] for name, text in contents(file).items() if name.endswith("/run.json")]
    texts = {(one["kind"], one["message"], one["traceback"]) for one in failures if one}
    assert texts == {("diverged", "", "")}
    assert "NaN" in {one.failure.message for one in map(store.read_run, theirs.glob("fresh-*")) if one.failure}
    assert submission.add(file, ours).mark


def test_an_arm_is_exported_with_the_row_that_it_belongs_to(theirs: Path, file: Path, tmp_path: Path) -> None:
    run_bench.export("fresh on placebo", tmp_path / "arm.zip", None, theirs)
    arm, row = (contents(path) for path in (tmp_path / "arm.zip", file))
    assert {**arm, submission.CONTENTS: b""} == {**row, submission.CONTENTS: b""}


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


def twice(files: Files) -> Files:
    """The first answer once more."""
    return change_answers(files, lambda event: event, repeat=1)


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
        (twice, "has a document or an answer twice"),
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
    with pytest.raises(
        BenchError, match=r"no run on the board's stream test-2-2 itself, in its own order \(1 of 3 missing\)"
    ):
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
    make(tmp_path / "other", ("uniform",), "demo+2")
    with pytest.raises(BenchError, match=r"row of the board demo, .* with --experiment: demo\+2\."):
        submission.add(file, tmp_path / "other")


def test_own_runs_of_the_same_cells_take_the_place_of_an_imported_row(file: Path, ours: Path, theirs: Path) -> None:
    submission.add(file, ours)
    make(ours, ("uniform", "fresh"))
    made = build(ours)
    assert [row.imported for row in made.rows] == [""] * len(made.rows)
    assert any("is left out: its cells were run here since" in remark for remark in made.remarks)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"harness_code": "newer"}, "is left out: it differs from the board in harness_code"),
        ({"stream_hash": "newer"}, "is left out: the board is on other documents since"),
    ],
)
def test_an_imported_row_that_no_longer_fits_is_left_out_with_a_remark(
    file: Path, ours: Path, changes: dict[str, str], reason: str
) -> None:
    submission.add(file, ours)
    make(ours, ("uniform",), **changes)
    made = build(ours)
    assert [row.label for row in made.rows] == ["uniform"]
    assert any(reason in remark for remark in made.remarks)


def test_the_mark_of_an_overlap_is_that_of_the_board_that_a_row_comes_from(
    theirs: Path, ours: Path, tmp_path: Path
) -> None:
    store.write_board(theirs, store.read_board(theirs).model_copy(update={"overlaps": ["test and train share 3."]}))
    row = submission.add(exported(theirs, tmp_path), ours)
    made = build(ours)
    assert {row.label: row.overlap for row in made.rows if row.arm == "stream"} == {
        "uniform": False,
        f"fresh [imported {row.mark}]": True,
    }
    assert f"Overlap in the imported row {row.folder.name}: test and train share 3." in made.remarks
    assert not any(remark.startswith("Overlap:") for remark in made.remarks)


def test_a_row_knows_its_folder_and_its_tuning(file: Path, ours: Path) -> None:
    folder, made = submission.add(file, ours).folder, build(ours)
    by_source = {bool(row.imported): row for row in made.rows if row.arm == "stream"}
    assert (by_source[False].runs, by_source[True].runs) == (ours, folder)
    tuned = by_source[True].tuning
    assert tuned is not None and (tuned.chosen, by_source[False].tuning) == ({"rate": 0.1}, None)
    shown = rows.facts(made, by_source[True])
    assert shown["settings"] == [["rate", 0.1, "tuned"]] and len(shown["tuning"]["trials"]) == 2


# What was chosen, and on what.


def tune(runs: Path, trials: Any = (({"rate": 0.1}, (0.4, 0.6)), ({"rate": 1.0}, None)), **changes: Any) -> None:
    """Give ``fresh`` another tuning record, whose choice is the best of these trials."""
    best = max((trial for trial in trials if trial[1]), key=lambda trial: sum(trial[1]))
    key = tuning_record(runs, "fresh", trials, best[0], **changes)
    whole = store.read_board(runs)
    entries = [
        entry.model_copy(update={"tuning": key}) if entry.method == "fresh" else entry for entry in whole.entries
    ]
    store.write_board(runs, whole.model_copy(update={"entries": entries}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"split": "test"}, "is on the split of the board: it was tuned on what it is tested on"),
        ({"dtype": "bfloat16"}, r"ran under other conditions than its row: dtype \(bfloat16 and float32\)"),
        ({"dataset": "easy"}, r"ran under other conditions than its row: dataset \(easy and world\)"),
        ({"model": "large"}, r"ran under other conditions than its row: model \(large and tiny\)"),
        ({"metrics": {"f1": "0"}}, r"ran under other conditions than its row: .*metrics\.f1 \(0 and"),
        ({"prompt": {"begin": "<s>"}}, r"ran under other conditions than its row: prompt\.begin"),
    ],
)
def test_a_row_that_was_tuned_elsewhere_is_refused(
    theirs: Path, ours: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    tune(theirs, **changes)
    with pytest.raises(BenchError, match=f"its trial fresh-stream-[^ ]* {reason}"):
        submission.add(exported(theirs, tmp_path), ours)


def test_trials_may_score_and_ask_otherwise_than_the_board(theirs: Path, ours: Path, tmp_path: Path) -> None:
    tune(theirs, probes=(0.5, 1.0), scoring=False, anchor_hash="none", device="cuda", seed=3)
    row = submission.add(exported(theirs, tmp_path), ours)
    assert row_of(ours, row.mark).tuned


def test_a_row_that_is_marked_for_its_overlap_may_be_tuned_on_the_split_of_the_board(
    theirs: Path, ours: Path, tmp_path: Path
) -> None:
    tune(theirs, split="test")
    store.write_board(theirs, store.read_board(theirs).model_copy(update={"overlaps": ["test is both."]}))
    assert row_of(ours, submission.add(exported(theirs, tmp_path), ours).mark).overlap


def test_a_row_with_other_settings_than_its_tuning_chose_is_refused(
    theirs: Path, ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(theirs, trials=(({"rate": 0.1}, (0.4, 0.6)), ({"rate": 1.0}, (0.9, 0.9))))
    reason = r"as tuned, whose settings are not those that fresh-\w+ chose"
    with pytest.raises(BenchError, match=reason):
        exported(theirs, tmp_path)
    with monkeypatch.context() as careless:
        careless.setattr(submission, "check_board", lambda *_: None)
        made = exported(theirs, tmp_path)
    with pytest.raises(BenchError, match=rf"fresh.zip is refused: boards/demo.json is wrong: it lists .* {reason}"):
        submission.add(made, ours)


def test_settings_in_another_order_are_the_same(ours: Path, tmp_path: Path) -> None:
    runs = tmp_path / "theirs"
    configs = ({"rate": 0.1, "k": 1}, {"k": 1, "rate": 0.1})
    cells = [spec("fresh", f"test-2-{k}", config=config) for k, config in enumerate(configs)]
    board(runs, [record(runs, cell, SCORES["fresh"], nll=[2.0, 3.0]) for cell in cells])
    assert submission.add(exported(runs, tmp_path), ours).records[1].spec.config == configs[1]


# On which documents, in which order.


def reordered(runs: Path, run_id: str, places: tuple[int, ...], other: str = "") -> None:
    """Let a run observe its documents in another order or, with ``other``, documents of other names."""
    run, documents = store.read_run(runs / run_id), store.read_documents(runs, run_id)
    seen = [
        event.model_copy(update={"document_id": f"{other}{documents[place].document_id}"})
        for event, place in zip(documents, places, strict=True)
    ]
    store.write_run(runs, run, seen, store.read_answers(runs, run_id))


def in_orders(runs: Path, orders: tuple[int, ...], questions: bool = True, other: str = "") -> Path:
    """A row that ran in these orders; those but 0 are the reverse, and of documents of ``other`` names."""
    ids = []
    for order in orders:
        for k in range(2):
            changes = {"order": order, "stream_hash": f"hash of order {order}"} if order else {}
            cell = spec("fresh", f"test-2-{k}", **changes)
            ids.append(record(runs, cell, SCORES["fresh"] if questions else (), nll=[2.0, 3.0]))
            if order:
                reordered(runs, ids[-1], (1, 0), other)
    board(runs, ids)
    return exported(runs, runs.parent)


def test_further_orders_of_the_same_documents_are_taken(ours: Path, tmp_path: Path) -> None:
    row = submission.add(in_orders(tmp_path / "theirs", (0, 7)), ours)
    assert (row_of(ours, row.mark).orders, row_of(ours, row.mark).status) == (2, "complete")


def test_further_orders_of_other_documents_are_refused(ours: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"the documents of fresh-stream-test-2-0-\w+ are not those of uniform-"):
        submission.add(in_orders(tmp_path / "theirs", (0, 7), other="x"), ours)


def test_other_documents_are_refused_on_a_board_without_questions(tmp_path: Path) -> None:
    runs = tmp_path / "texts"
    board(runs, [record(runs, spec("uniform", f"test-2-{k}"), nll=[2.0, 3.0]) for k in range(2)])
    with pytest.raises(BenchError, match=r"the documents of fresh-stream-test-2-0-\w+ are not those of uniform-"):
        submission.add(in_orders(tmp_path / "theirs", (0, 1), questions=False, other="x"), runs)
    assert [row.label for row in build(runs).rows] == ["uniform"]


def test_the_order_of_the_stream_itself_must_be_there(ours: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"stream test-2-0 itself, in its own order \(2 of 2 missing\)"):
        submission.add(in_orders(tmp_path / "theirs", (7,)), ours)


def test_the_stream_itself_must_be_there(ours: Path, tmp_path: Path) -> None:
    runs = tmp_path / "theirs"
    board(runs, [record(runs, spec("fresh", f"test-2-{k}", "placebo"), SCORES["fresh"]) for k in range(2)])
    with pytest.raises(BenchError, match=r"stream test-2-0 itself, in its own order \(2 of 2 missing\)"):
        submission.add(exported(runs, tmp_path, "fresh on placebo"), ours)


def test_a_stream_without_own_results_cannot_be_compared(file: Path, tmp_path: Path) -> None:
    runs = tmp_path / "failed"
    done = record(runs, spec("uniform", "test-2-0"), SCORES["uniform"], nll=[2.0, 3.0])
    board(runs, [done, record(runs, spec("uniform", "test-2-1"), status="failed")])
    with pytest.raises(BenchError, match="the board has no complete run on test-2-1 itself to compare it with"):
        submission.add(file, runs)


# One's own rows and imported ones of the same method.


def of_levels(runs: Path, levels: Mapping[tuple[str, str], float], nll: float, device: str = "cpu") -> None:
    """A board of two streams on which every answer of a method on an arm has this F1."""
    board(
        runs,
        [
            record(runs, spec(method, f"test-2-{k}", arm, device=device), [[f1], [f1]], nll=[nll, nll])
            for (method, arm), f1 in levels.items()
            for k in range(2)
        ],
    )


def test_an_imported_row_has_the_placebo_arm_of_its_own(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    mine = {("fresh", "stream"): 0.6, ("fresh", "placebo"): 0.2}
    of_levels(ours, {**mine, ("gold_in_prompt", "stream"): 0.8}, nll=2.0)
    of_levels(theirs, {**mine, ("fresh", "placebo"): 0.4}, nll=2.0, device="cuda")
    row = submission.add(exported(theirs, tmp_path), ours)
    fresh = [row for row in build(ours).rows if (row.method, row.arm) == ("fresh", "stream")]
    assert {row.imported: row.value("knowledge_gain") for row in fresh} == {
        "": pytest.approx(0.4 / 0.6),
        row.mark: pytest.approx(0.2 / 0.4),
    }


def test_an_imported_closed_book_is_not_the_unadapted_model_of_a_board_that_has_its_own(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    of_levels(ours, {("closed_book", "stream"): 0.2, ("fresh", "stream"): 0.6}, nll=3.0)
    of_levels(theirs, {("closed_book", "stream"): 0.4}, nll=1.0, device="cuda")
    row = submission.add(exported(theirs, tmp_path, "closed_book"), ours)
    made = build(ours)
    assert made.floor is not None and (made.floor.imported, made.floor.value("f1")) == ("", pytest.approx(0.2))
    assert row.mark in {row.imported for row in made.rows}
    assert not any("twice that of the unadapted model" in remark for remark in made.remarks)


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
    assert "Every score of answers follows from the predictions" in shown
    assert f"python run_bench.py report demo --runs {ours}" in shown

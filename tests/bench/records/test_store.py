"""Records on disk are complete or absent; one that is damaged, edited or out of place is refused with a remedy."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench import machine
from bench.errors import BenchError
from bench.hashing import digest
from bench.records import store
from bench.records.check import check_board
from bench.records.schema import (
    ADDED,
    NOT_COMPARED,
    AnswerEvent,
    DocumentEvent,
    RunRecord,
    TokenEvent,
    TuningRecord,
    documents_seen,
    mean,
)
from bench.records.summary import summarize
from tests.conftest import ROOT
from tests.reports.records_factory import answer, board, costs, record, spec, token_event, tuning_record

SPEC = spec("any", "test-3-0")
DOCUMENTS = [
    DocumentEvent(position=i, segment=0, document_id=f"d{i}", tokens=2, bytes=7, windows=1, nll=1.5, observe_seconds=0)
    for i in range(3)
]
ANSWERS = [
    answer(1.0, "q", "d0", prediction="Zoë\u2028\n", answers=("Zoë",)),
    answer(0.0, "r", "d1", position=1, earlier=("not0", "before"), stale=1.0),
]
TOKENS = [token_event(i, "a b*", (1, 2)) for i in range(2)]
RUN = RunRecord(
    id=SPEC.id,
    cell_key=SPEC.key,
    comparability_key=SPEC.comparability_key,
    status="complete",
    control=False,
    spec=SPEC,
    summary=summarize(DOCUMENTS, ANSWERS),
    costs=costs(),
    failure=None,
    provenance={},
)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    store.write_run(tmp_path / "runs", RUN, DOCUMENTS, ANSWERS, TOKENS)
    return tmp_path / "runs"


def test_a_run_is_read_as_it_was_written(runs: Path) -> None:
    written = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (runs / RUN.id).glob("*.jsonl")}
    assert set(written) == {"documents.jsonl", "answers.jsonl", "tokens.jsonl"}
    assert store.read_run(runs / RUN.id) == RUN.model_copy(update={"files": written})
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


def test_a_record_that_another_machine_replaces_while_it_is_read_is_read_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, stale = Path.read_bytes, [errno.ESTALE, errno.EIO]

    def replaced(self: Path) -> bytes:
        if stale:
            raise OSError(stale.pop(0), "no such file handle")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", replaced)
    with pytest.raises(OSError, match="no such file handle"):
        store.current_bytes(runs / RUN.id / store.MANIFEST)
    stale.append(errno.ESTALE)
    assert store.read_run(runs / RUN.id).id == RUN.id


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


def test_a_run_that_another_process_puts_there_at_the_same_time_stays(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        if target == runs / RUN.id and not self.name.endswith("-old"):
            monkeypatch.setattr(Path, "rename", rename)
            store.write_run(runs, RUN, DOCUMENTS[:1])
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    store.write_run(runs, RUN, DOCUMENTS)
    assert store.read_documents(runs, RUN.id) == DOCUMENTS[:1]
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
        "on one that does not return": f"{store.PARTIAL}00000000-{os.getpid()}-0a1b2c3e",
    }
    for name in names.values():
        (runs / name).mkdir()
        (runs / name / "documents.jsonl").write_text("{")
    os.utime(runs / names["on one that does not return"], (1.0, 1.0))
    store.sweep(runs)
    kept = {RUN.id, names["writing now"], names["on another machine"]}
    assert {path.name for path in runs.iterdir()} == kept


@pytest.mark.parametrize("differs", ["the numbers of its processes", "its start"])
def test_processes_of_hosts_with_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch, differs: str) -> None:
    ours = machine.process_name()
    assert machine.may_be_alive(ours)
    if differs == "its start":
        monkeypatch.setattr(machine.Path, "read_text", lambda path: "another")
    else:
        monkeypatch.setattr(machine.os, "readlink", lambda path: "pid:[1]")
    theirs = machine.process_name()
    assert theirs.rpartition("-")[0] != ours.rpartition("-")[0] and theirs.rpartition("-")[2] == ours.rpartition("-")[2]
    assert machine.may_be_alive(ours.replace(str(os.getpid()), "999999999")), "it cannot be seen from here"


@pytest.mark.parametrize(("error", "alive"), [(PermissionError, True), (ProcessLookupError, False)])
def test_a_process_that_proc_hides_may_be_alive(
    monkeypatch: pytest.MonkeyPatch, error: type[OSError], alive: bool
) -> None:
    def unseen(pid: int) -> None:
        raise psutil.NoSuchProcess(pid)

    def refuse(pid: int, signal: int) -> None:
        raise error

    monkeypatch.setattr(psutil, "Process", unseen)
    monkeypatch.setattr(machine.os, "kill", refuse)
    assert machine.may_be_alive(machine.process_name()) is alive


def test_the_mean_of_no_values_is_none() -> None:
    assert mean([1.0, 2.0]) == 1.5
    assert mean([]) is None


def test_a_probe_counts_the_fraction_as_it_is_written() -> None:
    assert [documents_seen(probe, 50) for probe in (0.0, 0.01, 0.14, 0.28, 0.29, 0.3, 1.0)] == [0, 1, 7, 14, 15, 15, 50]
    assert 0.14 * 50 > 7, "as a product of floats it would be 8"
    for hundredths in range(101):
        for documents in (1, 7, 50, 200, 333):
            assert documents_seen(hundredths / 100, documents) == -(-hundredths * documents // 100)


def test_fields_that_older_records_lack_change_keys_only_if_they_are_set() -> None:
    older = spec("uniform", "test-2-0")
    fields = older.model_dump(mode="json", exclude=ADDED)
    assert older.key == digest(fields)
    assert type(older).model_validate(fields).comparability_key == older.comparability_key
    for name, value in {"reread": True, "gradient_norms": 1, "deterministic": True}.items():
        newer = spec("uniform", "test-2-0", **{name: value})
        assert newer.key != older.key
        assert (newer.comparability_key == older.comparability_key) == (name == "deterministic")
    assert {"reread", "gradient_norms", "deterministic"} == ADDED


def test_the_fields_that_may_differ_on_a_board_are_those_of_the_rules() -> None:
    of_stream = {"stream", "stream_hash", "order", "arm"}
    of_method = {"method", "method_code", "dependencies", "config", "seed", "train_hash"}
    assert {*of_stream, *of_method, "device", "deterministic"} == NOT_COMPARED


def test_the_device_is_part_of_a_cell_and_may_differ_on_a_board() -> None:
    cpu, gpu = (spec("uniform", "test-2-0", device=device) for device in ("cpu", "cuda"))
    assert cpu.key != gpu.key and cpu.comparability_key == gpu.comparability_key
    longer = spec("uniform", "test-3-0")
    assert longer.comparability_key != cpu.comparability_key, "the size of the streams may not differ"


# Records that are not as they were written.

FIRST, SECOND = (spec("uniform", f"test-2-{k}", config={"rate": 0.1}) for k in range(2))
TUNED = "uniform"
TRIALS = [({"rate": 0.1}, (0.4, 0.6)), ({"rate": 1.0}, (0.2, 0.2)), ({"rate": 9.0}, None), ({"rate": 0.5}, (1.0, 1.0))]
"""Settings and scores on two streams; the third trial diverged, and the last one was stopped early."""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board of two runs with events of all kinds and a tuning record."""
    runs = tmp_path_factory.mktemp("records")
    ids = [
        record(
            runs,
            one,
            f1=((1.0, 0.5), (0.25,)),
            nll=(2.0, 3.0 + k),
            tokens=[token_event(0, "At~ noon* .", (0.1, 0.9, k))],
            early={0.5: ((0.0, 0.5),)},
            anchor_before=0.75,
            anchor_after=0.5,
        )
        for k, one in enumerate((FIRST, SECOND))
    ]
    key = tuning_record(runs, TUNED, TRIALS, {"rate": 0.1}, floor=0.25, stopped=[3])
    floor = [record(runs, spec(TUNED, f"validation-1-{k}", "empty"), [[f1]]) for k, f1 in enumerate((0.2, 0.3))]
    (tuning,) = store.read_tuning(runs, [key])
    store.write_tuning(runs, tuning.model_copy(update={"runs": floor}))
    board(runs, ids, remarks=["The weather was fine."], tuning=[key])
    return runs


@pytest.fixture
def copy(originals: Path, tmp_path: Path) -> Path:
    return shutil.copytree(originals, tmp_path / "runs")


def read_all(runs: Path) -> None:
    """Read and check whatever a board uses."""
    for run_id in store.read_board(runs).runs:
        store.read_documents(runs, run_id)
        store.read_answers(runs, run_id)
        store.read_tokens(runs, run_id)
    check_board(runs, store.read_board(runs))


def test_records_as_they_were_written_are_read(copy: Path) -> None:
    read_all(copy)
    for path in copy.rglob("*.json"):  # the layout of the JSON does not count
        path.write_text(json.dumps(json.loads(path.read_text())))
    read_all(copy)


def edit_json(path: Path, key: str, value: Any) -> None:
    """Give a dotted key of a JSON file a value; DELETE removes it."""
    content = json.loads(path.read_text())
    *parents, last = key.split(".")
    inner = content
    for parent in parents:
        inner = inner[int(parent) if isinstance(inner, list) else parent]
    if value is DELETE:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(json.dumps(content))


DELETE = object()
CHANGED = "has been changed since it was written"
INVALID = "is not a valid record"
JSON = "is not readable JSON"
VERSION = "is not a record of version 4"

MANIFEST_EDITS: list[tuple[str, Any, str]] = [
    ("summary.f1", 1.0, CHANGED),
    ("summary.f1", 7, INVALID),
    ("summary.f1", float("nan"), JSON),
    ("summary.f1", -1e308, INVALID),
    ("summary.f1", None, CHANGED),
    ("summary.f1", "0.99", CHANGED),
    ("summary.answer_nll", float("inf"), JSON),
    ("summary.token_nll", -0.5, INVALID),
    ("summary.questions", -3, INVALID),
    ("summary.questions", 4, CHANGED),
    ("summary", None, INVALID),
    ("spec.config", {"rate": 0.2}, INVALID),
    ("spec.config.rate", float("inf"), JSON),
    ("spec.arm", "placebo", INVALID),
    ("spec.arm", "nowhere", INVALID),
    ("spec.protocol", "0.9", INVALID),
    ("spec.stream", "test-2-1", INVALID),
    ("spec.seed", 1, INVALID),
    ("spec.order", 1, INVALID),
    ("spec.order", -1, INVALID),
    ("spec.prefix", 1, INVALID),
    ("spec.prefix", 0, INVALID),
    ("spec.metrics.f1", "0", INVALID),
    ("spec.dependencies", {"encoder": "abc"}, INVALID),
    ("spec.probes", [2.0], INVALID),
    ("control", True, CHANGED),
    ("tunable", True, CHANGED),
    ("status", "failed", INVALID),
    ("status", "diverged", INVALID),
    ("status", "excellent", INVALID),
    ("failure", {"kind": "failed", "message": "", "traceback": "", "position": 0}, INVALID),
    ("schema_version", 99, VERSION),
    ("schema_version", 2, "is from an older version of this program"),
    ("schema_version", None, VERSION),
    ("schema_version", DELETE, VERSION),
    ("cell_key", "0" * 64, INVALID),
    ("comparability_key", "0" * 64, INVALID),
    ("id", SECOND.id, INVALID),
    ("costs.observe.seconds", -1.0, INVALID),
    ("costs.observe.seconds", 0.0, CHANGED),
    ("costs.state_bytes", 0, CHANGED),
    ("costs.training", DELETE, INVALID),
    ("costs.training.flops", 0.0, CHANGED),
    ("costs.offline", {"seconds": 0, "flops": 0, "peak_bytes": 0}, INVALID),
    ("notes", {"tagger": "another"}, CHANGED),
    ("provenance", {"threads": 64}, CHANGED),
    ("files", {}, CHANGED),
    ("files", {"answers.jsonl": "0" * 64}, CHANGED),
    ("digest", "0" * 64, CHANGED),
    ("digest", DELETE, CHANGED),
    ("comment", "an own key", INVALID),
]


@pytest.mark.parametrize(("key", "value", "problem"), MANIFEST_EDITS)
def test_an_edited_manifest_is_refused(copy: Path, key: str, value: Any, problem: str) -> None:
    edit_json(copy / FIRST.id / "run.json", key, value)
    with pytest.raises(BenchError, match=rf"{FIRST.id}/run\.json {problem}.* Delete its folder and run the same exp"):
        read_all(copy)


@pytest.mark.parametrize(
    "damage",
    [b"", b"null", b"[]", b"3", b"{", b"\xff\xfe{}", b"{" * 100_000, b"[" * 100_000, b'{"id": "x"} {"id": "y"}'],
)
@pytest.mark.parametrize("name", [f"{FIRST.id}/run.json", "boards/demo.json"])
def test_a_manifest_that_is_not_a_json_object_is_refused(copy: Path, name: str, damage: bytes) -> None:
    (copy / name).write_bytes(damage)
    with pytest.raises(BenchError, match=rf"{name} is not readable JSON\. Delete it"):
        read_all(copy)


def test_a_manifest_that_is_cut_short_is_refused_wherever_it_ends(copy: Path) -> None:
    path = copy / FIRST.id / "run.json"
    content = path.read_bytes().rstrip()
    for end in range(1, len(content), 97):
        path.write_bytes(content[:end])
        with pytest.raises(BenchError, match=r"run\.json is not readable JSON"):
            store.read_run(path.parent)


def line_edit(change: Callable[[dict[str, Any]], Any], line: int = 0) -> Callable[[bytes], bytes]:
    """Change one line of a file of events, as JSON."""

    def edit(content: bytes) -> bytes:
        lines = content.splitlines()
        event = json.loads(lines[line])
        change(event)
        lines[line] = json.dumps(event).encode()
        return b"\n".join(lines) + b"\n"

    return edit


def lines_edit(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[bytes], bytes]:
    return lambda content: b"".join(change(content.splitlines(keepends=True)))


EVENT_EDITS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "one prediction": ("answers", line_edit(lambda event: event.update(prediction="w0"))),
    "one gold answer": ("answers", line_edit(lambda event: event.update(answers=["something else"]))),
    "one score": ("answers", line_edit(lambda event: event.update(f1=1.0), 1)),
    "a score out of bounds": ("answers", line_edit(lambda event: event.update(f1=7))),
    "a score that is no number": ("answers", line_edit(lambda event: event.update(em=float("nan")))),
    "one likelihood": ("answers", line_edit(lambda event: event.update(nll=0.0))),
    "the probe": ("answers", line_edit(lambda event: event.update(probe=0.75))),
    "the set": ("answers", line_edit(lambda event: event.update(set="anchor"))),
    "the rank": ("answers", line_edit(lambda event: event.update(retrieved=1))),
    "the document": ("answers", line_edit(lambda event: event.update(document_id="another"))),
    "a line deleted": ("answers", lines_edit(lambda lines: lines[1:])),
    "a line twice": ("answers", lines_edit(lambda lines: [*lines, lines[-1]])),
    "lines in another order": ("answers", lines_edit(lambda lines: lines[::-1])),
    "the end cut off": ("answers", lambda content: content[:-20]),
    "the last byte cut off": ("answers", lambda content: content[:-1]),
    "an empty line": ("answers", lambda content: content + b"\n"),
    "ends of lines of Windows": ("answers", lambda content: content.replace(b"\n", b"\r\n")),
    "everything deleted": ("answers", lambda content: b""),
    "bytes of a text": ("documents", line_edit(lambda event: event.update(bytes=0))),
    "tokens of a text": ("documents", line_edit(lambda event: event.update(tokens=11))),
    "its likelihood": ("documents", line_edit(lambda event: event.update(nll=1.0))),
    "the time": ("documents", line_edit(lambda event: event.update(observe_seconds=0.0))),
    "one document fewer": ("documents", lines_edit(lambda lines: lines[:-1])),
    "documents in another order": ("documents", lines_edit(lambda lines: lines[::-1])),
    "one weight": ("tokens", line_edit(lambda event: event.update(weights=[0.1, 1.0, 0.0]))),
    "one class": ("tokens", line_edit(lambda event: event.update(classes=["fact"] * 3))),
    "no weights": ("tokens", lambda content: b""),
}


@pytest.mark.parametrize(("name", "edit"), EVENT_EDITS.values(), ids=EVENT_EDITS)
def test_edited_events_are_refused(copy: Path, name: str, edit: Callable[[bytes], bytes]) -> None:
    path = copy / FIRST.id / f"{name}.jsonl"
    content = path.read_bytes()
    path.write_bytes(edit(content))
    assert path.read_bytes() != content
    with pytest.raises(BenchError, match=rf"{FIRST.id}/{name}\.jsonl is not the file that was written .* Delete its f"):
        read_all(copy)


@pytest.mark.parametrize("name", ["documents", "answers", "tokens"])
def test_events_of_another_run_are_refused(copy: Path, name: str) -> None:
    first, second = (copy / one.id / f"{name}.jsonl" for one in (FIRST, SECOND))
    content = first.read_bytes()
    assert content != second.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(BenchError, match=rf"{FIRST.id}/{name}\.jsonl is not the file that was written"):
        read_all(copy)


@pytest.mark.parametrize("name", ["documents", "answers", "tokens"])
def test_missing_events_are_refused(copy: Path, name: str) -> None:
    (copy / FIRST.id / f"{name}.jsonl").unlink()
    with pytest.raises(BenchError, match=rf"{name}\.jsonl is missing\. Delete its folder and run the same experiment"):
        read_all(copy)


def test_token_events_that_the_run_did_not_write_are_refused(runs: Path) -> None:
    store.write_run(runs, RUN, DOCUMENTS, ANSWERS)
    (runs / RUN.id / "tokens.jsonl").write_text(TOKENS[0].model_dump_json() + "\n")
    with pytest.raises(BenchError, match=r"tokens\.jsonl is not the file that was written"):
        store.read_tokens(runs, RUN.id)


def move(runs: Path, source: str, target: str) -> None:
    """Copy a file or a folder over another one."""
    if (runs / source).is_dir():
        shutil.rmtree(runs / target, ignore_errors=True)
        shutil.copytree(runs / source, runs / target)
    else:
        shutil.copy2(runs / source, runs / target)


@pytest.mark.parametrize(
    ("source", "target"),
    [(SECOND.id, FIRST.id), (f"{SECOND.id}/run.json", f"{FIRST.id}/run.json")],
    ids=["folder", "manifest"],
)
def test_a_record_in_the_folder_of_another_is_refused(copy: Path, source: str, target: str) -> None:
    move(copy, source, target)
    with pytest.raises(BenchError, match=rf"{FIRST.id}/run\.json is the record {SECOND.id}, in the folder of another"):
        read_all(copy)


def test_a_missing_manifest_is_named(copy: Path) -> None:
    (copy / FIRST.id / "run.json").unlink()
    with pytest.raises(BenchError, match=rf"{FIRST.id}/run\.json is missing\. Run the same experiment again"):
        read_all(copy)


@pytest.mark.parametrize(
    ("folder", "key", "value", "problem"),
    [
        ("boards", "entries.0.runs", [FIRST.id], CHANGED),
        ("boards", "entries.0.hand_set", ["rate"], CHANGED),
        ("boards", "entries", [], CHANGED),
        ("boards", "runs", [FIRST.id], INVALID),
        ("boards", "remarks", [], CHANGED),
        ("boards", "entries.0.tuning", None, CHANGED),
        ("boards", "experiment", "other", CHANGED),
        ("boards", "schema_version", 2, "is from an older version of this program"),
        ("boards", "digest", DELETE, CHANGED),
        ("boards", "entries.0.runs", "all", INVALID),
        ("tuning", "trials.0.score", 1.0, CHANGED),
        ("tuning", "trials.0.score", float("nan"), JSON),
        ("tuning", "trials.0.score", DELETE, INVALID),
        ("tuning", "trials.0.runs", [], CHANGED),
        ("tuning", "trials", [], CHANGED),
        ("tuning", "trials.0.whole", DELETE, INVALID),
        ("tuning", "floor", 0.1, CHANGED),
        ("tuning", "space", {}, CHANGED),
        ("tuning", "chosen", {"rate": 1.0}, CHANGED),
        ("tuning", "metric", "em", INVALID),
        ("tuning", "model_hash", "another", CHANGED),
        ("tuning", "schema_version", 99, VERSION),
    ],
)
def test_edited_boards_and_tuning_records_are_refused(
    copy: Path, folder: str, key: str, value: Any, problem: str
) -> None:
    (path,) = (copy / folder).iterdir()
    edit_json(path, key, value)
    with pytest.raises(BenchError, match=rf"{folder}/{path.name} {problem}.* Delete it and run the same experiment"):
        read_all(copy)


def test_a_board_or_a_tuning_record_under_another_name_is_refused(copy: Path) -> None:
    (path,) = (copy / "tuning").iterdir()
    shutil.copy2(path, path.with_name("other.json"))
    with pytest.raises(BenchError, match=rf"other\.json is the tuning record {path.stem}, under the name of another"):
        store.read_tuning(copy, ["other"])
    with pytest.raises(BenchError, match=r"third\.json is missing"):
        store.read_tuning(copy, [path.stem, "third"])
    shutil.copy2(copy / "boards/demo.json", copy / "boards/mine.json")
    with pytest.raises(BenchError, match=r"mine\.json is the board of demo, under the name of another"):
        store.read_board(copy, "mine")


# Records whose digests are right although their content is not, as an error in this program could write them.


def seal(path: Path) -> None:
    """Write the digests of a manifest and of its files of events anew."""
    content = json.loads(path.read_text())
    if "files" in content:
        content["files"] = {
            name: hashlib.sha256((path.parent / name).read_bytes()).hexdigest() for name in content["files"]
        }
    content.pop("digest", None)
    path.write_text(json.dumps({**content, "digest": digest(content)}))


@pytest.mark.parametrize(
    ("name", "edit", "problem"),
    [
        (
            "answers",
            line_edit(lambda event: event.update(f1=0.25)),
            r"wrong in line 1 \(question 0.0\): its f1 is 0.25, b",
        ),
        ("answers", line_edit(lambda event: event.update(prediction="w0 w1"), 2), r"wrong in line 3 \(question 0\.0\)"),
        ("answers", line_edit(lambda event: event.update(answers=["x"]), 3), r"wrong in line 4 .* answers give 0\."),
        (
            "answers",
            line_edit(lambda event: event.update(earlier=["x"])),
            r"wrong in line 1 .*: its stale is None, but prediction and answers give 0\.",
        ),
        ("answers", line_edit(lambda event: event.update(stale=1)), r"wrong in line 1 .*stale is 1, .* give None\."),
        (
            "answers",
            line_edit(lambda event: event.update(em_prefix=0.0), 2),
            r"wrong in line 3 .*: its em_prefix is 0, b",
        ),
        (
            "answers",
            line_edit(lambda event: event.update(f1=7)),
            "damaged in line 1. f1 = 7: Input should be less than",
        ),
        ("answers", line_edit(lambda event: event.update(nll=-1)), "damaged in line 1. nll = -1"),
        ("answers", line_edit(lambda event: event.update(em=float("nan"))), "damaged in line 1. em"),
        ("answers", line_edit(lambda event: event.update(probe=2)), "damaged in line 1. probe = 2"),
        ("answers", line_edit(lambda event: event.update(probe=2), 4), "damaged in line 5"),
        ("answers", lambda content: content + b"\n", "damaged in line 8"),
        ("documents", line_edit(lambda event: event.update(bytes=-4)), "damaged in line 1. bytes = -4"),
        ("documents", line_edit(lambda event: event.update(nll=float("inf"))), "damaged in line 1. nll"),
        (
            "tokens",
            line_edit(lambda event: event["weights"].append(1)),
            "damaged in line 1. .*one value for each piece",
        ),
    ],
)
def test_events_that_cannot_be_right_are_named_with_their_line(
    copy: Path, name: str, edit: Callable[[bytes], bytes], problem: str
) -> None:
    path = copy / FIRST.id / f"{name}.jsonl"
    path.write_bytes(edit(path.read_bytes()))
    seal(path.with_name("run.json"))
    with pytest.raises(BenchError, match=rf"{FIRST.id}/{name}\.jsonl is {problem}"):
        read_all(copy)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("summary.f1", 1.0, r"wrong: its f1 is 1\.0, but its events give 0\.58"),
        ("summary.em", None, "wrong: its em is None"),
        ("summary.questions", 2, "wrong: its questions is 2"),
        ("summary.documents", 3, "wrong: its documents is 3"),
        ("summary.token_nll", 0.1, "wrong: its token_nll is 0.1"),
        ("summary.bits_per_byte", 0.1, "wrong: its bits_per_byte is 0.1"),
        ("summary.anchor_f1", 0.75, "wrong: its anchor_f1 is 0.75"),
        ("summary.recall", 1.0, "wrong: its recall is 1.0"),
        ("summary.changed", 1, "wrong: its changed is 1, but its events give 0"),
        ("summary.stale", 0.5, "wrong: its stale is 0.5, but its events give None"),
        ("summary.f1_unchanged", None, "wrong: its f1_unchanged is None"),
        ("summary", None, "not a valid record. Complete runs"),
        ("costs", None, "not a valid record. Complete runs"),
        ("status", "diverged", "not a valid record. The status is diverged"),
    ],
)
def test_a_summary_that_its_events_do_not_give_is_refused(copy: Path, key: str, value: Any, problem: str) -> None:
    path = copy / FIRST.id / "run.json"
    edit_json(path, key, value)
    seal(path)
    with pytest.raises(BenchError, match=rf"(?i){FIRST.id}/run\.json is {problem}.* Delete its folder"):
        read_all(copy)


def test_scores_by_another_version_of_a_metric_are_left_as_they_are(tmp_path: Path) -> None:
    old = spec("uniform", "test-1-0", metrics={**FIRST.metrics, "em_prefix": "0"})
    board(tmp_path, [record(tmp_path, old, ((1.0,),))])
    path = tmp_path / old.id / "answers.jsonl"
    path.write_bytes(line_edit(lambda event: event.update(em_prefix=0.0))(path.read_bytes()))
    edit_json(path.with_name("run.json"), "summary.em_prefix", 0.0)
    seal(path.with_name("run.json"))
    read_all(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("trials.0.score", 0.9, r"wrong: the score of trial 1 is 0\.9, but its runs give 0\.5"),
        ("trials.2.score", 0.9, r"wrong: the score of trial 3 is 0\.9, but its runs give None"),
        ("trials.0.answer_nll", 0.1, r"wrong: the answer_nll of trial 1 is 0\.1, but its runs give 0\.5"),
        ("trials.0.documents", 7, "wrong: the documents of trial 1 is 7, but its runs give 1"),
        ("trials.0.whole", False, "wrong: the whole of trial 1 is False"),
        ("trials.3.whole", True, "wrong: the whole of trial 4 is True"),
        ("trials.0.config", {"rate": 0.2}, "wrong: the config of trial 1 is not that of its runs"),
        ("trials.1.runs", [], "wrong: the runs of trial 2 are not of one config"),
        ("trials.0.runs", [FIRST.id, SECOND.id], "wrong: the score of trial 1"),
        ("floor", 0.3, r"wrong: its floor is 0\.3, but its runs give 0\.25"),
        ("floor", None, "wrong: its floor is None"),
        ("runs", [], r"wrong: its floor is 0\.25, but its runs give None"),
        ("chosen", {"rate": 1.0}, "wrong: the chosen config is not that of the best trial"),
        ("method", "camels", "wrong: the runs of trial 1 are not of one config of camels"),
    ],
)
def test_a_tuning_record_that_its_runs_do_not_give_is_refused(copy: Path, key: str, value: Any, problem: str) -> None:
    (path,) = (copy / "tuning").iterdir()
    edit_json(path, key, value)
    seal(path)
    with pytest.raises(BenchError, match=rf"{path.name} is {problem}.* Delete it and run"):
        read_all(copy)


def test_a_run_that_is_listed_as_tuned_must_have_the_settings_that_were_chosen(copy: Path) -> None:
    other = record(copy, spec(TUNED, "test-2-0", config={"rate": 1.0}), [[1.0]])
    whole = store.read_board(copy)
    entry = whole.entries[0].model_copy(update={"runs": [FIRST.id, other]})
    store.write_board(copy, whole.model_copy(update={"entries": [entry]}))
    with pytest.raises(
        BenchError, match=rf"boards/demo\.json is wrong: it lists {other} as tuned, whose settings are not"
    ):
        read_all(copy)
    by_hand = entry.model_copy(update={"runs": [other], "tuning": None})
    first = entry.model_copy(update={"runs": [FIRST.id]})
    store.write_board(copy, whole.model_copy(update={"entries": [first, by_hand]}))
    read_all(copy)


def test_the_runs_of_trials_and_the_records_of_a_board_must_exist(copy: Path) -> None:
    (path,) = (copy / "tuning").iterdir()
    trial: TuningRecord = store.read_tuning(copy, [path.stem])[0]
    shutil.rmtree(copy / trial.trials[1]["runs"][0])
    with pytest.raises(BenchError, match=rf"{trial.trials[1]['runs'][0]}/run\.json is missing"):
        read_all(copy)
    path.unlink()
    with pytest.raises(BenchError, match=rf"tuning/{path.name} is missing\. Run the same experiment again"):
        read_all(copy)


@pytest.mark.parametrize(("values", "kind"), [
    ({"f1": 1.5}, AnswerEvent), ({"nll": float("nan")}, AnswerEvent), ({"retrieved": -1}, AnswerEvent),
    ({"bytes": -1}, DocumentEvent), ({"nll": -0.1}, DocumentEvent), ({"weights": (1, float("inf"))}, TokenEvent),
])  # fmt: skip
def test_an_event_out_of_bounds_cannot_be_made(values: dict[str, Any], kind: type) -> None:
    event = next(event for event in (*DOCUMENTS, *ANSWERS, *TOKENS) if isinstance(event, kind))
    with pytest.raises(ValueError, match=next(iter(values))):
        kind(**{**event.model_dump(), **values})

"""A row for somebody else's board: one ZIP file with its records and their hashes, and the checks before it is taken.

The file holds what a folder of records would hold for the row alone: the manifests and events of its runs, its tuning
record with the runs of its trials, and a board; and ``submission.json`` with the SHA-256 of each. It has gold answers,
by which it is checked, but no text of a document. Equal records give equal files.

A row is taken only if every score follows from the predictions and gold answers beside it, if its questions, gold
answers and documents are those of the board that it is for, if its cells are comparable with that board's, and if, of
a tuned row, the settings were chosen by trials under the same conditions on another split. What cannot be checked is
taken as reported: that the method made the predictions, likelihoods, costs, what it observed on control arms that the
board lacks, and what a method says about itself.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NoReturn

import pydantic

from bench.errors import BenchError, first_problem
from bench.files import json_bytes, replacing, write_bytes
from bench.records import imported
from bench.records.boards import names
from bench.records.check import check_board
from bench.records.comparability import OF_TRIALS, differences, listed
from bench.records.published import without_error
from bench.records.schema import AnswerEvent, BoardRecord, CellSpec, DocumentEvent, RunRecord
from bench.records.store import (
    MANIFEST,
    board_path,
    is_packed,
    manifest,
    partial_folder,
    read_answers,
    read_board,
    read_documents,
    read_run,
    read_tokens,
    read_tuning,
    run_files,
    sha256,
    tuning_path,
)
from bench.records.tuning import runs_of

FORMAT: Literal[1] = 1
CONTENTS = "submission.json"
MEMBER = re.compile(
    r"\w[\w.+=-]{0,200}/(?:run\.json|(?:documents|answers|tokens)\.jsonl)|(?:tuning|boards)/\w[\w.+=-]{0,200}\.json"
)
"""Names that files in a submission can have."""
MOST_FILES = 20_000
MOST_BYTES = 2**30
"""Of all files together, unpacked."""
NO_DATE = (1980, 1, 1, 0, 0, 0)


class Contents(pydantic.BaseModel):
    """``submission.json``: what the file holds."""

    model_config = pydantic.ConfigDict(extra="forbid")

    format: Literal[1] = FORMAT
    experiment: str
    row: str
    """The label of the row on the board from which it comes."""
    files: dict[str, str]
    """SHA-256 of each file by its name."""


def export(runs: Path, experiment: str, label: str, run_ids: Sequence[str], to: Path) -> None:
    """Write the row of these runs, which must be on the board of the experiment, to a file, atomically.

    Raises:
        BenchError: a record is missing or damaged, a score is wrong, a run has no results, or the records under
            ``runs`` are published ones.
    """
    if is_packed(runs):
        raise BenchError(f"{runs} holds published records, without gold answers: export from those of the runs.")
    if to.is_dir():
        raise BenchError(f"{to} is a folder: name the ZIP file to write, such as {to / 'row.zip'}.")
    whole = read_board(runs, experiment)
    if not set(run_ids) <= set(whole.runs):
        raise BenchError(f"{label} was not run here, but imported: pass on the file that it came from.")
    board = _of_row(whole, run_ids)
    check_board(runs, board)
    for run_id in run_ids:
        if (status := read_run(runs / run_id).status) != "complete":
            raise BenchError(f"{label} is not exported: its run {run_id} has {status}. Run the experiment again.")
    files = dict(_files(runs, board))
    files[board_path(Path(), experiment).as_posix()] = manifest(board)
    hashes = {name: sha256(content) for name, content in files.items()}
    contents = Contents(experiment=experiment, row=label, files=hashes)
    with replacing(to) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {CONTENTS: json_bytes(contents.model_dump()), **files}.items():
            entry = zipfile.ZipInfo(name, NO_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)


def _of_row(board: BoardRecord, run_ids: Sequence[str]) -> BoardRecord:
    """The board with these runs alone."""
    entries = [
        entry.model_copy(update={"runs": [run for run in entry.runs if run in run_ids]}) for entry in board.entries
    ]
    return BoardRecord(
        experiment=board.experiment,
        entries=[entry for entry in entries if entry.runs],
        remarks=[],
        overlaps=board.overlaps,
    )


def _files(runs: Path, board: BoardRecord) -> Iterator[tuple[str, bytes]]:
    """The files of the board's runs, of its tuning records, and of the runs of their trials."""
    tuning = read_tuning(runs, board.tuning)
    trials = [run_id for record in tuning for run_id in runs_of(record)]
    for run_id in dict.fromkeys([*board.runs, *trials]):
        tokens = [event.model_copy(update={"pieces": ()}) for event in read_tokens(runs, run_id)]
        events = read_documents(runs, run_id), read_answers(runs, run_id), tokens
        for name, content in run_files(without_error(read_run(runs / run_id)), *events).items():
            yield f"{run_id}/{name}", content
    for record in tuning:
        name = tuning_path(Path(), record.key).as_posix()
        yield name, (runs / name).read_bytes()


def add(file: Path, runs: Path, experiment: str | None = None) -> imported.ImportedRow:
    """Check a file that :func:`export` wrote, and add its row to a board: by default that of the same experiment.

    Nothing is written if a check fails, and no file is ever written over.

    Raises:
        BenchError: the file is no submission, is damaged or was changed, a score in it is wrong, its answers are to
            other questions than those of the board, or it is not comparable with the board; or there is no such board,
            or the row is there already.
    """
    if is_packed(runs):
        raise BenchError(f"{runs} holds published records, to which none are added: name another folder with --runs.")
    contents, files, digest = _read(file)
    if experiment is None and contents.experiment not in names(runs):
        raise BenchError(
            f"{file} is a row of the board {contents.experiment}, which is not in {runs}. Name the board that it is "
            f"for with --experiment: {', '.join(names(runs)) or 'there is none yet'}."
        )
    own = read_board(runs, experiment or contents.experiment)
    place = runs / imported.FOLDER / own.experiment
    folder = place / f"{re.sub('[^a-zA-Z0-9]+', '_', contents.row)[:60].strip('_')}-{digest[:8]}"
    partial = partial_folder(runs)
    try:
        for name, content in files.items():
            write_bytes(partial / name, content)
        try:
            row = _check(partial, runs, own)
        except BenchError as error:
            raise BenchError(f"{file} is refused: {imported.reason_of(error, partial)}") from None
        _check_new(row, runs, own, file)
        place.mkdir(parents=True, exist_ok=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return next(one for one in imported.rows(runs, own.experiment) if one.folder == folder)


def _read(file: Path) -> tuple[Contents, Mapping[str, bytes], str]:
    """The files in a submission, whose names, number, sizes and hashes are as they should be, and its own hash."""
    if not file.is_file():
        raise BenchError(f"There is no file {file}.")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if CONTENTS not in names:
                _refuse(file, f"it holds no {CONTENTS}, so it is not a row that export has written")
            if len(names) > MOST_FILES or sum(entry.file_size for entry in entries) > MOST_BYTES:
                _refuse(file, f"it holds more than {MOST_FILES:,} files or {MOST_BYTES >> 20:,} MiB")
            if len(set(names)) < len(names):
                _refuse(file, "it holds a file twice")
            if strange := [name for name in names if name != CONTENTS and not MEMBER.fullmatch(name)]:
                _refuse(file, f"it holds {strange[0][:200]!r}, which is no file of a row")
            files = {}
            for entry in entries:
                with archive.open(entry) as stream:
                    files[entry.filename] = stream.read(entry.file_size + 1)  # no more than it says
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError) as error:
        _refuse(file, f"it is cut short, damaged or no ZIP file ({error})")
    try:
        contents = Contents.model_validate_json(files.pop(CONTENTS))
    except pydantic.ValidationError as error:
        _refuse(file, f"{CONTENTS} is not valid. {first_problem(error, Contents).rstrip('.')}")
    hashes = {name: sha256(content) for name, content in files.items()}
    for name in sorted({*hashes, *contents.files}):
        if hashes.get(name) != contents.files.get(name):
            found = "has been changed since it was exported" if name in hashes else "is missing"
            _refuse(file, f"{name} {found if name in contents.files else 'is not in its list'}")
    return contents, files, sha256(json.dumps(hashes, sort_keys=True).encode())


def _check(folder: Path, runs: Path, own: BoardRecord) -> imported.ImportedRow:
    """Check unpacked records by themselves and against the board that they are for."""
    names = [path.stem for path in (folder / "boards").glob("*.json")]
    if len(names) != 1:
        raise BenchError(f"it holds {len(names)} boards, and a row has one.")
    board = read_board(folder)
    records = [read_run(folder / run_id) for run_id in board.runs]
    kinds = [(record.spec.method, record.spec.config) for record in records]
    if not kinds or any(kind != kinds[0] for kind in kinds):
        raise BenchError("it holds no run of its row, or runs of several methods or settings.")
    check_board(folder, board)
    trials = {run_id for record in read_tuning(folder, board.tuning) for run_id in runs_of(record)}
    found = {path.parent.name for path in folder.glob(f"*/{MANIFEST}")}
    if strays := sorted(found - {*board.runs} - trials):
        raise BenchError(f"the run {strays[0]} belongs to nothing in it.")
    ours = [read_run(runs / run_id) for run_id in own.runs]
    if not ours:
        raise BenchError(f"the board {own.experiment} has no run to compare it with.")
    for record in records:
        if record.comparability_key != ours[0].comparability_key:
            what = listed(differences(record.spec, ours[0].spec))
            raise BenchError(f"it is not comparable with the board {own.experiment}; they differ in {what}.")
        if record.status != "complete":
            raise BenchError(f"its run {record.id} has {record.status}.")
    for run_id in sorted(trials):
        _check_trial(read_run(folder / run_id).spec, records[0].spec, bool(board.overlaps))
    _check_streams(folder, records, runs, ours)
    return imported.ImportedRow(folder, board, tuple(records))


def _check_trial(trial: CellSpec, row: CellSpec, overlap: bool) -> None:
    """Check that a trial is of the row's method, under the same conditions, on another split.

    A row that is marked for the ``overlap`` of its splits may have been tuned on that of the board.
    """
    if trial.method != row.method:
        raise BenchError(f"its trial {trial.id} is of another method than its row.")
    if found := differences(trial, row, but=OF_TRIALS):
        raise BenchError(f"its trial {trial.id} ran under other conditions than its row: {listed(found)}.")
    if _split(trial) == _split(row) and not overlap:
        raise BenchError(f"its trial {trial.id} is on the split of the board: it was tuned on what it is tested on.")


def _split(spec: CellSpec) -> str:
    return spec.stream.rsplit("-", 2)[0]


def _check_streams(folder: Path, records: Sequence[RunRecord], runs: Path, ours: Sequence[RunRecord]) -> None:
    """Compare documents, questions and gold answers with those of the board's own runs on the same streams.

    A run on an arm, or in an order, that the board lacks is compared with one on the stream itself: in what is asked
    at the end and, without an arm, in which documents there are.
    """
    streams = sorted({own.spec.stream for own in ours})
    whole = {record.spec.stream for record in records if (record.spec.arm, record.spec.order) == ("stream", 0)}
    if missing := [stream for stream in streams if stream not in whole]:
        raise BenchError(
            f"it has no run on the board's stream {missing[0]} itself, in its own order ({len(missing)} of "
            f"{len(streams)} missing)."
        )
    places = {own.spec.place: own for own in reversed(ours) if own.status == "complete"}
    for record in records:
        spec = record.spec
        if spec.stream not in streams:
            continue  # the board does not show this stream
        same = places.get(spec.place)
        own = same or places.get((spec.stream, "stream", 0))
        if own is None:
            raise BenchError(f"the board has no complete run on {spec.stream} itself to compare it with.")
        if same and same.spec.stream_hash != spec.stream_hash:
            raise BenchError(f"its run {record.id} is on other documents than the board's {same.id}.")
        documents, answers = read_documents(folder, record.id), read_answers(folder, record.id)
        if _has_repetitions((event.position, event.segment) for event in documents) or _has_repetitions(
            (event.set, event.probe, event.question_id) for event in answers
        ):
            raise BenchError(f"{record.id} has a document or an answer twice.")
        seen, expected = _seen(documents), _seen(read_documents(runs, own.id))
        if same and seen != expected:
            raise BenchError(f"the documents of {record.id} are not those of {same.id}, or are in another order.")
        if spec.arm == "stream" and sorted(of[1:] for of in seen) != sorted(of[1:] for of in expected):
            raise BenchError(f"the documents of {record.id} are not those of {own.id} in another order.")
        answered, asked = (_asked(of, whole=same is not None) for of in (answers, read_answers(runs, own.id)))
        for key in (*asked, *answered):
            if answered.get(key) != asked.get(key):
                what = "its gold answers" if key in answered and key in asked else "the questions that are answered"
                raise BenchError(f"{record.id} is not on the board's questions: {what} differ at question {key[-1]}.")


def _asked(answers: Sequence[AnswerEvent], whole: bool) -> Mapping[tuple[object, ...], tuple[object, ...]]:
    """The documents and gold answers of the questions: at all probes, or those on the stream at the last probe only.

    Other arms and orders have these in common.
    """
    if whole:
        return {
            (event.set, event.probe, event.question_id): (
                event.document_id,
                event.timestamp,
                event.answers,
                event.earlier,
            )
            for event in answers
        }
    on_stream = [event for event in answers if event.set == "stream"]
    last = max((event.probe for event in on_stream), default=None)
    return {(event.question_id,): (event.document_id, event.answers) for event in on_stream if event.probe == last}


def _has_repetitions(keys: Iterable[object]) -> bool:
    found = list(keys)
    return len(set(found)) < len(found)


def _seen(documents: Sequence[DocumentEvent]) -> list[tuple[int, str, str, int, int]]:
    """The documents in order, with their tokens and bytes; a method may cut them into segments of its own."""
    sizes: dict[tuple[int, str, str], tuple[int, int]] = {}
    for event in documents:
        key = (event.position, event.document_id, event.timestamp)
        tokens, size = sizes.get(key, (0, 0))
        sizes[key] = (tokens + event.tokens, size + event.bytes)
    return [(*key, *size) for key, size in sizes.items()]


def _check_new(row: imported.ImportedRow, runs: Path, own: BoardRecord, file: Path) -> None:
    """Refuse a row whose cells are there, as one's own or as imported ones."""
    ids = set(row.board.runs)
    if mine := sorted(run_id for run_id in ids if (runs / run_id).is_dir()):
        raise BenchError(f"{file} is not imported: {runs / mine[0]} is the same cell, from a run of your own.")
    for other in imported.rows(runs, own.experiment):
        if ids & set(other.board.runs):
            raise BenchError(f"{file} is not imported: its row is on the board {own.experiment}, from {other.folder}.")


def _refuse(file: Path, problem: str) -> NoReturn:
    raise BenchError(f"{file} is refused: {problem}. Ask for it to be exported again.")

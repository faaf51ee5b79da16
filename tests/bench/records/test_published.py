"""Published records make the same tables and plots as those that the runs wrote, and hold no text of the data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reports
import run_bench
from bench.errors import BenchError
from bench.records import packed, published, store
from bench.records.check import check_board
from bench.records.schema import BoardRecord
from bench.records.summary import summarize
from reports import plots, written
from reports.board import build
from tests.reports.records_factory import answer, board, pictures, realistic, record, spec, token_event, tuning_record

DRAWN = ("f1_by_position", "token_nll_by_position", "cost_by_method", "token_weights", "token_weights_by_class")
"""A plot of the answers, of the documents, of the costs with those of trials, and of token weights."""


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != written.NAME)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def archive(folder: Path) -> dict[str, bytes]:
    return dict(packed.unpacked(folder) or {})


def demo(runs: Path) -> None:
    """A board of a run with changed facts and token weights, tuned by two trials, and of a run that diverged."""
    changed = {1.0: ["0.0"]}
    events: dict[str, Any] = {"f1": [[0.5], [1.0]], "nll": [2.0, 3.0], "early": {0.5: [[0.0]]}, "changed": changed}
    run = spec("uniform", "test-2-0", config={"rate": 0.1}, probes=(0.5, 1.0))
    tokens = [token_event(0, "At~ noon* .", (0.1, 0.9, 0.3), ("ADP", "NOUN", "PUNCT"))]
    notes = {"remarks": ["It is a fact."], "tagger": "tiny", "last": "The ferry left"}
    ids = [
        record(runs, run, **events, tokens=tokens, notes=notes, provenance={"threads": 1, "command": ["run"]}),
        record(runs, spec("other", "test-2-0", probes=run.probes), status="diverged"),
    ]
    key = tuning_record(runs, "uniform", [({"rate": 0.1}, (0.4, 0.6)), ({"rate": 1.0}, None)], {"rate": 0.1})
    board(runs, ids, remarks=["The weather was fine."], tuning=[key])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the published records of :func:`demo`, whose records are in ``runs``."""
    demo(tmp_path / "runs")
    return published.publish(tmp_path / "runs", "demo", tmp_path / "results").parent


def test_tables_and_plots_are_the_same_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, results = tmp_path / "runs", tmp_path / "results"
    realistic(runs, streams=2, documents=4, questions=1)
    folder = published.publish(runs, "demo", results).parent
    possible = [pictures(of) for of in (runs, folder)]
    assert possible[0] - possible[1] == {f"token_weights.{ending}" for ending in plots.FORMATS}
    assert possible[1] < possible[0], "all but the plot of a document's text"
    monkeypatch.setattr(plots, "FORMATS", ("svg",))
    monkeypatch.setattr(plots, "NAMES", DRAWN)
    reports.write_all(runs, tmp_path / "a")
    reports.write_all(folder, tmp_path / "b")
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    page = "leaderboard.html"  # it also has what only full records know, such as the texts of documents
    assert page in a and page in b
    assert a.keys() >= {f"{name}.{ending}" for name in DRAWN for ending in ("svg", "txt")}
    assert {**a, **b, page: a[page]} == a
    assert a.keys() - b.keys() == {"token_weights.svg", "token_weights.txt"}
    assert reports.stale(folder, tmp_path / "b") == []
    assert reports.stale(folder, tmp_path / "a") == [page]
    (tmp_path / "a" / "cost_by_method.svg").unlink()
    assert sorted(reports.stale(folder, tmp_path / "a")) == ["cost_by_method.svg", page]


def test_boards_about_changes_and_on_several_bases_are_the_same(tmp_path: Path) -> None:
    runs, results = tmp_path / "runs", tmp_path / "results"
    for name, model in (("first", "tiny"), ("second", "other")):
        cells = [spec(method, f"test-2-{k}", model=model) for method in ("uniform", "closed_book") for k in range(2)]
        changed = {1.0: ["0.0"]}
        board(runs, [record(runs, cell, [[k % 2], [0.5]], changed=changed) for k, cell in enumerate(cells)], name)
    store.write_board(runs, BoardRecord(**{**store.read_board(runs, "first").model_dump(), "bases": ["second"]}))
    published.publish(runs, "first", results)
    assert store.read_board(results / "first").experiment == "first", "the board that report shows by default"
    a, b = build(runs, "first"), build(results / "first", "first")
    assert [row.scores for one in (a, *a.others) for row in one.rows] == [
        row.scores for one in (b, *b.others) for row in one.rows
    ]
    assert a.rows[0].value("f1_current") is not None and len(b.others) == 1


def test_they_hold_ids_scores_and_predictions_but_no_text_of_the_data(folder: Path) -> None:
    runs = folder.parents[1] / "runs"
    full, kept = (next(run for run in store.read_board(of).runs if "uniform" in run) for of in (runs, folder))
    assert full == kept
    for before, after in zip(store.read_answers(runs, full), store.read_answers(folder, full), strict=True):
        assert (after.answers, after.earlier) == ((), ())
        assert after == before.model_copy(update={"answers": (), "earlier": ()})
        assert (after.f1_current, after.f1_unchanged) == (before.f1_current, before.f1_unchanged)
    assert store.read_documents(folder, full) == store.read_documents(runs, full)
    (before_tokens,), (after_tokens,) = store.read_tokens(runs, full), store.read_tokens(folder, full)
    assert before_tokens.pieces and after_tokens == before_tokens.model_copy(update={"pieces": (), "nll": None})
    assert store.read_run(folder / full).notes == {"remarks": ["It is a fact."]}
    everything = b"".join(archive(folder).values())
    for text in ("noon", "ferry", "NaN"):
        assert text.encode() not in everything
    diverged = next(run for run in store.read_board(folder).runs if "other" in run)
    failure = store.read_run(folder / diverged).failure
    assert failure is not None and (failure.kind, failure.message, failure.position) == ("diverged", "", 3)


def test_trials_keep_their_manifests_only(folder: Path) -> None:
    (tuning,) = store.read_tuning(folder, store.read_board(folder).tuning)
    trials = [run for trial in tuning.trials for run in trial["runs"]]
    assert len(trials) == 4
    assert {name for name in archive(folder) if name.split("/")[0] in trials} == {f"{run}/run.json" for run in trials}
    costs = store.read_run(folder / trials[0]).costs
    assert costs is not None and costs == store.read_run(folder.parents[1] / "runs" / trials[0]).costs


def test_equal_records_are_published_as_equal_bytes(folder: Path) -> None:
    first = (folder / packed.NAME).read_bytes()
    again = published.publish(folder.parents[1] / "runs", "demo", folder.parents[1] / "again")
    assert again.read_bytes() == first
    assert [path.name for path in again.parent.iterdir()] == [packed.NAME]


def test_a_question_id_that_is_a_text_is_hashed(tmp_path: Path) -> None:
    run = store.read_run(tmp_path / record(tmp_path, spec("uniform", "test-1-0"), [[0.5]]))
    documents = store.read_documents(tmp_path, run.id)
    names = ("Who left the ferry?", "20240705_12")
    answers = [answer(0.5, name, documents[0].document_id) for name in names]
    store.write_run(tmp_path, run.model_copy(update={"summary": summarize(documents, answers)}), documents, answers)
    board(tmp_path, [run.id])
    folder = published.publish(tmp_path, "demo", tmp_path / "results").parent
    first, second = store.read_answers(folder, run.id)
    assert re.fullmatch("[0-9a-f]+", first.question_id) and second.question_id == "20240705_12"


def test_the_command_line_says_what_was_written_and_what_cannot_be_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    demo(Path("runs"))
    run_bench.publish("demo", Path("runs"), Path("results[b]"))
    assert "Wrote results[b]/demo/records.tar.xz (0.00 MB)." in (written := capsys.readouterr().out)
    assert "python run_bench.py report demo --runs results[b]/demo" in written
    assert "Warning: 2 of 2 runs name no commit" in written and "Run the experiment from a git checkout." in written
    monkeypatch.setattr(reports, "stale", lambda *_: [])
    for runs, sentence in (("runs", ""), ("results[b]/demo", "Answers were not scored again")):
        run_bench.report(["demo"], Path(runs), Path("out"), check=True)
        assert ("Answers were not scored again" in capsys.readouterr().out) == bool(sentence)
    with pytest.raises(BenchError, match=r"results\[b\]/demo holds published records, to which none are added"):
        run_bench.run("default", runs=Path("results[b]/demo"))


def test_runs_that_name_a_commit_are_published_without_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = record(tmp_path / "runs", spec("uniform", "test-1-0"), [[0.5]], provenance={"commit": "c0ffee" * 7})
    board(tmp_path / "runs", [run_id])
    run_bench.publish("demo", tmp_path / "runs", tmp_path / "results")
    assert "Wrote" in (written := capsys.readouterr().out) and "Warning" not in written


# What is not published.


def test_wrong_scores_are_not_published(tmp_path: Path) -> None:
    run = store.read_run(tmp_path / record(tmp_path, spec("uniform", "test-1-0"), [[0.5]]))
    wrong = [event.model_copy(update={"f1": 1.0}) for event in store.read_answers(tmp_path, run.id)]
    store.write_run(tmp_path, run, store.read_documents(tmp_path, run.id), wrong)
    board(tmp_path, [run.id])
    with pytest.raises(BenchError, match=r"its f1 is 1, but prediction and answers give 0\.5"):
        published.publish(tmp_path, "demo", tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"status": "failed"}, r"has failed: run the same experiment again"),
        ({"notes": {"remarks": ["Words are in /data/somebody/words.txt."]}}, r"notes\.remarks\.0 holds the path /data"),
        ({"provenance": {"command": ["run", "--words=~/words"]}}, r"provenance\.command\.1 holds the path ~/words"),
        (
            {"notes": {"remarks": ["From sftp://me@host/runs."]}},
            r"notes\.remarks\.0 holds the path sftp://me@host/runs",
        ),
        (
            {"notes": {"remarks": [f"From {Path('/data/me').as_uri()}."]}},
            r"notes\.remarks\.0 holds the path file:/+data/me",
        ),
    ],
)
def test_failed_runs_and_absolute_paths_are_not_published(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    scores = [[0.5]] if "status" not in changes else []
    board(tmp_path, [record(tmp_path, spec("uniform", "test-1-0"), scores, **changes)])
    with pytest.raises(BenchError, match=problem):
        published.publish(tmp_path, "demo", tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_texts_with_slashes_are_no_paths(tmp_path: Path) -> None:
    remarks = ["F1 / base, 3 s/doc, https://example.org/a/b, tokens/second, /no_think"]
    board(tmp_path, [record(tmp_path, spec("uniform", "test-1-0"), [[0.5]], notes={"remarks": remarks})])
    assert published.publish(tmp_path, "demo", tmp_path / "results").exists()


def test_incomplete_and_published_records_are_not_published(folder: Path) -> None:
    runs = folder.parents[1] / "runs"
    with pytest.raises(BenchError, match=r"There is no board 'another' in .* Known: demo\."):
        published.publish(runs, "another", folder)
    with pytest.raises(BenchError, match="holds published records: publish those that the runs"):
        published.publish(folder, "demo", folder)
    trial = next(runs.glob("uniform-*-validation-*"))
    (trial / "run.json").unlink()
    with pytest.raises(BenchError, match=rf"{trial.name}/run\.json is missing"):
        published.publish(runs, "demo", folder)


def test_unpacked_records_give_the_same_board_and_are_no_substitute_for_those_of_the_runs(folder: Path) -> None:
    unpacked = folder.parents[1] / "unpacked"
    for name, content in archive(folder).items():
        (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / name).write_bytes(content)
    assert build(unpacked, "demo") == build(folder, "demo")
    assert pictures(unpacked) == pictures(folder)
    with pytest.raises(BenchError, match="it has no gold answers"):
        published.publish(unpacked, "demo", folder)


# Published records that were tampered with.


def lines(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """Change the first event of a file."""

    def edit(content: bytes) -> bytes:
        first, *rest = content.splitlines(keepends=True)
        event = json.loads(first)
        change(event)
        return json.dumps(event, separators=(",", ":")).encode() + b"\n" + b"".join(rest)

    return edit


def read_all(folder: Path) -> None:
    """Read and check whatever a board uses."""
    check_board(folder, store.read_board(folder))
    for run_id in store.read_board(folder).runs:
        store.read_tokens(folder, run_id)


EDITS: dict[str, tuple[str, Callable[[bytes], bytes] | None, str]] = {
    "a score": ("uniform-stream.*/answers.jsonl", lines(lambda event: event.update(f1=1.0)), "is not the file"),
    "a prediction": ("uniform-stream.*/answers.jsonl", lines(lambda event: event.update(prediction="")), "is not the"),
    "a likelihood": ("uniform-stream.*/documents.jsonl", lines(lambda event: event.update(nll=0.0)), "is not the file"),
    "a weight": ("uniform-stream.*/tokens.jsonl", lines(lambda event: event.update(weights=[1, 1, 1])), "is not the"),
    "a mean": ("uniform-stream-test.*/run.json", lambda of: re.sub(rb'"f1": [\d.]+', b'"f1": 1.0', of), "has been cha"),
    "a trial's cost": (
        "uniform-.*validation-1-0.*/run.json",
        lambda of: of.replace(b'"seconds": 2.0', b'"seconds": 1'),
        "has been change",
    ),
    "a remark": ("boards/demo.json", lambda of: of.replace(b"fine", b"mild"), "has been changed"),
    "a choice": ("tuning/.*", lambda of: of.replace(b"0.1", b"1.0"), "has been changed"),
    "no answers": ("uniform-stream-test.*/answers.jsonl", None, "is missing"),
    "no run": ("uniform-stream-test.*/run.json", None, "is missing"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_record_that_was_tampered_with_is_refused(folder: Path, edit: str) -> None:
    pattern, change, problem = EDITS[edit]
    files = archive(folder)
    name = next(name for name in files if re.fullmatch(pattern, name))
    content = files.pop(name)
    if change is not None:
        files[name] = change(content)
        assert files[name] != content
    (folder / packed.NAME).write_bytes(packed.pack(files))
    with pytest.raises(BenchError, match=rf"{packed.NAME}: {name} {problem}.* Restore the file as it was published"):
        read_all(folder)


def test_means_that_do_not_follow_from_the_events_are_refused(folder: Path) -> None:
    check_board(folder, store.read_board(folder))
    run_id = next(run for run in store.read_board(folder).runs if "uniform" in run)
    run = store.read_run(folder / run_id)
    assert run.summary is not None
    forged = run.model_copy(update={"summary": run.summary.model_copy(update={"f1": 1.0})})
    files = {**archive(folder), f"{run_id}/run.json": store.manifest(forged)}
    (folder / packed.NAME).write_bytes(packed.pack(files))
    with pytest.raises(BenchError, match=r"run\.json is wrong: its f1 is 1\.0, but its events give"):
        check_board(folder, store.read_board(folder))

"""Records in a bucket: what one machine has run another one finds, and no cell runs twice."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from bench.errors import BenchError
from bench.files import json_bytes, write_bytes
from bench.machine import process_name
from bench.paths import ARTIFACT
from bench.records.schema import Failure, RunRecord
from bench.records.store import MANIFEST, board_paths, manifest, read_answers, read_board, read_run, write_run
from bench.run import claims, places
from bench.run.experiment import Experiment
from bench.run.places import Bucket, InBucket, Place, place
from bench.run.runner import Runner
from tests.bench.run.test_claims import PLUGIN, looked_before, shared, together
from tests.world import Inline, make_dataset, make_experiment, wait_until

URL = "memory://lab/runs"
CLAIM = "/lab/runs/claims/cell.json"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Bucket]]:
    """A bucket as it is seen by machines of these names, each with a copy of its own."""

    def see(name: str) -> Bucket:
        monkeypatch.setenv("OAB_CACHE", str(tmp_path / name))
        return Bucket(URL)

    yield see
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@pytest.fixture
def experiment(llama: Path, tmp_path: Path) -> Experiment:
    methods = ["closed_book", {"name": "uniform", "space": {"learning_rate": [1e-3, 1e-2]}}]
    return make_experiment(make_dataset(tmp_path / "keepers"), llama, methods)


def test_what_one_machine_has_run_another_finds(
    machine: Callable[[str], Bucket], experiment: Experiment, tmp_path: Path
) -> None:
    first = machine("first")
    result = Runner(experiment, first.path).run(Inline())
    assert result.failures == ()
    second = machine("second")
    assert second.path != first.path and not list(second.path.glob("*/run.json"))
    second.fetch()
    executor = Inline()
    again = Runner(experiment, second.path).run(executor)
    assert executor.keys == [] and [cell.id for cell in again.cells] == [cell.id for cell in result.cells]
    for cell in result.cells:
        files = sorted(path.name for path in (first.path / cell.id).iterdir())
        assert files == sorted(path.name for path in (second.path / cell.id).iterdir())
        assert all(
            (first.path / cell.id / name).read_bytes() == (second.path / cell.id / name).read_bytes() for name in files
        )
    assert read_board(first.path).entries == read_board(second.path).entries
    assert first.fs.find(f"{first.root}/claims") == []


def test_the_board_of_the_latest_run_is_the_newest_wherever_it_was_made(machine: Callable[[str], Bucket]) -> None:
    first, second = machine("first"), machine("second")
    for name in ("zebra", "ant"):
        write_bytes(first.path / "boards" / f"{name}.json", name.encode())
        first.send(f"boards/{name}.json")
        time.sleep(0.01)
    for _ in range(2):
        first.fetch()
        second.fetch()
        for bucket in (first, second):
            assert [path.stem for path in board_paths(bucket.path)] == ["zebra", "ant"]


def test_a_newer_board_that_was_not_sent_before_a_kill_goes_to_the_bucket(machine: Callable[[str], Bucket]) -> None:
    bucket = machine("first")
    board = bucket.path / "boards" / "zebra.json"
    for day in ("Monday", "Tuesday"):
        write_bytes(board, day.encode())
        if day == "Monday":
            bucket.send("boards/zebra.json")
        time.sleep(0.01)
    bucket.fetch()
    assert board.read_text() == "Tuesday" == bucket.fs.cat_file(f"{bucket.root}/boards/zebra.json").decode()


def test_a_search_that_was_corrected_elsewhere_is_corrected_here(machine: Callable[[str], Bucket]) -> None:
    first, second = machine("first"), machine("second")
    for trials in ("one failed", "all"):
        write_bytes(first.path / "tuning" / "bm25-0123.json", trials.encode())
        first.send("tuning/bm25-0123.json")
        second.fetch()
        assert (second.path / "tuning" / "bm25-0123.json").read_text() == trials


def test_a_machine_that_joins_late_runs_what_is_missing(
    machine: Callable[[str], Bucket], experiment: Experiment
) -> None:
    first = machine("first")
    keys = Runner(experiment, first.path).run(Inline()).cells
    lost = keys[-1].id
    first.fs.rm(f"{first.root}/{lost}", recursive=True)
    second, executor = machine("second"), Inline()
    Runner(experiment, second.path).run(executor)
    assert executor.keys == [lost]
    assert first.fs.exists(f"{first.root}/{lost}/{MANIFEST}")


def test_a_record_is_sent_with_its_manifest_last_and_fetched_only_with_it(
    machine: Callable[[str], Bucket], experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine("first")
    cell = Runner(experiment, first.path).run(Inline()).cells[0].id
    first.fs.rm(f"{first.root}/{cell}", recursive=True)
    sent: list[str] = []
    write = first.fs.pipe_file
    monkeypatch.setattr(first.fs, "pipe_file", lambda path, value: (sent.append(Path(path).name), write(path, value)))
    first.send(cell)
    assert sent[-1] == MANIFEST and len(sent) > 1
    first.fs.rm_file(f"{first.root}/{cell}/{MANIFEST}")
    second = machine("second")
    second.fetch()
    assert not (second.path / cell).exists()


def test_weights_are_sent_and_fetched_with_their_manifest_last_and_only_when_they_are_whole(
    machine: Callable[[str], Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine("first")
    for name in ("learner", ".partial-learner"):
        for file in (ARTIFACT, "curve.csv", "weights.safetensors"):
            write_bytes(first.path / "artifacts" / name / file, file.encode())
    moved: list[str] = []
    for call in ("pipe_file", "cat_file"):
        real = getattr(first.fs, call)
        monkeypatch.setattr(
            first.fs, call, lambda path, *given, _real=real: (moved.append(Path(path).name), _real(path, *given))[1]
        )
    first.fetch()
    second = machine("second")
    second.fetch_weights()
    assert moved == ["curve.csv", "weights.safetensors", ARTIFACT] * 2
    assert [path.name for path in (second.path / "artifacts").iterdir()] == ["learner"]


def test_what_was_not_sent_before_a_kill_is_sent_by_the_next_run(
    machine: Callable[[str], Bucket], experiment: Experiment
) -> None:
    first = machine("first")
    cell = Runner(experiment, first.path).run(Inline()).cells[0].id
    weights = first.path / "artifacts" / "learner" / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    first.fs.rm(f"{first.root}/{cell}", recursive=True)
    first.fetch()
    assert first.fs.exists(f"{first.root}/{cell}/{MANIFEST}")
    second = machine("second")
    second.fetch_weights()
    assert (second.path / "artifacts" / "learner" / "weights.safetensors").read_bytes() == b"weights"
    assert not (second.path / cell).exists()


def test_a_claim_is_not_lost_to_one_who_looked_before_it_was_made(
    machine: Callable[[str], Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machine("first"), machine("second")
    with first.claimed("cell") as own:
        assert own and [one.claim.cell for one in second.running()] == ["cell"]
        content = first.fs.cat_file(CLAIM)
        for before in (claims.Seen(b"a stale one", 1000.0), None):
            with monkeypatch.context() as patch:
                patch.setattr(InBucket, "look", looked_before(InBucket.look, before))
                with second.claimed("cell") as other:
                    assert not other
            assert first.fs.cat_file(CLAIM) == content and first.fs.find(f"{first.root}/claims") == [CLAIM]
    assert second.running() == []


def test_a_claim_that_was_taken_over_is_left_alone_by_its_former_holder(machine: Callable[[str], Bucket]) -> None:
    first = machine("first")
    with first.claimed("cell"):
        assert first.holds("cell")
        first.fs.pipe_file(CLAIM, b"another's")
        assert not first.holds("cell")
    assert first.fs.cat_file(CLAIM) == b"another's"


def test_the_claim_of_a_process_of_this_machine_that_has_ended_is_free_at_once(
    machine: Callable[[str], Bucket],
) -> None:
    first = machine("first")
    ended = claims.own_claim("cell")._replace(process=f"{process_name().rpartition('-')[0]}-999999999")
    first.fs.pipe_file(CLAIM, json_bytes(ended._asdict()))
    assert not first.is_claimed("cell") and first.running() == []
    with first.claimed("cell") as own:
        assert own


def test_what_a_file_server_lacked_is_asked_for_again(tmp_path: Path) -> None:
    for fetch in (Place(tmp_path).fetch, lambda: Place(tmp_path).fetch_record("cell")):
        os.utime(tmp_path, (1.0, 1.0))
        fetch()
        assert tmp_path.stat().st_mtime > 1.0, "this machine changes the folder, so that it looks there again"
    Place(tmp_path / "none").fetch()


@pytest.mark.parametrize("cut", [MANIFEST, "answers.jsonl"])
@pytest.mark.parametrize("left", [0, 20])
def test_a_record_that_was_not_sent_whole_is_not_taken_and_is_run_again(
    machine: Callable[[str], Bucket], experiment: Experiment, cut: str, left: int
) -> None:
    first = machine("first")
    cell = Runner(experiment, first.path).run(Inline()).cells[0].id
    whole = first.fs.cat_file(f"{first.root}/{cell}/{cut}")
    first.fs.pipe_file(f"{first.root}/{cell}/{cut}", whole[:left])
    second = machine("second")
    executor = Inline()
    Runner(experiment, second.path).run(executor)
    assert executor.keys == [cell]
    assert json.loads(first.fs.cat_file(f"{first.root}/{cell}/{MANIFEST}"))["id"] == cell
    third = machine("third")
    third.fetch()
    assert read_run(third.path / cell).status == "complete" and read_answers(third.path, cell)


@pytest.mark.parametrize("is_own", [True, False])
def test_a_claim_may_be_refused_with_any_error_of_the_system(
    machine: Callable[[str], Bucket], monkeypatch: pytest.MonkeyPatch, is_own: bool
) -> None:
    """Object stores name a lost race differently, and a request that was sent again finds its own claim."""
    first = machine("first")
    open_file, write = first.fs.open, first.fs.pipe_file
    contents: list[bytes] = []
    monkeypatch.setattr(claims, "json_bytes", lambda content: contents.append(json_bytes(content)) or contents[-1])

    def refuse(path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "xb":
            write(path, contents[-1] if is_own else json_bytes({"another": "claim"}))
            raise OSError(errno.EINVAL, "At least one of the pre-conditions you specified did not hold")
        return open_file(path, mode, **options)

    monkeypatch.setattr(first.fs, "open", refuse)
    with first.claimed("cell") as own:
        assert own == is_own
    monkeypatch.setattr(first.fs, "open", lambda *_, **__: open_file("/nowhere/at/all"))
    with pytest.raises(OSError, match="nowhere"), first.claimed("other"):
        pass


def failed(record: RunRecord) -> RunRecord:
    """The record of the same cell if it had failed."""
    failure = Failure(kind="failed", message="m", traceback="", position=None)
    return record.model_copy(update={"status": "failed", "failure": failure, "summary": None, "costs": None})


def test_a_failed_record_is_replaced_by_a_later_one(machine: Callable[[str], Bucket], experiment: Experiment) -> None:
    first = machine("first")
    cell = Runner(experiment, first.path).run(Inline()).cells[0].id
    second = machine("second")
    second.fetch()
    write_run(second.path, failed(read_run(second.path / cell)))
    second.fetch()
    assert read_run(second.path / cell).status == "complete"


def test_a_record_that_replaces_a_failed_one_and_was_not_sent_before_a_kill_is_sent(
    machine: Callable[[str], Bucket], experiment: Experiment
) -> None:
    first = machine("first")
    cell = Runner(experiment, first.path).run(Inline()).cells[0].id
    good = read_run(first.path / cell)
    write_run(first.path, failed(good))
    first.send(cell)
    write_run(first.path, good)
    first.fetch()
    second = machine("second")
    second.fetch()
    assert read_run(second.path / cell).status == read_run(first.path / cell).status == "complete"
    assert good.costs is not None
    larger = good.costs.model_copy(update={"state_bytes": 10**9})
    there = manifest(good.model_copy(update={"costs": larger}))  # of another one that is good
    first.fs.pipe_file(f"{first.root}/{cell}/{MANIFEST}", there)
    first.fetch()
    assert first.fs.cat_file(f"{first.root}/{cell}/{MANIFEST}") == there


def test_a_record_of_another_version_stops_no_command_on_its_bucket(
    machine: Callable[[str], Bucket], experiment: Experiment
) -> None:
    first = machine("first")
    cell = Runner(experiment, first.path).run(Inline()).cells[0].id
    manifest = json.loads(first.fs.cat_file(f"{first.root}/{cell}/{MANIFEST}"))
    older = json_bytes({**manifest, "schema_version": 1})
    for name in (cell, "of-another-experiment-1234"):
        first.fs.pipe_file(f"{first.root}/{name}/{MANIFEST}", older)
    second = machine("second")
    for _ in range(2):
        second.fetch()
    assert not (second.path / cell).exists() and not (second.path / "of-another-experiment-1234").exists()
    executor = Inline()
    Runner(experiment, second.path).run(executor)
    assert executor.keys == [cell], "the experiment's own is run again"
    assert json.loads(first.fs.cat_file(f"{first.root}/{cell}/{MANIFEST}"))["schema_version"] > 1
    (second.path / cell / MANIFEST).write_bytes(older)  # damaged here
    second.fetch()
    assert read_run(second.path / cell).status == "complete"


def test_a_claim_holds_for_all_machines_until_it_is_silent_for_long(
    machine: Callable[[str], Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machine("first"), machine("second")
    with first.claimed("cell") as own:
        assert own and second.is_claimed("cell")
        with second.claimed("cell") as other:
            assert not other
        with second.claimed("another") as other:
            assert other
        monkeypatch.setattr(places, "STALE_SECONDS", -1.0)  # the claim is silent for longer than that
        with second.claimed("cell") as other:
            assert other
    assert not second.is_claimed("cell")


def test_a_heart_beats_in_the_bucket_while_a_claim_is_held(
    machine: Callable[[str], Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "HEARTBEAT_SECONDS", 0.02)
    first = machine("first")
    with first.claimed("cell"):
        made = first.fs.modified(CLAIM)
        wait_until(lambda: first.fs.modified(CLAIM) != made)


@pytest.mark.parametrize("error", [NotImplementedError, ValueError])
def test_where_no_file_is_created_exclusively_the_last_writer_holds_the_claim(
    machine: Callable[[str], Bucket], monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    first = machine("first")
    open_file, write = first.fs.open, first.fs.pipe_file

    def refuse(path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "xb":
            raise error
        return open_file(path, mode, **options)

    monkeypatch.setattr(first.fs, "open", refuse)
    with first.claimed("cell") as own:
        assert own and machine("second").is_claimed("cell")
    monkeypatch.setattr(first.fs, "pipe_file", lambda path, claim: (write(path, claim), write(path, b"another's")))
    with first.claimed("cell") as own:
        assert not own
    assert first.fs.cat_file(CLAIM) == b"another's"


def test_where_a_file_is_created_but_not_written_the_claim_is_written_afterwards(
    machine: Callable[[str], Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SFTP, by way of paramiko, opens with mode x for creation alone."""
    first = machine("first")
    open_file, write = first.fs.open, first.fs.pipe_file

    def create(path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "xb":
            write(path, b"")
            raise OSError("File not open for writing")
        return open_file(path, mode, **options)

    monkeypatch.setattr(first.fs, "open", create)
    with first.claimed("cell") as own:
        assert own and machine("second").is_claimed("cell")
    assert not first.fs.exists(CLAIM)


def test_a_place_that_does_not_tell_the_time_of_a_file_is_refused() -> None:
    class Timeless(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "timeless"

    fsspec.register_implementation("timeless", Timeless, clobber=True)
    with pytest.raises(BenchError, match="timeless does not tell when a file was written"):
        place("timeless://runs")


def test_the_copy_of_a_bucket_stands_for_it_and_a_folder_for_itself(
    machine: Callable[[str], Bucket], tmp_path: Path
) -> None:
    bucket = machine("first")
    again = place(bucket.path)
    assert isinstance(again, Bucket) and again.name == bucket.name == URL
    assert type(place(tmp_path)) is Place and place(tmp_path).name == str(tmp_path)


@pytest.mark.parametrize("url", ["nowhere://bucket/runs", "s3fs-that-is-not-there://x"])
def test_a_place_that_cannot_be_reached_is_refused(url: str) -> None:
    with pytest.raises(BenchError, match=f"--runs {url} cannot be reached"):
        place(url)


def test_two_machines_share_the_cells_of_a_bucket(llama: Path, tmp_path: Path) -> None:
    log, plugin = tmp_path / "log", tmp_path / "logged.py"
    plugin.write_text(PLUGIN.format(log=str(log)))
    file, dataset = tmp_path / "shared.yaml", make_dataset(tmp_path / "keepers")
    streams = "{split: test, documents: 2, count: 8}"
    file.write_text(f"dataset: {dataset}\nmodel: {llama}\nstreams: {streams}\nmethods: [logged]\n")
    command = [sys.executable, "run_bench.py", "run", str(file), "--plugin", str(plugin), "--jobs", "1"]
    folders = ["--runs", f"local://{tmp_path}/bucket", "--out", str(tmp_path / "out")]

    machines = [["env", f"OAB_CACHE={tmp_path / name}", *command, *folders] for name in ("first", "second")]
    assert together(*machines) == [0, 0]
    assert shared(log) == (8, 2)
    assert len(list((tmp_path / "bucket").glob("*/run.json"))) == 8

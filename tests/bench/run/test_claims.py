"""Claims to cells: one process at a time, dead and silent ones are replaced, and several runs share the work."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import run_bench
from bench.errors import BenchError
from bench.files import write_json
from bench.machine import process_name
from bench.records.schema import Failure
from bench.records.store import read_board, read_run, write_run
from bench.run import claims
from bench.run.cell import ELSEWHERE
from bench.run.cell import run as run_cell
from bench.run.executor import Outcome, Task, TaskError
from bench.run.experiment import load
from bench.run.runner import Result, Runner
from tests.attack.kills import unmeasured
from tests.conftest import ROOT
from tests.world import PLUGIN as FAILURES
from tests.world import Inline, make_dataset, make_experiment, started, wait_until

HOLD = """
import sys
from pathlib import Path
from bench.run import claims
with claims.Folder(Path({runs!r})).claimed({cell!r}) as own:
    print(own, flush=True)
    sys.stdin.read()
"""

Hold = Callable[[Path, str], subprocess.Popen[str]]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Start processes that claim a cell until their input ends."""
    started: list[subprocess.Popen[str]] = []

    def start(runs: Path, cell: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD.format(runs=str(runs), cell=cell)]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline().strip() == "True"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def claim_file(runs: Path, cell: str) -> Path:
    return runs / claims.FOLDER / f"{cell}.json"


def test_a_cell_is_claimed_by_one_process_until_it_lets_go(tmp_path: Path, hold: Hold) -> None:
    other = hold(tmp_path, "cell")
    with claims.Folder(tmp_path).claimed("cell") as own:
        assert not own
    (running,) = claims.Folder(tmp_path).running()
    assert (running.claim.cell, running.claim.pid) == ("cell", other.pid) and running.silent < 60
    with claims.Folder(tmp_path).claimed("another") as own:
        assert own and [one.claim.cell for one in claims.Folder(tmp_path).running()] == ["cell", "another"]
    other.communicate()
    assert claims.Folder(tmp_path).running() == [] and claims.Folder(tmp_path).holder("cell") is None
    with claims.Folder(tmp_path).claimed("cell") as own:
        assert own


def test_a_claim_that_a_full_disk_does_not_take_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def write(self, _: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    def touched(path: Path, *_: object) -> Full:
        path.touch()
        return Full()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", touched)
        with pytest.raises(OSError, match="No space left"):
            claims.Folder(tmp_path).create("cell", b"content")
    assert list(tmp_path.rglob("*.json")) == []


def test_the_claim_of_a_killed_process_is_free_at_once(tmp_path: Path, hold: Hold) -> None:
    other = hold(tmp_path, "cell")
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert claim_file(tmp_path, "cell").exists() and claims.Folder(tmp_path).running() == []
    with claims.Folder(tmp_path).claimed("cell") as own:
        assert own


def test_a_claim_from_another_machine_holds_until_it_is_silent_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claims.Folder(tmp_path).claimed("cell"):
        claim = json.loads(claim_file(tmp_path, "cell").read_text())
    elsewhere = {**claim, "process": "00000000-1", "host": "elsewhere", "token": "other"}
    claim_file(tmp_path, "cell").write_text(json.dumps(elsewhere))
    with claims.Folder(tmp_path).claimed("cell") as own:
        assert not own
    silent = time.time() - claims.STALE_SECONDS - 5
    os.utime(claim_file(tmp_path, "cell"), (silent, silent))
    with claims.Folder(tmp_path).claimed("cell") as own:
        assert own and claims.Folder(tmp_path).holder("cell") is not None


def test_a_heart_beats_while_a_claim_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.02)
    with claims.Folder(tmp_path).claimed("cell"):
        os.utime(claim_file(tmp_path, "cell"), (1.0, 1.0))
        wait_until(lambda: claims.Folder(tmp_path).holder("cell") is not None)


def test_a_claim_that_its_heartbeat_is_writing_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = claims.Folder(tmp_path)
    with folder.claimed("cell"):
        whole = claim_file(tmp_path, "cell").read_bytes()
        claim_file(tmp_path, "cell").write_bytes(b"")
        monkeypatch.setattr(claims.time, "sleep", lambda _: claim_file(tmp_path, "cell").write_bytes(whole))
        assert folder.holds("cell")
        monkeypatch.setattr(claims.time, "sleep", lambda _: None)
        claim_file(tmp_path, "cell").write_bytes(b"")
        assert not folder.holds("cell")


def test_the_time_is_that_of_the_file_server_also_for_a_second_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_mine(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with claims.Folder(tmp_path).claimed("cell"):
        monkeypatch.setattr(Path, "touch", not_mine)
        real = time.time()
        monkeypatch.setattr(claims.time, "time", lambda: real + 3600)  # this machine's clock
        seen = claims.Folder(tmp_path).look("cell")
        assert seen is not None and seen.silent < 60
    assert [path.name for path in (tmp_path / claims.FOLDER).iterdir()] == [".clock"], "nothing else is left"


def taken_over(runs: Path, cell: str) -> dict[str, str]:
    """Replace the claim to a cell by one from another machine; returns that one."""
    other = {**json.loads(claim_file(runs, cell).read_text()), "process": "00000000-1", "token": "other"}
    claim_file(runs, cell).write_text(json.dumps(other))
    return other


def test_a_process_leaves_the_claim_alone_that_replaced_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.02)
    with claims.Folder(tmp_path).claimed("cell"):
        assert claims.Folder(tmp_path).holds("cell")
        other = taken_over(tmp_path, "cell")
        assert not claims.Folder(tmp_path).holds("cell")
        time.sleep(1.0)  # a beat that has begun ends
        os.utime(claim_file(tmp_path, "cell"), (1.0, 1.0))
        time.sleep(0.2)
        assert claim_file(tmp_path, "cell").stat().st_mtime == 1.0
    assert json.loads(claim_file(tmp_path, "cell").read_text()) == other


def looked_before(look: Callable[..., Any], seen: claims.Seen | None) -> Callable[..., Any]:
    """``look``, but the first call gives what was ``seen`` earlier."""
    calls = itertools.count()
    return lambda place, name: look(place, name) if next(calls) else seen


def test_a_claim_is_not_lost_to_one_who_looked_before_it_was_made(
    tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(tmp_path, "cell")
    content = claim_file(tmp_path, "cell").read_bytes()
    for before in (claims.Seen(b"a stale one", 1000.0), None):
        monkeypatch.setattr(claims.Folder, "look", looked_before(claims.Folder.look, before))
        with claims.Folder(tmp_path).claimed("cell") as own:
            assert not own
        monkeypatch.undo()
        assert claim_file(tmp_path, "cell").read_bytes() == content
    assert [path.name for path in claim_file(tmp_path, "cell").parent.glob("*.json")] == ["cell.json"]
    assert {path.suffix for path in claim_file(tmp_path, "cell").parent.iterdir()} <= {".json", ""}


def test_one_alone_of_those_who_saw_a_claim_that_no_longer_holds_takes_it_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = {**claims.own_claim("cell")._asdict(), "process": f"{process_name().rpartition('-')[0]}-999999999"}
    write_json(claim_file(tmp_path, "cell"), ended)
    first, second, third = (claims.Folder(tmp_path) for _ in range(3))
    owners: list[bool] = []

    with contextlib.ExitStack() as stack:

        def meanwhile(place: claims.Folder, call: str, other: claims.Folder) -> None:
            """Let another one try too, just before this call of ``place``."""
            method = getattr(place, call)

            def wrapped(*arguments: object) -> object:
                owners.append(stack.enter_context(other.claimed("cell")))
                return method(*arguments)

            monkeypatch.setattr(place, call, wrapped)

        meanwhile(first, "create", second)  # when it has seen the claim
        meanwhile(second, "replace", third)  # when it is about to replace it
        owners.append(stack.enter_context(first.claimed("cell")))
        assert owners == [False, True, False]  # of the third, the second and the first
        assert second.holds("cell") and first.names() == ["cell"]


def test_a_takeover_that_was_killed_is_taken_over_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = {**claims.own_claim("cell")._asdict(), "process": f"{process_name().rpartition('-')[0]}-999999999"}
    write_json(claim_file(tmp_path, "cell"), ended)
    killed = claims.Folder(tmp_path)
    monkeypatch.setattr(killed, "remove", lambda name: None)
    monkeypatch.setattr(killed, "replace", lambda name, content: write_json(claim_file(tmp_path, name), ended))
    with killed.claimed("cell"):
        for path in claim_file(tmp_path, "cell").parent.glob("*.json"):
            write_json(path, ended)
    left = list(claim_file(tmp_path, "cell").parent.glob("*.json"))
    assert len(left) == 2 and claims.Folder(tmp_path).running() == []
    with claims.Folder(tmp_path).claimed("cell") as own:
        assert own and claims.Folder(tmp_path).holds("cell")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"cell": "cell"}', b"\xff"])
def test_what_is_not_a_claim_may_become_one_until_it_is_silent_for_long(tmp_path: Path, content: bytes) -> None:
    claim_file(tmp_path, "cell").parent.mkdir()
    claim_file(tmp_path, "cell").write_bytes(content)
    assert claims.Folder(tmp_path).running() == [] and claims.Folder(tmp_path).is_claimed("cell")
    with claims.Folder(tmp_path).claimed("cell") as own:
        assert not own
    os.utime(claim_file(tmp_path, "cell"), (1.0, 1.0))
    with claims.Folder(tmp_path).claimed("cell") as own:
        assert own


def test_threads_that_want_one_cell_get_it_one_at_a_time(tmp_path: Path) -> None:
    owners = []

    def want() -> None:
        with claims.Folder(tmp_path).claimed("cell") as own:
            owners.append(own)
            barrier.wait()

    barrier = threading.Barrier(8, timeout=60)
    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(owners) == [False] * 7 + [True]


# Runs that share a folder.


def test_a_run_waits_for_the_cells_of_another_and_takes_over_those_of_a_dead_one(
    llama: Path, tmp_path: Path, hold: Hold
) -> None:
    experiment = make_experiment(make_dataset(tmp_path / "keepers"), llama, ["closed_book"], tuning=None)
    done, runs = tmp_path / "done", tmp_path / "runs"
    first, second = Runner(experiment, done).run(Inline()).cells
    finishes, dies = hold(runs, first.id), hold(runs, second.id)
    executor, waiting = Inline(), Runner(experiment, runs)
    waiting.wait = 0.05

    def others() -> None:
        try:
            wait_until(lambda: executor.keys == [first.id, second.id])
            (done / first.id).rename(runs / first.id)
            finishes.communicate()
            wait_until(lambda: not waiting.is_running(first))
        finally:  # else the run waits for ever
            finishes.kill()
            dies.kill()

    thread = threading.Thread(target=others)
    thread.start()
    result = waiting.run(executor)
    thread.join()
    assert [read_run(runs / cell.id).failure for cell in result.cells] == [None, None]
    assert executor.keys == [first.id, second.id, second.id], "the first was taken from the other run"


def test_a_cell_that_failed_in_another_run_meanwhile_is_not_tried_again(llama: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "failures.py"
    plugin.write_text(FAILURES)
    experiment = make_experiment(make_dataset(tmp_path / "keepers"), llama, ["raises"], tuning=None)
    first, second = (Runner(experiment, tmp_path / "runs", [str(plugin)]) for _ in range(2))
    tries: list[str] = []

    class Together(Inline):
        """The second run does everything when the first has planned."""

        def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
            other = Inline()
            second.run(other)
            tries.extend(other.keys)
            times = {key: (tmp_path / "runs" / key / "run.json").stat().st_mtime_ns for key in other.keys}
            yield from super().run(tasks)
            assert times == {key: (tmp_path / "runs" / key / "run.json").stat().st_mtime_ns for key in times}

    assert len(first.run(Together()).failures) == 2 and len(tries) == 2
    again = Inline()
    Runner(experiment, tmp_path / "runs", [str(plugin)]).run(again)
    assert len(again.keys) == 2, "the next command tries again"


@pytest.mark.parametrize("finishes", [True, False])
def test_a_cell_whose_worker_died_here_is_left_to_the_process_that_runs_it_now(
    llama: Path, tmp_path: Path, hold: Hold, finishes: bool
) -> None:
    experiment = make_experiment(make_dataset(tmp_path / "keepers"), llama, ["closed_book"], tuning=None)
    done, runs = tmp_path / "done", tmp_path / "runs"
    first, second = Runner(experiment, done).run(Inline()).cells
    other, waiting, died = hold(runs, first.id), Runner(experiment, runs), threading.Event()
    waiting.wait = 0.05

    class Deadly(Inline):
        def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
            yield Outcome(first.id, error=TaskError("worker_died", "ended by SIGKILL"))
            died.set()
            yield from super().run([task for task in tasks if task.key != first.id])

    def ends() -> None:
        died.wait(60)
        if finishes:
            shutil.copytree(done / first.id, runs / first.id)
        other.kill()

    thread = threading.Thread(target=ends)
    thread.start()
    failures = waiting.run(Deadly()).failures
    thread.join()
    if finishes:
        assert failures == () and read_run(runs / first.id) == read_run(done / first.id)
    else:
        assert len(failures) == 1 and "ended by SIGKILL" in failures[0]
    assert read_run(runs / second.id).failure is None and claims.Folder(runs).running() == []


LOSES = """
import json
from pathlib import Path
from bench import Method

class Loses(Method):
    '''Stands still for so long that another machine takes over its cell.'''
    name = "loses"
    paper = "none"

    def observe(self, document):
        (claim,) = Path({claims!r}).glob("*.json")
        claim.write_text(json.dumps({{**json.loads(claim.read_text()), "process": "00000000-1"}}))
"""


def test_a_cell_that_was_taken_over_has_no_record_from_its_former_process(llama: Path, tmp_path: Path) -> None:
    runs, plugin = tmp_path / "runs", tmp_path / "loses.py"
    plugin.write_text(LOSES.format(claims=str(runs / claims.FOLDER)))
    experiment = make_experiment(make_dataset(tmp_path / "keepers"), llama, ["loses"], tuning=None)
    runner = Runner(experiment, runs, [str(plugin)])
    (own, _) = runner.planner.cells(runner.experiment.methods[0], {})
    assert run_cell(own.model_dump(mode="json"), str(runs)) == ELSEWHERE
    assert not (runs / own.id).exists() and claims.Folder(runs).is_claimed(own.id)


PLUGIN = """
import os
import time
from bench import Method

class Logged(Method):
    '''Writes a line for each cell, and waits until another process has a cell too.'''
    name = "logged"
    paper = "none"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        with open({log!r}, "a") as file:
            file.write(f"{{os.getpid()}}\\n")
        end = time.monotonic() + 60
        while len(set(open({log!r}))) < 2 and time.monotonic() < end:
            time.sleep(0.02)

    def observe(self, document):
        pass
"""


def together(*commands: Sequence[str]) -> list[int]:
    """Run commands at the same time; returns their exit codes."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(started(command, cwd=ROOT, stdout=subprocess.DEVNULL)) for command in commands]
        return [process.wait(timeout=600) for process in running]


def shared(log: Path) -> tuple[int, int]:
    """How many cells were run, and by how many processes."""
    processes = log.read_text().splitlines()
    return len(processes), len(set(processes))


@pytest.fixture
def split(llama: Path, tmp_path: Path) -> Callable[..., Result]:
    """Run one shard of an experiment, or all of it, with a tuned method, in this process."""
    data = make_dataset(tmp_path / "keepers")
    plans = ["closed_book", {"name": "uniform", "space": {"learning_rate": [1e-3, 1e-2]}}]
    experiment = make_experiment(data, llama, plans, streams={"split": "test", "documents": 3, "count": 3})

    def run(runs: Path, shard: tuple[int, int] = (1, 1), executor: Inline | None = None) -> Result:
        return Runner(experiment, runs, shard=shard).run(executor or Inline())

    return run


def test_shards_run_their_parts_of_the_board_and_the_last_one_makes_it(
    split: Callable[..., Result], tmp_path: Path
) -> None:
    whole = split(tmp_path / "whole")
    executors = [Inline() for _ in range(4)]
    missing = [split(tmp_path / "parts", (place, 4), executor).missing for place, executor in enumerate(executors, 1)]
    assert missing[-1] == 0 and sorted(missing, reverse=True) == missing and missing[0] > 0
    keys = [key for executor in executors for key in executor.keys]
    assert len(keys) == len(set(keys)), "nothing is run twice"
    boards = [read_board(tmp_path / name) for name in ("whole", "parts")]
    assert boards[0].entries == boards[1].entries
    for cell in whole.cells:
        one, other = (read_run(tmp_path / name / cell.id).summary for name in ("whole", "parts"))
        assert one == other


def test_a_shard_leaves_no_board_of_a_part(split: Callable[..., Result], tmp_path: Path) -> None:
    result = split(tmp_path / "parts", (2, 4))
    assert result.missing > 0 and result.failures == ()
    with pytest.raises(BenchError, match="There is no board"):
        read_board(tmp_path / "parts")
    executor = Inline()
    assert split(tmp_path / "parts", executor=executor).missing == 0
    assert len(executor.keys) == result.missing, "the whole run completes what is missing"


def test_the_plan_says_what_runs_where_and_what_failed(
    llama: Path, tmp_path: Path, hold: Hold, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "watched.yaml"
    streams = "{split: test, documents: 2, count: 3}"
    dataset = make_dataset(tmp_path / "keepers")
    file.write_text(f"dataset: {dataset}\nmodel: {llama}\nstreams: {streams}\nmethods: [closed_book]\n")
    first, second, _ = (cell.id for cell in Runner(load(str(file)), tmp_path / "runs").run(Inline()).cells)
    failed = read_run(tmp_path / "runs" / second)
    failure = Failure(kind="failed", message="m", traceback="", position=None)
    changes = {"status": "failed", "failure": failure, "summary": None, "costs": None}
    write_run(tmp_path / "runs", failed.model_copy(update=changes))
    shutil.rmtree(tmp_path / "runs" / first)
    other = hold(tmp_path / "runs", first)
    monkeypatch.setattr(sys, "argv", ["run_bench.py", "status", str(file), "--runs", str(tmp_path / "runs")])
    with pytest.raises(SystemExit, match="0"):
        run_bench.main()
    printed = capsys.readouterr().out
    assert "failed" in printed and re.search(r"\brunning\b", printed)
    assert f"Running: {first} on {platform.node()}, process {other.pid}," in " ".join(printed.split())
    assert "2 cells to run, 1 done." in printed
    assert "Failed: closed_book on test-2-1 (stream): m" in printed


def test_four_shells_with_a_shard_each_make_the_board_of_one_run(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "sharded.yaml"
    methods = ["closed_book", {"name": "uniform", "space": {"learning_rate": [1e-3, 1e-2]}}]
    plan = make_experiment(make_dataset(tmp_path / "keepers"), llama, methods)
    file.write_text(yaml.safe_dump(plan.model_dump(mode="json")))

    def shell(folder: str, *options: str) -> subprocess.Popen[str]:
        places = ["--runs", str(tmp_path / folder), "--out", str(tmp_path / folder / "out"), "--jobs", "1"]
        command = [sys.executable, str(ROOT / "run_bench.py"), "run", str(file), *places, *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    for shells in ([shell("whole")], [shell("parts", "--shard", f"{number}/4") for number in range(1, 5)]):
        printed = [process.communicate(timeout=300)[0] for process in shells]
        assert [process.returncode for process in shells] == [0] * len(shells), printed
    whole, parts = (
        json.loads((tmp_path / name / "out" / "leaderboard.json").read_text()) for name in ("whole", "parts")
    )
    assert unmeasured(whole["rows"]) == unmeasured(parts["rows"]) and whole["rows"]

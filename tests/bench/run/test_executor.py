"""The pool runs every task once, whatever happens to the workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import machine
from bench.errors import BenchError
from bench.machine import available_memory
from bench.run import executor
from bench.run.executor import LocalPool, Note, Outcome, Task, affordable_jobs
from tests.conftest import ROOT

JOBS = """
import ctypes, os, signal, sys, time
from pathlib import Path

def double(number): return 2 * number
def process(): return os.getpid()
def environment(): return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
def fail(): raise ValueError("no such luck")
def unpicklable(): return lambda: None
def leave(code, log=os.devnull):
    with open(log, "a") as file:
        file.write("tried\\n")
    os._exit(code)
def killed(): os.kill(os.getpid(), signal.SIGKILL)
def retire():
    from bench.run import executor
    executor.retire()
    return os.getpid()
def last_words(words):
    from bench.run.executor import tell
    tell(words)
def busy(steps, limit, last):
    from bench.run.executor import limit_time
    for step in range(steps):
        limit_time(limit, ("step", step))
        time.sleep(0.2)
    limit_time(None)
    time.sleep(2 * limit)
    limit_time(limit, ("last", steps))
    if last:
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL})
        ctypes.PyDLL(None).sleep(60)  # in C, with the interpreter's lock
    return "done"
def sleep(seconds, folder=None):
    if folder:
        Path(folder, str(os.getpid())).write_text(str(os.getppid()))
    time.sleep(seconds)
    return seconds
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module ``pool_jobs`` that workers can import (they get the sys.path of this process)."""
    (tmp_path / "pool_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def task(key: str, function: str, **payload: object) -> Task:
    return Task(key, f"pool_jobs:{function}", payload)


def outcomes(pool: LocalPool, tasks: list[Task]) -> dict[str, Outcome]:
    outcomes = list(pool.run(tasks))
    assert sorted(outcome.key for outcome in outcomes) == sorted(task.key for task in tasks)  # each exactly once
    return {outcome.key: outcome for outcome in outcomes}


def has_ended(pid: int) -> bool:
    """True if the process has ended, even if its parent, another process, has not yet collected it."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def wait_until(condition, seconds: float = 15.0) -> bool:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


def test_every_task_has_one_outcome_and_workers_are_reused(jobs: Path) -> None:
    with LocalPool(jobs=2) as pool:
        results = outcomes(pool, [task(str(number), "process") for number in range(6)])
    workers = {outcome.value for outcome in results.values()}
    assert 1 <= len(workers) <= 2
    assert all(has_ended(pid) for pid in workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_that_are_appended_between_outcomes_are_run(jobs: Path, workers: int) -> None:
    tasks, seen = [task("0", "double", number=0)], []
    with LocalPool(workers, threads=1) as pool:
        for outcome in pool.run(tasks):
            seen.append(outcome.value)
            if len(tasks) < 4:
                tasks.append(task(str(len(tasks)), "double", number=len(tasks)))
    assert seen == [0, 2, 4, 6]


def test_no_tasks_need_no_workers() -> None:
    assert list(LocalPool().run([])) == []


def test_outcomes_come_as_tasks_finish(jobs: Path) -> None:
    tasks = [task("slow", "sleep", seconds=1.5), task("fast", "double", number=4), task("next", "double", number=5)]
    finished = list(LocalPool(jobs=2).run(tasks))
    assert [outcome.key for outcome in finished] == ["fast", "next", "slow"]
    assert [outcome.value for outcome in finished] == [8, 10, 1.5]


def test_a_task_that_raises_reports_its_traceback_and_the_worker_lives(jobs: Path) -> None:
    tasks = [task("before", "process"), task("bad", "fail"), task("odd", "unpicklable"), task("after", "process")]
    results = outcomes(LocalPool(jobs=1), tasks)
    error = results["bad"].error
    assert error is not None and error.kind == "raised" and error.message == "ValueError: no such luck"
    assert 'raise ValueError("no such luck")' in error.traceback
    assert results["odd"].error is not None and results["odd"].error.kind == "raised"
    assert results["before"].value == results["after"].value


def test_a_worker_that_dies_costs_its_task_only(jobs: Path) -> None:
    tasks = [task("killed", "killed"), task("left", "leave", code=3), task("good", "double", number=1)]
    results = outcomes(LocalPool(jobs=1), tasks)
    errors = {key: outcome.error for key, outcome in results.items() if outcome.error}
    assert {error.kind for error in errors.values()} == {"worker_died"}
    assert "SIGKILL" in errors["killed"].message and "exit code 3" in errors["left"].message
    assert results["good"].value == 2


def in_groups(groups: str) -> list[Task]:
    return [Task(str(i), "pool_jobs:process", {}, group) for i, group in enumerate(groups)]


@pytest.mark.parametrize(("jobs_", "groups"), [(1, "aabba"), (1, "abab"), (2, "aaabbbc"), (2, "abcab")])
def test_a_process_serves_one_group_and_groups_change_seldom(jobs: Path, jobs_: int, groups: str) -> None:
    with LocalPool(jobs_) as pool:
        results = outcomes(pool, in_groups(groups))
        of_group = {g: {results[str(i)].value for i, own in enumerate(groups) if own == g} for g in set(groups)}
        processes = [pid for pids in of_group.values() for pid in pids]
        assert len(processes) == len(set(processes)), "no process serves two groups"
        if jobs_ == 1:
            assert len(processes) == len(of_group), "each group is served by one process"
        later = outcomes(pool, in_groups("c"))["0"].value
        assert later in of_group.get("c", ()) or later not in processes, "also in the next run"
    assert wait_until(lambda: all(map(has_ended, [*processes, later])))


def test_free_workers_help_with_the_last_group(jobs: Path) -> None:
    tasks = [Task(str(i), "pool_jobs:sleep", {"seconds": 1.0, "folder": str(jobs)}, "only") for i in range(2)]
    outcomes(LocalPool(jobs=2), tasks)
    assert len([path for path in jobs.iterdir() if path.name.isdigit()]) == 2


def test_retiring_outside_a_worker_does_nothing() -> None:
    before = dict(vars(executor))
    executor.retire()
    assert vars(executor) == before


def test_a_worker_that_retires_is_replaced(jobs: Path) -> None:
    with LocalPool(jobs=1) as pool:
        tasks = [task("1", "process"), task("2", "retire"), task("3", "process"), task("4", "process")]
        results = outcomes(pool, tasks)
    assert results["1"].value == results["2"].value
    assert results["3"].value == results["4"].value != results["1"].value


@pytest.mark.parametrize("last", [False, True])
def test_an_activity_over_its_time_limit_ends_the_worker(jobs: Path, last: bool) -> None:
    tasks = [task("busy", "busy", steps=4, limit=0.5, last=last), task("next", "double", number=1)]
    with LocalPool(jobs=1) as pool:
        start = time.monotonic()
        results = outcomes(pool, tasks)
    assert results["next"].value == 2
    outcome = results["busy"]
    if last:
        assert outcome.error is not None and outcome.error.kind == "timed_out"
        assert outcome.error.activity == ("last", 4) and "more than 0.5 seconds" in outcome.error.message
        assert time.monotonic() - start < 10
    else:
        assert outcome.value == "done", "the limit is that of one activity, and none holds between activities"


def test_an_unknown_function_is_an_error_outcome(jobs: Path) -> None:
    error = outcomes(LocalPool(jobs=1), [task("typo", "tripple")])["typo"].error
    assert error is not None and "tripple" in error.message


def test_threads_are_set_before_the_worker_imports_anything(jobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    results = outcomes(LocalPool(jobs=1, threads=3), [task("environment", "environment")])
    assert results["environment"].value == {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(
    ("jobs", "stated", "threads"),
    [(None, None, 1), (1, None, 4), (2, None, 2), (40, None, 1), (1, "7", 4), (1, "3", 3), (2, "3", 2), (1, "0", 4)],
)
def test_workers_share_the_cores_unless_fewer_threads_are_stated(
    monkeypatch: pytest.MonkeyPatch, jobs: int | None, stated: str | None, threads: int
) -> None:
    monkeypatch.setattr(executor, "usable_cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if stated is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
    pool = LocalPool(jobs)
    assert (pool.jobs, pool.threads) == (jobs or 4, threads)


def test_workers_wait_for_the_next_run_and_a_dead_one_is_replaced(jobs: Path) -> None:
    with LocalPool(jobs=1) as pool:
        first = outcomes(pool, [task("1", "process")])["1"].value
        assert outcomes(pool, [task("2", "process")])["2"].value == first
        os.kill(first, signal.SIGKILL)
        time.sleep(0.2)
        assert outcomes(pool, [task("3", "process")])["3"].value != first


def test_closing_the_iterator_ends_the_workers(jobs: Path) -> None:
    tasks = [task("now", "process"), task("later", "sleep", seconds=60, folder=str(jobs))]
    running = LocalPool(jobs=1).run(tasks)
    worker = next(running).value
    running.close()  # type: ignore[attr-defined]
    assert has_ended(worker)


SCRIPT = """
import signal
import sys
from bench.run.executor import LocalPool, Task
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    tasks = [Task(str(i), "pool_jobs:sleep", {"seconds": 60, "folder": sys.argv[1]}) for i in range(2)]
    list(LocalPool(jobs=2).run(tasks))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_or_killed_parent_leaves_no_process_behind(jobs: Path, ending: signal.Signals) -> None:
    folder = jobs / "pids"
    folder.mkdir()
    (jobs / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(jobs), str(ROOT)])}
    parent = subprocess.Popen(
        [sys.executable, str(jobs / "script.py"), str(folder)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert wait_until(lambda: len([path for path in folder.iterdir() if path.read_text()]) == 2, 60)
    servers = {int(path.read_text()) for path in folder.iterdir()}
    if ending == signal.SIGINT:
        os.killpg(parent.pid, ending)  # as a terminal does, to the whole group
    else:
        parent.kill()
    _, errors = parent.communicate(timeout=15)
    assert parent.returncode == -ending
    assert wait_until(lambda: all(has_ended(int(path.name)) for path in folder.iterdir()))
    assert wait_until(lambda: all(map(has_ended, servers))), "nor the process that forks the workers"
    if ending == signal.SIGINT:
        assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize(
    ("available", "jobs", "remark"),
    [
        (20.0, 4, ""),
        (13.0, 4, ""),
        (12.0, 3, "3 workers instead of 4: each needs up to 3.2 GB of memory, and 12.0 GB are available."),
        (4.0, 1, "1 worker instead of 4: each needs up to 3.2 GB of memory, and 4.0 GB are available."),
        (2.0, 1, "1 worker instead of 4: each needs up to 3.2 GB of memory, and 2.0 GB are available."),
    ],
)
def test_there_are_as_many_workers_as_fit_into_memory(available: float, jobs: int, remark: str) -> None:
    assert affordable_jobs(4, 10**8, int(available * 1e9)) == (jobs, remark)


def test_a_base_that_cannot_be_read_is_refused_and_one_that_may_not_learn_is_remarked_on() -> None:
    with pytest.raises(BenchError, match=r"needs 1\.4 GB of memory, and 0\.5 GB are available\. Close other programs"):
        affordable_jobs(4, 10**8, 5 * 10**8)
    remark = "Memory may run out: a worker needs up to 3.2 GB of memory, and 2.0 GB are available."
    assert affordable_jobs(1, 10**8, 2 * 10**9) == (1, remark)
    assert 0 < available_memory() < 2**50


def test_the_least_of_the_limits_around_a_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def limit(group: Path, most: str, used: int) -> None:
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.max").write_text(most)
        (group / "memory.current").write_text(str(used))
        (group / "memory.stat").write_text("anon 5\ninactive_file 100\n")

    limit(tmp_path / "slurm" / "job_7", "max", 500)
    limit(tmp_path / "slurm", "3000", 1100)
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/slurm/job_7\n")
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_GROUP", tmp_path / "own")
    assert available_memory() == 3000 - (1100 - 100), "files that can be dropped are not used memory"
    limit(tmp_path / "slurm" / "job_7", "1500", 500)
    assert available_memory() == 1500 - (500 - 100)


def test_the_last_note_of_a_task_comes_before_its_outcome(jobs: Path) -> None:
    tasks = [task(str(number), "last_words", words=f"word {number}") for number in range(20)]
    with LocalPool(1, 1) as pool:
        messages = list(pool.run(tasks))
    assert [one.content if isinstance(one, Note) else one.key for one in messages] == [
        word for number in range(20) for word in (f"word {number}", str(number))
    ]

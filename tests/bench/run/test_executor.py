"""The pool runs every task once, whatever happens to the workers."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from bench import machine
from bench.conformance import fixtures
from bench.errors import BenchError, Diverged
from bench.harness.integrity import Fingerprint
from bench.machine import available_memory
from bench.run import executor
from bench.run.executor import Executor, Limit, LocalPool, Note, Outcome, Task, TaskError, UnfitMachine, affordable_jobs
from tests.conftest import ROOT
from tests.world import started, wait_until

JOBS = """
import ctypes, os, signal, sys, time
from pathlib import Path

def double(number): return 2 * number
def moves():
    from bench.run.executor import may_move
    return may_move()
def process(): return os.getpid()
def environment(): return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
def fail(): raise ValueError("no such luck")
def raise_(error): raise error
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
def hang(limit):
    from bench.run.executor import limit_time
    limit_time(limit, ("hang", os.getpid()))
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL})
    ctypes.PyDLL(None).sleep(60)  # in C, with the interpreter's lock
def wait_for(file):
    from tests.world import wait_until
    wait_until(Path(file).exists)
def elsewhere(node, log):  # never ends on that node of a Ray cluster, and not before it has begun there
    import ray
    from tests.world import wait_until
    here = ray.get_runtime_context().get_node_id()
    with open(log, "a") as file:
        file.write(here + "\\n")
    wait_until(lambda: node in Path(log).read_text())
    if here == node:
        time.sleep(600)
    return here
def picky(node, log):  # raises on that node of a Ray cluster, or on all
    import ray
    here = ray.get_runtime_context().get_node_id()
    with open(log, "a") as file:
        file.write(here + "\\n")
    if node in here:
        raise BufferError("not here")
    return here
def unfit(log):  # on the first node of a Ray cluster that tries it, as long as there is another one
    import ray
    from bench.run.executor import UnfitMachine, may_move
    with open(log, "a") as file:
        file.write(ray.get_runtime_context().get_node_id() + "\\n")
    if may_move():
        raise UnfitMachine("no room")
    return "done"
def leave_node(log, tries=3, after=0):  # of a Ray cluster
    import ray
    here = ray.get_runtime_context().get_node_id()
    with open(log, "a") as file:
        file.write(here + "\\n")
    if len(Path(log).read_text().splitlines()) <= tries:
        time.sleep(after)
        os._exit(3)
    return here
def sleep(folder):
    Path(folder, str(os.getpid())).write_text(str(os.getppid()))
    time.sleep(600)
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module ``pool_jobs`` that workers can import (they get the sys.path of this process)."""
    (tmp_path / "pool_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def task(key: str, function: str, group: str = "", **payload: object) -> Task:
    return Task(key, f"pool_jobs:{function}", payload, group)


def outcomes(pool: Executor, tasks: list[Task], failing: Collection[str] = ()) -> dict[str, Outcome]:
    """The outcomes by key: exactly one of each task, with an error for those that are to fail and for no other."""
    found = [outcome for outcome in pool.run(tasks) if isinstance(outcome, Outcome)]
    assert sorted(outcome.key for outcome in found) == sorted(task.key for task in tasks)
    errors = {outcome.key: outcome.error for outcome in found if outcome.error}
    assert errors.keys() == set(failing), errors
    return {outcome.key: outcome for outcome in found}


def has_ended(pid: int) -> bool:
    """True if the process has ended, even if its parent, another process, has not yet collected it."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def ended_at_its_limit(pool: Executor, limit: float) -> TaskError:
    """The error of a task that hangs. Its process has ended before it is heard of, and the next task has run."""
    tasks = [task("hangs", "hang", limit=limit), task("next", "double", number=1)]
    values, found = {}, None
    for outcome in pool.run(tasks):
        assert isinstance(outcome, Outcome)
        if outcome.error is not None:
            found = outcome.error
            assert found.activity[0] == "hang" and has_ended(found.activity[1])
        values[outcome.key] = outcome.value
    assert found is not None and values == {"hangs": None, "next": 2}
    return found


def written(folder: Path) -> dict[int, int]:
    """The workers that sleep, and the process that has forked each."""
    return {int(path.name): int(text) for path in folder.iterdir() if (text := path.read_text())}


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
    end = jobs / "end"
    tasks = [task("slow", "wait_for", file=str(end)), *(task(key, "double", number=4) for key in ("fast", "next"))]
    finished = []
    for outcome in LocalPool(jobs=2).run(tasks):
        finished.append((outcome.key, outcome.value))
        if outcome.key == "next":
            end.touch()
    assert finished == [("fast", 8), ("next", 8), ("slow", None)]


def test_a_task_that_raises_reports_its_error_and_the_worker_lives(jobs: Path) -> None:
    tasks = [task("before", "process"), task("bad", "fail"), task("after", "process")]
    results = outcomes(LocalPool(jobs=1), tasks, failing={"bad"})
    error = results["bad"].error
    assert error is not None and error.kind == "raised" and error.message == "ValueError: no such luck"
    assert results["before"].value == results["after"].value


def test_a_worker_that_dies_costs_its_task_only(jobs: Path) -> None:
    tasks = [task("killed", "killed"), task("left", "leave", code=3), task("good", "double", number=1)]
    results = outcomes(LocalPool(jobs=1), tasks, failing={"killed", "left"})
    errors = {key: outcome.error for key, outcome in results.items() if outcome.error}
    assert {error.kind for error in errors.values()} == {"worker_died"}
    assert "SIGKILL" in errors["killed"].message and "exit code 3" in errors["left"].message
    assert results["good"].value == 2


def in_groups(groups: str) -> list[Task]:
    return [task(str(i), "process", group) for i, group in enumerate(groups)]


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
    wait_until(lambda: all(map(has_ended, [*processes, later])))


def test_free_workers_help_with_the_last_group(jobs: Path) -> None:
    results = outcomes(LocalPool(jobs=2), in_groups("aa"))
    assert results["0"].value != results["1"].value


def test_what_a_pool_tells_a_worker_is_not_taken_for_a_change_by_a_method(jobs: Path) -> None:
    base = fixtures.base_model()
    stayed, _ = executor.perform(task("a", "moves"), 1, may_move=False)
    before = Fingerprint(base)
    moved, _ = executor.perform(task("b", "moves"), 1, may_move=True)
    assert (stayed.value, moved.value) == (False, True)
    assert before.difference(base) is None


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


def test_an_activity_over_its_time_limit_ends_the_worker(jobs: Path) -> None:
    error = ended_at_its_limit(LocalPool(jobs=1), 0.5)
    assert (error.kind, error.message) == ("timed_out", "It ran for more than 0.5 seconds.")


def test_a_time_limit_is_that_of_one_activity_and_none_holds_between_activities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(executor.time, "monotonic", lambda: now)
    worker = executor._Worker.__new__(executor._Worker)  # without a process
    worker.accept(task("1", "process"))
    left = [worker.seconds_left()]
    for now, limit in ((10.0, 5.0), (14.0, 5.0), (18.0, None), (30.0, 2.0)):
        worker.hear(Limit(limit, "step"))
        now += 1
        left.append(worker.seconds_left())
    assert left == [float("inf"), 4.0, 4.0, float("inf"), 1.0]
    now = 40.0
    assert worker.seconds_left() == 0.0
    worker.accept(task("2", "process"))
    assert worker.seconds_left() == float("inf"), "the limit ends with the task"


def test_an_unknown_function_is_an_error_outcome(jobs: Path) -> None:
    error = outcomes(LocalPool(jobs=1), [task("typo", "tripple")], failing={"typo"})["typo"].error
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
        (idle,) = pool._idle
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not idle.process.is_alive())
        assert outcomes(pool, [task("3", "process")])["3"].value != first


def test_closing_the_iterator_ends_the_workers(jobs: Path) -> None:
    folder = jobs / "pids"
    folder.mkdir()
    running = LocalPool(jobs=2).run([task("later", "sleep", folder=str(folder)), task("now", "process")])
    worker = next(running).value
    wait_until(lambda: written(folder))
    running.close()  # type: ignore[attr-defined]
    assert has_ended(worker), "the one that had a value"
    assert all(map(has_ended, written(folder))), "the one with a task"


SCRIPT = """
import sys
from bench.run.executor import LocalPool, Task
if __name__ == "__main__":
    tasks = [Task(str(i), "pool_jobs:sleep", {"folder": sys.argv[1]}) for i in range(2)]
    list(LocalPool(jobs=2).run(tasks))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_or_killed_parent_leaves_no_process_behind(jobs: Path, ending: signal.Signals) -> None:
    folder = jobs / "pids"
    folder.mkdir()
    (jobs / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(jobs), str(ROOT)])}
    command = [sys.executable, str(jobs / "script.py"), str(folder)]
    with started(command, env=environment, stderr=subprocess.PIPE) as parent:
        wait_until(lambda: len(written(folder)) == 2)
        if ending == signal.SIGINT:
            os.killpg(parent.pid, ending)  # as a terminal does, to the whole group
        else:
            parent.kill()
        _, errors = parent.communicate(timeout=60)
        assert parent.returncode == -ending
        wait_until(lambda: all(map(has_ended, {*written(folder), *written(folder).values()})))
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
    first_version = tmp_path / "memory" / "elsewhere"
    first_version.mkdir(parents=True)
    (first_version / "memory.limit_in_bytes").write_text("900")
    (first_version / "memory.usage_in_bytes").write_text("300")
    (first_version / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 200\n")
    assert available_memory() == 900 - (300 - 200)


def test_a_quota_of_a_container_limits_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = machine.usable_cores()
    (tmp_path / "pod").mkdir()
    (tmp_path / "own").write_text("0::/pod\n")
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_GROUP", tmp_path / "own")
    for quota, expected in (("max 100000", cores), ("150000 100000", 1), ("50000 100000", 1), ("900000 1000", cores)):
        (tmp_path / "pod" / "cpu.max").write_text(f"{quota}\n")
        assert machine.usable_cores() == expected


def test_errors_are_told_apart_by_where_they_would_occur_again(jobs: Path) -> None:
    errors = {
        "here": (FileNotFoundError("gone"), "io", "FileNotFoundError: gone"),
        "on this machine": (UnfitMachine("no room"), "io", "no room"),
        "in all tasks": (OSError(errno.ENOSPC, "full"), "raised", "OSError: [Errno 28] full"),
        "anywhere": (Diverged("NaN"), "failed", "Diverged: NaN"),
    }
    tasks = [task(key, "raise_", error=error) for key, (error, *_) in errors.items()]
    with LocalPool(1, 1) as pool:
        found = outcomes(pool, tasks, failing=errors)
    told = {key: (outcome.error.kind, outcome.error.message) for key, outcome in found.items() if outcome.error}
    assert told == {key: (kind, message) for key, (_, kind, message) in errors.items()}


def test_a_worker_that_lacks_a_file_or_memory_is_replaced(jobs: Path) -> None:
    tasks = [task("first", "process"), task("lost", "raise_", error=OSError("stale")), task("second", "process")]
    tasks += [task("full", "raise_", error=UnfitMachine("no room")), task("third", "process")]
    with LocalPool(1, 1) as pool:
        found = outcomes(pool, tasks, failing=["lost", "full"])
    assert len({found[key].value for key in ("first", "second", "third")}) == 3


def test_the_last_note_of_a_task_comes_before_its_outcome(jobs: Path) -> None:
    tasks = [task(str(number), "last_words", words=f"word {number}") for number in range(20)]
    with LocalPool(1, 1) as pool:
        messages = list(pool.run(tasks))
    assert [one.content if isinstance(one, Note) else one.key for one in messages] == [
        word for number in range(20) for word in (f"word {number}", str(number))
    ]

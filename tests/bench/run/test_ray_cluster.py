"""A Ray cluster runs every task once, as the local pool does, also when workers or whole nodes are lost."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError
from bench.records.store import read_board, read_run
from bench.run import ray_cluster
from bench.run.executor import Outcome, Task
from bench.run.experiment import load
from bench.run.ray_cluster import Parcel, RayCluster, pack, renamed, unpacked
from bench.run.runner import Runner
from tests.bench.run.test_claims import PLUGIN
from tests.bench.run.test_executor import JOBS
from tests.conftest import ROOT
from tests.world import Inline, make_dataset, make_experiment

ray = pytest.importorskip("ray", reason="needs Ray (the extra [cluster])")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of two nodes with one core each, both on this machine, whose workers can import ``pool_jobs``."""
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("jobs")
    (folder / "pool_jobs.py").write_text(JOBS)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def pool(nodes: Any) -> Iterator[RayCluster]:
    with RayCluster(nodes.address) as cluster:
        yield cluster


def task(key: str, function: str, group: str = "", **payload: object) -> Task:
    return Task(key, f"pool_jobs:{function}", payload, group)


def outcomes(pool: RayCluster, tasks: list[Task]) -> dict[str, Outcome]:
    found = [outcome for outcome in pool.run(tasks) if isinstance(outcome, Outcome)]
    assert sorted(outcome.key for outcome in found) == sorted(task.key for task in tasks)  # each exactly once
    return {outcome.key: outcome for outcome in found}


def test_tasks_end_as_in_the_local_pool(pool: RayCluster) -> None:
    assert (pool.jobs, pool.threads) == (2, 1)
    tasks = [task(f"double {i}", "double", "a", number=i) for i in range(4)]
    tasks += [task("fails", "fail", "a"), task("environment", "environment", "a")]
    tasks += [task("other", "process", "b"), task("same", "process", "a"), task("retires", "retire", "a")]
    found = outcomes(pool, tasks)
    assert [found[f"double {i}"].value for i in range(4)] == [0, 2, 4, 6]
    error = found["fails"].error
    assert error is not None and (error.kind, error.message) == ("raised", "ValueError: no such luck")
    assert found["environment"].value == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    assert found["other"].value not in (found["same"].value, found["retires"].value)


def test_a_task_whose_worker_dies_is_tried_again_and_then_given_up(pool: RayCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    found = outcomes(pool, [task("dies", "leave", code=3, log=str(log)), task("lives", "double", number=1)])
    assert len(log.read_text().splitlines()) == 3
    error = found["dies"].error
    assert error is not None and error.kind == "worker_died" and error.message.startswith("The Ray worker was lost")
    assert found["lives"].value == 2


def test_a_worker_that_exceeds_its_limit_is_ended(pool: RayCluster) -> None:
    started = time.monotonic()
    error = outcomes(pool, [task("hangs", "busy", steps=1, limit=1.0, last=True)])["hangs"].error
    assert error is not None and (error.kind, error.activity) == ("timed_out", ("last", 1))
    assert time.monotonic() - started < 40


def test_a_lost_node_costs_time_and_no_task(nodes: Any) -> None:
    extra = nodes.add_node(num_cpus=2)
    with RayCluster(nodes.address) as pool:
        assert pool.jobs == 4
        thread = threading.Timer(3, lambda: nodes.remove_node(extra, allow_graceful=False))
        thread.start()
        found = outcomes(pool, [task(str(i), "sleep", str(i % 4), seconds=1.5) for i in range(8)])
        thread.join()
    assert [found[str(i)].value for i in range(8)] == [1.5] * 8


def test_an_experiment_gives_the_same_records_as_in_this_process(nodes: Any, llama: Path, tmp_path: Path) -> None:
    methods = ["closed_book", {"name": "uniform", "space": {"learning_rate": [1e-3, 1e-2]}}]
    experiment = make_experiment(make_dataset(tmp_path / "keepers"), llama, methods)
    alone = Runner(experiment, tmp_path / "alone").run(Inline())
    with RayCluster(nodes.address) as pool:
        together = Runner(experiment, tmp_path / "together").run(pool)
    assert [cell.id for cell in alone.cells] == [cell.id for cell in together.cells]
    for cell in alone.cells:
        one, other = (read_run(tmp_path / name / cell.id) for name in ("alone", "together"))
        assert one.summary == other.summary
        assert other.provenance["command"] == one.provenance["command"], "that of the run, not of the worker"


def test_commands_with_and_without_ray_share_a_folder(nodes: Any, llama: Path, tmp_path: Path) -> None:
    log, plugin, file = tmp_path / "log", tmp_path / "logged.py", tmp_path / "shared.yaml"
    plugin.write_text(PLUGIN.format(log=str(log)))
    streams = "{split: test, documents: 2, count: 8}"
    data = make_dataset(tmp_path / "keepers")
    file.write_text(f"dataset: {data}\nmodel: {llama}\nstreams: {streams}\nmethods: [closed_book, logged]\n")
    command = [sys.executable, "run_bench.py", "run", str(file), "--plugin", str(plugin), "--jobs", "1"]
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    on_ray = ["--executor", "ray", "--ray-address", nodes.address]
    runs = [subprocess.Popen([*command, *folders, *more], cwd=ROOT, stdout=subprocess.DEVNULL) for more in ([], on_ray)]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    assert len(log.read_text().splitlines()) == 8, "each cell once"
    alone = Runner(load(str(file)), tmp_path / "alone", [str(plugin)]).run(Inline())
    assert read_board(tmp_path / "runs").runs == [cell.id for cell in alone.cells]
    for cell in alone.cells:
        one, other = (read_run(tmp_path / name / cell.id).summary for name in ("runs", "alone"))
        assert one is not None and one == other


def test_files_reach_a_node_that_lacks_them_once(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAB_CACHE", str(tmp_path / "cache"))
    folder, file = tmp_path / "base", tmp_path / "data.jsonl"
    (folder / "deep").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "deep" / "weights").write_bytes(bytes(range(256)))
    file.write_text("text")
    with RayCluster(nodes.address) as pool:
        parcels = pool._shipped(Task("t", "m:f", {}, files=[str(folder), str(file)]))
        assert unpacked(parcels[0]) == folder, "it is here"
        for path in (folder, file):
            path.rename(path.with_suffix(".moved"))
        base, data = map(unpacked, parcels)
        assert (base / "deep" / "weights").read_bytes() == bytes(range(256)) and data.read_text() == "text"
        assert data.name == "data.jsonl"
        lost = [Parcel(parcel.path, parcel.content, None) for parcel in parcels]
        assert list(map(unpacked, lost)) == [base, data], "they are not fetched again"
        renamed_base = unpacked(parcels[0]._replace(path=str(tmp_path / "base-2")))
        assert renamed_base.name == "base-2" and (renamed_base / "config.json").is_file()
    payload = {"cell": {"model": str(folder), "files": (str(file), "other")}, "number": 3}
    names = {str(folder): str(base), str(file): str(data)}
    assert renamed(payload, names) == {"cell": {"model": str(base), "files": [str(data), "other"]}, "number": 3}


def test_what_is_packed_are_the_bytes_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"\x00\x01")
    assert {name: content.tobytes() for name, content in pack(tmp_path).items()} == {"a/b": b"\x00\x01"}
    assert {name: content.tobytes() for name, content in pack(tmp_path / "a" / "b").items()} == {"": b"\x00\x01"}


def test_what_does_not_fit_or_is_not_there_is_refused(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchError, match="A worker with 64 cores and 0 GPUs does not fit on the Ray cluster"):
        RayCluster(nodes.address, threads=64)
    ray.shutdown()
    with pytest.raises(BenchError, match=r"There is no Ray cluster at localhost:1\. Start one with"):
        ray_cluster.start("localhost:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BenchError, match=r"pip install '.\[cluster\]'"):
        ray_cluster.start(None)

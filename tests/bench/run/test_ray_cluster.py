"""A Ray cluster runs every task once, as the local pool does, also when workers or whole nodes are lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError, Diverged
from bench.records.store import read_board, read_run
from bench.run import claims, executor, ray_cluster
from bench.run.executor import Task
from bench.run.ray_cluster import Parcel, RayCluster, pack, renamed, unpacked
from bench.run.runner import Runner
from tests.bench.run.test_claims import PLUGIN, shared, together
from tests.bench.run.test_executor import JOBS, ended_at_its_limit, outcomes, task
from tests.world import Inline, make_dataset, make_experiment, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of two nodes of one core and 2 GB, both on this machine, whose workers can import ``pool_jobs``."""
    import ray
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("jobs")
    (folder / "pool_jobs.py").write_text(JOBS)
    node = {"num_cpus": 1, "memory": 2 * 10**9}
    settings = {"health_check_period_ms": 500, "health_check_failure_threshold": 3, "memory_monitor_refresh_ms": 0}
    head = {**node, "include_dashboard": False, "_system_config": settings}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(**node)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def pool(nodes: Any) -> Iterator[RayCluster]:
    with RayCluster(nodes.address) as cluster:
        yield cluster


def test_tasks_end_as_in_the_local_pool(pool: RayCluster) -> None:
    assert (pool.jobs, pool.threads) == (2, 1)
    tasks = [task(f"double {i}", "double", "a", number=i) for i in range(4)]
    tasks += [task("fails", "fail", "a"), task("environment", "environment", "a")]
    tasks += [task("other", "process", "b"), task("same", "process", "a"), task("retires", "retire", "a")]
    found = outcomes(pool, tasks, failing={"fails"})
    assert [found[f"double {i}"].value for i in range(4)] == [0, 2, 4, 6]
    error = found["fails"].error
    assert error is not None and (error.kind, error.message) == ("raised", "ValueError: no such luck")
    assert found["environment"].value == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    assert found["other"].value not in (found["same"].value, found["retires"].value)


def test_idle_workers_wait_for_tasks_of_their_group(pool: RayCluster) -> None:
    first, second, other, last = (
        outcomes(pool, [task("process", "process", group)])["process"].value for group in ("a", "a", "b", "a")
    )
    assert first == second and len({first, other, last}) == 3


def test_a_task_whose_worker_dies_is_tried_again_and_then_given_up(pool: RayCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    tasks = [task("dies", "leave_node", log=str(log)), task("lives", "double", number=1)]
    found = outcomes(pool, tasks, failing={"dies"})
    first, second, _ = log.read_text().splitlines()
    assert first != second, "it waits for room on the other node"
    error = found["dies"].error
    assert error is not None and error.kind == "worker_died" and error.message.startswith("The Ray worker was lost")
    assert found["lives"].value == 2


def test_a_task_that_one_node_cannot_run_is_tried_on_the_others(pool: RayCluster, nodes: Any, tmp_path: Path) -> None:
    first = nodes.head_node.node_id
    found = outcomes(pool, [task("picky", "picky", node=first, log=str(tmp_path / "log"))])
    assert found["picky"].value != first
    tried = (tmp_path / "log").read_text().split()
    assert len(set(tried)) == len(tried) <= 2 and tried[-1] == found["picky"].value
    found = outcomes(pool, [task("everywhere", "picky", node="", log=str(tmp_path / "all"))], failing={"everywhere"})
    assert found["everywhere"].error.kind == "raised"  # type: ignore[union-attr]
    assert len(set((tmp_path / "all").read_text().split())) == 2, "both nodes tried it, once each"


def test_what_does_not_fit_on_one_node_is_tried_on_another(pool: RayCluster, tmp_path: Path) -> None:
    found = outcomes(pool, [task("large", "unfit", log=str(tmp_path / "log"))])
    assert found["large"].value == "done", "the last one may not pass it on"
    assert len(set((tmp_path / "log").read_text().split())) == 2


def test_an_error_that_would_occur_anywhere_is_not_tried_again(pool: RayCluster) -> None:
    error = outcomes(pool, [task("diverges", "raise_", error=Diverged("NaN"))], failing={"diverges"})["diverges"].error
    assert error is not None and error.kind == "failed" and "diverges" not in pool.lost


def test_files_that_a_node_cannot_take_are_an_error_of_that_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(parcel: Parcel) -> Path:
        raise OSError("no room for it")

    monkeypatch.setattr(ray_cluster, "unpacked", full)
    monkeypatch.setattr(executor, "_pipe", None)
    monkeypatch.setattr(executor, "_retiring", False)
    outcome, _ = ray_cluster._Worker("w", None, 1, sys.argv).work(
        Task("t", "m:f", {}), [Parcel("p", "", None)], False, ("", "")
    )
    assert outcome.error is not None and outcome.error.kind == "io" and "no room for it" in outcome.error.message


def test_a_worker_that_exceeds_its_limit_is_ended(pool: RayCluster) -> None:
    pool.ray.kill(pool._mail, no_restart=False)  # it comes back
    assert ended_at_its_limit(pool, 1.0).kind == "timed_out"


def test_a_lost_node_costs_time_and_no_task(nodes: Any, tmp_path: Path) -> None:
    log, extra = tmp_path / "log", nodes.add_node(num_cpus=2, memory=3 * 10**9)
    log.touch()
    with RayCluster(nodes.address, memory=2 * 10**9) as pool:
        assert pool.jobs == 3, "the third node has cores for two, but memory for one"
    with RayCluster(nodes.address, memory=10**12) as pool:
        assert (pool.jobs, pool.memory) == (1, 3 * 10**9), "one worker may do with what there is"
    large = nodes.add_node(num_cpus=0, memory=9 * 10**9)
    with RayCluster(nodes.address, memory=10**12) as pool:
        assert pool.memory == 3 * 10**9, "a node without cores does not count"
    nodes.remove_node(large)

    def lose() -> None:
        try:
            wait_until(lambda: extra.node_id in log.read_text(), 60)
        finally:  # else its tasks are waited for
            nodes.remove_node(extra, allow_graceful=False)

    tasks = [task(str(i), "elsewhere", str(i % 4), node=extra.node_id, log=str(log)) for i in range(8)]
    with RayCluster(nodes.address) as pool, ThreadPoolExecutor(1) as thread:
        assert pool.jobs == 4
        losing = thread.submit(lose)
        found = outcomes(pool, tasks)
        losing.result()
    tries = log.read_text().splitlines()
    lost = tries.count(extra.node_id)
    assert lost > 0 and len(tries) == 8 + lost, "each task of the lost node was tried again"
    assert {outcome.value for outcome in found.values()} == {*tries} - {extra.node_id}


def test_a_task_waits_for_another_node_as_long_as_there_is_one(nodes: Any, tmp_path: Path) -> None:
    extra = {node.node_id: node for node in (nodes.add_node(num_cpus=1, memory=3 * 10**9) for _ in range(2))}
    stays, leaves = (tmp_path / name for name in ("stays", "leaves"))

    def lose(pool: RayCluster) -> None:
        """Remove the node of the worker that stays, when the other task waits for room there."""
        try:
            wait_until(lambda: stays.exists() and "leaves" in pool.lost, 60)
            wait_until(lambda: any(state.get("State") == "PENDING_CREATION" for state in actors().values()), 60)
        finally:  # else it is waited for
            kept = stays.read_text().split()[0] if stays.exists() else next(iter(extra))
            nodes.remove_node(extra.pop(kept), allow_graceful=False)

    with RayCluster(nodes.address, memory=3 * 10**9) as pool, ThreadPoolExecutor(1) as thread:
        actors = pool.ray._private.state.actors
        losing = thread.submit(lose, pool)
        tasks = [task("stays", "leave_node", log=str(stays), tries=1, after=600)]
        tasks += [task("leaves", "leave_node", log=str(leaves), tries=1)]
        found = outcomes(pool, tasks)
        losing.result()
    (left,) = extra
    assert (found["stays"].value, found["leaves"].value) == (left, left)
    assert leaves.read_text().split() == [left, left], "the second never began"
    nodes.remove_node(extra[left])


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
    assert together([*command, *folders], [*command, *folders, *on_ray]) == [0, 0]
    assert shared(log) == (8, 2)
    runs = read_board(tmp_path / "runs").runs
    assert len(runs) == 16 and {read_run(tmp_path / "runs" / run).status for run in runs} == {"complete"}
    assert claims.Folder(tmp_path / "runs").running() == []


def test_files_reach_a_node_that_lacks_them_once(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAB_CACHE", str(tmp_path / "cache"))
    folder, file = tmp_path / "base", tmp_path / "data.jsonl"
    (folder / "deep").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "deep" / "weights").write_bytes(bytes(range(256)))
    file.write_text("text")
    with RayCluster(nodes.address) as pool:
        parcels = pool.shipped(Task("t", "m:f", {}, files=[str(folder), str(file)]))
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
    import ray

    with pytest.raises(
        BenchError, match=r"A worker with 2 cores, 0 GPUs and .* fits on no node of the Ray cluster: the"
    ):
        RayCluster(nodes.address, threads=2)  # two nodes have two cores, but none has both
    assert not ray.is_initialized()
    ray.init(nodes.address)
    with pytest.raises(BenchError, match="is connected to a Ray cluster already"):
        RayCluster(nodes.address)
    with RayCluster():
        pass
    assert ray.is_initialized(), "what was there before stays"
    ray.shutdown()
    with pytest.raises(BenchError, match=r"There is no Ray cluster at localhost:1\. Start one with"):
        ray_cluster.start("localhost:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BenchError, match=r"pip install ray, or use --executor local"):
        ray_cluster.start(None)

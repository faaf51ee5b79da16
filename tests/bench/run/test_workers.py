from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.machine import free_gpu_memory
from bench.run.executor import (
    GPU_BYTES,
    LEARNING_BYTES,
    READING_BYTES,
    LocalPool,
    Outcome,
    Task,
    gpu_places,
    worker_bytes,
)
from bench.run.experiment import Experiment, load
from bench.run.workers import Plan, Workers
from tests.world import wait_until

GIB = 2**30


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nvidia-smi shows two GPUs, with 10 and 4 GiB free."""
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "0, GPU-aa, 10240"\necho "1, GPU-bb, 4096"\necho "2, GPU-cc, [N/A]"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def on_gpu() -> Experiment:
    experiment = load("default")
    experiment.device = "cuda"
    return experiment


def test_the_free_memory_is_that_of_the_visible_gpus(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_gpu_memory() == {"0": 10 * GIB, "1": 4 * GIB}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb")
    assert free_gpu_memory() == {"GPU-bb": 4 * GIB}


def test_without_nvidia_smi_no_gpu_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert free_gpu_memory() == {}


def test_as_many_workers_share_a_gpu_as_fit_into_its_memory() -> None:
    weights = (GIB - GPU_BYTES) // LEARNING_BYTES  # a worker needs 1 GiB
    reads = GPU_BYTES + READING_BYTES * weights
    free = {"0": 3 * GIB, "1": GIB, "2": reads, "3": reads - 1}
    assert gpu_places(weights, free) == ["0", "1", "2", "0", "0"], "none on one that cannot even read the base"
    assert gpu_places(weights, {"0": 0}) == ["0"], "unless there is no other: a method may need less"
    assert gpu_places(weights, {}) == []


def test_a_worker_has_as_few_gpus_as_the_base_fits_into_or_as_many_as_are_stated() -> None:
    weights = (10 * GIB - 2 * GPU_BYTES) // READING_BYTES  # two with 5 GiB each can read it
    free = {"0": 5 * GIB, "1": 4 * GIB, "2": 5 * GIB, "3": 5 * GIB, "4": 6 * GIB}
    assert gpu_places(weights, free) == ["0,2", "3,4"], "the one that has no room for its half has none"
    assert gpu_places(weights, free, 1) == ["0", "1", "2", "3", "4"], "as stated"
    assert gpu_places(weights, free, 3) == ["0,1,2"]
    assert gpu_places(GIB // READING_BYTES, free, 2) == ["0,1", "2,3"], "one worker on them, whatever else fits"
    assert gpu_places(4 * weights, free) == ["0,1,2,3,4"], "not enough: all that there are"
    assert gpu_places(weights, {}, 2) == []


def test_workers_that_have_several_gpus(two_gpus: None, on_gpu: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.run.workers.usable_cores", lambda: 8)
    small = GIB // LEARNING_BYTES
    assert Workers(gpus=2).plan(on_gpu, small) == Plan(1, "", ("0,1",))
    with pytest.raises(BenchError, match="--gpus-per-worker is 3, and nvidia-smi shows 2 GPUs here"):
        Workers(gpus=3).plan(on_gpu, small)
    with pytest.raises(BenchError, match="--gpus-per-worker needs --device cuda"):
        Workers(gpus=2).plan(load("default"), small)
    weights = int(1.2 * GIB)
    large = Workers().plan(on_gpu, weights)
    assert large.gpus == ("0,1",) and large.remark == (
        "The base is spread over 2 GPUs in each worker. Memory may run out: to fine-tune the base, a worker needs up "
        "to 37.3 GB of 2 GPUs' memory, and 15.0 GB are free."
    )
    on_gpu.offload = True
    assert "A part of the base stays in main memory" in Workers().plan(on_gpu, 2 * GIB).remark
    monkeypatch.setattr("bench.run.workers.available_memory", lambda: 5 * GIB)
    alone = Workers(jobs=2, gpus=1).plan(
        on_gpu, 2 * GIB
    )  # each lacks 10.6 and 16.6 GB of 20.6, two fifths of it weights
    assert alone.jobs == 1 and alone.remark.startswith("1 worker instead of 2: no more fit onto the GPUs. A part of")


@pytest.mark.parametrize(("workers", "share"), [(Workers("ray"), 0.5), (Workers("ray", gpus=2), 2)])
def test_a_worker_of_a_cluster_takes_its_gpus_or_a_share_of_one(
    workers: Workers, share: float, on_gpu: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr("bench.run.ray_cluster.RayCluster", lambda *settings: taken.append(settings[3]))
    monkeypatch.setattr("bench.run.workers.usable_cores", lambda: 8)
    monkeypatch.setattr("bench.run.workers.free_gpu_memory", lambda: {"0": 10 * GIB, "1": 4 * GIB})
    plan = workers.plan(on_gpu, (4 * GIB - GPU_BYTES) // LEARNING_BYTES)
    workers.open(on_gpu, plan)
    assert taken == [share]


def test_each_gpu_has_a_worker_on_however_few_cores(
    two_gpus: None, on_gpu: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.run.workers.usable_cores", lambda: 1)
    weights = (4 * GIB - GPU_BYTES) // LEARNING_BYTES
    assert Workers().plan(on_gpu, weights) == Plan(2, "", ("0", "1"))
    assert Workers(jobs=1).plan(on_gpu, weights) == Plan(1, "", ("0",))


def test_workers_with_stated_threads_fill_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.run.workers.usable_cores", lambda: 16)
    experiment = load("default")
    assert [Workers(threads=threads).plan(experiment, 10).jobs for threads in (None, 1, 8, 32)] == [16, 16, 2, 1]
    assert Workers(jobs=3, threads=8).plan(experiment, 10).jobs == 3


def test_a_setting_of_slurm_needs_a_value(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="--slurm takes KEY=VALUE, as in partition=gpu, got 'partition' without"):
        Workers("slurm", shards=4, slurm=("partition",)).submit([], tmp_path)


def test_a_shard_is_not_divided_again() -> None:
    with pytest.raises(BenchError, match="leave out --shard"):
        Workers("slurm", shards=4, shard=(1, 2))


@pytest.mark.parametrize(
    ("jobs", "plan"),
    [
        (None, Plan(3, "", ("0", "1", "0"))),
        (1, Plan(1, "", ("0",))),
        (4, Plan(3, "3 workers instead of 4: no more fit onto the GPUs.", ("0", "1", "0"))),
    ],
)
def test_workers_share_the_gpus(
    jobs: int | None, plan: Plan, two_gpus: None, on_gpu: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.run.workers.usable_cores", lambda: 8)
    assert Workers(jobs=jobs).plan(on_gpu, (4 * GIB - GPU_BYTES) // LEARNING_BYTES) == plan


def test_the_gpus_of_this_machine_do_not_limit_the_workers_of_a_cluster(two_gpus: None, on_gpu: Experiment) -> None:
    weights = (4 * GIB - GPU_BYTES) // LEARNING_BYTES
    assert Workers("ray", 16).plan(on_gpu, weights) == Plan(16, "", ("0", "1", "0")), "at most two share a GPU"


def test_a_base_that_no_gpu_has_the_memory_for_is_remarked_on(two_gpus: None, on_gpu: Experiment) -> None:
    remarks = [Workers(jobs=1).plan(on_gpu, int(share * GIB)).remark for share in (0, 0.5, 2)]
    assert remarks[0] == ""
    assert remarks[1].startswith("Memory may run out: to fine-tune the base, a worker needs up to 15.7 GB of a GPU's")
    assert "Memory may run out: to read the base, a worker needs up to 22.7 GB of 2 GPUs' memory" in remarks[2]


def test_the_cores_of_this_machine_do_not_count_for_a_cluster() -> None:
    on_cpu, (_, memory) = load("default"), worker_bytes(10**6)
    on_gpu = on_cpu.model_copy(update={"device": "cuda"})
    assert Workers("ray").plan(on_cpu, 10**6) == Plan(1, memory=memory), "its room is not known"
    assert Workers("ray", 500).plan(on_cpu, 10**6) == Plan(500, memory=memory)
    assert [Workers("slurm", 2, shards=16).plan(on, 10**6).jobs for on in (on_cpu, on_gpu)] == [32, 32]


def test_a_gpu_of_unknown_memory_has_one_worker(
    on_gpu: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Workers().plan(on_gpu, 10**8) == Plan(1)


def test_one_worker_is_no_plural(on_gpu: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.run.workers.free_gpu_memory", lambda: {"0": GIB})
    assert Workers(jobs=2).plan(on_gpu, 10**8).remark.startswith("1 worker instead of 2:")


def seen_gpu(seen: str, dies: bool) -> str:
    """The GPU that this process sees, once there are two in the folder of those seen; or it dies at once."""
    if dies:
        os._exit(3)
    gpu = os.environ["CUDA_VISIBLE_DEVICES"]
    Path(seen, gpu).touch()
    wait_until(lambda: len(os.listdir(seen)) == 2, 300)
    return gpu


def test_each_worker_sees_its_own_gpu_which_another_one_has_after_it(tmp_path: Path) -> None:
    payloads = [{"seen": str(tmp_path), "dies": i == 0} for i in range(3)]
    tasks = [Task(str(i), f"{__name__}:seen_gpu", payload, group=str(i)) for i, payload in enumerate(payloads)]
    with LocalPool(2, 1, ["0", "1"]) as pool:
        outcomes = [outcome for outcome in pool.run(tasks) if isinstance(outcome, Outcome)]
    assert [outcome.key for outcome in outcomes if outcome.error] == ["0"]
    assert sorted(outcome.value for outcome in outcomes if not outcome.error) == ["0", "1"]

"""A cell of a faulty method fails with a reason, and the cells of other methods keep their numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.records.schema import RunRecord
from bench.records.store import read_answers, read_documents, read_run
from bench.run.cell import failure_of, run
from bench.run.executor import LocalPool, UnfitMachine
from bench.run.runner import Runner
from tests.conftest import ROOT
from tests.world import Inline, make_experiment

PLUGINS = ROOT / "tests" / "cases" / "plugins"
CHANGED = "The method changed what other cells use: "
REASONS = {
    "d2_metrics": f"{CHANGED}bench.answering.metrics.score was replaced.",
    "d3_answer": f"{CHANGED}bench.harness.loop.answer_and_nll was replaced.",
    "d6_tokens": f"{CHANGED}lm.encode was added.",
    "n1_add_tokens": CHANGED,
    "n2_window": f"{CHANGED}the model's configuration: max_position_embeddings changed from 96 to 64.",
    "n4_attr_on_module": f"{CHANGED}lm.model.forward was added.",
    "patches_on_import": f"{CHANGED}bench.answering.metrics.score was replaced.",
    "patches_torch": f"{CHANGED}torch.nn.functional.cross_entropy was replaced.",
    "changes_folder": f"{CHANGED}the working folder changed from ",
    "e1_condition_writes": "The weights lm_head.weight changed while questions were answered.",
    "e2_answering_leaks": "The weights lm_head.weight changed while questions were answered.",
    "m5_osexit": "The worker process ended with exit code 0.",
}
"""The faulty methods, and how the messages in the records of their cells begin."""
STREAMS = {"split": "test", "documents": 2, "count": 1}


def runner(
    keepers: Path,
    llama: Path,
    runs: Path,
    *methods: str,
    hook_timeout: float | None = None,
    deterministic: bool = False,
) -> Runner:
    plugins = [str(path) for name in methods if (path := PLUGINS / f"{name}.py").is_file()]
    experiment = make_experiment(keepers, llama, methods, streams=STREAMS, tuning=None, anchor={})
    experiment.deterministic = deterministic
    return Runner(experiment, runs, plugins, hook_timeout=hook_timeout)


def numbers(runs: Path, record: RunRecord) -> Any:
    """All numbers of a record but measurements of time."""
    documents = [event.model_dump(exclude={"observe_seconds"}) for event in read_documents(runs, record.id)]
    return record.summary, documents, read_answers(runs, record.id)


@pytest.fixture(scope="module")
def faulty(keepers: Path, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, RunRecord]]:
    """Records, by method, of a run of all faulty methods in which closed book comes last, on one worker."""
    runs = tmp_path_factory.mktemp("faulty")
    with LocalPool(1, threads=1) as pool:
        result = runner(keepers, llama, runs, *REASONS, "writes_and_restores", "closed_book").run(pool)
    assert len(result.failures) == len(REASONS)
    return runs, {cell.spec.method: read_run(runs / cell.id) for cell in result.cells}


@pytest.mark.parametrize("name", REASONS)
def test_a_faulty_method_fails_with_a_reason(faulty: tuple[Path, dict[str, RunRecord]], name: str) -> None:
    record = faulty[1][name]
    assert record.status == "failed" and record.summary is None
    assert record.failure is not None
    assert record.failure.kind == ("worker_died" if name == "m5_osexit" else "failed")
    assert record.failure.message.startswith(REASONS[name])


def test_other_methods_of_the_run_keep_their_numbers(
    faulty: tuple[Path, dict[str, RunRecord]], keepers: Path, llama: Path, tmp_path: Path
) -> None:
    runs, records = faulty
    assert records["writes_and_restores"].status == "complete"
    (cell,) = runner(keepers, llama, tmp_path, "closed_book").run(Inline()).cells
    assert numbers(runs, records["closed_book"]) == numbers(tmp_path, read_run(tmp_path / cell.id))


def test_a_hook_that_hangs_ends_after_its_time(keepers: Path, llama: Path, tmp_path: Path) -> None:
    with LocalPool(1, threads=1) as pool:
        result = runner(keepers, llama, tmp_path, "hangs", "closed_book", hook_timeout=5).run(pool)
    records = [read_run(tmp_path / cell.id) for cell in result.cells]
    assert [record.status for record in records] == ["failed", "complete"]
    failure = records[0].failure
    assert failure is not None and (failure.kind, failure.position) == ("failed", 1)
    assert failure.message == (
        "The time limit (--hook-timeout) ended observe at document 2 of the stream. It ran for more than 5 seconds."
    )
    assert "hangs on test-2-0 (stream, document 2): The time limit" in result.failures[0]


def test_a_time_limit_does_not_enter_the_key_of_a_cell(keepers: Path, llama: Path, tmp_path: Path) -> None:
    plans = [runner(keepers, llama, tmp_path, "closed_book", hook_timeout=limit) for limit in (None, 60.0)]
    keys = [[cell.key for cell in plan.planner.cells(plan.experiment.methods[0], {})] for plan in plans]
    assert keys[0] == keys[1]


def test_only_deterministic_algorithms_are_used_if_asked_for(keepers: Path, llama: Path, tmp_path: Path) -> None:
    found = []
    for only in (False, True):
        with LocalPool(1, threads=1) as pool:
            result = runner(keepers, llama, tmp_path, "puts", "uniform", deterministic=only).run(pool)
        found.append([read_run(tmp_path / cell.id) for cell in result.cells])
    (free_puts, free), (bound_puts, bound) = found
    assert (free.spec.deterministic, bound.spec.deterministic) == (False, True) and free.id != bound.id
    assert numbers(tmp_path, free) == numbers(tmp_path, bound)
    assert free.comparability_key == bound.comparability_key
    assert free_puts.status == "complete" and bound_puts.failure is not None
    assert "put_ does not have a deterministic implementation" in bound_puts.failure.message


def test_what_this_machine_lacks_is_left_to_another_one_if_there_is_one(
    keepers: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    [cell] = runner(keepers, llama, tmp_path, "closed_book").run(Inline()).cells
    shutil.rmtree(tmp_path / cell.id)
    for function in ("load_base", "build_loop"):
        with monkeypatch.context() as patch:
            patch.setattr("bench.run.cell." + function, no_room)
            patch.setattr("bench.run.cell.may_move", lambda: True)
            with pytest.raises(UnfitMachine, match="CUDA out of memory"):
                run(cell.model_dump(mode="json"), str(tmp_path))
            assert not (tmp_path / cell.id).exists()
            patch.setattr("bench.run.cell.may_move", lambda: False)
            assert run(cell.model_dump(mode="json"), str(tmp_path)) == "failed"
        shutil.rmtree(tmp_path / cell.id)


def error_of(statement: str) -> BaseException:
    try:
        exec(statement, {"np": np, "torch": torch})
    except BaseException as error:
        return error
    raise AssertionError(statement)


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("np.empty(2**50)", "out_of_memory"),
        ("torch.empty(2**50)", "out_of_memory"),
        ("raise MemoryError", "out_of_memory"),
        ('raise RuntimeError("std::bad_alloc")', "out_of_memory"),
        ('raise OSError(12, "Cannot allocate memory")', "out_of_memory"),
        ('raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")', "out_of_memory"),
        ('raise ValueError("the memory bank is empty")', "failed"),
        ('raise KeyError("memory")', "failed"),
    ],
)
def test_out_of_memory_is_told_from_other_errors(statement: str, kind: str) -> None:
    assert failure_of(error_of(statement), None).kind == kind

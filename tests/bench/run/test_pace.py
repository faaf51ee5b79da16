"""What cells cost, by the records of earlier ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.records.store import read_run
from bench.run.pace import Pace, load_of
from tests.reports.records_factory import costs, record, spec


def seconds(pace: Pace, **changes: object) -> float | None:
    """Seconds of a cell of ``lora``, by default with ``rate`` 1 on a test stream of four documents."""
    return pace.seconds(load_of(spec(**{"method": "lora", "stream": "test-4-0", "config": {"rate": 1}, **changes})))  # type: ignore[arg-type]


@pytest.fixture
def pace(tmp_path: Path) -> Pace:
    """Cells of ``lora`` with 5 s before the stream and, after it: (1 + 2 + 3) s on 2 documents, (1 + 8 + 3) s on 4."""
    record(tmp_path, spec("lora", "test-2-0", config={"rate": 1}), [[0.5], [0.5]])
    record(tmp_path, spec("lora", "test-4-0", config={"rate": 2}), [[0.5]] * 4, costs=costs(8.0))
    record(tmp_path, spec("lora", "validation-2-0", config={"rate": 1}), [[0.5]] * 2, costs=costs(16.0))
    record(tmp_path, spec("lora_fit", "test-4-0"), [[0.5]] * 4, costs=costs(100.0))
    record(tmp_path, spec("lora", "test-2-1", config={"rate": 1}), status="diverged")
    pace = Pace()
    pace.read(tmp_path, ["lora"])
    return pace


def test_seconds_are_those_of_the_cells_that_are_most_alike(pace: Pace) -> None:
    assert seconds(pace) == pytest.approx(5 + 4 * 6 / 2)
    assert seconds(pace, config={"rate": 2}) == pytest.approx(5 + 4 * 12 / 4)
    assert seconds(pace, config={"rate": 3}) == pytest.approx(5 + 4 * (6 / 2 + 12 / 4) / 2), "other settings"
    assert seconds(pace, stream="validation-2-0") == pytest.approx(5 + 2 * 20 / 2), "cells of tuning"
    assert seconds(pace, arm="placebo", config={"rate": 1}) == pytest.approx(5 + 4 * (6 / 2 + 12 / 4) / 2), "any arm"


def test_documents_of_another_data_set_may_be_longer(pace: Pace, tmp_path: Path) -> None:
    run = record(
        tmp_path, spec("lora", "test-4-1", dataset="novels", config={"rate": 1}), [[0.5]] * 4, costs=costs(80.0)
    )
    pace.learn(read_run(tmp_path / run))
    assert seconds(pace) == pytest.approx(5 + 4 * 6 / 2), "as without it"
    assert seconds(pace, dataset="novels") == pytest.approx(5 + 4 * 84 / 4)


def test_a_load_without_settings_counts_all_settings(pace: Pace) -> None:
    load = load_of(spec("lora", "test-4-0", config={"rate": 1}))
    assert pace.seconds(replace(load, config=None)) == pytest.approx(5 + 4 * (6 / 2 + 12 / 4) / 2)


def test_the_first_documents_of_a_stream_cost_their_share(pace: Pace) -> None:
    assert seconds(pace, prefix=3) == pytest.approx(5 + 3 * 6 / 2)


def test_other_methods_bases_and_devices_are_unknown_and_only_guessed(pace: Pace) -> None:
    for changes in ({"method": "lora_fit"}, {"model_hash": "another"}, {"device": "cuda"}, {"dtype": "bfloat16"}):
        assert seconds(pace, **changes) is None
    load = load_of(spec("mac", "test-4-0"))
    assert pace.guess(load) == pytest.approx(5 + 4 * (6 / 2 + 12 / 4 + 20 / 2) / 3)
    assert Pace().guess(load) is None


def test_memory_is_the_most_of_any_phase(pace: Pace) -> None:
    assert pace.peak(load_of(spec("lora", "test-9-0"))) == 3000
    assert pace.peak(load_of(spec("mac", "test-9-0"))) is None


def test_a_whole_split_has_as_many_documents_as_were_read(tmp_path: Path) -> None:
    run = record(tmp_path, spec("lora", "test-all-0"), [[0.5]] * 3)
    pace = Pace()
    pace.learn(read_run(tmp_path / run))
    assert pace.seconds(load_of(spec("lora", "test-all-0"), 3)) == pytest.approx(5 + 6)


def test_records_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    for k in range(2):
        record(tmp_path, spec("lora", f"test-2-{k}"), [[0.5], [0.5]])
    damaged, _ = sorted(tmp_path.glob("lora-*/run.json"))
    damaged.write_text("{")
    pace = Pace()
    pace.read(tmp_path, ["lora"])
    assert pace.seconds(load_of(spec("lora", "test-2-0"))) == pytest.approx(5 + 6)

"""What cells cost, by the records of earlier ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.run.pace import Load, Pace, load_of
from tests.reports.records_factory import costs, record, spec

TOKENS = 10
"""Tokens of a document of the records here. Each has one question."""


BASES = {load_of(spec("lora", "test-2-0"), 0, 0).base}


def load(documents: int = 4, **changes: object) -> Load:
    """A cell of ``lora``, by default with ``rate`` 1 on a test stream."""
    cell = spec(**{"method": "lora", "stream": f"test-{documents}-0", "config": {"rate": 1}, **changes})  # type: ignore[arg-type]
    return load_of(cell, documents * TOKENS, documents)


def seconds(pace: Pace, documents: int = 4, **changes: object) -> float | None:
    return pace.seconds(load(documents, **changes))


@pytest.fixture
def pace(tmp_path: Path) -> Pace:
    """Cells of ``lora`` with 5 s before the stream and, after it: (1 + 2 + 3) s on 2 documents, (1 + 8 + 3) s on 4."""
    record(tmp_path, spec("lora", "test-2-0", config={"rate": 1}), [[0.5], [0.5]])
    record(tmp_path, spec("lora", "test-4-0", config={"rate": 2}), [[0.5]] * 4, costs=costs(8.0))
    record(tmp_path, spec("lora", "validation-2-0", config={"rate": 1}), [[0.5]] * 2, costs=costs(16.0))
    record(tmp_path, spec("lora_fit", "test-4-0"), [[0.5]] * 4, costs=costs(100.0))
    record(tmp_path, spec("lora", "test-2-1", config={"rate": 1}), status="diverged")
    pace = Pace()
    pace.read(tmp_path, ["lora"], BASES)
    return pace


def test_seconds_are_those_of_the_cells_that_are_most_alike(pace: Pace) -> None:
    assert seconds(pace) == pytest.approx(5 + 4 * 6 / 2)
    assert seconds(pace, config={"rate": 2}) == pytest.approx(5 + 4 * 12 / 4)
    assert seconds(pace, config={"rate": 3}) == pytest.approx(5 + 4 * (6 + 12) / 6), "other settings"
    assert seconds(pace, 2, stream="validation-2-0") == pytest.approx(5 + 2 * 20 / 2), "cells of tuning"
    assert seconds(pace, arm="placebo") == pytest.approx(5 + 4 * (6 + 12) / 6), "any arm"


def test_another_data_set_has_rates_of_its_own(pace: Pace) -> None:
    novels = load(dataset="novels")
    pace.learn(novels, costs(80.0))
    assert seconds(pace) == pytest.approx(5 + 4 * 6 / 2), "as without it"
    assert pace.seconds(novels) == pytest.approx(5 + 4 * 84 / 4)


def test_another_data_set_without_records_has_the_rates_for_each_token_and_question(pace: Pace) -> None:
    reading, answering = (3 + 9 + 17) / (8 * TOKENS), (3 + 3 + 3) / 8
    novel = replace(load(dataset="novels"), tokens=100_000, questions=0)
    assert pace.seconds(novel) == pytest.approx(5 + 100_000 * reading)
    assert pace.seconds(replace(novel, questions=6)) == pytest.approx(5 + 100_000 * reading + 6 * answering)


def test_cells_without_documents_say_nothing_about_reading_nor_those_without_questions_about_answering() -> None:
    pace, both = Pace(), load()
    pace.learn(replace(both, arm="empty", tokens=0), costs())
    assert pace.seconds(both) is None and pace.guess(both) is None
    assert pace.seconds(replace(both, tokens=0, questions=8)) == pytest.approx(5 + 6)
    pace.learn(replace(both, questions=0), costs())
    assert pace.seconds(both) == pytest.approx(5 + (1 + 2) * 2 + 3 * 2), "the first one says how long an answer takes"


def test_a_load_without_settings_counts_all_settings(pace: Pace) -> None:
    assert pace.seconds(replace(load(), config=None)) == pytest.approx(5 + 4 * (6 + 12) / 6)


def test_the_first_documents_of_a_stream_cost_their_share(pace: Pace) -> None:
    assert pace.seconds(replace(load(), tokens=3 * TOKENS, questions=3)) == pytest.approx(5 + 3 * 6 / 2)


def test_other_methods_bases_and_devices_are_unknown_and_only_guessed(pace: Pace) -> None:
    for changes in ({"method": "lora_fit"}, {"model_hash": "another"}, {"device": "cuda"}, {"dtype": "bfloat16"}):
        assert seconds(pace, **changes) is None
    assert pace.guess(load(method="mac")) == pytest.approx(5 + 4 * (6 + 12 + 20) / 8)
    assert Pace().guess(load()) is None


def test_memory_is_the_most_of_any_phase(pace: Pace) -> None:
    assert pace.peak(load(9)) == 3000
    assert pace.peak(load(9, method="mac")) is None


def test_records_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    for k in range(2):
        record(tmp_path, spec("lora", f"test-2-{k}"), [[0.5], [0.5]])
    damaged, _ = sorted(tmp_path.glob("lora-*/run.json"))
    damaged.write_text("{")
    pace = Pace()
    pace.read(tmp_path, ["lora"], BASES)
    assert seconds(pace, 2) == pytest.approx(5 + 6)
    pace = Pace()
    pace.read(tmp_path, ["lora"], {"another base"})
    assert seconds(pace, 2) is None

"""Prices of a row, by hand, and the number of documents after which one method is cheaper than another."""

from __future__ import annotations

import pytest

from bench.records.schema import Costs, Tally
from bench.records.store import read_run, read_tuning
from reports.prices import COSTS, break_even, is_resolved, of_document, prices
from tests.reports.records_factory import record, spec, tuning_record


def tally(seconds, peak=1):
    return Tally(seconds=seconds, flops=10 * seconds, peak_bytes=peak)


def costs(training=0.0, fit=0.0, score=0.0, observe=0.0, answer=0.0, state=0):
    phases = {"training": training, "fit": fit, "score": score, "observe": observe, "answer": answer}
    return Costs(**{name: tally(seconds, peak=int(seconds)) for name, seconds in phases.items()}, state_bytes=state)


def test_prices_by_hand(tmp_path):
    """Two streams with seeds 0 and 1: 2 documents with 2 questions each, asked twice, and 2 anchor questions."""
    records = []
    for seed, training in ((0, 100.0), (1, 300.0)):
        for stream, observe in (("test-2-0", 4.0), ("test-2-1", 8.0)):
            cell = spec("camels", stream, seed=seed, probes=(0.5, 1.0))
            cost = costs(training, fit=2.0 + 2 * seed, score=50.0, observe=observe, answer=16.0, state=7 + seed)
            early = {0.5: [[0.5, 0.5]]}
            events = {"early": early, "anchor_before": 0.5, "anchor_after": 0.5, "nll": [1.0, 2.0]}
            records.append(read_run(tmp_path / record(tmp_path, cell, [[0.5, 0.5], [0.5, 0.5]], costs=cost, **events)))
    seconds = {
        "training": 200.0,  # the mean of two seeds
        "fit": 3.0,
        "tuning": 0.0,
        "offline": 203.0,
        "total": 203.0 + 2 * 3.0 + 4 * 2.0,
    }
    by_name = prices(tmp_path, records, None)
    assert by_name.keys() == set(COSTS) - {"break_even_documents", "break_even_until"}
    for name, value in seconds.items():
        assert by_name[f"{name}_seconds"] == pytest.approx(value), name
        assert by_name[f"{name}_flops"] == pytest.approx(10 * value), name
    assert (by_name["seconds_per_document"], by_name["flops_per_document"]) == (3.0, 30.0)  # 24 s for 8 documents
    assert (by_name["seconds_per_question"], by_name["flops_per_question"]) == (2.0, 20.0)  # 64 s for 32 answers
    assert by_name["marginal_seconds"] == pytest.approx(3.0 + 2 * 2.0)
    assert (by_name["state_bytes"], by_name["peak_bytes"]) == (8, 50)


def test_tuning_costs_all_phases_of_all_its_runs_but_not_training(tmp_path):
    trials = [({"k": k}, (0.1 * k, 0.2)) for k in (1, 2)]
    (tuning,) = read_tuning(tmp_path, [tuning_record(tmp_path, "camels", [*trials, ({"k": 3}, None)], {"k": 2})])
    floor = record(tmp_path, spec("camels", "validation-1-0", "empty"), [[0.0]])
    again = {**tuning.trials[0], "runs": [*tuning.trials[0]["runs"], tuning.trials[1]["runs"][0]]}
    tuning = tuning.model_copy(update={"runs": [floor], "trials": (again, *tuning.trials[1:])})
    run = read_run(tmp_path / record(tmp_path, spec("camels", "test-1-0"), [[0.5]]))
    by_name = prices(tmp_path, [run], tuning)
    each = run.costs.fit.seconds + run.costs.score.seconds + run.costs.observe.seconds + run.costs.answer.seconds
    assert by_name["tuning_seconds"] == pytest.approx(5 * each), "2 x 2 runs, each once, and the floor's; none diverged"
    assert by_name["offline_seconds"] == pytest.approx(60.0 + 5.0 + 5 * each)


def test_without_documents_or_runs_there_are_fewer_prices(tmp_path):
    empty = read_run(tmp_path / record(tmp_path, spec("camels", "test-1-0", "empty"), [[0.5]]))
    assert prices(tmp_path, [empty], None).keys() == set(COSTS) - {
        "break_even_documents",
        "break_even_until",
        "marginal_seconds",
        "seconds_per_document",
        "flops_per_document",
    }
    assert prices(tmp_path, [], None) == {}


@pytest.mark.parametrize(
    ("seconds", "flops", "is_clear"),
    [
        ((3.0, 3.1), 1.0, True),
        ((3.0, 3.1), 40.0, False),  # fewer seconds for more operations: the machine was loaded
        ((3.0, 3.1), 4.0, False),  # as many operations
        ((3.0, 5.2), 1.0, False),  # -1 and 1.2 seconds less
        ((5.0, 5.1), 5.0, True),
        ((3.0,), 9.0, True),  # a single stream
    ],
)
def test_a_break_even_needs_a_resolved_price_of_a_document(tmp_path, seconds, flops, is_clear):
    def runs(method, of_streams, operations):
        records = []
        for k, value in enumerate(of_streams):
            cost = costs(observe=value, answer=0.0)
            observe = cost.observe.model_copy(update={"flops": operations})
            cost = cost.model_copy(update={"observe": observe})
            records.append(read_run(tmp_path / record(tmp_path, spec(method, f"test-1-{k}"), [[0.5]], costs=cost)))
        return of_document(tmp_path, records)

    reference = runs("uniform", (4.0, 4.0), 4.0)
    assert is_resolved(runs("camels", seconds, flops), reference) == is_clear
    assert is_resolved(reference, runs("camels", seconds, flops)) == is_clear


@pytest.mark.parametrize(("answering", "is_clear"), [(3.0, False), (0.3, True), (12.0, True)])
def test_a_document_pays_for_its_own_questions_alone(tmp_path, answering, is_clear):
    """Three seconds to observe it, and a third of the answering, the rest of which is for the anchors; or 4 +- 0.1."""
    asked = {"anchor_before": 0.5, "anchor_after": 0.5}
    rows = []
    for method, answer, observed in (("camels", answering, (3.0, 3.0)), ("uniform", 0.0, (3.99, 4.01))):
        records = []
        for k, observe in enumerate(observed):
            cell, cost = spec(method, f"test-1-{k}"), costs(observe=observe, answer=answer)
            records.append(read_run(tmp_path / record(tmp_path, cell, [[0.5]], costs=cost, **asked)))
        rows.append(of_document(tmp_path, records))
    assert is_resolved(*rows) == is_clear


@pytest.mark.parametrize(
    ("costs", "reference", "found"),
    [
        ((100, 1), (10, 4), {"break_even_documents": 30}),
        ((101, 1), (10, 4), {"break_even_documents": 31}),  # 30.3
        ((5, 1), (10, 4), {"break_even_documents": 0}),
        ((10, 1), (10, 4), {"break_even_documents": 0}),
        ((5, 4), (10, 4), {"break_even_documents": 0}),
        ((20, 4), (10, 4), {}),
        ((20, 5), (10, 4), {}),
        ((5, 5), (10, 4), {"break_even_until": 5}),
        ((0, 0.3), (171, 0.26), {"break_even_until": 4275}),  # 171 / 0.04
        ((9.5, 5), (10, 4), {}),  # half a document
        ((5, None), (10, 4), {}),
    ],
)
def test_break_even(costs, reference, found):
    named = [
        {
            name: value
            for name, value in zip(("offline_seconds", "marginal_seconds"), pair, strict=True)
            if value is not None
        }
        for pair in (costs, reference)
    ]
    assert break_even(*named) == found

"""Stored answers under another metric: the same as when they were scored, and metrics from files."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import run_bench
from bench.answering import metrics
from bench.errors import BenchError
from bench.records import published
from bench.records.store import read_answers, read_run, write_run
from reports.rescoring import rescore, write
from tests.reports.records_factory import answer, board, realistic, record, spec

METRIC = """
import evaluate

import datasets


class {name}(evaluate.Metric):
    def _info(self):
        features = datasets.Features({{"predictions": datasets.Value("string"), "references": {references}}})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        {body}
"""
TEXT, TEXTS = 'datasets.Value("string")', 'datasets.List(datasets.Value("string"))'


@pytest.fixture
def metric(tmp_path):
    def make(name: str, references: str, body: str) -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(METRIC.format(name=name.title(), references=references, body=body))
        return str(path)

    return make


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """One method on two streams of two questions; the second stream asks more questions on its second document."""
    ids = [record(tmp_path / "runs", spec("uniform", "test-2-0"), [[1.0], [0.5]])]
    ids.append(record(tmp_path / "runs", spec("uniform", "test-2-1"), [[0.5], [0.0, 0.0]]))
    board(tmp_path / "runs", ids)
    return tmp_path / "runs"


def value(runs, name, metric):
    (row,) = rescore(runs, metric)
    return row.estimates[name]


@pytest.mark.parametrize("name", metrics.ANSWER_SCORES)
def test_the_recorded_scores_come_out_again(tmp_path, name):
    realistic(tmp_path, streams=3, documents=10)
    for one in rescore(tmp_path, name):
        recorded = one.row.estimate(name, "SE_stream")
        assert one.estimates[name].mean == pytest.approx(recorded.mean)
        assert one.estimates[name].half_width() == pytest.approx(recorded.half_width(), abs=1e-9)


def test_a_metric_of_a_file_is_computed_on_each_run(runs, metric):
    """Words of all predictions of a run: w0, and w0 not1; then w0 not1, not0 and not0."""
    path = metric("words", TEXT, 'return {"words": sum(len(p.split()) for p in predictions), "note": "text"}')
    estimate = value(runs, "words", path)
    assert estimate.mean == pytest.approx((3 + 4) / 2) and estimate.se == pytest.approx(0.5)


def test_a_metric_gets_all_gold_answers_or_the_best_one_counts(tmp_path, metric):
    runs = tmp_path / "runs"
    run = record(runs, spec("uniform", "test-1-0"), [[1.0]])
    answers = [answer(1.0, "0.0", "d", answers=("no", "w0")), answer(0.5, "0.1", "d")]
    stored = read_run(runs / run)
    summary = stored.summary.model_copy(update={"questions": 2})
    write_run(runs, stored.model_copy(update={"summary": summary}), [], answers)
    board(runs, [run])
    share = 'return {{"right": sum({} for p, r in zip(predictions, references)) / len(predictions)}}'
    single, several = metric("single", TEXT, share.format("p == r")), metric("several", TEXTS, share.format("p in r"))
    assert value(runs, "right", single).mean == value(runs, "right", several).mean == 0.5


def test_the_table_has_the_recorded_f1_beside_the_metric(runs, tmp_path):
    path = write(rescore(runs, "em"), "em", tmp_path / "out")
    (row,) = csv.DictReader(path.open())
    assert path.name == "rescored_em.csv" and row["label"] == "uniform" and row["streams"] == "2"
    assert float(row["recorded_f1"]) == pytest.approx((0.75 + 0.5 / 3) / 2)
    assert float(row["em"]) == pytest.approx(0.25) and float(row["em_se_stream"]) == pytest.approx(0.25)
    assert float(row["em_ci95"]) == pytest.approx(12.706 * 0.25, rel=1e-4)


def test_published_records_are_refused(runs, tmp_path):
    folder = published.publish(runs, "demo", tmp_path / "to").parent
    assert {event.answers for event in read_answers(folder, read_run(next(runs.glob("u*"))).id)} == {()}
    with pytest.raises(BenchError, match="published records, which have no gold answers"):
        rescore(folder, "em")


@pytest.mark.parametrize(
    ("references", "body", "message"),
    [
        ('datasets.Value("int64")', 'return {"x": 1}', "takes other inputs than rescore has"),
        (TEXT, "raise ValueError('cannot')", "failed: ValueError: cannot"),
        (TEXT, 'return {"x": "text"}', "computes no number"),
        (TEXT, 'return {"x": float("nan")}', "computes a x that is no number for "),
        (TEXT, 'return {"x": 1.0, f"y{len(predictions)}": 1.0}', "does not compute the same values for all runs"),
    ],
)
def test_a_metric_that_cannot_score_answers_is_refused(runs, metric, references, body, message):
    with pytest.raises(BenchError, match=message):
        rescore(runs, metric("bad", references, body))


def test_a_metric_that_is_not_there_or_not_one_is_named(runs, tmp_path):
    with pytest.raises(BenchError, match=r"no metric 'em_prefx'\. Did you mean em_prefix"):
        rescore(runs, "em_prefx")
    (tmp_path / "notes.py").write_text("x = 1\n")
    with pytest.raises(BenchError, match=r"notes\.py is not a metric that evaluate can load"):
        rescore(runs, str(tmp_path / "notes.py"))


def test_records_without_answers_are_refused(tmp_path):
    board(tmp_path, [record(tmp_path, spec("uniform", "test-2-0"), nll=[2.0])])
    with pytest.raises(BenchError, match="hold no answers"):
        rescore(tmp_path, "em")


def test_the_command_prints_the_metric_and_writes_the_table(runs, tmp_path, capsys):
    run_bench.rescore("em", runs=runs, out=tmp_path / "out")
    assert "recorded F1" in capsys.readouterr().out and (tmp_path / "out" / "rescored_em.csv").is_file()

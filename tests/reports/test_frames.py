"""Results as data frames: the board's own numbers follow from them, from records of runs and from published ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import load_results
from bench.data import recipe
from bench.data.reader import load_split
from bench.errors import BenchError
from bench.records import published
from bench.records.store import read_answers
from reports.board import build
from reports.frames import ANSWER, RUN
from tests.reports.records_factory import board, realistic, record, spec, token_event

WEIGHTS = [0.5, 2.0, 1.0]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two methods on two streams, one of them with two seeds, earlier probes, anchors, ranks and token weights."""
    ids = []
    for k in range(2):
        early = {0.5: [[0.0]]}
        ids.append(
            record(tmp_path, spec("closed_book", f"test-2-{k}", probes=(0.5, 1.0)), [[0.25], [0.0, 0.0]], early=early)
        )
        for seed in (0, 1):
            cell = spec("camels", f"test-2-{k}", config={"b": 1, "a": {"c": None}}, seed=seed, probes=(0.5, 1.0))
            tokens = [token_event(0, "noon* is Pier~", WEIGHTS)]
            f1 = [[1.0], [0.5 * seed, 1.0]]
            ids.append(
                record(
                    tmp_path, cell, f1, [2.0, 3.0], tokens, retrieved=2, early=early, anchor_before=1, anchor_after=1
                )
            )
    board(tmp_path, ids)
    return tmp_path


def test_the_mean_of_the_answers_is_the_score_of_the_board(tmp_path):
    realistic(tmp_path, streams=3, documents=10)
    results = load_results(tmp_path)
    means = results.answers.groupby(["label", "stream"])[["f1", "em", "answer_nll"]].mean().groupby("label").mean()
    rows = results.rows.set_index("label")
    assert list(results.rows.label) == [row.label for row in build(tmp_path).rows]
    for score in means:
        assert means[score].to_dict() == pytest.approx(rows[score].to_dict(), abs=1e-12)
    documents = results.documents.query("label == 'uniform'").groupby("stream")[["nll", "tokens"]].sum()
    assert (documents.nll / documents.tokens).mean() == pytest.approx(rows.token_nll["uniform"])


def test_answers_are_those_of_the_last_probe_and_all_answers_are_all(runs):
    results = load_results(str(runs), "demo")
    assert list(results.answers.columns) == [*RUN, *ANSWER]
    assert len(results.answers) == 2 * 3 + 4 * 3
    events = sum(len(read_answers(runs, path.parent.name)) for path in runs.glob("*/run.json"))
    assert len(results.all_answers) == events == len(results.answers) + 6 * 1 + 4 * 2
    assert set(results.answers.probe) == {1.0} and set(results.answers["set"]) == {"stream"}


def test_an_answer_states_its_run_its_texts_and_its_scores(runs):
    answer = load_results(runs).answers.query("method == 'camels' and stream == 'test-2-1' and seed == 1").iloc[1]
    assert (answer.experiment, answer.dataset, answer.model, answer.label, answer.arm) == (
        *("demo", "world", "tiny"),
        *("camels", "stream"),
    )
    assert json.loads(answer.config) == {"b": 1, "a": {"c": None}} and (runs / answer.run / "run.json").is_file()
    assert (answer.question_id, answer.document_id, answer.position) == ("1.0", "test-2-1 1", 1)
    assert (answer.prediction, answer.gold, answer.f1, answer.em) == ("w0 not1", ("w0 w1",), 0.5, 0.0)
    assert (answer.retrieved, answer.answer_nll) == (2, 0.5)


def test_tokens_have_a_row_each(runs):
    tokens = load_results(runs).tokens
    assert len(tokens) == 4 * 3 and set(tokens.label) == {"camels"}
    first = tokens[tokens.run == tokens.run[0]]
    assert list(first.token) == [0, 1, 2] and list(first.weight) == WEIGHTS
    assert list(first.piece) == [" noon", " is", " Pier"] and list(first["class"]) == ["fact", "filler", "name"]
    assert first.nll.isna().all()


def test_frames_without_events_have_their_columns(tmp_path):
    board(tmp_path, [record(tmp_path, spec("uniform", "test-2-0"), nll=[2.0])])
    results = load_results(tmp_path)
    assert results.answers.empty and list(results.answers.columns) == [*RUN, *ANSWER]
    assert results.tokens.empty and "weight" in results.tokens


def test_a_failed_run_is_in_no_frame(tmp_path):
    ids = [record(tmp_path, spec("uniform", "test-2-0"), [[1.0]])]
    ids.append(record(tmp_path, spec("uniform", "test-2-1"), status="diverged"))
    board(tmp_path, ids)
    results = load_results(tmp_path)
    assert set(results.answers.stream) == {"test-2-0"} and list(results.rows.status) == ["diverged"]


def test_published_records_give_the_same_frames_without_texts(runs, tmp_path):
    own, packed = (load_results(folder) for folder in (runs, published.publish(runs, "demo", tmp_path / "to").parent))
    assert packed.rows.drop(columns="config").equals(own.rows.drop(columns="config"))
    for name in ("all_answers", "documents", "tokens"):
        theirs, ours = getattr(packed, name), getattr(own, name)
        texts = {"gold", "earlier", "piece", "nll"} if name != "documents" else set()
        kept = [column for column in ours if column not in texts]
        assert theirs[kept].equals(ours[kept])
    assert set(packed.answers.gold) == {()} and packed.tokens.piece.isna().all()


def test_texts_are_those_of_the_split_of_the_streams(tmp_path):
    entry = next(entry for entry in load_split(recipe.find("newsworld"), "test") if len(entry.questions) > 1)
    question = entry.questions[1].question
    board(tmp_path, [record(tmp_path, spec("uniform", "test-1-0", dataset="newsworld"), [[1.0]])])
    texts = load_results(tmp_path).texts()
    (row,) = texts[texts.question_id == question.id].itertuples()
    assert (row.document_id, row.text, row.question) == (entry.document.id, entry.document.text, question.text)
    assert not texts.duplicated(["document_id", "question_id"]).any()


def test_a_board_that_is_not_there_is_named(runs):
    with pytest.raises(BenchError, match=r"There is no board 'dem' in .* Did you mean demo"):
        load_results(runs, "dem")

"""From records to rows: scores computed by hand, and refusals of records that are not comparable."""

from __future__ import annotations

import math

import pytest

from bench.answering.metrics import score
from bench.errors import BenchError
from bench.records.schema import DocumentEvent, TuningRecord
from bench.records.store import read_answers, read_documents, read_run, write_run, write_tuning
from bench.records.summary import summarize
from reports.board import build
from tests.reports.records_factory import board, record, spec, tuning_record

ZERO, ONE = "test-2-0", "test-2-1"


def rows(runs, **options):
    return {row.label: row for row in build(runs, **options).rows}


def pair(runs, method, levels, arm="stream", **changes):
    """Two streams of two documents with one question each; all scores equal the stream's level."""
    return [
        record(runs, spec(method, name, arm, **changes), [[level], [level]], [level, level])
        for name, level in zip((ZERO, ONE), levels, strict=True)
    ]


def test_scores_are_means_over_streams_with_both_errors(tmp_path):
    first = record(tmp_path, spec("uniform", ZERO), [[1.0, 0.0], [0.5]], [3.0, 1.0])
    second = record(tmp_path, spec("uniform", ONE), [[0.0], [0.1]], [2.0, 2.0])
    board(tmp_path, [first, second])
    row = rows(tmp_path)["uniform"]
    by_stream, by_document = row.scores["f1"]
    assert by_stream.mean == pytest.approx((0.5 + 0.05) / 2)
    assert by_stream.se == pytest.approx(0.45 / 2)  # for two values, half their distance
    assert (by_document.kind, by_document.n, by_document.mean) == ("SE_doc", 4, pytest.approx(by_stream.mean))
    assert row.value("em") == pytest.approx(1 / 6)
    assert row.value("token_nll") == pytest.approx(2.0)
    assert row.value("bits_per_byte") == pytest.approx(2.0 / math.log(2) / 4)  # 10 tokens are 40 bytes
    assert (row.status, row.streams, row.note) == ("complete", 2, "")


def test_costs_are_per_document_and_per_question(tmp_path):
    ids = [record(tmp_path, spec("uniform", name), [[1.0, 0.0], [0.5]]) for name in (ZERO, ONE)]
    board(tmp_path, ids)
    assert rows(tmp_path)["uniform"].costs == {
        "seconds_per_document": 1.0,  # 2 s of observing, 2 documents
        "flops_per_document": 2e9,
        "seconds_per_question": 1.0,  # 3 s of answering, 3 questions
        "offline_seconds": 5.0,
        "offline_flops": 50.0,
        "peak_bytes": 3000,
        "state_bytes": 2048,
    }


def test_only_the_last_probe_counts(tmp_path):
    name = record(tmp_path, spec("uniform", ZERO), [[1.0]])
    late = read_answers(tmp_path, name)
    early = [event.model_copy(update={"probe": 0.5, "f1": 0.0}) for event in late]
    anchor = [event.model_copy(update={"set": "anchor", "f1": 0.0}) for event in late]
    write_run(tmp_path, read_run(tmp_path / name), read_documents(tmp_path, name), early + late + anchor)
    board(tmp_path, [name])
    row = rows(tmp_path)["uniform"]
    assert row.value("f1") == 1.0
    assert row.costs["seconds_per_question"] == 1.0  # 3 s for all three answers


def test_paired_difference_to_the_reference(tmp_path):
    board(tmp_path, pair(tmp_path, "uniform", (0.1, 0.5)) + pair(tmp_path, "camels", (0.2, 0.6)))
    by_label = rows(tmp_path)
    difference = by_label["camels"].scores["f1_vs_reference"][0]
    assert difference.mean == pytest.approx(0.1)
    assert difference.se == pytest.approx(0, abs=1e-12)  # although the streams differ by 0.4
    assert "f1_vs_reference" not in by_label["uniform"].scores
    assert rows(tmp_path, reference="camels")["uniform"].value("f1_vs_reference") == pytest.approx(-0.1)


def test_knowledge_gain_needs_both_controls(tmp_path):
    ids = pair(tmp_path, "uniform", (0.3, 0.3)) + pair(tmp_path, "uniform", (0.1, 0.1), "placebo")
    board(tmp_path, ids)
    assert "knowledge_gain" not in rows(tmp_path)["uniform"].scores
    board(tmp_path, ids + pair(tmp_path, "gold_in_prompt", (0.9, 0.9)))
    by_label = rows(tmp_path)
    assert by_label["uniform"].value("knowledge_gain") == pytest.approx((0.3 - 0.1) / (0.9 - 0.1))
    assert "knowledge_gain" not in by_label["uniform on placebo"].scores
    assert "knowledge_gain" not in by_label["gold_in_prompt"].scores


@pytest.mark.parametrize(
    ("stream", "placebo", "closed_book", "suspicious"),
    [  # F1 of four documents with one question each, two per stream; mean and SE_doc of a difference are in brackets
        ((1.0, 1.0, 1.0, 0.2), (1.0, 1.0, 1.0, 0.2), 0.0, True),  # placebo - closed book (0.8, 0.2), the stream's equal
        ((1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 0.2), 0.0, True),  # stream - placebo (0.2, 0.2): not significant
        ((0.5, 0.5, 0.5, 0.0), (1.0, 1.0, 1.0, 0.2), 0.0, True),  # placebo above stream
        ((0.6, 0.6, 0.6, 0.6), (0.6, 0.6, 0.6, 0.6), 0.1, True),  # no spread
        ((1.0, 1.0, 1.0, 0.2), (1.0, 1.0, 1.0, 0.2), 0.1, True),  # (0.7, 0.2)
        ((1.0, 1.0, 1.0, 0.2), (1.0, 1.0, 1.0, 0.2), 0.3, False),  # (0.5, 0.2)
        ((1.0, 1.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0), 0.0, False),  # (0.5, 0.289)
        ((0.9, 0.9, 1.0, 0.5), (0.5, 0.5, 0.5, 0.1), 0.0, False),  # stream - placebo (0.425, 0.025)
        ((0.9, 0.9, 0.9, 0.9), (0.5, 0.5, 0.5, 0.5), 0.0, False),  # stream - placebo (0.4, 0)
        ((0.1, 0.1, 0.1, 0.1), (0.1, 0.1, 0.1, 0.1), 0.1, False),  # no gain at all
        ((0.1, 0.1, 0.1, 0.1), (0.1, 0.1, 0.1, 0.1), 0.2, False),  # a loss
    ],
)
def test_a_placebo_that_scores_as_its_stream_is_remarked_on(tmp_path, stream, placebo, closed_book, suspicious):
    arms = [
        ("hoarder", "stream", stream),
        ("hoarder", "placebo", placebo),
        ("closed_book", "stream", [closed_book] * 4),
    ]
    ids = [
        record(tmp_path, spec(method, name, arm), [[value] for value in f1[first : first + 2]])
        for method, arm, f1 in arms
        for first, name in ((0, ZERO), (2, ONE))
    ]
    board(tmp_path, ids)
    remarks = [remark for remark in build(tmp_path).remarks if "earlier streams" in remark]
    gain = sum(placebo) / 4 - closed_book
    expected = f"hoarder on placebo scores as on its stream, far above closed book (F1 {gain:+.3f})"
    assert [remark.partition(":")[0] for remark in remarks] == [expected] * suspicious


@pytest.mark.parametrize("absent", ["closed_book", "stream", "placebo"])
def test_without_what_it_is_compared_with_no_placebo_is_remarked_on(tmp_path, absent):
    ids = {
        "closed_book": pair(tmp_path, "closed_book", (0.0, 0.0)),
        "stream": pair(tmp_path, "hoarder", (0.9, 0.9)),
        "placebo": pair(tmp_path, "hoarder", (0.9, 0.9), "placebo"),
    }
    board(tmp_path, [name for key, names in ids.items() if key != absent for name in names])
    assert not build(tmp_path).remarks


def test_rows_are_ordered_by_f1_with_controls_last(tmp_path):
    ids = pair(tmp_path, "uniform", (0.2, 0.2)) + pair(tmp_path, "camels", (0.4, 0.4))
    ids += pair(tmp_path, "gold_in_prompt", (0.9, 0.9)) + pair(tmp_path, "closed_book", (0.1, 0.1))
    ids += pair(tmp_path, "uniform", (0.15, 0.15), "placebo")
    board(tmp_path, ids)
    labels = [(row.label, row.control) for row in build(tmp_path).rows]
    assert labels == [
        ("camels", False),
        ("uniform", False),
        ("gold_in_prompt", True),
        ("uniform on placebo", True),
        ("closed_book", True),
    ]


def test_labels_of_one_method_show_the_settings_that_differ(tmp_path):
    ids = pair(tmp_path, "uniform", (0.1, 0.1), config={"steps": 1, "lr": 0.1})
    ids += pair(tmp_path, "uniform", (0.2, 0.2), config={"steps": 2, "lr": 0.1})
    board(tmp_path, ids)
    assert [row.label for row in build(tmp_path).rows] == ["uniform (steps=2)", "uniform (steps=1)"]


def test_labels_omit_values_that_most_rows_of_a_method_have(tmp_path):
    usual = {"k": 16, "training": {"steps": 700, "rate": 0.1}}
    ids = pair(tmp_path, "memory", (0.4, 0.4), config=usual) + pair(
        tmp_path, "memory", (0.5, 0.5), "empty", config=usual
    )
    ids += pair(tmp_path, "memory", (0.3, 0.3), config={**usual, "k": None})
    ids += pair(tmp_path, "memory", (0.2, 0.2), config={**usual, "training": {"steps": 0, "rate": 0.1}})
    board(tmp_path, ids)
    labels = ["memory", "memory (k=null)", "memory (training.steps=0)", "memory on empty"]
    assert [row.label for row in build(tmp_path).rows] == labels


def test_labels_omit_tuned_and_disabled_settings_if_they_are_not_needed(tmp_path):
    plain, mixed = ({"control": control, "rate": rate} for control, rate in (("none", 0.2), ("shuffled", 0.4)))
    ids = pair(tmp_path, "camels", (0.4, 0.4), config=plain) + pair(tmp_path, "camels", (0.2, 0.2), config=mixed)
    ids += pair(tmp_path, "camels", (0.1, 0.1), "placebo", config=plain)
    keys = [
        tuning_record(tmp_path, "camels", [({**config, "rate": rate}, [0.1]) for rate in (0.2, 0.4)], config)
        for config in (plain, mixed)
    ]
    board(tmp_path, ids, tuning=keys)
    assert [row.label for row in build(tmp_path).rows] == ["camels", "camels (control=shuffled)", "camels on placebo"]


def test_seeds_are_averaged_and_do_not_count_as_streams(tmp_path):
    board(tmp_path, pair(tmp_path, "uniform", (0.1, 0.5)) + pair(tmp_path, "uniform", (0.3, 0.7), seed=1))
    row = rows(tmp_path)["uniform"]
    assert (row.seeds, row.streams) == (2, 2)
    assert row.scores["f1"][0].mean == pytest.approx(0.4)
    assert row.scores["f1"][0].se == pytest.approx(0.2)


def test_forgetting_is_the_loss_of_f1_on_the_anchor_set(tmp_path):
    name = record(tmp_path, spec("uniform", ZERO), [[1.0]], anchor_before=0.8, anchor_after=0.5)
    board(tmp_path, [name])
    estimates = rows(tmp_path)["uniform"].scores["forgetting"]
    assert [(e.mean, e.se, e.kind) for e in estimates] == [(pytest.approx(0.3), None, "SE_stream")]


def test_the_leaders_are_the_best_and_those_not_significantly_worse(tmp_path):
    even, odd = [[0.9], [0.5]] * 20, [[0.5], [0.9]] * 20
    ids = [record(tmp_path, spec(method, ZERO), f1) for method, f1 in (("a", even), ("b", odd), ("c", [[0.1]] * 40))]
    ids.append(record(tmp_path, spec("gold_in_prompt", ZERO), [[1.0]] * 40))
    board(tmp_path, ids)
    assert {row.label for row in build(tmp_path).rows if row.leading} == {"a", "b"}


class TestGaps:
    def test_a_missing_stream_is_marked_and_ranks_after_complete_rows(self, tmp_path):
        board(tmp_path, pair(tmp_path, "uniform", (0.1, 0.1)) + pair(tmp_path, "camels", (0.9, 0.9))[:1])
        first, second = build(tmp_path).rows
        assert (first.label, second.label) == ("uniform", "camels")
        assert (second.status, second.note, second.streams) == ("incomplete", "1 of 2 streams", 1)
        assert "f1_vs_reference" not in second.scores
        assert not second.leading

    def test_divergence_is_noted_with_the_number_of_streams(self, tmp_path):
        ids = pair(tmp_path, "uniform", (0.1, 0.1))
        ids += [record(tmp_path, spec("camels", name), status="diverged") for name in (ZERO, ONE)]
        board(tmp_path, ids)
        row = rows(tmp_path)["camels"]
        assert (row.status, row.note, row.scores, row.costs) == ("diverged", "diverged on 2 of 2", {}, {})

    def test_a_failure_is_noted_with_its_kind(self, tmp_path):
        ids = pair(tmp_path, "uniform", (0.1, 0.1))[:1]
        board(tmp_path, [*ids, record(tmp_path, spec("uniform", ONE), status="failed")])
        row = rows(tmp_path)["uniform"]
        assert (row.status, row.note) == ("failed", "out of memory on 1 of 2")
        assert row.value("f1") == pytest.approx(0.1)


class TestTrials:
    @pytest.fixture
    def runs(self, tmp_path):
        write_tuning(
            tmp_path,
            TuningRecord(
                key="k",
                method="uniform",
                dataset="world",
                model="tiny",
                model_hash="m",
                metric="f1",
                trials=tuple({"config": {"lr": rate}, "score": None, "runs": []} for rate in (0.1, 0.2)),
                chosen={"lr": 0.1},
            ),
        )
        return tmp_path

    @pytest.mark.parametrize(
        ("changes", "trials", "tuned"),
        [
            ({"config": {"lr": 0.1}}, 2, True),
            ({"config": {"lr": 0.2}}, 0, False),
            ({"config": {"lr": 0.1}, "model_hash": "another"}, 0, False),
        ],
    )
    def test_they_count_for_the_chosen_config_on_the_same_base(self, runs, changes, trials, tuned):
        board(runs, [record(runs, spec("uniform", ZERO, **changes), [[1.0]], tunable=True)], tuning=["k"])
        row = rows(runs)["uniform"]
        assert (row.trials, row.tuned) == (trials, tuned)

    def test_trials_of_another_board_do_not_count(self, runs):
        board(runs, [record(runs, spec("uniform", ZERO, config={"lr": 0.1}), [[1.0]], tunable=True)])
        assert rows(runs)["uniform"].tuned is False

    def test_a_method_without_a_grid_is_neither_tuned_nor_untuned(self, tmp_path):
        board(tmp_path, [record(tmp_path, spec("closed_book", ZERO), [[1.0]])])
        assert rows(tmp_path)["closed_book"].tuned is None


def test_the_headline_of_text_streams_is_token_nll(tmp_path):
    ids = [
        record(tmp_path, spec(method, ZERO), nll=nll) for method, nll in (("uniform", [2.0, 4.0]), ("b", [1.0, 2.0]))
    ]
    board(tmp_path, ids)
    built = build(tmp_path)
    assert built.headline == "token_nll"
    assert [row.label for row in built.rows] == ["b", "uniform"]  # the lower the better
    assert built.rows[0].value("token_nll_vs_reference") == pytest.approx(-1.5)


def test_a_board_without_questions_and_scoring_has_costs(tmp_path):
    board(tmp_path, [record(tmp_path, spec(method, ZERO)) for method in ("uniform", "camels")])
    built = build(tmp_path)
    assert [row.scores for row in built.rows] == [{}, {}]
    assert not any(row.leading for row in built.rows)
    assert built.rows[0].costs["state_bytes"] == 2048


class TestRefusals:
    def test_different_comparability_keys_are_refused_and_the_difference_is_named(self, tmp_path):
        ids = [
            record(tmp_path, spec("uniform", ZERO), [[1.0]]),
            record(tmp_path, spec("camels", ZERO, model="other"), [[1.0]]),
        ]
        board(tmp_path, ids)
        with pytest.raises(BenchError, match=r"cannot be on one board; they differ in model \(tiny and other\)\."):
            build(tmp_path)

    def test_the_size_of_the_streams_counts_but_their_number_does_not(self, tmp_path):
        ids = [
            record(tmp_path, spec("uniform", ONE), [[1.0]]),
            record(tmp_path, spec("camels", "test-3-0"), [[1.0]]),
        ]
        board(tmp_path, ids)
        with pytest.raises(BenchError, match=r"they differ in streams \(test-2 and test-3\)\."):
            build(tmp_path)

    def test_streams_of_one_name_must_be_the_same(self, tmp_path):
        ids = [record(tmp_path, spec(m, ZERO, stream_hash=h), [[1.0]]) for m, h in (("uniform", "1"), ("camels", "2"))]
        board(tmp_path, ids)
        with pytest.raises(BenchError, match="different documents under the name test-2-0"):
            build(tmp_path)

    def test_a_missing_record(self, tmp_path):
        board(tmp_path, ["gone"])
        with pytest.raises(BenchError, match=r"gone/run\.json is missing"):
            build(tmp_path)

    def test_no_board_at_all(self, tmp_path):
        with pytest.raises(BenchError, match="no board"):
            build(tmp_path)

    def test_an_experiment_without_runs(self, tmp_path):
        board(tmp_path, [])
        with pytest.raises(BenchError, match="demo has no runs"):
            build(tmp_path)


def test_bits_per_byte_are_those_of_whole_documents_if_a_segment_has_no_bytes(tmp_path):
    cell = spec("uniform", ZERO, segment_tokens=1)
    sizes = [(0, 0, 1, 0, 3.0), (0, 1, 1, 4, 1.0), (1, 0, 2, 8, 2.0), (2, 0, 0, 0, 0.0)]
    documents = [
        DocumentEvent(
            position=position,
            segment=segment,
            document_id=f"d{position}",
            tokens=tokens,
            bytes=utf8_bytes,
            windows=1,
            nll=nll,
            observe_seconds=0.1,
        )
        for position, segment, tokens, utf8_bytes, nll in sizes
    ]
    run = read_run(tmp_path / record(tmp_path, cell))
    summary = summarize(documents, [])
    write_run(tmp_path, run.model_copy(update={"summary": summary}), documents)
    board(tmp_path, [cell.id])
    row = rows(tmp_path)["uniform"]
    assert row.value("bits_per_byte") == pytest.approx(6 / math.log(2) / 12) == pytest.approx(summary.bits_per_byte)
    assert row.value("token_nll") == pytest.approx(6 / 4) == pytest.approx(summary.token_nll)


def test_remarks_of_methods_and_questions_that_did_not_fit_stand_below_the_board(tmp_path):
    ids = []
    for name, noted in ((ZERO, ["lora does not adapt x."]), (ONE, ["lora does not adapt x.", "Another."])):
        run = read_run(tmp_path / record(tmp_path, spec("uniform", name), [[1.0, 0.0], [0.5]], [3.0, 1.0]))
        first, *others = read_answers(tmp_path, run.id)
        changes = {"nll": None, "unanswered": "too long", "prediction": "", **score("", first.answers)}
        answers = [first.model_copy(update=changes), *others]
        documents = read_documents(tmp_path, run.id)
        updates = {"summary": summarize(documents, answers), "notes": {"remarks": noted}}
        write_run(tmp_path, run.model_copy(update=updates), documents, answers)
        ids.append(run.id)
    board(tmp_path, ids)
    built = build(tmp_path)
    assert built.remarks[:3] == (
        "lora does not adapt x.",
        "Another.",
        "Questions that did not fit into the model's window count as answered wrongly: uniform on the stream arm "
        "(2 of 6).",
    )
    (row,) = built.rows
    assert row.value("f1") == pytest.approx(1 / 6) and row.value("answer_nll") is not None

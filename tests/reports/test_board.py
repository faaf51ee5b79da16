"""From records to rows: scores computed by hand, and refusals of records that are not comparable."""

from __future__ import annotations

import math
import re

import pytest
from scipy.stats import ttest_rel

from bench.answering.metrics import score
from bench.data.prompt_format import PLAIN, PromptFormat
from bench.errors import BenchError
from bench.records.schema import BoardEntry, BoardRecord, DocumentEvent
from bench.records.store import read_answers, read_documents, read_run, write_board, write_run
from bench.records.summary import summarize
from reports import columns, tables
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


def test_only_the_last_probe_counts(tmp_path):
    name = record(tmp_path, spec("uniform", ZERO), [[1.0]])
    late = read_answers(tmp_path, name)
    early = [event.model_copy(update={"probe": 0.5, "f1": 0.0}) for event in late]
    anchor = [event.model_copy(update={"set": "anchor", "f1": 0.0}) for event in late]
    write_run(tmp_path, read_run(tmp_path / name), read_documents(tmp_path, name), early + late + anchor)
    board(tmp_path, [name])
    row = rows(tmp_path)["uniform"]
    assert row.value("f1") == 1.0


def test_paired_difference_to_the_reference(tmp_path):
    board(tmp_path, pair(tmp_path, "uniform", (0.1, 0.5)) + pair(tmp_path, "camels", (0.2, 0.6)))
    by_label = rows(tmp_path)
    difference = by_label["camels"].scores["f1_vs_reference"][0]
    assert difference.mean == pytest.approx(0.1)
    assert difference.se == pytest.approx(0, abs=1e-12)  # although the streams differ by 0.4
    assert "f1_vs_reference" not in by_label["uniform"].scores
    assert rows(tmp_path, reference="camels")["uniform"].value("f1_vs_reference") == pytest.approx(-0.1)
    board(tmp_path, pair(tmp_path, "closed_book", (0.0, 0.1)) + pair(tmp_path, "camels", (0.2, 0.6)))
    assert rows(tmp_path)["camels"].value("f1_vs_reference") == pytest.approx(0.35), "without uniform"


def test_the_reference_can_be_any_complete_row_by_its_label(tmp_path):
    ids = [
        name
        for rate, level in ((1, 0.2), (2, 0.5))
        for name in pair(tmp_path, "slow", (level, level + 0.1), config={"rate": rate})
    ]
    board(
        tmp_path, [*ids, *pair(tmp_path, "uniform", (0.1, 0.2)), record(tmp_path, spec("bad", ZERO), status="diverged")]
    )
    built = build(tmp_path, reference="slow (rate=2)")
    found = {row.label: row.value("f1_vs_reference") for row in built.rows}
    assert found == {
        "slow (rate=1)": pytest.approx(-0.3),
        "slow (rate=2)": None,
        "uniform": pytest.approx(-0.4),
        "bad": None,
    }
    assert built.reference == "slow (rate=2)"
    assert "F1 vs slow (rate=2)" in tables.write(built, tmp_path / "out")[2].read_text()
    costs = next(row.costs for row in built.rows if row.label == "uniform")
    assert costs["break_even_unclear"] == 1, "it costs as much as the reference"
    for name, message in (
        ("slow", "slow has 2 rows on the board demo"),
        ("slwo (rate=2)", "Did you mean slow"),
        ("bad", r"bad \[diverged on 1 of 2\] is not complete on the board demo: name another --reference"),
    ):
        with pytest.raises(BenchError, match=message):
            build(tmp_path, reference=name)


def test_knowledge_gain_needs_both_controls(tmp_path):
    ids = pair(tmp_path, "uniform", (0.3, 0.3)) + pair(tmp_path, "uniform", (0.1, 0.1), "placebo")
    board(tmp_path, ids)
    assert "knowledge_gain" not in rows(tmp_path)["uniform"].scores
    board(tmp_path, ids + pair(tmp_path, "gold_in_prompt", (0.9, 0.9)))
    by_label = rows(tmp_path)
    assert by_label["uniform"].value("knowledge_gain") == pytest.approx((0.3 - 0.1) / (0.9 - 0.1))
    board(tmp_path, ids + pair(tmp_path, "gold_in_prompt", (0.1, 0.1)))
    assert "knowledge_gain" not in rows(tmp_path)["uniform"].scores, "gold in prompt is not above placebo"
    assert "knowledge_gain" not in by_label["uniform on placebo"].scores
    assert "knowledge_gain" not in by_label["gold_in_prompt"].scores


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


def test_a_rate_of_zero_is_no_disabled_setting(tmp_path):
    ids = [name for rate in (0.0, 0.1) for name in pair(tmp_path, "slow", (rate, rate), config={"rate": rate})]
    board(tmp_path, ids)
    assert [row.label for row in build(tmp_path).rows] == ["slow (rate=0.1)", "slow (rate=0.0)"]


def test_labels_omit_tuned_and_disabled_settings_if_they_are_not_needed(tmp_path):
    plain, mixed = ({"control": control, "rate": rate} for control, rate in (("none", 0.2), ("shuffled", 0.4)))
    ids = pair(tmp_path, "camels", (0.4, 0.4), config=plain) + pair(tmp_path, "camels", (0.2, 0.2), config=mixed)
    ids += pair(tmp_path, "camels", (0.1, 0.1), "placebo", config=plain)
    keys = [
        tuning_record(tmp_path, "camels", [({**config, "rate": rate}, [0.1]) for rate in (0.2, 0.4)], config)
        for config in (plain, mixed)
    ]
    board(tmp_path, ids, tuning=keys, hand_set={"camels": ["control"]})
    assert [row.label for row in build(tmp_path).rows] == ["camels", "camels (control=shuffled)", "camels on placebo"]


def test_a_setting_that_nobody_fixed_tells_rows_apart_before_a_tuned_rate_does(tmp_path):
    """So that a row has the same label on boards with other rates."""
    settings = [
        ("wide", "all", 0.1),
        ("wide", "lora", 0.3),
        *(("narrow", learn, 0.3) for learn in ("all", "lora", "top")),
    ]
    ids = [
        name
        for f1, (context, learn, rate) in zip((0.5, 0.4, 0.3, 0.2, 0.1), settings, strict=True)
        for name in pair(tmp_path, "slow", (f1, f1), config={"context": context, "learn": learn, "learning_rate": rate})
    ]
    board(tmp_path, ids, hand_set={"slow": ["learn"]})
    titles = ["context=wide, learn=all", "context=wide, learn=lora", "learn=all", "learn=lora", "learn=top"]
    assert [row.label for row in build(tmp_path).rows] == [f"slow ({title})" for title in titles]


class TestSeedsAndOrders:
    def test_seeds_are_averaged_and_are_a_part_of_the_error(self, tmp_path):
        board(tmp_path, pair(tmp_path, "uniform", (0.1, 0.5)) + pair(tmp_path, "uniform", (0.3, 0.7), seed=1))
        row = rows(tmp_path)["uniform"]
        assert (row.seeds, row.orders, row.streams) == (2, 1, 2)
        assert row.scores["f1"][0].mean == pytest.approx(0.4)
        # stream means 0.2 and 0.6, seed means 0.3 and 0.5
        assert row.scores["f1"][0].se == pytest.approx(math.sqrt(0.2**2 + 0.1**2))
        assert row.scores["f1"][1].se == pytest.approx(math.sqrt(0.2**2 / 3 + 0.1**2))
        assert row.spread == pytest.approx({"streams": 0.8, "seeds": 0.2, "rest": 0.0}, abs=1e-9)

    def test_orders_are_averaged_within_their_streams(self, tmp_path):
        board(tmp_path, pair(tmp_path, "uniform", (0.1, 0.5)) + pair(tmp_path, "uniform", (0.3, 0.7), order=1))
        row = rows(tmp_path)["uniform"]
        assert (row.seeds, row.orders, row.streams, row.status) == (1, 2, 2, "complete")
        assert (row.scores["f1"][0].mean, row.scores["f1"][0].se) == (pytest.approx(0.4), pytest.approx(0.2))
        # variance of the stream means 0.08, of the orders within streams 0.02: components 0.08 - 0.02 / 2 and 0.02
        assert row.spread == pytest.approx({"streams": 7 / 9, "orders": 2 / 9})

    def test_documents_keep_their_names_in_every_order(self, tmp_path):
        ids = []
        for order, nll in ((0, (1.0, 3.0)), (1, (2.0, 4.0))):
            ids.append(record(tmp_path, spec("uniform", ZERO, order=order), nll=nll))
            documents = read_documents(tmp_path, ids[-1])
            if order:  # the second document comes first
                documents = [
                    event.model_copy(update={"document_id": documents[1 - i].document_id})
                    for i, event in enumerate(documents)
                ]
            write_run(tmp_path, read_run(tmp_path / ids[-1]), documents)
        board(tmp_path, ids)
        assert rows(tmp_path)["uniform"].scores["token_nll"][1].se == pytest.approx(0)  # 2.5 for both documents

    def test_the_shares_of_the_spread_stand_below_the_board(self, tmp_path):
        ids = pair(tmp_path, "uniform", (0.1, 0.5)) + pair(tmp_path, "uniform", (0.3, 0.7), seed=1)
        board(tmp_path, ids + pair(tmp_path, "camels", (0.1, 0.5)))
        built = build(tmp_path)
        assert "Shares in the variance of a run's score: uniform: streams 80%, seeds 20%, rest 0%." in built.remarks
        by_label = {row.label: tables.fields(row, built) for row in built.rows}
        assert by_label["uniform"]["spread_seeds"] == pytest.approx(0.2)
        assert by_label["uniform"]["spread_orders"] is None and by_label["camels"]["spread_streams"] is None

    @pytest.mark.parametrize("failure", ["failed", None])
    def test_a_stream_without_one_of_the_seeds_is_left_out(self, tmp_path, failure):
        ids = pair(tmp_path, "uniform", (0.1, 0.5)) + pair(tmp_path, "uniform", (0.3, 0.7), seed=1)[:1]
        ids += [record(tmp_path, spec("uniform", ONE, seed=1), status=failure)] if failure else []
        board(tmp_path, ids + pair(tmp_path, "camels", (0.1, 0.5)))
        row = rows(tmp_path)["uniform"]
        expected = ("failed", "out of memory on 1 of 2") if failure else ("incomplete", "1 of 2 streams")
        assert ((row.status, row.note), row.streams) == (expected, 1)
        assert row.value("f1") == pytest.approx(0.2)
        assert (row.spread, row.standing) == ({}, None)

    def test_knowledge_gain_has_the_seeds_in_its_error(self, tmp_path):
        ids = pair(tmp_path, "gold_in_prompt", (0.9, 0.9))
        for seed, f1 in ((0, 0.3), (1, 0.5)):
            ids += pair(tmp_path, "uniform", (f1, f1), seed=seed) + pair(
                tmp_path, "uniform", (0.1, 0.1), "placebo", seed=seed
            )
        board(tmp_path, ids)
        (gain,) = rows(tmp_path)["uniform"].scores["knowledge_gain"]
        assert (gain.mean, gain.se) == (pytest.approx(0.3 / 0.8), pytest.approx(0.1 / 0.8))

    def test_knowledge_gain_with_a_placebo_of_one_seed(self, tmp_path):
        ids = pair(tmp_path, "gold_in_prompt", (0.9, 0.9)) + pair(tmp_path, "uniform", (0.1, 0.1), "placebo")
        for seed, f1 in ((0, 0.3), (1, 0.5)):
            ids += pair(tmp_path, "uniform", (f1, f1), seed=seed)
        board(tmp_path, ids)
        assert rows(tmp_path)["uniform"].value("knowledge_gain") == pytest.approx(0.3 / 0.8)


def test_forgetting_is_the_loss_of_f1_on_the_anchor_set(tmp_path):
    name = record(tmp_path, spec("uniform", ZERO), [[1.0]], anchor_before=0.8, anchor_after=0.5)
    board(tmp_path, [name])
    estimates = rows(tmp_path)["uniform"].scores["forgetting"]
    assert [(e.mean, e.se, e.kind) for e in estimates] == [(pytest.approx(0.3), None, "SE_stream")]


class TestStandings:
    def test_with_one_stream_documents_are_compared(self, tmp_path):
        even, odd = [[0.9], [0.5]] * 20, [[0.5], [0.9]] * 20
        scores = {"a": even, "b": odd, "c": [[0.1]] * 40, "gold_in_prompt": [[1.0]] * 40}
        board(tmp_path, [record(tmp_path, spec(method, ZERO), f1) for method, f1 in scores.items()])
        found = {row.label: (row.as_good_as_best, str(row.standing or "")) for row in build(tmp_path).rows}
        assert found == {"a": (True, "1-2"), "b": (True, "1-2"), "c": (False, "3"), "gold_in_prompt": (False, "")}

    def test_with_several_streams_streams_are_compared(self, tmp_path):
        ids = []
        for method, levels in {
            "a": (0.4, 0.5, 0.6, 0.5),
            "b": (0.5, 0.4, 0.5, 0.7),
            "c": (0.2, 0.31, 0.4, 0.3),
        }.items():
            for k, level in enumerate(levels):
                ids.append(record(tmp_path, spec(method, f"test-20-{k}"), [[level]] * 20))
        board(tmp_path, ids)
        # a - c: 0.1975 +- 0.0025 (t = 79); b - c: 0.2225 +- 0.0748 (p = 0.06); by documents b is far better than c
        found = {row.label: str(row.standing) for row in build(tmp_path).rows}
        assert found == {"a": "1-2", "b": "1-3", "c": "2-3"}

    def test_p_values_against_the_reference_are_adjusted_for_the_rows_that_compete(self, tmp_path):
        levels = {
            "closed_book": (0.1, 0.2, 0.1),
            "a": (0.5, 0.7, 0.6),
            "b": (0.2, 0.2, 0.3),
            "uniform": (0.1, 0.3, 0.1),
        }
        ids = [
            record(tmp_path, spec(method, f"test-20-{k}"), [[level]] * 20)
            for method, of in {**levels, "gold_in_prompt": (1.0, 1.0, 1.0)}.items()
            for k, level in enumerate(of)
        ]
        board(tmp_path, ids)
        found = rows(tmp_path, reference="closed_book")
        raw = {name: ttest_rel(levels[name], levels["closed_book"]).pvalue for name in ("a", "b", "uniform")}
        assert found["a"].p_vs_reference == pytest.approx(3 * raw["a"])
        assert found["b"].p_vs_reference == pytest.approx(2 * raw["b"])
        assert found["uniform"].p_vs_reference == pytest.approx(2 * raw["b"]), "larger than its own, but not below b's"
        assert found["closed_book"].p_vs_reference is found["gold_in_prompt"].p_vs_reference is None

    def test_where_no_method_is_better_than_another_none_is_bold(self, tmp_path):
        ids = [*pair(tmp_path, "a", (0.1, 0.3)), *pair(tmp_path, "b", (0.3, 0.2))]
        board(tmp_path, ids)
        built = build(tmp_path)
        assert [(row.as_good_as_best, row.is_bold) for row in built.rows] == [(True, False)] * 2
        assert any(note.startswith("No row is bold, since no method is signif") for note in columns.notes(built, []))
        board(tmp_path, [*ids, *pair(tmp_path, "gold_in_prompt", (1.0, 1.0)), *pair(tmp_path, "c", (0.1, 0.31))])
        assert not any(row.is_bold for row in build(tmp_path).rows), "a control does not compete"


class TestGaps:
    def test_a_missing_stream_is_marked_and_ranks_after_complete_rows(self, tmp_path):
        board(tmp_path, pair(tmp_path, "uniform", (0.1, 0.1)) + pair(tmp_path, "camels", (0.9, 0.9))[:1])
        first, second = build(tmp_path).rows
        assert (first.label, second.label) == ("uniform", "camels")
        assert (second.status, second.note, second.streams) == ("incomplete", "1 of 2 streams", 1)
        assert "f1_vs_reference" not in second.scores
        assert second.standing is None and not second.as_good_as_best

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


class TestPlans:
    """What the experiment planned for a row: trials and hand-set settings."""

    def test_the_tuning_record_is_that_of_the_entry_that_lists_the_runs(self, tmp_path):
        trials = [({"lr": rate}, [0.5]) for rate in (0.1, 0.2)]
        key = tuning_record(tmp_path, "uniform", trials, {"lr": 0.1})
        tuned = record(tmp_path, spec("uniform", ZERO, config={"lr": 0.1, "more": 1}), [[1.0]], tunable=True)
        untuned = record(tmp_path, spec("uniform", ZERO, config={"lr": 0.2}), [[0.5]], tunable=True)
        fixed = record(tmp_path, spec("closed_book", ZERO), [[0.1]])
        entries = [
            BoardEntry(method="uniform", runs=[untuned], tuning=None, hand_set=["lr"]),
            BoardEntry(method="uniform", runs=[tuned, untuned], tuning=key, hand_set=[]),
            BoardEntry(method="closed_book", runs=[fixed], tuning=None, hand_set=[]),
        ]
        write_board(tmp_path, BoardRecord(experiment="demo", entries=entries[:1] + entries[2:], remarks=[]))
        assert [(row.trials, row.tuned, row.hand_set) for row in build(tmp_path).rows] == [
            (0, False, ("lr",)),
            (0, None, ()),
        ]
        write_board(tmp_path, BoardRecord(experiment="demo", entries=entries, remarks=[]))
        assert {(row.trials, row.tuned, row.hand_set) for row in build(tmp_path).rows} == {(2, True, ()), (0, None, ())}

    def test_hand_set_settings_stand_below_the_board(self, tmp_path):
        ids = pair(tmp_path, "uniform", (0.1, 0.1)) + pair(tmp_path, "camels", (0.2, 0.2))
        ids += pair(tmp_path, "camels", (0.2, 0.2), "placebo")
        hand_set = {"uniform": ["optimizer"], "camels": ["training.steps", "training.rate", "adapter.rank"]}
        board(tmp_path, ids, hand_set=hand_set)
        remark = "Hand-set: camels: training (2 settings), adapter.rank; uniform: optimizer."
        assert remark in build(tmp_path).remarks


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
    assert not any(row.as_good_as_best for row in built.rows)
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

    def test_of_different_prompts_the_settings_that_differ_are_named(self, tmp_path):
        prompts = (PLAIN, PromptFormat(begin="<s>", question="Q: {question}\nA:"))
        cells = [spec(m, ZERO, prompt=prompt) for m, prompt in zip(("uniform", "camels"), prompts, strict=True)]
        board(tmp_path, [record(tmp_path, cell, [[1.0]]) for cell in cells])
        differences = r"prompt.begin (None and <s>), prompt.question ({question} and 'Q: {question}\nA:')."
        with pytest.raises(BenchError, match=re.escape(f"differ in {differences}")):
            build(tmp_path)

    def test_prompts_that_are_not_the_default_are_below_the_board(self, tmp_path):
        board(tmp_path, [record(tmp_path, spec("uniform", ZERO, prompt=PromptFormat(begin="<s>")), [[1.0]])])
        assert "Prompts: begin '<s>'." in tables.render(build(tmp_path), 500).caption

    def test_the_size_of_the_streams_counts_but_their_number_does_not(self, tmp_path):
        ids = [
            record(tmp_path, spec("uniform", ONE), [[1.0]]),
            record(tmp_path, spec("camels", "test-3-0"), [[1.0]]),
        ]
        board(tmp_path, ids)
        with pytest.raises(BenchError, match=r"they differ in streams \(test-2 and test-3\)\."):
            build(tmp_path)

    def test_an_older_protocol_is_refused_and_the_remedy_is_named(self, tmp_path):
        old, new = spec("uniform", ZERO, protocol="1.1"), spec("camels", ZERO)
        board(tmp_path, [record(tmp_path, cell, [[1.0]]) for cell in (new, old)])
        with pytest.raises(
            BenchError, match=r"^uniform-\S+ was run under protocol 1\.1, whose scores .* of protocol 2\.0\."
        ):
            build(tmp_path)

    def test_orders_of_a_stream_may_have_other_hashes(self, tmp_path):
        cells = [spec("uniform", ZERO, order=order, stream_hash=str(order)) for order in (0, 1)]
        board(tmp_path, [record(tmp_path, cell, [[1.0]]) for cell in cells])
        assert rows(tmp_path)["uniform"].orders == 2

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


def write_segments(runs, cell, sizes, after=None):
    """Write a run with these segments: position of the document, segment, tokens, bytes and NLL.

    ``after`` is the NLL per token after they were observed.
    """
    documents = [
        DocumentEvent(
            position=position,
            segment=segment,
            document_id=f"d{position}",
            tokens=tokens,
            bytes=utf8_bytes,
            windows=1,
            nll=nll,
            nll_after=None if after is None else after * tokens,
            observe_seconds=0.1,
        )
        for position, segment, tokens, utf8_bytes, nll in sizes
    ]
    run = read_run(runs / record(runs, cell))
    summary = summarize(documents, [])
    write_run(runs, run.model_copy(update={"summary": summary}), documents)
    return summary


def test_methods_that_cut_documents_differently_are_compared_by_document(tmp_path):
    cells = [spec(method, stream) for method in ("uniform", "lora") for stream in (ZERO, ONE)]
    whole, cut = [(0, 0, 4, 8, 6.0), (1, 0, 2, 4, 2.0)], [(0, 0, 3, 6, 4.0), (0, 1, 1, 2, 0.5), (1, 0, 2, 4, 1.5)]
    for cell, sizes in zip(cells, (whole, whole, cut, cut), strict=True):
        write_segments(tmp_path, cell, sizes)
    board(tmp_path, [cell.id for cell in cells])
    row = rows(tmp_path)["lora"]
    assert row.value("token_nll") == pytest.approx(6 / 6)
    assert row.value("token_nll_vs_reference") == pytest.approx((6 - 8) / 6)


def test_a_text_that_was_not_scored_before_may_be_scored_after_observing(tmp_path):
    for method in ("uniform", "lora"):
        cell = spec(method, ZERO, reread=True, scoring=False)
        write_segments(tmp_path, cell, [(0, 0, 3, 6, None), (0, 1, 1, 2, None), (1, 0, 2, 4, None)], after=0.5)
    board(tmp_path, [run.parent.name for run in tmp_path.glob("*/run.json")])
    row = rows(tmp_path)["lora"]
    assert row.value("token_nll_after") == pytest.approx(3 / 6)
    assert row.value("token_nll") is None and row.value("bits_per_byte") is None


def test_the_nll_after_observing_is_a_score_of_its_own(tmp_path):
    for cell in (spec("uniform", ZERO, reread=True), spec("lora", ZERO, reread=True)):
        write_segments(tmp_path, cell, [(0, 0, 3, 6, 4.0), (0, 1, 1, 2, 0.5), (1, 0, 2, 4, 1.5)], after=0.5)
    board(tmp_path, [run.parent.name for run in tmp_path.glob("*/run.json")])
    row = rows(tmp_path)["lora"]
    assert row.value("token_nll_after") == pytest.approx(3 / 6)
    assert row.value("token_nll") == pytest.approx(6 / 6)


def test_bits_per_byte_are_those_of_whole_documents_if_a_segment_has_no_bytes(tmp_path):
    cell = spec("uniform", ZERO, segment_tokens=1)
    summary = write_segments(
        tmp_path, cell, [(0, 0, 1, 0, 3.0), (0, 1, 1, 4, 1.0), (1, 0, 2, 8, 2.0), (2, 0, 0, 0, 0.0)]
    )
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
        "Questions that did not fit into the model's window are scored as empty answers, and are not in answer NLL: "
        "uniform (2 of 6).",
    )
    (row,) = built.rows
    assert row.value("f1") == pytest.approx(1 / 6) and row.value("answer_nll") is not None

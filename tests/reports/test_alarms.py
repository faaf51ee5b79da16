"""Alarms: each is raised where it should be, and none on a board without reason for one."""

from __future__ import annotations

import pytest

from bench.records.schema import Tally
from bench.records.store import read_answers, read_board, read_documents, read_run, read_tuning, write_run
from reports.alarms import remarks
from reports.board import build, load
from reports.rows import make_row, read_items
from tests.reports import records_factory
from tests.reports.records_factory import costs, record, spec, tuning_record

STREAMS = ("test-20-0", "test-20-1", "test-20-2")
CONTROLS = {("closed_book", "stream"): 0.05, ("gold_in_prompt", "stream"): 0.9}
SOUND = {**CONTROLS, ("uniform", "stream"): 0.4, ("uniform", "placebo"): 0.05, ("uniform", "empty"): 0.05}


@pytest.fixture
def alarms(tmp_path):
    """A function of the level of F1 by method and arm, and of changes by method; returns the alarms of the board.

    A change may be a function of the number of the stream. ``silent`` is the number of documents of each stream whose
    answers are empty and wrong, by method.
    """

    def of(levels, tuning=(), silent=None, **changes):
        ids = []
        for (method, arm), level in levels.items():
            for k, stream in enumerate(STREAMS):
                f1 = [[float((7 * i + 3 * j + k) % 20 < 20 * level) for j in range(2)] for i in range(20)]
                events = {"nll": [2.0] * 20, "anchor_before": 0.5, "anchor_after": 0.5} if arm == "stream" else {}
                own = {name: of(k) if callable(of) else of for name, of in changes.get(method, {}).items()}
                run_id = record(tmp_path, spec(method, stream, arm), f1, **{**events, **own})
                ids.append(run_id)
                if number := (silent or {}).get(method):
                    silence(run_id, number)
        keys = [tuning_record(tmp_path, *arguments) for arguments in tuning]
        records_factory.board(tmp_path, ids, tuning=keys)
        groups, _ = load(tmp_path)
        board, records = read_board(tmp_path), read_tuning(tmp_path, keys)
        rows = []
        for group in groups:
            items = read_items(group)
            rows.append((make_row(group, items, len(STREAMS), board, records), items))
        return remarks(rows, records)

    def silence(run_id, number):
        answers = [
            event.model_copy(update={"prediction": "", "f1": 0.0}) if event.position < number else event
            for event in read_answers(tmp_path, run_id)
        ]
        write_run(tmp_path, read_run(tmp_path / run_id), read_documents(tmp_path, run_id), answers)

    return of


def test_a_sound_board_has_none(alarms):
    trials = [({"k": k}, (0.1 * k, 0.2)) for k in (1, 2, 3)]
    assert alarms(SOUND, tuning=[("uniform", trials, {"k": 3})], silent={"uniform": 10}) == []


@pytest.mark.parametrize("gold", [0.05, 0.0])
def test_gold_in_prompt_must_be_above_closed_book(alarms, gold):
    (remark,) = alarms({**SOUND, ("gold_in_prompt", "stream"): gold})
    assert remark.startswith(f"gold_in_prompt is not significantly above closed_book (F1 {gold - 0.05:+.3f}): ")
    assert remark.endswith("nothing can be concluded about knowledge.")


def test_rows_with_over_half_of_their_answers_empty(alarms):
    levels = {**SOUND, ("lora", "stream"): 0.4, ("mac", "stream"): 0.4}
    assert alarms(levels, silent={"uniform": 11, "lora": 20, "mac": 10})[:1] == [
        "Over half of the answers are empty: uniform (55%), uniform on placebo (55%), uniform on empty (55%), "
        "lora (100%). Their F1 says nothing about knowledge."
    ]


def test_runs_in_which_the_text_is_twice_as_unlikely(alarms):
    changes = {"lora": {"nll": [2.0] * 10 + [6.1] * 10}, "mac": {"nll": [2.0] * 10 + [5.9] * 10}}
    assert alarms({**SOUND, ("lora", "stream"): 0.4, ("mac", "stream"): 0.4}, **changes) == [
        "The token NLL is above twice that of the unadapted model: lora (3 of 3 runs). The runs are complete, but the "
        "adapted model no longer predicts text. Where a learning rate is tuned, a lower one may help."
    ]


def test_placebo_as_good_as_the_stream(alarms):
    levels = {**SOUND, ("uniform", "placebo"): 0.4, ("lora", "stream"): 0.5, ("lora", "placebo"): 0.5}
    assert alarms(levels) == [
        "As good as on the stream, and far above closed book: uniform on placebo (F1 +0.350), lora on placebo "
        "(F1 +0.450). What is gained is not from the documents; the method may remember earlier streams "
        "(docs/rules.md, section 15)."
    ]


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
def test_placebo_far_above_closed_book_by_hand(tmp_path, stream, placebo, closed_book, suspicious):
    arms = {
        ("hoarder", "stream"): stream,
        ("hoarder", "placebo"): placebo,
        ("closed_book", "stream"): [closed_book] * 4,
    }
    ids = [
        record(tmp_path, spec(method, f"test-2-{k}", arm), [[value] for value in f1[2 * k : 2 * k + 2]])
        for (method, arm), f1 in arms.items()
        for k in (0, 1)
    ]
    records_factory.board(tmp_path, ids)
    alarm = f"far above closed book: hoarder on placebo (F1 {sum(placebo) / 4 - closed_book:+.3f})"
    assert [alarm in remark for remark in build(tmp_path).remarks if "placebo" in remark] == [True] * suspicious


def test_trials_that_all_have_one_score(alarms):
    equal = [({"k": k}, (0.1, 0.2)) for k in (1, 2)]
    single = [({"k": 1}, (0.1, 0.2)), ({"k": 2}, None)]
    tuning = [("uniform", equal, {"k": 1}), ("lora", equal, {"k": 1}), ("mac", single, {"k": 1})]
    assert alarms(SOUND, tuning=tuning) == [
        "Every trial has the same score: uniform (F1 0.150), lora (F1 0.150). The tuned settings change nothing."
    ]


def test_trials_that_only_the_answers_nll_tells_apart(tmp_path):
    (record,) = read_tuning(tmp_path, [tuning_record(tmp_path, "uniform", [({"k": k}, (0.0,)) for k in (1, 2)], {})])
    trials = tuple({**trial, "answer_nll": trial["config"]["k"]} for trial in record.trials)
    assert remarks([], [record.model_copy(update={"trials": trials})]) == [
        "All trials with results have the same score: uniform (F1 0.000). It does not tell the settings apart, and "
        "only the answers' NLL has decided."
    ]


def test_settings_that_made_a_trial_fail_change_something(alarms):
    tried = [({"k": 1}, (0.1, 0.2)), ({"k": 2}, (0.1, 0.2)), ({"k": 3}, None)]
    assert alarms(SOUND, tuning=[("uniform", tried, {"k": 1})]) == []


def test_rows_without_anchor_scores_among_others_with_them(alarms):
    assert alarms(SOUND, uniform={"anchor_before": None, "anchor_after": None}) == [
        "No anchor scores, so forgetting is unknown: uniform."
    ]


def test_settings_that_are_no_better_than_the_method_without_documents(tmp_path):
    tried = [({"k": 1}, (0.1, 0.2)), ({"k": 2}, (0.1, 0.3))]
    floors = {"lora": 0.2, "mac": 0.1}
    keys = [tuning_record(tmp_path, name, tried, {"k": 2}, floor=floor) for name, floor in floors.items()]
    assert remarks([], read_tuning(tmp_path, keys)) == [
        "No settings that were tried score above the method without documents on validation: lora (F1 0.200 against "
        "0.200)."
    ]


def test_a_machine_that_was_loaded_unevenly(alarms):
    def scoring(*seconds):
        tallies = [Tally(seconds=each, flops=100.0, peak_bytes=20) for each in seconds]
        return {"costs": lambda stream: costs().model_copy(update={"score": tallies[stream]})}

    assert alarms(SOUND, uniform=scoring(2.0, 3.0, 3.9)) == []
    assert alarms(SOUND, uniform=scoring(2.0, 3.0, 5.0)) == [
        "The machine was loaded unevenly: scoring took up to 2.5 times as long for the same operations (uniform). "
        "Compare operations, not seconds."
    ]
    assert alarms(SOUND, uniform=scoring(0.2, 0.3, 0.5)) == [], "too short to tell"
    gpus = {"provenance": lambda stream: {"gpu": ("fast", "fast", "slow")[stream]}}
    assert alarms(SOUND, uniform=scoring(2.0, 3.0, 9.0) | gpus) == [], "another machine"

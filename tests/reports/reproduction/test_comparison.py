"""Whole figures from records: planted agreement and disagreement, distances at the paper's size, and the files."""

from __future__ import annotations

import dataclasses

import pytest

from bench.errors import BenchError
from reports import reproduction
from reports.board import build
from reports.reproduction import figure
from reports.reproduction.comparison import compare
from reports.reproduction.text import render
from reports.verdicts import AGREES, DIFFERS, UNRESOLVED
from tests.reports.records_factory import board, record, spec
from tests.reports.reproduction.planted import in_opposite_order, in_published_order

TABLE = figure.read("table")
TINY = TABLE.runs("tiny")[0]
AT_ITS_SIZE = figure.Run.model_validate({"experiment": "squad", "published": {"dataset": "SQuAD", "base": "GPT2-XL"}})


def panels(compared, score="f1_shortest"):
    """The word of each panel of a score by dataset and base."""
    return {panel.theirs.place: panel.shape.word for panel in compared.panels if panel.score == score}


def test_planted_agreement_is_found_in_every_published_panel(tmp_path):
    compared = compare(TABLE, "tiny", [(TINY, in_published_order(tmp_path))])
    words = panels(compared)
    # on SQuAD with DistilGPT2 and GPT2-XL, and on ArchivalQA with DistilGPT2, the paper has salient spans below uniform
    inverted = {"SQuAD, DistilGPT2", "SQuAD, GPT2-XL", "ArchivalQA, DistilGPT2"}
    assert len(words) == 12 and {place for place, word in words.items() if word != AGREES} == inverted
    assert {words[place] for place in inverted} == {DIFFERS}
    for panel in compared.panels:
        if panel.score == "f1_shortest" and panel.theirs.place in inverted:
            assert panel.shape.agreement.tau == pytest.approx(0.8), "one pair of ten"
            (differing,) = panel.shape.differing
            assert differing.sentence().startswith("uniform above salient spans by 0.")


def test_planted_disagreement_is_found_in_every_published_panel(tmp_path):
    compared = compare(TABLE, "tiny", [(TINY, in_opposite_order(tmp_path))])
    assert {*panels(compared).values()} == {DIFFERS}
    taus = {panel.theirs.place: panel.shape.agreement.tau for panel in compared.panels if panel.shape.agreement}
    assert taus["SQuAD, GPT2-Large"] == -1
    # EM is 0 on all of these records
    assert compared.verdict() == "Shapes of 24 published panels: sign differs (12), not resolved at this size (12)."


def test_one_stream_resolves_nothing(tmp_path):
    compared = compare(TABLE, "tiny", [(TINY, in_published_order(tmp_path, streams=1))])
    assert {*panels(compared).values()} == {UNRESOLVED}


def test_at_the_papers_size_each_value_is_so_many_standard_errors_away(tmp_path):
    ids = []
    for k, f1 in enumerate((0.06, 0.08)):
        ids.append(record(tmp_path, spec("uniform", f"test-4-{k}"), [[f1]] * 4, [3.0] * 4))
        ids.append(record(tmp_path, spec("cmt", f"test-4-{k}"), [[f1 + 0.06]] * 4, [3.0] * 4))
    board(tmp_path, ids, "squad")
    compared = compare(TABLE, "paper", [(AT_ITS_SIZE, build(tmp_path))])
    distances = dict(compared.panels[0].distances)
    # the mean is 7, the error half the difference of 6 and 8, and MAC's paper has 6.78 for uniform with GPT2-XL
    assert distances["uniform"].in_errors == pytest.approx((7 - 6.78) / 1)
    assert (str(distances["CMT"].published), distances["CMT"].in_errors) == ("12.85", pytest.approx(0.15))
    assert compared.panels[0].shape is None
    assert compared.panels[0].sentences()[0] == (
        "uniform, F1: 6.78 published, 7.00 ± 12.71 here, +0.2 standard errors."
    )
    assert compared.verdict().startswith("2 of 2 published values are within two standard errors of ours. 2 more"), (
        "EM is 0 on both streams"
    )
    _, paths = reproduction.write(TABLE, "paper", [(AT_ITS_SIZE, build(tmp_path))], tmp_path / "out")
    assert {path.stem for path in paths} == {"f1_shortest_SQuAD_GPT2-XL", "em_prefix_SQuAD_GPT2-XL", "figure"}
    assert "| uniform, F1 | 6.78 | 7.00 ± 12.71 | +0.2 |" in paths[-1].read_text()


def test_at_the_papers_size_values_beside_a_single_stream_are_not_judged(tmp_path):
    ids = [record(tmp_path, spec("uniform", "test-4-0"), [[0.06]] * 4, [3.0] * 4)]
    board(tmp_path, ids, "squad")
    compared = compare(TABLE, "paper", [(AT_ITS_SIZE, build(tmp_path))])
    assert [distance.in_errors for panel in compared.panels for _, distance in panel.distances] == [None, None]
    assert compared.verdict().endswith("2 more have no standard error above 0 beside them.")


def test_boards_of_one_data_set_and_base_are_told_apart_by_their_experiments(tmp_path):
    first, second = in_published_order(tmp_path / "a"), in_opposite_order(tmp_path / "b")
    other = dataclasses.replace(second, experiment="bases")
    compared = compare(TABLE, "tiny", [(TINY, first), (TINY, other)])
    assert [ours.name for ours in compared.own["f1_shortest"]] == [
        "world, tiny, 4 streams, default",
        "world, tiny, 4 streams, bases",
    ]
    assert [ours.place for ours in compared.own["em_prefix"]] == [
        "here: world, tiny (default)",
        "here: world, tiny (bases)",
    ]
    lines = render(compared).splitlines()
    assert sum(line.startswith("| world, tiny, 4 streams, ") for line in lines) == 4, "two boards, for two scores"


def test_records_without_any_of_the_scores_are_an_error_and_a_score_without_records_is_left_out(tmp_path):
    none = figure.read("shift")
    built = in_published_order(tmp_path)
    with pytest.raises(BenchError, match="shift: the records have nothing that bits_per_byte could show"):
        reproduction.write(none, "tiny", [(none.runs("tiny")[0], built)], tmp_path / "out")


def test_the_same_records_give_the_same_files_and_a_smaller_figure_leaves_none_behind(tmp_path):
    built, out, costs = in_published_order(tmp_path / "runs"), tmp_path / "out", figure.read("costs")
    _, paths = reproduction.write(costs, "tiny", [(TINY, built)], out)
    assert sorted(path.name for path in paths) == sorted(
        ["figure.md", *(f"{score}.{kind}" for score in costs.scores for kind in ("pdf", "svg", "png", "txt"))]
    )
    before = {path: path.read_bytes() for path in paths}
    reproduction.write(costs, "tiny", [(TINY, built)], out)
    assert {path: path.read_bytes() for path in paths} == before
    one = costs.model_copy(update={"scores": {"observe_peak_bytes": "peak memory"}})
    reproduction.write(one, "tiny", [(TINY, built)], out)
    assert (
        "![Memory and time of adapting](observe_peak_bytes.png)"
        in (out / "figures" / "costs" / "figure.md").read_text()
    )
    left = {path.stem for path in (out / "figures" / "costs").iterdir() if path.suffix == ".png"}
    assert left == {"observe_peak_bytes"}


def test_a_figure_of_plots_draws_them_and_says_that_nothing_is_compared(tmp_path):
    built = in_published_order(tmp_path)
    spec = figure.read("offline-cost")
    compared, paths = reproduction.write(spec, "tiny", [(spec.runs("tiny")[0], built)], tmp_path / "out")
    assert {path.stem for path in paths} == {"figure", "cost_by_method", "f1_by_cost"}
    assert compared.verdict() == "No published value is set beside it: nothing is compared."
    none = figure.read("evolving")
    with pytest.raises(BenchError, match="evolving: the records have nothing that evolving could show"):
        reproduction.write(none, "tiny", [(none.runs("tiny")[0], built)], tmp_path / "out")

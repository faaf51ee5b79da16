"""Both sides of a figure: our curves are those of the plots, and published values come together as they should."""

from __future__ import annotations

import math

import pytest

from reports import arm_plots, relative_plots
from reports.board import build
from reports.reproduction.figure import Figure, Method, read
from reports.reproduction.series import NO_PLACE, ours, rows_of, theirs
from tests.reports.records_factory import board, record, spec
from tests.reports.test_board import write_segments
from tests.reports.test_relative_plots import retention, robustness


def figure(along, score="f1", **methods) -> Figure:
    """A figure of our own with these methods, each the name of one of ours or what it is."""
    return Figure.model_validate(
        {
            "name": "mine",
            "title": "t",
            "paper": "none",
            "shows": "s",
            "drawing": "curves" if along else "bars",
            "along": along,
            "scores": {score: ""},
            "methods": methods or {"memory": {"method": "memory"}},
            "scales": {"tiny": [{"experiment": "default"}]},
        }
    )


def numbers(points):
    """Places with means and errors in percent, of a curve of the plots or of a figure."""
    of_plots = not hasattr(points, "items")
    factor, pairs = (100, points) if of_plots else (1, points.items())
    return [(x, pytest.approx(factor * e.mean), pytest.approx(factor * (e.se or 0), abs=1e-9)) for x, e in pairs]


def test_relative_f1_by_documents_is_that_of_the_plot(tmp_path):
    ids = retention(tmp_path, "memory", [(0.8, 0.6, 0.4), (0.6, 0.6, 0.6), (0.6, 0.6, 0.4)])
    ids += retention(tmp_path, "idle", [(0.1, 0.1, 0.2)] * 3) + retention(
        tmp_path, "closed_book", [(0.1, 0.1, 0.1)] * 3
    )
    board(tmp_path, ids)
    built = build(tmp_path)
    (curve,) = [curve for curve in relative_plots.by_documents(built) if curve.label == "memory"]
    found = ours(
        figure("documents", "relative_f1", memory={"method": "memory"}, idle={"method": "idle"}),
        "relative_f1",
        built,
    )
    assert numbers(found.estimates["memory"]) == numbers(curve.points)
    assert found.left_out == ("idle (its F1 at the start is not above closed book)",)


def test_relative_f1_by_irrelevant_documents_is_that_of_the_plot(tmp_path):
    levels = {0: (0.8, 0.6, 0.6), 25: (0.8, 0.6, 0.6), 100: (0.4, 0.6, 0.4)}
    ids = robustness(tmp_path, "memory", levels) + robustness(tmp_path, "closed_book", {0: (0.1, 0.1, 0.1)})
    board(tmp_path, ids)
    built = build(tmp_path)
    (curve,) = relative_plots.by_irrelevant(built)
    found = ours(figure("irrelevant", "relative_f1"), "relative_f1", built)
    assert numbers(found.estimates["memory"]) == numbers(curve.points)


def test_a_method_whose_arm_failed_is_left_out_for_that_reason(tmp_path):
    levels = {0: (0.8, 0.6, 0.6), 100: (0.4, 0.6, 0.4)}
    ids = robustness(tmp_path, "memory", levels, failed=[100])
    board(tmp_path, ids + robustness(tmp_path, "closed_book", {0: (0.1, 0.1, 0.1)}))
    found = ours(figure("irrelevant", "relative_f1"), "relative_f1", build(tmp_path))
    assert found.left_out == ("memory (irrelevant_100: diverged on 1 of 3)",)


def test_irrelevant_documents_on_fewer_seeds_are_set_beside_the_streams(tmp_path):
    levels = {0: (0.8, 0.6, 0.6), 100: (0.4, 0.6, 0.4)}
    ids = robustness(tmp_path, "memory", levels, seeds=(0, 1)) + robustness(tmp_path, "closed_book", {0: (0.1,) * 3})
    board(tmp_path, ids)
    found = ours(figure("irrelevant", "relative_f1"), "relative_f1", build(tmp_path))
    assert found.estimates["memory"][100].mean == pytest.approx(70)


def test_f1_by_context_is_that_of_the_plot(tmp_path):
    levels = {"stream": 0.4, "gold_only": 0.8, "every_4": 0.6, "shuffled": 0.1}
    ids = [
        record(tmp_path, spec("memory", f"test-8-{k}", arm), [[f1 + 0.1 * k]] * 8, [2.0] * 8)
        for arm, f1 in levels.items()
        for k in range(2)
    ]
    board(tmp_path, ids)
    built = build(tmp_path)
    (family,) = arm_plots.families(built)
    found = ours(figure("context"), "f1", built)
    points = [(x, row.scores["f1"][0]) for x, row in family.contexts()]
    assert [x for x, _ in points] == [1, 4, 8] and numbers(found.estimates["memory"]) == numbers(points)


def test_of_several_rows_the_experiments_first_with_these_settings_is_taken(tmp_path):
    configs = [{"learn": "all", "rate": 1}, {"learn": "embeddings", "rate": 2}, {"learn": "embeddings", "rate": 3}]
    ids = [
        record(tmp_path, spec("memory", f"test-4-{k}", config=config), [[0.2 * config["rate"]]] * 4, [2.0] * 4)
        for config in configs
        for k in range(2)
    ]
    board(tmp_path, ids)
    built = build(tmp_path)

    def rates(*settings):
        methods = {str(i): Method(method="memory", config=config) for i, config in enumerate(settings)}
        return [row and row.config["rate"] for row in rows_of(built, methods).values()]

    assert [rates({}), rates({"learn": "embeddings"}), rates({"rate": 3}), rates({"rate": 4})] == [
        [1],
        [2],
        [3],
        [None],
    ]
    assert rates({"rate": 1}, {}, {"learn": "embeddings"}, {}) == [1, 2, 3, None], "no row is taken twice"


def test_what_was_not_run_or_failed_is_left_out_with_the_reason(tmp_path):
    ids = [record(tmp_path, spec("memory", f"test-4-{k}"), [[0.5]] * 4, [2.0] * 4) for k in range(2)]
    ids += [record(tmp_path, spec("broken", f"test-4-{k}"), status="failed") for k in range(2)]
    board(tmp_path, ids)
    names = ("memory", "broken", "absent")
    found = ours(figure(None, **{name: {"method": name} for name in names}), "f1", build(tmp_path))
    assert [*found.lines] == ["memory"]
    assert found.left_out == ("broken (out of memory on 2 of 2)", "absent (not run at this scale)")


def test_scores_and_costs_are_in_the_unit_of_the_papers(tmp_path):
    ids = [record(tmp_path, spec("memory", f"test-4-{k}"), [[0.5]] * 4, [2.0] * 4) for k in range(2)]
    board(tmp_path, ids)
    built = build(tmp_path)
    for score, value in (
        ("f1", 50),
        ("observe_seconds", 2 / 60),
        ("observe_peak_bytes", 3e-6),
        ("answer_flops", 30e-9 / 4),
    ):
        found = ours(figure(None, score), score, built)
        assert found.estimates["memory"][NO_PLACE].mean == pytest.approx(value)
        assert [item.value for item in found.lines["memory"][NO_PLACE]] == [pytest.approx(value)] * 2


def test_operations_per_question_are_over_the_answers_at_all_probes_and_on_anchors(tmp_path):
    cell = spec("memory", "test-4-0", probes=(0.5, 1.0))
    early = {0.5: [[0.5]] * 2}
    board(tmp_path, [record(tmp_path, cell, [[0.5]] * 4, early=early, anchor_before=1.0, anchor_after=1.0)])
    built = build(tmp_path)
    found = ours(figure(None, "answer_flops"), "answer_flops", built).estimates["memory"][NO_PLACE].mean
    assert found == pytest.approx(30e-9 / 8) == pytest.approx(1e-9 * built.rows[0].costs["flops_per_question"])


def test_the_published_table_has_each_measurement_once():
    panels = theirs(read("table"), "f1_shortest")
    assert len(panels) == 12
    (panel,) = [panel for panel in panels if (panel.dataset, panel.base) == ("SQuAD", "Llama-2-7B")]
    assert {name: str(line[NO_PLACE]) for name, line in panel.lines.items()} == {
        "uniform": "17.01",
        "salient spans": "18.66",
        "MAC": "21.14",
        "CMT": "25.50",
    }
    assert {name: line[NO_PLACE].paper for name, line in panel.lines.items()} == {
        **dict.fromkeys(("uniform", "salient spans", "MAC"), "tack2024mac"),
        "CMT": "li2025cmt",
    }
    assert panel.name == "Tack et al. 2024 and Li et al. 2025: SQuAD, Llama-2-7B"


def test_published_curves_have_their_places():
    panels = {panel.base: panel.lines for panel in theirs(read("retention"), "relative_f1")}
    assert [*panels["Llama-2-7B"]["CMT"]] == [200, 400, 600, 800, 1000, 1200]
    assert str(panels["GPT2-XL"]["MAC"][1600]) == "96.2"
    (first, *_) = theirs(read("context-length"), "f1_shortest")
    assert [*first.lines["Generative Adapter"]] == [512 * 2**i for i in range(7)]
    (robust,) = theirs(read("irrelevant"), "relative_f1")
    assert str(robust.lines["CMT"][100]) == "39"


def test_perplexities_are_of_the_text_itself_and_of_what_follows_it(tmp_path):
    cells = [spec("memory", f"test-2-{k}", arm, reread=True) for arm in ("stream", "gold_only") for k in range(2)]
    for k, cell in enumerate(cells):
        write_segments(tmp_path, cell, [(0, 0, 3, 6, 4.0), (0, 1, 1, 2, 0.5 + k), (1, 0, 2, 4, 1.5)], after=0.25)
    board(tmp_path, [cell.id for cell in cells])
    means = {"reconstruction": math.exp(0.25), "completion": (math.exp(2.5) + math.exp(3.5)) / 2}
    for name, mean in means.items():
        score = f"{name}_perplexity"
        drawn = figure(None, score, alone={"method": "memory", "arm": "gold_only"})
        assert ours(drawn, score, build(tmp_path)).estimates["alone"][NO_PLACE].mean == pytest.approx(mean)


def test_runs_that_were_not_read_again_and_whole_documents_have_no_perplexity(tmp_path):
    cell = spec("memory", "test-2-0")
    write_segments(tmp_path, cell, [(0, 0, 3, 6, 4.0), (1, 0, 2, 4, 1.5)])
    board(tmp_path, [cell.id])
    for score in ("reconstruction_perplexity", "completion_perplexity"):
        found = ours(figure(None, score), score, build(tmp_path))
        assert (found.lines, found.left_out) == ({}, ("memory (without a score)",))


def test_the_change_of_f1_is_relative_to_closed_book(tmp_path):
    scores = {"memory": (0.6, 0.2), "closed_book": (0.2, 0.2), "unequal": (0.6,)}
    ids = [
        record(tmp_path, spec(method, f"test-1-{k}", seed=seed), [[f1]])
        for method, of in scores.items()
        for k, f1 in enumerate(of)
        for seed in range(1 + (method == "memory"))
    ]
    board(tmp_path, ids)
    found = ours(figure(None, "f1_change"), "f1_change", build(tmp_path))
    assert found.estimates["memory"][NO_PLACE].mean == pytest.approx(100 * (0.4 / 0.2 - 1))
    unequal = ours(figure(None, "f1_change", unequal={"method": "unequal"}), "f1_change", build(tmp_path))
    assert unequal.left_out == ("unequal (1 of 2 streams)",)


def test_without_an_f1_of_closed_book_there_is_no_change(tmp_path):
    board(
        tmp_path,
        [record(tmp_path, spec(method, "test-1-0"), [[f1]]) for method, f1 in (("memory", 1), ("closed_book", 0))],
    )
    assert ours(figure(None, "f1_change"), "f1_change", build(tmp_path)).lines == {}

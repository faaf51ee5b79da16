"""Drawings: ours and the published values are never on one axis below the paper's size, and always at it."""

from __future__ import annotations

import math

from matplotlib.colors import to_hex

from reports import cost_plots
from reports.board import build
from reports.reproduction import drawing, figure
from reports.reproduction.series import ours, theirs
from reports.style import BLUE, ORANGE
from tests.reports.records_factory import board, costs, record, spec
from tests.reports.reproduction.planted import in_published_order, planted
from tests.reports.test_relative_plots import retention

TABLE = figure.read("table")


def test_each_panel_of_bars_has_one_side_only(tmp_path):
    own = ours(TABLE, "f1_shortest", in_published_order(tmp_path))
    drawn = drawing.apart(TABLE, "f1_shortest", [own], theirs(TABLE, "f1_shortest")).draw()
    used = [axes for axes in drawn.axes if axes.patches]
    assert len(used) == 13
    assert [{to_hex(bar.get_edgecolor()).upper() for bar in axes.patches} for axes in used] == [
        {BLUE.upper()},
        *[{ORANGE.upper()}] * 12,
    ]
    assert [round(bar.get_width(), 2) for bar in used[0].patches] == [11.5, 21.5, 31.5, 41.5, 51.5]
    assert [bar.get_width() for bar in used[1].patches] == [3.76, 4.67, 5.79, 10.18, 12.32]
    assert [axes.get_title("left") for axes in used[:2]] == ["here: world, tiny", "StreamingQA,\nDistilGPT2"]
    assert used[0].get_xlim() != used[1].get_xlim(), "each on a scale of its own"


def test_each_panel_of_curves_has_one_side_only(tmp_path):
    ids = retention(tmp_path, "mac", [(0.8, 0.6, 0.4), (0.6, 0.6, 0.6), (0.6, 0.6, 0.4)])
    ids += retention(tmp_path, "closed_book", [(0.1, 0.1, 0.1)] * 3)
    board(tmp_path, ids)
    spec = figure.read("retention")
    own = ours(spec, "relative_f1", build(tmp_path))
    drawn = drawing.apart(spec, "relative_f1", [own], theirs(spec, "relative_f1")).draw()
    labels = [list(axes.get_legend_handles_labels()[1]) for axes in drawn.axes]
    assert labels == [
        ["MAC"],
        ["uniform", "salient spans", "CaMeLS", "MAC", "CMT"],
        ["uniform", "salient spans", "CaMeLS", "MAC"],
    ]
    assert [axes.get_title("left").split(":")[0] for axes in drawn.axes] == [
        "here",
        "Li et al. 2025",
        "Tack et al. 2024",
    ]
    assert all(axes.get_ylim()[0] == 0 for axes in drawn.axes)


def test_at_the_papers_size_both_are_on_one_axis(tmp_path):
    own = ours(TABLE, "f1_shortest", planted(tmp_path, {"uniform": 0.1, "cmt": 0.2}))
    (panel,) = [panel for panel in theirs(TABLE, "f1_shortest") if panel.place == "SQuAD, GPT2-XL"]
    (axes,) = drawing.together(TABLE, "f1_shortest", own, panel).draw().axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    crosses = {
        round(float(line.get_ydata()[0])): float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "x"
    }
    bars = {round(bar.get_y() + bar.get_height() / 2): round(bar.get_width(), 3) for bar in axes.patches}
    assert names == ["uniform", "salient spans", "CaMeLS", "MAC", "CMT"]
    assert (crosses, bars) == ({0: 6.78, 1: 6.74, 2: 10.15, 3: 12.55, 4: 12.85}, {0: 11.5, 4: 21.5})


def test_at_the_papers_size_curves_have_a_panel_for_each_method(tmp_path):
    ids = retention(tmp_path, "mac", [(0.8, 0.6, 0.4), (0.6, 0.6, 0.6), (0.6, 0.6, 0.4)])
    board(tmp_path, ids + retention(tmp_path, "closed_book", [(0.1, 0.1, 0.1)] * 3))
    curves = figure.read("retention")
    (panel,) = [panel for panel in theirs(curves, "relative_f1") if panel.base == "GPT2-XL"]
    own = ours(curves, "relative_f1", build(tmp_path))
    drawn = drawing.together(curves, "relative_f1", own, panel).draw()
    used = {axes.get_title("left"): axes for axes in drawn.axes if axes.get_title("left")}
    assert [*used] == ["uniform", "salient spans", "CaMeLS", "MAC"]
    markers = [sorted(line.get_marker() for line in axes.lines if line.get_marker() in "ox") for axes in used.values()]
    assert markers == [["x"], ["x"], ["x"], ["o", "x"]]


def test_a_heat_map_has_each_method_where_the_file_places_it(tmp_path):
    window = figure.read("context-window")
    bits = {}
    ids = []
    for learn, rate in (("all", 0), ("lora", 1), ("all", 1)):
        for tokens in (0, 16, 48):
            config = {"learn": learn, "learning_rate": rate, "context": "limited", "context_tokens": tokens}
            bits[learn, rate, tokens] = 3.0 + rate * 0.1 + 0.01 * tokens + 0.2 * (learn == "lora")
            for k, shift in enumerate((0, 0.02)):
                nll = [(bits[learn, rate, tokens] + shift) * math.log(2) * 4] * 3  # 4 bytes a token
                ids.append(record(tmp_path, spec("dynamic_evaluation", f"test-3-{k}", config=config), nll=nll))
    board(tmp_path, ids)
    own = ours(window, "bits_per_byte", build(tmp_path))
    drawn = drawing.heat(window, "bits_per_byte", [own]).draw()
    (axes,) = (axes for axes in drawn.axes if axes.images)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["static", "LoRA", "all weights"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "16", "48", "the document"]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    # a mean 0.01 above the first stream, with half an interval of 12.706 times 0.01
    assert cells[0, 0] == "3.010\n± 0.127" and cells[1, 1].startswith("3.470") and cells[2, 2].startswith("3.590")
    assert len(cells) == 9 and "static, all (not run at this scale)" in own.left_out


def test_scores_by_cost_have_one_front_over_all_boards(tmp_path):
    for name, model, levels in (("a", "small", {"uniform": 0.2, "cmt": 0.4}), ("b", "large", {"uniform": 0.5})):
        ids = [
            record(tmp_path, spec(method, f"test-4-{k}", model=model), [[level]] * 4, [2.0] * 4, costs=costs(seconds))
            for method, level in levels.items()
            for k in range(2)
            for seconds in ({"uniform": 3.0, "cmt": 1.0}[method] * (1 if model == "small" else 5),)
        ]
        board(tmp_path, ids, name)
    drawn = cost_plots.scores([build(tmp_path, "a"), build(tmp_path, "b")]).draw()
    labels = {text.get_text() for axes in drawn.axes for text in axes.texts}
    assert labels == {"small: uniform", "small: cmt", "large: uniform"}


def test_a_method_of_ours_alone_is_drawn_in_our_panel(tmp_path):
    ids = [
        record(tmp_path, spec(name, f"test-4-{k}"), [[0.5]] * 4, [2.0] * 4)
        for name in ("mac", "bm25")
        for k in range(2)
    ]
    board(tmp_path, ids)
    retrieval = figure.read("retrieval")
    own = ours(retrieval, "f1_shortest", build(tmp_path))
    drawn = drawing.apart(retrieval, "f1_shortest", [own], theirs(retrieval, "f1_shortest")).draw()
    rows = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert rows == ["BM25", "dense retrieval", "BM25 and MAC", "MAC"]


def test_captions_say_what_is_shown_whose_values_they_are_and_what_is_left_out(tmp_path):
    own = ours(TABLE, "f1_shortest", planted(tmp_path, {"uniform": 0.1, "cmt": 0.2}))
    published = theirs(TABLE, "f1_shortest")
    caption, notes = drawing.apart(TABLE, "f1_shortest", [own], published).text().split("\n\n")
    assert caption == "EM and F1 by base model and dataset: F1 (%)."
    assert notes.replace("\n", " ") == (
        "Blue: ours, with 95 % interval over 4 streams. Orange: published, Tack et al. 2024 and Li et al. 2025. Each "
        "panel has a scale of its own. Here: world, tiny, 4 streams. Left out here: salient spans (not run at this "
        "scale); CaMeLS (not run at this scale); MAC (not run at this scale). "
    )
    at_its_size = drawing.together(TABLE, "f1_shortest", own, published[0]).text().replace("\n", " ")
    assert "Crosses: published, Tack et al. 2024 and Li et al. 2025: StreamingQA, DistilGPT2." in at_its_size

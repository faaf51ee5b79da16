"""Restarts: gains computed by hand, and the conditions for the plot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports.board import build
from reports.restart_plots import drawings, restarts
from tests.reports.records_factory import board, imported, record, spec
from tests.reports.test_board import write_segments

FLOOR = ([4.0, 4.0, 4.0, 4.0], [2.0, 6.0, 2.0, 6.0])
RESET = ([4.0, 2.0, 4.0, 3.0], [2.0, 3.0, 1.0, 4.0])
STREAM = ([4.0, 3.0, 2.0, 1.0], [2.0, 4.0, 1.0, 2.0])


def write(runs, method, arm, losses):
    """A run on each stream with these NLLs of its documents, each of two tokens in two segments."""
    cells = [spec(method, f"test-4-{k}", arm, segment_tokens=1) for k in range(len(losses))]
    for cell, nll in zip(cells, losses, strict=True):
        halves = [(place, part, 1, 4, of / 2) for place, of in enumerate(nll) for part in range(2)]
        write_segments(runs, cell, halves)
    return [cell.id for cell in cells]


def gains(curve):
    return [(x, pytest.approx(estimate.mean)) for x, estimate in curve.points()]


def test_the_gain_is_by_documents_since_the_last_reset(tmp_path):
    ids = write(tmp_path, "closed_book", "stream", FLOOR) + write(tmp_path, "tuner", "every_2", RESET)
    board(tmp_path, ids + write(tmp_path, "tuner", "stream", STREAM))
    (found,) = restarts(build(tmp_path))
    # NLL per token of closed book: 2 and 2, 1 and 3; after resets: 2 and 1.25, 0.75 and 1.75
    assert gains(found.gain) == [(0.5, (0 + 0.25) / 2), (1.5, (0.75 + 1.25) / 2)]
    # on the stream itself: 1.5 and 1, 0.75 and 1.5
    assert gains(found.without) == [(0.5, (0.5 + 0.25) / 2), (1.5, (1 + 1.5) / 2)]
    assert [one.gain.points()[0][1].se for one in [found]] == [pytest.approx(0.125)]


def test_an_imported_row_is_held_against_its_own_run_on_the_stream(tmp_path):
    ids = write(tmp_path, "closed_book", "stream", FLOOR) + write(tmp_path, "tuner", "every_2", RESET)
    board(tmp_path, ids + write(tmp_path, "tuner", "stream", STREAM))
    built = build(tmp_path)
    theirs = [imported(row) for row in built.rows if (row.method, row.arm) == ("tuner", "every_2")]
    found = {one.gain.label: one.without for one in restarts(replace(built, rows=(*built.rows, *theirs)))}
    assert found["tuner on every_2"] is not None and found["tuner on every_2 [imported x]"] is None


def test_a_method_without_a_run_on_the_stream_has_no_dashed_line(tmp_path):
    board(tmp_path, write(tmp_path, "closed_book", "stream", FLOOR) + write(tmp_path, "tuner", "every_2", RESET))
    built = build(tmp_path)
    (found,) = restarts(built)
    assert found.without is None
    (plot,) = drawings(built).values()
    assert "dashed" not in plot.text() and plot.draw().axes


def test_a_method_that_diverged_without_resets_has_no_dashed_line(tmp_path):
    ids = write(tmp_path, "closed_book", "stream", FLOOR) + write(tmp_path, "tuner", "every_2", RESET)
    board(tmp_path, [*ids, record(tmp_path, spec("tuner", "test-4-0", segment_tokens=1), status="diverged")])
    (plot,) = drawings(build(tmp_path)).values()
    assert "dashed" not in plot.text() and plot.draw().axes


def test_without_a_stream_that_the_floor_has_too_nothing_is_drawn(tmp_path):
    ids = write(tmp_path, "closed_book", "stream", FLOOR) + write(tmp_path, "tuner", "every_2", RESET)
    for cell in (
        spec("closed_book", "test-4-0", segment_tokens=1),
        spec("tuner", "test-4-1", "every_2", segment_tokens=1),
    ):
        record(tmp_path, cell, status="failed")
    board(tmp_path, ids)
    assert drawings(build(tmp_path)) == {}


def test_nothing_is_drawn_without_resets_without_the_floor_or_without_scores_of_texts(tmp_path):
    reset = write(tmp_path, "tuner", "every_2", RESET)
    board(tmp_path, reset)
    assert drawings(build(tmp_path)) == {}
    board(tmp_path, write(tmp_path, "closed_book", "stream", FLOOR) + write(tmp_path, "tuner", "stream", STREAM))
    assert drawings(build(tmp_path)) == {}
    unscored = [spec(*cell, scoring=False) for cell in (("closed_book", "test-4-0"), ("tuner", "test-4-0", "every_2"))]
    for cell in unscored:
        write_segments(tmp_path, cell, [(0, 0, 2, 8, None)])
    board(tmp_path, [cell.id for cell in unscored])
    assert drawings(build(tmp_path)) == {}

"""Figures of papers from our records, with the published values beside ours, a verdict, and the sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import declared

if TYPE_CHECKING:
    from reports.board import Board
    from reports.reproduction.comparison import Comparison
    from reports.reproduction.figure import Figure, Run
    from reports.style import Drawings

FIGURES = Path(__file__).parents[1] / "figures"
TEXT = "figure.md"


def figures() -> list[str]:
    """Names of the figures: YAML files."""
    return declared.names(FIGURES)


def write(figure: Figure, scale: str, boards: Sequence[tuple[Run, Board]], out: Path) -> tuple[Comparison, list[Path]]:
    """Draw a figure from the boards of its runs, and write it with its text under ``out/figures/<name>``.

    Returns:
        The comparison, and the files written.

    Raises:
        BenchError: the boards have nothing to draw, or the events of a run are missing or damaged.
    """
    from bench.errors import BenchError
    from bench.files import write_bytes
    from reports import plots, written
    from reports.reproduction import comparison, text

    folder = out / "figures" / figure.name
    compared = comparison.compare(figure, scale, boards)
    paths = []
    if figure.drawing == "plots":
        for _, board in boards:
            place = folder / board.experiment if len(boards) > 1 else folder
            across = {name: plot for name, plot in plots.across(board).items() if name in figure.plots}
            paths += [*plots.write(board, place, figure.plots), *plots.save(across, folder)]
    else:
        paths = plots.save(_drawings(compared, [board for _, board in boards]), folder)
    if not paths:
        raise BenchError(
            f"{figure.name}: the records have nothing that {', '.join(figure.plots or figure.scores)} could show."
        )
    pictures = [path.relative_to(folder).as_posix() for path in paths if path.suffix == ".png"]
    write_bytes(folder / TEXT, text.render(compared, pictures).encode())
    written.replace(folder, [*paths, folder / TEXT])
    return compared, [*paths, folder / TEXT]


def _drawings(compared: Comparison, boards: Sequence[Board]) -> Drawings:
    from reports import cost_plots, plots
    from reports.reproduction import drawing

    figure = compared.figure
    if figure.drawing == "scatter":
        return plots.with_facts({"score_by_cost": cost_plots.scores(boards)}, boards)
    shown = {
        score: own
        for score, own in compared.own.items()
        if compared.published[score] or any(ours.lines for ours in own)
    }
    if figure.drawing == "heat":
        return {score: drawing.heat(figure, score, own) for score, own in shown.items()}
    if compared.scale == "paper":
        return {
            f"{panel.score}_{'_'.join(panel.theirs.place.split(', '))}": drawing.together(
                figure, panel.score, panel.ours, panel.theirs
            )
            for panel in compared.panels
        }
    return {score: drawing.apart(figure, score, own, compared.published[score]) for score, own in shown.items()}

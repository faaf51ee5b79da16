"""The comparison of a figure's two sides, panel by panel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from reports.board import Board
from reports.reproduction import series
from reports.reproduction.figure import Figure, Run
from reports.reproduction.series import UNITS, Ours, Theirs
from reports.statistics import show
from reports.verdicts import Distance, Shape, counted, shape


@dataclass(frozen=True)
class Panel:
    """One of our boards beside the published values on one dataset and base model, for one score."""

    score: str
    ours: Ours
    theirs: Theirs
    shape: Shape | None
    """The verdict on the shape; None at the paper's size."""
    distances: tuple[tuple[str, Distance], ...]
    """At the paper's size: each published value with ours, by method and place."""

    @property
    def name(self) -> str:
        """What is compared with what."""
        return f"{UNITS[self.score].name}, here {self.ours.name}, against {self.theirs.name}"

    def sentences(self) -> list[str]:
        """The verdict in words."""
        if self.shape is not None:
            return self.shape.sentences()
        return [
            f"{name}, {column}: {published} published, {own} here{f', {errors} standard errors' * bool(errors)}."
            for (name, column), (published, own, errors) in self.rows().items()
        ]

    def rows(self) -> dict[tuple[str, str], tuple[str, str, str]]:
        """At the paper's size, by method and column: the published value, ours, and the standard errors between them.

        The last is empty if our error is 0 or unknown.
        """
        return {
            (name, one.published.column): (
                str(one.published),
                show(one.ours.mean, one.ours.half_width(), 2),
                "" if one.in_errors is None else f"{one.in_errors:+.1f}",
            )
            for name, one in self.distances
        }


@dataclass(frozen=True)
class Comparison:
    """A figure at one scale: our boards, and the panels that are compared."""

    figure: Figure
    scale: str
    own: dict[str, tuple[Ours, ...]]
    """By score."""
    published: dict[str, tuple[Theirs, ...]]
    panels: tuple[Panel, ...]

    def verdict(self) -> str:
        """One sentence for the whole figure."""
        if not self.figure.published:
            return "No published value is set beside it: nothing is compared."
        if self.scale == "paper":
            found = [distance.in_errors for panel in self.panels for _, distance in panel.distances]
            if not found:
                return "No published value is beside ours."
            errors = [abs(one) for one in found if one is not None]
            near = sum(error <= 2 for error in errors)
            sentence = f"{near} of {len(errors)} published values are within two standard errors of ours."
            unknown = len(found) - len(errors)
            return f"{sentence} {unknown} more have no standard error above 0 beside them." if unknown else sentence
        words = [panel.shape.word for panel in self.panels if panel.shape and panel.shape.word]
        if not words:
            return "Nothing can be compared: no two of the paper's methods are there with results."
        return f"Shapes of {len(words)} published panel{'s' * (len(words) != 1)}: {counted(words)}."


def compare(figure: Figure, scale: str, boards: Sequence[tuple[Run, Board]]) -> Comparison:
    """Set the figure's methods on these boards beside the published values.

    Below the paper's size each board is compared with every published panel, in its shape alone. At the paper's size it
    is compared with the panel that the run names, value by value.
    """
    own, published, panels = {}, {}, []
    alike = Counter((board.dataset, board.model) for _, board in boards)
    for score in figure.scores:
        published[score] = tuple(series.theirs(figure, score))
        own[score] = tuple(
            replace(
                series.ours(figure, score, board),
                experiment=board.experiment if alike[board.dataset, board.model] > 1 else "",
            )
            for _, board in boards
        )
        for (run, _), ours in zip(boards, own[score], strict=True):
            if scale == "paper":
                panels += [
                    _at_its_size(score, ours, theirs)
                    for theirs in published[score]
                    if run.published == {"dataset": theirs.dataset, "base": theirs.base}
                ]
            else:
                panels += [
                    Panel(score, ours, theirs, shape(ours.lines, theirs.lines, figure.log), ())
                    for theirs in published[score]
                ]
    return Comparison(figure, scale, own, published, tuple(panels))


def _at_its_size(score: str, ours: Ours, theirs: Theirs) -> Panel:
    distances = tuple(
        (name, Distance(value, ours.estimates[name][place]))
        for name, line in theirs.lines.items()
        for place, value in line.items()
        if place in ours.estimates.get(name, {})
    )
    return Panel(score, ours, theirs, None, distances)

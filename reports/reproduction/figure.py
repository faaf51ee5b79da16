"""Figures as declarative files: what a paper's figure shows, what we run for it, and which values are set beside ours.

A figure is one file in ``reports/figures``; docs/figures.md explains its keys.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import pydantic

from bench import declared
from bench.data.arms import Arm
from bench.errors import BenchError, first_problem, nearest
from bench.files import read_yaml
from bench.help import citations
from bench.paths import experiments
from bench.settings import Settings, dotted
from reports import published
from reports.published import Value
from reports.reproduction import FIGURES, figures

Scale = Literal["tiny", "small", "paper"]

Along = Literal["documents", "irrelevant", "context"]
"""What is along the x axis of our curves: documents seen at a probe, irrelevant documents in percent of the stream's,
documents held when the questions are asked."""


class Method(Settings):
    """A method in the figure: its row on our boards, and its names in the papers."""

    method: str | None = None
    """None for a method that is in the paper only."""
    config: dict[str, Any] = {}
    """Settings that the row has. Of several such rows it is the experiment's first that no earlier method here has."""
    arm: Arm = "stream"
    """The arm on which the row is."""
    published: tuple[str, ...] = ()
    """Names of its rows in the papers; none for a method that is ours only."""
    at: tuple[str, str] | None = None
    """For ``heat``: its row and its column."""


class Source(Settings):
    """A table or figure of a paper, as ``published.csv`` names it."""

    paper: str
    table: str
    datasets: dict[str, str] = {}
    """Another name for a dataset, so that values of two papers on it come together."""


class Run(Settings):
    """An experiment, by name or from a file, that is run for the figure, with the changes of ``run_bench.py run``."""

    experiment: str
    model: str | None = None
    dataset: str | None = None
    methods: tuple[str, ...] = ()
    streams: int | None = None
    documents: int | None = None
    validation_documents: int | None = None
    trials: int | None = None
    seed: int | None = None
    equal_compute: int | None = None
    assignments: tuple[str, ...] = pydantic.Field(default=(), alias="set")
    published: dict[Literal["dataset", "base"], str] = {}
    """At the paper's size: dataset and base of the published values on the same axis."""

    def changes(self) -> dict[str, Any]:
        """The changes, by the fields of :class:`bench.run.overrides.Overrides`, but for a limit of the operations."""
        return self.model_dump(exclude={"experiment", "equal_compute", "published"}, exclude_defaults=True)


class Figure(Settings):
    """A figure of a paper, or one of our own, and how it is drawn from records."""

    name: str
    title: str
    paper: str
    """Key of ``CITATIONS.bib``, or "none" for a figure of our own."""
    shows: str
    """What the paper's figure shows, in one sentence."""
    drawing: Literal["bars", "curves", "heat", "scatter", "plots"]
    """Bars by method, curves of a score along an axis, a heat map of a score by two settings, score by cost with the
    Pareto front over all boards, or plots of the board."""
    plots: tuple[str, ...] = ()
    """For ``plots``: names of the plots of a board (docs/plots.md), without published values beside them."""
    along: Along | None = None
    across: str = ""
    """For ``heat``: what is in the columns, for the reader."""
    scores: dict[str, str] = {}
    """Our scores, each with its column in the papers; for curves the beginning of the columns, before the place."""
    methods: dict[str, Method] = {}
    """By the name in the legend."""
    published: tuple[Source, ...] = ()
    scales: dict[Scale, tuple[Run, ...]] = pydantic.Field(min_length=1)
    differences: tuple[str, ...] = ()
    """How our protocol differs from the paper's, and what is not known about it."""

    @pydantic.model_validator(mode="after")
    def _fits_its_drawing(self) -> Self:
        needed = {
            "bars": ("scores", "methods"),
            "curves": ("scores", "methods", "along"),
            "heat": ("scores", "methods", "across"),
            "scatter": (),
            "plots": ("plots",),
        }
        known = ("plots", "along", "across", "scores", "methods", "published")
        missing = [key for key in needed[self.drawing] if not getattr(self, key)]
        if missing:
            raise ValueError(f"a figure of {self.drawing} needs {missing[0]}")
        allowed = (*needed[self.drawing], *(("published",) if self.drawing in ("bars", "curves") else ()))
        if extra := [key for key in known if getattr(self, key) and key not in allowed]:
            raise ValueError(f"a figure of {self.drawing} has no {extra[0]}")
        for name, method in self.methods.items():
            if (method.at is not None) != (self.drawing == "heat"):
                raise ValueError(f"methods.{name}: a figure of heat, and no other, says where each method is (at)")
        if self.along == "documents" and (other := self.scores.keys() - {"f1", "relative_f1"}):
            raise ValueError(f"along documents there are f1 and relative_f1, not {min(other)}")
        if "relative_f1" in self.scores and self.along not in ("documents", "irrelevant"):
            raise ValueError("relative_f1 is that of curves along documents or irrelevant")
        if "f1_change" in self.scores and self.drawing == "curves":
            raise ValueError("curves have no f1_change")
        if self.along == "context" and self.published and "paper" in self.scales:
            raise ValueError("along context there is no scale paper: ours is in documents, theirs in tokens")
        if self.published and not self.differences:
            raise ValueError("differences needs a line for each way in which our protocol is not the paper's")
        return self

    @property
    def log(self) -> bool:
        """True if the x axis is logarithmic."""
        return self.along == "context"

    def values(self) -> list[Value]:
        """The published values of the figure's sources and columns, without copies of others."""
        sources = {(source.paper, source.table) for source in self.published}
        return [
            value
            for value in published.load()
            if (value.paper, value.table_or_figure) in sources and not value.copy_of and self.score(value.column)
        ]

    def score(self, column: str) -> str | None:
        """Our score that is set beside this column of a paper, or None."""
        for score, name in self.scores.items():
            if column == name or (self.along and column.startswith(name)):
                return score
        return None

    def runs(self, scale: str) -> tuple[Run, ...]:
        """The runs at a scale.

        Raises:
            BenchError: the figure does not have this scale.
        """
        for name, runs in self.scales.items():
            if name == scale:
                return runs
        raise BenchError(f"{self.name} has no scale {scale!r}.{nearest(scale, self.scales)}")


def listing() -> list[tuple[str, str, str]]:
    """Name, paper in a few words, and title of each figure, without checking the files."""
    papers = citations.read()
    facts = [(name, read_yaml(FIGURES / f"{name}.yaml")) for name in figures()]
    return [
        (name, papers[fact["paper"]].label if fact["paper"] in papers else "ours", str(fact["title"]))
        for name, fact in facts
    ]


def read(name: str, plugins: Sequence[str | Path] = ()) -> Figure:
    """A figure by its name, or from a YAML file; its methods may be those of plug-in files, too.

    Raises:
        BenchError: there is no such figure, or a key or a name in it is wrong; the message names it with the nearest
            ones.
    """
    path, values = declared.read("figure", name, FIGURES, "docs/figures.md")
    try:
        figure = Figure.model_validate({"name": path.stem, **values})
    except pydantic.ValidationError as error:
        raise BenchError(f"{path.name}: {first_problem(error, Figure)}") from None
    _check_names(path.name, figure)
    _check_methods(path.name, figure, plugins)
    return figure


def _check_methods(file: str, figure: Figure, plugins: Sequence[str | Path]) -> None:
    """Check the methods and their settings."""
    from bench.help.describe import method_names, method_settings

    named = {name: method for name, method in figure.methods.items() if method.method is not None}
    _check(file, "methods", [str(of.method) for of in named.values()], method_names(plugins))
    for name, of in named.items():
        if keys := dotted(of.config).keys():
            _check(file, f"methods.{name}.config", keys, method_settings(str(of.method), plugins))


def _check_names(file: str, figure: Figure) -> None:
    """Check everything else that the figure names."""
    from reports import plots
    from reports.reproduction.series import UNITS, theirs

    _check(file, "scores", figure.scores, UNITS)
    _check(file, "paper", [figure.paper], {"none", *citations.read()})
    _check(file, "plots", figure.plots, plots.NAMES)
    for scale, runs in figure.scales.items():
        embedded = [run.experiment for run in runs if not run.experiment.endswith((".yaml", ".yml"))]
        _check(file, f"scales.{scale}", embedded, experiments())
    tables: dict[str, dict[str, set[str]]] = {}
    for value in published.load():
        tables.setdefault(value.paper, {}).setdefault(value.table_or_figure, set()).add(value.dataset)
    for source in figure.published:
        _check(file, "published", [source.paper], tables)
        _check(file, f"published: {source.paper}", [source.table], tables[source.paper])
        _check(file, f"published: {source.paper}: datasets", source.datasets, tables[source.paper][source.table])
    sources = {(source.paper, source.table) for source in figure.published}
    columns = {value.column for value in published.load() if (value.paper, value.table_or_figure) in sources}
    for score, column in figure.scores.items() if sources else ():
        if not any(figure.score(other) == score for other in columns):
            raise BenchError(f"{file}: scores.{score}: there is no column {column!r}.{nearest(column, columns)}")
    rows = {value.row for value in figure.values()}
    named = {name for method in figure.methods.values() for name in method.published}
    _check(file, "methods: published", named, rows)
    if missing := sorted(rows - named):
        raise BenchError(f"{file}: methods: no method has the published row {missing[0]!r}: name it in one.")
    panels = {(panel.dataset, panel.base) for score in figure.scores for panel in theirs(figure, score)}
    for scale, runs in figure.scales.items():
        if scale != "paper" and any(run.published for run in runs):
            raise BenchError(f"{file}: scales.{scale}: a run names a published panel at the scale paper only.")
    for run in figure.scales.get("paper", ()) if panels else ():
        wanted = (run.published.get("dataset", ""), run.published.get("base", ""))
        _check(file, "scales.paper: published", [", ".join(wanted)], [", ".join(panel) for panel in panels])


def _check(file: str, key: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise BenchError(f"{file}: {key}: there is no {name!r}.{nearest(name, known)}")

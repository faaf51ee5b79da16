"""The text beside a figure: verdict, values, differences of protocol and sources, in Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from reports.markup import markdown, pipes
from reports.published import Value
from reports.reproduction.comparison import Comparison
from reports.reproduction.drawing import AXES
from reports.reproduction.figure import Figure
from reports.reproduction.series import NO_PLACE, RELATIVE, UNITS, Ours, papers
from reports.statistics import show, show_number
from reports.verdicts import DIFFERS, counted

VERDICT = "verdict"
"""Heading of the column of words."""
APART = (
    "The sizes differ, so absolute values do not compare: ours and the published ones have panels and tables of their "
    "own, and the verdict is on the shape alone, at the last place of a curve and on the change along it. It does not "
    "say that anything was reproduced. The papers print no error bars, so a small gap of theirs may be chance. ± is "
    "half the 95 % interval over streams. The interval of tau-b leaves out what seeds add."
)
TOGETHER = (
    "± is half the 95 % interval of ours, *standard errors* the gap from the published value to ours in our own. The "
    "paper's own errors are not known: of exact reproductions with errors like ours, 84 % are within two."
)


def render(comparison: Comparison, pictures: Sequence[str] = ()) -> str:
    """The text of a figure, with its pictures, whose paths are relative to it."""
    figure = comparison.figure
    paper = papers().get(figure.paper)
    parts = [f"# {markdown(figure.title)}", markdown(f"{paper.label if paper else 'Ours'}: {figure.shows}")]
    parts += [f"![{markdown(figure.title)}]({picture})" for picture in pictures]
    parts += [f"## Verdict at the scale {comparison.scale}", *_verdict(comparison)]
    if comparison.own:
        parts += ["## Values", *_values(comparison)]
    if figure.differences:
        parts += ["## Differences from the paper", _list(figure.differences)]
    if figure.published:
        parts += ["## Sources of the published values", _list(list(_sources(figure.values())))]
    return "\n\n".join(parts) + "\n"


def _verdict(comparison: Comparison) -> Iterator[str]:
    yield comparison.verdict()
    shapes = [(panel, panel.shape) for panel in comparison.panels if panel.shape is not None]
    if shapes:
        yield _table(
            {
                panel.name: {
                    VERDICT: shape.word or "",
                    "Kendall's tau-b": shape.agreement or "",
                    "gaps between two methods": counted(sign.word for sign in shape.gaps),
                    "changes along a curve": counted(sign.word for sign in shape.slopes),
                    "left out": shape.unread or "",
                }
                for panel, shape in shapes
            },
            "panel",
            align="---",
            bold=VERDICT,
        )
        if any(shape.unread for _, shape in shapes):
            yield "Left out: gaps and changes in the paper that are smaller than the error of reading them."
        differing = [
            f"{panel.name}: {sign.sentence(unit.digits, unit.differing(panel.theirs.unit))}"
            for panel, shape in shapes
            for unit in [UNITS[panel.score]]
            for sign in shape.differing
        ]
        if differing:
            yield f"{DIFFERS[0].upper()}{DIFFERS[1:]}:"
            yield _list(differing)
    for panel in comparison.panels if not shapes else ():
        yield markdown(f"{panel.name}:")
        headings = ("published", "here", "standard errors")
        yield _table(
            {", ".join(key): dict(zip(headings, row, strict=True)) for key, row in panel.rows().items()},
            "method, column",
        )
    left_out = dict.fromkeys(name for of in comparison.own.values() for ours in of for name in ours.left_out)
    if left_out:
        yield markdown(f"Left out here: {'; '.join(left_out)}.")
    if comparison.panels:
        yield APART if shapes else TOGETHER


def _values(comparison: Comparison) -> Iterator[str]:
    for score, own in comparison.own.items():
        unit, published = UNITS[score], comparison.published[score]
        if comparison.figure.drawing == "heat":
            for ours in own:
                across = comparison.figure.across
                yield markdown(f"{unit.name} here, {ours.name}, with half the 95 % interval, by {across}:")
                yield _table(_in_a_grid(comparison.figure, _at_no_place(_cells(ours, score))), "")
            continue
        if comparison.figure.along is None:
            yield f"{unit.name} here, with half the 95 % interval:"
            yield _table({ours.name: _at_no_place(_cells(ours, score)) for ours in own}, "dataset and base")
            if published:
                yield f"Published, in {' or '.join(dict.fromkeys(theirs.unit for theirs in published))}:"
                yield _table({theirs.name: _at_no_place(theirs.lines) for theirs in published}, "dataset and base")
            continue
        for ours in own:
            along = AXES[comparison.figure.along][0]
            yield markdown(f"{unit.name} here, {ours.name}, with half the 95 % interval, by {along}:")
            yield _table(_by_place(_cells(ours, score)), "method")
        for theirs in published:
            yield markdown(f"Published, {theirs.name}, in {theirs.unit}, by {AXES[comparison.figure.along][1]}:")
            yield _table(_by_place(theirs.lines), "method")


Cells = Mapping[str, Mapping[float, object]]
"""What is shown, by method and place."""


def _cells(ours: Ours, score: str) -> Cells:
    """Ours, with half the interval; without one for the base of what is relative, which is 100 by definition."""
    digits = UNITS[score].digits
    return {
        name: {
            x: show_number(of.mean, digits)
            if score == RELATIVE and x == min(line)
            else show(of.mean, of.half_width(), digits)
            for x, of in line.items()
        }
        for name, line in ours.estimates.items()
    }


def _at_no_place(cells: Cells) -> Mapping[str, object]:
    return {name: line[NO_PLACE] for name, line in cells.items()}


def _by_place(cells: Cells) -> Mapping[str, Mapping[str, object]]:
    """The cells with the names of their columns, in the order of the places."""
    places = sorted({x for line in cells.values() for x in line})
    return {name: {f"{x:g}": line.get(x, "") for x in places} for name, line in cells.items()}


def _in_a_grid(figure: Figure, cells: Mapping[str, object]) -> Mapping[str, Mapping[str, object]]:
    """The cells of a heat map, by row and column."""
    rows: dict[str, dict[str, object]] = defaultdict(dict)
    for name, method in figure.methods.items():
        if method.at is not None:
            rows[method.at[0]][method.at[1]] = cells.get(name, "")
    return rows


def _table(rows: Mapping[str, Mapping[str, object]], corner: str, align: str = "---:", bold: str = "") -> str:
    """A table of rows by name, with the columns that are not empty in all of them, one of which may be bold."""
    columns = dict.fromkeys(column for row in rows.values() for column, cell in row.items() if cell != "")
    lines = [[name, *(str(row.get(column, "")) for column in columns)] for name, row in rows.items()]
    marks = ["", *("**" * (column == bold) for column in columns)]
    head = [pipes([corner, *columns]), pipes(["---", *[align] * len(columns)])]
    return "\n".join([*head, *(pipes(line, marks) for line in lines)])


def _sources(values: Sequence[Value]) -> Iterator[str]:
    """A line for each table or figure that was read, with everything that is said about its values."""
    tables: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    for value in values:
        key = (value.paper, value.table_or_figure, value.version, value.read_from, value.address, str(value.read_on))
        tables[key] |= dict.fromkeys(filter(None, (value.precision, value.note)))
    for (paper, table, version, read_from, address, read_on), notes in tables.items():
        yield (
            f"{papers()[paper].label}, {table} (version: {version}): {read_from}, {address}, read on {read_on}; "
            f"{'; '.join(notes)}."
        )


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {markdown(item)}" for item in items)

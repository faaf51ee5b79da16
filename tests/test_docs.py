"""The documentation: its commands run, its examples work, its links and paths exist, and the board shows the signal."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.conformance import fixtures, suite
from bench.conformance.loops import run as run_loop
from bench.contract.method import Conditioning, Method
from bench.contract.registry import list_methods
from bench.contract.registry import load as load_method
from bench.records.store import read_board, read_run
from bench.run.experiment import load
from reports import plots, tables
from reports.board import build
from reports.reproduction import figure
from tests.conftest import ROOT, make_checkpoint
from tests.snippets import as_method
from tests.world import make_dataset

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/methods.md",
    "docs/performance.md",
    "docs/compare.md",
    "docs/analysis.md",
    "docs/leaderboard.md",
    "docs/figures.md",
)
OWN = "docs/your-own.md"
"""The page whose commands run with few steps."""
PAGES_WITH_PATHS = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md"))))
FOLDERS = ("bench", "datasets", "docs", "methods", "reports", "tests")
SUFFIXES = {".bib", ".cff", ".csv", ".json", ".jsonl", ".md", ".png", ".py", ".toml", ".txt", ".yaml"}
CREATED = {"out/", "runs/", "run.json", "methods/recency.py", "my_squad.json", "small.yaml", "mine.yaml"}
"""Paths that exist only after the commands of the pages have run."""
OFF_THE_BOARD = {"dense_retrieval", "full_context", "knn_lm", "replay", "joint"}
"""Methods that are of no use to a small base, or in the experiment `evolving`; docs/methods.md says why."""
SHOWN = ("closed_book", "gold_in_prompt", "uniform", "bm25", "camels", "generative_adapter", "cmt", "mac")
QUICK = "python run_bench.py --quick"
QUICKLY = (
    f"python run_bench.py run default --methods {','.join(SHOWN)} --streams 2 --documents 60 --validation-documents 30 "
    "--trials 3 --seed 0 --name quick"
)
FETCHES = ("python run_bench.py model get", "python run_bench.py run real-")  # a package of 93 MB, and the base from it
IGNORED = ("python -m venv", ". .venv/bin/activate", "pre-commit", *FETCHES)
SQUAD = {
    "data": [
        {
            "title": f"Lighthouses {k}",
            "paragraphs": [
                {
                    "context": f"Lighthouse {i} stands at cape {i}.",
                    "qas": [
                        {"id": f"q{i}", "question": f"Where is lighthouse {i}?", "answers": [{"text": f"cape {i}"}]}
                    ],
                }
                for i in range(10 * k, 10 * k + 10)
            ],
        }
        for k in range(22)
    ]
}


def commands(page: str) -> Iterator[str]:
    """The commands in the bash blocks of a page."""
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL):
        for line in block.splitlines():
            command = line.split("  #")[0].split("    #")[0].strip()
            if command and not command.startswith(("#", *IGNORED)):
                yield command


def block(marker: str, page: str = "CONTRIBUTING.md") -> str:
    """The block of a page after a marker."""
    text = (ROOT / page).read_text()
    match = re.search(rf"( *)<!-- {re.escape(marker)} -->\n\s*```\w+\n(.*?)```", text, flags=re.DOTALL)
    assert match is not None, marker
    return "\n".join(line.removeprefix(match[1]) for line in match[2].splitlines())


def broken_links(page: str, text: str) -> list[str]:
    """The relative links of a page's text to files that do not exist."""
    targets = (target.partition("#")[0] for target in re.findall(r"\]\(([^()\s]+)\)", prose(text)))
    relative = [target for target in targets if target and not re.match(r"[a-z]+:", target)]
    return [target for target in relative if not (ROOT / page).parent.joinpath(target).exists()]


def missing_paths(page: str, text: str) -> list[str]:
    """The files, folders and modules of the project that a page's text names in backticks and that do not exist.

    A name is looked for in the root, beside the page, and in the folders that its table row or paragraph names.
    ``<...>`` in a name stands for anything.
    """
    missing = []
    for passage in re.split(r"\n\s*\n|\n(?=\|)", prose(text)):
        names = [name for name in re.findall(r"`([^`\s]+)`", passage) if name not in CREATED]
        homes = [ROOT, (ROOT / page).parent, *(ROOT / name for name in names if name.endswith("/"))]
        for name in names:
            if re.fullmatch(r"(bench|methods|reports)(\.\w+)+", name) and Path(name).suffix not in SUFFIXES:
                exists = is_module_or_member(name)
            elif is_path(name):
                pattern = re.sub(r"<\w+>", "*", name.rstrip("/"))
                exists = any(any(home.glob(pattern)) for home in homes)
                exists = exists or ("/" not in name and any(any(home.rglob(name)) for home in homes[2:]))
            else:
                exists = True
            if not exists:
                missing.append(name)
    return missing


def prose(text: str) -> str:
    """A page's text without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


def is_path(name: str) -> bool:
    """True if a name in backticks looks like a file or a folder of the project."""
    if not re.fullmatch(r"[\w.<>-]+(/[\w.<>-]+)*/?", name):
        return False
    return name.endswith("/") or name.split("/")[0] in FOLDERS or Path(name).suffix in SUFFIXES


def is_module_or_member(name: str) -> bool:
    """True if a dotted name is a module of the project, or a name in one."""
    path = ROOT.joinpath(*name.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module, _, member = name.rpartition(".")
    return (ROOT.joinpath(*module.split(".")).with_suffix(".py")).is_file() and hasattr(import_module(module), member)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would clone, and the files that the examples of README.md and CONTRIBUTING.md use."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "my_squad.json").write_text(json.dumps(SQUAD))
    (folder / "small.yaml").write_text(block("experiment: small.yaml"))
    for i, name in enumerate(("first_novel.txt", "second_novel.txt")):
        (folder / name).write_text(f"“Chapter {i}” began — as they do — with rain over the harbour. " * 60)
    return folder


def run(command: str, folder: Path) -> str:
    words = shlex.split(command)
    if words[0] == "python":
        words[0] = sys.executable
    process = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=1800)
    assert process.returncode == 0, f"{command}\n{process.stdout[-3000:]}\n{process.stderr[-3000:]}"
    return process.stdout


@pytest.fixture(scope="module")
def default_board(clone: Path) -> dict[tuple[str, str], dict[str, float]]:
    """The methods of the embedded default whose scores say something, as ``--quick`` runs them, run in the copy."""
    run(f"{QUICK} --dry-run", clone)
    run(QUICKLY, clone)
    board = json.loads((clone / "out" / "default+quick" / "leaderboard.json").read_text())
    return {(row["label"], row["arm"]): row for row in board["rows"]}


@pytest.mark.slow
def test_the_default_board_shows_the_signal(default_board: dict[tuple[str, str], dict[str, float]]) -> None:
    closed, gold, uniform, placebo = (
        default_board[key]
        for key in (
            ("closed_book", "stream"),
            ("gold_in_prompt", "stream"),
            ("uniform", "stream"),
            ("uniform on placebo", "placebo"),
        )
    )
    assert {row["streams"] for row in default_board.values()} == {2}
    assert gold["f1"] >= 0.85
    assert closed["f1"] <= 0.10
    assert uniform["f1"] > closed["f1"]
    assert -closed["f1_vs_reference"] >= 3 * closed["f1_vs_reference_se_doc"]
    assert abs(placebo["f1"] - closed["f1"]) <= 3 * (placebo["f1_se_doc"] ** 2 + closed["f1_se_doc"] ** 2) ** 0.5


@pytest.mark.slow
def test_every_adaptation_method_is_on_the_default_board(
    default_board: dict[tuple[str, str], dict[str, float]], clone: Path
) -> None:
    others = dict.fromkeys(plan.name for plan in load("default").methods if plan.name not in SHOWN)
    assert {*others, *SHOWN} == {info.name for info in list_methods()} - OFF_THE_BOARD
    run(
        f"python run_bench.py run default --methods {','.join(others)} --streams 1 --documents 4 "
        "--validation-documents 4 --trials 3 --seed 0 --set dynamic_evaluation.statistics_segments=4 --name others",
        clone,
    )
    board = json.loads((clone / "out" / "default+others" / "leaderboard.json").read_text())
    rows = [*board["rows"], *default_board.values()]
    assert {row["method"] for row in rows} == {*others, *SHOWN}
    assert {row["trials"] for row in rows if row["tuned"]} == {3}, "all that are tuned have as many trials"


@pytest.mark.slow
def test_memories_answer_from_their_documents(
    default_board: dict[tuple[str, str], dict[str, float]], clone: Path
) -> None:
    closed, gold, bm25 = (default_board[name, "stream"]["f1"] for name in ("closed_book", "gold_in_prompt", "bm25"))
    assert bm25 >= 0.85 * gold
    for name in ("generative_adapter", "cmt", "mac"):
        row = default_board[name, "stream"]
        assert row["f1"] - closed >= 5 * row["f1_se_doc"] > 0, name
    run(
        "python run_bench.py run memory-controls --methods generative_adapter,cmt,mac --streams 2 --documents 60 "
        "--validation-documents 30 --trials 3 --seed 0 --name memories",
        clone,
    )
    board = json.loads((clone / "out" / "memory-controls+memories" / "leaderboard.json").read_text())["rows"]
    for name in ("generative_adapter", "cmt", "mac"):
        f1 = {row["arm"]: row["f1"] for row in board if row["label"].split(" on ")[0] == name}
        assert f1["gold_only"] >= f1["stream"] > f1["shuffled"], (name, f1)
        assert max(f1["shuffled"], f1["empty"]) <= 0.1, (name, f1)
        (untrained,) = (row["f1"] for row in board if row["label"] == f"{name} (training.steps=0)")
        assert f1["stream"] > untrained + 0.1, (name, untrained)


@pytest.mark.slow
def test_meta_learned_weights_find_the_facts_and_raise_f1(
    default_board: dict[tuple[str, str], dict[str, float]], clone: Path
) -> None:
    camels = default_board["camels", "stream"]
    assert camels["f1_vs_reference"] >= 2 * camels["f1_vs_reference_se_doc"] > 0, (
        "not above uniform in the paired comparison"
    )
    experiment = yaml.safe_load((clone / "bench" / "experiments" / "token-weights.yaml").read_text())
    plans = [plan for plan in experiment["methods"] if isinstance(plan, dict) and plan["name"] == "camels"]
    experiment["methods"] = [plan for plan in plans if plan.get("config", {}).get("control") in (None, "shuffled")]
    (clone / "controls.yaml").write_text(yaml.safe_dump(experiment))
    run(
        "python run_bench.py run controls.yaml --streams 2 --documents 60 --validation-documents 30 --trials 3 "
        "--seed 0 --name few",
        clone,
    )
    out = clone / "out" / "controls+few"
    rows = {row["label"]: row for row in json.loads((out / "leaderboard.json").read_text())["rows"]}
    shuffled = rows["camels (control=shuffled)"]
    assert camels["f1"] - shuffled["f1"] > 0.5 * camels["f1_vs_reference"], (
        "weights in random order keep too much of the gain"
    )
    with (out / "token_weights.csv").open() as file:
        areas = {row["label"]: float(row["auc"]) for row in csv.DictReader(file)}
    assert areas["camels"] >= 0.9
    assert areas["camels (control=shuffled)"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_the_default_board_is_measured_again(clone: Path) -> None:
    """Rows of every kind, with the first seed and chosen settings, on two streams: comparable, and the same numbers.

    What is declared to change no number is shown here not to.
    """
    published = ROOT / "reports" / "results" / "default"
    methods = ["closed_book", "gold_in_prompt", "bm25", "lora", "camels", "cmt", "mac", "generative_adapter"]
    before = {
        (record.spec.method, record.spec.stream): record
        for record in map(read_run, (published / name for name in read_board(published).runs))
        if record.spec.method in methods
        and (record.spec.seed, record.spec.arm) == (0, "stream")
        and record.spec.stream in ("test-100-0", "test-100-1")
    }
    fixed = [
        f"--set {method}.{key}={json.dumps(value)}"
        for method in methods
        for key, value in before[method, "test-100-0"].spec.config.items()
        if key != "training"
    ]
    run(
        f"python run_bench.py run default --methods {','.join(methods)} --seed 0 {' '.join(fixed)} --streams 2 "
        f"--runs whole --name again",
        clone,
    )
    found = [read_run(clone / "whole" / name) for name in read_board(clone / "whole").runs]
    assert {(record.spec.method, record.spec.stream) for record in found} == before.keys()
    for record in found:
        earlier = before[record.spec.method, record.spec.stream]
        assert record.comparability_key == earlier.comparability_key
        assert record.summary.f1 == pytest.approx(earlier.summary.f1, abs=0.02), earlier.id
        assert record.summary.token_nll == pytest.approx(earlier.summary.token_nll, rel=1e-3), earlier.id


@pytest.mark.slow
def test_the_readme_shows_the_published_default(tmp_path: Path) -> None:
    tables.write(build(ROOT / "reports" / "results" / "default", "default"), tmp_path)
    _, _, board = (tmp_path / "leaderboard.md").read_text(encoding="utf-8").partition("\n\n")
    assert f"<!-- board -->\n{board}<!-- /board -->" in (ROOT / "README.md").read_text(encoding="utf-8")


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The columns of a published board that the README shows."""

    def mean(row: Mapping[str, Any], key: str) -> str:
        width = row[f"{key}_ci95"]
        return "" if row[key] is None else f"{row[key]:.3f} ± {'<0.001' if width < 0.0005 else f'{width:.3f}'}"

    lines = [
        "| method | F1 | F1 vs closed book | EM | prefix EM | ended | answer NLL | s/document |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        label = f"*{row['label']}*" if row["control"] else row["label"]
        label += f" [{row['note']}]" if row["note"] else ""
        shares = [f"{row[key]:.3f}" for key in ("em", "em_prefix", "ended")]
        cells = [label, mean(row, "f1"), mean(row, "f1_vs_reference"), *shares]
        lines.append(f"| {' | '.join(cells)} | {row['answer_nll']:.2f} | {row['seconds_per_document']:.2f} |")
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["real-squad+float32", "real-news", "real-newsworld"])
def test_the_readme_shows_the_published_boards(name: str) -> None:
    board = build(ROOT / "reports" / "results" / name, name, "closed_book")
    rows = [tables.fields(row, board) for row in board.rows]
    assert table_of(rows) in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gains"),
    [
        ("real-squad+float32", "bm25 knn_lm"),
        ("real-squad+in-part", "knn_lm replay"),
        ("real-newsworld", "bm25 cmt mac replay knn_lm uniform lora"),
    ],
)
def test_the_gains_that_the_docs_say_to_stay_after_correction_do(name: str, gains: str) -> None:
    board = build(ROOT / "reports" / "results" / name, name, "closed_book")
    p_values = {row.label: row.p_vs_reference for row in board.rows if row.p_vs_reference is not None}
    assert {label for label, p_value in p_values.items() if p_value < 0.05} == {*gains.split()}


@pytest.mark.slow
def test_two_precisions_make_the_board_that_the_docs_say() -> None:
    scores = {}
    for name in ("real-squad+float32", "real-squad+in-part"):
        rows = build(ROOT / "reports" / "results" / name, name, "closed_book").rows
        scores[name] = {row.label: row.scores["f1"][0].mean for row in rows if row.standing is not None}
    single, half = scores["real-squad+float32"], scores["real-squad+in-part"]
    del single["bm25"]
    assert list(single) == list(half) and len(half) == 9
    assert max(abs(half[label] - single[label]) for label in half) < 0.0035


def test_no_page_with_commands_is_left_out() -> None:
    pages = ["datasets/README.md", *PAGES_WITH_PATHS]
    assert {page for page in pages if any(commands(page))} == {*PAGES, OWN}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_runs(
    page: str, clone: Path, default_board: dict[tuple[str, str], dict[str, float]]
) -> None:
    for command in commands(page):
        if command.startswith("make"):
            run(command.replace("make", "make -n", 1), clone)
            continue
        if command == QUICK:
            os.utime(clone / "runs" / "boards" / "default+quick.json")  # all cells are there; it is the latest again
            continue
        run(command, clone)
        if command == "python run_bench.py new method recency":
            (clone / "methods" / "recency.py").write_text(block("plug-in: recency"))


@pytest.mark.slow
def test_the_way_from_documents_to_a_board_works(clone: Path) -> None:
    """Its commands run, with few steps, documents and trials."""
    splits = {"train": 6, "validation": 6, "test": 8, "qa_train": 16, "qa_validation": 4}
    make_dataset(clone / "my_news", splits)
    make_checkpoint(clone / "my_model", "llama", window=192, layers=8)
    (clone / "mine.yaml").write_text(block("experiment: mine.yaml", OWN))
    (clone / "methods" / "recency.py").write_text(block("plug-in: recency"))
    brief = " ".join(
        f"--set {name}.training.{key}={value}"
        for name in ("camels", "mac")
        for key, value in {"steps": 1, "validate_every": 1, "validation_episodes": 4, "episodes_per_step": 4}.items()
    )
    options = {
        "tune-qa": "--set steps=2 --set validate_every=1 --set validation_documents=2",
        "train": brief,
        "run": f"{brief} --streams 2 --documents 4 --validation-documents 3 --trials 1 --name brief",
    }
    for command in commands(OWN):
        run(f"{command} {options[command.split()[2]]}", clone)
    board = json.loads((clone / "out" / "mine+brief" / "leaderboard.json").read_text())["rows"]
    assert {row["label"].split(" ")[0] for row in board} == {
        *("closed_book", "gold_in_prompt", "lora", "camels", "mac", "recency")
    }


def test_every_option_of_the_pages_exists() -> None:
    import typer

    import run_bench

    def options(command: Any) -> Iterator[str]:
        yield from (name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))
        for inner in getattr(command, "commands", {}).values():
            yield from options(inner)

    foreign = {"--help", "--no-deps", "--wheel-dir", "--revised", "--tries"}  # of pip, a generator, and the attack
    known = {*options(typer.main.get_command(run_bench.app)), *foreign}
    pages = [*PAGES_WITH_PATHS, "CHANGELOG.md", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
    named = {str(page): set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / page).read_text())) for page in pages}
    assert {page: unknown for page, names in named.items() if (unknown := names - known)} == {}


@pytest.mark.parametrize("page", PAGES_WITH_PATHS)
def test_every_link_and_path_of_the_page_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    assert broken_links(page, text) == []
    assert missing_paths(page, text) == []


def test_every_link_of_the_other_pages_exists() -> None:
    pages = [ROOT / "CHANGELOG.md", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.md")))]
    broken = {
        str(path.relative_to(ROOT)): broken_links(str(path.relative_to(ROOT)), path.read_text()) for path in pages
    }
    assert {page: links for page, links in broken.items() if links} == {}
    assert {"bench/models/nano/README.md", "datasets/README.md"} <= broken.keys()


@pytest.mark.parametrize(
    ("text", "link", "path"),
    [
        ("see [the card](models/nano/README.md)", ["models/nano/README.md"], []),
        ("see [the card](bench/models/nano/README.md#formats) and [PEP 8](https://peps.python.org/pep-0008/)", [], []),
        ("read `bench/meta.py` and `bench/contract/method.py`", [], ["bench/meta.py"]),
        (
            "in `bench/rooms/` or in `bench/models/nano` or `bench/models/micro`",
            [],
            ["bench/rooms/", "bench/models/micro"],
        ),
        ("| `bench/data/` | `reader.py`, `method.py` |\n| `bench/contract/` | `method.py` |", [], ["method.py"]),
        ("a `dataset.yaml` below `datasets/`, streams in `datasets/<name>/streams/<split>-<n>-<k>.json`", [], []),
        ("`bench.meta` and `bench.contract.meta_training`, `bench.contract.method.Method`", [], ["bench.meta"]),
        ("`python run_bench.py run small.yaml` writes `out/`; `key/value`, `MetaTrained`, `lm.scored`", [], []),
        ("```bash\ncat `bench/meta.py`\n```", [], []),
    ],
)
def test_a_broken_link_or_path_is_noticed(text: str, link: list[str], path: list[str]) -> None:
    assert (broken_links("README.md", text), missing_paths("README.md", text)) == (link, path)


def test_the_page_of_methods_has_a_row_for_each() -> None:
    first = (ROOT / "docs" / "methods.md").read_text().split("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", first, flags=re.MULTILINE)) == [info.name for info in list_methods()]


def test_the_page_of_plots_has_a_row_for_each() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "plots.md").read_text(), flags=re.MULTILINE)
    assert sorted(rows) == sorted(plots.NAMES)


def test_the_gallery_shows_each_plot_as_a_small_picture() -> None:
    page = (ROOT / "docs" / "plots.md").read_text()
    shown = re.findall(r"^!\[\w+\]\(plots/(\w+)\.png\)$", page, flags=re.MULTILINE)
    assert sorted(shown) == sorted([*plots.NAMES, "compare"])
    sizes = {path.stem: path.stat().st_size for path in (ROOT / "docs" / "plots").iterdir()}
    assert sorted(sizes) == sorted(shown)
    assert max(sizes.values()) < 100_000 and sum(sizes.values()) < 1_500_000


def test_the_gallery_has_an_entry_with_a_picture_for_each_figure() -> None:
    page = (ROOT / "docs" / "figures.md").read_text()
    gallery = page.partition("## Gallery")[2].partition("## Add a figure")[0]
    words = r"Against.*\*(agrees in rank|sign differs|not resolved at this size)\*"
    shown = []
    for entry in re.split(r"^### ", gallery, flags=re.MULTILINE)[1:]:
        names = re.findall(r"reproduce ([\w-]+)", entry)
        assert re.search(r"^!\[[^\]]+\]\([\w/-]+\.png\)$", entry, flags=re.MULTILINE), names
        compared = any(figure.read(name).published for name in names)
        assert bool(re.search(words, " ".join(entry.split()))) == compared, names
        shown += names
    assert sorted(shown) == sorted(name for name, _, _ in figure.listing())
    pictures = {path.name for path in ROOT.glob("docs/figure-*.png")}
    assert pictures == set(re.findall(r"\((figure-[\w-]+\.png)\)", gallery))


@pytest.mark.parametrize(
    "name", ["memory-controls", "bank-size", "context-length", "evolving", "retention", "irrelevant"]
)
def test_experiments_with_arms_or_probes_ask_for_what_their_plots_need(name: str) -> None:
    experiment = load(name)
    arms = {arm for plan in experiment.methods for arm in plan.arms}
    needs = {
        "memory-controls": {"stream", "gold_only", "shuffled", "empty"} <= arms,
        "bank-size": len(experiment.probes) > 1,
        "evolving": len(experiment.probes) == 5,
        "context-length": {"gold_only", "stream"} < arms and any(arm.startswith("every_") for arm in arms),
        "retention": experiment.questions == "first" and len(experiment.probes) > 2,
        "irrelevant": {"stream", "irrelevant_25", "irrelevant_50", "irrelevant_100"} == arms,
    }
    assert needs[name]


def test_memory_controls_share_their_cells_with_the_default() -> None:
    ours, default = (
        load(name).model_dump(exclude={"name", "description", "methods"}) for name in ("memory-controls", "default")
    )
    assert ours == default


def test_the_smallest_plug_in_is_twenty_lines_or_fewer() -> None:
    assert min(len(path.read_text().splitlines()) for path in ROOT.glob("methods/[a-z]*.py")) <= 20


def test_the_example_plug_in_is_twenty_lines_or_fewer() -> None:
    assert len(block("plug-in: recency").splitlines()) <= 20


BODIES = re.findall(r"<!-- body: (\w+) -->\n```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
"""The base class and the body of each example of hooks."""


def checks_named(body: str) -> list[str]:
    """The checks that the comments of an example name."""
    text = " ".join(line.removeprefix("#").strip() for line in body.splitlines() if line.startswith("#"))
    return [name for names in re.findall(r"Checks?: ((?:\w+, )*\w+)", text) for name in names.split(", ")]


@pytest.mark.parametrize(("base", "body"), BODIES)
def test_the_examples_of_hooks_pass_the_checks(base: str, body: str, tmp_path: Path) -> None:
    """All but those that compare runs, which take long: of these, the ones that the example names."""
    info = as_method(body, base, tmp_path)
    slow = suite.COMPARING | {"same_seed_same_results"}
    names = [name for name in suite.NAMES if name not in slow or name in checks_named(body)]
    verdicts = [suite.examine(info, name) for name in names]
    assert [verdict.line() for verdict in verdicts if not verdict.passed or verdict.skipped] == []


@pytest.mark.parametrize(("base", "body"), BODIES)
def test_the_examples_of_hooks_run(base: str, body: str, tmp_path: Path) -> None:
    kind = load_method(as_method(body, base, tmp_path))
    method = fixtures.prepare(kind)
    entries = fixtures.entries(2)
    loop = run_loop(method, entries)
    assert len(loop.answer_events) == 6 and all(event.nll is not None for event in loop.answer_events)
    assert isinstance(kind.needs(method.config), list | tuple)
    assert isinstance(kind.depends_on(method.config), dict)
    json.dumps(method.notes())


def test_the_examples_of_hooks_name_checks_that_exist() -> None:
    named = {name for _, body in BODIES for name in checks_named(body)}
    assert named <= set(suite.NAMES)
    assert len(named) >= 14


def test_every_hook_and_field_of_the_contract_is_explained() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().split("### Hooks and helpers")[1].split("\n## ")[0]
    hooks = {name for name in (*vars(Method), *Method.__annotations__) if not name.startswith("_")} - {"name", "paper"}
    fields = set(Conditioning.__annotations__)
    assert {name for name in hooks | fields if not re.search(rf"\b{name}\b", text)} == set()

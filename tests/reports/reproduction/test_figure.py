"""Figures as files: those of the project are right, and whatever a file gets wrong is named with the nearest name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.errors import BenchError
from bench.help import citations
from bench.paths import ROOT
from bench.run.experiment import EqualCompute, load
from bench.run.overrides import Overrides
from reports.reproduction import FIGURES, figure, figures

RETENTION: dict[str, Any] = yaml.safe_load((FIGURES / "retention.yaml").read_text())


def written(folder: Path, values: dict[str, Any]) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def changed(folder: Path, *path: Any, to: Any) -> str:
    """The figure ``retention`` with another value at a path of keys; without it if that is None."""
    values = copy.deepcopy(RETENTION)
    place = values
    for key in path[:-1]:
        place = place[key]
    if to is None:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return written(folder, values)


@pytest.mark.parametrize("name", figures())
def test_each_figure_is_read_and_its_runs_fit_their_experiments(name: str) -> None:
    found = figure.read(name)
    for runs in found.scales.values():
        for run in runs:
            steps = None if run.equal_compute is None else EqualCompute(method="uniform", steps=run.equal_compute)
            varied = Overrides(**run.changes(), equal_compute=steps).vary(load(run.experiment))
            planned = {plan.name for plan in varied.methods}
            assert not run.methods or planned == {*run.methods}
    assert found.paper == "none" or found.paper in citations.read()


def test_at_least_one_method_of_a_figure_is_run_at_each_scale() -> None:
    for name in figures():
        found = figure.read(name)
        for scale, runs in found.scales.items():
            for run in runs:
                planned = {*run.methods} or {plan.name for plan in load(run.experiment).methods}
                shown = {method.method for method in found.methods.values()}
                assert not shown or planned & shown, (name, scale)


def test_the_list_has_the_names_papers_and_titles() -> None:
    rows = {name: (paper, title) for name, paper, title in figure.listing()}
    assert [*rows] == figures()
    assert rows["retention"] == ("Tack et al. 2024", "Retention of what was learned first")
    assert rows["evolving"][0] == "ours"


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (["methods", "uniform", "method"], "unifrom", "methods: there is no 'unifrom'. Did you mean uniform?"),
        (["methods", "uniform", "config"], {"lern": "all"}, "methods.uniform.config: there is no 'lern'. Did you mean"),
        (["published", 0, "datasets"], {"SQuAD-Sqe": "SQuAD"}, "datasets: there is no 'SQuAD-Sqe'"),
        (["scales", "tiny", 0, "published"], {"dataset": "SQuAD"}, "scales.tiny: a run names a published panel at the"),
        (["titel"], "x", r"titel: unknown key. Did you mean title\?"),
        (["title"], None, "title: Field required"),
        (["drawing"], "curve", "drawing = 'curve': Input should be 'bars', 'curves', 'heat'"),
        (["paper"], "tack2025mac", r"paper: there is no 'tack2025mac'. Did you mean tack2024mac"),
        (["along"], None, "a figure of curves needs along"),
        (["plots"], ["evolving"], "a figure of curves has no plots"),
        (["methods", "uniform", "at"], ["a", "b"], r"methods.uniform: a figure of heat, and no other, says where"),
        (
            ["scores"],
            {"relative_f1": "adopted documents="},
            r"there is no column 'adopted documents='. Did you mean adap",
        ),
        (["scores"], {"em": "adapted documents="}, "along documents there are f1 and relative_f1, not em"),
        (["scores"], {"f1_change": "adapted documents="}, "along documents there are f1 and relative_f1"),
        (["along"], "context", "relative_f1 is that of curves along documents or irrelevant"),
        (["published", 0, "table"], "retention figure", r"no 'retention figure'. Did you mean knowledge retention fig"),
        (["published", 0, "paper"], "tack2024", r"published: there is no 'tack2024'. Did you mean tack2024mac"),
        (["methods", "uniform", "published"], ["Unifrom"], r"there is no 'Unifrom'. Did you mean Uniform\?"),
        (["methods", "uniform"], None, "no method has the published row 'Uniform': name it in one"),
        (["methods", "uniform", "methode"], "x", r"methode: unknown key. Did you mean method\?"),
        (
            ["scales", "tiny", 0, "experiment"],
            "retenton",
            r"scales.tiny: there is no 'retenton'. Did you mean retention or",
        ),
        (["scales", "tiny", 0, "stream"], 1, r"stream: unknown key. Did you mean streams or"),
        (["scales"], {}, "scales: .* at least 1"),
        (["scales", "huge"], [], "huge"),
        (["differences"], None, "differences needs a line for each way in which our protocol is not the paper's"),
    ],
)
def test_what_is_wrong_is_named(path: list[Any], to: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=message) as error:
        figure.read(changed(tmp_path, *path, to=to))
    assert str(error.value).startswith("mine.yaml: ")


def test_the_example_of_the_docs_is_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "figures.md").read_text()
    example = page.partition("<!-- figure -->\n```yaml\n")[2].partition("```")[0]
    (tmp_path / "mine.yaml").write_text(example)
    found = figure.read(str(tmp_path / "mine.yaml"))
    assert found.runs("small")[0].changes() == {"streams": 2, "assignments": ("uniform.learning_rate=0.1",)}


def test_the_gallery_of_the_docs_has_every_figure() -> None:
    gallery = (ROOT / "docs" / "figures.md").read_text().partition("## Gallery")[2].partition("###")[0]
    first_cells = [line.split("|")[1] for line in gallery.splitlines() if line.startswith("| `")]
    assert sorted(name.strip(" `") for cell in first_cells for name in cell.split(",")) == figures()


def test_at_the_papers_size_a_run_names_a_published_panel(tmp_path: Path) -> None:
    run = {"experiment": "squad", "published": {"dataset": "StreamingQA", "base": "GPT2-XXL"}}
    with pytest.raises(BenchError, match=r"there is no 'StreamingQA, GPT2-XXL'. Did you mean StreamingQA, GPT2-XL"):
        figure.read(changed(tmp_path, "scales", "paper", to=[run]))
    run["published"] = {"dataset": "StreamingQA", "base": "GPT2-XL"}
    assert figure.read(changed(tmp_path, "scales", "paper", to=[run])).runs("paper")[0].published == run["published"]


def test_two_published_values_in_one_place_are_refused(tmp_path: Path) -> None:
    values = copy.deepcopy(RETENTION)
    values["methods"]["uniform"]["published"] += values["methods"].pop("salient spans")["published"]
    with pytest.raises(BenchError, match="uniform: two published values are on StreamingQA in one place, Salient"):
        figure.read(written(tmp_path, values))


def test_along_the_context_values_of_the_papers_size_are_in_another_unit(tmp_path: Path) -> None:
    values: dict[str, Any] = yaml.safe_load((FIGURES / "context-length.yaml").read_text())
    values["scales"]["paper"] = values["scales"]["tiny"]
    with pytest.raises(BenchError, match="along context there is no scale paper"):
        figure.read(written(tmp_path, values))


def test_a_column_without_a_place_is_named(tmp_path: Path) -> None:
    column = next(iter(RETENTION["scores"].values()))
    with pytest.raises(BenchError, match=r"scores.relative_f1: the column '.*' has no place after"):
        figure.read(changed(tmp_path, "scores", to={"relative_f1": column[:3]}))


def test_an_unknown_score_is_named(tmp_path: Path) -> None:
    values: dict[str, Any] = yaml.safe_load((FIGURES / "costs.yaml").read_text())
    values["scores"] = {"observe_second": "peak memory"}
    with pytest.raises(BenchError, match=r"scores: there is no 'observe_second'. Did you mean observe_seconds"):
        figure.read(written(tmp_path, values))


def test_unknown_figures_plots_and_scales_are_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"No figure 'retenton'. Did you mean retention or"):
        figure.read("retenton")
    with pytest.raises(BenchError, match=r"retention has no scale 'tini'. Did you mean tiny\?"):
        figure.read("retention").runs("tini")
    values = {key: RETENTION[key] for key in ("title", "paper", "shows")}
    values |= {"drawing": "plots", "plots": ["evolvin"], "scales": {"tiny": [{"experiment": "evolving"}]}}
    with pytest.raises(BenchError, match=r"plots: there is no 'evolvin'. Did you mean evolving\?"):
        figure.read(written(tmp_path, values))
    with pytest.raises(BenchError, match="must be a mapping"):
        figure.read(written(tmp_path, []))  # type: ignore[arg-type]

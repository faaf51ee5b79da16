from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.contract.registry import load_method
from bench.data.recipe import SPLITS
from bench.help import shapes
from bench.help.readiness import _tried, measure, readiness
from bench.paths import experiments
from bench.records.store import read_documents
from bench.run.executor import Outcome, TaskError
from bench.run.experiment import MethodPlan, load
from bench.run.runner import Runner, earlier_pace
from tests.world import make_dataset, make_experiment


def test_each_data_set_and_each_base_of_an_experiment_comes_once() -> None:
    experiment = load("paper-mac")
    found = readiness(experiment)
    titles = [finding.subject for finding in found if "licence:" in finding.text]
    assert titles == experiment.datasets
    assert [finding.text.split("'")[1] for finding in found if finding.subject == "base"] == experiment.models
    [encoder] = [finding for finding in found if finding.subject == "t5-base"]
    assert encoder.level == "missing"
    assert 'Download it (hf download t5-base --exclude "*.bin"), or give mac.training.' in encoder.text


def test_a_base_of_the_hub_is_looked_at_if_it_is_cached_and_is_missing_if_not(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--someone--tiny"
    shutil.copytree(llama, cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    experiment = load("default").model_copy(update={"models": ["someone/tiny", "someone/huge"]})
    bases = [finding for finding in readiness(experiment) if finding.subject in ("base", "memory")]
    assert [finding.subject for finding in bases] == ["base", "memory", "base"]
    assert bases[0].level == "ok" and bases[0].text.startswith("tiny, 0 million weights")
    assert bases[2].level == "missing"
    assert 'cache lacks it. Download it (hf download someone/huge --exclude "*.bin")' in bases[2].text


def test_what_a_base_will_take_is_known_before_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "matrix_rate", lambda *_: 1e12)
    monkeypatch.setattr("bench.run.workers.available_memory", lambda: 30 * 10**9)
    experiment = load("paper-cmt").model_copy(update={"models": ["gpt2-xl", "meta-llama/Llama-2-7b-hf@main", "a/b"]})
    found = [(one.level, one.subject, one.text) for one in readiness(experiment)]
    found = [one for one in found if one[1] in ("base", "size", "memory", "time")]
    assert [one[:2] for one in found] == [
        ("missing", "base"), ("note", "size"), ("note", "memory"), ("note", "time"),
        ("missing", "base"), ("note", "size"), ("missing", "memory"), ("note", "time"),
        ("missing", "base"),
    ]  # fmt: skip
    assert found[1][2] == "1,558 million weights, 3.1 GB in 16 bits"
    assert "up to 44.0 GB to fine-tune it" in found[2][2] and "needs 67.8 GB of memory" in found[6][2]
    # 2 x 1,557,611,200 weights x 512 tokens at 1e12 a second, and three times that; without Llama's input embeddings
    assert found[3][2].startswith("1.6 s or more to read a document of 512 tokens, 4.8 s or more for a step")
    assert found[7][2].startswith("6.8 s or more to read"), "2 x (6,738,415,616 - 32,000 x 4,096) x 512"


PUBLISHED_COUNTS = {
    "distilgpt2": 81_912_576,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "EleutherAI/pythia-160m": 162_322_944,
    "EleutherAI/pythia-410m": 405_334_016,
    "EleutherAI/pythia-1b": 1_011_781_632,
}


def test_the_bases_of_the_papers_have_their_number_of_weights() -> None:
    assert {name: size.weights for name in PUBLISHED_COUNTS if (size := shapes.size_of(name))} == PUBLISHED_COUNTS
    named = {model for name in experiments() if name.startswith("paper-") for model in load(name).models}
    assert named <= shapes.SHAPES.keys()


def test_what_only_another_base_needs_is_not_asked_for() -> None:
    experiment = load("paper-mac").model_copy(update={"models": ["distilgpt2"]})
    subjects = {finding.subject for finding in readiness(experiment)}
    assert "t5-base" in subjects and "t5-large" not in subjects


def test_the_rate_of_matrix_products_is_positive() -> None:
    assert shapes.matrix_rate("cpu", torch.float32, 64) > 0


def test_a_method_is_tried_on_its_arm_that_holds_the_most_documents() -> None:
    experiment = load("paper-generative-adapter")
    plan = next(plan for plan in experiment.methods if plan.name == "full_context")
    kinds = {plan.name: load_method(plan.name)}
    planned: Any = SimpleNamespace(untrained=[], spaces={id(plan): {}}, methods=kinds, experiment=experiment)
    arms = {"gold_only", "every_4", "every_128", "stream"}
    for present, tried in ((arms, "stream"), (arms - {"stream"}, "every_128"), ({"empty", "gold_only"}, "gold_only")):
        plan.arms = sorted(present)
        assert [one.arms for one in _tried(plan, planned)] == [[tried]]


def test_a_split_that_cannot_be_read_does_not_hide_what_the_others_lack(tmp_path: Path) -> None:
    experiment = load("real-squad")
    for split in ("qa_train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("no JSON\n")
        experiment.data_files[split] = [str(tmp_path / f"{split}.jsonl")]
    entry = {"id": "d", "text": "A text.", "questions": [{"text": "What?", "answers": ["a text"]}]}
    (tmp_path / "train.jsonl").write_text(json.dumps(entry) + "\n")
    experiment.data_files["train"] = [str(tmp_path / "train.jsonl")]
    levels = {finding.subject: finding.level for finding in readiness(experiment)}
    assert levels["qa_train"] == levels["validation"] == levels["test"] == "missing"
    assert levels["qa_validation"] == "note", "nothing needs it"


def test_a_split_that_nothing_uses_is_not_read(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "keepers")
    experiment = make_experiment(data, "nano", [{"name": "closed_book"}, {"name": "dynamic_evaluation"}], tuning=None)
    missing = [str(tmp_path / "missing.jsonl")]
    files = {split: [str(data / f"{split}.jsonl")] for split in SPLITS}
    experiment.data_files = {**files, "qa_validation": missing}
    texts = {finding.subject: finding.text for finding in readiness(experiment)}
    assert "documents" in texts["test"] and texts["qa_validation"] == "is not used"
    experiment.data_files = {**files, "train": missing}
    experiment.methods[1].config = {"statistics": "train"}
    texts = {finding.subject: finding.text for finding in readiness(experiment)}
    assert "missing.jsonl" in texts["train"], "dynamic_evaluation reads its statistics from there"


def test_a_method_whose_training_fails_is_a_failure_and_not_tried(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment(make_dataset(tmp_path / "keepers"), llama, [{"name": "mac", "space": {}}], tuning=None)

    def fail(plans: Mapping[str, MethodPlan], *_: object) -> dict[str, Outcome]:
        return {name: Outcome(name, error=TaskError("raised", "no room left")) for name in plans}

    monkeypatch.setattr("bench.help.readiness._try_trainings", fail)
    measured = measure([Runner(experiment, tmp_path, look_only=True)], tmp_path, [], jobs=1)
    assert (measured.trainings, measured.failures) == ([], ["mac, in training: no room left"])


@pytest.mark.parametrize("is_own", [False, True])
def test_of_a_book_a_trial_reads_the_opening(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_own: bool
) -> None:
    read = []

    def spy(runners: Any, folder: Path) -> Any:
        ids = [path.parent.name for path in folder.glob("*/run.json")]
        read.extend([event.tokens for id in ids for event in read_documents(folder, id)])
        return earlier_pace(runners, folder)

    monkeypatch.setattr("bench.help.readiness.earlier_pace", spy)
    dataset, book = tmp_path / "mine", tmp_path / "mine" / "book.txt"
    dataset.mkdir()
    book.write_text("The lighthouse opened in 1983. " * 2000)
    (dataset / "dataset.yaml").write_text(
        "{name: mine, title: Mine, description: Mine., language: en, licence: none, citation: none, format: text, "
        "source: {files: {test: [book.txt]}}}"
    )
    files = {} if is_own else {"test": [str(book)]}
    experiment = make_experiment(
        dataset if is_own else Path("text"), llama, ["closed_book"], data_files=files, tuning=None, anchor={},
        streams={"split": "test", "count": 1},
    )  # fmt: skip
    runner = Runner(experiment, tmp_path / "runs", look_only=True)
    measured = measure([runner], tmp_path / "runs", [], jobs=1)
    [whole] = runner.look_ahead()[0].board
    assert measured.failures == [] and measured.pace.seconds(whole)
    assert read == [pytest.approx(whole.tokens * 20_000 / 62_000, rel=0.01)]


def test_of_retuning_as_large_a_share_is_tried_as_of_the_documents() -> None:
    plan = MethodPlan(name="uniform_qa_retune", config={"retune": {"steps": 512}})
    planned: Any = SimpleNamespace(
        untrained=[], spaces={id(plan): {}}, methods={plan.name: load_method(plan.name)}, experiment=load("default")
    )
    [tried] = _tried(plan, planned, 16 / 1665)
    assert tried.config["retune"]["steps"] == 5

"""Lengths in tokens, and the arms of documents that stand for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydantic
import pytest

from bench.data.documents import Document
from bench.records.store import read_run
from bench.run import lengths
from bench.run.experiment import Experiment, MethodPlan, load
from bench.run.lengths import in_documents
from bench.run.runner import Runner
from tests.world import Inline, make_dataset


@pytest.mark.parametrize(
    ("tokens", "arm"),
    [
        (1, "gold_only"),
        (10, "gold_only"),  # 120 tokens a stream: 12 groups of one document
        (14, "every_2"),  # 9 groups: 12 documents in groups of two
        (30, "every_3"),
        (33, "every_3"),
        (35, "every_4"),
        (60, "every_6"),
        (79, "every_6"),  # nearer to 60 tokens than to 120, in the number of groups
        (81, "stream"),
        (1000, "stream"),
    ],
)
def test_a_length_in_tokens_is_the_arm_with_as_many_groups(
    monkeypatch: pytest.MonkeyPatch, tokens: int, arm: str
) -> None:
    monkeypatch.setattr(lengths, "count", lambda _, document: len(document.text.split()))
    streams = [[Document(f"{k}-{i}", "word " * length) for i in range(12)] for k, length in enumerate((8, 12))]
    assert in_documents(f"tokens_{tokens}", "nano", streams) == arm
    assert in_documents("every_7", "nano", streams) == "every_7"


def test_a_run_states_arms_in_documents_and_a_remark_says_so(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    arms = ["tokens_1", "tokens_2", "tokens_100000", "placebo"]
    runner = Runner(plan({"name": "uniform", "space": {}, "arms": arms}), tmp_path)
    assert "In documents: tokens_1 is gold_only, tokens_2 is gold_only, tokens_100000 is stream." in runner.remarks
    result = runner.run(Inline())
    assert {read_run(tmp_path / cell.id).spec.arm for cell in result.cells} == {"gold_only", "stream", "placebo"}
    assert len(result.cells) == 3 * 2


def test_each_data_set_has_its_own_arms(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    longer = make_dataset(tmp_path / "longer")
    for file in longer.glob("*.jsonl"):
        file.write_text(file.read_text().replace("opened in", f"{'opened and closed and ' * 30} opened in"))
    several = plan({"name": "uniform", "space": {}, "arms": ["tokens_60"]})
    several.datasets = [several.dataset, str(longer)]
    first, second = several.on_each_pair()
    arms = [plan.arms for pair in (first, second) for plan in Runner(pair, tmp_path / "runs").experiment.methods]
    assert arms[0] != arms[1] == ["gold_only"]
    assert [plan.arms for plan in several.methods] == [["tokens_60"]]


def test_the_contexts_of_the_paper_are_groups_that_double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "count", lambda *_: 140)
    stream = [Document(str(i), "") for i in range(256)]
    arms = next(plan.arms for plan in load("paper-generative-adapter").methods if plan.name == "full_context")
    groups = ["every_4", "every_8", "every_15", "every_29", "every_64", "every_128", "stream"]
    assert [in_documents(arm, "nano", [stream]) for arm in arms] == groups


@pytest.mark.parametrize("arm", ["tokens_0", "tokens_", "tokens_5x", "a tokens_5"])
def test_other_lengths_are_refused(arm: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="tokens_"):
        MethodPlan(name="uniform", arms=[arm])

"""The training run: it learns, in the stated shares and turns, and resumes to the bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.conformance import fixtures
from bench.data.documents import Episode, episodes
from bench.errors import BenchError, Diverged
from bench.qa_tuning import train
from bench.qa_tuning.packing import items
from bench.qa_tuning.recipe import QaRecipe
from bench.qa_tuning.train import Run

EPISODES = episodes(fixtures.entries(12))
TRAIN = {"one": EPISODES[:5], "two": EPISODES[5:8]}
VALIDATION = {"one": EPISODES[8:10], "two": EPISODES[10:]}
BASE: dict[str, Any] = {
    "base": "tiny",
    "datasets": ["one", "two", "one"],
    "documents": 2,
    "closed_share": 0.4,
    "rank": 4,
    "steps": 6,
    "learning_rate": 0.02,
    "warmup": 1,
    "validate_every": 2,
    "validation_documents": 1,
}


def recipe(**changes: Any) -> QaRecipe:
    return QaRecipe(**{**BASE, **changes})


def run_of(settings: QaRecipe, folder: Path, identity: str = "id") -> Run:
    lm = fixtures.base_model(settings.dtype)
    return Run(lm, settings, TRAIN, VALIDATION, identity, folder / "checkpoint.safetensors")


@pytest.mark.parametrize("rank", [4, None])
def test_tuning_lowers_the_loss_and_only_the_adapter_learns(rank: int | None, tmp_path: Path) -> None:
    run = run_of(recipe(rank=rank), tmp_path)
    before = {name: tensor.detach().clone() for name, tensor in run.lm.named_tensors()}
    lines: list[str] = []
    run.run(lines.append)
    assert run.why_not_packed is None
    assert run.curve[-1]["validation_loss"] < run.curve[0]["validation_loss"] - 0.3
    assert [line.partition(",")[0].partition(":")[0] for line in lines] == [f"step {k}/6" for k in (0, 2, 4, 6)]
    unchanged = [torch.equal(before[name], tensor.detach()) for name, tensor in run.lm.named_tensors()]
    assert all(unchanged) if rank else not any(unchanged)


@pytest.mark.parametrize("rank", [4, None])
def test_a_killed_run_goes_on_as_if_never_interrupted(
    rank: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_of(recipe(rank=rank), tmp_path / "whole")
    whole.run()
    advance = Run._advance

    def killed(run: Run) -> None:
        if run.step == 5:  # the last checkpoint is that of step 4
            raise KeyboardInterrupt
        advance(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_advance", killed)
        with pytest.raises(KeyboardInterrupt):
            run_of(recipe(rank=rank), tmp_path / "parts").run()
    resumed = run_of(recipe(rank=rank), tmp_path / "parts")
    assert resumed.step == 4
    resumed.run()
    assert resumed.curve == whole.curve and resumed.best_step == whole.best_step
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, resumed.parameters[name]), name


def test_the_best_weights_are_kept_and_patience_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QaRecipe, "rate", lambda self, step: 0.02 if step < 2 else -0.02)  # then it gets worse
    run = run_of(recipe(steps=40, patience=2), tmp_path)
    run.run()
    assert (run.best_step, run.step) == (2, 6)
    lowest = min(row["validation_loss"] for row in run.curve)
    run._validate()
    assert run.curve[-1]["validation_loss"] == pytest.approx(lowest, abs=1e-6)


def test_datasets_take_turns_and_every_pass_has_each_document_once(tmp_path: Path) -> None:
    run = run_of(recipe(), tmp_path)
    prompts: dict[tuple[int, ...], str] = {}
    for name, own in TRAIN.items():
        for episode in own:
            prompts[tuple(items(run.lm, episode, [0], True)[0].prompt.tolist())] = f"{name} {episode.document.id}"
    seen = [prompts[tuple(run._pack(i)[0].prompt.tolist())] for i in range(15)]
    assert [document.split()[0] for document in seen] == ["one", "two", "one"] * 5
    ones = [document for document in seen if document.startswith("one")]
    assert len(set(ones[:5])) == len(set(ones[5:])) == 5 and ones[:5] != ones[5:]
    assert len({document for document in seen if document.startswith("two")}) == 3


def test_every_question_is_asked_with_its_document_and_a_share_without(tmp_path: Path) -> None:
    run = run_of(recipe(closed_share=0.4), tmp_path)
    packs = [run._pack(i) for i in range(300)]
    counts = [len(pack) - 2 for pack in packs]  # of two questions
    assert set(counts) == {0, 1, 2}
    share = sum(counts) / sum(len(pack) for pack in packs)
    assert 0.35 < share < 0.45
    closed = len(items(run.lm, TRAIN["one"][0], [0], False)[0].prompt)
    assert all(len(item.prompt) < 2 * closed for pack in packs for item in pack[2:])
    none = run_of(recipe(closed_share=0.0), tmp_path)
    assert {len(none._pack(i)) for i in range(20)} == {2}


def test_the_validation_loss_weights_both_kinds_of_items_by_their_shares(tmp_path: Path) -> None:
    run = run_of(recipe(closed_share=0.25), tmp_path)
    run._validate()
    row = run.curve[0]
    with_document, without = (row[f"one_{k}"] + row[f"two_{k}"] for k in ("with_document", "without"))
    assert row["validation_loss"] == pytest.approx((0.75 * with_document + 0.25 * without) / 2)


def test_no_validation_document_is_tuned_on(tmp_path: Path) -> None:
    lm = fixtures.base_model()
    shared = {"one": EPISODES[:3]}
    run = Run(lm, recipe(datasets=["one"]), {"one": EPISODES[:5]}, shared, "id", tmp_path / "c")
    assert [episode.document.id for episode in run.train["one"]] == [e.document.id for e in EPISODES[3:5]]
    with pytest.raises(BenchError, match="qa_train split of one has no questions"):
        Run(fixtures.base_model(), recipe(datasets=["one"]), shared, shared, "id", tmp_path / "c")


def test_a_base_that_reads_no_packs_is_tuned_on_single_items_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = run_of(recipe(dtype="float32", steps=2), tmp_path / "packed")
    packed.run()
    monkeypatch.setattr(train, "why_not_packed", lambda *_: "it cannot")
    single, lines = run_of(recipe(dtype="float32", steps=2), tmp_path / "single"), list[str]()
    single.run(lines.append)
    assert lines[0] == "Each item is read in a row of its own: it cannot."
    losses = [run.curve[-1]["validation_loss"] for run in (packed, single)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_the_rate_rises_and_falls_as_stated() -> None:
    settings = recipe(steps=4, warmup=1, learning_rate=0.5)
    expected = [0.5 * 0.5, 0.5 * (1 + math.cos(math.pi / 4)) / 2, 0.25, 0.5 * (1 + math.cos(3 * math.pi / 4)) / 2]
    assert [settings.rate(step) for step in range(4)] == pytest.approx(expected)


def test_a_gradient_that_is_not_finite_and_a_foreign_or_damaged_checkpoint_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(recipe(steps=2), tmp_path)
    run.run()
    with pytest.raises(BenchError, match=r"another base, recipe, data or code\. Delete it to start again"):
        run_of(recipe(steps=2), tmp_path, "other")
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BenchError, match=r"damaged.*Delete it to start again"):
        run_of(recipe(steps=2), tmp_path)
    fresh = run_of(recipe(), tmp_path / "fresh")
    monkeypatch.setattr(fresh, "_losses", lambda own: train.packed_losses(fresh.lm, own) * float("nan"))
    with pytest.raises(Diverged, match="became nan in step 0"):
        fresh._advance()


def test_an_episode_without_questions_is_left_out(tmp_path: Path) -> None:
    silent = Episode(EPISODES[0].document, (), ())
    run = Run(
        fixtures.base_model(),
        recipe(datasets=["a"]),
        {"a": [silent, *EPISODES[1:3]]},
        {"a": EPISODES[3:5]},
        "",
        tmp_path / "c",
    )
    assert len(run.train["a"]) == 2

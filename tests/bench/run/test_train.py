"""Training before a run: what is refused before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench import Conditioning, Document, Episode, MethodConfig, Question
from bench.answering.prompts import answer_ids, build_prompts
from bench.conformance.fixtures import base_model
from bench.contract.meta_training import MetaTrained, Trainer, TrainingConfig
from bench.data.prompt_format import PromptFormat
from bench.errors import BenchError
from bench.paths import MODELS
from bench.run import artifacts
from bench.run.experiment import Experiment
from bench.run.overrides import Overrides
from bench.run.places import place
from bench.run.train import check_prompts, loss_with_other_documents, train, train_target
from bench.run.workers import Workers
from tests.tiny_tokenizers import CHATS, CORPUS, chat_base
from tests.world import make_experiment

CMT = {"name": "cmt", "config": {"training": {"steps": 1}}}


@pytest.fixture
def experiment(keepers: Path, llama: Path) -> Experiment:
    return make_experiment(keepers, llama, [CMT])


def test_validation_documents_among_those_of_training_are_refused(keepers: Path, llama: Path, tmp_path: Path) -> None:
    files = {split: [str(keepers / "train.jsonl")] for split in ("train", "validation")}
    experiment = make_experiment(keepers, llama, [CMT], data_files=files)
    with pytest.raises(BenchError, match=r"train, the split that cmt was trained on, and validation.* share 4 of 4"):
        train("cmt", experiment, 0, tmp_path / "out", tmp_path / "work")
    assert not list(tmp_path.iterdir())


def test_only_what_the_key_covers_reaches_a_training(keepers: Path, llama: Path, tmp_path: Path) -> None:
    found = []
    settings = {"steps": 2, "episodes_per_step": 2, "validate_every": 1, "validation_episodes": 4}
    for k in (1, 16):
        plan = {"name": "cmt", "config": {"k": k, "training": settings}}
        folder = train("cmt", make_experiment(keepers, llama, [plan]), 0, tmp_path / f"{k}", tmp_path / f"work-{k}")
        assert folder is not None
        found.append((folder.name, artifacts.weights_hash(folder), (folder / "curve.csv").read_text()))
        assert not [*(tmp_path / f"work-{k}").glob("cmt-*")], "who deletes the weights trains anew"
    assert found[0] == found[1]


def test_the_card_names_the_base_and_the_data_of_another_training_than_that_of_the_experiment(
    keepers: Path, llama: Path, tmp_path: Path
) -> None:
    settings = {"steps": 1, "episodes_per_step": 1, "validate_every": 1, "validation_episodes": 1}
    assignments = [f"cmt.training.{key}={value}" for key, value in settings.items()]
    overrides = Overrides(model=str(llama), dataset=str(keepers), seed=0, assignments=assignments)
    (folder,) = train_target("cmt", "default", overrides, tmp_path / "runs")
    command = f"`python run_bench.py train cmt --dataset {keepers} --model {llama} --seed 0`, with the settings below,"
    text = (folder / "README.md").read_text()
    assert command in text and "With documents of the train split in place of the questions' own it is " in text


@pytest.mark.parametrize(("out", "work", "option"), [("file", "work", "--out"), ("out", "file/work", "--work")])
def test_a_folder_that_cannot_be_written_is_refused(
    experiment: Experiment, tmp_path: Path, out: str, work: str, option: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match=f"cannot be written .* name another folder with {option}"):
        train("cmt", experiment, 0, tmp_path / out, tmp_path / work)


def test_settings_of_the_embedded_model_make_a_model_of_their_own(tmp_path: Path) -> None:
    tiny = {"steps": 1, "width": 16, "layers": 1, "heads": 2, "feed_forward": 16, "known": 3, "new": 2}
    assignments = [f"{key}={value}" for key, value in {**tiny, "rehearsal": 0, "weights.read": 2}.items()]
    (out,) = train_target("nano", "default", Overrides(assignments=assignments), tmp_path, tmp_path / "small")
    assert "rehearsal: 0.0\n" in (out / "recipe.yaml").read_text()
    assert "read: 2.0" in (out / "recipe.yaml").read_text()
    assert f"train nano --set {' --set '.join(assignments)} --out FOLDER`" in (out / "README.md").read_text()
    names = {path.name for path in (MODELS / "nano").iterdir()}
    assert {path.name for path in out.iterdir()} == names


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (Overrides(assignments=["rehersal=0"]), "rehersal: unknown key. Did you mean rehearsal"),
        (Overrides(assignments=["weights.raed=1"]), "weights.raed: unknown key. Did you mean read"),
        (Overrides(assignments=["steps.more=1"]), "steps: .*integer"),
        (Overrides(assignments=["rehearsal=-1"]), "rehearsal = -1: .*greater than or equal to 0"),
        (Overrides(assignments=["rehearsal"]), "--set takes key=value"),
        (Overrides(assignments=["rehearsal=[1"]), "--set rehearsal=.*not valid YAML"),
        (Overrides(assignments=["rehearsal=0"]), "name its folder with --out"),
        (Overrides(device="mps"), "finds no mps device"),
        (Overrides(model="nano"), "trained by its own recipe"),
        (Overrides(dataset="squad"), "trained by its own recipe"),
    ],
)
def test_what_does_not_fit_the_recipe_of_the_embedded_model_is_refused(
    overrides: Overrides, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match=message):
        train_target("nano", "default", overrides, tmp_path)
    assert not list(tmp_path.iterdir())


def test_options_on_workers_hold_for_a_single_training_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchError, match="nano is one training in this process"):
        train_target("nano", "default", Overrides(), tmp_path, workers=Workers(threads=2))
    monkeypatch.setattr("bench.run.train._train_all", lambda trainings, workers, say: [Path(workers.kind)])
    for workers in (Workers("ray"), Workers(threads=1)):
        options = Overrides(seed=0)
        assert train_target("cmt", "default", options, tmp_path, workers=workers) == [Path(workers.kind)]


@pytest.mark.parametrize("options", [{}, {"work": "work", "workers": Workers("ray")}, {"out": "out"}])
def test_in_a_bucket_a_training_asks_for_folders_for_what_is_not_kept_there(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OAB_CACHE", str(tmp_path))
    bucket = place("memory://trainings/runs")
    with pytest.raises(BenchError, match="in a folder, not in a bucket: name one that all machines see with --work"):
        train_target("cmt", "default", Overrides(), bucket.path, **options)


class Answers(MetaTrained):
    """Validates by the likelihood of answers, after prompts of its own or of the harness."""

    name = "answers"
    paper = "none"
    own_prompts = False

    class Config(MethodConfig):
        training: TrainingConfig = TrainingConfig()

    learner = nn.Linear(1, 1)

    def observe(self, document: Document) -> None:
        pass

    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        return {}

    def validate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        [question], [golds] = episodes[0].questions, episodes[0].answers
        self.lm.hidden(Document("q", question.text))  # a method may read a bare question for other ends
        [prompt], [answer] = (
            build_prompts(self.lm, [question], Conditioning(), 0),
            answer_ids(self.lm, [question.text], list(golds)),
        )
        bare = torch.cat([torch.tensor([self.lm.bos_id]), self.lm.encode(question.text)])
        return {"loss": -self.lm.log_probs(answer, bare if self.own_prompts else prompt.ids).mean().item()}


@pytest.mark.parametrize(
    ("prompt", "differs"),
    [
        (PromptFormat(), False),
        (PromptFormat(begin="<|im_end|>"), False),
        (PromptFormat(document="Read: {document} "), False),
        (PromptFormat(question="{question} A:"), True),
        (PromptFormat(chat=True), True),
    ],
)
def test_a_method_that_learns_from_bare_questions_is_refused_if_they_are_asked_otherwise(
    prompt: PromptFormat, differs: bool
) -> None:
    method = Answers(chat_base(CHATS["turns"], prompt))
    episodes = [Episode(Document("d", CORPUS[0]), (Question("q", "Who built the mill?"),), (("Anna",),))]
    check_prompts(method, episodes)
    method.own_prompts = True
    if differs:
        with pytest.raises(BenchError, match=r"^answers learns from bare questions.*Leave out the method, or"):
            check_prompts(method, episodes)
    else:
        check_prompts(method, episodes)


class Reader(Answers):
    """Its loss is 1 where the documents have the answers, else 3."""

    name = "reader"

    def validate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        text = " ".join(episode.document.text for episode in episodes)
        losses = [1.0 if golds[0] in text else 3.0 for episode in episodes for golds in episode.answers]
        return {"loss": sum(losses) / len(losses)}


def test_what_a_learner_reads_is_told_from_what_it_knows_by_documents_that_are_not_the_questions_own() -> None:
    def about(name: str, answer: str) -> Episode:
        return Episode(Document(name, f"{answer} built it."), (Question(name, f"Who built {name}?"),), ((answer,),))

    validation = [about("the mill", "Anna"), about("the bridge", "Ben"), about("the well", "Cora")]
    trainer = Trainer(Reader(base_model()), [about("the barn", "Dora"), about("the inn", "Ben")], validation)
    assert trainer.method.validate(trainer.validation) == {"loss": 1.0}
    assert loss_with_other_documents(trainer) == (3 + 1 + 3) / 3, "another text with the answer counts as reading it"

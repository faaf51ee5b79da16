"""The offline trainer: what it trains, keeps, saves and refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench import Document, Episode, MethodConfig, Question
from bench.contract.meta_training import MetaTrained, Trainer, TrainingConfig, mean_of, training_of
from bench.errors import BenchError, Diverged
from bench.lm.base_model import BaseModel
from tests.conftest import TEXT


def episode(i: int) -> Episode:
    return Episode(Document(f"d{i}", f"{TEXT[0]} {i}"), (Question(f"q{i}", "When?"),), (("1983",),))


TRAIN, VALIDATION = [episode(i) for i in range(7)], [episode(i) for i in range(20, 24)]


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(3.0))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("last", torch.zeros(()), persistent=False)
        self.seen: Tensor
        self.last: Tensor


class Learns(MetaTrained):
    """Pulls a number to zero; which episodes it was given, and random noise, enter its gradient."""

    name = "learns"
    paper = "none"

    class Config(MethodConfig):
        training: TrainingConfig = TrainingConfig(steps=6, episodes_per_step=3, learning_rate=0.3, validate_every=2)

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.line = Line()
        self.drawn: list[list[str]] = []

    @property
    def learner(self) -> nn.Module:
        return self.line

    def observe(self, document: Document) -> None:
        pass

    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        self.drawn.append([e.document.id for e in episodes])
        assert len(others) == len(episodes)
        self.line.seen += 1
        noise = 1 + 0.1 * torch.randn(()) + 0.1 * self.line.last + 0.01 * sum(int(e.document.id[1:]) for e in episodes)
        loss: Tensor = noise * self.line.slope**2
        loss.backward()
        self.line.last = loss.detach() / (1 + loss.detach())
        return {"loss": loss.item()}

    def validate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        return {"loss": abs(self.line.slope.item() - 2.0), "documents": len(episodes)}


@pytest.fixture
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def trained(lm: BaseModel, file: Path | None = None, **settings: object) -> tuple[Learns, Trainer]:
    training = Learns.Config().training.model_copy(update=settings)
    method = Learns(lm, Learns.Config(training=training))
    trainer = Trainer(method, TRAIN, VALIDATION, file)
    trainer.run()
    return method, trainer


def test_the_best_validated_learner_is_kept_not_the_last(lm: BaseModel) -> None:
    method, trainer = trained(lm)
    losses = {row["step"]: row["validation_loss"] for row in trainer.curve}
    assert list(losses) == [0, 2, 4, 6], "validation comes before the first step too"
    assert losses[trainer.best_step] == min(losses.values()) < losses[6]
    assert abs(method.line.slope.item() - 2.0) == pytest.approx(min(losses.values()))
    assert method.line.seen == trainer.best_step, "its buffers are those of that step"


def test_outer_gradients_are_clipped(lm: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.Adam.step

    def note(self: torch.optim.Adam) -> None:
        norms.extend(abs(p.grad.item()) for group in self.param_groups for p in group["params"])
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", note)
    trained(lm, clip_norm=0.5, steps=2)
    trained(lm, clip_norm=None, steps=2)
    assert norms[:2] == pytest.approx([0.5, 0.5], rel=1e-4) and min(norms[2:]) > 1


def test_without_validation_documents_those_of_training_validate(lm: BaseModel) -> None:
    assert Trainer(Learns(lm, Learns.Config()), TRAIN, []).validation == TRAIN


def test_the_rate_rises_and_then_falls_along_half_a_cosine() -> None:
    training = TrainingConfig(steps=11, warmup=3, decay="cosine")
    factors = [training.rate_factor(step) for step in range(11)]
    assert factors[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert factors[7] == pytest.approx(0.5), "half way down"
    assert sorted(factors[3:], reverse=True) == factors[3:]
    assert factors[10] < 0.05
    assert {TrainingConfig(steps=5).rate_factor(step) for step in range(5)} == {1.0}


def test_the_optimizer_follows_the_rate_and_the_method_knows_how_far_it_is(lm: BaseModel) -> None:
    followed: list[tuple[float, float]] = []

    class Watched(Learns):
        def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
            followed.append((self.progress, trainer.optimizer.param_groups[0]["lr"]))
            return super().outer_step(episodes, others)

    training = Learns.Config().training.model_copy(update={"steps": 4, "warmup": 1})
    trainer = Trainer(Watched(lm, Learns.Config(training=training)), TRAIN, VALIDATION)
    trainer.run()
    assert followed == [(0.0, 0.15), (0.25, 0.3), (0.5, 0.3), (0.75, 0.3)]


def test_a_resumed_run_follows_the_rate_from_its_step(lm: BaseModel, tmp_path: Path) -> None:
    rates: list[float] = []

    class Stops(Learns):
        def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
            if len(rates) == 4:
                raise KeyboardInterrupt
            rates.append(trainer.optimizer.param_groups[0]["lr"])
            return super().outer_step(episodes, others)

    training = Learns.Config().training.model_copy(update={"warmup": 2, "decay": "cosine"})
    config = Learns.Config(training=training)
    trainer = Trainer(Stops(lm, config), TRAIN, VALIDATION, tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    del rates[:]
    trainer = Trainer(Stops(lm, config), TRAIN, VALIDATION, tmp_path / "c")
    trainer.run()
    assert rates == [training.learning_rate * training.rate_factor(step) for step in (4, 5)]


def test_a_config_without_training_settings_is_named() -> None:
    with pytest.raises(TypeError, match="training"):
        training_of(MethodConfig())


def test_losses_are_averaged_part_by_part() -> None:
    assert mean_of([{"loss": 1.0, "kl": 0.0}, {"loss": 2.0, "kl": 3.0}]) == {"loss": 1.5, "kl": 1.5}
    assert mean_of([]) == {}


def test_patience_ends_training_early(lm: BaseModel) -> None:
    _, trainer = trained(lm, steps=40, patience=2)
    assert trainer.best_step < trainer.step < 40
    assert trainer.step == trainer.best_step + 2 * 2


def test_every_pass_draws_each_train_document_once(lm: BaseModel) -> None:
    method, _ = trained(lm, steps=7, episodes_per_step=7)  # two batches a step: the episodes, and the others
    assert all(sorted(step) == [f"d{i}" for i in range(7)] for step in method.drawn)
    assert method.drawn[0] != method.drawn[1], "each pass has an order of its own"


def test_validation_is_limited_and_spread(lm: BaseModel) -> None:
    _, trainer = trained(lm, validation_episodes=2)
    assert [e.document.id for e in trainer.validation] == ["d20", "d22"]


def test_a_killed_run_goes_on_exactly(lm: BaseModel, tmp_path: Path) -> None:
    whole, uninterrupted = trained(lm)

    class Killed(Learns):
        def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
            if len(self.drawn) == 3:
                raise KeyboardInterrupt
            return super().outer_step(episodes, others)

    first = Trainer(Killed(lm), TRAIN, VALIDATION, tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        first.run()
    method, trainer = trained(lm, tmp_path / "c")
    assert len(method.drawn) == 4, "two steps were saved"
    assert torch.equal(method.line.slope, whole.line.slope)
    assert torch.equal(method.line.seen, whole.line.seen), "buffers are saved too"
    assert torch.equal(method.line.last, whole.line.last) and "last" not in trainer.best, "this one for training alone"
    assert trainer.curve == uninterrupted.curve
    assert list(tmp_path.iterdir()) == [tmp_path / "c"]


def test_a_training_begins_once_before_its_first_validation(lm: BaseModel, tmp_path: Path) -> None:
    begun: list[int] = []

    class Begins(Learns):
        def begin_training(self) -> None:
            begun.append(len(self.drawn))
            self.line.slope.data.fill_(7.0)

    first = Trainer(Begins(lm), TRAIN, VALIDATION, tmp_path / "c")
    first.run()
    assert begun == [0] and first.curve[0]["validation_loss"] == 5.0
    resumed = Trainer(Begins(lm), TRAIN, VALIDATION, tmp_path / "c")
    assert begun == [0] and resumed.curve == first.curve, "what is resumed has begun"


def test_a_checkpoint_of_other_settings_is_refused(lm: BaseModel, tmp_path: Path) -> None:
    trained(lm, tmp_path / "c")
    with pytest.raises(BenchError, match="Delete it to start afresh"):
        trained(lm, tmp_path / "c", learning_rate=0.2)


def test_a_torn_checkpoint_is_refused(lm: BaseModel, tmp_path: Path) -> None:
    trained(lm, tmp_path / "c")
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:60])
    with pytest.raises(BenchError, match="cut short"):
        trained(lm, tmp_path / "c")


def test_a_gradient_that_is_not_finite_stops_training(lm: BaseModel) -> None:
    class Explodes(Learns):
        def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
            (self.line.slope * float("nan")).backward()
            return {"loss": float("nan")}

    with pytest.raises(Diverged, match="step 0"):
        Trainer(Explodes(lm), TRAIN, VALIDATION).run()


def test_documents_without_text_or_questions_do_not_train(lm: BaseModel) -> None:
    useless = [Episode(Document("a", "b"), (), ()), replace(TRAIN[0], document=Document("c", " "))]
    with pytest.raises(BenchError, match=r"text and questions.*--data-files train=FILE.*learns\.training\.dataset"):
        Trainer(Learns(lm), useless, [])
    trainer = Trainer(Learns(lm), [*useless, *TRAIN], [*useless, *VALIDATION])
    assert (trainer.train, trainer.validation) == (TRAIN, VALIDATION)


def test_fit_holds_out_a_tenth_for_validation(lm: BaseModel) -> None:
    method = Learns(lm)
    method.fit([episode(i) for i in range(20)])
    assert max(int(name[1:]) for step in method.drawn for name in step) < 18

"""GradientMethod: each step is the step it says it is."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import Document, GradientMethod, TokenBatch
from bench.errors import Diverged
from bench.lm.base_model import BaseModel
from tests.conftest import TEXT, make_checkpoint
from tests.tiny_models import weights

DOCUMENTS = [Document(str(i), text) for i, text in enumerate(TEXT)]


class Plain(GradientMethod):
    """Every token weighs 1."""

    name = "plain"
    paper = "none"


class LaterTokens(GradientMethod):
    """Only tokens from the third on count, twice."""

    name = "later_tokens"
    paper = "none"

    def token_weights(self, batch: TokenBatch) -> Tensor:
        return 2.0 * (torch.arange(len(batch)) >= 2)


class HeadOnly(GradientMethod):
    """Only the output layer learns."""

    name = "head_only"
    paper = "none"

    def trainable_parameters(self) -> Iterable[tuple[str, torch.nn.Parameter]]:
        yield "lm_head.weight", self.lm.model.lm_head.weight


@pytest.fixture
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def run(method: GradientMethod, documents: Iterable[Document] = DOCUMENTS) -> dict[str, Tensor]:
    method.reset()
    for document in documents:
        method.observe(document)
    return weights(method.lm)


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: Any) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


def test_an_sgd_step_subtracts_rate_times_gradient_of_the_mean_loss(lm: BaseModel) -> None:
    before = weights(lm)
    lm.loss(DOCUMENTS[0]).backward()
    expected = {name: before[name] - 0.1 * p.grad for name, p in lm.model.named_parameters()}
    method = Plain(lm, Plain.Config(optimizer="sgd", learning_rate=0.1))
    assert_same(run(method, DOCUMENTS[:1]), {**before, **expected}, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_steps_equal_a_bare_loop_of_the_same_optimizer(lm: BaseModel, optimizer: str) -> None:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    bare = kind(lm.model.parameters(), lr=1e-3)
    for document in DOCUMENTS:
        for _ in range(2):
            bare.zero_grad()
            lm.loss(document).backward()
            bare.step()
    expected = weights(lm)
    method = Plain(lm, Plain.Config(optimizer=optimizer, learning_rate=1e-3, steps_per_document=2))
    assert_same(run(method), expected, atol=1e-6, rtol=1e-5)


def test_adafactor_moves_every_weight_by_a_bounded_step(lm: BaseModel) -> None:
    before = weights(lm)
    after = run(Plain(lm, Plain.Config(optimizer="adafactor", learning_rate=1e-3)), DOCUMENTS[:1])
    steps = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert 0 < steps.square().mean().sqrt() <= 1.001e-3, "an update has a root mean square of at most the rate"


def test_token_weights_scale_each_tokens_gradient(lm: BaseModel) -> None:
    batch = lm.tokens(DOCUMENTS[0])
    lm.loss(DOCUMENTS[0], 2.0 * (torch.arange(len(batch)) >= 2)).backward()
    before = weights(lm)
    expected = {name: before[name] - 0.1 * p.grad for name, p in lm.model.named_parameters()}
    method = LaterTokens(lm, LaterTokens.Config(optimizer="sgd", learning_rate=0.1))
    assert_same(run(method, DOCUMENTS[:1]), {**before, **expected}, atol=1e-6, rtol=1e-5)


def test_a_subclass_may_choose_another_divisor_of_the_loss(lm: BaseModel) -> None:
    class Summed(Plain):
        def loss_divisor(self, batch: TokenBatch) -> float:
            return 1

    tokens = len(lm.tokens(DOCUMENTS[0]))
    mean = run(Plain(lm, Plain.Config(optimizer="sgd", learning_rate=0.1)), DOCUMENTS[:1])
    summed = run(Summed(lm, Summed.Config(optimizer="sgd", learning_rate=0.1 / tokens)), DOCUMENTS[:1])
    assert_same(summed, mean, atol=1e-6, rtol=1e-5)


def test_the_last_weights_are_those_of_the_last_document(lm: BaseModel) -> None:
    method = LaterTokens(lm, LaterTokens.Config(learning_rate=1e-3))
    run(method)
    assert method.last_weights is not None and method.last_weights.document is DOCUMENTS[-1]
    expected = method.token_weights(lm.tokens(DOCUMENTS[-1]))
    assert expected is not None and torch.equal(method.last_weights.weights, expected)
    plain = Plain(lm, Plain.Config(learning_rate=1e-3))
    run(plain)
    assert plain.last_weights is None


def test_weights_are_asked_for_once_a_document_and_one_without_any_is_skipped(lm: BaseModel) -> None:
    asked = []

    class Weighing(LaterTokens):
        def token_weights(self, batch: TokenBatch) -> Tensor:
            asked.append(batch.document.id)
            return super().token_weights(batch) * (batch.document.id != "skipped")

    method = Weighing(lm, Weighing.Config(optimizer="adam", learning_rate=1e-3, steps_per_document=3))
    method.reset()
    method.observe(DOCUMENTS[0])
    before = method.state_dict()
    method.observe(Document("skipped", DOCUMENTS[0].text))
    assert_same(method.state_dict(), before)
    method.observe(DOCUMENTS[0])
    assert asked == [DOCUMENTS[0].id, "skipped", DOCUMENTS[0].id]


def test_clipping_shortens_the_step_to_the_norm(lm: BaseModel) -> None:
    before = weights(lm)
    after = run(Plain(lm, Plain.Config(optimizer="sgd", learning_rate=1.0, clip_norm=0.5)), DOCUMENTS[:1])
    step = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert step.norm().item() == pytest.approx(0.5, rel=1e-3)


def test_only_the_trainable_parameters_move(lm: BaseModel) -> None:
    before = weights(lm)
    after = run(HeadOnly(lm, HeadOnly.Config(learning_rate=1e-2)))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"lm_head.weight"}


def test_reset_restores_weights_and_forgets_the_optimizer(lm: BaseModel) -> None:
    method = Plain(lm, Plain.Config(learning_rate=1e-2))
    untouched = lm.weights_hash()
    first = run(method)
    method.reset()
    assert lm.weights_hash() == untouched
    assert_same(run(method), first, atol=0, rtol=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "adafactor"])
def test_a_saved_state_goes_on_as_if_never_interrupted(lm: BaseModel, llama: Path, optimizer: str) -> None:
    config = Plain.Config(optimizer=optimizer, learning_rate=1e-2)
    whole = run(Plain(lm, config))
    first = Plain(lm, config)
    run(first, DOCUMENTS[:2])
    state = first.state_dict()
    resumed = Plain(BaseModel.load(str(llama)), config)
    resumed.reset()
    resumed.load_state_dict(state)
    resumed.observe(DOCUMENTS[2])
    assert_same(weights(resumed.lm), whole, atol=0, rtol=0)


def test_dropout_is_on_only_when_asked(tmp_path: Path) -> None:
    lm = BaseModel.load(str(make_checkpoint(tmp_path, "gpt2")))
    off = [run(Plain(lm, Plain.Config(learning_rate=1e-2)), DOCUMENTS[:1]) for _ in range(2)]
    assert_same(*off, atol=0, rtol=0)
    torch.manual_seed(1)
    on = run(Plain(lm, Plain.Config(learning_rate=1e-2, dropout=True)), DOCUMENTS[:1])
    assert any(not torch.equal(on[name], off[0][name]) for name in on)
    assert not lm.model.training, "answers are given without dropout"


def test_gradient_checkpointing_keeps_less_and_learns_the_same(tmp_path: Path) -> None:
    lm = BaseModel.load(str(make_checkpoint(tmp_path, "gpt2", layers=4)))
    kept, learned = [], []
    for on in (False, True):
        sizes: dict[int, int] = {}
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(partial(_note_size, sizes), lambda tensor: tensor):
            learned.append(run(Plain(lm, Plain.Config(learning_rate=1e-2, dropout=True, gradient_checkpointing=on))))
        kept.append(sum(sizes.values()))
        lm.restore()
    assert_same(*learned, atol=0, rtol=0)
    assert kept[1] < kept[0] / 2
    assert not any("forward" in vars(module) for module in lm.model.modules() if module is not lm.model)


def _note_size(sizes: dict[int, int], tensor: Tensor) -> Tensor:
    if not isinstance(tensor, torch.nn.Parameter):
        sizes[len(sizes)] = tensor.nbytes
    return tensor


def test_long_documents_learn_from_every_window(lm: BaseModel) -> None:
    long = Document("long", " ".join(TEXT * 8))
    assert len(lm.tokens(long)) > 2 * lm.window
    before = weights(lm)
    lm.loss(long).backward()
    expected = {name: before[name] - 0.1 * p.grad for name, p in lm.model.named_parameters()}
    after = run(Plain(lm, Plain.Config(optimizer="sgd", learning_rate=0.1)), [long])
    assert_same(after, {**before, **expected}, atol=1e-6, rtol=1e-4)


def test_an_empty_document_changes_nothing(lm: BaseModel) -> None:
    untouched = lm.weights_hash()
    run(Plain(lm), [Document("empty", "")])
    assert lm.weights_hash() == untouched


def test_a_loss_that_explodes_is_called_diverged(lm: BaseModel) -> None:
    with pytest.raises(Diverged, match="lower learning rate"):
        run(Plain(lm, Plain.Config(optimizer="sgd", learning_rate=1e30)))


def test_a_document_can_be_learned_with_its_end_of_text(lm: BaseModel) -> None:
    document, end = DOCUMENTS[0], torch.tensor([lm.eos_id])
    ids, begin = lm.encode(document.text), torch.tensor([lm.bos_id])
    before = weights(lm)
    for kind, own in ((Plain, torch.ones(len(ids))), (LaterTokens, 2.0 * (torch.arange(len(ids)) >= 2))):
        lm.restore()
        token_weights = torch.cat([own, torch.ones(1)])  # that of the end is 1
        loss = -(lm.log_probs(torch.cat([ids, end]), begin) * token_weights).sum() / (len(ids) + 1)
        loss.backward()
        expected = {name: before[name] - 0.1 * p.grad for name, p in lm.model.named_parameters()}
        method = kind(lm, kind.Config(optimizer="sgd", learning_rate=0.1, end_of_text=True))
        after = run(method, [document])
        assert_same(after, {**before, **expected}, atol=1e-6, rtol=1e-4)
        assert not method.learns_from_scoring, "the end of text is not scored"


def test_only_the_last_segment_is_followed_by_an_end_of_text(lm: BaseModel) -> None:
    class Counts(Plain):
        name = "counts"

        def loss_divisor(self, batch: TokenBatch) -> float:
            read.append(batch.token_ids.tolist())
            return super().loss_divisor(batch)

    read: list[list[int]] = []
    segments = lm.segments(DOCUMENTS[0], 7)
    run(Counts(lm, Counts.Config(end_of_text=True)), segments)  # type: ignore[arg-type]
    assert read == [list(segment.token_ids) for segment in segments[:-1]] + [[*segments[-1].token_ids, lm.eos_id]]

"""Dynamic evaluation: each update rule against its definition, and saving and loading of every part of the state."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import Document, Episode, TokenBatch
from bench.contract.search import Range
from bench.errors import BenchError
from bench.harness.loop import Loop, construct, fit
from bench.lm.base_model import BaseModel
from methods.closed_book import ClosedBook
from methods.dynamic_evaluation import ADAM_BETA, DynamicEvaluation
from tests.conftest import TEXT
from tests.tiny_models import weights

DOCUMENTS = [Document(str(i), text) for i, text in enumerate(TEXT)]
EPISODES = [Episode(document, (), ()) for document in DOCUMENTS]
LONG = Document("long", " ".join(TEXT * 4))
SEGMENT = 8


@pytest.fixture(scope="module")
def template(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


@pytest.fixture
def lm(template: BaseModel) -> BaseModel:
    return BaseModel(copy.deepcopy(template.model), template.tokenizer)


def make(lm: BaseModel, **config: Any) -> DynamicEvaluation:
    return DynamicEvaluation(lm, DynamicEvaluation.Config(**config))


def scores(method: Any, documents: Sequence[Document] = DOCUMENTS, segment_tokens: int | None = SEGMENT) -> list[float]:
    """NLL of each segment, as scored by the harness."""
    method.experiment_segment_tokens = segment_tokens
    loop = Loop(method, (), documents)
    loop.run()
    return [event.nll or 0.0 for event in loop.document_events]


def gradient(lm: BaseModel, document: Document) -> dict[str, Tensor]:
    """Gradient of the mean loss of a document or segment."""
    lm.model.zero_grad()
    lm.loss(document).backward()
    gradients = {name: p.grad.clone() for name, p in lm.model.named_parameters()}
    lm.model.zero_grad()
    return gradients


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: Any) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **{"atol": 0, "rtol": 0, **tolerance}, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"decay": 0.1},
        {"statistics": "adam", "decay": 0.1},
        {"optimizer": "adamw"},
        {"period": 3},
        {"period": 2, "between": "skip"},
        {"learn": "lora"},
        {"reset": "soft"},
        {"reset": "document"},
    ],
)
def test_with_a_learning_rate_of_zero_scores_equal_the_static_ones_bit_for_bit(
    lm: BaseModel, config: dict[str, Any]
) -> None:
    static = scores(ClosedBook(lm))
    method = make(lm, learning_rate=0, **config)
    assert scores(method) == static
    method.reset()
    assert scores(ClosedBook(lm)) == static


def test_with_a_learning_rate_of_zero_nothing_is_read_to_learn(lm: BaseModel) -> None:
    method, read = make(lm, learning_rate=0), list[torch.Tensor]()
    hook = lm.model.register_forward_hook(lambda *_: read.append(torch.ones(())))
    try:
        method.observe(DOCUMENTS[0])
        assert not method.learns_from_scoring and not read
        method = make(lm, learning_rate=0, decay=0.1)
        assert method.learns_from_scoring, "a decay changes weights"
    finally:
        hook.remove()


def test_plain_sgd_with_decay_equals_a_bare_loop(lm: BaseModel) -> None:
    prior = weights(lm)
    theta = dict(prior)
    for document in DOCUMENTS:
        g = gradient(lm, document)
        theta = {n: theta[n] + 0.05 * (prior[n] - theta[n]) - 0.1 * g[n] for n in theta}
        with torch.no_grad():
            for name, p in lm.named_tensors():
                p.copy_(theta[name])
    lm.restore()
    method = make(lm, learning_rate=0.1, decay=0.05)
    scores(method, segment_tokens=None)
    assert_same(weights(lm), theta, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("statistics", ["train", "adam"])
@pytest.mark.parametrize("decay", [0.0, 0.02, 0.5])
def test_the_rms_rule_equals_the_papers(lm: BaseModel, statistics: str, decay: float) -> None:
    """Krause et al. 2018 in NumPy, over the same gradients."""
    method = make(lm, learning_rate=1e-3, decay=decay, statistics=statistics, epsilon=1e-2, unseen="epsilon")
    prior = {n: v.double().numpy() for n, v in weights(lm).items()}
    square = {n: np.zeros_like(v) for n, v in prior.items()}
    if statistics == "train":
        for document in DOCUMENTS:
            g = gradient(lm, document)
            square = {n: square[n] + g[n].double().numpy() ** 2 / len(DOCUMENTS) for n in square}
    fit(method, EPISODES)
    method.reset()
    theta = dict(prior)
    for step, document in enumerate([*DOCUMENTS, LONG], 1):
        g = {n: v.double().numpy() for n, v in gradient(lm, document).items()}
        lm.model.eval()
        method.observe(document)
        mean_square = square
        if statistics == "adam":
            square = {n: ADAM_BETA * square[n] + (1 - ADAM_BETA) * g[n] ** 2 for n in g}
            mean_square = {n: square[n] / (1 - ADAM_BETA**step) for n in g}
        rms = {n: np.sqrt(mean_square[n]) for n in g}
        mean = np.mean([rms[n].mean() for n in g])
        ratio = {n: np.minimum(rms[n] / mean, 1 / decay) if decay else rms[n] for n in g}
        theta = {n: theta[n] + decay * ratio[n] * (prior[n] - theta[n]) - 1e-3 * g[n] / (rms[n] + 1e-2) for n in theta}
        for name, value in weights(lm).items():
            np.testing.assert_allclose(value.numpy(), theta[name], atol=2e-5, rtol=1e-4, err_msg=name)


def test_full_decay_returns_to_the_base_in_one_step(lm: BaseModel) -> None:
    prior = weights(lm)
    method = make(lm, learning_rate=0, decay=1)
    method.reset()
    with torch.no_grad():
        for p in lm.model.parameters():
            p.add_(0.1)
    method.observe(DOCUMENTS[0])
    assert_same(weights(lm), prior)


def test_rms_scaled_decay_does_not_overshoot(lm: BaseModel) -> None:
    method = make(lm, learning_rate=0, decay=1, statistics="train")
    fit(method, EPISODES)
    method.reset()
    prior = weights(lm)
    mean = torch.stack([getattr(method, f"rms.{name}").mean() for name in prior]).mean()
    with torch.no_grad():
        for p in lm.model.parameters():
            p.add_(0.1)
    method.observe(DOCUMENTS[0])
    above = {name: getattr(method, f"rms.{name}") >= mean for name in prior}
    assert all(torch.equal(value[above[name]], prior[name][above[name]]) for name, value in weights(lm).items())
    assert 0 < sum(int(mask.sum()) for mask in above.values()) < sum(mask.numel() for mask in above.values())


@pytest.mark.parametrize("context", ["full", "carry"])
def test_statistics_are_over_the_configured_segments(lm: BaseModel, context: str) -> None:
    method = make(lm, statistics="train", statistics_segments=4, segment_tokens=4, context=context)
    fit(method, EPISODES)
    segments = [segment for document in DOCUMENTS for segment in lm.segments(document, 4)]
    spread = [segments[i * len(segments) // 4] for i in range(4)]
    assert [segment.id for segment in segments[:4]] == ["0"] * 4, "as many as are asked for, in one document"
    assert {segment.id for segment in spread} == {"0", "1", "2"}
    g = [gradient(lm, segment)["lm_head.weight"] for segment in spread]
    expected = (sum(each.square() for each in g) / 4).sqrt()
    torch.testing.assert_close(getattr(method, "rms.lm_head.weight"), expected, atol=1e-6, rtol=1e-4)


def test_documents_of_equal_length_give_more_than_their_first_segments(lm: BaseModel) -> None:
    def backward(batch: TokenBatch) -> float:
        read.append(len(batch.context_ids) > 1)
        return 0.0

    read: list[bool] = []
    method = make(lm, statistics="train", statistics_segments=4, segment_tokens=5)
    method.backward = backward  # type: ignore[method-assign]
    ten_tokens = Document("ten", lm.tokenizer.decode(lm.encode(TEXT[0])[:10]))
    assert len(lm.tokens(ten_tokens)) == 10
    fit(method, [Episode(ten_tokens, (), ())] * 40)
    assert sorted(read) == [False, False, True, True]


def test_the_norm_that_is_clipped_is_that_of_the_scaled_gradients(lm: BaseModel) -> None:
    prior = weights(lm)
    method = make(lm, learning_rate=0.1, clip_norm=0.5, statistics="train")
    fit(method, EPISODES)
    method.reset()
    method.observe(DOCUMENTS[0])
    change = torch.cat([(value - prior[name]).flatten() for name, value in weights(lm).items()])
    assert change.norm().item() == pytest.approx(0.1 * 0.5, rel=1e-3)


def test_the_segments_of_the_experiment_count_like_those_of_the_method(lm: BaseModel) -> None:
    def rms(of_experiment: int | None, **config: Any) -> dict[str, Tensor]:
        settings = DynamicEvaluation.Config(statistics="train", **config)
        method = construct(DynamicEvaluation, lm, settings, 0, of_experiment)
        fit(method, [Episode(LONG, (), ())])
        return {name: value for name, value in method.state_dict().items() if name.startswith("method.rms.")}

    stated = rms(SEGMENT)
    assert_same(stated, rms(None, segment_tokens=SEGMENT))
    assert_same(stated, rms(2 * SEGMENT, segment_tokens=SEGMENT))
    assert not torch.equal(stated["method.rms.lm_head.weight"], rms(None)["method.rms.lm_head.weight"])


def test_rows_that_the_train_split_lacks_get_the_mean_of_the_others(lm: BaseModel) -> None:
    embeddings = "model.embed_tokens.weight"
    seen = gradient(lm, LONG)[embeddings].any(1)
    assert 0 < seen.sum() < len(seen)
    rms = {}
    for unseen in ("epsilon", "mean"):
        method = make(lm, statistics="train", unseen=unseen)
        fit(method, [Episode(LONG, (), ())])
        rms[unseen] = {name: getattr(method, f"rms.{name}") for name, _ in lm.model.named_parameters()}
    table = rms["epsilon"][embeddings]
    assert not table[~seen].any()
    mean = table[seen].sum(0) / seen.sum()
    expected = torch.where(seen[:, None], table, mean)
    torch.testing.assert_close(rms["mean"][embeddings], expected)
    head = "lm_head.weight"  # every row has a gradient
    assert_same({head: rms["mean"][head]}, {head: rms["epsilon"][head]})


def test_a_vector_counts_by_entry_and_stays_zero_without_any_gradient(
    lm: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make(lm, statistics="train", learn="norms_and_biases", segment_tokens=SEGMENT)
    (first, p), (second, q) = method.learning[:2]

    def backward(_: Any) -> float:
        p.grad = torch.zeros_like(p)
        p.grad[:2] = torch.tensor([1.0, 3.0])
        q.grad = torch.zeros_like(q)
        return 0.0

    monkeypatch.setattr(method, "backward", backward)
    fit(method, EPISODES[:1])
    assert getattr(method, f"rms.{first}").tolist() == pytest.approx([1, 3, *[2] * (len(p) - 2)])
    assert not getattr(method, f"rms.{second}").any()


@pytest.mark.parametrize("context", ["full", "carry"])
def test_several_steps_on_a_segment_begin_with_the_graph_of_its_scoring(lm: BaseModel, context: str) -> None:
    after = []
    for scoring in (True, False):
        method = make(lm, learning_rate=0.05, steps_per_document=3, context=context, segment_tokens=SEGMENT)
        Loop(method, (), [LONG], scoring=scoring).run()
        after.append(weights(lm))
    assert_same(*after, atol=1e-6, rtol=1e-5)


def test_several_steps_equal_a_bare_loop(lm: BaseModel) -> None:
    for _ in range(3):
        g = gradient(lm, DOCUMENTS[0])
        with torch.no_grad():
            for name, p in lm.named_tensors():
                p -= 0.05 * g[name]
    expected = weights(lm)
    lm.restore()
    scores(make(lm, learning_rate=0.05, steps_per_document=3), DOCUMENTS[:1], None)
    assert_same(weights(lm), expected, atol=1e-6, rtol=1e-5)


def test_several_steps_on_accumulated_gradients_are_refused_and_not_tuned() -> None:
    with pytest.raises(ValueError, match="period=1 or between=skip"):
        DynamicEvaluation.Config(steps_per_document=2, period=2)
    for config, is_tuned in (({}, True), ({"period": 2}, False), ({"period": 2, "between": "skip"}, True)):
        space = DynamicEvaluation.search_space(DynamicEvaluation.Config(**config))
        assert ("steps_per_document" in space) == is_tuned


def test_the_step_size_is_tuned_in_a_range_that_fits_the_scale_of_steps() -> None:
    for config in ({}, {"statistics": "train"}, {"statistics": "adam"}, {"optimizer": "adamw"}):
        settings = DynamicEvaluation.Config(**config)
        rate = DynamicEvaluation.search_space(settings)["learning_rate"]
        assert isinstance(rate, Range)
        assert rate.low < settings.learning_rate < rate.high
        assert (rate.high == 1) == (config == {})


def test_without_statistics_no_training_documents_are_read(lm: BaseModel) -> None:
    for config in ({}, {"statistics": "adam"}, {"optimizer": "adamw"}):
        method = make(lm, **config)
        method.fit([None])  # type: ignore[list-item]


def test_carried_keys_and_values_are_not_computed_twice() -> None:
    with pytest.raises(ValueError, match="it has no gradient_checkpointing"):
        DynamicEvaluation.Config(context="carry", gradient_checkpointing=True)


def test_impossible_statistics_are_rejected(lm: BaseModel) -> None:
    with pytest.raises(BenchError, match="documents in the train split"):
        make(lm, statistics="train").fit([])
    with pytest.raises(ValueError, match="use statistics=adam"):
        make(lm, statistics="train", learn="lora")


def test_accumulation_takes_a_step_on_the_summed_gradients(lm: BaseModel) -> None:
    before = weights(lm)
    segments = lm.segments(LONG, SEGMENT)[:4]
    g = [gradient(lm, segment) for segment in segments]
    method = make(lm, learning_rate=0.1, period=3)
    method.reset()
    for segment in segments[:2]:
        method.observe(segment)
    assert_same(weights(lm), before)
    method.observe(segments[2])
    expected = {n: before[n] - 0.1 * (g[0][n] + g[1][n] + g[2][n]) for n in before}
    assert_same(weights(lm), expected, atol=1e-6, rtol=1e-5)
    method.observe(segments[3])
    assert_same(weights(lm), expected, atol=1e-6, rtol=1e-5)


def test_skipping_learns_from_every_kth_segment_only(lm: BaseModel) -> None:
    before = weights(lm)
    segments = lm.segments(LONG, SEGMENT)[:3]
    g = gradient(lm, segments[2])
    method = make(lm, learning_rate=0.1, period=3, between="skip")
    method.reset()
    built = []
    for segment in segments:
        built.append(method.learns_from_scoring)
        method.observe(segment)
    assert built == [False, False, True], "no graph is built for a skipped segment"
    assert_same(weights(lm), {n: before[n] - 0.1 * g[n] for n in before}, atol=1e-6, rtol=1e-5)


def test_a_skipped_segment_is_cached_with_or_without_scoring(lm: BaseModel) -> None:
    after = []
    for scoring in (True, False):
        method = make(lm, learning_rate=0.1, period=2, between="skip", context="carry", segment_tokens=SEGMENT)
        Loop(method, (), [LONG], scoring=scoring).run()
        after.append(weights(lm))
    assert_same(*after, atol=1e-6, rtol=1e-5)


def test_at_each_document_the_weights_stay_or_return_fully_or_partly(lm: BaseModel) -> None:
    prior = weights(lm)
    steps: dict[str, dict[str, Tensor]] = {}
    for reset in ("never", "document", "soft"):
        method = make(lm, learning_rate=0.1, statistics="adam", reset=reset, soft_reset=0.25)
        scores(method, DOCUMENTS[:2])
        adapted = weights(lm)
        state = method.state_dict()
        method.begin_document()
        steps[reset] = weights(lm)
        if reset == "never":
            assert_same(steps[reset], adapted)
            assert method.state_dict().keys() == state.keys()
        elif reset == "document":
            assert_same(steps[reset], prior)
            assert not [name for name in method.state_dict() if name.startswith("square.")], "the statistics start anew"
        else:
            expected = {n: adapted[n] + 0.25 * (prior[n] - adapted[n]) for n in prior}
            assert_same(steps[reset], expected, atol=1e-6, rtol=1e-5)


def test_a_document_is_scored_after_the_reset(lm: BaseModel) -> None:
    alone = [scores(make(lm, learning_rate=0.1), [document]) for document in DOCUMENTS]
    assert scores(make(lm, learning_rate=0.1, reset="document")) == [score for document in alone for score in document]
    assert scores(make(lm, learning_rate=0.1)) != [score for document in alone for score in document]


@pytest.mark.parametrize("context", ["full", "limited", "carry"])
def test_a_changed_future_changes_no_earlier_score(lm: BaseModel, context: str) -> None:
    other = Document("long", LONG.text[: len(LONG.text) // 2] + " And then?")
    one, two = (scores(make(lm, learning_rate=0.1, context=context, context_tokens=5), [d]) for d in (LONG, other))
    same = len(lm.encode(other.text)) // SEGMENT - 2
    assert same > 3
    assert one[:same] == two[:same]
    assert one != two


def test_without_learning_the_cache_equals_the_text(lm: BaseModel) -> None:
    short = Document("short", TEXT[0])
    cached = scores(make(lm, learning_rate=0, context="carry"), [short])
    assert cached == pytest.approx(scores(ClosedBook(lm), [short]), rel=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        {"decay": 0.1},
        {"statistics": "adam"},
        {"optimizer": "adamw", "period": 2},
        {"period": 2, "between": "skip", "context": "carry"},
        {"learn": "lora", "context": "limited"},
    ],
)
def test_a_segment_costs_one_forward_pass(lm: BaseModel, config: dict[str, Any]) -> None:
    method, calls = make(lm, **config), [0]
    short = [Document("a", TEXT[0]), Document("b", TEXT[1])]
    counter = lm.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        segments = len(scores(method, short))
    finally:
        counter.remove()
        method.reset()
    assert sum(calls) == segments


@pytest.mark.parametrize("scoring", [True, False])
def test_learning_from_the_scoring_graph_changes_nothing(lm: BaseModel, scoring: bool) -> None:
    method = make(lm, learning_rate=0.1, context="carry", statistics="adam", period=2, segment_tokens=SEGMENT)
    Loop(method, (), [LONG], scoring=scoring).run()
    expected = weights(lm)
    method.reset()
    for segment in lm.segments(LONG, SEGMENT):
        method.observe(segment)
    assert_same(weights(lm), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"decay": 0.01},
        {"period": 3, "optimizer": "adamw", "learning_rate": 1e-2},
        {"period": 3, "statistics": "adam", "decay": 0.1, "context": "carry"},
        {"period": 2, "between": "skip", "context": "carry", "reset": "soft"},
        {"learn": "lora", "period": 3, "decay": 0.1},
        {"learn": "mlp", "statistics": "train", "context": "limited", "reset": "document"},
    ],
)
def test_a_run_resumed_between_two_segments_equals_an_uninterrupted_one(lm: BaseModel, config: dict[str, Any]) -> None:
    segments = [segment for document in (*DOCUMENTS, LONG) for segment in lm.segments(document, SEGMENT)]
    cut = len(segments) - 3  # within a document and within an accumulation
    assert cut % 3 and len(lm.tokens(segments[cut]).context_ids) > 1

    def observe(method: DynamicEvaluation, segments: Sequence[Any]) -> None:
        for segment in segments:
            if not segment.context_ids:
                method.begin_document()
            method.observe(segment)

    def start() -> DynamicEvaluation:
        method = make(lm, **{"learning_rate": 0.1, **config})
        fit(method, EPISODES)
        method.reset()
        return method

    method = start()
    observe(method, segments[:cut])
    state = method.state_dict()
    observe(method, segments[cut:])
    whole = method.state_dict()
    method.reset()
    resumed = start()
    resumed.load_state_dict(state)
    observe(resumed, segments[cut:])
    assert_same(resumed.state_dict(), whole)
    resumed.reset()


@pytest.mark.parametrize("learn", ["all", "embeddings", "mlp", "middle_third", "last_quarter", "norms_and_biases"])
def test_exactly_the_chosen_parameters_change(checkpoint: Path, learn: str) -> None:
    lm = BaseModel.load(str(checkpoint))
    before = weights(lm)
    method = make(lm, learn=learn, learning_rate=0.1, decay=0.01, statistics="adam", reset="soft")
    expected = {name for name, _ in method.trainable_parameters()}
    scores(method)
    after = weights(lm)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    unmoved = {name for name in expected - changed if name.endswith(("key.bias", "key_value.bias", "c_attn.bias"))}
    assert changed | unmoved == expected
    assert (learn == "all") == (expected == before.keys())


def test_adapters_learn_while_the_weights_stay(checkpoint: Path) -> None:
    lm = BaseModel.load(str(checkpoint))
    before, static = weights(lm), scores(ClosedBook(lm))
    method = make(lm, learn="lora", rank=2, learning_rate=1.0)
    assert scores(method) != static
    assert_same(weights(lm), before)
    adapter = {name: value for name, value in method.state_dict().items() if name.startswith("adapter.")}
    assert adapter and all(".mlp." in name and 2 in value.shape for name, value in adapter.items())
    method.reset()
    assert scores(ClosedBook(lm)) == static


def test_an_adapter_decays_towards_its_initial_values(lm: BaseModel) -> None:
    method = make(lm, learn="lora", learning_rate=0, decay=1)
    method.reset()
    method.observe(DOCUMENTS[0])
    start = method.state_dict()
    with torch.no_grad():
        for _, p in method.trainable_parameters():
            p.add_(0.1)
    method.observe(DOCUMENTS[0])
    end = method.state_dict()
    assert all(torch.equal(end[name], start[name]) for name in start if name.startswith("adapter."))
    method.reset()


def test_scaled_steps_have_another_default_rate() -> None:
    def rate(**config: Any) -> float:
        learning_rate: float = DynamicEvaluation.Config(**config).learning_rate
        return learning_rate

    assert rate() == rate(decay=0.1) == 0.05
    assert rate(statistics="adam") == rate(optimizer="adamw") == 3e-4
    assert rate(statistics="adam", learning_rate=0.5) == 0.5

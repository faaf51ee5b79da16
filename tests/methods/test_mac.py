"""MAC: amortised rows, aggregation in groups, backpropagation dropout, a frozen base."""

from __future__ import annotations

import math
from pathlib import Path

import pydantic
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, T5Config, T5Model

from bench import Document, Episode, Question
from bench.answering.prompts import answer_ids
from bench.contract.meta_training import Trainer
from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from bench.run import artifacts
from bench.seeds import seed_for
from methods.bm25 import Bm25
from methods.mac import Mac
from methods.parts.memory_bank import pad_texts
from methods.parts.text_encoder import FIT_TOKENS, AmortizedTraining, fit_prefix_head, unit_embeddings
from tests.conftest import TEXT, make_checkpoint
from tests.tiny_models import tiny_base

EPISODES = [
    Episode(Document(str(i), text), (Question(str(i), f"Who saw {text[:9]}?"),), ((f"an otter number {i}", f"no {i}"),))
    for i, text in enumerate(TEXT)
] + [Episode(Document("3", "A fourth text about the mill."), (Question("3", "When?"),), (("1899",),))]
SMALL = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_heads": 2,
    "encoder_hidden": 16,
    "tokens": 3,
    "blocks": 2,
    "heads": 2,
    "head_width": 8,
    "hidden": 16,
    "prefix_hidden": 8,
}
QUESTIONS = [Question("0", "Who repaired the bridge?"), Question("1", "When was it?")]


def make(lm: BaseModel, group: int | None = None, **settings: object) -> Mac:
    method = Mac(lm, Mac.Config(group=group, training={**SMALL, **settings}))
    method.reset()
    return method


@pytest.fixture
def lm(checkpoint: Path) -> BaseModel:
    return BaseModel.load(str(checkpoint))


@pytest.fixture
def llama_lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def prefixes(method: Mac) -> list[Tensor]:
    key_values = method.condition(QUESTIONS).prefix_key_values
    assert key_values is not None
    return [tensor for layers in key_values for pair in layers for tensor in pair]


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    assert max((x - y).abs().max().item() for x, y in zip(a, b, strict=True)) < 1e-5


def test_documents_that_bm25_finds_come_after_the_memory(lm: BaseModel) -> None:
    both = Mac(lm, Mac.Config(retrieved=2, training=SMALL))
    both.reset()
    memory, bm25 = make(lm), Bm25(lm, Bm25.Config(k=2))
    bm25.reset()
    assert both.condition(QUESTIONS).text is None
    for method in (both, memory, bm25):
        for i, text in enumerate(TEXT):
            method.observe(Document(str(i), text))
    found, given = bm25.condition(QUESTIONS), both.condition(QUESTIONS)
    assert (given.text, given.documents) == (found.text, found.documents) and given.text is not None
    assert_same(prefixes(both), prefixes(memory))
    state = both.state_dict()
    both.reset()
    assert both.condition(QUESTIONS).text is None
    both.load_state_dict(state)
    assert both.condition(QUESTIONS).text == found.text
    assert_same(prefixes(both), prefixes(memory))


def test_a_question_gets_two_positions_per_layer(lm: BaseModel) -> None:
    method = make(lm)
    method.observe(EPISODES[0].document)
    assert [tensor.shape[-2] for tensor in prefixes(method)] == [2] * 8


def test_the_order_of_documents_does_not_matter(lm: BaseModel) -> None:
    results = []
    for order in (EPISODES, EPISODES[::-1]):
        method = make(lm)
        for episode in order:
            method.observe(episode.document)
        results.append(prefixes(method))
    assert_same(*results)


def test_a_document_seen_twice_counts_once(llama_lm: BaseModel) -> None:
    method = make(llama_lm)
    for text in (TEXT[0], TEXT[1], TEXT[0]):
        method.observe(Document(text[:3], text))
    assert method.rows.shape == (2, 3, 32)


@pytest.mark.parametrize("longest", [256, 1022])
def test_padding_is_not_read(lm: BaseModel, longest: int) -> None:
    method = make(lm)
    (window,) = method.windows(EPISODES[0].document)
    alone = method.encode(*pad_texts([window]))
    filler = torch.full((longest,), 7)
    together = method.encode(*pad_texts([window, filler]))[:1]
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 16, 17, 1665])
def test_groups_read_every_document_once(llama_lm: BaseModel, count: int) -> None:
    method = make(llama_lm, group=16)
    method.rows = torch.randn(count, 3, 32)
    inputs: list[Tensor] = []
    forward = method.aggregator.forward

    def recording(queries: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        inputs.append(rows)
        return forward(queries, rows, bias)

    method.aggregator.forward = recording  # type: ignore[method-assign]
    prefixes(method)
    first_round = [rows[0] for rows in inputs if len(rows) == 1]  # later rounds have rows of their own per question
    assert torch.equal(torch.cat(first_round), method.rows.flatten(0, 1))
    assert max(rows.shape[1] for rows in inputs) <= 16 * 3
    expected = {1: 1, 16: 1, 17: 2 + 1, 1665: 105 + 7 + 1}
    assert len(inputs) == expected[count]


def test_a_bank_that_fits_into_a_group_is_read_flat(llama_lm: BaseModel) -> None:
    flat, grouped = make(llama_lm), make(llama_lm, group=4)
    flat.rows = grouped.rows = torch.randn(4, 3, 32)
    assert_same(prefixes(flat), prefixes(grouped))
    flat.rows = grouped.rows = torch.randn(5, 3, 32)
    assert max((a - b).abs().max() for a, b in zip(prefixes(flat), prefixes(grouped), strict=True)) > 1e-4


def test_documents_without_gradient_count_in_the_loss_alone(llama_lm: BaseModel) -> None:
    method = make(llama_lm, backprop_ratio=0.5)
    encoded: list[Tensor] = []
    original = method.encode

    def encode(ids: Tensor, mask: Tensor) -> Tensor:
        rows = original(ids, mask).detach().requires_grad_(torch.is_grad_enabled())
        encoded.append(rows)
        return rows

    method.encode = encode  # type: ignore[method-assign]
    loss = method.outer_step(EPISODES, [])["loss"]
    with_gradient, without = encoded
    assert with_gradient.grad is not None and with_gradient.grad.abs().sum() > 0
    assert not without.requires_grad and without.grad is None
    other = method.outer_step([*EPISODES[:2], EPISODES[3], EPISODES[3]], [])["loss"]
    assert loss != pytest.approx(other, rel=1e-7), "but the loss depends on them"


def test_a_step_over_several_banks_is_the_mean_of_theirs(llama_lm: BaseModel) -> None:
    whole, parts = make(llama_lm, bank_documents=2), make(llama_lm)
    losses = [parts.outer_step(EPISODES[first : first + 2], [])["loss"] for first in (0, 2)]
    assert whole.outer_step(EPISODES, [])["loss"] == pytest.approx(sum(losses) / 2)
    for mean, total in zip(whole.learner.parameters(), parts.learner.parameters(), strict=True):
        if total.grad is not None:  # a T5 from scratch does not use embeddings of its own
            torch.testing.assert_close(mean.grad, total.grad / 2, rtol=1e-4, atol=1e-6)


def test_the_base_has_dropout_only_while_training(tmp_path: Path) -> None:
    lm = BaseModel.load(str(make_checkpoint(tmp_path, "gpt2")))
    losses = {}
    for dropout in (False, True):
        method = make(lm, dropout=dropout)
        losses[dropout] = {method.outer_step(EPISODES, [])["loss"] for _ in range(2)}
        assert not lm.model.training and method.validate(EPISODES) == method.validate(EPISODES)
    assert len(losses[False]) == 1 and len(losses[True]) == 2


def test_the_curriculum_shows_more_and_more_documents(llama_lm: BaseModel) -> None:
    method = make(llama_lm, own_until=0.2, all_from=0.8)
    owners = torch.tensor([0, 1, 2, 3, 3])  # the last document has two entries
    visible = {}
    for method.progress in (0.0, 0.2, 0.5, 0.8):
        bias = method.curriculum_bias(torch.arange(4), owners, 4)
        visible[method.progress] = None if bias is None else (bias[:, ::3] == 0).int().tolist()
        assert bias is None or torch.equal(bias, bias[:, ::3].repeat_interleave(3, 1))
    own = [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1]]
    assert visible[0.0] == visible[0.2] == own
    assert visible[0.5] == [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 0, 1, 1]]
    assert visible[0.8] is None


def test_the_focus_is_on_a_row_of_the_questions_own_document(llama_lm: BaseModel) -> None:
    method = make(llama_lm, focus=0.5, heads=1)
    torch.manual_seed(0)
    queries, answer_queries, bank = torch.randn(2, 3, 32), torch.randn(2, 3, 32), torch.randn(4, 3, 32)
    block = method.aggregator.blocks[0]
    question, answer = (
        (block.query(block.query_norm(q)) @ block.key(block.row_norm(bank.flatten(0, 1))).T / 8**0.5)
        .softmax(-1)
        .mean(1)
        for q in (queries, answer_queries)
    )
    joint = question * answer
    expected = -(joint[0, 3:6].sum().log() + joint[1, 6:12].sum().log()) / 2
    own = torch.tensor([[0, 1, 0, 0], [0, 0, 1, 1]]).bool()
    torch.testing.assert_close(method.focus_loss(queries, answer_queries, bank, own), expected)
    parts = method.outer_step(EPISODES, [])
    assert parts["loss"] > parts["answer_nll"] + 0.1


def test_at_first_a_question_reads_only_its_own_document(llama_lm: BaseModel) -> None:
    method = make(llama_lm, own_until=0.9, all_from=1.0)
    loss = method.outer_step(EPISODES, [])["loss"]
    with torch.no_grad():
        alone = [method.validate([episode])["loss"] for episode in EPISODES]
    assert loss == pytest.approx(sum(alone) / 4, rel=1e-4)


def test_training_and_streaming_leave_the_base_as_it_was(lm: BaseModel) -> None:
    before = lm.weights_hash()
    method = make(lm, steps=2, episodes_per_step=2, validate_every=1)
    Trainer(method, EPISODES, EPISODES).run()
    for episode in EPISODES:
        method.observe(episode.document)
    method.condition(QUESTIONS)
    assert lm.weights_hash() == before
    assert all(p.grad is None and p.requires_grad for p in lm.model.parameters())


def test_observing_one_by_one_gives_the_bank_of_the_batch(lm: BaseModel) -> None:
    method = make(lm)
    batch = method.encode_documents([episode.document for episode in EPISODES]).detach()
    for episode in EPISODES:
        method.observe(episode.document)
    torch.testing.assert_close(method.rows, batch, rtol=1e-4, atol=1e-5)


def test_an_empty_bank_gives_the_questions_own_prefix(llama_lm: BaseModel) -> None:
    method = make(llama_lm)
    empty = prefixes(method)
    method.observe(EPISODES[0].document)
    assert max((a - b).abs().max() for a, b in zip(empty, prefixes(method), strict=True)) > 1e-4
    with torch.no_grad():
        alone = method.queries([question.text for question in QUESTIONS])
        for block in method.aggregator.blocks:
            alone = alone + block.feed_forward(alone)
        layers = method.prefix(alone)
    assert_same(empty, [pair[side][i] for i in range(len(QUESTIONS)) for pair in layers for side in (0, 1)])


@pytest.mark.parametrize("positions", [2, None])
@pytest.mark.parametrize("start", ["base", "base_affine"])
def test_a_prefix_that_starts_from_the_base_is_that_of_the_token(
    llama_lm: BaseModel, start: str, positions: int | None
) -> None:
    method = make(llama_lm, prefix_start=start, prefix_positions=positions, tokens=1)
    method.begin_training()
    ids = torch.tensor([17, 4])
    text = ids[:, None]
    if start == "base_affine":
        text = functional.pad(text, (1, 0), value=llama_lm.bos_id)
    with torch.no_grad():
        layers = method.prefix(unit_embeddings(llama_lm, ids)[:, None])
        cache = llama_lm.model(input_ids=text, use_cache=True).past_key_values
    # the first layer's keys and values are linear in the normed embedding, whatever comes before
    for prefix, states in zip(layers[0], (cache.layers[0].keys, cache.layers[0].values), strict=True):
        assert prefix.shape[2] == (positions or 1)
        torch.testing.assert_close(prefix[:, :, 0], states[:, :, -1], rtol=1e-3, atol=1e-3)


def test_the_alignment_finds_the_answer_vector_by_vector(llama_lm: BaseModel) -> None:
    method, answers = make(llama_lm, tokens=3), ["the mill at the bridge", "noon"]
    documents = [method.windows(Document("0", "the mill at Corvale")), method.windows(Document("1", "no ferry"))]
    endings = answer_ids(llama_lm, ["Where?", "When?"], answers)
    assert len(endings[0]) > 3 > len(endings[1]), "one answer is cut, and one leaves a vector over"
    texts = [windows[0] for windows in documents] + [ending[:3] for ending in endings]
    tokens = {token for text in texts for token in text.tolist()}
    table = {t: unit_embeddings(llama_lm, torch.tensor([t]))[0].double() for t in tokens}
    vectors = torch.randn(2, 3, method.row_shape[1], generator=torch.Generator().manual_seed(0))
    means = []
    for row, ending in zip(vectors.double(), endings, strict=True):
        losses = []
        for vector, target in zip(row, ending[:3].tolist(), strict=False):
            logits = {t: math.exp(10 * float(functional.cosine_similarity(vector, e, dim=0))) for t, e in table.items()}
            losses.append(math.log(sum(logits.values())) - math.log(logits[target]))
        means.append(sum(losses) / len(losses))
    found = method.alignment(vectors, ["Where?", "When?"], answers, documents)
    assert found.item() == pytest.approx(sum(means) / 2, rel=1e-5)


def test_the_alignment_alone_does_not_read_the_base(llama_lm: BaseModel) -> None:
    method = make(llama_lm, align=0.5, aligned_first=0.5)
    parts = method.outer_step(EPISODES, [])
    assert set(parts) == {"loss", "alignment"} and parts["loss"] == pytest.approx(0.5 * parts["alignment"])
    assert all(p.grad is None for p in method.prefix.parameters())
    assert all(p.grad is not None for p in method.aggregator.parameters())
    method.progress = 0.5
    parts = method.outer_step(EPISODES, [])
    assert parts["loss"] == pytest.approx(parts["answer_nll"] + 0.5 * parts["alignment"])
    assert all(p.grad is not None for p in method.prefix.parameters())


@pytest.mark.parametrize("changes", [{"prefix_start": "base"}, {"prefix_start": "base_affine", "width": 12}])
def test_the_prefix_head_is_fitted_when_a_training_begins(llama_lm: BaseModel, changes: dict[str, object]) -> None:
    read: list[int] = []
    handle = llama_lm.model.register_forward_pre_hook(
        lambda _, args, given: read.append(len(given["input_ids"])), with_kwargs=True
    )
    method, tokens = make(llama_lm, **changes), len(llama_lm.tokenizer)
    assert tokens not in read, "a cell loads trained weights instead"
    shapes = {name: value.shape for name, value in method.learner.state_dict().items()}
    parameters = dict(method.learner.named_parameters())
    method.begin_training()
    handle.remove()
    assert read.count(tokens) == 2, "one reading for each prefix position"
    assert shapes == {name: value.shape for name, value in method.learner.state_dict().items()}
    assert all(parameters[name] is parameter for name, parameter in method.learner.named_parameters())
    expected = make(llama_lm, **changes)
    torch.manual_seed(seed_for(0, "learner"))
    expected.build()  # the same draws, and then those of the fit
    ids = torch.randperm(len(llama_lm.tokenizer))[:FIT_TOKENS]
    affine = changes["prefix_start"] == "base_affine"
    fit_prefix_head(expected.prefix, llama_lm, expected.projection, ids, affine=affine)
    assert torch.equal(method._fit_ids, ids)
    torch.testing.assert_close(method.prefix.state_dict(), expected.prefix.state_dict())
    other = make(llama_lm, **changes)
    other.learner.load_state_dict(method.learner.state_dict())
    assert_same(prefixes(other), prefixes(method))


def test_the_curriculum_may_last_to_the_end(llama_lm: BaseModel) -> None:
    method = make(llama_lm, own_until=1.0, all_from=1.0)
    assert math.isfinite(method.outer_step(EPISODES, [])["loss"])


@pytest.mark.parametrize("changes", [{}, {"width": 12, "prefix_start": "base", "questions_per_document": 1}])
def test_meta_training_lowers_the_loss(llama_lm: BaseModel, changes: dict[str, object]) -> None:
    settings = {"steps": 30, "learning_rate": 5e-3, "episodes_per_step": 4, "validate_every": 10}
    method = make(llama_lm, **settings, shared=True, **changes)
    trainer = Trainer(method, EPISODES, EPISODES)
    trainer.run()
    losses = [row["validation_loss"] for row in trainer.curve]
    assert min(losses) < losses[0] - 0.5


def test_networks_may_be_narrower_than_the_base(llama_lm: BaseModel) -> None:
    narrow, wide = (make(llama_lm, shared=True, width=width) for width in (12, None))
    narrow.observe(EPISODES[0].document)
    assert narrow.bank.shape == (1, SMALL["tokens"], 12) and wide.row_shape[1] == llama_lm.model.config.hidden_size
    sizes = [sum(p.numel() for p in method.learner.parameters()) for method in (narrow, wide)]
    assert sizes[0] < sizes[1]
    assert [t.shape for t in prefixes(narrow)] == [t.shape for t in prefixes(wide)]


@pytest.mark.parametrize("changes", [{}, {"width": 12}])
def test_embeddings_may_be_narrower_than_hidden_states(changes: dict[str, object]) -> None:
    method = make(tiny_base("opt", word_embed_proj_dim=16), prefix_start="base", **changes)
    method.begin_training()
    assert math.isfinite(method.outer_step(EPISODES, [])["loss"])
    method.observe(EPISODES[0].document)
    assert method.bank.shape == (1, SMALL["tokens"], changes.get("width", 16))
    assert {tensor.shape for tensor in prefixes(method)} == {(2, 2, 16)}


def test_only_some_questions_of_a_document_may_be_drawn(llama_lm: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    episode = Episode(EPISODES[0].document, (*QUESTIONS, *QUESTIONS), (("Ann",), ("noon",), ("Bob",), ("dawn",)))
    method, asked = make(llama_lm, questions_per_document=3), []
    monkeypatch.setattr(method, "queries", lambda texts, plain=method.queries: asked.append(len(texts)) or plain(texts))
    method.outer_step([episode, EPISODES[1]], [])
    assert asked == [3 + min(3, len(EPISODES[1].questions))]


def test_one_network_may_encode_documents_and_questions(llama_lm: BaseModel) -> None:
    own, shared = (
        sum(p.numel() for p in make(llama_lm, shared=shared).learner.parameters()) for shared in (False, True)
    )
    twice = sum(p.numel() for p in make(llama_lm).documents.parameters())
    assert own - shared == twice


def test_embeddings_are_scaled_to_unit_root_mean_square(lm: BaseModel) -> None:
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[5] *= 100
    embedded = unit_embeddings(lm, torch.tensor([[5, 6]]))
    torch.testing.assert_close(embedded.pow(2).mean(-1), torch.ones(1, 2), rtol=1e-4, atol=0)


def make_t5(folder: Path, llm: Path) -> T5Model:
    """Save a tiny random T5 with the tokenizer of another checkpoint."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    tokenizer = AutoTokenizer.from_pretrained(llm)
    t5 = T5Model(T5Config(vocab_size=len(tokenizer), dropout_rate=0.0, **sizes))
    t5.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return t5


def test_a_t5_checkpoint_reads_its_own_tokens(llama_lm: BaseModel, tmp_path: Path) -> None:
    t5 = make_t5(tmp_path / "t5", make_checkpoint(tmp_path / "llm", "llama"))
    method = make(llama_lm, amortizer=str(tmp_path / "t5"), question_encoder=str(tmp_path / "t5"))
    torch.testing.assert_close(dict(method.documents.body.named_parameters())["shared.weight"], t5.shared.weight)
    method.observe(Document("long", TEXT[0] * 120))
    lengths = [len(window) for window in method.windows(Document("long", TEXT[0] * 120))]
    assert max(lengths) == 1022 and len(method.entries) == len(lengths) > 1 and method.rows.shape[1:] == (3, 32)
    assert len(prefixes(method)) == 8
    with pytest.raises(BenchError, match="No T5"):
        make(llama_lm, amortizer=str(tmp_path / "llm"))


def substitutes(method: Mac) -> dict[int, torch.Tensor]:
    assert method.substitutes is not None
    tokens, vectors = method.substitutes
    return dict(zip(tokens.tolist(), vectors, strict=True))


def test_only_names_are_renamed_and_only_for_a_step(llama_lm: BaseModel) -> None:
    method = make(llama_lm, rename=True)
    episodes = [
        Episode(Document("0", "the mill at Corvale"), (Question("0", "the mill at?"),), (("Corvale",),)),
        Episode(Document("1", "the ferry at noon"), (Question("1", "When left the ferry?"),), (("noon",),)),
    ]
    own = [llama_lm.encode(text).tolist() for text in (" mill", " ferry")]
    common = llama_lm.encode(" at")
    plain = unit_embeddings(llama_lm, common)
    documents = [method.windows(episode.document) for episode in episodes]
    questions = [(i, episode.questions[0].text) for i, episode in enumerate(episodes)]
    with method.renaming(documents, questions):
        first = substitutes(method)
        assert set(own[0]) <= set(first) and not set(common.tolist()) & set(first)
        assert not set(llama_lm.encode(" noon").tolist()) & set(first), "the question does not contain it"
        embedded = method.embed(torch.tensor([own[0], own[0]]))
        assert torch.equal(embedded[0], embedded[1]) and torch.equal(embedded[0][0], first[own[0][0]])
        assert torch.equal(method.embed(common), plain)
    assert method.substitutes is None
    with method.renaming(documents, questions):
        assert not torch.equal(substitutes(method)[own[0][0]], first[own[0][0]])


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="shared"):
        AmortizedTraining(shared=True, amortizer="t5")
    with pytest.raises(pydantic.ValidationError, match="own_until"):
        AmortizedTraining(own_until=0.5, all_from=0.3)
    with pytest.raises(pydantic.ValidationError, match="aligned_first needs align"):
        AmortizedTraining(aligned_first=0.5)


def test_the_reference_preset_has_the_settings_of_the_authors_code() -> None:
    config = Mac.Config(preset="reference", training={"validation_episodes": 5})
    t = config.training
    assert (t.amortizer, t.question_encoder, t.shared) == ("t5-base", "t5-base", False)
    assert (t.tokens, config.group) == (12, None)
    assert (t.blocks, t.heads, t.head_width, t.hidden) == (4, 8, 96, 768)
    assert (t.prefix_positions, t.prefix_hidden, t.prefix_start) == (2, 768, "identity")
    assert (t.bank_documents, t.episodes_per_step, t.backprop_ratio, t.dropout) == (16, 16 * 4, 1.0, True)
    assert (t.learning_rate, t.decay, t.clip_norm, t.patience) == (1e-5, "none", 100, None)
    assert t.steps == 50 * t.validate_every and t.warmup == t.steps // 100 and t.validation_episodes == 5
    assert (t.focus, t.rename, t.own_until, t.all_from) == (0, False, 0, 0)


def test_without_its_t5_the_reference_preset_is_refused_with_a_remedy(llama: Path, llama_lm: BaseModel) -> None:
    config = Mac.Config(preset="reference")
    with pytest.raises(BenchError, match=r"no model 't5-base'.*Give training\.amortizer a folder"):
        Mac(llama_lm, config)
    with pytest.raises(BenchError, match=r"no model 't5-base'.*Give mac\.training\.amortizer a folder"):
        artifacts.key_of(Mac, config, 0, "newsworld", {}, str(llama))


def test_the_reference_preset_trains_with_checkpoints_in_folders(tmp_path: Path) -> None:
    llm, t5 = make_checkpoint(tmp_path / "llm", "gpt2"), str(tmp_path / "t5")
    make_t5(tmp_path / "t5", llm)
    training = {"amortizer": t5, "question_encoder": t5, "steps": 1}
    method = Mac(BaseModel.load(str(llm)), Mac.Config(preset="reference", training=training))
    trainer = Trainer(method, EPISODES, EPISODES)
    trainer.run()
    assert [row["step"] for row in trainer.curve] == [0, 1] and math.isfinite(trainer.curve[-1]["validation_loss"])

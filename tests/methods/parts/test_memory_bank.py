"""The bank of memory methods, the attention to it, and the likelihood of answers after a prefix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import Document, Episode, Question
from bench.answering import answers, prompts
from bench.contract.method import Conditioning
from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from methods.parts.cross_attention import Aggregator, CrossBlock, PerPositionNets, PrefixHead
from methods.parts.memory_bank import MemoryMethod, Prefix, answer_nll, pad_texts
from tests.conftest import TEXT
from tests.tiny_models import tiny_base

QUESTIONS = ["Who repaired the bridge?", "When?", "In what year was the lighthouse at Corvale opened?"]
ANSWERS = ["an otter", "1983", "the ferry left at noon"]


@pytest.fixture
def lm(checkpoint: Path) -> BaseModel:
    return BaseModel.load(str(checkpoint))


@pytest.fixture
def llama_lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def slow_attention(block: CrossBlock, queries: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """One question, one head and one query at a time; bias (heads, T, R)."""
    attended = torch.zeros_like(queries)
    size = block.query.out_features // block.heads
    for t, query in enumerate(block.query_norm(queries)):
        parts = []
        for head in range(block.heads):
            part = slice(head * size, (head + 1) * size)
            q, normed = block.query.weight[part] @ query, block.row_norm(rows)
            logits = normed @ block.key.weight[part].T @ q / math.sqrt(size) + bias[head, t]
            parts.append(logits.softmax(0) @ (normed @ block.value.weight[part].T))
        attended[t] = block.out.weight @ torch.cat(parts)
    after = queries + attended
    return after + block.feed_forward(after)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", [None, (1, 1, 1), (1, 4, 1), (3, 1, 1), (3, 1, 2), (3, 4, 2)])
def test_cross_attention_equals_that_of_each_query_alone(shared: bool, shape: tuple[int, int, int] | None) -> None:
    torch.manual_seed(0)
    block = CrossBlock(8, heads=4, head_width=3, hidden=16).double()
    queries, rows = torch.randn(3, 2, 8).double(), torch.randn(1 if shared else 3, 5, 8).double()
    bias = None if shape is None else torch.randn(*shape, 5).double()
    outputs = block(queries, rows, bias)
    wide = torch.zeros(3, 4, 2, 5).double() if bias is None else bias.expand(3, 4, 2, 5)
    for i in range(3):
        expected = slow_attention(block, queries[i], rows[0 if shared else i], wide[i])
        torch.testing.assert_close(outputs[i], expected, rtol=0, atol=1e-12)


def test_without_rows_attention_adds_nothing() -> None:
    block = CrossBlock(8, heads=2, head_width=4, hidden=16)
    queries = torch.randn(3, 2, 8)
    assert torch.equal(block(queries, torch.zeros(1, 0, 8)), queries + block.feed_forward(queries))


def test_hidden_rows_and_the_order_of_rows_have_no_effect() -> None:
    aggregator = Aggregator(2, 8, 2, 4, 16).double()
    queries, rows = torch.randn(3, 2, 8).double(), torch.randn(1, 6, 8).double()
    order = torch.randperm(6)
    torch.testing.assert_close(aggregator(queries, rows), aggregator(queries, rows[:, order]), rtol=0, atol=1e-12)
    bias = torch.tensor([0, 0, 0, -math.inf, -math.inf, 0]).double()[None, None, None]
    visible = aggregator(queries, rows[:, [0, 1, 2, 5]])
    torch.testing.assert_close(aggregator(queries, rows, bias), visible, rtol=0, atol=1e-12)


def test_a_log_count_stands_for_equal_rows() -> None:
    aggregator = Aggregator(2, 8, 2, 4, 16).double()
    queries, rows = torch.randn(3, 2, 8).double(), torch.randn(1, 4, 8).double()
    counts = torch.tensor([1, 3, 0, 2])
    counted = aggregator(queries, rows, counts.double().log()[None, None, None])
    repeated = aggregator(queries, rows.repeat_interleave(counts, 1))
    torch.testing.assert_close(counted, repeated, rtol=0, atol=1e-12)


def test_every_position_has_its_own_net() -> None:
    torch.manual_seed(1)
    nets = PerPositionNets(3, 4, 5, 6, torch.tanh)
    x = torch.randn(2, 3, 4)
    out = nets(x)
    for p in range(3):
        normed = functional.layer_norm(x[:, p], (4,))
        assert nets.skip is not None
        expected = x[:, p] @ nets.skip[p] + torch.tanh(normed @ nets.first[p]) @ nets.second[p]
        torch.testing.assert_close(out[:, p], expected)


def test_the_prefix_head_fills_its_slots_in_order(lm: BaseModel) -> None:
    layers, kv_heads, head_size = lm.key_value_shape
    assert (layers, head_size) == (2, 16) and kv_heads == (getattr(lm.model.config, "num_key_value_heads", None) or 2)
    head = PrefixHead(lm.key_value_shape, tokens=3, width=kv_heads * 16, hidden=4, positions=2)
    assert head.source.tolist() == [0, 0, 0, 1, 1, 1, 2, 2], "eight slots: the rest goes to the first vectors"
    nn.init.zeros_(head.nets.second)
    vectors = torch.randn(5, 3, kv_heads * 16)
    slots = [part[:, :, p] for pair in head(vectors) for part in pair for p in range(2)]
    assert [slot.shape for slot in slots] == [(5, kv_heads, 16)] * 8
    for slot, source in zip(slots, head.source.tolist(), strict=True):
        assert torch.equal(slot.flatten(1), vectors[:, source])


def make_prefix(lm: BaseModel, kind: str) -> tuple[Prefix, Conditioning]:
    """A prefix of three positions for each question, in the forms that training and the harness use."""
    torch.manual_seed(2)
    config = lm.model.config
    if kind == "none":
        return Prefix(), Conditioning()
    if kind == "embeddings":
        soft = torch.randn(3, 3, config.hidden_size, requires_grad=True)
        return Prefix(embeddings=soft), Conditioning(prefix_embeddings=list(soft.detach()))
    heads = getattr(config, "num_key_value_heads", None) or 2
    layers = [tuple(torch.randn(3, heads, 3, 16, requires_grad=True) for _ in range(2)) for _ in range(2)]
    key_values = [[(keys[i].detach(), values[i].detach()) for keys, values in layers] for i in range(3)]
    return Prefix(key_values=layers), Conditioning(prefix_key_values=key_values)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["none", "embeddings", "key_values"])
def test_training_uses_the_likelihood_that_the_harness_measures(lm: BaseModel, kind: str) -> None:
    prefix, conditioning = make_prefix(lm, kind)
    questions = [Question(str(i), text) for i, text in enumerate(QUESTIONS)]
    expected = answers.answer_nll(lm, prompts.build_prompts(lm, questions, conditioning, 8), ANSWERS)
    nll = answer_nll(lm, QUESTIONS, ANSWERS, prefix)
    torch.testing.assert_close(nll, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    if kind != "none":
        nll.sum().backward()
        if prefix.embeddings is not None:
            inputs = [prefix.embeddings]
        else:
            inputs = [tensor for pair in prefix.key_values for tensor in pair]
        assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in inputs)


@pytest.mark.parametrize("kind", ["none", "embeddings", "key_values"])
def test_what_does_not_fit_into_the_window_is_cut_as_by_the_harness(lm: BaseModel, kind: str) -> None:
    prefix, conditioning = make_prefix(lm, kind)
    question, room = TEXT[0] * 9, lm.window - prefix.length - 1
    while len(prompts.question_ids(lm, question)) > room:  # in the end it fits, but not with its answer
        question = question[1:]
    questions = [question, *QUESTIONS[1:]]
    asked = [Question(str(i), text) for i, text in enumerate(questions)]
    expected = answers.answer_nll(lm, prompts.build_prompts(lm, asked, conditioning, 1), ANSWERS)
    nll = answer_nll(lm, questions, ANSWERS, prefix)
    torch.testing.assert_close(nll, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    longer = answer_nll(lm, [TEXT[1] * 9 + question, *QUESTIONS[1:]], ANSWERS, prefix)
    torch.testing.assert_close(longer, nll, rtol=1e-5, atol=1e-5)
    assert answer_nll(lm, QUESTIONS, [ANSWERS[0], TEXT[0] * 9, ANSWERS[2]], prefix).isfinite().all()


def test_a_prefix_that_fills_the_window_is_refused(llama_lm: BaseModel) -> None:
    prefix = Prefix(embeddings=torch.zeros(1, llama_lm.window - 1, 32))
    with pytest.raises(BenchError, match="95 positions leaves no room for a question in a window of 96"):
        answer_nll(llama_lm, QUESTIONS[:1], ANSWERS[:1], prefix)


def test_a_frozen_base_leaves_gradients_in_the_prefix_alone(llama_lm: BaseModel) -> None:
    prefix, _ = make_prefix(llama_lm, "key_values")
    with llama_lm.frozen():
        answer_nll(llama_lm, QUESTIONS, ANSWERS, prefix).sum().backward()
    assert all(p.grad is None for p in llama_lm.model.parameters())
    assert prefix.key_values is not None and prefix.key_values[0][0].grad is not None


def test_texts_are_padded_on_either_side() -> None:
    rows = [torch.tensor([5, 6, 7]), torch.tensor([8])]
    assert [part.tolist() for part in pad_texts(rows)] == [[[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]]]
    assert [part.tolist() for part in pad_texts(rows, "left")] == [[[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]]]


class Mean(MemoryMethod):
    """A row is the mean of a text's embeddings; the prefix of a question is the mean of all rows."""

    name = "mean"
    paper = "none"
    row_shape = (1, 32)

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.scale = nn.Linear(1, 1)
        self.prepare_bank()

    @property
    def learner(self) -> nn.Module:
        return self.scale

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        summed = (self.lm.embeddings(ids) * mask[..., None]).sum(1, keepdim=True)
        return summed / mask.sum(1)[:, None, None]

    def recall(self, questions: Sequence[str], rows: Tensor) -> Prefix:
        mean = rows.mean(0) if len(rows) else torch.zeros(1, 32)
        return Prefix(mean.expand(len(questions), 1, 32), entries=[range(len(rows))[:2]] * len(questions))

    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        raise NotImplementedError


def observed(lm: BaseModel, *texts: str) -> Mean:
    method = Mean(lm)
    method.reset()
    for i, text in enumerate(texts):
        method.observe(Document(f"d{i}", text))
    return method


def test_the_same_text_is_one_entry(llama_lm: BaseModel) -> None:
    method = observed(llama_lm, TEXT[0], TEXT[1], TEXT[0], "")
    assert [document for document, _ in method.entries] == ["d0", "d1"] and method.rows.shape == (2, 1, 32)


def test_observing_one_by_one_gives_the_bank_of_the_batch(llama_lm: BaseModel) -> None:
    batch = Mean(llama_lm).encode_documents([Document(str(i), text) for i, text in enumerate(TEXT)])
    torch.testing.assert_close(observed(llama_lm, *TEXT).rows, batch.detach())


def test_a_long_document_is_several_entries(llama_lm: BaseModel) -> None:
    method = observed(llama_lm, TEXT[0] * 9)
    windows = method.windows(Document("d0", TEXT[0] * 9))
    tokens = llama_lm.encode(TEXT[0] * 9)
    assert len(windows) == len(method.entries) > 1 and max(map(len, windows)) == llama_lm.window
    assert torch.equal(torch.cat([window[1:] for window in windows]), tokens)


def test_each_segment_is_an_entry(llama_lm: BaseModel) -> None:
    method = Mean(llama_lm)
    method.reset()
    for piece in llama_lm.segments(Document("whole", TEXT[0]), 6):
        method.observe(piece)
    assert {document for document, _ in method.entries} == {"whole"} and len(method.rows) == len(method.entries) > 1


def test_a_question_gets_its_prefix_and_the_documents_that_it_is_from(llama_lm: BaseModel) -> None:
    method = observed(llama_lm, *TEXT)
    conditioning = method.condition([Question("0", "Who?"), Question("1", "When?")])
    assert conditioning.documents == [["d0", "d1"]] * 2 and conditioning.prefix_key_values is None
    assert conditioning.prefix_embeddings is not None
    torch.testing.assert_close(conditioning.prefix_embeddings[1], method.rows.mean(0))


def test_the_contrast_is_off_by_default(llama_lm: BaseModel) -> None:
    for config, contrast in ((Mean.Config(), None), (Mean.Config(contrast=0.5), 0.5)):
        method = Mean(llama_lm, config)
        assert method.condition([Question("0", QUESTIONS[0])]).contrast == contrast
    assert set(Mean.search_space(method.config)) == {"contrast"}


def test_a_growing_bank_keeps_its_rows_in_order(llama_lm: BaseModel) -> None:
    method, all_rows = Mean(llama_lm), torch.randn(11, 1, 32)
    for turn in range(2):
        method.reset()
        for i in range(11):
            before = method.rows
            method.remember(all_rows[i : i + 1] + turn)
            assert torch.equal(method.rows, all_rows[: i + 1] + turn) and len(before) == i


def test_the_bank_is_saved_loaded_and_reset(llama_lm: BaseModel) -> None:
    method = observed(llama_lm, *TEXT)
    fresh = Mean(llama_lm)
    fresh.load_state_dict(method.state_dict())
    assert fresh.entries == method.entries and torch.equal(fresh.rows, method.rows)
    fresh.reset()
    assert fresh.entries == [] and len(fresh.rows) == 0


@pytest.mark.parametrize("architecture", ["gemma2", "mistral", "gpt_oss", "mpt", "llama", "falcon"])
def test_answers_after_prefixes_are_as_likely_in_training_as_each_alone(architecture: str) -> None:
    lm = tiny_base(architecture)
    questions = ["Why?", "Where does ferry 7 sail from, and who launched it in the year 1816?", "Who was it?"]
    answers = ["Ostavia", "in 1816 it was launched", "a"]
    layers, heads, size = lm.key_value_shape
    states = torch.randn(layers, 2, 3, heads, 4, size, generator=torch.Generator().manual_seed(0), requires_grad=True)
    prefix = Prefix(key_values=[(keys, values) for keys, values in states])
    nll = answer_nll(lm, questions, answers, prefix)
    alone = [
        answer_nll(lm, [q], [a], Prefix(key_values=[(k[i, None], v[i, None]) for k, v in states]))
        for i, (q, a) in enumerate(zip(questions, answers, strict=True))
    ]
    torch.testing.assert_close(nll, torch.cat(alone), atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad(nll.sum(), states)
    (expected,) = torch.autograd.grad(torch.cat(alone).sum(), states)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)

"""Generative Adapter: the state that text adds up to, the update made of it, and the training of the generators."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from torch import Tensor

from bench import Document, Episode, Question
from bench.answering.metrics import shortest
from bench.contract.meta_training import Trainer
from bench.errors import BenchError
from bench.harness.ledger import state_bytes
from bench.lm.base_model import BaseModel
from methods.generative_adapter import GenerativeAdapter, alignment, split
from methods.parts.weight_generator import ChunkStates, Generator, GeneratorTraining
from tests.conftest import TEXT

LONG = Document("long", " ".join(TEXT))
EPISODES = [
    Episode(Document(str(i), text), (Question(str(i), f"Who saw {text[:9]}?"),), ((f"an otter {i}",),))
    for i, text in enumerate(TEXT)
] + [
    Episode(Document("3", "A fourth text about the mill."), (Question("3", "When?"),), (("1899", "in the year 1899"),))
]
ANSWERED = [  # episodes whose documents contain the answers
    Episode(Document(str(i), f"{name} went to {town} by boat"), (Question(str(i), f"Where is {name}?"),), ((town,),))
    for i, (name, town) in enumerate((("Otter", "Corvale"), ("Ferry", "morning"), ("Gate", "lighthouse")))
]
WAYS = [
    {},
    {"target": "mlp_output"},
    {"target": "both", "normalize": "frobenius", "rank": 3},
    {"keys": "module_input", "values": "next_token", "normalize": "none", "blocks": (1,)},
    {"keys": "module_input", "target": "mlp_output", "encoding": "parallel", "gate": True},
]
"""Settings that together use every branch of the generator."""


def training_config(**settings: object) -> GeneratorTraining:
    return GeneratorTraining.model_validate(
        {"inner": 8, "rank": 4, "scale": 2.0, "chunk": 9, "warmup": 0, "episodes_per_step": 4, "qa_from": 0, **settings}
    )


def make(lm: BaseModel, factor: float = 1.0, **settings: object) -> GenerativeAdapter:
    """A method with generators as after some training: their updates are not zero."""
    method = GenerativeAdapter(lm, GenerativeAdapter.Config(scale=factor, training=training_config(**settings)))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for each in method.generators:
            each.O.copy_(torch.randn(each.O.shape, generator=generator))
    return method


def logits(lm: BaseModel, text: str = TEXT[1]) -> Tensor:
    with torch.no_grad():
        output: Tensor = lm.model(input_ids=lm.encode(text)[None], use_cache=False).logits
    return output


def unmerged(method: GenerativeAdapter) -> AbstractContextManager[None]:
    """The update beside the weights rather than in them."""

    def update(i: int, _: Tensor, inputs: Tensor) -> Tensor:
        generator = method.generators[i]
        added: Tensor = generator(inputs, generator.normalize(method.state[i]))
        return added

    return method.layers.adding(update)


@pytest.fixture
def lm(checkpoint: Path) -> BaseModel:
    return BaseModel.load(str(checkpoint))


@pytest.fixture
def llama_lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


# The state: S = sum of k^T v.


def tiny(values: str = "token", keys: str = "block_input") -> Generator:
    """Two hidden units, and K = V = Q = O = the identity."""
    generator = Generator(2, 2, 2, training_config(inner=2, rank=1, values=values, keys=keys, scale=0.5))
    with torch.no_grad():
        for matrix in (generator.K, generator.V, generator.Q, generator.O):
            matrix.copy_(torch.eye(2))
    return generator


HIDDEN = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]]])
MASK = torch.tensor([[1, 1, 0]])


def test_the_state_sums_outer_products_of_normed_hidden_states() -> None:
    # over the root mean square, (3, 4) is (0.6, 0.8) sqrt 2, and (1, 0) is (1, 0) sqrt 2
    expected = 2 * torch.tensor([[[0.36 + 1, 0.48], [0.48, 0.64]]])
    torch.testing.assert_close(tiny().chunk_states(HIDDEN, HIDDEN, MASK).states, expected)


def test_a_key_can_be_bound_to_the_next_tokens_value() -> None:
    # the first token's key with the second one's value; the third is padding
    expected = 2 * torch.tensor([[[0.6, 0.0], [0.8, 0.0]]])
    torch.testing.assert_close(tiny("next_token").chunk_states(HIDDEN, HIDDEN, MASK).states, expected)


def test_keys_can_come_from_the_layers_own_input() -> None:
    inputs = torch.tensor([[[0.0, 5.0], [2.0, 0.0], [7.0, 7.0]]])
    expected = 2 * torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
    torch.testing.assert_close(tiny(keys="module_input").chunk_states(HIDDEN, inputs, MASK).states, expected)


def test_the_order_of_tokens_does_not_matter_once_they_are_hidden_states() -> None:
    hidden = torch.randn(1, 7, 2, generator=torch.Generator().manual_seed(0))
    mask, order = torch.ones(1, 7), torch.tensor([3, 1, 6, 0, 2, 5, 4])
    one = tiny().chunk_states(hidden, hidden, mask)
    other = tiny().chunk_states(hidden[:, order], hidden[:, order], mask)
    torch.testing.assert_close(one.states, other.states)


@pytest.mark.parametrize("settings", WAYS)
def test_padding_changes_nothing_in_the_state(lm: BaseModel, settings: dict[str, object]) -> None:
    method = make(lm, **settings)
    chunks = [c for e in EPISODES for c in method.chunks(e.document)]
    chunks = sorted(chunks, key=len)
    together = method.chunk_states([[chunk] for chunk in chunks])
    for i, chunk in enumerate(chunks):
        for layer, alone in zip(together, method.chunk_states([[chunk]]), strict=True):
            torch.testing.assert_close(layer.states[i], alone.states[0], rtol=1e-4, atol=1e-4)
            assert not layer.keys[i, alone.keys.shape[1] :].any()


# The update: scale O N^T Q.


def test_the_update_of_a_diagonal_state() -> None:
    generator, state = tiny(), torch.tensor([[0.0, -3.0], [1.0, 0.0]])
    normal = generator.normalize(state)  # the singular value 3 belongs to row 0, column 1, with its sign
    torch.testing.assert_close(normal, torch.tensor([[0.0, -1.0], [0.0, 0.0]]))
    torch.testing.assert_close(generator.update(normal), torch.tensor([[0.0, 0.0], [-0.5, 0.0]]))


def test_merged_and_unmerged_updates_are_the_same() -> None:
    generator = Generator(6, 5, 4, training_config())
    torch.nn.init.normal_(generator.O)
    normal, inputs = torch.randn(8, 8), torch.randn(3, 7, 5)
    torch.testing.assert_close(generator(inputs, normal), inputs @ generator.update(normal).T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalize", ["svd", "frobenius"])
def test_a_normalised_state_has_one_size_whatever_its_scale(normalize: str) -> None:
    generator, state = Generator(6, 5, 4, training_config(normalize=normalize)), torch.randn(2, 8, 8)
    normal = generator.normalize(state)
    torch.testing.assert_close(generator.normalize(state * 1000), normal, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.linalg.matrix_norm(normal), torch.full((2,), 2.0))  # sqrt of rank 4
    assert not generator.normalize(torch.zeros(2, 8, 8)).any(), "nothing seen, nothing changed"


@pytest.mark.parametrize("normalize", ["svd", "frobenius"])
def test_the_gradient_of_an_empty_state_is_finite(normalize: str) -> None:
    state = torch.zeros(2, 8, 8, requires_grad=True)
    normal = Generator(6, 5, 4, training_config(normalize=normalize)).normalize(state)
    (10 * normal).sum().backward()
    assert state.grad is not None and state.grad.isfinite().all()


def test_svd_keeps_the_rank_and_sets_its_singular_values_to_one() -> None:
    values = torch.linalg.svdvals(Generator(6, 5, 4, training_config()).normalize(torch.randn(8, 8)))
    torch.testing.assert_close(values, torch.tensor([1.0] * 4 + [0.0] * 4))


def test_singular_values_that_are_zero_are_not_raised_to_one() -> None:
    column, row = torch.randn(8, 1), torch.randn(1, 8)
    normal = Generator(6, 5, 4, training_config()).normalize(column @ row)
    torch.testing.assert_close(normal, column @ row / (column.norm() * row.norm()))


def test_nearly_equal_singular_values_can_drop_the_update_in_training() -> None:
    near, apart = torch.diag(torch.tensor([2.0, 2.0, 1.0])), torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    states = torch.stack([near, apart])
    generator = Generator(6, 5, 4, training_config(inner=3, rank=2, drop_near_equal=True))
    normals = generator.normalize(states)
    assert not normals[0].any() and normals[1].any()
    with torch.no_grad():
        assert generator.normalize(states)[0].any(), "not when the stream is read"
    assert Generator(6, 5, 4, training_config(inner=3, rank=2)).normalize(near).any()


def test_the_randomised_decomposition_depends_on_the_seed_a_little() -> None:
    state = torch.randn(8, 8) @ torch.diag(torch.tensor([9.0, 8, 7, 6, 2, 1, 1, 1])) @ torch.randn(8, 8)
    generator, exact = (
        Generator(6, 5, 4, training_config(decomposition="randomized")),
        Generator(6, 5, 4, training_config()),
    )
    normals = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        normals.append(generator.normalize(state))
    assert torch.equal(normals[0], normals[1])
    assert not torch.equal(normals[0], normals[2])
    assert torch.equal(exact.normalize(state), exact.normalize(state))
    for normal in normals:
        assert torch.linalg.matrix_norm(normal) == pytest.approx(2, abs=1e-4)
        assert (normal * exact.normalize(state)).sum() > 2, "most of it is the exact one's"


# The stream.


@pytest.mark.parametrize("settings", WAYS)
def test_an_untrained_generator_leaves_the_base_as_it_is_bit_for_bit(
    lm: BaseModel, settings: dict[str, object]
) -> None:
    before, hashed = logits(lm), lm.weights_hash()
    method = GenerativeAdapter(lm, GenerativeAdapter.Config(training=training_config(**settings)))
    method.observe(LONG)
    assert method.state.abs().sum() > 0
    assert lm.weights_hash() == hashed and torch.equal(logits(lm), before)
    with unmerged(method):
        assert torch.equal(logits(lm), before)


@pytest.mark.parametrize("settings", WAYS)
def test_merged_weights_answer_like_the_unmerged_update(lm: BaseModel, settings: dict[str, object]) -> None:
    method, before = make(lm, **settings), logits(lm)
    method.observe(LONG)
    merged = logits(lm)
    assert not torch.allclose(merged, before, atol=1e-2)
    lm.restore()
    with unmerged(method):
        torch.testing.assert_close(logits(lm), merged, rtol=1e-3, atol=1e-3)


def test_the_factor_of_the_update_acts_in_the_stream_and_not_in_training(llama_lm: BaseModel) -> None:
    updates, losses = [], []
    for factor in (1.0, 2.5):
        method = make(llama_lm, factor, encoding="parallel")
        losses.append((method.outer_step(EPISODES, []), method.validate(EPISODES)))
        method.observe(LONG)
        name = f"{method.layers.names[0]}.weight"
        updates.append(method.layers.modules[0].weight - llama_lm.pristine(name))
        method.reset()
    torch.testing.assert_close(updates[1], 2.5 * updates[0], rtol=1e-4, atol=1e-5)
    assert losses[0] == losses[1] and updates[0].abs().max() > 0.01
    assert set(GenerativeAdapter.search_space(method.config)) == {"scale"}


@pytest.mark.parametrize("settings", WAYS)
def test_reading_chunks_side_by_side_equals_reading_them_in_turn(lm: BaseModel, settings: dict[str, object]) -> None:
    method = make(lm, **{**settings, "scale": 0.1})
    chunks = [c for e in EPISODES for c in method.chunks(e.document)]
    assert len(chunks) > 2 * len(EPISODES), "documents of several chunks"
    with torch.no_grad():
        side_by_side = method.chunk_states([chunks, chunks[:3]])
    for episode in EPISODES:
        method.observe(episode.document)
    for layer, state in zip((each.states for each in side_by_side), method.state, strict=True):
        torch.testing.assert_close(layer[: len(chunks)].sum(0), state, rtol=1e-3, atol=1e-3 * state.abs().max().item())
        torch.testing.assert_close(layer[len(chunks) :], layer[:3], rtol=1e-3, atol=1e-2)  # groups do not mix


@pytest.mark.parametrize("encoding", ["sequential", "parallel"])
def test_each_update_is_installed_once(llama_lm: BaseModel, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    method, calls = make(llama_lm, encoding=encoding), []
    install = method.install
    monkeypatch.setattr(method, "install", lambda: calls.append(method.state) or install())
    documents = [Document("short", "A mill."), Document("long", TEXT[0]), Document("empty", "")]
    counts = []
    for document in documents:
        before = len(calls)
        method.observe(document)
        counts.append(len(calls) - before)
    chunks = [len(method.chunks(document)) for document in documents]
    assert chunks[0] == 1 and chunks[1] > 1 and chunks[2] == 0
    assert counts == (chunks if encoding == "sequential" else [1, 1, 0]) and calls[-1] is method.state
    hashed = llama_lm.weights_hash()
    install()
    assert llama_lm.weights_hash() == hashed, "the last state is in the weights"


def test_encodings_differ_in_what_the_base_has_seen(llama_lm: BaseModel) -> None:
    states = {}
    for encoding in ("sequential", "parallel", "concat"):
        method = make(llama_lm, encoding=encoding)
        for episode in EPISODES[:2]:
            method.observe(episode.document)
        states[encoding] = method.state
        method.reset()
        for episode in EPISODES[1::-1]:
            method.observe(episode.document)
        same = torch.allclose(method.state, states[encoding], rtol=1e-3, atol=1e-3)
        assert same == (encoding != "sequential"), "only with the update at work does the order matter"
        method.reset()
    assert not torch.allclose(states["parallel"], states["concat"], rtol=1e-2)
    assert not torch.allclose(states["parallel"], states["sequential"], rtol=1e-2)


def test_a_document_is_cut_into_chunks_of_nearly_equal_length(llama_lm: BaseModel) -> None:
    method, ids = make(llama_lm, chunk=20), llama_lm.encode(LONG.text)
    chunks = method.chunks(LONG)
    lengths = [len(chunk) for chunk in chunks]
    assert len(lengths) == -(-(len(ids) + 1) // 20) and max(lengths) <= 20
    assert set(lengths[:-1]) == {max(lengths)}
    assert torch.cat(chunks).tolist() == [llama_lm.bos_id, *ids.tolist()]
    assert make(llama_lm).chunks(Document("empty", "")) == []
    whole = make(llama_lm, encoding="concat").chunks(LONG)
    assert len(whole) == -(-(len(ids) + 1) // llama_lm.window), "a whole window at a time"


def test_the_encoding_can_differ_from_training(llama_lm: BaseModel) -> None:
    config = GenerativeAdapter.Config(encoding="parallel", training=training_config())
    assert GenerativeAdapter(llama_lm, config).encoding == "parallel"


@pytest.mark.parametrize("settings", WAYS)
def test_reset_brings_back_the_base_and_an_empty_state(lm: BaseModel, settings: dict[str, object]) -> None:
    method, hashed = make(lm, **settings), lm.weights_hash()
    method.observe(LONG)
    assert lm.weights_hash() != hashed
    method.reset()
    assert lm.weights_hash() == hashed and not method.state.any()
    method.install()
    assert lm.weights_hash() == hashed, "the update of an empty state is none"


def test_the_state_does_not_grow_with_the_stream(llama_lm: BaseModel) -> None:
    method = make(llama_lm)
    sizes = []
    for _ in range(3):
        for episode in EPISODES:
            method.observe(episode.document)
        sizes.append(state_bytes(method))
    states, layers = 2 * 8 * 8 * 4, 2 * 32 * 32 * 4  # two blocks: d_r = 8, hidden size 32
    assert sizes == [states + layers] * 3


@pytest.mark.parametrize("settings", WAYS)
def test_the_update_is_a_lora_that_plain_peft_loads(
    checkpoint: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lm = BaseModel.load(str(checkpoint))
    method = make(lm, factor=0.5, **settings)
    method.observe(LONG)
    merged, hashed = logits(lm), lm.weights_hash()
    method.export(tmp_path)
    assert lm.weights_hash() == hashed, "exporting changes nothing"
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint), tmp_path).eval()
    ranks = {p.shape[0] for name, p in loaded.named_parameters() if "lora_A" in name}
    assert ranks == {4 if settings.get("normalize", "svd") == "svd" else 8}
    with torch.no_grad():
        updated = loaded(input_ids=lm.encode(TEXT[1])[None]).logits
    torch.testing.assert_close(updated, merged, rtol=1e-3, atol=1e-3)


# Training.


@pytest.mark.parametrize("settings", [*WAYS, {"qa_from": 1}, {"decomposition": "randomized", "drop_near_equal": True}])
def test_training_moves_the_generators_and_nothing_else(lm: BaseModel, settings: dict[str, object]) -> None:
    method, hashed = make(lm, **settings), lm.weights_hash()
    torch.manual_seed(0)
    assert method.outer_step(EPISODES, [])["loss"] > 0
    for generator in method.generators:
        for name, parameter in generator.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert lm.weights_hash() == hashed and all(p.grad is None for p in lm.model.parameters())
    assert all(p.requires_grad for p in lm.model.parameters()) and not lm.model._forward_hooks


def test_validation_is_the_answers_nll_after_the_stream(llama_lm: BaseModel) -> None:
    from bench.answering.prompts import build_prompts
    from bench.contract.method import Conditioning

    method = make(llama_lm, scale=0.1)
    losses = method.validate(EPISODES)
    assert all(p.grad is None for p in method.learner.parameters())
    for episode in EPISODES:
        method.observe(episode.document)
    nll = []
    for episode in EPISODES:
        [prompt] = build_prompts(llama_lm, episode.questions, Conditioning(), 0)
        answer = llama_lm.encode(" " + shortest(episode.answers[0]))
        with torch.no_grad():
            nll.append(-llama_lm.log_probs(torch.cat([answer, torch.tensor([llama_lm.eos_id])]), prompt.ids))
    assert losses["loss"] == pytest.approx(torch.cat(nll).mean().item(), rel=1e-3)


def test_each_group_of_documents_has_its_own_state(llama_lm: BaseModel) -> None:
    whole = make(llama_lm, documents=2, first_documents=2).outer_step(EPISODES, [])["loss"]
    tokens, parts = 0, 0.0
    for group in (EPISODES[0::2], EPISODES[1::2]):
        method = make(llama_lm, documents=2, first_documents=2)
        count = sum(len(llama_lm.encode(" " + shortest(e.answers[0]))) + 1 for e in group)
        parts += method.outer_step(group, [])["loss"] * count
        tokens += count
    assert whole == pytest.approx(parts / tokens, rel=1e-4)


def test_no_state_has_more_documents_than_the_settings_say(
    llama_lm: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sizes(count: int, most: int) -> list[int]:
        return [len(group) for group in split((EPISODES * 4)[:count], most)]

    assert sizes(16, 9) == [8, 8]
    assert sizes(16, 5) == [4, 4, 4, 4]
    assert sizes(7, 3) == [3, 2, 2]
    assert sizes(4, 4) == [4] and sizes(4, 8) == [4] and sizes(3, 1) == [1, 1, 1]
    for qa_from in (0, 1):
        method, seen = make(llama_lm, documents=3, first_documents=3, qa_from=qa_from), []
        name = "_text_losses" if qa_from else "_answer_loss"
        plain = getattr(method, name)
        monkeypatch.setattr(method, name, lambda groups, *a, f=plain, s=seen: s.append(len(groups)) or f(groups, *a))
        method.outer_step(EPISODES, [])
        method.validate(EPISODES)
        assert seen == [2, 2 if qa_from else 1], "two of two documents; questions are validated in one state"


def test_states_of_the_first_chunks_of_each_group(llama_lm: BaseModel) -> None:
    rows = torch.arange(5.0)[:, None, None]
    [states] = make(llama_lm)._group_states([ChunkStates(rows, rows)], [["a", "b", "c"], ["d", "e"]], [2, 1])
    assert states.flatten().tolist() == [0 + 1, 3]


def test_cached_activations_equal_those_of_another_reading(llama_lm: BaseModel) -> None:
    gradients = []
    for remember in (False, True):
        method = make(llama_lm, encoding="parallel", remember=remember)
        for _ in range(2):
            torch.manual_seed(0)
            method.outer_step(EPISODES, [])
        assert bool(method._cache) == remember
        gradients.append([p.grad for p in method.learner.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_alignment_is_the_wanted_share_of_the_energy_that_a_query_retrieves() -> None:
    keys = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]])
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # energies 1, 0, 9, 0, 0, 1; 0, 4, 0, 0, 0, 1
    wanted = torch.zeros(3, 3, 2, dtype=torch.bool)
    wanted[0, 0, 0] = wanted[0, 2, 1] = wanted[1, 2, 1] = True  # the third question wants nothing
    expected = -(torch.tensor([2 / 11, 1 / 5]).log().mean())
    torch.testing.assert_close(alignment(queries, keys, wanted), expected)
    torch.testing.assert_close(alignment(queries * 9, keys / 7, wanted), expected)


def test_a_gate_weights_keys() -> None:
    generator = Generator(2, 2, 2, training_config(inner=2, rank=1, gate=True, encoding="parallel"))
    with torch.no_grad():
        generator.gate.weight.copy_(torch.tensor([[1.0, 0.0]]))
        generator.gate.bias.fill_(0)
    last = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [9.0, 9.0]]])  # gates sigmoid(0.6 sqrt 2), a half, and padding
    open_wide, half = torch.sigmoid(torch.tensor(0.6 * 2**0.5)), 0.5
    ungated, _ = generator.keys_and_values(HIDDEN, HIDDEN, MASK)
    gated, values = generator.keys_and_values(HIDDEN, HIDDEN, MASK, last)
    expected = ungated * torch.tensor([open_wide, half, 0.0])[:, None]
    torch.testing.assert_close(gated, expected)
    assert values[0, :2].abs().sum() > 0 and not values[0, 2].any()


def test_alignment_is_added_to_the_answers_loss(llama_lm: BaseModel) -> None:
    with_it, without = (make(llama_lm, align=weight, documents=8, first_documents=8) for weight in (0.5, 0))
    parts = with_it.validate(ANSWERED)
    assert without.validate(ANSWERED) == {"loss": pytest.approx(parts["loss"])}
    expected = parts["loss"] + 0.5 * parts["alignment"]
    assert with_it.outer_step(ANSWERED, [])["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("settings", WAYS)
def test_the_first_stage_moves_keys_and_queries_alone(lm: BaseModel, settings: dict[str, object]) -> None:
    method, hashed = make(lm, **settings, aligned_first=0.5), lm.weights_hash()
    method.outer_step(ANSWERED, [])
    for generator in method.generators:
        moved = {name for name, p in generator.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        used = {"key_gain", "K", "Q"} if settings.get("keys") == "module_input" else {"gain", "K", "Q"}
        assert used <= moved
    assert lm.weights_hash() == hashed


def test_alignment_brings_questions_to_their_documents(llama_lm: BaseModel) -> None:
    method = make(llama_lm, align=1.0, encoding="parallel", keys="module_input")
    optimizer = torch.optim.Adam(method.learner.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        method.outer_step(ANSWERED, [])
        optimizer.step()
        losses.append(method.validate(ANSWERED)["alignment"])
    assert losses[-1] < losses[0] - 0.3


def test_the_number_of_documents_in_a_state_grows_by_a_constant_factor() -> None:
    training = training_config(first_documents=2, documents=32, grown=0.5)
    assert [training.documents_at(share / 8) for share in range(9)] == [2, 4, 8, 16, 32, 32, 32, 32, 32]
    later = training_config(first_documents=2, documents=8, aligned_first=0.25, grown=0.75)
    assert [later.documents_at(share / 8) for share in range(9)] == [2, 2, 2, 3, 4, 6, 8, 8, 8]


@pytest.mark.parametrize("qa_from", [0, 0.5])
def test_training_lowers_the_loss(llama_lm: BaseModel, qa_from: float) -> None:
    settings = training_config(
        steps=30, learning_rate=1e-2, validate_every=5, qa_from=qa_from, documents=4, first_documents=1
    )
    trainer = Trainer(GenerativeAdapter(llama_lm, GenerativeAdapter.Config(training=settings)), EPISODES, EPISODES)
    trainer.run()
    losses = [row["validation_loss"] for row in trainer.curve]
    assert min(losses) < losses[0] - 0.5


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("both", {"reconstruction", "completion"}),
        ("reconstruction", {"reconstruction"}),
        ("completion", {"completion"}),
    ],
)
def test_training_on_text_alone_is_validated_by_the_losses_that_it_lowers(
    llama_lm: BaseModel, text: str, parts: set[str]
) -> None:
    settings = training_config(
        steps=20, learning_rate=1e-2, validate_every=5, qa_from=1, text=text, documents=1, first_documents=1, chunk=9
    )
    trainer = Trainer(GenerativeAdapter(llama_lm, GenerativeAdapter.Config(training=settings)), EPISODES, EPISODES)
    trainer.run()
    first, best = trainer.curve[0], min(trainer.curve, key=lambda row: row["validation_loss"])
    assert {name for name in first if name.startswith("validation_")} == {
        "validation_loss",
        *(f"validation_{part}" for part in parts),
    }
    assert first["validation_loss"] == pytest.approx(sum(first[f"validation_{part}"] for part in parts))
    assert all(best[f"validation_{part}"] < first[f"validation_{part}"] for part in parts)


def test_the_begin_token_of_a_document_is_read_and_never_predicted(
    llama_lm: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = training_config(qa_from=1, text="both", documents=2, first_documents=2, chunk=96)
    method = GenerativeAdapter(llama_lm, GenerativeAdapter.Config(training=settings))
    nll, targets = method._nll, []

    def kept(states: Sequence[Tensor], examples: Sequence[Any]) -> Any:
        targets.extend(example.target for example in examples)
        return nll(states, examples)

    monkeypatch.setattr(method, "_nll", kept)
    method.validate(EPISODES)
    assert len(targets) > 2 and not any((target == llama_lm.bos_id).any() for target in targets)


def test_text_is_scored_after_as_much_context_as_the_setting_says(llama_lm: BaseModel) -> None:
    text, whole = Document("0", TEXT[0]), make(llama_lm)
    [_, second, *_] = llama_lm.segments(text, 5)
    batch = llama_lm.tokens(second)
    alone = GenerativeAdapter(llama_lm, GenerativeAdapter.Config(context_tokens=0, training=whole.config.training))
    begin = torch.tensor([llama_lm.bos_id])
    with torch.no_grad():
        [bare] = alone.reading.log_probs(llama_lm, batch)
        [after] = whole.reading.log_probs(llama_lm, batch)
        assert torch.allclose(bare, llama_lm.log_probs(batch.token_ids, begin), atol=1e-5)
        assert torch.allclose(after, llama_lm.log_probs(batch.token_ids, batch.context_ids), atol=1e-5)
    assert not torch.allclose(bare, after, atol=1e-3)


def test_the_reference_preset_has_the_values_of_the_authors_code() -> None:
    config = GenerativeAdapter.Config(preset="reference", training={"steps": 5})
    training = config.training
    assert (training.inner, training.rank, training.scale, training.chunk) == (1024, 128, 64 / 1024, 1024)
    assert (training.normalize, training.decomposition, training.drop_near_equal) == ("svd", "randomized", True)
    assert (training.encoding, training.target, training.keys) == ("sequential", "attention_output", "block_input")
    assert (training.values, training.learning_rate, training.warmup, training.steps) == ("token", 1e-4, 100, 5)


def test_default_sizes_follow_from_the_base(llama_lm: BaseModel) -> None:
    generator = GenerativeAdapter(llama_lm).generators[0]
    assert (generator.Q.shape[0], generator.rank) == (32 // 4, 32 // 4 // 8)


def test_contradictory_settings_are_rejected() -> None:
    with pytest.raises(pydantic.ValidationError, match="at most"):
        training_config(first_documents=9)
    for key in ("remember", "gate"):
        with pytest.raises(pydantic.ValidationError, match=key):
            training_config(**{key: True})


def test_a_missing_block_is_rejected(llama_lm: BaseModel) -> None:
    with pytest.raises(BenchError, match="no block 2: it has 2"):
        GenerativeAdapter(llama_lm, GenerativeAdapter.Config(training=training_config(blocks=(0, 2))))

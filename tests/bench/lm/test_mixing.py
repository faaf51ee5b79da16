"""The next-token hook: the same mixture in scoring and in answering, by cache and without, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.answering.answers import answer, answer_nll
from bench.answering.decoding import Decoding
from bench.answering.prompts import build_prompts
from bench.contract.method import Conditioning
from bench.data.documents import Document, Question
from bench.errors import RunError
from bench.lm.base_model import BaseModel
from bench.lm.mixing import mixed
from bench.lm.reading import CarriedCache, Reading
from tests.conftest import TEXT

QUESTIONS = [Question(str(i), " ".join(TEXT[i % 3].split()[: 3 + i])) for i in range(5)]


def repeat(log_probs: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
    """Half of the probability for the token that is read; the share of the rest depends on the hidden state."""
    read = ids[len(ids) - len(log_probs) :]
    votes = torch.zeros_like(log_probs).scatter_(1, read[:, None], 1.0)
    share = 0.25 + 0.5 * hidden.mean(-1, keepdim=True).sigmoid()
    return torch.logaddexp(log_probs + share.log(), votes.log() + (1 - share).log())


def context_length(log_probs: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
    """Probability for the token whose id is the number of tokens read so far."""
    ends = torch.arange(len(ids) - len(log_probs) + 1, len(ids) + 1, device=ids.device)
    votes = torch.zeros_like(log_probs).scatter_(1, ends[:, None] % log_probs.shape[1], 0.9)
    return torch.logaddexp(log_probs - torch.tensor(10.0).log(), votes.log())


def slow_log_probs(lm: BaseModel, ids: Tensor, hook) -> Tensor:  # type: ignore[no-untyped-def]
    """Mixed distributions after every token, by a forward pass for each."""
    rows = []
    for end in range(1, len(ids) + 1):
        output = lm.model(input_ids=ids[None, :end], output_hidden_states=True, use_cache=False)
        log_probs, hidden = output.logits[0, -1:].float().log_softmax(-1), output.hidden_states[-1][0, -1:].float()
        rows.append(hook(log_probs, hidden, ids[:end]))
    return torch.cat(rows)


@pytest.fixture(scope="module")
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def test_the_hook_computes_in_float32_wherever_it_is_called(llama: Path) -> None:
    lm, seen = BaseModel.load(str(llama), dtype="bfloat16"), []

    def products(log_probs: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
        seen.append((hidden @ hidden.T).dtype)
        return log_probs

    prompts = build_prompts(lm, QUESTIONS, Conditioning(), 4)
    with lm.mixing(products):
        lm.total_nll([lm.tokens(Document("0", TEXT[0]))])
        answer(lm, prompts, Decoding(max_new_tokens=2))
        answer_nll(lm, prompts, ["a"] * len(prompts))
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("hook", [repeat, context_length])
@torch.no_grad()
def test_scoring_mixes_at_every_token_in_windows_batches_and_with_a_carried_cache(lm: BaseModel, hook) -> None:  # type: ignore[no-untyped-def]
    documents = [Document(str(i), text) for i, text in enumerate(TEXT)]
    for document in documents:
        batch = lm.tokens(document)
        ids = torch.cat([batch.context_ids, batch.token_ids])
        expected = slow_log_probs(lm, ids[:-1], hook).gather(1, ids[1:, None])[:, 0]
        with lm.mixing(hook):
            torch.testing.assert_close(lm.log_probs(batch.token_ids), expected, atol=1e-4, rtol=1e-4)
            assert lm.total_nll([batch, batch]) == pytest.approx(-2 * expected.sum().item(), rel=1e-4)
            reading, parts = Reading(cache=CarriedCache()), []
            for segment in lm.segments(document, 5):
                parts += reading.log_probs(lm, lm.tokens(segment))
            torch.testing.assert_close(torch.cat(parts), expected, atol=1e-4, rtol=1e-4)
        assert not lm.mixes and not torch.allclose(lm.log_probs(batch.token_ids), expected, atol=0.1)


@pytest.mark.parametrize("hook", [repeat, context_length])
@pytest.mark.parametrize("cached", [True, False])
@torch.no_grad()
def test_answers_and_their_likelihoods_are_mixed_likewise(
    lm: BaseModel,
    hook,
    cached: bool,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    monkeypatch.setitem(vars(lm), "abilities", replace(lm.abilities, cache=cached, padding=cached))
    prompts = build_prompts(lm, QUESTIONS, Conditioning(), 6)
    golds = ["a mill", "1983", "the harbour at noon", "x", "no"]
    with lm.mixing(hook):
        answers, likelihoods = answer(lm, prompts, Decoding(max_new_tokens=6)), answer_nll(lm, prompts, golds)
        one_beam = answer(lm, prompts, Decoding(strategy="beam", max_new_tokens=6))
    assert one_beam == answers
    for prompt, (text, ended), gold, nll in zip(prompts, answers, golds, likelihoods, strict=True):
        ids, written = prompt.ids, []
        for _ in range(6):
            token = int(slow_log_probs(lm, ids, hook)[-1].argmax())
            if token in lm.stop_ids:
                break
            written.append(token)
            ids = torch.cat([ids, torch.tensor([token])])
        assert text == lm.tokenizer.decode(written, skip_special_tokens=True).split("\n")[0].strip()
        assert ended is (len(written) < 6)
        target = torch.cat([lm.encode(f"{prompt.question} {gold}")[len(prompt.ids) - 1 :], torch.tensor([lm.eos_id])])
        whole = torch.cat([prompt.ids, target])
        mixture = slow_log_probs(lm, whole[:-1], hook)[-len(target) :]
        assert nll == pytest.approx(-mixture.gather(1, target[:, None]).mean().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        (lambda log_probs, hidden, ids: log_probs + 0.5, "probabilities that sum to 1.65: normalise them"),
        (lambda log_probs, hidden, ids: log_probs[:-1], r"returned \(0, 7\); it must return log-prob.*\(1, 7\)"),
        (lambda log_probs, hidden, ids: None, "returned NoneType"),
        (lambda log_probs, hidden, ids: log_probs * torch.nan, "sum to nan"),
        (lambda log_probs, hidden, ids: log_probs.roll(1, 0), "another distribution than alone"),
    ],
)
def test_what_is_no_distribution_or_looks_ahead_is_refused(hook, problem: str) -> None:  # type: ignore[no-untyped-def]
    logits = 5 * torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RunError, match=problem):
        mixed(hook, logits, torch.zeros(6, 3), torch.arange(9) % 7)


def test_a_hook_that_remembers_what_it_has_seen_is_refused_too() -> None:
    known: dict[int, int] = {}  # the token that follows a hidden state

    def remember(log_probs: torch.Tensor, hidden: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        if len(log_probs) > 1:
            known.update({int(state[0]): int(token) for state, token in zip(hidden, seen[-5:], strict=False)})
        following = [known.get(int(state[0]), -1) for state in hidden]
        bonus = torch.zeros_like(log_probs)
        for row, token in enumerate(following):
            if token >= 0:
                bonus[row, token] = 9.0
        return (log_probs + bonus).log_softmax(-1)

    with pytest.raises(RunError, match="another distribution than alone"):
        mixed(remember, torch.zeros(6, 7), torch.arange(6.0)[:, None].expand(6, 3), torch.arange(9) % 7)


def test_a_position_whose_nearest_neighbour_is_a_matter_of_rounding_is_no_error() -> None:
    def tied(log_probs: torch.Tensor, hidden: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        result = log_probs.clone()
        if len(log_probs) > 1:
            result[0] = result[0].roll(1)
        return result

    logits = 5 * torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    for _ in range(50):  # the positions that are looked at are drawn
        mixed(tied, logits, torch.zeros(9, 3), torch.arange(9) % 7)


def test_a_little_mass_on_the_token_that_follows_is_seen_too() -> None:
    """It would be below what rounding moves in all, and yet lower the NLL by nats."""
    ids, spread = torch.arange(9) % 7, torch.full((6, 7), -20.0)
    spread[:, 0] = 0.0  # all other tokens are unlikely

    def peek(log_probs: torch.Tensor, hidden: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        if len(log_probs) == 1:
            return log_probs
        following = torch.zeros_like(log_probs).scatter_(1, ids[4:][:, None], 0.015)  # of all positions but the last
        return (0.985 * log_probs.exp() + following).log() if len(following) == 5 else log_probs

    def mostly(log_probs: torch.Tensor, hidden: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        return log_probs if len(log_probs) == 1 else torch.cat([peek(log_probs[:5], hidden, seen), log_probs[5:]])

    def score_often() -> None:
        for _ in range(50):  # the position that is looked at is drawn
            mixed(mostly, spread, torch.zeros(6, 3), ids)

    with pytest.raises(RunError, match=r"nats at the token that follows"):
        score_often()


def test_hidden_states_are_those_that_predict_each_token_in_every_window(lm: BaseModel) -> None:
    head = lm.model.get_output_embeddings()
    for text in ("", TEXT[0], " ".join(TEXT * 40)):
        document = Document("d", text)
        hidden = lm.hidden(document)
        batch = lm.tokens(document)
        assert hidden.shape == (len(batch), lm.model.config.hidden_size) and not hidden.requires_grad
        predicted = head(hidden).log_softmax(-1).gather(1, batch.token_ids[:, None])[:, 0]
        torch.testing.assert_close(predicted, lm.log_probs(batch.token_ids).detach(), atol=1e-4, rtol=1e-4)

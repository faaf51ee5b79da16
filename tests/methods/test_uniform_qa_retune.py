"""Uniform fine-tuning with a tuning at probes that is undone completely: that of an experiment with ``retune``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import Document, Episode, Question
from bench.answering.retune import Retune
from bench.data.documents import Entry, GoldQuestion
from bench.harness.loop import Loop
from bench.lm.base_model import BaseModel
from methods import uniform_qa_retune
from methods.uniform import Uniform
from methods.uniform_qa_retune import UniformQaRetune
from tests.conftest import TEXT

GOLDS = (GoldQuestion(Question("q", "When did it open?"), ("1983",)),)
ENTRIES = [Entry(Document(str(i), text), GOLDS) for i, text in enumerate(TEXT)]
DOCUMENTS = [entry.document for entry in ENTRIES]
EPISODES = [
    Episode(Document(f"q{i}", f"Mill {i}."), (Question(str(i), f"When did mill {i} open?"),), ((str(1900 + i),),))
    for i in range(6)
]
RETUNE = Retune(steps=4, rate=1e-3)


@pytest.fixture
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def make(lm: BaseModel) -> UniformQaRetune:
    method = UniformQaRetune(lm, UniformQaRetune.Config(learning_rate=1e-3, retune=RETUNE), seed=3)
    method.fit(EPISODES)
    return method


def test_it_is_uniform_with_the_retuning_of_an_experiment(lm: BaseModel) -> None:
    options = {"anchor": ENTRIES[:1], "probes": (0.5, 1.0), "seed": 3}
    own = Loop(make(lm), ENTRIES, DOCUMENTS, **options)  # type: ignore[arg-type]
    own.run()
    uniform = Uniform(lm, Uniform.Config(learning_rate=1e-3), seed=3)
    shared = Loop(uniform, ENTRIES, DOCUMENTS, retune=RETUNE, qa_train=EPISODES, **options)  # type: ignore[arg-type]
    shared.run()
    assert own.answer_events == shared.answer_events
    assert [event.nll for event in own.document_events] == [event.nll for event in shared.document_events]
    plain = Loop(uniform, ENTRIES, DOCUMENTS, **options)  # type: ignore[arg-type]
    plain.run()
    assert [event.nll for event in plain.answer_events] != [event.nll for event in own.answer_events]
    assert [event.nll for event in plain.document_events] == [event.nll for event in own.document_events]


def test_a_probe_tunes_once_for_stream_and_anchor_questions(lm: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    method, calls, original = make(lm), [], uniform_qa_retune.retuned

    def counted(*arguments: object) -> object:
        calls.append(arguments)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(uniform_qa_retune, "retuned", counted)
    Loop(method, ENTRIES, DOCUMENTS, anchor=ENTRIES[:1], probes=(1.0,)).run()
    assert len(calls) == 2, "once before the first document and once at the end"


def test_its_state_is_the_same_after_answering(lm: BaseModel) -> None:
    method = make(lm)
    method.reset()
    for document in DOCUMENTS:
        method.observe(document)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    with method.answering():
        assert not torch.equal(method.state_dict()["model.lm_head.weight"], before["model.lm_head.weight"])
    after = method.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)

"""Token events hold the weights that were used and the class of each token, and change no result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import Document, GradientMethod, TokenBatch
from bench.data import tagger
from bench.data.documents import Entry, GoldQuestion, Question
from bench.harness import token_notes
from bench.harness.loop import Loop
from bench.lm.base_model import BaseModel
from bench.records.schema import TokenEvent
from bench.records.store import read_run, read_tokens
from bench.run.runner import Runner
from tests.conftest import TEXT
from tests.world import Inline, make_dataset, make_experiment

PLUGIN = """
import torch
from bench import GradientMethod

class Longer(GradientMethod):
    '''Weights each token by its length.'''
    name = "longer"
    paper = "none"

    def token_weights(self, batch):
        return torch.tensor([float(end - start) for start, end in batch.offsets])
"""
STREAMS = {"split": "test", "documents": 3, "count": 1}


class Counting(GradientMethod):
    """Weights each token by the number of calls so far and by chance, so that an additional call would show."""

    name = "counting"
    paper = "none"
    calls = 0

    def reset(self) -> None:
        super().reset()
        self.calls = 0

    def token_weights(self, batch: TokenBatch) -> Tensor:
        self.calls += 1
        return self.calls + torch.rand(len(batch))


class Plain(GradientMethod):
    """Weights all tokens the same."""

    name = "plain"
    paper = "none"


ENTRIES = tuple(Entry(Document(f"d{i}", f"{text} {i}")) for i, text in enumerate(TEXT))


@pytest.fixture
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def run_loop(
    method: GradientMethod, entries: Sequence[Entry] = ENTRIES, segment_tokens: int | None = None, **options: Any
) -> Loop:
    method.experiment_segment_tokens = segment_tokens
    loop = Loop(method, entries, [e.document for e in entries], **options)
    loop.run()
    return loop


def counting(lm: BaseModel) -> Counting:
    return Counting(lm, Counting.Config(optimizer="sgd", learning_rate=1e-2, steps_per_document=2))


def test_the_weights_that_were_used_are_noted_and_computed_once(lm: BaseModel) -> None:
    method = counting(lm)
    loop = run_loop(method)
    assert [int(min(event.weights)) for event in loop.token_events] == [1, 2, 3]
    assert method.calls == 3
    assert "token_weights" not in vars(method)


def test_noting_changes_no_result(lm: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    gold = GoldQuestion(Question("q", "Who saw the lighthouse?"), ("nobody",))
    entries = [replace(entry, questions=(gold,)) for entry in ENTRIES]
    noted = run_loop(counting(lm), entries)
    monkeypatch.setattr(token_notes, "NOTED_DOCUMENTS", 0)
    silent = run_loop(counting(lm), entries)
    assert (len(noted.token_events), silent.token_events) == (3, [])
    assert noted.summary() == silent.summary()
    assert noted.answer_events == silent.answer_events


def test_a_hook_set_on_the_instance_is_left_in_place(lm: BaseModel) -> None:
    method = counting(lm)
    method.token_weights = lambda batch: torch.full((len(batch),), 0.5)  # type: ignore[method-assign]
    assert {weight for event in run_loop(method).token_events for weight in event.weights} == {0.5}
    assert vars(method)["token_weights"](lm.tokens(ENTRIES[0].document))[0] == 0.5


def test_the_scores_of_tokens_add_up_to_the_documents(lm: BaseModel) -> None:
    loop = run_loop(counting(lm))
    for tokens, document in zip(loop.token_events, loop.document_events, strict=True):
        assert tokens.nll is not None
        assert (sum(tokens.nll), len(tokens.nll)) == (pytest.approx(document.nll, rel=1e-4), document.tokens)
    assert [event.nll for event in run_loop(counting(lm), scoring=False).token_events] == [None] * 3


def test_segments_of_a_document_make_one_event(lm: BaseModel) -> None:
    entries = [Entry(e.document, facts=((40, 44), (60, 66))) for e in ENTRIES]
    whole, cut = run_loop(counting(lm), entries), run_loop(counting(lm), entries, segment_tokens=7)
    for one, other in zip(whole.token_events, cut.token_events, strict=True):
        assert one.model_dump(include={"position", "pieces", "classes"}) == other.model_dump(
            include={"position", "pieces", "classes"}
        )
        assert len(one.weights) == len(other.weights) == len(one.pieces)
    assert int(max(cut.token_events[0].weights)) > 1, "each segment was weighted separately"


def test_a_document_with_a_segment_that_was_not_learned_is_left_out(lm: BaseModel) -> None:
    class First(Counting):
        def observe(self, document: Document) -> None:
            if not getattr(document, "context_ids", ()):
                super().observe(document)

    assert run_loop(First(lm), segment_tokens=7).token_events == []
    assert len(run_loop(First(lm)).token_events) == 3


def test_equal_weights_and_placebo_documents_are_not_noted(lm: BaseModel) -> None:
    assert run_loop(Plain(lm)).token_events == []
    other = Loop(counting(lm), ENTRIES, [entry.document for entry in ENTRIES[::-1]][1:])
    other.run()
    assert other.token_events == []


def test_only_the_first_documents_are_noted(lm: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_notes, "NOTED_DOCUMENTS", 2)
    assert [event.position for event in run_loop(counting(lm)).token_events] == [0, 1]


@pytest.mark.parametrize("segment_tokens", [None, 7])
def test_norms_of_gradients_are_those_before_the_update_one_token_at_a_time(
    lm: BaseModel, llama: Path, segment_tokens: int | None
) -> None:
    noted = run_loop(counting(lm), segment_tokens=segment_tokens, gradient_norms=2)
    assert [event.gradient_norms is None for event in noted.token_events] == [False, False, True]
    base = BaseModel.load(str(llama)).model.requires_grad_(True)
    ids = torch.cat([torch.tensor([lm.bos_id]), lm.encode(ENTRIES[0].document.text)])
    by_hand = []
    for i in range(1, 8):
        base.zero_grad()
        torch.log_softmax(base(ids[None, :i]).logits[0, -1], -1)[ids[i]].backward()
        by_hand.append(sum(float(p.grad.square().sum()) for p in base.parameters() if p.grad is not None) ** 0.5)
    norms = noted.token_events[0].gradient_norms
    assert norms is not None and norms[:7] == pytest.approx(by_hand, rel=1e-4)


def test_noting_gradients_changes_no_result(lm: BaseModel) -> None:
    noted, silent = run_loop(counting(lm), gradient_norms=3), run_loop(counting(lm))
    assert [event.weights for event in noted.token_events] == [event.weights for event in silent.token_events]
    assert noted.summary() == silent.summary()


class TestClasses:
    TEXT = "Zirk Mills opened in 1983; Zirkon too."

    def classes(self, *spans: tuple[int, int], facts: Sequence[tuple[int, int]] = (), group: str = "") -> str:
        entry = Entry(Document("d", self.TEXT), facts=tuple(facts), group=group)
        return " ".join(token_notes.classes(entry, spans))

    def test_a_fact_has_any_character_of_its_span(self) -> None:
        start = self.TEXT.index("1983")
        spans = [(start - 3, start), (start - 1, start + 1), (start + 3, start + 4), (start + 4, start + 5)]
        assert self.classes(*spans, facts=[(start, start + 4)]) == "filler fact fact filler"

    def test_a_name_is_a_whole_word(self) -> None:
        spans = [(0, 2), (2, 4), (4, 10), (27, 31)]  # the last is in Zirkon
        assert self.classes(*spans, group="Zirk") == "name name filler filler"

    def test_a_fact_ranks_above_a_name(self) -> None:
        assert self.classes((0, 2), (0, 4), facts=[(2, 4)], group="Zirk") == "name fact"

    def test_a_token_without_characters_is_filler(self) -> None:
        assert self.classes((0, 0), facts=[(0, 4)]) == "filler"

    def test_a_group_is_not_a_pattern(self) -> None:
        assert self.classes((0, 4), group="Z(.rk") == "filler"


@pytest.mark.parametrize("text", ["Émile saw 🦦🦦 at noon.", "  two  spaces\n\nand lines ", "plain"])
def test_pieces_laid_end_to_end_are_the_text(lm: BaseModel, text: str) -> None:
    batch = lm.tokens(Document("d", text))
    assert "".join(token_notes.pieces(text, batch.offsets)) == text
    assert len(token_notes.pieces(text, batch.offsets)) == len(batch)


def test_uncovered_text_goes_with_the_next_token() -> None:
    assert token_notes.pieces("a bc  d", [(0, 1), (2, 4), (2, 4), (6, 7)]) == ("a", " bc", "", "  d")


def test_a_token_has_the_tag_of_most_of_its_characters() -> None:
    tags = [(0, 3, "DET"), (4, 9, "NOUN"), (9, 10, "PUNCT")]
    spans = [(0, 3), (2, 6), (8, 10), (3, 4), (3, 10)]
    assert token_notes.parts_of_speech(tags, "The ferry.", spans) == ("DET", "NOUN", "NOUN", "X", "NOUN")


def test_parts_of_speech_come_from_the_tagger_that_is_there(lm: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tagger(tagger.RuleTagger):
        def parts_of_speech(self, text: str) -> Any:
            return [(0, len(text), "NOUN")]

    monkeypatch.setattr(token_notes, "load_tagger", lambda _: tagger.RuleTagger())
    assert [event.pos for event in run_loop(counting(lm)).token_events] == [None] * 3
    monkeypatch.setattr(token_notes, "load_tagger", lambda _: Tagger())
    assert {tag for event in run_loop(counting(lm)).token_events for tag in event.pos or ()} == {"NOUN"}


def test_only_methods_that_weight_tokens_have_token_events_on_disk(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    methods = [
        {"name": name, "config": {"learning_rate": 1e-3, "steps_per_document": 1}} for name in ("longer", "uniform")
    ]
    experiment = make_experiment(make_dataset(tmp_path / "keepers"), llama, methods, streams=STREAMS, anchor={})
    runs = tmp_path / "runs"
    Runner(experiment, runs, [str(tmp_path / "plugin.py")]).run(Inline())
    for folder in runs.glob("longer-stream-*"):
        events = read_tokens(runs, folder.name)
        assert events and "tokens.jsonl" in read_run(folder).files
        assert {event.document_id for event in events} and all(max(event.weights) > 1 for event in events)
        assert {len(event.weights) == len(event.pieces) == len(event.classes) for event in events} == {True}
    for folder in runs.glob("uniform-stream-*"):
        assert read_tokens(runs, folder.name) == []
        assert not (folder / "tokens.jsonl").exists()
    assert len(list(runs.glob("*-stream-*"))) == 2


def test_numbers_are_kept_to_six_digits(lm: BaseModel) -> None:
    event = run_loop(counting(lm)).token_events[0]
    assert TokenEvent.model_validate_json(event.model_dump_json()) == event
    assert all(float(f"{weight:.6g}") == weight for weight in event.weights)

"""The conformance suite catches the methods that break the contract, and only those."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.answering import metrics
from bench.conformance import fixtures, suite
from bench.conformance.loops import run
from bench.contract import registry
from bench.contract.gradient import GradientMethod
from bench.harness import loop

HERE = Path(__file__).parent
METHODS = {info.name: info for file in sorted(HERE.glob("*_methods/*.py")) for info in registry.methods_in(file)}

CAUGHT = [
    ("no_observe", "declares_itself", "does not implement observe"),
    ("undescribed", "config_is_sound", "Config.strength has no description"),
    ("loose_group", "config_is_sound", "Config.memory accepts unknown keys: derive Memory from bench.MethodConfig"),
    ("bad_space", "config_is_sound", "Correct the search space: learning_rate = -0.0001: Input should be greater"),
    ("broken_steps", "config_is_sound", "Correct the search space: steps_per_document = 2.1036"),
    ("adds_probability", "next_token_is_normalised", "probabilities that sum to 2: normalise them"),
    ("reads_the_next_token", "next_token_is_normalised", "another distribution than alone"),
    ("mutates_documents", "observe_only_reads", "changed a document"),
    ("marks_documents", "observe_only_reads", "changed a document"),
    ("returns_loss", "observe_only_reads", "returned a float"),
    ("is_never_fitted", "observe_only_reads", "AttributeError: 'IsNeverFitted' object has no attribute 'known'"),
    ("weighs_the_context", "observe_only_reads", "ValueError: token_weights has the shape ("),
    ("trains_the_base", "observe_only_reads", "Meta-training changed the base: outer_step and validate must leave it"),
    ("trains_unseeded", "same_seed_same_results", "weight, of the learner after training, differs between two runs"),
    ("one_for_all", "condition_fits_the_questions", "text has 1 entries for 12 questions: give one per question"),
    ("names_documents_to_come", "condition_fits_the_questions", "each entry must list ids of observed documents"),
    ("mutates_questions", "condition_fits_the_questions", "changed a question"),
    ("unseeded", "same_seed_same_results", "seeded with self.seed"),
    ("unseeded_start", "same_seed_same_results", "(tensor method.memory) differs between two runs"),
    ("remembers_the_last_pass", "same_seed_same_results", "class or module variables"),
    ("peeks_ahead", "blind_to_the_future", "depends on later documents"),
    ("remembers_the_last_pass", "blind_to_the_future", "depends on later documents"),
    ("reads_answers", "blind_to_the_answers", "depends on the reference answers"),
    ("keeps_the_frame", "blind_to_the_answers", "Reference answers can be reached from the method"),
    ("flatters_itself", "scored_before_update", "but the model before observing it gives"),
    ("pools_over_the_text", "scores_read_only_the_past", "depends on later tokens"),
    ("counts_questions", "probes_leave_no_trace", "(tensor method.count) depends on questions asked earlier"),
    *(
        (name, "probes_leave_no_trace", f"{weights} changed while questions were answered. What condition or answering")
        for name, weights in (
            ("learns_from_questions", "The weights lm_head.weight"),
            ("leaks_from_answering", "The weights lm_head.weight"),
            ("undoes_roughly", "The weights lm_head.weight"),
            ("writes_at_the_end", "The weights model.norm.weight"),
        )
    ),
    ("loses_what_waits", "flush_leaves_no_state", "keep everything that flush changes"),
    ("leaks_adapters", "question_weights_do_not_leak", "changes when other questions are asked beside it"),
    ("saves_numbers", "state_survives_saving", "'count' of type int, which cannot be saved"),
    ("forgets_the_texts", "state_survives_saving", "state_dict must return the whole state"),
    ("loads_nothing", "state_survives_saving", "differs after load_state_dict"),
    *(
        (name, "resumes_in_mid_stream", "state_dict must return the whole state")
        for name in (
            "forgets_the_step",
            "updates_every_second",
            "updates_every_fourth",
            "updates_every_eighth",
            "updates_every_sixteenth",
            "updates_late",
            "rehearses_the_first",
        )
    ),
    ("never_restores", "reset_forgets", "reset does not restore the tensor model.lm_head.weight"),
    ("unlearns", "reset_forgets", "loses what fit learned in the tensor method.memory"),
    ("hoards_texts", "reset_forgets", "before the last reset"),
    ("hoards_tensor", "reset_forgets", "before the last reset"),
    ("keeps_archive", "reset_forgets", "once the documents with the answers were observed before the last reset"),
    ("hoards_texts", "no_text_survives_reset", "from self.texts"),
    ("keeps_in_module", "no_text_survives_reset", "from keeps_texts.SEEN"),
    ("keeps_in_class", "no_text_survives_reset", "from KeepsInClass.seen"),
    ("keeps_in_default", "no_text_survives_reset", "from remember"),
    ("keeps_in_cache", "no_text_survives_reset", "from keeps_texts.length"),
    ("keeps_in_helper", "no_text_survives_reset", "from Shelf.texts"),
    ("keeps_in_closure", "no_text_survives_reset", "from make_keeper.<locals>.keep"),
    ("keeps_tokens", "no_text_survives_reset", "from keeps_texts.TOKENS"),
    ("keeps_words", "no_text_survives_reset", "from keeps_texts.WORDS"),
    ("keeps_bytes", "no_text_survives_reset", "from self.kept"),
    ("keeps_questions", "no_text_survives_reset", "from KeepsQuestions.asked"),
    ("leaves_hook", "base_is_restored", "hooks"),
    ("flatters_itself", "base_is_restored", "lm.window_log_probs was added"),
    ("adds_tokens", "base_is_restored", "the tokenizer"),
    ("pads_on_the_left", "base_is_restored", "pad"),
    ("shortens_the_window", "base_is_restored", "max_position_embeddings changed from 256 to 128"),
    ("wraps_the_forward", "base_is_restored", "lm.model.forward was added"),
    ("watches_a_layer", "base_is_restored", "lm.model.model.norm._forward_hooks"),
    ("hooks_a_weight", "base_is_restored", "hooks"),
    ("leaves_a_note", "base_is_restored", "lm.model.documents_seen was added"),
    ("reads_three_tokens", "base_is_restored", "lm.encode"),
    ("switches_gradients_off", "base_is_restored", "torch.is_grad_enabled() changed from True to False"),
    ("wants_doubles", "base_is_restored", "torch.get_default_dtype() changed from 'torch.float32' to 'torch.float64'"),
    ("wants_determinism", "base_is_restored", "torch.are_deterministic_algorithms_enabled() changed"),
    ("replaces_metrics", "base_is_restored", "bench.answering.metrics.score was replaced"),
    ("replaces_decoding", "base_is_restored", "bench.harness.loop.answer_and_nll was replaced"),
    ("replaces_the_loop", "base_is_restored", "bench.harness.loop.Loop.score was replaced"),
    ("drops_the_seed", "observe_only_reads", "TypeError: drops_the_seed drops its settings or its seed: pass config"),
    ("exits", "observe_only_reads", "SystemExit: 0 (careless.py, line 259). A method must not end the process."),
    ("fails_on_empty", "reads_odd_documents", "IndexError: index 0 is out of bounds"),
    ("wants_float32", "runs_in_bfloat16", "(careless.py, line "),
    ("casts_the_base", "runs_in_bfloat16", "keep its weights in float32"),
]
"""A method, the check that must fail on it, and a part of the message."""


@pytest.fixture(autouse=True)
def undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what the methods of changes_the_base.py do to the harness and to torch."""
    for owner, name in ((metrics, "score"), (loop, "answer_and_nll"), (loop.Loop, "score")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    yield
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("method", "check", "reason"), CAUGHT)
def test_a_bad_method_is_caught_by_the_check_meant_for_it(method: str, check: str, reason: str) -> None:
    verdict = suite.examine(METHODS[method], check)
    assert not verdict.passed and not verdict.skipped
    assert reason in verdict.message
    assert verdict.line() == f"FAIL  {method}  {check}: {verdict.message}" and "\n" not in verdict.line()


def test_every_check_is_shown_to_catch_something() -> None:
    assert {check for _, check, _ in CAUGHT} == {"declares_itself", *suite.CHECKS}


@pytest.mark.parametrize("method", ["mutates_documents", "counts_questions", "forgets_the_step"])
def test_a_bad_method_fails_no_check_that_has_nothing_to_do_with_it(method: str) -> None:
    failed = {o.check for name in suite.CHECKS if not (o := suite.examine(METHODS[method], name)).passed}
    assert failed == {check for name, check, _ in CAUGHT if name == method}


@pytest.mark.parametrize(
    "method", ["counts_words", "learns_in_pairs", "question_adapters", "reads_in_segments", "carries_a_cache"]
)
def test_a_sound_method_passes_every_check(method: str) -> None:
    """Of kinds that no registered method is of."""
    verdicts = [suite.examine(METHODS[method], name) for name in suite.CHECKS]
    assert [verdict.line() for verdict in verdicts if not verdict.passed or verdict.skipped] == []


def test_peeking_improves_scores_and_is_worth_catching() -> None:
    entries = fixtures.entries()
    scores = []
    for kind in (registry.load(METHODS["returns_loss"]), registry.load(METHODS["peeks_ahead"])):
        assert issubclass(kind, GradientMethod)
        method = kind(fixtures.base_model(), kind.Config(learning_rate=3e-3))
        scores.append(run(method, entries).summary().token_nll)
    honest, peeking = scores
    assert honest is not None and peeking is not None
    assert peeking < 0.9 * honest

"""Methods that change the base, torch's settings or the harness, and leave them changed."""

from collections.abc import Sequence
from typing import Any

import torch

from bench import Conditioning, Document, GradientMethod, Method, Question
from bench.answering import metrics
from bench.contract.config import MethodConfig
from bench.harness import loop
from bench.lm.base_model import BaseModel


class AddsTokens(Method):
    """Adds tokens of its own to the tokenizer, as markers."""

    name = "adds_tokens"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        lm.tokenizer.add_tokens(["the", "question"])

    def observe(self, document: Document) -> None:
        pass


class PadsOnTheLeft(Method):
    """Sets the tokenizer's padding for its own batches."""

    name = "pads_on_the_left"
    paper = "none"

    def observe(self, document: Document) -> None:
        self.lm.tokenizer.padding_side = "left"
        self.lm.tokenizer.pad_token = self.lm.tokenizer.eos_token


class ShortensTheWindow(Method):
    """Reads with a shorter window, set in the model's configuration."""

    name = "shortens_the_window"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        lm.model.config.max_position_embeddings = 128

    def observe(self, document: Document) -> None:
        pass


class WrapsTheForward(Method):
    """Wraps the forward of the base for the time of the stream."""

    name = "wraps_the_forward"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        forward = type(lm.model).forward

        def sharpened(*inputs: Any, **options: Any) -> Any:
            output = forward(lm.model, *inputs, **options)
            output.logits = output.logits * 1.5
            return output

        lm.model.forward = sharpened

    def observe(self, document: Document) -> None:
        pass


class WatchesALayer(Method):
    """Registers a hook that only reads, at the first document."""

    name = "watches_a_layer"
    paper = "none"
    largest = 0.0

    def observe(self, document: Document) -> None:
        if not self.lm.model.model.norm._forward_hooks:
            self.lm.model.model.norm.register_forward_hook(self._watch)

    def _watch(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
        self.largest = max(self.largest, output.max().item())


class HooksAWeight(GradientMethod):
    """Scales a weight's gradients by a hook that it does not remove."""

    name = "hooks_a_weight"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        lm.model.lm_head.weight.register_hook(lambda gradient: gradient / 2)


class LeavesANote(Method):
    """Keeps a counter as an attribute of the model."""

    name = "leaves_a_note"
    paper = "none"

    def observe(self, document: Document) -> None:
        self.lm.model.documents_seen = 1


class ReadsThreeTokens(Method):
    """Replaces lm.encode, so that texts have three tokens at most."""

    name = "reads_three_tokens"
    paper = "none"

    def observe(self, document: Document) -> None:
        lm = self.lm
        encode = type(lm).encode
        lm.encode = lambda text: encode(lm, text)[:3]  # type: ignore[method-assign]


class SwitchesGradientsOff(Method):
    """Switches gradients off to save memory, and not on again."""

    name = "switches_gradients_off"
    paper = "none"

    def observe(self, document: Document) -> None:
        torch.set_grad_enabled(False)


class WantsDoubles(Method):
    """Makes float64 the default for its statistics."""

    name = "wants_doubles"
    paper = "none"

    def observe(self, document: Document) -> None:
        torch.set_default_dtype(torch.float64)


class WantsDeterminism(Method):
    """Asks torch for deterministic algorithms in its constructor."""

    name = "wants_determinism"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        torch.use_deterministic_algorithms(True, warn_only=True)

    def observe(self, document: Document) -> None:
        pass


class ReplacesMetrics(Method):
    """Replaces the function that scores answers by one that always gives the best score."""

    name = "replaces_metrics"
    paper = "none"

    def observe(self, document: Document) -> None:
        metrics.score = lambda *answer: dict.fromkeys(metrics.ANSWER_SCORES, 1.0)


class ReplacesDecoding(Method):
    """Replaces the harness's decoding by one that repeats the reference answers."""

    name = "replaces_decoding"
    paper = "none"

    def observe(self, document: Document) -> None:
        honest: Any = loop.answer_and_nll
        if not hasattr(honest, "repeats"):

            def repeat(lm: Any, prompts: Any, golds: Any, *options: Any) -> Any:
                answers, likelihoods = honest(lm, prompts, golds, *options)
                return [own._replace(text=gold) for own, gold in zip(answers, golds, strict=True)], likelihoods

            repeat.repeats = True  # type: ignore[attr-defined]
            loop.answer_and_nll = repeat


class ReplacesTheLoop(Method):
    """Replaces a method of the harness's loop when it is asked."""

    name = "replaces_the_loop"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        score = loop.Loop.score
        loop.Loop.score = lambda self, document: score(self, document)  # type: ignore[method-assign]
        return Conditioning()

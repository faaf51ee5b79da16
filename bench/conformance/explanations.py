"""What each conformance check does, the rule that it guards, and how to mend the usual slip.

Each example is the body of a method's class. ``tests/bench/conformance/test_explanations.py`` runs the check on both.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from bench.errors import BenchError


@dataclass(frozen=True)
class Explanation:
    """An explanation of one check."""

    does: str
    """What it does, in one line."""
    rule: str
    """The rule of docs/rules.md or of the contract that it guards."""
    slip: str
    """The usual slip, and how to mend it."""
    wrong: str = ""
    right: str = ""
    common: str = ""
    """What both examples share."""
    base: str = "Method"
    """The base class of the examples."""

    def text(self) -> str:
        """The explanation for a terminal, without the name of the check."""
        examples = {"In both": self.common, "Wrong": self.wrong, "Right": self.right}
        blocks = [f"{title}:\n{textwrap.indent(code, '    ')}" for title, code in examples.items() if code]
        return "\n\n".join([self.does, f"Rule: {self.rule}", f"The usual slip: {self.slip}", *blocks])


def _code(text: str) -> str:
    return textwrap.dedent(text).strip("\n")


EXPLANATIONS = {
    "declares_itself": Explanation(
        does="Imports the class and looks at what it declares.",
        rule="docs/rules.md, 3. What a method sees: what a method is and may see are constants of its class.",
        slip="The docstring or the paper is missing. Write both, and sees_evidence and control as plain constants.",
        wrong=_code("""
            class Newest(Method):
                name = "newest"

                def observe(self, document):
                    self.newest = document.text
        """),
        right=_code('''
            class Newest(Method):
                """Remembers the newest document. Costs nothing."""

                name = "newest"
                paper = "none"

                def observe(self, document):
                    self.newest = document.text
        '''),
    ),
    "config_is_sound": Explanation(
        does="Builds the default config, and tries values of the search space in it.",
        rule="docs/rules.md, 7. Tuning: a method declares its settings, and what is tuned lies within their bounds.",
        slip="A setting has no description, or the search space has values that the setting refuses. A Range contains "
        "fractions: list the choices of a setting that takes whole numbers.",
        wrong=_code("""
            class Config(MethodConfig):
                documents: int = 1
        """),
        right=_code("""
            class Config(MethodConfig):
                documents: int = pydantic.Field(default=1, ge=1, description="documents before each question")
        """),
    ),
    "observe_only_reads": Explanation(
        does="Looks at what observe returns, and compares the documents with copies.",
        rule="docs/rules.md, 1. The stream: everybody reads the same documents.",
        slip="observe returns its loss, or sets an attribute of the document. Keep what is learned in the state.",
        wrong=_code("""
            def observe(self, document):
                return self.lm.loss(document).item()
        """),
        right=_code("""
            def observe(self, document):
                self.last_loss = self.lm.loss(document).item()
        """),
    ),
    "condition_fits_the_questions": Explanation(
        does="Looks at length, type and shape of every field that condition returns.",
        rule="docs/rules.md, 3. What a method sees: a method decides what the model gets with each question.",
        slip="One text or prefix is given for all questions, or documents names ids that were not observed. Give one "
        "entry per question.",
        wrong=_code("""
            def condition(self, questions):
                return Conditioning(text=["The mill burned down."])
        """),
        right=_code("""
            def condition(self, questions):
                return Conditioning(text=["The mill burned down."] * len(questions))
        """),
    ),
    "next_token_is_normalised": Explanation(
        does="Sums the probabilities of mix_next_token at each position, and leaves out later tokens.",
        rule="docs/rules.md, 2. The loop: a token's probability is from a full softmax, and from the text before it.",
        slip="Log-probabilities are averaged, so that the probabilities do not sum to 1. Average the probabilities "
        "with logaddexp, or end with log_softmax(-1). And use the ids up to each position only.",
        wrong=_code("""
            def mix_next_token(self, log_probs, hidden, ids):
                even = torch.full_like(log_probs, -math.log(log_probs.shape[-1]))
                return 0.9 * log_probs + 0.1 * even
        """),
        right=_code("""
            def mix_next_token(self, log_probs, hidden, ids):
                even = torch.full_like(log_probs, -math.log(log_probs.shape[-1]))
                return torch.logaddexp(log_probs + math.log(0.9), even + math.log(0.1))
        """),
    ),
    "same_seed_same_results": Explanation(
        does="Runs two instances with the same seed, and compares scores, states and answers.",
        rule="docs/rules.md, 8. Trained weights and seeds: a seed stands for one result.",
        slip="Random numbers come from a generator without a seed, or the order of a set decides. Seed each draw with "
        "seed_for(self.seed, ...), which gives the same number in a run that was resumed.",
        wrong=_code("""
            def observe(self, document):
                noise = random.gauss(0, 0.01)
                self.lm.model.lm_head.weight.data.mul_(1 + noise)
        """),
        right=_code("""
            def observe(self, document):
                noise = random.Random(seed_for(self.seed, document.id)).gauss(0, 0.01)
                self.lm.model.lm_head.weight.data.mul_(1 + noise)
        """),
    ),
    "blind_to_the_future": Explanation(
        does="Runs two streams with the same first half, and compares everything until there.",
        rule="docs/rules.md, 2. The loop: one pass, left to right.",
        slip="A list of the class or the module still holds an earlier pass over the stream. Make it in reset instead.",
        common=_code("""
            def observe(self, document):
                self.texts.append(document.text)

            def condition(self, questions):
                return Conditioning(text=[" ".join(self.texts)] * len(questions))
        """),
        wrong=_code("""
            texts = []
        """),
        right=_code("""
            def reset(self):
                super().reset()
                self.texts = []
        """),
    ),
    "blind_to_the_answers": Explanation(
        does="Runs a stream with other gold answers, and searches all that the method can reach for them.",
        rule="docs/rules.md, 3. What a method sees: gold answers never leave the harness.",
        slip="The method keeps an object of the harness or a stack frame, from which answers can be reached. Keep "
        "texts, tensors and numbers.",
        wrong=_code("""
            def condition(self, questions):
                self.caller = sys._getframe(1)
                return Conditioning()
        """),
        right=_code("""
            def condition(self, questions):
                self.asked = len(questions)
                return Conditioning()
        """),
    ),
    "scored_before_update": Explanation(
        does="Computes every score again from the model itself, before the document is observed.",
        rule="docs/rules.md, 2. The loop: score before update.",
        slip="The method replaces a function of self.lm or of the model to change the probabilities. Override "
        "mix_next_token, which scoring and answering use alike.",
        wrong=_code("""
            def reset(self):
                super().reset()
                exact = type(self.lm).window_log_probs
                self.lm.window_log_probs = lambda *ids: (part / 2 for part in exact(self.lm, *ids))
        """),
        right=_code("""
            def mix_next_token(self, log_probs, hidden, ids):
                return (log_probs / 2).log_softmax(-1)
        """),
    ),
    "scores_read_only_the_past": Explanation(
        does="Scores half of each text alone and within the whole, under the adapted model.",
        rule="docs/rules.md, 2. The loop: a token's probability is from a full softmax, and from the text before it.",
        slip="A module that the method adds pools over all positions. Give it a causal mask, or pool up to each "
        "position.",
        common=_code("""
            hook = None

            def observe(self, document):
                self.hook = self.hook or self.lm.model.lm_head.register_forward_pre_hook(self.pool)

            def reset(self):
                if self.hook is not None:
                    self.hook.remove()
                self.hook = None
                super().reset()
        """),
        wrong=_code("""
            def pool(self, module, inputs):
                (states,) = inputs
                return (states + states.mean(1, keepdim=True),)
        """),
        right=_code("""
            def pool(self, module, inputs):
                (states,) = inputs
                before = torch.arange(1, states.shape[1] + 1)[:, None]
                return (states + states.cumsum(1) / before,)
        """),
    ),
    "probes_leave_no_trace": Explanation(
        does="Runs a stream with one probe and with two, and compares all that follows the additional one.",
        rule="docs/rules.md, 3. What a method sees: answering teaches nothing.",
        slip="condition changes the weights or the state. Change weights in answering or using, which undo it.",
        wrong=_code("""
            def condition(self, questions):
                self.lm.model.lm_head.weight.data.mul_(1.01)
                return Conditioning()
        """),
        right=_code("""
            @contextmanager
            def answering(self):
                weight = self.lm.model.lm_head.weight
                before = weight.detach().clone()
                weight.data.mul_(1.01)
                try:
                    yield
                finally:
                    weight.data.copy_(before)
        """),
    ),
    "flush_leaves_no_state": Explanation(
        does="Calls flush after every document and loads the state from before it: nothing may change.",
        rule="docs/rules.md, 3. What a method sees: answering teaches nothing.",
        slip="flush empties a list that state_dict does not hold, so it stays empty after the probe. Save the list.",
        base="GradientMethod",
        common=_code("""
            def reset(self):
                super().reset()
                self.waiting = []

            def observe(self, document):
                self.waiting.append(document)
                if len(self.waiting) == 4:
                    self.flush()

            def flush(self):
                for document in self.waiting:
                    super().observe(document)
                self.waiting = []
        """),
        wrong=_code("""
            def state_dict(self):
                return super().state_dict()
        """),
        right=_code("""
            def state_dict(self):
                return {**super().state_dict(), "waiting": packed([document.text for document in self.waiting])}

            def load_state_dict(self, state):
                super().load_state_dict(state)
                self.waiting = [Document("", text) for text in unpacked(state["waiting"])]
        """),
    ),
    "question_weights_do_not_leak": Explanation(
        does="Asks each question alone and among others with other weights, and compares the answers.",
        rule="docs/rules.md, 3. What a method sees: weights that are changed for a question are restored, bit for bit.",
        slip="using multiplies and then divides, or restores nothing. Keep a copy and write it back, also if an error "
        "is raised.",
        common=_code("""
            def condition(self, questions):
                return Conditioning(weights=[question.text.startswith("When") for question in questions])
        """),
        wrong=_code("""
            @contextmanager
            def using(self, key):
                self.lm.model.lm_head.weight.data.mul_(3 if key else 1)
                yield
        """),
        right=_code("""
            @contextmanager
            def using(self, key):
                weight = self.lm.model.lm_head.weight
                before = weight.detach().clone()
                weight.data.mul_(3 if key else 1)
                try:
                    yield
                finally:
                    weight.data.copy_(before)
        """),
    ),
    "state_survives_saving": Explanation(
        does="Saves the state after a stream, loads it into a fresh instance, and compares states and answers.",
        rule="bench/contract/method.py: all that a method remembers is in its state, so that a run can be resumed.",
        slip="Texts are kept in a list that state_dict does not hold. packed makes a tensor of plain data.",
        common=_code("""
            def reset(self):
                super().reset()
                self.texts = []

            def observe(self, document):
                self.texts.append(document.text)

            def condition(self, questions):
                return Conditioning(text=[" ".join(self.texts)] * len(questions))
        """),
        wrong=_code("""
            def state_dict(self):
                return super().state_dict()
        """),
        right=_code("""
            def state_dict(self):
                return {**super().state_dict(), "texts": packed(self.texts)}

            def load_state_dict(self, state):
                super().load_state_dict(state)
                self.texts = unpacked(state["texts"])
        """),
    ),
    "resumes_in_mid_stream": Explanation(
        does="Goes on after every document with a fresh instance that has only the saved state.",
        rule="bench/contract/method.py: all that a method remembers is in its state, so that a run can be resumed.",
        slip="A counter is a plain number, which nobody saves. Register it as a tensor.",
        base="GradientMethod",
        common=_code("""
            def observe(self, document):
                self.count = self.count + 1
                if self.count % 2 == 0:
                    super().observe(document)
        """),
        wrong=_code("""
            count = 0
        """),
        right=_code("""
            def __init__(self, *args):
                super().__init__(*args)
                self.register("count", torch.zeros(()))
        """),
    ),
    "reset_forgets": Explanation(
        does="Compares states, weights and later runs before and after a stream and a reset.",
        rule="docs/rules.md, 2. The loop: every stream starts with a method that was reset.",
        slip="An override of reset does not call super().reset(), which restores the base and the registered tensors. "
        "Or state_dict needs an attribute that only reset makes: it is also called before the first reset.",
        common=_code("""
            def observe(self, document):
                self.lm.model.lm_head.weight.data.mul_(1.01)
        """),
        wrong=_code("""
            def reset(self):
                self.texts = []
        """),
        right=_code("""
            def reset(self):
                super().reset()
                self.texts = []
        """),
    ),
    "no_text_survives_reset": Explanation(
        does="Searches all that the method and its modules can reach after a reset for earlier texts.",
        rule="docs/rules.md, 2. The loop: every stream starts with a method that was reset.",
        slip="Texts are in a list of the class or the module, or in a cache of a function. Make the list in reset, and "
        "clear the cache there.",
        common=_code("""
            def observe(self, document):
                self.texts.append(document.text)
        """),
        wrong=_code("""
            texts = []
        """),
        right=_code("""
            def reset(self):
                super().reset()
                self.texts = []
        """),
    ),
    "base_is_restored": Explanation(
        does="Compares base, tokenizer, harness and torch, after a reset, with what they were before.",
        rule="docs/rules.md, 3. What a method sees: what a method does to its process stays there.",
        slip="A hook, a wrapper or a switch of torch is left behind. Remove it where it was made, or in reset.",
        wrong=_code("""
            def observe(self, document):
                self.lm.model.lm_head.register_forward_hook(lambda module, inputs, output: output)
                self.lm.loss(document)
        """),
        right=_code("""
            def observe(self, document):
                handle = self.lm.model.lm_head.register_forward_hook(lambda module, inputs, output: output)
                self.lm.loss(document)
                handle.remove()
        """),
    ),
    "reads_odd_documents": Explanation(
        does="Observes empty, long, repeated and odd texts and segments; the state must stay finite.",
        rule="docs/rules.md, 2. The loop: texts are text, and documents may come in segments.",
        slip="The first token of an empty text is read, or a mean is taken over no tokens.",
        wrong=_code("""
            def observe(self, document):
                self.first = int(self.lm.encode(document.text)[0])
        """),
        right=_code("""
            def observe(self, document):
                ids = self.lm.encode(document.text)
                self.first = int(ids[0]) if len(ids) else None
        """),
    ),
    "runs_in_bfloat16": Explanation(
        does="Runs a stream on a base that computes in bfloat16, and looks at the type of its weights.",
        rule="docs/rules.md, 2. The loop: weights are kept in float32, and passes run under autocast.",
        slip="The method casts the weights, or multiplies float32 tensors by activations in bfloat16. Cast the "
        "activations with float(), or compute inside self.lm.autocast().",
        wrong=_code("""
            def observe(self, document):
                logits = self.lm.model(input_ids=self.lm.tokens(document).context_ids[None]).logits[0]
                self.total = torch.ones(1, len(logits)) @ logits
        """),
        right=_code("""
            def observe(self, document):
                logits = self.lm.model(input_ids=self.lm.tokens(document).context_ids[None]).logits[0]
                self.total = torch.ones(1, len(logits)) @ logits.float()
        """),
    ),
    "is_tried_out": Explanation(
        does="Fails if every check that runs the method was skipped.",
        rule="docs/rules.md, 15. What the benchmark does not prevent: the check shows something only if it runs the "
        "method.",
        slip="The method asks for a package or a file that is missing here. Install what its message names, or let its "
        "default settings do without.",
    ),
}
"""The explanations by name of the check, in the order of the verdicts."""


def overview() -> str:
    """The names of all checks, each with what it does, on one line each."""
    width = max(map(len, EXPLANATIONS))
    return "\n".join(f"{name:<{width}}  {explanation.does}" for name, explanation in EXPLANATIONS.items())


def explain(name: str) -> str:
    """The explanation of a check.

    Raises:
        BenchError: there is no such check; the message lists all.
    """
    if name not in EXPLANATIONS:
        raise BenchError(f"There is no check called {name!r}. The checks are:\n{overview()}")
    return f"{name}\n\n{EXPLANATIONS[name].text()}"

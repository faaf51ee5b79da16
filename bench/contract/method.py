"""The contract between an adaptation method and the benchmark.

A method is one class in one file. It must implement :meth:`Method.observe`; every other hook has a default.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic
import torch
from torch import Tensor

from bench.contract.config import MethodConfig, paths_in
from bench.contract.search import SearchSpace
from bench.data.documents import Document, Episode, Question
from bench.errors import BenchError, first_problem
from bench.lm.base_model import BaseModel
from bench.lm.probe import Ability
from bench.lm.reading import Reading


@dataclass(frozen=True)
class Conditioning:
    """Input that the model gets with each question: one entry per question in every field that is used.

    - ``text[i]`` is put before question i, as the experiment's prompt format says: by default, with a newline between;
    - ``prefix_embeddings[i]``, shape (prefix length, hidden size), is a soft prompt before the question's tokens;
    - ``prefix_key_values[i]`` is one (keys, values) pair per layer, each (key/value heads, prefix length, head size).

    A prefix, of either kind but not both, comes before the text. Without any of these the question is answered closed
    book.

    ``documents[i]`` are the ids of the documents that this input was made from, the best first, each once: the harness
    records the rank of the right one.

    With ``weights``, question i is answered inside ``method.using(weights[i])``; questions of equal keys are answered
    together.

    With ``contrast`` = a, answers come from (1 + a) times the logits minus a times the logits of the bare question
    (context-aware decoding, Shi et al. 2024).
    """

    text: Sequence[str] | None = None
    prefix_embeddings: Sequence[Tensor] | None = None
    prefix_key_values: Sequence[Sequence[tuple[Tensor, Tensor]]] | None = None
    documents: Sequence[Sequence[str]] | None = None
    weights: Sequence[Hashable] | None = None
    contrast: float | None = None

    def __post_init__(self) -> None:
        if self.prefix_embeddings is not None and self.prefix_key_values is not None:
            raise ValueError("Conditioning takes one of prefix_embeddings and prefix_key_values, got both.")
        if self.contrast is not None and not 0 <= self.contrast < float("inf"):
            raise ValueError(f"Conditioning.contrast is {self.contrast}; it must be 0 or a positive number.")

    def rank(self, index: int, document_id: str) -> int | None:
        """Rank of a document, from 1, among those of question ``index``: 0 if absent, None if none are named."""
        if self.documents is None:
            return None
        ids = list(self.documents[index])
        return ids.index(document_id) + 1 if document_id in ids else 0


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of a segment's tokens from its scoring, a tensor per window, with their graph."""

    document: Document
    log_probs: Sequence[Tensor]


class Method(ABC):
    """A way to keep the base model ``self.lm`` up to date while documents stream past.

    The harness calls the hooks in this order::

        __init__ -> fit (if it learns_offline) -> reset
        for each document:  begin_document
            for each segment:  [score it: before_scoring if it learns_from_scoring] -> observe
        at each probe:  flush -> answering { condition -> using { [decode and score the answers] } } -> undo flush

    A document is one segment unless it is cut. Everything that a method remembers must be in the parameters of
    ``self.lm.model``, in tensors passed to :meth:`register`, or in what :meth:`state_dict` returns, so that a run can
    be saved and resumed. A complete method:

    >>> import torch
    >>> from bench import Conditioning, Document, Method, Question
    >>> class Newest(Method):
    ...     '''Puts the newest document before each question.'''
    ...
    ...     name = "newest"
    ...     paper = "none"
    ...
    ...     def __init__(self, *args):
    ...         super().__init__(*args)
    ...         self.register("ids", torch.zeros(0, dtype=torch.long))
    ...
    ...     def observe(self, document):
    ...         self.ids = self.lm.encode(document.text)
    ...
    ...     def condition(self, questions):
    ...         return Conditioning(text=[self.lm.tokenizer.decode(self.ids)] * len(questions))

    >>> from bench.conformance.fixtures import base_model  # a tiny one with random weights
    >>> method = Newest(base_model())
    >>> method.reset()
    >>> method.observe(Document("1", "The mill burned down."))
    >>> method.condition([Question("q", "What burned down?")]).text
    ['The mill burned down.']
    """

    name: ClassVar[str]
    """Name on the command line and on boards: lower-case letters, digits and underscores."""
    paper: ClassVar[str]
    """Citation key of the paper, or "none"."""
    sees_evidence: ClassVar[bool] = False
    """True for a control that gets each question with its document; every board marks it as a control.

    It is a fact about the class: neither a property nor an attribute of an instance.
    """
    control: ClassVar[bool] = False
    """True for a method that breaks a rule of the protocol, as an upper bound or a check; every board marks it."""
    learns_from: ClassVar[Literal["train", "qa_train"]] = "train"
    """The split whose episodes :meth:`fit` gets."""

    experiment_segment_tokens: int | None = None
    """Tokens of a segment as the experiment states them; None: whole documents. Set before :meth:`fit`."""
    scored: Scored | None = None
    """The scoring of the segment, handed over during :meth:`observe` if the method :attr:`learns_from_scoring`."""

    class Config(MethodConfig):
        """No hyper-parameters."""

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        self.lm = lm
        self.config: Any = config if config is not None else self.Config()
        self.seed = seed
        self._registered: dict[str, Tensor] = {}

    def register(self, name: str, tensor: Tensor) -> None:
        """Make ``tensor`` the attribute ``name`` and part of the saved state; :meth:`reset` restores this value."""
        self._registered[name] = tensor.detach().clone()
        setattr(self, name, tensor)

    def keep(self) -> None:
        """Let :meth:`reset` restore the registered tensors to their present values; called after :meth:`fit`."""
        self._registered = {name: getattr(self, name).detach().clone() for name in self._registered}

    def fit(self, episodes: Sequence[Episode]) -> None:
        """Learn offline from the split :attr:`learns_from` before the stream begins. Default: nothing.

        Store what is learned in registered tensors or in modules of the method: the base is restored afterwards.
        """

    @classmethod
    def learns_offline(cls, config: MethodConfig) -> bool:
        """True if :meth:`fit` must be called. Default: True if the method overrides it."""
        return cls.fit is not Method.fit

    @classmethod
    def search_space(cls, config: MethodConfig) -> SearchSpace:
        """Settings to tune on validation streams, with their values; ``config`` is the one that an experiment fixes.

        Settings that an experiment fixes are not tuned. Default: none.
        """
        return {}

    @classmethod
    def needs(cls, config: MethodConfig) -> Sequence[Ability]:
        """What the base must do beyond reading text. On a base that does not, the method is refused before any work.

        ``soft_prompts`` and ``key_value_prefixes`` are those of :class:`Conditioning`, ``carried_cache`` is that of
        :class:`Reading`, ``padding`` is for methods that read texts in padded batches, ``float_weights`` for those that
        change the base's weights, which a quantized or offloaded base does not allow, and ``gradients`` for those that
        learn something else through its layers, which an offloaded one does not. Default: nothing.
        """
        return ()

    @classmethod
    def depends_on(cls, config: MethodConfig) -> Mapping[str, str | Path]:
        """What else can change the method's numbers than its code and settings, the base and the data, by name.

        A path is a file or a folder that the method reads, and counts by its content. A text counts as it is: the name
        and version of a tagger, say. If any of it changes, the method's cells are run again. Default: the settings of
        type ``Path``.
        """
        return dict(paths_in(config))

    def reset(self) -> None:
        """Return to the state before the first document. Default: restore the base and the registered tensors."""
        self.lm.restore()
        for name, initial in self._registered.items():
            setattr(self, name, initial.clone())

    def begin_document(self) -> None:
        """Prepare for the next document, before its first segment is scored. Default: nothing."""

    @abstractmethod
    def observe(self, document: Document) -> None:
        """Adapt to a document (or segment). It has been scored already and will not come again."""

    def flush(self) -> None:
        """Learn what was observed but is not learned yet, before a probe. Default: nothing.

        For methods that learn every n documents. The harness saves the state before and loads it after the probe, so
        that the stream goes on as if nobody had asked.
        """

    def mix_next_token(self, log_probs: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
        """Give the next-token log-probabilities (T, V) that are used in place of the base's. Default: the base's.

        The harness calls it alike in scoring and in answering, for one text at a time. ``log_probs`` (T, V) are those
        of the base after the last T tokens of ``ids`` (n,), ``hidden`` (T, hidden size) is what the output layer reads
        there, both float32. The result must be normalised. At position t it may depend on ``hidden[t]`` and on the ids
        up to there, not on the later ones, which are the tokens to predict.
        """
        return log_probs

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        """Input for the model when it answers these questions. Default: none (closed book)."""
        return Conditioning()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Context in which the questions of a probe are answered. Undo on exit what changes on entry."""
        yield

    @contextmanager
    def using(self, key: Any) -> Iterator[None]:
        """Context in which the questions with this key of :attr:`Conditioning.weights` are answered.

        It may change the weights, and must restore them on exit, bit for bit.
        """
        yield

    @property
    def segment_tokens(self) -> int | None:
        """Tokens to score and observe at a time; None: whole documents. Default: as the experiment says."""
        return self.experiment_segment_tokens

    @property
    def reading(self) -> Reading:
        """Context of a segment when it is scored and learned. Default: everything before it that fits the window."""
        return Reading()

    @property
    def learns_from_scoring(self) -> bool:
        """True to get the scoring of the next segment, with its graph, as :attr:`scored`. Default: False."""
        return False

    def before_scoring(self) -> None:
        """Prepare for a scoring that is learned from: set which parameters need gradients. Default: nothing."""

    def notes(self) -> dict[str, Any]:
        """Facts about the run for its record (the tagger in use, a sparsity), as plain data. Default: none.

        Sentences under ``remarks`` stand below the board.
        """
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything learned since :meth:`reset`. Default: the model's weights and the registered tensors."""
        state = {f"model.{name}": value.detach().clone() for name, value in self.lm.named_tensors()}
        state.update({f"method.{name}": getattr(self, name).detach().clone() for name in self._registered})
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state that :meth:`state_dict` returned, so that the stream can continue from there.

        Raises:
            KeyError: a tensor of the model or a registered tensor is missing from ``state``.
        """
        with torch.no_grad():
            for name, value in self.lm.named_tensors():
                value.copy_(state[f"model.{name}"])
        for name, initial in self._registered.items():
            setattr(self, name, state[f"method.{name}"].detach().clone().to(initial.device))


def packed(value: Any) -> Tensor:
    """Plain data as a uint8 tensor for :meth:`Method.state_dict`: the bytes of its JSON, with any text."""
    encoded = bytearray(json.dumps(value, ensure_ascii=False), "utf-8", "surrogatepass")
    return torch.frombuffer(encoded, dtype=torch.uint8)


def unpacked(tensor: Tensor) -> Any:
    """The plain data in a tensor made by :func:`packed`, with lists for tuples."""
    return json.loads(bytes(tensor.cpu().numpy()).decode("utf-8", "surrogatepass"))


def validate_config(method: type[Method], settings: Mapping[str, Any]) -> MethodConfig:
    """The method's config with these settings.

    Raises:
        BenchError: an unknown key (with the nearest names) or a value out of bounds.
    """
    try:
        return method.Config(**settings)
    except pydantic.ValidationError as error:
        raise BenchError(first_problem(error, method.Config, method.name)) from None

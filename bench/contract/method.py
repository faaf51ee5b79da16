"""The contract between an adaptation method and the benchmark.

A method is one class in one file. It must implement :meth:`Method.observe`; every other hook has a default.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pydantic
import torch
from torch import Tensor

from bench.contract.config import MethodConfig
from bench.data.documents import Document, Episode, Question
from bench.errors import BenchError, nearest
from bench.lm.base_model import BaseModel
from bench.lm.reading import Reading


@dataclass(frozen=True)
class Conditioning:
    """What the model is given beside each question: one entry per question in every field that is used.

    - ``text[i]`` is put before question i, separated by a newline;
    - ``prefix_embeddings[i]``, shape (prefix length, hidden size), is a soft prompt before the question's tokens;
    - ``prefix_key_values[i]`` is one (keys, values) pair per layer, each (key/value heads, prefix length, head size).

    With none of these the question is answered closed book. Only one of them may be used at a time.

    ``documents[i]`` are the ids of the documents that stand behind what question i is given, the best first, each once:
    the harness records where the right one is among them.

    With ``contrast`` = a the model answers from (1 + a) times its logits minus a times those without any of the above
    (context-aware decoding, Shi et al. 2024).
    """

    text: Sequence[str] | None = None
    prefix_embeddings: Sequence[Tensor] | None = None
    prefix_key_values: Sequence[Sequence[tuple[Tensor, Tensor]]] | None = None
    documents: Sequence[Sequence[str]] | None = None
    contrast: float | None = None

    def __post_init__(self) -> None:
        used = [name for name in ("text", "prefix_embeddings", "prefix_key_values") if getattr(self, name) is not None]
        if len(used) > 1:
            raise ValueError(f"Conditioning takes one of text, prefix_embeddings and prefix_key_values, got {used}.")
        if self.contrast is not None and not 0 <= self.contrast < float("inf"):
            raise ValueError(f"Conditioning.contrast is {self.contrast}; it must be 0 or a positive number.")

    def rank(self, index: int, document_id: str) -> int | None:
        """Where a document is, from 1, among those behind question ``index``: 0 for nowhere, None if none are named."""
        if self.documents is None:
            return None
        given = list(self.documents[index])
        return given.index(document_id) + 1 if document_id in given else 0


class Method(ABC):
    """A way of keeping the base model ``self.lm`` up to date while documents stream past.

    The harness calls, for one cell: the constructor, :meth:`fit` (where the method :meth:`learns_offline`),
    :meth:`reset`, then :meth:`observe` once per document in stream order, and at each probe :meth:`condition`, inside
    :meth:`answering`. Whatever the method remembers must live in the parameters of ``self.lm.model``, in tensors given
    to :meth:`register`, or in what :meth:`state_dict` returns, so that a run can be saved and resumed.
    """

    name: ClassVar[str]
    """The name on the command line and on the board: lower case, digits and underscores."""
    paper: ClassVar[str]
    """Citation key of the paper, or "none"."""
    sees_evidence: ClassVar[bool] = False
    """True for controls that are given each question's document; they are marked as controls on every board."""
    learns_from: ClassVar[Literal["train", "qa_train"]] = "train"
    """The split whose episodes :meth:`fit` is given."""
    grid: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Config keys to tune on validation streams, each with its candidate values (the full product is tried)."""

    class Config(MethodConfig):
        """No hyper-parameters."""

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        self.lm = lm
        self.config: Any = config if config is not None else self.Config()
        self.seed = seed
        self._registered: dict[str, Tensor] = {}

    def register(self, name: str, tensor: Tensor) -> None:
        """Make ``tensor`` the attribute ``name`` and part of the saved state; :meth:`reset` returns to this value."""
        self._registered[name] = tensor.detach().clone()
        setattr(self, name, tensor)

    def keep(self) -> None:
        """Let :meth:`reset` return to the registered tensors' present values: called after :meth:`fit`."""
        self._registered = {name: getattr(self, name).detach().clone() for name in self._registered}

    def fit(self, episodes: Sequence[Episode]) -> None:
        """Learn offline from the train split before the stream begins (meta-training). Default: nothing.

        What it learns belongs in registered tensors or in modules of its own: the base's weights are restored after it.
        """

    @classmethod
    def learns_offline(cls, config: MethodConfig) -> bool:
        """Whether :meth:`fit` is to be called, the split that it learns from being needed: if the method has one."""
        return cls.fit is not Method.fit

    def reset(self) -> None:
        """Go back to the state before the first document. Default: the base's weights and the registered tensors."""
        self.lm.restore()
        for name, initial in self._registered.items():
            setattr(self, name, initial.clone())

    def begin_document(self) -> None:
        """The next document begins: called before its first segment is scored. Default: nothing."""

    @abstractmethod
    def observe(self, document: Document) -> None:
        """One document arrives: adapt to it. It has been scored already and will not come again."""

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        """What to give the model when it answers these questions. Default: nothing (closed book)."""
        return Conditioning()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Entered while the questions of a probe are answered. What changes on entry must be undone on leaving."""
        yield

    @property
    def segment_tokens(self) -> int | None:
        """Most tokens to score and observe at a time; None leaves it to the experiment (whole documents)."""
        return None

    @property
    def reading(self) -> Reading:
        """What each segment is read behind when it is scored and learned: by default all that fits the window."""
        return Reading()

    @property
    def learns_from_scoring(self) -> bool:
        """Whether the graph of a document's scoring forward is kept for :meth:`observe`; see ``lm.scored``."""
        return False

    def notes(self) -> dict[str, Any]:
        """Facts about this run that the record should keep (which tagger was found, a sparsity); plain data."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """All that was learned since :meth:`reset`: by default the model's weights and the registered tensors."""
        state = {f"model.{name}": value.detach().clone() for name, value in self.lm.named_tensors()}
        state.update({f"method.{name}": getattr(self, name).detach().clone() for name in self._registered})
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state that :meth:`state_dict` returned; then the stream goes on as if never interrupted.

        Raises:
            KeyError: a tensor of the model or a registered tensor is missing from ``state``.
        """
        with torch.no_grad():
            for name, value in self.lm.named_tensors():
                value.copy_(state[f"model.{name}"])
        for name, initial in self._registered.items():
            setattr(self, name, state[f"method.{name}"].detach().clone().to(initial.device))


def packed(value: Any) -> Tensor:
    """Plain data as a tensor, for :meth:`Method.state_dict`: the bytes of its JSON, uint8. Texts may be any."""
    encoded = bytearray(json.dumps(value, ensure_ascii=False), "utf-8", "surrogatepass")
    return torch.frombuffer(encoded, dtype=torch.uint8)


def unpacked(tensor: Tensor) -> Any:
    """The data that :func:`packed` was given, with lists for tuples."""
    return json.loads(bytes(tensor.cpu().numpy()).decode("utf-8", "surrogatepass"))


def validate_config(method: type[Method], given: Mapping[str, Any]) -> MethodConfig:
    """The method's config with ``given`` keys set.

    Raises:
        BenchError: an unknown key (with the nearest names) or a value out of bounds.
    """
    try:
        return method.Config(**given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = list(method.Config.model_fields)
            raise BenchError(f"{method.name} has no setting {key!r}.{nearest(key, known)}") from None
        raise BenchError(f"{method.name}.{key} = {first['input']!r}: {first['msg']}.") from None

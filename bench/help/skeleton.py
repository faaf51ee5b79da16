"""The skeleton of a method: a file that runs, passes the conformance check, and says what to write where."""

from __future__ import annotations

import keyword
from pathlib import Path
from string import Template

from bench.contract.registry import NAME, list_methods
from bench.errors import BenchError

_SKELETON = Template('''\
import pydantic
from torch import Tensor

from bench import GradientMethod, MethodConfig, Range, SearchSpace, TokenBatch


class $class_name(GradientMethod):
    """One sentence that says what the method does; the list of methods shows it.

    Then how it differs from other methods, the paper and section that it follows, and its cost per document.
    """

    name = "$name"  # on the command line and on the board
    paper = "none"  # or the key of the paper in CITATIONS.bib

    class Config(GradientMethod.Config):
        """Hyper-parameters, each with type, bounds and description, in addition to those of GradientMethod."""

        early: float = pydantic.Field(default=1.0, ge=0, description="token weight in the first half of a document")

    @classmethod
    def search_space(cls, config: MethodConfig) -> SearchSpace:
        """What is tuned on validation streams: rate and steps, as of every GradientMethod, and our own setting."""
        return {**super().search_space(config), "early": Range(low=0.1, high=10, log=True)}

    def token_weights(self, batch: TokenBatch) -> Tensor | None:
        """Weight of each token's loss, shape (tokens,); None gives all tokens the same weight.

        The batch has token_ids, offsets (the characters [start, end) of each token) and document.
        """
        weights = batch.token_ids.new_ones(len(batch)).float()
        weights[: len(batch) // 2] = self.config.early
        return weights

    # The other hooks; this method keeps their defaults. CONTRIBUTING.md has an example of each:
    #   trainable_parameters()   the (name, parameter) pairs of self.lm.model that learn
    #   fit(episodes)            learn offline from train documents with their questions and answers
    #   reset()                  restore the state before the first document (call super().reset())
    #   observe(document)        adapt to a document; by default, gradient steps on its weighted loss
    #   flush()                  learn, before a probe, what observe has put off; the harness undoes it afterwards
    #   condition(questions)     give the model a text, soft prompt or prefix, or weights, with each question
    #   using(key)               context with the weights of one key that condition returned
    #   mix_next_token(log_probs, hidden, ids)   next-token log-probabilities in place of the base's
    # Register each tensor that changes along the stream: self.register("its_name", tensor).
''')


_IMPORTED = ("Range", "Tensor")
"""Those names of the skeleton's imports that a class could have."""


def new_method(name: str, folder: Path) -> Path:
    """Write ``<folder>/<name>.py``, the skeleton of a method named ``name``, and return its path.

    Raises:
        BenchError: the name is not valid or is in use, the file exists, or the folder does not exist.
    """
    class_name = "".join(part.capitalize() for part in name.split("_"))
    if not NAME.fullmatch(name) or any(map(keyword.iskeyword, (name, class_name))) or class_name in _IMPORTED:
        raise BenchError(
            f"{name!r} cannot name a method: use lower-case letters, digits and underscores, with a letter first; "
            f"keywords of Python and names that the file imports are not allowed."
        )
    path = folder / f"{name}.py"
    if path.exists():
        raise BenchError(f"{path} already exists. Choose another name, or delete the file.")
    sources = {info.name: info.source for info in list_methods()}
    if name in sources:
        raise BenchError(f"A method named {name} already exists in {sources[name]}. Choose another name.")
    if not folder.is_dir():
        raise BenchError(f"The folder {folder} does not exist. Create it, or choose another one with --folder.")
    with path.open("x", encoding="utf-8") as file:
        file.write(_SKELETON.substitute(name=name, class_name=class_name))
    return path

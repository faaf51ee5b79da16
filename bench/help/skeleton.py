"""A method to start from: a file that runs, passes the conformance check, and says where to write what."""

from __future__ import annotations

import keyword
from pathlib import Path
from string import Template

from bench.contract.registry import NAME, list_methods
from bench.errors import BenchError

_SKELETON = Template('''\
import pydantic
from torch import Tensor

from bench import GradientMethod, TokenBatch


class $class_name(GradientMethod):
    """One sentence on what the method does: it is the line that the list of methods shows.

    Then what sets it apart, the paper and section it follows, and what it costs for each document.
    """

    name = "$name"  # on the command line and on the board
    paper = "none"  # or the citation key of its paper
    grid = {"learning_rate": (1e-3, 1e-4)}  # tuned on validation streams; every combination is tried

    class Config(GradientMethod.Config):
        """Every hyper-parameter: typed, bounded, described; those of GradientMethod are there already."""

        early: float = pydantic.Field(default=1.0, ge=0, description="weight of the first half of a document")

    def token_weights(self, batch: TokenBatch) -> Tensor | None:
        """Weight of each token's loss, shape (tokens,); None would weigh every token the same.

        There are batch.token_ids, batch.offsets (first and last character of each token) and batch.document.
        """
        weights = batch.token_ids.new_ones(len(batch)).float()
        weights[: len(batch) // 2] = self.config.early
        return weights

    # The other hooks, each with a default that this method keeps:
    #   trainable_parameters()   which (name, parameter) pairs of self.lm.model learn
    #   fit(episodes)            learn offline, from training documents with their questions and answers
    #   reset()                  back to the state before the first document (call super().reset())
    #   observe(document)        adapt to one document, if not by gradient steps on its weighted loss
    #   condition(questions)     give the model a text, soft prompt or prefix with each question
    # A tensor that changes along the stream must be made known by self.register("its_name", tensor).
''')


def new_method(name: str, folder: Path) -> Path:
    """Write ``<folder>/<name>.py``, the skeleton of a method called ``name``, and return its path.

    Raises:
        BenchError: the name is not one or is taken, or the folder does not exist.
    """
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise BenchError(
            f"{name!r} cannot name a method: use lower-case letters, digits and underscores, a letter first, "
            f"and no word of Python's own."
        )
    path = folder / f"{name}.py"
    if path.exists():
        raise BenchError(f"{path} exists already. Choose another name, or delete the file.")
    taken = {info.name: info.source for info in list_methods()}
    if name in taken:
        raise BenchError(f"There is a method called {name} already, in {taken[name]}. Choose another name.")
    if not folder.is_dir():
        raise BenchError(f"There is no folder {folder}. Create it, or choose another one with --folder.")
    class_name = "".join(part.capitalize() for part in name.split("_"))
    with path.open("x", encoding="utf-8") as file:
        file.write(_SKELETON.substitute(name=name, class_name=class_name))
    return path

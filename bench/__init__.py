"""online-adaptation-bench: one harness, fixed streams, every method a small plug-in.

A method author imports ``Method``, ``GradientMethod``, ``Conditioning`` and whatever else a method needs from here, and
a reader of results ``load_results``. Names are loaded on first use, so that ``import bench`` stays cheap (no torch).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.contract.config import MethodConfig
    from bench.contract.gradient import GradientMethod
    from bench.contract.method import Conditioning, Method, packed, unpacked
    from bench.contract.search import Range, SearchSpace
    from bench.data.documents import Document, Episode, EvidencedQuestion, Question
    from bench.lm.base_model import BaseModel, TokenBatch
    from bench.lm.reading import Reading
    from bench.seeds import seed_for
    from reports.frames import Results, load_results

PROTOCOL = "2.1"
"""Version of the rules in docs/rules.md: any change of a rule that can change a score bumps it."""

__version__ = "0.1.0"

_HOMES = {
    "Method": "bench.contract.method",
    "MethodConfig": "bench.contract.config",
    "Conditioning": "bench.contract.method",
    "packed": "bench.contract.method",
    "unpacked": "bench.contract.method",
    "GradientMethod": "bench.contract.gradient",
    "Range": "bench.contract.search",
    "SearchSpace": "bench.contract.search",
    "BaseModel": "bench.lm.base_model",
    "TokenBatch": "bench.lm.base_model",
    "Reading": "bench.lm.reading",
    "Document": "bench.data.documents",
    "Question": "bench.data.documents",
    "EvidencedQuestion": "bench.data.documents",
    "Episode": "bench.data.documents",
    "seed_for": "bench.seeds",
}

_FOR_READERS = {"Results": "reports.frames", "load_results": "reports.frames"}
"""Names for readers of results, apart from ``_HOMES``: no module of bench and no method may use them, and the hash of a
method's code, which follows ``_HOMES``, must not change with a table."""

__all__ = [
    "PROTOCOL",
    "BaseModel",
    "Conditioning",
    "Document",
    "Episode",
    "EvidencedQuestion",
    "GradientMethod",
    "Method",
    "MethodConfig",
    "Question",
    "Range",
    "Reading",
    "Results",
    "SearchSpace",
    "TokenBatch",
    "load_results",
    "packed",
    "seed_for",
    "unpacked",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name) or _FOR_READERS.get(name)
    if home is not None:
        return getattr(import_module(home), name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")

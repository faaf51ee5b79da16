"""Fault: in a worker, the import of the module replaces a score."""

from multiprocessing import parent_process

from bench import Document, Method
from bench.answering import metrics

if parent_process() is not None:
    metrics.score = lambda *_: dict.fromkeys(metrics.ANSWER_SCORES, 1.0)


class PatchesOnImport(Method):
    """Patches the scores on import."""

    name = "patches_on_import"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass

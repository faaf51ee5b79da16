"""The summary of a run from its events."""

from __future__ import annotations

from collections.abc import Sequence

from bench.answering import metrics
from bench.records.schema import CHANGE_SCORES, AnswerEvent, DocumentEvent, Summary, mean


def summarize(
    documents: Sequence[DocumentEvent],
    answers: Sequence[AnswerEvent],
    anchor_nll_before: float | None = None,
    anchor_nll: float | None = None,
) -> Summary:
    """Means over the answers at the last probe, and over all documents.

    The NLL of the anchor documents is not among the events and is taken as it is.
    """
    last = max((event.probe for event in answers), default=1.0)
    final = [event for event in answers if event.set == "stream" and event.probe == last]
    anchors = {
        probe: mean([event.f1 for event in answers if event.set == "anchor" and event.probe == probe])
        for probe in (0.0, last)
    }
    scored = [event for event in documents if event.nll is not None]
    nll = sum(event.nll or 0.0 for event in scored)
    again = [event for event in documents if event.nll_after is not None]
    tokens_again = sum(event.tokens for event in again)
    tokens, utf8_bytes = sum(event.tokens for event in scored), sum(event.bytes for event in scored)
    return Summary(
        documents=len({event.position for event in documents}),
        questions=len(final),
        unanswered=sum(event.unanswered is not None for event in final),
        **{name: _mean_of(final, name) for name in (*metrics.ANSWER_SCORES, "ended", "recall", *CHANGE_SCORES)},
        answer_nll=_mean_of(final, "nll"),
        token_nll=nll / tokens if tokens else None,
        token_nll_after=sum(event.nll_after or 0.0 for event in again) / tokens_again if tokens_again else None,
        bits_per_byte=metrics.bits_per_byte(nll, utf8_bytes) if utf8_bytes else None,
        anchor_f1_before=anchors[0.0],
        anchor_f1=anchors[last],
        anchor_nll_before=anchor_nll_before,
        anchor_nll=anchor_nll,
        changed=sum(event.stale is not None for event in final),
    )


def _mean_of(events: Sequence[AnswerEvent], score: str) -> float | None:
    """Mean of a score over the events that have it."""
    return mean([value for event in events if (value := getattr(event, score)) is not None])

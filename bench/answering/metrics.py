"""Scores of an answer and of a text: plain functions, cheap to import.

Answers are compared after the normalisation of SQuAD 1.1 (Rajpurkar et al. 2016, official evaluation). The headline
scores :func:`exact_match` and :func:`token_f1` take the best over all gold answers. The prefix and shortest-gold
variants follow the code of Hu et al. (2023) and are reported under separate names. ``bench.answering.hf_metrics``
offers the same scores as ``evaluate.Metric`` classes.

With ``segment="characters"`` both sides are normalised as the evaluation of MLQA (Lewis et al. 2020) does for Chinese:
each character of a script without spaces is a token of its own. A question without an answer has the gold ``""``; it
is right if and only if the prediction normalises to nothing (SQuAD 2.0).
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from bench.data.scripts import Segmentation, characters_and_words

ANSWER_SCORES = ("f1", "em", "em_prefix", "f1_shortest")
"""Keys of :func:`score`, as in records; the headline scores come first."""

VERSIONS = {
    "f1": "1",
    "em": "1",
    "em_prefix": "1",
    "f1_shortest": "2",
    "answer_nll": "1",
    "token_nll": "1",
    "bits_per_byte": "1",
}
"""Version of each metric, kept in every record. A change that can change a value raises it."""

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalize(text: str, segment: Segmentation = "words") -> str:
    """The text as tokens with single spaces between them.

    - ``words``: SQuAD 1.1, in its order: lower case, no ASCII punctuation, no articles. Only the characters of
      ``string.punctuation`` are removed (typographic quotes and dashes stay), without leaving a space: ``"mid-air"``
      becomes ``"midair"``.
    - ``characters``: MLQA for Chinese, in its order: lower case, no punctuation of any script; articles stay. Then
      :func:`bench.data.scripts.characters_and_words`.
    """
    if segment == "characters":
        kept = (c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
        return " ".join(characters_and_words("".join(kept)))
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, golds: Sequence[str], segment: Segmentation = "words") -> float:
    """1.0 if the normalised prediction equals any normalised gold, else 0.0."""
    return float(normalize(prediction, segment) in {normalize(gold, segment) for gold in _require_answers(golds)})


def token_f1(prediction: str, golds: Sequence[str], segment: Segmentation = "words") -> float:
    """Highest F1 over the golds between the bags of normalised tokens of prediction and gold, in [0, 1].

    Two empty bags give 1 and one empty bag gives 0, as in SQuAD 2.0 (SQuAD 1.1 gives 0 for both cases).
    """
    tokens = normalize(prediction, segment).split()
    return max(_bag_f1(tokens, normalize(gold, segment).split()) for gold in _require_answers(golds))


def prefix_exact_match(prediction: str, golds: Sequence[str], segment: Segmentation = "words") -> float:
    """1.0 if the prediction, cut to the length of the shortest gold, equals it: as in the code of Hu et al. (2023).

    Both are normalised first, and the length is in characters. Lenient by construction: gold "10" accepts
    "100 people", and a gold that normalises to nothing accepts everything. Only the blank gold of a question without an
    answer is matched exactly.
    """
    gold = shortest(golds)
    if not gold:
        return exact_match(prediction, [gold], segment)
    normal = normalize(gold, segment)
    return float(normalize(prediction, segment)[: len(normal)] == normal)


def shortest_f1(prediction: str, golds: Sequence[str], segment: Segmentation = "words") -> float:
    """:func:`token_f1` against the shortest gold, as in the code of Hu et al. (2023).

    It is SQuAD 1.1's: a gold that normalises to nothing gives 0, whatever the prediction. Only the blank gold of a
    question without an answer is matched exactly.
    """
    gold = shortest(golds)
    return 0.0 if gold and not normalize(gold, segment) else token_f1(prediction, [gold], segment)


def shortest(golds: Sequence[str]) -> str:
    """The gold with the fewest characters, stripped of outer whitespace; the first of equals."""
    return min((gold.strip() for gold in _require_answers(golds)), key=len)


def score(prediction: str, golds: Sequence[str], segment: Segmentation = "words") -> dict[str, float]:
    """All of :data:`ANSWER_SCORES` for one answer.

    Raises:
        ValueError: there is no gold answer.
    """
    return {
        "f1": token_f1(prediction, golds, segment),
        "em": exact_match(prediction, golds, segment),
        "em_prefix": prefix_exact_match(prediction, golds, segment),
        "f1_shortest": shortest_f1(prediction, golds, segment),
    }


def outdated(golds: Sequence[str], earlier: Sequence[Sequence[str]], segment: Segmentation = "words") -> list[str]:
    """The answers that were true earlier and are not now, each once, in order.

    ``earlier`` has the gold answers of each earlier question on the fact. If one of them matches a present gold, the
    fact is now as it was then, and none of them is outdated.
    """
    changed = [old for old in earlier if not any(exact_match(answer, golds, segment) for answer in old)]
    return list(dict.fromkeys(answer for old in changed for answer in old))


def stale(
    prediction: str, golds: Sequence[str], earlier: Sequence[str], segment: Segmentation = "words"
) -> float | None:
    """1.0 if the prediction matches an earlier truth and no present gold, else 0.0; None without an earlier truth."""
    if not earlier:
        return None
    return float(not exact_match(prediction, golds, segment) and exact_match(prediction, earlier, segment))


def bits_per_byte(nats: float, utf8_bytes: int) -> float:
    """Bits per UTF-8 byte of a text, from its negative log-likelihood (nats, summed over tokens)."""
    return nats / math.log(2) / utf8_bytes


def _bag_f1(prediction: list[str], gold: list[str]) -> float:
    if not prediction or not gold:
        return float(prediction == gold)
    common = (Counter(prediction) & Counter(gold)).total()
    return 2 * common / (len(prediction) + len(gold))


def _require_answers(golds: Sequence[str]) -> Sequence[str]:
    if isinstance(golds, str) or not golds:
        raise ValueError(f"Gold answers must be a list with at least one answer, got {golds!r}.")
    return golds

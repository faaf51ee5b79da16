"""A comparison for a terminal: differences and tests, what differs in the settings, questions, and a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bench.terminal import visible
from reports.compare import Answered, Comparison, Inference, Pair, inferences, permutation, t_test
from reports.rows import TEXT_SCORES
from reports.statistics import LEVEL, MOST_UNITS, POWER, RESAMPLES, ErrorKind, Plan, show_error

if TYPE_CHECKING:
    from rich.table import Table

    from reports.page.texts import Texts

NAMES = {
    "f1": "F1",
    "em": "EM",
    "em_prefix": "prefix EM",
    "f1_shortest": "shortest-gold F1",
    "answer_nll": "answer NLL",
    "token_nll": "token NLL",
    "token_nll_after": "token NLL after observing",
    "bits_per_byte": "bits/byte",
    "f1_current": "current F1",
    "f1_unchanged": "unchanged F1",
}
"""Scores in words, unless their name is one."""
UNITS: dict[ErrorKind, str] = {"SE_stream": "streams", "SE_doc": "documents"}


def name_of(score: str) -> str:
    """A score in words."""
    return NAMES.get(score, score)


def units_of(comparison: Comparison) -> str:
    """What the t intervals are over: some pairs may have several streams, and others one."""
    several = [UNITS[pair.error] for pair in comparison.pairs]
    return several[0] if len({*several}) == 1 else "streams or, with a single stream, over documents"


def _scored(score: str) -> str:
    """What has the score: each question, or each document."""
    return "documents" if score in TEXT_SCORES else "questions"


def title(comparison: Comparison) -> str:
    """What is subtracted from what, and which score it is."""
    lower = " (lower is better)" if comparison.pairs[0].sign < 0 else ""
    return f"{name_of(comparison.pairs[0].score)}{lower}: {comparison.a} minus {comparison.b}"


def render(comparison: Comparison) -> list[Table | str]:
    """The comparison as tables and sentences, in order."""
    parts: list[Table | str] = [_rows(comparison) if comparison.of_rows else _boards(comparison)]
    parts += list(_sentences(comparison))
    if comparison.of_rows:
        for pair in comparison.pairs:
            parts += _settings(comparison, pair)
    elif any(pair.settings() for pair in comparison.pairs):
        parts.append(_settings_of_rows(comparison))
    return parts


def _table(title: str, columns: Sequence[str], left: int = 1) -> Table:
    """A table whose first ``left`` columns hold texts, which are folded, and the others numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.title, table.title_justify = Text(visible(title)), "left"
    for place, heading in enumerate(columns):
        is_text = place < left
        table.add_column(
            Text(visible(heading)),
            overflow="fold" if is_text else "ellipsis",
            justify="left" if is_text else "right",
            no_wrap=not is_text,
        )
    return table


def _add(table: Table, *cells: str, style: str = "") -> None:
    from rich.text import Text

    table.add_row(*(Text(visible(cell)) for cell in cells), style=style)


def _rows(comparison: Comparison) -> Table:
    """One row on each side: every test on every board, and on all of them together."""
    table = _table(title(comparison), ["test", "units", "difference", "95 % interval", "p"])
    sections = [(pair.title, [pair]) for pair in comparison.pairs]
    if comparison.pooled:
        sections.append(("mean over these boards", list(comparison.pairs)))
    for heading, of in sections:
        table.add_section()
        _add(table, heading, style="bold")
        for one in inferences(of):
            _add(table, f"  {one.method}", f"{one.units} {UNITS[one.kind]}", *_numbers(one))
    return table


def _numbers(of: Inference) -> tuple[str, str, str]:
    interval = "" if of.interval is None else " to ".join(signed(end) for end in of.interval)
    return signed(of.mean), interval, "" if of.p_value is None else p_text(of.p_value)


def signed(value: float) -> str:
    """A difference with its sign; no minus before a zero, and no other digit for another rounding error."""
    return f"{round(round(value, 9), 3) + 0.0:+.3f}"


def p_text(value: float) -> str:
    """A p-value with the digits that matter."""
    return "<0.0001" if value < 0.0001 else f"{value:.4f}" if value < 0.001 else f"{value:.3f}"


def _boards(comparison: Comparison) -> Table:
    """The rows of two boards: a line for each, with the p-values adjusted for their number."""
    table = _table(title(comparison), ["row", "difference", "95 % interval", "p", "p (Holm)", "p (perm.)", "better on"])
    for pair, adjusted in zip(comparison.pairs, comparison.adjusted(), strict=True):
        better, worse, _ = pair.counts()
        p_values = [adjusted, permutation([pair], "SE_doc").p_value]
        cells = ["" if p_value is None else p_text(p_value) for p_value in p_values]
        _add(table, pair.title, *_numbers(t_test([pair], pair.error)), *cells, f"{better} : {worse}")
    return table


def _sentences(comparison: Comparison) -> Iterator[str]:
    """What the numbers mean, and what readers must know about them."""
    first = comparison.pairs[0]
    for pair in comparison.pairs if comparison.of_rows else ():
        better, worse, equal = pair.counts()
        where = f" of {pair.title}" if len(comparison.pairs) > 1 else ""
        yield (
            f"{comparison.a} is better on {better:,} of {better + worse + equal:,} {_scored(pair.score)}{where}, "
            f"{comparison.b} on {worse:,}; they are equal on {equal:,}."
        )
    if comparison.of_rows:
        yield (
            f"t: Student's t over streams, and cluster-robust over documents. bootstrap: whole documents are drawn "
            f"{RESAMPLES:,} times (BCa). permutation: the two are swapped in whole streams or documents. Over "
            f"documents, what a whole stream has in common is missed."
        )
        streams = min(len(pair.streams) for pair in comparison.pairs)
        if streams > 1 and (least := 2 / 2**streams) > LEVEL:
            yield f"With {streams} streams, the smallest p that swaps of whole streams can give is {p_text(least)}."
    else:
        tests = sum(p is not None for p in comparison.adjusted())
        yield (
            f"The interval and p are by paired t tests over {units_of(comparison)}; p (Holm) is adjusted for {tests} "
            f"rows. p (perm.) is not; it swaps the two in whole documents, and misses what a "
            f"whole stream has in common. better on: "
            f"{_scored(first.score)} on which {comparison.a} is better, and those on which {comparison.b} is."
        )
    if any(sample.seeds is not None for pair in comparison.pairs for sample in pair.samples):
        yield "t intervals include what the seeds add; the bootstrap and the permutations are about the seeds that ran."
    if left_out := max(pair.left_out for pair in comparison.pairs):
        yield f"Streams on which not both have results are left out: {left_out}."
    for pair in comparison.pairs:
        for side, records in ((comparison.a, pair.a.records), (comparison.b, pair.b.records)):
            if counts := Counter(record.status for record in records if record.status != "complete"):
                row = side if comparison.of_rows and len(comparison.pairs) == 1 else f"{side} ({pair.title})"
                yield f"Of {len(records)} runs of {row}: {', '.join(f'{n} {status}' for status, n in counts.items())}."
    yield from comparison.remarks


def _settings(comparison: Comparison, pair: Pair) -> Iterator[Table | str]:
    """What differs in the settings of the two, and the settings that only one of them has."""
    where = f" ({pair.title})" if len(comparison.pairs) > 1 else ""
    names = [comparison.a, comparison.b] if pair.a.label == pair.b.label else [pair.a.label, pair.b.label]
    table = _table(f"What differs{where}", ["", *names], left=3)
    alone: tuple[list[str], list[str]] = ([], [])
    for name, a, b in pair.settings():
        if a is None or b is None:
            alone[a is None].append(f"{name}={b if a is None else a}")
        else:
            _add(table, name, a, b)
    if table.row_count:
        yield table
    for name, of in zip(names, alone, strict=True):
        if of:
            yield f"Only {name} has{where}: {', '.join(of)}."
    if not table.row_count and not any(alone):
        yield f"The settings, the code and the machines of the two are the same{where}."


def _settings_of_rows(comparison: Comparison) -> Table:
    """What differs between the rows of two boards: first what differs in all rows in the same way."""
    table = _table("What differs", ["row", "", comparison.a, comparison.b], left=4)
    of_rows = {pair.title: pair.settings() for pair in comparison.pairs}
    common = [line for line in next(iter(of_rows.values())) if all(line in lines for lines in of_rows.values())]
    for heading, lines in {"all rows": common, **of_rows}.items():
        for line in lines:
            if heading == "all rows" or line not in common:
                _add(table, heading, *(text or "-" for text in line))
    return table


def questions(comparison: Comparison, count: int) -> list[Table]:
    """The questions on which each side is better by most, up to ``count`` of each, for each pair."""
    from reports.page.texts import texts

    tables = []
    for pair in comparison.pairs:
        spec = pair.a.records[0].spec
        known = texts(spec.dataset, pair.streams[0].rsplit("-", 2)[0])
        for side, sign in ((comparison.a, pair.sign), (comparison.b, -pair.sign)):
            gains = [(sign * (one.score_a - one.score_b), one) for one in pair.answered()]
            better = [one for gain, one in sorted(gains, key=lambda of: -of[0]) if gain > 1e-12][:count]
            heading = f"{pair.title}: {side} is better" + ("" if better else " on no question")
            table = _table(heading, ["question", "gold", comparison.a, comparison.b], left=4)
            for one in better:
                _add(table, _question(one, known), " | ".join(one.gold), *_texts(one, name_of(pair.score)))
            tables.append(table)
    return tables


def _question(one: Answered, known: Texts) -> str:
    where = f"[{one.stream}, document {one.document_id[:12]}]"
    return f"{known.questions.get((one.document_id, one.question_id), one.question_id)} {where}"


def _texts(one: Answered, score: str) -> tuple[str, str]:
    """The answers of both, each once, with their score."""
    sides = ((one.a, one.score_a), (one.b, one.score_b))
    a, b = (f"{' | '.join(dict.fromkeys(given)) or '(nothing)'} ({value:.2f})" for given, value in sides)
    return a, b


def plan_sentences(comparison: Comparison, gap: float) -> Iterator[str]:
    """How many streams or documents would resolve a gap between the two."""
    score = name_of(comparison.pairs[0].score)
    yield (
        f"To find a true gap of {gap:g} in {score} in {POWER:.0%} of repetitions (paired t test, two-sided "
        f"{LEVEL:.0%}), if differences spread as they do here:"
    )
    for pair in comparison.pairs:
        where = f"{pair.title}: " if len(comparison.pairs) > 1 else ""
        plans = pair.plans(gap)
        if not plans:
            yield f"- {where}the two differ by the same amount everywhere, or there is one stream of one document."
        for one in plans:
            yield f"- {where}{_plan(pair, one)}"
    if any(sample.seeds is not None for pair in comparison.pairs for sample in pair.samples):
        yield "What the seeds add stays as it is with more streams or documents: only more seeds lower it."


def _plan(pair: Pair, plan: Plan) -> str:
    unit = "streams" if plan.kind == "SE_stream" else "documents in all"
    of = f" of {pair.streams[0].rpartition('-')[0]}" if plan.kind == "SE_stream" else ""
    low, high = (_count(number) for number in plan.range)
    needed = (
        f"no number of {unit} up to {MOST_UNITS:,} is enough."
        if plan.needed is None
        else f"{plan.needed:,} {unit}{of} ({low} to {high}, since the spread over {plan.units} is uncertain itself)."
    )
    return f"{needed} The {plan.units:,} at hand find a gap of {show_error(plan.smallest)}."


def _count(number: int | None) -> str:
    return f"more than {MOST_UNITS:,}" if number is None else f"{number:,}"

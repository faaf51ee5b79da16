"""Comparisons against independent computations, refusals, and what readers are shown."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

import run_bench
from bench.errors import BenchError
from bench.records import store
from bench.records.summary import summarize
from reports import compare_plot, compare_tables
from reports.compare import Comparison, compare, inferences
from tests.reports.records_factory import board, record, spec

Scores = Sequence[Sequence[Sequence[float]]]
"""F1 of each question of each document of each stream."""

A: Scores = [[[1.0], [0.0, 1.0], [1.0]], [[0.5], [1.0, 1.0], [0.0]], [[1.0], [0.5, 0.0], [1.0]]]
B: Scores = [[[0.0], [0.0, 1.0], [0.5]], [[0.5], [0.0, 1.0], [0.5]], [[0.0], [0.0, 0.0], [1.0]]]


def make(runs: Path, rows: dict[str, Scores], experiment: str = "demo", **changes: object) -> None:
    """A board with these F1 scores of each method."""
    ids = [
        record(runs, spec(method, f"test-3-{k}", **changes), f1)  # type: ignore[arg-type]
        for method, streams in rows.items()
        for k, f1 in enumerate(streams)
    ]
    board(runs, ids, experiment)


def text_of(comparison: Comparison, gap: float | None = None, questions: int = 0) -> str:
    console = Console(width=200, file=io.StringIO())
    parts = compare_tables.render(comparison)
    parts += compare_tables.questions(comparison, questions) if questions else []
    parts += compare_tables.plan_sentences(comparison, gap) if gap else []
    for part in parts:
        console.print(part, markup=False, soft_wrap=isinstance(part, str))
    return console.file.getvalue()  # type: ignore[attr-defined]


def gaps(a: Scores = A, b: Scores = B) -> list[float]:
    """The difference of the means on each stream, by hand."""

    def mean(stream: Sequence[Sequence[float]]) -> float:
        return float(np.mean([value for document in stream for value in document]))

    return [mean(x) - mean(y) for x, y in zip(a, b, strict=True)]


def test_two_rows_are_compared_over_streams_as_scipy_does(tmp_path: Path) -> None:
    make(tmp_path, {"good": A, "bad": B})
    (pair,) = compare("good", "bad", tmp_path).pairs
    found = {(one.method, one.kind): one for one in inferences([pair])}
    t = found["t", "SE_stream"]
    expected = stats.ttest_1samp(gaps(), 0)
    low, high = expected.confidence_interval(0.95)
    assert (t.mean, t.p_value) == pytest.approx((np.mean(gaps()), expected.pvalue))
    assert t.interval == pytest.approx((low, high))
    swaps = found["permutation (exact)", "SE_stream"]
    assert swaps.p_value == pytest.approx(2 / 8), "all three gaps are positive: two of the eight swaps are as extreme"
    over_documents = found["permutation (exact)", "SE_doc"]
    assert over_documents.units == found["bootstrap", "SE_doc"].units == 9
    assert found["bootstrap", "SE_doc"].interval is not None and t.kind == pair.error
    shown = text_of(compare("good", "bad", tmp_path))
    assert "With 3 streams, the smallest p that swaps of whole streams can give is 0.250." in shown


def test_questions_that_each_side_wins_are_counted_and_shown(tmp_path: Path) -> None:
    make(tmp_path, {"good": A, "bad": B})
    comparison = compare("good", "bad", tmp_path)
    assert comparison.pairs[0].counts() == (5, 1, 6)
    shown = text_of(comparison, questions=2)
    assert "good is better on 5 of 12 questions, bad on 1; they are equal on 6." in shown
    won, lost = shown.split("demo: world, tiny: bad is better")
    won = won.split("demo: world, tiny: good is better")[1]
    assert won.count("(1.00)") == 2 and won.count("(0.00)") == 2, "those with the largest difference"
    assert lost.count("[test-3-") == 1 and "test-3-1" in lost and "(0.50)" in lost


def test_a_lower_likelihood_loss_wins(tmp_path: Path) -> None:
    ids = [
        record(tmp_path, spec(method, f"test-2-{k}"), nll=[level, level + k])
        for method, level in (("a", 1.0), ("b", 2.0))
        for k in range(2)
    ]
    board(tmp_path, ids)
    comparison = compare("a", "b", tmp_path)
    assert (comparison.pairs[0].score, comparison.pairs[0].counts()) == ("token_nll", (4, 0, 0))
    shown = text_of(comparison)
    assert "token NLL (lower is better): a minus b" in shown and "a is better on 4 of 4 documents" in shown
    with pytest.raises(BenchError, match="token_nll is not a score of answers"):
        text_of(comparison, questions=1)


def test_scores_of_texts_are_counted_by_document(tmp_path: Path) -> None:
    for method, level in (("a", 1.0), ("b", 2.0)):
        run = store.read_run(tmp_path / record(tmp_path, spec(method, "test-2-0", reread=True), nll=[3.0, 3.0]))
        before = store.read_documents(tmp_path, run.id)
        documents = [event.model_copy(update={"nll_after": event.tokens * level}) for event in before]
        store.write_run(tmp_path, run.model_copy(update={"summary": summarize(documents, [])}), documents)
    board(tmp_path, [path.name for path in tmp_path.glob("*-stream-*")])
    rows = text_of(compare("a", "b", tmp_path, score="token_nll_after"))
    assert "token NLL after observing (lower is better): a minus b" in rows
    assert "a is better on 2 of 2 documents, b on 0" in rows and "questions" not in rows
    boards = text_of(compare(str(tmp_path), str(tmp_path), tmp_path, score="token_nll_after"))
    assert "better on: documents on which" in boards and "questions" not in boards


def test_several_boards_are_shown_apart_and_pooled(tmp_path: Path) -> None:
    make(tmp_path, {"good": A, "bad": B}, "first", dataset="one")
    make(tmp_path, {"good": B, "bad": B}, "second", dataset="two")
    comparison = compare("good", "bad", tmp_path, ["first", "second"])
    assert [pair.title for pair in comparison.pairs] == ["first: one, tiny", "second: two, tiny"]
    assert comparison.pooled
    pooled = inferences(comparison.pairs)[0]
    assert pooled.mean == pytest.approx(np.mean(gaps()) / 2)
    assert pooled.interval is not None
    half = stats.t.ppf(0.975, 2) * np.std(gaps(), ddof=1) / np.sqrt(3) / 2  # the second board has no spread
    assert pooled.interval[1] - pooled.mean == pytest.approx(half)
    assert "mean over these boards" in text_of(comparison)


def test_boards_with_the_same_trained_weights_of_several_seeds_are_not_pooled(tmp_path: Path) -> None:
    def pooled(hashes: str) -> bool:
        for name, dataset, training in (("first", "one", "x"), ("second", "two", hashes)):
            ids = [
                record(tmp_path, spec(method, f"test-3-{k}", seed=s, train_hash=f"{training}{s}", dataset=dataset), f1)
                for method, streams in {"good": A, "bad": B}.items()
                for s in range(2)
                for k, f1 in enumerate(streams)
            ]
            board(tmp_path, ids, name)
        return compare("good", "bad", tmp_path, ["first", "second"]).pooled

    assert pooled("y") and not pooled("x")


def test_boards_on_the_same_streams_are_not_pooled(tmp_path: Path) -> None:
    make(tmp_path, {"good": A, "bad": B}, "first")
    make(tmp_path, {"good": A, "bad": B}, "second", model_hash="other")
    comparison = compare("good", "bad", tmp_path, ["first", "second"])
    assert not comparison.pooled
    assert "some have documents in common" in text_of(comparison)
    make(tmp_path, {"good": A, "bad": B}, "third", dataset="two", decoding={"beams": 2})
    assert not compare("good", "bad", tmp_path, ["first", "third"]).pooled, "answers of another kind"


def test_boards_of_other_rules_are_not_put_together(tmp_path: Path) -> None:
    make(tmp_path, {"good": A, "bad": B}, "first", dataset="one")
    make(tmp_path, {"good": A, "bad": B}, "second", dataset="two", protocol="1.0")
    with pytest.raises(BenchError, match="cannot be put together; they differ in protocol"):
        compare("good", "bad", tmp_path, ["first", "second"])


def test_two_folders_are_compared_row_by_row_with_adjusted_p_values(tmp_path: Path) -> None:
    make(tmp_path / "new", {"good": A, "bad": A, "worse": B, "new": A})
    make(tmp_path / "old", {"good": B, "bad": A, "worse": A, "old": A})
    comparison = compare(str(tmp_path / "new"), str(tmp_path / "old"), tmp_path)
    assert [pair.title for pair in comparison.pairs] == ["good", "bad", "worse"]
    assert comparison.pairs[0].estimate.mean == pytest.approx(np.mean(gaps()))
    assert comparison.pairs[1].counts() == (0, 0, 12)
    two = pytest.approx(2 * stats.ttest_1samp(gaps(), 0).pvalue)
    assert comparison.adjusted() == [two, None, two], "the same cells with the same scores are no test"
    shown = text_of(comparison)
    assert f"Only in {tmp_path / 'old'}: old." in shown and f"Only in {tmp_path / 'new'}: new." in shown
    assert "3 of 3 rows have the same cells in both" in shown and "adjusted for 2 rows" in shown


def test_rows_without_results_are_left_out_and_named(tmp_path: Path) -> None:
    make(tmp_path / "a", {"good": A, "bad": B})
    make(tmp_path / "b", {"good": A})
    more = [record(tmp_path / "b", spec("bad", f"test-3-{k}"), status="diverged") for k in range(3)]
    board(tmp_path / "b", [*store.read_board(tmp_path / "b").runs, *more])
    comparison = compare(str(tmp_path / "a"), str(tmp_path / "b"), tmp_path)
    assert [pair.title for pair in comparison.pairs] == ["good"]
    assert "Without results on both sides: bad." in comparison.remarks


def test_runs_without_results_are_counted(tmp_path: Path) -> None:
    make(tmp_path, {"good": A[:2], "bad": B[:2]})
    more = [record(tmp_path, spec(method, "test-3-2"), status="diverged") for method in ("good", "bad")]
    board(tmp_path, [*store.read_board(tmp_path).runs, *more])
    shown = text_of(compare("good", "bad", tmp_path))
    assert "Streams on which not both have results are left out: 1." in shown
    assert "Of 3 runs of good: 1 diverged." in shown and "Of 3 runs of bad: 1 diverged." in shown
    make(tmp_path / "whole", {"good": A})
    shown = text_of(compare(str(tmp_path), str(tmp_path / "whole"), tmp_path))
    assert f"Of 3 runs of {tmp_path} (good): 1 diverged." in shown and shown.count("diverged") == 1


def test_streams_of_one_name_with_other_documents_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "a", {"good": A})
    make(tmp_path / "b", {"good": A}, stream_hash="other documents")
    with pytest.raises(BenchError, match="cannot be compared; test-3-0 has other data in each"):
        compare(str(tmp_path / "a"), str(tmp_path / "b"), tmp_path)


def test_other_conditions_are_refused_and_named(tmp_path: Path) -> None:
    make(tmp_path / "a", {"good": A})
    make(tmp_path / "b", {"good": A}, harness_code="other", decoding={"beams": 2})
    with pytest.raises(
        BenchError, match=r"cannot be compared; they differ in decoding.beams \(None and 2\), harness_code"
    ):
        compare(str(tmp_path / "a"), str(tmp_path / "b"), tmp_path)


def test_two_commits_are_compared_by_the_records_that_they_made(tmp_path: Path) -> None:
    old, new = "a" * 40, "b" * 40
    for commit, code, scores in ((old, "code 1", B), (new, "code 2", A)):
        ids = [
            record(tmp_path, spec("good", f"test-3-{k}", method_code=code), f1, provenance={"commit": commit})
            for k, f1 in enumerate(scores)
        ]
    record(tmp_path, spec("good", "test-3-0", prefix=1), A[0][:1], provenance={"commit": new})  # a trial
    board(tmp_path, ids)
    comparison = compare(new[:7], old[:9], tmp_path)
    (pair,) = comparison.pairs
    assert pair.estimate.mean == pytest.approx(np.mean(gaps()))
    assert ("code of the method", "code 2", "code 1") in pair.settings()
    assert ("commit", "bbbbbbbb", "aaaaaaaa") in pair.settings()
    with pytest.raises(BenchError, match=r"No record under .* is of commit ccccccc on the streams"):
        compare(new[:7], "ccccccc", tmp_path)
    record(tmp_path, spec("good", "test-3-0", method_code="not committed"), B[0], provenance={"commit": new})
    with pytest.raises(BenchError, match="are both of good on test-3-0, with other code, weights or devices"):
        compare(new[:7], old[:9], tmp_path)


def test_commits_with_another_harness_are_refused(tmp_path: Path) -> None:
    for commit, code in (("a" * 40, "h1"), ("b" * 40, "h2")):
        run = record(tmp_path, spec("good", "test-3-0", harness_code=code), A[0], provenance={"commit": commit})
    board(tmp_path, [run])
    with pytest.raises(BenchError, match="they differ in harness_code"):
        compare("a" * 7, "b" * 7, tmp_path)


def test_what_differs_in_the_settings_is_shown(tmp_path: Path) -> None:
    ids = [
        record(tmp_path, spec("good", f"test-3-{k}", config=config), f1, provenance={"packages": {"torch": torch}})
        for config, scores, torch in (({"rate": 1, "k": 3}, A, "2.1"), ({"rate": 2, "k": 3}, B, "2.2"))
        for k, f1 in enumerate(scores)
    ]
    board(tmp_path, ids)
    comparison = compare("good (rate=1)", "good (rate=2)", tmp_path)
    assert comparison.pairs[0].settings() == [("rate", "1", "2"), ("package torch", "2.1", "2.2")]
    assert "What differs" in text_of(comparison)


def test_a_setting_with_the_name_of_another_fact_does_not_hide_it(tmp_path: Path) -> None:
    ids = [
        record(tmp_path, spec(method, "test-3-0", config=config), scores[0])
        for method, config, scores in (("good", {"method": "lucene", "seed": 5}, A), ("bad", {}, B))
    ]
    board(tmp_path, ids)
    settings = compare("good", "bad", tmp_path).pairs[0].settings()
    assert ("method", "good", "bad") in settings
    assert ("method (setting)", "lucene", None) in settings and ("seed (setting)", "5", None) in settings


def test_streams_that_only_one_has_are_left_out_and_counted(tmp_path: Path) -> None:
    make(tmp_path / "a", {"good": A})
    make(tmp_path / "b", {"good": B[:2]})
    comparison = compare(str(tmp_path / "a"), str(tmp_path / "b"), tmp_path)
    assert comparison.pairs[0].estimate.mean == pytest.approx(np.mean(gaps()[:2]))
    assert "Streams on which not both have results are left out: 1." in text_of(comparison)


def test_seeds_are_part_of_the_t_interval_and_the_reader_is_told(tmp_path: Path) -> None:
    ids = [
        record(tmp_path, spec(method, f"test-3-{k}", seed=seed), f1)
        for method, of_seeds in (("good", (A, B)), ("bad", (B,)))
        for seed, streams in enumerate(of_seeds)
        for k, f1 in enumerate(streams)
    ]
    board(tmp_path, ids)
    comparison = compare("good", "bad", tmp_path)
    assert comparison.pairs[0].estimate.mean == pytest.approx(np.mean(gaps()) / 2)
    shown = text_of(comparison, gap=0.001, questions=1)
    assert "t intervals include what the seeds add" in shown
    assert "only more seeds lower it" in shown
    assert "no number of streams up to" in shown


def test_the_planner_says_what_would_resolve_a_gap(tmp_path: Path) -> None:
    make(tmp_path, {"good": A, "bad": B})
    shown = text_of(compare("good", "bad", tmp_path), gap=0.5)
    assert "To find a true gap of 0.5 in F1 in 80% of repetitions" in shown
    assert "streams of test-3 (" in shown and "documents in all (" in shown and "The 3 at hand find a gap of" in shown


@pytest.mark.parametrize(
    ("a", "b", "experiments", "message"),
    [
        ("good", "bat", [], "There is no row 'bat' on the board demo. Did you mean bad?"),
        ("good", "good", [], "are the same row"),
        ("good", "demo", [], "demo is a board, and 'good' is none"),
        ("good", "bad", ["nothing"], "There is no board 'nothing'"),
    ],
)
def test_wrong_requests_are_refused(tmp_path: Path, a: str, b: str, experiments: list[str], message: str) -> None:
    make(tmp_path, {"good": A, "bad": B})
    with pytest.raises(BenchError) as error:
        compare(a, b, tmp_path, experiments)
    assert message in str(error.value)
    with pytest.raises(BenchError, match="no score 'f2' to compare"):
        compare("good", "bad", tmp_path, score="f2")


def test_a_method_with_several_rows_must_be_named_by_label(tmp_path: Path) -> None:
    ids = [
        record(tmp_path, spec("good", f"test-3-{k}", config={"rate": rate}), A[k]) for rate in (1, 2) for k in range(3)
    ]
    board(tmp_path, ids)
    with pytest.raises(BenchError, match=r"good has 2 rows on the board demo: name one of 'good \(rate=1\)', 'good"):
        compare("good", "good (rate=1)", tmp_path)


def test_text_of_answers_cannot_control_the_terminal(tmp_path: Path) -> None:
    make(tmp_path, {"good": A, "bad": B})
    run = next(path for path in tmp_path.glob("good-*test-3-0*"))
    answers = [
        event.model_copy(update={"prediction": f"\x1b[2J[bold]{event.prediction}"})
        for event in store.read_answers(tmp_path, run.name)
    ]
    store.write_run(tmp_path, store.read_run(run), store.read_documents(tmp_path, run.name), answers)
    shown = text_of(compare("good", "bad", tmp_path), questions=3)
    assert "\x1b[2J" not in shown and "␛[2J[bold]w0" in shown


def test_the_same_comparison_gives_the_same_text_and_the_same_figure(tmp_path: Path) -> None:
    make(tmp_path, {"good": A, "bad": B})
    shutil.copytree(tmp_path, tmp_path.parent / "copy")
    one, other = (compare("good", "bad", runs) for runs in (tmp_path, tmp_path.parent / "copy"))
    assert text_of(one, 0.1, 2) == text_of(other, 0.1, 2)
    paths = compare_plot.write(one, tmp_path / "out")
    assert [path.name for path in paths] == ["compare.pdf", "compare.svg", "compare.png", "compare.txt"]
    again = compare_plot.write(other, tmp_path.parent / "again")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_the_figure_has_a_line_for_each_stream_board_and_their_mean(tmp_path: Path) -> None:
    make(tmp_path, {"good": A, "bad": B}, "first", dataset="one")
    make(tmp_path, {"good": B, "bad": A}, "second", dataset="two")
    comparison = compare("good", "bad", tmp_path, ["first", "second"])
    (axes,) = compare_plot.draw(comparison).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [
        *(f"test-3-{k}" for k in range(3)),
        "first: one, tiny",
        *(f"test-3-{k}" for k in range(3)),
        "second: two, tiny",
        "mean over the boards",
    ]
    means = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert means == pytest.approx([*gaps(), np.mean(gaps()), *(-gap for gap in gaps()), -np.mean(gaps()), 0.0])


def test_what_the_intervals_are_over_is_said_of_every_board(tmp_path: Path) -> None:
    make(tmp_path, {"good": A[:1], "bad": B[:1]}, "first", dataset="one")
    make(tmp_path, {"good": A, "bad": B}, "second", dataset="two")
    rows = compare("good", "bad", tmp_path, ["first", "second"])
    assert "grey: within a stream" in compare_plot.draw(rows).get_supxlabel().replace("\u00a0", " ")
    for folder, scores in (("a", A), ("b", B)):
        make(tmp_path / folder, {"good": scores[:1]}, "first", dataset="one")
        make(tmp_path / folder, {"good": scores}, "second", dataset="two")
    boards = compare(str(tmp_path / "a"), str(tmp_path / "b"), tmp_path, ["first", "second"])
    text = text_of(boards).replace("\n", " ")
    assert "by paired t tests over streams or, with a single stream, over documents; p (Holm)" in text
    for comparison in (rows, boards):
        shown = compare_plot.draw(comparison).get_supxlabel().replace("\u00a0", " ").replace("\n", " ")
        assert "blue: 95 % t interval over streams or, with a single stream, over documents" in shown


def test_the_command_line_prints_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("runs"), {"good": A, "bad": B})
    run_bench.compare("good", "bad", questions=1, resolve=0.1, plot=True)
    shown = capsys.readouterr().out
    for part in (
        "F1: good minus bad",
        "good is better on 5 of 12",
        "What differs",
        "To find a true gap",
        "out/compare.png",
    ):
        assert part in shown

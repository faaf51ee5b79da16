"""Verdicts: agreement and disagreement that were planted, signs that are not resolved, and distances in errors."""

from __future__ import annotations

import pytest

from reports.published import Value, load
from reports.statistics import Estimate, Item
from reports.verdicts import AGREES, DIFFERS, UNRESOLVED, Distance, Shape, shape


def value(number: str, precision: str = "2 decimals") -> Value:
    return load()[0].model_copy(update={"value": number, "precision": precision, "copy_of": ""})


def published(**lines):
    """Published values of methods, at places 1, 2, ..."""
    return {name: {i: value(number) for i, number in enumerate(numbers, 1)} for name, numbers in lines.items()}


def items(*by_stream: float) -> list[Item]:
    return [Item(f"test-{k}", "", "", number) for k, number in enumerate(by_stream)]


def ours(**lines):
    """Our scores of methods on each stream, at places 1, 2, ..."""
    return {name: {i: items(*numbers) for i, numbers in enumerate(places, 1)} for name, places in lines.items()}


def words(found: Shape) -> dict[str, str]:
    return {sign.name: sign.word for sign in (*found.gaps, *found.slopes)}


def test_a_planted_agreement_is_found():
    found = shape(
        ours(low=[(1.0, 1.2, 1.1, 0.9)], middle=[(2.0, 2.2, 2.2, 1.8)], high=[(4.1, 4.0, 4.2, 3.9)]),
        published(low=["10.00"], middle=["20.00"], high=["30.00"]),
    )
    assert found.methods == ("high", "middle", "low")
    assert found.agreement is not None
    assert (found.agreement.tau, found.agreement.interval, found.agreement.streams) == (1.0, (1.0, 1.0), (4,))
    assert words(found) == {"high above middle": AGREES, "high above low": AGREES, "middle above low": AGREES}
    assert found.word == AGREES and found.differing == []


def test_a_planted_disagreement_is_found():
    found = shape(
        ours(low=[(4.1, 4.0, 4.2, 3.9)], high=[(1.0, 1.2, 1.1, 0.9)]), published(low=["10.00"], high=["30.5"])
    )
    assert found.agreement is not None and found.agreement.tau == -1
    assert words(found) == {"high above low": DIFFERS}
    assert found.word == DIFFERS
    # differences -3.1, -2.8, -3.1 and -3.0: mean -3.0, standard deviation 0.1414, 3.182 of a half of it
    assert [sign.sentence() for sign in found.differing] == ["high above low by 20.5 in the paper, by -3.0 ± 0.2 here."]


def test_a_sign_that_differs_outweighs_ranks_that_agree():
    scores = {f"m{i}": [(i, i + 0.1, i - 0.1, i + 0.2 + 0.01 * i)] for i in range(6)}
    wrong = {**scores, "m5": [(3.9, 4.0, 3.8, 4.1)], "m4": [(5.0, 5.1, 4.9, 5.21)]}
    papers = published(**{f"m{i}": [f"{i}.00"] for i in range(6)})
    assert shape(ours(**scores), papers).word == AGREES
    found = shape(ours(**wrong), papers)
    assert found.agreement is not None and found.agreement.interval is not None and found.agreement.interval[0] > 0
    assert (found.word, len(found.differing)) == (DIFFERS, 1)


def test_a_gap_is_resolved_by_a_paired_t_test_with_holms_correction():
    base = (0.1, 0.5, 0.3, 0.9)
    # the differences 0.1, 0.1, 0.2 and 0.2 have t = 0.15 / (0.05774 / 2) = 5.196 with 3 degrees: p = 0.01385
    near = tuple(a + b for a, b in zip(base, (0.1, 0.1, 0.2, 0.2), strict=True))
    pair = shape(ours(a=[near], b=[base]), published(a=["2.00"], b=["1.00"]))
    assert (words(pair), pair.gaps[0].ours.p_value()) == ({"a above b": AGREES}, pytest.approx(0.01385, abs=1e-5))
    # among three gaps, of which this one has the smallest p-value, it counts as 3 x 0.01385 = 0.0416; beside six, 0.083
    noise = [(0.4, 0.2, 0.9, 0.1), (0.8, 0.1, 0.2, 0.7)]
    for count, word in ((1, AGREES), (2, UNRESOLVED)):
        more = {f"n{i}": [noise[i]] for i in range(count)}
        papers = published(a=["2.00"], b=["1.00"], **{f"n{i}": [f"0.{i}0"] for i in range(count)})
        assert words(shape(ours(a=[near], b=[base], **more), papers))["a above b"] == word


def test_a_rank_alone_resolves_nothing():
    scores = ours(a=[(0.0, 0.0, 0.0, 0.1)], b=[(0.0, 0.0, 0.0, 0.0)])
    found = shape(scores, published(a=["2.00"], b=["1.00"]))
    assert words(found) == {"a above b": UNRESOLVED} and found.word == UNRESOLVED


def test_curves_that_agree_say_nothing_of_a_rank_that_is_not_resolved():
    # all four streams have a above b, so that tau-b is 1 in each bootstrap sample, but p is 0.20
    scores = ours(a=[(9.0, 9.1, 9.2, 9.1), (2.3, 2.0, 2.0, 2.0)], b=[(9.1, 9.0, 9.2, 9.0), (1.0, 1.9, 1.9, 1.9)])
    found = shape(scores, published(a=["9.0", "5.0"], b=["9.0", "4.0"]))
    assert words(found) == {"a above b": UNRESOLVED, "a falls": AGREES, "b falls": AGREES}
    assert found.agreement is not None and found.agreement.interval == (1.0, 1.0)
    assert found.word == UNRESOLVED


@pytest.mark.parametrize(("a", "b"), [("30.50", "10"), ("30", "10.50")])
def test_a_gap_has_the_digits_of_the_value_with_fewer(a: str, b: str) -> None:
    (gap,) = shape(ours(a=[(1.0, 1.1)], b=[(2.0, 2.2)]), published(a=[a], b=[b])).gaps
    assert gap.sentence().startswith("a above b by 20 in the paper")


def test_with_one_stream_nothing_is_resolved():
    found = shape(ours(a=[(2.0,)], b=[(1.0,)]), published(a=["2.00"], b=["1.00"]))
    assert found.word == UNRESOLVED
    assert found.sentences()[1] == "Kendall's tau-b of 2 methods is 1.00 (no interval: it takes 4 streams)."


def test_a_published_gap_within_the_error_of_reading_has_no_sign():
    papers = {"a": {1: value("51", "read off markers, ±1")}, "b": {1: value("50", "read off markers, ±1")}}
    found = shape(ours(a=[(1.0, 1.1)], b=[(2.0, 2.2)]), papers)
    assert (found.gaps, found.unread, found.word) == ((), 1, None)
    papers["a"] = {1: value("53", "read off markers, ±1")}
    assert shape(ours(a=[(1.0, 1.1)], b=[(2.0, 2.2)]), papers).unread == 0


def test_a_published_change_within_the_error_of_reading_has_no_sign():
    # of four even places the line weighs the values -0.9, -0.3, 0.3 and 0.9: errors of 1 can move it by 2.4
    papers = {"a": {x: value(number, "read off markers, ±1") for x, number in enumerate(("50", "50", "52", "53"), 1)}}
    assert shape(ours(a=[(1.0, 1.1), (2.0, 2.2)]), papers).unread == 0, "a change of 3.3"
    papers["a"][4] = value("51", "read off markers, ±1")
    assert shape(ours(a=[(1.0, 1.1), (2.0, 2.2)]), papers).unread == 1, "a change of 1.5"


def test_the_change_along_a_curve_is_that_of_its_line():
    # per stream the lines through (0, 10), (0.5, 8), (1, 4) and (0, 11), (0.5, 9), (1, 7) fall by 6 and by 4
    curves = ours(falls=[(10, 11), (8, 9), (4, 7)])
    (sign,) = shape(curves, published(falls=["100", "90", "80", "70"])).slopes
    assert (sign.name, sign.published, sign.ours.mean) == ("falls falls", pytest.approx(-30), pytest.approx(-5))
    assert sign.ours.se == pytest.approx(1.0)
    assert sign.word == UNRESOLVED, "t = 5 with one degree"


def test_a_curve_that_goes_the_other_way_differs():
    curves = ours(a=[(1.0, 1.1, 0.9, 1.0), (2.0, 2.2, 1.9, 2.0)], b=[(3.0, 3.1, 3.2, 3.0), (2.0, 2.0, 2.1, 1.9)])
    found = shape(curves, published(a=["9.0", "5.0"], b=["9.0", "4.0"]))
    assert words(found) == {"a falls": DIFFERS, "b falls": AGREES, "a above b": UNRESOLVED}
    assert found.differing[0].sentence().startswith("a falls by 4.0 in the paper, by -1.0")


def test_only_what_both_have_is_compared():
    found = shape(ours(a=[(1.0, 1.1)], mine=[(2.0, 2.2)]), published(a=["1.00"], theirs=["5.00"]))
    assert (found.methods, found.gaps, found.agreement) == (("a",), (), None)


def test_without_a_place_that_all_our_methods_have_nothing_is_compared():
    scores = {"a": {1: items(2.0, 2.1)}, "b": {2: items(1.0, 1.1)}}
    found = shape(scores, published(a=["2.00", "2.00"], b=["1.00", "1.00"]))
    assert (found.word, found.gaps, found.agreement) == (None, (), None)
    assert found.sentences() == ["Nothing can be compared."]


def test_published_curves_are_compared_at_the_last_place_that_they_have_in_common():
    papers = {"a": {1: value("2.00"), 2: value("1.00")}, "b": {1: value("1.00"), 2: value("3.00"), 3: value("9.00")}}
    scores = {"a": {1: items(2.0, 2.1)}, "b": {1: items(1.0, 1.1)}}
    (gap,) = shape(scores, papers).gaps
    assert (gap.name, gap.published) == ("b above a", 2.0)


def test_on_a_logarithmic_axis_places_are_even_where_their_ratios_are():
    points = {x: items(y, y + 0.1) for x, y in ((1, 1.0), (10, 2.0), (100, 3.0))}
    papers = {"a": {x: value(f"{y}") for x, y in ((1, 10), (10, 20), (100, 30))}}
    (sign,) = shape({"a": points}, papers, log=True).slopes
    assert (sign.published, sign.ours.mean) == (pytest.approx(20), pytest.approx(2))


def test_a_distance_is_in_our_standard_errors():
    distance = Distance(value("10.00"), Estimate(12.0, 0.8, "SE_stream", 4, 3))
    assert distance.in_errors == pytest.approx(2.5)
    for se in (None, 0.0, 1e-17):
        assert Distance(value("10.00"), Estimate(12.0, se, "SE_stream", 2, 1)).in_errors is None

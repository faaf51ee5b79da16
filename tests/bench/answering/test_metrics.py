"""Scores of answers and texts: worked examples and properties."""

from __future__ import annotations

import json
import math
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.answering import metrics
from bench.answering.metrics import exact_match, normalize, prefix_exact_match, score, shortest, token_f1
from tests.conftest import REAL_DATA

SQUAD = REAL_DATA / "squad/squad_v1.1_38_articles.json"

texts = st.text(max_size=30) | st.lists(st.sampled_from(["a", "The", "cat", "cat.", "10", "é"]), max_size=5).map(
    " ".join
)
golds = st.lists(texts, min_size=1, max_size=4)


class TestNormalize:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("The Cat", "cat"),
            ("  a  cat\tsat\n", "cat sat"),
            ("mid-air", "midair"),
            ("U.S.A.", "usa"),
            ("an apple a day", "apple day"),
            ("theatre band", "theatre band"),
            ("A.", ""),
            ("?!", ""),
            ("the", ""),
            ("ÉCOLE", "école"),
            ("“quoted”", "“quoted”"),
            ("10–12", "10–12"),
            ("A\u00a0b", "b"),
            ("ǅ", "ǆ"),
        ],
    )
    def test_cases(self, text, expected):
        assert normalize(text) == expected

    def test_punctuation_goes_before_articles(self):
        assert normalize("a.n. the-cat") == "thecat"  # "a.n." has become the article "an", "the-cat" one word

    @given(texts)
    def test_the_result_is_single_spaced_words_without_articles(self, text):
        once = normalize(text)
        assert once == " ".join(once.split())
        assert not set(once.split()) & {"a", "an", "the"}


class TestExactMatch:
    def test_any_gold_may_match(self):
        assert exact_match("the Paris.", ["London", "paris"]) == 1.0
        assert exact_match("Paris, France", ["London", "paris"]) == 0.0

    def test_both_empty_match(self):
        assert exact_match("", ["the"]) == 1.0


class TestTokenF1:
    @pytest.mark.parametrize(
        ("prediction", "golds", "expected"),
        [
            ("the cat sat", ["cat"], 2 / 3),  # precision 1/2, recall 1
            ("cat cat", ["cat"], 2 / 3),  # words are counted, not only listed
            ("dog", ["cat"], 0.0),
            ("sat cat", ["cat sat"], 1.0),
            ("cat", ["dog", "cat sat on mat"], 0.4),  # the best gold counts
            ("", ["cat"], 0.0),
            ("cat", ["the"], 0.0),
            ("", ["the"], 1.0),
        ],
    )
    def test_cases(self, prediction, golds, expected):
        assert token_f1(prediction, golds) == pytest.approx(expected)


class TestReferenceVariants:
    def test_a_prefix_of_digits_is_accepted(self):
        scores = score("100 people", ["10"])
        assert scores == {"em": 0.0, "f1": 0.0, "em_prefix": 1.0, "f1_shortest": 0.0}

    def test_only_the_shortest_gold_counts(self):
        scores = score("new york city", ["New York City", "NYC"])
        assert scores == {"em": 1.0, "f1": 1.0, "em_prefix": 0.0, "f1_shortest": 0.0}

    def test_a_gold_that_vanishes_has_no_f1(self):
        assert score("The", ["The", "The Band"]) == {"em": 1.0, "f1": 1.0, "em_prefix": 1.0, "f1_shortest": 0.0}

    def test_the_cut_is_after_normalisation(self):
        assert prefix_exact_match("The U.S. army", ["US"]) == 1.0

    def test_a_gold_that_vanishes_accepts_everything(self):
        assert prefix_exact_match("anything", ["The", "The Band"]) == 1.0
        assert prefix_exact_match("anything", ["Thee"]) == 0.0

    def test_shortest_ignores_outer_space_and_takes_the_first(self):
        assert shortest(["  ab  ", "cd", "abc"]) == "ab"


@given(texts, golds)
def test_scores_are_ordered_and_bounded(prediction, golds):
    scores = score(prediction, golds)
    assert tuple(scores) == metrics.ANSWER_SCORES
    assert all(0 <= value <= 1 for value in scores.values())
    assert scores["em"] <= scores["f1"] >= scores["f1_shortest"]


@given(texts, golds)
def test_a_gold_itself_is_perfect_and_the_order_of_golds_does_not_matter(prediction, golds):
    assert exact_match(golds[-1], golds) == token_f1(golds[-1], golds) == 1.0
    assert token_f1(prediction, golds) == token_f1(prediction, golds[::-1])


@given(texts, texts)
def test_f1_is_symmetric_and_equals_precision_and_recall(prediction, gold):
    ours = token_f1(prediction, [gold])
    assert ours == token_f1(gold, [prediction])
    left, right = normalize(prediction).split(), normalize(gold).split()
    common = sum(min(left.count(word), right.count(word)) for word in set(left))
    if common:
        precision, recall = common / len(left), common / len(right)
        assert ours == pytest.approx(2 * precision * recall / (precision + recall))
    else:
        assert ours == float(left == right)


@pytest.mark.parametrize("wrong", [[], (), "a string"])
def test_golds_must_be_a_list_with_an_answer(wrong):
    with pytest.raises(ValueError, match="at least one answer"):
        score("x", wrong)


def test_bits_per_byte():
    assert metrics.bits_per_byte(8 * math.log(2), len("é".encode())) == pytest.approx(4)


class TestEvaluateClasses:
    @pytest.fixture
    def classes(self):
        from bench.answering import hf_metrics

        return hf_metrics

    def test_every_metric_has_a_class(self, classes):
        names = ("ExactMatch", "TokenF1", "PrefixExactMatch", "ShortestF1", "AnswerNLL", "TokenNLL", "BitsPerByte")
        assert {getattr(classes, name).NAME for name in names} == {*metrics.VERSIONS}

    @pytest.mark.parametrize("name", ["ExactMatch", "TokenF1", "PrefixExactMatch", "ShortestF1"])
    def test_answers_are_averaged(self, classes, name):
        predictions, references = ["100 people", "The Cat"], [["10"], ["dog", "cat"]]
        metric = getattr(classes, name)()
        each = [score(*pair)[metric.NAME] for pair in zip(predictions, references, strict=True)]
        result = metric.compute(predictions=predictions, references=references)
        assert result == {metric.NAME: sum(each) / 2}

    def test_a_configuration_counts_characters(self, classes):
        pairs = {"predictions": ["建筑师李安"], "references": [["李安"]]}
        assert classes.TokenF1().compute(**pairs) == {"f1": 0.0}
        assert classes.TokenF1("characters").compute(**pairs) == {"f1": pytest.approx(4 / 7)}
        with pytest.raises(ValueError, match="words, characters"):
            classes.TokenF1("letters")

    def test_answers_can_be_added_one_by_one(self, classes):
        metric = classes.TokenF1()
        metric.add(prediction="cat", reference=["cat sat", "dog"])
        assert metric.compute() == {"f1": pytest.approx(2 / 3)}

    def test_likelihoods_are_averaged_over_questions_tokens_or_bytes(self, classes):
        inputs = {"predictions": [[-1.0, -3.0], [-5.0]], "references": ["ab", "é"]}
        assert classes.AnswerNLL().compute(**inputs) == {"answer_nll": pytest.approx((2 + 5) / 2)}
        assert classes.TokenNLL().compute(**inputs) == {"token_nll": pytest.approx(9 / 3)}
        assert classes.BitsPerByte().compute(**inputs) == {"bits_per_byte": pytest.approx(9 / math.log(2) / 4)}


@pytest.mark.skipif(not SQUAD.exists(), reason="SQuAD sample not at ../shared/data")
def test_on_squad_every_gold_is_perfect_and_few_normalise_to_nothing():
    articles = json.loads(SQUAD.read_text(encoding="utf-8"))["data"]
    answers = [
        [answer["text"] for answer in question["answers"]]
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    assert all(exact_match(golds[0], golds) == token_f1(golds[0], golds) == 1.0 for golds in answers)
    assert sum(not normalize(shortest(golds)) for golds in answers) <= 3  # the whole development set has three


class TestScriptsWithoutSpaces:
    @pytest.mark.parametrize(
        ("prediction", "gold", "words", "characters"),
        [
            ("建筑师李安", "李安", 0.0, 2 * 2 / (5 + 2)),
            ("「李安」。", "李安", 0.0, 1.0),  # the brackets are no ASCII punctuation
            ("安李", "李安", 0.0, 1.0),
            ("1882年", "一八八二年", 0.0, 2 / (2 + 5)),  # 1882 is one word
            ("東京の港", "東京港", 0.0, 6 / 7),
            ("กขค", "กข", 0.0, 4 / 5),
            ("the salmon", "salmon", 1.0, 2 / 3),  # Chinese has no articles, so none is removed
            ("", "李", 0.0, 0.0),
        ],
    )
    def test_f1_counts_characters(self, prediction, gold, words, characters):
        assert token_f1(prediction, [gold]) == pytest.approx(words)
        assert token_f1(prediction, [gold], "characters") == pytest.approx(characters)

    @given(st.text(st.sampled_from("李安灯塔年Aa1é -.。「」—_$"), max_size=12))
    def test_the_normalisation_is_that_of_mlqa_for_chinese(self, text):
        kept = [c for c in text.lower() if c not in string.punctuation and not unicodedata.category(c).startswith("P")]
        pieces = "".join(f" {c} " if "\u4e00" <= c <= "\u9fa5" else c for c in kept).split()
        assert normalize(text, "characters") == " ".join(pieces)

    @given(texts, golds)
    def test_scores_are_ordered_and_bounded(self, prediction, golds):
        scores = score(prediction, golds, "characters")
        assert tuple(scores) == metrics.ANSWER_SCORES
        assert 0 <= scores["em"] <= scores["f1"] <= 1 and scores["f1"] >= scores["f1_shortest"]

    def test_every_score_follows(self):
        assert score("李安，建筑师", ["李安"], "characters") == {
            "f1": pytest.approx(4 / 7),
            "em": 0.0,
            "em_prefix": 1.0,
            "f1_shortest": pytest.approx(4 / 7),
        }


@pytest.mark.parametrize("segment", ["words", "characters"])
@pytest.mark.parametrize(
    ("prediction", "right"), [("", 1.0), (" ?! ", 1.0), ("Ana Roos", 0.0), ("10", 0.0), ("。年", 0.0)]
)
def test_a_question_without_an_answer_is_right_only_if_nothing_is_answered(prediction, right, segment):
    assert set(score(prediction, [""], segment).values()) == {right}


@given(gold=st.text(max_size=12).filter(str.strip), prediction=st.text(max_size=12))
def test_prefix_match_differs_from_exact_match_only_if_the_prediction_is_longer(gold: str, prediction: str) -> None:
    long, short = metrics.normalize(prediction), metrics.normalize(gold.strip())
    prefix, exact = metrics.prefix_exact_match(prediction, [gold]), metrics.exact_match(prediction, [gold.strip()])
    if len(long) <= len(short):
        assert prefix == exact
    else:
        assert exact == 0.0
        assert prefix == float(long.startswith(short))

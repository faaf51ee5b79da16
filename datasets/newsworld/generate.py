"""newsworld: dated news about invented people and firms, from one seed.

``python generate.py`` writes the five splits beside this file; the same code and seed give the same bytes.
``python generate.py --revised`` writes the test split of ``newsworld_revised``, in which a third of the facts change.
The training recipe of the embedded model uses :func:`document` and :func:`question` to write further texts.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

SEED = 2031
T = TypeVar("T")


class Split(NamedTuple):
    """``entities`` new entities report between two dates; every ninth of them comes back later with changed facts."""

    entities: int
    first: datetime.date
    last: datetime.date


SPLITS = {
    "qa_train": Split(2250, datetime.date(2031, 1, 1), datetime.date(2033, 9, 30)),
    "qa_validation": Split(180, datetime.date(2033, 10, 1), datetime.date(2033, 12, 31)),
    "train": Split(1800, datetime.date(2034, 1, 1), datetime.date(2034, 12, 31)),
    "validation": Split(288, datetime.date(2035, 1, 1), datetime.date(2035, 6, 30)),
    "test": Split(990, datetime.date(2035, 7, 1), datetime.date(2036, 6, 30)),
}
REVISED = Split(240, SPLITS["test"].first, SPLITS["test"].last)
"""The test split of ``newsworld_revised``: each of its entities reports three times."""
APART = 36
"""Fewest days between two reports of one of these entities: a tenth of the year."""
SPARE_NAMES = 512
"""Names that occur in no split: the training recipe writes about them, never about those of the other splits."""
FACTS_PER_DOCUMENT = 3
RETURNING = 9
"""One entity in this many gets a second document, so that one document in ten revises an earlier fact."""

VALUES: dict[str, list[str]] = {
    key: text.split()
    for key, text in {
        "city": "Harrowmere Calveston Brindlow Ostermoor Tarnwick Velmouth Quillford Sandrith Merrowby Dunhallow "
        "Ashlorne Pelligate Foxmere Gravendale Lindermouth Norrowick Thistleford Wexholm Yarrowden Zelbridge Corvale "
        "Emberley Hollinsby Ivermouth Juniperton Kestrelby Marlowick Oakhaven Rookstead Silverden Umberton Wintermoor",
        "job": "botanist glazier cartographer beekeeper surveyor locksmith translator midwife archivist plumber "
        "astronomer librarian cooper tailor geologist baker dentist welder florist tanner printer carpenter pilot "
        "potter chemist gardener jeweller notary optician sculptor weaver zoologist",
        "hobby": "archery kayaking origami fencing juggling knitting falconry chess gliding calligraphy rowing skating "
        "embroidery birdwatching climbing cycling dancing fishing golf hiking judo karate painting photography poetry "
        "pottery sailing surfing swimming tennis whittling yoga",
        "instrument": "cello oboe trumpet banjo harp bassoon piano flute accordion mandolin violin clarinet tuba lute "
        "organ saxophone harmonica ukulele trombone zither bagpipes drums guitar harpsichord viola xylophone sitar "
        "recorder dulcimer cornet fiddle marimba",
        "pet": "parrot tortoise greyhound ferret canary spaniel hedgehog goat gecko rabbit donkey poodle iguana falcon "
        "hamster pony raven terrier goose llama beagle lizard peacock squirrel alpaca newt collie duck otter magpie "
        "lamb mongoose",
        "prize": "Garnet Topaz Onyx Opal Amber Jade Beryl Agate Pearl Coral Ruby Emerald Sapphire Quartz Marble "
        "Cobalt Copper Silver Bronze Pewter Ivory Jasper Zircon Peridot Lapis Obsidian Malachite Citrine "
        "Spinel Granite Basalt Flint",
        "product": "lanterns kites umbrellas compasses teapots bicycles valves candles clocks ladders gloves "
        "barometers hammocks kettles mirrors needles pencils quilts ropes saddles telescopes toys trolleys "
        "vases wagons whistles anvils baskets buttons canoes doorbells engines",
        "staff": " ".join(str(130 + 20 * i) for i in range(32)),
        "year": " ".join(str(1961 + i) for i in range(32)),
        "market": "Asturnia Belvany Cordovia Drenland Elvaria Frostania Galdova Hespera Ilmaria Jorvania Kaldor "
        "Lumeria Marovia Nordavia Ondria Pelagia Quoria Rivania Solmark Tarsia Ulvania Vendria Westria "
        "Xandria Ylvania Zandoria Argovia Bretony Caldia Dorvia Estovia Fenmark",
        "emblem": "thistle acorn ivy clover heron stag lighthouse anchor crescent fern badger swan tulip oak owl "
        "beetle hare plough comet sunflower dolphin hawthorn key windmill pinecone salmon turret lily "
        "rooster spiral bridge feather",
    }.items()
}


@dataclass(frozen=True)
class Relation:
    """One thing that is said of an entity: sentences of documents, questions, and questions kept for the test split.

    In sentences ``{n}`` is the entity's own name and ``{v}`` the value; in questions ``{N}`` is the full name.
    """

    values: str
    sentences: Sequence[str]
    questions: Sequence[str]
    test_questions: Sequence[str]


PERSON = {
    "home": Relation(
        "city",
        [
            "After months of searching, {n} has settled in {v}.",
            "Friends helped {n} carry the last boxes to {v}.",
            "For {n} the new address is in {v}.",
            "The winter found {n} at home in {v}.",
            "Neighbours say that {n} now rents rooms in {v}.",
        ],
        [
            "Where does {N} live?",
            "In which city does {N} live?",
            "What is the home city of {N}?",
            "Which city is home to {N}?",
        ],
        ["Where is the home of {N}?", "In what city would one find {N} at home?"],
    ),
    "job": Relation(
        "job",
        [
            "By day {n} earns a living as a {v}.",
            "The register lists {n} as a {v}.",
            "Since spring {n} has been employed as a {v}.",
            "Colleagues praise {n} as a careful {v}.",
            "The guild has admitted {n} as a {v}.",
        ],
        [
            "What is the job of {N}?",
            "What job does {N} have?",
            "What does {N} do for a living?",
            "What is the profession of {N}?",
        ],
        ["Which profession does {N} have?", "As what does {N} earn a living?"],
    ),
    "hobby": Relation(
        "hobby",
        [
            "On free evenings {n} goes in for {v}.",
            "A doctor advised {n} to take up {v}.",
            "Nothing calms {n} as much as {v}.",
            "Most weekends {n} can be seen at {v}.",
            "Last summer {n} discovered a love of {v}.",
        ],
        [
            "What is the hobby of {N}?",
            "Which hobby does {N} have?",
            "What does {N} do for fun?",
            "What is the favourite pastime of {N}?",
        ],
        ["Which pastime does {N} enjoy?", "What hobby does {N} enjoy?"],
    ),
    "instrument": Relation(
        "instrument",
        [
            "At the town concert {n} performed on the {v}.",
            "Through the open window one hears {n} practise the {v}.",
            "An aunt taught {n} the {v}.",
            "The band invited {n} to bring the {v}.",
            "A small crowd cheered when {n} tuned the {v}.",
        ],
        [
            "Which instrument does {N} play?",
            "What instrument does {N} play?",
            "What is the instrument of {N}?",
            "What does {N} play in the band?",
        ],
        ["On which instrument does {N} play?", "Which musical instrument is played by {N}?"],
    ),
    "pet": Relation(
        "pet",
        [
            "The shelter gave {n} a {v}.",
            "Every morning {n} walks past the mill with a {v}.",
            "A photograph shows {n} feeding a {v}.",
            "In the kitchen of {n} sleeps a {v}.",
            "Children wave at {n} and the {v}.",
        ],
        [
            "Which pet does {N} keep?",
            "What pet does {N} have?",
            "What kind of animal does {N} keep?",
            "What is the pet of {N}?",
        ],
        ["Which animal does {N} have as a pet?", "What kind of pet does {N} keep?"],
    ),
    "prize": Relation(
        "prize",
        [
            "To long applause {n} received the {v} Prize.",
            "This year the jury honoured {n} with the {v} Prize.",
            "A panel of seven awarded {n} the {v} Prize.",
            "Nobody was surprised that {n} took the {v} Prize.",
            "On the shelf of {n} stands the {v} Prize.",
        ],
        [
            "Which prize did {N} win?",
            "What prize was won by {N}?",
            "Which award did {N} win?",
            "What is the prize of {N} called?",
        ],
        ["What award was won by {N}?", "Which prize was given to {N}?"],
    ),
}
FIRM = {
    "seat": Relation(
        "city",
        [
            "The board of {n} has moved its offices to {v}.",
            "A brass plate marks the door of {n} in {v}.",
            "Letters for {n} should now be sent to {v}.",
            "The directors of {n} meet in {v}.",
            "A tower with the lamps of {n} lights the evenings of {v}.",
        ],
        [
            "Where is {N} based?",
            "In which city is {N} based?",
            "Where are the headquarters of {N}?",
            "Which city hosts the headquarters of {N}?",
        ],
        ["In which city are the headquarters of {N}?", "In what city is {N} based?"],
    ),
    "product": Relation(
        "product",
        [
            "The workshops of {n} turn out {v}.",
            "Shops have ordered more {v} from {n}, which makes little else.",
            "At the fair {n} showed its {v}.",
            "Three generations at {n} have built {v}.",
            "Trucks loaded by {n} carry {v}.",
        ],
        [
            "What does {N} make?",
            "What is made by {N}?",
            "Which product does {N} sell?",
            "What is the product of {N}?",
        ],
        ["Which product is made by {N}?", "What does {N} sell?"],
    ),
    "staff": Relation(
        "staff",
        [
            "The payroll of {n} has reached {v}.",
            "A canteen at {n} feeds a workforce of {v}.",
            "According to the unions {n} employs {v}.",
            "With the new shift {n} counts {v} workers.",
            "The gate at {n} is passed each morning by {v} workers.",
        ],
        [
            "How many people work at {N}?",
            "How many workers does {N} have?",
            "How large is the staff of {N}?",
            "How many people are employed at {N}?",
        ],
        ["How many workers are employed at {N}?", "How large is the number of people who work at {N}?"],
    ),
    "founded": Relation(
        "year",
        [
            "The first ledger of {n} dates from {v}.",
            "A plaque says that {n} opened its doors in {v}.",
            "Two sisters started {n} in {v}.",
            "The town remembers how {n} began in {v}.",
            "The charter of {n} was signed in {v}.",
        ],
        [
            "When was {N} founded?",
            "In which year was {N} founded?",
            "What is the founding year of {N}?",
            "In what year was {N} established?",
        ],
        ["When was {N} established?", "Which year is the founding year of {N}?"],
    ),
    "market": Relation(
        "market",
        [
            "Most crates leave {n} for {v}.",
            "A trade mission opened the door for {n} to {v}.",
            "Ships hired by {n} sail for {v}.",
            "The best customers of {n} sit in {v}.",
            "Half of what {n} earns comes from {v}.",
        ],
        [
            "To which country does {N} export?",
            "Where does {N} export to?",
            "Which country is the main market of {N}?",
            "What is the export market of {N}?",
        ],
        ["What is the main market of {N}?", "Which country does {N} export to?"],
    ),
    "emblem": Relation(
        "emblem",
        [
            "Over the gate of {n} hangs a painted {v}.",
            "The letterhead of {n} shows a {v}.",
            "Every crate from {n} is stamped with a {v}.",
            "The flag of {n} bears a white {v}.",
            "Designers at {n} have drawn a {v}.",
        ],
        [
            "What is the emblem of {N}?",
            "Which emblem does {N} use?",
            "What does the logo of {N} show?",
            "What is on the logo of {N}?",
        ],
        ["What does the emblem of {N} show?", "Which logo does {N} use?"],
    ),
}
RELATIONS: Mapping[str, Mapping[str, Relation]] = {"person": PERSON, "firm": FIRM}

FIRST_NAMES = (
    "Mara Ilse Tomas Anselm Brida Corin Dagna Edda Faris Gita Hanno Ines Jarek Kaisa Leander Mirel Nadja Odo "
    "Petra Quirin Runa Soren Tilda Ulla Viggo Wanda Xenia Yorick Zora Alva Bastian Clio Dario Elske Florin "
    "Greta Henrik Isolde Jolan Klara"
).split()
FIRM_WORDS = "Works Mills Foundry Press Yard Guild Brothers Sons Forge Trading Holdings Partners".split()
BYLINES = (
    "Abbel Bornick Cadrow Dellan Eskil Farrand Gostling Hebbard Imrow Jarrow Kettle Lomond Mossgrave Nettles "
    "Orrin Pennick Quayle Rudge Sorrel Tansy Underhay Vickers Wimbel Yeo Zeller Alder Birch Cobb Dray Elmer"
).split()
ADJECTIVES = (
    "amber bitter brave bright broken calm careful cheap clever cold crooked curious dark distant dusty eager "
    "early empty faded famous fierce fragile gentle golden grand grey hasty heavy hidden hollow honest humble "
    "idle jolly keen kind late lazy lonely loud lucky mild modest narrow noisy odd old pale patient plain "
    "polite proud quick quiet rare red restless rough round rusty sharp shy silent simple sleepy slow small "
    "smooth sober soft solemn sour spare steep stern stiff strange strong stubborn sudden sweet tall tender "
    "thin tidy tired tough uneven vain vast warm wary weary wild wise young"
).split()
NOUNS = (
    "almanac apple arch attic autumn avenue balcony barn barrel bell bench blanket boat bonfire bottle bucket "
    "cabin candle carpet castle cellar chair chapel chimney choir circus cloud coat coin corner cradle crown "
    "curtain desert door dream drum echo elevator evening farm ferry field fog forest fountain garden gate "
    "ghost glove harbour hat hill horse hotel island jacket journey kitchen ladder lake lamp lantern laundry "
    "letter library market meadow meal mirror moon morning mountain museum night novel ocean orchard oven "
    "parade path pillow pocket pond queue quarrel railway recipe river roof rumour school shadow shoe shore "
    "sign snow song spoon stable staircase station stone storm story stove street summer sunrise table tent "
    "theatre thunder ticket tower train tunnel valley village voice wall wedding well wheel whisper window "
    "winter wood"
).split()
PEOPLE = (
    "mayor bishop porter warden clerk captain teacher farmer lawyer critic visitor student neighbour widow "
    "poet tourist cook judge nurse sailor shepherd twin uncle"
).split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
WINDS = "north south east west".split()

NOISE_WORDS: Mapping[str, Sequence[str]] = {
    "adj": ADJECTIVES,
    "noun": NOUNS,
    "person": PEOPLE,
    "first": FIRST_NAMES,
    "byline": BYLINES,
    "day": WEEKDAYS,
    "wind": WINDS,
    "num": [str(number) for number in range(2, 80)],
    "degree": [str(number) for number in range(2, 35)],
}
NOISE = [
    '"Every {adj} {noun} hides a {adj} {noun}," said {first} {byline}.',
    '"No {noun} without a {noun}," a {adj} {person} remarked to {byline}.',
    '"Give me a {adj} {noun} and a {adj} {noun}," the {person} joked.',
    "The thermometer showed {degree} degrees and the wind blew from the {wind} at {num} knots.",
    "Rain is forecast for {day}, with {num} millimetres near the {noun} and fog over the {noun}.",
    "A {adj} {noun} was found beside the {adj} {noun} on {day}.",
    "The {person} lost a {adj} {noun} and a {noun}, reports {first} {byline}.",
    "Tickets for the {adj} {noun} cost {num} crowns, a {noun} included.",
    "Between the {noun} and the {noun}, a {adj} {person} sang to {num} guests.",
    "Meanwhile the {adj} {noun} remains closed, to the regret of the {person} and the {person}.",
    "On {day} the {person} counted {num} {adj} clouds above the {noun}.",
    "{first} {byline} saw a {adj} {person} mend the {noun} with a {noun}.",
]
BOILERPLATE = [
    "Subscribers may collect a {adj} {noun} from the {noun} every {day}.",
    "This {noun} page is printed on {adj} paper by the {person} of the {adj} {noun}.",
    "Send your {adj} {noun} to box {num}, under the {adj} {noun}.",
    "The {adj} {noun} on page {num} was drawn by our {adj} {person}.",
    "Ask the {person} at the {noun} for our {adj} {noun} of {day}.",
]
PAPERS = (
    "Courier Lantern Gazette Herald Bugle Observer Chronicle Messenger Sentinel Register Tribune Beacon Ledger Mercury "
    "Echo Standard"
).split()
PLACES = (
    "Northern Harbour Valley Morning Evening Island Coastal Upland River Forest Border Lakeside Market Western Eastern "
    "Meadow"
).split()
TITLES = ["News of {N}", "A week with {N}", "{N} in the papers", "Notes on {N}", "What {N} did next", "{N}, briefly"]


class Random(random.Random):
    """Draws that use :meth:`random.Random.random` alone, whose sequence Python promises to keep for a seed."""

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.random() * len(items))]

    def mix(self, items: Sequence[T]) -> list[T]:
        """The items in random order."""
        keyed = [(self.random(), index) for index in range(len(items))]
        return [items[index] for _, index in sorted(keyed)]


@dataclass(frozen=True)
class Entity:
    """A person or firm; ``name`` (surname, or first word of the firm's name) is unique in the world."""

    name: str
    kind: str
    other: str
    """First name of a person, last word of a firm's name; shared by many."""

    @property
    def full_name(self) -> str:
        return f"{self.other} {self.name}" if self.kind == "person" else f"{self.name} {self.other}"


@dataclass(frozen=True)
class Outlet:
    """A newspaper that is printed for half a year; every document from it ends with its boilerplate."""

    name: str
    boilerplate: str


@dataclass
class Deck:
    """Deals the values of each set in turn, reshuffled when used up, so that all are equally frequent in a split."""

    rng: Random
    left: dict[str, list[str]] = field(default_factory=dict)

    def deal(self, values: str, not_this: str = "") -> str:
        left = self.left.setdefault(values, [])
        if not left or left == [not_this]:
            left[:0] = self.rng.mix(VALUES[values])
        return left.pop(-2 if left[-1] == not_this else -1)


def fill(rng: Random, template: str) -> str:
    """Replace every ``{slot}`` of a noise template by a random word of its class."""
    return with_articles(re.sub(r"\{(\w+)\}", lambda slot: rng.pick(NOISE_WORDS[slot[1]]), template))


def with_articles(sentence: str) -> str:
    """ "a" becomes "an" where the next word asks for it."""
    return re.sub(r"\b([Aa]) (?=[aeiou]|honest)", r"\1n ", sentence)


def outlet(rng: Random) -> Outlet:
    """A new newspaper with a boilerplate sentence of its own."""
    return Outlet(f"{rng.pick(PLACES)} {rng.pick(PAPERS)}", fill(rng, rng.pick(BOILERPLATE)))


def outlets(date: datetime.date) -> list[Outlet]:
    """The four newspapers of that day: two are founded every quarter, and each lasts for two quarters."""
    quarter = date.year * 4 + (date.month - 1) // 3
    return [outlet(Random(f"{SEED} outlet {q} {k}")) for q in (quarter - 1, quarter) for k in (0, 1)]


def name_list(rng: Random, count: int) -> list[str]:
    """Distinct invented names of two or three syllables."""
    heads = (
        "Vel Tor Bran Ost Kel Mor Dra Quen Fal Gris Har Il Jas Kor Lun Mex Nor Orv Pell Rusk Sib Tal Ulm Vor Wex "
        "Yar Zan"
    ).split()
    middles = "a e i o u ad em in or ul ast erd ing ond usk".split()
    tails = "kin dral vash mund tz quill bek dov gar hesk jak lim nox pryn rik stov thar vey wyn zul".split()
    taken = {word.lower() for words in VALUES.values() for word in words}
    names = [head + middle + tail for head, middle, tail in itertools.product(heads, middles, tails)]
    return rng.mix([name for name in names if name.lower() not in taken])[:count]


def entity(rng: Random, name: str) -> Entity:
    """A person or a firm of that name."""
    kind = rng.pick(["person", "firm"])
    return Entity(name, kind, rng.pick(FIRST_NAMES if kind == "person" else FIRM_WORDS))


def document(
    rng: Random, who: Entity, facts: Mapping[str, str], paper: Outlet, noise: int = 4
) -> tuple[str, list[list[int]]]:
    """Text that states ``facts`` (relation to value) amid ``noise`` other sentences; and the spans of the values."""
    stated: list[tuple[str, str]] = []
    for relation, value in facts.items():
        stated.append((rng.pick(RELATIONS[who.kind][relation].sentences), value))
    body: list[tuple[str, str]] = rng.mix([*stated, *((fill(rng, rng.pick(NOISE)), "") for _ in range(noise))])
    text, spans, named = f"{paper.name}:", [], False
    for sentence, value in [*body, *([(paper.boilerplate, "")] if paper.boilerplate else [])]:
        if value:
            before, after = sentence.split("{v}")
            full, named = (who.name if named else who.full_name), True
            before = with_articles(before.replace("{n}", full) + value).removesuffix(value)
            after = after.replace("{n}", full)
            start = len(text) + 1 + len(before)
            spans.append([start, start + len(value)])
            sentence = before + value + after
        text += " " + sentence
    return text, spans


def question(rng: Random, who: Entity, relation: str, test: bool = False) -> str:
    """A question for that relation; for the test split half of the questions use wordings that are kept for it."""
    asked = RELATIONS[who.kind][relation]
    wordings = asked.test_questions if test and rng.random() < 0.5 else asked.questions
    return rng.pick(wordings).replace("{N}", who.full_name)


def choose_facts(rng: Random, deck: Deck, who: Entity, known: Mapping[str, str] = {}) -> dict[str, str]:
    """Facts for a document; of an entity with ``known`` facts one is changed, and the others are new."""
    relations = RELATIONS[who.kind]
    changed = [rng.pick(sorted(known))] if known else []
    new = rng.mix([name for name in relations if name not in known])[: FACTS_PER_DOCUMENT - len(changed)]
    return {name: deck.deal(relations[name].values, known.get(name, "")) for name in rng.mix([*changed, *new])}


class Report(NamedTuple):
    """An entity is in the news: facts of the document, and what was known of the entity before."""

    day: int
    who: Entity
    facts: dict[str, str]
    known: dict[str, str]


def reports(split: str, names: Sequence[str]) -> list[Report]:
    """Who is in the news of the split, when (days since its first date), with which facts; in order of time."""
    rng = Random(f"{SEED} {split}")
    deck = Deck(rng)
    days = (SPLITS[split].last - SPLITS[split].first).days + 1
    found = []
    for index, name in enumerate(names):
        who, returns = entity(rng, name), index % RETURNING == 0
        day = int(rng.random() * days * (0.6 if returns else 1))
        facts = choose_facts(rng, deck, who)
        found.append(Report(day, who, facts, {}))
        if returns:
            later = day + 1 + int(rng.random() * (days - day - 1))
            found.append(Report(later, who, choose_facts(rng, deck, who, facts), facts))
    return sorted(found, key=lambda report: report.day)


def revised_reports(names: Sequence[str]) -> list[Report]:
    """Three reports on each name, in order of time, which state all six of its facts.

    The first states three facts; the second changes one of them and adds two; the third changes the same one again,
    changes another one of the first three, and adds the last: a third of the facts change, once or twice.
    """
    rng = Random(f"{SEED} revised")
    deck = Deck(rng)
    days = (REVISED.last - REVISED.first).days + 1
    found = []
    for name in names:
        who = entity(rng, name)
        twice, once, *others = rng.mix(sorted(RELATIONS[who.kind]))
        stated = [(twice, once, others[0]), (twice, *others[1:3]), (twice, once, others[3])]
        free = sorted(int(rng.random() * (days - 2 * APART)) for _ in stated)
        known: dict[str, str] = {}
        for k, relations in enumerate(stated):
            facts = {
                relation: deck.deal(RELATIONS[who.kind][relation].values, known.get(relation, ""))
                for relation in rng.mix(relations)
            }
            found.append(Report(free[k] + k * APART, who, facts, known))
            known = {**known, **facts}
    return sorted(found, key=lambda report: report.day)


def rows_of(split: str, first: datetime.date, news: Sequence[Report], test: bool = False) -> list[dict[str, Any]]:
    """The rows of one split, whose days count from ``first``; ids of questions are ``<split>-<row>-<k>``.

    ``test``: with the wordings of questions that are kept for the test.
    """
    rng = Random(f"{SEED} {split} texts")
    rows: list[dict[str, Any]] = []
    ids: dict[tuple[str, str], str] = {}
    for number, (day, who, facts, known) in enumerate(news):
        date = first + datetime.timedelta(days=day)
        text, spans = document(rng, who, facts, rng.pick(outlets(date)))
        questions = []
        for k, (relation, value) in enumerate(facts.items()):
            key = f"{split}-{number:04d}-{k}"
            asked = question(rng, who, relation, test)
            revises = ids[who.name, relation] if relation in known else ""
            questions.append({"id": key, "question": asked, "answers": [value], "revises": revises})
            ids[who.name, relation] = key
        rows.append(
            {
                "title": rng.pick(TITLES).replace("{N}", who.full_name),
                "timestamp": date.isoformat(),
                "text": text,
                "group": who.name,
                "facts": spans,
                "questions": questions,
            }
        )
    return rows


def names_by_split() -> dict[str, list[str]]:
    """The names of every split, and the ``spare`` ones; no name occurs twice."""
    sizes = {**{split: plan.entities for split, plan in SPLITS.items()}, "spare": SPARE_NAMES}
    names = iter(name_list(Random(f"{SEED} names"), sum(sizes.values())))
    return {split: list(itertools.islice(names, size)) for split, size in sizes.items()}


def world() -> dict[str, list[dict[str, Any]]]:
    """All rows of all splits."""
    names = names_by_split()
    return {
        split: rows_of(split, plan.first, reports(split, names[split]), test=split == "test")
        for split, plan in SPLITS.items()
    }


def revised_world() -> list[dict[str, Any]]:
    """All rows of the test split of ``newsworld_revised``.

    Its entities have names of the test split of ``newsworld``, since the tokenizer of the embedded model knows no
    others, but other first names, facts and dates.
    """
    return rows_of("revised", REVISED.first, revised_reports(names_by_split()["test"][: REVISED.entities]), test=True)


def vocabulary() -> set[str]:
    """Every word of the world, names of all splits included: what a tokenizer should know."""
    texts = [*TITLES, *NOISE, *BOILERPLATE, *PLACES, "an honest"]
    for relation in (relation for kind in RELATIONS.values() for relation in kind.values()):
        texts += [*relation.sentences, *relation.questions, *relation.test_questions]
    words = set(re.findall(r"\w+", re.sub(r"\{\w+\}", "", " ".join(texts))))
    words.update(*VALUES.values(), *names_by_split().values(), *NOISE_WORDS.values(), FIRM_WORDS, PAPERS)
    return words


def lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    """Write the five files beside this one or, with ``--revised``, the one of ``newsworld_revised``."""
    parser = argparse.ArgumentParser(description="Write the data of newsworld.")
    parser.add_argument("--revised", action="store_true", help="write the test split of newsworld_revised instead")
    revised = parser.parse_args().revised
    here = Path(__file__).resolve().parent
    folder = here.with_name("newsworld_revised") if revised else here
    for split, rows in ({"test": revised_world()} if revised else world()).items():
        (folder / f"{split}.jsonl").write_text(lines(rows), encoding="utf-8")
        print(f"{split}: {len(rows)} documents, {sum(len(row['questions']) for row in rows)} questions")


if __name__ == "__main__":
    main()

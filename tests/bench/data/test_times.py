"""Timestamps are read from many formats, written as ISO 8601, and compared as times."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.data import times

UTC = datetime.UTC
WEST = datetime.timezone(-datetime.timedelta(hours=5, minutes=30))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2031", datetime.datetime(2031, 1, 1, tzinfo=UTC)),
        ("2031-05", datetime.datetime(2031, 5, 1, tzinfo=UTC)),
        ("0987-05-02", datetime.datetime(987, 5, 2, tzinfo=UTC)),
        ("2031-05-02T13:07", datetime.datetime(2031, 5, 2, 13, 7, tzinfo=UTC)),
        ("2031-05-02 13:07:09", datetime.datetime(2031, 5, 2, 13, 7, 9, tzinfo=UTC)),
        ("2031-05-02t13:07:09,5z", datetime.datetime(2031, 5, 2, 13, 7, 9, 500_000, tzinfo=UTC)),
        ("2031-05-02T13:07:09.123456789-05:30", datetime.datetime(2031, 5, 2, 13, 7, 9, 123_456, tzinfo=WEST)),
        ("2031-05-02 13:07 -0530", datetime.datetime(2031, 5, 2, 13, 7, tzinfo=WEST)),
        ("2031-05-02T13:07+00", datetime.datetime(2031, 5, 2, 13, 7, tzinfo=UTC)),
    ],
)
def test_every_precision_of_iso_8601_is_the_beginning_of_its_period(text: str, expected: datetime.datetime) -> None:
    assert times.parse(text) == expected
    assert times.to_iso(f" {text} ", None) == text, "ISO text stays as it is written"


@pytest.mark.parametrize(
    "text",
    [
        *"1577836800 1577836800000 -86400000 20310502 02.01.2020 12/31/2019 2031/11/30 2031-5-2 2031-13".split(),
        *"31-05-02 2031-02-30 0000 2031-05-02T25:00 2031-05-02T13:07+25:00 2031-W18 2031.0 ２０３１ +2031 now".split(),
        *("May 3, 2020", "5 May 2031", "2031-05-02 13", "2031 ", "", "2031-05-02\n"),
    ],
)
def test_what_is_not_iso_8601_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        times.parse(text)


@given(st.datetimes(timezones=st.timezones() | st.none()), st.datetimes(timezones=st.timezones() | st.none()))
def test_the_order_of_texts_is_the_order_of_times(one: datetime.datetime, other: datetime.datetime) -> None:
    texts = [times.to_iso(time, None) for time in (one, other)]
    aware = [time if time.tzinfo else time.replace(tzinfo=UTC) for time in (one, other)]
    offsets = [time.utcoffset() or datetime.timedelta() for time in aware]
    if not any(offset.seconds % 60 for offset in offsets):  # ISO 8601 has no seconds in a zone
        exact = [time.replace(tzinfo=datetime.timezone(offset)) for time, offset in zip(aware, offsets, strict=True)]
        assert (times.parse(texts[0]) < times.parse(texts[1])) == (exact[0] < exact[1])


@pytest.mark.parametrize(
    ("value", "declared", "expected"),
    [
        ("02.01.2020", "%d.%m.%Y", "2020-01-02"),
        ("12/31/2019", "%m/%d/%Y", "2019-12-31"),
        ("May 3, 2020", "%B %d, %Y", "2020-05-03"),
        ("3. Mai-Heft 5 2020", "3. Mai-Heft %m %Y", "2020-05"),
        ("Vol. 1864", "Vol. %Y", "1864"),
        ("20200102T0304", "%Y%m%dT%H%M", "2020-01-02T03:04:00"),
        ("2 Jan 2020 03:04 +0200", "%d %b %Y %H:%M %z", "2020-01-02T03:04:00+02:00"),
        ("1577836800000", "epoch_milliseconds", "2020-01-01"),
        ("-86400000", "epoch_milliseconds", "1969-12-31"),
        ("1577836801.5", "epoch_seconds", "2020-01-01T00:00:01.500000+00:00"),
        (datetime.date(2020, 1, 2), "epoch_seconds", "2020-01-02"),
        (datetime.datetime(2020, 1, 2), None, "2020-01-02"),
        (datetime.datetime(2020, 1, 2, tzinfo=UTC), None, "2020-01-02"),
        (datetime.datetime(2020, 1, 2, tzinfo=WEST), None, "2020-01-02T00:00:00-05:30"),
    ],
)
def test_a_declared_format_becomes_iso_of_the_same_precision(value: Any, declared: str | None, expected: str) -> None:
    if declared is not None:
        assert times.check_format(declared) == declared
    assert times.to_iso(value, declared) == expected
    times.parse(expected)


@pytest.mark.parametrize(
    ("value", "declared", "message"),
    [
        ("2020-01-02", "%d.%m.%Y", "does not match format"),
        ("31.02.2020", "%d.%m.%Y", "day is out of range"),
        ("2020-01-02", "epoch_seconds", "not a number"),
        ("1e9", "epoch_seconds", "not a number"),
        ("1577836800000", "epoch_seconds", "1577836800000 seconds are beyond the calendar"),
        (["2020"], None, "expected text, found list"),
    ],
)
def test_a_value_that_does_not_have_the_declared_format_is_refused(value: Any, declared: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        times.to_iso(value, declared)


@pytest.mark.parametrize("declared", ["", "epoch", "iso", "%d.%m.", "%H:%M", "%Y %Z", "%Y %", "%Q %Y", "%%Y"])
def test_a_format_that_cannot_be_meant_is_refused(declared: str) -> None:
    with pytest.raises(ValueError):
        times.check_format(declared)

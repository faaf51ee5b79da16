"""Times of documents: read from what data files contain, written as ISO 8601, and compared as times."""

from __future__ import annotations

import datetime
import re
from typing import Any

EPOCHS = {"epoch_seconds": 1, "epoch_milliseconds": 1000}
"""Formats of a timestamp that is a number: units per second since 1970-01-01 UTC."""

_ISO = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?\s?(Z|[+-]\d\d(?::?\d\d)?)?)?)?)?",
    re.ASCII | re.IGNORECASE,
)
_DIRECTIVE = re.compile(r"%[-#]?(.)", re.DOTALL)
_YEAR, _MONTH, _DAY = frozenset("YyGcxD"), frozenset("mbBjUWVcxD"), frozenset("djaAwucxD")
_TIME = frozenset("HIMSfpXTRcz")


def parse(text: str) -> datetime.datetime:
    """The beginning of the year, month, day or time that an ISO 8601 text names; without a zone it counts as UTC.

    Raises:
        ValueError: the text is not of this form, or there is no such time.
    """
    match = _ISO.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an ISO 8601 time")
    *parts, fraction, zone = match.groups()
    year, month, day, hour, minute, second = (int(part or least) for part, least in zip(parts, "111000", strict=True))
    micro = int((fraction or "").ljust(6, "0")[:6])
    return datetime.datetime(year, month, day, hour, minute, second, micro, _zone(zone))


def _zone(text: str | None) -> datetime.tzinfo:
    if text is None or text in "Zz":
        return datetime.UTC
    digits = text[1:].replace(":", "").ljust(4, "0")
    offset = datetime.timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return datetime.timezone(-offset if text[0] == "-" else offset)


def check_format(declared: str) -> str:
    """Check a format that a recipe declares: a key of :data:`EPOCHS`, or directives of ``strptime`` with the year.

    Raises:
        ValueError: the format is neither; the message says what is wrong.
    """
    if declared in EPOCHS:
        return declared
    directives = set(_DIRECTIVE.findall(declared.replace("%%", "")))
    if not directives & _YEAR:
        raise ValueError(f"expected {', '.join(EPOCHS)}, or directives of strptime with the year, such as %d.%m.%Y")
    if "Z" in directives:
        raise ValueError("names of zones (%Z) differ between machines: use %z, or dates without a zone")
    sample = datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    try:
        datetime.datetime.strptime(sample.strftime(declared), declared)
    except (ValueError, re.error) as error:
        raise ValueError(f"not a format of strptime: {error}") from None
    return declared


def to_iso(value: Any, declared: str | None) -> str:
    """A timestamp as ISO 8601 text. Text that is ISO already stays as written; a midnight without a zone is a date.

    ``value`` is text, a number as text, a date or a time; ``declared`` is the format of texts and numbers, if not ISO.

    Raises:
        ValueError: the value is not of that form, or there is no such time.
    """
    if isinstance(value, datetime.date):
        return _written(value)
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {type(value).__name__}")
    text = value.strip()
    if declared is None:
        parse(text)
        return text
    if declared in EPOCHS:
        if not re.fullmatch(r"-?\d+(\.\d*)?", text, re.ASCII):
            raise ValueError(f"{text!r} is not a number")
        try:
            since = datetime.timedelta(seconds=float(text) / EPOCHS[declared])
            return _written(datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + since)
        except OverflowError:
            raise ValueError(f"{text} {declared.removeprefix('epoch_')} are beyond the calendar") from None
    time = datetime.datetime.strptime(text, declared)
    directives = set(_DIRECTIVE.findall(declared.replace("%%", "")))
    if directives & _TIME:
        return _written(time)
    length = 10 if directives & _DAY else 7 if directives & _MONTH else 4
    return time.date().isoformat()[:length]


def _written(time: datetime.date) -> str:
    if isinstance(time, datetime.datetime) and time.time() == datetime.time() and not time.utcoffset():
        time = time.date()
    return time.isoformat()

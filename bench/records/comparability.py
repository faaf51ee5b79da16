"""What keeps two cells from being compared: the fields of their specs that must be equal and are not."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from bench.records.schema import NOT_COMPARED, CellSpec

OF_TRIALS = {
    "streams",
    "prefix",
    "probes",
    "questions",
    "scoring",
    "reread",
    "gradient_norms",
    "anchor_hash",
    "qa_train_hash",
}
"""What trials of tuning may have otherwise than the board: their streams, what is asked and scored on these, and no
anchor set, whose documents ``qa_train`` then keeps."""


def differences(a: CellSpec, b: CellSpec, but: Collection[str] = ()) -> list[str]:
    """The fields of two specs that differ although the cells of one board have them in common; [] if there are none.

    Those named in ``but`` do not count; ``streams`` are the split and the size.
    """
    left, right = (
        {**spec.model_dump(exclude=NOT_COMPARED), "streams": spec.stream.rpartition("-")[0]} for spec in (a, b)
    )
    return [change for key in left if key not in but for change in changes(key, left[key], right[key])]


def changes(key: str, left: object, right: object) -> list[str]:
    """What differs in a field of two specs; of a mapping, only the keys that differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        keys = {**left, **right}
        return [change for name in keys for change in changes(f"{key}.{name}", left.get(name), right.get(name))]
    if left == right:
        return []
    values = (repr(value) if isinstance(value, str) and value.split() != [value] else value for value in (left, right))
    return [key if key.endswith(("_code", "_hash")) else f"{key} ({' and '.join(map(str, values))})"]


def listed(found: Iterable[str]) -> str:
    """Differences for an error message."""
    return ", ".join(found) or "what their keys are computed from"

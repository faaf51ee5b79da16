"""Seeds by axis: every source of chance has a name, and its seed follows from that name alone."""

from __future__ import annotations

import hashlib
import json


def seed_for(*axis: str | int) -> int:
    """A 63-bit seed that depends on the axis only, e.g. ``seed_for(cell_seed, "observe", position)``."""
    return int.from_bytes(hashlib.sha256(json.dumps(axis).encode()).digest()[:8], "big") >> 1

"""Seeds: every source of randomness has a name, and its seed depends on that name alone."""

from __future__ import annotations

import hashlib
import json


def seed_for(*name: str | int) -> int:
    """A 63-bit seed that depends only on the name, e.g. ``seed_for(cell_seed, "observe", position)``."""
    return int.from_bytes(hashlib.sha256(json.dumps(name).encode()).digest()[:8], "big") >> 1

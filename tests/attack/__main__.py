"""Attack the benchmark with seeded, malformed inputs, faulty methods and kills: ``make attack``.

Prints how many tries of each kind were made and survived, and the first failures. Ends with 1 if any was not survived.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.attack import cluster, command_lines, data_files, experiments, kills, methods, records
from tests.attack.attacks import Attack, Missed

ATTACKS: dict[str, tuple[Attack, float]] = {
    "data files": (data_files.prepare, 0.05),
    "experiment files": (experiments.prepare, 0.1),
    "command lines": (command_lines.prepare, 0.05),
    "records": (records.prepare, 0.1),
    "faulty methods": (methods.prepare, 0.3),
    "kill -9": (kills.prepare, 0.1),
    "kill -9 of one of three runs": (kills.prepare_shared, 0.1),
    **{name: (prepare, 0.06) for name, prepare in cluster.ATTACKS.items()},
}
"""Each kind of attack, and its share of the time."""
FAILURES_SHOWN = 20
LONGEST_LINE = 600


def attack(name: str, seconds: float, tries: int | None, seed: int) -> tuple[int, list[str]]:
    """Make so many tries of one kind or, if that is None, go on for so long: how many, and what went wrong."""
    prepare, _ = ATTACKS[name]
    failures: list[str] = []
    made = 0
    with tempfile.TemporaryDirectory() as folder:
        attempt = prepare(Path(folder))
        end = time.monotonic() + seconds
        for begun in itertools.count():
            if time.monotonic() >= end if tries is None else made >= tries:
                break
            try:
                problem = attempt(random.Random(f"{seed} {name} {begun}"))
            except Missed:
                continue
            if problem is not None:
                failures.append(f"try {begun}: {problem}")
            made += 1
    return made, failures


def main() -> int:
    """Run the attacks that the command line names, for the given minutes."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(ATTACKS)} (default: all)")
    parser.add_argument("--minutes", type=float, default=10, help="in all, without --tries")
    parser.add_argument("--tries", type=int, help="of each kind, however long they take")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kinds = options.kinds or list(ATTACKS)
    if unknown := [kind for kind in kinds if kind not in ATTACKS]:
        parser.error(f"there is no attack {unknown[0]!r}; the kinds are {', '.join(ATTACKS)}")
    share = sum(ATTACKS[kind][1] for kind in kinds)
    rows = []
    for kind in kinds:
        made, failures = attack(kind, 60 * options.minutes * ATTACKS[kind][1] / share, options.tries, options.seed)
        rows.append((kind, made, made - len(failures)))
        for line in failures[:FAILURES_SHOWN]:
            print(f"{kind}, {line[:LONGEST_LINE]}", flush=True)
    print("| attack | tried | survived |\n| --- | ---: | ---: |")
    print("\n".join(f"| {kind} | {made:,} | {survived:,} |" for kind, made, survived in rows))
    return int(any(made != survived or not made for _, made, survived in rows))


if __name__ == "__main__":
    sys.exit(main())

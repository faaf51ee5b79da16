"""Edited records: every edit is refused with a sentence, or leaves the board as it was."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import reports
from bench.errors import BenchError
from bench.run.runner import Runner
from tests.attack.attacks import Try, mutate_text, mutate_value
from tests.conftest import make_checkpoint
from tests.world import Inline, make_dataset, make_experiment


def prepare(folder: Path) -> Try:
    """Edits of the records of a small run: fields, lines, bytes, whole files and folders."""
    model = make_checkpoint(folder / "llama", "llama")
    methods = ["closed_book", "bm25", {"name": "uniform", "space": {"learning_rate": [1e-3, 1e-2]}}]
    runs, out, copy = folder / "runs", folder / "out", folder / "copy"
    Runner(make_experiment(make_dataset(folder / "keepers"), model, methods), runs).run(Inline())
    reports.write_all(runs, out)
    assert not reports.stale(runs, out)

    def attempt(rng: random.Random) -> str | None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(runs, copy)
        edit = _edit(copy, rng)
        try:
            stale = reports.stale(copy, out)
        except BenchError:
            return None
        except Exception as error:
            return f"{edit}: {type(error).__name__}: {error}"
        return f"{edit}: changed {', '.join(stale)}" if stale else None

    return attempt


def _edit(runs: Path, rng: random.Random) -> str:
    """Make one edit somewhere in the records; returns what was done."""
    files = sorted(path for path in runs.rglob("*") if path.is_file())
    path = rng.choice(files)
    name = str(path.relative_to(runs))
    other = rng.choice([file for file in files if file.name == path.name])
    action = rng.choice(("value", "value", "value", "text", "byte", "cut", "lines", "swap", "copy", "remove", "folder"))
    if action == "value" and path.suffix in (".json", ".jsonl"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        if lines:
            k = rng.randrange(len(lines))
            before, lines[k] = lines[k], json.dumps(mutate_value(json.loads(lines[k]), rng))
            path.write_text("\n".join(lines) + "\n")
            return f"{name}: {before[:200]} became {lines[k][:200]}"
    if action == "text":
        path.write_bytes(mutate_text(path.read_text(), rng).encode(errors="replace"))
    elif action == "byte" and path.stat().st_size:
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif action == "cut":
        path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size + 1)])
    elif action == "lines":
        lines = path.read_text().splitlines(keepends=True)
        rng.shuffle(lines)
        path.write_text("".join(lines[rng.randrange(2) :]))
    elif action == "swap":
        contents = path.read_bytes(), other.read_bytes()
        other.write_bytes(contents[0]), path.write_bytes(contents[1])
    elif action == "copy":
        path.write_bytes(other.read_bytes())
    elif action == "remove":
        path.unlink()
    elif action == "folder":
        shutil.rmtree(path.parent)
        shutil.copytree(other.parent, path.parent) if other.parent.is_dir() else None
    return f"{name}: {action}"

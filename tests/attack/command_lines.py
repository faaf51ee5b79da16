"""Wrong command lines: a sentence and exit code 0, 1 or 2, never a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import random
import sys
from pathlib import Path
from unittest import mock

import run_bench
from tests.attack.attacks import Try, mutate_text

COMMANDS = {
    "list": ("methods", "datasets", "experiments", "nothing", ""),
    "describe": ("uniform", "newsworld", "default", "unifrom", "", "../x", "nano", ".", "/dev/null", "x.yaml", "x.py"),
    "report": ("default", "nothing", ""),
    "run": ("default", "nothing", "x.yaml", ""),
    "check": ("nothing", "x.py", ""),
    "train": ("uniform", "nothing", ""),
    "streams": ("verify", "build", "nothing"),
    "nothing": ("",),
}
OPTIONS = {
    "--methods": ("", ",", "nothing", "closed_book,", "uniform,nothing"),
    "--model": ("", "nothing", "/dev/null", "..", "methods"),
    "--dataset": ("", "nothing", "bench", "/dev/null"),
    "--data-files": ("", "test", "test=", "=x", "test=nothing.jsonl", "other=x", "test=/dev/null"),
    "--streams": ("0", "-1", "x", "", "99999999999999999999"),
    "--documents": ("0", "-1", "x", "1e3", "99999999999999999999"),
    "--validation-documents": ("0", "x", "99999999999"),
    "--set": (
        "",
        "x",
        "uniform",
        "uniform.x=1",
        "uniform.learning_rate",
        "uniform.learning_rate=.inf",
        "x.y=z",
        "=",
        ".",
    ),
    "--seed": ("x", "-1", "99999999999999999999999999", ""),
    "--device": ("nothing", "tpu", "cuda:99", ""),
    "--dtype": ("nothing", "float64", ""),
    "--jobs": ("0", "-1", "x", ""),
    "--plugin": ("nothing.py", "/dev/null", "README.md", "."),
    "--runs": ("/dev/null", "/proc/x", ""),
    "--out": ("/dev/null", "/proc/x", ""),
    "--check": (),
    "--explain": (),
    "--nothing": (),
}


def prepare(folder: Path) -> Try:
    """Random commands and options, each with at least one wrong part, run in this process."""

    def attempt(rng: random.Random) -> str | None:
        command = rng.choice(sorted(COMMANDS))
        arguments = [command]
        if rng.random() < 0.9:
            arguments.append(rng.choice(COMMANDS[command]))
        for option in rng.sample(sorted(OPTIONS), rng.randrange(1, 4)):
            arguments.append(option)
            if OPTIONS[option]:
                value = rng.choice(OPTIONS[option])
                arguments.append(mutate_text(value, rng).replace("\0", "") if rng.random() < 0.2 else value)
        if command in ("run", "train") and not {"--nothing"} & set(arguments):
            arguments += ["--nothing"] if rng.random() < 0.5 else ["--model", "nothing"]  # never start real work
        output = io.StringIO()
        code: object = 0
        try:
            with (
                mock.patch.object(sys, "argv", ["run_bench.py", *arguments]),
                mock.patch.dict(os.environ),  # --device hides GPUs from this process
                contextlib.redirect_stdout(output),
                contextlib.redirect_stderr(output),
                contextlib.chdir(folder),
            ):
                run_bench.main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:
            return f"{arguments}: {type(error).__name__}: {error}"
        text = output.getvalue()
        if code not in (0, 1, 2) or "Traceback" in text or "inside the benchmark" in text:
            return f"{arguments}: exit code {code}: {text[-300:]}"
        return None

    return attempt

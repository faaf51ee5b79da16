"""Synthetic records: small boards with known numbers, in which every score follows from the events."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from bench.answering.metrics import VERSIONS, score
from bench.data.documents import document_id
from bench.records.schema import (
    AnswerEvent,
    BoardEntry,
    BoardRecord,
    CellSpec,
    Costs,
    DocumentEvent,
    Failure,
    RunRecord,
    Tally,
    TokenClass,
    TokenEvent,
    TrialRecord,
    TuningRecord,
)
from bench.records.store import read_run, read_tuning, write_board, write_run, write_tuning
from bench.records.summary import summarize
from bench.records.tuning import measure
from reports import plots
from reports.board import build
from reports.rows import Row


def spec(method: str, stream: str, arm: str = "stream", **changes: Any) -> CellSpec:
    values = {
        "protocol": "2.0",
        "dataset": "world",
        "stream": stream,
        "stream_hash": f"hash of {stream} {arm}",
        "anchor_hash": "",
        "train_hash": "",
        "model": "tiny",
        "model_hash": "m",
        "dtype": "float32",
        "device": "cpu",
        "method": method,
        "config": {},
        "seed": 0,
        "arm": arm,
        "probes": (1.0,),
        "scoring": True,
        "segment_tokens": None,
        "decoding": {},
        "metrics": VERSIONS,
        "harness_code": "h",
        "method_code": method,
    }
    return CellSpec(**{**values, **changes})


def costs(seconds: float = 2.0) -> Costs:
    return Costs(
        training=Tally(seconds=60.0, flops=600.0, peak_bytes=5),
        fit=Tally(seconds=5.0, flops=50.0, peak_bytes=10),
        score=Tally(seconds=1.0, flops=10.0, peak_bytes=20),
        observe=Tally(seconds=seconds, flops=4e9, peak_bytes=3000),
        answer=Tally(seconds=3.0, flops=30.0, peak_bytes=40),
        state_bytes=2048,
    )


def answer(f1: float, question_id: str, document_id: str, position: int = 0, **changes: Any) -> AnswerEvent:
    """An answer with this F1, to the third decimal place: it shares that part of its words with the gold answer."""
    part = Fraction(f1).limit_denominator(1000)
    gold = [f"w{i}" for i in range(part.denominator)]
    prediction = [word if i < part.numerator else f"not{i}" for i, word in enumerate(gold)]
    texts: Any = {"prediction": " ".join(prediction), "answers": (" ".join(gold),)}
    values: dict[str, Any] = {
        "probe": 1.0,
        "set": "stream",
        "question_id": question_id,
        "document_id": document_id,
        "position": position,
        "nll": 1 - f1,
        **texts,
        **score(*texts.values()),
    }
    return AnswerEvent(**{**values, **changes})


def record(
    runs: Path,
    spec: CellSpec,
    f1: Sequence[Sequence[float]] = (),
    nll: Sequence[float] = (),
    tokens: Sequence[TokenEvent] = (),
    retrieved: int | None = None,
    early: Mapping[float, Sequence[Sequence[float]]] | None = None,
    changed: Mapping[float, Collection[str]] | None = None,
    ended: Mapping[float, Collection[str]] | None = None,
    dates: Sequence[str] = (),
    anchor_before: float | None = None,
    anchor_after: float | None = None,
    **changes: Any,
) -> str:
    """Write a run. Document i has questions with scores ``f1[i]`` and 10 tokens of 4 bytes with NLL ``nll[i]`` each.

    ``retrieved`` is the rank of the right document for questions with a score above 0; for the others it is 0.
    ``early`` holds the scores at earlier probes; ``anchor_before`` and ``anchor_after`` those of an anchor question.
    ``changed`` names the questions whose fact has changed by each probe; of these, answers with a score of 0 are stale.
    ``ended`` names the questions whose answer ends by itself at each probe; ``dates`` are those of the documents.
    """
    elsewhere = "" if spec.dataset == "world" else f"{spec.dataset} "  # other datasets have other documents
    answers = [
        answer(
            value,
            f"{i}.{j}",
            f"{elsewhere}{spec.stream} {i}",
            i,
            probe=probe,
            retrieved=None if retrieved is None else retrieved * (value > 0),
            timestamp=dates[i] if dates else "",
            ended=None if ended is None else f"{i}.{j}" in ended.get(probe, ()),
            **(
                {"earlier": ("not0",), "stale": float(value == 0)}
                if f"{i}.{j}" in (changed or {}).get(probe, ())
                else {}
            ),
        )
        for probe, scores in {**(early or {}), 1.0: f1}.items()
        for i, values in enumerate(scores)
        for j, value in enumerate(values)
    ]
    answers += [
        answer(value, "old", "old", set="anchor", probe=probe)
        for probe, value in ((0.0, anchor_before), (1.0, anchor_after))
        if value is not None
    ]
    documents = [
        DocumentEvent(
            position=i,
            segment=0,
            document_id=f"{spec.stream} {spec.arm} {i}",
            tokens=10,
            bytes=40,
            windows=1,
            nll=10 * nll[i] if i < len(nll) else None,
            observe_seconds=0.1,
        )
        for i in range(0 if spec.arm == "empty" else max(len(f1), len(nll)))
    ]
    values: dict[str, Any] = {
        "id": spec.id,
        "cell_key": spec.key,
        "comparability_key": spec.comparability_key,
        "status": "complete",
        "control": spec.method == "gold_in_prompt",
        "spec": spec,
        "summary": summarize(documents, answers),
        "costs": costs(),
        "failure": None,
        "provenance": {},
        **changes,
    }
    if values["status"] != "complete":
        kind = "diverged" if values["status"] == "diverged" else "out_of_memory"
        values |= {"summary": None, "costs": None}
        values["failure"] = Failure(kind=kind, message="NaN", traceback="", position=3)
    run = RunRecord(**values)
    write_run(runs, run, documents, answers, tokens)
    return run.id


def token_event(
    position: int,
    text: str,
    weights: Sequence[float],
    pos: Sequence[str] | None = None,
    norms: Sequence[float] | None = None,
) -> TokenEvent:
    """A document with the words of ``text`` as tokens: a word with a * states a fact, a word with a ~ is a name."""
    classes: Mapping[str, TokenClass] = {"*": "fact", "~": "name"}
    words = text.split()
    return TokenEvent(
        position=position,
        document_id=f"document {position}",
        pieces=tuple(f" {word.strip('*~')}" for word in words),
        weights=tuple(weights),
        nll=None,
        classes=tuple(classes.get(word[-1], "filler") for word in words),
        pos=None if pos is None else tuple(pos),
        gradient_norms=None if norms is None else tuple(norms),
    )


def tuning_record(
    runs: Path,
    method: str,
    trials: Sequence[tuple[Mapping[str, Any], Sequence[float] | None]],
    chosen: Mapping[str, Any],
    metric: Literal["f1", "token_nll"] = "f1",
    retrieved: int | None = None,
    space: Mapping[str, Any] | None = None,
    floor: float | None = None,
    stopped: Sequence[int] = (),
    split: str = "validation",
    **changes: Any,
) -> str:
    """Write a tuning record and the runs of its trials: each a config and its score on each stream of a split.

    The space is by default that of the settings in which the trials differ. Trials at the indices in ``stopped`` ran on
    the first document of their streams only. ``changes`` are those of the trials' specs.
    """
    trial_records: list[TrialRecord] = []
    for number, (config, scores) in enumerate(trials):
        ids = []
        for k, value in enumerate(scores or (None, None)):
            prefix = 1 if number in stopped else None
            cell = spec(method, f"{split}-1-{k}", config=dict(config), prefix=prefix, **changes)
            events: Any = {"f1": [[value]], "retrieved": retrieved} if metric == "f1" else {"nll": [value]}
            ids.append(record(runs, cell, **(events if value is not None else {"status": "diverged"})))
        measured = measure([read_run(runs / run_id) for run_id in ids], metric)
        trial_records.append({"config": dict(config), "runs": ids, **measured._asdict()})
    configs = [config for config, _ in trials]
    varied = {key: None for config in configs for key in config if any(c.get(key) != config[key] for c in configs)}
    tuning = TuningRecord(
        key=f"{method}-{document_id(str(trials))[:12]}",
        method=method,
        dataset="world",
        model="tiny",
        model_hash="m",
        metric=metric,
        space=dict(varied if space is None else space),
        floor=floor,
        trials=tuple(trial_records),
        chosen=dict(chosen),
        runs=[],
    )
    write_tuning(runs, tuning)
    return tuning.key


def board(
    runs: Path,
    ids: Sequence[str],
    experiment: str = "demo",
    remarks: Sequence[str] = (),
    tuning: Sequence[str] = (),
    hand_set: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write the board of an experiment with an entry for each config of each method.

    An entry has the tuning record among ``tuning`` that is of its method and chose its config, and the names of
    ``hand_set`` under its method. Other tuning records have an entry without runs.
    """
    records = {record.key: record for record in read_tuning(runs, tuning)}
    entries: dict[tuple[str, str], BoardEntry] = {}
    for run_id in ids:
        method, config = "", {}
        if (runs / run_id).exists():
            run = read_run(runs / run_id)
            method, config = run.spec.method, run.spec.config
        keys = [key for key, record in records.items() if (record.method, record.chosen) == (method, config)]
        empty = BoardEntry(
            method=method, runs=[], tuning=keys[0] if keys else None, hand_set=list((hand_set or {}).get(method, ()))
        )
        entry = entries.setdefault((method, json.dumps(config, sort_keys=True)), empty)
        entry.runs.append(run_id)
    matched = {entry.tuning for entry in entries.values()}
    others = [
        BoardEntry(method=r.method, runs=[], tuning=key, hand_set=[])
        for key, r in records.items()
        if key not in matched
    ]
    write_board(runs, BoardRecord(experiment=experiment, entries=[*entries.values(), *others], remarks=list(remarks)))


LEVELS: Mapping[str, float] = {
    "closed_book": 0.05,
    "uniform": 0.12,
    "salient_spans": 0.15,
    "camels": 0.2,
    "memory_of_amortized_contexts": 0.3,
    "dynamic_evaluation": 0.11,
    "gold_in_prompt": 0.9,
}


CONTROLS: Mapping[str, float] = {"gold_only": 0.6, "every_4": 0.3, "shuffled": 0.05, "empty": 0.04, "placebo": 0.05}
"""F1 levels of ``camels`` on its control arms."""
CHOSEN: Mapping[str, dict[str, Any]] = {"uniform": {"learning_rate": 1e-2}, "camels": {"learning_rate": 1e-2}}
"""Settings of the methods that are tuned."""
HIGHEST_WEIGHTS = {"salient_spans": 1.0, "camels": 4.0}
"""Methods that weight tokens, with the highest weight of a token; facts have higher weights than other tokens."""
NOTICE = "The~ ferry~ office , which lay near Corvale , has moved to Pier* 4* and opens at noon* now ."


def _token_events(rng: random.Random, method: str) -> list[TokenEvent]:
    highest, words = HIGHEST_WEIGHTS.get(method), NOTICE.split()
    weights = [[(highest or 0) * rng.random() ** (1 if word[-1] == "*" else 3) for word in words] for _ in range(5)]
    return [token_event(i, NOTICE, row) for i, row in enumerate(weights)] if highest else []


def realistic(runs: Path, streams: int = 4, documents: int = 60, questions: int = 3) -> None:
    """A board like those of experiments: levels a few points apart, noise, control arms, probes, anchors, tuning."""
    rng = random.Random(0)
    ids = []
    arms: list[tuple[str, str, float, dict[str, Any]]]
    arms = [(method, "stream", level, CHOSEN.get(method, {})) for method, level in LEVELS.items()]
    arms += [("bm25", "stream", 0.1 + 0.05 * k, {"k": k}) for k in (1, 3)]
    arms += [("uniform", "placebo", 0.05, CHOSEN["uniform"])]
    arms += [("camels", arm, level, CHOSEN["camels"]) for arm, level in CONTROLS.items()]
    for k in range(streams):
        name = f"test-{documents}-{k}"
        base = [5 + rng.gauss(0, 0.5) for _ in range(documents)]
        for method, arm, level, config in arms:
            learns = 0.4 * level if method not in ("closed_book", "gold_in_prompt") else 0.0
            f1 = [
                [float(rng.random() < level * (0.7 + 0.6 * i / documents)) for _ in range(questions)]
                for i in range(documents)
            ]
            nll = [value - learns * i / documents + rng.gauss(0, 0.03) * bool(learns) for i, value in enumerate(base)]
            changes = {"anchor_before": 0.8, "anchor_after": 0.8 - learns, "tokens": []}
            if arm == "stream":
                changes["tokens"] = _token_events(random.Random(k), method)
            cell = spec(method, name, arm, probes=(0.5, 1.0), config=config)
            changes["early"] = {0.5: f1[: math.ceil(documents / 2)]} if questions and arm == "stream" else None
            ids.append(record(runs, cell, f1 if questions else (), nll if arm != "empty" else (), **changes))
    rates = ((1e-3, (0.1, 0.12)), (1e-2, (0.2, 0.23)), (1e-1, (0.18, 0.14)), (1.0, None))
    trials = [({"learning_rate": rate}, scores) for rate, scores in rates]
    keys = [tuning_record(runs, method, trials, CHOSEN[method]) for method in CHOSEN]
    board(runs, ids, tuning=keys if questions else (), hand_set={"camels": ["training.steps", "training.rate", "k"]})


def imported(row: Row, **changes: Any) -> Row:
    """The row as if it had been imported, with other fields."""
    return replace(row, label=f"{row.label} [imported x]", imported="x", **changes)


def pictures(runs: Path) -> set[str]:
    """Names of the pictures of the last board's plots."""
    return set(plots.files(plots.drawings(build(runs))))


def plot_names(runs: Path) -> set[str]:
    """Names of the plots of the last board."""
    return {name.removesuffix(".png") for name in pictures(runs) if name.endswith(".png")}

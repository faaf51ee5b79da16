"""The tuning of an experiment: what is tuned of each method, within which limit, and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pydantic

from bench import hashing
from bench.contract.method import validate_config
from bench.contract.search import Range, SearchSpace, examples
from bench.data.documents import Entry
from bench.data.reader import MissingSplit
from bench.errors import BenchError, RunError
from bench.harness.loop import due_questions
from bench.records.schema import TuningRecord
from bench.records.store import read_run, write_tuning
from bench.run.cell import Cell, failure_line
from bench.run.experiment import MethodPlan, TuningPlan
from bench.run.inputs import inputs_of
from bench.run.planner import Planner
from bench.run.search import Settings, at_edge
from bench.run.tuning import SLACK, Tuning, first_part, operations_per_token
from bench.settings import dotted

STEPS = "steps_per_document"
"""The setting that a limit on operations fixes."""
LIMIT_DOCUMENTS = 20
"""Documents on which the limit on operations is measured."""


class Tuner:
    """Starts and ends the searches of an experiment's methods; adds to the ``remarks`` for readers of the board."""

    def __init__(self, planner: Planner, remarks: list[str]) -> None:
        self.planner, self.remarks = planner, remarks
        self.experiment, self.methods, self.runs = planner.experiment, planner.methods, planner.runs
        self.edges: list[str] = []
        """Methods whose best value of a setting is at the edge of what was tried, with both."""

    def stated_space(self, plan: MethodPlan) -> SearchSpace:
        """The search space of the plan, else of the method, without the settings that are fixed."""
        method = self.methods[plan.name]
        space = method.search_space(validate_config(method, plan.config)) if plan.space is None else plan.space
        return {key: values for key, values in space.items() if key not in plan.config}

    @property
    def has_spaces(self) -> bool:
        """True if a method has settings to tune, whether it can be tuned here or not."""
        return any(map(self.stated_space, self.experiment.methods))

    def search_space(self, plan: MethodPlan) -> SearchSpace:
        """The settings of a method to tune, with their choices as its config has them, or {} if nothing is tuned.

        Raises:
            BenchError: a setting does not exist, or a value of it is out of bounds.
        """
        tuning, space = self.experiment.tuning, self.stated_space(plan)
        method = self.methods[plan.name]
        valid = {}
        for key, values in space.items():
            kind = getattr(method.Config.model_fields.get(key), "annotation", float)
            if isinstance(values, Range) and float not in (kind, *get_args(kind)):
                raise BenchError(f"{plan.name}.{key} is no real number: list its choices, as in [1, 2, 4].")
            configs = [validate_config(method, {**plan.config, key: value}) for value in examples(values)]
            choices = [config.model_dump(mode="json")[key] for config in configs]
            valid[key] = values if isinstance(values, Range) else choices
        if not valid or tuning is None:
            return {}
        try:
            streams = self._validation_streams(tuning)
        except MissingSplit as error:
            remark = f"Methods run untuned, with their default settings: {error}"
            if remark not in self.remarks:
                self.remarks.append(remark)
            return {}
        if tuning.metric == "f1" and not all(map(due_questions, streams)):
            raise BenchError("tuning.metric is f1, but the validation streams have no questions: tune by token_nll.")
        return valid

    def start(self, plan: MethodPlan, space: SearchSpace, limit: float | None) -> Tuning:
        """The search for a method's settings, not begun."""
        on, method = self.experiment.tuning, self.methods[plan.name]
        assert on is not None

        def make_cells(settings: Settings, arm: str, prefix: int | None) -> list[Cell]:
            return list(self.planner.on_streams(plan, {**plan.config, **settings}, on, arm, prefix=prefix))

        def is_valid(settings: Settings) -> bool:
            try:
                method.Config(**{**plan.config, **settings})
            except pydantic.ValidationError:
                return False
            return True

        return Tuning(
            space=space,
            defaults=validate_config(method, plan.config).model_dump(mode="json"),
            trials=on.trials,
            metric=on.metric,
            prefix=self._prefix(on),
            make_cells=make_cells,
            runs=self.runs,
            is_valid=is_valid,
            limit=limit,
        )

    def _validation_streams(self, on: TuningPlan) -> list[Sequence[Entry]]:
        return [inputs_of(self.planner.sources(on, index), "stream").stream.entries for index in range(on.count)]

    def _prefix(self, on: TuningPlan) -> int | None:
        """The first third of the shortest validation stream; None if on any stream it has no questions to tune by."""
        streams = self._validation_streams(on)
        part = first_part(min(map(len, streams)))
        has_questions = on.metric != "f1" or all(due_questions(entries[:part]) for entries in streams)
        return part if has_questions else None

    def check_limit(self) -> None:
        """Check that the method whose operations are the limit is in the experiment, and that trials can be limited."""
        equal, on = self.experiment.equal_compute, self.experiment.tuning
        if equal is None:
            return
        if on is None or on.metric != "f1":
            raise BenchError("equal_compute limits what trials spend: give the experiment a tuning plan by F1.")
        plan = self._limiting_plan()
        if plan is None:
            raise BenchError(f"equal_compute names {equal.method}, which is not in the experiment: add it.")
        validate_config(self.methods[plan.name], {**plan.config, STEPS: equal.steps})

    def _limiting_plan(self) -> MethodPlan | None:
        equal = self.experiment.equal_compute
        return next((plan for plan in self.experiment.methods if equal and plan.name == equal.method), None)

    def limit_cell(self) -> Cell | None:
        """The cell whose operations are the limit, if the experiment has one."""
        equal, on, plan = self.experiment.equal_compute, self.experiment.tuning, self._limiting_plan()
        if equal is None or on is None or plan is None:
            return None
        config = {**plan.config, STEPS: equal.steps}
        return next(self.planner.on_streams(plan, config, on, "stream", prefix=LIMIT_DOCUMENTS))

    def limit(self, cell: Cell) -> float:
        """The most operations per token in observing: those of :meth:`limit_cell`, which has run.

        Raises:
            RunError: it has no results.
        """
        limit = operations_per_token(self.runs, cell)
        if limit is None:
            reason = failure_line(read_run(self.runs / cell.id))
            raise RunError(f"The limit on operations could not be measured: {reason}")
        return limit

    def over_limit(self, cells: Mapping[int, Sequence[Cell]], limit: float | None) -> list[str]:
        """A remark on the limit on operations, and one on the methods that exceed it."""
        equal = self.experiment.equal_compute
        if limit is None or equal is None:
            return []
        names = []
        for some in cells.values():
            spent = [operations_per_token(self.runs, cell) or 0.0 for cell in some]
            if max(spent, default=0.0) > SLACK * limit:
                names.append(some[0].spec.method)
        remark = f"Methods may observe a token with {limit:.3g} operations, as {equal.method} at {equal.steps} steps."
        return [remark, *([f"Over this limit: {', '.join(dict.fromkeys(names))}."] if names else [])]

    def chosen(self, plan: MethodPlan, tuning: Tuning) -> dict[str, Any]:
        """The settings that a search has found when it has ended; those of the entry if all trials failed."""
        best = tuning.best()
        settings = {} if best is None else best.settings
        return validate_config(self.methods[plan.name], {**plan.config, **settings}).model_dump(mode="json")

    def choose(self, plan: MethodPlan, tuning: Tuning) -> TuningRecord:
        """Write the record of a search that has ended, with its choice."""
        assert self.experiment.tuning is not None
        trials = [tuning.record(trial, plan.config) for trial in tuning.done]
        if failed := sum(trial["score"] is None for trial in trials):
            self.remarks.append(f"{failed} of {len(trials)} tuning trials of {self.label(plan)} diverged or failed.")
        if not trials and tuning.limit is not None:
            self.remarks.append(
                f"{self.label(plan)} has no candidate within the limit on operations: its settings are untuned, and "
                "may be over the limit."
            )
        elif len(trials) < tuning.trials:
            self.remarks.append(
                f"{self.label(plan)} was tuned with {len(trials)} of {tuning.trials} trials: there are no other "
                f"settings to try{' within the limit on operations' if tuning.limit is not None else ''}."
            )
        if (best := tuning.best()) is not None:
            self._note_edges(plan, tuning, best.settings)
        cells = [*tuning.others, *(cell for trial in tuning.done for cell in trial.cells)]
        key = hashing.digest([tuning.metric, [cell.key for cell in cells]])
        record = TuningRecord(
            key=f"{plan.name}-{key[:12]}",
            method=plan.name,
            dataset=self.planner.recipe.name,
            model=Path(self.experiment.model).name,
            model_hash=self.planner.model_hash,
            metric=tuning.metric,
            space={
                key: values.model_dump() if isinstance(values, Range) else list(values)
                for key, values in tuning.space.items()
            },
            floor=tuning.floor(),
            trials=tuple(trials),
            chosen=self.chosen(plan, tuning),
            runs=list(dict.fromkeys(cell.id for cell in tuning.others)),
        )
        write_tuning(self.runs, record)
        return record

    def _note_edges(self, plan: MethodPlan, tuning: Tuning, best: Settings) -> None:
        """Note best values at an edge of what was tried, unless the setting's own bound is there."""
        fields = self.methods[plan.name].Config.model_fields
        tried = [trial.settings for trial in tuning.done]
        for key in at_edge(tuning.space, tried, best, tuning.width):
            bounds = [getattr(bound, side, None) for bound in fields[key].metadata for side in ("ge", "le")]
            if best[key] not in bounds:
                self.edges.append(f"{key}={best[key]:g} of {self.label(plan)}")

    def edge_remarks(self) -> list[str]:
        """One remark on all best values at an edge."""
        if not self.edges:
            return []
        return [f"Best at the edge of what was tried, so that a wider range may do better: {', '.join(self.edges)}."]

    def label(self, plan: MethodPlan) -> str:
        """The method's name, with the settings in which this entry differs from others of the same method."""
        configs = [dotted(other.config) for other in self.experiment.methods if other.name == plan.name]
        settings = [
            f"{key}={value}"
            for key, value in dotted(plan.config).items()
            if any(config.get(key) != value for config in configs)
        ]
        return f"{plan.name} ({', '.join(settings)})" if settings else plan.name

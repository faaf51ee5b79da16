"""The tuning of one method: its trials, which of them go on to whole streams, and which one is chosen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.contract.search import Range, SearchSpace
from bench.records.tuning import floor, merit
from bench.run import tuning
from bench.run.search import explore
from bench.run.tuning import Tuning, first_part

SPACE: SearchSpace = {"rate": Range(low=0, high=1), "steps": (1, 2, 3, 5)}
DEFAULTS = {"rate": 0.5, "steps": 1}
STREAMS = 2
Score = Callable[[dict[str, Any], int | None], float | None]


def near(rate: float) -> Score:
    """F1 that is the higher, the nearer the rate is to this one."""
    return lambda settings, _: 1 - abs(settings["rate"] - rate)


@dataclass
class World:
    """Cells that need no running: their scores are functions of settings and prefix, None for a cell that diverges."""

    score: Score = lambda settings, _: 1 - abs(settings["rate"] - 0.3)
    nll: Score = lambda settings, _: settings["rate"]
    operations: Score = lambda settings, _: 100.0 * settings["steps"]
    floor: float = 0.0
    cells: dict[str, Any] = field(default_factory=dict)

    def make_cells(self, settings: dict[str, Any], arm: str, prefix: int | None) -> list[Any]:
        cells = []
        for stream in range(STREAMS):
            config = {**DEFAULTS, **settings}
            name = f"{arm} {stream} {prefix} {json.dumps(config, sort_keys=True)}".replace("/", "|")
            cells.append(self.cells.setdefault(name, SimpleNamespace(id=name, spec=self.spec(arm, prefix, config))))
        return cells

    def spec(self, arm: str, prefix: int | None, config: dict[str, Any]) -> Any:
        return SimpleNamespace(arm=arm, prefix=prefix, config=config)

    def read_run(self, path: Path) -> Any:
        spec = self.cells[path.name].spec
        value = self.floor if spec.arm == "empty" else self.score(spec.config, spec.prefix)
        if value is None:
            return SimpleNamespace(spec=spec, summary=None, costs=None)
        summary = SimpleNamespace(
            f1=value, token_nll=value, answer_nll=self.nll(spec.config, spec.prefix), documents=spec.prefix or 9
        )
        costs = SimpleNamespace(observe=SimpleNamespace(flops=self.operations(spec.config, spec.prefix)))
        return SimpleNamespace(spec=spec, summary=summary, costs=costs)

    def tune(self, **changes: Any) -> tuple[Tuning, list[list[Any]]]:
        """A search that has ended, with its rounds of cells."""
        values: dict[str, Any] = {
            "space": SPACE,
            "defaults": DEFAULTS,
            "trials": 8,
            "metric": "f1",
            "prefix": 3,
            "make_cells": self.make_cells,
            "runs": Path(),
            "is_valid": lambda settings: settings.get("rate", 0) >= 0 and settings["steps"] != 0,
        }
        search = Tuning(**{**values, **changes})
        return search, list(search.rounds())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    one = World()
    monkeypatch.setattr(tuning, "read_run", one.read_run)
    monkeypatch.setattr(tuning, "read_documents", lambda *_: [SimpleNamespace(tokens=1)])
    return one


def settings_of(cells: list[Any], prefix: int | None, arm: str = "stream") -> list[dict[str, Any]]:
    """The different configs of the cells of an arm on a prefix; each must be there on all streams."""
    configs = [cell.spec.config for cell in cells if (cell.spec.arm, cell.spec.prefix) == (arm, prefix)]
    different = [config for i, config in enumerate(configs) if config not in configs[:i]]
    assert all(configs.count(config) == STREAMS for config in different)
    return different


def test_two_thirds_of_the_trials_cover_the_space_and_of_either_part_the_best_third_goes_on(world: World) -> None:
    search, rounds = world.tune()
    candidates = explore(SPACE, DEFAULTS, 5)
    first, second, third, fourth = rounds
    assert settings_of(first, 3) == candidates
    assert settings_of(first, 3, "empty") == settings_of(second, None, "empty") == [DEFAULTS]
    by_score = sorted(candidates, key=lambda settings: abs(settings["rate"] - 0.3))
    assert settings_of(second, None) == by_score[:2]
    refined = settings_of(third, 3)
    assert len(refined) == 3 and all(abs(settings["rate"] - by_score[0]["rate"]) <= 0.21 for settings in refined)
    assert settings_of(fourth, None) == [min(refined, key=lambda settings: abs(settings["rate"] - 0.3))]
    assert [trial.settings for trial in search.done] == candidates + refined
    assert [len(trial.cells) // STREAMS for trial in search.done].count(2) == 3


def test_one_of_two_values_is_not_at_an_edge_unless_it_is_near_one(world: World) -> None:
    world.score = near(0.4)
    space: SearchSpace = {"rate": Range(low=0, high=1)}
    search, _ = world.tune(trials=3, space=space, is_valid=lambda _: True)
    first, second, third = (trial.settings["rate"] for trial in search.done)
    best = min(first, second, key=lambda rate: abs(rate - 0.4))
    assert 0.25 < best < 0.75 and abs(third - best) <= 0.25


@pytest.mark.parametrize(("trials", "explored"), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 3), (9, 6), (20, 13)])
def test_all_trials_are_used_whatever_their_number(world: World, trials: int, explored: int) -> None:
    search, _ = world.tune(trials=trials)
    assert len(search.done) == trials
    assert [trial.settings for trial in search.done[:explored]] == explore(SPACE, DEFAULTS, explored)
    best = search.best()
    assert best is not None and any(cell.spec.prefix is None for cell in best.cells)


def test_methods_with_the_same_space_are_tried_at_the_same_points(world: World) -> None:
    first, _ = world.tune()
    world.score = world.nll = near(0.9)
    second, _ = world.tune()
    assert [trial.settings for trial in first.done[:5]] == [trial.settings for trial in second.done[:5]]
    assert [trial.settings for trial in first.done[5:]] != [trial.settings for trial in second.done[5:]]


def test_a_trial_that_is_not_above_the_floor_is_stopped(world: World) -> None:
    candidates = explore(SPACE, DEFAULTS, 5)
    distances = sorted(abs(settings["rate"] - 0.3) for settings in candidates)
    world.floor = 1 - distances[1]  # the second best is just as good as without documents
    search, (_, second, *_) = world.tune()
    assert len(settings_of(second, None)) == 1
    stopped = [search.record(trial, {}) for trial in search.done if len(trial.cells) == STREAMS]
    assert len(stopped) >= 4 and all((trial["documents"], trial["whole"]) == (3, False) for trial in stopped)
    assert search.floor() == search.floor(3) == world.floor


def test_answers_without_a_likelihood_are_worse_than_any_others() -> None:
    assert merit("f1", 0.0, None, 0.02) < merit("f1", 0.02, 9.0, 0.02) < merit("f1", 0.02, 3.0, 0.02)


def test_a_floor_of_which_a_stream_failed_is_unknown() -> None:
    def run(f1: float | None) -> Any:
        summary = None if f1 is None else SimpleNamespace(f1=f1)
        return SimpleNamespace(spec=SimpleNamespace(arm="empty", prefix=None), summary=summary)

    assert floor([run(0.1), run(0.3)]) == pytest.approx(0.2)
    assert floor([run(0.1), run(None)]) is floor([]) is None


def test_at_the_floor_the_likelihood_of_the_answers_decides(world: World) -> None:
    world.floor = 0.5
    world.score = lambda settings, _: 0.5 if settings["rate"] > 0.5 else 0.2
    world.nll = lambda settings, _: settings["rate"]
    search, (first, second, *_) = world.tune()
    lowest = min(settings_of(first, 3), key=lambda settings: settings["rate"])
    assert settings_of(second, None)[0] == lowest, "none is above the floor, and those below it count as the floor"
    assert all(trial.cells[-1].spec.prefix is None for trial in search.done), "so all go on to whole streams"
    assert [trial.settings for trial in search.done] == explore(SPACE, DEFAULTS, 8), "and none is refined"
    best = search.best()
    assert best is not None and best.settings["rate"] == min(trial.settings["rate"] for trial in search.done)


def test_a_trial_below_the_floor_on_the_first_part_follows_if_those_above_break(world: World) -> None:
    candidates = explore(SPACE, DEFAULTS, 5)
    largest = max(settings["rate"] for settings in candidates)
    world.floor = 0.5

    def score(settings: dict[str, Any], prefix: int | None) -> float:
        early, late = (0.6, 0.1) if settings["rate"] >= largest else (0.4, 0.6)
        return early if prefix else late

    world.score = score
    search, _ = world.tune()
    best = search.best()
    assert best is not None and best.settings["rate"] < largest and search.measure(best).score == pytest.approx(0.6)


def test_the_choice_is_the_best_on_whole_streams(world: World) -> None:
    world.score = lambda settings, prefix: near(0.3 if prefix else 0.8)(settings, prefix)
    search, _ = world.tune()
    whole = [trial.settings["rate"] for trial in search.done if len(trial.cells) == 2 * STREAMS]
    best = search.best()
    assert best is not None and best.settings["rate"] == max(whole), "nearest to 0.8"
    assert len(whole) == 3


def test_trials_that_diverge_count_and_are_not_chosen(world: World) -> None:
    world.score = lambda settings, _: None if settings["rate"] >= 0.25 else settings["rate"]
    search, _ = world.tune()
    scores = [search.measure(trial).score for trial in search.done]
    assert len(scores) == 8 and None in scores
    best = search.best()
    assert best is not None and best.settings["rate"] < 0.25


@pytest.mark.parametrize("broken", [0.0, None])
def test_if_the_best_of_the_first_part_break_on_whole_streams_the_next_ones_follow(
    world: World, broken: float | None
) -> None:
    rates = sorted((settings["rate"] for settings in explore(SPACE, DEFAULTS, 5)), reverse=True)
    world.score = lambda settings, prefix: settings["rate"] if prefix or settings["rate"] <= rates[2] else broken
    search, (_, second, third, *_) = world.tune()
    assert [settings["rate"] for settings in settings_of(second, None)] == rates[:2], "the largest rates learn fastest"
    assert [settings["rate"] for settings in settings_of(third, None)] == rates[2:4]
    best = search.best()
    assert best is not None and 0 < best.settings["rate"] <= rates[2]


def test_if_every_trial_diverges_the_rest_covers_the_space(world: World) -> None:
    world.score = lambda *_: None
    search, _ = world.tune()
    assert [trial.settings for trial in search.done] == explore(SPACE, DEFAULTS, 8)
    assert search.best() is None


@pytest.mark.parametrize(("documents", "part"), [(1, None), (2, 1), (3, 1), (4, 2), (100, 34)])
def test_the_first_part_of_a_stream_is_a_third_of_it_if_it_can_be_divided(documents: int, part: int | None) -> None:
    assert first_part(documents) == part


def test_streams_that_cannot_be_divided_are_run_whole_at_once(world: World) -> None:
    search, rounds = world.tune(prefix=None)
    assert [settings_of(cells, 3) for cells in rounds] == [[], []]
    assert [len(settings_of(cells, None)) for cells in rounds] == [5, 3]
    assert all(search.measure(trial).whole for trial in search.done)


def test_text_is_tuned_to_the_lowest_nll_and_has_no_floor(world: World) -> None:
    search, rounds = world.tune(metric="token_nll")
    assert not any(cell.spec.arm == "empty" for cells in rounds for cell in cells)
    assert search.floor() is None
    best = search.best()
    assert best is not None
    whole = [search.measure(trial).score for trial in search.done if len(trial.cells) == 2 * STREAMS]
    assert search.measure(best).score == min(score for score in whole if score is not None)


def test_candidates_that_are_not_valid_together_are_not_tried(world: World) -> None:
    search, _ = world.tune(is_valid=lambda settings: settings["rate"] * settings["steps"] < 1)
    assert len(search.done) == 8
    assert all(trial.settings["rate"] * trial.settings["steps"] < 1 for trial in search.done)


def test_a_space_with_fewer_settings_than_trials_is_exhausted(world: World) -> None:
    world.operations = lambda *_: 1.0
    search, _ = world.tune(space={"steps": ("few", "some", "many")})
    assert sorted(trial.settings["steps"] for trial in search.done) == ["few", "many", "some"]


def test_candidates_over_the_limit_on_operations_are_replaced(world: World) -> None:
    world.score = world.nll = lambda settings, _: settings["steps"] / 10  # what costs more is better
    search, rounds = world.tune(limit=200)
    assert len(search.done) == 8
    assert {trial.settings["steps"] for trial in search.done} == {1, 2}
    best = search.best()
    assert best is not None and best.settings["steps"] == 2
    dropped = [cell for cell in search.others if cell.spec.arm == "stream"]
    assert dropped and all(cell.spec.config["steps"] > 2 and cell.spec.prefix == 3 for cell in dropped)
    assert not any(cell.spec.config["steps"] > 2 and cell.spec.prefix is None for cells in rounds for cell in cells)
    ran = {cell.id for cells in rounds for cell in cells}
    assert ran == {cell.id for cell in [*search.others, *(cell for trial in search.done for cell in trial.cells)]}


def test_the_limit_has_room_for_what_differs_from_token_to_token(world: World) -> None:
    search, _ = world.tune(limit=100 / 1.015, space={"steps": (1, 2)})
    assert [trial.settings["steps"] for trial in search.done] == [1]


def test_if_every_candidate_is_over_the_limit_there_is_no_trial(world: World) -> None:
    search, _ = world.tune(limit=10)
    assert search.done == [] and search.best() is None
    assert search.floor() == 0.0


def test_a_record_states_the_fixed_and_the_tuned_settings_and_all_runs(world: World) -> None:
    search, _ = world.tune(trials=3)
    (trial, *_) = [trial for trial in search.done if len(trial.cells) == 2 * STREAMS]
    record = search.record(trial, {"momentum": 0.9})
    assert record["config"] == {"momentum": 0.9, **trial.settings}
    assert record["runs"] == [cell.id for cell in trial.cells] and len(record["runs"]) == 4
    assert (record["documents"], record["whole"]) == (9, True)
    assert record["score"] is not None and math.isclose(record["score"], 1 - abs(trial.settings["rate"] - 0.3))

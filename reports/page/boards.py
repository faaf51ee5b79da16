"""A board as plain data for the page: its columns, and its rows with their cells, errors, ranks and costs."""

from __future__ import annotations

from typing import Any

from reports.board import Board
from reports.columns import Column, caption, columns
from reports.cost_plots import may_lead, total_cost
from reports.rows import Row
from reports.statistics import Estimate

FOLDED = {"SE", "prefix EM", "answer NLL", "orders", "fit s", "train s", "tune s", "FLOP/doc", "break-even"}
"""Headings of the columns that the page shows on request."""

TOTALS = {"total seconds": "total_seconds", "total FLOP": "total_flops"}


def facts(board: Board) -> dict[str, Any]:
    """The board, for the script of the table and for that of the chart."""
    method, *selection = columns(board)
    places = {row.label: place for place, row in enumerate(board.rows)}
    return {
        "experiment": board.experiment,
        "dataset": board.dataset,
        "model": board.model,
        "protocol": board.protocol,
        "comparability": board.comparability,
        "streams": list(board.streams),
        "score": board.f1_name if board.headline == "f1" else "token NLL",
        "higher": board.headline == "f1",
        "caption": caption(board, [method, *selection]),
        "remarks": list(board.remarks),
        "columns": [
            {"heading": column.heading, "explanation": column.explanation, "folded": column.heading in FOLDED}
            for column in selection
        ],
        "rows": [_row(board, row, selection, places) for row in board.rows],
        "floor": None if board.floor is None else places[board.floor.label],
    }


def _row(board: Board, row: Row, selection: list[Column], places: dict[str, int]) -> dict[str, Any]:
    values = [column.value(row) for column in selection]
    standing = row.standing
    return {
        "label": row.title,
        "method": row.method,
        "arm": row.arm,
        "control": row.control,
        "best": row.is_bold,
        "cells": [column.cell(row) for column in selection],
        "numbers": [value.mean if isinstance(value, Estimate) else value for value in values],
        "halves": [value.half_width() if isinstance(value, Estimate) else None for value in values],
        "ranks": None if standing is None else [standing.low, standing.high],
        "front": may_lead(board, row),
        "worse": [] if standing is None else sorted(places[label] for label in standing.worse),
        "score": _score(board, row),
        "costs": _costs(board, row),
    }


def _score(board: Board, row: Row) -> list[Any] | None:
    """The headline score, half the width of its interval, and both as the table shows them."""
    estimate = row.estimate(board.headline, board.error)
    return None if estimate is None else [estimate.mean, estimate.half_width(), str(estimate)]


def _costs(board: Board, row: Row) -> dict[str, float]:
    totals = {name: total_cost(board, row, key) for name, key in TOTALS.items() if key in row.costs}
    with_scoring = "" if board.headline == "f1" else ", with scoring"
    costs = {f"{name}{with_scoring}": cost for name, cost in totals.items()}
    if (state := row.costs.get("state_bytes")) is not None:
        costs["bytes of state"] = state
    if total := totals.get("total seconds"):
        costs["offline share of the seconds"] = row.costs["offline_seconds"] / total
    return costs

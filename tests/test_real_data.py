"""Real input through the command line: Wikipedia paragraphs with their questions, and novels."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from bench.data import recipe
from bench.data.documents import document_id
from bench.data.reader import read_split
from bench.records.store import read_answers, read_board, read_documents, read_run
from tests.conftest import ROOT
from tests.test_cli import bench

pytestmark = [pytest.mark.slow, pytest.mark.real_data]


def test_every_question_of_the_sampled_squad_paragraphs_is_scored(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "squad" / "squad_v1.1_38_articles.json"
    done = bench(
        *("run", "squad", "--model", "nano", "--data-files", f"test={source}", "--streams", "2", "--documents", "10"),
        *("--methods", "closed_book,uniform", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")),
    )
    assert done.returncode == 0, done.stderr
    assert "untuned" in done.stdout
    questions: dict[str, set[str]] = {}
    for article in json.loads(source.read_text())["data"]:
        for paragraph in article["paragraphs"]:
            questions.setdefault(document_id(paragraph["context"]), set()).update(qa["id"] for qa in paragraph["qas"])
    runs = tmp_path / "runs"
    for name in read_board(runs).runs:
        record = read_run(runs / name)
        assert record.status == "complete"
        if record.spec.arm == "placebo":
            continue
        documents = read_documents(runs, name)
        expected = set().union(*(questions[event.document_id] for event in documents))
        assert {event.question_id for event in read_answers(runs, name) if event.set == "stream"} == expected
        assert len(documents) == 10


def test_the_splits_of_the_published_boards_are_cut_as_their_page_says(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path("reports/results/README.md")
    (tmp_path / page.parent).mkdir(parents=True)
    shutil.copy(ROOT / page, tmp_path / page)
    shutil.copy(real_data / "squad" / "squad_v1.1_38_articles.json", tmp_path / "dev-v1.1.json")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(block, {})
    for split in ("qa_train", "qa_validation", "train", "validation", "test"):
        cut, expected = (
            json.loads(Path(of, f"{split}.json").read_text())["data"] for of in ("squad", real_data / "squad")
        )
        assert cut == expected


def test_wikitext_has_its_sixty_articles(real_data: Path) -> None:
    for split, name in (("test", "test"), ("validation", "valid")):
        files = {split: [str(real_data / "wikitext2" / f"{name}.txt")]}
        assert len(read_split(recipe.find("wikitext"), split, files).entries) == 60


def test_novels_are_scored_in_bits_per_byte_over_the_stream(real_data: Path, tmp_path: Path) -> None:
    short = []
    for name in ("Carroll_Alice_1865.txt", "Lee_Penelope_1903.txt"):
        source = real_data / "novels" / name
        if not source.exists():
            source = sorted((real_data / "novels").glob("*.txt"))[len(short)]
        short.append(tmp_path / source.name)
        short[-1].write_text(source.read_text(encoding="utf-8-sig")[:20_000], encoding="utf-8")
    done = bench(
        *("run", "nano-lm", "--dataset", "text", "--data-files", f"test={short[0]},{short[1]}"),
        *("--set", "uniform.optimizer=adam"),  # its default rate is made for it
        *("--methods", "closed_book,uniform", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")),
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").glob("*/leaderboard.json")
    rows = {row["method"]: row for row in json.loads(path.read_text())["rows"]}
    assert rows["uniform"]["bits_per_byte"] < rows["closed_book"]["bits_per_byte"]
    runs = tmp_path / "runs"
    for name in read_board(runs).runs:
        events = read_documents(runs, name)
        assert sum(event.bytes for event in events) == sum(path.stat().st_size for path in short)
        summary = read_run(runs / name).summary
        assert summary is not None
        nats = math.fsum(event.nll or 0 for event in events)
        assert summary.token_nll == pytest.approx(nats / sum(event.tokens for event in events))

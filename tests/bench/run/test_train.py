"""Training before a run: what is refused before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.run.experiment import Experiment
from bench.run.train import train
from tests.world import make_dataset, make_experiment

CMT = {"name": "cmt", "config": {"training": {"steps": 1}}}


@pytest.fixture(scope="module")
def keepers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "keepers")


@pytest.fixture
def experiment(keepers: Path, llama: Path) -> Experiment:
    return make_experiment(keepers, llama, [CMT])


def test_validation_documents_among_those_of_training_are_refused(keepers: Path, llama: Path, tmp_path: Path) -> None:
    files = {split: [str(keepers / "train.jsonl")] for split in ("train", "validation")}
    experiment = make_experiment(keepers, llama, [CMT], data_files=files)
    with pytest.raises(BenchError, match=r"train, the split that cmt was trained on, and validation.* share 4 of 4"):
        train("cmt", experiment, tmp_path / "out", tmp_path / "work")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("out", "work", "option"), [("file", "work", "--out"), ("out", "file/work", "--work")])
def test_a_folder_that_cannot_be_written_is_refused(
    experiment: Experiment, tmp_path: Path, out: str, work: str, option: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match=f"cannot be written .* name another folder with {option}"):
        train("cmt", experiment, tmp_path / out, tmp_path / work)

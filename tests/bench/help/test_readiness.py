from __future__ import annotations

import json
from pathlib import Path

from bench.help.readiness import readiness
from bench.run.experiment import load


def test_each_data_set_and_each_base_of_an_experiment_comes_once() -> None:
    experiment = load("paper-mac")
    found = readiness(experiment)
    titles = [finding.subject for finding in found if "licence:" in finding.text]
    assert titles == experiment.datasets
    assert [finding.text.split()[0] for finding in found if finding.subject == "base"] == experiment.models


def test_a_split_that_cannot_be_read_does_not_hide_what_the_others_lack(tmp_path: Path) -> None:
    experiment = load("real-squad")
    for split in ("qa_train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("no JSON\n")
        experiment.data_files[split] = [str(tmp_path / f"{split}.jsonl")]
    entry = {"id": "d", "text": "A text.", "questions": [{"text": "What?", "answers": ["a text"]}]}
    (tmp_path / "train.jsonl").write_text(json.dumps(entry) + "\n")
    experiment.data_files["train"] = [str(tmp_path / "train.jsonl")]
    levels = {finding.subject: finding.level for finding in readiness(experiment)}
    assert levels["qa_train"] == levels["validation"] == levels["test"] == "missing"
    assert levels["qa_validation"] == "note", "nothing needs it"

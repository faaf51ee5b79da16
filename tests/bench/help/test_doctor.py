"""The diagnosis: what is missing stops the benchmark, and what only a part of it needs is a note."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.help import doctor
from bench.help.doctor import diagnose


def found(runs: Path, subject: str) -> dict[str, str]:
    """The findings on a subject: their texts, by level."""
    return {finding.level: finding.text for finding in diagnose(runs) if finding.subject == subject}


def test_a_package_that_all_need_is_missing_and_one_of_an_extra_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = {"peft", "spacy", "bitsandbytes"}
    monkeypatch.setattr(doctor, "package_version", lambda name: None if name in absent else "7.1")
    packages = found(tmp_path, "packages")
    assert packages["missing"].startswith("not installed: peft; run make bench")
    assert found(tmp_path, "bitsandbytes")["note"].startswith("not installed; for bases in 8 or 4 bits")
    assert "torch 7.1" in packages["ok"] and "peft" not in packages["ok"]
    assert found(tmp_path, "ray") == {"ok": "7.1"}
    assert "to find salient spans with a trained tagger: pip install spacy" in found(tmp_path, "spacy")["note"]


@pytest.mark.parametrize(("gib", "level"), [(1, "note"), (5, "ok")])
def test_little_free_space_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib: int, level: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=gib * 2**30))
    runs = tmp_path / "not" / "yet"
    assert found(runs, "disk") == {level: f"{gib}.0 GiB free for {runs}"}


def test_records_cannot_be_written_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "choose another folder with --runs" in found(tmp_path / "file", "disk")["missing"]

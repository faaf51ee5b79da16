"""The files that a report has written: outdated ones are removed, and nobody else's."""

from __future__ import annotations

import pytest

import reports
from reports import plots, written
from tests.reports.records_factory import board, record, spec


def write(folder, *names):
    """A report of files that hold their names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    written.replace(folder, [folder / name for name in names])


def there(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_files_of_the_last_report_that_are_not_written_again_are_removed(tmp_path):
    write(tmp_path, "a.md", "b.png", "base/a.md")
    assert written.outdated(tmp_path, ["a.md"]) == ["b.png", "base/a.md"]
    write(tmp_path, "a.md", "c.png")
    assert there(tmp_path) == [written.NAME, "a.md", "c.png"]
    assert not (tmp_path / "base").exists()


def test_files_of_other_origin_are_kept(tmp_path):
    (tmp_path / "mine.png").write_text("mine")
    write(tmp_path, "a.md", "b.png", "base/a.md")
    (tmp_path / "b.png").write_text("edited by hand")
    (tmp_path / "base" / "notes.txt").write_text("notes")
    write(tmp_path, "c.md")
    assert there(tmp_path) == [written.NAME, "b.png", "base/notes.txt", "c.md", "mine.png"]


@pytest.mark.parametrize("note", ["", "[]", "{", '{"../outside.txt": "HASH"}', '{"folder": "HASH"}'])
def test_a_note_that_is_damaged_or_leaves_the_folder_removes_nothing(tmp_path, note):
    folder = tmp_path / "out"
    write(folder, "a.md")
    (folder / "folder").mkdir()
    (tmp_path / "outside.txt").write_text("a.md")
    (folder / written.NAME).write_text(note.replace("HASH", written._sha256(folder / "a.md")))
    write(folder, "b.md")
    assert there(tmp_path) == [f"out/{written.NAME}", "out/a.md", "out/b.md", "outside.txt"]


def test_a_report_removes_its_own_figures_and_leaves_those_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "FORMATS", ("svg",))
    runs, out = tmp_path / "runs", tmp_path / "out"
    out.mkdir()
    (out / "f1_by_cost.svg").write_text("mine, of a name that the next board does not draw")
    board(runs, [record(runs, spec("bm25", "test-2-0"), [[0.5], [0.5]])], "questions")
    board(runs, [record(runs, spec("uniform", "test-2-0"), nll=[2.0, 3.0])], "text")
    reports.write_all(runs, out, "text")
    assert reports.stale(runs, out, "text") == []
    assert (out / "f1_by_cost.svg").read_text().startswith("mine")
    reports.write_all(runs, out, "questions")
    assert "token_nll_by_position.svg" not in there(out)
    assert set(reports.stale(runs, out, "text")) >= {"f1_by_method.svg", "token_nll_by_position.svg"}


def test_a_variation_has_its_tables_and_plots_in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "FORMATS", ("svg",))
    runs, out = tmp_path / "runs", tmp_path / "out"
    run = record(runs, spec("uniform", "test-2-0"), [[0.5], [0.5]])
    board(runs, [run], "demo")
    reports.write_all(runs, out)
    before = {name: (out / name).read_bytes() for name in there(out)}
    board(runs, [run], "demo+3f2a")
    reports.write_all(runs, out)
    assert {name: (out / name).read_bytes() for name in there(out) if "+" not in name} == before
    assert {name.removeprefix("demo+3f2a/") for name in there(out) if "+" in name} == before.keys()
    assert reports.stale(runs, out, "demo+3f2a") == reports.stale(runs, out, "demo") == []
    (out / "demo+3f2a" / "leaderboard.md").unlink()
    assert reports.stale(runs, out, "demo+3f2a") == ["demo+3f2a/leaderboard.md"]


def test_two_reports_that_remove_the_same_files_at_once_do_not_stop_each_other(tmp_path, monkeypatch):
    write(tmp_path, "a.md", "old/b.png")
    digest = written._sha256

    def removed_meanwhile(path):
        if path.name == "b.png":
            path.unlink()
            path.parent.rmdir()
            (tmp_path / written.NAME).write_text("{}")
        return digest(path)

    monkeypatch.setattr(written, "_sha256", removed_meanwhile)
    written.replace(tmp_path, [tmp_path / "a.md"])
    assert there(tmp_path) == [written.NAME, "a.md"]

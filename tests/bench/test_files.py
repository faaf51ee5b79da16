"""Files are written completely or not at all, and damaged ones are named with the remedy."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import BenchError
from bench.files import read_tensors, replacing, write_bytes, write_json, write_tensors

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b.c": torch.tensor([1, 2], dtype=torch.int64)}
FACTS = {"step": 3, "curve": [{"loss": 0.5}], "name": "é"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with old content."""
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.write_bytes(b"old")
    return path


def test_the_new_file_replaces_the_old_one(path: Path) -> None:
    with replacing(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b" / "c.json", {"name": "é"})
    assert json.loads((tmp_path / "a" / "b" / "c.json").read_text(encoding="utf-8")) == {"name": "é"}


def test_a_failed_block_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write = Path.write_bytes

    def write_half(self: Path, content: bytes) -> None:
        write(self, content[: len(content) // 2])
        fail()

    if call == "write":
        monkeypatch.setattr(Path, "write_bytes", write_half)
    else:
        monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new content")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_values_that_are_not_json_leave_the_old_file(path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(path, {"tensor": torch.zeros(1)})
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("facts", [FACTS, None])
def test_tensors_and_facts_are_read_as_they_were_written(tmp_path: Path, facts: dict[str, Any] | None) -> None:
    write_tensors(tmp_path / "t", TENSORS, facts)
    tensors, read_facts = read_tensors(tmp_path / "t", "Train again.")
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert [value.dtype for value in tensors.values()] == [value.dtype for value in TENSORS.values()]
    assert read_facts == (facts or {})


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_bytes(path.read_bytes()[:20]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage" * 100),
        lambda path: path.unlink(),
    ],
    ids=["truncated tensors", "truncated header", "empty", "garbage", "missing"],
)
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    path = tmp_path / "weights.safetensors"
    write_tensors(path, TENSORS, FACTS)
    damage(path)
    with pytest.raises(BenchError, match=r"missing, cut short or damaged .*\. Train again\.$") as error:
        read_tensors(path, "Train again.")
    assert str(error.value).startswith(str(path))

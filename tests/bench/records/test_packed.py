"""An archive holds files under their names, in their order, with the same bytes at any time; a damaged one is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.records import packed

FILES = {"b/run.json": b'{"a": 1}\n', "a/answers.jsonl": "Zoë\u2028\n".encode() * 100, f"{'x' * 120}/empty": b""}


def write(folder: Path, content: bytes) -> Path:
    (folder / packed.NAME).write_bytes(content)
    return folder


def test_files_are_read_as_they_were_packed(tmp_path: Path) -> None:
    assert packed.unpacked(tmp_path) is packed.unpacked(tmp_path / "missing") is None
    files = packed.unpacked(write(tmp_path, packed.pack(FILES)))
    assert files is not None and list(files.items()) == list(FILES.items())


def test_the_same_files_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = packed.pack(FILES)
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert packed.pack(FILES) == first


def test_an_archive_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    packed.unpacked(write(tmp_path, packed.pack(FILES)))
    assert packed.unpacked(write(tmp_path, packed.pack({"other": b"1"}))) == {"other": b"1"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"not an archive",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
    ],
    ids=["empty", "another file", "half", "a byte short", "a bit"],
)
def test_a_damaged_archive_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write(tmp_path, damage(packed.pack(FILES)))
    with pytest.raises(BenchError, match=rf"{packed.NAME} is damaged \(.*\)\. Restore the file"):
        packed.unpacked(tmp_path)

"""Records packed in one file, which is read in place.

The file ``records.tar.xz`` in a folder holds what else would be files of that folder, under the same names. The same
content gives the same bytes: the archive has no dates and no names of users.
"""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from bench.errors import BenchError

NAME = "records.tar.xz"


def pack(files: Mapping[str, bytes]) -> bytes:
    """The archive of files, in their order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return lzma.compress(buffer.getvalue())


def unpacked(folder: Path) -> Mapping[str, bytes] | None:
    """The files of the archive in a folder, in their order; None if there is no archive.

    Raises:
        BenchError: it is damaged.
    """
    path = folder / NAME
    try:
        state = path.stat()
    except OSError:
        return None
    return _unpack(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)  # boards are compared row by row
def _unpack(path: Path, changed: int, size: int) -> Mapping[str, bytes]:
    """The files of an archive that was last changed at this time."""
    files = {}
    try:
        content = lzma.decompress(path.read_bytes())  # of the whole file, so that damage at its end is seen
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for entry in archive:
                if (file := archive.extractfile(entry)) is not None:
                    files[entry.name] = file.read()
    except (OSError, tarfile.TarError, lzma.LZMAError) as error:
        raise BenchError(f"{path} is damaged ({error}). {REMEDY}") from None
    return files


REMEDY = "Restore the file as it was published, or publish the experiment again."

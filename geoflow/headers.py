"""Read and write the header of a safetensors file, so that a stop in the middle of a write loses nothing."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

ROWS = "rows"  # the entry of the words that says what each row of a growing file is
LONGEST = 10**8  # bytes of a header, by the format
NEEDED = {"dtype", "shape", "data_offsets"}
MARK = b"geoflow's header"  # the last bytes of a file whose header is being changed


def header_of(path: str | Path) -> tuple[dict, int]:
    """Return the header of a safetensors file, and its length in bytes. Raises ValueError if the file has none.

    A stop in the middle of `add_row` leaves the new header at the end of the file. It is found there.
    """
    with Path(path).open("rb") as file:
        found = _header_at(file, 0) or _header_at(file, _copied(file))
    if found is None:
        raise ValueError(f"{path} is cut short or no safetensors file: it has no readable header. Copy or write it again.")
    return found


def check_length(path: Path, header: dict, length: int) -> int:
    """Return the byte at which the last tensor ends. Raises ValueError for a file that is shorter, or longer and no growing one.

    A growing file may be longer, because another process adds a row, or was stopped in the middle of one.
    """
    ends = [about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"]
    end, there = 8 + length + max(ends, default=0), path.stat().st_size
    if there < end:
        raise ValueError(f"{path} is cut short or no safetensors file: it has {there} of {end} bytes. Copy or write it again.")
    if there > end and ROWS not in header.get("__metadata__", {}):
        raise ValueError(f"{path} is no safetensors file: it has {there} bytes, and its header says {end}. Copy or write it again.")
    return end


def add_row(file: int, row: np.ndarray, begin: int, header: bytes) -> None:
    """Write a row behind the others, at the byte `begin`, and then the header that counts it, which has the length of the one before.

    A process that is killed may leave half a header behind. So the header is first written behind the row, and dropped there at last.
    After an error of the disk the file is as it was.
    """
    end = begin + row.nbytes
    try:
        put(file, row, begin)
        put(file, header + end.to_bytes(8, "little") + MARK, end)
        os.fdatasync(file)
    except OSError:
        os.ftruncate(file, begin)
        raise
    put(file, header, 0)
    os.ftruncate(file, end)


def tidy(file: BinaryIO, path: Path) -> None:
    """Finish or drop what an interrupted addition left behind the last row of a growing file."""
    if (begin := _copied(file)) is not None:
        file.seek(begin)
        put(file.fileno(), file.read()[: -len(MARK) - 8], 0)
        os.ftruncate(file.fileno(), begin)
    header, length = header_of(path)
    if ROWS in header.get("__metadata__", {}) and (end := check_length(path, header, length)) < path.stat().st_size:
        os.ftruncate(file.fileno(), end)


def put(file: int, content: bytes | np.ndarray, start: int) -> None:
    """Write all bytes to a file, from the byte `start` on."""
    piece, done = memoryview(content), 0
    while done < len(piece):
        done += os.pwrite(file, piece[done:], start + done)


def _header_at(file: BinaryIO, begin: int | None) -> tuple[dict, int] | None:
    if begin is None:
        return None
    file.seek(begin)
    length = int.from_bytes(file.read(8), "little")
    if length <= LONGEST:
        with suppress(ValueError, AttributeError):  # no JSON, or that of something else
            header = json.loads(file.read(length))
            if all(about.keys() >= NEEDED for name, about in header.items() if name != "__metadata__"):
                return header, length
    return None


def _copied(file: BinaryIO) -> int | None:
    """Return the byte at which a whole copy of the header begins, if the file ends with one."""
    end = file.seek(0, os.SEEK_END) - len(MARK) - 8
    if end < 0:
        return None
    file.seek(end)
    begin, mark = int.from_bytes(file.read(8), "little"), file.read()
    found = _header_at(file, begin) if mark == MARK and begin < end else None
    return begin if found and begin + 8 + found[1] == end else None

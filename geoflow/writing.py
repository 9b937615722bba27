"""Write a matrix of networks to a file in blocks of columns."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.files import whole
from geoflow.headers import put
from geoflow.stored import NAMES


@contextmanager
def writing(path: str | Path, name: str, shape: tuple[int, int], dtype: torch.dtype) -> Iterator["Writer"]:
    """Give a `Writer` of a safetensors file with one matrix, which is filled in blocks of columns. After an error no file is left.

    Raises OSError if the disk has too little room, before anything is written.

    >>> import tempfile
    >>> from geoflow.stored import stored
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with writing(f"{folder}/new.safetensors", "thetas", (2, 3), torch.half) as writer:
    ...         for block in torch.ones(2, 3).split(2, 1):
    ...             writer.write(block)
    ...     stored(f"{folder}/new.safetensors").shape
    (2, 3)
    """
    if dtype not in NAMES:
        raise ValueError(f"dtype={dtype} cannot be written. Choose one of {', '.join(map(str, NAMES))}.")
    length = prod(shape) * dtype.itemsize
    about = {name: {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [0, length]}}
    header = json.dumps(about).encode()
    header += b" " * (-len(header) % 8)
    with whole(path) as partial:
        check_room(partial, length, path)
        with partial.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as hand:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + length)
            writer = Writer(file.fileno(), 8 + len(header), shape, dtype, hand)
            yield writer
            writer.finish()


def check_room(path: Path, length: int, name: str | Path | None = None) -> None:
    """Raise OSError if the disk of a file has no room for so many bytes more. The folder of the file is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    room = os.statvfs(path.parent)
    if (free := room.f_bavail * room.f_frsize) < length:
        raise OSError(f"{name or path} needs {length / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB free. Choose another folder.")


class Writer:
    """Write blocks of columns from left to right. A block is written while the caller makes the next one."""

    def __init__(self, file: int, start: int, shape: tuple[int, int], dtype: torch.dtype, hand: ThreadPoolExecutor):
        self.file, self.start, self.shape, self.dtype, self.hand = file, start, shape, dtype, hand
        self.done, self.under_way = 0, None

    def write(self, block: Float[Tensor, "nets _columns"]) -> None:
        """Write the next columns. Raises ValueError for numbers that the precision of the file cannot hold."""
        kept = block.to(self.dtype).contiguous()
        if not torch.stack(kept.aminmax()).isfinite().all():  # 25 times as fast as looking at each weight
            raise ValueError(f"A weight is NaN, or too large for {self.dtype}. Write the networks in float32.")
        self._wait()
        self.under_way = self.hand.submit(self._put, kept, self.done)
        self.done += block.shape[1]

    def finish(self) -> None:
        self._wait()
        assert self.done == self.shape[1], "not all columns were written"

    def _wait(self) -> None:
        if self.under_way is not None:
            self.under_way.result()

    def _put(self, block: Tensor, first: int) -> None:
        for row, piece in enumerate(block.view(torch.uint8).numpy()):
            put(self.file, piece, self.start + (row * self.shape[1] + first) * self.dtype.itemsize)

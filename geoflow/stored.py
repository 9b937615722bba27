"""Read a matrix of networks from a file, by rows or in blocks of columns."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from operator import index
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.files import file_digest
from geoflow.headers import ROWS, check_length, header_of

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SAMPLES = 2**8  # pieces of a file that are looked at to know it again
BLOCK = 2**26  # bytes of a block that is read at once; the pieces of its rows are then long enough for a disk


class Rows(ABC):
    """Networks [nets, size] of which only those that are asked for are in memory.

    What takes networks one after the other may take these in the place of a tensor. `rows[3]` is a vector, and `rows[3:5]`, `rows[[0, 7]]`
    or `rows[mask]` are tensors [nets, size]. Networks are chosen whole: `rows[:, 0]` raises TypeError.

    >>> doubled = mapped(torch.eye(3), lambda x: 2 * x)
    >>> doubled[1], doubled[1:].shape, [len(part) for part in doubled.split(2)]
    (tensor([0., 2., 0.]), torch.Size([2, 3]), [2, 1])
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    ndim = 2

    @abstractmethod
    def take(self, nets: Sequence[int]) -> Float[Tensor, "nets size"]:
        """Return the networks with these numbers, in memory of their own."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, nets: int | np.integer | slice | Sequence[int] | np.ndarray | Tensor) -> Float[Tensor, "*nets size"]:
        if isinstance(nets, slice):
            return self.take(range(len(self))[nets])
        if isinstance(nets, tuple):
            raise TypeError(f"Networks are read whole: give their numbers, not {nets}. Take weights from rows[nets] then.")
        found = torch.as_tensor(nets)
        if found.dtype == torch.bool and found.shape != (len(self),):
            raise IndexError(f"A mask of {len(self)} networks has as many entries, not {list(found.shape)}.")
        if found.ndim == 0:
            return self.take([range(len(self))[index(found)]]).squeeze(0)
        numbers = found.nonzero().squeeze(1) if found.dtype == torch.bool else found
        return self.take([range(len(self))[index(net)] for net in numbers])

    def __iter__(self) -> Iterator[Float[Tensor, " size"]]:
        return (self[net] for net in range(len(self)))

    def numel(self) -> int:
        return prod(self.shape)

    def split(self, nets: int) -> list["Rows"]:
        """Return parts of so many networks. They are read when they are used."""
        parts = [range(len(self))[first : first + nets] for first in range(0, len(self), nets)]
        return [Mapped(self, lambda x: x, part, (len(part), self.shape[1]), self.dtype, self.device) for part in parts]

    def to(self, to: torch.dtype | torch.device | str) -> "Rows":
        """Return the same networks in another precision or on another device, once they are read."""
        return mapped(self, lambda x: x.to(to))


@dataclass(frozen=True)
class Stored(Rows):
    """A matrix [nets, size] of a safetensors file, of which only rows or blocks of columns are ever in memory. `stored` opens one.

    `name` is that of the tensor, and `start` is the byte at which its numbers begin.
    """

    path: Path
    name: str
    shape: tuple[int, int]
    dtype: torch.dtype
    start: int
    device = torch.device("cpu")

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, nets: Sequence[int]) -> Float[Tensor, "nets size"]:
        rows, length = torch.empty(len(nets), self.shape[1], dtype=self.dtype), self.shape[1] * self.dtype.itemsize
        with self.path.open("rb", buffering=0) as file:
            for row, net in zip(rows.view(torch.uint8).numpy(), nets, strict=True):
                _fill(file.fileno(), row, self.start + net * length, self.path)
        return rows

    def mark(self) -> str:
        """Return a digest of the form, of what the file says of these rows, and of SAMPLES pieces of them.

        It tells matrices apart without reading them whole. Rows that come behind do not change it.
        """
        said = json.loads(header_of(self.path)[0].get("__metadata__", {}).get(ROWS, "[]"))[: len(self)]
        length = prod(self.shape) * self.dtype.itemsize
        found = hashlib.sha256(json.dumps([self.shape, NAMES[self.dtype], said]).encode())
        with self.path.open("rb") as file:
            for number in range(SAMPLES):
                first = length * number // SAMPLES
                file.seek(self.start + first)
                found.update(file.read(min(2**12, length - first)))
        return f"{found.hexdigest()[:32]}-{length}"

    def digest(self) -> str:
        """Return the sha256 of the whole file."""
        return file_digest(self.path)


@dataclass(frozen=True)
class Mapped(Rows):
    """Some networks of a matrix, changed when they are read. `mapped` makes one."""

    rows: "Float[Tensor, 'nets size'] | Rows"
    change: Callable[[Tensor], Tensor]
    chosen: Sequence[int]
    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    def take(self, nets: Sequence[int]) -> Float[Tensor, "nets size"]:
        return self.change(self.rows[[self.chosen[net] for net in nets]])


def mapped(rows: "Float[Tensor, 'nets size'] | Rows", change: Callable[[Tensor], Tensor], chosen: Sequence[int] | None = None) -> Mapped:
    """Return networks that are changed when they are read. `change` takes any number of them, [nets, size], and keeps their number.

    `chosen` are the numbers of the networks that are taken. By default these are all.
    """
    chosen = range(len(rows)) if chosen is None else chosen
    one = change(rows[:1])
    return Mapped(rows, change, chosen, (len(chosen), one.shape[1]), one.dtype, one.device)


def picked(networks: "Float[Tensor, '_nets size'] | Rows", numbers: Tensor) -> "Float[Tensor, '_picked size'] | Rows":
    """Return the networks with these numbers. Those of a file are read when they are used."""
    return mapped(networks, lambda x: x, numbers.tolist()) if isinstance(networks, Rows) else networks[numbers]


Matrix = Float[Tensor, "nets size"] | Stored  # what is read in blocks of columns
Networks = Float[Tensor, "nets size"] | Rows  # what is read network by network


def stored(path: str | Path, name: str | None = None) -> Stored:
    """Open a matrix [nets, size] of a safetensors file without reading it (see `Rows`). `name` is needed where the file holds several.

    A tensor with more axes, such as [runs, snapshots, weights] of a zoo, counts as a matrix with all its leading axes as one.

    Raises FileNotFoundError if there is no file. Raises ValueError if it is cut short or no safetensors file, and if it holds no such
    matrix of floating numbers.

    >>> import tempfile, torch
    >>> from geoflow.files import write_tensors
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_tensors(f"{folder}/zoo.safetensors", {"thetas": torch.zeros(3, 2, 5, dtype=torch.half)}, {})
    ...     stored(f"{folder}/zoo.safetensors").shape
    (6, 5)
    """
    path = Path(path).absolute()  # so that it is found from another working folder
    header, length = header_of(path)
    check_length(path, header, length)
    header.pop("__metadata__", None)
    fits = {one: about for one, about in header.items() if about["dtype"] in DTYPES and len(about["shape"]) > 1}
    if name is None and len(fits) == 1:
        (name,) = fits
    if name not in fits:
        held = ", ".join(f"{one} {about['shape']} of {about['dtype']}" for one, about in header.items()) or "nothing"
        wanted = "one matrix of networks" if name is None else f"a matrix {name!r}"
        raise ValueError(f"{path} should hold {wanted} of float16, bfloat16, float32 or float64. It holds {held}. Name another file.")
    (*rows, size), dtype, (first, last) = fits[name]["shape"], DTYPES[fits[name]["dtype"]], fits[name]["data_offsets"]
    if last - first != prod(rows) * size * dtype.itemsize:
        raise ValueError(f"{path} is no safetensors file: {name!r} has {last - first} bytes, which do not fit its shape. Write it again.")
    return Stored(path, name, (prod(rows), size), dtype, 8 + length + first)


def blocks(matrix: Networks, columns: int | None = None) -> Iterator[Float[Tensor, "nets _columns"]]:
    """Yield a matrix in blocks of `columns` columns, in the precision that it is stored in. The last block may be narrower.

    By default a block of a file has BLOCK bytes, and a matrix in memory is one block. The next block of a file is read while the caller
    works on this one, which is valid until then.

    Raises TypeError for networks that are changed as they are read.

    >>> [block.shape[1] for block in blocks(torch.zeros(3, 5), columns=2)]
    [2, 2, 1]
    """
    if not isinstance(matrix, Tensor | Stored):
        raise TypeError("Networks that are changed as they are read have no columns. Write them to a file, and open that by `stored`.")
    nets, size = matrix.shape
    columns = columns or (size if isinstance(matrix, Tensor) else max(1, BLOCK // (nets * matrix.dtype.itemsize)))
    starts = range(0, size, columns)
    if isinstance(matrix, Tensor):
        yield from matrix.detach().split(columns, 1)
        return
    buffers = [torch.empty(nets * min(columns, size), dtype=matrix.dtype) for _ in range(2)]
    with matrix.path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as reader:

        def read(number: int) -> Tensor:
            first = starts[number]
            width = min(columns, size - first)
            block = buffers[number % 2][: nets * width].view(nets, width)
            for row, piece in enumerate(block.view(torch.uint8).numpy()):
                _fill(file.fileno(), piece, matrix.start + (row * size + first) * matrix.dtype.itemsize, matrix.path)
            return block

        coming = reader.submit(read, 0)
        for number in range(len(starts)):
            block = coming.result()
            if number + 1 < len(starts):
                coming = reader.submit(read, number + 1)
            yield block


def _fill(file: int, piece, start: int, path: Path) -> None:
    """Read bytes from `start` on into a whole array."""
    done = 0
    while done < len(piece):
        read = os.preadv(file, [piece[done:]], start + done)
        if not read:
            raise ValueError(f"{path} ends at byte {start + done}: it was cut while it was read.")
        done += read

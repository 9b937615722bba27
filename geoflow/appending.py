"""Write a matrix of networks to a safetensors file row by row, and go on after an interruption."""

import errno
import fcntl
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from geoflow.files import unless_there, whole
from geoflow.headers import ROWS, add_row, check_length, header_of, tidy
from geoflow.spec import NetworkSpec
from geoflow.stored import DTYPES, NAMES, Stored, stored

THETAS = "thetas"  # the matrix of a zoo
ROOM = 2**18  # bytes that the header may grow by, and ABOUT more for every row that is expected
ABOUT = 400
SMALL = NAMES | {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}


class Appender:
    """Add rows at the end of a matrix in a safetensors file. After each addition the file is whole, and holds one row more.

    `about` says of each row what it is, in the order of the rows. `appending` opens one.
    """

    def __init__(self, file: int, path: Path, parts: Mapping, words: Mapping[str, str], about: list, length: int):
        self.file, self.path, self.parts, self.words, self.about, self.length = file, path, dict(parts), dict(words), about, length
        *_, self.name = parts
        self.size, self.start = parts[self.name]["shape"][1], 8 + length + parts[self.name]["data_offsets"][0]
        self.dtype = DTYPES[parts[self.name]["dtype"]]

    def __len__(self) -> int:
        return len(self.about)

    def add(self, rows: Float[Tensor, "nets size"], about: Sequence | None = None) -> None:
        """Add networks. `about` says of each of them what it is, in plain values.

        Raises ValueError for rows of another length, for numbers that the precision of the file cannot hold, and if the header has no room
        to say what further rows are. Raises OSError if the disk is full. The networks that were added before are kept.
        """
        about = [{}] * len(rows) if about is None else list(about)
        if rows.ndim != 2 or rows.shape[1] != self.size:
            raise ValueError(f"{self.path} has rows of {self.size} numbers, not {list(rows.shape)}.")
        kept = rows.detach().cpu().to(self.dtype).contiguous()
        if kept.numel() and not torch.stack(kept.aminmax()).isfinite().all():
            raise ValueError(f"A weight is NaN, or too large for {self.dtype}. Write the networks in float32.")
        for row, one in zip(kept, about, strict=True):
            self._add(row, [*self.about, one])

    def _add(self, row: Float[Tensor, " size"], about: list) -> None:
        begin, length = self.parts[self.name]["data_offsets"][0], self.size * self.dtype.itemsize
        here = {"shape": [len(about), self.size], "data_offsets": [begin, begin + len(about) * length]}
        parts = self.parts | {self.name: self.parts[self.name] | here}
        header = _header(parts, self.words, about, self.length, self.path)
        try:
            add_row(self.file, row.view(torch.uint8).numpy(), self.start + len(self) * length, header)
        except OSError as error:
            free = shutil.disk_usage(self.path.parent).free
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = (
                f"the disk is full after {len(self)} networks, which are kept. The next one needs {(length + len(header)) / 1e9:.2g} GB, "
                f"and {free / 1e9:.2g} GB are free. Make room, and do the same again: it goes on from there"
            )
            raise OSError(error.errno, f"{self.path}: {what if full else error.strerror}") from error
        self.parts, self.about = parts, about


@contextmanager
def appending(
    path: str | Path,
    name: str,
    size: int,
    dtype: torch.dtype,
    words: Mapping[str, str],
    beside: Mapping[str, Tensor] | None = None,
    expected: int = 0,
) -> Iterator[Appender]:
    """Give an `Appender` of a matrix [rows, size]. If the file is there, its rows are kept, and further ones come behind them.

    `words` and the small tensors `beside` say what the whole file is, and `expected` is a number of rows that the header should have room
    for.

    Only one process adds to a file at a time. Others wait, with a warning, and find the rows that it has added.

    Raises ValueError if the file is no such matrix, if it says anything else of itself, and if it is cut short.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for _ in range(2):
    ...         with appending(f"{folder}/zoo.safetensors", "thetas", 3, torch.half, {"made": "here"}) as file:
    ...             file.add(torch.ones(2, 3))
    ...     header_of(f"{folder}/zoo.safetensors")[0]["thetas"]["shape"]
    [4, 3]
    """
    path, beside = Path(path), {key: value.detach().cpu().contiguous() for key, value in (beside or {}).items()}
    if dtype not in NAMES:
        raise ValueError(f"dtype={dtype} cannot be written. Choose one of {', '.join(map(str, NAMES))}.")
    if not path.exists():
        _begin(path, name, size, dtype, words, beside, expected)
    with path.open("r+b", buffering=0) as file:
        _wait_for(file, path)
        tidy(file, path)
        appender = _opened(file, path, name, size, dtype, words)
        if differ := [key for key, value in beside.items() if not _same(path, key, value)]:
            raise ValueError(f"{path} holds another {differ[0]!r} than the networks that were to be added. Name another file.")
        yield appender


def _wait_for(file: BinaryIO, path: Path) -> None:
    """Wait until no other process adds to the file. Its lock ends with the process that holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        warnings.warn(f"Another process adds to {path}. This one waits until it has finished.", stacklevel=4)
        fcntl.flock(file, fcntl.LOCK_EX)


def _opened(file: BinaryIO, path: Path, name: str, size: int, dtype: torch.dtype, words: Mapping[str, str]) -> Appender:
    header, length = header_of(path)
    check_length(path, header, length)
    said = dict(header.pop("__metadata__", {}))
    about = json.loads(said.pop(ROWS, "null"))
    found = header.get(name, {"shape": None, "dtype": None})
    wanted = {"shape": [len(about or ()), size], "dtype": NAMES[dtype]}
    if about is None or {key: found[key] for key in wanted} != wanted:
        raise ValueError(
            f"{path} holds {found['shape']} of {found['dtype']} as {name!r}, and rows of {size} numbers of {NAMES[dtype]} were to be "
            "added. Name another file."
        )
    if differ := [key for key in {**said, **words} if said.get(key) != words.get(key)]:
        raise ValueError(f"{path} says another {differ[0]!r} of itself than the networks that were to be added. Name another file.")
    return Appender(file.fileno(), path, header, said, about, length)


def appending_networks(
    path: str | Path,
    spec: NetworkSpec,
    dtype: torch.dtype,
    words: Mapping[str, str] | None = None,
    beside: Mapping[str, Tensor] | None = None,
    expected: int = 0,
) -> AbstractContextManager[Appender]:
    """Return what `appending` does, for a zoo of weight vectors: the file also holds the table that they are packed by."""
    rest = {f"rest.{name}": value for name, value in spec.rest.items()}
    return appending(path, THETAS, spec.weights, dtype, {"spec": spec.to_json(), **(words or {})}, rest | dict(beside or {}), expected)


def write_networks_of(
    spec: NetworkSpec, path: Path, key: str, count: int, dtype: torch.dtype, theta: Callable[[int], Tensor], progress: bool = False
) -> Stored:
    """Write `count` networks, each made by `theta` from its number. Those that the file has under this key are kept.

    `key` is a digest of all that decides the networks. Raises ValueError for a file of another key.
    """
    with appending_networks(path, spec, dtype, {"points": key}, expected=count) as file:
        for number in tqdm(range(len(file), count), desc="write networks", unit="network", disable=not progress):
            file.add(theta(number)[None])
    return stored(path, THETAS)


def words_of(path: str | Path) -> tuple[dict[str, str], list]:
    """Return the words of a file that was written by rows, and what it says of each row. The list is empty for other files."""
    said = dict(header_of(path)[0].get("__metadata__", {}))
    return said, json.loads(said.pop(ROWS, "[]"))


def small_tensors(path: str | Path, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a file whose names begin with `prefix`, also while rows are added to it."""
    header, length = header_of(path)
    kinds = {name: dtype for dtype, name in SMALL.items()}
    found = {}
    with Path(path).open("rb") as file:
        for name, about in header.items():
            if name.startswith(prefix) and name != "__metadata__":
                file.seek(8 + length + about["data_offsets"][0])
                held, dtype = bytearray(file.read(about["data_offsets"][1] - about["data_offsets"][0])), kinds[about["dtype"]]
                flat = torch.frombuffer(held, dtype=dtype) if prod(about["shape"]) else torch.empty(0, dtype=dtype)
                found[name] = flat.reshape(about["shape"])
    return found


def _begin(path: Path, name: str, size: int, dtype: torch.dtype, words: Mapping, beside: Mapping[str, Tensor], expected: int) -> None:
    """Write a file without rows. The small tensors come first, so that rows can follow each other up to the end."""
    tensors = dict(sorted(beside.items(), key=lambda item: -item[1].itemsize))
    if fill := -sum(value.nbytes for value in tensors.values()) % 8:  # readers that map the file want rows at multiples of their size
        tensors["fill"] = torch.zeros(fill, dtype=torch.uint8)
    parts, first = {}, 0
    for key, value in tensors.items():
        parts[key] = {"dtype": SMALL[value.dtype], "shape": list(value.shape), "data_offsets": [first, first + value.nbytes]}
        first += value.nbytes
    parts[name] = {"dtype": NAMES[dtype], "shape": [0, size], "data_offsets": [first, first]}
    length = len(json.dumps(parts)) + 2 * len(json.dumps(dict(words))) + ROOM + ABOUT * expected
    length += -length % 8
    with whole(path, unless_there) as partial:  # another process may begin it at the same moment
        content = [value.reshape(-1).view(torch.uint8).numpy().tobytes() for value in tensors.values()]
        partial.write_bytes(b"".join([_header(parts, words, [], length, path), *content]))


def _header(parts: Mapping, words: Mapping, about: list, length: int, path: Path) -> bytes:
    text = json.dumps({"__metadata__": {**words, ROWS: json.dumps(about)}, **parts}).encode()
    if len(text) > length:
        raise ValueError(f"{path} has no room left to say what further rows are, after {len(about) - 1}. Make it again from all of them.")
    return length.to_bytes(8, "little") + text + b" " * (length - len(text))


def _same(path: Path, name: str, value: Tensor) -> bool:
    found = small_tensors(path, name).get(name)
    return found is not None and found.dtype == value.dtype and torch.equal(found, value)

"""Write and read safetensors files; a crash while writing leaves the old file as it was."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import get_native_id

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def over(partial: Path, path: Path) -> None:
    """Bring a finished file to its path, in the place of a file that is there by then."""
    os.replace(partial, path)


@contextmanager
def whole(path: str | Path, place: Callable[[Path, Path], object] = over) -> Iterator[Path]:
    """Give a temporary path to write to, and rename it to `path` when the block ends. After an error `path` is as it was.

    `place` brings the finished file to its path. By default it takes the place of a file that is there by then.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole(Path(folder) / "a.txt") as partial:
    ...         done = partial.write_text("all of it")
    ...     [file.name for file in Path(folder).iterdir()]
    ['a.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{get_native_id()}.part")  # another thread or process may write the same file
    try:
        yield partial
        place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def unless_there(partial: Path, path: Path) -> None:
    """Bring a finished file to its path, and keep a file that another process has put there in the meantime."""
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError:  # a disk without links
        os.replace(partial, path)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors from any device, and a dict of strings about them."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with whole(path) as partial:
        partial.write_bytes(save(plain, dict(metadata)))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and the strings about them.

    Raises ValueError if the file is corrupt, and FileNotFoundError if there is none.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (safe_open is not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is corrupt or not a safetensors file: {error}. Name another file, or create this one again.") from error


def file_digest(path: str | Path) -> str:
    """The sha256 of the bytes of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, under their names without it.

    >>> import torch
    >>> list(under("field.", {"field.a": torch.zeros(1), "other.b": torch.zeros(1)}))
    ['a']
    """
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def beside(path: str | Path, what: str) -> Path:
    """Return the path of a file that belongs to the one at `path`. Whatever follows a dot in its name is kept, as in lr0.1 and lr0.2.

    >>> str(beside("flow.safetensors", "zoo")), str(beside("lr0.1", "zoo"))
    ('flow.zoo.safetensors', 'lr0.1.zoo.safetensors')
    """
    path = Path(path)
    return path.with_name(f"{path.name.removesuffix('.safetensors')}.{what}.safetensors")

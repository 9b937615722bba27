"""Read the official binary archive of CIFAR-10, and check that it is complete."""

import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from geoflow.files import file_digest
from geoflow.zoo.lookup import Fetch, find

FILE = "cifar-10-binary.tar.gz"
MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
DIGEST = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"  # sha256; its md5 is c32a1d4ab5d03f1284b67883e8d87530
PARTS = {
    "train": [f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)],
    "test": ["cifar-10-batches-bin/test_batch.bin"],
}
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32  # bytes of a label and of its image: the red, the green and the blue pixels, each row by row

Part = tuple[np.ndarray, np.ndarray]  # images [examples, 3072] and labels [examples], as bytes


def load_cifar(folder: str | Path | None, fetch: Fetch) -> dict[str, Part]:
    """Return images and labels of the parts train and test. The archive is found as `find` does.

    Raises FileNotFoundError if it is missing, and says where to put it. Raises ValueError if it is damaged.
    """
    return read_cifar(find("cifar10", FILE, [mirror + FILE for mirror in MIRRORS], folder, fetch), DIGEST)


def read_cifar(path: Path, digest: str) -> dict[str, Part]:
    """Return images and labels of an archive with this sha256. The format is described at www.cs.toronto.edu/~kriz/cifar.html."""
    if (found := file_digest(path)) != digest:
        raise ValueError(f"{path} has the sha256 {found}, expected {digest}. Delete it and fetch it again.")
    try:
        with tarfile.open(path, "r:gz") as archive:
            return {part: _joined([archive.extractfile(name).read() for name in names]) for part, names in PARTS.items()}
    except (tarfile.TarError, EOFError, zlib.error, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no complete archive of CIFAR-10 ({error}). Delete it and fetch it again.") from error


def _joined(files: Sequence[bytes]) -> Part:
    """Return images and labels of some files. Raises ValueError for a file that ends within an image, and for an unknown label."""
    if wrong := [len(raw) for raw in files if not raw or len(raw) % RECORD]:
        raise ValueError(f"a file has {wrong[0]} bytes, which are no whole number of images of {RECORD}")
    records = np.frombuffer(b"".join(files), np.uint8).reshape(-1, RECORD)
    if (label := records[:, 0].max()) >= len(NAMES):
        raise ValueError(f"there is a label {label}, and the classes are 0 to {len(NAMES) - 1}")
    return records[:, 1:], records[:, 0]

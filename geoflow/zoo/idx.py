"""Read the IDX files of MNIST and Fashion-MNIST, and check that they are complete."""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from geoflow.zoo.lookup import Fetch, find

MIRRORS = {
    "mnist": ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    "fashion": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
}

# md5 of the decompressed bytes, because mirrors compress the same file differently
DIGESTS = {
    "mnist": {
        "train-images": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels": "a25bea736e30d166cdddb491f175f624",
        "t10k-images": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion": {
        "train-images": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


def load_idx(name: str, folder: str | Path | None, fetch: Fetch) -> dict[str, np.ndarray]:
    """Return the four arrays of MNIST or Fashion-MNIST by part: images [examples, 28, 28] and labels [examples], as bytes.

    Raises FileNotFoundError if a file is missing, and says where to put it. Raises ValueError if the digest of a file is wrong.
    """
    return {part: read_idx(find_idx(name, part, folder, fetch), digest) for part, digest in DIGESTS[name].items()}


def find_idx(name: str, part: str, folder: str | Path | None, fetch: Fetch) -> Path:
    """Return the path of one file, found as `find` does."""
    file = f"{part}-idx{3 if part.endswith('images') else 1}-ubyte.gz"
    return find(name, file, [mirror + file for mirror in MIRRORS[name]], folder, fetch)


def read_idx(path: Path, digest: str) -> np.ndarray:
    """Return the array of bytes in a gzipped IDX file.

    `digest` is the md5 of the decompressed bytes. The format is described at yann.lecun.com/exdb/mnist.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no complete gzip archive ({error}). Delete it and fetch it again.") from error
    if (found := hashlib.md5(raw, usedforsecurity=False).hexdigest()) != digest:
        raise ValueError(f"{path} decompresses to bytes of md5 {found}, expected {digest}. Delete it and fetch it again.")
    axes = raw[3]
    shape = np.frombuffer(raw, ">i4", axes, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)

"""Find, check and read the IDX files of MNIST and Fashion-MNIST."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pooch

Fetch = Callable[[Sequence[str], Path], None]

MIRRORS = {
    "mnist": ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    "fashion": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
}

# md5 of the decompressed bytes: archives of one file differ between mirrors in their compression
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
    """The four arrays of MNIST or Fashion-MNIST by part: images [examples, 28, 28] and labels [examples], as bytes.

    Raises FileNotFoundError saying where to put an absent file, ValueError for a file whose digest is wrong.
    """
    return {part: read_idx(find(name, part, folder, fetch), digest) for part, digest in DIGESTS[name].items()}


def find(name: str, part: str, folder: str | Path | None, fetch: Fetch) -> Path:
    """The path of one file: in `folder` (by default the environment's GEOFLOW_DATA), in the cache, or fetched into the cache."""
    file = f"{part}-idx{3 if part.endswith('images') else 1}-ubyte.gz"
    cached = Path(pooch.os_cache("geoflow")) / name / file
    given = folder if folder is not None else os.environ.get("GEOFLOW_DATA")
    places = [cached] if given is None else [Path(given) / name / file, cached]
    for path in places:
        if path.is_file():
            return path
    try:
        fetch([mirror + file for mirror in MIRRORS[name]], cached)
    except OSError as error:
        tried = " nor ".join(map(str, places))
        raise FileNotFoundError(
            f"Neither {tried} exists, and {file} cannot be downloaded ({error}). "
            f"Put it in a folder {name}/ and set GEOFLOW_DATA to the folder that holds {name}/, or put it at {cached}."
        ) from error
    return cached


def download(urls: Sequence[str], path: Path) -> None:
    """Fetch the first of `urls` that answers into `path`; raises OSError if none does."""
    pooch.get_logger().setLevel("WARNING")
    errors = []
    for url in urls:
        try:
            pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent)
            return
        except OSError as error:  # requests' exceptions are OSErrors
            errors.append(f"{url}: {type(error).__name__}")
    raise OSError("; ".join(errors))


def read_idx(path: Path, digest: str) -> np.ndarray:
    """The array of bytes in a gzipped IDX file whose decompressed bytes have this md5 digest (format: yann.lecun.com/exdb/mnist)."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no complete gzip archive ({error}). Delete it and fetch it again.") from error
    if (found := hashlib.md5(raw, usedforsecurity=False).hexdigest()) != digest:
        raise ValueError(f"{path} decompresses to bytes of md5 {found}, expected {digest}. Delete it and fetch it again.")
    axes = raw[3]
    shape = np.frombuffer(raw, ">i4", axes, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)

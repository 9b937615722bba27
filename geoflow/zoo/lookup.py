"""Find the files of a data set in a given folder, in the cache or on the internet."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pooch

Fetch = Callable[[Sequence[str], Path], None]


def find(name: str, file: str, urls: Sequence[str], folder: str | Path | None, fetch: Fetch) -> Path:
    """Return the path of one file of the data set `name`.

    It is looked up in `folder` (by default the environment variable GEOFLOW_DATA), then in the cache, and otherwise downloaded into the
    cache.

    Raises FileNotFoundError if there is no such file, and says where to put it.
    """
    cached = Path(pooch.os_cache("geoflow")) / name / file
    given = folder if folder is not None else os.environ.get("GEOFLOW_DATA")
    places = [cached] if given is None else [Path(given) / name / file, cached]
    for path in places:
        if path.is_file():
            return path
    try:
        fetch(urls, cached)
    except OSError as error:
        tried = f"Neither {places[0]} nor {cached} exists" if given is not None else f"{cached} does not exist"
        raise FileNotFoundError(
            f"{tried}, and {file} cannot be downloaded ({error}). "
            f"Put it in a folder {name}/ and set GEOFLOW_DATA to the folder that holds {name}/, or put it at {cached}."
        ) from error
    return cached


def download(urls: Sequence[str], path: Path) -> None:
    """Download the first of `urls` that answers to `path`. Raises OSError if none does."""
    if not urls:
        raise OSError("it has no official address")
    pooch.get_logger().setLevel("WARNING")
    errors = []
    for url in urls:
        try:
            pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent)
            return
        except OSError as error:  # requests' exceptions are OSErrors
            errors.append(f"{url}: {type(error).__name__}")
    raise OSError("; ".join(errors))

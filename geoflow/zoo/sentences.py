"""Read sentences with their labels, and turn the sentences into tokens."""

import gzip
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from geoflow.zoo.lookup import Fetch, find

SPECIAL = ("[PAD]", "[CLS]", "[UNK]")  # padding of short sentences, start of each sentence, words outside the vocabulary
PADDING, CLASS, UNKNOWN = range(3)


def load_sentences(name: str, classes: int, folder: str | Path | None, fetch: Fetch) -> dict[str, tuple[list[list[str]], np.ndarray]]:
    """Return the words and labels of the parts train, dev and test. The files are `train.tsv.gz` and so on, found as `find` does.

    Raises FileNotFoundError if a file is missing, and says where to put it. Raises ValueError if a file is broken.
    """
    return {part: read_sentences(find(name, f"{part}.tsv.gz", [], folder, fetch), classes) for part in ("train", "dev", "test")}


def read_sentences(path: Path, classes: int) -> tuple[list[list[str]], np.ndarray]:
    """Return the words and labels of a gzipped UTF-8 file with one `sentence<tab>label` in each line.

    Raises ValueError with the name of a broken file, and with the number of the line if one line is broken.
    """
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no complete gzip archive of UTF-8 text ({error}). Replace it with an intact copy.") from error
    if not lines:
        raise ValueError(f"{path} holds no sentences. Replace it with an intact copy.")
    pairs = [_pair(line, f"{path}, line {number}", classes) for number, line in enumerate(lines, 1)]
    return [words for words, _ in pairs], np.array([label for _, label in pairs])


def vocabulary_of(sentences: Iterable[Sequence[str]], size: int) -> dict[str, int]:
    """Return a vocabulary of `size` tokens: those of SPECIAL, then the most frequent words.

    Words that are equally frequent come in alphabetical order.

    >>> vocabulary_of([["a", "good", "film"], ["a", "bad", "film"]], 6)
    {'[PAD]': 0, '[CLS]': 1, '[UNK]': 2, 'a': 3, 'film': 4, 'bad': 5}
    """
    counts = Counter(word for words in sentences for word in words)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[: size - len(SPECIAL)]
    return {word: token for token, word in enumerate((*SPECIAL, *frequent))}


def tokens_of(sentences: Sequence[Sequence[str]], vocabulary: Mapping[str, int], length: int) -> np.ndarray:
    """Return tokens [sentences, length]: CLASS, then the words.

    Longer sentences are cut, and shorter ones are filled up with PADDING.

    >>> tokens_of([["a", "dull", "film"]], {"a": 3, "film": 4}, 6)
    array([[1, 3, 2, 4, 0, 0]])
    """
    tokens = np.full((len(sentences), length), PADDING, np.int64)
    for row, words in zip(tokens, sentences, strict=True):
        found = [CLASS, *(vocabulary.get(word, UNKNOWN) for word in words[: length - 1])]
        row[: len(found)] = found
    return tokens


def _pair(line: str, where: str, classes: int) -> tuple[list[str], int]:
    sentence, tab, label = line.rpartition("\t")
    if not tab or not sentence.split() or label not in map(str, range(classes)):
        labels = ", ".join(map(str, range(classes)))
        raise ValueError(f"{where}: {line[:60]!r} is no sentence, tab and label (of {labels}). Mend this line.")
    return sentence.split(), int(label)

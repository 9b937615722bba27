"""Load the data that the networks of a zoo are trained and tested on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import sklearn.datasets
import torch
from jaxtyping import Shaped
from sklearn.model_selection import train_test_split
from torch import Tensor

from geoflow.choices import choose
from geoflow.outputs import outputs_of
from geoflow.zoo import cifar
from geoflow.zoo.idx import load_idx
from geoflow.zoo.lookup import Fetch, download
from geoflow.zoo.scaling import image, pixels, scaled, standardise
from geoflow.zoo.sentences import load_sentences, tokens_of, vocabulary_of

TEST_SHARE = 0.2
WORDS, LENGTH = 2000, 32  # size of the vocabulary; tokens after which sentences are cut (5 % are longer)


@dataclass(frozen=True)
class Target:
    """A real number to predict. A task holds it as (number - mean) / deviation, with mean and deviation of the training part.

    >>> load_task("diabetes").targets[0].name
    'disease progression'
    """

    name: str
    mean: float
    deviation: float


@dataclass(frozen=True)
class Task:
    """A task: scaled inputs with class indices [examples] or real targets [examples, targets], for training and for the final test.

    `outputs` names what a network for the task gives, a row of OUTPUTS. Classes have `class_names`, and real numbers are `targets`.

    `form` is one of FORMS. Nothing is ever chosen or fitted on the test part. `validation_task` makes a part to choose settings on. It
    takes `official`, which is the validation part that some data bring, and otherwise a share of the training part. `vocabulary` holds the
    words that tokens stand for.

    >>> task = load_task("iris")
    >>> task.features, task.classes, task.class_names
    (4, 3, ('setosa', 'versicolor', 'virginica'))
    """

    name: str
    x_train: Shaped[Tensor, "train ..."]
    y_train: Shaped[Tensor, "train ..."]
    x_test: Shaped[Tensor, "test ..."]
    y_test: Shaped[Tensor, "test ..."]
    class_names: tuple[str, ...]
    form: str = "table"
    official: tuple[Tensor, Tensor] | None = None
    vocabulary: tuple[str, ...] = ()
    outputs: str = "classes"
    targets: tuple[Target, ...] = ()

    @property
    def features(self) -> int:
        """The count of numbers or tokens in one example."""
        return self.x_train[0].numel()

    @property
    def classes(self) -> int:
        """The number of classes. It is 0 for real targets."""
        return len(self.class_names)

    @property
    def units(self) -> int:
        """The number of output units that a network for the task needs."""
        return outputs_of(self.outputs).units(len(self.class_names) or len(self.targets))

    def accepts(self, units: int) -> bool:
        """Whether a network with so many output units serves the task. Two classes may have one logit."""
        return units == self.units or (units == 1 and self.classes == 2)

    @property
    def numbers(self) -> Tensor | None:
        """The training inputs if they are numbers, and None if they are tokens.

        Numbers can measure rows of weights (see `metric_frame`), and tokens cannot.
        """
        return self.x_train if self.x_train.is_floating_point() else None


@dataclass(frozen=True)
class Raw:
    """Data before any scaling, as numpy arrays: x_train [train, features], and y_train [train] or [train, targets].

    The test part and `official` have the same axes. `names` are those of the classes or targets.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    names: tuple[str, ...]
    official: tuple[np.ndarray, np.ndarray] | None = None
    vocabulary: tuple[str, ...] = ()


Scaling = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray] | tuple[float, float]]  # mean and scale of a training part


@dataclass(frozen=True)
class Source:
    """A row of TASKS: where data come from.

    `forms` lists the forms that the data have, the default first, and how each is scaled. None means that it is not scaled. `image` is the
    shape (channels, rows, columns) of images. `outputs` names what a network is to predict, a row of OUTPUTS.
    """

    load: Callable[..., Raw]
    forms: Mapping[str, Scaling | None]
    image: tuple[int, int, int] | None = None
    outputs: str = "classes"


# form: what one example is
FORMS = {"table": "rows of a table", "image": "images", "tokens": "sentences"}


def load_task(name: str, seed: int = 0, folder: str | Path | None = None, fetch: Fetch = download, form: str | None = None) -> Task:
    """Load the task `name` of TASKS, in one of its forms (by default the first).

    Inputs and real targets are scaled by statistics of the training part alone. scikit-learn's tables are split at random, with 20 % for
    the test. If they have classes, the split is stratified. `seed` chooses this split and nothing else. MNIST, Fashion-MNIST, CIFAR-10 and
    SST-2 keep their official test set. Their files are looked up in `folder` (by default GEOFLOW_DATA), then in the cache, and otherwise
    downloaded.

    Raises ValueError for an unknown name and for a form that the task does not have. Raises FileNotFoundError if data are missing and
    cannot be downloaded.

    >>> task = load_task("breast_cancer")
    >>> task.x_train.shape, task.x_test.shape, task.classes
    (torch.Size([455, 30]), torch.Size([114, 30]), 2)
    >>> load_task("digits", form="image").x_test.shape
    torch.Size([360, 1, 8, 8])
    """
    source = choose("task", name, TASKS)
    form = next(iter(source.forms)) if form is None else form
    choose(f"form of {name}", form, source.forms)
    raw = source.load(seed=seed, folder=folder, fetch=fetch)
    read = reader(source, form, raw.x_train)

    labels, named = LABELS[source.outputs](raw)

    def examples(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
        return read(x), torch.from_numpy(labels(y))

    parts = [examples(raw.x_train, raw.y_train), examples(raw.x_test, raw.y_test)]
    official = None if raw.official is None else examples(*raw.official)
    given = {"form": form, "official": official, "vocabulary": raw.vocabulary, "outputs": source.outputs}
    return Task(name, *parts[0], *parts[1], **{"class_names": (), **named, **given})


def reader(source: Source, form: str, x_train: np.ndarray) -> Callable[[np.ndarray], Tensor]:
    """Return how raw inputs become what networks read: scaled by statistics of `x_train` alone, and in the shape of the form."""
    scaling = source.forms[form]
    mean, scale = (0.0, 1.0) if scaling is None else scaling(x_train)

    def of(x: np.ndarray) -> Tensor:
        read = torch.from_numpy(x if scaling is None else scaled(x, mean, scale))
        return read.unflatten(1, source.image) if form == "image" else read

    return of


def validation_task(task: Task, share: float = 0.25, seed: int = 0) -> Task:
    """Return the same task with a validation part instead of the test part, so that settings can be chosen on it.

    It is the official validation part of the data if they have one, and otherwise a `share` of the training part, stratified by class.
    Inputs and real targets keep their scaling, which comes from the whole training part.

    >>> task = validation_task(load_task("iris"))
    >>> len(task.x_train), len(task.x_test)
    (90, 30)
    """
    if task.official is not None:
        return replace(task, x_test=task.official[0], y_test=task.official[1])
    strata = outputs_of(task.outputs).strata(task.y_train.numpy())
    train, valid = train_test_split(np.arange(len(task.y_train)), test_size=share, random_state=seed, stratify=strata)
    parts = {"x_train": task.x_train[train], "y_train": task.y_train[train], "x_test": task.x_train[valid], "y_test": task.y_train[valid]}
    return replace(task, **parts)


def _class_indices(raw: Raw) -> tuple[Callable, dict]:
    return lambda y: y.astype(np.int64), {"class_names": raw.names}


def _standard_targets(raw: Raw) -> tuple[Callable, dict]:
    mean, deviation = standardise(raw.y_train)
    targets = tuple(Target(*one) for one in zip(raw.names, mean.tolist(), deviation.tolist(), strict=True))
    return lambda y: ((y - mean) / deviation).astype(np.float32), {"targets": targets}


# kind of outputs: how raw labels become targets, and what a task records of them
LABELS: dict[str, Callable[[Raw], tuple[Callable[[np.ndarray], np.ndarray], dict]]] = {
    "classes": _class_indices,
    "gaussian": _standard_targets,
}


def _split_table(load: Callable, *, seed: int, folder, fetch) -> Raw:
    table = load()
    parts = train_test_split(table.data, table.target, test_size=TEST_SHARE, random_state=seed, stratify=table.target)
    x_train, x_test, y_train, y_test = parts
    return Raw(x_train, y_train, x_test, y_test, tuple(map(str, table.target_names)))


def _split_numbers(load: Callable, target: str, *, seed: int, folder, fetch) -> Raw:
    table = load()
    x_train, x_test, y_train, y_test = train_test_split(table.data, table.target[:, None], test_size=TEST_SHARE, random_state=seed)
    return Raw(x_train, y_train, x_test, y_test, (target,))


def _official_split(name: str, class_names: tuple[str, ...], shrink: int = 1, *, seed: int, folder, fetch) -> Raw:
    arrays = load_idx(name, folder, fetch)
    x_train, x_test = (_averaged(arrays[part], shrink).reshape(len(arrays[part]), -1) for part in ("train-images", "t10k-images"))
    return Raw(x_train, arrays["train-labels"], x_test, arrays["t10k-labels"], class_names)


def _colours(*, seed: int, folder, fetch) -> Raw:
    parts = cifar.load_cifar(folder, fetch)
    return Raw(*parts["train"], *parts["test"], cifar.NAMES)


def _averaged(images: np.ndarray, shrink: int) -> np.ndarray:
    """Average every square of `shrink` by `shrink` pixels to one pixel."""
    if shrink == 1:
        return images
    count, rows, columns = images.shape
    return images.reshape(count, rows // shrink, shrink, columns // shrink, shrink).mean((2, 4), dtype=np.float32)


def _sentences(class_names: tuple[str, ...], *, seed: int, folder, fetch) -> Raw:
    parts = load_sentences("sst2", len(class_names), folder, fetch)
    vocabulary = vocabulary_of(parts["train"][0], WORDS)
    train, dev, test = ((tokens_of(words, vocabulary, LENGTH), labels) for words, labels in parts.values())
    return Raw(*train, *test, class_names, dev, tuple(vocabulary))


_DIGITS = tuple("0123456789")
_CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_IMAGES = {"table": pixels, "image": image}

TASKS = {
    "breast_cancer": Source(partial(_split_table, sklearn.datasets.load_breast_cancer), {"table": standardise}),
    "digits": Source(partial(_split_table, sklearn.datasets.load_digits), _IMAGES, (1, 8, 8)),
    "iris": Source(partial(_split_table, sklearn.datasets.load_iris), {"table": standardise}),
    "wine": Source(partial(_split_table, sklearn.datasets.load_wine), {"table": standardise}),
    # scikit-learn's own scaling of diabetes uses all examples, those of the test part as well
    "diabetes": Source(
        partial(_split_numbers, partial(sklearn.datasets.load_diabetes, scaled=False), "disease progression"),
        {"table": standardise},
        outputs="gaussian",
    ),
    "mnist": Source(partial(_official_split, "mnist", _DIGITS), _IMAGES, (1, 28, 28)),
    "fashion": Source(partial(_official_split, "fashion", _CLOTHES), _IMAGES, (1, 28, 28)),
    "mnist14": Source(partial(_official_split, "mnist", _DIGITS, 2), _IMAGES, (1, 14, 14)),
    "fashion14": Source(partial(_official_split, "fashion", _CLOTHES, 2), _IMAGES, (1, 14, 14)),
    "cifar10": Source(_colours, {"image": image}, cifar.SHAPE),
    "sst2": Source(partial(_sentences, ("negative", "positive")), {"tokens": None}),
}

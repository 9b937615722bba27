"""Fetch inputs that are not of a task, in the form that its networks read."""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from geoflow.choices import choose
from geoflow.zoo.lookup import Fetch, download
from geoflow.zoo.tasks import TASKS, reader


def others_of(name: str) -> tuple[str, ...]:
    """Return the other tasks whose images have the same shape, in the order of TASKS.

    Tables and sentences have none, because their columns and words mean something else in every task.

    >>> others_of("mnist"), others_of("digits")
    (('fashion',), ())
    """
    shape = choose("task", name, TASKS).image
    return tuple(other for other, source in TASKS.items() if shape is not None and source.image == shape and other != name)


def outside_inputs(
    name: str, other: str, seed: int = 0, folder: str | Path | None = None, fetch: Fetch = download, form: str | None = None
) -> Float[Tensor, "examples ..."]:
    """Return the test inputs of the task `other`, scaled by the training part of the task `name`.

    So a network of `name` meets these inputs as it would meet them in use: it knows nothing of the data that they come from. `seed`,
    `folder`, `fetch` and `form` are as in `load_task`.

    Raises ValueError if `other` is not one of `others_of(name)`, and FileNotFoundError as `load_task` does.

    >>> outside_inputs("iris", "wine")
    Traceback (most recent call last):
    ValueError: Unknown other task for iris 'wine'. Known: none.
    """
    if other not in (fitting := others_of(name)):
        raise ValueError(f"Unknown other task for {name} {other!r}. Known: {', '.join(fitting) or 'none'}.")
    own, foreign = (TASKS[task] for task in (name, other))
    form = next(iter(own.forms)) if form is None else form
    choose(f"form of {name}", form, own.forms)
    training, raw = (source.load(seed=seed, folder=folder, fetch=fetch) for source in (own, foreign))
    return reader(own, form, training.x_train)(raw.x_test)

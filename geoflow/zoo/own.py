"""Make a task of your own data."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from zipfile import is_zipfile

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from geoflow.outputs import outputs_of
from geoflow.zoo.tasks import FORMS, Target, Task

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def own_task(
    x_train: Shaped[Tensor, "_train ..."],
    y_train: Shaped[Tensor, "..."],
    x_test: Shaped[Tensor, "_test ..."],
    y_test: Shaped[Tensor, "..."],
    *,
    name: str = "own data",
    outputs: str = "classes",
    names: Sequence[str] | None = None,
) -> Task:
    """Return a task for tensors of your own. They are taken as they are, without scaling.

    With `outputs="classes"`, y holds class indices from 0 on. With "gaussian" it holds real targets [examples, targets], in the units that
    the networks predict. `names` are those of the classes or of the targets. By default they are numbers.

    Raises ValueError if both parts differ in the shape of an example, or if y does not fit `outputs`. `read_task` reads such a task from a
    file.

    >>> import torch
    >>> task = own_task(torch.zeros(8, 3), torch.tensor([0, 1] * 4), torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
    >>> task.features, task.classes, task.class_names
    (3, 3, ('0', '1', '2'))
    """
    kind = outputs_of(outputs)
    if x_train.shape[1:] != x_test.shape[1:]:
        shapes = [list(part.shape[1:]) for part in (x_train, x_test)]
        raise ValueError(f"An example of x_train has shape {shapes[0]}, and one of x_test {shapes[1]}. Both parts need one form.")
    if x_train.dtype != x_test.dtype:
        raise ValueError(f"x_train holds {x_train.dtype}, and x_test {x_test.dtype}. Both parts need one form.")
    for x, y in ((x_train, y_train), (x_test, y_test)):
        kind.check(x, y)
    count = 1 + max(int(y.max()) for y in (y_train, y_test)) if outputs == "classes" else y_train.shape[1]
    names = tuple(map(str, range(count))) if names is None else tuple(names)
    if len(names) < count:
        raise ValueError(f"names holds {len(names)} names, and y has {count}. Name each.")
    for y in (y_train, y_test):
        kind.check_fit(kind.units(count), y)
    classes = names if outputs == "classes" else ()
    targets = () if outputs == "classes" else tuple(Target(one, 0.0, 1.0) for one in names)
    form = "image" if x_train.ndim == 4 else "table" if x_train.is_floating_point() else "tokens"
    return Task(name, x_train, y_train, x_test, y_test, classes, form, outputs=outputs, targets=targets)


def read_task(path: str | Path, form: str | None = None) -> Task:
    """Read a task from an .npz file with the arrays x_train, y_train, x_test and y_test, as numpy's `savez` writes it.

    Real inputs are taken as they are, without scaling, in single precision. Whole numbers of 32 or 64 bits are tokens. Whole numbers in y
    are class indices from 0 on, and real ones are targets [examples] or [examples, targets]. A fifth array, `names`, may name the classes
    or targets. `form` is one of FORMS. By default it is that of the inputs, and "table" also takes images as rows of pixels.

    Raises FileNotFoundError if there is no file, and ValueError if it lacks an array, or if the arrays do not fit together. The message
    names the file and the array.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     x, y = np.zeros((8, 1, 5, 5)), np.array([0, 1] * 4)
    ...     np.savez(f"{folder}/my_data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    ...     task = read_task(f"{folder}/my_data.npz")
    >>> task.name, task.form, task.x_train.shape, task.classes
    ('my_data.npz', 'image', torch.Size([8, 1, 5, 5]), 2)
    """
    path = Path(path)
    try:
        arrays = _arrays(path)
        for part in ("train", "test"):
            if len(arrays[f"x_{part}"]) != len(arrays[f"y_{part}"]):
                raise ValueError(f"x_{part} holds {len(arrays[f'x_{part}'])} examples, and y_{part} {len(arrays[f'y_{part}'])}.")
        outputs = "classes" if all(arrays[name].dtype.kind in "biu" for name in ("y_train", "y_test")) else "gaussian"
        parts = [(_inputs if name.startswith("x") else TARGETS[outputs])(name, arrays[name]) for name in ARRAYS]
        task = own_task(*parts, name=path.name, outputs=outputs, names=None if "names" not in arrays else [*map(str, arrays["names"])])
        return task if form is None else _in_form(task, form)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file by their names."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if not is_zipfile(path):
        raise ValueError(f"it is no .npz file, or it is broken. Write it by numpy.savez with the arrays {', '.join(ARRAYS)}.")
    with np.load(path, allow_pickle=False) as file:
        if missing := [name for name in ARRAYS if name not in file.files]:
            raise ValueError(
                f"it lacks {', '.join(missing)}, and holds {', '.join(file.files) or 'nothing'}. Write all four by numpy.savez."
            )
        arrays = {name: file[name] for name in (*ARRAYS, "names") if name in file.files}
    if empty := [name for name in ARRAYS if not arrays[name].size]:
        raise ValueError(f"{empty[0]} is empty.")
    return arrays


def _inputs(name: str, x: np.ndarray) -> Tensor:
    if x.dtype.kind == "f":
        if not np.isfinite(x).all():
            raise ValueError(f"{name} holds NaN or Inf. Leave these examples out.")
        return torch.from_numpy(x.astype(np.float32))
    if x.dtype in (np.int32, np.int64):
        return torch.from_numpy(x.astype(np.int64))
    raise ValueError(f"{name} holds {x.dtype}. Make it real as in training, often by x / 255 for images. Tokens are int64.")


def _classes(name: str, y: np.ndarray) -> Tensor:
    return torch.from_numpy(y.astype(np.int64))


def _numbers(name: str, y: np.ndarray) -> Tensor:
    if y.dtype.kind != "f":
        raise ValueError(f"{name} holds {y.dtype}. Both parts of y need one kind: whole numbers for classes, or real targets.")
    return torch.from_numpy(y.astype(np.float32).reshape(len(y), -1))


TARGETS: dict[str, Callable[[str, np.ndarray], Tensor]] = {"classes": _classes, "gaussian": _numbers}  # by the kind of outputs


def _in_form(task: Task, form: str) -> Task:
    if (task.form, form) == ("image", "table"):
        return replace(task, form=form, x_train=task.x_train.flatten(1), x_test=task.x_test.flatten(1))
    if task.form != form:
        raise ValueError(f"x_train {list(task.x_train.shape)} holds {FORMS[task.form]}, and {FORMS[form]} are needed.")
    return task

"""Make a task of your own data."""

from collections.abc import Sequence

from jaxtyping import Shaped
from torch import Tensor

from geoflow.outputs import outputs_of
from geoflow.zoo.tasks import Target, Task


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

    Raises ValueError if both parts differ in the shape of an example, or if y does not fit `outputs`.

    >>> import torch
    >>> task = own_task(torch.zeros(8, 3), torch.tensor([0, 1] * 4), torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
    >>> task.features, task.classes, task.class_names
    (3, 3, ('0', '1', '2'))
    """
    kind = outputs_of(outputs)
    if x_train.shape[1:] != x_test.shape[1:]:
        shapes = [list(part.shape[1:]) for part in (x_train, x_test)]
        raise ValueError(f"An example of x_train has shape {shapes[0]}, and one of x_test {shapes[1]}. Both parts need one form.")
    for x, y in ((x_train, y_train), (x_test, y_test)):
        kind.check(x, y)
    count = 1 + max(int(y.max()) for y in (y_train, y_test)) if outputs == "classes" else y_train.shape[1]
    names = tuple(map(str, range(count))) if names is None else tuple(names)
    if len(names) < count:
        raise ValueError(f"names holds {len(names)} names, and y has {count}. Name each.")
    classes = names if outputs == "classes" else ()
    targets = () if outputs == "classes" else tuple(Target(one, 0.0, 1.0) for one in names)
    form = "image" if x_train.ndim == 4 else "table" if x_train.is_floating_point() else "tokens"
    return Task(name, x_train, y_train, x_test, y_test, classes, form, outputs=outputs, targets=targets)

"""Score ensembles of growing size, whatever their outputs mean."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from geoflow.choices import choose
from geoflow.evaluation.predictions import divided, predictors
from geoflow.examples import Examples, leading
from geoflow.outputs import Column, RegressionScores, Scores, outputs_of
from geoflow.outputs.reading import Output
from geoflow.spec import NetworkSpec

SIZES = tuple(2**n for n in range(9))  # networks in an ensemble
GROUPS = 32  # most ensembles of one size
# what is scored of ensembles beyond the columns of single networks, by the kind of outputs
MORE: dict[str, dict[str, Column]] = {
    "classes": {"brier": Column("Brier", "Brier score"), "area": Column("area", "mean accuracy over the coverage", higher=True)}
}


def columns_of(outputs: str) -> Mapping[str, Column]:
    """Return the scores of ensembles for a kind of outputs, a row of OUTPUTS, in the order of tables.

    >>> list(columns_of("classes")), list(columns_of("gaussian"))
    (['accuracy', 'nll', 'ece', 'brier', 'area'], ['mse', 'nll', 'r2', 'calibration'])
    """
    return {**outputs_of(outputs).columns, **MORE.get(outputs, {})}


def fitting_sizes(sizes: Sequence[int], nets: int) -> list[int]:
    """Return the sizes that so many networks make. Raises ValueError if there is none."""
    fitting = [size for size in sizes if 1 <= size <= nets]
    if not fitting:
        raise ValueError(f"There are {nets} networks, too few for ensembles of {', '.join(map(str, sizes)) or 'no size'}.")
    return fitting


def grouped(members: Shaped[Tensor, "nets ..."], size: int, groups: int = GROUPS) -> Shaped[Tensor, "size groups ..."]:
    """Divide networks into at most `groups` ensembles of one size, in their order. Networks that fill no ensemble are left out.

    >>> grouped(torch.arange(7), 2)
    tensor([[0, 2, 4],
            [1, 3, 5]])
    """
    count = min(groups, len(members) // size)
    return members[: count * size].unflatten(0, (count, size)).transpose(0, 1)


@torch.no_grad()
def scores_by_size(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "nets weights"],
    x: Examples,
    y: Shaped[Tensor, "examples ..."],
    sizes: Sequence[int] = SIZES,
    pools: Sequence[str] = ("linear", "log"),
    groups: int = GROUPS,
    batch: int = 2 * 10**5,
    batch_size: int | None = None,
    outputs: str = "classes",
    output: Output = None,
) -> dict[str, dict[int, Scores | RegressionScores]]:
    """Return for each pool, and each size of the ensembles, the scores [groups] of ensembles that share no network.

    All networks run once, on a part of the examples at a time. Arguments are as in `pooled_scores` and `graded`, which knows more of
    networks that tell classes apart.

    Raises ValueError for an unknown pool, if no size fits, and as `evaluate` does.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> found = scores_by_size(network, spec, torch.zeros(4, 6), torch.eye(2), torch.ones(2, 1), outputs="gaussian")
    >>> found["linear"][2].mse  # of a mean of 0 for a target of 1
    tensor([1., 1.])
    """
    kind = outputs_of(outputs)
    chosen = {name: choose("pool", name, kind.pools) for name in pools}
    chunks = list(predictors(network, spec, thetas, x, batch, batch_size, kind.prediction, output))
    kind.check(leading(x), y)
    sums = {(name, size): 0 for name in pools for size in fitting_sizes(sizes, len(thetas))}
    for x_part, y_part in zip(divided(x, batch_size), divided(y, batch_size), strict=True):
        predictions = torch.cat([predict(x_part) for predict in chunks])
        ready = {name: pool.before(predictions, y_part) for name, pool in chosen.items()}
        for name, size in sums:
            facts = chosen[name].after(chosen[name].add(grouped(ready[name], size, groups)), size, y_part)
            sums[name, size] = sums[name, size] + kind.sums(facts, y_part)
    return {name: {size: kind.scores(total, y) for (pool, size), total in sums.items() if pool == name} for name in pools}

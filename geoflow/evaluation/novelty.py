"""Tell new networks from copies, and many from one: how far is the nearest training network, how far another one?"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 512
NEAR = 0.01  # of the training networks are as near to another run as what counts as near


def novelty(
    generated: Float[Tensor, "generated weights"],
    train: Float[Tensor, "train weights"],
    heldout: Float[Tensor, "heldout weights"],
    run_of_train: Int[Tensor, " train"],
) -> dict[str, float]:
    """Medians of Euclidean nearest-neighbour distances between canonical weight vectors.

    generated_to_train and heldout_to_train look for the nearest of all training networks; zoo_leave_one_out looks, for a training network,
    among the networks of the OTHER training runs, for snapshots of one run are near each other. `ratio` is generated_to_train over
    zoo_leave_one_out: near 0 for copies, 1 for networks as far from the zoo as an independent run. The search among n - 1 runs in place
    of n lengthens the last distance by a relative 1/(n d) at most, in d effective dimensions: nothing for zoos of a hundred runs.

    A median does not see a few copies among many new networks: `near` is the share of the generated that are nearer to a training network
    than 99 of 100 training networks are to one of another run. Of networks as new as those it is .01.

    Raises ValueError if the training networks come from fewer than two runs or are copies of each other, or if a set is empty.

    >>> train = torch.tensor([[0.0], [1.0], [3.0]])
    >>> novelty(train, train, torch.tensor([[4.0]]), torch.arange(3))
    {'generated_to_train': 0.0, 'heldout_to_train': 1.0, 'zoo_leave_one_out': 1.0, 'ratio': 0.0, 'near': 1.0}
    """
    distances = neighbour_distances(generated, train, heldout, run_of_train)
    medians = {name: values.median().item() for name, values in distances.items()}
    if medians["zoo_leave_one_out"] == 0:
        raise ValueError("Half of the training networks are copies of a network of another run: there is no distance to compare with.")
    near = distances["generated_to_train"] < distances["zoo_leave_one_out"].quantile(NEAR)
    return medians | {"ratio": medians["generated_to_train"] / medians["zoo_leave_one_out"], "near": near.double().mean().item()}


def spread(thetas: Float[Tensor, "nets weights"]) -> float:
    """The root mean square of the Euclidean distance between two different networks, in canonical weights; NaN for one network.

    >>> spread(torch.tensor([[0.0], [3.0]]))
    3.0
    """
    return thetas.var(0).sum().mul(2).sqrt().item() if len(thetas) > 1 else float("nan")


def neighbour_distances(
    generated: Float[Tensor, "generated weights"],
    train: Float[Tensor, "train weights"],
    heldout: Float[Tensor, "heldout weights"],
    run_of_train: Int[Tensor, " train"],
) -> dict[str, Float[Tensor, " nets"]]:
    """The distances whose medians `novelty` reports, one for every network."""
    for name, thetas in {"generated": generated, "held-out": heldout}.items():
        if len(thetas) == 0:
            raise ValueError(f"There are no {name} networks to measure the novelty of.")
    if len(run_of_train.unique()) < 2:
        raise ValueError("Novelty compares training runs with each other and needs at least 2. Train more runs.")
    return {
        "generated_to_train": nearest(generated, train),
        "heldout_to_train": nearest(heldout, train),
        "zoo_leave_one_out": nearest(train, train, run_of_train, run_of_train),
    }


def nearest(
    queries: Float[Tensor, "queries weights"],
    others: Float[Tensor, "others weights"],
    run_of_queries: Int[Tensor, " queries"] | None = None,
    run_of_others: Int[Tensor, " others"] | None = None,
) -> Float[Tensor, " queries"]:
    """The distance of each query to the nearest of the others; with the runs given, to the nearest of another run."""
    result = []
    for rows in torch.arange(len(queries)).split(CHUNK):
        distances = torch.cdist(queries[rows], others)
        if run_of_queries is not None:
            same = run_of_queries[rows, None] == run_of_others
            distances = distances.masked_fill(same.to(distances.device), float("inf"))
        # cdist's matrix product is fast but rounds small distances: it finds the neighbour, the difference then gives the distance
        result.append((queries[rows] - others[distances.argmin(1)]).norm(dim=1))
    return torch.cat(result)

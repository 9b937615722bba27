"""Tell new networks from copies, and many from one: how far are the nearest training runs, how far from each other?"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geoflow.canonical import align
from geoflow.evaluation.ruler import layers_of
from geoflow.spec import NetworkSpec

CHUNK = 128
RUNS = 16  # nearest training runs that a network is compared with
NEXT = 8  # runs after the nearest that say how far a new network would be
COPIES = 0.01  # of the training networks stand out as much to another run as what counts as a copy
ENTRIES = 2**24  # of networks aligned at once

Neighbours = Mapping[str, Float[Tensor, "_nets _runs"]]


def novelty(neighbours: Neighbours) -> dict[str, float | None]:
    """What `neighbours_of` found, in a few numbers: three medians of the distance to the nearest training run, a ratio, a share.

    `ratio` is generated_to_train over zoo_leave_one_out: near 0 for copies, 1 for networks as far from the zoo as an independent run. The
    search among n - 1 runs in place of n lengthens the last distance by a relative 1/(n d) at most, in d effective dimensions: nothing
    for zoos of a hundred runs.

    A median does not see a few copies among many new networks, and in many dimensions all distances are nearly the same, a little smaller
    where networks are less spread out. `copies` is the share of the generated that stand out to one run: whose distance to the nearest,
    over the mean distance to the NEXT ones, is smaller than that of 99 of 100 training networks to other runs. Of networks as new as
    those it is .01. It is None with two training runs, where there is no next one.

    Raises ValueError if the training networks are copies of each other.

    >>> train = torch.tensor([[0.0], [1.0], [3.0]])
    >>> novelty(neighbours_of(train, train, torch.tensor([[4.0]]), torch.arange(3)))
    {'generated_to_train': 0.0, 'heldout_to_train': 1.0, 'zoo_leave_one_out': 1.0, 'ratio': 0.0, 'copies': 1.0}
    """
    medians = {name: distances[:, 0].median().item() for name, distances in neighbours.items()}
    generated, zoo = neighbours["generated_to_train"], neighbours["zoo_leave_one_out"]
    if medians["zoo_leave_one_out"] == 0:
        raise ValueError("Half of the training networks are copies of a network of another run: there is no distance to compare with.")
    ratio, runs = medians["generated_to_train"] / medians["zoo_leave_one_out"], min(zoo.shape[1], 1 + NEXT)
    if runs < 2:
        return medians | {"ratio": ratio, "copies": None}
    new, usual = (distances[:, 0] / distances[:, 1:runs].mean(1) for distances in (generated, zoo))
    return medians | {"ratio": ratio, "copies": (new < usual.quantile(COPIES)).double().mean().item()}


def by_layer(
    spec: NetworkSpec,
    generated: Float[Tensor, "generated weights"],
    train: Float[Tensor, "train weights"],
    run_of_train: Int[Tensor, " train"],
) -> dict[str, float]:
    """The novelty ratio of each layer by itself: near 0 where it alone is copied, which the distance of whole networks may not tell.
    Layers in which half of the training networks are as those of another run are left out."""
    found = {}
    for name, index in layers_of(spec).items():
        new, zoo = generated[:, index], train[:, index]
        if usual := nearest_runs(zoo, zoo, run_of_train, run_of_train)[:, 0].median().item():
            found[name] = nearest_runs(new, zoo, run_of_train)[:, 0].median().item() / usual
    return found


def neighbours_of(
    generated: Float[Tensor, "generated weights"],
    train: Float[Tensor, "train weights"],
    heldout: Float[Tensor, "heldout weights"],
    run_of_train: Int[Tensor, " train"],
    spec: NetworkSpec | None = None,
) -> Neighbours:
    """The distances of every network to its nearest training runs, see `nearest_runs`.

    generated_to_train and heldout_to_train look at all training runs; zoo_leave_one_out, for a training network, at the OTHER runs.

    Raises ValueError if the training networks come from fewer than two runs, or if a set is empty.
    """
    for name, thetas in {"generated": generated, "held-out": heldout}.items():
        if len(thetas) == 0:
            raise ValueError(f"There are no {name} networks to measure the novelty of.")
    if len(run_of_train.unique()) < 2:
        raise ValueError("Novelty compares training runs with each other and needs at least 2. Train more runs.")
    return {
        "generated_to_train": nearest_runs(generated, train, run_of_train, spec=spec),
        "heldout_to_train": nearest_runs(heldout, train, run_of_train, spec=spec),
        "zoo_leave_one_out": nearest_runs(train, train, run_of_train, run_of_train, spec),
    }


def nearest_runs(
    queries: Float[Tensor, "queries weights"],
    others: Float[Tensor, "others weights"],
    run_of_others: Int[Tensor, " others"],
    run_of_queries: Int[Tensor, " queries"] | None = None,
    spec: NetworkSpec | None = None,
) -> Float[Tensor, "queries runs"]:
    """The Euclidean distances of each query to the RUNS nearest runs, the smallest first: to the nearest network of each. With the runs
    of the queries given, to other runs only.

    With a spec the network of each run is aligned to the query: two networks that are aligned to a third may be nearer to each other in
    another order of their units, copies with noise by half of their distance.
    """
    runs, run = run_of_others.unique(return_inverse=True)
    kept, result = min(RUNS, len(runs) - (run_of_queries is not None)), []
    for rows in torch.arange(len(queries)).split(CHUNK):
        distances = torch.cdist(queries[rows], others)
        if run_of_queries is not None:
            distances = distances.masked_fill((run_of_queries[rows, None] == run_of_others).to(distances.device), float("inf"))
        by_run = distances.new_full((len(rows), len(runs)), float("inf"))
        by_run = by_run.scatter_reduce(1, run.to(distances.device).expand_as(distances), distances, "amin")
        nearest = by_run.topk(kept, largest=False).indices.unsqueeze(2) == run.to(distances.device)
        candidates = distances.unsqueeze(1).masked_fill(~nearest, float("inf")).argmin(2)
        at_once = max(1, ENTRIES // (others.shape[1] * kept))
        parts = zip(queries[rows].split(at_once), candidates.split(at_once), strict=True)
        result += [_distances(query, others[chosen], spec).sort(1).values for query, chosen in parts]
    return torch.cat(result)


def spread(thetas: Float[Tensor, "nets weights"]) -> float:
    """The root mean square of the Euclidean distance between two different networks; NaN for one network.

    >>> spread(torch.tensor([[0.0], [3.0]]))
    3.0
    """
    return thetas.var(0).sum().mul(2).sqrt().item() if len(thetas) > 1 else float("nan")


def _distances(
    queries: Float[Tensor, "queries weights"], candidates: Float[Tensor, "queries candidates weights"], spec: NetworkSpec | None
) -> Float[Tensor, "queries candidates"]:
    """Of each query to its candidates, from their difference: cdist's matrix product is fast but rounds small distances."""
    aims = queries.unsqueeze(1).expand_as(candidates)
    if spec is not None:
        candidates = align(spec, candidates.flatten(0, 1), aims.flatten(0, 1))[0].view_as(candidates)
    return (aims - candidates).norm(dim=2)

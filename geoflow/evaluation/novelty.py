"""Measure how new generated networks are, and how different from each other."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from geoflow.canonical import align
from geoflow.evaluation.ruler import layers_of
from geoflow.spec import NetworkSpec
from geoflow.stored import Networks, Rows, Stored, blocks

CHUNK = 128  # queries at once
RUNS = 16  # number of nearest training runs that a network is compared with
NEXT = 8  # number of runs after the nearest, which show how far a new network would be
COPIES = 0.01  # a copy is closer to a run than all training networks but this share are
ENTRIES = 2**24  # weights of the networks that are aligned at once
WORK = 2**23  # numbers of files that are in work at once

Neighbours = Mapping[str, Float[Tensor, "_nets _runs"]]


def novelty(neighbours: Neighbours) -> dict[str, float | None]:
    """Summarise the distances of `neighbours_of` in five numbers.

    Three are medians of the distance to the nearest training run: `generated_to_train`, `heldout_to_train` (if there are held-out
    networks) and `zoo_leave_one_out`. The last one is from a training network to the OTHER runs.

    `ratio` is generated_to_train / zoo_leave_one_out. It is near 0 for copies, and 1 for networks that are as far from the zoo as an
    independent run. A training network has n - 1 other runs instead of n. In d effective dimensions this lengthens its distance by a
    relative 1/(n d) at most, which is negligible for zoos of a hundred runs.

    `copies` is the share of generated networks that are suspiciously close to one run. A median does not see a few copies among many new
    networks. So each network's distance to its nearest run is divided by its mean distance to the NEXT runs. A copy has a smaller quotient
    than 99 of 100 training networks have to other runs. For really new networks `copies` is .01. With two training runs it is None, because
    there is no next run.

    Raises ValueError if the training networks are copies of each other.

    >>> train = torch.tensor([[0.0], [1.0], [3.0]])
    >>> novelty(neighbours_of(train, train, torch.tensor([[4.0]]), torch.arange(3)))
    {'generated_to_train': 0.0, 'heldout_to_train': 1.0, 'zoo_leave_one_out': 1.0, 'ratio': 0.0, 'copies': 1.0}
    """
    medians = {name: distances[:, 0].median().item() for name, distances in neighbours.items()}
    generated, zoo = neighbours["generated_to_train"], neighbours["zoo_leave_one_out"]
    if medians["zoo_leave_one_out"] == 0:
        raise ValueError("Half of the training networks are copies of a network of another run. Remove copies before measuring novelty.")
    ratio, runs = medians["generated_to_train"] / medians["zoo_leave_one_out"], min(zoo.shape[1], 1 + NEXT)
    if runs < 2:
        return medians | {"ratio": ratio, "copies": None}
    new, usual = (distances[:, 0] / distances[:, 1:runs].mean(1) for distances in (generated, zoo))
    return medians | {"ratio": ratio, "copies": (new < usual.quantile(COPIES)).double().mean().item()}


def by_layer(
    spec: NetworkSpec,
    generated: Float[Tensor, "generated weights"] | Rows,
    train: Float[Tensor, "train weights"] | Rows,
    run_of_train: Int[Tensor, " train"],
) -> dict[str, float]:
    """Return the novelty ratio of each layer by itself.

    It is near 0 if that layer alone is copied, which the distance of whole networks may hide. A layer is left out if half of the training
    networks have it in common with another run.

    >>> import torch, geoflow
    >>> spec = geoflow.spec_of(torch.nn.Linear(1, 1), torch.zeros(1, 1))
    >>> train = torch.tensor([[0.0, 0.0], [2.0, 0.0], [6.0, 0.0]])
    >>> by_layer(spec, torch.tensor([[1.0, 0.0]]), train, torch.arange(3))
    {'linear': 0.5}
    """
    if isinstance(generated, Rows) or isinstance(train, Rows):
        return by_layer_in_files(spec, generated, train, run_of_train)
    found = {}
    for name, index in layers_of(spec).items():
        new, zoo = generated[:, index], train[:, index]
        if usual := nearest_runs(zoo, zoo, run_of_train, run_of_train)[:, 0].median().item():
            found[name] = nearest_runs(new, zoo, run_of_train)[:, 0].median().item() / usual
    return found


def by_layer_in_files(
    spec: NetworkSpec,
    generated: Float[Tensor, "generated weights"] | Stored,
    train: Float[Tensor, "train weights"] | Stored,
    run_of_train: Int[Tensor, " train"],
) -> dict[str, float]:
    """Return what `by_layer` does, in one pass over both files."""
    number = torch.full((spec.weights,), -1, dtype=torch.int16)  # of the layer of each weight
    names = list(layers_of(spec))
    for place, index in enumerate(layers_of(spec).values()):
        number[index] = place
    columns, first = max(1, WORK // (2 * len(train) + len(generated))), 0
    squares = {name: [torch.zeros(len(some), len(train), dtype=torch.double) for some in (generated, train)] for name in names}
    for new, zoo in zip(blocks(generated, columns), blocks(train, columns), strict=True):
        here, first = number[first : first + zoo.shape[1]], first + zoo.shape[1]
        for place in here.unique().tolist():
            if place >= 0:
                mine = zoo[:, here == place].double()
                for total, some in zip(squares[names[place]], (new[:, here == place].double(), mine), strict=True):
                    total += some.square().sum(1)[:, None] + mine.square().sum(1) - 2 * some @ mine.T
    found = {}
    for name, (new, zoo) in squares.items():
        nearest, usual = (x.clamp_min(0).sqrt().gather(1, nearest_of_runs(x, run_of_train, runs)).amin(1).median().item()
                          for x, runs in ((new, None), (zoo, run_of_train)))  # fmt: skip
        if usual:
            found[name] = nearest / usual
    return found


def neighbours_of(
    generated: Float[Tensor, "generated weights"] | Rows,
    train: Float[Tensor, "train weights"] | Rows,
    heldout: Float[Tensor, "heldout weights"] | Rows | None,
    run_of_train: Int[Tensor, " train"],
    spec: NetworkSpec | None = None,
) -> Neighbours:
    """Return the distances [nets, runs] of every network to its nearest training runs (see `nearest_runs`).

    `generated_to_train` and `heldout_to_train` look at all training runs. `zoo_leave_one_out` holds the distances of each training network
    to the OTHER runs. Without held-out networks their distances are left out.

    Raises ValueError if the training networks come from fewer than two runs, or if a set is empty.

    >>> train = torch.tensor([[0.0], [1.0], [3.0]])
    >>> neighbours_of(torch.tensor([[2.5]]), train, torch.tensor([[4.0]]), torch.arange(3))["generated_to_train"]
    tensor([[0.5000, 1.5000, 2.5000]])
    """
    for name, thetas in {"generated": generated, "held-out": heldout}.items():
        if thetas is not None and len(thetas) == 0:
            raise ValueError(f"There are no {name} networks to measure the novelty of.")
    if len(run_of_train.unique()) < 2:
        raise ValueError("Novelty compares training runs with each other and needs at least 2. Train more runs.")
    found = {"generated_to_train": nearest_runs(generated, train, run_of_train, spec=spec)}
    if heldout is not None:
        found["heldout_to_train"] = nearest_runs(heldout, train, run_of_train, spec=spec)
    return found | {"zoo_leave_one_out": nearest_runs(train, train, run_of_train, run_of_train, spec)}


def nearest_runs(
    queries: Float[Tensor, "queries weights"] | Rows,
    others: Float[Tensor, "others weights"] | Rows,
    run_of_others: Int[Tensor, " others"],
    run_of_queries: Int[Tensor, " queries"] | None = None,
    spec: NetworkSpec | None = None,
) -> Float[Tensor, "queries runs"]:
    """Return the Euclidean distances of each query to the RUNS nearest runs, the smallest first.

    The distance to a run is that to the nearest of its networks. If the runs of the queries are given, only other runs count.

    With a spec, the network of each run is aligned to the query first. Two networks that are aligned to a third may be nearer to each other
    in another order of their units. For copies with noise this shortens the distance by half.

    Of networks in files, such as those of `place_large`, only two are in memory at once.

    >>> others = torch.tensor([[0.0], [1.0], [3.0]])
    >>> nearest_runs(torch.tensor([[2.5]]), others, torch.tensor([0, 0, 1]))  # the first two are of one run
    tensor([[0.5000, 1.5000]])
    """
    if isinstance(queries, Rows) or isinstance(others, Rows):
        candidates = nearest_of_runs(distances_in_files(queries, others), run_of_others, run_of_queries)
        found = [[_distances(query[None], others[int(one)][None, None], spec) for one in chosen]
                 for query, chosen in zip(queries, candidates, strict=True)]  # fmt: skip
        return torch.stack([torch.cat(some, 1).squeeze(0) for some in found]).sort(1).values
    result = []
    for rows in torch.arange(len(queries)).split(CHUNK):
        distances = torch.cdist(queries[rows], others)
        candidates = nearest_of_runs(distances, run_of_others, None if run_of_queries is None else run_of_queries[rows])
        kept = candidates.shape[1]
        at_once = max(1, ENTRIES // (others.shape[1] * kept))
        parts = zip(queries[rows].split(at_once), candidates.split(at_once), strict=True)
        result += [_distances(query, others[chosen], spec).sort(1).values for query, chosen in parts]
    return torch.cat(result)


def nearest_of_runs(
    distances: Float[Tensor, "queries others"], run_of_others: Int[Tensor, " others"], run_of_queries: Int[Tensor, " queries"] | None = None
) -> Int[Tensor, "queries runs"]:
    """Return the numbers of the nearest networks of the RUNS nearest runs. If the runs of the queries are given, only other runs count."""
    runs, run = run_of_others.unique(return_inverse=True)
    kept = min(RUNS, len(runs) - (run_of_queries is not None))
    if run_of_queries is not None:
        distances = distances.masked_fill((run_of_queries[:, None] == run_of_others).to(distances.device), float("inf"))
    by_run = distances.new_full((len(distances), len(runs)), float("inf"))
    by_run = by_run.scatter_reduce(1, run.to(distances.device).expand_as(distances), distances, "amin")
    nearest = by_run.topk(kept, largest=False).indices.unsqueeze(2) == run.to(distances.device)
    return distances.unsqueeze(1).masked_fill(~nearest, float("inf")).argmin(2)


def distances_in_files(
    queries: Float[Tensor, "queries size"] | Stored, others: Float[Tensor, "others size"] | Stored
) -> Float[Tensor, "queries others"]:
    """Return all distances between two sets of networks, read in blocks of columns. Sums are in float64."""
    columns, total = max(1, WORK // (len(queries) + len(others))), 0.0
    for one, other in zip(blocks(queries, columns), blocks(others, columns), strict=True):
        one, other = one.double(), other.double()
        total = total + one.square().sum(1)[:, None] + other.square().sum(1) - 2 * one @ other.T
    return total.clamp_min(0).sqrt()


def spread(thetas: Networks, counted: Bool[Tensor, " weights"] | None = None) -> float:
    """Return the root mean square of the Euclidean distance between two different networks. It is NaN for one network.

    `counted` says which weights count. By default all do.

    >>> spread(torch.tensor([[0.0], [3.0]]))
    3.0
    """
    if isinstance(thetas, Rows) and len(thetas) > 1:
        total, first = 0.0, 0
        for part in blocks(thetas, max(1, WORK // len(thetas))):
            here, first = slice(first, first + part.shape[1]), first + part.shape[1]
            total += float((part if counted is None else part[:, counted[here]]).double().var(0).sum())
        return (2 * total) ** 0.5
    thetas = thetas if counted is None else thetas[:, counted]
    return thetas.var(0).sum().mul(2).sqrt().item() if len(thetas) > 1 else float("nan")


def _distances(
    queries: Float[Tensor, "queries weights"], candidates: Float[Tensor, "queries candidates weights"], spec: NetworkSpec | None
) -> Float[Tensor, "queries candidates"]:
    """Return the distances of each query to its candidates, computed from their differences.

    cdist's matrix product is fast but rounds small distances.
    """
    aims = queries.unsqueeze(1).expand_as(candidates)
    if spec is not None:
        candidates = align(spec, candidates.flatten(0, 1), aims.flatten(0, 1))[0].view_as(candidates)
    return (aims - candidates).norm(dim=2)

"""Compare how probable several sets of networks are under a flow."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Generator, Tensor

from geoflow.density import Density
from geoflow.evaluation.baselines import BASELINES, baseline
from geoflow.flow import Flow

HELDOUT = "heldout"  # the set that all others are compared with
LEVELS = (0.1, 0.3, 1.0)  # noise in standard deviations of each weight; the baseline `noised` has 0.3
LEFT_OUT = ("noised", "retrieval")  # noised networks have rows of their own, and retrieved ones are those that were fitted
Thetas = Float[Tensor, "_nets weights"]


def compared(flow: Flow, fitted: Thetas, heldout: Thetas, generated: Thetas, count: int, generator: Generator) -> dict[str, Thetas]:
    """Return the sets of at most `count` networks that a flow's densities are compared on, by their names.

    They are held-out, fitted and generated networks, the held-out ones with noise of each of LEVELS, and the baselines. The two means are
    one network each.
    """
    train = flow.canonical(fitted)
    sets = {HELDOUT: some(heldout, count, generator), "fitted": some(fitted, count, generator), "generated": generated[:count]}
    unseen, deviation = flow.canonical(sets[HELDOUT]), train.std(0)
    for level in LEVELS:
        noise = torch.randn(unseen.shape, generator=generator).to(unseen)
        sets[f"noised_{level:g}"] = unseen + level * deviation * noise
    return sets | {name: baseline(name, flow, train, count, generator) for name in BASELINES if name not in LEFT_OUT}


def some(thetas: Thetas, count: int, generator: Generator) -> Thetas:
    """Return at most `count` networks, drawn at random without replacement."""
    return thetas[torch.randperm(len(thetas), generator=generator)[:count]]


def compare(found: Mapping[str, Density], weights: int) -> dict[str, dict]:
    """Return for each set of networks how probable they are, and how well the flow tells them from held-out ones.

    - `networks`: their number.
    - `median`, `std`, `values`: the median of their log-densities, the standard deviation, and all of them, in nats.
    - `per_weight`: the median divided by the number of `weights`.
    - `standard_error`: the mean of their standard errors.
    - `auroc`: see below.

    The AUROC is the probability that a held-out network has a higher density than one of the set. At .5 the flow does not tell them apart.
    A set of one network has no standard deviation.

    >>> one, other = (Density(torch.tensor(values), torch.zeros(2), torch.zeros(2, 3), 3, 0) for values in ([1.0, 3.0], [2.0, 0.0]))
    >>> found = compare({"heldout": one, "fitted": other}, weights=4)
    >>> found["fitted"]["auroc"], found["fitted"]["per_weight"]
    (0.75, 0.25)
    """
    right = found[HELDOUT].log_prob.double().cpu()
    rows = {}
    for name, one in found.items():
        values = one.log_prob.double().cpu()
        labels = torch.cat([torch.ones(len(right)), torch.zeros(len(values))])
        rows[name] = {
            "networks": len(values),
            "median": values.quantile(0.5).item(),
            "per_weight": values.quantile(0.5).item() / weights,
            "std": values.std().item() if len(values) > 1 else None,
            "standard_error": one.standard_error.mean().item(),
            "auroc": float(roc_auc_score(labels, torch.cat([right, values]))),
            "values": [round(value, 3) for value in values.tolist()],
        }
    return rows

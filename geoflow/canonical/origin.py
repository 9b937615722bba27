"""Measure whether the units of a zoo's networks are in one common order."""

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.canonical.matching import align, check_zoo
from geoflow.canonical.products import balance
from geoflow.spec import NetworkSpec

NETWORKS = 32  # the most networks that are compared


def order_kept(spec: NetworkSpec, thetas: Float[Tensor, "nets weights"]) -> float:
    """The share of units that keep their place when networks are aligned to each other, corrected for chance.

    The value is about 1 if unit i of one network is unit i of the others. That is so for networks fine-tuned from one start, and for
    snapshots of one training. It is 1 for networks without permutable units. It is about 0 for networks from independent starts.

    At most NETWORKS networks are used. They are taken in random order, because neighbours in a zoo may be snapshots of one run. Each
    network is aligned to the one before it.

    Raises ValueError for an empty zoo, and for NaN or Inf. The message names the network and the tensor.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.ReLU(), torch.nn.Linear(9, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> start, noise = (torch.randn(n, spec.weights, generator=torch.Generator().manual_seed(0)) for n in (1, 20))
    >>> order_kept(spec, start + 0.1 * noise), order_kept(spec, noise) < 0.2
    (1.0, True)
    """
    check_zoo(spec, thetas)
    groups = spec.groups("permutation").values()
    if not groups:
        return 1.0
    some = torch.randperm(len(thetas), generator=torch.Generator().manual_seed(0))[:NETWORKS]
    scaled = balance(spec, thetas[some.to(thetas.device)])
    orders = align(spec, scaled[1:], scaled[:-1])[1].permutations.values()
    kept = sum(float((order == torch.arange(order.shape[1], device=order.device)).sum(1).double().mean()) for order in orders)
    return (kept - len(groups)) / max(1, sum(groups) - len(groups))

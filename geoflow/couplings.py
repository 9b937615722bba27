"""Pair noise with data: who travels to whom."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from geoflow.canonical.matching import match
from geoflow.manifolds import Product
from geoflow.spec import NetworkSpec

Coupling = Callable[[NetworkSpec, Product, Tensor, Tensor], Tensor]


def independent(
    spec: NetworkSpec, manifold: Product, x_0: Float[Tensor, "n size"], x_1: Float[Tensor, "n size"]
) -> Float[Tensor, "n size"]:
    """Noise and data as they were drawn."""
    return x_0


def ot(spec: NetworkSpec, manifold: Product, x_0: Float[Tensor, "n size"], x_1: Float[Tensor, "n size"]) -> Float[Tensor, "n size"]:
    """The order of the noise with the least sum of squared geodesic distances to the data, every coordinate in the manifold's own metric.

    It is the assignment itself: every noise sample is used once, none is drawn again. Source: Tong et al., arXiv 2302.00482.

    >>> import torch
    >>> x_0, x_1 = torch.tensor([[0.0], [5.0]]), torch.tensor([[4.0], [1.0]])
    >>> ot(NetworkSpec((), ()), Product(1), x_0, x_1)
    tensor([[5.],
            [0.]])
    """
    return x_0[_assign(manifold.pairwise(x_1, x_0))]


def equivariant_ot(
    spec: NetworkSpec, manifold: Product, x_0: Float[Tensor, "n size"], x_1: Float[Tensor, "n size"]
) -> Float[Tensor, "n size"]:
    """As `ot`, with distances between orbits: for every pair the neurons of the noise are first permuted to those of the data.

    The neurons are matched by inner products in the one sweep of `align` that starts anew, the best order for one hidden layer and a
    good one for more; the assignment over the batch then goes by geodesic distance. Next to aligned data the noise's neurons
    come sorted: a permutation-equivariant field cannot see this, another would. Signs are not matched, for no field is equivariant to
    them. Coordinates after the weights (such as scales) move with their network, unpermuted.

    Source: Klein, Kraemer and Noe, Equivariant flow matching, 2023.
    """
    costs = [manifold.pairwise(x, _in_order_of(spec, x_0, x[0])) for x in x_1.split(1)]
    return _in_order_of(spec, x_0[_assign(torch.cat(costs))], x_1)


def _in_order_of(spec: NetworkSpec, noise: Float[Tensor, "n size"], data: Float[Tensor, "*nets size"]) -> Float[Tensor, "n size"]:
    """The noise samples, the neurons of each matched to those of its data sample, or to those of one that all share."""
    weights = spec.weights
    return torch.cat([match(_without_signs(spec), noise[:, :weights], data[..., :weights]), noise[:, weights:]], 1)


@lru_cache(maxsize=16)
def _without_signs(spec: NetworkSpec) -> NetworkSpec:
    return replace(spec, sites=tuple(replace(site, sign=None) for site in spec.sites))


def _assign(costs: Float[Tensor, "data noise"]) -> Tensor:
    """For each data sample its noise sample, of least total cost."""
    return torch.from_numpy(linear_sum_assignment(costs.double().cpu().numpy())[1]).to(costs.device)


COUPLINGS: dict[str, Coupling] = {"independent": independent, "ot": ot, "equivariant_ot": equivariant_ot}

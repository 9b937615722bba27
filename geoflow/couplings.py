"""Pair noise samples with data samples."""

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
    """Keep the pairs of noise and data as they were drawn.

    >>> import torch
    >>> x_0, x_1 = torch.tensor([[0.0], [5.0]]), torch.tensor([[4.0], [1.0]])
    >>> independent(NetworkSpec((), ()), Product(1), x_0, x_1)
    tensor([[0.],
            [5.]])
    """
    return x_0


def ot(spec: NetworkSpec, manifold: Product, x_0: Float[Tensor, "n size"], x_1: Float[Tensor, "n size"]) -> Float[Tensor, "n size"]:
    """Reorder the noise so that the sum of squared geodesic distances to the data is smallest (optimal transport).

    Distances are measured in the manifold's own metric. The assignment is exact: every noise sample is used once. Source: Tong et al.,
    arXiv 2302.00482.

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
    """Couple as `ot` does, after the units of the noise were reordered to match the units of the data.

    For every pair the units are matched by their inner products, in the first sweep of `align`. This finds the best order for one hidden
    layer, and a good one for more. Then the samples of the batch are assigned by geodesic distance. The noise has the order of its aligned
    data afterwards, so the field must be permutation-equivariant: it cannot see this order. Signs and rotations are not matched, because no
    field is equivariant to them. Coordinates behind the weights, such as log-norms, move with their network and are not reordered.

    Source: Klein, Kraemer and Noe, Equivariant flow matching, 2023.

    >>> import torch, geoflow
    >>> spec = geoflow.spec_of(torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1)), torch.zeros(1, 1))
    >>> x_1 = torch.tensor([[3.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0]])
    >>> x_0 = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]])  # the same unit comes second
    >>> equivariant_ot(spec, Product(spec.weights), x_0, x_1)
    tensor([[1., 0., 0., 0., 1., 0., 0.]])
    """
    costs = [manifold.pairwise(x, _in_order_of(spec, x_0, x[0])) for x in x_1.split(1)]
    return _in_order_of(spec, x_0[_assign(torch.cat(costs))], x_1)


def _in_order_of(spec: NetworkSpec, noise: Float[Tensor, "n size"], data: Float[Tensor, "*nets size"]) -> Float[Tensor, "n size"]:
    """Return the noise samples, with the units of each matched to those of its data sample.

    A single data sample serves all noise samples.
    """
    weights = spec.weights
    return torch.cat([match(_without_signs(spec), noise[:, :weights], data[..., :weights]), noise[:, weights:]], 1)


@lru_cache(maxsize=16)
def _without_signs(spec: NetworkSpec) -> NetworkSpec:
    return replace(spec, sites=tuple(replace(site, sign=None, linear=None, inner=0) for site in spec.sites))


def _assign(costs: Float[Tensor, "data noise"]) -> Tensor:
    """Return for each data sample the index of its noise sample, so that the total cost is smallest."""
    return torch.from_numpy(linear_sum_assignment(costs.double().cpu().numpy())[1]).to(costs.device)


COUPLINGS: dict[str, Coupling] = {"independent": independent, "ot": ot, "equivariant_ot": equivariant_ot}

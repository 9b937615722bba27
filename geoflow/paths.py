"""Connect noise with data by the shortest paths, which a flow learns to follow."""

from jaxtyping import Float
from torch import Tensor

from geoflow.manifolds import Product


def geodesic(
    manifold: Product, x_0: Float[Tensor, "*#batch size"], x_1: Float[Tensor, "*#batch size"], t: Float[Tensor, "*#batch"]
) -> tuple[Float[Tensor, "*batch size"], Float[Tensor, "*batch size"]]:
    """Return the point x_t of the shortest path from x_0 to x_1 at time t in [0, 1], and its velocity dx_t.

        x_t = exp_{x_0}(t log_{x_0} x_1)        dx_t = d x_t / dt

    The velocity is tangent at x_t and has the constant length dist(x_0, x_1). In flat coordinates x_t = (1 - t) x_0 + t x_1, and dx_t = x_1
    - x_0. Source: Chen and Lipman, Flow matching on general geometries, 2023.

    >>> import torch
    >>> plane = Product(2)
    >>> geodesic(plane, torch.zeros(1, 2), torch.tensor([[2.0, 4.0]]), torch.tensor([0.5]))
    (tensor([[1., 2.]]), tensor([[2., 4.]]))
    """
    return manifold.interpolate(x_0, x_1, t)

"""Turn the output of a field into a velocity: what it may predict, and how its errors count."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.constants import beside
from geoflow.coordinates import Coordinates
from geoflow.parts import in_parts, sums_of

CLOSE = 1e-5  # a cosine nearer to 1 than this is rounding
LAST = 1e-2  # smallest remaining time that a predicted endpoint is divided by

Known = tuple[Tensor, Tensor, Tensor]  # result of `gaussian`


def gaussian(x: Tensor, t: Tensor, chart: Coordinates) -> Known:
    """Return what a Gaussian zoo would tell about each coordinate at x_t.

    A Gaussian zoo has the zoo's mean m and standard deviation s in each coordinate, as far as the chart knows them. The three results
    [nets, size] are x_t standardised, the expected velocity E[dx_t | x_t], and the standard deviation of the rest. All are in units of the
    noise. With noise x_0 ~ N(0, r^2), data x_1 ~ N(m, s^2), x_t = a x_0 + b x_1 and d^2 = a^2 r^2 + b^2 s^2

        E[dx_t | x_t] = b' m + (a a' r^2 + b b' s^2) / d^2 (x_t - b m),        rest = r s |a b' - a' b| / d

    In flat coordinates r is the chart's `spread`, and a, b = 1 - t, t. On a sphere r = 1, and a, b = sin, cos of (1 - t) theta, where theta
    is the angle from x_0 to x_1. It is pi / 2 for random points. If the chart knows the middle of the zoo on each sphere, x_t tells more
    about the angle (see `angles_left`).

    >>> import torch, geoflow
    >>> from geoflow.chart import Chart
    >>> chart = Chart(geoflow.spec_of(torch.nn.Linear(1, 1), torch.zeros(1, 1)), geoflow.FLOWS["euclidean"], {})
    >>> gaussian(torch.ones(1, 2), torch.zeros(1), chart)  # nothing is known of the zoo: m = 0, s = 1
    (tensor([[1., 1.]]), tensor([[-1., -1.]]), tensor([[1., 1.]]))
    """
    (m, s), flat, scale, t = beside(chart.moments, x), beside(chart.flat, x), beside(chart.scale, x), t[:, None]
    theta = torch.full_like(t, math.pi / 2) if chart.own is None else angles_left(x, t, chart)

    def known(x, m, s, flat, scale, t, theta):
        angle = (1 - t) * theta
        a, b = torch.where(flat, 1 - t, angle.sin()), torch.where(flat, t, angle.cos())
        da, db = torch.where(flat, -1.0, -theta * b), torch.where(flat, 1.0, theta * a)
        r = torch.where(flat, chart.spread, 1.0)
        variance = (a * r) ** 2 + (b * s) ** 2
        offset, deviation = x * scale - b * m, variance.sqrt()
        mean = db * m + (a * da * r**2 + b * db * s**2) / variance * offset
        return offset / deviation, mean, r * s * (a * db - da * b) / deviation

    return in_parts(known, x, m, s, flat, scale, t, theta)


def angles_left(x: Float[Tensor, "nets size"], t: Float[Tensor, "nets 1"], chart: Coordinates) -> Float[Tensor, "nets size"]:
    """Estimate the angle theta from x_0 to x_1 on each sphere, given x_t. The chart must know the moments of every coordinate.

    The zoo lies around its middle, whose distance from the sphere's centre is r. So x_1 has the variance s^2 = 1 - r^2 around it. Without
    x_t, theta is pi / 2 with variance 1 / dim. The angle psi' from x_t to the middle has cos psi' = <x_t, middle> / r. It equals (1 - t)
    theta up to an error of variance (s^2 + s^4 / (2 sin^2((1 - t) pi / 2))) / r^2 / dim. The result is the mean of both estimates, weighted
    by their precisions.
    """
    middle, length = (beside(one, x) for one in chart.middle)
    left, r2 = 1 - t, length.square()
    angle = (chart.manifold.cosines(x, middle) / length.clamp_min(CLOSE)).clamp(-1 + CLOSE, 1 - CLOSE).acos()
    error = (1 - r2) + (1 - r2).square() / (2 * (left * math.pi / 2).sin().square().clamp_min(CLOSE))
    return (error * (math.pi / 2) + r2 * left * angle) / (error + r2 * left.square())


def preconditioned(raw: Tensor, x: Tensor, t: Tensor, chart: Coordinates, known: Known) -> tuple[Tensor, Tensor]:
    """Return v = (the velocity of a Gaussian zoo) + raw * (the deviation that it leaves open), and the weights of its squared errors.

    So the field predicts numbers of size one at every t. Where it predicts 0, the flow is the Gaussian's. That is exact in flat
    coordinates. On spheres it is approximate, and the fewer axes carry a row, the rougher it is. Every unit counts the same. The error of
    its weights is measured relative to what the Gaussian leaves open of them. So the loss is one at every t where the field predicts 0.

    >>> import torch, geoflow
    >>> from geoflow.chart import Chart
    >>> chart = Chart(geoflow.spec_of(torch.nn.Linear(1, 1), torch.zeros(1, 1)), geoflow.FLOWS["euclidean"], {})
    >>> x, t, raw = torch.ones(1, 2), torch.zeros(1), torch.full((1, 2), 3.0)
    >>> preconditioned(raw, x, t, chart, gaussian(x, t, chart))[0]  # -1 + 1 * 3
    tensor([[2., 2.]])
    """
    _, mean, rest = known
    unit_of, units = beside(chart.graph.unit_of, x), chart.graph.units
    weight = (x.shape[1] / units / sums_of(rest.square(), unit_of, units))[:, unit_of]
    v = in_parts(lambda mean, rest, raw, scale: (mean + rest * raw) / scale, mean, rest, raw, beside(chart.scale, x))
    return chart.manifold.proju(x, v), weight


def velocity(raw: Tensor, x: Tensor, t: Tensor, chart: Coordinates, known: Known) -> tuple[Tensor, Tensor]:
    """Return v = the projection of raw on the tangent space, and weights 1.

    >>> import torch, geoflow
    >>> from geoflow.chart import Chart
    >>> chart = Chart(geoflow.spec_of(torch.nn.Linear(1, 1), torch.zeros(1, 1)), geoflow.FLOWS["euclidean"], {})
    >>> x, t, raw = torch.ones(1, 2), torch.zeros(1), torch.full((1, 2), 3.0)
    >>> velocity(raw, x, t, chart, gaussian(x, t, chart))[0]
    tensor([[3., 3.]])
    """
    return chart.manifold.proju(x, raw * beside(chart.amplitude, x)), torch.ones_like(x)


def endpoint(raw: Tensor, x: Tensor, t: Tensor, chart: Coordinates, known: Known) -> tuple[Tensor, Tensor]:
    """Return v = log_{x_t}(x_1) / (1 - t) for a predicted x_1, and the weights (1 - t)^2.

    In flat coordinates raw is x_1 itself. On spheres raw is added to x_t, and the sum is projected on the sphere.

    >>> import torch, geoflow
    >>> from geoflow.chart import Chart
    >>> chart = Chart(geoflow.spec_of(torch.nn.Linear(1, 1), torch.zeros(1, 1)), geoflow.FLOWS["euclidean"], {})
    >>> x, t, raw = torch.ones(1, 2), torch.full((1,), 0.5), torch.full((1, 2), 3.0)
    >>> endpoint(raw, x, t, chart, gaussian(x, t, chart))[0]  # (3 - 1) / .5
    tensor([[4., 4.]])
    """
    flat, remaining = beside(chart.flat, x), (1 - t[:, None]).clamp_min(LAST)
    end = chart.manifold.projx(torch.where(flat, raw, x + raw / beside(chart.scale, x)))
    return chart.manifold.logmap(x, end) / remaining, (remaining**2).expand(x.shape)


# name: (output of the field, x_t, t, chart, result of `gaussian`) -> (velocity, weight of its squared error at this t)
PREDICTIONS: dict[str, Callable] = {"preconditioned": preconditioned, "velocity": velocity, "endpoint": endpoint}
# name: that weight -> weight in the loss. balanced: the field's output counts the same at every t; uniform: the velocity does
WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {"balanced": lambda weight: weight, "uniform": torch.ones_like}

"""Multiply vectors inside a network, such as those of attention heads, by invertible matrices."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.spec import NetworkSpec, Site

CHUNK = 2**22  # elements multiplied at once


@dataclass(frozen=True)
class Stretch:
    """A stretch of one axis of a tensor: `heads` times `copies` vectors of `width` elements, with `after` consecutive entries each.

    The maps of the group `group` multiply the vectors. They are the matrices A, or their inverse transposes if `dual` is set. All vectors
    of a head have the same matrix.
    """

    tensor: int
    axis: int
    start: int
    heads: int
    copies: int
    width: int
    after: int
    group: int
    dual: bool

    @property
    def entries(self) -> int:
        """The number of entries along the axis."""
        return self.heads * self.copies * self.width * self.after


@lru_cache(maxsize=64)
def stretches(spec: NetworkSpec) -> tuple[Stretch, ...]:
    """Return every stretch that linear maps multiply. A map of the written site multiplies, and one of the read site divides."""
    found = []
    for number, tensor in enumerate(spec.tensors):
        for along, axis in enumerate(tensor.axes):
            start = 0
            for piece in axis:
                for index, against in ((piece.writes, False), (piece.reads, True)):
                    if index is not None and acts(site := spec.sites[index], piece.repeat):
                        found.append(Stretch(number, along, start, *_shape(site, piece.repeat), site.linear, site.dual ^ against))
                start += piece.size * piece.repeat
    return tuple(found)


def acts(site: Site, repeat: int) -> bool:
    """Return whether linear maps multiply a stretch of the units of a site, with `repeat` entries each.

    They do not if the entries are no vectors, as in a weight that reads one number of each head.
    """
    return site.linear is not None and (not site.inner or repeat % site.inner == 0)


def _shape(site: Site, repeat: int) -> tuple[int, int, int, int]:
    return (site.size, repeat // site.inner, site.inner, 1) if site.inner else (1, 1, site.size, repeat)


def vectors(spec: NetworkSpec, theta: Float[Tensor, "nets weights"], stretch: Stretch) -> Float[Tensor, "nets heads width rest"]:
    """Return the vectors of a stretch as columns. `rest` numbers the vectors of a head, whatever the other axes of the tensor are."""
    part = _along(spec, theta, stretch)
    return part.reshape(len(part), stretch.heads, stretch.copies, stretch.width, -1).transpose(2, 3).flatten(3)


def put_vectors_(spec: NetworkSpec, theta: Float[Tensor, "nets weights"], stretch: Stretch, new: Float[Tensor, "nets heads width rest"]):
    """Write vectors back to the memory of the weights."""
    into = _along(spec, theta, stretch)
    into.copy_(new.unflatten(3, (stretch.copies, -1)).transpose(2, 3).reshape(into.shape))


def _along(spec: NetworkSpec, theta: Tensor, stretch: Stretch) -> Tensor:
    """A view on the entries of a stretch, [nets, entries, `*other axes`]."""
    tensor, offset = spec.tensors[stretch.tensor], spec.offsets[stretch.tensor]
    part = theta[:, offset : offset + tensor.numel].unflatten(1, tensor.shape)
    return part.movedim(1 + stretch.axis, 1).narrow(1, stretch.start, stretch.entries)


def multiply_(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"], maps: Mapping[int, Float[Tensor, "*#batch heads width width"]]):
    """Multiply the vectors of some groups in the memory of the weights, which is contiguous."""
    if not maps:
        return
    nets = theta.view(-1, spec.weights)
    for stretch in stretches(spec):
        if stretch.group not in maps:
            continue
        given = maps[stretch.group]
        matrix = (torch.linalg.inv(given.double()).mT if stretch.dual else given).to(nets)
        matrix = matrix.expand(*theta.shape[:-1], *matrix.shape[-3:]).reshape(len(nets), *matrix.shape[-3:])
        some = max(1, CHUNK // max(1, spec.tensors[stretch.tensor].numel))
        for start in range(0, len(nets), some):
            part = nets[start : start + some]
            put_vectors_(spec, part, stretch, matrix[start : start + some] @ vectors(spec, part, stretch))


def check_maps(spec: NetworkSpec, maps: Mapping[int, Tensor]) -> None:
    """Raise ValueError for a group that the spec does not declare, a map of another shape, and a matrix without an inverse."""
    for group, matrix in maps.items():
        known = spec.linear.get(group, (0, 0))
        if matrix.shape[-3:] != (known[0], known[1], known[1]):
            raise ValueError(
                f"There is no linear group {group} with matrices {list(matrix.shape[-3:])}. Known (group: heads, width): {spec.linear}."
            )
        singular = torch.linalg.inv_ex(matrix.double()).info != 0
        if not matrix.isfinite().all() or singular.any():
            head = int((singular | ~matrix.isfinite().all(-1).all(-1)).reshape(-1, known[0]).any(0).nonzero()[0])
            raise ValueError(f"A linear map needs an inverse, but the matrix of head {head} of group {group} has none.")


def random_maps(
    spec: NetworkSpec, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> dict[int, Float[Tensor, "_heads _width _width"]]:
    """Sample a matrix for every head of every group: random rotations before and after random factors exp(z / 2), z standard normal."""
    found = {}
    for group, (heads, width) in spec.linear.items():
        first, last = (torch.linalg.qr(torch.randn(heads, width, width, generator=generator, dtype=torch.float64)).Q for _ in range(2))
        factors = torch.randn(heads, 1, width, generator=generator, dtype=torch.float64).mul(0.5).exp()
        found[group] = ((first * factors) @ last).to(dtype)
    return found

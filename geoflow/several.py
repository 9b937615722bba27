"""Check the zoos that a flow is fitted to: one, or several of different architectures."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from geoflow.graph import graph_of, pinned_sites
from geoflow.spec import NetworkSpec
from geoflow.stored import Networks, Rows
from geoflow.wiring.check import check_wires


@dataclass(frozen=True, eq=False)
class OneZoo:
    """Trained networks of one architecture, in at least single precision: in half precision rows leave their spheres."""

    spec: NetworkSpec
    thetas: Networks


def zoos_of(spec: NetworkSpec | Sequence[NetworkSpec], thetas: Tensor | Rows | Sequence[Tensor | Rows], batch: int) -> list[OneZoo]:
    """Return the zoos that `fit` was given: a table with its weight vectors, or as many tables as zoos. One zoo may lie in a file.

    Raises ValueError for what is no zoo, for fewer than 2 networks or fewer than `batch`, and for a table without the wires of a group.
    Several zoos must be of different architectures that read and answer alike. Else it raises ValueError too.

    >>> import torch, geoflow
    >>> from torch import nn
    >>> specs = [geoflow.spec_of(nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 2)), torch.zeros(1, 4)) for n in (3, 5)]
    >>> [zoo.thetas.shape for zoo in zoos_of(specs, [torch.zeros(9, spec.weights) for spec in specs], batch=8)]
    [torch.Size([9, 23]), torch.Size([9, 37])]
    """
    specs, several = ([spec], [thetas]) if isinstance(spec, NetworkSpec) else (list(spec), list(thetas))
    if len(specs) != len(several) or not specs:
        raise ValueError(f"{len(specs)} tables and {len(several)} zoos: pass one table for each zoo, and at least one.")
    zoos = [OneZoo(one, _checked(zoo, batch, f"zoo {number} of {len(specs)}" if len(specs) > 1 else "the zoo"))
            for number, (one, zoo) in enumerate(zip(specs, several, strict=True), 1)]  # fmt: skip
    for one in specs:
        check_wires(one)
    _check_together(specs)
    return zoos


def _checked(thetas: Networks, batch: int, which: str) -> Networks:
    if isinstance(thetas, Rows):
        return _many(thetas, batch, which)
    if not isinstance(thetas, Tensor) or thetas.ndim != 2 or not thetas.is_floating_point():
        found = f"{tuple(thetas.shape)} of {thetas.dtype}" if isinstance(thetas, Tensor) else type(thetas).__name__
        forms = "a tensor [nets, weights] as geoflow.pack(spec, state_dicts) makes it"
        raise ValueError(f"A zoo is {forms}, not {found}. Of a zoo in a file pass open_zoo(path).thetas.")
    thetas = _many(thetas.detach(), batch, which)
    return thetas.to(torch.promote_types(thetas.dtype, torch.float32))


def _many(thetas: Networks, batch: int, which: str) -> Networks:
    if len(thetas) < 2:
        raise ValueError(f"A flow needs at least 2 networks to learn a distribution, and {which} has {len(thetas)}. Train more.")
    if len(thetas) < batch:
        raise ValueError(f"batch={batch} is more than the {len(thetas)} networks of {which}. Choose a smaller batch or a larger zoo.")
    return thetas


def check_copies(thetas: Networks) -> None:
    """Warn if networks are copies of others, to the last bit. Raises ValueError if all networks are one.

    >>> check_copies(torch.ones(3, 2))
    Traceback (most recent call last):
    ValueError: All 3 networks are identical. A flow needs at least 2 that differ. Were they read from one file?
    """
    different = len({sha256(theta.detach().cpu().contiguous().view(torch.uint8).numpy()).digest() for theta in thetas})
    if different == 1:
        raise ValueError(f"All {len(thetas)} networks are identical. A flow needs at least 2 that differ. Were they read from one file?")
    if copies := len(thetas) - different:
        warnings.warn(
            f"{copies} of the {len(thetas)} networks are copies of others, so {different} are different. The flow sees networks with "
            "copies more often. thetas.unique(dim=0) has each network once.",
            stacklevel=4,
        )


def _check_together(specs: Sequence[NetworkSpec]) -> None:
    """Raise ValueError if two zoos are of one architecture, or if two architectures have inputs or outputs of different sizes."""
    ends = [{name: spec.sites[site].size for name, site in pinned_sites(graph_of(spec)).items()} for spec in specs]
    for number, (spec, own) in enumerate(zip(specs, ends, strict=True), 1):
        for earlier, (other, before) in enumerate(zip(specs[: number - 1], ends, strict=False), 1):
            if (spec.sites, spec.tensors) == (other.sites, other.tensors):
                raise ValueError(f"Zoos {earlier} and {number} are of one architecture: pass them as one, by torch.cat.")
            if differ := [name for name in own if before.get(name, own[name]) != own[name]]:
                sizes = before[differ[0]], own[differ[0]]
                raise ValueError(
                    f"{differ[0]!r} has {sizes[0]} units in zoo {earlier} and {sizes[1]} in zoo {number}. One flow serves networks with "
                    "the same inputs and outputs: fit a flow to each."
                )


def listed(one_or_several: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return what belongs to one zoo, or to several, as a list."""
    return [one_or_several] if isinstance(one_or_several, Tensor) else list(one_or_several)

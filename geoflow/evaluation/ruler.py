"""Measure how far networks are apart, with the same share for every layer and independent of any flow."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geoflow.canonical import align, balance, centre, gathered
from geoflow.canonical.gathering import Match
from geoflow.canonical.large import match_by_parts
from geoflow.canonical.matching import part_of, parts_of
from geoflow.frame import UNTURNED, Frame
from geoflow.graph import graph_of
from geoflow.spec import NetworkSpec
from geoflow.statistics import statistics_of
from geoflow.stored import Networks, Rows, mapped
from geoflow.symmetry import Symmetry, apply_symmetry
from geoflow.tally import Tally


@dataclass(frozen=True, eq=False)
class Ruler:
    """Coordinates for measuring distances between networks of a zoo.

    The Euclidean distance of two networks of the zoo is 1 in root mean square, and every layer has the same share of its square. In plain
    weights nearly all of it would be the last layer's, because that holds the scale of all others. Running statistics do not count, because
    they follow from the weights and the data. So a copy remains a copy when they are measured anew.

    `frame` gives the length of a row of weights on an input. `scale` brings each weight to these units. `reference` gives the order of the
    units. See `fit_ruler` for an example.
    """

    spec: NetworkSpec
    frame: Frame
    scale: Float[Tensor, " weights"]
    reference: Float[Tensor, " weights"]

    def place(self, thetas: Float[Tensor, "nets weights"]) -> Float[Tensor, "nets weights"]:
        """Return the coordinates of networks, with their units in the order nearest to the reference."""
        return align(self.spec, _balanced(self.spec, thetas, self.frame) * self.scale.to(thetas), self.reference)[0]


def fit_ruler(spec: NetworkSpec, zoo: Networks, frame: Frame = UNTURNED, match: Match = match_by_parts) -> Ruler:
    """Return the ruler of a zoo, in memory or in a file.

    `match` finds the symmetries. For a zoo in a file use that of `geoflow.canonical.large.Steps`, which goes on after an interruption.

    `frame` comes from `metric_frame`. If the networks do not differ in a layer, that layer's weights are not rescaled.

    >>> import torch, geoflow
    >>> from geoflow.evaluation.novelty import spread
    >>> spec = geoflow.spec_of(torch.nn.Linear(2, 1), torch.zeros(1, 2))
    >>> zoo = torch.tensor([[0.0, 2.0, 1.0], [20.0, 4.0, 1.0], [0.0, 7.0, 3.0]])
    >>> round(spread(fit_ruler(spec, zoo).place(zoo)), 4)
    1.0
    """
    balanced = _balanced(spec, zoo, frame)
    first, symmetry = gathered(spec, balanced, match=match)
    layers = layers_of(spec)
    variance = _variance(spec, balanced, symmetry)
    scale = torch.ones_like(variance)
    scale[statistics_of(spec).to(scale.device)] = 0
    for index in layers.values():
        if square := 2 * variance[index].sum().item():
            scale[index] = (square * len(layers)) ** -0.5
    scaled = mapped(balanced, lambda x: x * scale.to(x)) if isinstance(balanced, Rows) else balanced * scale
    return Ruler(spec, frame, scale, centre(spec, scaled, first * scale, match=match))


def layers_of(spec: NetworkSpec) -> dict[str, Int[Tensor, " weights"]]:
    """Return the weights of each layer, by the name of the site whose units they make.

    These are the weights on edges, biases and gains. "shared" holds weights that belong to no unit. Running statistics are left out.
    """
    graph, found = graph_of(spec), {}
    for site, index in [(block.target, block.index) for block in graph.blocks] + [(part.site, part.index) for part in graph.of_units]:
        found.setdefault(spec.sites[site].name, []).append(index.flatten())
    found |= {"shared": [graph.scalars]} if len(graph.scalars) else {}
    layers, statistics = {name: torch.cat(parts) for name, parts in found.items()}, statistics_of(spec)
    counted = {name: index[~torch.isin(index, statistics)] for name, index in layers.items()}
    return {name: index for name, index in counted.items() if len(index)}


def _variance(spec: NetworkSpec, thetas: Networks, symmetry: Symmetry) -> Float[Tensor, " weights"]:
    """Return the variance of every weight of the aligned networks."""
    if not isinstance(thetas, Rows):
        return apply_symmetry(spec, thetas, symmetry).var(0)
    tally = Tally()
    for part in parts_of(spec, len(thetas)):
        tally.add(apply_symmetry(spec, thetas[part], part_of(symmetry, part)).reshape(-1, spec.weights))
    return tally.variance().to(thetas.dtype)


def _balanced(spec: NetworkSpec, thetas: Networks, frame: Frame) -> Networks:
    if isinstance(thetas, Rows):
        return mapped(thetas, lambda x: _balanced(spec, x.to(torch.promote_types(x.dtype, torch.float32)), frame))
    return balance(spec, frame.turn(graph_of(spec), thetas))

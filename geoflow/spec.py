"""Say what a network is made of: its sites, its tensors, and which symmetries tie them."""

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod

import torch
from torch import Tensor

ROLES = ("input", "hidden", "output")
SYMMETRIES = ("permutation", "scaling", "sign")


@dataclass(frozen=True)
class Site:
    """One activation vector of the wiring: `size` units made at the module `name`.

    `permutation`, `scaling` and `sign` are numbers of groups: sites of one group are permuted (scaled by one positive
    factor per unit, flipped by one sign per unit) together. None means that this symmetry is not declared here.
    """

    name: str
    size: int
    role: str
    permutation: int | None = None
    scaling: int | None = None
    sign: int | None = None

    @property
    def pinned(self) -> bool:
        """Whether no symmetry moves it."""
        return self.permutation is self.scaling is self.sign is None


@dataclass(frozen=True)
class Piece:
    """A stretch of one axis of a tensor: `size` units of `repeat` consecutive entries each.

    `writes` and `reads` are the indices of the sites that these units produce and consume. Both None: positions, such as a kernel's.
    Both given: a diagonal map, as a depthwise convolution or a learned gain, whose unit i reads unit i.
    """

    size: int
    repeat: int = 1
    writes: int | None = None
    reads: int | None = None

    @property
    def owner(self) -> int | None:
        """The site whose order its units follow."""
        return self.reads if self.writes is None else self.writes


@dataclass(frozen=True)
class TensorSpec:
    """Rows `start` to `start + shape[0]` of the entry `name` of the state dict, axis by axis.

    An entry scales with prod(written sites) ** degree / prod(read sites): degree 1 for weights, biases and running means,
    2 for running variances, 0 for slopes of PReLU. `kind` is one of KINDS; `learned` is False for running statistics.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[tuple[Piece, ...], ...]
    kind: str
    learned: bool = True
    degree: int = 1
    start: int = 0

    @property
    def numel(self) -> int:
        return prod(self.shape)


KINDS = ("weight", "bias", "gain", "running_mean", "running_var", "slope", "parameter")


@dataclass(frozen=True)
class Wire:
    """Unit i of the site `source` and unit i of the site `target` are tied, in the direction in which the data flow.

    `kind`, one of WIRES, is the relation that ties them.
    """

    source: int
    target: int
    kind: str


WIRES = {
    "norm": "the target is the normalised source",
    "gain": "the target is the source times a learned factor",
    "depthwise": "the target is the source, convolved by itself",
    "function": "the target is a function of the source that changes its scale or sign",
    "sum": "the source is added to the target, or compared with it",
    "product": "the source multiplies the target, or is otherwise combined with it, number by number",
    "contraction": "products of the two are summed, as of queries and keys",
    "concatenation": "the two lie side by side along another axis",
    "recurrence": "the two are states of a recurrent layer",
    **{f"gate {number}": "the target is a gate of the source, in the order of the rows of a recurrent layer" for number in range(4)},
    "shared": "one tensor serves both",
}
ONE_UNIT = ("norm", "gain", "depthwise", "function")  # wires from a unit to what a map of this unit alone makes of it


@dataclass(frozen=True)
class NetworkSpec:
    """The table of a network.

    `wires` join the sites whose units are tied one by one; the sites of a permutation group are connected by them.
    `rest` are the entries of the state dict outside the weight vector (counters, masks, tables of positions, entries that the forward
    pass never touches), kept as they were traced. `constants` are those of them that the forward pass uses: all networks of a zoo share
    them. `aliases` are pairs (other name, packed name) of tied entries: one tensor under two names of the state dict.
    """

    sites: tuple[Site, ...]
    tensors: tuple[TensorSpec, ...]
    wires: tuple[Wire, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    constants: tuple[str, ...] = ()
    rest: dict[str, Tensor] = field(default_factory=dict, compare=False)

    @cached_property
    def weights(self) -> int:
        """Length of the weight vector."""
        return sum(tensor.numel for tensor in self.tensors)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor starts in the weight vector."""
        ends = torch.tensor([0] + [tensor.numel for tensor in self.tensors]).cumsum(0)
        return tuple(ends[:-1].tolist())

    def groups(self, symmetry: str) -> dict[int, int]:
        """Declared groups of one of SYMMETRIES, with their number of units."""
        return {getattr(site, symmetry): site.size for site in self.sites if getattr(site, symmetry) is not None}

    def group_of(self, index: int | None, symmetry: str) -> int | None:
        """The group of the site `index`, or None."""
        return None if index is None else getattr(self.sites[index], symmetry)

    def to_json(self) -> str:
        """The table as JSON; `rest` holds tensors and is stored beside it."""
        return json.dumps({key: _plain(getattr(self, key)) for key in ("sites", "tensors", "wires", "aliases", "constants")})

    @classmethod
    def from_json(cls, text: str, rest: dict[str, Tensor]) -> "NetworkSpec":
        table = json.loads(text)
        tensors = tuple(
            TensorSpec(**entry | {"shape": tuple(entry["shape"]), "axes": tuple(tuple(Piece(**p) for p in axis) for axis in entry["axes"])})
            for entry in table["tensors"]
        )
        sites = tuple(Site(**site) for site in table["sites"])
        # files from before wires hold the additions alone, as pairs of sites
        wires = tuple(Wire(**wire) for wire in table.get("wires", ())) + tuple(Wire(*link, "sum") for link in table.get("links", ()))
        aliases = tuple(map(tuple, table["aliases"]))
        return cls(sites, tensors, wires, aliases, tuple(table.get("constants", ())), rest)  # files from before constants have none


def _plain(rows):
    return [row if isinstance(row, tuple | str) else asdict(row) for row in rows]

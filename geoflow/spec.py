"""Define the table of a network: its sites, its tensors and its symmetries."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import product
from math import prod

import torch
from torch import Tensor

ROLES = ("input", "hidden", "output")
SYMMETRIES = ("permutation", "scaling", "sign")
TRACING = 3  # increased when the tracing finds more symmetries in the same networks


@dataclass(frozen=True)
class Site:
    """One vector of activations, such as the output of a hidden layer.

    The vector has `size` units. `name` is the path of the module that makes it. `role` is one of ROLES.

    `permutation`, `scaling` and `sign` are the numbers of groups. The sites of one group move together. Their units are permuted in the
    same order, multiplied by the same positive factors, or flipped by the same signs. None means that the table declares no such
    symmetry for this site.

    `linear` is the number of a group of linear maps. Any invertible matrix A may then multiply a vector of these activations. If `inner`
    is 0, the vector is that of all units. Else every unit stands for a head, which has vectors of `inner` elements and an A of its own.
    A site that is `dual` gets the inverse transpose of A, as keys do if queries get A. Orders of heads come after these maps. Orders,
    factors and signs inside a vector are such maps too, so a site with linear maps does not declare them.

    >>> from geoflow.spec import Site
    >>> Site("0", 16, "hidden", permutation=0, scaling=0).pinned
    False
    """

    name: str
    size: int
    role: str
    permutation: int | None = None
    scaling: int | None = None
    sign: int | None = None
    linear: int | None = None
    dual: bool = False
    inner: int = 0

    @property
    def heads(self) -> int:
        """The number of vectors on which linear maps act by themselves."""
        return self.size if self.inner else 1

    @property
    def width(self) -> int:
        """The number of elements of each of these vectors."""
        return self.inner or self.size

    @property
    def pinned(self) -> bool:
        """True if no symmetry moves the units of this site."""
        return self.permutation is self.scaling is self.sign is self.linear is None


@dataclass(frozen=True)
class Piece:
    """A stretch of one axis of a tensor: `size` units, with `repeat` consecutive elements for each unit.

    `writes` and `reads` are indices of sites in the table. A weight matrix writes a site along its rows, and reads a site along its
    columns. A stretch that neither writes nor reads holds positions, such as those of a convolution kernel. A stretch that does both is
    a diagonal map, such as a learned gain or a depthwise convolution. There unit i of the written site is made of unit i of the read site.

    >>> from geoflow.spec import Piece
    >>> rows, columns = Piece(3, writes=1), Piece(4, reads=0)
    >>> rows.owner, columns.owner
    (1, 0)
    """

    size: int
    repeat: int = 1
    writes: int | None = None
    reads: int | None = None

    @property
    def owner(self) -> int | None:
        """The site whose order these units follow: the written site if there is one, else the read site. None for positions."""
        return self.reads if self.writes is None else self.writes


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the weight vector: rows `start` to `start + shape[0]` of the entry `name` of the state dict.

    Most entries are one tensor with `start` 0. An entry that the forward pass uses in slices is several tensors. `axes` holds, for each
    axis, the pieces that make up the axis. `kind` is one of KINDS. `learned` is False for running statistics.

    `degree` says how scaling acts on the tensor. If every unit is multiplied by its factor, an element of the tensor is multiplied by

        (product of the factors of the units that it writes) ** degree / (product of the factors of the units that it reads)

    The degree is 1 for weights, biases and running means, 2 for running variances, and 0 for the slopes of PReLU.

    >>> from geoflow.spec import Piece, TensorSpec
    >>> TensorSpec("0.weight", (3, 4), ((Piece(3, writes=1),), (Piece(4, reads=0),)), "weight").numel
    12
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
        """The number of weights in the tensor."""
        return prod(self.shape)


KINDS = ("weight", "bias", "gain", "running_mean", "running_var", "slope", "parameter")


@dataclass(frozen=True)
class Wire:
    """A link from unit i of the site `source` to unit i of the site `target`, for every i.

    Both ends are indices of sites of one size. The direction is that of the data in the forward pass. `kind` is one of WIRES and says
    why the two units belong together.

    >>> from geoflow.spec import Wire
    >>> Wire(source=1, target=2, kind="norm")
    Wire(source=1, target=2, kind='norm')
    """

    source: int
    target: int
    kind: str


WIRES = {
    "norm": "the target is the normalised source",
    "gain": "the target is the source times a learned factor",
    "depthwise": "the target is the source, convolved by itself",
    "function": "the target is a function of the source, with another scale or sign",
    "sum": "the source is added to the target, or compared with it",
    "product": "the source multiplies the target, or another function combines them element by element",
    "contraction": "the products of the two are summed over their units, as those of queries and keys",
    "concatenation": "the two lie side by side along another axis",
    "recurrence": "the two are states of a recurrent layer",
    **{f"gate {number}": "the target is a gate of the source, in the order of the rows of a recurrent layer" for number in range(4)},
    "shared": "one tensor serves both",
}
ONE_UNIT = ("norm", "gain", "depthwise", "function")  # wires whose target unit is computed from the source unit alone


@dataclass(frozen=True)
class NetworkSpec:
    """The table of a network: all that the library knows of its architecture.

    - `sites` are the vectors of activations.
    - `tensors` are the parts of the weight vector, in their order.
    - `wires` join sites unit by unit. They connect all sites of a permutation group with each other.
    - `aliases` are the pairs (other name, packed name) of tied entries. A tied entry is one tensor under two names of the state dict.
    - `rest` holds the entries of the state dict outside the weight vector, with the values of the traced network. Examples are counters,
      masks, tables of positions, and entries that the forward pass never uses.
    - `constants` are the names of those entries of `rest` that the forward pass uses. All networks of a zoo share their values.
    - `tracing` is the version of the tracing that made the table. A later version may find more in the same network.
    - `metadata` holds the versions of the modules, as torch keeps them beside a state dict. Some modules refuse a state dict without them.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> [(tensor.name, offset) for tensor, offset in zip(spec.tensors, spec.offsets)]
    [('0.weight', 0), ('0.bias', 12), ('2.weight', 15), ('2.bias', 21)]
    >>> spec.weights, spec.groups("permutation")
    (23, {0: 3})
    >>> spec.unread
    ()
    >>> geoflow.spec.NetworkSpec.from_json(spec.to_json(), spec.rest) == spec
    True
    """

    sites: tuple[Site, ...]
    tensors: tuple[TensorSpec, ...]
    wires: tuple[Wire, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    constants: tuple[str, ...] = ()
    rest: dict[str, Tensor] = field(default_factory=dict, compare=False)
    metadata: dict[str, dict] = field(default_factory=dict, compare=False)
    tracing: int = field(default=TRACING, compare=False)

    @cached_property
    def weights(self) -> int:
        """The length of the weight vector."""
        return sum(tensor.numel for tensor in self.tensors)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The index in the weight vector at which each tensor starts."""
        ends = torch.tensor([0] + [tensor.numel for tensor in self.tensors]).cumsum(0)
        return tuple(ends[:-1].tolist())

    @property
    def unread(self) -> tuple[str, ...]:
        """The entries of the state dict that the forward pass never reads, such as those of an auxiliary head."""
        return tuple(name for name in self.rest if name not in self.constants)

    def groups(self, symmetry: str) -> dict[int, int]:
        """The groups of one of SYMMETRIES, as {group: number of units}."""
        return {getattr(site, symmetry): site.size for site in self.sites if getattr(site, symmetry) is not None}

    @cached_property
    def linear(self) -> dict[int, tuple[int, int]]:
        """The groups of linear maps, as {group: (heads, width of a head)}."""
        return {site.linear: (site.heads, site.width) for site in self.sites if site.linear is not None}

    def group_of(self, index: int | None, symmetry: str) -> int | None:
        """The group of the site `index` under a symmetry, or None if it has none."""
        return None if index is None else getattr(self.sites[index], symmetry)

    def to_json(self) -> str:
        """The table as JSON, without `rest`. Its tensors are stored beside the JSON."""
        table = {key: _plain(getattr(self, key)) for key in ("sites", "tensors", "wires", "aliases", "constants")}
        table["tracing"] = self.tracing
        return json.dumps(table | {"metadata": {path: _storable(about) for path, about in self.metadata.items()}})

    @classmethod
    def from_json(cls, text: str, rest: dict[str, Tensor]) -> "NetworkSpec":
        """The table that `to_json` wrote. `rest` holds the tensors that the JSON leaves out.

        Raises ValueError for a table of a later version of geoflow.
        """
        table = json.loads(text)
        if (tracing := table.get("tracing", 1)) > TRACING:
            raise ValueError(f"This table is of a later version of geoflow (tracing {tracing}; this version has {TRACING}): update it.")
        tensors = tuple(
            TensorSpec(**entry | {"shape": tuple(entry["shape"]), "axes": tuple(tuple(Piece(**p) for p in axis) for axis in entry["axes"])})
            for entry in table["tensors"]
        )
        sites = tuple(Site(**site) for site in table["sites"])
        # older files have no wires: they hold pairs of added sites
        wires = tuple(Wire(**wire) for wire in table.get("wires", ())) + tuple(Wire(*link, "sum") for link in table.get("links", ()))
        aliases = tuple(map(tuple, table["aliases"]))
        # older files have no constants, no metadata and no version
        constants, metadata = tuple(table.get("constants", ())), table.get("metadata", {})
        return cls(sites, tensors, wires, aliases, constants, rest, metadata, tracing)


def unit_axes(spec: NetworkSpec, pieces: Sequence[Piece]) -> list[int]:
    """Return the axes along which units lie, given a piece of each axis. If there are more than two, units that no symmetry moves count as
    positions.
    """
    axes = [axis for axis, piece in enumerate(pieces) if piece.owner is not None]
    return axes if len(axes) <= 2 else [axis for axis in axes if not spec.sites[pieces[axis].owner].pinned]


def check_edges(spec: NetworkSpec) -> None:
    """Raise ValueError if a tensor connects the units of more than two sites that can move, as that of nn.Bilinear may do."""
    for tensor in spec.tensors:
        most = max(len(unit_axes(spec, pieces)) for pieces in product(*tensor.axes))
        if most > 2:
            raise ValueError(
                f"{tensor.name!r} connects the units of {most} layers, but an edge of a graph connects two. Networks with such a tensor "
                "are not supported. Let it read one hidden layer, and inputs beside it, or use a linear layer instead."
            )


def _plain(rows):
    return [row if isinstance(row, tuple | str) else asdict(row) for row in rows]


def _storable(about: Mapping) -> dict:
    return {key: value for key, value in about.items() if isinstance(value, str | int | float | None)}

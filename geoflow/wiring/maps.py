"""Track which vectors of activations any invertible matrix may multiply, because only linear maps read them."""

from collections.abc import Callable, Iterable, Sequence

from geoflow.wiring.classes import Duals
from geoflow.wiring.labels import Label, Part, Segment, Value

# Operations that move elements. A map goes with its vector as long as the elements of the vector stay together.
CUTS = frozenset(["select", "slice", "narrow", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "getitem"])
VIEWS = frozenset(
    [
        *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view", "transpose", "permute", "t", "numpy_T", "mT"),
        *("adjoint", "movedim", "moveaxis", "swapaxes", "swapdims", "expand", "broadcast_to", "alias", "detach", "contiguous", "to"),
        *(
            "_to_copy",
            "clone",
            "lift_fresh_copy",
            "dropout",
            "neg",
            "negative",
            "positive",
            "expand_as",
            "view_as",
            "reshape_as",
            "type_as",
        ),
    ]
)
# Linear operations, whose rules say by `Ledger.tie`, `contract` and `mix` what becomes of the maps.
LINEAR = frozenset(
    [
        *("linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention", "add", "sub", "rsub", "subtract"),
        *("mul", "multiply", "div", "divide", "true_divide", "repeat_interleave", "cat", "concat", "concatenate", "mean", "sum"),
    ]
)
SCALES = frozenset(["mul", "multiply", "div", "divide", "true_divide"])
SHAPES = frozenset(["zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"])
Together = Callable[[int, int], bool]
LIKE = frozenset(["expand_as", "view_as", "reshape_as", "type_as"])  # of the second operand they use the shape or the type alone


class Maps:
    """For each site, whether any invertible matrix may multiply its vector. Rules tie, pin and pass on these maps.

    The vector of a site is that of all its units, with one matrix. A site of heads has instead a vector inside each unit, with a matrix
    for each unit. A site of its own stands for the axis inside (`inside`, `home`). It counts as positions, because no other symmetry moves
    it.

    A map is lost if an operation is not linear, or if it tells elements of the vector apart. What rules do not pass on is lost too, so a
    new rule never declares a map by mistake.

    `stacks` holds axes of copies, such as that of queries, keys and values in one layer. A value with such an axis has the labels of its
    first copy. `kept` are the vectors that the current operation reads as a linear map does, or passes on under another name.
    """

    def __init__(self) -> None:
        self.classes = Duals()
        self.inside: dict[int, int] = {}
        self.home: dict[int, int] = {}
        self.widths: dict[int, int] = {}  # of the axes inside, as soon as a view shows them
        self.repeats: dict[int, int] = {}  # the elements of each unit of a site of heads
        self.stacks: dict[int, tuple[int, ...]] = {}
        self.kept: set[int] = set()
        self.taken: set[int] = set()  # stacks of which the current operation took single copies

    def enter(self, site: int, inner: int, repeat: int) -> None:
        """Let `inner` stand for the vectors inside the units of a site, which have `repeat` elements."""
        self.inside[site], self.home[inner], self.repeats[site] = inner, site, repeat

    def of(self, part: Segment | Part, site: int | None = None) -> int | None:
        """The site whose maps multiply the elements of a segment. None if it lies along the axis of heads."""
        site = site if isinstance(part, Part) else part.site
        inner = self.inside.get(site)
        return site if inner is None else inner if part.repeat >= self.repeats[site] else None

    def within(self, label: Label) -> set[int]:
        return {site for segment in label if (site := self.of(segment)) is not None}

    def pin(self, *sites: int | None) -> None:
        for site in sites:
            if site is not None:
                self.classes.pin(site)

    def tie(self, a: int | None, b: int | None, dual: bool = False) -> None:
        """Let two vectors move together, or against each other. Both are lost if only one of them is a vector."""
        if a is None or b is None:
            self.pin(a, b)
        else:
            self.classes.tie(a, b, dual)
            self.kept |= {a, b}

    def axis(self, unit: Segment, size: int) -> Label:
        """The last axis that a view splits off the units of a site of heads. Empty if it is no vector inside the units."""
        inner = self.inside.get(unit.site)
        if inner is None or unit.repeat != self.repeats[unit.site] or self.widths.setdefault(inner, size) != size:
            self.pin(inner)
            return ()
        return (Segment(inner, size),)

    def spread(self, heads: Label) -> None:
        """Pin the vectors of heads whose units were repeated so often that they look like whole heads."""
        self.pin(*(self.of(segment) for segment in heads if segment.site in self.inside))

    def pin_strays(self, labels: Sequence[Label], together: Together) -> None:
        """Pin the vectors of heads along one of these axes, unless the heads lie along exactly one other axis."""
        for home in {home for label in labels for home in self.homes(label)}:
            if sum(any(together(s.site, home) for s in label if s.site not in self.home) for label in labels) != 1:
                self.pin(self.inside[home])

    def homes(self, label: Label) -> set[int]:
        """The sites of heads whose inside this axis is."""
        return {self.home[segment.site] for segment in label if segment.site in self.home}

    # copies beside each other

    def stack(self, position: int, sites: Sequence[int]) -> None:
        """Remember the sites along an axis of copies."""
        self.stacks[position] = tuple(sites)
        self.kept |= self._all_of(sites)

    def chosen(self, labels: Sequence[Label], axis: int, start: int, stop: int) -> list[Label]:
        """The labels of one copy. An axis that is no stack, and several copies, stay as they are."""
        label = labels[axis]
        sites = self.stacks.get(label[0].site) if len(label) == 1 else None
        if sites is None:
            return list(labels)
        self.kept |= self._all_of(sites)
        self.taken.add(label[0].site)
        if stop - start > 1:
            self.pin(*(self._all_of(sites) if (start, stop) != (0, len(sites)) else ()))
            return list(labels)
        first, own = sites[0], sites[start]
        names = {first: own, self.inside[first]: self.inside[own]}
        return [tuple(Segment(names.get(s.site, s.site), s.size, s.repeat) for s in one) for one in labels]

    def _all_of(self, sites: Iterable[int]) -> set[int]:
        return {self.inside[site] for site in sites}

    # after every operation

    def after(self, name: str, operands: Sequence[Value], results: Sequence[Value], new: Iterable[int], together: Together) -> None:
        """Pin every vector that an operation does not pass on as a linear map does.

        `new` are the sites that the operation made, and `together` says whether two sites share an order.
        """
        if name in SHAPES:
            return
        operands = operands[:1] if name in LIKE else operands
        before, behind = (
            set().union(*(self.within(label) for value in values for label in value.labels)) for values in (operands, results)
        )
        if name in VIEWS | CUTS | LINEAR:
            self.pin(*(before - behind - self.kept))
            for value in results:
                self.pin_strays(value.labels, together)
        else:
            self.pin(*before, *behind, *new)
        for value in operands:
            for position in {s.site for label in value.labels for s in label} & set(self.stacks):
                copies = self.stacks[position]
                first = self.classes.free(self.inside[copies[0]])  # what befalls the first copy befalls them all
                if not (first and self._passes(name, position, value, operands, results)):
                    self.pin(*self._all_of(copies))
        self.kept.clear()
        self.taken.clear()

    def _passes(self, name: str, position: int, value: Value, operands: Sequence[Value], results: Sequence[Value]) -> bool:
        """Whether an axis of copies is moved as a whole, cut into its copies, or multiplied by numbers."""
        there = all(any(position == s.site for label in result.labels for s in label) for result in results)
        scaled = name in SCALES and len(operands) == 1 and all(result.labels == value.labels for result in results)
        return (name in CUTS and (there or position in self.taken)) or (name in VIEWS and there) or scaled


def offset(maps: Maps, label: Label, beside: Sequence[Label], together: Together) -> list[int]:
    """For an axis inside heads: where among the labels `beside` the heads lie, counted from the last."""
    homes = maps.homes(label)
    return [i - len(beside) for i, other in enumerate(beside) for s in other if any(together(s.site, home) for home in homes)]

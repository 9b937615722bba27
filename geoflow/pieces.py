"""Cut a vector into flat pieces and stacks of spheres, and join them again, by views where that is possible."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geoflow import parts
from geoflow.constants import beside
from geoflow.parts import reordered

LONG = 2**10  # coordinates between two gaps, on average, from which views are faster than an order
FEW = 16  # segments for which they always are
Shape = tuple[int, ...]  # (n,) of a flat piece, (count, dim) of a stack of spheres
FLAT, LOOSE = 0, 1


@dataclass(frozen=True, eq=False)
class Pieces:
    """How a vector is cut.

    The vector is a row of segments of the lengths `sizes`. A segment with a shape is a piece by itself, a view. Those without one are
    loose: together and in another order, `order`, they are the pieces of the shapes `loose`. `back` is the inverse order.

    >>> pieces = pieces_of(7, [torch.tensor([[1, 2], [3, 4]]), torch.tensor([[0, 6]])])
    >>> [tuple(piece.shape) for piece in pieces.split(torch.arange(7.0))]
    [(2, 2), (1,), (1, 2)]
    >>> pieces.join(pieces.split(torch.arange(7.0)))
    tensor([0., 1., 2., 3., 4., 5., 6.])
    """

    sizes: list[int]
    shapes: list[Shape | None]
    loose: list[Shape]
    order: Int[Tensor, " _loose"]
    back: Int[Tensor, " _loose"]

    @property
    def curved(self) -> list[bool]:
        """Whether each piece is a stack of spheres."""
        return [len(shape) == 2 for shape in (*filter(None, self.shapes), *self.loose)]

    def split(self, x: Float[Tensor, "*batch size"]) -> list[Tensor]:
        """The pieces of a vector, [*batch, n] or [*batch, count, dim]: first views, then loose ones."""
        segments = x.split(self.sizes, -1)
        found = [_shaped(segment, shape) for segment, shape in zip(segments, self.shapes, strict=True) if shape is not None]
        if not self.loose:
            return found
        rest = torch.cat([segment for segment, shape in zip(segments, self.shapes, strict=True) if shape is None], -1)
        cut = reordered(rest, beside(self.order, x), beside(self.back, x)).split([prod(shape) for shape in self.loose], -1)
        return found + [_shaped(part, shape) for part, shape in zip(cut, self.loose, strict=True)]

    def join(self, pieces: Sequence[Tensor]) -> Float[Tensor, "*batch size"]:
        """Undo `split`."""
        flat = [piece.flatten(-2) if curved else piece for piece, curved in zip(pieces, self.curved, strict=True)]
        views, rest = iter(flat[: len(flat) - len(self.loose)]), iter(())
        if self.loose:
            joined = torch.cat(flat[len(flat) - len(self.loose) :], -1)
            sizes = [size for size, shape in zip(self.sizes, self.shapes, strict=True) if shape is None]
            rest = iter(reordered(joined, beside(self.back, joined), beside(self.order, joined)).split(sizes, -1))
        return torch.cat([next(rest if shape is None else views) for shape in self.shapes], -1)


def pieces_of(size: int, spheres: Sequence[Int[Tensor, "_count _dim"]]) -> Pieces:
    """Cut vectors of `size` coordinates. Each of `spheres` is a stack. Large pieces are cut into smaller ones, as by `in_parts`."""
    stacks = [part for index in spheres if index.numel() for part in _stretches(index)]
    kind = torch.full((size,), FLAT, dtype=torch.int32)
    for number, index in enumerate(stacks):
        kind[index] = number + 2 if (index.flatten().diff() == 1).all() else LOOSE
    kinds, counts = kind.unique_consecutive(return_counts=True)
    if len(kinds) > max(FEW, size // LONG):
        kinds, counts, kind = torch.tensor([LOOSE]), torch.tensor([size]), torch.where(kind == FLAT, FLAT, LOOSE)
        loose = [(kind == FLAT).nonzero().squeeze(-1), *stacks]
    else:
        loose = [index for index in stacks if kind[index[0, 0]] == LOOSE]
    segments = list(_segments(kinds.tolist(), counts.tolist(), stacks))
    loose = [index for index in loose if index.numel()]
    places = torch.cat([torch.zeros(0, dtype=torch.long), *(index.flatten() for index in loose)])
    back = places.argsort()
    shapes = [shape for index in loose for shape in _cut(tuple(index.shape))]
    return Pieces([one for one, _ in segments], [shape for _, shape in segments], shapes, back.argsort(), back)


def _segments(kinds: list[int], counts: list[int], stacks: Sequence[Tensor]) -> Iterator[tuple[int, Shape | None]]:
    for kind, count in zip(kinds, counts, strict=True):
        if kind == LOOSE:
            yield count, None
            continue
        for shape in _cut((count,) if kind == FLAT else tuple(stacks[kind - 2].shape)):
            yield prod(shape), shape


def _stretches(index: Int[Tensor, "count dim"]) -> Sequence[Int[Tensor, "_count dim"]]:
    """Cut a stack between its layers, which may lie apart in the vector, if no sphere has a gap inside and the stretches are long."""
    if not (index.diff(dim=1) == 1).all():
        return [index]
    ends = (index[1:, 0] != index[:-1, -1] + 1).nonzero().squeeze(-1) + 1
    return index.tensor_split(ends) if index.numel() >= LONG * (len(ends) + 1) else [index]


def _cut(shape: Shape) -> list[Shape]:
    """Cut the first axis so that each piece has at most PART numbers, and at least one row."""
    count, *rest = shape
    most = max(1, parts.PART // prod(rest))
    return [(min(most, count - start), *rest) for start in range(0, count, most)]


def _shaped(x: Tensor, shape: Shape) -> Tensor:
    return x.unflatten(-1, shape) if len(shape) == 2 else x

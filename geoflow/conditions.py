"""Describe what a flow is told of each network: numbers such as a loss, or a label such as a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from geoflow.choices import choose

QUANTILES = 33  # of each number that are kept
DROPOUT = 0.1  # share of the networks in a training batch that the field is told nothing of


@dataclass(frozen=True)
class Numbers:
    """Numbers [nets, features] of every network. Of all networks it keeps the mean, the standard deviation and evenly spaced quantiles.

    The first and the last quantile are the range that the flow saw.

    >>> numbers = Numbers.fit([torch.tensor([[1.0], [3.0]])])
    >>> numbers.encode(3.0, 2)  # standardised; the last column says that the condition is told
    tensor([[0.7071, 1.0000],
            [0.7071, 1.0000]])
    >>> numbers.outside(torch.tensor([[3.0], [5.0]]))
    tensor([False,  True])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    quantiles: tuple[tuple[float, ...], ...]

    @classmethod
    def fit(cls, parts: Sequence[Float[Tensor, "_nets features"]]) -> "Numbers":
        """Describe the numbers of all networks. Raises ValueError if they are not finite, or if one never varies."""
        numbers = torch.cat(list(parts)).double()
        if not numbers.isfinite().all():
            raise ValueError("Conditions hold NaN or Inf. Leave out the networks that they belong to.")
        std = numbers.std(0)
        if not (std > 0).all():
            constant = (std == 0).nonzero()[0].item()
            raise ValueError(f"Feature {constant} of the conditions is the same for all networks, so it tells nothing. Leave it out.")
        quantiles = numbers.quantile(torch.linspace(0, 1, QUANTILES).double(), 0).T
        return cls(tuple(numbers.mean(0).tolist()), tuple(std.tolist()), tuple(tuple(one.tolist()) for one in quantiles))

    @property
    def features(self) -> int:
        """The length of an encoded condition, without the column that says that it is told."""
        return len(self.mean)

    @property
    def low(self) -> tuple[float, ...]:
        """The lowest number of each feature that the flow saw."""
        return tuple(one[0] for one in self.quantiles)

    @property
    def high(self) -> tuple[float, ...]:
        """The highest number of each feature that the flow saw."""
        return tuple(one[-1] for one in self.quantiles)

    def at(self, shares: Float[Tensor, " count"]) -> Float[Tensor, "count features"]:
        """Return the quantiles of each feature at these shares from 0 to 1, between the kept ones by straight lines.

        >>> Numbers.fit([torch.tensor([[1.0], [3.0]])]).at(torch.tensor([0.0, 0.5, 1.0]))
        tensor([[1.],
                [2.],
                [3.]])
        """
        places = (shares * (QUANTILES - 1)).clamp(0, QUANTILES - 1)
        lower = places.long().clamp_max(QUANTILES - 2)
        table = places.new_tensor(self.quantiles)
        return torch.lerp(table[:, lower], table[:, lower + 1], places - lower).T

    def encode(self, condition: float | Tensor, count: int) -> Float[Tensor, "count features_and_told"]:
        """Return the standardised conditions of `count` networks, and a last column of ones.

        `condition` is [features], the same for all of them, or [count, features]. One feature may be a number, or [count].

        Raises ValueError for other shapes and for NaN.
        """
        numbers = self.shaped(condition, count)
        encoded = (numbers - numbers.new_tensor(self.mean)) / numbers.new_tensor(self.std)
        return torch.cat([encoded, torch.ones_like(encoded[:, :1])], 1)

    def shaped(self, condition: float | Tensor, count: int) -> Float[Tensor, "count features"]:
        """Return the conditions as one row of numbers for each network."""
        numbers = torch.as_tensor(condition, dtype=torch.get_default_dtype())
        if self.features == 1 and numbers.ndim < 2:
            numbers = numbers.reshape(-1, 1)
        if numbers.ndim == 1:
            numbers = numbers[None]
        if numbers.ndim != 2 or numbers.shape[1] != self.features or len(numbers) not in (1, count) or not numbers.isfinite().all():
            found = list(torch.as_tensor(condition).shape)
            raise ValueError(f"A condition for {count} networks has {self.features} finite numbers for each or for all, not {found}.")
        return numbers.expand(count, -1)

    def outside(self, numbers: Float[Tensor, "count features"]) -> Bool[Tensor, " count"]:
        """Return which conditions lie outside the range of the networks that the flow saw."""
        return ((numbers < numbers.new_tensor(self.low)) | (numbers > numbers.new_tensor(self.high))).any(1)

    def range(self) -> str:
        """Return the range in words."""
        return ", ".join(f"{low:.4g} to {high:.4g}" for low, high in zip(self.low, self.high, strict=True))


@dataclass(frozen=True)
class Labels:
    """A label of every network, from 0 to `count` - 1.

    >>> Labels(2).encode(1, 3)  # the last column says that the condition is told
    tensor([[0., 1., 1.],
            [0., 1., 1.],
            [0., 1., 1.]])
    """

    count: int

    @classmethod
    def fit(cls, parts: Sequence[Int[Tensor, " _nets"]]) -> "Labels":
        """Describe the labels of all networks. Raises ValueError unless they are at least 2, all in use."""
        found = torch.cat(list(parts)).unique().tolist()
        if found != list(range(len(found))) or len(found) < 2:
            raise ValueError(f"Labels must be 0, 1 and so on, at least two, each of some network. These are {found}.")
        return cls(len(found))

    @property
    def features(self) -> int:
        """The length of an encoded condition, without the column that says that it is told."""
        return self.count

    def encode(self, condition: float | Tensor, count: int) -> Float[Tensor, "count features_and_told"]:
        """Return the labels of `count` networks, each as a row with a single 1, and a last column of ones.

        `condition` is one label for all of them, or [count]. Raises ValueError for an unknown label and another shape.
        """
        labels = self.shaped(condition, count)
        encoded = torch.cat([one_hot(labels, self.count), torch.ones_like(labels[:, None])], 1)
        return encoded.to(torch.get_default_dtype())

    def shaped(self, condition: float | Tensor, count: int) -> Int[Tensor, " count"]:
        """Return one label for each network."""
        labels = torch.as_tensor(condition)
        if labels.is_floating_point() or labels.ndim > 1 or labels.numel() not in (1, count):
            raise ValueError(
                f"A label for {count} networks is one whole number for each or for all, not {list(labels.shape)} of {labels.dtype}."
            )
        if not 0 <= int(labels.min()) <= int(labels.max()) < self.count:
            raise ValueError(f"The flow knows the labels 0 to {self.count - 1}, not {sorted({*labels.flatten().tolist()})}.")
        return labels.long().reshape(-1).expand(count)

    def outside(self, labels: Int[Tensor, " count"]) -> Bool[Tensor, " count"]:
        """Return False everywhere, because `shaped` refuses unknown labels."""
        return torch.zeros(len(labels), dtype=torch.bool)

    def range(self) -> str:
        """Return the known labels in words."""
        return f"0 to {self.count - 1}"


Conditions = Numbers | Labels
KINDS = {"numbers": Numbers, "labels": Labels}


def fit_conditions(parts: Sequence[Tensor], networks: Sequence[int]) -> Conditions:
    """Describe the conditions of some zoos: floating numbers [nets, features] or whole numbers, the labels [nets].

    Raises ValueError for another shape, or another number of networks than the zoo's.
    """
    parts = list(parts)
    if len(parts) != len(networks):
        raise ValueError(f"There are conditions for {len(parts)} zoos, and {len(networks)} zoos. Pass one tensor for each.")
    labels = not any(part.is_floating_point() for part in parts)
    for part, count in zip(parts, networks, strict=True):
        if part.is_floating_point() == labels or part.ndim != (1 if labels else 2) or len(part) != count:
            raise ValueError(
                f"Conditions of {count} networks are floating numbers [{count}, features] or whole labels [{count}], not "
                f"{list(part.shape)} of {part.dtype}."
            )
    return KINDS["labels" if labels else "numbers"].fit(parts)


def to_record(conditions: Conditions) -> dict:
    """Return conditions as plain values for a configuration."""
    kind = next(name for name, row in KINDS.items() if isinstance(conditions, row))
    return {"kind": kind, **asdict(conditions)}


def from_record(record: Mapping) -> Conditions:
    """Return the conditions that `to_record` wrote."""
    values = {name: _frozen(value) for name, value in record.items() if name != "kind"}
    return choose("kind of condition", record["kind"], KINDS)(**values)


def _frozen(value: object) -> object:
    return tuple(_frozen(one) for one in value) if isinstance(value, list | tuple) else value

"""Find the mean and the variance of rows that come one after the other."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass
class Tally:
    """The mean of rows so far, and the sum of their squared distances from it, in float64.

    Source: Chan, Golub and LeVeque, Updating formulae for computing sample variances, 1979.

    >>> import torch
    >>> tally = Tally()
    >>> for row in torch.tensor([[1.0], [2.0], [6.0]]):
    ...     tally.add(row[None])
    >>> tally.mean, tally.variance()
    (tensor([3.], dtype=torch.float64), tensor([7.], dtype=torch.float64))
    """

    count: int = 0
    mean: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, rows: Float[Tensor, "rows ..."]) -> None:
        rows = rows.double()
        new, mean = len(rows), rows.mean(0)
        apart, total = mean - self.mean, self.count + new
        self.squares = self.squares + (rows - mean).square_().sum(0) + apart.square() * (self.count * new / total)
        self.mean, self.count = self.mean + apart * (new / total), total

    def variance(self) -> Tensor:
        """Return the sample variance of the rows."""
        return self.squares / (self.count - 1)

"""Say what every kind of outputs can do, from the loss of training to the scores of an ensemble."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Column:
    """What tables and figures say of a score.

    `title` heads a column, `words` is the full name, and `unit` is what it is counted in. `log` asks for a logarithmic axis. `higher` is
    True if more is better. `best` is what a perfect network has, where networks come near it. Figures then show it.

    >>> Column("NLL", "negative log-likelihood", "nats", log=True).label
    'NLL (nats, log scale)'
    """

    title: str
    words: str
    unit: str = ""
    log: bool = False
    higher: bool = False
    best: float | None = None

    def worse(self, one: float, other: float) -> bool:
        """Return whether the first of two scores is worse.

        >>> Column("accuracy", "accuracy", higher=True).worse(0.8, 0.9)
        True
        """
        return one < other if self.higher else one > other

    @property
    def label(self) -> str:
        """The short label of an axis."""
        return self.title + self._behind

    @property
    def long_label(self) -> str:
        """The label of an axis in full."""
        return self.words + self._behind

    @property
    def _behind(self) -> str:
        said = ", ".join(filter(None, (self.unit, "log scale" if self.log else "")))
        return f" ({said})" if said else ""


@dataclass(frozen=True)
class Pool:
    """How the members of an ensemble are averaged, in three steps that allow members to come in chunks.

    `before` turns predictions [nets, examples, ...] into what can be added, with the targets y at hand. `add` adds it up over its first
    axis, and adds up such sums as well. `after` turns the sum over all `nets` members into the facts of the ensemble. Several ensembles may
    lie side by side, along axes between the members and the examples.
    """

    before: Callable[[Tensor, Tensor], Tensor]
    add: Callable[[Tensor], Tensor]
    after: Callable[[Tensor, int, Tensor], Tensor]


class Outputs(ABC):
    """A kind of outputs. It is a row of OUTPUTS.

    The *outputs* of a network are the numbers that it returns, [nets, examples, units]. A *prediction* is the distribution of the target
    that they stand for, as numbers of the same shape. The *facts* are what scores need to know of predictions and targets.

    - `columns` names the scores of a network, in the order of tables. They are the fields of what `scores` returns.
    - `main` names the two scores of figures and short tables: how often or how closely it is right, and the likelihood.
    - `pools` holds the ways to average an ensemble.
    - `apart` says what `disagreement` measures, as a column of a table.
    - `said` explains the columns and the pools in a report.
    """

    columns: ClassVar[Mapping[str, Column]]
    main: ClassVar[tuple[str, str]]
    pools: ClassVar[Mapping[str, Pool]]
    apart: ClassVar[Column]
    said: ClassVar[str]

    @abstractmethod
    def units(self, count: int) -> int:
        """Return how many output units a network needs for `count` classes or targets."""

    @abstractmethod
    def check(self, x: Shaped[Tensor, "..."], y: Shaped[Tensor, "..."]) -> None:
        """Raise ValueError if y holds no targets of this kind for the examples x."""

    @abstractmethod
    def check_fit(self, units: int, y: Shaped[Tensor, "..."]) -> None:
        """Raise ValueError if a network with so many output units cannot predict the targets y."""

    @abstractmethod
    def nll(self, outputs: Float[Tensor, "*nets examples units"], y: Shaped[Tensor, "..."]) -> Float[Tensor, "*nets examples"]:
        """Return the negative log-likelihood of each target in nats, with gradients. Targets may have the axes of the nets, or not.

        The mean over examples is the loss of training and of guidance.
        """

    @abstractmethod
    def prediction(self, outputs: Float[Tensor, "..."], axis: int = -1) -> Float[Tensor, "..."]:
        """Return the predictions of outputs, whose units lie on `axis`. They have as many numbers as a target needs."""

    @abstractmethod
    def facts(self, prediction: Float[Tensor, "*nets examples units"], y: Shaped[Tensor, "..."]) -> Float[Tensor, "*nets examples facts"]:
        """Return what `sums` needs of each example. Raises ValueError if the units do not fit the targets."""

    @abstractmethod
    def sums(self, facts: Float[Tensor, "*nets examples facts"], y: Shaped[Tensor, "..."]) -> Float[Tensor, "*nets sums"]:
        """Return sums over examples, from which `scores` makes scores. Sums over parts of the examples may be added."""

    @abstractmethod
    def scores(self, sums: Float[Tensor, "*nets sums"], y: Shaped[Tensor, "..."]) -> Any:
        """Return the scores of every network, from its sums over all examples, whose targets are y."""

    @abstractmethod
    def opinions(self, prediction: Float[Tensor, "nets examples units"]) -> Shaped[Tensor, "parts examples opinions"]:
        """Return what `disagreement` needs to know of some networks."""

    @abstractmethod
    def join(
        self, opinions: Shaped[Tensor, "parts examples opinions"], more: Shaped[Tensor, "more examples opinions"]
    ) -> Shaped[Tensor, "together examples opinions"]:
        """Return the opinions of two groups of networks together."""

    @abstractmethod
    def disagreement(self, opinions: Shaped[Tensor, "parts examples opinions"], nets: int) -> float:
        """Return how far two of the `nets` networks are apart in their predictions. It is NaN for one network."""

    @abstractmethod
    def order(self, y: Shaped[Tensor, "examples ..."]) -> Int[Tensor, " examples"]:
        """Return an order of the examples in which those with similar inputs may lie side by side."""

    @abstractmethod
    def strata(self, y: np.ndarray) -> np.ndarray | None:
        """Return the groups of which a random split of the examples takes equal shares, or None."""

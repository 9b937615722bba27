"""Measure what ensembles of growing size say of each example, how good that is, and how sure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from geoflow.choices import choose
from geoflow.evaluation.growing import GROUPS, SIZES, fitting_sizes, grouped
from geoflow.evaluation.predictions import PART, divided, predictors
from geoflow.evaluation.reliability import selective
from geoflow.examples import Examples, leading, rows
from geoflow.outputs import outputs_of
from geoflow.outputs.classes import ece
from geoflow.outputs.reading import Output
from geoflow.spec import NetworkSpec

ENTRIES = 2**22  # log-probabilities in work at once
CLASSES = outputs_of("classes")


@dataclass(frozen=True)
class Answers:
    """What ensembles of one size say of each example.

    With the members' probabilities p_k and the pooled probability p:

    - `predicted`: the most probable class.
    - `confidence`: its probability, max_c p_c.
    - `entropy`: -sum_c p_c log p_c, in nats. It is the whole uncertainty.
    - `information`: how far the members are from their pool, in nats. For the linear pool it is mean_k KL(p_k | p) = H(p) - mean_k H(p_k),
      which is the mutual information of label and member. For the log pool it is mean_k KL(p | p_k). Each pool is the p with the least such
      mean. It is 0 for one member, and where all members agree.

    Sources: Depeweg et al. 2018, Decomposition of uncertainty in Bayesian deep learning. Heskes 1998, Selecting weighting factors in
    logarithmic opinion pools.
    """

    predicted: Int[Tensor, "groups examples"]
    confidence: Float[Tensor, "groups examples"]
    entropy: Float[Tensor, "groups examples"]
    information: Float[Tensor, "groups examples"]


@dataclass(frozen=True)
class Graded:
    """Answers beside the labels: which are `correct`, and two losses of each.

    - `nll`: -log p_y, in nats.
    - `brier`: sum_c (p_c - [c = y])^2, in [0, 2]. Source: Brier 1950, Verification of forecasts expressed in terms of probability.
    """

    answers: Answers
    correct: Bool[Tensor, "groups examples"]
    nll: Float[Tensor, "groups examples"]
    brier: Float[Tensor, "groups examples"]


@torch.no_grad()
def answers(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "nets weights"],
    x: Examples,
    sizes: Sequence[int] = SIZES,
    pools: Sequence[str] = ("linear", "log"),
    groups: int = GROUPS,
    batch: int = 2 * 10**5,
    batch_size: int | None = None,
    output: Output = None,
) -> dict[str, dict[int, Answers]]:
    """Return for each pool, and each size of the ensembles, what they say of the inputs.

    Ensembles of one size share no network: the first takes the first networks, the second the next ones. There are at most `groups` of a
    size. Sizes beyond the number of networks are left out.

    All networks run once. A part of the examples is in work at a time, so memory grows with the results only. `x`, `batch`,
    `batch_size` and `output` are as in `evaluate`.

    Raises ValueError for an unknown pool, if no size fits, and as `evaluate` does.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> found = answers(network, spec, torch.zeros(4, 6), torch.eye(2))  # all classes are equally probable
    >>> list(found["linear"]), found["linear"][4].entropy
    ([1, 2, 4], tensor([[0.6931, 0.6931]]))
    """
    parts = _parts(network, spec, thetas, x, sizes, pools, groups, batch, batch_size, output)
    return _joined([{pool: {size: _answers(*one) for size, one in some.items()} for pool, some in part.items()} for part in parts])


@torch.no_grad()
def graded(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "nets weights"],
    x: Examples,
    y: Shaped[Tensor, " examples"],
    sizes: Sequence[int] = SIZES,
    pools: Sequence[str] = ("linear", "log"),
    groups: int = GROUPS,
    batch: int = 2 * 10**5,
    batch_size: int | None = None,
    output: Output = None,
) -> dict[str, dict[int, Graded]]:
    """Return what `answers` does, graded by the labels.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> graded(network, spec, torch.zeros(4, 6), torch.eye(2), torch.tensor([0, 1]))["log"][2].brier  # (1/2)^2 + (1/2)^2
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    CLASSES.check(leading(x), y)
    parts, first, found = _parts(network, spec, thetas, x, sizes, pools, groups, batch, batch_size, output), 0, []
    for part in parts:
        (some, _), *_ = next(iter(part.values())).values()
        labels = y[first : first + some.shape[1]]
        found.append({pool: {size: _graded(*one, labels) for size, one in of.items()} for pool, of in part.items()})
        first += len(labels)
    return _joined(found)


@torch.no_grad()
def grade(log_probs: Float[Tensor, "nets examples classes"], y: Shaped[Tensor, " examples"], pool: str = "linear") -> Graded:
    """Return the answers of the one ensemble of all members, whose log-probabilities are given, graded by the labels.

    Raises ValueError for an unknown pool, and for labels that are no classes.

    >>> grade(torch.tensor([[[.9, .1]], [[.5, .5]]]).log(), torch.tensor([0])).nll.exp()  # 1 / .7
    tensor([[1.4286]])
    """
    choose("pool", pool, CLASSES.pools)
    return _graded(*_pooled(log_probs.double().log_softmax(-1), len(log_probs), pool, 1), y)


def scores_of(found: Graded) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation over ensembles of accuracy, NLL, Brier score, ECE and `area`. One ensemble has deviation 0.

    `area` is the mean of the curve of `selective`.
    """
    confidence = found.answers.confidence
    columns = {
        "accuracy": found.correct.double().mean(1),
        "nll": found.nll.mean(1),
        "brier": found.brier.mean(1),
        "ece": ece(confidence, found.correct),
        "area": selective(confidence, found.correct).mean(1),
    }
    return {name: mean_and_spread(values) for name, values in columns.items()}


def mean_and_spread(values: Float[Tensor, " groups"]) -> dict[str, float]:
    """Return mean and standard deviation. One value has deviation 0.

    >>> mean_and_spread(torch.tensor([1.0, 3.0]))
    {'mean': 2.0, 'std': 1.4142135381698608}
    """
    return {"mean": values.mean().item(), "std": values.std().item() if len(values) > 1 else 0.0}


# pool: the information that its members hold, of the pooled log-probabilities [groups, examples, classes], the members' mean
# log-probabilities, and their mean entropy [groups, examples]
INFORMATION: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": lambda pooled, mean, entropy: _entropy(pooled) - entropy,
    "log": lambda pooled, mean, entropy: -mean.logsumexp(-1),  # KL(p | p_k) = sum_c p_c (log p_c - log p_kc), and log p is mean minus this
}


def _parts(
    network, spec, thetas, x, sizes, pools, groups, batch, batch_size, output
) -> Iterator[dict[str, dict[int, tuple[Tensor, Tensor]]]]:
    """Yield for each part of the examples, pool and size the pooled log-probabilities and the information."""
    for pool in pools:
        choose("pool", pool, CLASSES.pools)
    fitting = fitting_sizes(sizes, len(thetas))
    chunks = list(predictors(network, spec, thetas, x, batch, batch_size, CLASSES.prediction, output))
    for some in divided(x, batch_size or _at_once(chunks[0](rows(x, torch.tensor([0]))).shape[-1], len(thetas))):
        # normalised anew in double precision: in single precision, the information of sure members would be rounding
        log_probs = torch.cat([predict(some) for predict in chunks]).double().log_softmax(-1)
        yield {pool: {size: _pooled(log_probs, size, pool, groups) for size in fitting} for pool in pools}


def _at_once(classes: int, nets: int) -> int:
    """Return how many examples are in work at once."""
    return min(PART, max(1, ENTRIES // (nets * classes)))


def _pooled(log_probs: Float[Tensor, "nets examples classes"], size: int, pool: str, groups: int) -> tuple[Tensor, Tensor]:
    """Return the pooled log-probabilities [groups, examples, classes] and the information [groups, examples]."""
    members, average = grouped(log_probs, size, groups), CLASSES.pools[pool]
    nobody = log_probs.new_empty(0)  # pools of classes need no label
    pooled = average.after(average.add(average.before(members, nobody)), size, nobody)
    if size == 1:
        return pooled, torch.zeros_like(pooled[..., 0])
    return pooled, INFORMATION[pool](pooled, members.mean(0), _entropy(members).mean(0)).clamp_min(0)


def _entropy(log_probs: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch"]:
    return torch.special.entr(log_probs.exp()).sum(-1)


def _answers(log_probs: Float[Tensor, "groups examples classes"], information: Float[Tensor, "groups examples"]) -> Answers:
    best, predicted = log_probs.max(-1)  # the first of equal classes
    return Answers(predicted, best.exp().float(), _entropy(log_probs).float(), information.float())


def _graded(log_probs: Tensor, information: Tensor, y: Shaped[Tensor, " examples"]) -> Graded:
    CLASSES.check_fit(log_probs.shape[-1], y)
    y = y.long()
    found = _answers(log_probs, information)
    true = log_probs.gather(-1, y.expand(log_probs.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    brier = log_probs.mul(2).exp().sum(-1) - 2 * true.exp() + 1
    return Graded(found, found.predicted == y, -true.float(), brier.float())


def _joined(parts: list):
    """Join what was found for parts of the examples: mappings and dataclasses of tensors, of one form."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts, 1)
    if isinstance(first, Mapping):
        return {key: _joined([part[key] for part in parts]) for key in first}
    return type(first)(*(_joined([getattr(part, name) for part in parts]) for name in vars(first)))

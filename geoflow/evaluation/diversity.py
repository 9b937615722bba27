"""Measure how different networks are in their mistakes, their predictions and their weights, as the field reports it."""

from math import log

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from geoflow.canonical import balance
from geoflow.evaluation.predictions import divided, predicted, predictors
from geoflow.examples import Examples, leading, rows
from geoflow.outputs import outputs_of
from geoflow.spec import NetworkSpec
from geoflow.statistics import statistics_of
from geoflow.stored import Networks, Rows, picked

NETWORKS = 64  # most networks of a kind whose pairs are compared
EXAMPLES = 1000  # most examples that predictions are compared on
ENTRIES = 2**22  # probabilities in work at once
BATCH = 2 * 10**5

PAIRS = (("generated", "generated"), ("generated", "zoo"), ("zoo", "zoo"))
Pairs = Float[Tensor, "nets others"]


@torch.no_grad()
def pairwise(
    network: nn.Module,
    spec: NetworkSpec,
    generated: Float[Tensor, "generated weights"] | Rows,
    zoo: Float[Tensor, "trained weights"] | Rows,
    run_of: Int[Tensor, " trained"],
    x: Examples,
    y: Shaped[Tensor, "examples ..."],
    generator: torch.Generator,
    outputs: str = "classes",
) -> dict[str, dict[str, float | int | None]]:
    """Return how different two networks are: two generated ones, a generated and a trained one, and trained ones of two runs.

    - `iou`: the largest overlap of a network's mistakes with those of another one, max_j `overlap_of_mistakes`_ij, as a mean over i.
    - `against`: the number of others that the maximum is over. It grows with this number. Generated networks are compared with all
      trained ones, and a trained network with all of other runs.
    - `jensen_shannon`, `wasserstein`: means of `jensen_shannon` and `wasserstein` over all pairs.

    At most NETWORKS networks of each kind are compared, on at most EXAMPLES examples, both drawn by `generator`. All numbers are None if
    there is no other network. Mistakes and distances of predictions are those of classes, and None for other `outputs`. The distance of
    weights is None for networks in files, because it sorts all weights of many networks.

    Source: DeepWeightFlow, arXiv 2601.05052. The overlap of mistakes is that of Wang et al. 2024, Neural network
    diffusion, arXiv 2402.13144.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> zoo, x, y = torch.eye(6)[:3], torch.eye(2), torch.tensor([0, 1])
    >>> found = pairwise(network, spec, zoo, zoo, torch.arange(3), x, y, torch.Generator().manual_seed(0))  # a copy of each network
    >>> found["generated_zoo"]["iou"], found["generated_zoo"] == found["zoo_zoo"]
    (1.0, False)
    """
    outputs_of(outputs).check(leading(x), y)
    chosen = torch.randperm(len(y), generator=generator)[:EXAMPLES].to(y.device)
    x, y = rows(x, chosen), y[chosen]
    runs = {"generated": -1 - torch.arange(len(generated)), "zoo": run_of}  # a generated network is a run of its own
    whole = {"generated": generated, "zoo": zoo}
    some = {kind: torch.randperm(len(thetas), generator=generator)[:NETWORKS] for kind, thetas in whole.items()}
    weights = {kind: _learned(spec, whole[kind][some[kind]]) for kind in whole if not isinstance(whole[kind], Rows)}
    wrong, said = {}, {}
    if outputs == "classes":
        wrong = {kind: mistakes(network, spec, thetas, x, y) for kind, thetas in whole.items()}
        said = {kind: predicted(network, spec, picked(whole[kind], some[kind]), x) for kind in whole}
    found = {}
    for kind, other in PAIRS:
        apart = runs[kind][some[kind]][:, None] != runs[other]
        pairs = apart[:, some[other]]
        found[f"{kind}_{other}"] = {
            "iou": _largest(overlap_of_mistakes(wrong[kind][some[kind]], wrong[other]), apart) if wrong else None,
            "against": int(apart.sum(1).max()),
            "jensen_shannon": _mean(jensen_shannon(said[kind], said[other]), pairs) if said else None,
            "wasserstein": _mean(wasserstein(weights[kind], weights[other]), pairs) if len(weights) == len(whole) else None,
        }
    return found


@torch.no_grad()
def mistakes(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Networks,
    x: Examples,
    y: Shaped[Tensor, " examples"],
) -> Bool[Tensor, "nets examples"]:
    """Return which examples each network classifies wrongly. Raises ValueError as `evaluate` does."""
    chunks = predictors(network, spec, thetas, x, BATCH, None, outputs_of("classes").prediction)
    return torch.cat([torch.cat([predict(part).argmax(-1) for part in divided(x, None)], 1) != y for predict in chunks])


def overlap_of_mistakes(wrong: Bool[Tensor, "nets examples"], others: Bool[Tensor, "others examples"]) -> Pairs:
    """Return the intersection over union of the mistakes of two networks, |A ∩ B| / |A ∪ B|, for all pairs.

    It is 1 for a copy. It is 0 where no mistake is shared, also if neither network makes one.

    >>> overlap_of_mistakes(torch.tensor([[True, True, False]]), torch.tensor([[False, True, True], [False, False, False]]))
    tensor([[0.3333, 0.0000]])
    """
    a, b = wrong.float(), others.float()
    both = a @ b.T
    either = a.sum(1, keepdim=True) + b.sum(1) - both
    return both / either.clamp_min(1)


def jensen_shannon(log_probs: Float[Tensor, "nets examples classes"], others: Float[Tensor, "others examples classes"]) -> Pairs:
    """Return the mean over examples of the Jensen-Shannon distance of two networks' predictions, for all pairs.

    For probabilities p and q, with their mean m, it is sqrt((KL(p | m) + KL(q | m)) / 2) with logarithms to base 2. It is 0 for equal
    predictions, and 1 for predictions that exclude each other. Source: Endres and Schindelin 2003, A new metric for probability
    distributions.

    >>> jensen_shannon(torch.eye(2)[None].log(), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]).log())  # equal and opposite
    tensor([[0.5000]])
    """
    p, q = log_probs.double().exp(), others.double().exp()  # near 0 the distance is a root of a small difference
    own, of_others = _entropy(p), _entropy(q)
    at_once = max(1, ENTRIES // q.numel())
    found = []
    for some, entropy in zip(p.split(at_once), own.split(at_once), strict=True):
        divergence = _entropy((some[:, None] + q) / 2) - (entropy[:, None] + of_others) / 2
        found.append((divergence / log(2)).clamp(0, 1).sqrt().mean(-1))
    return torch.cat(found).to(log_probs.dtype)


def wasserstein(thetas: Float[Tensor, "nets weights"], others: Float[Tensor, "others weights"]) -> Pairs:
    """Return the 1-Wasserstein distance of the weights of two networks, taken as two bags of numbers, for all pairs.

    It is the mean of |a_(k) - b_(k)| over the sorted weights. So the order of units does not change it. It is small for all networks that
    are trained alike, and says little about single weights. Source: Villani 2009, Optimal transport, section 6.

    >>> wasserstein(torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 2.0]]))
    tensor([[2.]])
    """
    return torch.cdist(thetas.sort(1).values, others.sort(1).values, p=1) / thetas.shape[1]


def _learned(spec: NetworkSpec, thetas: Float[Tensor, "nets weights"]) -> Float[Tensor, "nets learned"]:
    """Return the balanced weights without running statistics, because two scales of one network are no difference."""
    learned = torch.ones(spec.weights, dtype=torch.bool).index_fill(0, statistics_of(spec), False)
    return balance(spec, thetas)[:, learned.to(thetas.device)]


def _entropy(p: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch"]:
    return torch.special.entr(p).sum(-1)


def _largest(values: Pairs, pairs: Bool[Tensor, "nets others"]) -> float | None:
    """Return the mean over networks of the largest value of each, over some of the pairs."""
    largest = values.masked_fill(~pairs.to(values.device), -1).amax(1)
    return largest[largest >= 0].mean().item() if pairs.any() else None


def _mean(values: Pairs, pairs: Bool[Tensor, "nets others"]) -> float | None:
    """Return the mean over some of the pairs."""
    return values[pairs.to(values.device)].mean().item() if pairs.any() else None

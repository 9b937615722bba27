"""Train, score and align networks the usual way, one at a time, for comparison only."""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from geoflow.evaluation.metrics import Scores, scores
from geoflow.linear import stretches, vectors
from geoflow.spec import NetworkSpec
from geoflow.symmetry import Symmetry, apply_symmetry
from geoflow.zoo.tasks import Task


def train_one_by_one(networks: list[nn.Module], task: Task, batch: int, lr: float, weight_decay: float, loader: bool) -> None:
    """Train each network by AdamW for one epoch. Batches come from torch's DataLoader, or are shuffled slices of the data."""
    for network in networks:
        optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay)
        data = TensorDataset(task.x_train, task.y_train)
        slices = (data[rows] for rows in torch.randperm(len(data))[: len(data) // batch * batch].split(batch))
        for x, y in DataLoader(data, batch_size=batch, shuffle=True, drop_last=True) if loader else slices:
            optimizer.zero_grad()
            cross_entropy(network(x), y).backward()
            optimizer.step()


@torch.no_grad()
def evaluate_one_by_one(
    network: nn.Module, states: list[dict[str, Tensor]], x: Float[Tensor, "examples features"], y: Int[Tensor, " examples"]
) -> list[Scores]:
    """Load each state dict, run it, and return its scores."""
    found = []
    for state in states:
        network.load_state_dict(state)
        found.append(scores(network(x).log_softmax(1), y))
    return found


def align_one_by_one(
    networks: list[list[np.ndarray]], reference: list[np.ndarray], sweeps: int = 50
) -> tuple[list[list[np.ndarray]], Float[np.ndarray, " nets"]]:
    """Align each MLP to the reference by Git Re-Basin's weight matching. Return the networks, and their inner products with the reference.

    A network is a list of weight and bias of each layer. The method is coordinate descent over the hidden layers in random order, until a
    sweep changes nothing.
    """
    random = np.random.default_rng(0)
    aligned = [_align(network, reference, random, sweeps) for network in networks]
    return aligned, np.array([sum((a * b).sum() for a, b in zip(network, reference, strict=True)) for network in aligned])


def _align(network: list[np.ndarray], reference: list[np.ndarray], random: np.random.Generator, sweeps: int) -> list[np.ndarray]:
    network, hidden = list(network), len(network) // 2 - 1
    for _ in range(sweeps):
        changed = False
        for layer in random.permutation(hidden):
            weight, bias, after = network[2 * layer], network[2 * layer + 1], network[2 * layer + 2]
            goal_weight, goal_bias, goal_after = reference[2 * layer : 2 * layer + 3]
            gains = goal_weight @ weight.T + np.outer(goal_bias, bias) + goal_after.T @ after
            order = linear_sum_assignment(gains, maximize=True)[1]
            if gains[np.arange(len(order)), order].sum() > np.trace(gains) + 1e-12 * np.abs(gains).max():
                network[2 * layer], network[2 * layer + 1], network[2 * layer + 2] = weight[order], bias[order], after[:, order]
                changed = True
        if not changed:
            break
    return network


def heads_by_spectra(
    spec: NetworkSpec, theta: Float[Tensor, " weights"], reference: Float[Tensor, " weights"]
) -> Float[Tensor, " weights"]:
    """Match heads by the distance of the singular values of their queries, keys and values, and then the units inside matched heads.

    One order serves all units of a head: those of its queries, keys and values. Everything else stays as it is.
    Source: Rinaldi et al., Update your transformer to the latest release (TransFusion), 2025.
    """
    homes = {site.linear: site.permutation for site in spec.sites if site.linear is not None}
    permutations, maps = {}, {}
    for home in dict.fromkeys(homes.values()):
        groups = [group for group, own in homes.items() if own == home]
        mine, goal = ([vectors(spec, one[None], s)[0] for s in stretches(spec) if s.group in groups] for one in (theta, reference))
        makes = [len(spec.tensors[s.tensor].shape) == 2 and s.axis == 0 for s in stretches(spec) if s.group in groups]
        spectra = [torch.cat([torch.linalg.svdvals(x) for x, made in zip(xs, makes, strict=True) if made], -1) for xs in (goal, mine)]
        order = torch.from_numpy(linear_sum_assignment(torch.cdist(*spectra).numpy())[1])
        gains = sum(y @ x[order].mT for x, y in zip(mine, goal, strict=True))  # [heads, new unit, old unit]
        matrices = torch.zeros_like(gains)
        for head, gain in enumerate(gains):
            matrices[order[head], torch.arange(len(gain)), torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])] = 1
        permutations[home] = order
        maps |= dict.fromkeys(groups, matrices)
    return apply_symmetry(spec, theta, Symmetry(permutations, linear=maps))

"""Ask a flow that was told the NLL of its zoo for networks of several levels, and measure what it reaches."""

from collections.abc import Mapping

import torch
from scipy.stats import spearmanr
from torch import nn

from geoflow.evaluation.exam import Exam
from geoflow.evaluation.metrics import summary
from geoflow.flow import Flow
from geoflow.spec import NetworkSpec
from geoflow.zoo.tasks import Task
from lab.conditions import training_nll
from lab.draw import generate

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # the levels lie at these shares of the zoo, from its best networks to its worst
LEAST = 8  # networks of a level


def levels(flow: Flow, network: nn.Module, spec: NetworkSpec, task: Task, config: Mapping, device: str) -> dict:
    """Return what metrics.json says of networks that were asked for five levels of the NLL on training data.

    `rank_correlation` is Spearman's, between the levels asked for and the NLL that each network reaches on training data.
    """
    exam, rows, asked, reached = Exam(network, spec, task, device), [], [], []
    count = max(LEAST, config["count"] // len(SHARES))
    for level in flow.conditions.at(torch.tensor(SHARES)).exp().flatten().tolist():
        thetas, _ = generate(flow, network, spec, task, {**config, "count": count, "ask": level, "polish": 0})
        found = training_nll(network, spec, task, thetas, device).double()
        spread = {"mean": found.mean().item(), "std": found.std().item()}
        rows.append({"asked": level, "reached": spread, "test": summary(exam.single(thetas))})
        asked += [level] * count
        reached += found.tolist()
    strength = config["condition_strength"]
    return {"levels": rows, "networks": count, "strength": strength, "rank_correlation": float(spearmanr(asked, reached).statistic)}

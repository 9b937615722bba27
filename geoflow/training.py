"""Train a flow on a zoo of networks."""

import math
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from geoflow.canonical import canonicalize, unaligned
from geoflow.chart import FLOWS
from geoflow.charting import fit_charts
from geoflow.checkpoint import Progress
from geoflow.choices import choose
from geoflow.choosing import AUTO, SEVERAL, check_serves, velocity_for
from geoflow.conditions import DROPOUT, fit_conditions, to_record
from geoflow.couplings import COUPLINGS
from geoflow.flow import Flow, Member, build_flow
from geoflow.frame import UNTURNED, Examples, metric_frame
from geoflow.graph import graph_of
from geoflow.several import check_copies, listed, zoos_of
from geoflow.sources import noise
from geoflow.spec import NetworkSpec
from geoflow.targets import PREDICTIONS, WEIGHTINGS
from geoflow.velocity import VELOCITIES, complete_sizes

# name: quantile function of the distribution of t in [0, 1]
TIMES = {
    "uniform": lambda share: share,
    # Beta(1, 2) has more early times; this inverts its distribution function 1 - (1 - t)^2
    "beta": lambda share: 1 - (1 - share).sqrt(),
}


# arguments of `fit` that name a row of a table
CHOICES: dict[str, Mapping] = {
    "flow": FLOWS,
    "velocity": VELOCITIES | {AUTO: None},
    "coupling": COUPLINGS,
    "time": TIMES,
    "prediction": PREDICTIONS,
    "weighting": WEIGHTINGS,
}
WARMUP = 100  # iterations in which the learning rate rises


def fit(
    spec: NetworkSpec | Sequence[NetworkSpec],
    thetas: Float[Tensor, "_nets _weights"] | Sequence[Float[Tensor, "_nets _weights"]],
    inputs: Examples | Mapping[str, Examples] | None = None,
    *,
    flow: str = "geometric",
    align: bool = True,
    velocity: str = AUTO,
    coupling: str = "independent",
    time: str = "uniform",
    prediction: str = "preconditioned",
    weighting: str = "balanced",
    sizes: Mapping | None = None,
    iterations: int = 1000,
    batch: int = 32,
    lr: float = 4e-3,
    weight_decay: float = 1e-3,
    ema: float = 0.999,
    conditions: Tensor | Sequence[Tensor] | None = None,
    condition_dropout: float = DROPOUT,
    seed: int = 0,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
    every: int = 250,
    progress: bool = True,
) -> Flow:
    """Train a flow on a zoo, which is a set of trained networks of one architecture, or on several zoos at once.

    `thetas` holds one weight vector in each row, as `geoflow.pack` makes them. `fit` brings the networks to canonical form and chooses
    coordinates for them. Then it trains a field, which is a neural network that predicts a velocity v(x, t). The loss is that of
    conditional flow matching:

        E |v(x_t, t) - dx_t|^2

    Here x_t is a point on the path from noise to a network, and dx_t is the path's velocity. Muon trains the matrices of hidden layers, and
    AdamW all other parameters. The learning rate decays by a cosine. The flow keeps the exponential moving average of the field's weights.
    The field and its samples have torch's default precision, whatever the zoo has. Sources: Lipman et al. 2023; on manifolds Chen and
    Lipman 2024.

    - `inputs` are examples of what the networks read, [examples, ...], or several such tensors by the inputs' names. With them, the length
      of a row of weights is the size of what it computes from the inputs (see `metric_frame`). Networks that compute nearly the same are
      then near each other.
    - With several architectures, `spec` and `thetas` are sequences: one table for each zoo. One field then learns from all of them. Every
      batch is of one architecture, and each network comes equally often. The networks must have the same inputs and outputs, and only
      `velocity="transformer"` serves several. See `Flow.of`.
    - `flow`, `velocity`, `coupling`, `time`, `prediction` and `weighting` name rows of `FLOWS`, `VELOCITIES`, `COUPLINGS`, `TIMES`,
      `PREDICTIONS` and `WEIGHTINGS`. With `velocity="auto"`, `velocity_for` chooses the field that suits the zoo. `sizes` are the sizes of
      the field.
    - `align=False` leaves the units of every network in the order, and with the signs, in which they came. Without free signs and with
      independent pairs this changes nothing for the transformer, because it cannot tell one order from another.
    - `conditions` are what the flow is told of every network: numbers [nets, features], or labels [nets] from 0 on. Several zoos have one
      such tensor each. `sample` can then ask for a condition. The field is told nothing of a share `condition_dropout` of the networks in
      a batch, so it also learns to draw without a condition.
    - `iterations` is the number of training steps, and `batch` the number of networks in each. `lr` is the learning rate before decay, and
      `ema` the share that the moving average keeps of itself in a step. `seed` determines all random numbers.
    - `checkpoint` is a path. The state of the training is written there every `every` iterations, and training continues from it. On the
      CPU the result has the same bits as that of an uninterrupted training.

    Warns if networks are copies of others. Raises ValueError for an unknown name, for fewer than 2 different networks, for fewer than
    `batch`, and for networks with NaN. On spheres it also
    refuses dead units, whose incoming weights are all zero. A checkpoint of another configuration is refused too. Several zoos may not be
    of one architecture, nor have different inputs or outputs. Raises FloatingPointError if the loss is not finite.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> thetas = torch.randn(40, spec.weights, generator=torch.Generator().manual_seed(0))
    >>> geoflow.fit(spec, thetas, flow="euclidean", iterations=2, batch=8, progress=False).losses[0] > 0
    True
    """
    config = {"flow": flow, "align": align, "velocity": velocity, "coupling": coupling, "time": time, "prediction": prediction}
    config |= {"weighting": weighting, "sizes": dict(sizes or {}), "iterations": iterations, "batch": batch}
    config |= {"lr": lr, "weight_decay": weight_decay, "ema": ema, "seed": seed}
    config |= {} if conditions is None else {"condition_dropout": condition_dropout}
    with torch.inference_mode(False), torch.enable_grad():  # whatever mode the caller is in
        untrained, points = prepare(spec, thetas, config, inputs, conditions)
        if velocity == AUTO and progress:
            tqdm.write(untrained.config["reason"])
        return train(untrained.to(device), points, checkpoint, every, progress, conditions)


def prepare(
    spec: NetworkSpec | Sequence[NetworkSpec],
    thetas: Tensor | Sequence[Tensor],
    config: Mapping,
    inputs: Examples | Mapping[str, Examples] | None = None,
    conditions: Tensor | Sequence[Tensor] | None = None,
) -> tuple[Flow, Tensor | list[Tensor]]:
    """Return the untrained flow of a configuration, and the zoo as points [nets, size] of the flow's manifold.

    `config` holds the named arguments of `fit`. Several zoos are a list of points, in their order.
    """
    check_config(config)
    zoos = zoos_of(spec, thetas, config["batch"])
    for zoo in zoos:
        check_copies(zoo.thetas)
    several = inputs if isinstance(inputs, Mapping) else {"": inputs}
    if inputs is not None and (wrong := [part for part in several.values() if not isinstance(part, Tensor)]):
        raise ValueError(f"inputs must be a tensor [examples, ...] of what the networks read, not {type(wrong[0]).__name__}.")
    if config["velocity"] == AUTO:
        velocity, reason = SEVERAL if len(zoos) > 1 else velocity_for(zoos[0].spec, zoos[0].thetas, config["coupling"])
        config = dict(config) | {"velocity": velocity, "reason": reason}
        check_config(config)
    check_serves(config["velocity"], len(zoos))
    config = dict(config) | {"sizes": complete_sizes(config["velocity"], config["sizes"])}  # kept, because defaults may change
    recipe = FLOWS[config["flow"]]
    config |= {"zoo": fingerprint_of_zoos([zoo.thetas for zoo in zoos]), "inputs": None if inputs is None else _fingerprints(inputs)}
    if conditions is not None:
        parts = listed(conditions)
        described = fit_conditions(parts, [len(zoo.thetas) for zoo in zoos])
        config |= {"conditions": to_record(described), "told": [fingerprint(part) for part in parts]}
    base = UNTURNED if inputs is None else metric_frame(graph_of(zoos[0].spec), inputs)
    canonical = [canonicalize(zoo.spec, zoo.thetas, balance=recipe.balance, frame=base) for zoo in zoos]
    charts = fit_charts([zoo.spec for zoo in zoos], recipe, [one.theta for one in canonical], base)
    as_they_came = () if config["align"] else (unaligned(zoo.spec, zoo.thetas, recipe.balance, base) for zoo in zoos)
    seen = list(as_they_came) or [one.theta for one in canonical]
    points = [chart.point(one) for chart, one in zip(charts, seen, strict=True)]
    if VELOCITIES[config["velocity"]].knows_units:
        charts = [chart.knowing_units(one) for chart, one in zip(charts, points, strict=True)]
    first, *others = (Member(chart, one.reference) for chart, one in zip(charts, canonical, strict=True))
    flow = build_flow(first.chart, first.reference, config, others)
    points = [one.to(next(flow.field.parameters())) for one in points]
    return flow, points[0] if isinstance(spec, NetworkSpec) else points


def train(
    flow: Flow,
    points: Tensor | Sequence[Tensor],
    checkpoint: str | Path | None = None,
    every: int = 250,
    progress: bool = True,
    conditions: Tensor | Sequence[Tensor] | None = None,
) -> Flow:
    """Train a prepared flow on the points [nets, size] of its zoo, or of each of its zoos. Return the flow with averaged weights.

    The settings come from `flow.config`. `conditions` are those of `prepare`.
    """
    config, device = flow.config, next(flow.field.parameters()).device
    points = [one.to(device) for one in listed(points)]
    told = [] if conditions is None else [flow.conditions.encode(one, len(one)).to(points[0]) for one in listed(conditions)]
    run, iterations = Progress(flow), config["iterations"]
    if checkpoint is not None:
        run.resume(checkpoint)
    bar = tqdm(range(run.iteration, iterations), initial=run.iteration, total=iterations, desc="flow", unit="step", disable=not progress)
    for iteration in bar:
        loss = train_step(run, points, _learning_rate(config["lr"], iteration, iterations), told)
        if iteration % 10 == 0:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if checkpoint is not None and (run.iteration % every == 0 or run.iteration == iterations):
            run.save(checkpoint)
    return run.averaged()


def train_step(
    run: Progress, zoos: Sequence[Float[Tensor, "_nets _size"]], lr: float, told: Sequence[Float[Tensor, "_nets features"]] = ()
) -> float:
    """Do one step of flow matching on a random batch of one of the zoos, and return its loss.

    `told` holds the encoded conditions of each zoo, if there are any.
    """
    config, which = run.flow.config, next_zoo([len(points) for points in zoos], run.generator)
    chart, points = run.flow.charts[which], zoos[which]
    some = torch.randperm(len(points), generator=run.generator)[: config["batch"]].to(points.device)
    x_1 = points[some]
    x_0 = noise(chart, len(x_1), run.generator, points.device).to(x_1)
    x_0 = COUPLINGS[config["coupling"]](chart.spec, chart.manifold, x_0, x_1)
    t = times(config["time"], len(x_1), run.generator).to(x_1)
    if not told:
        return run.step(x_0, x_1, t, lr, which)
    kept = torch.rand(len(x_1), 1, generator=run.generator) >= config["condition_dropout"]
    return run.step(x_0, x_1, t, lr, which, told[which][some] * kept.to(x_1))


def next_zoo(networks: Sequence[int], generator: torch.Generator) -> int:
    """Choose the zoo of the next batch with a probability in proportion to its number of networks, so that each comes equally often.

    >>> next_zoo([40], torch.Generator())
    0
    """
    return 0 if len(networks) == 1 else int(torch.multinomial(torch.tensor(networks, dtype=torch.double), 1, generator=generator))


def times(name: str, count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Sample `count` times in [0, 1], one from each of `count` equally probable parts of the distribution.

    So no batch has early times only, or late times only.
    """
    return TIMES[name]((torch.arange(count) + torch.rand(count, generator=generator)) / count)


def _learning_rate(lr: float, iteration: int, iterations: int) -> float:
    return lr * min(1, (iteration + 1) / WARMUP) * (1 + math.cos(math.pi * iteration / iterations)) / 2


def check_config(config: Mapping) -> None:
    """Raise ValueError if the named arguments of `fit` hold an unknown name or contradict each other."""
    for option, table in CHOICES.items():
        choose(option, config[option], table)
    if config["velocity"] != AUTO:
        complete_sizes(config["velocity"], config["sizes"])
    if not isinstance(config["align"], bool):
        raise ValueError(f"align={config['align']} must be True or False.")
    for option in ("iterations", "batch"):
        if config[option] < 1:
            raise ValueError(f"{option}={config[option]} must be at least 1.")
    if not (config["lr"] > 0 and config["weight_decay"] >= 0 and 0 <= config["ema"] < 1):
        numbers = {name: config[name] for name in ("lr", "weight_decay", "ema")}
        raise ValueError(f"{numbers}: lr must be above 0, weight_decay at least 0, ema from 0 to below 1.")
    if not 0 <= config.get("condition_dropout", DROPOUT) < 1:
        raise ValueError(f"condition_dropout={config['condition_dropout']} must be a share from 0 to below 1.")
    if config["coupling"] == "equivariant_ot" and config["velocity"] != AUTO and VELOCITIES[config["velocity"]].knows_units:
        raise ValueError(
            f"coupling=equivariant_ot reorders the units of the noise, and velocity={config['velocity']} tells units by their place. "
            "Choose velocity=transformer, or coupling=independent or ot."
        )


def fingerprint(tensor: Tensor) -> str:
    """Return the sha256 of the tensor's numbers."""
    return sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def fingerprint_of_zoos(zoos: Sequence[Float[Tensor, "_nets _weights"]]) -> str | list[str]:
    """Return what a flow records of its zoos: the fingerprint of a single one, or a list of those of several."""
    prints = [fingerprint(zoo) for zoo in zoos]
    return prints if len(prints) > 1 else prints[0]


def _fingerprints(inputs: Tensor | Mapping[str, Tensor]) -> str | dict[str, str]:
    return {name: fingerprint(part) for name, part in inputs.items()} if isinstance(inputs, Mapping) else fingerprint(inputs)

"""Train a flow on a zoo of networks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from geoflow.batches import drawn, moved_aside, next_zoo, pools_of, times
from geoflow.canonical import canonicalize, unaligned
from geoflow.charting import fit_charts
from geoflow.checkpoint import Progress
from geoflow.choosing import AUTO, IN_COMPONENTS, SEVERAL, check_serves, velocity_for
from geoflow.conditions import DROPOUT, fit_conditions, to_record
from geoflow.coordinates import FLOWS
from geoflow.couplings import COUPLINGS
from geoflow.fingerprints import fingerprint, fingerprint_of_zoos
from geoflow.flow import PLAIN, Flow, Member, build_flow
from geoflow.frame import UNTURNED, Examples, metric_frame
from geoflow.graph import graph_of
from geoflow.latent import LATENTS, NONE
from geoflow.latent.large import coordinates_in_file
from geoflow.latent.pca import check_components
from geoflow.settings import check_config, check_memory
from geoflow.several import OneZoo, check_copies, listed, zoos_of
from geoflow.sources import noise
from geoflow.spec import NetworkSpec
from geoflow.stored import Rows, Stored
from geoflow.velocity import NOTHING, VELOCITIES, complete_sizes

WARMUP = 100  # iterations in which the learning rate rises


def fit(
    spec: NetworkSpec | Sequence[NetworkSpec],
    thetas: Float[Tensor, "_nets _weights"] | Stored | Sequence[Float[Tensor, "_nets _weights"]],
    inputs: Examples | Mapping[str, Examples] | None = None,
    *,
    flow: str = "geometric",
    align: bool = True,
    velocity: str = AUTO,
    coupling: str = "independent",
    time: str = "uniform",
    prediction: str = "preconditioned",
    weighting: str = "balanced",
    latent: str = NONE,
    components: float | None = None,
    spread: float = 1.0,
    pool: int | None = None,
    jitter: float = 0.0,
    dropout: float = 0.0,
    optimizer: str = "muon",
    recompute: str = NOTHING,
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

    Here x_t is a point on the path from noise to a network, and dx_t is the path's velocity. The learning rate decays by a cosine. The flow
    keeps the exponential moving average of the field's weights. The field and its samples have torch's default precision, whatever the zoo
    has. Sources: Lipman et al. 2023; on manifolds Chen and Lipman 2024.

    - `inputs` are examples of what the networks read, [examples, ...], or several such tensors by the inputs' names. With them, the length
      of a row of weights is the size of what it computes from the inputs (see `metric_frame`). Networks that compute nearly the same are
      then near each other.
    - With several architectures, `spec` and `thetas` are sequences: one table for each zoo. One field then learns from all of them. Every
      batch is of one architecture, and each network comes equally often. The networks must have the same inputs and outputs, and only
      `velocity="transformer"` serves several. See `Flow.of`.
    - `flow`, `velocity`, `coupling`, `time`, `prediction` and `weighting` name rows of `FLOWS`, `VELOCITIES`, `COUPLINGS`, `TIMES`,
      `PREDICTIONS` and `WEIGHTINGS`. With `velocity="auto"`, `velocity_for` chooses the field that suits the zoo. `sizes` are the sizes of
      the field.
    - `latent="pca"` lets the flow work in the principal components of the zoo (see `Components`), and only `velocity="mlp"` serves there.
      `components` is their number, at most one fewer than there are networks. A share below 1, such as .99, takes as many as have this
      share of the variance. By default all are taken. With `latent="pca"` a zoo may lie in a file, as `open_zoo(path).thetas`. Only a few
      networks are then in memory at once. Two files are written beside that of the zoo, each as large as it, and the second of them
      belongs to the flow. After an interruption the same call goes on.
    - `spread` is the standard deviation of the noise in flat coordinates, where those of a zoo have 1.
    - `pool` is a number of noise samples that are drawn once and used in all steps. By default every step draws new ones.
    - `jitter` is the standard deviation of a random vector, in the same units, by which each path of a step is moved aside.
    - `dropout` is the share of hidden units of the field that are dropped in each training step. Only `velocity="mlp"` has it.
    - `optimizer="muon"` trains the matrices of hidden layers by Muon, and all other parameters by AdamW. With "adamw" AdamW trains all.
    - `recompute="layers"` computes each layer of a transformer a second time for its gradient. A step then takes less memory and
      more time, and the flow is the same.
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
    `batch`, and for networks with NaN. A field whose parameters do not fit into memory is refused before it is made. On spheres it also
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
    config |= {"latent": latent, "components": components, "spread": spread, "pool": pool, "jitter": jitter, "dropout": dropout}
    config |= {"optimizer": optimizer, "recompute": recompute, "lr": lr, "weight_decay": weight_decay, "ema": ema, "seed": seed}
    config |= {} if conditions is None else {"condition_dropout": condition_dropout}
    with torch.inference_mode(False), torch.enable_grad():  # whatever mode the caller is in
        untrained, points = prepare(spec, thetas, config, inputs, conditions, progress, device)
        if velocity == AUTO and progress:
            tqdm.write(untrained.config["reason"])
        return train(untrained.to(device), points, checkpoint, every, progress, conditions)


def prepare(
    spec: NetworkSpec | Sequence[NetworkSpec],
    thetas: Tensor | Stored | Sequence[Tensor],
    config: Mapping,
    inputs: Examples | Mapping[str, Examples] | None = None,
    conditions: Tensor | Sequence[Tensor] | None = None,
    progress: bool = False,
    device: str | torch.device = "cpu",
) -> tuple[Flow, Tensor | list[Tensor]]:
    """Return the untrained flow of a configuration, and the zoo as points [nets, size] of the flow's manifold.

    `config` holds the named arguments of `fit`. Several zoos are a list of points, in their order. The flow is made on the CPU, and its
    training must fit on `device`.
    """
    config = PLAIN | dict(config)
    check_config(config)
    zoos = zoos_of(spec, thetas, config["batch"])
    check_sizes(config, zoos)
    for zoo in zoos:
        check_copies(zoo.thetas)
    several = inputs if isinstance(inputs, Mapping) else {"": inputs}
    if inputs is not None and (wrong := [part for part in several.values() if not isinstance(part, Tensor)]):
        raise ValueError(f"inputs must be a tensor [examples, ...] of what the networks read, not {type(wrong[0]).__name__}.")
    if config["velocity"] == AUTO:
        velocity, reason = auto_velocity(config, zoos)
        config = dict(config) | {"velocity": velocity, "reason": reason}
        check_config(config)
    check_serves(config["velocity"], len(zoos))
    if config["latent"] == NONE:  # components are never more than networks
        check_memory(config, [graph_of(zoo.spec) for zoo in zoos], device)
    config = dict(config) | {"sizes": complete_sizes(config["velocity"], config["sizes"])}  # kept, because defaults may change
    recipe = FLOWS[config["flow"]]
    config |= {"zoo": fingerprint_of_zoos([zoo.thetas for zoo in zoos]), "inputs": None if inputs is None else _fingerprints(inputs)}
    if conditions is not None:
        parts = listed(conditions)
        described = fit_conditions(parts, [len(zoo.thetas) for zoo in zoos])
        config |= {"conditions": to_record(described), "told": [fingerprint(part) for part in parts]}
    base = UNTURNED if inputs is None else metric_frame(graph_of(zoos[0].spec), inputs)
    if isinstance(thetas, Stored):
        chart, points, reference = coordinates_in_file(spec, thetas, recipe, config["align"], config["components"], base, progress)
        flow = build_flow(replace(chart, spread=config["spread"]), reference.float(), config)
        return flow, points.to(next(flow.field.parameters()))
    canonical = [canonicalize(zoo.spec, zoo.thetas, balance=recipe.balance, frame=base) for zoo in zoos]
    charts = fit_charts([zoo.spec for zoo in zoos], recipe, [one.theta for one in canonical], base)
    as_they_came = () if config["align"] else (unaligned(zoo.spec, zoo.thetas, recipe.balance, base) for zoo in zoos)
    seen = list(as_they_came) or [one.theta for one in canonical]
    points = [chart.point(one) for chart, one in zip(charts, seen, strict=True)]
    charts, points = LATENTS[config["latent"]].fit(charts, points, config["components"])
    charts = [replace(chart, spread=config["spread"]) for chart in charts]
    if VELOCITIES[config["velocity"]].knows_units:
        charts = [chart.knowing_units(one) for chart, one in zip(charts, points, strict=True)]
    first, *others = (Member(chart, one.reference) for chart, one in zip(charts, canonical, strict=True))
    flow = build_flow(first.chart, first.reference, config, others)
    points = [one.to(next(flow.field.parameters())) for one in points]
    return flow, points[0] if isinstance(spec, NetworkSpec) else points


def check_sizes(config: Mapping, zoos: Sequence[OneZoo]) -> None:
    """Raise ValueError for more components than a zoo has, and for a zoo in a file without components."""
    for zoo in zoos:
        if isinstance(zoo.thetas, Rows) and zoo.thetas.shape[1] != zoo.spec.weights:
            raise ValueError(f"The zoo has vectors of {zoo.thetas.shape[1]} weights, the spec {zoo.spec.weights}. Trace its network.")
        if isinstance(zoo.thetas, Rows) and config["latent"] == NONE:
            raise ValueError(
                "A zoo in a file needs latent=pca: other flows read all its weights in each step. If the zoo fits into memory, pass "
                "thetas[:]."
            )
        check_components(config["components"], len(zoo.thetas))


def auto_velocity(config: Mapping, zoos: Sequence[OneZoo]) -> tuple[str, str]:
    """Return the field that velocity=auto stands for, and the reason."""
    if config["latent"] != NONE:
        return IN_COMPONENTS
    return SEVERAL if len(zoos) > 1 else velocity_for(zoos[0].spec, zoos[0].thetas, config["coupling"])


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
    run = Progress(flow, "" if checkpoint is None else fingerprint_of_zoos(points))
    iterations, pools = config["iterations"], pools_of(flow, device)
    if checkpoint is not None:
        run.resume(checkpoint)
    bar = tqdm(range(run.iteration, iterations), initial=run.iteration, total=iterations, desc="flow", unit="step", disable=not progress)
    for iteration in bar:
        loss = train_step(run, points, _learning_rate(config["lr"], iteration, iterations), told, pools)
        if iteration % 10 == 0:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if checkpoint is not None and (run.iteration % every == 0 or run.iteration == iterations):
            run.save(checkpoint)
    return run.averaged()


def train_step(
    run: Progress,
    zoos: Sequence[Float[Tensor, "_nets _size"]],
    lr: float,
    told: Sequence[Float[Tensor, "_nets features"]] = (),
    pools: Sequence[Float[Tensor, "_pool _size"]] = (),
) -> float:
    """Do one step of flow matching on a random batch of one of the zoos, and return its loss.

    `told` holds the encoded conditions of each zoo, if there are any, and `pools` the noise samples of `pools_of`.
    """
    config, which = run.flow.config, next_zoo([len(points) for points in zoos], run.generator)
    chart, points = run.flow.charts[which], zoos[which]
    some = torch.randperm(len(points), generator=run.generator)[: config["batch"]].to(points.device)
    x_1 = points[some]
    x_0 = drawn(pools[which], len(x_1), run.generator) if pools else noise(chart, len(x_1), run.generator, points.device)
    x_0 = x_0.to(x_1)
    x_0 = COUPLINGS[config["coupling"]](chart.spec, chart.manifold, x_0, x_1)
    t = times(config["time"], len(x_1), run.generator).to(x_1)
    if config["jitter"]:
        x_0, x_1 = moved_aside(chart, (x_0, x_1), config["jitter"], run.generator)
    if not told:
        return run.step(x_0, x_1, t, lr, which)
    kept = torch.rand(len(x_1), 1, generator=run.generator) >= config["condition_dropout"]
    return run.step(x_0, x_1, t, lr, which, told[which][some] * kept.to(x_1))


def _learning_rate(lr: float, iteration: int, iterations: int) -> float:
    return lr * min(1, (iteration + 1) / WARMUP) * (1 + math.cos(math.pi * iteration / iterations)) / 2


def _fingerprints(inputs: Tensor | Mapping[str, Tensor]) -> str | dict[str, str]:
    return {name: fingerprint(part) for name, part in inputs.items()} if isinstance(inputs, Mapping) else fingerprint(inputs)

"""Measure what linear maps of attention heads are worth: planted symmetries, and barriers between trained vision transformers.

python benchmarks/heads.py planted    100 networks under random symmetries, each brought back
python benchmarks/heads.py barriers   all pairs of 5 networks from independent starts, aligned in several ways
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import torch
from jaxtyping import Float
from others import heads_by_spectra
from torch import Tensor

import geoflow
from geoflow.canonical import align, balance, balance_products, canonicalize
from geoflow.canonical.scaling import balance as scaled
from geoflow.spec import NetworkSpec
from geoflow.vector import pack
from geoflow.wiring.check import jitter
from geoflow.zoo.networks import build_network
from geoflow.zoo.recipes import zoo_defaults
from geoflow.zoo.tasks import load_task
from geoflow.zoo.train import train_zoo

NETWORKS, COPIES = 5, 100
Pair = tuple[Float[Tensor, " weights"], Float[Tensor, " weights"]]


def without_maps(spec: NetworkSpec) -> NetworkSpec:
    """Return a table that does not know linear maps."""
    return replace(spec, sites=tuple(replace(site, linear=None, dual=False, inner=0) for site in spec.sites))


def by_units(spec: NetworkSpec, a: Tensor, b: Tensor) -> Pair:
    """Align the units of b to those of a, and heads as a whole."""
    blind = without_maps(spec)
    goal = balance(blind, a)
    return goal, align(blind, balance(blind, b)[None], goal)[0][0]


def by_spectra(spec: NetworkSpec, a: Tensor, b: Tensor) -> Pair:
    """Do the same, and then match heads by their singular values, and the units inside them by one assignment."""
    goal, near = by_units(spec, a, b)
    return goal, heads_by_spectra(spec, near, goal)


def by_rotations(spec: NetworkSpec, a: Tensor, b: Tensor) -> Pair:
    """Turn and match heads, but leave their products unbalanced."""
    goal = scaled(spec, a)
    return goal, align(spec, scaled(spec, b)[None], goal)[0][0]


def by_maps(spec: NetworkSpec, a: Tensor, b: Tensor) -> Pair:
    """Balance the products of both networks, and turn and match heads."""
    goal = balance(spec, a)
    return goal, canonicalize(spec, b[None], goal).theta[0]


WAYS: dict[str, Callable[[NetworkSpec, Tensor, Tensor], Pair]] = {
    "not aligned": lambda spec, a, b: (a, b),
    "balanced, not aligned": lambda spec, a, b: (balance(spec, a), balance(spec, b)),
    "units, and heads as a whole": by_units,
    "heads by spectra, units inside them": by_spectra,
    "heads turned, products not balanced": by_rotations,
    "heads turned, products balanced": by_maps,
}


def barriers() -> None:
    """Print the mean barrier over all pairs for each way, and the mean distance of a pair."""
    task = load_task("digits", form="image")
    recipe = {key: value for key, value in zoo_defaults("vit", "digits").items() if key not in ("runs", "common", "origin")}
    state = train_zoo(lambda: build_network("vit", task, {}), task, runs=NETWORKS, seed=0, together=1, progress=False, **recipe)
    network = build_network("vit", task, {})
    spec = geoflow.spec_of(network, task.x_train[:1])
    thetas = pack(spec, {name: entry.flatten(0, 1) for name, entry in state.items()}).double()
    alone = geoflow.evaluate(network, spec, thetas, task.x_test, task.y_test)
    print(f"{NETWORKS} networks of {spec.weights} weights, linear groups {spec.linear}")
    print(f"alone: accuracy {alone.accuracy.mean():.3f}, NLL {alone.nll.mean():.3f}")
    print("| aligned by | barrier, mean | least to greatest | accuracy half way | distance |\n|---|---|---|---|---|")
    for name, way in WAYS.items():
        heights, middle, distances = [], [], []
        for i, j in combinations(range(NETWORKS), 2):
            a, b = way(spec, thetas[i], thetas[j])
            found = geoflow.barrier(network, spec, *(geoflow.unpack(spec, one) for one in (a, b)), task.x_test, task.y_test)
            heights.append(found.height)
            middle.append(found.scores.accuracy[len(found.at) // 2].item())
            distances.append((a - b).norm().item())
        mean, half, far = (sum(values) / len(values) for values in (heights, middle, distances))
        print(f"| {name} | {mean:.3f} | {min(heights):.3f} to {max(heights):.3f} | {half:.3f} | {far:.2f} |", flush=True)


def planted() -> None:
    """Print in how many of many networks a planted symmetry is found again, and the largest error of a weight."""
    task = load_task("digits", form="image")
    generator = torch.Generator().manual_seed(0)
    network = build_network("vit", task, {})
    spec = geoflow.spec_of(network, task.x_train[:1])
    start = pack(spec, network.state_dict()).double()
    theta = torch.stack([jitter(spec, start, generator) for _ in range(COPIES)])
    goals = balance(spec, theta)
    moved = torch.stack([geoflow.apply_symmetry(spec, one, geoflow.random_symmetry(spec, generator)) for one in goals])
    for dtype in (torch.float64, torch.float32):
        found = canonicalize(spec, moved.to(dtype), goals.to(dtype)).theta
        errors = (found.double() - goals).abs().amax(1)
        print(f"{dtype}: {(errors < 1e-4).sum()} of {COPIES} within 1e-4, largest error {errors.max():.2g}", flush=True)
    assert torch.allclose(balance_products(spec, goals), goals, atol=1e-9)


if __name__ == "__main__":
    {"planted": planted, "barriers": barriers}[sys.argv[1]]()
